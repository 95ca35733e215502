import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SEED, TINY, encoder_weights, history, run_train

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


def assert_nearly_same_run(ours, theirs):
    """Assert equality up to rounding, for sums in another order: weights have changed alike within 15 %, and the running
    statistics of batch norm agree within 0.1 % (statistics of half batches would be far off).
    """
    losses = [[epoch["train_loss"] for epoch in history(run)] for run in (ours, theirs)]
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
    assert process.returncode == 0 and "2 devices, 2 clips a step on each" in stderr, stderr
    assert_nearly_same_run(tmp_path / "run", on_one_device)


def test_two_machines_train_as_one(on_one_device, demo_data, tmp_path):
    """Two processes on loopback train one epoch, then resume."""
    for more in ((*GENTLY, "--epochs", 1), ("--epochs", 2, "--resume")):
        with contextlib.ExitStack() as sockets:
            ports = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
        workers = [on_devices(1, demo_data, tmp_path / "run", *more, environment={"TF_CONFIG": config}) for config in configs]
        for worker in workers:
            stderr = worker.communicate()[1]
            assert worker.returncode == 0 and "2 devices, 2 clips a step on each" in stderr, stderr
    assert_nearly_same_run(tmp_path / "run", on_one_device)


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


def test_a_batch_that_does_not_divide_is_reported(demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", "--batch-size", 3)
    stderr = process.communicate()[1]
    assert process.returncode == 1 and "error: --batch-size: expected a multiple of the 2 devices, found 3" in stderr
