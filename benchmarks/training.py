"""Benchmark of the training step, beside the slides' way and the machine's limit.

Prints, for the full-size voice encoder, clips a second of the training step; of the slides' way (float32, batch 1, Keras's
`fit` on arrays that are loaded 100 clips at a time); and of the machine's limit, the rate of large matrix products in the same
precision, at 534 GFLOP a clip. Then the time that each layer takes of a step, the clips a second that the input pipeline reads,
and the peak memory of --loss total beside that of l2.

    python -m benchmarks train
"""

import dataclasses
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import model
import utils
from benchmarks.measuring import ROOT, random_vggface, seconds_of
from clips import feature_files
from faces import vggface
from training import steps
from training.batches import Crops, training_batches
from training.losses import l2_loss, loss_function
from voices.backend import keras, tf


@dataclasses.dataclass(frozen=True)
class Options:
    width: float = utils.option("width of the encoder", 1.0, metavar="WIDTH")
    batch_size: int = utils.option("clips in a step", 8, metavar="N")
    precision: str = utils.option(
        "precision, as for train.py", "auto", choices=("auto", "float32", "mixed_bfloat16", "mixed_float16")
    )
    slides: int = utils.option("clips for the slides' way", 4, metavar="N")
    pipeline: int = utils.option("clips that the input pipeline reads", 1000, metavar="N")


