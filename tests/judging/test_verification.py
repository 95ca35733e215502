import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from judging import comparisons, intervals, verification
from judging.verification import N_LEVELS, area_under_curve, counts_of, equal_error_rate, verify

# Pairs: whether they are positive, and a score with many ties. At least one of each kind.
PAIRS = st.lists(st.tuples(st.booleans(), st.integers(-6, 6)), min_size=2, max_size=60).filter(
    lambda pairs: len({same for same, _ in pairs}) == 2
)


def arrays_of(pairs):
    same, scores = zip(*pairs)
    return np.array(scores, np.float32) / 6, np.array(same)


def error_rate_of(same, scores):
    """Return the EER by sklearn's curve and a root finder."""
    false, true, _ = roc_curve(same, scores, drop_intermediate=False)
    return brentq(lambda x: 1 - x - interp1d(false, true)(x), 0, 1)


@settings(max_examples=40)  # an array of all levels for each
@given(PAIRS)
def test_auc_is_that_of_sklearn(pairs):
    scores, same = arrays_of(pairs)
    assert area_under_curve(counts_of(scores, same)) == pytest.approx(roc_auc_score(same, scores))


@settings(max_examples=40)  # an array of all levels for each
@given(PAIRS)
def test_eer_is_where_both_errors_are_equal(pairs):
    scores, same = arrays_of(pairs)
    assert equal_error_rate(counts_of(scores, same)) == pytest.approx(error_rate_of(same, scores), abs=1e-9)


def test_figures_by_hand():
    """Four positive pairs and four negative ones: 13 of 16 comparisons are won, and one error of either kind in four."""
    scores, same = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.75, 0.1, -0.3], np.float32), np.arange(8) < 4
    assert area_under_curve(counts_of(scores, same)) == 13 / 16
    assert equal_error_rate(counts_of(scores, same)) == 0.25
    assert equal_error_rate(counts_of(-scores, same)) == 0.75
    perfect, tied = counts_of(same.astype(np.float32), same), counts_of(np.zeros(8, np.float32), same)
    assert (area_under_curve(perfect), equal_error_rate(perfect)) == (1, 0)
    assert (area_under_curve(tied), equal_error_rate(tied)) == (0.5, 0.5)


def test_rounded_products_tie():
    """Similarities that differ by less than the rounding of float32 products are equal."""
    scores = np.array([0.123456789, 0.12345683], np.float32)
    assert scores[0] != scores[1] and area_under_curve(counts_of(scores, np.array([True, False]))) == 0.5
    assert verification.levels_of(np.array([-1.0000001, 1.0000001], np.float32)).tolist() == [0, N_LEVELS - 1]


def people_and_features(rng, sizes, noise=1.0):
    """Return people with so many clips, in random order, and directions of voices and faces."""
    people = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    of_people = rng.normal(size=(len(sizes), 6))
    voices, faces = (of_people[people] + noise * rng.normal(size=(len(people), 6)) for _ in range(2))
    return people, *(comparisons.directions(features, np.zeros(6)) for features in (voices, faces))


def test_all_pairs_of_a_part_are_verified(rng, monkeypatch):
    """With people of one to seven clips, in one block and in many."""
    people, voices, faces = people_and_features(rng, [1, 2, 3, 7, 1, 4])
    groups = comparisons.groups_of(people)
    row = verify(voices, faces, people, groups, None)
    same, scores = (people[:, None] == people).ravel(), (voices @ faces.T).ravel()
    assert row["positives"] == same.sum() == 1 + 4 + 9 + 49 + 1 + 16 and row["negatives"] == 18**2 - same.sum()
    assert row["auc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-5) and row["auc"] > 0.55
    assert row["eer"] == pytest.approx(error_rate_of(same, scores), abs=1e-5)
    assert row["auc_interval"] is row["eer_interval"] is None
    monkeypatch.setattr(comparisons, "BLOCK", 40)
    assert verify(voices, faces, people, groups, None) == row


def test_pairs_of_groups_are_judged_together(rng):
    people, voices, faces = people_and_features(rng, [2, 2, 1, 3, 2, 2])
    labels = [None if person == 5 else "mfmfx"[person] for person in people]  # x is alone
    groups = comparisons.groups_of(people, labels)
    pairs = [
        (people[i] == people[j], float(voices[i] @ faces[j]))
        for i in range(len(people))
        for j in range(len(people))
        if labels[i] == labels[j] and labels[i] in ("m", "f")
    ]
    row = verify(voices, faces, people, groups, None)
    assert row["positives"] + row["negatives"] == len(pairs) == 3**2 + 5**2
    assert row["auc"] == pytest.approx(roc_auc_score(*zip(*pairs)), abs=1e-5)
    assert row["eer"] == pytest.approx(error_rate_of(*zip(*pairs)), abs=1e-5)


def test_intervals_resample_the_people_of_the_voices(rng):
    """As the bootstrap with sklearn's weighted AUC of each resample; the faces stay as they are."""
    people, voices, faces = people_and_features(rng, rng.integers(1, 4, size=25), noise=1.5)
    resamples = intervals.resample(people)
    row = verify(voices, faces, people, comparisons.groups_of(people), resamples)
    same, scores = people[:, None] == people, voices @ faces.T
    areas, rates = [], []
    for times in resamples.times:
        weights = np.broadcast_to(times[resamples.person].astype(float)[:, None], same.shape)
        areas.append(roc_auc_score(same.ravel(), scores.ravel(), sample_weight=weights.ravel()))
    for times in resamples.times[:300]:
        repeated = np.repeat(np.arange(len(people)), times[resamples.person])
        rates.append(error_rate_of(same[repeated].ravel(), scores[repeated].ravel()))
    assert row["auc_interval"] == pytest.approx(np.percentile(areas, intervals.INTERVAL), abs=0.002)
    assert row["eer_interval"] == pytest.approx(np.percentile(rates, intervals.INTERVAL), abs=0.02)
    assert row["auc_interval"][0] < row["auc"] < row["auc_interval"][1]


def test_a_large_part_is_fast_and_small(rng):
    """The memory does not grow with the number of pairs, here 4 million."""
    faces = comparisons.directions(rng.normal(size=(2000, 8)), np.zeros(8))
    row = verify(faces, faces, np.arange(2000), comparisons.groups_of(range(2000)), intervals.resample(range(2000)))
    assert (row["positives"], row["negatives"]) == (2000, 2000 * 1999)
    assert row["auc"] > 0.999 and row["auc_interval"] == pytest.approx((row["auc"], row["auc"]), abs=1e-3)
