"""One epoch."""

import contextlib
import json
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from judging import plots
from judging.ranks import chance_at_k, rank, recall_at_k
from training.batches import predict_features
from training.runs import Progress
from utils import InputError
from voices.backend import tf

RECALL_AT = (1, 5, 10)


# ----------------------------------------------------------------------------------------------------------------------
# Training.


@contextlib.contextmanager
def noting_signals():
    """Give a list that receives SIGINT (Ctrl-C) and SIGTERM while the block runs; the second one acts as usual."""
    received = []

    def note(number, _):
        received.append(number)
        restore()
        print("\ntrain: ends after this step and its checkpoint", file=sys.stderr)

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        restore()


def validate(encoder, loss, centre: np.ndarray, data: Path, clips: list[str], batch_size: int) -> dict:
    """Score the encoder on validation people. Returns what history.jsonl says of them. Raises InputError."""

    voices, faces = predict_features(encoder, data, clips, len(centre), batch_size)
    if not np.isfinite(voices).all():
        raise InputError(
            "the features predicted for validation are not finite after this epoch, expected finite numbers; "
            "try a lower --learning-rate or --precision float32"
        )
    starts = range(0, len(clips), batch_size)
    clip_losses = [loss(faces[i : i + batch_size], voices[i : i + batch_size]) for i in starts]
    ranking = rank(voices - centre, faces - centre, [utils.video_of(clip) for clip in clips])
    return {
        "val_loss": float(np.mean(np.concatenate(clip_losses))),
        "val_gallery": len(clips),
        "val_recall": {str(k): recall_at_k(ranking.ranks, k) for k in RECALL_AT},
        "val_chance": {str(k): chance_at_k(ranking, k) for k in RECALL_AT},
        "val_median_rank": float(np.median(ranking.ranks)),
        "val_matching": float(ranking.matching.mean()),
    }


def train_epoch(step, batches, errors: list, progress: Progress, n_steps: int, save, save_minutes: float, stopping) -> None:
    """Train to the end of the epoch in which `progress` stands.

    Args:
        step: `steps.training_step`.
        batches, errors: `batches.training_batches`.
        progress: is moved on.
        n_steps: of an epoch.
        save: function that writes a checkpoint.
        save_minutes: time between checkpoints.
        stopping: `noting_signals`.

    Raises:
        InputError: if the loss is not finite, or a file is broken.
        KeyboardInterrupt: if a signal asked for the end, after a checkpoint.
    """

    epoch, done = divmod(progress.step, n_steps)
    saved = time.monotonic()
    with tqdm(desc=f"epoch {epoch + 1}", initial=done, total=n_steps, unit="step", leave=False, disable=None) as bar:
        for number in range(done + 1, n_steps + 1):
            started = time.perf_counter()
            try:
                batch = next(batches)
            except tf.errors.OpError as error:
                save()
                raise (errors or [error])[0] from None
            waited = time.perf_counter() - started
            loss = float(step(batch))
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss of epoch {epoch + 1}, step {number} is {loss}, expected a finite number; "
                    "try a lower --learning-rate or --precision float32"
                )
            progress.step += 1
            progress.loss_sum += loss
            progress.waiting_seconds += waited
            progress.seconds += time.perf_counter() - started
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            tf.summary.scalar("loss of a step", loss, progress.step)
            if number < n_steps:  # after the last one comes the validation, then a checkpoint
                if stopping:
                    save()
                    raise KeyboardInterrupt
                if time.monotonic() - saved >= 60 * save_minutes:
                    save()
                    saved = time.monotonic()


def record_of_epoch(progress: Progress, n_steps: int, n_clips: int, learning_rate: float, validation: dict) -> dict:
    """Return what history.jsonl says of the epoch that has ended; add it to the progress, which then stands in the next."""
    record = {
        "epoch": progress.step // n_steps,
        "step": progress.step,
        "train_loss": progress.loss_sum / n_steps,
        **validation,
        "learning_rate": learning_rate,
        "seconds": round(progress.seconds, 2),
        "clips_per_second": round(n_clips / progress.seconds, 2),
        "input_share": round(progress.waiting_seconds / progress.seconds, 4),
    }
    progress.loss_sum = progress.seconds = progress.waiting_seconds = 0.0
    progress.history.append(record)
    return record


def line_of_epoch(record: dict, n_epochs: int) -> str:
    """Set a record of history.jsonl as one line."""
    k = RECALL_AT[1]
    return (
        f"epoch {record['epoch']:2}/{n_epochs}  train {record['train_loss']:.4f}  val {record['val_loss']:.4f}  "
        f"R@{k} {100 * record['val_recall'][str(k)]:.1f} % of {record['val_gallery']}  "
        f"median rank {record['val_median_rank']:g}  1:2 {100 * record['val_matching']:.1f} %  "
        f"lr {record['learning_rate']:.1e}  {record['seconds']:.1f} s  "
        f"{record['clips_per_second']:.1f} clips/s, {100 * record['input_share']:.1f} % waiting for them"
    )


def write_epoch(folder: Path, history: list[dict]) -> None:
    """Write history.jsonl and curves.png, and the last epoch for TensorBoard."""

    with utils.replacing(folder / utils.HISTORY) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
    plots.draw_curves(folder / "curves.png", history)
    last = history[-1]
    scalars = {name: value for name, value in last.items() if isinstance(value, float)}
    scalars |= {f"val_recall_at_{k}": recall for k, recall in last["val_recall"].items()}
    for name, value in scalars.items():
        tf.summary.scalar(name, value, last["step"])
