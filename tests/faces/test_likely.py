import dataclasses

import numpy as np
import pytest
import scipy.stats

from faces import likely
from utils import InputError, normalise

D = 24


class World:
    """People of two sexes, whose voices tell the sex, and a little of the rest of the face.

    A face has a first number of about -2 or 2, the sex, and others of falling variances. A direction is the feature as a
    regression would predict it: mostly the sex, then some of the second and third number, and noise.
    """

    def __init__(self, seed, n=2000):
        rng = np.random.default_rng(seed)
        self.sex = rng.integers(0, 2, n)
        spread = np.r_[0.5, 1.0, 0.9, np.linspace(0.6, 0.1, D - 3)]
        turned = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
        numbers = rng.normal(size=(n, D)) * spread
        voices = 0.25 * rng.normal(size=(n, D))
        voices[:, 1:3] += 0.35 * numbers[:, 1:3]
        for of in (numbers, voices):
            of[:, 0] += np.where(self.sex, 2, -2)
        self.faces = (0.7 + numbers @ turned).astype(np.float32)
        self.directions = normalise(voices @ turned).astype(np.float32)
        self.sex_of = lambda faces: ((faces - 0.7) @ turned.T)[:, 0] > 0

    def fit(self):
        return likely.fit(self.directions, self.faces, self.faces)


@pytest.fixture(scope="module")
def world():
    return World(1)


@pytest.fixture(scope="module")
def fitted(world):
    return world.fit()


UNSEEN = World(2)
VISIBLE = np.random.default_rng(3).normal(size=(D, 40)) * np.geomspace(1, 0.02, D)[:, None]


def coefficients(fitted, faces):
    return (faces - fitted.centre) @ fitted.axes.T


def test_principal_axes_by_hand(rng):
    faces = rng.normal(size=(60, 5)) * [3, 2, 1, 1e-4, 0] + 4
    centre, axes, variances = likely.principal_axes(faces)
    np.testing.assert_allclose(centre, faces.mean(axis=0))
    values, vectors = np.linalg.eigh(np.cov(faces.T, bias=True))
    assert axes.shape == (3, 5)  # the others are negligible
    np.testing.assert_allclose(variances, values[:-4:-1])
    np.testing.assert_allclose(np.abs(axes @ vectors[:, :-4:-1]), np.eye(3), atol=1e-6)


