"""Photos: those in a folder and the people on them, and a reader that refuses what is not whole.

Never imports TensorFlow: the worker processes of preprocess.py import this.
"""

import collections
import dataclasses
import hashlib
import io
import os
import re
import sys
import tempfile
import unicodedata
import warnings
from pathlib import Path

import cv2
import numpy as np
import pi_heif
from PIL import ExifTags, Image, ImageCms, ImageFile

import utils
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

MAX_NAME_BYTES = 100  # of a person's name and of a photo's: together they become a file name
HASH_LETTERS = 8  # of the hash that tells names apart whose letters were replaced
# Words before the number in names that cameras and programs give: such names say nothing about people.
FILE_WORDS = """
    at bild camera cimg copy dcim dsc dscf dsci dscn face faces file fig figure foto frame gopr id im image images img imgp item
    kopie mg mvi new no number pano people person photo photos pic pict picture portrait pxl sam sample scan screen screenshot
    shot snapshot subject test thumb train untitled user val wa whatsapp wp
"""

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


def photos_under(folder: Path) -> tuple[list[Path], str]:
    """Find the photos in a folder and its subfolders. Links are followed; hidden files and folders do not count.

    Returns:
        The photos, sorted, each under one path; and in words what was left out and why, "" if nothing was.
    """
    photos, linked_photos, seen = [], [], set()
    suffixes, left_out = collections.Counter(), collections.defaultdict(list)
    folders, linked_folders = [folder], []  # a folder is listed under its own path rather than that of a link to it
    while folders or linked_folders:
        here = folders.pop() if folders else linked_folders.pop(0)
        if _is_again(here, seen):
            left_out["links to folders already listed"].append(here)
            continue
        try:
            with os.scandir(here) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except PermissionError:
            left_out["folders that may not be read"].append(here)
            continue
        for entry in entries:
            path, is_link = here / entry.name, entry.is_symlink()
            if entry.name.startswith("."):
                continue
            if path.is_dir() if is_link else entry.is_dir():
                (linked_folders if is_link else folders).append(path)
            elif not (path.is_file() if is_link else entry.is_file()):
                left_out["links to nothing" if is_link else "special files"].append(path)
            elif path.suffix.lower() not in SUFFIXES:
                suffixes[path.suffix.lower() or "no suffix"] += 1
            else:
                (linked_photos if is_link else photos).append(path)
    if linked_photos:
        for path in photos:
            _is_again(path, seen)
        for path in sorted(linked_photos):
            (left_out["links to photos already listed"] if _is_again(path, seen) else photos).append(path)
    words = [f"{reason} {len(paths)} ({paths[0].relative_to(folder)})" for reason, paths in left_out.items()]
    if suffixes:
        of_kinds = ", ".join(f"{suffix} {n}" for suffix, n in sorted(suffixes.items(), key=lambda item: (-item[1], item[0])))
        words.insert(0, f"files of other kinds {suffixes.total()} ({of_kinds})")
    return sorted(photos), utils.printable(", ".join(words))


def below(folder: Path) -> list[Path]:
    """Return the photos in a folder and its subfolders; a line on stderr says what was left out. Raises InputError for none."""
    found, left_out = photos_under(folder)
    if not found:
        found = f"none but {left_out}" if left_out else "none"
        raise InputError(f"{folder}: expected photos ({', '.join(SUFFIXES)}), found {found}; name another folder")
    if left_out:
        print(f"hear: left out of {folder}: {left_out}", file=sys.stderr)
    return found


def _is_again(path: Path, seen: set) -> bool:
    """Tell whether a file or folder, or what a link leads to, is among those seen; add it to them."""
    status = path.stat()
    key = (status.st_dev, status.st_ino)
    again = key in seen
    seen.add(key)
    return again


# ----------------------------------------------------------------------------------------------------------------------
# People.


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo of a person: its name, from which `utils.person_of` takes the person as from a clip's name, and its path."""

    clip: str
    path: Path

    @property
    def video_id(self) -> str:
        return utils.person_of(self.clip)


