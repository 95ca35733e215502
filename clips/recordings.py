"""Users' own recordings: read, checked for speech, without their pauses."""

import sys
from pathlib import Path

import numpy as np

from clips import media, speech
from clips.reasons import REASONS, Skip
from utils import CLIP_SAMPLES, MIN_SECONDS, SAMPLE_RATE, InputError

MAX_SECONDS = 120  # s of a recording: longer ones usually hold music, or several speakers


def read_recording(path: Path) -> np.ndarray:
    """Read the speech of a recording in any format known to ffmpeg, without its pauses.

    A line on stderr warns where the voice detector is sure of little of it.

    Returns:
        float32 (samples,), mono at SAMPLE_RATE, in [-1, 1]. Shorter recordings are repeated to CLIP_SAMPLES, as clips are.

    Raises:
        InputError: if there is no such file, the file holds no sound or no speech, or is too short or too long.
    """
    expected = f"expected a recording of {MIN_SECONDS} to {MAX_SECONDS} s of speech"
    if not Path(path).is_file():
        raise InputError(f"{path}: {expected}, found {'a folder' if Path(path).is_dir() else 'no such file'}")
    try:
        samples = media.read_sound(path, MAX_SECONDS + 1)
    except Skip as skip:
        found = "a file without a sound track" if skip.reason == "no-sound" else f"nothing that ffmpeg can read ({skip.detail})"
        raise InputError(f"{path}: {expected}, found {found}") from None
    seconds = len(samples) / SAMPLE_RATE
    if seconds > MAX_SECONDS:
        raise InputError(f"{path}: {expected}, found more; cut out a part with one speaker: ffmpeg -ss 0 -t 60 -i ...")
    if seconds < MIN_SECONDS:
        raise InputError(f"{path}: {expected}, found {seconds:.1f} s; record more")
    try:
        speech.speech_seconds(samples)
    except Skip as skip:
        found = {"silent": "silence", "no-speech": "no speech"}[skip.reason]
        raise InputError(f"{path}: {expected}, found {found}: {REASONS[skip.reason]}") from None
    stretches, sure = speech.speech_stretches(samples)
    if not sure:
        print(f"hear: {path}: little of it is clearly speech; all that is not quiet was used", file=sys.stderr)
    spoken = np.concatenate([samples[first:last] for first, last in stretches]) / np.float32(32768)
    return spoken if len(spoken) >= CLIP_SAMPLES else np.resize(spoken, CLIP_SAMPLES)
