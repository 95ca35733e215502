"""What a run that was made to be shared tells of its training people, and whether its certainty is right.

With --photos, the data of the face decoder: whether a component or the mean of the decoder's textures correlates more with
photos that it was fitted to than with photos of unseen people, and whether the components rebuild the former better. With
--voices, runs of voice encoders, each on its own split: whether the 1:2 matching that is expected of each unseen voice
comes true, and whether several speakers in a recording are told. By the first of them also how much closer a prediction is to a
face that the encoder was fitted to.

    python -m benchmarks shared --run checkpoints/pretrained --photos data/photos --voices seed-0 seed-1 seed-2 seed-3 seed-4
"""

import dataclasses
from pathlib import Path

import numpy as np

import model
import utils
from clips import feature_files, splits
from faces import textures
from judging import intervals
from judging.ranks import rank
from listening import certainty
from training import runs
from training.batches import predict_features

MOST_PHOTOS = 400  # of each kind
GROUPS = 3  # of voices, by what is expected of them
PAIRS = 300  # recordings of two speakers


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = utils.option("folder that share.py wrote, as a path", metavar="FOLDER")
    photos: Path | None = utils.option("folder of the photos that the face decoder was fitted to", None, metavar="FOLDER")
    voices: tuple[str, ...] = utils.option("runs of voice encoders, each on its own split", (), nargs="+", metavar="RUN")

    def __post_init__(self):
        utils.check(bool(self.photos or self.voices), "--photos: expected some, or --voices, found neither")


def advantage(seen: np.ndarray, unseen: np.ndarray) -> tuple[float, float, float]:
    """Return how often a number of a seen person exceeds that of an unseen one, chance is 0.5, and its 95 % interval."""

    def area(a, b):
        order = np.argsort(np.argsort(np.concatenate([a, b])))
        return (order[: len(a)].sum() - len(a) * (len(a) - 1) / 2) / (len(a) * len(b))

    rng = np.random.default_rng(0)
    resampled = [area(rng.choice(seen, len(seen)), rng.choice(unseen, len(unseen))) for _ in range(intervals.RESAMPLES)]
    return area(seen, unseen), *np.percentile(resampled, intervals.INTERVAL)


def photos(folder: Path, data: Path) -> None:
    """Compare photos that the decoder was fitted to with photos of unseen people."""
    run = runs.read_run(folder, "decoder")
    network = runs.load_decoder(folder, run)
    reference = network.get_layer("warp").get_weights()[0]
    basis, mean = network.get_layer("texture_basis").get_weights()  # (R, M), (M,)
    ready = feature_files.ready_faces(data)
    parts = {"seen": runs.seen_clips(run, ready)["train"], "unseen": splits.divide(run["split"], ready)["test"]}
    parts = {name: utils.sample_clips(clips, MOST_PHOTOS, 0) for name, clips in parts.items()}
    directions = utils.normalise(np.vstack([basis, mean - mean.mean()]))
    components = np.linalg.qr(basis.T)[0]  # (M, R)
    found = {}
    for name, clips in parts.items():
        whole = np.stack([textures.texture_of_file(clip, data, reference)[0] for clip in clips]).astype(np.float32)
        half = whole - mean
        inside = half @ components
        found[name] = {
            "largest correlation with a component": np.abs(utils.normalise(half) @ directions[:-1].T).max(axis=1),
            "correlation with the mean": utils.normalise(whole - whole.mean(axis=1, keepdims=True)) @ directions[-1],
            "share that the components rebuild": (inside**2).sum(axis=1) / (half**2).sum(axis=1),
        }
    print(f"photos: {len(parts['seen'])} that the decoder was fitted to, {len(parts['unseen'])} of unseen people")
    for measure in found["seen"]:
        seen, unseen = (found[name][measure] for name in ("seen", "unseen"))
        share, low, high = advantage(seen, unseen)
        print(f"  {measure}: medians {np.median(seen):.3f} and {np.median(unseen):.3f}, ", end="")
        print(
            f"largest {seen.max():.3f} and {unseen.max():.3f}; larger for a seen one in {100 * share:.1f} % of pairs ", end=""
        )
        print(f"({100 * low:.1f} to {100 * high:.1f}; 50 where nothing is told)", flush=True)


