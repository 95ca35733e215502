"""What the front ends of all speaker networks begin with."""

from utils import POWER
from voices.backend import tf


def power_spectra(spectrograms):
    """Undo the power law of `model.spectrogram`: float (B, T, N_BINS, 2) -> float32 (B, T, N_BINS), the squared magnitude."""
    return tf.reduce_sum(tf.abs(tf.cast(spectrograms, tf.float32)) ** (2 / POWER), axis=-1)
