"""The project's one import of TensorFlow and Keras, silent: TensorFlow 2.21 logs at import, whatever its settings are."""

import os

from utils import stderr_to

# Take memory of a GPU as it is needed: by default TensorFlow takes all of it, and a second process would find none.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

with stderr_to(os.devnull):
    import keras
    import tensorflow as tf
    from keras import layers

__all__ = ["keras", "layers", "tf"]
