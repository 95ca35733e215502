"""Make the demo's talking heads: synthetic people, each with a drawn face and a synthetic voice.

A person is a handful of latent traits (`Person`). Some shape both the face and the voice, so that a voice predicts its face
well; others show in one of the two only, so that it does not do so perfectly. Everything follows from --seed. This is
material for trying the program out; it says nothing about real people.

Writes <out>/videos/<clip>.mp4 (H.264 and AAC) and <out>/avspeech_demo.csv, in AVSpeech's five columns.

    python data/make_demo.py --out data/demo-0 --seed 0
"""

import concurrent.futures
import csv
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import scipy.io.wavfile
import scipy.signal
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import SAMPLE_RATE, check, clip_name, option, parse_options, replacing, reporting_errors

WIDTH, HEIGHT = 640, 360  # pixels
FRAMES_PER_SECOND = 15
MOUTH_STEPS = 8  # drawn mouths from closed to wide open


@dataclasses.dataclass(frozen=True)
class Options:
    out: Path = option("folder to write to", Path("data/demo-0"))
    people: int = option("number of people, one clip each", 320)
    seed: int = option("seed of everything random", 0)
    workers: int = option("processes", os.cpu_count())

    def __post_init__(self):
        check(1 <= self.people <= 9999, f"--people: expected 1 to 9999, found {self.people}")
        check(self.seed >= 0, f"--seed: expected 0 or more, found {self.seed}")
        check(self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")


@dataclasses.dataclass(frozen=True)
class Person:
    """Latent traits, each in [0, 1]."""

    # Heard and seen.
    build: float  # long vocal tract, low formants | broad jaw, long face, wide nose
    pitch: float  # high voice | thin brows, full lips, large eyes, no beard
    age: float  # rough, breathy, slow voice | lines, grey hair, heavy lids
    accent: float  # vowel set, brightness | complexion, hair colour, slant and distance of the eyes
    # Seen only.
    hair: float
    glasses: float
    backdrop: float
    nose: float
    # Heard only.
    rate: float
    liveliness: float
    loudness: float


def draw_person(rng) -> Person:
    return Person(*rng.uniform(size=len(dataclasses.fields(Person))))


# ----------------------------------------------------------------------------------------------------------------------
# The voice: glottal pulses through moving formants.

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


def syllables(person: Person, n_blocks: int, rng):
    """Plan what is said: per block the loudness, the formants and the share of hiss; pauses have loudness 0.

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


def synthesise(person: Person, seconds: float, rng):
    """Let a person speak.

    Returns:
        int16 (samples,) at SAMPLE_RATE, and the loudness per block of 10 ms in [0, 1], which moves the mouth.
    """
    n_blocks = int(seconds * SAMPLE_RATE) // BLOCK
    loudness, formants, hiss = syllables(person, n_blocks, rng)
    n_samples = n_blocks * BLOCK

    # Pitch in Hz: melody over half seconds, falling towards the end; roughness moves it from period to period.
    knots = rng.normal(size=int(seconds * 2) + 2) * (0.04 + 0.08 * person.liveliness)
    melody = np.interp(np.linspace(0, len(knots) - 1, n_samples), np.arange(len(knots)), knots)
    rough = np.repeat(rng.normal(size=n_samples // 80 + 1), 80)[:n_samples] * 0.06 * person.age
    pitch = 85 * (290 / 85) ** person.pitch * np.exp(melody + rough - 0.1 * np.linspace(-1, 1, n_samples))

    # Rosenberg's glottal pulse: the flow rises, falls and stays shut; its slope is the source.
    phase = np.cumsum(pitch / SAMPLE_RATE) % 1
    rising, falling = 0.5 * (1 - np.cos(np.pi * phase / 0.4)), np.cos(np.pi * (phase - 0.4) / 0.4)
    flow = np.where(phase < 0.4, rising, np.where(phase < 0.6, falling, 0))
    voiced = np.diff(flow, prepend=0)
    breath = rng.normal(size=n_samples) * (0.01 + 0.05 * person.age) * (0.3 + flow)
    smooth_loudness, smooth_hiss = (np.repeat(v, BLOCK) for v in (loudness, hiss))
    source = smooth_loudness * ((1 - smooth_hiss) * voiced + breath) + smooth_hiss * rng.normal(size=n_samples) * 0.02

    # Formants: second-order resonators in a row, set anew every block.
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


# ----------------------------------------------------------------------------------------------------------------------
# The face: ellipses and curves, shaded.


def mix(a, b, t):
    return tuple(float(x + (y - x) * t) for x, y in zip(a, b))


def draw_face(person: Person, openness: float, eyes_open: float, centre, rng_seed: int) -> np.ndarray:
    """Draw a person.

    Args:
        openness: of the mouth, in [0, 1].
        eyes_open: in [0, 1].
        centre: (x, y) of the face, pixels.
        rng_seed: of the grain of skin and hair.

    Returns:
        uint8 (HEIGHT, WIDTH, 3), RGB.
    """
    rng = np.random.default_rng(rng_seed)
    x0, y0 = centre
    half_width = 58 + 20 * person.build
    half_height = 84 + 10 * person.build - 6 * person.pitch
    skin = mix((246, 214, 190), (112, 72, 50), person.accent)
    dark_skin = mix(skin, (60, 25, 20), 0.45)
    hair_colour = mix(
        mix((214, 170, 90), (25, 18, 15), min(1, person.accent * 1.6)), (205, 205, 205), max(0, person.age * 1.7 - 0.7)
    )
    lips = mix(mix(skin, (190, 60, 70), 0.25 + 0.55 * person.pitch), dark_skin, 0.15)

    def at(u, v):  # face coordinates: u from ear to ear, v from crown to chin, each in [-1, 1]
        return round((x0 + u * half_width) * 16), round((y0 + v * half_height) * 16)

    def ellipse(image, u, v, a, b, colour, thickness=-1, angle=0, start=0, end=360):
        axes = (max(1, int(abs(a) * half_width * 16)), max(1, int(abs(b) * half_height * 16)))
        cv2.ellipse(image, at(u, v), axes, angle, start, end, colour, thickness, cv2.LINE_AA, 4)

    def curve(image, points, colour, thickness):
        corners = np.array([at(u, v) for u, v in points], np.int32)
        cv2.polylines(image, [corners], False, colour, max(1, round(thickness)), cv2.LINE_AA, 4)

    # Backdrop, shoulders, hair behind the head, neck.
    top, bottom = mix((70, 90, 130), (190, 170, 140), person.backdrop), mix((30, 40, 60), (120, 130, 120), person.backdrop)
    ramp = np.linspace(0, 1, HEIGHT)[:, None, None]
    image = np.ascontiguousarray(np.broadcast_to(np.array(top) * (1 - ramp) + np.array(bottom) * ramp, (HEIGHT, WIDTH, 3)))
    image = image.astype(np.uint8)
    shirt = mix((60, 70, 120), (150, 50, 60), person.hair)
    ellipse(image, 0, 2.3, 2.0, 1.15, shirt)
    long_hair = 0.35 + 0.75 * person.pitch + 0.2 * person.hair
    ellipse(image, 0, -0.2, 1.12, 0.98, hair_colour)
    if long_hair > 0.75:
        ellipse(image, 0, 0.15, 1.16, 0.55 + 0.7 * (long_hair - 0.35), hair_colour)
    ellipse(image, 0, 1.0, 0.5, 0.5, dark_skin)

    # Head: an egg whose lower half is as wide as the jaw.
    angle = np.linspace(0, 2 * np.pi, 200)
    jaw = 0.74 + 0.3 * person.build - 0.12 * person.pitch
    power = np.where(np.sin(angle) > 0, 1.0 - 0.3 * person.build, 1.0)
    u = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    u *= np.where(np.sin(angle) > 0, 1 - (1 - jaw) * np.sin(angle) ** 2, 1)
    outline = np.array([at(a, b) for a, b in zip(u, np.sin(angle))], np.int32)
    for side in (-1, 1):
        ellipse(image, side * 1.0, 0.0, 0.12, 0.17, dark_skin)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA, 4)
    yy, xx = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    across, down = (xx - x0) / half_width, (yy - y0) / half_height
    light = 1.08 - 0.3 * np.clip(across**2 + 0.6 * down**2, 0, 1.5) ** 1.5 - 0.08 * across - 0.05 * down
    grain = cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32), (0, 0), 1.2) * 0.05 * (0.3 + person.age)
    face = np.array(skin, np.float32) * (light + grain)[..., None]
    # Beard: the lower face darkens, the more the lower the voice.
    beard = np.clip((0.42 - person.pitch) * 2.2, 0, 0.75)
    if beard > 0:
        where = 1 / (1 + np.exp(-(down - 0.38 + 0.25 * (1 - np.abs(across))) * 14))
        stubble = np.clip(where * beard * (1 + 4 * grain), 0, 1)[..., None]
        face = face * (1 - stubble) + np.array(hair_colour, np.float32) * 0.7 * stubble

    # Cheeks, eye sockets and the nose's sides, as soft light and shade.
    def shade(u, v, a, b, strength):
        return strength * np.exp(-(((across - u) / a) ** 2) - ((down - v) / b) ** 2)

    eye_u, eye_v = 0.36 + 0.09 * person.accent, -0.1
    relief = shade(-eye_u, eye_v - 0.03, 0.26, 0.14, -0.16) + shade(eye_u, eye_v - 0.03, 0.26, 0.14, -0.16)
    relief += shade(-0.5, 0.25, 0.25, 0.2, 0.08) + shade(0.5, 0.25, 0.25, 0.2, 0.08)
    nose_width = 0.13 + 0.09 * person.build + 0.05 * person.accent
    nose_tip = 0.26 + 0.08 * person.nose
    relief += (
        shade(0, 0.1, 0.07, 0.25, 0.1)
        + shade(nose_width * 0.8, 0.1, 0.06, 0.25, -0.12)
        + shade(0, nose_tip + 0.07, 0.2, 0.05, -0.2)
    )
    relief += shade(0, 0.72, 0.25, 0.05, -0.1)
    face *= (1 + relief)[..., None]
    alpha = (mask / 255.0)[..., None]
    image = np.clip(image * (1 - alpha) + face * alpha, 0, 255).astype(np.uint8)

    # Hair in front: a fringe over the forehead, its line higher with age.
    fringe = -0.72 - 0.12 * person.age + 0.14 * person.hair
    cap = np.zeros_like(mask)
    ellipse(cap, 0, -0.42, 1.04, 0.66, 255)
    forehead = np.zeros_like(mask)
    ellipse(forehead, (person.hair - 0.5) * 0.5, fringe + 0.75, 0.98, 0.75, 255)
    cap = cv2.subtract(cv2.subtract(cap, forehead), (down > -0.15).astype(np.uint8) * 255)
    alpha = (cap / 255.0)[..., None]
    strands = np.array(hair_colour, np.float32) * (0.9 + 0.25 * np.clip(-down, 0, 1) + 2 * grain)[..., None]
    image = np.clip(image * (1 - alpha) + strands * alpha, 0, 255).astype(np.uint8)

    # Eyes and brows.
    eye_width, eye_height = (
        0.17 + 0.04 * person.pitch,
        (0.085 + 0.04 * person.pitch - 0.035 * person.age) * max(eyes_open, 0.08),
    )
    iris = mix((90, 140, 180), (50, 30, 20), min(1, person.accent * 1.5))
    for side in (-1, 1):
        slant = side * (8 - 20 * person.accent)
        ellipse(image, side * eye_u, eye_v, eye_width, eye_height, (238, 236, 232), angle=slant)
        if eyes_open > 0.5:
            ellipse(image, side * eye_u, eye_v, 0.085, min(eye_height, 0.07), iris)
            ellipse(image, side * eye_u, eye_v, 0.04, min(eye_height, 0.034), (10, 10, 10))
            ellipse(image, side * eye_u - 0.03, eye_v - 0.02, 0.018, 0.013, (250, 250, 250))
        ellipse(image, side * eye_u, eye_v, eye_width, eye_height, (50, 30, 25), 2, slant, 180, 360)
        ellipse(image, side * eye_u, eye_v, eye_width, eye_height, dark_skin, 1, slant, 0, 180)
        brow = [
            (side * (eye_u + t * 0.24), eye_v - 0.2 - 0.05 * (1 - t * t) + 0.03 * t * person.accent)
            for t in np.linspace(-1, 1, 12)
        ]
        curve(image, brow, mix(hair_colour, (30, 20, 15), 0.5), 3 + 7 * (1 - person.pitch) ** 1.5 + 2 * person.build)
        # Lines of age.
        if person.age > 0.3:
            line = mix(skin, dark_skin, 0.35 + 0.6 * person.age)
            curve(
                image,
                [(side * (eye_u + t * 0.17), eye_v + 0.13 + 0.035 * (1 - t * t)) for t in np.linspace(-1, 1, 9)],
                line,
                1.4,
            )
            curve(
                image,
                [(side * (0.2 + 0.16 * t), nose_tip + 0.03 + 0.3 * t) for t in np.linspace(0, 1, 6)],
                line,
                1 + 2 * person.age,
            )
            if person.age > 0.55:
                for row in range(3):
                    curve(
                        image,
                        [(side * t * 0.45, -0.46 - 0.07 * row - 0.02 * np.cos(3 * t)) for t in np.linspace(0, 1, 8)],
                        line,
                        1.4,
                    )

    # Nose.
    for side in (-1, 1):
        ellipse(image, side * nose_width * 0.55, nose_tip + 0.045, 0.045, 0.022, mix(dark_skin, (20, 5, 5), 0.4))
        curve(
            image,
            [(side * nose_width * (0.9 + 0.25 * np.sin(t)), nose_tip - 0.04 + 0.07 * t / 3) for t in np.linspace(0, 3, 8)],
            dark_skin,
            1.6,
        )

    # Mouth.
    mouth_v, mouth_width = 0.56, 0.27 + 0.1 * person.build
    lip, gap = 0.035 + 0.05 * person.pitch - 0.012 * person.age, 0.11 * openness
    ellipse(image, 0, mouth_v + gap * 0.5, mouth_width * (1 - 0.15 * openness), lip + gap, lips)
    ellipse(image, 0, mouth_v - lip, mouth_width * 0.28, 0.018, skin if beard < 0.1 else mix(skin, hair_colour, 0.5 * beard))
    ellipse(image, 0, mouth_v + gap * 0.5, mouth_width * 0.82, max(0.006, gap), (55, 15, 18))
    if gap > 0.03:
        ellipse(image, 0, mouth_v - gap * 0.25, mouth_width * 0.6, gap * 0.3, (235, 232, 225))

    if person.glasses > 0.75:
        for side in (-1, 1):
            ellipse(image, side * eye_u, eye_v + 0.02, 0.27, 0.18, (25, 25, 30), 2)
            curve(image, [(side * (eye_u + 0.27), eye_v), (side * 1.0, eye_v - 0.05)], (25, 25, 30), 2)
        curve(image, [(-(eye_u - 0.27), eye_v), (eye_u - 0.27, eye_v)], (25, 25, 30), 2)
    return cv2.GaussianBlur(image, (0, 0), 0.7)


# ----------------------------------------------------------------------------------------------------------------------
# Clips.


def make_clip(seed: int, number: int, videos: Path) -> tuple:
    """Make one person's clip: <videos>/<clip>.mp4.

    Returns:
        The clip's row in AVSpeech's columns: id, start s, end s, and the face's centre as a fraction of width and height.
    """
    rng = np.random.default_rng([seed, number])
    person = draw_person(rng)
    seconds = float(rng.uniform(5, 7))
    start = round(float(rng.uniform(0, 300)), 6)
    centre = float(rng.uniform(0.3, 0.7)) * WIDTH, float(rng.uniform(0.46, 0.52)) * HEIGHT
    sound, loudness = synthesise(person, seconds, rng)
    video_id = f"demo-{seed}-{number:04d}"
    end = round(start + len(sound) / SAMPLE_RATE, 6)

    grain = int(rng.integers(2**32))
    mouths = [draw_face(person, i / (MOUTH_STEPS - 1), 1, centre, grain) for i in range(MOUTH_STEPS)]
    blink = draw_face(person, 0.2, 0, centre, grain)
    n_frames = round(len(sound) / SAMPLE_RATE * FRAMES_PER_SECOND)
    sway = np.cumsum(rng.normal(size=(n_frames, 2)), axis=0) * 0.7
    sway -= sway[0]
    next_blink = rng.uniform(1, 3)
    with tempfile.TemporaryDirectory() as folder, replacing(videos / f"{clip_name(video_id, start, end)}.mp4") as path:
        wav = Path(folder) / "voice.wav"
        scipy.io.wavfile.write(wav, SAMPLE_RATE, sound)
        writer = imageio_ffmpeg.write_frames(
            str(path), (WIDTH, HEIGHT), fps=FRAMES_PER_SECOND, codec="libx264", quality=None, macro_block_size=8,
            audio_path=str(wav), audio_codec="aac", ffmpeg_log_level="error",
            output_params=["-preset", "veryfast", "-crf", "23", "-threads", "1"],
        )  # fmt: skip
        writer.send(None)
        for i in range(n_frames):
            at = i / FRAMES_PER_SECOND
            image = mouths[round(min(1, loudness[min(len(loudness) - 1, int(at * 100))]) * (MOUTH_STEPS - 1))]
            if at > next_blink:
                image = blink
                next_blink += rng.uniform(2, 4) if at > next_blink + 0.12 else 0
            shift = np.float32([[1, 0, sway[i, 0]], [0, 1, sway[i, 1] * 0.5]])
            writer.send(np.ascontiguousarray(cv2.warpAffine(image, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)))
        writer.close()
    return video_id, f"{start:.6f}", f"{end:.6f}", f"{centre[0] / WIDTH:.6f}", f"{centre[1] / HEIGHT:.6f}"


@reporting_errors
def main(argv=None) -> int:
    options = parse_options(Options, __doc__, argv)
    videos = options.out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ProcessPoolExecutor(options.workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        jobs = [pool.submit(make_clip, options.seed, number, videos) for number in range(options.people)]
        for job in tqdm(concurrent.futures.as_completed(jobs), "make_demo", len(jobs), unit="clip"):
            job.result()
    table = options.out / "avspeech_demo.csv"
    with replacing(table) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(job.result() for job in jobs)
    print(f"make_demo: {options.people} clips in {videos}, listed in {table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
