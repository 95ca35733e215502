"""Make the demo's talking heads: synthetic people, each with a rendered face and a synthetic voice.

A person is a set of latent traits (`Person`). Some traits shape both the face and the voice, so that the voice predicts the
face well; others shape only one of the two, so that the prediction is not perfect. Everything follows from --seed. The demo
serves to try the program out; it says nothing about real people.

Writes <out>/videos/<clip>.mp4 (H.264 and AAC) and <out>/avspeech_demo.csv, with AVSpeech's five columns.

    python data/make_demo.py --out data/demo-0 --seed 0
"""

import concurrent.futures
import csv
import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import SAMPLE_RATE, check, clip_name, option, parse_options, replacing, reporting_errors

try:
    import cv2
    import imageio_ffmpeg
    import numpy as np
    import scipy.io.wavfile
    from tqdm import tqdm

    from clips import workers
    from data.demo_voices import synthesise
except ModuleNotFoundError as error:
    raise SystemExit(f"error: expected the package {error.name}, found none; run: source .venv/bin/activate") from None

WIDTH, HEIGHT = 640, 360  # pixels
FRAMES_PER_SECOND = 15
MOUTH_STEPS = 8  # rendered mouths, from closed to wide open


@dataclasses.dataclass(frozen=True)
class Options:
    out: Path = option("folder to write to", Path("data/demo-0"), metavar="FOLDER")
    people: int = option("number of people; fewer people make a quicker demo", 320, metavar="N")
    videos_each: int = option(
        "number of videos of each person; several show how well a person is found by another video", 1, metavar="N"
    )
    seed: int = option("seed of all random numbers; another seed makes other people", 0, metavar="N")
    workers: int | None = option(
        "number of processes; lower the number to leave processors free (default: the processors that this process may use)",
        None,
        metavar="N",
    )

    def __post_init__(self):
        check(1 <= self.people <= 9999, f"--people: expected 1 to 9999, found {self.people}")
        check(1 <= self.videos_each <= 99, f"--videos-each: expected 1 to 99, found {self.videos_each}")
        check(self.seed >= 0, f"--seed: expected 0 or more, found {self.seed}")
        check(self.workers is None or self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")


@dataclasses.dataclass(frozen=True)
class Person:
    """Latent traits, each in [0, 1]."""

    # In voice and face.
    build: float  # long vocal tract, low formants | broad jaw, long face, wide nose
    pitch: float  # high voice | thin brows, full lips, large eyes, no beard
    age: float  # rough, breathy, slow voice | lines, grey hair, heavy lids
    accent: float  # vowel set, brightness | complexion, hair colour, slant and distance of the eyes
    # In the face only.
    hair: float
    glasses: float
    backdrop: float
    nose: float
    # In the voice only.
    rate: float
    liveliness: float
    loudness: float


def sample_person(rng) -> Person:
    return Person(*rng.uniform(size=len(dataclasses.fields(Person))))


# ----------------------------------------------------------------------------------------------------------------------
# The face: ellipses and curves, shaded.


def mix(a, b, t):
    """Return the colour at t between a (0) and b (1). RGB."""
    return tuple(float(x + (y - x) * t) for x, y in zip(a, b))


class Sketch:
    """An unfinished picture, with the colours and proportions of the person.

    Face coordinates: u from the left to the right edge of the head, v from crown to chin, each in [-1, 1]; lengths likewise.
    Thickness is in pixels.
    """

    def __init__(self, person: Person, centre, grain_seed: int):
        self.person, self.centre = person, centre
        self.size = 58 + 20 * person.build, 84 + 10 * person.build - 6 * person.pitch  # half of width and height, pixels
        self.skin = mix((246, 214, 190), (112, 72, 50), person.accent)
        self.shadow = mix(self.skin, (60, 25, 20), 0.45)
        natural = mix((214, 170, 90), (25, 18, 15), min(1, person.accent * 1.6))
        self.hair = mix(natural, (205, 205, 205), max(0, person.age * 1.7 - 0.7))
        self.beard = np.clip((0.42 - person.pitch) * 2.2, 0, 0.75)
        self.eye = 0.36 + 0.09 * person.accent, -0.1
        self.nose_width = 0.13 + 0.09 * person.build + 0.05 * person.accent
        self.nose_tip = 0.26 + 0.08 * person.nose

        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        self.across, self.down = (x - centre[0]) / self.size[0], (y - centre[1]) / self.size[1]
        noise = np.random.default_rng(grain_seed).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
        self.grain = cv2.GaussianBlur(noise, (0, 0), 1.2) * 0.05 * (0.3 + person.age)
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def at(self, u, v):
        """Return a point for OpenCV, in sixteenths of a pixel."""
        return tuple(round((c + w * size) * 16) for c, w, size in zip(self.centre, (u, v), self.size))

    def ellipse(self, u, v, a, b, colour, thickness=-1, angle=0, start=0, end=360, image=None):
        axes = tuple(max(1, int(abs(length) * size * 16)) for length, size in zip((a, b), self.size))
        image = self.image if image is None else image
        cv2.ellipse(image, self.at(u, v), axes, angle, start, end, colour, thickness, cv2.LINE_AA, 4)

    def curve(self, point, ends, n, colour, thickness):
        """Draw the curve point(t) from t = ends[0] to ends[1], in n - 1 straight segments."""
        corners = np.array([self.at(*point(t)) for t in np.linspace(*ends, n)], np.int32)
        cv2.polylines(self.image, [corners], False, colour, max(1, round(thickness)), cv2.LINE_AA, 4)

    def paint(self, colours, mask):
        """Paint colours, float (HEIGHT, WIDTH, 3), over the picture where the mask, uint8 (HEIGHT, WIDTH), is 255."""
        alpha = (mask / 255.0)[..., None]
        self.image = np.clip(self.image * (1 - alpha) + colours * alpha, 0, 255).astype(np.uint8)

    def shade(self, u, v, a, b, strength):
        """Return a soft light (strength > 0) or shadow (strength < 0), float (HEIGHT, WIDTH)."""
        return strength * np.exp(-(((self.across - u) / a) ** 2) - ((self.down - v) / b) ** 2)


def draw_body(sketch: Sketch) -> None:
    """Draw everything behind the face: backdrop, shoulders, hair, neck and both sides of the head."""
    person = sketch.person
    top, bottom = mix((70, 90, 130), (190, 170, 140), person.backdrop), mix((30, 40, 60), (120, 130, 120), person.backdrop)
    ramp = np.linspace(0, 1, HEIGHT)[:, None, None]
    sketch.image[:] = (np.array(top) * (1 - ramp) + np.array(bottom) * ramp).astype(np.uint8)
    sketch.ellipse(0, 2.3, 2.0, 1.15, mix((60, 70, 120), (150, 50, 60), person.hair))
    sketch.ellipse(0, -0.2, 1.12, 0.98, sketch.hair)
    length = 0.35 + 0.75 * person.pitch + 0.2 * person.hair
    if length > 0.75:
        sketch.ellipse(0, 0.15, 1.16, 0.55 + 0.7 * (length - 0.35), sketch.hair)
    sketch.ellipse(0, 1.0, 0.5, 0.5, sketch.shadow)
    for side in (-1, 1):
        sketch.ellipse(side, 0, 0.12, 0.17, sketch.shadow)


def draw_head(sketch: Sketch) -> None:
    """Draw the head, an egg with the width of the jaw below, with light, grain, beard and shadows of eyes, cheeks and nose."""
    person, across, down = sketch.person, sketch.across, sketch.down
    angle = np.linspace(0, 2 * np.pi, 200)
    lower = np.sin(angle) > 0
    jaw = 0.74 + 0.3 * person.build - 0.12 * person.pitch
    u = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** np.where(lower, 1.0 - 0.3 * person.build, 1.0)
    u *= np.where(lower, 1 - (1 - jaw) * np.sin(angle) ** 2, 1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    outline = np.array([sketch.at(*point) for point in zip(u, np.sin(angle))], np.int32)
    cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA, 4)

    light = 1.08 - 0.3 * np.clip(across**2 + 0.6 * down**2, 0, 1.5) ** 1.5 - 0.08 * across - 0.05 * down
    face = np.array(sketch.skin, np.float32) * (light + sketch.grain)[..., None]
    if sketch.beard > 0:
        where = 1 / (1 + np.exp(-(down - 0.38 + 0.25 * (1 - np.abs(across))) * 14))
        stubble = np.clip(where * sketch.beard * (1 + 4 * sketch.grain), 0, 1)[..., None]
        face = face * (1 - stubble) + np.array(sketch.hair, np.float32) * 0.7 * stubble

    eye_u, eye_v = sketch.eye
    relief = sketch.shade(0, 0.1, 0.07, 0.25, 0.1) + sketch.shade(sketch.nose_width * 0.8, 0.1, 0.06, 0.25, -0.12)
    relief += sketch.shade(0, sketch.nose_tip + 0.07, 0.2, 0.05, -0.2) + sketch.shade(0, 0.72, 0.25, 0.05, -0.1)
    for side in (-1, 1):
        relief += sketch.shade(side * eye_u, eye_v - 0.03, 0.26, 0.14, -0.16) + sketch.shade(side * 0.5, 0.25, 0.25, 0.2, 0.08)
    sketch.paint(face * (1 + relief)[..., None], mask)


def draw_fringe(sketch: Sketch) -> None:
    """Draw the hair over the forehead; the hairline recedes with age."""
    person = sketch.person
    cap, forehead = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    sketch.ellipse(0, -0.42, 1.04, 0.66, 255, image=cap)
    line = -0.72 - 0.12 * person.age + 0.14 * person.hair
    sketch.ellipse((person.hair - 0.5) * 0.5, line + 0.75, 0.98, 0.75, 255, image=forehead)
    cap = cv2.subtract(cv2.subtract(cap, forehead), (sketch.down > -0.15).astype(np.uint8) * 255)
    strands = 0.9 + 0.25 * np.clip(-sketch.down, 0, 1) + 2 * sketch.grain
    sketch.paint(np.array(sketch.hair, np.float32) * strands[..., None], cap)


def draw_eyes(sketch: Sketch, eyes_open: float) -> None:
    """Draw eyes and brows."""
    person, (u, v) = sketch.person, sketch.eye
    width = 0.17 + 0.04 * person.pitch
    height = (0.085 + 0.04 * person.pitch - 0.035 * person.age) * max(eyes_open, 0.08)
    iris = mix((90, 140, 180), (50, 30, 20), min(1, person.accent * 1.5))
    for side in (-1, 1):
        slant = side * (8 - 20 * person.accent)
        sketch.ellipse(side * u, v, width, height, (238, 236, 232), angle=slant)
        if eyes_open > 0.5:
            sketch.ellipse(side * u, v, 0.085, min(height, 0.07), iris)
            sketch.ellipse(side * u, v, 0.04, min(height, 0.034), (10, 10, 10))
            sketch.ellipse(side * u - 0.03, v - 0.02, 0.018, 0.013, (250, 250, 250))
        sketch.ellipse(side * u, v, width, height, (50, 30, 25), 2, slant, 180, 360)
        sketch.ellipse(side * u, v, width, height, sketch.shadow, 1, slant, 0, 180)

        def brow(t, side=side):
            return side * (u + t * 0.24), v - 0.2 - 0.05 * (1 - t * t) + 0.03 * t * person.accent

        thickness = 3 + 7 * (1 - person.pitch) ** 1.5 + 2 * person.build
        sketch.curve(brow, (-1, 1), 12, mix(sketch.hair, (30, 20, 15), 0.5), thickness)


def draw_lines(sketch: Sketch) -> None:
    """Draw the lines of age: under the eyes, from nose to mouth, across the forehead."""
    age, (u, v) = sketch.person.age, sketch.eye
    if age <= 0.3:
        return
    colour = mix(sketch.skin, sketch.shadow, 0.35 + 0.6 * age)
    for side in (-1, 1):
        sketch.curve(lambda t, s=side: (s * (u + t * 0.17), v + 0.13 + 0.035 * (1 - t * t)), (-1, 1), 9, colour, 1.4)
        sketch.curve(lambda t, s=side: (s * (0.2 + 0.16 * t), sketch.nose_tip + 0.03 + 0.3 * t), (0, 1), 6, colour, 1 + 2 * age)
        for row in range(3 if age > 0.55 else 0):
            sketch.curve(
                lambda t, s=side, r=row: (s * t * 0.45, -0.46 - 0.07 * r - 0.02 * np.cos(3 * t)), (0, 1), 8, colour, 1.4
            )


def draw_nose(sketch: Sketch) -> None:
    """Draw nostrils and the sides of the nose."""
    width, tip = sketch.nose_width, sketch.nose_tip
    for side in (-1, 1):
        sketch.ellipse(side * width * 0.55, tip + 0.045, 0.045, 0.022, mix(sketch.shadow, (20, 5, 5), 0.4))

        def wing(t, side=side):
            return side * width * (0.9 + 0.25 * np.sin(t)), tip - 0.04 + 0.07 * t / 3

        sketch.curve(wing, (0, 3), 8, sketch.shadow, 1.6)


def draw_mouth(sketch: Sketch, openness: float) -> None:
    """Draw lips, and teeth where the mouth is open."""
    person, v = sketch.person, 0.56
    width, lip, gap = 0.27 + 0.1 * person.build, 0.035 + 0.05 * person.pitch - 0.012 * person.age, 0.11 * openness
    red = mix(mix(sketch.skin, (190, 60, 70), 0.25 + 0.55 * person.pitch), sketch.shadow, 0.15)
    above = sketch.skin if sketch.beard < 0.1 else mix(sketch.skin, sketch.hair, 0.5 * sketch.beard)
    sketch.ellipse(0, v + gap * 0.5, width * (1 - 0.15 * openness), lip + gap, red)
    sketch.ellipse(0, v - lip, width * 0.28, 0.018, above)
    sketch.ellipse(0, v + gap * 0.5, width * 0.82, max(0.006, gap), (55, 15, 18))
    if gap > 0.03:
        sketch.ellipse(0, v - gap * 0.25, width * 0.6, gap * 0.3, (235, 232, 225))


def draw_glasses(sketch: Sketch) -> None:
    """Draw glasses on every fourth person."""
    if sketch.person.glasses <= 0.75:
        return
    (u, v), colour = sketch.eye, (25, 25, 30)
    for side in (-1, 1):
        sketch.ellipse(side * u, v + 0.02, 0.27, 0.18, colour, 2)
        sketch.curve(lambda t, s=side: (s * (u + 0.27 + (0.73 - u) * t), v - 0.05 * t), (0, 1), 2, colour, 2)
    sketch.curve(lambda t: (t * (u - 0.27), v), (-1, 1), 2, colour, 2)


def draw_faces(person: Person, expressions, centre, grain_seed: int) -> list[np.ndarray]:
    """Draw a person once for each expression.

    Args:
        expressions: pairs (opening of the mouth, opening of the eyes), each in [0, 1].
        centre: (x, y) of the face, pixels.
        grain_seed: seed for the grain of skin and hair.

    Returns:
        List of uint8 (HEIGHT, WIDTH, 3), RGB.
    """
    sketch = Sketch(person, centre, grain_seed)
    draw_body(sketch)
    draw_head(sketch)
    draw_fringe(sketch)
    still = sketch.image
    images = []
    for mouth_open, eyes_open in expressions:
        sketch.image = still.copy()
        draw_eyes(sketch, eyes_open)
        draw_lines(sketch)
        draw_nose(sketch)
        draw_mouth(sketch, mouth_open)
        draw_glasses(sketch)
        images.append(cv2.GaussianBlur(sketch.image, (0, 0), 0.7))
    return images


# ----------------------------------------------------------------------------------------------------------------------
# Clips.


def make_clip(seed: int, number: int, video: int, videos: Path) -> tuple:
    """Make one of a person's clips, the first being video 0: <videos>/<clip>.mp4.

    Returns:
        The row of the csv: id, start s, end s, and the centre of the face as a fraction of width and height.
    """
    rng = np.random.default_rng([seed, number])
    person = sample_person(rng)
    rng = np.random.default_rng([seed, number, video]) if video else rng
    seconds = float(rng.uniform(5, 7))
    start = round(float(rng.uniform(0, 300)) + 310 * video, 6)
    centre = float(rng.uniform(0.3, 0.7)) * WIDTH, float(rng.uniform(0.46, 0.52)) * HEIGHT
    sound, loudness = synthesise(person, seconds, rng)
    video_id = f"demo-{seed}-{number:04d}"
    end = round(start + len(sound) / SAMPLE_RATE, 6)

    grain = int(rng.integers(2**32))
    talking = [(step / (MOUTH_STEPS - 1), 1) for step in range(MOUTH_STEPS)]
    *mouths, blink = draw_faces(person, [*talking, (0.2, 0)], centre, grain)
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
    n_workers = options.workers or workers.n_processors()
    with concurrent.futures.ProcessPoolExecutor(n_workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        numbers = itertools.product(range(options.people), range(options.videos_each))
        jobs = [pool.submit(make_clip, options.seed, *of_clip, videos) for of_clip in numbers]
        for job in tqdm(concurrent.futures.as_completed(jobs), "make_demo", len(jobs), unit="clip", disable=None):
            job.result()
    table = options.out / "avspeech_demo.csv"
    with replacing(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(job.result() for job in jobs)
    n_clips = f"{len(jobs)} clip{'s' * (len(jobs) != 1)}"
    print(f"make_demo: {n_clips} in {videos}, listed in {table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
