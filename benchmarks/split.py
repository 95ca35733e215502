"""The slides' accidental split: one encoder on unseen speakers, and on clips that the slides' project would have held out.

Prints the recall of a run's last weights on its test part, and on the last tenth of `list(set(ids))`. That tenth differs from
process to process, so that the run was trained on most of its clips.

    python -m benchmarks split --run base
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import model
import utils
from clips import feature_files, splits
from judging.ranks import rank, recall_at_k
from training import runs
from training.batches import predict_features

KS = (1, 5, 10)
CODE = "import json, sys; ids = list(set(json.load(sys.stdin))); print(json.dumps(ids[-int(sys.argv[1]) :]))"


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = utils.option("run of train.py, whose last weights are used", metavar="RUN")
    processes: int = utils.option("processes that split the clips, each in its own way", 20, metavar="N")

    def __post_init__(self):
        utils.check(self.processes >= 1, f"--processes: expected at least 1, found {self.processes}")


def run(options: Options) -> None:
    folder = utils.existing_run(options.run)
    run = runs.read_run(folder)
    data, size, centre = Path(run["data"]), run["feature_size"], run["centre"]
    encoder = model.build_encoder(run["encoder"], size, run["width"], run["embedding"])
    model.load_weights(encoder, folder / utils.LAST_WEIGHTS)
    clips = feature_files.ready_clips(data)
    voices, faces = (features - centre for features in predict_features(encoder, data, clips, size, 8))

    def score(chosen):
        numbers = [clips.index(clip) for clip in chosen]
        ranks = rank(voices[numbers], faces[numbers], [utils.person_of(clip) for clip in chosen]).ranks
        return [*(100 * recall_at_k(ranks, k) for k in KS), np.median(ranks)]

    unseen = splits.divide(run["split"], clips)["test"]
    accidental, known = [], []
    for _ in range(options.processes):
        command = [sys.executable, "-c", CODE, str(len(unseen))]
        done = subprocess.run(command, input=json.dumps(clips), stdout=subprocess.PIPE, text=True, check=True)
        chosen = json.loads(done.stdout)
        accidental.append(score(chosen))
        known.append(np.mean([clip in run["clips"]["train"] for clip in chosen]))
    name = f"list(set(ids)), mean of {options.processes} processes, {100 * np.mean(known):.0f} % trained on"
    rows = {"unseen speakers": score(unseen), name: np.mean(accidental, axis=0)}
    print(f"{'recall in %, gallery ' + str(len(unseen)):55}" + "".join(f"{f'R@{k}':>8}" for k in KS) + f"{'median rank':>13}")
    for name, row in rows.items():
        print(f"{name:55}" + "".join(f"{value:8.1f}" for value in row[:-1]) + f"{row[-1]:13.1f}")
