"""Photos: those in a folder, and a reader that refuses what is not whole.

Never imports TensorFlow: the worker processes of preprocess.py import this.
"""

import dataclasses
import io
import re
import sys
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pi_heif
from PIL import ExifTags, Image, ImageCms, ImageFile

import utils
from clips import folders
from clips.reasons import Skip
from utils import InputError

# Suffixes of photos; what a file holds is told by its content. The formats are those of Pillow and pi_heif.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".heic", ".heif", ".hif", ".avif"),
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "HEIF", "AVIF")
MAX_PIXELS = 200_000_000  # of a photo, as many as the largest cameras have; they take 600 MB
ZEROS = 256  # bytes at the end of a WebP, AVIF or HEIF: no photo ends in so many, a download that broke off may
BACKGROUND = "white"  # behind what is transparent, as in most viewers

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses more than twice as many, in every place where a size is read
pi_heif.register_heif_opener(thumbnails=False)

# ----------------------------------------------------------------------------------------------------------------------
# Reading.

_TURNED = {  # by the orientation that a camera notes
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What libjpeg and libtiff say on stderr about damage that they go on after.
_COMPLAINT = re.compile(r"^(?:Corrupt JPEG|Premature end|Inconsistent progression|\w+Decode:|JPEGLib:|tempfile\.tif:).*", re.M)


def read_photo(path: Path) -> np.ndarray:
    """Read a photo in any of FORMATS, upright and in sRGB. Of an animation the first picture counts.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        Skip: "unreadable" if the file is not a photo, is cut off or damaged as far as its format tells, or has more than
            MAX_PIXELS.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings(), tempfile.NamedTemporaryFile() as said:
            warnings.simplefilter("ignore")  # Pillow's, about odd but harmless notes in a file
            with utils.stderr_to(Path(said.name)):
                picture = _decode(file)
            complaint = _COMPLAINT.search(said.read().decode(errors="replace"))
    except OSError as error:
        raise Skip("unreadable", error.strerror or str(error).partition(" <_io.")[0]) from error
    except Exception as error:  # broken bytes may make a decoder raise anything
        raise Skip("unreadable", str(error) or type(error).__name__) from error
    if complaint:
        raise Skip("unreadable", complaint[0])
    return picture


def _decode(file) -> np.ndarray:
    """Decode an open file to uint8 (height, width, 3), RGB. Raises anything; damage may only be named on stderr."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # face_recognition sets it
    image = Image.open(file, formats=FORMATS)
    if image.format == "PNG":
        image.verify()  # its checksums
        image = Image.open(file, formats=FORMATS)
    image.load()
    file.seek(0)
    content = file.read()
    if image.format in ("WEBP", "AVIF", "HEIF") and content.endswith(bytes(ZEROS)):
        raise ValueError("the file ends in zeros")
    if image.format in ("JPEG", "MPO"):  # Pillow keeps to itself what libjpeg says; OpenCV does not
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken notes of a camera do no harm to the picture
        orientation = None
    profile = image.info.get("icc_profile")
    image = _in_srgb(_in_8_bits(image), profile)
    if orientation in _TURNED:
        image = image.transpose(_TURNED[orientation])
    return np.array(image)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image in 8 bits: L, CMYK or RGB, over BACKGROUND where it is transparent."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("expected numbers of 8 or 16 bits, found 32, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image if image.mode in ("L", "CMYK") else image.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image, L, CMYK or RGB, in sRGB. A colour profile that is broken or of another kind of image is passed over."""
    if profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(profile):
                image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")


# ----------------------------------------------------------------------------------------------------------------------
# The photos in a folder.


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo of a person: its name, from which `utils.person_of` takes the person as from a clip's name, and its path."""

    clip: str
    path: Path

    @property
    def person(self) -> str:
        return utils.person_of(self.clip)


def find_photos(folder: Path, limit: int | None = None) -> tuple[list[Photo], list[str]]:
    """Find the photos in a folder, and tell the people on them apart, as `folders.people_of` does.

    Returns:
        The first `limit` photos, sorted by path, named as `folders.clip_name` names clips, `<person>_photo` where nothing tells
        a person's photos apart; and lines that say what was left out and what was assumed.

    Raises:
        InputError: if there are none.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of photos, found {'a file' if folder.exists() else 'none'}; pass another --faces"
        )
    paths, left_out = folders.files_under(folder, SUFFIXES)
    if not paths:
        raise InputError(
            f"{folder}: expected photos ({', '.join(SUFFIXES)}), found {_none_but(left_out)}; pass another --faces"
        )
    person_and_rest, notes = folders.people_of(map(folders.without_suffix, paths))
    named = {}
    for path in paths[:limit]:
        person, photo = person_and_rest(folders.without_suffix(path))
        name = folders.clip_name(person, photo or "photo")
        if name in named:  # of one person: 1.jpg and 1.png, or a b.jpg and a_b.jpg
            name = folders.hashed_name(name, path)
        named[name] = Photo(name, (folder / path).absolute())
    if left_out:
        notes.append(f"left out of {folder}: {left_out}")
    return list(named.values()), [utils.printable(note) for note in notes]


def below(folder: Path) -> list[Path]:
    """Return the photos in a folder and its subfolders; a line on stderr says what was left out. Raises InputError for none."""
    found, left_out = folders.files_under(folder, SUFFIXES)
    if not found:
        raise InputError(f"{folder}: expected photos ({', '.join(SUFFIXES)}), found {_none_but(left_out)}; name another folder")
    if left_out:
        print(f"hear: left out of {folder}: {left_out}", file=sys.stderr)
    return [folder / path for path in found]


def _none_but(left_out: str) -> str:
    return f"none but {left_out}" if left_out else "none"
