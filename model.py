"""Spectrogram and voice encoders: the network of the slides, and a head on pretrained speaker embeddings.

B is the batch size and T the number of spectrogram frames: N_FRAMES (598) for 6 s of sound, MIN_FRAMES (259) for 2.6 s.
"""

import math
import warnings
from pathlib import Path

from utils import FEATURE_SIZE, FFT_SIZE, HOP, N_BINS, N_FRAMES, POWER, WINDOW, InputError
from voices import campplus, ge2e
from voices.backend import keras, layers, tf
from voices.weights import EMBEDDINGS

# ----------------------------------------------------------------------------------------------------------------------
# The spectrogram.


def spectrogram(waveform):
    """Turn sound into the input of a voice encoder: short-time Fourier transform, then power-law compression.

    Args:
        waveform: float32 (B, samples), mono at SAMPLE_RATE, values in [-1, 1]; CLIP_SAMPLES samples give N_FRAMES frames.

    Returns:
        float32 (B, T, N_BINS, 2), no unit: real and imaginary part, each compressed as sign(v) * |v| ** 0.3.

    Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
    """
    stft = tf.signal.stft(waveform, WINDOW, HOP, FFT_SIZE, window_fn=tf.signal.hann_window)  # (B, T, N_BINS), periodic
    parts = tf.stack([tf.math.real(stft), tf.math.imag(stft)], axis=-1)  # (B, T, N_BINS, 2)
    return tf.sign(parts) * tf.abs(parts) ** POWER


# ----------------------------------------------------------------------------------------------------------------------
# The encoder of the slides, --encoder conv.

# Source: slides, "Speech encoder architecture". Name, channels at width 1, kernel, stride; kernels, strides and sizes are
# time x frequency. The comments give the output size for 598 frames. ReLU and batch norm follow every convolution but the
# last, whose output is averaged over time before them.
ENCODER = (
    ("conv1", 64, (4, 4), (1, 1)),  # 595 x 254
    ("conv2", 64, (4, 4), (1, 1)),  # 592 x 251
    ("conv3", 128, (4, 4), (1, 1)),  # 589 x 248
    ("pool3", None, (2, 1), (2, 1)),  # 294 x 248
    ("conv4", 128, (4, 4), (1, 1)),  # 291 x 245
    ("pool4", None, (2, 1), (2, 1)),  # 145 x 245
    ("conv5", 128, (4, 4), (1, 1)),  # 142 x 242
    ("pool5", None, (2, 1), (2, 1)),  # 71 x 242
    ("conv6", 256, (4, 4), (1, 1)),  # 68 x 239
    ("pool6", None, (2, 1), (2, 1)),  # 34 x 239
    ("conv7", 512, (4, 4), (1, 1)),  # 31 x 236
    ("conv8", 512, (4, 4), (2, 2)),  # 14 x 117
    ("conv9", 512, (4, 4), (2, 2)),  # 6 x 57
)
FC_UNITS = 4096  # units of the first fully connected layer at width 1
MIN_FRAMES = 259  # the fewest frames that reach conv9
MOST_NUMBERS = 2**31 - 1  # in a tensor: with more, operations of TensorFlow fail or return wrong numbers
BN_MOMENTUM = 0.9  # of the running mean and variance; the sources give none, and Keras's 0.99 lags for epochs on small data


