import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import model
import train
from training import setup, steps
from training.losses import l1_loss, l2_loss
from utils import N_BINS, InputError
from voices.backend import keras, tf


@pytest.fixture
def linear():
    """A model that returns its input, times weights that start as 1."""
    inputs = keras.Input((8,))
    return keras.Model(inputs, keras.layers.Dense(8, use_bias=False, kernel_initializer="identity")(inputs))


def test_a_step_returns_the_mean_over_the_batch(linear, rng):
    face, voice = rng.normal(size=(2, 6, 8)).astype(np.float32)
    step = steps.training_step(linear, steps.adam(linear, "paper", 1e-3, 10, 0), l1_loss, 6)
    assert float(step((voice, face))) == pytest.approx(np.abs(face - voice).sum(1).mean(), rel=1e-5)


def test_the_loss_scale_changes_no_step(linear, rng):
    """The gradients are as small as Adam's epsilon, so that the length of a step depends on theirs."""
    before, steps_made = linear.get_weights(), []
    batch = tuple(rng.normal(size=(2, 4, 8)).astype(np.float32))
    for scale in (None, steps.LossScale()):
        linear.set_weights(before)
        optimizer = steps.adam(linear, "paper", 1e-3, 10, 0)
        step = steps.training_step(linear, optimizer, lambda face, voice: 1e-4 * tf.reduce_sum(face * voice, axis=-1), 4, scale)
        step(batch)
        steps_made.append(linear.get_weights()[0] - before[0])
    np.testing.assert_allclose(steps_made[1], steps_made[0], rtol=0.01, atol=1e-6)
    assert np.abs(steps_made[0]).max() > 1e-5


def test_training_on_one_batch_halves_its_loss(rng):
    keras.utils.set_random_seed(0)
    encoder = model.voice_encoder(16, 0.05)
    batch = rng.normal(size=(8, 300, N_BINS, 2)).astype(np.float16), rng.normal(size=(8, 16)).astype(np.float32)
    step = steps.training_step(encoder, steps.adam(encoder, "paper", 1e-3, 25, 0), l2_loss, 8)
    losses = [float(step(batch)) for _ in range(25)]
    assert losses[-1] < losses[0] / 2


def test_the_papers_optimizer(linear):
    optimizer = steps.adam(linear, "paper", 1e-3, 10**6, 0)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 1e-4)
    rate = optimizer._learning_rate
    assert [float(rate(step)) for step in (0, 9_999, 10_000, 20_000)] == pytest.approx([1e-3, 1e-3, 0.95e-3, 0.95**2 * 1e-3])


def test_the_cosine_schedule_rises_and_falls(linear):
    rate = steps.adam(linear, "cosine", 2e-3, 1000, 0)._learning_rate
    expected = [0, 1e-3, 2e-3, 2e-3 * (1 + np.cos(np.pi / 2)) / 2, 0]
    assert [float(rate(step)) for step in (0, 25, 50, 525, 1000)] == pytest.approx(expected, abs=1e-9)


def test_weight_decay_shrinks_kernels_only():
    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3, bias_initializer="ones")(inputs)))
    before = [w.numpy() for w in network.trainable_weights]
    optimizer = steps.adam(network, "paper", 0.1, 10, 0.5)
    optimizer.apply([tf.zeros(w.shape) for w in network.trainable_weights], network.trainable_weights)
    for weight, old in zip(network.trainable_weights, before):
        np.testing.assert_allclose(weight, old * (0.95 if weight.name == "kernel" else 1), rtol=1e-5)


def product_loss(face, voice):
    """A loss that is linear in the prediction: its gradient is as large as the face."""
    return tf.reduce_sum(face * voice, axis=-1)


OVERFLOW = 1e37  # the loss is finite, 2**15 times as much is not


def test_a_step_that_overflows_changes_the_loss_scale_only(rng):
    """The third step, so that Adam has momentum that would move the weights on; batch norm keeps its running statistics."""
    inputs = keras.Input((8,))
    dense = keras.layers.Dense(8, use_bias=False, kernel_initializer="identity")
    network = keras.Model(inputs, dense(keras.layers.BatchNormalization()(inputs)))
    scale, optimizer = steps.LossScale(), steps.adam(network, "paper", 1e-3, 10, 0)
    step = steps.training_step(network, optimizer, product_loss, 2, scale)
    voice = rng.normal(size=(2, 8)).astype(np.float32)

    def state():
        return [variable.numpy() for variable in (*network.weights, *optimizer.variables)]

    step((voice, voice))
    before = state()
    step((voice, voice))
    after = state()
    assert all((a != b).any() for a, b in zip(before, after) if a.ndim) and int(optimizer.iterations) == 2
    step((7 + voice, np.full((2, 8), OVERFLOW, np.float32)))
    np.testing.assert_equal(state(), after)
    assert float(scale.factor) == 2.0**14
    step((voice, voice))
    assert int(optimizer.iterations) == 3 and np.abs(state()[-1] - after[-1]).max() > 0
    scale.steps.assign(steps.STEPS_TO_DOUBLE - 1)
    step((voice, voice))
    assert float(scale.factor) == 2.0**15 and float(scale.steps) == 0


