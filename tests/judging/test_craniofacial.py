import numpy as np
import pytest
import scipy.stats
from conftest import face_shape

from judging import craniofacial, published


def test_measures_of_a_drawn_face_by_hand():
    """The unit of `face_shape` is the distance between the eyes; the outer corners are further apart."""
    shape = face_shape(opening=0.1)[None]
    x, y = shape[0].T
    outer = x[45] - x[36]
    found = {name: float(measure(shape)[0]) for name, measure in craniofacial.MEASURES.items()}
    assert found["nose width"] == pytest.approx(np.hypot(x[35] - x[31], y[35] - y[31]) / outer)
    assert found["nose height"] == pytest.approx(np.hypot(x[33] - x[27], y[33] - y[27]) / outer)
    assert found["nasal index"] == pytest.approx(found["nose width"] / found["nose height"])
    assert found["jaw width"] == pytest.approx((x[12] - x[4]) / outer)
    assert found["intercanthal index"] == pytest.approx((x[42] - x[39]) / outer)
    assert found["mouth-face width index"] == pytest.approx((x[54] - x[48]) / (x[16] - x[0]))
    assert found["labio-oral region"] == pytest.approx((x[54] - x[48]) / outer)
    assert found["upper lip height"] == pytest.approx((y[62] - y[51]) / outer)
    assert found["vermilion height index"] == pytest.approx((y[62] - y[51]) / (y[57] - y[66]))
    assert found["mandibular index"] == pytest.approx((y[8] - y[66]) / (x[12] - x[4]))
    lateral = np.mean([np.hypot(x[50] - x[61], y[50] - y[61]), np.hypot(x[52] - x[63], y[52] - y[63])])
    assert found["lateral upper lip heights"] == pytest.approx(lateral / outer)


def test_the_area_of_a_nose_by_hand():
    landmarks = np.zeros((1, 68, 2))
    landmarks[0, [27, 31, 33, 35]] = (0, 0), (-2, 3), (0, 4), (2, 3)  # a triangle of 4 x 3 and one of 4 x 1
    landmarks[0, [36, 45]] = (-5, 0), (5, 0)
    assert craniofacial.MEASURES["nose area"](landmarks) == pytest.approx([(6 + 2) / 100])


def test_measures_do_not_depend_on_place_size_and_rotation(rng):
    shapes = face_shape() + 0.05 * rng.normal(size=(20, 68, 2))
    c, s = np.cos(0.3), np.sin(0.3)
    moved = 57 * shapes @ np.array([[c, s], [-s, c]]) + (31, -12)
    for measure in craniofacial.MEASURES.values():
        np.testing.assert_allclose(measure(moved), measure(shapes), rtol=1e-9)


def test_correlations_are_scipys(rng):
    true = face_shape() + 0.05 * rng.normal(size=(200, 68, 2))
    decoded = true + 0.02 * rng.normal(size=true.shape)
    found = craniofacial.correlations(decoded, true)
    assert list(found) == [*craniofacial.MEASURES, craniofacial.BASELINE] == list(published.PAPER_CRANIOFACIAL)
    for name, measure in craniofacial.MEASURES.items():
        expected = scipy.stats.pearsonr(measure(decoded), measure(true))
        assert (found[name].r, found[name].p) == (expected.statistic, expected.pvalue)
        assert found[name].r > 0.25 and found[name].p < 0.001
    assert abs(found[craniofacial.BASELINE].r) < 0.25 and found[craniofacial.BASELINE].p > 0.001


def test_the_papers_correlations_have_the_mean_that_they_report():
    measures = [value for name, value in published.PAPER_CRANIOFACIAL.items() if name != craniofacial.BASELINE]
    assert len(measures) == 12 and np.mean(measures) == pytest.approx(0.229, abs=0.001)
