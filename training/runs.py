"""The folder of a run, checkpoints/<run>/: written by train.py, for a voice encoder or a face decoder, read by all scripts."""

import dataclasses
import json
import math
import os
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np

import model
import utils
from clips import feature_files, splits
from faces import decoder, likely
from faces.portraits import FaceDecoder
from faces.textures import SIDE
from training import compact
from utils import InputError
from voices.weights import EARLIER_EMBEDDING

# ----------------------------------------------------------------------------------------------------------------------
# Writing.


@dataclasses.dataclass
class Progress:
    """The state of a run between two steps.

    Weights, optimizer state and progress suffice to resume a run: every random number is a function of seed, epoch and clip.
    """

    step: int = 0  # steps done, over all epochs
    loss_sum: float = 0.0  # over the steps of the current epoch
    seconds: float = 0.0  # in the current epoch
    waiting_seconds: float = 0.0  # share of `seconds` spent waiting for clips
    best_epoch: int = 0
    best_loss: float = math.inf  # on the validation set
    history: list[dict] = dataclasses.field(default_factory=list)


def set_aside(folder: Path) -> None:
    """Rename the folder of an earlier run with weights to <folder>-1, or the next free number."""
    if not any((folder / name).exists() for name in (utils.LAST_WEIGHTS, utils.BEST_WEIGHTS)):
        return
    hint = "; --resume would continue it" if (folder / utils.LAST_WEIGHTS).exists() else ""  # a decoder has none
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    print(f"train: {folder} holds an earlier run, now kept as {kept}{hint}", file=sys.stderr)


def weights_bytes(network, state=()) -> int:
    """Return the size of a file of weights, or of a checkpoint with the training's state, in bytes; a little is added."""
    variables = [*network.weights, *state]
    return sum(4 * math.prod(variable.shape) for variable in variables) + 4096 * len(variables)


def write_options(folder: Path, model: str, options, split: splits.Split, **sizes: int) -> None:
    """Write the options of a run, with the model that it trains, "voice" or "decoder", and the sizes of that model.

    The data folder becomes an absolute path, which is valid wherever the next script is started. The name of the split is that
    of a split that comes with the project.
    """
    values = {**dataclasses.asdict(options), "data": options.data.absolute()}
    utils.write_json(folder / utils.OPTIONS, {"model": model, **values, "split_name": split.name, **sizes})


def write_clips(folder: Path, clips: dict[str, list[str]], split: splits.Split, **notes: bool) -> None:
    """Write the clips of a run, with notes on them, and its split if that was read from a file."""
    utils.write_json(folder / utils.CLIPS, {**clips, **notes})
    if split.is_of_file:
        splits.write_kept(folder / utils.SPLIT_FILE, split)
    else:
        (folder / utils.SPLIT_FILE).unlink(missing_ok=True)


def start(
    folder: Path,
    options,
    clips: dict[str, list[str]],
    centre: np.ndarray,
    split: splits.Split,
    fitted_on_validation: bool = False,
) -> None:
    """Write what a voice encoder's run starts with; an earlier run in the folder is kept under another name.

    A run that is resumed keeps its folder, and its options change where they may. clips.json also notes a closed form that is
    fitted on the validation clips too.
    """
    utils.remove_leftovers(folder)
    if not options.resume:
        set_aside(folder)
        feature_files.save_array(folder / utils.CENTRE, centre)
        write_clips(folder, clips, split, **({"fitted_on_validation": True} if fitted_on_validation else {}))
    write_options(folder, "voice", options, split, feature_size=len(centre))


