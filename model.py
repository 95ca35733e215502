"""What TensorFlow computes of voices: spectrogram, voice encoders, losses, the training step.

B is the batch size and T the number of frames: 598 for 6 s of speech, 259 (2.6 s) at least.
"""

import os
import warnings
from pathlib import Path

import numpy as np

import speaker
from utils import FEATURE_SIZE, FFT_SIZE, HOP, N_BINS, POWER, WINDOW, InputError, stderr_to

with stderr_to(os.devnull):  # TensorFlow 2.21 logs at import, whatever its settings say
    import keras
    import tensorflow as tf
    from keras import layers

# ----------------------------------------------------------------------------------------------------------------------
# Sound.


def spectrogram(waveform):
    """Turn sound into the voice encoder's input: short-time Fourier transform, then power-law compression.

    Args:
        waveform: float32 (B, samples), mono at SAMPLE_RATE, values in [-1, 1]; CLIP_SAMPLES samples give N_FRAMES frames.

    Returns:
        float32 (B, T, N_BINS, 2), no unit: real and imaginary part, each compressed as sign(v) * |v| ** 0.3.

    Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
    """
    stft = tf.signal.stft(waveform, WINDOW, HOP, FFT_SIZE, window_fn=tf.signal.hann_window)  # (B, T, N_BINS), periodic
    parts = tf.stack([tf.math.real(stft), tf.math.imag(stft)], axis=-1)  # (B, T, N_BINS, 2)
    return tf.sign(parts) * tf.abs(parts) ** POWER


@keras.saving.register_keras_serializable("speech2face")
class Spectrogram(layers.Layer):
    """`spectrogram` as a layer."""

    def call(self, waveform):
        return spectrogram(waveform)


# ----------------------------------------------------------------------------------------------------------------------
# The voice encoder.

# Source: the slides' table. Name, channels at width 1, kernel, stride; sizes are time x frequency, those at the right
# are the output's for 598 frames. Every conv but the last is followed by relu and batch norm.
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
BN_MOMENTUM = 0.9  # of the running mean and variance; neither source names one; Keras's 0.99 lags for epochs on small data
FC_UNITS = 4096  # units of the first fully connected layer at width 1
MIN_FRAMES = 259  # the fewest frames that reach conv9


CPU_INFO = Path("/proc/cpuinfo")  # Linux's


def cpu_flags() -> set[str]:
    """Return what this CPU can do, as Linux names it; nothing elsewhere."""
    return set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()


def _convolution(x, kernel, stride: int):
    """Convolve, valid; the kernel's gradient is taken as matrix products, one for each place in the kernel: the input shifted
    by as much, times the output's gradient.

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
            if stride > 1:  # the same as stride 1 on a smaller picture of more channels
                used = tf.nn.space_to_depth(used, stride)
            rows, columns = height // stride, width // stride
            # As wide as the input, so that a shift in time and frequency is one shift of the flat array.
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


class Conv2D(layers.Conv2D):
    """Keras's layer, whose backward pass is made faster on CPUs where `_convolution` was measured to be."""

    def convolution_op(self, inputs, kernel):
        height, width, n_in, n_out = kernel.shape
        stride = self.strides[0]
        odd = self.strides[1] != stride or height % stride or width % stride
        small = n_in * n_out < 512
        good_already = stride == 1 and "avx512f" in cpu_flags()  # 130 to 200 GFLOP/s of 240; 40 to 50 of 155 without AVX-512
        if odd or small or good_already or tf.config.list_logical_devices("GPU"):
            return super().convolution_op(inputs, kernel)
        return _convolution(inputs, tf.convert_to_tensor(kernel), stride)


class BatchNormalization(layers.BatchNormalization):
    """Keras's layer for (B, T, N, C), in TensorFlow's one fused operation instead of a dozen, without casts to float32."""

    def call(self, inputs, training=None):
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
            return tf.compat.v1.nn.fused_batch_norm(inputs, gamma, beta, mean, variance, self.epsilon, is_training=False)[0]
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, gamma, beta, epsilon=self.epsilon)
        n = tf.cast(tf.size(inputs) / tf.size(beta), tf.float32)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance * (n - 1) / n)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


