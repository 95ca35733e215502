"""The options of train.py and train.py decoder: their defaults, what fits together, and those of a run that is resumed.

Never imports TensorFlow, so that --help and mistakes are answered at once.
"""

import dataclasses
import json
import math
from pathlib import Path

import utils
from utils import MIN_SECONDS, InputError, check, option
from voices import weights

EPOCHS = {"conv": 30, "speaker": 0}  # defaults for each --encoder
LEARNING_RATE = {"conv": 1e-3, "speaker": 1e-5}
PICTURES = "png", "pdf", "svg"  # judging.plots.FORMATS
CHANGEABLE = {"data", "epochs", "save_minutes", "format", "readers"}  # options that may change with --resume

# The options that both commands have.
DATA_HELP = "folder that preprocess.py wrote"
RUN_HELP = "name of the run, whose folder is checkpoints/RUN, or a path such as ./RUN"
SPLIT_HELP = (
    "file that says who trains, who validates and who is tested: a data set's own, such as VoxCeleb's vox1_meta.csv or "
    "iden_split.txt or AVSpeech's test csv, a list of test people, or lines such as test,NAME; docs/training.md describes the "
    "formats (default: by a hash of people's names and --seed)"
)
NAMES_HELP = (
    "csv that gives people their other names, such as vox1_meta.csv, where --split and the data folder name them differently"
)
SCHEDULE_HELP = (
    "learning rate over the steps: cosine rises over the first 20th of them, then falls to 0; paper takes it times 0.95 every "
    "10,000 steps"
)
WEIGHT_DECAY_HELP = (
    "share of the weights, times the learning rate, that each step takes away (AdamW); try 0.01 when the validation loss rises "
    "while the training loss falls"
)


