"""The face decoder, as a Keras model: from a face feature to the canonical face, by linear bases and a spline warp.

Landmarks and texture are predicted apart, and joined by a differentiable warp. The weights are the statistics of
`canonical.fit`; they may be trained on by gradients.

B is the batch size, S the side of a picture in pixels, D the numbers of a face feature. Landmarks are (68, 2), pixels.

Source: Cole et al., "Synthesizing Normalized Faces from Facial Identity Features", CVPR 2017.
"""

import dataclasses
import functools
import math

import numpy as np

import canonical
import media
import retrieval
import textures
from model import keras, layers, tf
from textures import HALF, SIDE
from utils import N_LANDMARKS

BACKGROUND = 235  # grey value, 0 to 255
EDGE = 6.0  # how much steeper the head's share becomes around HALF_SHARE: its mean over people is soft
LEAST_SHARE, HALF_SHARE = 0.2, 0.45
DECODING_BATCH = 32
# Where preprocess.py would cut the face out of a decoded picture, in distances of the eyes: the crop's side, and how far its
# middle is below the eyes; median over the photos of LFW.
CROP_SIDE, CROP_BELOW_EYES = 3.2, 0.56

# ----------------------------------------------------------------------------------------------------------------------
# Layers.


class Compose(layers.Layer):
    """Puts a head on plain BACKGROUND, and its left half beside the right one.

    Takes half textures, see HALF, float32 (B, S, S / 2, 4), 0 to 255. Returns float32 (B, S, S, 3), 0 to 255.
    """

    def call(self, half):
        share = half[..., 3:] / 255
        colour = half[..., :3] / tf.clip_by_value(share, LEAST_SHARE, 1.0)
        steep = tf.clip_by_value((share - HALF_SHARE) * EDGE + 0.5, 0.0, 1.0)
        half = tf.clip_by_value(colour, 0.0, 255.0) * steep + BACKGROUND * (1 - steep)
        return tf.concat([half[:, :, ::-1], half], axis=2)


def sample(pictures, x, y):
    """Read pictures between their pixels, bilinear, the border repeated outside.

    Args:
        pictures: float32 (B, H, W, C); x, y: float32 (B, H', W'), pixels.

    Returns:
        float32 (B, H', W', C), differentiable in all three.
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
    """Return r^2 log r^2 of the distances between (B, P, 2) and (B, K, 2): (B, P, K)."""
    squared = tf.reduce_sum((places[:, :, None] - points[:, None]) ** 2, axis=-1)
    return squared * tf.math.log(tf.maximum(squared, 1e-12))


class Warp(layers.Layer):
    """Warps textures from the reference shape, its only weight, to landmarks, by the thin-plate spline of `textures.spline`.

    Takes float32 (B, S, S, C) and (B, 68, 2); returns float32 (B, S, S, C), differentiable in both. The border stays in place.
    """

    def __init__(self, **more):
        super().__init__(trainable=False, **more)
        self.border, self.places = (tf.constant(points / SIDE) for points in (textures.border(), textures.grid()))
        self.between = tf.constant(textures.between_grid())

    def build(self, *_):
        self.reference = self.add_weight(name="reference", shape=(N_LANDMARKS, 2), initializer="zeros", trainable=False)

    def sources(self, landmarks):
        """Return where each pixel of the result is from: float32 (B, S, S), x and y, pixels."""
        size = tf.shape(landmarks)[0]
        border, places = (tf.tile(points[None], (size, 1, 1)) for points in (self.border, self.places))
        points = tf.cast(tf.concat([landmarks / SIDE, border], axis=1), tf.float64)  # (B, K, 2); float32 would lose 0.1 pixel
        places = tf.cast(places, tf.float64)
        affine, at = (tf.concat([tf.ones_like(of[..., :1]), of], axis=2) for of in (points, places))
        n = points.shape[1]
        upper = _bending(points, points) + textures.SMOOTHING / n * tf.eye(n, dtype=tf.float64)
        lower = tf.concat([tf.transpose(affine, (0, 2, 1)), tf.zeros((size, 3, 3), tf.float64)], axis=2)
        system = tf.concat([tf.concat([upper, affine], axis=2), lower], axis=1)
        values = tf.concat([tf.convert_to_tensor(self.reference), self.border * SIDE, tf.zeros((3, 2))], axis=0)
        weights = tf.linalg.solve(system, tf.tile(tf.cast(values, tf.float64)[None], (size, 1, 1)))  # (B, K + 3, 2)
        found = tf.matmul(_bending(places, points), weights[:, :n]) + tf.matmul(at, weights[:, n:])
        found = tf.reshape(tf.cast(found, tf.float32), (-1, textures.N_GRID, textures.N_GRID, 2))
        found = tf.einsum("yi,bijc,xj->cbyx", self.between, found, self.between)
        return found[0], found[1]

    def call(self, textures, landmarks):
        return sample(textures, *self.sources(landmarks))


# ----------------------------------------------------------------------------------------------------------------------
# The model.


def face_decoder(feature_size: int, rank: int) -> keras.Model:
    """Build the decoder; its weights are random until `set_statistics` or `load`.

    Args:
        feature_size: D.
        rank: coefficients of the texture.

    Returns:
        Model from float32 (B, D) to float32 (B, S, S, 3), RGB, 0 to 255. Its layer "half" gives half the texture,
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


