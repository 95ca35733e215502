"""GE2E: a pretrained speaker network, as the Keras layer `SpeakerEmbedding`: front end and network.

The network was trained to tell 18,000 speakers apart by their voices; faces played no part. Its weights (17 MB) come with the
package resemblyzer, whose code is not used.

B is the batch size and T the number of spectrogram frames.

Source: Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018; the package resemblyzer 0.1.4.
"""

import numpy as np

from utils import FFT_SIZE, SAMPLE_RATE, WINDOW
from voices.backend import layers, tf
from voices.spectra import BINS, power_spectra, triangles
from voices.weights import GE2E

# ----------------------------------------------------------------------------------------------------------------------
# The front end: from a spectrogram to the mel bands of the speech in it.

N_MELS = 40  # mel bands
LEVEL_DB = -30.0  # dB of full scale: quieter clips are amplified to this level
PAUSE_DB = 30.0  # dB below the loudest frame of a clip: quieter frames are pauses
PAUSE_MARGIN = 10  # frames of a pause that are kept on each side of speech


def mel_filterbank() -> np.ndarray:
    """Return the network's mel filterbank for the power spectra of `model.spectrogram`, float32 (N_BINS, N_MELS).

    The bands are triangles of equal area over Slaney's mel scale, which is linear below 1 kHz and logarithmic above. The
    package transforms frames of WINDOW samples; here they are padded to FFT_SIZE, which spreads the power over more bins.

    Source: librosa.filters.mel, which the package calls, and whose import takes a second.
    """
    step = np.log(6.4) / 27  # of the logarithm, for each mel
    mels = np.linspace(0, 15 + np.log(SAMPLE_RATE / 2 / 1000) / step, N_MELS + 2)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))  # Hz
    areas = (corners[2:] - corners[:-2]) / 2
    return (triangles(corners, BINS) / areas * WINDOW / FFT_SIZE).astype(np.float32)


def mel_frames(spectrograms, filterbank):
    """Return the mel power of the frames with speech, one after another, repeated until they fill T frames.

    Args:
        spectrograms: float (B, T, N_BINS, 2), of `model.spectrogram`.
        filterbank: float32 (N_BINS, N_MELS), of `mel_filterbank`.

    Returns:
        float32 (B, T, N_MELS).
    """
    power = power_spectra(spectrograms)  # (B, T, N_BINS)
    # The mean square of the samples in a frame, by Parseval's theorem: a Hann window has 3/8 of the energy of a flat one.
    both_sides = 2 * tf.reduce_sum(power, axis=-1) - power[..., 0] - power[..., -1]
    square = both_sides / (FFT_SIZE * WINDOW * 3 / 8)  # (B, T)
    loudness = tf.reduce_mean(square, axis=-1)[:, None, None]
    gain = tf.maximum(1.0, 10 ** (LEVEL_DB / 10) / tf.maximum(loudness, 1e-12))  # 1 for clips that are loud enough
    mel = tf.tensordot(power, filterbank, 1) * gain
    loudest = tf.reduce_max(square, axis=-1, keepdims=True)
    loud = tf.cast(square >= 10 ** (-PAUSE_DB / 10) * loudest, tf.float32)[..., None]
    speech = tf.nn.max_pool1d(loud, 2 * PAUSE_MARGIN + 1, 1, "SAME")[..., 0] > 0  # (B, T)
    speech_first = tf.argsort(tf.cast(~speech, tf.int32), axis=-1, stable=True)
    n_speech = tf.reduce_sum(tf.cast(speech, tf.int32), axis=-1, keepdims=True)
    repeated = tf.range(tf.shape(mel)[1])[None] % n_speech
    return tf.gather(mel, tf.gather(speech_first, repeated, batch_dims=1), batch_dims=1)


# ----------------------------------------------------------------------------------------------------------------------
# The network.

WINDOW_FRAMES = 160  # frames that the network takes at a time, 1.6 s
WINDOW_STEP = 77  # frames between the starts of two windows, at most: 1.3 windows a second
UNITS = 256  # numbers in a speaker embedding

# Name, inputs, units. The LSTMs run over the frames of a window; a ReLU follows the dense layer, which takes the last output.
LSTMS = (("lstm1", N_MELS, UNITS), ("lstm2", UNITS, UNITS), ("lstm3", UNITS, UNITS))
DENSE = ("linear", UNITS, UNITS)


