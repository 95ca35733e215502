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


def test_a_batch_that_does_not_divide_is_reported(demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", "--batch-size", 3)
    stderr = process.communicate()[1]
    assert process.returncode == 1 and "error: --batch-size: expected a multiple of the 2 devices, found 3" in stderr
