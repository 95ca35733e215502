"""Epochs of the voice encoder: training, validation, and what is written and printed after each epoch."""

import collections
import contextlib
import json
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import model
import utils
from judging import plots
from judging.ranks import chance_at_k, rank, recall_at_k
from training.batches import person_numbers, predict_features
from training.runs import Progress
from utils import InputError
from voices.backend import tf

RECALL_AT = (1, 5, 10)
UNSEEN_CLIPS = 600  # by which certainty is measured, at most
LATE_STEPS = 2  # steps between a step and the reading of its loss
TIMED_STEPS = 2, 3  # steps of a process whose mean time predicts that of an epoch; the first step includes compilation


# ----------------------------------------------------------------------------------------------------------------------
# Training and validation.


@contextlib.contextmanager
def noting_signals():
    """Yield a list that receives SIGINT (Ctrl-C) and SIGTERM while the block runs; a second signal acts as usual."""
    received = []

    def note(number, _):
        received.append(number)
        restore()
        print("\ntrain: stops after this step and its checkpoint", file=sys.stderr)

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        restore()


def train_epoch(
    step, batches, errors: list, progress: Progress, n_steps: int, save, save_minutes: float, stops, timed=None
) -> None:
    """Train to the end of the epoch in which `progress` stands.

    A loss is read LATE_STEPS after its step, while the device computes: to read it at once would let the device wait.

    Args:
        step: `steps.training_step`.
        batches, errors: `batches.training_batches`.
        progress: is updated.
        n_steps: steps in an epoch.
        save: function that writes a checkpoint.
        save_minutes: time between checkpoints.
        stops: function that returns, once a step and alike on all machines, whether training shall stop.
        timed: function that receives the mean time of TIMED_STEPS, s, or None.

    Raises:
        InputError: if the loss is not finite, or a file is broken.
        KeyboardInterrupt: after a checkpoint, if training shall stop.
    """
    epoch, done = divmod(progress.step, n_steps)
    saved, durations, unread = time.monotonic(), [], collections.deque()
    with tqdm(desc=f"epoch {epoch + 1}", initial=done, total=n_steps, unit="step", leave=False, disable=None) as bar:

        def read_losses(most_unread):
            while len(unread) > most_unread:
                number, loss = unread.popleft()
                loss = float(loss)
                if not math.isfinite(loss):
                    raise InputError(
                        f"the loss of epoch {epoch + 1}, step {number} is {loss}, expected a finite number; "
                        "try a lower --learning-rate or --precision float32"
                    )
                progress.loss_sum += loss
                bar.set_postfix(loss=f"{loss:.3f}")
                tf.summary.scalar("loss of a step", loss, epoch * n_steps + number)

        for number in range(done + 1, n_steps + 1):
            started = time.perf_counter()
            try:
                batch = next(batches)
            except tf.errors.OpError as error:
                read_losses(0)
                save()
                raise (errors or [error])[0] from None
            waited = time.perf_counter() - started
            unread.append((number, step(batch)))
            stopped = stops()
            saving = number < n_steps and (stopped or time.monotonic() - saved >= 60 * save_minutes)
            timing = timed and len(durations) < TIMED_STEPS[-1]
            read_losses(0 if saving or timing or number == n_steps else LATE_STEPS)
            durations.append(time.perf_counter() - started)
            progress.step += 1
            progress.waiting_seconds += waited
            progress.seconds += durations[-1]
            bar.update()
            if timed and len(durations) == TIMED_STEPS[-1]:
                bar.clear()
                timed(float(np.mean(durations[TIMED_STEPS[0] - 1 :])))
            if saving:  # the last step is followed by validation and a checkpoint
                save()
                saved = time.monotonic()
                if stopped:
                    print(f"train: stopped after step {progress.step}", file=sys.stderr)
                    raise KeyboardInterrupt


