"""The face decoder as a Keras model: from a face feature to a picture of a frontal, neutral face.

The decoder predicts landmarks and texture apart, each as a linear function of the feature, and joins them by a differentiable
warp. Its weights are the statistics of `decoder_statistics.fit`; gradient descent may train them further.

B is the batch size, S the side of a picture in pixels, M the size of half a texture, D the size of a face feature. Landmarks
are (68, 2), pixels.

Source: Cole et al., "Synthesizing Normalized Faces from Facial Identity Features", CVPR 2017.
"""

import functools

import cv2
import numpy as np

from faces import decoder_statistics, textures
from faces.textures import DISTANCE_ZERO, HALF_SIZE, SIDE
from utils import N_LANDMARKS
from voices.backend import keras, layers, tf

# The background, RGB, 0 to 255: a grey wall, lit in the middle.
WALL, WALL_DARKER, WALL_MIDDLE = (236, 234, 229), 95, (0.5, 0.42)
LEAST_SKIN, LEAST_HAIR = 0.35, 0.3  # shares of a pixel, the smallest divisors of the colours; what less shows darkens
OUTLINE_WIDTH = 1.6  # pixels, from background to person
HALF_HAIR, HAIR_STEEPNESS = 0.42, 2.4  # share of hair where hair and skin are mixed half and half; slope of the mixture
# Strands of hair, which no average over people shows: how much they change its brightness, and the share at its edge. Where the
# share is less than the two below, hair is thin and has fewer, or none.
STRAND_CONTRAST, STRAND_EDGE = 0.10, 0.025
NO_STRANDS, ALL_STRANDS = 0.45, 0.9
STRANDS = (14, 0.45), (45, 0.6), (90, 0.5)  # across half of the head: number and weight of coarse, middle and fine ones
STRAND_BENDS = 8  # places along a strand where its brightness changes
CROWN, CROWN_HEIGHT, HALF_HEAD = 0.04, 0.22, 0.30  # of the side: where strands begin; how soon they hang; then how far apart
DECODING_BATCH = 32  # features decoded at a time

# ----------------------------------------------------------------------------------------------------------------------
# Layers.


def background() -> np.ndarray:
    """Return the picture behind all faces, float32 (S, S, 3), RGB, 0 to 255."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    distance = np.hypot(x - WALL_MIDDLE[0], y - WALL_MIDDLE[1])
    return (np.array(WALL) - WALL_DARKER * distance[..., None] ** 1.5).astype(np.float32)


@functools.cache
def strands() -> np.ndarray:
    """Return strands of hair that fall from the crown to both sides, the same on every head: float32 (S, S, 1).

    Noise of mean 0 and, but for the crown, standard deviation about 1. It says nothing about a person.
    """
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    below = np.maximum(y - CROWN, 1 / SIDE)
    strand = np.abs(x - 0.5) / (HALF_HEAD * np.tanh(below / CROWN_HEIGHT) ** 0.7 + 0.02)  # 1 at the side of the head
    width, rng, noise = 8 * SIDE, np.random.default_rng(0), np.zeros((SIDE, SIDE), np.float32)
    across = np.float32((strand / 2).clip(0, 1) * (width - 1))
    for number, weight in STRANDS:
        random = rng.normal(size=(STRAND_BENDS, 2 * number)).astype(np.float32)
        smooth = cv2.resize(random, (width, SIDE), interpolation=cv2.INTER_CUBIC)
        noise += weight * cv2.remap(smooth, across, np.float32(y * SIDE - 0.5), cv2.INTER_LINEAR)
    noise = (noise - noise.mean()) / noise.std()
    return np.float32(noise * ((y - CROWN) / CROWN_HEIGHT).clip(0.15, 1))[..., None]


class Compose(layers.Layer):
    """Composes half textures, see `textures.HALVES`, to a picture: background, person, hair with `strands`.

    float32 (B, M), 0 to 255 -> float32 (B, S, S, 3), RGB, 0 to 255.
    """

    def call(self, halves):
        maps = {name: textures.both_halves(half, tf.concat) for name, half in textures.maps_of(halves, tf.reshape).items()}
        outline, hair = (tf.image.resize(maps[name], (SIDE, SIDE)) for name in ("outline", "hair"))
        share = hair[..., 3:] / 255
        person = maps["skin"] / tf.clip_by_value(outline[..., :1] / 255, LEAST_SKIN, 1.0)
        of_strands = strands() * tf.clip_by_value((share - NO_STRANDS) / (ALL_STRANDS - NO_STRANDS), 0.0, 1.0)
        hair = hair[..., :3] / tf.clip_by_value(share, LEAST_HAIR, 1.0) * (1 + STRAND_CONTRAST * of_strands)
        of_hair = tf.clip_by_value((share + STRAND_EDGE * strands() - HALF_HAIR) * HAIR_STEEPNESS + 0.5, 0.0, 1.0)
        of_person = tf.clip_by_value((outline[..., 1:] - DISTANCE_ZERO) / OUTLINE_WIDTH + 0.5, 0.0, 1.0)
        person = tf.clip_by_value(person, 0.0, 255.0) * (1 - of_hair) + tf.clip_by_value(hair, 0.0, 255.0) * of_hair
        return person * of_person + background() * (1 - of_person)


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
        Model from float32 (B, D) to float32 (B, S, S, 3), RGB, 0 to 255. The layer "texture_basis" gives half the texture,
        (B, M), and "landmarks" the landmarks, (B, 68, 2).
    """
    exact = {"dtype": "float32"}
    feature = keras.Input((feature_size,), dtype="float32", name="feature")
    coefficients = layers.Dense(rank, name="texture_coefficients", **exact)(feature)
    half = layers.Dense(HALF_SIZE, name="texture_basis", **exact)(coefficients)
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


VISIBLE_SIDE = 64  # pixels, of the pictures in which `visible_changes` are seen
VISIBLE_BLUR = 1.5  # pixels


def visible_changes(decoder: keras.Model) -> np.ndarray:
    """Return how the skin of decoded faces changes with the feature, seen from afar, before all landmarks move it.

    Returns:
        float32 (D, P): the change of P values of RGB in the face, for each unit of each number of a feature.
    """
    kernel, basis = (decoder.get_layer(name).get_weights()[0] for name in ("texture_coefficients", "texture_basis"))
    skin = textures.both_halves(textures.maps_of(basis)["skin"])
    face = cv2.resize(textures.face_hull(decoder.get_layer("warp").get_weights()[0]), (VISIBLE_SIDE, VISIBLE_SIDE))
    small = [cv2.resize(picture, (VISIBLE_SIDE, VISIBLE_SIDE), interpolation=cv2.INTER_AREA) for picture in skin]
    blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), VISIBLE_BLUR)[face > 0].ravel() for picture in small])
    return kernel @ blurred


def first_layer(decoder: keras.Model):
    """Return the first layer of a decoder as a function: face features, float32 (B, D) -> texture coefficients, (B, rank).

    The absolute differences between the coefficients of two training faces add up to 1 on average.
    """
    kernel, bias = (tf.constant(values) for values in decoder.get_layer("texture_coefficients").get_weights())
    return lambda feature: tf.matmul(feature, kernel) + bias
