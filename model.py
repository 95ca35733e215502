"""Everything that TensorFlow computes: spectrogram, voice encoder, losses, VGG-Face.

B is the batch size and T the number of frames: 598 for 6 s of speech, 259 (2.6 s) at least.
"""

import contextlib
import functools
import importlib
import os
import sys
import types
from pathlib import Path

import h5py
import numpy as np

from utils import (
    FACE_SIZE,
    FEATURE_SIZE,
    FFT_SIZE,
    HOP,
    N_BINS,
    N_FRAMES,
    POWER,
    WINDOW,
    InputError,
    load_array,
    load_embedding,
    replacing,
    spectrogram_path,
    stderr_to,
)

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
    synchronized = tf.distribute.get_strategy().num_replicas_in_sync > 1  # batch norm over all GPUs, as over one

    def batch_norm(name):
        return layers.BatchNormalization(momentum=BN_MOMENTUM, synchronized=synchronized, name=name)

    def scaled(channels):
        return max(1, round(channels * width))

    spectrograms = x = keras.Input((None, N_BINS, 2), name="spectrogram")
    for name, channels, kernel, stride in ENCODER:
        if name.startswith("pool"):
            x = layers.MaxPooling2D(kernel, stride, name=name)(x)
            continue
        x = layers.Conv2D(scaled(channels), kernel, stride, name=name)(x)
        if name != ENCODER[-1][0]:
            x = layers.ReLU(name=name.replace("conv", "relu"))(x)
            x = batch_norm(name.replace("conv", "bn"))(x)
    # (B, 6, 57, 512)
    x = keras.ops.mean(x, axis=1)  # (B, 57, 512): "avgpool, infinity x 1", over all time
    x = layers.ReLU(name="relu9")(x)
    x = batch_norm("bn9")(x)
    x = layers.Flatten(name="flatten")(x)  # (B, 29184)
    x = layers.Dense(scaled(FC_UNITS), activation="relu", name="fc1")(x)  # (B, 4096)
    feature = layers.Dense(feature_size, dtype="float32", name="fc2")(x)  # (B, feature_size)
    return keras.Model(spectrograms, feature, name="voice_encoder")


def waveform_encoder(encoder: keras.Model) -> keras.Model:
    """Put the spectrogram in front of a voice encoder: float32 (B, samples) at SAMPLE_RATE -> (B, feature_size) in one call."""
    waveform = keras.Input((None,), name="waveform")
    return keras.Model(waveform, encoder(Spectrogram(name="stft")(waveform)), name="waveform_encoder")


# ----------------------------------------------------------------------------------------------------------------------
# The clips of preprocess.py, as batches.

READERS = 4  # clips read at the same time
PREFETCH = 4  # batches ready in memory


def clip_batches(data: Path, clips: list[str], feature_size: int, batch_size: int, n_frames: int = N_FRAMES, epoch=None):
    """Read clips as batches.

    Args:
        data: folder that preprocess.py wrote.
        clips: names of clips.
        feature_size: numbers in their face features.
        batch_size: clips in a batch, over all replicas.
        n_frames: frames of a clip to give, N_FRAMES or fewer.
        epoch: None: the clips in their order, each from its start, the last batch may be smaller. A tuple of int, such as
            (seed, epoch): for training, order and start of each clip are drawn from it, and the last batch is left out if
            it is not full. The same tuple always gives the same batches.

    Returns:
        tf.data.Dataset of (float16 (B, n_frames, N_BINS, 2), float32 (B, feature_size)), and a list that receives the error
        when a file is at fault: TensorFlow itself only passes its text on.
    """
    errors = []

    def read(number, clip):
        clip = clip.decode()
        try:
            spectrogram = load_array(spectrogram_path(data, clip), np.float16, (N_FRAMES, N_BINS, 2))
            feature = load_embedding(data, clip, feature_size)
        except (InputError, OSError) as error:
            errors.append(error)
            raise
        start = 0 if epoch is None else np.random.default_rng([*epoch, number]).integers(N_FRAMES - n_frames + 1)
        return spectrogram[start : start + n_frames], feature

    def read_tensors(number, clip):
        spectrogram, feature = tf.numpy_function(read, (number, clip), (tf.float16, tf.float32), stateful=False)
        return tf.ensure_shape(spectrogram, (n_frames, N_BINS, 2)), tf.ensure_shape(feature, (feature_size,))

    order = np.arange(len(clips)) if epoch is None else np.random.default_rng(epoch).permutation(len(clips))
    dataset = tf.data.Dataset.from_tensor_slices((order, np.array(clips)[order]))
    dataset = dataset.map(read_tensors, num_parallel_calls=READERS).batch(batch_size, drop_remainder=epoch is not None)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread sleeps on for seconds when the clips are at their end, and all wait for it
    return dataset.prefetch(PREFETCH).with_options(options), errors


