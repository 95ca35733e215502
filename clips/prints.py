"""Prints: short descriptions of a clip's picture and sound, by which copies of a clip are found among millions.

Never imports TensorFlow.
"""

from pathlib import Path

import cv2
import numpy as np

from clips import feature_files, media, packs
from utils import N_BINS, N_FRAMES, normalise

THUMBNAIL = 32  # pixels, side of the pictures that are compared
SOUND_FRAMES, SOUND_BINS = 13, 16  # spectrogram frames and bins in a cell of the sounds that are compared
SIZES = THUMBNAIL**2, (N_FRAMES // SOUND_FRAMES) * (N_BINS // SOUND_BINS)  # numbers in a thumbnail and in a sound print


def prints_path(data: Path, clip: str) -> Path:
    """Return the path of a clip's prints: a pickle of float16 (1760,), thumbnail and sound print one after the other."""
    return Path(data) / "prints" / f"{clip}.pkl"


def thumbnail(face: np.ndarray) -> np.ndarray:
    """Make a small grey picture, centred and of length 1, float32 (1024,), of a face, uint8 (height, width, 3), RGB."""
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return normalise((small - small.mean())[None])[0]


def sound_print(spectrogram: np.ndarray) -> np.ndarray:
    """Return the loudness in cells of time and frequency, each band centred, of length 1: float32 (46 * 16,).

    Args:
        spectrogram: float (N_FRAMES, N_BINS, 2), of `model.spectrogram`.
    """
    spectrogram = spectrogram.astype(np.float32)
    loudness = np.hypot(spectrogram[..., 0], spectrogram[..., 1])  # (frames, bins), compressed
    times, bands = (n // cell for n, cell in zip(loudness.shape, (SOUND_FRAMES, SOUND_BINS)))
    cells = loudness[: times * SOUND_FRAMES, : bands * SOUND_BINS].reshape(times, SOUND_FRAMES, bands, SOUND_BINS).mean((1, 3))
    return normalise((cells - cells.mean(axis=0)).reshape(1, -1))[0]


def save_prints(data: Path, clip: str, face: np.ndarray, spectrogram: np.ndarray) -> None:
    """Write the prints of a clip, from what `thumbnail` and `sound_print` take."""
    both = np.concatenate([thumbnail(face), sound_print(spectrogram)]).astype(np.float16)
    feature_files.save_array(prints_path(data, clip), both)


def load_prints(data: Path, clip: str) -> np.ndarray:
    """Read the prints of a clip, float32 (1760,); make them of face and spectrogram where an earlier version wrote none.

    Raises:
        FileNotFoundError, InputError: as `media.read_face` and `feature_files.load_spectrogram`.
    """
    try:
        return feature_files.load_array(prints_path(data, clip), np.float16, (sum(SIZES),)).astype(np.float32)
    except FileNotFoundError:
        spectrogram = feature_files.load_spectrogram(data, clip)
        return np.concatenate([thumbnail(media.read_face(data, clip)), sound_print(spectrogram)])


def load_all(data: Path, clips: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the prints of clips. Returns their thumbnails, float32 (n, 1024), and sound prints, float32 (n, 736)."""
    both = np.stack([*packs.in_order(lambda clip: load_prints(data, clip), clips)])
    return both[:, : SIZES[0]], both[:, SIZES[0] :]
