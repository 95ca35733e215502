import h5py
import librosa
import numpy as np
import pytest

import model
from utils import CLIP_SAMPLES, N_BINS, N_FRAMES, InputError
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


def test_spectrogram_matches_numpys_fourier_transform_of_hann_windows(rng):
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
    padded = np.pad(waveform, (56, 56))  # librosa centres the window in a frame of the FFT size
    theirs = np.abs(librosa.stft(padded, n_fft=512, hop_length=160, win_length=400, window="hann", center=False)).T
    assert ours.shape == theirs.shape == (N_FRAMES, N_BINS)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


# ---------------------------------------------------------------- encoders

# The output size of each layer at 598 x 257, as time x frequency.
SIZES = {
    "conv1": (595, 254), "conv2": (592, 251), "conv3": (589, 248), "pool3": (294, 248), "conv4": (291, 245),
    "pool4": (145, 245), "conv5": (142, 242), "pool5": (71, 242), "conv6": (68, 239), "pool6": (34, 239),
    "conv7": (31, 236), "conv8": (14, 117), "conv9": (6, 57),
}  # fmt: skip


def test_the_full_encoder_has_the_papers_parameters_and_sizes():
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
    assert shapes((1, model.MIN_FRAMES, N_BINS, 2))[1] == 1  # one frame fewer would leave none


def test_encoder_averages_over_all_time(rng):
    """A frame repeated for any time gives the same feature, unlike a sum over time; another frame gives another feature."""
    keras.utils.set_random_seed(0)
    encoder = model.voice_encoder(16, width=0.05)
    frames = rng.normal(size=(2, 1, N_BINS, 2)).astype(np.float32)
    short, long = (encoder(np.tile(frames, (1, n_frames, 1, 1))).numpy() for n_frames in (320, 960))
    np.testing.assert_allclose(long, short, rtol=1e-3, atol=1e-5)
    assert np.abs(short).max() > 1e-3 and np.abs(short[0] - short[1]).max() > 1e-3


def by_hand(encoder, x):
    """Compute the encoder in numpy, as the slides' table says: float (B, T, N_BINS, 2) -> (B, feature_size)."""

    def weights(name):
        return encoder.get_layer(name).get_weights()

    for number in range(1, 10):
        kernel, bias = weights(f"conv{number}")
        stride = 2 if number >= 8 else 1
        windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), axis=(1, 2))[:, ::stride, ::stride]
        x = np.einsum("btncij,ijcd->btnd", windows, kernel, optimize=True) + bias
        if number == 9:
            x = x.mean(axis=1)  # over all time, before the ReLU
        gamma, beta, mean, variance = weights(f"bn{number}")
        x = (np.maximum(x, 0) - mean) / np.sqrt(variance + 1e-3) * gamma + beta  # the ReLU first
        if number in (3, 4, 5, 6):
            n = x.shape[1] // 2
            x = np.maximum(x[:, : 2 * n : 2], x[:, 1 : 2 * n : 2])
    (kernel_1, bias_1), (kernel_2, bias_2) = weights("fc1"), weights("fc2")
    return np.maximum(x.reshape(len(x), -1) @ kernel_1 + bias_1, 0) @ kernel_2 + bias_2


