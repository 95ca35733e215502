"""Voices for the tests of the speaker networks."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import model
from clips import media
from voices.weights import CAMPPLUS

PAGE_CLIPS = Path(os.environ.get("PAGE_CLIPS", ROOT / "data" / "page" / "clips"))  # of data/get_page_clips.py

needs_campplus = pytest.mark.skipif(not CAMPPLUS.is_available_here(), reason="no package with CAM++ for this machine")


def spectrograms(waveforms):
    """Return spectrograms as preprocess.py stores them."""
    return model.spectrogram(np.stack(waveforms)).numpy().astype(np.float16)


def spoken(hertz):
    """Return 6 s of vowels and a pause at this pitch, float32 (96 000,)."""
    t = np.arange(96_000) / 16_000
    phase = 2 * np.pi * np.cumsum(hertz * (1 + 0.06 * np.sin(2 * np.pi * 0.9 * t))) / 16_000
    first, second = 550 + 200 * np.sin(2 * np.pi * 1.1 * t), 1500 + 500 * np.sin(2 * np.pi * 0.8 * t + 1)  # Hz, formants
    x = np.zeros(len(t))
    for harmonic in range(1, 30):
        f = harmonic * hertz
        gain = np.exp(-(((f - first) / 150) ** 2)) + 0.5 * np.exp(-(((f - second) / 200) ** 2)) + 0.03
        x += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2 * t), 0, None) * ((t < 2.5) | (t > 3.5))
    return (0.1 * x * syllables).astype(np.float32)


def real_waveforms(n):
    """Return n of the clips of data/get_page_clips.py, each float32 (96 000,); the test is skipped where they are missing."""
    if not PAGE_CLIPS.is_dir():
        pytest.skip("needs the clips of data/get_page_clips.py")
    paths = sorted(PAGE_CLIPS.iterdir())
    return [np.resize(media.read_clip(path).samples / np.float32(32768), 96_000) for path in paths[:: len(paths) // n][:n]]
