"""The paper's encoder from scratch and pretrained ones in several ways, each on the splits of several seeds.

Prints how well they find unseen speakers: the test voices of all splits together, with 95 % intervals by bootstrap over people.
With --authors also how well the paper's own pictures of the same voices do, FOLDER/voice_to_face/<clip>.jpg. Voices whose
picture has no face that dlib finds are then left out of all rows. Nothing is chosen by these figures. A run that is in --runs
already is not trained again.

    python -m benchmarks encoders --data data/page
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np

import utils
from benchmarks.authors import CENTRE_CLIPS, published_features
from benchmarks.measuring import ROOT
from clips import feature_files, splits
from judging.intervals import mean_interval, median_interval, resample
from judging.ranks import rank
from training import runs
from training.batches import predict_features

SPEAKER = ("--encoder", "speaker")
ENCODERS = {
    "conv, from scratch": ("--width", "0.125", "--seconds", "3", "--epochs", "10"),
    "GE2E": (*SPEAKER, "--embedding", "ge2e"),
    "CAM++": (*SPEAKER, "--embedding", "campplus"),
    "both, plain ridge": (*SPEAKER, "--whitening", "0"),
    "both, default options": SPEAKER,
    **{f"the same, {n} clips": (*SPEAKER, "--clips", str(n)) for n in (50, 100, 200, 400)},
}
GE2E = "GE2E"  # the one that the others are compared with
AUTHORS = "the paper's own pictures"
KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path = utils.option("folder that preprocess.py wrote", metavar="FOLDER")
    runs: Path = utils.option("folder for the runs", utils.CHECKPOINTS / "encoders", metavar="FOLDER")
    seeds: tuple[int, ...] = utils.option("seeds of the splits", (0, 1, 2, 3, 4), nargs="+", metavar="SEED")
    authors: Path | None = utils.option("folder of the paper's own pictures of the clips", None, metavar="FOLDER")


def rank_unseen_speakers(folder: Path):
    """Rank the true faces for the test part of a run. Returns the Ranking, and the person of each clip."""
    run = runs.read_run(folder)
    data, size, centre = Path(run["data"]), run["feature_size"], run["centre"]
    clips = splits.divide(run["split"], feature_files.ready_clips(data))["test"]
    voices, faces = predict_features(runs.load_encoder(folder, run), data, clips, size)
    people = [utils.person_of(clip) for clip in clips]
    return rank(voices - centre, faces - centre, people), people


def rank_published(authors: Path, folder: Path):
    """Rank the true faces of the same clips by the paper's own pictures.

    Returns:
        The Ranking, in the same gallery, and for each clip whether its picture has a face, bool (N,).
    """
    run = runs.read_run(folder)
    data, size, centre = Path(run["data"]), run["feature_size"], run["centre"]
    clips = splits.divide(run["split"], feature_files.ready_clips(data))["test"]
    training = utils.sample_clips(run["clips"]["train"], CENTRE_CLIPS, run["seed"])
    features, of_training = (published_features(authors, "voice_to_face", names) for names in (clips, training))
    voices = np.nan_to_num(features - np.nanmean(of_training, axis=0))  # pictures have a mean of their own
    faces = np.stack([feature_files.load_embedding(data, clip, size) for clip in clips])
    return rank(voices, faces - centre, [utils.person_of(clip) for clip in clips]), np.isfinite(features[:, 0])


def run(options: Options) -> None:
    rankings = {}
    for number, (name, arguments) in enumerate(ENCODERS.items()):
        for seed in options.seeds:
            folder = (options.runs / f"{number}-{seed}").absolute()
            if not (folder / utils.BEST_WEIGHTS).exists():
                command = ["train.py", "--data", options.data.absolute(), "--run", folder, "--seed", seed, *arguments]
                subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=sys.stderr)
            rankings.setdefault(name, []).append(rank_unseen_speakers(folder))
    galleries = [ranking.gallery for ranking, _ in rankings[GE2E]]
    people = np.array([person for _, of_seed in rankings[GE2E] for person in of_seed])  # in the same order for all encoders
    rankings = {name: [ranking for ranking, _ in of_seeds] for name, of_seeds in rankings.items()}
    kept = np.full(len(people), True)
    if options.authors:
        number = list(ENCODERS).index(GE2E)
        published = [rank_published(options.authors, options.runs / f"{number}-{seed}") for seed in options.seeds]
        rankings[AUTHORS] = [ranking for ranking, _ in published]
        kept = np.concatenate([has_face for _, has_face in published])
    resamples = resample(people[kept])
    matching, ranks = (
        {name: np.concatenate([getattr(ranking, of) for ranking in of_seeds])[kept] for name, of_seeds in rankings.items()}
        for of in ("matching", "ranks")
    )
    places = np.repeat(galleries, galleries)[kept]  # size of the gallery that each voice searches

    def cell(values, digits="{:.1f}", mean=np.mean, interval=mean_interval):
        low, high = (digits.format(100 * limit) for limit in interval(values, resamples))
        return f"{digits.format(100 * mean(values))} ({low} to {high})"

    references = [name for name in (GE2E, AUTHORS) if name in rankings]
    print(f"| | 1:2 in % |{''.join(f' over {name} |' for name in references)} median rank, % of the gallery |", end="")
    print("".join(f" R@{k} |" for k in KS))
    print("| --- |" + " ---: |" * (2 + len(references) + len(KS)))
    for name in rankings:
        gains = ["" if name == other else cell(matching[name] - matching[other], "{:+.1f}") for other in references]
        median = cell(ranks[name] / places, mean=np.median, interval=median_interval)
        recall = " | ".join(f"{100 * np.mean(ranks[name] <= k):.1f}" for k in KS)
        print(f"| {name} | {cell(matching[name])} | {' | '.join(gains)} | {median} | {recall} |")
    chance = ", ".join(f"R@{k} {100 * np.mean(k / places):.1f}" for k in KS)
    print(f"{kept.sum()} of {len(kept)} voices in galleries of {', '.join(map(str, galleries))}; chance: 1:2 50, ", end="")
    print(f"median rank 50, {chance}")
    print("means over the seeds:")
    for name, of_seeds in rankings.items():
        of_seed = [100 * ranking.matching.mean() for ranking in of_seeds]
        median = np.mean([np.median(ranking.ranks) / ranking.gallery for ranking in of_seeds])
        print(f"    {name}: 1:2 {np.mean(of_seed):.1f} % ({', '.join(f'{value:.1f}' for value in of_seed)}), ", end="")
        print(f"median rank {100 * median:.1f} % of the gallery")