def test_voices_fall_into_two_groups_by_sex(world, fitted):
    probability = fitted.groups(UNSEEN.directions)
    assert probability.shape == (2000, 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    agree = np.mean((probability[:, 1] > 0.5) == UNSEEN.sex)
    assert max(agree, 1 - agree) > 0.98
    np.testing.assert_allclose(np.sort(fitted.shares), np.sort([world.sex.mean(), 1 - world.sex.mean()]), atol=0.02)


def test_expected_faces_are_nearer_to_the_true_ones_than_the_mean_is(fitted):
    """And are neither too long nor too short: the regression of true on expected coefficients has the slope 1."""
    expected, true = fitted.expected(UNSEEN.directions), coefficients(fitted, UNSEEN.faces)
    assert np.mean((true - expected) ** 2) < 0.45 * np.mean(true**2)
    assert np.sum(expected * true) / np.sum(expected**2) == pytest.approx(1, abs=0.05)


def test_expected_features_are_means_of_samples(fitted):
    """In the numbers of the feature itself, however the axes lie."""
    found = fitted.features(UNSEEN.directions)
    assert found.shape == (2000, D) and found.dtype == np.float32
    np.testing.assert_allclose(coefficients(fitted, found), fitted.expected(UNSEEN.directions), atol=1e-4)
    np.testing.assert_allclose(found.mean(axis=0), UNSEEN.faces.mean(axis=0), atol=0.1)
    for number in (0, 7):
        assert fitted.groups(UNSEEN.directions[number, None]).max() > 0.99
        mean = fitted.samples(UNSEEN.directions[number], 20_000, seed=3).mean(axis=0)
        np.testing.assert_allclose(found[number], mean, atol=0.03)


def test_spreads_are_standard_deviations_of_samples_and_of_true_faces(fitted):
    found = fitted.spreads(UNSEEN.directions)
    assert found.shape == (2000, D) and found.dtype == np.float32
    for sex in (0, 1):  # samples of voices of both groups
        number = np.flatnonzero(UNSEEN.sex == sex)[0]
        deviations = fitted.samples(UNSEEN.directions[number], 20_000, seed=4).std(axis=0)
        np.testing.assert_allclose(found[number], deviations, rtol=0.05)
    left = UNSEEN.faces - fitted.features(UNSEEN.directions)
    np.testing.assert_allclose(np.sqrt((left**2).mean(axis=0)), found.mean(axis=0), rtol=0.15)
    assert np.ptp(found.mean(axis=0)) > 0.1  # some numbers are left more open than others


@pytest.mark.parametrize("ask", ["groups", "expected", "features", "spreads", "vivid", "samples"])
def test_what_is_no_direction_is_refused(ask, fitted):
    """Face features, predictions of any other length, and arrays of another shape."""
    more = {"vivid": (VISIBLE,), "samples": (2, 0)}.get(ask, ())
    for wrong, found in (
        (UNSEEN.faces[:3], r"lengths from [2-5]\.\d+ to [2-9]\.?\d*"),
        (1.01 * UNSEEN.directions[:3], r"lengths from 1\.01 to 1\.01"),
    ):
        given = wrong[0] if ask == "samples" else wrong
        found = r"lengths from [1-9]" if ask == "samples" else found
        with pytest.raises(ValueError, match=rf"directions: expected \(N, D\), each of length 1, .*, found {found}"):
            getattr(fitted, ask)(given, *more)
    if ask != "samples":
        with pytest.raises(ValueError, match=r"found shape \(24,\); of a face feature: utils\.normalise\(features - centre\)"):
            getattr(fitted, ask)(UNSEEN.directions[0], *more)


def test_regions_of_unseen_faces_have_their_coverage(fitted):
    """Of the first ten axes: the 50 and the 90 % region of the group hold as many true faces."""
    distances = fitted.distances(UNSEEN.directions, UNSEEN.faces, 10)
    for share in (0.5, 0.9):
        held = np.mean(distances < scipy.stats.chi2.ppf(share, 10))
        assert held == pytest.approx(share, abs=0.06)
    left = coefficients(fitted, UNSEEN.faces[:1])[0, :10] - fitted.expected(UNSEEN.directions[:1])[0, :10]
    covariance = fitted.residuals[fitted.groups(UNSEEN.directions[:1]).argmax(), :10, :10]
    assert distances[0] == pytest.approx(left @ np.linalg.solve(covariance, left), rel=1e-3)


def test_vivid_faces_vary_as_visibly_as_true_faces(fitted):
    vivid, true = fitted.vivid(UNSEEN.directions, VISIBLE), UNSEEN.faces
    expected = fitted.centre + fitted.expected(UNSEEN.directions) @ fitted.axes
    assert vivid.dtype == np.float32 and vivid.shape == (2000, D)
    seen, seen_true, seen_expected = (np.sqrt((of @ VISIBLE).var(axis=0).sum()) for of in (vivid, true, expected))
    assert 0.9 < seen / seen_true < 1.1 and seen_expected / seen_true < 0.85
    np.testing.assert_array_equal(UNSEEN.sex_of(vivid), UNSEEN.sex_of(expected))


def test_differences_that_pictures_hardly_show_stay_as_expected(fitted):
    """Along each principal axis of pictures, vivid differences are a multiple of the expected ones."""
    to_pictures, back, gains = fitted._pictures(VISIBLE)
    mean = fitted.shares @ fitted.means
    expected = (fitted.expected(UNSEEN.directions) - mean) @ to_pictures
    vivid = (fitted.vivid(UNSEEN.directions, VISIBLE) - fitted.centre - mean @ fitted.axes) @ np.linalg.pinv(back)
    np.testing.assert_allclose(vivid, expected * gains, atol=1e-3)
    true = coefficients(fitted, UNSEEN.faces) @ to_pictures
    np.testing.assert_allclose(true.std(axis=0), 1, atol=0.15)
    changes = np.var((true[:, :, None] * (back @ VISIBLE)).reshape(len(true), -1), axis=0).reshape(len(gains), -1).sum(axis=1)
    shown = np.flatnonzero(np.cumsum(changes) / changes.sum() > likely.VISIBLE_SHARE)[0] + 1
    np.testing.assert_allclose(vivid[:, :shown].std(axis=0), vivid[:, 0].std(), rtol=0.1)  # alike, and a little over 1
    assert 0.95 < vivid[:, 0].std() < 1.2
    assert (gains[shown:] == 1).all() and shown < 8


def test_voices_that_tell_nothing_have_the_mean_face(rng):
    """However far the mean of these people is from that of the population."""
    population = rng.normal(size=(500, D))
    faces = (population[:200] + 0.5).astype(np.float32)
    fitted = likely.fit(normalise(rng.normal(size=(200, D))), faces, population)
    silent = dataclasses.replace(fitted, slopes=0 * fitted.slopes, covariance=0 * fitted.covariance)
    silent = dataclasses.replace(silent, means=np.repeat(silent.means[:1], len(silent.means), axis=0))
    vivid = silent.vivid(normalise(rng.normal(size=(20, D))), VISIBLE)
    np.testing.assert_allclose(vivid, np.broadcast_to(faces.mean(axis=0), vivid.shape), atol=0.2)
    vivid = fitted.vivid(normalise(rng.normal(size=(200, D))), VISIBLE)
    np.testing.assert_allclose(vivid.mean(axis=0), faces.mean(axis=0), atol=0.5)


def test_samples_are_of_one_sex_and_differ_from_each_other(fitted):
    for direction, sex in zip(UNSEEN.directions[:20], UNSEEN.sex):
        drawn = fitted.samples(direction, 50, seed=0)
        assert drawn.shape == (50, D) and drawn.dtype == np.float32
        assert (UNSEEN.sex_of(drawn) == sex).all()
    np.testing.assert_array_equal(drawn, fitted.samples(direction, 80, seed=0)[:50])
    assert np.abs(drawn - fitted.samples(direction, 50, seed=1)).max() > 0.1


def test_samples_that_lie_towards_the_other_sex_are_drawn_again(fitted):
    """Also where a voice leaves so much open that a third of all faces would be of the other sex."""
    wide = dataclasses.replace(fitted, residuals=60 * fitted.residuals)
    for direction, sex in zip(UNSEEN.directions[:5], UNSEEN.sex):
        assert (UNSEEN.sex_of(wide.samples(direction, 100, seed=0)) == sex).all()


def test_samples_have_the_moments_of_what_is_left_open(fitted):
    direction = UNSEEN.directions[0]
    group = fitted.groups(direction[None])[0].argmax()
    drawn = coefficients(fitted, fitted.samples(direction, 20_000, seed=5))
    assert fitted.groups(direction[None])[0, group] > 0.99
    np.testing.assert_allclose(drawn.mean(axis=0), fitted.expected(direction[None])[0], atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), fitted.residuals[group], atol=0.05)


