"""Refinement."""

import dataclasses
import functools

import numpy as np

from clips import detection
from faces import vggface
from faces.decoder import decode
from utils import normalise
from voices.backend import keras

# ----------------------------------------------------------------------------------------------------------------------
# A second look: whether the picture's own feature is the one that was decoded.

REFINEMENT_FACES = 400  # faces from which `correction` is found, at most
PREDICTED_SPREAD = (
    0.4  # of true faces' deviations from the mean: as far as regression from voices comes, with which it was measured
)
REFINEMENT_AXES = 64  # principal components of the features
REFINEMENT_PENALTY, REFINEMENT_STEP = (
    0.1,
    0.8,
)  # of ridge, in mean variances; of what is missing, the share that is asked for in addition


def face_network(feature_size: int):
    """Return the face network as a function of pictures, of each of which it sees the largest face, as preprocess.py does.

    Returns:
        Function from uint8 (n, height, width, 3), RGB, to float32 (n, feature_size); nan where there is no face.

    Raises:
        InputError: if VGG-Face's weights are needed and cannot be had.
    """

    describe = vggface.face_describer(feature_size)

    def see(pictures):
        faces = {n: (picture, box) for n, picture in enumerate(pictures) if (box := detection.largest_face(picture))}
        seen = np.full((len(pictures), feature_size), np.nan, np.float32)
        if faces:
            seen[list(faces)] = describe(list(faces.values()))
        return seen

    return see


def correction(decoder: keras.Model, see, features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Find what to ask for in addition where a picture's own feature lacks something.

    The features of decoded pictures are regressed on the coefficients of what was asked for, on REFINEMENT_AXES; the correction is
    the ridge solution backwards.

    Args:
        see: of `face_network`.
        features: float32 (n, D), some that the decoder was fitted to; centre: float32 (D,), the mean feature.

    Returns:
        float32 (2, REFINEMENT_AXES, D): what is missing, times the first one transposed, times the second one, is to be added.
    """
    some = np.linspace(0, len(features) - 1, min(REFINEMENT_FACES, len(features))).astype(int)
    deviations = (features[some] - centre).astype(np.float64)
    seen = see(decode(decoder, centre + PREDICTED_SPREAD * deviations))
    found = np.isfinite(seen[:, 0])
    _, strengths, axes = np.linalg.svd(deviations, full_matrices=False)
    rank = min(REFINEMENT_AXES, (strengths > 1e-3 * strengths[0]).sum())
    spread = strengths[:rank] / np.sqrt(len(deviations))
    both = np.zeros((2, REFINEMENT_AXES, len(centre)), np.float32)
    both[1, :rank] = spread[:, None] * axes[:rank]
    if found.sum() < 2:  # nothing to be learned, nothing to be corrected
        return both
    coefficients = deviations[found] @ axes[:rank].T / spread  # of variance 1
    seen = (seen[found] - seen[found].mean(0)) / PREDICTED_SPREAD
    response = np.linalg.solve(coefficients.T @ coefficients + np.eye(rank), coefficients.T @ seen)  # (R, D)
    square = response @ response.T
    both[0, :rank] = np.linalg.solve(square + REFINEMENT_PENALTY * np.trace(square) / rank * np.eye(rank), response)
    return both


def decode_refined(
    decoder: keras.Model, see, features: np.ndarray, centre: np.ndarray, correction: np.ndarray, refinements: int
):
    """Decode faces as `decode` does; look at them and ask for what their own features lack, `looks` times.

    A picture in which there is no face stays as it is.
    """
    wanted = asked = features - centre
    back, axes = correction
    mean = see(decode(decoder, centre[None]))
    for _ in range(refinements if np.isfinite(mean).all() else 0):
        missing = np.nan_to_num(wanted - (see(decode(decoder, centre + asked)) - mean))
        asked = asked + REFINEMENT_STEP * (missing @ back.T) @ axes
    return decode(decoder, centre + asked)


@dataclasses.dataclass(frozen=True)
class FaceDecoder:
    """A face decoder in use: for features of true faces, and for what is heard."""

    network: keras.Model  # of `face_decoder`
    centre: np.ndarray  # float32 (D,), the mean face feature
    correction: np.ndarray  # float32 (2, REFINEMENT_AXES, D), of `correction`
    training_faces: list[str]  # clips or photos that it was fitted to
    exaggerate: float = 1.0  # times as far from the mean face
    refinements: int = 0  # steps of `decode_refined` for a face decoded from a voice

    @functools.cached_property
    def see(self):
        return face_network(len(self.centre))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Decode features of true faces, float32 (n, D). Returns uint8 (n, S, S, 3), RGB."""
        return decode(self.network, self._exaggerated(features))

    def from_voices(self, voices: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Decode what was heard, and look at the pictures.

        A voice encoder learns directions, and its lengths mean little: all are brought to PREDICTED_SPREAD of what true faces have.

        Args:
            voices: float32 (n, D), as seen from the centre of the voice encoder's run, of any length.
            centre: float32 (D,), that centre.

        Returns:
            uint8 (n, S, S, 3), RGB.
        """
        directions = normalise(voices)
        if centre.any():
            _, axes = self.correction
            features = centre + PREDICTED_SPREAD * np.linalg.norm(axes) * directions  # the axes are as long as faces are spread
        else:  # --centre zero: what is heard is a whole feature
            features = np.linalg.norm(self.centre) * directions
        if self.refinements == 0:
            return self(features)
        wanted = self._exaggerated(features)
        return decode_refined(self.network, self.see, wanted, self.centre, self.correction, self.refinements)

    def _exaggerated(self, features):
        return self.centre + self.exaggerate * (features - self.centre)
