"""The set-up of a voice encoder's training: clips, centre, devices, network, loss and optimizer."""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

import model
import utils
from clips import feature_files, packs, splits
from faces import decoder, vggface
from training import epochs, runs, steps
from training.batches import Crops
from training.losses import loss_function
from utils import InputError
from voices.backend import keras
from voices.weights import CAMPPLUS

CENTRE_FACES = 10_000  # training faces whose mean is the mean face, at most
POPULATION_FACES = 1000  # training faces whose principal axes describe faces, at most
VALIDATION_CLIPS = 5_000  # at most; a longer validation is not worth its time
FEW_CLIPS = 5_000  # training clips below which --encoder speaker is suggested


# ----------------------------------------------------------------------------------------------------------------------
# Clips and centre.


def choose_clips(
    data: Path, split: splits.Split, n_train: int | None, batch_size: int
) -> tuple[dict[str, list[str]], int, splits.Split]:
    """Choose the clips of a new run.

    Args:
        data: folder that preprocess.py wrote.
        split: its seed is that of the samples too.
        n_train: clips to train on, sampled from all training clips; None for all.
        batch_size: clips in a step.

    Returns:
        The names of the clips to train on, "train", and to validate on, "val"; the size of their face features; and the split,
        for the run's folder.

    Raises:
        InputError: if there are too few clips, or the split names none of them.
    """
    ready, split = divide(split, data, feature_files.ready_clips(data))
    chosen = {
        "train": utils.sample_clips(ready["train"], n_train or len(ready["train"]), split.seed),
        "val": utils.sample_clips(ready["val"], VALIDATION_CLIPS, split.seed),
    }
    n_ready, n_people = len(ready["train"]), len({utils.person_of(clip) for clip in chosen["val"]})
    if n_ready < batch_size or n_people < 2:
        raise InputError(
            f"{data}: expected at least --batch-size {batch_size} clips to train on and two people to validate on, found "
            f"{n_ready} and {n_people}; make more clips ready with preprocess.py{or_name_more(split)}"
        )
    return chosen, feature_files.feature_size_of(data, ready["train"][0]), split


def divide(split: splits.Split, data: Path, clips: list[str]) -> tuple[dict[str, list[str]], splits.Split]:
    """Divide clips or photos into the parts of a new run's split, and print what is to be known of a split from a file.

    Args:
        split: of `splits.read_split`.
        data: folder of the clips.
        clips: their names.

    Returns:
        The names by part, and the split for the run's folder: it names the people whom patterns fit.

    Raises:
        InputError: if the split names nobody.
    """
    splits.check_names(split, clips, data)
    for note in splits.notes_on(split, clips):
        print(f"train: {note}", file=sys.stderr)
    return splits.divide(split, clips), splits.resolved(split, clips)


def or_name_more(split: splits.Split) -> str:
    """Return how else a split gets more people, for messages: "" for a split by hash."""
    return ", or let --split name more people of the data" if split.is_of_file else ""


def describe(clips: dict[str, list[str]], feature_size: int, options) -> None:
    """Print how many clips there are; for a new run also on what embedding, or which encoder is meant for as few clips.

    Args:
        clips: of `choose_clips`.
        feature_size: numbers in their face features.
        options: options.Options, with all defaults filled in.
    """
    n_train, n_val = len(clips["train"]), len(clips["val"])
    print(
        f"train: {n_train} clips to train on, {n_val} to validate on, face features of {feature_size} numbers", file=sys.stderr
    )
    if options.resume:
        return
    if options.embedding == "ge2e" and not CAMPPLUS.is_available_here():
        print(
            f"train: --embedding ge2e, GE2E alone: the package {CAMPPLUS.package}, which carries {CAMPPLUS.network}, does not "
            "exist for this machine",
            file=sys.stderr,
        )
    if options.encoder == "conv" and n_train < FEW_CLIPS:
        print(
            f"train: --encoder conv trains from scratch; --encoder speaker is meant for fewer than {FEW_CLIPS:,} clips",
            file=sys.stderr,
        )