def save_weights(path: Path, network, state=(), progress: Progress | None = None) -> None:
    """Write a network's weights as Keras does; for a checkpoint, with state and progress of the training in the same file.

    Args:
        path: the file.
        network: a Keras model.
        state: Keras variables of optimizer and loss scale.
        progress: the progress of the run.

    Raises:
        OSError: if the file cannot be written; an earlier file is then unchanged.
    """
    size = weights_bytes(network, state)
    try:
        with utils.replacing(path) as temporary:
            if hasattr(os, "posix_fallocate"):  # HDF5 may crash on a full disk; this call raises an error before
                with open(temporary, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            network.save_weights(temporary)
            if progress is not None:
                with h5py.File(temporary, "a") as file:
                    training = file.create_group("training")
                    training["progress"] = json.dumps(dataclasses.asdict(progress))
                    for number, variable in enumerate(state):
                        training[f"state/{number:04}"] = variable.numpy()
    except (OSError, RuntimeError) as error:  # h5py raises either
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{path}: could not be written ({reason}); the earlier file is unchanged; free disk space, then --resume"
        ) from error


def load_checkpoint(path: Path, encoder, state: list) -> Progress:
    """Load a checkpoint of `save_weights` into the encoder and the variables of `state`.

    Returns:
        The progress of the run.

    Raises:
        InputError: if the checkpoint does not fit.
    """
    try:
        model.load_weights(encoder, path)
        with h5py.File(path) as file:
            saved = [array[...] for _, array in sorted(file["training/state"].items())]
            progress = Progress(**json.loads(file["training/progress"][()]))
        if [array.shape for array in saved] != [tuple(variable.shape) for variable in state]:
            raise ValueError("state of another optimizer")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: expected the checkpoint of this run, found something else ({reason})") from error
    for variable, array in zip(state, saved):
        variable.assign(array)
    return progress


# ----------------------------------------------------------------------------------------------------------------------
# Reading.

COMMANDS = {"voice": "python train.py", "decoder": "python train.py decoder"}  # "model" in options.json, and what trained it
ENTRIES = {"voice": ("encoder", "width", "loss", "embedding"), "decoder": ("rank",)}  # of options.json, beside those of both


def read_run(folder: Path, model: str = "voice") -> dict:
    """Read the options, the clips and the split of a run.

    Args:
        folder: of the run.
        model: the model that the run must hold, "voice" or "decoder".

    Returns:
        "data", "seed", "feature_size" and ENTRIES of options.json; "clips", the names of the clips that the run trains on,
        "train", and validates on, "val"; "hashed", whether these are `utils.hashed` names; "fitted_on_validation", whether the
        closed form is fitted on the latter too; "split", of `splits.divide`, and "split_name", the name of a split that comes
        with the project, else None; and "centre", the mean face feature, float32 (feature_size,). The folder "data" may no
        longer exist, and is None in a run that was made to be shared.

    Raises:
        InputError: if there is no run, the run holds the other model, or one of its files is broken.
    """
    path = utils.existing_run(os.path.join(".", folder)) / utils.OPTIONS  # ".": a path, not the name of a run
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if (found := run.get("model", "voice")) != model:
            raise InputError(f"{folder}: expected a run of {COMMANDS[model]}, found a run of {COMMANDS[found]}")
        run = {"embedding": EARLIER_EMBEDDING, "data": None, "split_name": None, **run}
        run = {name: run[name] for name in ("data", "seed", "split_name", "feature_size", *ENTRIES[model])}
        path = folder / utils.CLIPS
        clips = json.loads(path.read_text(encoding="utf-8"))
        run["clips"] = {part: list(clips[part]) for part in ("train", "val")}
        run["hashed"] = clips.get("hashed", False)
        run["fitted_on_validation"] = clips.get("fitted_on_validation", False)
        path = folder / utils.SPLIT_FILE
        run["split"] = splits.read_kept(path, run["seed"], run["split_name"], run["hashed"])
        path = folder / utils.CENTRE
        return {**run, "centre": feature_files.load_array(path, np.float32, (run["feature_size"],))}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a file of a run, found {error!r}; run train.py again") from error


def seen_clips(run: dict, ready: list[str]) -> dict[str, list[str]]:
    """Return which clips of a folder a run trains and validates on.

    Args:
        run: of `read_run`.
        ready: names of the folder's clips.
    """
    if run["hashed"]:
        names = {utils.hashed(clip): clip for clip in ready}
        return {part: [names[name] for name in of_part if name in names] for part, of_part in run["clips"].items()}
    known = set(ready)
    return {part: [clip for clip in of_part if clip in known] for part, of_part in run["clips"].items()}


