"""Portraits: a face decoder in use, for features of true faces and for predictions from voices.

D is the size of a face feature, S the side of a picture in pixels.
"""

import dataclasses
import functools

import numpy as np

from clips import detection
from faces import decoder
from faces.likely import LikelyFaces
from faces.textures import EYE_DISTANCE, EYE_HEIGHT, SIDE
from utils import InputError
from voices.backend import keras

# The box that dlib's detector finds in a decoded picture, in distances between the eyes: its side, and how far its middle is
# below the eyes. Medians over photos of LFW.
BOX_SIDE, BOX_BELOW_EYES = 2.5, 0.5


@dataclasses.dataclass(frozen=True)
class FaceDecoder:
    """A face decoder, and the faces that the voices of a run make likely."""

    network: keras.Model  # of `decoder.face_decoder`
    centre: np.ndarray  # float32 (D,), the mean face feature
    likely: LikelyFaces  # of the voice encoder's run
    training_faces: list[str]  # names of clips or photos
    exaggerate: float = 1.0  # factor on the distance from the mean face

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Decode face features, float32 (n, D). Returns uint8 (n, S, S, 3), RGB.

        Raises:
            InputError: if they are no face features, but directions from the centre.
        """
        along = features @ self.centre / max(self.centre @ self.centre, np.finfo(np.float32).tiny)  # 1 of the mean face
        if np.median(along) < 0.5:
            found = f"{np.median(along):.2f} times as far from zero as the mean face is"
            raise InputError(
                f"features: expected face features of the decoder's network, found others or directions ({found}); from_voices "
                "decodes directions"
            )
        return decoder.decode(self.network, self.centre + self.exaggerate * (features - self.centre))

    def from_voices(self, directions: np.ndarray) -> np.ndarray:
        """Decode the predictions of a voice encoder to faces that are as different from each other as true faces.

        Args:
            directions: float32 (n, D), of the predictions as seen from the centre of the voice encoder's run, of length 1.

        Returns:
            uint8 (n, S, S, 3), RGB.

        Raises:
            ValueError: if a length is not 1.
        """
        return self(self.likely.vivid(directions, self._visible_changes))

    def samples(self, direction: np.ndarray, n: int, seed: int) -> np.ndarray:
        """Decode faces sampled from those that a prediction, (D,), leaves possible: people who sound like this.

        Returns:
            uint8 (n, S, S, 3), RGB; always the same ones for a seed, whatever n is.

        Raises:
            ValueError: if the direction's length is not 1.
        """
        return self(self.likely.samples(direction, n, seed))

    @functools.cached_property
    def _visible_changes(self) -> np.ndarray:
        return decoder.visible_changes(self.network)


def landmarks_in(pictures: np.ndarray) -> np.ndarray:
    """Find the landmarks in decoded pictures, uint8 (n, S, S, 3), RGB: float32 (n, 68, 2), pixels."""
    half = BOX_SIDE * EYE_DISTANCE * SIDE / 2
    x, y = SIDE / 2, (EYE_HEIGHT + BOX_BELOW_EYES * EYE_DISTANCE) * SIDE
    box = tuple(round(edge) for edge in (y - half, x + half, y + half, x - half))
    return np.stack([detection.find_landmarks(picture, box) for picture in pictures])
