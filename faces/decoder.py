"""The face decoder as a Keras model: from a face feature to a picture of a frontal, neutral face.

The decoder predicts landmarks and texture apart, each as a linear function of the feature, and joins them by a differentiable
warp. Its weights are the statistics of `decoder_statistics.fit`; gradient descent may train them further.

B is the batch size, S the side of a picture in pixels, D the size of a face feature. Landmarks are (68, 2), pixels.

Source: Cole et al., "Synthesizing Normalized Faces from Facial Identity Features", CVPR 2017.
"""

import functools
import math

import numpy as np

from faces import decoder_statistics, textures
from faces.textures import HALF, SIDE
from utils import N_LANDMARKS
from voices.backend import keras, layers, tf

BACKGROUND = 235  # grey value, 0 to 255
LEAST_SHARE = 0.2  # of the head in a pixel: the smallest divisor of its colour
HALF_SHARE = 0.45  # of the head in a pixel that is composed half of head, half of background
EDGE = 6.0  # slope of the composition around HALF_SHARE: the mean share over people has too soft an edge
DECODING_BATCH = 32  # features decoded at a time

# ----------------------------------------------------------------------------------------------------------------------
# Layers.


class Compose(layers.Layer):
    """Composes half textures, see HALF, with a plain background, and adds the left halves.

    float32 (B, S, S / 2, 4), 0 to 255 -> float32 (B, S, S, 3), RGB, 0 to 255.
    """

    def call(self, half):
        share = half[..., 3:] / 255
        colour = half[..., :3] / tf.clip_by_value(share, LEAST_SHARE, 1.0)
        steep = tf.clip_by_value((share - HALF_SHARE) * EDGE + 0.5, 0.0, 1.0)
        half = tf.clip_by_value(colour, 0.0, 255.0) * steep + BACKGROUND * (1 - steep)
        return textures.both_halves(half, tf.concat)


def sample_bilinear(pictures, x, y):
    """Interpolate pictures between their pixels; beyond a picture its border is repeated.

    Args:
        pictures: float32 (B, H, W, C).
        x, y: float32 (B, H', W'), pixels.

    Returns:
        float32 (B, H', W', C), differentiable in all three arguments.
    """
    height, width = pictures.shape[1:3]
    x, y = tf.clip_by_value(x, 0.0, width - 1.0), tf.clip_by_value(y, 0.0, height - 1.0)
    left, top = tf.minimum(tf.floor(x), width - 2.0), tf.minimum(tf.floor(y), height - 2.0)
    across, down = (x - left)[..., None], (y - top)[..., None]
    flat = tf.reshape(pictures, (-1, height * width, pictures.shape[3]))
    first = tf.cast(top, tf.int32) * width + tf.cast(left, tf.int32)
    corners = [tf.gather(flat, first + shift, batch_dims=1) for shift in (0, 1, width, width + 1)]
    upper, lower = (corners[i] * (1 - across) + corners[i + 1] * across for i in (0, 2))
    return upper * (1 - down) + lower * down


def _bending(places, points):
    """Return r^2 log r^2 of the distances r between (B, P, 2) and (B, K, 2): (B, P, K)."""
    squared = tf.reduce_sum((places[:, :, None] - points[:, None]) ** 2, axis=-1)
    return squared * tf.math.log(tf.maximum(squared, 1e-12))


