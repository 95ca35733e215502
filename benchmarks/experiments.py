"""The experiments behind the README's results.

    python tests/experiments.py split --run base

prints what one run's last weights score on people that they never met, and on the tenth of the clips that the slides' project
would have held out: the end of `list(set(ids))`, which is another one in each process.

    python tests/experiments.py ears --data data/page

trains the paper's encoder from scratch and the pretrained one in several ways, each on the splits of several seeds, and prints
how they find unseen people: all test voices of all splits together, with 95 % intervals by bootstrap over videos. Nothing is
chosen by these figures. A run that is in --runs already is not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import model
import utils
from clips import feature_files
from judging.intervals import mean_interval, median_interval
from judging.ranks import rank, recall_at_k
from training import runs
from training.batches import predict_features

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SPEAKER = ("--encoder", "speaker")
EARS = {
    "conv, from scratch": ("--width", "0.125", "--seconds", "3", "--epochs", "10"),
    "speaker, plain ridge": (*SPEAKER, "--whitening", "0"),
    "speaker, as it is by default": SPEAKER,
    **{f"the same, {n} clips": (*SPEAKER, "--clips", str(n)) for n in (50, 100, 200, 400)},
}
PLAIN = "speaker, plain ridge"  # what the others are compared with
KS = (1, 5, 10)


def hear_test_people(folder: Path):
    """Rank the test people of a run. Returns the Ranking, and their videos."""

    run = runs.read_run(folder)
    data, size = Path(run["data"]), run["feature_size"]
    clips = utils.split_clips(feature_files.ready_clips(data), run["seed"])["test"]
    centre = feature_files.load_array(folder / utils.CENTRE, np.float32, (size,))
    voices, faces = predict_features(runs.load_encoder(folder, run), data, clips, size, 8)
    videos = [utils.video_of(clip) for clip in clips]
    return rank(voices - centre, faces - centre, videos), videos


def ears(options) -> None:
    """Compare encoders on unseen people, over several splits."""

    rankings = {}
    for number, (name, arguments) in enumerate(EARS.items()):
        for seed in options.seeds:
            folder = options.runs / f"{number}-{seed}"
            if not (folder / utils.BEST_WEIGHTS).exists():
                command = ["train.py", "--data", options.data, "--run", folder, "--seed", seed, *arguments]
                subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=sys.stderr)
            ranking, videos = hear_test_people(folder)
            rankings.setdefault(name, []).append((ranking, videos))
    galleries = [ranking.gallery for ranking, _ in rankings[PLAIN]]
    videos = [video for _, of_seed in rankings[PLAIN] for video in of_seed]  # the same for all, in the same order
    plain = np.concatenate([ranking.matching for ranking, _ in rankings[PLAIN]])

    def cell(values, digits="{:.1f}", mean=np.mean, interval=mean_interval):
        low, high = (digits.format(100 * limit) for limit in interval(values, videos))
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


def split(options) -> None:
    """Score one encoder on people that it never met, and on the end of `list(set(ids))`, as the slides' project does."""

    folder = utils.run_folder(options.run)
    run = runs.read_run(folder)
    data, size = Path(run["data"]), run["feature_size"]
    centre = feature_files.load_array(folder / utils.CENTRE, np.float32, (size,))
    encoder = model.build_encoder(run["encoder"], size, run["width"])
    model.load_weights(encoder, folder / utils.LAST_WEIGHTS)
    clips = feature_files.ready_clips(data)
    voices, faces = (features - centre for features in predict_features(encoder, data, clips, size, 8))

    def score(chosen):
        numbers = [clips.index(clip) for clip in chosen]
        ranks = rank(voices[numbers], faces[numbers], [utils.video_of(clip) for clip in chosen]).ranks
        return [*(100 * recall_at_k(ranks, k) for k in (1, 5, 10)), np.median(ranks)]

    honest = utils.split_clips(clips, run["seed"])["test"]
    code = "import json, sys; ids = list(set(json.load(sys.stdin))); print(json.dumps(ids[-int(sys.argv[1]) :]))"
    accidental, known = [], []
    for _ in range(options.processes):
        command = [sys.executable, "-c", code, str(len(honest))]
        done = subprocess.run(command, input=json.dumps(clips), stdout=subprocess.PIPE, text=True, check=True)
        chosen = json.loads(done.stdout)
        accidental.append(score(chosen))
        known.append(np.mean([clip in run["clips"]["train"] for clip in chosen]))
    print(f"{'recall in %, gallery ' + str(len(honest)):50}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median rank':>13}")
    for name, row in (
        ("people that it never met", score(honest)),
        (
            f"list(set(ids)), mean of {options.processes} processes, {100 * np.mean(known):.0f} % known",
            np.mean(accidental, axis=0),
        ),
    ):
        print(f"{name:50}" + "".join(f"{value:8.1f}" for value in row[:3]) + f"{row[3]:13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("split", help=split.__doc__)
    command.set_defaults(call=split)
    command.add_argument("--run", required=True, help="of train.py: its last weights")
    command.add_argument("--processes", type=int, default=20, help="that cut the split (default: 20)")
    command = commands.add_parser("ears", help=ears.__doc__)
    command.set_defaults(call=ears)
    command.add_argument("--data", type=Path, required=True, help="folder that preprocess.py wrote")
    command.add_argument("--runs", type=Path, default=ROOT / "checkpoints" / "ears", help="folder for the runs")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the splits (default: 0 1 2 3 4)")
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
