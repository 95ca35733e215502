"""Train a voice encoder, spectrogram -> face feature, or a face decoder, face feature -> picture of the face.

--encoder conv is the paper's, which learns to hear from nothing: for tens of thousands of clips and a GPU. --encoder speaker
has learned to tell voices apart, and has to learn faces only: for hundreds of clips, in seconds. --model decoder learns from
the portraits of clips or photos, in closed form: for hundreds of people, in a minute or two.

Reads what preprocess.py wrote under --data, of the training and validation people. Writes to checkpoints/<run>/

    options.json       what the run was started with
    clips.json         the clips that it trains and validates on
    centre.pkl         the face feature from which --loss l2 and contrastive see the others: the training faces' mean
    history.jsonl      one object an epoch
    curves.png         loss and recall over the epochs
    tensorboard/       the same for TensorBoard, and the loss of every step
    best.weights.h5    the weights of the epoch with the least loss on validation people; epoch 0 is the closed form's
    last.weights.h5    the last weights, and all that --resume needs to go on as if nothing had happened

Of a decoder there are the first four, best.weights.h5, and

    decoded.png        the faces of validation people beside what it makes of their features
    correction.pkl     what evaluate.py adds where a decoded face's own feature is not what was heard

    python train.py
    python train.py --encoder speaker
    python train.py --model decoder --data data/photos
"""

import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

import model
import utils
from clips import feature_files
from faces import decoder, vggface
from training import decoder_training, runs, steps
from training.batches import Crops, training_batches
from training.closed_form import fit_in_closed_form
from training.epochs import line_of_epoch, noting_signals, record_of_epoch, train_epoch, validate, write_epoch
from training.losses import loss_function
from training.runs import Progress
from utils import MIN_SECONDS, InputError, check, option
from voices.backend import keras, tf

