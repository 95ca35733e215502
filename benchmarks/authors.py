"""The pictures that the paper's authors publish of the clips of their project page, and dlib's features of them."""

import functools
from pathlib import Path

import numpy as np

from clips.photos import read_photo
from clips.reasons import Skip
from faces import refinement

CENTRE_CLIPS = 100  # training clips, at most, whose pictures give the centre of the pictures' features


@functools.cache
def feature_of_file(path: Path) -> np.ndarray:
    """Return dlib's feature of the largest face in a picture file: float32 (128,), nan without a face or a file."""
    try:
        return refinement.feature_extractor(128)([read_photo(path)])[0]
    except Skip:
        return np.full(128, np.nan, np.float32)


def published_features(authors: Path, source: str, clips: list[str]) -> np.ndarray:
    """Return the features of the authors' own pictures of clips: float32 (N, 128), nan where there is no face.

    Args:
        authors: folder of the pictures.
        source: "voice_to_face", decoded from the voice, or "face_to_face", from the feature of the true face.
        clips: their names.
    """
    return np.stack([feature_of_file(authors / source / f"{clip}.jpg") for clip in clips])
