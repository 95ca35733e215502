"""The pretrained ear: a speaker encoder's weights, and the closed-form step from what it hears to a face feature.

The network was trained to tell 18,000 people apart by their voices, without faces; its weights (17 MB) come with the package
resemblyzer, whose code is not needed. What it computes is `model.speaker_encoder`.

Source: Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018 (GE2E).

Never imports TensorFlow.
"""

import collections
import importlib.util
import pickle
import struct
import typing
from pathlib import Path

import numpy as np

from utils import FFT_SIZE, POWER, SAMPLE_RATE, WINDOW, InputError
from voices.backend import layers, tf

N_MELS = 40  # mel bands
WINDOW_FRAMES = 160  # spectrogram frames heard at a time, 1.6 s
WINDOW_STEP = 77  # frames from one window to the next, at most: 1.3 windows a second
LEVEL_DB = -30.0  # dB of full scale: softer voices are made as loud as this
PAUSE_DB = 30.0  # dB below a clip's loudest frame: what is softer is a pause
PAUSE_MARGIN = 10  # frames of a pause that stay on each side of speech
N_LAYERS, UNITS = 3, 256  # of the LSTM; the embedding has as many numbers


def mel_filterbank() -> np.ndarray:
    """Return the network's mel filterbank for this project's power spectra, float32 (N_BINS, N_MELS).

    The package's own frames are of 400 samples, these of 512: as much power lies in more bins.
    """
    import librosa

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT_SIZE, n_mels=N_MELS).T * np.float32(WINDOW / FFT_SIZE)


# ----------------------------------------------------------------------------------------------------------------------
# The weights.


class _Unpickler(pickle.Unpickler):
    """Reads an old file of torch.save without PyTorch, and admits only what such a file of weights needs."""

    ADMITTED: typing.ClassVar = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "FloatStorage"): np.float32,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides),
    }

    def find_class(self, module, name):
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}") from None

    def persistent_load(self, key):
        _, _, name, _, size, _ = key  # "storage", class, name, device, numbers in it, view
        return name, size


def weights_path() -> Path:
    """Return the path of the package's file of weights. Raises InputError if the package is not installed."""
    package = importlib.util.find_spec("resemblyzer")  # found, not imported
    path = Path(package.submodule_search_locations[0], "pretrained.pt") if package else None
    if path is None or not path.exists():
        raise InputError(
            "--encoder speaker: expected the weights in the package resemblyzer, found none; "
            "pip install --no-deps resemblyzer==0.1.4"
        )
    return path


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """Read the network's weights out of a file that an old torch.save wrote.

    Such a file is five pickles (magic number, version, sizes of types, the objects, names of the storages), and then the
    storages: each its size, int64, and its numbers.

    Returns:
        Arrays by name, float32: lstm.weight_ih_l0 (1024, 40), lstm.weight_hh_l0 (1024, 256), ..., linear.weight (256, 256).

    Raises:
        InputError: if it is something else.
    """
    try:
        with open(path, "rb") as file:
            _, _, _, objects, names = (_Unpickler(file).load() for _ in range(5))
            storages = {}
            for name in names:
                (size,) = struct.unpack("<q", file.read(8))
                storages[name] = np.frombuffer(file.read(4 * size), "<f4", size)
        weights = {}
        for name, ((storage, _), offset, shape, strides) in objects["model_state"].items():
            numbers, last = storages[storage][offset:], sum((n - 1) * stride for n, stride in zip(shape, strides))
            if last >= len(numbers) or min(strides, default=0) < 0:
                raise ValueError(f"{name} is cut off")
            weights[name] = np.lib.stride_tricks.as_strided(numbers, shape, [4 * stride for stride in strides]).copy()
        return weights
    except Exception as error:  # broken bytes may make the unpickler raise anything
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"{path}: expected the weights of resemblyzer 0.1.4, found something else ({reason}); "
            "pip install --no-deps --force-reinstall resemblyzer==0.1.4"
        ) from error


# ----------------------------------------------------------------------------------------------------------------------
# The pretrained speaker encoder.


