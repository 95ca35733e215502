"""The paper's encoder from scratch and the pretrained one in several ways, each on the splits of several seeds.

Prints how well they find unseen speakers: the test voices of all splits together, with 95 % intervals by bootstrap over videos.
Nothing is chosen by these figures. A run that is in --runs already is not trained again.

    python -m benchmarks encoders --data data/page
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np

import utils
from benchmarks.measuring import ROOT
from clips import feature_files
from judging.intervals import mean_interval, median_interval, resample
from judging.ranks import rank
from training import runs
from training.batches import predict_features

SPEAKER = ("--encoder", "speaker")
ENCODERS = {
    "conv, from scratch": ("--width", "0.125", "--seconds", "3", "--epochs", "10"),
    "speaker, plain ridge": (*SPEAKER, "--whitening", "0"),
    "speaker, defaults": SPEAKER,
    **{f"the same, {n} clips": (*SPEAKER, "--clips", str(n)) for n in (50, 100, 200, 400)},
}
PLAIN = "speaker, plain ridge"  # the one that the others are compared with
KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path = utils.option("folder that preprocess.py wrote", metavar="FOLDER")
    runs: Path = utils.option("folder for the runs", utils.CHECKPOINTS / "encoders", metavar="FOLDER")
    seeds: tuple[int, ...] = utils.option("seeds of the splits", (0, 1, 2, 3, 4), nargs="+", metavar="SEED")


def rank_unseen_speakers(folder: Path):
    """Rank the true faces for the test part of a run. Returns the Ranking, and the video of each clip."""
    run = runs.read_run(folder)
    data, size, centre = Path(run["data"]), run["feature_size"], run["centre"]
    clips = utils.split_clips(feature_files.ready_clips(data), run["seed"])["test"]
    voices, faces = predict_features(runs.load_encoder(folder, run), data, clips, size, 8)
    videos = [utils.video_of(clip) for clip in clips]
    return rank(voices - centre, faces - centre, videos), videos


def run(options: Options) -> None:
    rankings = {}
    for number, (name, arguments) in enumerate(ENCODERS.items()):
        for seed in options.seeds:
            folder = (options.runs / f"{number}-{seed}").absolute()
            if not (folder / utils.BEST_WEIGHTS).exists():
                command = ["train.py", "--data", options.data.absolute(), "--run", folder, "--seed", seed, *arguments]
                subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=sys.stderr)
            rankings.setdefault(name, []).append(rank_unseen_speakers(folder))
    galleries = [ranking.gallery for ranking, _ in rankings[PLAIN]]
    videos = [video for _, of_seed in rankings[PLAIN] for video in of_seed]  # the same for all encoders, in the same order
    resamples = resample(videos)
    plain = np.concatenate([ranking.matching for ranking, _ in rankings[PLAIN]])

    def cell(values, digits="{:.1f}", mean=np.mean, interval=mean_interval):
        low, high = (digits.format(100 * limit) for limit in interval(values, resamples))
        return f"{digits.format(100 * mean(values))} ({low} to {high})"

    print("| | 1:2 in % | over plain ridge | median rank, % of the gallery | R@1 | R@5 | R@10 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, of_seeds in rankings.items():
        matching, ranks = (np.concatenate([getattr(ranking, of) for ranking, _ in of_seeds]) for of in ("matching", "ranks"))
        places = ranks / np.repeat(galleries, galleries)
        gain = "" if name == PLAIN else cell(matching - plain, "{:+.1f}")
        median = cell(places, mean=np.median, interval=median_interval)
        recall = " | ".join(f"{100 * np.mean(ranks <= k):.1f}" for k in KS)
        print(f"| {name} | {cell(matching)} | {gain} | {median} | {recall} |")
    print(f"{len(videos)} voices in galleries of {', '.join(map(str, galleries))}; chance: 1:2 50, median rank 50, ", end="")
    print(", ".join(f"R@{k} {100 * k * len(galleries) / len(videos):.1f}" for k in KS))
    print("means over the seeds:")
    for name, of_seeds in rankings.items():
        matching = np.mean([ranking.matching.mean() for ranking, _ in of_seeds])
        median = np.mean([np.median(ranking.ranks) / ranking.gallery for ranking, _ in of_seeds])
        print(f"    {name}: 1:2 {100 * matching:.1f} %, median rank {100 * median:.1f} % of the gallery")