def voice_encoder(feature_size: int = FEATURE_SIZE["vggface"], width: float = 1.0) -> keras.Model:
    """Build the encoder of the slides, which predicts a face feature from a spectrogram.

    The convolutions are averaged over all time, so that the network takes any duration from MIN_FRAMES up.

    Args:
        feature_size: numbers in the face feature.
        width: scale of all hidden channels; 1 is the paper's network, 148,067,584 parameters with 4096 outputs.

    Returns:
        Model from float32 (B, T, N_BINS, 2) to float32 (B, feature_size), linear: the target is fc7 before its ReLU.

    Source: slides, "Speech encoder architecture".
    """

    def batch_norm(name, fused=True):
        if fused:
            return BatchNormalization(momentum=BN_MOMENTUM, name=name)
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1  # then statistics over all replicas, as on one device
        return layers.BatchNormalization(momentum=BN_MOMENTUM, synchronized=several, name=name)

    def scaled(channels):
        return max(1, round(channels * width))

    spectrograms = x = keras.Input((None, N_BINS, 2), name="spectrogram")
    for name, channels, kernel, stride in ENCODER:
        if name.startswith("pool"):
            x = layers.MaxPooling2D(kernel, stride, name=name)(x)
            continue
        x = Conv2D(scaled(channels), kernel, stride, name=name)(x)
        if name != ENCODER[-1][0]:
            x = layers.ReLU(name=name.replace("conv", "relu"))(x)
            x = batch_norm(name.replace("conv", "bn"))(x)
    # (B, 6, 57, 512)
    x = keras.ops.mean(x, axis=1)  # (B, 57, 512): "avgpool, infinity x 1", over all time
    x = layers.ReLU(name="relu9")(x)
    x = batch_norm("bn9", fused=False)(x)
    x = layers.Flatten(name="flatten")(x)  # (B, 29184)
    x = layers.Dense(scaled(FC_UNITS), activation="relu", name="fc1")(x)  # (B, 4096)
    feature = layers.Dense(feature_size, dtype="float32", name="fc2")(x)  # (B, feature_size)
    return keras.Model(spectrograms, feature, name="voice_encoder")


# ----------------------------------------------------------------------------------------------------------------------
# The encoder on a pretrained speaker network, --encoder speaker.


SPEAKER_NETWORKS = {"ge2e": ge2e.SpeakerEmbedding, "campplus": campplus.SpeakerEmbedding}  # by the names of their layers


def speaker_encoder(feature_size: int = FEATURE_SIZE["vggface"], embedding: str = "both") -> keras.Model:
    """Build the encoder that predicts a face feature from speaker embeddings, without pretrained weights.

    Its layers are "ge2e", "campplus" or both, whose embeddings are joined, and "head", which is linear.

    Args:
        feature_size: numbers in the face feature.
        embedding: of `weights.EMBEDDINGS`.

    Returns:
        Model from float (B, T, N_BINS, 2), T at least MIN_FRAMES, to float32 (B, feature_size), as `voice_encoder`.
    """
    spectrograms = keras.Input((None, N_BINS, 2), name="spectrogram")
    parts = [SPEAKER_NETWORKS[name](name=name)(spectrograms) for name in EMBEDDINGS[embedding]]
    joined = keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]  # (B, 1472) of both
    feature = layers.Dense(feature_size, dtype="float32", name="head")(joined)  # (B, feature_size)
    return keras.Model(spectrograms, feature, name="speaker_encoder")


def load_pretrained(encoder: keras.Model) -> None:
    """Load the pretrained weights of a `speaker_encoder` from their packages. Raises InputError if they are missing."""
    for name in SPEAKER_NETWORKS.keys() & {layer.name for layer in encoder.layers}:
        encoder.get_layer(name).load_pretrained()


# ----------------------------------------------------------------------------------------------------------------------
# Either encoder.


def build_encoder(name: str, feature_size: int, width: float, embedding: str | None) -> keras.Model:
    """Build the encoder that train.py's --encoder names: "conv", of a width, or "speaker", on an embedding."""
    return voice_encoder(feature_size, width) if name == "conv" else speaker_encoder(feature_size, embedding)


def embedder(encoder: keras.Model) -> keras.Model:
    """Return an encoder without its last, linear layer, as a model of the same weights: spectrograms -> embeddings, (B, E)."""
    return keras.Model(encoder.input, encoder.layers[-1].input, name="embedder")


def speaker_columns(encoder: keras.Model) -> tuple[int, int]:
    """Return the first column of the encoder's embeddings that tells speakers apart, and the first one after the last.

    Those of CAM++'s embedding, which depends least on microphone and room, or else all.
    """
    first = ge2e.UNITS if "ge2e" in {layer.name for layer in encoder.layers} else 0
    if "campplus" in {layer.name for layer in encoder.layers}:
        return first, first + campplus.UNITS
    return 0, encoder.layers[-1].input.shape[-1]