def set_statistics(decoder: keras.Model, statistics: canonical.Statistics) -> None:
    """Give a decoder what `canonical.fit` has found."""
    for name, weights in statistics.layers.items():
        decoder.get_layer(name).set_weights(weights)
    decoder.get_layer("warp").set_weights([statistics.reference])


@functools.lru_cache(maxsize=1)
def _decoding(decoder: keras.Model):
    """Return the decoder as a compiled function to uint8."""

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
    return np.concatenate([_decoding(decoder)(tf.constant(batch, tf.float32)).numpy() for batch in batches])


# ----------------------------------------------------------------------------------------------------------------------
# A second look: whether the picture's own feature is the one that was decoded.

LOOKED_AT = 400  # faces from which `correction` is found, at most
NEARNESS = 0.4  # of true faces' deviations from the mean: as far as regression from voices comes, with which it was measured
LOOK_AXES = 64  # principal components of the features
LOOK_PENALTY, LOOK_STEP = 0.1, 0.8  # of ridge, in mean variances; of what is missing, the share that is asked for in addition


def face_network(feature_size: int):
    """Return the face network as a function of pictures, of each of which it sees the largest face, as preprocess.py does.

    Returns:
        Function from uint8 (n, height, width, 3), RGB, to float32 (n, feature_size); nan where there is no face.

    Raises:
        InputError: if VGG-Face's weights are needed and cannot be had.
    """
    import vggface

    describe = vggface.face_describer(feature_size)

    def see(pictures):
        faces = {n: (picture, box) for n, picture in enumerate(pictures) if (box := media.largest_face(picture))}
        seen = np.full((len(pictures), feature_size), np.nan, np.float32)
        if faces:
            seen[list(faces)] = describe(list(faces.values()))
        return seen

    return see