def flop_of_layers(width: float, n_frames: int) -> dict[str, tuple[int, ...]]:
    """Return the operations of a clip's forward pass in each convolution: 2 for each product in the sums."""
    size, n_in, flop = [n_frames, utils.N_BINS], 2, {}
    for name, channels, kernel, stride in model.ENCODER:
        size = [(s - k) // step + 1 for s, k, step in zip(size, kernel, stride)]
        if channels:
            n_out = max(1, round(channels * width))
            flop[name] = 2 * size[0] * size[1] * kernel[0] * kernel[1] * n_in * n_out
            n_in = n_out
    return flop


def matmul_rate(dtype) -> float:
    """Return the operations a second of large matrix products."""
    n = 4096
    a, b = (tf.cast(tf.random.normal((n, n)), dtype) for _ in range(2))
    product = tf.function(lambda: tf.reduce_max(tf.matmul(a, b)))
    return 2 * n**3 / seconds_of(lambda: product().numpy(), 5)


def layer_table(width: float, batch_size: int, n_frames: int, limit: float) -> None:
    """Print the time of each convolution with its ReLU and batch norm, and of each pooling, forward and backward together."""
    flop = flop_of_layers(width, n_frames)
    size, n_in = [n_frames, utils.N_BINS], 2
    dtype = keras.mixed_precision.dtype_policy().compute_dtype
    total = at_limit = 0.0
    for name, channels, kernel, stride in model.ENCODER:
        x = tf.cast(tf.random.normal((batch_size, *size, n_in)), dtype)
        if channels:
            n_in = max(1, round(channels * width))
            block = [model.Conv2D(n_in, kernel, stride), keras.layers.ReLU(), model.BatchNormalization()]
        else:
            block = [keras.layers.MaxPooling2D(kernel, stride)]
        block = keras.Sequential(block)
        block.build(x.shape)

        @tf.function
        def both_ways(x=x, block=block, first=name == "conv1"):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = block(x, training=True)
            wanted = block.trainable_variables + ([] if first else [x])
            return [tf.reduce_max(g) for g in tape.gradient(y, wanted, output_gradients=y)]

        seconds = seconds_of(lambda run=both_ways: [g.numpy() for g in run()], 2)
        size = [(s - k) // step + 1 for s, k, step in zip(size, kernel, stride)]
        passes = 2 if name == "conv1" else 3  # forward, and back to the weights and the input
        ideal = batch_size * flop.get(name, 0) * passes / limit
        total, at_limit = total + seconds, at_limit + ideal
        share = f", {100 * ideal / seconds:3.0f} % of the limit, to {size[0]} x {size[1]} x {n_in}" if ideal else ""
        print(f"    {name}: {seconds:6.2f} s{share}", flush=True)
    print(f"    together: {total:.2f} s; at the limit {at_limit:.2f} s")


def step_seconds(
    width: float, batch_size: int, n_frames: int, precision: str, feature_size: int = 4096, loss: str = "l2"
) -> float:
    """Return the s that a step of train.py takes."""
    keras.mixed_precision.set_global_policy(precision)
    rng = np.random.default_rng(0)
    batch = (
        tf.constant(rng.normal(size=(batch_size, n_frames, utils.N_BINS, 2)).astype(np.float16)),
        tf.constant(rng.normal(size=(batch_size, feature_size)).astype(np.float32)),
    )
    encoder = model.voice_encoder(feature_size, width)
    optimizer = steps.adam(encoder, "cosine", 1e-3, 1000, 0)
    loss = loss_function(loss, np.zeros(feature_size, np.float32), vggface.fc8)
    step = steps.training_step(encoder, optimizer, loss, batch_size)
    return seconds_of(lambda: float(step(batch)), 2)


def slides_training(width: float, n: int, n_frames: int) -> float:
    """Train as the slides' project did, on n clips. Returns s a clip.

    Keras's own layers in float32, `fit` with batches of one on arrays, loaded from pickles 100 clips (or n) at a time.
    """
    keras.mixed_precision.set_global_policy("float32")
    ours = model.Conv2D, model.BatchNormalization
    model.Conv2D, model.BatchNormalization = keras.layers.Conv2D, keras.layers.BatchNormalization
    encoder = model.voice_encoder(4096, width)
    model.Conv2D, model.BatchNormalization = ours
    encoder.compile(keras.optimizers.Adam(1e-3, beta_1=0.5, epsilon=1e-4), l2_loss)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            clip = rng.normal(size=(n_frames, utils.N_BINS, 2)).astype(np.float32), rng.normal(size=4096).astype(np.float32)
            Path(folder, f"{i}.pkl").write_bytes(pickle.dumps(clip))

        def epoch(n):
            x, y = zip(*(pickle.loads(Path(folder, f"{i}.pkl").read_bytes()) for i in range(n)))
            encoder.fit(np.stack(x), np.stack(y), batch_size=1, verbose=0)

        epoch(1)  # builds the step
        return seconds_of(lambda: epoch(n), 2) / n


def pipeline_rate(n: int, batch_size: int) -> float:
    """Return the clips a second that train.py's input pipeline reads from pickles, 6 s each, with VGG-Face's features."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        clips = [f"v{i}_0-6" for i in range(n)]
        for clip in clips:
            spectrogram = rng.normal(size=(utils.N_FRAMES, utils.N_BINS, 2)).astype(np.float16)
            feature_files.save_array(feature_files.spectrogram_path(folder, clip), spectrogram)
            feature_files.save_array(feature_files.embedding_path(folder, clip), rng.normal(size=4096).astype(np.float32))
        crops = Crops(batch_size, utils.N_FRAMES, 40, 40, 0)
        n_steps = n // batch_size

        def epoch():
            batches, _ = training_batches(Path(folder), clips, 4096, crops, 0, n_steps)
            for _ in batches:
                pass

        return n_steps * batch_size / seconds_of(epoch, 2)


def in_a_process(function: str, *arguments):
    """Call one of this file's functions in a process of its own. Returns its result, and the peak memory in bytes."""
    code = (
        "import resource; from benchmarks import training; "
        f"result = training.{function}(*{arguments!r}); "
        "print(result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    *_, last = done.stdout.splitlines()
    result, peak = last.rsplit(" ", 1)
    return float(result), int(peak)


def run(options: Options) -> None:
    precision = steps.best_precision() if options.precision == "auto" else options.precision
    batch_size, n_frames = options.batch_size, utils.N_FRAMES
    flop = flop_of_layers(options.width, n_frames)
    gflop = (3 * sum(flop.values()) - flop["conv1"]) / 1e9
    print(f"width {options.width:g}, {precision}, batches of {batch_size}, 6 s; {gflop:.0f} GFLOP a clip in the convolutions")

    limit = matmul_rate("bfloat16" if precision == "mixed_bfloat16" else "float32")
    print(f"limit: {limit / 1e9:.0f} GFLOP/s in matrix products of 4096, {limit / gflop / 1e9:.2f} clips/s", flush=True)
    step = in_a_process("step_seconds", options.width, batch_size, n_frames, precision)[0] / batch_size
    share = 100 * gflop * 1e9 / step / limit
    print(f"train.py's step: {step:.2f} s a clip, {1 / step:.2f} clips/s, {share:.0f} % of the limit", flush=True)
    slides, _ = in_a_process("slides_training", options.width, options.slides, n_frames)
    print(f"the slides' way: {slides:.2f} s a clip, {1 / slides:.2f} clips/s; ratio {slides / step:.2f}", flush=True)
    print("time of a step by layer, forward and backward:")
    keras.mixed_precision.set_global_policy(precision)
    layer_table(options.width, batch_size, n_frames, limit)
    print(f"input pipeline alone: {pipeline_rate(options.pipeline, batch_size):.0f} clips/s", flush=True)

    with tempfile.TemporaryDirectory() as home:
        random_vggface(Path(home))
        peaks = {}
        for loss in ("l2", "total"):
            arguments = (options.width, batch_size, n_frames, precision, 4096, loss)
            peaks[loss] = [in_a_process("step_seconds", *arguments)[1] for _ in range(2)]
    l2, total = (min(peaks[loss]) for loss in ("l2", "total"))
    more = f"{(total - l2) / 1e6:+.0f} MB (lowest of 2 runs)"
    print(f"peak memory: --loss l2 {l2 / 1e9:.2f} GB, total {total / 1e9:.2f} GB, {more}")
