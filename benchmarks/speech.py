"""What the voice detector finds in clips, and in made sounds without a voice: noise, tones, hum and music.

Prints the seconds of speech, and the share of the spectrum that is steady, by which clips/speech.py decides.

    python -m benchmarks speech --clips data/demo-0/videos data/page/clips
"""

import dataclasses
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import scipy.signal
from tqdm import tqdm

import utils
from clips import media, speech
from clips.reasons import Skip
from utils import CLIP_SAMPLES, CLIP_SECONDS, SAMPLE_RATE

LEVELS_DB = (-6, -20, -35, -50)  # of full scale
SECONDS = np.arange(CLIP_SAMPLES) / SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Options:
    clips: tuple[Path, ...] = utils.option("folders of clips with a voice", (), nargs="+", metavar="FOLDER")


def sounds_without_a_voice() -> dict[str, np.ndarray]:
    """Return made sounds, float64 (CLIP_SAMPLES,), by name."""
    rng, made = np.random.default_rng(0), {}
    spectrum = np.fft.rfft(rng.normal(size=CLIP_SAMPLES))
    hertz = np.fft.rfftfreq(CLIP_SAMPLES, 1 / SAMPLE_RATE)
    for name, slope in (("white", 0), ("pink", 0.5), ("brown", 1), ("blue", -0.5)):
        made[f"{name} noise"] = np.fft.irfft(np.where(hertz > 20, spectrum * np.maximum(hertz, 1) ** -slope, 0))
    made["band of noise"] = np.fft.irfft(np.where((hertz > 300) & (hertz < 3400), spectrum, 0))
    made["gusts"] = made["pink noise"] * (1 + np.sin(2 * np.pi * 2 * SECONDS))
    for pitch in (100, 220, 440, 1000, 3000):
        made[f"tone of {pitch} Hz"] = np.sin(2 * np.pi * pitch * SECONDS)
        made[f"buzz of {pitch} Hz"] = scipy.signal.sawtooth(2 * np.pi * pitch * SECONDS)
    for low, high in ((50, 8000), (100, 1000)):
        made[f"sweep of {low} to {high} Hz"] = scipy.signal.chirp(SECONDS, low, CLIP_SECONDS, high, "logarithmic")
    for mains in (50, 60):
        for n in (1, 3, 10):
            made[f"hum of {mains} Hz, {n} harmonics"] = sum(
                np.sin(2 * np.pi * mains * k * SECONDS) / k for k in range(1, n + 1)
            )
    made["siren"] = np.sin(2 * np.pi * np.cumsum(900 + 400 * np.sin(2 * np.pi * SECONDS)) / SAMPLE_RATE)
    keys = rng.choice([697, 770, 852, 941], 15), rng.choice([1209, 1336, 1477], 15)
    pressed = np.repeat(np.array(keys), CLIP_SAMPLES // 15, axis=1)
    made["telephone keys"] = np.sin(2 * np.pi * pressed * SECONDS).sum(axis=0) * (SECONDS % 0.4 < 0.2)
    since = SECONDS % 0.4
    notes = np.repeat(rng.choice([262, 294, 330, 392, 440, 523], 15), CLIP_SAMPLES // 15)
    for name, wave in (("sine", np.sin), ("sawtooth", scipy.signal.sawtooth), ("square", scipy.signal.square)):
        made[f"notes, {name}"] = wave(2 * np.pi * notes * SECONDS) * np.exp(-4 * since)
        made[f"chords, {name}"] = sum(wave(2 * np.pi * ratio * 220 * SECONDS) for ratio in (1, 1.26, 1.5)) * np.exp(-since)
    made["drums"] = np.sin(2 * np.pi * 60 * since) * np.exp(-12 * since) + 0.4 * made["white noise"] * np.exp(
        -30 * (since - 0.2) ** 2
    )
    made["clicks"] = rng.normal(size=CLIP_SAMPLES) * np.exp(-300 * since)
    return made


def at_level(sound: np.ndarray, level_db: float) -> np.ndarray:
    """Bring a sound to a level below full scale. float64 -> int16."""
    scale = 10 ** (level_db / 20) / np.sqrt(np.mean(sound**2))
    return np.clip(np.rint(32767 * scale * sound), -32768, 32767).astype(np.int16)


def through_aac(waveform: np.ndarray) -> np.ndarray:
    """Return a sound, int16 (samples,), as it is after AAC at 32 kbit/s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.m4a"
        raw = ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "-"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, "-c:a", "aac", "-b:a", "32k", path]
        subprocess.run(command, input=waveform.astype("<i2").tobytes(), check=True)
        return media.read_sound(path, CLIP_SECONDS)


def found_in(waveform: np.ndarray) -> tuple[float | str, float, float]:
    """Return what `speech.speech_seconds` says of a sound, the seconds that it decides by, and the steady share."""
    sound = speech.without_rumble(waveform)
    [part] = speech.parts_of(sound)
    try:
        verdict = speech.speech_seconds(waveform)
    except Skip as skip:
        verdict = skip.reason
    return verdict, speech.seconds_of(speech.probabilities(part)), speech.steady_share(part)


def report(name: str, found: list) -> None:
    verdicts, seconds, steady = zip(*found)
    with_voice = [verdict for verdict in verdicts if not isinstance(verdict, str)]
    reasons = ", ".join(f"{reason} {verdicts.count(reason)}" for reason in ("silent", "no-speech"))
    print(f"{name}: {len(verdicts)} sounds, speech in {len(with_voice)}, {reasons}")
    for measure, values in (("seconds of speech", seconds), ("steady share", steady)):
        low, first, median, last, high = np.quantile(values, (0, 0.01, 0.5, 0.99, 1))
        print(f"    {measure}: median {median:.2f}, 98 % in {first:.2f} to {last:.2f}, all in {low:.2f} to {high:.2f}")


def run(options: Options) -> None:
    for folder in options.clips:
        paths = tqdm(sorted(folder.glob("*.mp*")), folder.name, leave=False, disable=None)
        report(str(folder), [found_in(media.read_sound(path, CLIP_SECONDS)) for path in paths])
    made = [at_level(sound, level) for sound in sounds_without_a_voice().values() for level in LEVELS_DB]
    report("sounds without a voice", [found_in(sound) for sound in made])
    report("the same after AAC", [found_in(through_aac(sound)) for sound in made])
