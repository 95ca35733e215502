"""Benchmark of batch norm over several devices: this project's beside Keras's, on two virtual devices of the CPU.

Prints the s that a training step takes with each, measured by turns in the same process, and their ratio.

    python -m benchmarks devices --precision float32
"""

import dataclasses
import functools
import time

import numpy as np

import model
import utils
from training import steps
from training.losses import loss_function
from voices.backend import keras, layers, tf

DEVICES = 2


@dataclasses.dataclass(frozen=True)
class Options:
    width: float = utils.option("width of the encoder", 0.25, metavar="WIDTH")
    batch_size: int = utils.option("clips in a step, over both devices", 4, metavar="N")
    seconds: float = utils.option("length of the clips", 3.0, metavar="SECONDS")
    steps: int = utils.option("steps with each batch norm", 5, metavar="N")
    precision: str = utils.option(
        "precision, as for train.py", "auto", choices=("auto", "float32", "mixed_bfloat16", "mixed_float16")
    )


def training_step(batch_norm, options: Options):
    """Return a function that trains a voice encoder with this class of batch norm for a step, and waits for the loss."""
    ours, model.BatchNormalization = model.BatchNormalization, batch_norm
    encoder = model.voice_encoder(128, options.width)
    model.BatchNormalization = ours
    rng, share = np.random.default_rng(0), options.batch_size // DEVICES
    shapes = (share, utils.frames_in(options.seconds), utils.N_BINS, 2), (share, 128)
    batch = tuple(
        tf.distribute.get_strategy().experimental_distribute_values_from_function(
            lambda _, shape=shape: tf.constant(rng.normal(size=shape).astype(np.float32))
        )
        for shape in shapes
    )
    loss = loss_function("l2", np.zeros(128, np.float32))
    step = steps.training_step(encoder, steps.adam(encoder, "paper", 1e-3, 1000, 0), loss, options.batch_size)
    return lambda: float(step(batch))


def run(options: Options) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    precision = steps.best_precision() if options.precision == "auto" else options.precision
    keras.mixed_precision.set_global_policy(precision)
    print(f"width {options.width:g}, {precision}, batches of {options.batch_size}, {options.seconds:g} s, {DEVICES} devices")
    keras_layer = functools.partial(layers.BatchNormalization, synchronized=True)
    with steps.strategy().scope():
        functions = {"ours": training_step(model.BatchNormalization, options), "Keras's": training_step(keras_layer, options)}
        times = {name: [] for name in functions}
        for number in range(options.steps + 1):
            for name, step in functions.items():
                started = time.perf_counter()
                step()
                if number:  # the first step includes compilation
                    times[name].append(time.perf_counter() - started)
    ours, theirs = (min(seconds) for seconds in times.values())
    print(f"a step: ours {ours:.2f} s, Keras's {theirs:.2f} s, ratio {theirs / ours:.2f} (shortest of {options.steps})")