def load_encoder(folder: Path, run: dict):
    """Build the voice encoder of a run with its best weights.

    Args:
        folder: of the run.
        run: of `read_run`.

    Raises:
        InputError: if the weights are missing or do not fit.
    """
    encoder = model.build_encoder(run["encoder"], run["feature_size"], run["width"], run["embedding"])
    network = f"embedding {run['embedding']}" if run["encoder"] == "speaker" else f"width {run['width']}"
    description = f"--encoder {run['encoder']}, {network}, {run['feature_size']} outputs"
    return _with_best_weights(encoder, folder, description)


def load_decoder(folder: Path, run: dict):
    """Build the face decoder of a run with its best weights. Args and Raises as `load_encoder`."""
    network = decoder.face_decoder(run["feature_size"], run["rank"])
    size = f"{run['feature_size']} inputs, {run['rank']} components, {SIDE} pixels"
    description = f"a face decoder, {size} (those of earlier versions must be trained again)"
    return _with_best_weights(network, folder, description)


def face_model_of(feature_size: int) -> str:
    """Return the --face-model of preprocess.py whose features have this size."""
    return next((name for name, size in utils.FEATURE_SIZE.items() if size == feature_size), "of the run")


def check_feature_size(folder: Path, run: dict, feature_size: int) -> None:
    """Raise InputError unless a decoder's run was trained on face features of this size."""
    if run["feature_size"] != feature_size:
        raise InputError(
            f"{folder}: expected a decoder for face features of {feature_size} numbers, found one for {run['feature_size']}; "
            f"train one on data of preprocess.py --face-model {face_model_of(feature_size)}"
        )


def decoder_folders(voices: Path) -> list[Path]:
    """Return where the run of a face decoder may be, if none is named: with the voices' run, DECODER_RUN, the pretrained."""
    pretrained = utils.run_folder(utils.PRETRAINED_RUN) / utils.DECODER_RUN
    return [voices / utils.DECODER_RUN, utils.run_folder(utils.DECODER_RUN), pretrained]


def load_face_decoder(name: str | None, voices: Path, feature_size: int, exaggerate: float):
    """Load the face decoder that turns predictions of a voice encoder into pictures.

    Args:
        name: of the decoder's run; None for the first of `decoder_folders` that has a run.
        voices: folder of the voice encoder's run.
        feature_size: D, of the voice encoder.
        exaggerate: of `portraits.FaceDecoder`.

    Returns:
        portraits.FaceDecoder; None if no run was named and there is none, or it does not fit.

    Raises:
        InputError: if the named run is missing, does not fit or is broken.
    """
    folders = [utils.run_folder(name)] if name else [folder for folder in decoder_folders(voices) if weights_of(folder)]
    if not folders:
        return None
    folder = folders[0]
    try:
        run = read_run(folder, "decoder")
        check_feature_size(folder, run, feature_size)
        network, faces = load_decoder(folder, run), likely.load(voices / utils.LIKELY, feature_size)
        return FaceDecoder(network, run["centre"], faces, run["clips"]["train"], exaggerate)
    except InputError as error:
        if name:
            raise InputError(f"--decoder: {error}") from None
        print(f"no decoded faces: {error}", file=sys.stderr)
        return None


def weights_of(folder: Path) -> Path | None:
    """Return the file of a run's best weights, in the compact form or not; None if there is none."""
    return next((path for path in (folder / utils.BEST_WEIGHTS, folder / utils.COMPACT_WEIGHTS) if path.exists()), None)


def _with_best_weights(network, folder: Path, description: str):
    """Load the best weights of a run into a network, and return it. Raises InputError."""
    path = weights_of(folder)
    if path is None:
        path = folder / utils.BEST_WEIGHTS
        raise InputError(f"{path}: expected the weights of a run, found no such file; let train.py finish its first epoch")
    try:
        (compact.load if path.name == utils.COMPACT_WEIGHTS else model.load_weights)(network, path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: expected weights of {description}, as options.json says; {reason}") from error
    return network
