"""The pitch of a voice, from its spectrogram: the sound is restored, and its period found by autocorrelation."""

import numpy as np

from utils import FFT_SIZE, HOP, POWER, SAMPLE_RATE, WINDOW

LOWEST_HZ, HIGHEST_HZ = 70, 400  # range of a voice's pitch
FRAME = 1024  # samples, 64 ms: four and a half periods of the lowest pitch
CUTOFF_HZ = 600  # frequencies above are left out: formants and hiss hide the period
TRANSFORM = 2 * FRAME  # samples
AUDIBLE = 0.01  # share of the loudest frame's power, from which a frame counts
VOICED = 0.5  # least autocorrelation of a frame with a pitch
LEAST_VOICED = 0.1  # least share of such frames among the audible ones
OCTAVE_COST = 0.02  # autocorrelation by which a pitch an octave lower has to be better


def waveform_of(spectrogram: np.ndarray) -> np.ndarray:
    """Restore a sound from its spectrogram by overlap-add: float64 (samples,).

    Args:
        spectrogram: float (T, N_BINS, 2), of `model.spectrogram`.
    """
    parts = spectrogram.astype(np.float64)
    parts = np.sign(parts) * np.abs(parts) ** (1 / POWER)
    frames = np.fft.irfft(parts[..., 0] + 1j * parts[..., 1], FFT_SIZE, axis=1)[:, :WINDOW]  # (T, WINDOW)
    window = np.hanning(WINDOW + 1)[:-1]
    sound, weight = np.zeros((2, (len(frames) - 1) * HOP + WINDOW))
    for start, frame in zip(range(0, len(sound), HOP), frames):
        sound[start : start + WINDOW] += frame
        weight[start : start + WINDOW] += window
    return sound / np.maximum(weight, 1e-3)


def pitch(spectrogram: np.ndarray) -> float:
    """Estimate a voice's pitch: the median over the voiced frames, Hz; nan if too few frames are voiced.

    Args:
        spectrogram: float (T, N_BINS, 2), of `model.spectrogram`; T of 12 or more.

    Source: Boersma, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of a sampled
    sound", IFA Proceedings 17, 1993: autocorrelation of a window divided by that of the window function.
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveform_of(spectrogram), FRAME)[::HOP]
    window = np.hanning(FRAME)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * window
    power = np.abs(np.fft.rfft(frames, TRANSFORM)) ** 2
    power[:, CUTOFF_HZ * TRANSFORM // SAMPLE_RATE :] = 0
    first, last = SAMPLE_RATE // HIGHEST_HZ, SAMPLE_RATE // LOWEST_HZ  # samples, shortest and longest period
    similarity = np.fft.irfft(power, TRANSFORM)[:, : last + 2]  # (frames, lags)
    energy = similarity[:, 0]
    audible = (energy > AUDIBLE * energy.max()) & (energy > 0)
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, TRANSFORM)) ** 2, TRANSFORM)[: last + 2]
    similarity = similarity[audible] / energy[audible, None] / (of_window / of_window[0])
    before, at, after = (similarity[:, first + shift : last + 1 + shift] for shift in (-1, 0, 1))
    peak = (at > before) & (at >= after)
    lags = np.arange(first, last + 1)
    score = np.where(peak, at - OCTAVE_COST * np.log2(lags / first), -1)
    best = score.argmax(axis=1)
    before, at, after, score = (np.take_along_axis(of, best[:, None], 1)[:, 0] for of in (before, at, after, score))
    voiced = (at > VOICED) & (score > -1)
    if voiced.sum() <= LEAST_VOICED * len(voiced):
        return float("nan")
    curve = before - 2 * at + after  # of the parabola through the peak and its neighbours, less than 0
    periods = lags[best[voiced]] + (before - after)[voiced] / (2 * curve[voiced])
    return float(np.median(SAMPLE_RATE / periods))