def validate(predicted, loss, centre: np.ndarray, clips: list[str], batch_size: int) -> dict:
    """Score the predictions for the validation set.

    Args:
        predicted: predicted and true features of the clips, of `batches.predict_features`.
        loss: of `losses.loss_function`.
        centre: origin of the cosines, float32 (D,).
        clips: names of the validation clips.
        batch_size: clips of which the loss takes the mean.

    Returns:
        The entries of history.jsonl that begin with val_.

    Raises:
        InputError: if a prediction is not finite.
    """
    voices, faces = predicted
    if not np.isfinite(voices).all():
        raise InputError(
            "the features predicted for validation are not finite after this epoch, expected finite numbers; "
            "try a lower --learning-rate or --precision float32"
        )
    # In an order of its own, the same after each epoch: in the order of names, the clips of a person would meet in a batch.
    order, people = np.random.default_rng(0).permutation(len(clips)), person_numbers(clips)
    clip_losses = np.empty(len(clips), np.float32)
    for batch in np.array_split(order, math.ceil(len(clips) / batch_size)):
        clip_losses[batch] = loss(faces[batch], voices[batch], people[batch])
    ranking = rank(voices - centre, faces - centre, [utils.person_of(clip) for clip in clips])
    return {
        "val_loss": float(np.mean(clip_losses)),
        "val_gallery": len(clips),
        "val_recall": {str(k): recall_at_k(ranking.ranks, k) for k in RECALL_AT},
        "val_chance": {str(k): chance_at_k(ranking, k) for k in RECALL_AT},
        "val_median_rank": float(np.median(ranking.ranks)),
        "val_matching": float(ranking.matching.mean()),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Records of epochs.


def unseen_voices(encoder, data: Path, unseen, centre: np.ndarray) -> tuple:
    """Return what tells how sure predictions are, for up to UNSEEN_CLIPS clips.

    Args:
        encoder: of `model.build_encoder`, with its weights.
        data: folder that preprocess.py wrote.
        unseen: N names of clips; their features as predicted without training on the clips' people, float32 (N, D); and those
            of their faces.
        centre: float32 (D,), of the run.

    Returns:
        The arguments of `listening.certainty.fit`.
    """
    some = np.unique(np.linspace(0, len(unseen[0]) - 1, UNSEEN_CLIPS).round().astype(int))
    clips, (voices, faces) = [unseen[0][number] for number in some], (features[some] - centre for features in unseen[1:])
    halves, _ = predict_features(model.of_halves(encoder), data, clips, len(centre))
    people = [utils.person_of(clip) for clip in clips]
    matching = rank(voices, faces, people).matching if len(set(people)) > 1 else np.full(len(clips), 0.5)
    lengths = np.linalg.norm(voices, axis=1)
    return halves.reshape(len(clips), 2, -1), lengths, matching, people, model.speaker_columns(encoder)


def record_epoch(progress: Progress, epoch: int, train_loss: float, n_clips: int, learning_rate: float, scores: dict) -> dict:
    """Add the record of a finished epoch to the progress, which then stands at the start of the next epoch.

    Args:
        progress: is updated.
        epoch: its number, from 1; 0 is the closed form.
        train_loss: mean loss of the training clips.
        n_clips: training clips that the epoch has used.
        learning_rate: at the end of the epoch.
        scores: of `validate`.

    Returns:
        The record, a line of history.jsonl.
    """
    record = {
        "epoch": epoch,
        "step": progress.step,
        "train_loss": train_loss,
        **scores,
        "learning_rate": learning_rate,
        "seconds": round(progress.seconds, 2),
        "clips_per_second": round(n_clips / progress.seconds, 2),
        "input_share": round(progress.waiting_seconds / progress.seconds, 4),
    }
    progress.loss_sum = progress.seconds = progress.waiting_seconds = 0.0
    progress.history.append(record)
    return record


def event_writer(folder: Path, n_epochs: int):
    """Return the TensorFlow writer of a run's TensorBoard events; one that writes nothing where there are no epochs."""
    return tf.summary.create_file_writer(str(folder / "tensorboard")) if n_epochs else tf.summary.create_noop_writer()


def write_history(folder: Path, history: list[dict], picture_format: str) -> None:
    """Write history.jsonl, and once there are epochs, their curves and the last one's figures for TensorBoard."""
    with utils.replacing(folder / utils.HISTORY) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
    last = history[-1]
    if last["epoch"] > 0:
        plots.draw_curves(folder / f"curves.{picture_format}", history)
    scalars = {name: value for name, value in last.items() if isinstance(value, float)}
    scalars |= {f"val_recall_at_{k}": recall for k, recall in last["val_recall"].items()}
    for name, value in scalars.items():
        tf.summary.scalar(name, value, last["step"])


def line_of_epoch(record: dict, n_epochs: int) -> str:
    """Format a record of history.jsonl as one line."""
    k = RECALL_AT[1]
    return (
        f"epoch {record['epoch']:2}/{n_epochs}  train {record['train_loss']:.4f}  val {record['val_loss']:.4f}  "
        f"R@{k} {100 * record['val_recall'][str(k)]:.1f} % of {record['val_gallery']}  "
        f"median rank {record['val_median_rank']:g}  1:2 {100 * record['val_matching']:.1f} %  "
        f"lr {record['learning_rate']:.1e}  {record['seconds']:.1f} s  "
        f"{record['clips_per_second']:.1f} clips/s, {100 * record['input_share']:.1f} % waiting for them"
    )


def line_of_closed_form(seconds: float, fitted) -> str:
    """Format a `closed_form.Fit`, and the time that it took, as one line."""
    clips = "training and validation clips, by cross-validation" if fitted.cross_validated else "validation clips"
    return (
        f"fitted in {seconds:.1f} s, ridge penalty {round(fitted.penalty, 2):g}, "
        f"1:2 {100 * fitted.matching:.1f} % of {fitted.n_clips} {clips}"
    )


def line_of_longer_cosine(before: float, now: float, n_epochs: int) -> str:
    """Format what other --epochs do to the learning rate of a run that is resumed: its rate by the earlier number, and now."""
    return f"train: the cosine now falls to 0 in epoch {n_epochs}: the learning rate is {now:.1e} here, instead of {before:.1e}"


def line_of_best(progress: Progress, weights: Path) -> str:
    """Format the result of a training: the best epoch and its weights."""
    last = progress.history[-1]["epoch"]
    if last == 0:
        return f"train: {weights}"
    best = next(record for record in progress.history if record["epoch"] == progress.best_epoch)
    which = f"epoch {progress.best_epoch} of {last}" if progress.best_epoch else "the closed form, before all epochs,"
    return (
        f"train: {which} is the best, 1:2 {100 * best['val_matching']:.1f} %, median rank {best['val_median_rank']:g} "
        f"of {best['val_gallery']}: {weights}"
    )


def duration(seconds: float) -> str:
    """Format a time with one unit: 45 s, 12 min, 6 h, 3 days."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{seconds / 86_400:.0f} days"


def line_of_time(seconds_a_step: float, n_steps: int, n_epochs: int) -> str:
    """Format how long an epoch of `n_steps` and all `n_epochs` will take."""
    epoch = seconds_a_step * n_steps
    several = f", {duration(n_epochs * epoch)} for {n_epochs} epochs" if n_epochs > 1 else ""
    return f"train: about {duration(epoch)} an epoch{several}"
