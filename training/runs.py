"""A run's folder, checkpoints/<run>/: what train.py writes there of a voice encoder or a face decoder, and what evaluate.py
reads.
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import h5py
import numpy as np

import model
import utils
from clips import feature_files
from faces import decoder, refinement
from utils import InputError

# ----------------------------------------------------------------------------------------------------------------------
# Writing.


@dataclasses.dataclass
class Progress:
    """Where a run stands between two steps.

    With the weights and the optimizer's state it is all that it takes to go on: every random draw is a function of seed,
    epoch and clip.
    """

    step: int = 0  # steps done, over all epochs
    loss_sum: float = 0.0  # of the present epoch's steps, and so are the next two
    seconds: float = 0.0
    waiting_seconds: float = 0.0  # of them, for clips
    best_epoch: int = 0
    best_loss: float = math.inf  # on validation people
    history: list[dict] = dataclasses.field(default_factory=list)


def set_aside(folder: Path) -> None:
    """Move a folder that holds the weights of an earlier run to <folder>-1, or the next free number."""
    if not any((folder / name).exists() for name in (utils.LAST_WEIGHTS, utils.BEST_WEIGHTS)):
        return
    hint = "; --resume would go on with it" if (folder / utils.LAST_WEIGHTS).exists() else ""  # not with a decoder
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    print(f"train: {folder} holds an earlier run, now kept as {kept}{hint}", file=sys.stderr)


def save_weights(path: Path, network, state=(), progress: Progress | None = None) -> None:
    """Write a network's weights as Keras does; for a checkpoint, with the rest of the training beside them in the same file.

    Args:
        path: the file.
        network: a Keras model.
        state: what else there is, Keras variables.
        progress: where the run stands.

    Raises:
        OSError: if it cannot be written; the earlier file is still there then.
    """
    variables = [*network.weights, *state]
    size = sum(4 * math.prod(variable.shape) for variable in variables) + 4096 * len(variables)
    try:
        with utils.replacing(path) as temporary:
            if hasattr(os, "posix_fallocate"):  # HDF5 may crash on a full disk; this says so before
                with open(temporary, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            network.save_weights(temporary)
            if progress is not None:
                with h5py.File(temporary, "a") as file:
                    training = file.create_group("training")
                    training["progress"] = json.dumps(dataclasses.asdict(progress))
                    for number, variable in enumerate(state):
                        training[f"state/{number:04}"] = variable.numpy()
    except (OSError, RuntimeError) as error:  # h5py's may be either
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{path}: could not be written ({reason}); what was there is unharmed; make room, then go on with --resume, or anew"
        ) from error


def load_checkpoint(path: Path, encoder, state: list) -> Progress:
    """Read what `save_weights` wrote as a checkpoint into the encoder and the variables of `state`.

    Raises:
        InputError: if it does not fit.
    """

    try:
        model.load_weights(encoder, path)
        with h5py.File(path) as file:
            saved = [array[...] for _, array in sorted(file["training/state"].items())]
            progress = Progress(**json.loads(file["training/progress"][()]))
        if [array.shape for array in saved] != [tuple(variable.shape) for variable in state]:
            raise ValueError("another optimizer's state")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: expected the checkpoint of this run, found something else ({reason})") from error
    for variable, array in zip(state, saved):
        variable.assign(array)
    return progress


# ----------------------------------------------------------------------------------------------------------------------
# Reading.


OF_MODEL = {"voice": ("encoder", "width", "loss"), "decoder": ("rank",)}  # what options.json says of each beside the rest


def read_run(folder: Path, model: str = "voice") -> dict:
    """Read what a run was started with.

    Args:
        folder: of the run.
        model: what it is to be of, train.py's --model.

    Returns:
        `data`, `seed` and others of train.py's options; `feature_size`; `clips`, the names of those that it trains on, "train",
        and validates on, "val"; and `centre`, the mean face feature, float32 (feature_size,).

    Raises:
        InputError: if there is no run, it is of another model, or one of its files is broken.
    """
    path = folder / utils.OPTIONS
    if not path.exists():
        raise InputError(f"{path}: expected the options of a run, found no such file; run train.py, or name another run")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if (found := run.get("model", "voice")) != model:
            raise InputError(f"{folder}: expected a run of train.py --model {model}, found one of --model {found}")
        run = {name: run[name] for name in ("data", "seed", "feature_size", *OF_MODEL[model])}
        path = folder / utils.CLIPS
        clips = json.loads(path.read_text(encoding="utf-8"))
        run["clips"] = {part: list(clips[part]) for part in ("train", "val")}
        path = folder / utils.CENTRE
        return {**run, "centre": feature_files.load_array(path, np.float32, (run["feature_size"],))}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected what a run was started with, found {error!r}; run train.py again") from error


def load_encoder(folder: Path, run: dict):
    """Build the voice encoder with the best weights of a run.

    Args:
        folder: of the run.
        run: of `read_run`.

    Raises:
        InputError: if they are missing or do not fit.
    """

    encoder = model.build_encoder(run["encoder"], run["feature_size"], run["width"])
    return _with_best_weights(
        encoder, folder, f"--encoder {run['encoder']}, width {run['width']}, {run['feature_size']} outputs"
    )


def load_decoder(folder: Path, run: dict):
    """Build the face decoder with the best weights of a run, as `load_encoder` does the encoder."""

    network = decoder.face_decoder(run["feature_size"], run["rank"])
    return _with_best_weights(network, folder, f"--model decoder, {run['feature_size']} inputs, {run['rank']} components")


def load_correction(folder: Path, run: dict) -> np.ndarray:
    """Read a decoder's `refinement.correction`, float32 (2, REFINEMENT_AXES, D). Raises InputError."""

    path = folder / utils.CORRECTION
    if not path.exists():
        raise InputError(f"{path}: expected what train.py --model decoder wrote, found no such file; train anew")
    return feature_files.load_array(path, np.float32, (2, refinement.REFINEMENT_AXES, run["feature_size"]))


def load_face_decoder(name: str | None, feature_size: int, exaggerate: float, refinements: int):
    """Load the face decoder that decodes for a voice encoder.

    Args:
        name: of the decoder's run; None for DECODER_RUN, if there is such a run.
        feature_size: D, of the voice encoder.
        exaggerate, refinements: of `refinement.FaceDecoder`.

    Returns:
        refinement.FaceDecoder; None if no run was named and there is none for features of this size.

    Raises:
        InputError: if the run that was named is none, is of other features, or is broken.
    """
    folder = utils.run_folder(name or utils.DECODER_RUN)
    if name is None and not (folder / utils.BEST_WEIGHTS).exists():
        return None
    try:
        run = read_run(folder, "decoder")
        if run["feature_size"] != feature_size:
            raise InputError(f"{folder}: expected a run on {feature_size} numbers a face, found {run['feature_size']}")
        network, correction = load_decoder(folder, run), load_correction(folder, run)
        training_faces = run["clips"]["train"]
        return refinement.FaceDecoder(network, run["centre"], correction, training_faces, exaggerate, refinements)
    except InputError as error:
        if name:
            raise InputError(f"--decoder: {error}") from None
        print(f"no decoded faces: {error}", file=sys.stderr)
        return None


def _with_best_weights(network, folder: Path, description: str):

    path = folder / utils.BEST_WEIGHTS
    if not path.exists():
        raise InputError(f"{path}: expected the weights of a run, found no such file; let train.py end its first epoch")
    try:
        model.load_weights(network, path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: expected weights of {description}, as options.json beside it says; {reason}") from error
    return network