def voices_of(folder: Path, part: str):
    """Return clips of a part of a run's split, their predictions and faces as seen from the centre, and halves' embeddings."""
    run = runs.read_run(folder)
    data, size = Path(run["data"]), run["feature_size"]
    ready = feature_files.ready_clips(data)
    clips = splits.divide(run["split"], ready)["test"] if part == "test" else runs.seen_clips(run, ready)[part]
    encoder = runs.load_encoder(folder, run)
    predicted, faces = predict_features(encoder, data, clips, size)
    halves, _ = predict_features(model.of_halves(encoder), data, clips, size)
    return clips, predicted - run["centre"], faces - run["centre"], halves.reshape(len(clips), 2, -1)


def calibration(folders: list[Path]) -> None:
    """Compare the matching that is expected of unseen voices with that found, and see whether two speakers are told."""
    expected, true, people, alarms, told = [], [], [], [], []
    rng = np.random.default_rng(0)
    for folder in folders:
        clips, voices, faces, halves = voices_of(folder, "test")
        known = certainty.load(folder / utils.CERTAINTY)
        judged = [known.judge(of_clip, np.linalg.norm(voice)) for of_clip, voice in zip(halves, voices)]
        names = [utils.person_of(clip) for clip in clips]
        expected += [of_voice.matching for of_voice in judged]
        true += rank(voices, faces, names).matching.tolist()
        people += names
        alarms += [of_voice.several_speakers for of_voice in judged]
        for _ in range(PAIRS // len(folders)):
            first, second = rng.choice(len(clips), 2, replace=False)
            if names[first] != names[second]:
                told.append(known.judge(np.concatenate([halves[first], halves[second]]), 1.0).several_speakers)
    expected, true = np.array(expected), np.array(true)
    order = np.array_split(np.argsort(expected, kind="stable"), GROUPS)
    print(f"certainty: {len(true)} unseen voices of {len(folders)} splits; 1:2 matching in %")
    for name, chosen in [("all", np.arange(len(true))), *((f"third {number}", of) for number, of in enumerate(order, 1))]:
        low, high = intervals.mean_interval(true[chosen], intervals.resample([people[number] for number in chosen]))
        print(f"  {name}: expected {100 * expected[chosen].mean():.1f}, found {100 * true[chosen].mean():.1f} ", end="")
        print(f"({100 * low:.1f} to {100 * high:.1f})", flush=True)
    print(f"  several speakers: told of {sum(alarms)} of {len(alarms)} clips of 6 s of one speaker, ", end="")
    print(f"and of {sum(told)} of {len(told)} pairs of clips of two speakers", flush=True)


def closeness(folder: Path) -> None:
    """Compare the cosines of predictions and true faces of speakers that an encoder was fitted to with those of unseen ones."""
    cosines = {}
    for part in ("train", "test"):
        _, voices, faces, _ = voices_of(folder, part)
        cosines[part] = np.einsum("nd,nd->n", utils.normalise(voices), utils.normalise(faces))
    share, low, high = advantage(cosines["train"], cosines["test"])
    seen, unseen = (np.median(cosines[part]) for part in ("train", "test"))
    print(f"voices: cosine of prediction and true face, medians {seen:.2f} of {len(cosines['train'])} clips that ", end="")
    print(f"the encoder was fitted to, {unseen:.2f} of {len(cosines['test'])} unseen ones; larger for a seen one in ", end="")
    print(f"{100 * share:.1f} % of pairs ({100 * low:.1f} to {100 * high:.1f})", flush=True)


def run(options: Options) -> None:
    """Run the benchmark."""
    if options.photos:
        photos(utils.run_folder(options.run) / utils.DECODER_RUN, options.photos)
    if options.voices:
        folders = [utils.existing_run(name) for name in options.voices]
        calibration(folders)
        closeness(folders[0])