def voice_encoder(feature_size: int = FEATURE_SIZE["vggface"], width: float = 1.0) -> keras.Model:
    """Build the network that hears a face: spectrogram -> face feature.

    Averaging over all time after the convolutions makes it fit any duration from MIN_FRAMES up.

    Args:
        feature_size: numbers in the face feature.
        width: scale of all hidden channels; 1 is the paper's network, 148,067,584 parameters with 4096 outputs.

    Returns:
        Model from float32 (B, T, N_BINS, 2) to float32 (B, feature_size), linear: it is to match fc7 before its ReLU.

    Source: slides, "Speech encoder architecture".
    """

    def batch_norm(name, fused=True):
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # over all GPUs, as over one
            return layers.BatchNormalization(momentum=BN_MOMENTUM, synchronized=True, name=name)
        return (BatchNormalization if fused else layers.BatchNormalization)(momentum=BN_MOMENTUM, name=name)

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
# The pretrained speaker encoder.


class SpeakerEmbedding(layers.Layer):
    """Hears who speaks: spectrogram -> embedding of the voice, (B, T, N_BINS, 2) -> float32 (B, speaker.UNITS), of length 1.

    Three LSTMs over the mel bands of 1.6 s, a dense layer, relu; the mean over windows that cover all speech, pauses left out.
    Source: Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018; the package resemblyzer.
    """

    def __init__(self, **more):
        super().__init__(dtype="float32", **more)  # powers of 0.3 undone: 16 bits would not do
        last = speaker.N_LAYERS - 1
        self.lstms = [
            layers.LSTM(speaker.UNITS, return_sequences=number < last, dtype="float32", name=f"lstm{number + 1}")
            for number in range(speaker.N_LAYERS)
        ]
        self.dense = layers.Dense(speaker.UNITS, activation="relu", dtype="float32", name="linear")

    def build(self, _):
        self.mel = tf.constant(speaker.mel_filterbank())  # (N_BINS, N_MELS)
        sizes = [speaker.N_MELS] + speaker.N_LAYERS * [speaker.UNITS]
        for lstm, size in zip(self.lstms, sizes):
            lstm.build((None, speaker.WINDOW_FRAMES, size))
        self.dense.build((None, speaker.UNITS))

    def mel_frames(self, spectrograms):
        """Return the mel power of the frames with speech, one after another, repeated to T: float32 (B, T, N_MELS)."""
        power = tf.reduce_sum(tf.abs(tf.cast(spectrograms, tf.float32)) ** (2 / POWER), axis=-1)  # (B, T, N_BINS)
        # The mean square of the samples in a frame, by Parseval's theorem: Hann's window has 3/8 of a flat one's energy.
        both_sides = 2 * tf.reduce_sum(power, axis=-1) - power[..., 0] - power[..., -1]
        square = both_sides / (FFT_SIZE * WINDOW * 3 / 8)  # (B, T)
        loudness = tf.reduce_mean(square, axis=-1)[:, None, None]
        gain = tf.maximum(1.0, 10 ** (speaker.LEVEL_DB / 10) / tf.maximum(loudness, 1e-12))  # only softer ones are changed
        mel = tf.tensordot(power, self.mel, 1) * gain
        loudest = tf.reduce_max(square, axis=-1, keepdims=True)
        loud = tf.cast(square >= 10 ** (-speaker.PAUSE_DB / 10) * loudest, tf.float32)[..., None]
        speech = tf.nn.max_pool1d(loud, 2 * speaker.PAUSE_MARGIN + 1, 1, "SAME")[..., 0] > 0  # (B, T)
        speech_first = tf.argsort(tf.cast(~speech, tf.int32), axis=-1, stable=True)
        n_speech = tf.reduce_sum(tf.cast(speech, tf.int32), axis=-1, keepdims=True)
        again = tf.range(tf.shape(mel)[1])[None] % n_speech
        return tf.gather(mel, tf.gather(speech_first, again, batch_dims=1), batch_dims=1)

    def call(self, spectrograms):
        mel = self.mel_frames(spectrograms)
        size, n_frames = tf.shape(mel)[0], tf.shape(mel)[1]
        last = n_frames - speaker.WINDOW_FRAMES
        n_windows = 1 + -(-last // speaker.WINDOW_STEP)
        starts = tf.range(n_windows) * last // tf.maximum(n_windows - 1, 1)
        windows = tf.gather(mel, starts[:, None] + tf.range(speaker.WINDOW_FRAMES), axis=1)  # (B, windows, 160, N_MELS)
        x = tf.reshape(windows, (-1, speaker.WINDOW_FRAMES, speaker.N_MELS))
        for lstm in self.lstms:
            x = lstm(x)
        x = tf.math.l2_normalize(self.dense(x), axis=-1)
        x = tf.reshape(x, (size, n_windows, speaker.UNITS))
        return tf.math.l2_normalize(tf.reduce_mean(x, axis=1), axis=-1)

    def load_pretrained(self) -> None:
        """Take the weights of the package resemblyzer. Raises InputError if they cannot be had."""
        path = speaker.weights_path()
        weights = speaker.stored_weights(path)
        try:
            for number, lstm in enumerate(self.lstms):
                kernel, recurrent, bias, bias_2 = (
                    weights[f"lstm.{name}_l{number}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                lstm.set_weights([kernel.T, recurrent.T, bias + bias_2])  # the gates are in the same order as Keras's
            self.dense.set_weights([weights["linear.weight"].T, weights["linear.bias"]])
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: expected the weights of resemblyzer 0.1.4, found others ({error})") from error


def speaker_encoder(feature_size: int = FEATURE_SIZE["vggface"]) -> keras.Model:
    """Build the network that hears who speaks, and from that a face: layers "ear", a SpeakerEmbedding, and "head", linear.

    Args:
        feature_size: numbers in the face feature.

    Returns:
        Model from float (B, T, N_BINS, 2), MIN_FRAMES or more, to float32 (B, feature_size), as `voice_encoder`; its weights
        are random.
    """
    spectrograms = keras.Input((None, N_BINS, 2), name="spectrogram")
    embedding = SpeakerEmbedding(name="ear")(spectrograms)  # (B, 256)
    feature = layers.Dense(feature_size, dtype="float32", name="head")(embedding)  # (B, feature_size)
    return keras.Model(spectrograms, feature, name="speaker_encoder")


def build_encoder(name: str, feature_size: int, width: float) -> keras.Model:
    """Build train.py's --encoder, conv or speaker; the width is conv's."""
    return voice_encoder(feature_size, width) if name == "conv" else speaker_encoder(feature_size)


def load_weights(encoder: keras.Model, path: Path) -> None:
    """Read an encoder's weights, whole or not at all. Raises OSError, ValueError or KeyError if they do not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of a misfit, the error says too
        encoder.load_weights(path)


def waveform_encoder(encoder: keras.Model) -> keras.Model:
    """Put the spectrogram in front of a voice encoder: float32 (B, samples) at SAMPLE_RATE -> (B, feature_size) in one call."""
    waveform = keras.Input((None,), dtype="float32", name="waveform")
    return keras.Model(waveform, encoder(Spectrogram(dtype="float32", name="stft")(waveform)), name="waveform_encoder")


# ----------------------------------------------------------------------------------------------------------------------
# Losses. Each takes the true and the predicted face features, float32 (B, D), and returns one loss per clip, float32 (B,);
# training takes the mean over the batch, over all replicas. Source: slides, "Loss calculations".

LAMBDA_1, LAMBDA_2 = 0.025, 200.0  # weights of l2 and distillation. Source: Oh et al., CVPR 2019, implementation details
DISTILLATION_TEMPERATURE = 2.0  # same source
# Of the third term. Differs from the paper, whose decoder has a scale of its own: here two people differ by 1 in the first
# layer, and by 2 in l2, when their directions from the centre are independent; so the two terms are of the same size.
DECODING_WEIGHT = 2 * LAMBDA_1
CONTRASTIVE_TEMPERATURE = 0.1


def l1_loss(face, voice):
    """Return ||v_f - v_s||_1, the sum over the feature."""
    return tf.reduce_sum(tf.abs(face - voice), axis=-1)


def l2_loss(face, voice):
    """Return || v_f/||v_f|| - v_s/||v_s|| ||_2^2, the squared distance of the normalised features, in [0, 4]."""
    difference = tf.math.l2_normalize(face, axis=-1) - tf.math.l2_normalize(voice, axis=-1)
    return tf.reduce_sum(difference**2, axis=-1)


def distillation_loss(face, voice, fc8):
    """Return -sum_i p_i(v_f) log p_i(v_s) over VGG-Face's 2,622 people, with p(a) = softmax(fc8(relu(a)) / T).

    Args:
        face, voice: float32 (B, 4096).
        fc8: function from float32 (B, 4096) to logits, float32 (B, 2622); see `vggface.fc8`.
    """
    p_face, log_p_voice = (
        activation(fc8(tf.nn.relu(feature)) / DISTILLATION_TEMPERATURE)
        for activation, feature in ((tf.nn.softmax, face), (tf.nn.log_softmax, voice))
    )
    return -tf.reduce_sum(p_face * log_p_voice, axis=-1)


def contrastive_loss(face, voice):
    """Return the mean of -log p(true face | voice) and -log p(true voice | face), among all clips of the step.

    p is the softmax of the cosine similarities over CONTRASTIVE_TEMPERATURE; the step's clips are those of all replicas.
    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018 (InfoNCE).
    """
    face, voice = tf.math.l2_normalize(face, axis=-1), tf.math.l2_normalize(voice, axis=-1)
    all_faces, all_voices, first = face, voice, 0
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        all_faces, all_voices = (context.all_gather(feature, axis=0) for feature in (face, voice))
        first = context.replica_id_in_sync_group * tf.shape(face)[0]
    true = first + tf.range(tf.shape(face)[0])

    def surprise(queries, answers):
        logits = tf.matmul(queries, answers, transpose_b=True) / CONTRASTIVE_TEMPERATURE  # (B, B of all replicas)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(true, logits)

    return (surprise(voice, all_faces) + surprise(face, all_voices)) / 2


def decoding_loss(face, voice, first_layer):
    """Return || f_dec(v_f) - f_dec(v_s) ||_1, the sum over the first layer of the face decoder: the paper's third term.

    Args:
        face, voice: float32 (B, D).
        first_layer: `decoder.first_layer`: function from float32 (B, D) to (B, anything).
    """
    return tf.reduce_sum(tf.abs(first_layer(face) - first_layer(voice)), axis=-1)


def loss_function(name: str, centre: np.ndarray, load_fc8=None, first_layer=None):
    """Return one of LOSSES, by train.py's --loss.

    Args:
        name: l1, l2, total or contrastive.
        centre: float32 (D,); l2 and contrastive compare directions as seen from it: most of a face feature's length is the
            mean face, the same for everybody, and hides what tells people apart.
        load_fc8: `vggface.fc8`, which is called for total.
        first_layer: total's third term is through it, see `decoding_loss`; without it there is none.

    Raises:
        InputError: if VGG-Face's weights are needed and cannot be had, or the features are not VGG-Face's.
    """
    centre = tf.constant(centre)

    def l2(face, voice):
        return l2_loss(face - centre, voice - centre)

    if name == "total":
        if len(centre) != FEATURE_SIZE["vggface"]:
            raise InputError(
                f"--loss total: expected face features of {FEATURE_SIZE['vggface']} numbers, for VGG-Face's last layer, found "
                f"{len(centre)}; use another --loss, or make the clips ready with preprocess.py --face-model vggface"
            )
        fc8 = load_fc8()

        def total(face, voice):
            of_both = LAMBDA_1 * l2(face, voice) + LAMBDA_2 * distillation_loss(face, voice, fc8)
            return of_both + DECODING_WEIGHT * decoding_loss(face, voice, first_layer) if first_layer else of_both

        return total
    return {
        "l1": l1_loss,
        "l2": l2,
        "contrastive": lambda face, voice: contrastive_loss(face - centre, voice - centre),
    }[name]


LOSSES = ("l1", "l2", "total", "contrastive")

# ----------------------------------------------------------------------------------------------------------------------
# Training: hardware, optimizer, step.

# Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
BETA_1 = 0.5
EPSILON = 1e-4
DECAY_RATE, DECAY_STEPS = 0.95, 10_000  # the paper's learning rate: times 0.95 every 10,000 steps

WARM_UP = 0.05  # of all steps, while the cosine schedule rises
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000  # of mixed_float16, as Keras has them


def best_precision() -> str:
    """Return the Keras policy that is fastest on this machine: mixed only where the hardware computes with 16 bits."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = min(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
        return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def strategy():
    """Return how to spread the work: over the machines that TF_CONFIG names; over all GPUs; or, where there is no GPU, over all
    CPU devices. To be called before anything is computed.

    One device alone takes TensorFlow's default strategy: the same computation, without the hand-over of batches between
    devices.
    """
    if os.environ.get("TF_CONFIG"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def is_chief() -> bool:
    """Return whether this machine, of those that train together, is the one that validates and writes."""
    cluster = tf.distribute.get_strategy().cluster_resolver
    return (
        cluster is None
        or cluster.task_type in (None, "", "chief")
        or (cluster.task_id == 0 and "chief" not in cluster.cluster_spec().jobs)
    )


def adam(encoder, schedule: str, learning_rate: float, n_steps: int, weight_decay: float):
    """Return Adam with the paper's constants, ready for the encoder's weights.

    Args:
        encoder: the model to be trained.
        schedule: "paper", steps down by DECAY_RATE; or "cosine", up over the first WARM_UP of n_steps, then down to 0.
        learning_rate: the highest, at the start or after the warm-up.
        n_steps: of the whole training.
        weight_decay: share of the kernels that a step takes away, times the learning rate (AdamW).
    """
    if schedule == "paper":
        rate = keras.optimizers.schedules.ExponentialDecay(learning_rate, DECAY_STEPS, DECAY_RATE, staircase=True)
    else:
        rising = max(1, round(WARM_UP * n_steps))
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, n_steps - rising), warmup_target=learning_rate, warmup_steps=rising
        )
    optimizer = keras.optimizers.Adam(rate, beta_1=BETA_1, epsilon=EPSILON, weight_decay=weight_decay or None)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(encoder.trainable_variables)
    return optimizer


class LossScale(keras.layers.Layer):
    """The factor that keeps mixed_float16's gradients above its smallest number: halved when they overflow, doubled after
    STEPS_TO_DOUBLE steps in which they did not. Keras's own does not work over several GPUs.
    """

    def __init__(self):
        super().__init__(dtype="float32", trainable=False)
        self.factor = self.add_weight(name="factor", initializer=keras.initializers.Constant(FIRST_LOSS_SCALE))
        self.steps = self.add_weight(name="steps", initializer="zeros")

    def update(self, finite):
        """Take note of a step. Returns nothing."""
        steps = tf.where(finite, self.steps + 1, 0.0)
        double = steps >= STEPS_TO_DOUBLE
        self.factor.assign(tf.where(finite, tf.where(double, 2.0, 1.0), 0.5) * self.factor)
        self.steps.assign(tf.where(double, 0.0, steps))


def training_step(encoder, optimizer, loss, batch_size: int, loss_scale: LossScale | None = None):
    """Return a function that trains on a batch of `training_batches` and returns its mean loss over all replicas."""
    strategy = tf.distribute.get_strategy()
    variables = encoder.trainable_variables

    def on_one_replica(spectrograms, faces):
        with tf.GradientTape() as tape:
            clip_losses = loss(faces, encoder(spectrograms, training=True))
            mean = tf.reduce_sum(clip_losses) / batch_size
            scaled = mean * tf.convert_to_tensor(loss_scale.factor) if loss_scale else mean
        gradients = tape.gradient(scaled, variables)
        if loss_scale:
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
            if strategy.num_replicas_in_sync > 1:
                failures = tf.distribute.get_replica_context().all_reduce("SUM", tf.cast(~finite, tf.float32))
                finite = failures == 0
            gradients = [tf.where(finite, gradient / loss_scale.factor, 0.0) for gradient in gradients]  # 0: a step left out
            loss_scale.update(finite)
        optimizer.apply(gradients, variables)
        return mean

    @tf.function
    def step(batch):
        return strategy.reduce("SUM", strategy.run(on_one_replica, batch), axis=None)

    return step
