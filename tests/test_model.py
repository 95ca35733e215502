import h5py
import librosa
import numpy as np
import pytest

import model
from faces import vggface
from training import steps
from training.losses import (
    DECODING_WEIGHT,
    LOSSES,
    contrastive_loss,
    decoding_loss,
    distillation_loss,
    l1_loss,
    l2_loss,
    loss_function,
)
from utils import CLIP_SAMPLES, N_BINS, N_FRAMES, InputError, normalise
from voices.backend import keras, tf

# ---------------------------------------------------------------- spectrogram


def uncompressed(spectrogram):
    """Undo the power law: complex (T, N_BINS)."""
    parts = np.sign(spectrogram) * np.abs(spectrogram) ** (1 / 0.3)
    return parts[..., 0] + 1j * parts[..., 1]


def test_spectrogram_of_a_tone_peaks_at_its_bin(tone):
    spectrogram = model.spectrogram(tone(1000, 6)[None]).numpy()
    assert spectrogram.shape == (1, N_FRAMES, N_BINS, 2) and spectrogram.dtype == np.float32
    loudest = np.abs(uncompressed(spectrogram[0].astype(np.float64))).argmax(axis=1)
    assert (loudest == 32).all()  # 1000 Hz / (16000 Hz / 512)


def test_spectrogram_is_numpys_fourier_transform_of_hann_windows(rng):
    waveform = rng.uniform(-1, 1, 4000)
    spectrogram = uncompressed(model.spectrogram(waveform[None].astype(np.float32)).numpy()[0].astype(np.float64))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)  # periodic
    assert len(spectrogram) == 1 + (4000 - 400) // 160
    for i in (0, 7, len(spectrogram) - 1):
        expected = np.fft.rfft(waveform[160 * i : 160 * i + 400] * window, 512)
        np.testing.assert_allclose(spectrogram[i], expected, atol=2e-3)


def test_spectrogram_agrees_with_librosa(rng):
    waveform = rng.uniform(-1, 1, CLIP_SAMPLES).astype(np.float32)
    ours = np.abs(uncompressed(model.spectrogram(waveform[None]).numpy()[0].astype(np.float64)))
    padded = np.pad(waveform, (56, 56))  # librosa frames by FFT size, its window in the middle
    theirs = np.abs(librosa.stft(padded, n_fft=512, hop_length=160, win_length=400, window="hann", center=False)).T
    assert ours.shape == theirs.shape == (N_FRAMES, N_BINS)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


# ---------------------------------------------------------------- voice encoder

# Reference: the sizes after each layer at 598 x 257, as time x frequency.
SIZES = {
    "conv1": (595, 254), "conv2": (592, 251), "conv3": (589, 248), "pool3": (294, 248), "conv4": (291, 245),
    "pool4": (145, 245), "conv5": (142, 242), "pool5": (71, 242), "conv6": (68, 239), "pool6": (34, 239),
    "conv7": (31, 236), "conv8": (14, 117), "conv9": (6, 57),
}  # fmt: skip


def test_full_encoder_has_the_papers_parameters_and_sizes():
    encoder = model.voice_encoder()
    assert encoder.count_params() == 148_067_584
    assert sum(np.prod(w.shape) for w in encoder.trainable_weights) == 148_062_976
    assert encoder.output_shape == (None, 4096)
    layers = [layer.name for layer in encoder.layers if layer.name.startswith(("conv", "pool"))]
    assert layers == list(SIZES)

    probe = keras.Model(encoder.input, [encoder.get_layer(name).output for name in SIZES])
    shapes = probe.compute_output_shape((None, N_FRAMES, N_BINS, 2))
    assert {name: shape[1:3] for name, shape in zip(SIZES, shapes)} == SIZES
    channels = [shape[3] for name, shape in zip(SIZES, shapes) if name.startswith("conv")]
    assert channels == [64, 64, 128, 128, 128, 256, 512, 512, 512]


def test_encoder_takes_any_duration_from_2_6_s_up(rng):
    encoder = model.voice_encoder(128, width=0.05)
    for n_frames in (model.MIN_FRAMES, 298, N_FRAMES, 900):
        assert encoder(rng.normal(size=(2, n_frames, N_BINS, 2)).astype(np.float32)).shape == (2, 128)
    shapes = keras.Model(encoder.input, encoder.get_layer("conv9").output).compute_output_shape
    assert shapes((1, model.MIN_FRAMES, N_BINS, 2))[1] == 1  # one frame fewer leaves nothing