def check_shared(options) -> None:
    """Raise ValueError if one of the options that both commands have is out of range."""
    check(options.batch_size >= 1, f"--batch-size: expected at least 1, found {options.batch_size}")
    check(0 <= options.weight_decay < math.inf, f"--weight-decay: expected 0 or more, found {options.weight_decay}")
    check(options.clips is None or options.clips >= 1, f"--clips: expected at least 1, found {options.clips}")
    check(options.seed >= 0, f"--seed: expected 0 or more, found {options.seed}")
    check(options.split or not options.names, f"--names: expected --split with it, found --names {options.names} alone")
    rate = options.learning_rate
    check(rate is None or 0 < rate < math.inf, f"--learning-rate: expected more than 0, found {rate}")


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = option(RUN_HELP, utils.VOICE_RUN, group="run", metavar="RUN")
    resume: bool = option(
        "continue the run from its last checkpoint, with its own options; only --epochs, --data, --save-minutes, --format and "
        "--readers may be given again, with other values",
        False,
        group="run",
    )
    save_minutes: float = option(
        "minutes between checkpoints within an epoch; each epoch also ends with one", 15.0, group="run", metavar="MINUTES"
    )
    format: str = option("file format of the curves", "png", group="run", choices=PICTURES)
    seed: int = option(
        "random seed of the split into training, validation and test set, first weights, order of the clips, and their crops",
        0,
        group="run",
        metavar="N",
    )
    data: Path = option(DATA_HELP, utils.DATA, group="data", metavar="FOLDER")
    split: Path | None = option(SPLIT_HELP, None, group="data", metavar="FILE")
    names: Path | None = option(NAMES_HELP, None, group="data", metavar="FILE")
    clips: int | None = option(
        "train on a sample of this many clips, for a quick trial (default: all training clips)",
        None,
        group="data",
        metavar="N",
    )
    seconds: float = option(
        f"length of the crops that training takes from the clips, each at a random place, {MIN_SECONDS} to 6 s; shorter crops "
        "make a step faster",
        6.0,
        group="data",
        metavar="SECONDS",
    )
    mask_bins: int = option(
        "silence two bands of up to this many of the 257 frequency bins in each crop; raise it, to 40 say, against overfitting",
        0,
        group="data",
        metavar="N",
    )
    mask_frames: int = option(
        "silence two spans of up to this many frames, of 10 ms each, in each crop; raise it, to 40 say, against overfitting",
        0,
        group="data",
        metavar="N",
    )
    encoder: str = option(
        "conv: the paper's network, from scratch; speaker: pretrained speaker networks with a linear layer, for fewer clips",
        "conv",
        group="network",
        choices=("conv", "speaker"),
    )
    width: float = option(
        "scale of the channels; 1 is the paper's network, 0.125 trains on a CPU",
        1.0,
        group="only with --encoder conv",
        metavar="SCALE",
    )
    embedding: str | None = option(
        "pretrained speaker networks: GE2E, CAM++ or both (default: both; ge2e on machines for which CAM++'s package does not "
        "exist)",
        None,
        group="only with --encoder speaker",
        choices=tuple(weights.EMBEDDINGS),
    )
    whitening: float = option(
        "weight of small differences between faces in the regression: at 0, plain ridge regression, the directions in which "
        "faces vary most decide; at 1 all directions count alike; choose the value with the best 1:2 on the validation set",
        0.25,
        group="only with --encoder speaker",
        metavar="SHARE",
    )
    loss: str = option(
        "l2 compares directions of face features; l1 compares the features themselves; total is the paper's sum of l2, "
        "distillation through VGG-Face's last layer and, with --decoder, the face decoder's first layer; contrastive tells the "
        "faces of a step apart and gains from a large --batch-size",
        "l2",
        group="optimisation",
        choices=("l1", "l2", "total", "contrastive"),
    )
    decoder: str | None = option(
        "run of `train.py decoder` that gives --loss total its third term (default: none, without that term)",
        None,
        group="optimisation",
        metavar="RUN",
    )
    centre: str = option(
        "point from which l2, contrastive and retrieval compare directions: the mean training face, or zero, as in the paper",
        "mean",
        group="optimisation",
        choices=("mean", "zero"),
    )
    epochs: int | None = option(
        f"passes over the clips (default: {EPOCHS['conv']}; {EPOCHS['speaker']}, only the closed form, with --encoder speaker)",
        None,
        group="optimisation",
        metavar="N",
    )
    learning_rate: float | None = option(
        "highest learning rate of Adam; lower it when the loss is not finite "
        f"(default: {LEARNING_RATE['conv']:g}; {LEARNING_RATE['speaker']:g} with --encoder speaker)",
        None,
        group="optimisation",
        metavar="RATE",
    )
    schedule: str = option(SCHEDULE_HELP, "cosine", group="optimisation", choices=("cosine", "paper"))
    weight_decay: float = option(WEIGHT_DECAY_HELP, 0.0, group="optimisation", metavar="SHARE")
    batch_size: int = option(
        "clips in a step, over all GPUs and machines together; lower it when memory runs out",
        8,
        group="hardware",
        metavar="N",
    )
    readers: int | None = option(
        "clips read at the same time; raise it if training waits for them, as on a network disk (default: 16 a processor)",
        None,
        group="hardware",
        metavar="N",
    )
    precision: str = option(
        "auto computes with 16 bits where the hardware supports them; float32 takes more time and memory and rounds less; "
        "--encoder speaker always uses float32",
        "auto",
        group="hardware",
        choices=("auto", "float32", "mixed_float16", "mixed_bfloat16"),
    )

    def __post_init__(self):
        check_shared(self)
        least = 1 if self.encoder == "conv" else 0
        check(self.epochs is None or self.epochs >= least, f"--epochs: expected at least {least}, found {self.epochs}")
        enough = self.clips is None or self.clips >= self.batch_size
        check(enough, f"--clips: expected at least --batch-size, {self.batch_size}, found {self.clips}")
        check(self.decoder is None or self.loss == "total", f"--decoder: expected --loss total with it, found {self.loss}")
        check(0 < self.width <= 4, f"--width: expected more than 0, 4 at most, found {self.width}")
        check(0 <= self.whitening <= 1, f"--whitening: expected 0 to 1, found {self.whitening}")
        if self.encoder == "speaker":
            check(self.width == Options.width, f"--width: expected --encoder conv with it, found --encoder {self.encoder}")
            float32 = self.precision in ("auto", "float32")
            check(float32, f"--precision: expected float32 with --encoder speaker, found {self.precision}")
        else:
            for name in ("embedding", "whitening"):
                is_default = getattr(self, name) == getattr(Options, name)
                check(is_default, f"--{name}: expected --encoder speaker with it, found --encoder {self.encoder}")
        check(MIN_SECONDS <= self.seconds <= 6, f"--seconds: expected {MIN_SECONDS} to 6, found {self.seconds}")
        check(self.mask_bins >= 0, f"--mask-bins: expected 0 or more, found {self.mask_bins}")
        check(self.mask_frames >= 0, f"--mask-frames: expected 0 or more, found {self.mask_frames}")
        check(self.readers is None or self.readers >= 1, f"--readers: expected at least 1, found {self.readers}")
        check(self.save_minutes >= 0, f"--save-minutes: expected 0 or more, found {self.save_minutes}")


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    run: str = option(RUN_HELP, utils.DECODER_RUN, group="run", metavar="RUN")
    format: str = option("file format of the picture of decoded faces", "png", group="run", choices=PICTURES)
    seed: int = option(
        "random seed of the split into training, validation and test set, and of the order of the faces",
        0,
        group="run",
        metavar="N",
    )
    data: Path = option(DATA_HELP, utils.DATA, group="data", metavar="FOLDER")
    split: Path | None = option(SPLIT_HELP, None, group="data", metavar="FILE")
    names: Path | None = option(NAMES_HELP, None, group="data", metavar="FILE")
    clips: int | None = option(
        "train on a sample of this many faces; lower it when memory runs out (default: all training faces, 20,000 at most)",
        None,
        group="data",
        metavar="N",
    )
    epochs: int = option(
        "passes over the training faces, by gradients, after the closed form", 0, group="optimisation", metavar="N"
    )
    learning_rate: float = option(
        "highest learning rate of Adam; lower it when the loss is not finite", 1e-5, group="optimisation", metavar="RATE"
    )
    schedule: str = option(SCHEDULE_HELP, "cosine", group="optimisation", choices=("cosine", "paper"))
    weight_decay: float = option(WEIGHT_DECAY_HELP, 0.0, group="optimisation", metavar="SHARE")
    batch_size: int = option("faces in a step; lower it when memory runs out", 8, group="hardware", metavar="N")

    def __post_init__(self):
        check_shared(self)
        check(self.epochs >= 0, f"--epochs: expected at least 0, found {self.epochs}")


