import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, face_shape, in_picture

from clips import detection
from faces import decoder_statistics
from faces.textures import COVARIATES, HALF_SIZE, HALVES, SIDE, maps_of

REFERENCE = in_picture(face_shape())

YAW, OPENING, WIDTH = map(COVARIATES.index, ("yaw", "opening", "width"))


# ---------------------------------------------------------------- canonical covariates


def covariates_of(rng, n):
    """Return random covariates of n photos, (n, C), with means near 0 and an opening of 0 to 0.06."""
    spreads = {"yaw": 0.2, "jaw": 0.1, "nose": 0.1, "smile": 0.05, "width": 0.2, "down": 0.3, "blur": 0.5}
    values = {name: spread * rng.normal(size=n) for name, spread in spreads.items()}
    values |= {"opening": 0.06 * rng.uniform(size=n), "yaw squared": values["yaw"] ** 2}
    values |= {"glasses": np.maximum(0, 0.2 * rng.normal(size=n)), "cropped": np.maximum(0, 0.1 * rng.normal(size=n))}
    return np.stack([values[name] for name in COVARIATES], axis=1)


def test_the_canonical_photo_is_frontal_neutral_sharp_and_without_glasses(rng):
    covariates = covariates_of(rng, 400)
    found = dict(zip(COVARIATES, decoder_statistics.canonical_covariates(covariates)))
    of = dict(zip(COVARIATES, covariates.T))
    assert found["yaw"] == found["yaw squared"] == found["cropped"] == 0
    assert (
        np.mean(of["glasses"] <= found["glasses"]) == pytest.approx(0.5, abs=0.03) and found["glasses"] == 0
    )  # half wear none
    assert np.mean(of["blur"] < found["blur"]) == pytest.approx(0.85, abs=0.005)
    closed = (of["opening"] < 0.03) & (np.abs(of["yaw"]) < 0.1) & (of["smile"] < np.median(of["smile"]))
    assert 10 < closed.sum() < 100
    for name in ("jaw", "nose", "opening", "smile", "width", "down"):
        assert found[name] == pytest.approx(of[name][closed].mean()), name


def test_few_photos_use_those_with_the_smallest_opening(rng):
    covariates = covariates_of(rng, 25)
    covariates[:, OPENING] += 0.1
    found = decoder_statistics.canonical_covariates(covariates)
    closed = np.argsort(covariates[:, OPENING])[:10]
    assert found[WIDTH] == pytest.approx(covariates[closed, WIDTH].mean()) and found[YAW] == 0
    assert np.isfinite(decoder_statistics.canonical_covariates(covariates[:2])).all()


def test_canonical_covariates_stay_near_those_of_the_photos(rng):
    covariates = covariates_of(rng, 400)
    covariates[:, YAW] += 0.7  # all heads are turned to the right
    found = decoder_statistics.canonical_covariates(covariates)
    assert found[YAW] == pytest.approx(covariates[:, YAW].mean() - 1.5 * covariates[:, YAW].std())


def test_frontal_and_sharp_photos_without_glasses_weigh_more():
    covariates = np.zeros((4, len(COVARIATES)))
    covariates[:, 0], covariates[:, -1] = (0, 0.2, -0.2, 0), (3, 1, 2, 0)
    covariates[:, COVARIATES.index("glasses")] = 0, 0, 0, 0.8
    shares = 0.3 + 0.7 * np.array([3, 1, 2, 0]) / 4  # by the rank of sharpness
    np.testing.assert_allclose(decoder_statistics.quality(covariates), shares * [1, np.exp(-1), np.exp(-1), np.exp(-4)])


# ---------------------------------------------------------------- regression


def test_the_ridge_is_least_squares_with_rows_for_the_penalties(rng):
    n, d, c = 50, 6, 3
    features, covariates, targets = rng.normal(size=(n, d)), rng.normal(size=(n, c)), rng.normal(size=(n, 4))
    weights = rng.uniform(0.2, 2, n)
    weights /= weights.mean()
    solution = decoder_statistics.ridge(features, covariates, weights, 0.01)
    assert solution.shape == (d + c + 1, n) and solution.dtype == np.float32
    root = np.sqrt(weights)[:, None]
    penalties = [0.01 * (weights[:, None] * features**2).sum()] * d + [decoder_statistics.COVARIATE_PENALTY * n] * c
    rows = np.column_stack([np.diag(np.sqrt(penalties)), np.zeros(d + c)])
    left = np.vstack([root * np.column_stack([features, covariates, np.ones(n)]), rows])
    expected = np.linalg.lstsq(left, np.vstack([root * targets, np.zeros((d + c, 4))]), rcond=None)[0]
    np.testing.assert_allclose(solution @ targets, expected, atol=1e-5)