def clips_of_run(folder: Path, data: Path, n_epochs: int) -> tuple[dict[str, list[str]], np.ndarray, splits.Split]:
    """Read the clips, the centre and the split of a run to be resumed.

    Args:
        folder: of the run.
        data: folder that preprocess.py wrote; it may have moved since the run was started.
        n_epochs: of the run, with those to come.

    Returns:
        The names of the clips as `choose_clips` returns them, the centre, float32 (D,), and the split.

    Raises:
        InputError: if there is no run, clips of the run are missing under `data`, or the closed form is fitted on the
            validation clips too, which then can choose no epoch.
    """
    run = runs.read_run(folder)
    if n_epochs and run["fitted_on_validation"]:
        raise InputError(
            f"--epochs: expected 0 for {folder}, whose closed form is fitted on the few validation clips too, found "
            f"{n_epochs}; leave out --resume to start a run that holds them out"
        )
    clips = [clip for part in run["clips"].values() for clip in part]
    missing = sorted(set(clips) - set(feature_files.ready_clips(data)))
    if missing:
        raise InputError(
            f"{data}: expected the {len(clips)} clips of {folder}, found {len(clips) - len(missing)}, without {missing[0]}; "
            "pass --data with the folder that the run was trained on"
        )
    return run["clips"], run["centre"], run["split"]


def choose_centre(name: str, data: Path, clips: list[str], feature_size: int, seed: int) -> np.ndarray:
    """Return train.py's --centre: zero, or the mean face feature of the clips, CENTRE_FACES at most. float32 (feature_size,)"""
    if name == "zero":
        return np.zeros(feature_size, np.float32)
    faces = _faces(data, clips, feature_size, CENTRE_FACES, seed)
    total, n = sum(face.astype(np.float64) for face in faces), min(len(clips), CENTRE_FACES)
    return (total / n).astype(np.float32)


def population(data: Path, clips: list[str], feature_size: int, seed: int) -> np.ndarray:
    """Return the face features of clips, POPULATION_FACES at most, for `likely.fit`: float32 (n, feature_size)."""
    return np.stack([*_faces(data, clips, feature_size, POPULATION_FACES, seed)])


def _faces(data: Path, clips: list[str], feature_size: int, most: int, seed: int):
    """Yield the face features of clips, of a sample if there are more than `most`."""
    sample = utils.sample_clips(clips, most, seed)
    return packs.in_order(packs.Pickles(data, sample, feature_size).feature, range(len(sample)))


def crops(options) -> Crops:
    """Return how options.Options have the clips cropped and masked."""
    return Crops(options.batch_size, utils.frames_in(options.seconds), options.mask_bins, options.mask_frames, options.seed)


# ----------------------------------------------------------------------------------------------------------------------
# Devices and network.


def strategy(options):
    """Return the TensorFlow strategy of `steps.strategy`, and print its devices.

    Args:
        options: options.Options.

    Raises:
        InputError: if the batch does not divide or is too large, or several machines are to fit the closed form.
    """
    if options.encoder == "speaker" and os.environ.get("TF_CONFIG"):
        raise InputError("TF_CONFIG: expected none with --encoder speaker, which trains on one machine, found one; unset it")
    spread = steps.strategy()
    replicas = spread.num_replicas_in_sync
    if options.batch_size % replicas:
        raise InputError(f"--batch-size: expected a multiple of the {replicas} devices, found {options.batch_size}")
    share = options.batch_size // replicas
    if options.encoder == "conv":
        model.check_batch(share, options.width, utils.frames_in(options.seconds))
    print(f"train: {steps.devices(replicas)}, {share} clips a step on each", file=sys.stderr)
    if steps.has_unused_gpu():
        print(
            "train: NVIDIA's driver is here, but TensorFlow finds no GPU: its libraries are missing or do not fit; "
            "make GPU=1 installs them",
            file=sys.stderr,
        )
    return spread


