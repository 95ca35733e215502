"""Train the voice encoder: spectrogram -> face feature.

Reads what preprocess.py wrote under --data, of the training and validation videos. Writes to checkpoints/<run>/

    options.json       what the run was started with
    history.jsonl      one object an epoch
    best.weights.h5    the weights of the epoch with the lowest validation loss
    last.weights.h5    the weights of the last epoch

    python train.py
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

import utils
from utils import HOP, N_FRAMES, SAMPLE_RATE, WINDOW, InputError, check, option

# Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
BETA_1 = 0.5
EPSILON = 1e-4
DECAY_RATE, DECAY_STEPS = 0.95, 10_000  # the learning rate times 0.95 every 10,000 steps

MIN_SECONDS = 2.61  # s; the encoder needs 259 frames


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path = option("folder that preprocess.py wrote", utils.DATA)
    run: str = option("name of the run: its folder is checkpoints/<run>; or a path", "base")
    loss: str = option("l2: of the normalised features; l1: of the features as they are", "l2", choices=("l1", "l2"))
    epochs: int = option("passes over the training clips", 30)
    batch_size: int = option("clips in a step, over all GPUs together", 8)
    learning_rate: float = option(f"of Adam, at the start; times {DECAY_RATE} every {DECAY_STEPS:,} steps", 1e-3)
    width: float = option("scale of the encoder's channels; 1 is the paper's network, 0.125 trains on a CPU", 1.0)
    seconds: float = option(
        f"length of the piece of each clip that a step hears, {MIN_SECONDS} to 6 s, drawn anew each time", 6.0
    )
    precision: str = option(
        "of the computation; the mixed ones are faster on hardware that has them",
        "float32",
        choices=("float32", "mixed_float16", "mixed_bfloat16"),
    )
    seed: int = option("of the split, the first weights and the order of the clips", 0)

    def __post_init__(self):
        check(self.epochs >= 1, f"--epochs: expected at least 1, found {self.epochs}")
        check(self.batch_size >= 1, f"--batch-size: expected at least 1, found {self.batch_size}")
        check(0 < self.learning_rate < math.inf, f"--learning-rate: expected more than 0, found {self.learning_rate}")
        check(0 < self.width <= 4, f"--width: expected more than 0, 4 at most, found {self.width}")
        check(MIN_SECONDS <= self.seconds <= 6, f"--seconds: expected {MIN_SECONDS} to 6, found {self.seconds}")
        check(self.seed >= 0, f"--seed: expected 0 or more, found {self.seed}")


def frames_in(seconds: float) -> int:
    """Return how many spectrogram frames so much sound gives, N_FRAMES at most."""
    return min(N_FRAMES, 1 + (round(seconds * SAMPLE_RATE) - WINDOW) // HOP)


def set_aside(folder: Path) -> None:
    """Move a folder that holds the weights of an earlier run to <folder>-1, or the next free number."""
    if not (folder / utils.BEST_WEIGHTS).exists():
        return
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    print(f"train: {folder} holds an earlier run, now kept as {kept}", file=sys.stderr)


def compile_encoder(options: Options, feature_size: int):
    """Build the voice encoder on all the machine's GPUs, or on its CPU.

    Returns:
        The encoder, whose weights are saved; and the same layers as a model with optimizer and loss, which is trained.
    """
    import model
    from model import keras

    keras.mixed_precision.set_global_policy(options.precision)
    strategy = model.strategy()
    replicas = strategy.num_replicas_in_sync
    if options.batch_size % replicas:
        raise InputError(f"--batch-size: expected a multiple of the {replicas} devices, found {options.batch_size}")
    with strategy.scope():
        encoder = model.voice_encoder(feature_size, options.width)
        schedule = keras.optimizers.schedules.ExponentialDecay(options.learning_rate, DECAY_STEPS, DECAY_RATE, staircase=True)
        trainer = keras.Model(encoder.input, encoder.output)
        trainer.compile(keras.optimizers.Adam(schedule, beta_1=BETA_1, epsilon=EPSILON), model.LOSSES[options.loss])
    print(
        f"train: {encoder.count_params():,} parameters; {replicas} device{'s' if replicas > 1 else ''}, "
        f"{options.batch_size // replicas} clips a step on each",
        file=sys.stderr,
    )
    return encoder, trainer


def train_epoch(trainer, batches, epoch: int, n_steps: int) -> float:
    """Train on all batches once.

    Returns:
        The mean loss.

    Raises:
        InputError: if the loss is not finite.
    """
    from model import keras

    class Progress(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            progress.update()
            progress.set_postfix(loss=f"{logs['loss']:.3f}")
            if not math.isfinite(logs["loss"]):
                raise InputError(
                    f"the loss of epoch {epoch}, step {step + 1} is {logs['loss']}, expected a finite number; "
                    "try a lower --learning-rate or --precision float32"
                )

    with tqdm(desc=f"epoch {epoch}", total=n_steps, unit="step", leave=False, disable=None) as progress:
        return trainer.fit(batches, shuffle=False, verbose=0, callbacks=[Progress()]).history["loss"][0]


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    clips = utils.split_clips(utils.ready_clips(options.data), options.seed)
    n_train, n_val = len(clips["train"]), len(clips["val"])
    if n_train < options.batch_size or n_val == 0:
        raise InputError(
            f"{options.data}: expected at least --batch-size {options.batch_size} clips to train on and one to validate on, "
            f"found {n_train} and {n_val}; make more clips ready with preprocess.py"
        )
    feature_size = utils.feature_size_of(options.data, clips["train"][0])
    print(f"train: {n_train} clips to train on, {n_val} to validate on, {feature_size} numbers a face", file=sys.stderr)

    import model
    from model import keras, tf

    keras.utils.set_random_seed(options.seed)
    encoder, trainer = compile_encoder(options, feature_size)
    folder = utils.run_folder(options.run)
    set_aside(folder)
    utils.write_json(folder / utils.OPTIONS, {**dataclasses.asdict(options), "feature_size": feature_size})

    n_steps = n_train // options.batch_size
    best_loss, best_epoch = math.inf, 0
    with open(folder / "history.jsonl", "w", encoding="utf-8") as history:
        for epoch in range(1, options.epochs + 1):
            started = time.perf_counter()
            learning_rate = float(trainer.optimizer.learning_rate)
            batches, errors = model.clip_batches(
                options.data,
                clips["train"],
                feature_size,
                options.batch_size,
                frames_in(options.seconds),
                (options.seed, epoch),
            )
            to_validate, val_errors = model.clip_batches(options.data, clips["val"], feature_size, options.batch_size)
            try:
                train_loss = train_epoch(trainer, batches, epoch, n_steps)
                train_seconds = time.perf_counter() - started
                val_loss = trainer.evaluate(to_validate, verbose=0)
            except tf.errors.OpError as error:
                raise (errors + val_errors or [error])[0] from None
            with utils.replacing(folder / utils.LAST_WEIGHTS) as temporary:
                encoder.save_weights(temporary)
            if val_loss < best_loss:
                best_loss, best_epoch = val_loss, epoch
                with utils.replacing(folder / utils.BEST_WEIGHTS) as temporary:
                    encoder.save_weights(temporary)
            seconds = time.perf_counter() - started
            clips_per_second = n_steps * options.batch_size / train_seconds
            record = {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "learning_rate": learning_rate,
                "seconds": round(seconds, 2),
                "clips_per_second": round(clips_per_second, 2),
            }
            history.write(json.dumps(record) + "\n")
            history.flush()
            print(
                f"epoch {epoch:2}/{options.epochs}  train {train_loss:.4f}  val {val_loss:.4f}  lr {learning_rate:.1e}  "
                f"{seconds:.1f} s  {clips_per_second:.1f} clips/s",
                flush=True,
            )
    if best_epoch == 0:
        raise InputError(f"{folder}: expected a finite validation loss in some epoch, found none; try a lower --learning-rate")
    print(f"train: epoch {best_epoch} of {options.epochs} is the best, val {best_loss:.4f}: {folder / utils.BEST_WEIGHTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