def test_the_penalty_is_a_share_of_the_variance(rng):
    """Scaled or repeated features give the same prediction."""
    features, covariates, targets = rng.normal(size=(50, 6)), rng.normal(size=(50, 3)), rng.normal(size=(50, 4))
    predicted = []
    for inputs in (features, 40 * features, np.repeat(features, 5, axis=1)):
        slopes = decoder_statistics.ridge(inputs, covariates, np.ones(50), 0.02)[: inputs.shape[1]] @ targets
        predicted.append(inputs @ slopes)
    np.testing.assert_allclose(predicted[1], predicted[0], atol=1e-4)
    np.testing.assert_allclose(predicted[2], predicted[0], atol=1e-4)
    assert np.abs(predicted[0] - features @ np.linalg.lstsq(features, targets, rcond=None)[0]).max() > 0.01


@pytest.mark.parametrize("m", [10, 4096, 9000])
def test_bytes_are_multiplied_block_by_block(m, rng):
    solution, targets = rng.normal(size=(5, 7)).astype(np.float32), rng.integers(0, 256, (7, m), dtype=np.uint8)
    product = decoder_statistics.multiply(solution, targets)
    assert product.dtype == np.float32 and product.shape == (5, m)
    np.testing.assert_allclose(product, solution.astype(float) @ targets.astype(float), atol=1e-2)


@pytest.fixture
def predictable(rng):
    """Features, and targets in which most of the variance is noise and a small part follows the features.

    Returns features (N, D), targets uint8 (N, M), and the part of the targets that follows the features, (N, M).
    """
    n, d, m = 400, 6, 500
    features = rng.normal(size=(n, d)).astype(np.float32)
    features -= features.mean(axis=0)
    signal = features @ (2 * rng.normal(size=(d, m)))
    noise = rng.normal(size=(n, 12)) @ (4 * rng.normal(size=(12, m)))
    return features, (128 + signal + noise).clip(0, 255).round().astype(np.uint8), signal


def ridge_of(features, penalty=1e-6):
    n, size = features.shape
    return decoder_statistics.ridge(features, np.zeros((n, 1)), np.ones(n), penalty)[:size]


def test_the_basis_of_full_rank_is_orthonormal_and_loses_nothing(predictable, rng):
    features, targets, _ = predictable
    solutions = [ridge_of(features), ridge_of(features, 0.01)]
    share = rng.uniform(size=targets.shape[1]).astype(np.float32)
    slopes, basis = decoder_statistics.predictable_basis(features, solutions, (share, 1 - share), targets, features.shape[1])
    assert slopes.shape == (6, 6) and basis.shape == (6, 500)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-4)
    by_hand = sum(
        features @ (solution @ targets.astype(np.float64)) * of for solution, of in zip(solutions, (share, 1 - share))
    )
    np.testing.assert_allclose(features @ slopes @ basis, by_hand, atol=1e-2)
    strengths = np.var(features @ slopes, axis=0)
    assert (np.diff(strengths) < 0.05 * strengths[0]).all()  # in descending order


def test_the_basis_keeps_the_predictable_part_and_principal_components_do_not(predictable):
    features, targets, signal = predictable
    rank, solution = 4, ridge_of(features)
    ones = np.ones(targets.shape[1], np.float32)
    slopes, basis = decoder_statistics.predictable_basis(features, [solution], [ones], targets, rank)
    centred = targets - targets.mean(axis=0, dtype=np.float64)
    components = np.linalg.svd(centred, full_matrices=False)[2][:rank]
    regressed = features @ np.linalg.lstsq(features, centred @ components.T, rcond=None)[0] @ components
    kept, by_components = (1 - np.var(signal - of) / np.var(signal) for of in (features @ slopes @ basis, regressed))
    assert kept > 0.45 and by_components < 0.2


def test_negligible_axes_of_the_features_have_no_component(rng):
    """As in dlib's features, of whose 128 axes only 77 hold anything: noise there would be amplified."""
    features = rng.normal(size=(400, 6)).astype(np.float32)
    features -= features.mean(axis=0)
    features[:, 4:] *= 1e-4
    targets = rng.integers(0, 256, (400, 50), dtype=np.uint8)
    ones = np.ones(50, np.float32)
    slopes, basis = decoder_statistics.predictable_basis(features, [ridge_of(features)], [ones], targets, 6)
    assert slopes.shape == (6, 4) and basis.shape == (4, 50)