def strategy():
    """Return how to spread the work: MirroredStrategy over all GPUs, or over all CPU devices where there is no GPU.

    One device alone takes TensorFlow's default strategy: the same computation, without the hand-over of batches between
    devices, which stalls for seconds now and then at the end of an epoch.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


# ----------------------------------------------------------------------------------------------------------------------
# Losses. Each takes the true and the predicted face features, float32 (B, D), and returns one loss per clip, float32 (B,);
# Keras takes the mean over the batch. Source: slides, "Loss calculations".


def l1_loss(face, voice):
    """Return ||v_f - v_s||_1, the sum over the feature."""
    return tf.reduce_sum(tf.abs(face - voice), axis=-1)


def l2_loss(face, voice):
    """Return || v_f/||v_f|| - v_s/||v_s|| ||_2^2, the squared distance of the normalised features, in [0, 4]."""
    difference = tf.math.l2_normalize(face, axis=-1) - tf.math.l2_normalize(voice, axis=-1)
    return tf.reduce_sum(difference**2, axis=-1)


LOSSES = {"l1": l1_loss, "l2": l2_loss}  # the name is train.py's --loss; the slides' total loss, with fc8, belongs here

# ----------------------------------------------------------------------------------------------------------------------
# VGG-Face. Source: Parkhi et al., "Deep Face Recognition", BMVC 2015; the package keras-vggface.


@contextlib.contextmanager
def _keras_2():
    """Let the name `keras` mean Keras 2 (the package tf-keras), as keras-vggface expects it, while the block runs."""
    import tf_keras

    layer_utils, data_utils = (importlib.import_module(f"tf_keras.src.utils.{name}") for name in ("layer_utils", "data_utils"))
    keras_utils = types.ModuleType("keras.utils")
    vars(keras_utils).update(vars(tf_keras.utils), layer_utils=layer_utils)
    keras_2 = {
        "keras": tf_keras,
        "keras.backend": tf_keras.backend,
        "keras.layers": tf_keras.layers,
        "keras.models": tf_keras.models,
        "keras.utils": keras_utils,
        # Moved since keras-vggface was written:
        "keras.utils.data_utils": data_utils,
        "keras.engine.topology": layer_utils,
    }

    def names():
        return [name for name in sys.modules if name == "keras" or name.startswith("keras.")]

    keras_3 = {name: sys.modules.pop(name) for name in names()}
    sys.modules.update(keras_2)
    try:
        yield
    finally:
        for name in names():
            del sys.modules[name]
        sys.modules.update(keras_3)


@functools.cache
def _keras_vggface():
    """Import keras-vggface, unmodified, on today's Keras. Returns its modules `models` and `utils`."""
    with _keras_2():
        return importlib.import_module("keras_vggface.models"), importlib.import_module("keras_vggface.utils")


def vggface_weights_path() -> Path:
    """Return where keras-vggface keeps the weights of VGG-Face: ~/.keras/models/vggface/ unless KERAS_HOME says otherwise."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    return home / "models" / "vggface" / "rcmalli_vggface_tf_vgg16.h5"


def fetch_vggface_weights() -> Path:
    """Download the weights of VGG-Face (580 MB) where they are not there yet, with a line on stderr first.

    Returns:
        Their path.

    Raises:
        InputError: if they cannot be had.
    """
    path, address = vggface_weights_path(), _keras_vggface()[1].VGG16_WEIGHTS_PATH
    if path.exists():
        return path
    print(f"downloading the weights of VGG-Face (580 MB), once, from {address} to {path}", file=sys.stderr)
    try:
        with replacing(path) as temporary:
            temporary.unlink(missing_ok=True)  # of a killed run: get_file would take it for the whole
            keras.utils.get_file(temporary.name, address, cache_dir=temporary.parent, cache_subdir=".")
    except Exception as error:  # get_file raises plain Exception
        raise InputError(
            f"{path}: expected the weights of VGG-Face, could not download them ({error}); "
            f"put {address} there by hand, or use --face-model dlib, which needs no download"
        ) from error
    return path


def vggface():
    """Build VGG-Face, VGG16 trained on 2,622 people, as far as fc7, with its public weights.

    The convolutions are keras-vggface's network; fc6 and fc7 are added here: the package draws random numbers first, and
    holds the weights several times over while it loads them.

    Returns:
        tf_keras model from float32 (B, 224, 224, 3), BGR less the mean, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: if the weights cannot be had or do not fit.
    """
    import tf_keras

    models, _ = _keras_vggface()
    path = fetch_vggface_weights()
    try:
        with h5py.File(path) as file:

            def stored(layer):  # in the order of a layer's weights: kernel, bias
                return [file[layer][name] for name in file[layer].attrs["weight_names"]]

            def dense(layer, **more):
                kernel, bias = (lambda shape, dtype, values=values: values[...].reshape(shape) for values in stored(layer))
                return tf_keras.layers.Dense(4096, kernel_initializer=kernel, bias_initializer=bias, name=layer, **more)

            network = models.VGG16(weights=None, include_top=False, input_shape=(FACE_SIZE, FACE_SIZE, 3))
            for layer in network.layers:
                if layer.weights:
                    layer.set_weights([values[...] for values in stored(layer.name)])
            x = tf_keras.layers.Flatten()(network.output)  # (B, 25088)
            x = dense("fc6", activation="relu")(x)  # (B, 4096)
            return tf_keras.Model(network.input, dense("fc7")(x))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected the weights of VGG-Face, found something else ({error}); delete it to download it again"
        ) from error


def face_embedder():
    """Build the function that turns face crops into VGG-Face features.

    Returns:
        A function from uint8 (B, FACE_SIZE, FACE_SIZE, 3), RGB, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: as `vggface`.
    """
    network = tf.function(vggface(), reduce_retracing=True)
    preprocess_input = _keras_vggface()[1].preprocess_input

    def embed(faces):
        assert faces.shape[1:] == (FACE_SIZE, FACE_SIZE, 3)
        return network(preprocess_input(faces.astype("float32"), version=1), training=False).numpy()

    return embed