def with_precision(options):
    """Return options.Options with the best --precision of this machine for "auto"."""
    if options.precision != "auto":
        return options
    return dataclasses.replace(options, precision=steps.best_precision() if options.encoder == "conv" else "float32")


@dataclasses.dataclass(frozen=True)
class Training:
    """A voice encoder and all that trains it."""

    encoder: keras.Model
    loss: object  # of `losses.loss_function`
    optimizer: keras.optimizers.Optimizer
    step: object  # of `steps.training_step`
    state: list  # Keras variables of the optimizer and the loss scale, for checkpoints


def build(options, centre: np.ndarray, n_steps: int) -> Training:
    """Build the encoder and its training, within the scope of the current strategy.

    Args:
        options: options.Options, with all defaults filled in.
        centre: mean face feature, or zeros, float32 (D,).
        n_steps: steps of the whole training.

    Raises:
        InputError: if the loss does not fit the face features, or its networks are missing.
    """
    keras.mixed_precision.set_global_policy(options.precision)
    keras.utils.set_random_seed(options.seed)
    encoder = model.build_encoder(options.encoder, len(centre), options.width, options.embedding)
    if options.encoder == "conv":
        encoder.get_layer("fc2").bias.assign(centre)  # the point from which directions are compared
    loss = loss_function(options.loss, centre, vggface.fc8, options.decoder and first_layer(options.decoder, len(centre)))
    optimizer = steps.adam(encoder, options.schedule, options.learning_rate, n_steps, options.weight_decay)
    loss_scale = steps.LossScale() if options.precision == "mixed_float16" else None
    step = steps.training_step(encoder, optimizer, loss, options.batch_size, loss_scale)
    state = [*optimizer.variables, *(loss_scale.variables if loss_scale else ())]
    megabytes = math.ceil(runs.weights_bytes(encoder, state) / 1e6)
    print(
        f"train: {encoder.count_params():,} parameters, {options.precision}; a checkpoint takes {megabytes:,} MB",
        file=sys.stderr,
    )
    return Training(encoder, loss, optimizer, step, state)


def resume(folder: Path, options, training: Training, n_steps: int) -> runs.Progress:
    """Load the last checkpoint of a run, and say where it stands.

    Args:
        folder: of the run; its options.json still has the --epochs of before.
        options: options.Options, with those that have changed.
        training: of `build`; its weights and state are changed.
        n_steps: steps in an epoch.

    Raises:
        InputError: if the checkpoint does not fit.
    """
    epochs_before = json.loads((folder / utils.OPTIONS).read_text(encoding="utf-8")).get("epochs")
    progress = runs.load_checkpoint(folder / utils.LAST_WEIGHTS, training.encoder, training.state)
    print(f"train: resumed after step {progress.step} of {options.epochs * n_steps}", file=sys.stderr)
    longer = epochs_before not in (None, options.epochs) and 0 < progress.step < options.epochs * n_steps
    if options.schedule == "cosine" and longer:
        before = steps.learning_rates(options.schedule, options.learning_rate, epochs_before * n_steps)
        now = float(training.optimizer.learning_rate)
        print(epochs.line_of_longer_cosine(float(before(progress.step)), now, options.epochs), file=sys.stderr)
    return progress


def first_layer(run: str, feature_size: int):
    """Return the first layer of a face decoder as a function, for `losses.loss_function`.

    Args:
        run: name of the decoder's run.
        feature_size: of the voice encoder.

    Raises:
        InputError: if there is no such run, or it is for other face features.
    """
    folder = utils.run_folder(run)
    try:
        found = runs.read_run(folder, "decoder")
        runs.check_feature_size(folder, found, feature_size)
        return decoder.first_layer(runs.load_decoder(folder, found))
    except InputError as error:
        raise InputError(f"--decoder: {error}") from None