class SpeakerEmbedding(layers.Layer):
    """Hears who speaks: spectrogram -> embedding of the voice, (B, T, N_BINS, 2) -> float32 (B, UNITS), of length 1.

    Three LSTMs over the mel bands of 1.6 s, a dense layer, relu; the mean over windows that cover all speech, pauses left out.
    Source: Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018; the package resemblyzer.
    """

    def __init__(self, **more):
        super().__init__(dtype="float32", **more)  # powers of 0.3 undone: 16 bits would not do
        last = N_LAYERS - 1
        self.lstms = [
            layers.LSTM(UNITS, return_sequences=number < last, dtype="float32", name=f"lstm{number + 1}")
            for number in range(N_LAYERS)
        ]
        self.dense = layers.Dense(UNITS, activation="relu", dtype="float32", name="linear")

    def build(self, _):
        self.mel = tf.constant(mel_filterbank())  # (N_BINS, N_MELS)
        sizes = [N_MELS] + N_LAYERS * [UNITS]
        for lstm, size in zip(self.lstms, sizes):
            lstm.build((None, WINDOW_FRAMES, size))
        self.dense.build((None, UNITS))

    def mel_frames(self, spectrograms):
        """Return the mel power of the frames with speech, one after another, repeated to T: float32 (B, T, N_MELS)."""
        power = tf.reduce_sum(tf.abs(tf.cast(spectrograms, tf.float32)) ** (2 / POWER), axis=-1)  # (B, T, N_BINS)
        # The mean square of the samples in a frame, by Parseval's theorem: Hann's window has 3/8 of a flat one's energy.
        both_sides = 2 * tf.reduce_sum(power, axis=-1) - power[..., 0] - power[..., -1]
        square = both_sides / (FFT_SIZE * WINDOW * 3 / 8)  # (B, T)
        loudness = tf.reduce_mean(square, axis=-1)[:, None, None]
        gain = tf.maximum(1.0, 10 ** (LEVEL_DB / 10) / tf.maximum(loudness, 1e-12))  # only softer ones are changed
        mel = tf.tensordot(power, self.mel, 1) * gain
        loudest = tf.reduce_max(square, axis=-1, keepdims=True)
        loud = tf.cast(square >= 10 ** (-PAUSE_DB / 10) * loudest, tf.float32)[..., None]
        speech = tf.nn.max_pool1d(loud, 2 * PAUSE_MARGIN + 1, 1, "SAME")[..., 0] > 0  # (B, T)
        speech_first = tf.argsort(tf.cast(~speech, tf.int32), axis=-1, stable=True)
        n_speech = tf.reduce_sum(tf.cast(speech, tf.int32), axis=-1, keepdims=True)
        again = tf.range(tf.shape(mel)[1])[None] % n_speech
        return tf.gather(mel, tf.gather(speech_first, again, batch_dims=1), batch_dims=1)

    def call(self, spectrograms):
        mel = self.mel_frames(spectrograms)
        size, n_frames = tf.shape(mel)[0], tf.shape(mel)[1]
        last = n_frames - WINDOW_FRAMES
        n_windows = 1 + -(-last // WINDOW_STEP)
        starts = tf.range(n_windows) * last // tf.maximum(n_windows - 1, 1)
        windows = tf.gather(mel, starts[:, None] + tf.range(WINDOW_FRAMES), axis=1)  # (B, windows, 160, N_MELS)
        x = tf.reshape(windows, (-1, WINDOW_FRAMES, N_MELS))
        for lstm in self.lstms:
            x = lstm(x)
        x = tf.math.l2_normalize(self.dense(x), axis=-1)
        x = tf.reshape(x, (size, n_windows, UNITS))
        return tf.math.l2_normalize(tf.reduce_mean(x, axis=1), axis=-1)

    def load_pretrained(self) -> None:
        """Take the weights of the package resemblyzer. Raises InputError if they cannot be had."""
        path = weights_path()
        weights = stored_weights(path)
        try:
            for number, lstm in enumerate(self.lstms):
                kernel, recurrent, bias, bias_2 = (
                    weights[f"lstm.{name}_l{number}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                lstm.set_weights([kernel.T, recurrent.T, bias + bias_2])  # the gates are in the same order as Keras's
            self.dense.set_weights([weights["linear.weight"].T, weights["linear.bias"]])
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: expected the weights of resemblyzer 0.1.4, found others ({error})") from error
