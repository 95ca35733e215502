import collections
import os
import pickle
import struct
from pathlib import Path

import librosa
import numpy as np
import pytest
from conftest import ROOT

import model
import utils
from clips import media
from utils import InputError
from voices import ge2e
from voices.backend import tf

PAGE_CLIPS = Path(os.environ.get("PAGE_CLIPS", ROOT / "data" / "page" / "clips"))  # of data/get_page_clips.py


@pytest.fixture(scope="module")
def layer():
    """The pretrained speaker network."""
    layer = ge2e.SpeakerEmbedding()
    layer(np.zeros((1, 300, utils.N_BINS, 2), np.float32))
    layer.load_pretrained()
    return layer


@pytest.fixture(scope="module")
def weights():
    return ge2e.stored_weights(ge2e.weights_path())


def spectrograms(waveforms):
    """Return spectrograms as preprocess.py stores them."""
    return model.spectrogram(np.stack(waveforms)).numpy().astype(np.float16)


def spoken(hertz):
    """Return 6 s of vowels and a pause at this pitch, float32 (96 000,)."""
    t = np.arange(96_000) / 16_000
    phase = 2 * np.pi * np.cumsum(hertz * (1 + 0.06 * np.sin(2 * np.pi * 0.9 * t))) / 16_000
    first, second = 550 + 200 * np.sin(2 * np.pi * 1.1 * t), 1500 + 500 * np.sin(2 * np.pi * 0.8 * t + 1)  # Hz, formants
    x = np.zeros(len(t))
    for harmonic in range(1, 30):
        f = harmonic * hertz
        gain = np.exp(-(((f - first) / 150) ** 2)) + 0.5 * np.exp(-(((f - second) / 200) ** 2)) + 0.03
        x += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2 * t), 0, None) * ((t < 2.5) | (t > 3.5))
    return (0.1 * x * syllables).astype(np.float32)


def by_hand(mels, weights):
    """Compute the network in numpy, step by step: float (n, T, 40) -> (n, 256), of length 1."""

    def sigmoid(z):
        return (1 + np.tanh(z / 2)) / 2

    x = np.swapaxes(mels, 0, 1).astype(np.float64)  # (T, n, 40)
    for layer in range(3):
        into, again = weights[f"lstm.weight_ih_l{layer}"].T, weights[f"lstm.weight_hh_l{layer}"].T
        bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
        h = c = np.zeros((x.shape[1], 256))
        outputs = []
        for frame in x:
            gates = np.split(frame @ into + h @ again + bias, 4, axis=1)  # input, forget, cell, output
            c = sigmoid(gates[1]) * c + sigmoid(gates[0]) * np.tanh(gates[2])
            h = sigmoid(gates[3]) * np.tanh(c)
            outputs.append(h)
        x = np.stack(outputs)
    embedding = np.maximum(h @ weights["linear.weight"].T + weights["linear.bias"], 0)
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)


# ---------------------------------------------------------------- the weights


def test_the_weights_of_the_package_are_read_without_torch(weights):
    shapes = {name: array.shape for name, array in weights.items() if name.startswith(("lstm", "linear"))}
    expected = {"linear.weight": (256, 256), "linear.bias": (256,)}
    for layer, size in enumerate((40, 256, 256)):
        expected |= {f"lstm.weight_ih_l{layer}": (1024, size), f"lstm.weight_hh_l{layer}": (1024, 256)}
        expected |= {f"lstm.bias_{kind}_l{layer}": (1024,) for kind in ("ih", "hh")}
    assert shapes == expected and all(array.dtype == np.float32 for array in weights.values())
    assert all(0.01 < array.std() < 2 and np.isfinite(array).all() for name, array in weights.items() if name in expected)


class _Harm:
    def __reduce__(self):
        return print, ("a pickle has run code",)


def torch_file(objects, names=(), storages=b""):
    """Return a file like those of an old torch.save, without classes of PyTorch."""
    return b"".join(pickle.dumps(part, 2) for part in (1, 1001, {}, objects, list(names))) + storages


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a new torch.save",
        torch_file(_Harm()),
        torch_file({"model_state": collections.OrderedDict()}, ["0"], struct.pack("<q", 100)),  # cut off
        torch_file({"other": 1}),
    ],
)
def test_another_file_is_refused_without_running_code(content, tmp_path, capsys):
    path = tmp_path / "pretrained.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pretrained.pt: expected the weights of resemblyzer 0.1.4, found something else"):
        ge2e.stored_weights(path)
    assert capsys.readouterr().out == ""


def test_a_truncated_file_is_refused(tmp_path):
    content = ge2e.weights_path().read_bytes()
    for size in (10, 1000, 6000, 8000, len(content) // 2, len(content) - 1):
        path = tmp_path / "pretrained.pt"
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="found something else"):
            ge2e.stored_weights(path)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"found none; pip install --no-deps resemblyzer"):
        ge2e.weights_path()


# ---------------------------------------------------------------- the network


