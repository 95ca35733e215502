"""Read media files: the sound and the frames of a clip, by ffmpeg; photos and face crops, by OpenCV.

Never imports TensorFlow: the worker processes of preprocess.py import this.
"""

import concurrent.futures
import os
import re
import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from clips.feature_files import face_path, portrait_path
from clips.reasons import Skip
from utils import CLIP_SAMPLES, CLIP_SECONDS, SAMPLE_RATE, InputError

DECODING_SECONDS = 60  # s that ffmpeg may take for a clip
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# ----------------------------------------------------------------------------------------------------------------------
# Sound and frames.


def start_ffmpeg(path: Path, *outputs, pass_fds=(), seconds: float = CLIP_SECONDS) -> subprocess.Popen:
    """Start ffmpeg on the first `seconds` of a file. `outputs` are the arguments after the input."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-t", str(seconds), "-i", str(path), *outputs]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=pass_fds)


def communicate(process: subprocess.Popen) -> tuple[bytes, bytes]:
    """Return all that ffmpeg writes to stdout and stderr. Raises Skip("unreadable") after DECODING_SECONDS."""
    try:
        return process.communicate(timeout=DECODING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Skip("unreadable", f"ffmpeg did not finish within {DECODING_SECONDS} s") from None


_PICTURES = ("-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1")


def _parse_pictures(content: bytes) -> np.ndarray:
    """Return the pictures, all of one size, of a PPM stream: uint8 (n, height, width, 3), RGB."""
    header = re.match(rb"P6\n(\d+) (\d+)\n255\n", content)
    if not header:
        raise Skip("unreadable")
    width, height = map(int, header.groups())
    size = header.end() + width * height * 3
    pictures = np.frombuffer(content, np.uint8, len(content) // size * size).reshape(-1, size)
    return pictures[:, header.end() :].reshape(-1, height, width, 3)


def read_clip(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decode the first 6 s of a clip's sound, and its first frame, in one ffmpeg process.

    Returns:
        The sound, int16 (samples,), mono at SAMPLE_RATE, at most CLIP_SAMPLES; the frame, uint8 (height, width, 3), RGB.

    Raises:
        Skip: "no-sound" without a sound track, "unreadable".
    """
    sound_in, sound_out = os.pipe()
    sound = ("-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", f"pipe:{sound_out}")
    process = start_ffmpeg(path, "-map", "0:v:0", "-frames:v", "1", *_PICTURES, *sound, pass_fds=[sound_out])
    os.close(sound_out)
    with open(sound_in, "rb") as pipe, concurrent.futures.ThreadPoolExecutor(1) as reader:
        reading = reader.submit(pipe.read)
        pictures, errors = communicate(process)
        samples = reading.result()
    if b"value '0:a:0' for option 'map'" in errors:
        raise Skip("no-sound")
    samples = np.frombuffer(samples, "<i2", len(samples) // 2)[:CLIP_SAMPLES]
    pictures = _parse_pictures(pictures)
    if process.returncode != 0 or len(samples) == 0 or len(pictures) == 0:
        raise Skip("unreadable", errors.decode(errors="replace")[-200:])
    return samples, pictures[0]


def read_later_frames(path: Path) -> np.ndarray:
    """Decode a clip's frames after the first: one a second, from 1 s up to 6 s.

    Returns:
        uint8 (n, height, width, 3), RGB; n may be 0.
    """
    one_a_second = "select='gte(t,1)*(isnan(prev_selected_t)+gte(t-prev_selected_t,1))'"
    content, _ = communicate(start_ffmpeg(path, "-map", "0:v:0", "-vf", one_a_second, "-fps_mode", "vfr", *_PICTURES))
    return _parse_pictures(content) if content else np.empty((0, 1, 1, 3), np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures.


def read_face(data: Path, clip: str) -> np.ndarray:
    """Read a clip's face crop. Returns uint8 (FACE_SIZE, FACE_SIZE, 3), RGB. Raises InputError."""
    return _read_jpeg(face_path(data, clip))


def read_portrait(data: Path, clip: str) -> np.ndarray:
    """Read a clip's or photo's portrait. Returns uint8 (height, width, 3), RGB. Raises InputError."""
    return _read_jpeg(portrait_path(data, clip))


def _read_jpeg(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"{path}: expected a JPEG, found something else; delete it, rerun preprocess.py")
    return image[..., ::-1]


def read_photo(path: Path) -> np.ndarray | None:
    """Read a photo in any format of PHOTOS, turned upright. Returns uint8 (height, width, 3), RGB; None if unreadable."""
    image = cv2.imread(str(path))
    return None if image is None else np.ascontiguousarray(image[..., ::-1])


def photos_under(folder: Path) -> list[Path]:
    """Return the photos in a folder and its subfolders, sorted, without hidden files and folders."""
    photos = (path for path in folder.rglob("*") if path.suffix.lower() in PHOTOS)
    return sorted(path for path in photos if not any(part.startswith(".") for part in path.relative_to(folder).parts))
