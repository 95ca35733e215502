import functools
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import librosa
import numpy as np
import pytest

import model
import utils
from model import keras, tf
from utils import CLIP_SAMPLES, N_BINS, N_FRAMES, InputError

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


def test_waveform_to_feature_in_one_call(rng):
    encoder = model.voice_encoder(32, width=0.05)
    waveform = rng.uniform(-1, 1, (2, 50_000)).astype(np.float32)
    in_one = model.waveform_encoder(encoder)(waveform).numpy()
    np.testing.assert_allclose(in_one, encoder(model.spectrogram(waveform)).numpy(), atol=1e-5)


# ---------------------------------------------------------------- losses


def test_losses_equal_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(model.l1_loss(face, voice), np.abs(face - voice).sum(1), rtol=1e-5)
    angle = (face * voice).sum(1) / np.linalg.norm(face, axis=1) / np.linalg.norm(voice, axis=1)
    np.testing.assert_allclose(model.l2_loss(face, voice), 2 - 2 * angle, rtol=1e-4)


@pytest.mark.parametrize("name", model.LOSSES)
def test_equal_features_lose_nothing(name, rng):
    face = rng.normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(model.LOSSES[name](face, face), np.zeros(4), atol=1e-6)


def test_l2_loss_ignores_length_and_l1_does_not(rng):
    face = rng.normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(model.l2_loss(face, 3 * face), np.zeros(4), atol=1e-6)
    assert (model.l1_loss(face, 3 * face).numpy() > 1).all()


def test_keras_takes_the_mean_over_the_batch(rng):
    face, voice = rng.normal(size=(2, 6, 8)).astype(np.float32)
    identity = keras.Sequential([keras.Input((8,)), keras.layers.Activation("linear")])
    identity.compile(loss=model.l1_loss)
    assert identity.evaluate(voice, face, verbose=0) == pytest.approx(np.abs(face - voice).sum(1).mean(), rel=1e-5)


# ---------------------------------------------------------------- batches


@pytest.fixture
def ten_clips(tmp_path, rng):
    clips = [f"v{i}_0-6" for i in range(10)]
    for i, clip in enumerate(clips):
        spectrogram = np.full((N_FRAMES, N_BINS, 2), i, np.float16)
        spectrogram[:, 0, 0] = np.arange(N_FRAMES)  # says which frame it is
        utils.save_array(utils.spectrogram_path(tmp_path, clip), spectrogram)
        utils.save_array(utils.embedding_path(tmp_path, clip), np.full(128, i, np.float32))
    return tmp_path, clips


def test_batches_for_evaluation_keep_order_and_all_clips(ten_clips):
    batches, errors = model.clip_batches(*ten_clips, 128, batch_size=4)
    batches = list(batches.as_numpy_iterator())
    assert [len(x) for x, _ in batches] == [4, 4, 2] and errors == []
    spectrograms, features = (np.concatenate(parts) for parts in zip(*batches))
    assert spectrograms.dtype == np.float16 and spectrograms.shape == (10, N_FRAMES, N_BINS, 2)
    assert features.dtype == np.float32
    assert features[:, 0].tolist() == spectrograms[:, 0, 1, 0].tolist() == list(range(10))


def test_batches_for_training_are_a_function_of_seed_and_epoch(ten_clips):
    @functools.cache
    def epoch(seed, number):
        batches, _ = model.clip_batches(*ten_clips, 128, batch_size=4, n_frames=300, epoch=(seed, number))
        parts = list(batches.as_numpy_iterator())
        assert [x.shape for x, _ in parts] == [(4, 300, N_BINS, 2)] * 2
        spectrograms, features = (np.concatenate(p) for p in zip(*parts))
        assert features[:, 0].tolist() == spectrograms[:, 5, 1, 0].tolist()  # a clip keeps its feature
        assert (np.diff(spectrograms[:, :, 0, 0].astype(float), axis=1) == 1).all()  # a piece in one part
        return features[:, 0].tolist(), spectrograms[:, 0, 0, 0].tolist()

    first = epoch(0, 1)
    epoch.cache_clear()
    assert epoch(0, 1) == first
    orders, starts = zip(first, epoch(0, 2), epoch(1, 1))
    assert len(set(map(tuple, orders))) == len(set(map(tuple, starts))) == 3
    assert len(set(orders[0])) == 8
    assert len(set(starts[0])) > 4 and max(max(s) for s in starts) <= 298


