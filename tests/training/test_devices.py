import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT, SEED, TINY, arrays_of, encoder_weights, history, run_train, wait_for

import model
import utils
from clips import feature_files
from voices.backend import keras

# In float32: with 16 bits, the order of sums would matter.
GENTLY = ["--loss", "contrastive", "--learning-rate", "1e-5", "--schedule", "paper", "--precision", "float32"]

ON_DEVICES = """
import sys
import train
from voices.backend import tf
devices = int(sys.argv.pop(1))
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
raise SystemExit(train.main(sys.argv[1:]))
"""


def on_devices(devices, data, run, *more, environment=None):
    command = [sys.executable, "-c", ON_DEVICES, devices, "--data", data, "--run", run, *TINY, *more]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE, text=True
    )


def workers(data, run, *more):
    """Start two processes on loopback that train together. Returns them, the one that writes first."""
    with contextlib.ExitStack() as sockets:
        ports = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    return [on_devices(1, data, run, *more, environment={"TF_CONFIG": config}) for config in configs]


def assert_nearly_same_run(ours, theirs):
    """Assert equality up to rounding, for sums in another order: weights have changed alike within 15 %, and the running
    statistics of batch norm agree within 0.1 % (statistics of half batches would be far off).
    """
    losses = [[epoch["train_loss"] for epoch in history(run)] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    losses = [[epoch["val_loss"] for epoch in history(run)] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    keras.utils.set_random_seed(SEED)
    encoder = model.voice_encoder(128, 0.03)
    encoder.get_layer("fc2").bias.assign(feature_files.load_array(ours / utils.CENTRE, np.float32, (128,)))
    first, ours, theirs = encoder.get_weights(), encoder_weights(ours), encoder_weights(theirs)
    for trained, tolerance in ((True, 0.15), (False, 0.001)):
        chosen = [number for number, variable in enumerate(encoder.weights) if variable.trainable == trained]
        a, b, start = (np.concatenate([of[number].ravel() for number in chosen]) for of in (ours, theirs, first))
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b - start)


@pytest.fixture(scope="module")
def on_one_device(demo_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "on-one"
    assert run_train(demo_data, run, *GENTLY, "--epochs", 2) == 0
    return run


def test_two_devices_train_as_one(on_one_device, demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", *GENTLY, "--epochs", 2)
    stderr = process.communicate()[1]
    assert process.returncode == 0 and "2 CPUs, 2 clips a step on each" in stderr, stderr
    assert_nearly_same_run(tmp_path / "run", on_one_device)


def test_two_machines_train_as_one(on_one_device, demo_data, tmp_path):
    """Two processes on loopback train one epoch, then resume."""
    for more in ((*GENTLY, "--epochs", 1), ("--epochs", 2, "--resume")):
        for worker in workers(demo_data, tmp_path / "run", *more):
            stderr = worker.communicate()[1]
            assert worker.returncode == 0 and "2 CPUs, 2 clips a step on each" in stderr, stderr
    assert_nearly_same_run(tmp_path / "run", on_one_device)


def test_a_signal_to_one_of_two_machines_stops_both_at_the_same_step(demo_data, tmp_path):
    """The other machine gets no signal, and the checkpoint holds the step that both name; resuming it goes on from there."""
    run = tmp_path / "run"
    both = workers(demo_data, run, *GENTLY, "--epochs", 1000, "--save-minutes", 0)
    wait_for(lambda: (run / utils.LAST_WEIGHTS).exists() or any(worker.poll() is not None for worker in both), 300)
    both[1].send_signal(signal.SIGTERM)
    said = [worker.communicate(timeout=300)[1] for worker in both]
    assert [worker.returncode for worker in both] == [130, 130], said
    stopped = [re.findall(r"train: stopped after step (\d+)", stderr) for stderr in said]
    with h5py.File(run / utils.LAST_WEIGHTS) as file:
        progress = json.loads(file["training/progress"][()])
    assert stopped[0] == stopped[1] == [str(progress["step"])] and 1 <= progress["step"] < 5000
    assert "stops after this step" in said[1] and "stops after this step" not in said[0]


def test_16_bit_floats_on_two_devices(demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", "--epochs", 1, "--precision", "mixed_float16")
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    assert all(np.isfinite(values).all() for values in encoder_weights(tmp_path / "run"))


OVERFLOW_ON_ONE = """
import json
from voices.backend import keras, tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from training import steps
strategy = steps.strategy()
with strategy.scope():
    inputs = keras.Input((2,))
    network = keras.Model(inputs, keras.layers.Dense(2, use_bias=False, kernel_initializer="identity")(inputs))
    scale = steps.LossScale()
    optimizer = steps.adam(network, "paper", 1e-3, 10, 0)
    step = steps.training_step(network, optimizer, lambda face, voice: tf.reduce_sum(face * voice, axis=-1), 2, scale)
for factors in ((1, 1e37), (1, 3)):
    def clip(context, shift=0):
        return tf.fill((1, 2), 1.0 if shift else float(factors[context.replica_id_in_sync_group]))
    values = strategy.experimental_distribute_values_from_function
    loss = step((values(lambda context: clip(context, 1)), values(clip)))
    copies = [[copy.numpy().tolist() for copy in strategy.experimental_local_results(of.value)]
              for of in (network.trainable_weights[0], scale.factor)]
    print(json.dumps([float(loss), *copies]))
"""


def test_an_overflow_on_one_device_is_left_out_on_all():
    """The first step overflows on the second device only. The loss is the mean over both devices."""
    process = subprocess.run([sys.executable, "-c", OVERFLOW_ON_ONE], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    (_, kernels, factors), (loss, *later) = map(json.loads, process.stdout.splitlines())
    assert kernels == [np.eye(2).tolist()] * 2 and factors == [2.0**14] * 2
    assert loss == 4  # the mean of 2 and 6
    assert later[0][0] == later[0][1] != np.eye(2).tolist() and later[1] == factors


def test_the_speaker_encoder_trains_on_two_devices_as_on_one(demo_data, tmp_path):
    """The closed form and a step by gradients, of all weights of both pretrained networks."""
    processes = []
    for devices in (1, 2):
        arguments = ["--data", demo_data, "--run", tmp_path / str(devices), "--seed", SEED, "--clips", 4, "--batch-size", 4]
        command = [sys.executable, "-c", ON_DEVICES, devices, *arguments, "--encoder", "speaker", "--epochs", 1]
        processes.append(subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in processes:
        stderr = process.communicate()[1]
        assert process.returncode == 0, stderr
    one, two = (arrays_of(tmp_path / devices / utils.LAST_WEIGHTS) for devices in ("1", "2"))
    for name in one:
        if name.startswith("layers"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    losses = [[epoch["val_loss"] for epoch in history(tmp_path / devices)] for devices in ("1", "2")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3) and len(losses[0]) == 2


def test_a_batch_that_does_not_divide_is_reported(demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", "--batch-size", 3)
    stderr = process.communicate()[1]
    assert process.returncode == 1 and "error: --batch-size: expected a multiple of the 2 devices, found 3" in stderr


PREDICTION = """
import sys
from pathlib import Path
import numpy as np
from clips import feature_files
from training import steps
from training.batches import predict_features
from voices.backend import tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
data, seen = Path(sys.argv[1]), set()
clips = feature_files.ready_clips(data)[:11]

def encoder(spectrograms, training):
    assert not training
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    tf.numpy_function(lambda *of_batch: seen.add(tuple(map(int, of_batch))), [replica, tf.shape(spectrograms)[0]], [])
    return tf.reduce_mean(tf.cast(spectrograms, "float32"), axis=(1, 3))

with steps.strategy().scope():
    voices, faces = predict_features(encoder, data, clips, 128, 4, n_frames=300)
spectrograms = [feature_files.load_spectrogram(data, clip)[:300].astype("float32") for clip in clips]
np.testing.assert_allclose(voices, np.mean(spectrograms, axis=(1, 3)), rtol=1e-4, atol=1e-5)
np.testing.assert_array_equal(faces, [feature_files.load_embedding(data, clip, 128) for clip in clips])
print(sorted(seen))
"""


def test_prediction_is_spread_over_the_devices(demo_data):
    """Of 11 clips, two devices receive four each; then the three left, and one of them again, for devices of equal shares."""
    command = [sys.executable, "-c", PREDICTION, demo_data]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[(0, 2), (0, 4), (1, 2), (1, 4)]\n", done.stderr


BATCH_NORM = """
import sys
import numpy as np
import model
from training import steps
from voices.backend import tf

precision, path = sys.argv[1:]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
x = tf.cast(rng.normal(2, 3, size=(4, 3, 5, 6)) * [[[[1]]], [[[2]]], [[[3]]], [[[4]]]], "float32")
x = tf.cast(x, precision)
strategy, found = steps.strategy(), {}

def both_ways(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        value = tf.reduce_sum(tf.cast(y, "float32") ** 3)
    d_x, d_gamma, d_beta = tape.gradient(value, [x, layer.gamma.value, layer.beta.value])
    return y, d_x, d_gamma, d_beta

for name, scope in (("one", tf.distribute.get_strategy()), ("two", strategy)):
    with scope.scope():
        layer = model.BatchNormalization(momentum=0.9, dtype=precision if precision == "float32" else f"mixed_{precision}")
        layer.build((None, 3, 5, 6))
        layer.gamma.assign(np.arange(1.0, 7))
        layer.beta.assign(np.arange(6.0))
        shares = iter(tf.split(x, scope.num_replicas_in_sync))
        values = scope.experimental_distribute_values_from_function(lambda _: next(shares))
        results = scope.run(tf.function(both_ways), (layer, values))
        y, d_x, d_gamma, d_beta = (scope.experimental_local_results(result) for result in results)
        found[f"{name}/y"], found[f"{name}/x"] = (tf.cast(tf.concat(shares, 0), "float32") for shares in (y, d_x))
        found[f"{name}/gamma"], found[f"{name}/beta"] = (tf.add_n(shares) for shares in (d_gamma, d_beta))
        found[f"{name}/mean"], found[f"{name}/variance"] = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        if name == "two":
            assert len(y) == 2 and y[0].dtype == x.dtype
np.savez(path, **found)
"""


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 2e-3)])
def test_batch_norm_over_two_devices_is_that_of_one(precision, tolerance, tmp_path):
    """Output, gradients and running statistics; the two halves of the batch have different means and variances."""
    path = tmp_path / "found.npz"
    subprocess.run([sys.executable, "-c", BATCH_NORM, precision, path], cwd=ROOT, check=True)
    found = np.load(path)
    for name in ("y", "x", "gamma", "beta", "mean", "variance"):
        one, two = found[f"one/{name}"], found[f"two/{name}"]
        np.testing.assert_allclose(two, one, rtol=0, atol=tolerance * np.abs(one).max(), err_msg=name)