class LSTM(layers.LSTM):
    """Keras's LSTM, on CPUs as one operation of TensorFlow: the same numbers and weights, much faster outside of a graph."""

    def call(self, sequences, training=False):
        if tf.config.list_logical_devices("GPU"):
            return super().call(sequences, training=training)  # which calls cuDNN
        frames = tf.transpose(sequences, (1, 0, 2))  # (T, B, inputs)
        zeros = tf.zeros((tf.shape(frames)[1], self.units))
        kernels = tf.concat([self.cell.kernel, self.cell.recurrent_kernel], axis=0)
        # Not BlockLSTMV2, whose gradient is that of other gates.
        outputs = tf.raw_ops.BlockLSTM(
            seq_len_max=tf.cast(tf.shape(frames)[0], tf.int64),
            x=frames,
            cs_prev=zeros,
            h_prev=zeros,
            w=_in_order_of_operation(kernels),
            wci=tf.zeros(self.units),
            wcf=tf.zeros(self.units),
            wco=tf.zeros(self.units),
            b=_in_order_of_operation(tf.convert_to_tensor(self.cell.bias)),
            forget_bias=0.0,
            cell_clip=-1.0,
        ).h  # (T, B, units)
        return tf.transpose(outputs, (1, 0, 2)) if self.return_sequences else outputs[-1]


def _in_order_of_operation(parameters):
    """Reorder the gates in the last axis from Keras's input, forget, cell, output to input, cell, forget, output."""
    into, forget, cell, out = tf.split(parameters, 4, axis=-1)
    return tf.concat([into, cell, forget, out], axis=-1)


class SpeakerEmbedding(layers.Layer):
    """Computes speaker embeddings: spectrograms, float (B, T, N_BINS, 2) -> float32 (B, UNITS), of length 1.

    The embedding of a clip is the mean over windows of WINDOW_FRAMES that cover all of its speech.
    """

    def __init__(self, **more):
        super().__init__(dtype="float32", **more)  # undoing the power law takes more than 16 bits
        self.lstms = [
            LSTM(units, return_sequences=name != LSTMS[-1][0], dtype="float32", name=name) for name, _, units in LSTMS
        ]
        name, _, units = DENSE
        self.dense = layers.Dense(units, activation="relu", dtype="float32", name=name)

    def build(self, _):
        self.filterbank = tf.constant(mel_filterbank())
        for lstm, (_, inputs, _) in zip(self.lstms, LSTMS):
            lstm.build((None, WINDOW_FRAMES, inputs))
        self.dense.build((None, DENSE[1]))

    def compute_output_shape(self, shape):
        return shape[0], UNITS  # otherwise Keras traces the network to learn it

    def call(self, spectrograms):
        mel = mel_frames(spectrograms, self.filterbank)  # (B, T, N_MELS)
        size, n_frames = tf.shape(mel)[0], tf.shape(mel)[1]
        last = n_frames - WINDOW_FRAMES
        n_windows = 1 + -(-last // WINDOW_STEP)
        starts = tf.range(n_windows) * last // tf.maximum(n_windows - 1, 1)
        windows = tf.gather(mel, starts[:, None] + tf.range(WINDOW_FRAMES), axis=1)  # (B, windows, 160, N_MELS)
        x = tf.reshape(windows, (-1, WINDOW_FRAMES, N_MELS))
        for lstm in self.lstms:
            x = lstm(x)
        x = tf.math.l2_normalize(self.dense(x), axis=-1)  # (B * windows, UNITS)
        x = tf.reshape(x, (size, n_windows, UNITS))
        return tf.math.l2_normalize(tf.reduce_mean(x, axis=1), axis=-1)  # (B, UNITS)

    def load_pretrained(self) -> None:
        """Take the weights of the package resemblyzer. Raises InputError if they are missing or do not fit."""
        weights = GE2E.read()
        try:
            for number, lstm in enumerate(self.lstms):
                kernel, recurrent, bias, bias_2 = (
                    weights[f"lstm.{name}_l{number}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                lstm.set_weights([kernel.T, recurrent.T, bias + bias_2])  # PyTorch's order of the gates is Keras's
            self.dense.set_weights([weights["linear.weight"].T, weights["linear.bias"]])
        except (KeyError, ValueError) as error:
            raise GE2E.refused(error) from error