def test_the_network_matches_the_one_by_hand(layer, weights, rng):
    mels = rng.gamma(1, 0.01, size=(3, ge2e.WINDOW_FRAMES, ge2e.N_MELS)).astype(np.float32)
    x = mels
    for lstm in layer.lstms:
        x = lstm(x)
    found = tf.math.l2_normalize(layer.dense(x), axis=-1).numpy()
    np.testing.assert_allclose(found, by_hand(mels, weights), atol=2e-5)


def test_embeddings_match_those_of_the_package(layer):
    """ge2e_reference.npy: the embeddings of spoken(110) and spoken(210) by resemblyzer 0.1.4 itself, under PyTorch."""
    reference = np.load(Path(__file__).with_name("ge2e_reference.npy"))
    found = layer(spectrograms([spoken(110), spoken(210)])).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = found @ reference.T
    assert np.diag(cosines).min() > 0.985 and cosines[0, 1] < 0.8 and cosines[1, 0] < 0.8


def real_waveforms(n):
    if not PAGE_CLIPS.is_dir():
        pytest.skip("needs the clips of data/get_page_clips.py")
    paths = sorted(PAGE_CLIPS.iterdir())
    return [np.resize(media.read_clip(path).samples / np.float32(32768), 96_000) for path in paths[:: len(paths) // n][:n]]


def test_embeddings_of_real_voices_match_the_front_end_of_the_package(layer, weights):
    """The package's front end by librosa, without its voice detection; the network by hand."""
    waveforms, expected = real_waveforms(40), []
    for waveform in waveforms:
        decibels = 10 * np.log10(np.mean(waveform.astype(np.float64) ** 2))
        waveform = waveform * 10 ** (max(0, -30 - decibels) / 20)
        mel = librosa.feature.melspectrogram(y=waveform, sr=16000, n_fft=400, hop_length=160, n_mels=40).T
        windows = np.stack([mel[start : start + 160] for start in range(0, len(mel) - 160, 77)])
        mean = by_hand(windows, weights).mean(axis=0)
        expected.append(mean / np.linalg.norm(mean))
    cosines = np.sum(layer(spectrograms(waveforms)).numpy() * expected, axis=1)
    assert cosines.mean() > 0.98 and cosines.min() > 0.9


def test_embeddings_of_real_voices_match_the_package(layer):
    """Runs only where PyTorch and webrtcvad are installed."""
    resemblyzer = pytest.importorskip("resemblyzer")
    waveforms = real_waveforms(40)
    package = resemblyzer.VoiceEncoder("cpu", verbose=False)
    expected = [package.embed_utterance(resemblyzer.preprocess_wav(waveform)) for waveform in waveforms]
    cosines = np.sum(layer(spectrograms(waveforms)).numpy() * expected, axis=1)
    assert cosines.mean() > 0.98


def test_loudness_and_pauses_change_little(layer):
    voice = spoken(150)
    silent = voice.copy()
    silent[40_000:56_000] = 0
    longer = np.concatenate([voice[:40_000], np.zeros(32_000, np.float32), voice[40_000:]])
    alone, soft, paused = (layer(spectrograms([sound])).numpy()[0] for sound in (silent, voice / 30, longer))
    assert alone @ soft > 0.98 and alone @ paused > 0.98
    assert alone @ layer(spectrograms([spoken(220)])).numpy()[0] < 0.9


def test_frames_of_pauses_are_left_out():
    """3 s of a tone, then 3 s of the tone 40 dB softer: the frames of the loud tone are repeated."""
    t = np.arange(96_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    mels = ge2e.mel_frames(spectrograms([tone * np.where(t < 3, 1, 0.01), tone]), ge2e.mel_filterbank()).numpy()
    assert mels.shape == (2, utils.N_FRAMES, ge2e.N_MELS)
    band = mels[1].mean(axis=0).argmax()
    kept = 300 + ge2e.PAUSE_MARGIN  # frames until the margin ends
    loud = mels[0, :, band] > 0.5 * mels[0, :, band].max()
    assert np.count_nonzero(~loud) <= 4 * ge2e.PAUSE_MARGIN and abs(np.argmin(loud[5:]) + 5 - kept) <= 2 * ge2e.PAUSE_MARGIN


def test_windows_cover_all_of_a_clip(layer):
    """Two clips that differ in the last second alone have different embeddings."""
    voice, other = spoken(150), spoken(220)
    mixed = np.concatenate([voice[:80_000], other[80_000:]])
    alone, changed = layer(spectrograms([voice, mixed])).numpy()
    assert alone @ changed < 0.999


def test_silence_gives_finite_numbers(layer):
    assert np.isfinite(layer(np.zeros((2, utils.N_FRAMES, utils.N_BINS, 2), np.float16)).numpy()).all()


def test_embeddings_depend_little_on_length_and_not_on_the_batch(layer):
    voices = spectrograms([spoken(130), spoken(170), spoken(200)])
    together = layer(voices).numpy()
    for alone, expected in zip(voices, together):
        np.testing.assert_allclose(layer(alone[None]).numpy()[0], expected, atol=1e-5)
    assert layer(voices[:, : model.MIN_FRAMES]).shape == (3, ge2e.UNITS)
    assert np.sum(layer(voices[:, :400]).numpy() * together, axis=1).min() > 0.9