class Warp(layers.Layer):
    """Warps textures from the reference shape, the layer's only weight, to landmarks; the border stays in place.

    float32 (B, S, S, channels) and (B, 68, 2) -> float32 (B, S, S, channels), differentiable in both.

    The thin-plate spline is that of `textures.spline_matrix`, written for gradients.
    """

    def __init__(self, **more):
        super().__init__(trainable=False, **more)
        self.border, self.grid = (tf.constant(points / SIDE) for points in (textures.border(), textures.grid()))
        self.between = tf.constant(textures.between_grid())

    def build(self, *_):
        self.reference = self.add_weight(name="reference", shape=(N_LANDMARKS, 2), initializer="zeros", trainable=False)

    def sources(self, landmarks):
        """Return the place in the texture that each pixel of the result shows: x and y, each float32 (B, S, S), pixels."""
        size = tf.shape(landmarks)[0]
        border, places = (tf.tile(points[None], (size, 1, 1)) for points in (self.border, self.grid))
        points = tf.cast(tf.concat([landmarks / SIDE, border], axis=1), tf.float64)  # (B, K, 2); float32 would lose 0.1 pixel
        places = tf.cast(places, tf.float64)
        affine, affine_places = (tf.concat([tf.ones_like(of[..., :1]), of], axis=2) for of in (points, places))
        n = points.shape[1]
        upper = _bending(points, points) + textures.SMOOTHING / n * tf.eye(n, dtype=tf.float64)
        lower = tf.concat([tf.transpose(affine, (0, 2, 1)), tf.zeros((size, 3, 3), tf.float64)], axis=2)
        system = tf.concat([tf.concat([upper, affine], axis=2), lower], axis=1)
        values = tf.concat([tf.convert_to_tensor(self.reference), self.border * SIDE, tf.zeros((3, 2))], axis=0)
        weights = tf.linalg.solve(system, tf.tile(tf.cast(values, tf.float64)[None], (size, 1, 1)))  # (B, K + 3, 2)
        sources = tf.matmul(_bending(places, points), weights[:, :n]) + tf.matmul(affine_places, weights[:, n:])
        sources = tf.reshape(tf.cast(sources, tf.float32), (-1, textures.N_GRID, textures.N_GRID, 2))
        sources = tf.einsum("yi,bijc,xj->cbyx", self.between, sources, self.between)
        return sources[0], sources[1]

    def call(self, pictures, landmarks):
        return sample_bilinear(pictures, *self.sources(landmarks))


# ----------------------------------------------------------------------------------------------------------------------
# The model.


def face_decoder(feature_size: int, rank: int) -> keras.Model:
    """Build the decoder, with random weights.

    Args:
        feature_size: D.
        rank: coefficients of the texture.

    Returns:
        Model from float32 (B, D) to float32 (B, S, S, 3), RGB, 0 to 255. The layer "half" gives half the texture,
        (B, S, S / 2, 4), and "landmarks" the landmarks, (B, 68, 2).
    """
    exact = {"dtype": "float32"}
    feature = keras.Input((feature_size,), dtype="float32", name="feature")
    coefficients = layers.Dense(rank, name="texture_coefficients", **exact)(feature)
    half = layers.Dense(math.prod(HALF), name="texture_basis", **exact)(coefficients)
    half = layers.Reshape(HALF, name="half", **exact)(half)
    landmarks = layers.Dense(N_LANDMARKS * 2, name="landmark_slopes", **exact)(feature)
    landmarks = layers.Reshape((N_LANDMARKS, 2), name="landmarks", **exact)(landmarks)
    picture = Warp(name="warp", **exact)(Compose(name="texture", **exact)(half), landmarks)
    return keras.Model(feature, picture, name="face_decoder")


def set_statistics(decoder: keras.Model, statistics: decoder_statistics.Statistics) -> None:
    """Set the weights of a decoder to the statistics of `decoder_statistics.fit`."""
    for name, weights in statistics.layers.items():
        decoder.get_layer(name).set_weights(weights)
    decoder.get_layer("warp").set_weights([statistics.reference])


@functools.lru_cache(maxsize=1)
def _compiled(decoder: keras.Model):
    """Compile the decoder: features, float32 (B, D) -> pictures, uint8 (B, S, S, 3)."""

    def decode_batch(features):
        return tf.cast(tf.round(tf.clip_by_value(decoder(features, training=False), 0.0, 255.0)), tf.uint8)

    return tf.function(decode_batch, input_signature=[tf.TensorSpec((None, decoder.input_shape[1]), tf.float32)])


def decode(decoder: keras.Model, features: np.ndarray) -> np.ndarray:
    """Decode faces.

    Args:
        features: float32 (n, D).

    Returns:
        uint8 (n, S, S, 3), RGB.
    """
    batches = [features[start : start + DECODING_BATCH] for start in range(0, len(features), DECODING_BATCH)]
    return np.concatenate([_compiled(decoder)(tf.constant(batch, tf.float32)).numpy() for batch in batches])


def first_layer(decoder: keras.Model):
    """Return the first layer of a decoder as a function: face features, float32 (B, D) -> texture coefficients, (B, rank).

    The absolute differences between the coefficients of two training faces add up to 1 on average.
    """
    kernel, bias = (tf.constant(values) for values in decoder.get_layer("texture_coefficients").get_weights())
    return lambda feature: tf.matmul(feature, kernel) + bias
