"""TensorFlow and Keras, imported in one place, without what TensorFlow logs at import."""

import os

from utils import stderr_to

with stderr_to(os.devnull):  # TensorFlow 2.21 logs at import, whatever its settings say
    import keras
    import tensorflow as tf
    from keras import layers

__all__ = ["keras", "layers", "tf"]
