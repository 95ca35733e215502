import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from judging import comparisons, intervals
from judging.matching import CANDIDATES, chance_precision, match, score, share_won
from judging.ranks import rank, recall_in_gallery

# Directions of three whole numbers each: many ties. People with unequal numbers of clips.
GALLERIES = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        *[hnp.arrays(np.int64, (n, 3), elements=st.integers(-2, 2))] * 2,
        st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(lambda people: len(set(people)) > 1),
    )
)


def directions(features):
    return comparisons.directions(np.asarray(features, np.float32), np.zeros(np.shape(features)[1]))


def brute_force(queries, gallery, people):
    """Yield better, others and average precision of each query, by an order in which others of equal similarity come first."""
    scores = np.round(directions(queries) @ directions(gallery).T, 5)
    for i, person in enumerate(people):
        order = sorted(range(len(people)), key=lambda j: (-scores[i, j], people[j] == person))
        hits = [people[j] == person for j in order]
        precisions = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
        others = [j for j in range(len(people)) if people[j] != person]
        yield sum(scores[i, j] >= scores[i, i] for j in others), len(others), np.mean(precisions)


@given(GALLERIES)
def test_matches_equal_brute_force(galleries):
    voices, faces, people = galleries
    found = match(directions(voices), directions(faces), comparisons.numbered(people), comparisons.groups_of(people))
    better, others, precision = zip(*brute_force(voices, faces, people))
    assert found.queries.tolist() == list(range(len(people)))
    assert (found.better.tolist(), found.others.tolist()) == (list(better), list(others))
    np.testing.assert_allclose(found.precision, precision)


def test_average_precision_is_that_of_sklearn(rng):
    """Without ties, which sklearn counts for the model."""
    person = rng.permutation(np.repeat(np.arange(8), [1, 1, 2, 3, 5, 8, 2, 4]))
    voices, faces = (directions(rng.normal(size=(len(person), 5))) for _ in range(2))
    found = match(voices, faces, person, comparisons.groups_of(person))
    scores = voices @ faces.T
    expected = [average_precision_score(person == person[i], scores[i]) for i in range(len(person))]
    np.testing.assert_allclose(found.precision, expected)


def test_ties_count_against_the_model():
    """Three equal faces: the own one comes last. And of two faces of one person, at places 2 and 3."""
    same = directions(np.ones((3, 2)))
    found = match(same, same, np.arange(3), comparisons.groups_of([*"abc"]))
    assert found.better.tolist() == [2, 2, 2] and found.precision == pytest.approx([1 / 3] * 3)
    found = match(same, same, np.array([0, 0, 1]), comparisons.groups_of([*"aab"]))
    assert found.precision == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, 1 / 3])


def test_voices_and_faces_may_change_places(rng):
    """A face that searches among voices is what a voice that searches among faces is after both have changed places."""
    people = list("aabbbcd")
    voices, faces = (directions(rng.normal(size=(7, 4))) for _ in range(2))
    groups, person = comparisons.groups_of(people), comparisons.numbered(people)
    found, ranking = match(faces, voices, person, groups), rank(faces, voices, people)
    assert found.better.tolist() == ranking.better.tolist() and found.others.tolist() == ranking.others.tolist()
    assert found.better.tolist() != match(voices, faces, person, groups).better.tolist()


def test_clips_match_within_their_group_alone(rng):
    people, labels = list("aabcdeef"), ["m", "m", "m", "f", "f", "f", "f", None]
    voices, faces = (directions(rng.normal(size=(8, 3))) for _ in range(2))
    found = match(voices, faces, comparisons.numbered(people), comparisons.groups_of(people, labels))
    expected = {}
    for label in "mf":
        numbers = [n for n, of in enumerate(labels) if of == label]
        of_label = brute_force(voices[numbers], faces[numbers], [people[n] for n in numbers])
        expected |= dict(zip(numbers, of_label))
    assert sorted(found.queries.tolist()) == list(range(7))
    for number, better, others, precision in zip(found.queries, found.better, found.others, found.precision):
        assert (better, others, pytest.approx(precision)) == expected[number]


@given(st.integers(1, 12), st.integers(0, 12), st.integers(2, 10))
def test_matching_among_n_is_counted(others, better, candidates):
    """By listing all choices of other candidates, and as recall in random galleries."""
    better = min(better, others)
    found = share_won(np.array([better]), np.array([others]), candidates)
    if candidates - 1 > others:
        assert found is None
        return
    choices = [any(n < better for n in chosen) for chosen in itertools.combinations(range(others), candidates - 1)]
    assert found[0] == pytest.approx(1 - np.mean(choices))
    assert found == pytest.approx(recall_in_gallery(np.array([better]), np.array([others]), candidates, 1))


def test_one_clip_with_too_few_others_leaves_no_figure():
    better, others = np.array([0, 1, 0]), np.array([9, 9, 3])
    assert share_won(better, others, 5) is None and share_won(better, others, 4).tolist() == pytest.approx([1, 2 / 3, 1])


@pytest.mark.parametrize("own, gallery", [(1, 2), (1, 30), (4, 5), (3, 12), (12, 12)])
def test_the_chance_of_a_random_order(own, gallery, rng):
    relevant = np.arange(gallery) < own
    scores = rng.random((20_000, gallery))
    found = np.take_along_axis(np.broadcast_to(relevant, scores.shape), np.argsort(scores, axis=1), axis=1)
    precision = np.cumsum(found, axis=1) / np.arange(1, gallery + 1)
    simulated = (precision * found).sum(axis=1).mean() / own
    assert chance_precision(np.array([own]), np.array([gallery]))[0] == pytest.approx(simulated, abs=0.006)


def test_scores_and_their_intervals_are_means_over_queries(rng):
    """The interval is that of `intervals.mean_interval`, and of compared clips alone."""
    person = np.repeat(np.arange(25), 2)
    voices, faces = (directions(rng.normal(size=(50, 4)) + person[:, None] / 9) for _ in range(2))
    groups, resamples = comparisons.groups_of(person), intervals.resample(person)
    found = match(voices, faces, person, groups)
    row = score(found, person, resamples)
    assert list(row["matching"]) == list(row["matching_interval"]) == list(CANDIDATES) == [2, 3, 5, 10]
    for n in CANDIDATES:
        won = share_won(found.better, found.others, n)
        assert row["matching"][n] == won.mean()
        assert row["matching_interval"][n] == pytest.approx(intervals.mean_interval(won, resamples))
    assert row["map"] == found.precision.mean()
    assert row["map_interval"] == pytest.approx(intervals.mean_interval(found.precision, resamples))
    assert row["matching"][2] == pytest.approx(rank(voices, faces, person).matching.mean())
    few = score(match(voices, faces, person, comparisons.groups_of(person, ["a"] * 40 + [None] * 10)), person, resamples)
    alone = score(match(voices[:40], faces[:40], person[:40], comparisons.groups_of(person[:40])), person[:40], None)
    assert (few["matching"], few["map"]) == (alone["matching"], alone["map"]) and alone["map_interval"] is None
    assert few["map_interval"][0] < few["map"] < few["map_interval"][1]
    assert alone["matching_interval"] == dict.fromkeys(CANDIDATES)


def test_a_figure_without_enough_candidates_is_none(rng):
    features = directions(rng.normal(size=(4, 3)))
    row = score(match(features, features, np.arange(4), comparisons.groups_of([*"abcd"])), np.arange(4), None)
    assert row["matching"] == {2: 1, 3: 1, 5: None, 10: None} and row["map"] == 1
