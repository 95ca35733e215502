"""The synthetic voices of the demo's people: glottal pulses through moving formants."""

import numpy as np
import scipy.signal

from utils import SAMPLE_RATE

# Formants F1 to F4 of five vowels, Hz, and their spread between two accents. Source: textbook averages of adult voices.
VOWELS = np.array([
    [730, 1250, 2500, 3500],  # a
    [530, 1850, 2500, 3500],  # e
    [290, 2250, 3000, 3600],  # i
    [550, 900, 2450, 3400],  # o
    [320, 850, 2300, 3300],  # u
], float)  # fmt: skip
ACCENT_SHIFT = np.array([0.75, 1.3, 1.1, 1.0])  # factors at the far end of `accent`
BANDWIDTHS = np.array([70, 100, 140, 220], float)  # Hz
BLOCK = SAMPLE_RATE // 100  # samples between two settings of the formant filters, 10 ms


def syllables(person, n_blocks: int, rng):
    """Plan the speech: loudness, formants and share of hiss for each block; pauses have loudness 0.

    Returns:
        loudness float (n_blocks,) in [0, 1], formants float (n_blocks, 4) in Hz, hiss float (n_blocks,) in [0, 1].
    """
    vowels = VOWELS * (1 + person.accent * (ACCENT_SHIFT - 1)) * (1.25 - 0.45 * person.build)
    loudness, formants, hiss = np.zeros(n_blocks), np.tile(vowels.mean(0), (n_blocks, 1)), np.zeros(n_blocks)
    at = int(rng.integers(2, 10))
    while at < n_blocks:
        length = int((24 - 8 * person.rate + 6 * person.age) * rng.uniform(0.7, 1.3))
        consonant = min(int(rng.integers(0, 7)), max(0, n_blocks - at))
        hiss[at : at + consonant] = 1
        loudness[at : at + consonant] = 0.15
        at += consonant
        block = slice(at, min(at + length, n_blocks))
        steps = block.stop - block.start
        if steps > 0:
            loudness[block] = rng.uniform(0.6, 1) * np.sin(np.pi * (np.arange(steps) + 0.5) / length) ** 0.5
            formants[block] = vowels[rng.integers(len(vowels))]
        at += length
        if rng.uniform() < 0.12 + 0.1 * person.age:
            at += int(rng.integers(15, 40))
    smooth = np.hanning(9) / np.hanning(9).sum()
    formants = np.stack([np.convolve(np.pad(f, 4, "edge"), smooth, "valid") for f in formants.T], axis=1)
    return np.convolve(loudness, smooth, "same"), formants, np.convolve(hiss, smooth, "same")


def synthesise(person, seconds: float, rng):
    """Synthesise the speech of a person.

    Returns:
        int16 (samples,) at SAMPLE_RATE, and the loudness of each block of 10 ms in [0, 1], which opens the mouth.
    """
    n_blocks = int(seconds * SAMPLE_RATE) // BLOCK
    loudness, formants, hiss = syllables(person, n_blocks, rng)
    n_samples = n_blocks * BLOCK

    # Pitch in Hz: a melody with a knot every half second, falling towards the end, and roughness from period to period.
    knots = rng.normal(size=int(seconds * 2) + 2) * (0.04 + 0.08 * person.liveliness)
    melody = np.interp(np.linspace(0, len(knots) - 1, n_samples), np.arange(len(knots)), knots)
    rough = np.repeat(rng.normal(size=n_samples // 80 + 1), 80)[:n_samples] * 0.06 * person.age
    pitch = 85 * (290 / 85) ** person.pitch * np.exp(melody + rough - 0.1 * np.linspace(-1, 1, n_samples))

    # Rosenberg's glottal pulse: the flow rises, falls and stays at zero; its slope is the source.
    phase = np.cumsum(pitch / SAMPLE_RATE) % 1
    rising, falling = 0.5 * (1 - np.cos(np.pi * phase / 0.4)), np.cos(np.pi * (phase - 0.4) / 0.4)
    flow = np.where(phase < 0.4, rising, np.where(phase < 0.6, falling, 0))
    voiced = np.diff(flow, prepend=0)
    breath = rng.normal(size=n_samples) * (0.01 + 0.05 * person.age) * (0.3 + flow)
    smooth_loudness, smooth_hiss = (np.repeat(v, BLOCK) for v in (loudness, hiss))
    source = smooth_loudness * ((1 - smooth_hiss) * voiced + breath) + smooth_hiss * rng.normal(size=n_samples) * 0.02

    # Formants: second-order resonators in series, updated every block.
    bandwidths = BANDWIDTHS * (1 + 0.5 * person.age)
    for number in range(formants.shape[1]):
        radius = np.exp(-np.pi * bandwidths[number] / SAMPLE_RATE)
        state = np.zeros(2)
        for block in range(n_blocks):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            cosine = np.cos(2 * np.pi * formants[block, number] / SAMPLE_RATE)
            feedback = [1, -2 * radius * cosine, radius**2]
            source[part], state = scipy.signal.lfilter([sum(feedback)], feedback, source[part], zi=state)
    source = scipy.signal.lfilter([1, -0.5 * person.accent], [1], source)  # brightness
    source += rng.normal(size=n_samples) * 1e-4 * np.abs(source).max()  # room
    level = 10 ** ((-26 + 10 * person.loudness) / 20)  # RMS of full scale
    source *= level / np.sqrt(np.mean(source**2))
    return (np.clip(source, -1, 1) * 32767).astype(np.int16), loudness
