import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import model
from training import steps
from training.losses import l1_loss, l2_loss
from utils import N_BINS
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
