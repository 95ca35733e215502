"""VGG-Face, the network whose face features a voice encoder learns to predict, by the package keras-vggface.

B is the batch size.

Source: Parkhi et al., "Deep Face Recognition", BMVC 2015.
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
from utils import FACE_SIZE, FEATURE_SIZE, InputError, remove_leftovers, replacing
from voices.backend import keras, tf

BATCH = 8  # faces in a forward pass
MEAN_BGR = (93.5940, 104.7624, 129.1863)  # of VGG-Face's training faces, which keras-vggface subtracts


@contextlib.contextmanager
def _keras_2(tf_keras):
    """Let the name `keras` mean Keras 2 (the package tf-keras), which keras-vggface expects, while the block runs."""
    layer_utils, data_utils = (importlib.import_module(f"tf_keras.src.utils.{name}") for name in ("layer_utils", "data_utils"))
    keras_utils = types.ModuleType("keras.utils")
    vars(keras_utils).update(vars(tf_keras.utils), layer_utils=layer_utils)
    keras_2 = {
        "keras": tf_keras,
        "keras.backend": tf_keras.backend,
        "keras.layers": tf_keras.layers,
        "keras.models": tf_keras.models,
        "keras.utils": keras_utils,
        # Modules that have moved since keras-vggface was written:
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
    """Import keras-vggface, unmodified, next to Keras 3. Returns its modules `models` and `utils`, and Keras 2."""
    import tf_keras  # slow to import, and only VGG-Face needs it

    with _keras_2(tf_keras):
        return (*(importlib.import_module(f"keras_vggface.{name}") for name in ("models", "utils")), tf_keras)


def weights_path() -> Path:
    """Return the file in which keras-vggface keeps its weights, in ~/.keras/models/vggface/ unless KERAS_HOME is set."""
    home = Path(os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras")))
    return home / "models" / "vggface" / "rcmalli_vggface_tf_vgg16.h5"


def fetch_weights() -> Path:
    """Download the weights of VGG-Face (580 MB) unless the file exists; a line on stderr announces the download.

    Returns:
        The path of the file.

    Raises:
        InputError: if the download fails.
    """
    _, package_utils, _ = _keras_vggface()
    path, address = weights_path(), package_utils.VGG16_WEIGHTS_PATH
    if path.exists():
        return path
    print(f"downloading the weights of VGG-Face (580 MB), once, from {address} to {path}", file=sys.stderr)
    remove_leftovers(path.parent)
    try:
        with replacing(path) as temporary:
            keras.utils.get_file(temporary.name, address, cache_dir=temporary.parent, cache_subdir=".")
    except Exception as error:  # get_file raises plain Exception
        raise InputError(
            f"{path}: expected the weights of VGG-Face, could not download them ({error}); "
            f"put {address} there by hand, or use --face-model dlib, which needs no download"
        ) from error
    return path


@contextlib.contextmanager
def _stored_weights():
    """Open the file of weights; yield a function that reads the kernel and bias of a layer by its name. Raises InputError."""
    path = fetch_weights()
    try:
        with h5py.File(path) as file:
            yield lambda layer: [file[layer][name] for name in file[layer].attrs["weight_names"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected the weights of VGG-Face, found something else ({error}); delete it to download it again"
        ) from error


def network():
    """Build VGG-Face, a VGG16 trained on the faces of 2,622 people, up to fc7, with its public weights.

    The convolutions are built by keras-vggface. The layers fc6 and fc7 are added here, because the package would initialise
    them at random first and hold several copies of the weights while it loads them.

    Returns:
        tf_keras model from float32 (B, 224, 224, 3), BGR less the mean, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: if the weights cannot be had or do not fit.
    """
    models, _, tf_keras = _keras_vggface()
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
    """Return VGG-Face's last layer as a function: float32 (B, 4096), fc7 after its ReLU -> logits, float32 (B, 2622).

    Of the file of weights, 580 MB, only the 43 MB of this layer are read.

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
        Function from float32 (B, height, width, 3), RGB, 0 to 255, of any size, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: as `network`.
    """
    vggface = network()

    def embed(pictures):
        pictures = tf.image.resize(pictures, (FACE_SIZE, FACE_SIZE))
        return vggface(pictures[..., ::-1] - MEAN_BGR, training=False)

    return embed


def face_embedder():
    """Build the function that computes VGG-Face features of face crops.

    Returns:
        Function from uint8 (B, FACE_SIZE, FACE_SIZE, 3), RGB, to float32 (B, 4096), fc7 before its ReLU.

    Raises:
        InputError: as `network`.
    """
    compiled = tf.function(picture_network(), reduce_retracing=True)

    def embed(faces):
        assert faces.shape[1:] == (FACE_SIZE, FACE_SIZE, 3)
        return compiled(faces.astype("float32")).numpy()

    return embed


def feature_extractor(feature_size: int):
    """Return the function that extracts the feature of the largest face in each picture, as preprocess.py does.

    Returns:
        Function from uint8 (n, height, width, 3), RGB, to float32 (n, feature_size); nan for pictures without a face.

    Raises:
        InputError: if VGG-Face's weights are needed and cannot be had.
    """
    describe = face_describer(feature_size)

    def extract(pictures):
        faces = {n: (picture, box) for n, picture in enumerate(pictures) if (box := detection.largest_face(picture))}
        features = np.full((len(pictures), feature_size), np.nan, np.float32)
        if faces:
            features[list(faces)] = describe(list(faces.values()))
        return features

    return extract


def face_describer(feature_size: int):
    """Return the function that computes the features of faces in pictures, as preprocess.py does, for either --face-model.

    Args:
        feature_size: 4096 for VGG-Face, 128 for dlib.

    Returns:
        Function from a list of pictures, uint8 (height, width, 3), RGB, each with a box (top, right, bottom, left), to
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
