import numpy as np
import pytest

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


def test_the_loss_scale_leaves_out_a_step_that_overflows(linear, rng):
    voice = rng.normal(size=(2, 8)).astype(np.float32)
    scale = steps.LossScale()
    optimizer = steps.adam(linear, "paper", 1e-3, 10, 0)
    step = steps.training_step(linear, optimizer, lambda face, voice: tf.reduce_sum(face * voice, axis=-1), 2, scale)
    before = linear.get_weights()[0]
    step((voice, np.full((2, 8), 1e37, np.float32)))  # the loss is finite, 2**15 times as much is not
    np.testing.assert_array_equal(linear.get_weights()[0], before)
    assert float(scale.factor) == 2.0**14
    step((voice, voice))
    assert np.abs(linear.get_weights()[0] - before).max() > 1e-4 and float(scale.factor) == 2.0**14
    scale.steps.assign(steps.STEPS_TO_DOUBLE - 1)
    step((voice, voice))
    assert float(scale.factor) == 2.0**15 and float(scale.steps) == 0


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
