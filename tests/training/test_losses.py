import h5py
import numpy as np
import pytest

from faces import vggface
from training.losses import (
    DECODING_WEIGHT,
    LOSSES,
    contrastive_loss,
    decoding_loss,
    distillation_loss,
    l1_loss,
    l2_loss,
    loss_function,
)
from utils import InputError, normalise
from voices.backend import tf


def test_losses_equal_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(l1_loss(face, voice), np.abs(face - voice).sum(1), rtol=1e-5)
    angle = (face * voice).sum(1) / np.linalg.norm(face, axis=1) / np.linalg.norm(voice, axis=1)
    np.testing.assert_allclose(l2_loss(face, voice), 2 - 2 * angle, rtol=1e-4)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_distillation_loss_equals_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    kernel = rng.normal(size=(7, 11)).astype(np.float32)
    p, q = (softmax(np.maximum(feature, 0) @ kernel / 2) for feature in (face, voice))
    by_hand = -(p * np.log(q)).sum(axis=1)
    np.testing.assert_allclose(distillation_loss(face, voice, lambda x: x @ kernel), by_hand, rtol=1e-4)


def test_contrastive_loss_equals_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    cosine = normalise(voice) @ normalise(face).T
    by_hand = [-np.log(np.diag(softmax(logits))) for logits in (cosine / 0.1, cosine.T / 0.1)]
    np.testing.assert_allclose(contrastive_loss(face, voice, np.arange(5)), np.mean(by_hand, axis=0), rtol=1e-3, atol=1e-4)


def test_clips_of_one_person_are_not_told_apart(rng):
    """Clips 0, 2 and 3 are of one person: each has the clips 1 and 4 as its only negatives."""
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    cosine = normalise(voice) @ normalise(face).T
    by_hand = []
    for clip, negatives in ((0, [1, 4]), (1, [0, 2, 3, 4]), (2, [1, 4]), (3, [1, 4]), (4, [0, 1, 2, 3])):
        both_ways = (cosine[clip] / 0.1, cosine[:, clip] / 0.1)
        by_hand.append(np.mean([np.logaddexp.reduce(of[[clip, *negatives]]) - of[clip] for of in both_ways]))
    found = contrastive_loss(face, voice, np.array([7, 2, 7, 7, 4]))
    np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-4)


def test_directions_are_compared_from_the_centre(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    centre = rng.normal(size=7).astype(np.float32)
    people = np.arange(5)
    for name, plain in (("l2", l2_loss(face, voice)), ("contrastive", contrastive_loss(face, voice, people))):
        loss = loss_function(name, centre)
        np.testing.assert_allclose(loss(face + centre, voice + centre, people), plain, rtol=1e-3, atol=1e-5)
        assert np.abs(loss(face, voice, people) - plain).max() > 0.01
    np.testing.assert_array_equal(loss_function("l1", centre)(face, voice), l1_loss(face, voice))


def test_total_loss_is_the_papers_sum(small_fc8, rng):
    kernel, bias = small_fc8
    face, voice = rng.normal(size=(2, 3, 4096)).astype(np.float32)
    centre = rng.normal(size=4096).astype(np.float32)
    p, q = (softmax((np.maximum(feature, 0) @ kernel + bias) / 2) for feature in (face, voice))
    seen = [normalise(feature - centre) for feature in (face, voice)]
    by_hand = 0.025 * ((seen[0] - seen[1]) ** 2).sum(axis=1) - 200 * (p * np.log(q)).sum(axis=1)
    np.testing.assert_allclose(loss_function("total", centre, vggface.fc8)(face, voice), by_hand, rtol=1e-4)


def test_the_decoding_loss_equals_a_hand_computation(rng):
    face, voice = rng.normal(size=(2, 5, 7)).astype(np.float32)
    kernel, bias = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    found = decoding_loss(face, voice, lambda feature: feature @ kernel + bias)
    np.testing.assert_allclose(found, np.abs((face - voice) @ kernel).sum(axis=1), rtol=1e-4)


def test_with_a_decoder_total_has_its_third_term(small_fc8, rng):
    face, voice = rng.normal(size=(2, 3, 4096)).astype(np.float32)
    centre, kernel = rng.normal(size=4096).astype(np.float32), rng.normal(size=(4096, 6)).astype(np.float32) / 64
    without = loss_function("total", centre, vggface.fc8)(face, voice)
    found = loss_function("total", centre, vggface.fc8, lambda feature: tf.matmul(feature, kernel) + 3)(face, voice)
    assert DECODING_WEIGHT == 0.05
    np.testing.assert_allclose(found - without, 0.05 * np.abs((face - voice) @ kernel).sum(axis=1), rtol=0.01, atol=2e-4)


def test_total_loss_requires_vggface_features():
    with pytest.raises(InputError, match=r"--loss total: expected face features of 4096 .*, found 128; use another --loss"):
        loss_function("total", np.zeros(128, np.float32), vggface.fc8)


def test_total_loss_requires_an_intact_weight_file(small_fc8):
    with h5py.File(vggface.weights_path(), "a") as file:
        del file["fc8"]
    with pytest.raises(InputError, match="expected the weights of VGG-Face, found something else"):
        loss_function("total", np.zeros(4096, np.float32), vggface.fc8)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name, small_fc8, rng):
    """Along random directions, within the accuracy of float32."""
    face, voice, direction = rng.normal(size=(3, 4, 4096)).astype(np.float32)
    loss, people = loss_function(name, 0.1 * rng.normal(size=4096).astype(np.float32), vggface.fc8), np.array([0, 1, 2, 1])
    direction *= 64 / np.linalg.norm(direction)
    with tf.GradientTape() as tape:
        voice = tf.constant(voice)
        tape.watch(voice)
        value = tf.reduce_mean(loss(face, voice, people))
    slope = float(tf.reduce_sum(tape.gradient(value, voice) * direction))
    step = 0.02
    above, below = (float(np.mean(loss(face, voice + sign * step * direction, people))) for sign in (1, -1))
    assert slope == pytest.approx((above - below) / (2 * step), rel=0.02, abs=2e-3 * abs(float(value)))
    assert abs(slope) > 1e-4


@pytest.mark.parametrize("loss", [l1_loss, l2_loss])
def test_equal_features_have_no_loss(loss, rng):
    face = rng.normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(loss(face, face), np.zeros(4), atol=1e-6)


def test_l2_loss_ignores_length_and_l1_does_not(rng):
    face = rng.normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(l2_loss(face, 3 * face), np.zeros(4), atol=1e-6)
    assert (l1_loss(face, 3 * face).numpy() > 1).all()
