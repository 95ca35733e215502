"""Voice activity: whether a sound holds speech, how much, and where.

The detector is Silero VAD, a small network that gives the probability of speech for each window of 32 ms. Its file comes with
the package silero-vad, whose code is not used: that needs PyTorch.

Never imports TensorFlow.

Source: Silero Team, "Silero VAD", https://github.com/snakers4/silero-vad; the package silero-vad 6.2.3.
"""

import functools
import importlib.util
import os
from pathlib import Path

import numpy as np

from clips.reasons import MIN_SOUND_SECONDS, SILENCE_DB, Skip
from utils import CLIP_SAMPLES, MIN_SECONDS, SAMPLE_RATE, InputError

# The detector's input.
WINDOW = 512  # samples, 32 ms
CONTEXT = 64  # samples before a window that the network sees too
UNITS = 128  # numbers in each of the network's two states
LOWEST_HERTZ = 70  # below the voice: offset, drift, rumble, the mains' fundamental
LEVEL_DB = -15  # dB of full scale: each sound is brought to this level, so that quiet speech is found as well as loud

# The seconds of speech in a sound are the sum of its probabilities. The limits were set on training clips and made sounds. In
# sounds of up to 6 s, `python -m benchmarks speech` finds:
#                                             seconds                          steady share
#     688 clips of the paper's page           0.32 to 6.00, 98 % above 1.9     0.03 to 0.29
#     320 clips of the demo                   0.27 to 5.86, 98 % above 0.4     0.10 to 0.24
#     noise, tones, hum and music, also AAC   0 to 0.56; none passes both      0 to 1
CLEAR_SECONDS = 1.0  # s: speech without any doubt
FAINT_SECONDS = 0.25  # s: speech, unless the sound is steady
STEADY_SHARE = 0.38  # of the spectrum's magnitude: a sound with more that stays for STEADY_FRAMES is no speech
FFT_SIZE, HOP, STEADY_FRAMES = 1024, 256, 13  # samples of a frame, samples from frame to frame, and frames in 0.2 s
STARTS = (0, 1 / 2, 1 / 3)  # of a sound: the detector finds speech best soon after a start, so doubtful sounds get three
# Pauses. Of 150 clips of the page, 87 % at least of all but the tenth with the longest pauses is kept.
SPOKEN = 0.25  # probability, above which a window is part of speech
MARGIN_SECONDS = 0.15  # s before and after speech that are kept, for soft beginnings and ends of words
PAUSE_SECONDS = 0.3  # s; shorter pauses belong to speech
START_SECONDS = 0.5  # s between the starts that are tried for a clip of a longer sound
MIN_GAIN_SECONDS = 1.5  # s of speech by which a later start must be better than the first
PAUSE_DB = 40  # dB below the loudest part: quieter stretches are pauses where the detector is not sure


@functools.cache
def _detector():
    """Load the network. Raises InputError if the package is not installed."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: onnxruntime 1.29 and later report to their maker
    import onnxruntime  # slow to import, and photos need none

    package = importlib.util.find_spec("silero_vad")  # does not import the package
    path = Path(package.submodule_search_locations[0], "data", "silero_vad_16k_sequence.onnx") if package else None
    if path is None or not path.exists():
        raise InputError("expected the network in the package silero-vad, found none; pip install --no-deps silero-vad==6.2.3")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # more are slower for windows one after another
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def probabilities(sound: np.ndarray) -> np.ndarray:
    """Return the probability of speech in each window.

    Args:
        sound: float32 (samples,), mono at SAMPLE_RATE, in [-1, 1].

    Returns:
        float32 (n_windows,), in [0, 1]; the last window is filled up with silence.
    """
    n_windows = -(-len(sound) // WINDOW)
    padded = np.zeros(CONTEXT + n_windows * WINDOW, np.float32)
    padded[CONTEXT : CONTEXT + len(sound)] = sound
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + WINDOW)[::WINDOW]  # (n_windows, 576)
    state = np.zeros((1, 1, UNITS), np.float32)
    return _detector().run(["speech_probs"], {"input": np.ascontiguousarray(windows), "h": state, "c": state})[0]


def without_rumble(waveform: np.ndarray) -> np.ndarray:
    """Remove the mean and what lies below the voice. int16 (samples,) -> float64 (samples,), of full scale 1."""
    spectrum = np.fft.rfft(waveform / 32768)
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    with np.errstate(divide="ignore"):
        gain = 1 / np.sqrt(1 + (LOWEST_HERTZ / hertz) ** 8)  # of a Butterworth filter of order 4; 0 for the mean
    return np.fft.irfft(spectrum * gain, len(waveform))


def _sound_seconds(sound: np.ndarray) -> float:
    """Return how many s are louder than silence."""
    windows = sound[: len(sound) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return float((np.mean(windows**2, axis=1) > 10 ** (-SILENCE_DB / 10)).sum() * WINDOW / SAMPLE_RATE)


def _at_level(sound: np.ndarray) -> np.ndarray:
    """Bring a sound to LEVEL_DB; what exceeds full scale is clipped."""
    level = np.sqrt(np.mean(sound**2))
    return np.clip(sound * (10 ** (LEVEL_DB / 20) / max(level, 1e-6)), -1, 1).astype(np.float32)


def steady_share(sound: np.ndarray) -> float:
    """Return the share of the spectrum's magnitude that stays for STEADY_FRAMES, in [0, 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, FFT_SIZE)[::HOP]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(FFT_SIZE), axis=1))  # (n_frames, bins)
    steady = np.lib.stride_tricks.sliding_window_view(spectrum, STEADY_FRAMES, axis=0).min(axis=-1)
    return float(steady.mean() / spectrum.mean())