def of_halves(encoder: keras.Model) -> keras.Model:
    """Return a model from float (B, N_FRAMES, N_BINS, 2) to (B, 2 * E): the embeddings of first and second halves of clips."""
    spectrograms = keras.Input((N_FRAMES, N_BINS, 2), name="spectrogram")
    embed, middle = embedder(encoder), N_FRAMES // 2
    both = embed(spectrograms[:, :middle]), embed(spectrograms[:, N_FRAMES - middle :])
    return keras.Model(spectrograms, keras.ops.concatenate(both, axis=-1), name="halves_embedder")


def check_batch(batch_size: int, width: float, n_frames: int) -> None:
    """Raise InputError if a layer of `voice_encoder` would return more than MOST_NUMBERS.

    Args:
        batch_size: clips that a device receives at a time.
        width: of the encoder.
        n_frames: frames of each clip.

    Source of the limit: github.com/tensorflow/tensorflow, issue 124949.
    """
    size, largest = (n_frames, N_BINS), n_frames * N_BINS * 2  # numbers of a clip
    for _, channels, kernel, stride in ENCODER:
        size = tuple((s - k) // step + 1 for s, k, step in zip(size, kernel, stride))
        largest = max(largest, math.prod(size) * max(1, round((channels or 0) * width)))
    most = MOST_NUMBERS // largest
    if batch_size > most:
        raise InputError(
            f"--batch-size: expected at most {most} clips of {n_frames} frames on a device, whose largest layer then has fewer "
            f"than 2**31 numbers, TensorFlow's limit, found {batch_size} on a device; lower it"
        )


def load_weights(encoder: keras.Model, path: Path) -> None:
    """Read all weights of a network from a file. Raises OSError, ValueError or KeyError if the file does not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error that follows says the same
        encoder.load_weights(path)


def of_whole_and_start(encoder: keras.Model, n_frames: int) -> keras.Model:
    """Join two predictions of an encoder, so that each spectrogram is read once.

    Returns:
        Model from float (B, N_FRAMES, N_BINS, 2) to float32 (B, 2 * feature_size): the features predicted from the whole clip,
        then those from its first n_frames.
    """
    spectrograms = keras.Input((N_FRAMES, N_BINS, 2), name="spectrogram")
    both = encoder(spectrograms), encoder(spectrograms[:, :n_frames])
    return keras.Model(spectrograms, keras.ops.concatenate(both, axis=-1), name="whole_and_start_encoder")


# ----------------------------------------------------------------------------------------------------------------------
# Keras's layers, made faster: the same results to rounding, the same weights.

CPU_INFO = Path("/proc/cpuinfo")  # on Linux only
FEWEST_CHANNEL_PAIRS = 512  # inputs times outputs: with fewer, TensorFlow's own gradient is the faster one


def cpu_flags() -> set[str]:
    """Return the instruction sets of this CPU by their names in Linux; an empty set on other systems."""
    return set(CPU_INFO.read_text(encoding="utf-8", errors="replace").split()) if CPU_INFO.exists() else set()


class Conv2D(layers.Conv2D):
    """Keras's convolution, with `_convolution`'s backward pass on the CPUs where that was measured to be faster."""

    def convolution_op(self, inputs, kernel):
        height, width, n_in, n_out = kernel.shape
        stride = self.strides[0]
        uneven = self.strides[1] != stride or height % stride or width % stride
        small = n_in * n_out < FEWEST_CHANNEL_PAIRS
        # 130 to 200 GFLOP/s of 240; 40 to 50 of 155 without AVX-512.
        fast_already = stride == 1 and "avx512f" in cpu_flags()
        if uneven or small or fast_already or tf.config.list_logical_devices("GPU"):
            return super().convolution_op(inputs, kernel)
        return _convolution(inputs, tf.convert_to_tensor(kernel), stride)


def _convolution(x, kernel, stride: int):
    """Convolve without padding; compute the kernel's gradient as one matrix product for each position in the kernel.

    The product is that of the input, shifted by the position, and the output's gradient.

    Args:
        x: (B, T, N, C).
        kernel: (height, width, C, D), height and width multiples of the stride.
        stride: in both directions.

    Returns:
        (B, T', N', D).
    """
    height, width, n_in, n_out = kernel.shape

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(d_output):
            strides = [1, stride, stride, 1]
            d_x = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=d_output, strides=strides, padding="VALID"
            )
            size = stride * (tf.shape(d_output)[1:3] - 1) + (height, width)
            used = x[:, : size[0], : size[1]]
            if stride > 1:  # equals stride 1 on a smaller picture of more channels
                used = tf.nn.space_to_depth(used, stride)
            rows, columns = height // stride, width // stride
            # As wide as the input: then a shift in time and frequency is a single shift of the flat array.
            wide = tf.pad(d_output, ((0, 0), (0, rows - 1), (0, columns - 1), (0, 0)))
            flat_x, flat = tf.reshape(used, (-1, used.shape[3])), tf.reshape(wide, (-1, n_out))
            row = tf.shape(used)[2]
            n = tf.shape(flat)[0] - (rows - 1) * row - (columns - 1)
            shifts = [i * row + j for i in range(rows) for j in range(columns)]
            products = tf.stack([tf.matmul(flat_x[shift : shift + n], flat[:n], transpose_a=True) for shift in shifts])
            products = tf.reshape(products, (rows, columns, stride, stride, n_in, n_out))
            return d_x, tf.reshape(tf.transpose(products, (0, 2, 1, 3, 4, 5)), kernel.shape)

        return tf.nn.conv2d(x, kernel, stride, "VALID"), gradient

    return convolve(x, kernel)


class BatchNormalization(layers.BatchNormalization):
    """Keras's batch norm for (B, T, N, C), in TensorFlow's fused operations instead of a dozen, without casts.

    Mean and variance are those of the clips of all replicas, as on one device.
    """

    def call(self, inputs, training=None):
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            return tf.compat.v1.nn.fused_batch_norm(inputs, gamma, beta, mean, variance, self.epsilon, is_training=False)[0]
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            outputs, mean, variance = _batch_norm_of_replicas(inputs, gamma, beta, self.epsilon)
        else:
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, gamma, beta, epsilon=self.epsilon)
            variance = _biased(variance, numbers_of_a_channel(inputs))
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


def numbers_of_a_channel(inputs):
    """Return how many numbers each channel of (B, T, N, C) has, float32 (): a count of int32 would end at 2**31."""
    return tf.reduce_prod(tf.cast(tf.shape(inputs)[:-1], tf.float32))


def _biased(variance, n):
    """Return the mean square distance from the mean, of the fused operation's unbiased variance of n numbers."""
    return variance * (n - 1) / n


def _batch_norm_of_replicas(inputs, gamma, beta, epsilon: float):
    """Normalise with the mean and variance over all replicas, whose batches have the same size.

    Args:
        inputs: (B, T, N, C), on this replica.
        gamma, beta: float32 (C,).

    Returns:
        (B, T, N, C) in the inputs' dtype; mean and variance, float32 (C,), without gradients.
    """
    context, n = tf.distribute.get_replica_context(), numbers_of_a_channel(inputs)

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        _, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)
        mean, square = context.all_reduce("MEAN", [mean, _biased(variance, n) + mean**2])
        variance = tf.maximum(square - mean**2, 0.0)
        outputs, *_ = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon, is_training=False)

        def gradient(d_outputs, *_):
            # As if mean and variance were constants; they add, for each number, a line over the normalised x.
            d_x, d_gamma, d_beta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=d_outputs,
                x=x,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros(0),
                epsilon=epsilon,
                is_training=False,
            )
            by_gamma, by_beta = (d / n for d in context.all_reduce("MEAN", [d_gamma, d_beta]))
            scale = tf.math.rsqrt(variance + epsilon)
            slope = gamma * scale**2 * by_gamma
            level = gamma * scale * by_beta - slope * mean
            return d_x - (tf.cast(slope, x.dtype) * x + tf.cast(level, x.dtype)), d_gamma, d_beta

        return (outputs, mean, variance), gradient

    return normalise(inputs, gamma, beta)