CENTRE_FACES = 10_000  # faces whose mean is the centre, at most
VALIDATION_CLIPS = 5_000  # at most: what a longer validation adds is not worth its time
RUN = {"voice": "base", "decoder": "decoder"}  # for each --model
EPOCHS = {"conv": 30, "speaker": 0, "decoder": 0}  # for each --encoder, and for the decoder
LEARNING_RATE = {"conv": 1e-3, "speaker": 1e-5, "decoder": 1e-5}
# What --model decoder lacks.
VOICE_OPTIONS = ("resume", "encoder", "loss", "decoder", "centre", "width", "whitening", "seconds", "mask_bins", "mask_frames")
VOICE_OPTIONS += ("precision", "save_minutes")


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path = option("folder that preprocess.py wrote", utils.DATA)
    model: str = option("what is trained: the voice encoder, or the face decoder", "voice", choices=tuple(RUN))
    run: str | None = option(
        f"name of the run: its folder is checkpoints/<run>; or a path (default: {RUN['voice']}; {RUN['decoder']} with --model "
        "decoder)",
        None,
    )
    resume: bool = option("go on with the run from its last checkpoint, with its options; --epochs may be more", False)
    encoder: str = option(
        "conv: the paper's, from random weights; speaker: a pretrained network that tells voices apart, and regression from "
        "there to the face feature, in closed form",
        "conv",
        choices=("conv", "speaker"),
    )
    loss: str = option(
        "l2: of the normalised features; l1: of the features as they are; total: the paper's, l2 and distillation through "
        "VGG-Face's last layer, and, with --decoder, through the face decoder's first one; contrastive: of telling the step's "
        "faces apart",
        "l2",
        choices=("l1", "l2", "total", "contrastive"),
    )
    decoder: str | None = option("with --loss total: run of --model decoder, for the third term", None, metavar="RUN")
    centre: str = option(
        "where l2, contrastive and retrieval see the features from: the training faces' mean, or zero, as in the paper",
        "mean",
        choices=("mean", "zero"),
    )
    epochs: int | None = option(
        f"passes over the training clips (default: {EPOCHS['conv']}; {EPOCHS['speaker']} with --encoder speaker and with "
        "--model decoder, the closed form alone)",
        None,
    )
    batch_size: int = option("clips in a step, over all GPUs and machines together", 8)
    learning_rate: float | None = option(
        f"of Adam, the highest (default: {LEARNING_RATE['conv']:g}; {LEARNING_RATE['speaker']:g} with --encoder speaker and "
        "with --model decoder)",
        None,
    )
    schedule: str = option(
        "of the learning rate. cosine: up over the first 20th of the steps, down to 0; paper: times 0.95 every 10,000 steps",
        "cosine",
        choices=("cosine", "paper"),
    )
    weight_decay: float = option("share of the weights that a step takes away, times the learning rate", 0.0)
    width: float = option("scale of conv's channels; 1 is the paper's network, 0.125 trains on a CPU", 1.0)
    whitening: float = option(
        "of the face features in speaker's regression, 0 to 1: how much the directions count in which faces differ little", 0.5
    )
    clips: int | None = option("clips, or faces, to train on, at most; of more, so many are drawn", None)
    seconds: float = option(
        f"length of the crop of each clip that a step hears, {MIN_SECONDS} to 6 s, drawn anew each time", 6.0
    )
    mask_bins: int = option("two bands of up to so many of the 257 frequency bins are silenced in each crop", 0)
    mask_frames: int = option("two spans of up to so many frames, 10 ms each, are silenced in each crop", 0)
    precision: str = option(
        "of the computation; auto: mixed where the hardware computes with 16 bits",
        "auto",
        choices=("auto", "float32", "mixed_float16", "mixed_bfloat16"),
    )
    save_minutes: float = option("time between checkpoints within an epoch; there is one after each epoch, too", 15.0)
    seed: int = option("of the split, the first weights, the order of the clips and their crops", 0)

    def __post_init__(self):
        if self.model == "decoder":
            for field in dataclasses.fields(self):
                name, value = field.name.replace("_", "-"), getattr(self, field.name)
                unused = field.name in VOICE_OPTIONS and value != field.default
                check(not unused, f"--{name}: expected --model voice with it, found --model decoder")
        kind = "decoder" if self.model == "decoder" else self.encoder
        for name, default in (("run", RUN[self.model]), ("epochs", EPOCHS[kind]), ("learning_rate", LEARNING_RATE[kind])):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        check(self.decoder is None or self.loss == "total", f"--decoder: expected --loss total with it, found {self.loss}")
        least = 1 if kind == "conv" else 0
        check(self.epochs >= least, f"--epochs: expected at least {least}, found {self.epochs}")
        check(self.batch_size >= 1, f"--batch-size: expected at least 1, found {self.batch_size}")
        check(0 < self.learning_rate < math.inf, f"--learning-rate: expected more than 0, found {self.learning_rate}")
        check(0 <= self.weight_decay < math.inf, f"--weight-decay: expected 0 or more, found {self.weight_decay}")
        check(0 < self.width <= 4, f"--width: expected more than 0, 4 at most, found {self.width}")
        if self.encoder == "speaker":
            check(self.width == 1, f"--width: expected --encoder conv with it, whose channels it scales, found {self.encoder}")
            check(
                self.precision in ("auto", "float32"),
                f"--precision: expected float32 with --encoder speaker, found {self.precision}",
            )
        check(0 <= self.whitening <= 1, f"--whitening: expected 0 to 1, found {self.whitening}")
        check(self.clips is None or self.clips >= 1, f"--clips: expected at least 1, found {self.clips}")
        check(MIN_SECONDS <= self.seconds <= 6, f"--seconds: expected {MIN_SECONDS} to 6, found {self.seconds}")
        check(self.mask_bins >= 0, f"--mask-bins: expected 0 or more, found {self.mask_bins}")
        check(self.mask_frames >= 0, f"--mask-frames: expected 0 or more, found {self.mask_frames}")
        check(self.save_minutes >= 0, f"--save-minutes: expected 0 or more, found {self.save_minutes}")
        check(self.seed >= 0, f"--seed: expected 0 or more, found {self.seed}")


# ----------------------------------------------------------------------------------------------------------------------
# Going on with a run.