def test_encoder_averages_over_all_time(rng):
    """One frame held for any time gives the same feature; a sum over time would not, nor does another frame."""
    keras.utils.set_random_seed(0)
    encoder = model.voice_encoder(16, width=0.05)
    frames = rng.normal(size=(2, 1, N_BINS, 2)).astype(np.float32)
    short, long = (encoder(np.tile(frames, (1, n_frames, 1, 1))).numpy() for n_frames in (320, 960))
    np.testing.assert_allclose(long, short, rtol=1e-3, atol=1e-5)
    assert np.abs(short).max() > 1e-3 and np.abs(short[0] - short[1]).max() > 1e-3


def test_width_scales_the_channels():
    encoder = model.voice_encoder(128, width=0.25)
    assert encoder.get_layer("conv9").filters == 128 and encoder.get_layer("fc1").units == 1024
    assert encoder.output_shape == (None, 128)


@pytest.mark.parametrize("flags", ["", "avx512f"])
@pytest.mark.parametrize("n_in, n_out, strides", [(32, 16, 1), (16, 64, 1), (4, 8, 1), (32, 24, 2)])
def test_convolutions_have_keras_gradients(n_in, n_out, strides, flags, rng, monkeypatch):
    monkeypatch.setattr(model, "cpu_flags", lambda: {flags})
    ours, theirs = (layer(n_out, (4, 2), strides) for layer in (model.Conv2D, keras.layers.Conv2D))
    x = tf.constant(rng.normal(size=(2, 11, 9, n_in)).astype(np.float32))
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())

    def gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(layer(x) ** 2)
        return value, *tape.gradient(value, [x, layer.kernel, layer.bias])

    for a, b in zip(gradients(ours), tf.function(gradients)(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_batch_norm_is_keras_own(rng):
    ours, theirs = (layer(momentum=0.9) for layer in (model.BatchNormalization, keras.layers.BatchNormalization))
    x = tf.constant(rng.normal(2, 3, size=(3, 4, 5, 6)).astype(np.float32))
    results = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            value = tf.reduce_sum(y**3)
        gradients = tape.gradient(value, [x, layer.gamma, layer.beta])
        results.append([y, *gradients, layer.moving_mean, layer.moving_variance, layer(x, training=False)])
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert [w.path.split("/")[-1] for w in ours.weights] == [w.path.split("/")[-1] for w in theirs.weights]


def test_waveform_to_feature_in_one_call(rng):
    encoder = model.voice_encoder(32, width=0.05)
    waveform = rng.uniform(-1, 1, (2, 50_000)).astype(np.float32)
    in_one = model.waveform_encoder(encoder)(waveform).numpy()
    np.testing.assert_allclose(in_one, encoder(model.spectrogram(waveform)).numpy(), atol=1e-5)


# ---------------------------------------------------------------- losses


def test_losses_equal_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(l1_loss(face, voice), np.abs(face - voice).sum(1), rtol=1e-5)
    angle = (face * voice).sum(1) / np.linalg.norm(face, axis=1) / np.linalg.norm(voice, axis=1)
    np.testing.assert_allclose(l2_loss(face, voice), 2 - 2 * angle, rtol=1e-4)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_distillation_loss_equals_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    kernel = rng.normal(size=(7, 11)).astype(np.float32)
    p, q = (softmax(np.maximum(feature, 0) @ kernel / 2) for feature in (face, voice))
    by_hand = -(p * np.log(q)).sum(axis=1)
    np.testing.assert_allclose(distillation_loss(face, voice, lambda x: x @ kernel), by_hand, rtol=1e-4)


def test_contrastive_loss_equals_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    cosine = normalise(voice) @ normalise(face).T
    by_hand = [-np.log(np.diag(softmax(logits))) for logits in (cosine / 0.1, cosine.T / 0.1)]
    np.testing.assert_allclose(contrastive_loss(face, voice), np.mean(by_hand, axis=0), rtol=1e-3, atol=1e-4)


def test_the_centre_is_where_features_are_seen_from(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    centre = rng.normal(size=7).astype(np.float32)
    for name, plain in (("l2", l2_loss), ("contrastive", contrastive_loss)):
        loss = loss_function(name, centre)
        np.testing.assert_allclose(loss(face + centre, voice + centre), plain(face, voice), rtol=1e-3, atol=1e-5)
        assert np.abs(loss(face, voice) - plain(face, voice)).max() > 0.01
    np.testing.assert_array_equal(loss_function("l1", centre)(face, voice), l1_loss(face, voice))


def test_total_loss_is_the_papers_sum(small_fc8, rng):
    kernel, bias = small_fc8
    face, voice = rng.normal(size=(2, 3, 4096)).astype(np.float32)
    centre = rng.normal(size=4096).astype(np.float32)
    p, q = (softmax((np.maximum(feature, 0) @ kernel + bias) / 2) for feature in (face, voice))
    seen = [normalise(feature - centre) for feature in (face, voice)]
    by_hand = 0.025 * ((seen[0] - seen[1]) ** 2).sum(axis=1) - 200 * (p * np.log(q)).sum(axis=1)
    np.testing.assert_allclose(loss_function("total", centre, vggface.fc8)(face, voice), by_hand, rtol=1e-4)


def test_the_decoding_loss_equals_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    kernel, bias = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    found = decoding_loss(face, voice, lambda feature: feature @ kernel + bias)
    np.testing.assert_allclose(found, np.abs((face - voice) @ kernel).sum(axis=1), rtol=1e-4)


def test_with_a_decoder_total_has_its_third_term(small_fc8, rng):
    face, voice = rng.normal(size=(2, 3, 4096)).astype(np.float32)
    centre, kernel = rng.normal(size=4096).astype(np.float32), rng.normal(size=(4096, 6)).astype(np.float32) / 64
    without = loss_function("total", centre, vggface.fc8)(face, voice)
    found = loss_function("total", centre, vggface.fc8, lambda feature: tf.matmul(feature, kernel) + 3)(face, voice)
    assert DECODING_WEIGHT == 0.05
    np.testing.assert_allclose(found - without, 0.05 * np.abs((face - voice) @ kernel).sum(axis=1), rtol=0.01, atol=2e-4)


def test_total_loss_wants_vggface_features():
    with pytest.raises(InputError, match=r"--loss total: expected face features of 4096 .*, found 128; use another --loss"):
        loss_function("total", np.zeros(128, np.float32), vggface.fc8)


def test_total_loss_wants_a_good_weight_file(small_fc8):
    with h5py.File(vggface.weights_path(), "a") as file:
        del file["fc8"]
    with pytest.raises(InputError, match="expected the weights of VGG-Face, found something else"):
        loss_function("total", np.zeros(4096, np.float32), vggface.fc8)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name, small_fc8, rng):
    """Along random directions; in float32, so to a per cent."""
    face, voice, direction = rng.normal(size=(3, 4, 4096)).astype(np.float32)
    loss = loss_function(name, 0.1 * rng.normal(size=4096).astype(np.float32), vggface.fc8)
    direction *= 64 / np.linalg.norm(direction)
    with tf.GradientTape() as tape:
        voice = tf.constant(voice)
        tape.watch(voice)
        value = tf.reduce_mean(loss(face, voice))
    slope = float(tf.reduce_sum(tape.gradient(value, voice) * direction))
    step = 0.02
    above, below = (float(np.mean(loss(face, voice + sign * step * direction))) for sign in (1, -1))
    assert slope == pytest.approx((above - below) / (2 * step), rel=0.02, abs=2e-3 * abs(float(value)))
    assert abs(slope) > 1e-4


@pytest.mark.parametrize("loss", [l1_loss, l2_loss])
def test_equal_features_lose_nothing(loss, rng):
    face = rng.normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(loss(face, face), np.zeros(4), atol=1e-6)


def test_l2_loss_ignores_length_and_l1_does_not(rng):
    face = rng.normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(l2_loss(face, 3 * face), np.zeros(4), atol=1e-6)
    assert (l1_loss(face, 3 * face).numpy() > 1).all()


# ---------------------------------------------------------------- training


@pytest.fixture
def linear():
    """A model that gives back its input, times weights that start as 1."""
    inputs = keras.Input((8,))
    return keras.Model(inputs, keras.layers.Dense(8, use_bias=False, kernel_initializer="identity")(inputs))


def test_a_step_returns_the_mean_over_the_batch(linear, rng):
    face, voice = rng.normal(size=(2, 6, 8)).astype(np.float32)
    step = steps.training_step(linear, steps.adam(linear, "paper", 1e-3, 10, 0), l1_loss, 6)
    assert float(step((voice, face))) == pytest.approx(np.abs(face - voice).sum(1).mean(), rel=1e-5)


def test_an_encoder_learns_its_batch(rng):
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


def test_weight_decay_takes_from_kernels_only():
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
def test_precision_is_what_the_hardware_has(capabilities, flags, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: capabilities)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": gpu})
    monkeypatch.setattr(model, "CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: fpu {flags}\n")
    assert steps.best_precision() == expected