def test_shrinkage_is_the_one_that_errs_least(rng):
    """Among covariances moved by any share to equal variances, on average over samples; the truth is known."""
    variances, shares, found, errors = np.linspace(0.5, 3, 12), np.linspace(0, 1, 101), [], []
    for _ in range(60):
        sample = rng.normal(size=(30, 12)) * np.sqrt(variances)
        covariance = sample.T @ sample / 30
        share, variance = likely._shrinkage(sample)
        assert variance == pytest.approx(np.trace(covariance) / 12)
        found.append(share)
        moved = (1 - shares)[:, None, None] * covariance + shares[:, None, None] * variance * np.eye(12)
        errors.append(((moved - np.diag(variances)) ** 2).sum(axis=(1, 2)))
    assert np.mean(found) == pytest.approx(shares[np.mean(errors, axis=0).argmin()], abs=0.08)


def test_a_few_clips_make_one_group(rng):
    """As the validation set of a small trial."""
    faces = rng.normal(size=(300, D)).astype(np.float32)
    for n in (2, 5, 15):
        fitted = likely.fit(normalise(rng.normal(size=(n, D))), faces[:n], faces)
        assert len(fitted.shares) == 1 and all(np.isfinite(of).all() for of in dataclasses.astuple(fitted))
        if n > 2:  # so few clips leave most axes without variance, but for the shrinkage
            assert np.linalg.eigvalsh(fitted.residuals[0]).min() > 1e-3
        direction = normalise(rng.normal(size=(3, D))).astype(np.float32)
        assert np.isfinite(fitted.vivid(direction, VISIBLE)).all() and np.isfinite(fitted.samples(direction[0], 2, 0)).all()


def test_what_is_saved_is_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "likely.npz")
    for ours, theirs in zip(dataclasses.astuple(fitted), dataclasses.astuple(likely.load(tmp_path / "likely.npz", D))):
        np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["likely.npz"]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04", None, "cut", "of other features"])
def test_a_broken_file_is_reported(content, fitted, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "likely.npz").write_bytes(content)
    elif content == "cut":
        fitted.save(tmp_path / "whole.npz")
        (tmp_path / "likely.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-3000])
    elif content:
        dataclasses.replace(fitted, axes=fitted.axes[:, 1:]).save(tmp_path / "likely.npz")
    with pytest.raises(InputError, match=r"likely.npz: expected the likely faces of a run, found .*; run train.py again"):
        likely.load(tmp_path / "likely.npz", D)