def resumed(options: Options, given: set[str]) -> Options:
    """Return the options that a run goes on with: its own, but for those that may change.

    Args:
        options: those of the command line.
        given: the names of those that it names.

    Raises:
        InputError: if there is no checkpoint, or an option was given that would make it another run.
    """
    folder = utils.run_folder(options.run)
    if not (folder / utils.LAST_WEIGHTS).exists():
        raise InputError(f"{folder}: expected a run's {utils.LAST_WEIGHTS} to go on with, found none; leave out --resume")
    path = folder / utils.OPTIONS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved = Options(**{field.name: saved[field.name] for field in dataclasses.fields(Options)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the options of a run, found {error!r}; start it anew without --resume") from error
    free = given & {"data", "run", "epochs", "save_minutes"} | {"resume"}
    for name in sorted(given - free):
        if getattr(options, name) != getattr(saved, name):
            raise InputError(
                f"--{name.replace('_', '-')}: expected {getattr(saved, name)}, with which {folder} was started, found "
                f"{getattr(options, name)}; leave it out to go on with the run, or leave out --resume to start another"
            )
    return dataclasses.replace(saved, **{"data": Path(saved.data), **{name: getattr(options, name) for name in free}})


def mean_face(data: Path, clips: list[str], feature_size: int, seed: int) -> np.ndarray:
    """Return the mean face feature of the clips, or of CENTRE_FACES of them drawn at random, float32 (feature_size,)."""
    drawn = utils.sample_clips(clips, CENTRE_FACES, seed)
    total = sum(feature_files.load_embedding(data, clip, feature_size).astype(np.float64) for clip in drawn)
    return (total / len(drawn)).astype(np.float32)


def choose_clips(options: Options) -> tuple[dict[str, list[str]], int]:
    """Find the clips to train on, "train", and those to validate on, "val", and how many numbers their face features have.

    Raises:
        InputError: if there are too few clips.
    """
    clips = utils.split_clips(feature_files.ready_clips(options.data), options.seed)
    train_clips = utils.sample_clips(clips["train"], options.clips or len(clips["train"]), options.seed)
    chosen = {"train": train_clips, "val": utils.sample_clips(clips["val"], VALIDATION_CLIPS, options.seed)}
    n_train, n_val = len(chosen["train"]), len({utils.video_of(clip) for clip in chosen["val"]})
    if n_train < options.batch_size or n_val < 2:
        raise InputError(
            f"{options.data}: expected at least --batch-size {options.batch_size} clips to train on and two videos to validate "
            f"on, found {n_train} and {n_val}; make more clips ready with preprocess.py"
        )
    return chosen, feature_files.feature_size_of(options.data, clips["train"][0])


def first_layer(run: str, feature_size: int):
    """Read the first layer of a run of --model decoder, for `losses.loss_function`. Raises InputError."""
    folder = utils.run_folder(run)
    found = runs.read_run(folder, "decoder")
    if found["feature_size"] != feature_size:
        raise InputError(
            f"--decoder: expected a run on face features of {feature_size} numbers, found {found['feature_size']} in {folder}"
        )

    return decoder.first_layer(runs.load_decoder(folder, found))


def build(options: Options, centre: np.ndarray, n_steps: int):
    """Build what is trained, within the present strategy's scope.

    Args:
        n_steps: of the whole training.

    Returns:
        The voice encoder; the rest of the training's state, Keras variables; the loss; the optimizer; and the step.
    """

    keras.mixed_precision.set_global_policy(options.precision)
    keras.utils.set_random_seed(options.seed)
    encoder = model.build_encoder(options.encoder, len(centre), options.width)
    if options.encoder == "conv":
        encoder.get_layer("fc2").bias.assign(centre)  # the mean face is the first guess
    loss = loss_function(options.loss, centre, vggface.fc8, options.decoder and first_layer(options.decoder, len(centre)))
    optimizer = steps.adam(encoder, options.schedule, options.learning_rate, n_steps, options.weight_decay)
    loss_scale = steps.LossScale() if options.precision == "mixed_float16" else None
    step = steps.training_step(encoder, optimizer, loss, options.batch_size, loss_scale)
    print(f"train: {encoder.count_params():,} parameters, {options.precision}", file=sys.stderr)
    return encoder, [*optimizer.variables, *(loss_scale.variables if loss_scale else ())], loss, optimizer, step


def train(options: Options, folder: Path, clips: dict[str, list[str]], centre: np.ndarray, chief: bool) -> Progress:
    """Train, within the present strategy's scope.

    Args:
        folder: of the run.
        clips: names of those to train on, "train", and to validate on, "val".
        centre: where the loss sees the features from, float32 (D,).
        chief: whether to validate and to write; one machine of several does.

    Returns:
        Where the run stands then.
    """

    n_steps = len(clips["train"]) // options.batch_size  # of an epoch
    last_step = options.epochs * n_steps
    encoder, state, loss, optimizer, step = build(options, centre, last_step)
    checkpoint, progress = folder / utils.LAST_WEIGHTS, Progress()
    if options.resume:
        progress = runs.load_checkpoint(checkpoint, encoder, state)
        print(f"train: goes on after step {progress.step} of {last_step}", file=sys.stderr)
    elif chief:
        runs.set_aside(folder)
        feature_size = {"feature_size": len(centre)}
        feature_files.save_array(folder / utils.CENTRE, centre)
        utils.write_json(folder / utils.CLIPS, clips)
        utils.write_json(folder / utils.OPTIONS, {**dataclasses.asdict(options), **feature_size})

    def save():
        if chief:
            runs.save_weights(checkpoint, encoder, state, progress)

    def end_epoch():
        if chief:
            scores = validate(encoder, loss, centre, options.data, clips["val"], options.batch_size)
            record = record_of_epoch(progress, n_steps, n_steps * options.batch_size, float(optimizer.learning_rate), scores)
            if record["val_loss"] < progress.best_loss:
                progress.best_epoch, progress.best_loss = record["epoch"], record["val_loss"]
                runs.save_weights(folder / utils.BEST_WEIGHTS, encoder)
            save()
            write_epoch(folder, progress.history)
            print(line_of_epoch(record, options.epochs), flush=True)

    n_frames = utils.frames_in(options.seconds)
    crops = Crops(options.batch_size, n_frames, options.mask_bins, options.mask_frames, options.seed)
    batches, errors = training_batches(options.data, clips["train"], len(centre), crops, progress.step, last_step)
    writer = tf.summary.create_file_writer(str(folder / "tensorboard")) if chief else tf.summary.create_noop_writer()
    with writer.as_default():
        if options.encoder == "speaker" and not options.resume:
            started = time.perf_counter()
            progress.loss_sum = n_steps * fit_in_closed_form(
                encoder, loss, centre, options.data, clips, options.whitening, options.batch_size
            )
            progress.seconds = time.perf_counter() - started
            end_epoch()
        with noting_signals() as stopping:
            while progress.step < last_step and not stopping:
                train_epoch(step, batches, errors, progress, n_steps, save, options.save_minutes, stopping)
                end_epoch()
    if progress.step < last_step:
        raise KeyboardInterrupt
    return progress


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folder = utils.run_folder(options.run)
    if options.model == "decoder":
        decoder_training.train(options, folder)
        return 0
    if options.resume:
        options = resumed(options, utils.options_given(argv))
        run = runs.read_run(folder)
        clips, centre = run["clips"], run["centre"]
    else:
        clips, feature_size = choose_clips(options)
        centre = np.zeros(feature_size, np.float32)
        if options.centre == "mean":
            centre = mean_face(options.data, clips["train"], feature_size, options.seed)
    print(
        f"train: {len(clips['train'])} clips to train on, {len(clips['val'])} to validate on, {len(centre)} numbers a face",
        file=sys.stderr,
    )

    if options.encoder == "speaker" and os.environ.get("TF_CONFIG"):
        raise InputError(
            "TF_CONFIG: expected none with --encoder speaker, for which one machine is enough, found one; unset it"
        )
    strategy = steps.strategy()
    replicas = strategy.num_replicas_in_sync
    if options.batch_size % replicas:
        raise InputError(f"--batch-size: expected a multiple of the {replicas} devices, found {options.batch_size}")
    print(
        f"train: {replicas} device{'s' if replicas > 1 else ''}, {options.batch_size // replicas} clips a step on each",
        file=sys.stderr,
    )
    if options.precision == "auto":
        options = dataclasses.replace(options, precision=steps.best_precision() if options.encoder == "conv" else "float32")
    with strategy.scope():
        try:
            progress = train(options, folder, clips, centre, steps.is_chief())
        except KeyboardInterrupt:
            if (folder / utils.LAST_WEIGHTS).exists():
                print(f"train: goes on with: python train.py --run {options.run} --resume", file=sys.stderr)
            raise
    if progress.history:
        best = next(record for record in progress.history if record["epoch"] == progress.best_epoch)
        print(
            f"train: epoch {progress.best_epoch} of {len(progress.history)} is the best, 1:2 matching "
            f"{100 * best['val_matching']:.1f} %, median rank {best['val_median_rank']:g} of {best['val_gallery']}: "
            f"{folder / utils.BEST_WEIGHTS}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
