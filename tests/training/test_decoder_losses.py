import numpy as np
import pytest
from conftest import face_shape, in_picture, small_decoder

from clips import detection
from faces import textures
from faces.textures import SIDE
from training import decoder_training, steps
from voices.backend import keras, tf

REFERENCE = in_picture(face_shape())


@pytest.fixture
def network(rng):
    return small_decoder(rng)


def test_decoded_pictures_are_cropped_as_by_preprocessing(make_demo):
    """For a rendered face: detector and crop on one side, the constants on the other."""
    photo = make_demo.draw_faces(make_demo.Person(*np.full(11, 0.5)), [(0.1, 1)], (320, 175), 0)[0]
    landmarks = detection.find_landmarks(photo, detection.find_photo_face(photo, "hog").box)
    picture = textures.align(photo, landmarks, REFERENCE)[0]
    top, right, bottom, left = detection.find_photo_face(picture, "hog").box
    side = 1.3 * (bottom - top)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    coordinates = np.stack([x, y, 0 * x], axis=-1)[None]
    cropped = decoder_training.differentiable_extractor(lambda crops: crops, REFERENCE)(coordinates)[0]
    first, last = cropped[0, 0, :2], cropped[-1, -1, :2]
    np.testing.assert_allclose((first + last) / 2 + 0.5, ((left + right) / 2, (top + bottom) / 2), atol=4)
    assert cropped.shape[0] == cropped.shape[1] == pytest.approx(side, rel=0.2)  # the detector's sizes are 1.2 times apart

    half = cropped.shape[0] / 2 / 1.3
    centre = (first + last + 1) / 2
    box = tuple(round(edge) for edge in (centre[1] - half, centre[0] + half, centre[1] + half, centre[0] - half))
    resized = decoder_training.differentiable_extractor(lambda crops: tf.image.resize(crops, (224, 224)), REFERENCE)(
        picture[None].astype(np.float32)
    )[0]
    assert np.abs(resized.numpy() - detection.crop_face(picture, box)).mean() < 3


def test_the_losses_by_hand(network, rng):
    features = rng.normal(size=(3, 6)).astype(np.float32)
    kernel, bias = network.get_layer("landmark_slopes").get_weights()
    shapes = (features @ kernel + bias).reshape(-1, 68, 2)
    parts = keras.Model(network.input, network.get_layer("texture_basis").output)
    halves = parts(features).numpy().reshape(3, -1)
    exact = decoder_training.losses(network)(features, halves, shapes).numpy()
    np.testing.assert_allclose(exact, [0, 0], atol=1e-3)
    other_shapes = shapes + rng.normal(size=shapes.shape).astype(np.float32)
    other_halves = halves + rng.normal(size=halves.shape).astype(np.float32)
    expected = [((shapes - other_shapes) ** 2).sum(-1).mean(), np.abs(halves - other_halves).mean()]
    np.testing.assert_allclose(decoder_training.losses(network)(features, other_halves, other_shapes), expected, rtol=1e-3)

    weights = rng.normal(size=(3, 6)).astype(np.float32)

    def extract(pictures):
        return tf.reduce_mean(pictures, axis=(1, 2)) @ weights

    extracted = network(features).numpy().mean(axis=(1, 2)) @ weights
    cosines = (extracted * features).sum(1) / np.linalg.norm(extracted, axis=1) / np.linalg.norm(features, axis=1)
    found = decoder_training.losses(network, extract)(features, other_halves, other_shapes)
    np.testing.assert_allclose(found, [*expected, 10 * (1 - cosines).mean()], rtol=1e-3)


def tiny_face_network(feature_size=6):
    """Return a network of random weights for pictures of any size."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 5, 3, activation="relu")(inputs / 128 - 1)
    x = keras.layers.Conv2D(16, 5, 3, activation="relu")(x)
    x = keras.ops.reshape(keras.layers.AveragePooling2D(3)(x)[:, :4, :4], (-1, 256))
    return keras.Model(inputs, keras.layers.Dense(feature_size)(x))


@pytest.mark.parametrize("with_network", [False, True])
def test_training_lowers_the_losses(with_network, network, rng):
    features = rng.normal(size=(4, 6)).astype(np.float32)
    other = small_decoder(np.random.default_rng(7))
    outputs = [other.get_layer(name).output for name in ("texture_basis", "landmarks")]
    halves, shapes = keras.Model(other.input, outputs)(features)
    halves = tf.reshape(halves, (4, -1))
    extract = decoder_training.differentiable_extractor(tiny_face_network(), REFERENCE) if with_network else None
    score = decoder_training.losses(network, extract)
    step = decoder_training.training_step(network, steps.adam(network, "paper", 1e-2, 100, 0), score)
    first = score(features, halves, shapes).numpy()
    np.testing.assert_allclose(step(features, halves, shapes), first, rtol=1e-3)
    for _ in range(8):
        last = step(features, halves, shapes).numpy()
    assert len(last) == (3 if with_network else 2)
    assert last.sum() < 0.95 * first.sum() and last[0] < first[0]
    np.testing.assert_array_equal(network.get_layer("warp").get_weights()[0], REFERENCE)  # never trained


def test_the_feature_loss_alone_trains_textures_and_landmarks(network, rng, monkeypatch):
    monkeypatch.setattr(decoder_training, "LANDMARK_WEIGHT", 0.0)
    monkeypatch.setattr(decoder_training, "TEXTURE_WEIGHT", 0.0)
    features = rng.normal(size=(4, 6)).astype(np.float32)
    empty = np.zeros((4, textures.HALF_SIZE), np.float32), np.zeros((4, 68, 2), np.float32)
    before = [weight.numpy() for weight in network.trainable_variables]
    score = decoder_training.losses(network, decoder_training.differentiable_extractor(tiny_face_network(), REFERENCE))
    step = decoder_training.training_step(network, steps.adam(network, "paper", 2e-2, 100, 0), score)
    losses = [step(features, *empty).numpy() for _ in range(24)]
    assert losses[0][:2].tolist() == [0, 0] and losses[-1][2] < 0.85 * losses[0][2]
    changed = [np.abs(weight - old).max() > 1e-5 for weight, old in zip(network.trainable_variables, before)]
    assert all(changed)  # through the warp
