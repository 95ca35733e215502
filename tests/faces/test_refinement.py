import numpy as np
import pytest

from faces import decoder, refinement


@pytest.fixture
def distorting_extractor(rng, monkeypatch):
    """A decoder whose pictures are the features themselves, and an extractor that distorts them."""
    size = 12
    distortion = np.eye(size) + 0.5 * rng.normal(size=(size, size)) / np.sqrt(size)
    monkeypatch.setattr(decoder, "decode", lambda _, features: features)
    return lambda pictures: (np.tanh(pictures @ distortion) + 0.3).astype(np.float32)


def test_refinement_makes_the_picture_have_the_feature(distorting_extractor, rng):
    extract, centre = distorting_extractor, np.full(12, 0.1, np.float32)
    features = (centre + 0.3 * rng.normal(size=(300, 12))).astype(np.float32)
    correction = refinement.fit_correction(None, extract, features, centre)
    assert correction.shape == (2, refinement.REFINEMENT_AXES, 12) and correction.dtype == np.float32
    wanted = (centre + 0.1 * rng.normal(size=(20, 12))).astype(np.float32)

    def error(refinements):
        pictures = refinement.decode_refined(None, extract, wanted, centre, correction, refinements)
        return np.abs(extract(pictures) - extract(centre[None]) - (wanted - centre)).mean()

    np.testing.assert_allclose(refinement.decode_refined(None, extract, wanted, centre, correction, 0), wanted, atol=1e-6)
    assert error(1) < 0.6 * error(0) and error(6) < 0.1 * error(0)


def test_a_picture_without_a_face_stays_as_it_is(distorting_extractor, rng):
    centre = np.zeros(12, np.float32)
    features = (0.3 * rng.normal(size=(300, 12))).astype(np.float32)

    def extract(pictures):
        return np.where(pictures[:, :1] > 0.35, np.nan, distorting_extractor(pictures)).astype(np.float32)

    correction = refinement.fit_correction(None, extract, features, centre)
    assert np.isfinite(correction).all() and np.abs(correction).max() > 0
    wanted = features[:2].copy()
    wanted[:, 0] = 0.5, 0.0
    pictures = refinement.decode_refined(None, extract, wanted, centre, correction, 3)
    np.testing.assert_array_equal(pictures[0], wanted[0])
    assert np.abs(pictures[1] - wanted[1]).max() > 0.01
    without = refinement.fit_correction(None, lambda pictures: np.full_like(pictures, np.nan), features, centre)
    np.testing.assert_array_equal(without[0], 0)
    assert (without[1] ** 2).sum() == pytest.approx((features**2).sum(axis=1).mean(), rel=0.05)  # the faces' spread


def test_features_are_extracted_as_by_preprocessing(frames):
    import face_recognition

    blank = np.full((80, 90, 3), 200, np.uint8)
    features = refinement.feature_extractor(128)([frames[0], blank, frames[1]])
    assert features.shape == (3, 128) and features.dtype == np.float32 and np.isnan(features[1]).all()
    for number in (0, 1):
        expected = face_recognition.face_encodings(frames[number])[0]
        np.testing.assert_allclose(features[2 * number], expected, atol=0.02)
