"""Photos of all formats are read as they are shown, or told to be unreadable."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT, ffmpeg
from PIL import Image, ImageCms, ImageFile

from clips import detection, folders, photos
from clips.reasons import Skip

CASES = ROOT.parent / "shared" / "cases" / "photos"
ORIENTATIONS = {  # as the camera stores a picture that is to be shown so
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture, 1),
    7: lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
    8: lambda picture: np.rot90(picture, -1),
}


@pytest.fixture(scope="module")
def face():
    """A picture with colours, edges and some noise, uint8 (240, 200, 3), RGB."""
    noise = np.random.default_rng(0).normal(size=(240, 200, 3))
    picture = cv2.GaussianBlur(noise, (0, 0), 9) * 900 + cv2.GaussianBlur(noise, (0, 0), 1.5) * 30 + 128
    cv2.circle(picture, (80, 90), 50, (220, 160, 130), -1)
    return picture.clip(0, 255).astype(np.uint8)


def saved(picture, format, **options):
    """Return a picture, an array or of Pillow, as a file of a format."""
    content = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(content, format, **options)
    return content.getvalue()


def read(content, folder):
    (folder / "photo.jpg").write_bytes(content)  # the suffix says nothing
    return photos.read_photo(folder / "photo.jpg")


def refusal(content, folder):
    with pytest.raises(Skip, match="unreadable") as skipped:
        read(content, folder)
    assert skipped.value.detail and "\n" not in skipped.value.detail.strip()
    return skipped.value.detail


def box(kind, *parts, version=None):
    body = (b"" if version is None else struct.pack(">I", version << 24)) + b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def inside(content, *path):
    """Return the content of a box in an mp4."""
    at, end = 0, len(content)
    for kind in path:
        while content[at + 4 : at + 8] != kind:
            at += int.from_bytes(content[at : at + 4], "big")
            assert at < end, kind
        end = at + int.from_bytes(content[at : at + 4], "big")
        at += {b"stsd": 16, b"hvc1": 86}.get(kind, 8)
    return content[at:end]


def heic(picture, folder, *properties):
    """Return a picture as HEIC: the one frame of an HEVC video, in the container of a still."""
    cv2.imwrite(str(folder / "still.png"), picture[..., ::-1])
    quality = ["-crf", 8, "-x265-params", "log-level=none", "-pix_fmt", "yuv420p", "-tag:v", "hvc1"]
    ffmpeg("-i", folder / "still.png", "-c:v", "libx265", *quality, folder / "still.mp4")
    video = (folder / "still.mp4").read_bytes()
    entry = inside(video, *b"moov trak mdia minf stbl stsd hvc1 hvcC".split())
    frame, (height, width) = inside(video, b"mdat"), picture.shape[:2]
    properties = [box(b"hvcC", entry), box(b"ispe", struct.pack(">II", width, height), version=0), *properties]
    used = struct.pack(">IHB", 1, 1, len(properties)) + bytes(range(1, len(properties) + 1))
    brand = box(b"ftyp", b"heic", bytes(4), b"mif1heic")

    def meta(at):
        place = struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, at, len(frame))
        item = box(b"infe", struct.pack(">HH4s", 1, 0, b"hvc1"), b"\0", version=2)
        parts = [
            box(b"hdlr", bytes(4), b"pict", bytes(13), version=0),
            box(b"pitm", struct.pack(">H", 1), version=0),
            box(b"iloc", place, version=0),
            box(b"iinf", struct.pack(">H", 1), item, version=0),
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", used, version=0)),
        ]
        return box(b"meta", *parts, version=0)

    return brand + meta(len(brand) + len(meta(0)) + 8) + box(b"mdat", frame)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "format, options",
    [
        ("JPEG", {"quality": 75}),
        ("JPEG", {"quality": 75, "progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_photo_is_read_as_opencv_reads_it(format, options, face, tmp_path):
    content = saved(face, format, **options)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    found = read(content, tmp_path)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def test_formats_of_phones_and_of_the_web(face, tmp_path):
    for content in (saved(face, "AVIF", quality=90), heic(face, tmp_path), saved(face, "WEBP", quality=90)):
        assert np.abs(read(content, tmp_path).astype(int) - face).mean() < 3
    turned = np.ascontiguousarray(face[::-1])
    for format in ("GIF", "WEBP", "PNG"):  # of an animation the first picture
        content = saved(face, format, save_all=True, append_images=[Image.fromarray(turned)])
        found = read(content, tmp_path).astype(int)
        assert found.shape == face.shape and np.abs(found - face).mean() < 6 < np.abs(found - turned).mean()


def test_every_suffix_is_found_whatever_the_file_holds(face, tmp_path):
    for suffix in photos.SUFFIXES:
        (tmp_path / f"a{suffix.upper()}").write_bytes(saved(face, "PNG"))
    found, left_out = folders.files_under(tmp_path, photos.SUFFIXES)
    assert len(found) == len(photos.SUFFIXES) and left_out == ""
    for path in map(tmp_path.joinpath, found):
        np.testing.assert_array_equal(photos.read_photo(path), face)


def test_what_pillow_could_read_but_is_no_photo_is_refused(face, tmp_path):
    assert refusal(saved(face, "EPS"), tmp_path) == "cannot identify image file"  # a program for Ghostscript
    (tmp_path / "other.png").write_bytes(saved(face, "PNG"))
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="other.png"/></svg>'
    assert refusal(drawing.encode(), tmp_path) == "cannot identify image file"
    assert refusal(b"no photo", tmp_path) == "cannot identify image file"
    assert refusal(b"", tmp_path) == "cannot identify image file"
    with pytest.raises(Skip) as skipped:
        photos.read_photo(tmp_path / "none.jpg")
    assert skipped.value.detail == "No such file or directory"


# ---------------------------------------------------------------- upright, in 8 bits, in sRGB


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_all_orientations(format, face, tmp_path):
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    for orientation, stored in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(np.ascontiguousarray(stored(face)), format, exif=exif, **options)
        found = read(content, tmp_path)
        assert found.shape == face.shape and np.abs(found.astype(int) - face).mean() < 5, orientation


def test_a_heic_is_turned_once(face, tmp_path):
    """The container says by how many quarters, against the clock; cameras note the same in Exif."""
    content = heic(face, tmp_path, box(b"irot", b"\x01"))
    assert np.abs(read(content, tmp_path).astype(int) - np.rot90(face)).mean() < 3


def test_broken_notes_of_a_camera_do_no_harm(face, tmp_path):
    content = saved(face, "JPEG")
    for notes in (b"Exif\0\0broken", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"):
        marked = content[:2] + b"\xff\xe1" + struct.pack(">H", len(notes) + 2) + notes + content[2:]
        np.testing.assert_array_equal(read(marked, tmp_path), read(content, tmp_path))


def test_sixteen_bits_become_eight(face, tmp_path):
    grey = face[..., 1]
    deep = grey.astype(np.uint16) * 256 + 77
    three = face.astype(np.uint16) * 256 + 77
    for suffix in ("png", "tif"):
        for picture, expected in ((deep, np.repeat(grey[..., None], 3, axis=2)), (three, face)):
            cv2.imwrite(str(tmp_path / f"deep.{suffix}"), picture if picture.ndim == 2 else picture[..., ::-1])
            np.testing.assert_array_equal(photos.read_photo(tmp_path / f"deep.{suffix}"), expected)
    assert "32, whose range is not known" in refusal(saved(grey.astype(np.float32), "TIFF"), tmp_path)


def test_grey_palette_and_print_colours(face, tmp_path):
    grey = Image.fromarray(face).convert("L")
    np.testing.assert_array_equal(read(saved(grey, "PNG"), tmp_path), np.asarray(grey.convert("RGB")))
    palette = Image.fromarray(face).quantize(64)
    np.testing.assert_array_equal(read(saved(palette, "PNG"), tmp_path), np.asarray(palette.convert("RGB")))
    printed = Image.fromarray(face).convert("CMYK")  # Pillow writes a JPEG's inks inverted, as Adobe does
    assert np.abs(read(saved(printed, "JPEG", quality=95), tmp_path).astype(int) - face).mean() < 4
    assert np.abs(read(saved(printed, "TIFF"), tmp_path).astype(int) - face).mean() < 2


def test_what_is_transparent_is_white(face, tmp_path):
    alpha = np.full(face.shape[:2], 255, np.uint8)
    alpha[:50], alpha[50:60] = 0, 51
    expected = face.copy()
    expected[:50] = 255
    expected[50:60] = np.round(0.2 * face[50:60] + 0.8 * 255)
    content = saved(np.dstack([face, alpha]), "PNG")
    assert np.abs(read(content, tmp_path).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(read(content, tmp_path)[60:], face[60:])
    grey = np.dstack([face[..., 1], alpha])
    assert (read(saved(Image.fromarray(grey, "LA"), "PNG"), tmp_path)[:50] == 255).all()
    palette = Image.fromarray(face).quantize(64)
    marked = palette.getpixel((0, 0))
    found = read(saved(palette, "GIF", transparency=marked), tmp_path)
    assert (found[np.asarray(palette) == marked] == 255).all()


def rgb_profile(red, green, blue, gamma=2.2):
    """Return an ICC profile of a display: primaries as XYZ under D50, and the exponent of its tone curve."""
    fixed = lambda *numbers: b"".join(struct.pack(">i", round(65536 * number)) for number in numbers)  # noqa: E731
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2)
    words = b"a wide one\0"
    text = b"desc" + bytes(4) + struct.pack(">I", len(words)) + words + bytes(78 + 3)
    tags = {b"desc": text + bytes(-len(text) % 4), b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    for name, primary in ((b"r", red), (b"g", green), (b"b", blue)):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primary)
        tags[name + b"TRC"] = curve
    at, table, content = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(content), len(value))
        content += value
    head = struct.pack(
        ">I4sI4s4s4s12s4s", at + len(content), bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
    )
    head += bytes(28) + fixed(0.9642, 1, 0.8249)
    return head + bytes(128 - len(head)) + table + content


ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def test_colours_become_srgb(face, tmp_path):
    """The same numbers mean stronger colours in AdobeRGB; pure green of sRGB is (144, 255, 60) there."""
    profile = rgb_profile(*ADOBE_RGB)
    green = np.broadcast_to(np.uint8([144, 255, 60]), (32, 32, 3))
    for format in ("PNG", "TIFF", "WEBP"):
        content = saved(green, format, icc_profile=profile, **({"lossless": True} if format == "WEBP" else {}))
        assert np.abs(read(content, tmp_path).astype(int) - (0, 255, 0)).max() <= 8, format
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"broken", rgb_profile(*ADOBE_RGB)[:200]):
        np.testing.assert_array_equal(read(saved(face, "PNG", icc_profile=profile), tmp_path), face)
    grey = Image.fromarray(face).convert("L")  # with the profile of another kind of picture
    content = saved(grey, "PNG", icc_profile=rgb_profile(*ADOBE_RGB))
    np.testing.assert_array_equal(read(content, tmp_path), np.asarray(grey.convert("RGB")))


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "format, options",
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("AVIF", {}),
        ("HEIC", {}),
    ],
)
def test_part_of_a_photo_is_unreadable(format, options, face, tmp_path, monkeypatch):
    """Cut off anywhere, and where the missing part was filled with zeros. Some bytes after the picture may be missing."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as face_recognition does
    content = heic(face, tmp_path) if format == "HEIC" else saved(face, format, **options)
    whole = read(content, tmp_path)
    for length in np.linspace(1, len(content) - 1, 25).astype(int):
        if len(content) - length > 20:
            refusal(content[:length], tmp_path)
            if format not in ("BMP", "TIFF", "GIF"):  # without compression, zeros are black
                refusal(content[:length] + bytes(len(content) - length + 300), tmp_path)
    np.testing.assert_array_equal(read(content, tmp_path), whole)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_is_unreadable(progressive, face, tmp_path, capfd):
    """Decoders go on after damage and smear the rest of the face."""
    content = saved(face, "JPEG", quality=90, progressive=progressive, restart_marker_rows=0 if progressive else 1)
    middle = len(content) // 2
    for damaged in (
        content[:middle] + b"\xff\xd9",
        content[:middle] + bytes(400) + content[middle + 400 :],
        content[:middle] + content[middle + 400 :],
    ):
        assert Image.open(io.BytesIO(damaged)).convert("RGB").size == (200, 240)  # Pillow alone says nothing
        assert refusal(damaged, tmp_path).startswith("Corrupt JPEG data")
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(read(content + bytes(500), tmp_path), read(content, tmp_path))  # padding after the end


