"""Speech in sounds: how much of a clip is not silent, and users' own recordings, read without their pauses."""

from pathlib import Path

import librosa
import numpy as np

from clips import media
from clips.reasons import MIN_SPEECH_SECONDS, REASONS, SILENCE_DB, Skip
from utils import CLIP_SAMPLES, MIN_SECONDS, SAMPLE_RATE, InputError

MAX_SECONDS = 120  # s of a recording: longer ones usually hold music, or several speakers
PAUSE_DB = 40  # dB below the loudest part of a recording: quieter stretches are pauses
PAUSE_SECONDS = 0.3  # s; shorter pauses belong to speech


def speech_seconds(waveform: np.ndarray) -> float:
    """Return how many s of a sound are louder than silence (SILENCE_DB). `waveform`: int16 (samples,) at SAMPLE_RATE."""
    loud = librosa.effects.split(waveform / np.float32(32768), top_db=SILENCE_DB, ref=1.0)  # (n, 2), first and last sample
    return float((loud[:, 1] - loud[:, 0]).sum() / SAMPLE_RATE)


def read_recording(path: Path) -> np.ndarray:
    """Read the speech of a recording in any format known to ffmpeg, without its pauses.

    Returns:
        float32 (samples,), mono at SAMPLE_RATE, in [-1, 1]. Shorter recordings are repeated to CLIP_SAMPLES, as clips are.

    Raises:
        InputError: if there is no such file, the file holds no sound or only silence, or is too short or too long.
    """
    expected = f"expected a recording of {MIN_SECONDS} to {MAX_SECONDS} s of speech"
    if not Path(path).is_file():
        raise InputError(f"{path}: {expected}, found {'a folder' if Path(path).is_dir() else 'no such file'}")
    process = media.start_ffmpeg(
        path, "-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "pipe:1", seconds=MAX_SECONDS + 1
    )
    try:
        content, errors = media.communicate(process)
    except Skip as skip:
        raise InputError(f"{path}: {expected}, but {skip.detail}") from None
    samples = np.frombuffer(content, "<i2", len(content) // 2)
    if process.returncode != 0 or len(samples) == 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise InputError(f"{path}: {expected}, found nothing that ffmpeg can read ({lines[-1] if lines else 'no sound'})")
    seconds = len(samples) / SAMPLE_RATE
    if seconds > MAX_SECONDS:
        raise InputError(f"{path}: {expected}, found more; cut out a part with one speaker: ffmpeg -ss 0 -t 60 -i ...")
    if seconds < MIN_SECONDS:
        raise InputError(f"{path}: {expected}, found {seconds:.1f} s; record more")
    if speech_seconds(samples) < MIN_SPEECH_SECONDS:
        raise InputError(f"{path}: {expected}, found silence: {REASONS['silent']}")
    waveform = samples / np.float32(32768)
    spoken = librosa.effects.split(waveform, top_db=PAUSE_DB)  # (n, 2), first and last sample
    after_pause = np.concatenate([[True], spoken[1:, 0] - spoken[:-1, 1] > PAUSE_SECONDS * SAMPLE_RATE])
    firsts, lasts = spoken[after_pause, 0], spoken[np.append(np.flatnonzero(after_pause)[1:] - 1, len(spoken) - 1), 1]
    speech = np.concatenate([waveform[first:last] for first, last in zip(firsts, lasts)])
    return speech if len(speech) >= CLIP_SAMPLES else np.resize(speech, CLIP_SAMPLES)
