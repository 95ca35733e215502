"""Users' own recordings: read, checked for speech, without their pauses."""

import dataclasses
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

from clips import media, speech
from clips.reasons import REASONS, Skip
from utils import CLIP_SAMPLES, MIN_SECONDS, SAMPLE_RATE, InputError

WHOLE_SECONDS = 120  # s; of longer recordings EXCERPTS of EXCERPT_SECONDS are read, spread over them
EXCERPTS, EXCERPT_SECONDS = 20, 12
RATES = 4_000, 384_000  # Hz, of arrays
INT16 = 32768  # full scale


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A recording, and the speech in it."""

    speech: np.ndarray  # float32 (samples,), mono at SAMPLE_RATE, in [-1, 1], no pauses; repeated up to CLIP_SAMPLES
    sound: np.ndarray  # int16 (samples,): all that was read, excerpts one after another
    stretches: list[tuple[int, int]]  # of speech in `sound`: the first sample, and the first one after it
    is_sure: bool  # whether the voice detector is sure of them
    seconds: float  # length of the whole recording

    @property
    def speech_seconds(self) -> float:
        """Length of the stretches, s."""
        return sum(last - first for first, last in self.stretches) / SAMPLE_RATE


def read_recording(path: Path, name: str | None = None) -> Recording:
    """Read the speech of a recording in any of media.FORMATS, without its pauses.

    A line on stderr warns where the voice detector is sure of little of it.

    Args:
        path: of the file.
        name: of the recording in messages, unless that is its path.

    Raises:
        InputError: if there is no such file, or the file holds no sound, no speech or less than MIN_SECONDS.
    """
    name = name or path
    expected = f"expected a recording of at least {MIN_SECONDS} s of speech"
    if not Path(path).is_file():
        raise InputError(f"{name}: {expected}, found {'a folder' if Path(path).is_dir() else 'no such file'}")
    try:
        samples, seconds = media.read_sound(path, WHOLE_SECONDS + 1), None
        if len(samples) > WHOLE_SECONDS * SAMPLE_RATE:
            seconds = media.seconds_of(path)
    except Skip as skip:
        found = "a file without a sound track" if skip.reason == "no-sound" else f"a file that cannot be read ({skip.detail})"
        raise InputError(f"{name}: {expected}, found {found}") from None
    if seconds and seconds > WHOLE_SECONDS + 1:
        n = min(EXCERPTS, int(seconds / EXCERPT_SECONDS))
        parts = _excerpts(path, name, seconds, n)
        used = f"{n} excerpts of {EXCERPT_SECONDS} s, spread over it, are used"
        print(f"hear: {name}: {seconds / 60:.0f} minutes long; {used}", file=sys.stderr)
    else:
        if len(samples) > WHOLE_SECONDS * SAMPLE_RATE and seconds is None:
            print(f"hear: {name}: how long it is cannot be told; its first {WHOLE_SECONDS} s are used", file=sys.stderr)
        seconds, parts = len(samples) / SAMPLE_RATE, [samples]
        if seconds < MIN_SECONDS:
            raise InputError(f"{name}: {expected}, found {seconds:.1f} s; record more")
    stretches, is_sure, at, skips = [], True, 0, []
    for part in parts:
        try:
            speech.speech_seconds(part)
            found, sure = speech.speech_stretches(part)
            stretches += [(at + first, at + last) for first, last in found]
            is_sure &= sure or len(parts) > 1  # an excerpt may hold a few words
        except Skip as skip:
            skips.append(skip)
        at += len(part)
    if not stretches:
        found = {"silent": "silence", "no-speech": "no speech"}[skips[-1].reason]
        raise InputError(f"{name}: {expected}, found {found}: {REASONS[skips[-1].reason]}") from None
    if not is_sure:
        print(f"hear: {name}: little of it is clearly speech; all that is not quiet was used", file=sys.stderr)
    sound = np.concatenate(parts)
    spoken = np.concatenate([sound[first:last] for first, last in stretches]) / np.float32(INT16)
    spoken = spoken if len(spoken) >= CLIP_SAMPLES else np.resize(spoken, CLIP_SAMPLES)
    return Recording(spoken, sound, stretches, is_sure, seconds)


def _excerpts(path: Path, name, seconds: float, n: int) -> list[np.ndarray]:
    """Read n excerpts of a long recording, spread evenly over its length; those after the end of a damaged one are left out."""
    starts = np.linspace(0, seconds - EXCERPT_SECONDS, n)
    found = []
    for start in starts:
        try:
            found.append(media.read_sound(path, EXCERPT_SECONDS, float(start)))
        except Skip:
            if not found:
                raise InputError(f"{name}: expected a recording of {seconds:.0f} s, found a damaged one") from None
    return found


def from_samples(samples: np.ndarray, rate: int) -> Recording:
    """Find the speech in samples, as `read_recording` does in a file.

    Args:
        samples: float in [-1, 1] or int16, (samples,) or (samples, channels).
        rate: Hz.

    Raises:
        InputError: if the samples are of another kind, or as `read_recording`.
    """
    samples = np.asarray(samples)
    expected = "samples: expected float in [-1, 1] or int16, (samples,) or (samples, channels)"
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > 8):
        raise InputError(f"{expected}, found shape {samples.shape}; a channel is a column")
    if not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
        raise InputError(f"{expected}, found {samples.dtype}")
    if samples.dtype != np.int16:
        peak = float(np.abs(samples).max(initial=0))
        if not peak <= media.MAX_OVERSHOOT:  # nan too
            raise InputError(f"{expected}, found values up to {peak:.4g}; divide by the full scale")
        samples = np.clip(np.rint(samples * (INT16 - 1)), -INT16, INT16 - 1).astype(np.int16)
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"rate: expected {RATES[0]} to {RATES[1]} Hz, found {rate}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples.wav")
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
            file.setsampwidth(2)
            file.setframerate(int(rate))
            file.writeframes(samples.astype("<i2").tobytes())
        return read_recording(path, "samples")