def correction(decoder: keras.Model, see, features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Find what to ask for in addition where a picture's own feature lacks something.

    The features of decoded pictures are regressed on the coefficients of what was asked for, on LOOK_AXES; the correction is
    the ridge solution backwards.

    Args:
        see: of `face_network`.
        features: float32 (n, D), some that the decoder was fitted to; centre: float32 (D,), the mean feature.

    Returns:
        float32 (2, LOOK_AXES, D): what is missing, times the first one transposed, times the second one, is to be added.
    """
    some = np.linspace(0, len(features) - 1, min(LOOKED_AT, len(features))).astype(int)
    deviations = (features[some] - centre).astype(np.float64)
    seen = see(decode(decoder, centre + NEARNESS * deviations))
    found = np.isfinite(seen[:, 0])
    _, strengths, axes = np.linalg.svd(deviations, full_matrices=False)
    rank = min(LOOK_AXES, (strengths > 1e-3 * strengths[0]).sum())
    spread = strengths[:rank] / np.sqrt(len(deviations))
    both = np.zeros((2, LOOK_AXES, len(centre)), np.float32)
    both[1, :rank] = spread[:, None] * axes[:rank]
    if found.sum() < 2:  # nothing to be learned, nothing to be corrected
        return both
    coefficients = deviations[found] @ axes[:rank].T / spread  # of variance 1
    seen = (seen[found] - seen[found].mean(0)) / NEARNESS
    response = np.linalg.solve(coefficients.T @ coefficients + np.eye(rank), coefficients.T @ seen)  # (R, D)
    square = response @ response.T
    both[0, :rank] = np.linalg.solve(square + LOOK_PENALTY * np.trace(square) / rank * np.eye(rank), response)
    return both


def decode_looking(decoder: keras.Model, see, features: np.ndarray, centre: np.ndarray, correction: np.ndarray, looks: int):
    """Decode faces as `decode` does; look at them and ask for what their own features lack, `looks` times.

    A picture in which there is no face stays as it is.
    """
    wanted = asked = features - centre
    back, axes = correction
    mean = see(decode(decoder, centre[None]))
    for _ in range(looks if np.isfinite(mean).all() else 0):
        missing = np.nan_to_num(wanted - (see(decode(decoder, centre + asked)) - mean))
        asked = asked + LOOK_STEP * (missing @ back.T) @ axes
    return decode(decoder, centre + asked)


@dataclasses.dataclass(frozen=True)
class FaceDecoder:
    """A face decoder in use: for features of true faces, and for what is heard."""

    network: keras.Model  # of `face_decoder`
    centre: np.ndarray  # float32 (D,), the mean face feature
    correction: np.ndarray  # float32 (2, LOOK_AXES, D), of `correction`
    learned: list[str]  # clips or photos that it was fitted to
    exaggerate: float = 1.0  # times as far from the mean face
    looks: int = 0  # at the face decoded from a voice

    @functools.cached_property
    def see(self):
        return face_network(len(self.centre))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Decode features of true faces, float32 (n, D). Returns uint8 (n, S, S, 3), RGB."""
        return decode(self.network, self._exaggerated(features))

    def heard(self, voices: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Decode what was heard, and look at the pictures.

        A voice encoder learns directions, and its lengths mean little: all are brought to NEARNESS of what true faces have.

        Args:
            voices: float32 (n, D), as seen from the centre of the voice encoder's run, of any length.
            centre: float32 (D,), that centre.

        Returns:
            uint8 (n, S, S, 3), RGB.
        """
        directions = retrieval.normalise(voices)
        if centre.any():
            _, axes = self.correction
            features = centre + NEARNESS * np.linalg.norm(axes) * directions  # the axes are as long as faces are spread
        else:  # --centre zero: what is heard is a whole feature
            features = np.linalg.norm(self.centre) * directions
        if self.looks == 0:
            return self(features)
        wanted = self._exaggerated(features)
        return decode_looking(self.network, self.see, wanted, self.centre, self.correction, self.looks)

    def _exaggerated(self, features):
        return self.centre + self.exaggerate * (features - self.centre)


def first_layer(decoder: keras.Model):
    """Return a decoder's first layer as a function: face features, float32 (B, D), to the texture's coefficients, (B, R).

    Between two people the absolute differences add up to 1, on average over those that the decoder was fitted to.
    """
    kernel, bias = (tf.constant(values) for values in decoder.get_layer("texture_coefficients").get_weights())
    return lambda feature: tf.matmul(feature, kernel) + bias


# ----------------------------------------------------------------------------------------------------------------------
# Training by gradients. Source of the three losses: Cole et al.

LANDMARK_WEIGHT, TEXTURE_WEIGHT, FEATURE_WEIGHT = 1.0, 1.0, 10.0  # of square pixels, grey values, 1 - cosine


def seen_by(network, reference: np.ndarray):
    """Return a face network as a function of whole pictures, which it sees cut as preprocess.py cuts faces out of frames.

    Args:
        network: function from float32 (B, s, s, 3), RGB, 0 to 255, to features, (B, D).
        reference: float32 (68, 2), pixels.
    """
    eyes = reference[textures.EYES].mean(axis=0)
    half = CROP_SIDE * SIDE * textures.EYE_DISTANCE / 2
    x, y = eyes[0], eyes[1] + CROP_BELOW_EYES * SIDE * textures.EYE_DISTANCE
    rows, columns = (slice(max(0, round(at - half)), round(at + half)) for at in (y, x))
    return lambda pictures: network(pictures[:, rows, columns])


def losses(decoder: keras.Model, see=None):
    """Return the function that scores what is decoded.

    Args:
        decoder: of `face_decoder`.
        see: the face network, a differentiable function from pictures, float32 (B, S, S, 3), 0 to 255, to features, (B, D); or
            None, for no feature loss.

    Returns:
        Function of features, float32 (B, D), half textures, (B, M), and landmarks, (B, 68, 2), to the means over the batch of
        the landmarks' squared distance, the texture's absolute difference, and, with `see`, 1 - the cosine between the
        feature and that of the decoded picture: float32 (2,) or (3,), each times its weight.
    """
    outputs = [decoder.get_layer(name).output for name in ("half", "landmarks", "warp")]
    parts = keras.Model(decoder.input, outputs)

    def score(features, halves, landmarks):
        decoded, shape, pictures = parts(features)
        found = [
            LANDMARK_WEIGHT * tf.reduce_mean(tf.reduce_sum((shape - landmarks) ** 2, axis=-1)),
            TEXTURE_WEIGHT * tf.reduce_mean(tf.abs(tf.reshape(decoded, tf.shape(halves)) - halves)),
        ]
        if see:
            cosine = tf.reduce_sum(tf.math.l2_normalize(see(pictures), -1) * tf.math.l2_normalize(features, -1), axis=-1)
            found.append(FEATURE_WEIGHT * tf.reduce_mean(1 - cosine))
        return tf.stack(found)

    return score


def training_step(decoder: keras.Model, optimizer, score):
    """Return a function that trains on what `losses`'s function takes, and returns what it returns."""

    @tf.function(reduce_retracing=True)
    def step(features, halves, landmarks):
        with tf.GradientTape() as tape:
            found = score(features, halves, landmarks)
            total = tf.reduce_sum(found)
        optimizer.apply(tape.gradient(total, decoder.trainable_variables), decoder.trainable_variables)
        return found

    return step
