"""What the front ends of all speaker networks begin with."""

import numpy as np

from utils import FFT_SIZE, N_BINS, POWER, SAMPLE_RATE
from voices.backend import tf

BINS = np.arange(N_BINS) * SAMPLE_RATE / FFT_SIZE  # Hz


def power_spectra(spectrograms):
    """Undo the power law of `model.spectrogram`: float (B, T, N_BINS, 2) -> float32 (B, T, N_BINS), the squared magnitude."""
    return tf.reduce_sum(tf.abs(tf.cast(spectrograms, tf.float32)) ** (2 / POWER), axis=-1)


def triangles(corners: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Return filters that rise from each corner to the next one, where they are 1, and fall to the one after it.

    Args:
        corners: float (n + 2,), rising.
        bins: float (N_BINS,), BINS on the same scale.

    Returns:
        float (N_BINS, n).
    """
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = bins[:, None]
    return np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