def test_the_three_penalties_share_the_texture():
    shares = decoder_statistics.shares_of_penalties(REFERENCE)
    np.testing.assert_allclose(sum(shares), 1, atol=1e-6)
    face, hair, body = (maps_of(share[None]) for share in shares)
    assert min(share.min() for share in shares) >= -1e-6
    nose, chin = round(REFERENCE[30, 1]), round(REFERENCE[8, 1])
    assert face["skin"][0, nose, 2].min() > 0.99 and hair["skin"][0, 10, 2].min() > 0.99
    assert body["skin"][0, -5].min() > 0.99 and body["skin"][0, chin, -10].min() > 0.99
    assert face["outline"][0, nose // 2, 2, 0] > 0.99 and face["outline"][..., 1].max() == 0
    for maps in (face, body):
        assert maps["hair"].max() == 0
    assert (hair["outline"][..., 1] == 1).all()


def test_sharpening_is_linear_and_leaves_a_constant_alone(rng):
    face = decoder_statistics.face_share(REFERENCE)
    a, b = rng.normal(size=(2, 1, HALF_SIZE)).astype(np.float32)
    sharpened = decoder_statistics.sharpen(np.concatenate([a, b, 2 * a - 3 * b, np.full_like(a, 7)]), face)
    assert sharpened.shape == (4, HALF_SIZE)
    np.testing.assert_allclose(sharpened[2], 2 * sharpened[0] - 3 * sharpened[1], atol=1e-4)
    np.testing.assert_allclose(sharpened[3], 7, atol=1e-4)


def test_the_face_is_sharpened_and_its_surroundings_are_smoothed(rng):
    face = decoder_statistics.face_share(REFERENCE)
    assert face[:20].max() < 0.01 and face[round(REFERENCE[30, 1]), SIDE // 2] == pytest.approx(1, abs=1e-3)
    noise = rng.normal(size=(1, HALF_SIZE)).astype(np.float32)
    of_skin = maps_of(noise)["skin"][0]
    of_skin[:] = cv2.GaussianBlur(of_skin, (0, 0), 1)
    before, after = maps_of(noise), maps_of(decoder_statistics.sharpen(noise, face))
    inner, outer = (0, slice(120, 160), slice(0, 20)), (0, slice(0, 25), slice(80, 128))
    assert after["skin"][inner].std() > 1.1 * before["skin"][inner].std()
    assert after["skin"][outer].std() < 0.9 * before["skin"][outer].std()
    for name in ("outline", "hair"):
        np.testing.assert_array_equal(after[name], before[name])


# ---------------------------------------------------------------- the whole


def waves(n, rng):
    """Return textures without detail, which sharpening hardly changes: float (n, M), standard deviation about 1."""
    made = []
    for height, width, channels in HALVES.values():
        y, x = np.mgrid[:height, :width] / height
        rows = rng.normal(size=(n, 6, channels))
        planes = np.stack([np.cos(np.pi * i * y) * np.cos(np.pi * 2 * j * x) for i in range(3) for j in range(2)])
        made.append(np.tensordot(rows, planes, ([1], [0])).transpose(0, 2, 3, 1).reshape(n, -1) / np.sqrt(6))
    return np.concatenate(made, axis=1)


@pytest.fixture
def world(rng):
    """A linear world: 60 people whose textures and landmarks are linear in features and covariates.

    Returns the arguments of `decoder_statistics.fit` but the reference, and the truth: a function from features to textures and
    landmarks at canonical covariates.
    """
    n, d = 60, 5
    features = (0.3 + rng.normal(size=(n, d))).astype(np.float32)
    covariates = covariates_of(rng, n)
    canonical, spread = decoder_statistics.canonical_covariates(covariates), covariates.std(axis=0)
    of_feature, of_covariate = 6 * waves(d, rng), 4 * waves(len(spread), rng)
    moved, bent = (rng.normal(size=(k, 68, 2)) for k in (d, len(spread)))
    moved, bent = ((of + detection.mirror_landmarks(of, 1)) / 2 for of in (moved, 0.5 * bent))  # the face stays symmetric

    def truth(features):
        textures = 120 + (features - 0.3) @ of_feature
        return textures, REFERENCE + np.tensordot(features - 0.3, moved, 1)

    deviations = (covariates - canonical) / spread
    textures, shapes = truth(features)
    halves = (textures + deviations @ of_covariate).clip(0, 255).round().astype(np.uint8)
    shapes = (shapes + np.tensordot(deviations, bent, 1)).astype(np.float32)
    names = [f"person{number:02}" for number in range(n)]
    return (features, names, halves, shapes, covariates), truth


def decoded(statistics, features):
    """Decode features by hand with the weights in `statistics`: half textures and landmarks."""
    (to_few, few_bias), (basis, bias), (slopes, shape) = (
        statistics.layers[name] for name in ("texture_coefficients", "texture_basis", "landmark_slopes")
    )
    features = features.astype(np.float64)
    return (features @ to_few + few_bias) @ basis + bias, (features @ slopes + shape).reshape(-1, 68, 2)


def test_the_fit_recovers_textures_and_landmarks_without_covariates(world, rng):
    """For training faces and for unseen people; differences from the mean texture are larger by TEXTURE_GAIN."""
    given, truth = world
    statistics = decoder_statistics.fit(*given, REFERENCE)
    assert statistics.mean.shape == (HALF_SIZE,)
    assert statistics.texture_slopes.shape == (len(COVARIATES), HALF_SIZE)
    unseen = (0.3 + rng.normal(size=(20, 5))).astype(np.float32)
    for features in (given[0], unseen):
        textures, shapes = decoded(statistics, features)
        true_textures, true_shapes = truth(features)
        mean = truth(given[0].mean(axis=0, keepdims=True))[0]
        expected = mean + decoder_statistics.TEXTURE_GAIN * (true_textures - mean)
        error, shares = textures - expected, decoder_statistics.shares_of_penalties(REFERENCE)
        # The penalty is larger around the face, and larger still below it.
        assert np.abs(error[:, shares[0] > 0.9]).mean() < 0.4 and np.abs(error[:, shares[2] < 0.1]).mean() < 0.8
        assert np.abs(error[:, shares[2] > 0.9]).mean() < 4
        assert np.abs(true_textures - mean).mean() > 5
        assert np.abs(shapes - true_shapes).max() < 0.1
        assert np.abs(true_shapes - REFERENCE).mean() > 0.8


def test_two_people_differ_by_1_in_the_first_layer(world):
    given, _ = world
    kernel, bias = decoder_statistics.fit(*given, REFERENCE).layers["texture_coefficients"]
    coefficients = given[0] @ kernel + bias
    pairs = np.abs(coefficients[:, None] - coefficients[None]).sum(axis=-1)
    assert pairs.sum() / (60 * 59) == pytest.approx(1, abs=0.12)
    np.testing.assert_allclose(coefficients.mean(axis=0), 0, atol=1e-5)  # zero for the mean feature


def test_targets_are_photos_at_canonical_covariates(world):
    given, truth = world
    features, _, halves, shapes, covariates = given
    statistics = decoder_statistics.fit(*given, REFERENCE)
    textures, landmarks = statistics.targets(halves[:7], shapes[:7], covariates[:7])
    assert textures.dtype == np.float32 and textures.shape == (7, HALF_SIZE) and landmarks.shape == (7, 68, 2)
    true_textures, true_shapes = truth(features[:7])
    mean = truth(features.mean(axis=0, keepdims=True))[0]
    assert np.abs(textures - mean - decoder_statistics.TEXTURE_GAIN * (true_textures - mean)).mean() < 0.8
    assert np.abs(landmarks - true_shapes).max() < 0.25
    assert np.abs(shapes[:7] - true_shapes).max() > 0.8 and np.abs(halves[:7] - true_textures).mean() > 4


def test_several_photos_of_a_person_count_as_one(world, rng, monkeypatch):
    """Six photos of a person that differ in their features only count like one photo with the mean feature."""
    (features, names, halves, shapes, covariates), _ = world
    # Otherwise weights depend on the rank of sharpness among all photos.
    monkeypatch.setattr(decoder_statistics, "LEAST_WEIGHT", 1.0)
    halves, shapes, covariates = halves[:30], shapes[:30], np.zeros_like(covariates[:30])
    features, names = features[:30], names[:30]
    once = decoder_statistics.fit(features, names, halves, shapes, covariates, REFERENCE)
    more = rng.normal(size=(5, features.shape[1])).astype(np.float32)
    of_one = features[3] + np.concatenate([more, -more.sum(axis=0, keepdims=True)])
    again = [*range(30), *[3] * 5]
    features = np.concatenate([features, of_one[1:]])
    features[3] = of_one[0]
    order = rng.permutation(35)
    often = decoder_statistics.fit(
        features[order], *([array[again[i]] for i in order] for array in (names,)), halves[again][order], shapes[again][order],
        covariates[again][order], REFERENCE,
    )  # fmt: skip
    np.testing.assert_allclose(often.centre, once.centre, atol=1e-5)
    np.testing.assert_allclose(often.mean, once.mean, atol=0.02)
    others = rng.normal(size=(4, features.shape[1]))
    for ours, theirs in zip(decoded(often, others), decoded(once, others)):
        np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_fewer_components_than_the_feature_has_numbers(world, monkeypatch):
    monkeypatch.setattr(decoder_statistics, "MOST_COMPONENTS", 2)
    given, _ = world
    statistics = decoder_statistics.fit(*given, REFERENCE)
    assert statistics.layers["texture_coefficients"][0].shape == (5, 2)
    assert statistics.layers["texture_basis"][0].shape == (2, HALF_SIZE)


def test_statistics_and_workers_need_no_tensorflow():
    code = "import sys, clips.workers, faces.decoder_statistics; print({'tensorflow', 'keras', 'librosa'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
