"""Refinement: decode a face in steps, until the feature of the picture is the feature that was asked for.

The face network that extracts features is not linear, and the decoder is: the feature of a decoded picture differs from the
feature that was decoded. A refinement step extracts the feature of the picture, and corrects the decoder's input by the
difference.

D is the size of a face feature.
"""

import dataclasses
import functools

import numpy as np

from clips import detection
from faces import decoder, vggface
from utils import normalise
from voices.backend import keras

REFINEMENT_FACES = 400  # training faces that `fit_correction` decodes, at most
REFINEMENT_AXES = 64  # principal components of the training faces' features
REFINEMENT_PENALTY = 0.1  # of ridge regression, in mean variances
REFINEMENT_STEP = 0.8  # share of the correction that a refinement step adds
PREDICTED_SPREAD = 0.4  # of the true faces' spread around the mean: measured for regression from voices


def feature_extractor(feature_size: int):
    """Return the function that extracts the feature of the largest face in each picture, as preprocess.py does.

    Returns:
        Function from uint8 (n, height, width, 3), RGB, to float32 (n, feature_size); nan for pictures without a face.

    Raises:
        InputError: if VGG-Face's weights are needed and cannot be had.
    """
    describe = vggface.face_describer(feature_size)

    def extract(pictures):
        faces = {n: (picture, box) for n, picture in enumerate(pictures) if (box := detection.largest_face(picture))}
        features = np.full((len(pictures), feature_size), np.nan, np.float32)
        if faces:
            features[list(faces)] = describe(list(faces.values()))
        return features

    return extract


def fit_correction(network: keras.Model, extract, features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Fit the correction of the decoder's input for a difference between the wanted and the extracted feature.

    The features of decoded pictures are regressed on the first REFINEMENT_AXES principal components of the decoder's input. The
    correction inverts this regression with a ridge penalty.

    Args:
        network: of `decoder.face_decoder`.
        extract: of `feature_extractor`.
        features: float32 (n, D), of training faces.
        centre: float32 (D,), the mean feature.

    Returns:
        Two matrices, float32 (2, REFINEMENT_AXES, D): the difference, times the transpose of the first, times the second, is
        the correction.
    """
    chosen = np.linspace(0, len(features) - 1, min(REFINEMENT_FACES, len(features))).astype(int)
    deviations = (features[chosen] - centre).astype(np.float64)
    extracted = extract(decoder.decode(network, centre + PREDICTED_SPREAD * deviations))
    found = np.isfinite(extracted[:, 0])
    _, strengths, axes = np.linalg.svd(deviations, full_matrices=False)
    rank = min(REFINEMENT_AXES, (strengths > 1e-3 * strengths[0]).sum())
    spread = strengths[:rank] / np.sqrt(len(deviations))
    correction = np.zeros((2, REFINEMENT_AXES, len(centre)), np.float32)
    correction[1, :rank] = spread[:, None] * axes[:rank]
    if found.sum() < 2:  # too few faces for a regression: no correction
        return correction
    coefficients = deviations[found] @ axes[:rank].T / spread  # of variance 1
    extracted = (extracted[found] - extracted[found].mean(0)) / PREDICTED_SPREAD
    response = np.linalg.solve(coefficients.T @ coefficients + np.eye(rank), coefficients.T @ extracted)  # (rank, D)
    square = response @ response.T
    correction[0, :rank] = np.linalg.solve(square + REFINEMENT_PENALTY * np.trace(square) / rank * np.eye(rank), response)
    return correction


def decode_refined(
    network: keras.Model, extract, features: np.ndarray, centre: np.ndarray, correction: np.ndarray, refinements: int
) -> np.ndarray:
    """Decode faces with refinement. A picture without a detectable face stays as it is.

    Args:
        network, extract, centre: as for `fit_correction`.
        features: float32 (n, D), to be decoded.
        correction: of `fit_correction`.
        refinements: steps; 0 is plain `decoder.decode`.

    Returns:
        uint8 (n, S, S, 3), RGB.
    """
    wanted = asked = features - centre
    back, axes = correction
    mean = extract(decoder.decode(network, centre[None]))
    for _ in range(refinements if np.isfinite(mean).all() else 0):
        missing = np.nan_to_num(wanted - (extract(decoder.decode(network, centre + asked)) - mean))
        asked = asked + REFINEMENT_STEP * (missing @ back.T) @ axes
    return decoder.decode(network, centre + asked)


@dataclasses.dataclass(frozen=True)
class FaceDecoder:
    """A face decoder in use, for features of true faces and for predictions from voices."""

    network: keras.Model  # of `decoder.face_decoder`
    centre: np.ndarray  # float32 (D,), the mean face feature
    correction: np.ndarray  # float32 (2, REFINEMENT_AXES, D), of `fit_correction`
    training_faces: list[str]  # names of clips or photos
    exaggerate: float = 1.0  # factor on the distance from the mean face
    refinements: int = 0  # refinement steps for faces decoded from voices

    @functools.cached_property
    def extract(self):
        """The `feature_extractor`, loaded at the first refinement."""
        return feature_extractor(len(self.centre))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Decode features of true faces, float32 (n, D). Returns uint8 (n, S, S, 3), RGB."""
        return decoder.decode(self.network, self._exaggerated(features))

    def from_voices(self, predictions: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Decode the predictions of a voice encoder, with refinement.

        A voice encoder is trained on directions, so that the lengths of its predictions mean little: they are replaced by
        PREDICTED_SPREAD of the spread of true faces.

        Args:
            predictions: float32 (n, D), less the centre, of any length.
            centre: float32 (D,), of the voice encoder's run.

        Returns:
            uint8 (n, S, S, 3), RGB.
        """
        directions = normalise(predictions)
        if centre.any():
            _, axes = self.correction
            features = centre + PREDICTED_SPREAD * np.linalg.norm(axes) * directions  # the norm of the axes is the spread
        else:  # --centre zero: a prediction is a whole feature
            features = np.linalg.norm(self.centre) * directions
        if self.refinements == 0:
            return self(features)
        wanted = self._exaggerated(features)
        return decode_refined(self.network, self.extract, wanted, self.centre, self.correction, self.refinements)

    def _exaggerated(self, features):
        return self.centre + self.exaggerate * (features - self.centre)
