"""VGG-Face, whose feature of a face the voice encoder learns to predict: its weights, and the package keras-vggface.

B is the batch size. Source: Parkhi et al., "Deep Face Recognition", BMVC 2015.
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

from clips import detection
from utils import FACE_SIZE, FEATURE_SIZE, InputError, replacing
from voices.backend import keras, tf

BATCH = 8  # faces in a pass of the network
MEAN_BGR = (93.5940, 104.7624, 129.1863)  # of VGG-Face's training faces, as keras-vggface subtracts it


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


def weights_path() -> Path:
    """Return where keras-vggface keeps the weights of VGG-Face: ~/.keras/models/vggface/ unless KERAS_HOME says otherwise."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    return home / "models" / "vggface" / "rcmalli_vggface_tf_vgg16.h5"


def fetch_weights() -> Path:
    """Download the weights of VGG-Face (580 MB) where they are not there yet, with a line on stderr first.

    Returns:
        Their path.

    Raises:
        InputError: if they cannot be had.
    """
    path, address = weights_path(), _keras_vggface()[1].VGG16_WEIGHTS_PATH
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


@contextlib.contextmanager
def _stored_weights():
    """Give a function that reads a layer's weights from the file, kernel and bias, while the block runs. Raises InputError."""
    path = fetch_weights()
    try:
        with h5py.File(path) as file:
            yield lambda layer: [file[layer][name] for name in file[layer].attrs["weight_names"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected the weights of VGG-Face, found something else ({error}); delete it to download it again"
        ) from error


def network():
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
    with _stored_weights() as stored:

        def dense(layer, **more):
            kernel, bias = (lambda shape, dtype, values=values: values[...].reshape(shape) for values in stored(layer))
            return tf_keras.layers.Dense(4096, kernel_initializer=kernel, bias_initializer=bias, name=layer, **more)

        convolutions = models.VGG16(weights=None, include_top=False, input_shape=(FACE_SIZE, FACE_SIZE, 3))
        for layer in convolutions.layers:
            if layer.weights:
                layer.set_weights([values[...] for values in stored(layer.name)])
        x = tf_keras.layers.Flatten()(convolutions.output)  # (B, 25088)
        x = dense("fc6", activation="relu")(x)  # (B, 4096)
        return tf_keras.Model(convolutions.input, dense("fc7")(x))


def fc8():
    """Return VGG-Face's last layer as a function: float32 (B, 4096), fc7 after its ReLU, to logits, float32 (B, 2622).

    Only its 43 MB are read, of the 580 MB of VGG-Face's weights.

    Raises:
        InputError: if the weights cannot be had or do not fit.
    """
    with _stored_weights() as stored:
        kernel, bias = (tf.Variable(values[...], trainable=False) for values in stored("fc8"))
        if kernel.shape != (FEATURE_SIZE["vggface"], bias.shape[0]):
            raise ValueError(f"fc8 of shape {kernel.shape}")
    return lambda feature: tf.matmul(feature, kernel) + bias


def picture_network():
    """Build VGG-Face as a differentiable function of pictures.

    Returns:
        A function from float32 (B, height, width, 3), RGB, 0 to 255, of any size, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: as `network`.
    """
    see = network()

    def embed(pictures):
        pictures = tf.image.resize(pictures, (FACE_SIZE, FACE_SIZE))
        return see(pictures[..., ::-1] - MEAN_BGR, training=False)

    return embed


def face_embedder():
    """Build the function that turns face crops into VGG-Face features.

    Returns:
        A function from uint8 (B, FACE_SIZE, FACE_SIZE, 3), RGB, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: as `network`.
    """
    see = tf.function(picture_network(), reduce_retracing=True)

    def embed(faces):
        assert faces.shape[1:] == (FACE_SIZE, FACE_SIZE, 3)
        return see(faces.astype("float32")).numpy()

    return embed


def face_describer(feature_size: int):
    """Return the function that gives the features of faces in pictures, as preprocess.py does, of either --face-model.

    Returns:
        A function from a list of pictures, uint8 (height, width, 3), RGB, each with a box (top, right, bottom, left), to
        float32 (n, feature_size).

    Raises:
        InputError: if VGG-Face's weights are needed and cannot be had.
    """
    if feature_size == FEATURE_SIZE["dlib"]:
        return lambda faces: np.stack([detection.dlib_feature(picture, box) for picture, box in faces])
    embed = face_embedder()

    def describe(faces):
        crops = [detection.crop_face(picture, box) for picture, box in faces]
        return np.concatenate([embed(np.stack(crops[start : start + BATCH])) for start in range(0, len(crops), BATCH)])

    return describe