# ----------------------------------------------------------------------------------------------------------------------
# Options that follow from others.


def with_defaults(options: Options) -> Options:
    """Fill in the defaults that depend on the encoder."""
    epochs = EPOCHS[options.encoder] if options.epochs is None else options.epochs
    rate = LEARNING_RATE[options.encoder] if options.learning_rate is None else options.learning_rate
    embedding = options.embedding or (weights.default_embedding() if options.encoder == "speaker" else None)
    return dataclasses.replace(options, epochs=epochs, learning_rate=rate, embedding=embedding)


def resumed(options: Options, given: set[str]) -> Options:
    """Return the options of a run to be resumed: its own, except for those of CHANGEABLE that are given.

    Args:
        options: of the command line.
        given: names of the options that the command line contains.

    Raises:
        InputError: if there is no checkpoint, or a given option would make it another run.
    """
    folder = utils.existing_run(options.run)
    path = folder / utils.OPTIONS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.get("model", "voice") == "decoder":
            raise InputError(
                f"{folder}: expected a run of python train.py, found a run of python train.py decoder; leave out --resume"
            )
        if saved.get("encoder") == "speaker":
            saved.setdefault("embedding", weights.EARLIER_EMBEDDING)
        fields = {field.name: saved.get(field.name, field.default) for field in dataclasses.fields(Options)}
        paths = {name: Path(fields[name]) for name in ("data", "split", "names") if fields[name] is not None}
        saved = with_defaults(Options(**{**fields, **paths}))
    except InputError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the options of a run, found {error!r}; start the run anew without --resume"
        ) from error
    if not (folder / utils.LAST_WEIGHTS).exists():
        raise InputError(f"{folder}: expected {utils.LAST_WEIGHTS}, a checkpoint to resume, found none; leave out --resume")
    changed = given & CHANGEABLE | {"resume", "run"}
    for name in sorted(given - changed):
        if getattr(options, name) != getattr(saved, name):
            raise InputError(
                f"--{name.replace('_', '-')}: expected {getattr(saved, name)}, with which {folder} was started, found "
                f"{getattr(options, name)}; leave it out to resume the run, or leave out --resume to start another one"
            )
    return dataclasses.replace(saved, **{name: getattr(options, name) for name in changed})
