from pathlib import Path

import librosa
import numpy as np
import pytest
from speaking import real_waveforms, spectrograms, spoken

import model
import utils
from voices import ge2e
from voices.backend import keras, tf
from voices.weights import GE2E


@pytest.fixture(scope="module")
def layer():
    """The pretrained speaker network."""
    layer = ge2e.SpeakerEmbedding()
    layer(np.zeros((1, 300, utils.N_BINS, 2), np.float32))
    layer.load_pretrained()
    return layer


@pytest.fixture(scope="module")
def weights():
    return GE2E.read()


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


# ---------------------------------------------------------------- the network


def test_the_network_matches_the_one_by_hand(layer, weights, rng):
    mels = rng.gamma(1, 0.01, size=(3, ge2e.WINDOW_FRAMES, ge2e.N_MELS)).astype(np.float32)
    x = mels
    for lstm in layer.lstms:
        x = lstm(x)
    found = tf.math.l2_normalize(layer.dense(x), axis=-1).numpy()
    np.testing.assert_allclose(found, by_hand(mels, weights), atol=2e-5)


def test_the_lstm_is_keras_own_with_the_same_gradients(rng):
    x = rng.normal(size=(3, 20, 5)).astype(np.float32)
    ours, keras_own = (lstm(4, return_sequences=True) for lstm in (ge2e.LSTM, keras.layers.LSTM))
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((5, 16), (4, 16), (16,))]
    outputs, gradients = [], []
    for lstm in (ours, keras_own):
        lstm.build((None, None, 5))
        lstm.set_weights(weights)
        with tf.GradientTape() as tape:
            outputs.append(lstm(x))
            loss = tf.reduce_sum(outputs[-1] ** 2)
        gradients.append(tape.gradient(loss, lstm.trainable_variables))
    np.testing.assert_allclose(*outputs, atol=1e-6)
    for found, expected in zip(*gradients):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_embeddings_match_those_of_the_package(layer):
    """ge2e_reference.npy: the embeddings of spoken(110) and spoken(210) by resemblyzer 0.1.4 itself, under PyTorch."""
    reference = np.load(Path(__file__).with_name("ge2e_reference.npy"))
    found = layer(spectrograms([spoken(110), spoken(210)])).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = found @ reference.T
    assert np.diag(cosines).min() > 0.985 and cosines[0, 1] < 0.8 and cosines[1, 0] < 0.8


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


def test_the_filterbank_is_librosas():
    expected = librosa.filters.mel(sr=16000, n_fft=512, n_mels=40).T * 400 / 512
    np.testing.assert_allclose(ge2e.mel_filterbank(), expected, rtol=1e-4, atol=1e-9)


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
