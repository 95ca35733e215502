"""Pitch."""

import numpy as np

from utils import FFT_SIZE, POWER, SAMPLE_RATE

LOWEST_HZ, HIGHEST_HZ = 70, 400  # of a voice's pitch
VOICED = 0.25  # of the height of the cepstrum's peak, from which a frame has a pitch


def pitch(spectrogram: np.ndarray) -> float:
    """Estimate a voice's pitch: the median over the voiced frames of the cepstrum's peak, Hz; nan if no frame is voiced.

    Args:
        spectrogram: float (T, N_BINS, 2), of `model.spectrogram`.

    Source: Noll, "Cepstrum pitch determination", JASA 1967.
    """
    parts = np.abs(spectrogram.astype(np.float64)) ** (1 / POWER)
    power = (parts**2).sum(axis=-1)  # (T, N_BINS)
    loud = power.sum(axis=1)
    power = power[loud > 0.05 * loud.max()] if loud.max() > 0 else power[:0]
    if len(power) == 0:
        return float("nan")
    power = power / power.max(axis=1, keepdims=True)
    cepstrum = np.fft.irfft(np.log(power + 1e-5), FFT_SIZE, axis=1)  # (T, FFT_SIZE), over samples
    first = SAMPLE_RATE // HIGHEST_HZ
    peaks = cepstrum[:, first : SAMPLE_RATE // LOWEST_HZ + 1]
    place = peaks.argmax(axis=1)
    voiced = peaks.max(axis=1) > VOICED
    return float(np.median(SAMPLE_RATE / (first + place[voiced]))) if voiced.any() else float("nan")