def test_the_encoder_matches_its_layers_by_hand(rng):
    keras.utils.set_random_seed(0)
    encoder = model.voice_encoder(16, width=0.03)
    for layer in encoder.layers:
        if layer.name.startswith("bn"):  # as after a training
            beta, mean = 0.2 * rng.normal(size=(2, layer.gamma.shape[0]))
            layer.set_weights([rng.uniform(0.5, 2, size=len(mean)), beta, mean, rng.uniform(0.2, 2, size=len(mean))])
    spectrograms = rng.normal(size=(2, model.MIN_FRAMES + 70, N_BINS, 2)).astype(np.float32)  # 2 frames reach the average
    expected = by_hand(encoder, spectrograms)
    np.testing.assert_allclose(encoder(spectrograms), expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()


def test_running_statistics_move_a_tenth_of_the_way_to_those_of_a_batch(rng):
    encoder = model.voice_encoder(8, width=0.03)
    outputs = keras.Model(encoder.input, [encoder.get_layer(name).output for name in ("relu1", "relu9", "bn9")])
    first, last, _ = outputs(rng.normal(size=(3, 330, N_BINS, 2)).astype(np.float32), training=True)
    for name, values in (("bn1", first.numpy()), ("bn9", last.numpy())):
        values, layer = values.reshape(-1, values.shape[-1]), encoder.get_layer(name)
        np.testing.assert_allclose(layer.moving_mean, 0.1 * values.mean(axis=0), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * values.var(axis=0), rtol=1e-3)


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


def test_batch_norm_matches_keras(rng):
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


def test_batch_norm_counts_beyond_32_bits():
    """115 clips of 6 s after conv3 are more than 2**31 numbers; only their shape is made."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        count = session.run(model.numbers_of_a_channel(tf.compat.v1.placeholder("float32", (115, 589, 248, 128))))
        more = session.run(model.numbers_of_a_channel(tf.compat.v1.placeholder("float32", (2**20, 2**10, 2**10, 1))))
    assert count == pytest.approx(115 * 589 * 248, rel=1e-6) and more == 2.0**40
    layer = model.BatchNormalization()
    layer.build((None, 589, 248, 128))
    trained = tf.function(lambda x: layer(x, training=True)).get_concrete_function(tf.TensorSpec((115, 589, 248, 128)))
    assert trained.output_shapes == (115, 589, 248, 128)


@pytest.mark.parametrize(
    "width, n_frames, most", [(1, N_FRAMES, 114), (2, N_FRAMES, 57), (1, 298, 234), (0.01, N_FRAMES, 6986)]
)
def test_a_batch_that_no_operation_can_take_is_refused(width, n_frames, most):
    """At width 1 and 6 s, conv3 returns 589 x 248 x 128 numbers a clip; the narrowest network returns fewer than it takes."""
    model.check_batch(most, width, n_frames)
    with pytest.raises(
        InputError, match=rf"--batch-size: expected at most {most} clips of .*found {most + 1} on a device; lower"
    ):
        model.check_batch(most + 1, width, n_frames)


def datasets_of(encoder, path):
    """Save weights; return the names of the arrays in the file."""
    encoder.save_weights(path)
    names = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return set(names)


def test_weights_are_stored_under_the_names_in_earlier_runs(tmp_path):
    """Keras names arrays by the classes and attributes of layers: another name, and earlier runs no longer load."""
    lstms = [f"layers/speaker_embedding/lstms/lstm{end}/cell/vars/{n}" for end in ("", "_1", "_2") for n in range(3)]
    dense = [f"layers/{name}/vars/{n}" for name in ("speaker_embedding/dense", "dense") for n in range(2)]
    assert datasets_of(model.speaker_encoder(3, "ge2e"), tmp_path / "ge2e.weights.h5") == {*lstms, *dense}
    campplus = "layers/speaker_embedding_1/vars/0"
    assert datasets_of(model.speaker_encoder(3), tmp_path / "speaker.weights.h5") == {*lstms, *dense, campplus}

    ends = ["", *(f"_{number}" for number in range(1, 9))]
    expected = {f"layers/{name}{end}/vars/{n}" for name in ("conv2d", "batch_normalization") for end in ends for n in range(2)}
    expected |= {f"layers/batch_normalization{end}/vars/{n}" for end in ends for n in (2, 3)}
    expected |= {f"layers/dense{end}/vars/{n}" for end in ("", "_1") for n in range(2)}
    assert datasets_of(model.voice_encoder(3, 0.05), tmp_path / "conv.weights.h5") == expected