def test_the_loss_scale_is_1_at_least(linear):
    """Twenty steps that overflow at any scale would otherwise halve it to 2**-5, and a thousand to 0."""
    scale, voice = steps.LossScale(), np.ones((2, 8), np.float32)
    step = steps.training_step(linear, steps.adam(linear, "paper", 1e-3, 10, 0), product_loss, 2, scale)
    for _ in range(20):
        step((voice, np.full((2, 8), np.inf, np.float32)))
    assert float(scale.factor) == 1
    np.testing.assert_array_equal(linear.get_weights()[0], np.eye(8))
    step((voice, voice))
    np.testing.assert_allclose(linear.get_weights()[0], np.eye(8) - 1e-3, atol=1e-5)


OVERFLOW_ON_ONE_OF_TWO = """
import numpy as np
from training import steps
from voices.backend import keras, tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = steps.strategy()
with strategy.scope():
    inputs = keras.Input((8,))
    normed = keras.layers.BatchNormalization(synchronized=True)(inputs)
    network = keras.Model(inputs, keras.layers.Dense(8, use_bias=False, kernel_initializer="identity")(normed))
    scale, optimizer = steps.LossScale(), steps.adam(network, "paper", 1e-3, 10, 0)
    step = steps.training_step(network, optimizer, lambda face, voice: tf.reduce_sum(face * voice, axis=-1), 4, scale)
states = []
for largest in (1, 1, 1e37, 1):
    faces = np.ones((4, 8), np.float32)
    faces[3] = largest  # on the second replica
    voices = np.random.default_rng(len(states)).normal(size=(4, 8)).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((voices, faces)).batch(4)
    step(next(iter(strategy.experimental_distribute_dataset(batches))))
    variables = [*network.weights, *optimizer.variables]
    states.append([value.numpy() for variable in variables for value in strategy.experimental_local_results(variable.value)])
assert len(states[0]) >= 2 * len(network.weights)
equal = [all((a == b).all() for a, b in zip(*pair)) for pair in zip(states, states[1:])]
print(equal, float(scale.factor.numpy()))
"""


def test_an_overflow_on_one_device_leaves_out_the_step_on_both():
    done = subprocess.run([sys.executable, "-c", OVERFLOW_ON_ONE_OF_TWO], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[False, True, False] 16384.0", done.stderr


@pytest.mark.parametrize(
    "capabilities, flags, expected",
    [
        ([(8, 6)], "", "mixed_bfloat16"),
        ([(7, 5), (8, 0)], "", "mixed_float16"),
        ([(6, 1)], "avx512_bf16", "float32"),
        ([], "sse avx2 avx512_bf16", "mixed_bfloat16"),
        ([], "avx512f amx_bf16", "mixed_bfloat16"),
        ([], "avx2 avx512f", "float32"),
        ([], None, "float32"),
    ],
)
def test_precision_follows_the_hardware(capabilities, flags, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: capabilities)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": gpu})
    monkeypatch.setattr(model, "CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: fpu {flags}\n")
    assert steps.best_precision() == expected


class Gpu:
    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize(
    "names, replicas, expected",
    [
        ([], 1, "1 CPU"),
        ([], 2, "2 CPUs"),
        (["NVIDIA H100"], 1, "1 GPU (NVIDIA H100)"),
        (["NVIDIA H100"] * 2, 2, "2 GPUs (NVIDIA H100)"),
        (["NVIDIA L4", "NVIDIA A10"], 2, "2 GPUs (NVIDIA A10, NVIDIA L4)"),
        ([None], 1, "1 GPU"),
    ],
)
def test_devices_are_named(names, replicas, expected, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [Gpu(name) for name in names])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": gpu.name} if gpu.name else {})
    assert steps.devices(replicas) == expected


@pytest.mark.parametrize("file", ["dev/nvidia0", "usr/lib/wsl/lib/libcuda.so.1"])
def test_a_gpu_that_tensorflow_does_not_find_is_told(file, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(steps, "SYSTEM", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    options = train.with_defaults(train.Options(width=0.03))
    setup.strategy(options)
    assert capsys.readouterr().err == "train: 1 CPU, 8 clips a step on each\n"
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    setup.strategy(options)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train: 1 CPU, 8 clips a step on each"
    assert second.startswith("train: NVIDIA's driver is here, but TensorFlow finds no GPU: ") and "make GPU=1" in second
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # hidden on purpose
    assert not steps.has_unused_gpu()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    assert not steps.has_unused_gpu()


def test_a_batch_too_large_for_a_device_is_refused_before_training():
    with pytest.raises(InputError, match=r"--batch-size: expected at most 114 clips of 598 frames .* found 115 on"):
        setup.strategy(train.with_defaults(train.Options(batch_size=115)))
    setup.strategy(train.with_defaults(train.Options(batch_size=115, encoder="speaker")))


@pytest.mark.parametrize("given, expected", [(None, "true"), ("false", "false")])
def test_memory_of_a_gpu_is_taken_as_it_is_needed(given, expected):
    code = "import os; from voices.backend import tf; print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    environment = {name: value for name, value in os.environ.items() if name != "TF_FORCE_GPU_ALLOW_GROWTH"}
    environment |= {"TF_FORCE_GPU_ALLOW_GROWTH": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"