def find_photos(folder: Path, limit: int | None = None) -> tuple[list[Photo], list[str]]:
    """Find the photos in a folder, and tell the people on them apart.

    A subfolder holds the photos of one person. A photo beside the subfolders shows the person that it is named for; several
    such photos named `<person>_<number>` show one person.

    Returns:
        The first `limit` photos, sorted by path, named `<person>_photo`, or `<person>_<photo>` where a person has several;
        and lines that say what was left out and what was assumed. A person's name is that of `person_name`; the photo's
        holds letters, digits, dots and hyphens.

    Raises:
        InputError: if there are none.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of photos, found {'a file' if folder.exists() else 'none'}; pass another --faces"
        )
    paths, left_out = photos_under(folder)
    if not paths:
        found = f"none but {left_out}" if left_out else "none"
        raise InputError(f"{folder}: expected photos ({', '.join(SUFFIXES)}), found {found}; pass another --faces")
    people, notes = _people_of([_relative_name(path, folder) for path in paths])
    named = {}
    for path, (person, photo) in list(zip(paths, people))[:limit]:
        photo = _cut(re.sub(r"[\W_]+", "-", photo))
        name = f"{person_name(person)}_{photo}"
        if name in named:  # of one person: 1.jpg and 1.png, or a b.jpg and a_b.jpg
            name = f"{name}-{_hash(str(path.relative_to(folder)))}"
        named[name] = Photo(name, path.absolute())
    if left_out:
        notes.append(f"left out of {folder}: {left_out}")
    return list(named.values()), [utils.printable(note) for note in notes + _notes_on_case(named.values())]


def person_name(person: str) -> str:
    """Return the name of a person as a part of file names: the same for the same person, and another one for each other.

    Letters of all scripts with their marks, digits, dots, hyphens and underscores stay. Where others were replaced, or a long
    name was cut, the name ends in a hash of the whole. Names that differ only in how Unicode composes their accents are one.
    """
    person = unicodedata.normalize("NFC", person)
    kept = "".join(
        letter if re.match(r"[\w.-]", letter) or unicodedata.category(letter)[0] == "M" else "\0" for letter in person
    )
    name = _cut(re.sub("\0+", "-", kept))
    return name if name == person else f"{name.rstrip('-')}-{_hash(person)}"


def _relative_name(path: Path, folder: Path) -> Path:
    """Return the path of a photo below a folder, without suffix, with accents as NFC composes them."""
    return Path(unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix(""))))


def _cut(name: str) -> str:
    return name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:HASH_LETTERS]


def _people_of(paths: list[Path]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the names of person and photo for each path, relative and without suffix; and what was assumed, in lines."""
    numbered = {path: _split_number(path.name) for path in paths if len(path.parts) == 1}
    names = collections.Counter(name for name, number in numbered.values() if number)
    others = {path.parts[0] for path in paths if len(path.parts) > 1 or not numbered[path][1]}
    shared = {name: n for name, n in names.items() if n > 1 or name in others}
    of_people = {name: n for name, n in shared.items() if _says_who(name)}
    people = []
    for path in paths:
        person, *more = path.parts
        name, number = numbered.get(path, ("", ""))
        if name in of_people:
            person, more = name, [number] if number else []
        people.append((person, "-".join(more) or "photo"))
    advice = "where this is wrong, put the photos of each person into a folder of their own"
    notes = []
    if of_people:
        example = next(path for path, (name, number) in numbered.items() if number and name in of_people)
        n = sum(of_people.values())
        notes.append(f"{n} photos named <person>_<number>, such as {example}, show {len(of_people)} people; {advice}")
    if len(shared) > len(of_people):
        example = next(path for path, (name, number) in numbered.items() if number and name in shared and name not in of_people)
        n = sum(shared.values()) - sum(of_people.values())
        notes.append(f"{n} photos with a number and no person's name, such as {example}, show a person each; {advice}")
    return people, notes


def _split_number(name: str) -> tuple[str, str]:
    """Split the name of a photo into a name and the number after it: `Ann_0002`, `Ann-2`, `Ann 2` or `Ann (2)`.

    Without such a number, that is "".
    """
    found = re.fullmatch(r"(.*[^\W_])(?:[_ -]+(\d+)| *\((\d+)\))", name, re.S)
    return (found[1], found[2] or found[3]) if found else (name, "")


def _says_who(name: str) -> bool:
    """Tell whether a name may be a person's: it has a word that is not one of FILE_WORDS."""
    return bool(set(re.findall(r"[^\W\d_]+", name.casefold())) - set(FILE_WORDS.split()))


def _notes_on_case(found) -> list[str]:
    """Return a line if names of people differ only in case, as files on some drives may not; none otherwise."""
    people = sorted({photo.video_id for photo in found})
    spellings = collections.defaultdict(list)
    for person in people:
        spellings[person.casefold()].append(person)
    same = [names for names in spellings.values() if len(names) > 1]
    if not same:
        return []
    return [f"{' and '.join(same[0])} are taken for different people; where they are one, move the photos into one folder"]