def parts_of(sound: np.ndarray) -> list[np.ndarray]:
    """Return a sound's equal parts of at most 6 s, each with its level, for the levels of a recording may change."""
    return [_at_level(part) for part in np.array_split(sound, -(-len(sound) // CLIP_SAMPLES))]


def seconds_of(probability: np.ndarray) -> float:
    """Return the s of speech by the probabilities of windows."""
    return float(probability.sum() * WINDOW / SAMPLE_RATE)


def _speech_seconds(part: np.ndarray) -> float:
    """Return the s of speech in a sound of at most 6 s; 0 if it holds none."""
    seconds = seconds_of(probabilities(part))
    if seconds < CLEAR_SECONDS:
        if steady_share(part) > STEADY_SHARE:
            return 0.0
        if seconds < FAINT_SECONDS:
            rolled = (np.roll(part, -round(start * len(part))) for start in STARTS[1:])
            seconds = float(np.mean([seconds, *(seconds_of(probabilities(sound)) for sound in rolled)]))
    return seconds if seconds >= FAINT_SECONDS else 0.0


def speech_seconds(waveform: np.ndarray) -> float:
    """Return how many s of speech the detector finds in a sound.

    Args:
        waveform: int16 (samples,), mono at SAMPLE_RATE.

    Raises:
        Skip: "silent" or "no-speech".
    """
    sound = without_rumble(waveform)
    if (seconds := _sound_seconds(sound)) < MIN_SOUND_SECONDS:
        raise Skip("silent", f"{seconds:.2f} s")
    seconds = sum(map(_speech_seconds, parts_of(sound)))
    if seconds == 0:
        raise Skip("no-speech")
    return seconds


def best_start(waveform: np.ndarray) -> int:
    """Find where in a sound CLIP_SAMPLES of it hold most speech.

    Args:
        waveform: int16 (samples,), mono at SAMPLE_RATE.

    Returns:
        The first sample: 0, unless a later start gains MIN_GAIN_SECONDS of speech at least.
    """
    if len(waveform) <= CLIP_SAMPLES:
        return 0
    sound = without_rumble(waveform)
    spoken = _at_samples([probabilities(part) for part in parts_of(sound)], len(sound))
    until = np.concatenate([[0], np.cumsum(spoken, dtype=np.float64)])
    starts = np.arange(0, len(sound) - CLIP_SAMPLES + 1, round(START_SECONDS * SAMPLE_RATE))
    seconds = (until[starts + CLIP_SAMPLES] - until[starts]) / SAMPLE_RATE
    best = int(seconds.argmax())
    return int(starts[best]) if seconds[best] >= seconds[0] + MIN_GAIN_SECONDS else 0


def _at_samples(parts: list[np.ndarray], n_samples: int) -> np.ndarray:
    """Spread the probabilities of a sound's equal parts over its samples: float32 (n_samples,)."""
    length, spread = n_samples / len(parts), np.zeros(n_samples, np.float32)
    for number, part in enumerate(parts):
        first, last = round(number * length), round((number + 1) * length)
        spread[first:last] = np.repeat(part, WINDOW)[: last - first]
    return spread


def speech_stretches(waveform: np.ndarray) -> tuple[list[tuple[int, int]], bool]:
    """Find the stretches of speech in a sound, with the short pauses in them.

    The detector is not sure of some voices, such as synthetic ones. Where it finds less than MIN_SECONDS, only what is quiet
    counts as a pause.

    Args:
        waveform: int16 (samples,), mono at SAMPLE_RATE, in which `speech_seconds` finds speech.

    Returns:
        The first sample of each stretch, and the first one after it; and whether the detector is sure of them.
    """
    sound = without_rumble(waveform)
    parts = [probabilities(part) for part in parts_of(sound)]
    sure = sum(map(seconds_of, parts)) >= MIN_SECONDS
    if sure:
        spoken = _at_samples(parts, len(sound)) > SPOKEN
    else:
        power = np.convolve(sound**2, np.full(WINDOW, 1 / WINDOW), "same")
        spoken = power > power.max() * 10 ** (-PAUSE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], spoken, [False]]).astype(np.int8))).reshape(-1, 2)
    stretches, margin = [], round(MARGIN_SECONDS * SAMPLE_RATE)
    for first, last in edges.tolist():
        first, last = max(0, first - margin), min(len(sound), last + margin)
        if stretches and first - stretches[-1][1] <= PAUSE_SECONDS * SAMPLE_RATE:
            first = stretches.pop()[0]
        stretches.append((first, last))
    return stretches, sure