def test_checksums_are_checked(face, tmp_path):
    content = saved(face, "PNG")
    for at in np.linspace(60, len(content) - 20, 15).astype(int):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        refusal(bytes(damaged), tmp_path)


def test_more_pixels_than_any_camera_has(tmp_path):
    def png(width, height):
        head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        body = b"IDAT" + zlib.compress(bytes(1000))
        chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, body))
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    assert "10000000000 pixels" in refusal(png(100_000, 100_000), tmp_path)
    assert "pixels" in refusal(png(20_001, 10_000), tmp_path)
    assert "pixels" not in refusal(png(20_000, 10_000), tmp_path)
    bomb = saved(Image.new("1", (1, 1)), "BMP")
    assert "pixels" in refusal(bomb[:18] + struct.pack("<ii", 60_000, 60_000) + bomb[26:], tmp_path)


def test_a_line_of_pixels_shows_no_face(tmp_path):
    for size in ((1, 1), (2, 5000), (5000, 2), (1, 40)):
        with pytest.raises(Skip, match="no-face"):
            detection.find_photo_face(read(saved(Image.new("RGB", size), "PNG"), tmp_path), "hog")


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside the checkout")
def test_the_cases():
    assert photos.read_photo(CASES / "base2.jfif").shape == (500, 500, 3)
    for name in ("trunc50.jpg", "broken header.png"):
        with pytest.raises(Skip, match="unreadable"):
            photos.read_photo(CASES / name)