def test_a_broken_file_is_named(ten_clips):
    data, clips = ten_clips
    utils.spectrogram_path(data, clips[7]).write_bytes(b"not a pickle")
    batches, errors = model.clip_batches(data, clips, 128, batch_size=4)
    with pytest.raises(tf.errors.OpError):
        list(batches)
    assert isinstance(errors[0], InputError) and "v7_0-6.pkl: expected a pickle" in str(errors[0])


# ---------------------------------------------------------------- VGG-Face


@pytest.fixture(scope="module")
def random_vggface(tmp_path_factory):
    """keras-vggface's own network, its random weights in its own cache folder."""
    home = tmp_path_factory.mktemp("keras")
    previous = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = str(home)
    network = model._keras_vggface()[0].VGG16(weights=None)
    model.vggface_weights_path().parent.mkdir(parents=True)
    network.save_weights(model.vggface_weights_path())
    yield network
    model.vggface_weights_path().unlink()
    if previous is None:
        del os.environ["KERAS_HOME"]
    else:
        os.environ["KERAS_HOME"] = previous


def test_vggface_is_the_packages_own_network(random_vggface, rng):
    assert random_vggface.count_params() == 145_002_878
    faces = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    features = model.face_embedder()(faces)
    assert features.shape == (2, 4096) and features.dtype == np.float32
    assert (features < 0).any()  # before the ReLU

    preprocessed = model._keras_vggface()[1].preprocess_input(faces.astype(np.float32), version=1)
    assert preprocessed[0, 0, 0, 0] == pytest.approx(faces[0, 0, 0, 2] - 93.5940, abs=1e-3)  # blue first, less its mean
    own = random_vggface.predict(preprocessed, verbose=0)
    weights, bias = random_vggface.get_layer("fc8").get_weights()
    logits = np.maximum(features, 0) @ weights + bias
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True), np.log(own) - np.log(own).mean(1, keepdims=True), atol=1e-4
    )
    assert np.std(logits) > 0.05  # not all the same


def test_importing_keras_2_leaves_keras_3_alone(random_vggface):
    import keras as keras_now

    assert keras_now is keras and keras_now.__version__.startswith("3.")
    assert keras_now.layers.Dense is keras.layers.Dense


def test_a_wrong_weight_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = model.vggface_weights_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"vgg16\.h5: expected the weights of VGG-Face, found something else"):
        model.vggface()


@pytest.fixture
def server():
    """A server on loopback with one file, /weights.h5."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/weights.h5"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(b"the weights" if found else b"")

        def log_message(self, *_):
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_weights_are_announced_then_downloaded_once(tmp_path, monkeypatch, server, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(model._keras_vggface()[1], "VGG16_WEIGHTS_PATH", f"{server}/weights.h5")
    path = model.vggface_weights_path()
    path.parent.mkdir(parents=True)
    path.with_name(f".part-{path.name}").write_bytes(b"half of a killed download")
    assert model.fetch_vggface_weights().read_bytes() == b"the weights"
    assert capsys.readouterr().err.startswith("downloading the weights of VGG-Face (580 MB)")
    assert model.fetch_vggface_weights() == path and capsys.readouterr().err == ""
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_weights_that_cannot_be_had_are_told(tmp_path, monkeypatch, server):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(model._keras_vggface()[1], "VGG16_WEIGHTS_PATH", f"{server}/gone.h5")
    with pytest.raises(InputError, match=r"could not download .*404.*put http.*gone\.h5 there by hand, or use --face-m"):
        model.fetch_vggface_weights()
    assert list(tmp_path.rglob("*.h5")) == []
