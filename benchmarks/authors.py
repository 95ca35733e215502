"""The pictures that the paper's authors publish of the clips of their project page, and the judges' features of them."""

import functools
from pathlib import Path

import numpy as np

from benchmarks import judges
from clips.photos import read_photo
from clips.reasons import Skip

CENTRE_CLIPS = 100  # training clips, at most, whose pictures give the centre of the pictures' features
MAKER = "the paper's own"


def published_pictures(authors: Path, source: str, clips: list[str]) -> list[np.ndarray]:
    """Read the authors' own pictures of clips: n of uint8 (height, width, 3), RGB; black where there is none.

    Args:
        authors: folder of the pictures.
        source: "voice_to_face", decoded from the voice, or "face_to_face", from the feature of the true face.
        clips: their names.
    """

    def read(path):
        try:
            return read_photo(path)
        except Skip:
            return np.zeros((224, 224, 3), np.uint8)

    return [read(authors / source / f"{clip}.jpg") for clip in clips]


@functools.cache
def _feature(authors: Path, source: str, clip: str, judge: str) -> np.ndarray:
    return judges.load(judge)(published_pictures(authors, source, [clip]))[0]


def published_features(authors: Path, source: str, clips: list[str], judge: str = "dlib") -> np.ndarray:
    """Return a judge's features of the pictures of `published_pictures`: float32 (N, D), nan where there is no face."""
    return np.stack([_feature(authors, source, clip, judge) for clip in clips])
