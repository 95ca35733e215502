"""Craniofacial measures of faces, by their landmarks, and how they agree between faces decoded from voices and true faces.

N is the number of faces. Landmarks are (68, 2), pixels, of a face that is turned to the camera.

Sources: Oh et al., "Speech2Face", CVPR 2019, supplementary figure 5, for the list and the correlations; Farkas, "Anthropometry
of the Head and Face", 1994, for the measures. The landmarks stand in for Farkas's points: jaw width is taken at the jaw line
beside the mouth, the labio-oral region is the width of the mouth, and the area of the nose is that of its outline from root to
wings.
"""

import dataclasses

import numpy as np
import scipy.stats

BASELINE = "random baseline"
LEAST_FACES = 20  # with fewer, correlations mean nothing


def _length(first: int, second: int):
    return lambda landmarks: np.linalg.norm(landmarks[:, first] - landmarks[:, second], axis=1)


def _mean_length(*pairs):
    return lambda landmarks: np.mean([_length(*pair)(landmarks) for pair in pairs], axis=0)


def _area(*points: int):
    def area(landmarks):
        x, y = np.moveaxis(landmarks[:, points], 2, 0)
        return np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)) / 2

    return area


def _ratio(numerator, denominator):
    return lambda landmarks: numerator(landmarks) / np.maximum(denominator(landmarks), 1e-6)


_EYES = _length(36, 45)  # outer corners: the unit of lengths
# Functions from landmarks, (N, 68, 2), to (N,): lengths and areas in the distance between the outer corners of the eyes.
MEASURES = {
    "upper lip height": _ratio(_length(51, 62), _EYES),
    "lateral upper lip heights": _ratio(_mean_length((50, 61), (52, 63)), _EYES),
    "jaw width": _ratio(_length(4, 12), _EYES),
    "nose height": _ratio(_length(27, 33), _EYES),
    "nose width": _ratio(_length(31, 35), _EYES),
    "labio-oral region": _ratio(_length(48, 54), _EYES),
    "mandibular index": _ratio(_length(66, 8), _length(4, 12)),
    "intercanthal index": _ratio(_length(39, 42), _EYES),
    "nasal index": _ratio(_length(31, 35), _length(27, 33)),
    "vermilion height index": _ratio(_length(51, 62), _length(66, 57)),
    "mouth-face width index": _ratio(_length(48, 54), _length(0, 16)),
    "nose area": _ratio(_area(27, 31, 33, 35), lambda landmarks: _EYES(landmarks) ** 2),
}


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of a measure between two sets of faces."""

    r: float
    p: float  # probability of so large a correlation, of either sign, without any


def correlations(decoded: np.ndarray, true: np.ndarray) -> dict[str, Correlation]:
    """Correlate the measures of faces decoded from voices with those of the true faces, or of faces decoded from these.

    Args:
        decoded, true: float (N, 68, 2), landmarks; the same people in the same order.

    Returns:
        For each of MEASURES; and BASELINE, the nasal index with each face beside that of another person, the next.
    """
    assert len(decoded) == len(true) >= 3
    measured = {name: (measure(decoded), measure(true)) for name, measure in MEASURES.items()}
    own, others = measured["nasal index"]
    measured[BASELINE] = own, np.roll(others, 1)
    found = {name: scipy.stats.pearsonr(*values) for name, values in measured.items()}
    return {name: Correlation(float(of.statistic), float(of.pvalue)) for name, of in found.items()}
