"""The project's one import of TensorFlow and Keras, silent: TensorFlow 2.21 logs at import, whatever its settings are."""

import os

from utils import stderr_to

with stderr_to(os.devnull):
    import keras
    import tensorflow as tf
    from keras import layers

__all__ = ["keras", "layers", "tf"]
