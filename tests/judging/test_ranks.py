import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import judging.ranks
from judging.ranks import Ranking, chance_at_k, feature_similarity, rank, recall_at_k, recall_in_gallery
from utils import InputError

GALLERIES = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        *[hnp.arrays(np.float32, (n, 3), elements=st.integers(-3, 3).map(float))] * 2,
        st.lists(st.sampled_from("abcdefghij"), min_size=n, max_size=n).filter(lambda people: len(set(people)) > 1),
    )
)


def cosine(a, b):
    """Return the squared cosine with its sign, exactly, of small integers."""
    from fractions import Fraction

    a, b = [int(x) for x in a], [int(x) for x in b]
    dot, norms = sum(x * y for x, y in zip(a, b)), sum(x * x for x in a) * sum(y * y for y in b)
    return Fraction(0) if norms == 0 else Fraction(dot * abs(dot), norms)


def brute_force(voices, faces, people):
    """Yield the rank, better and others of each voice, from one face at a time."""
    for i, voice in enumerate(voices):
        others = [face for face, person in zip(faces, people) if person != people[i]]
        own = max(cosine(voice, face) for face, person in zip(faces, people) if person == people[i])
        yield (
            1 + sum(cosine(voice, face) >= own for face in others),
            sum(cosine(voice, face) >= cosine(voice, faces[i]) for face in others),
            len(others),
        )


@given(GALLERIES)
def test_ranks_equal_brute_force(gallery):
    ranking = rank(*gallery)
    found = list(zip(ranking.ranks.tolist(), ranking.better.tolist(), ranking.others.tolist()))
    assert found == list(brute_force(*gallery))
    assert ranking.gallery == len(gallery[0]) and (ranking.better_alike <= np.minimum(ranking.better, ranking.alike)).all()


@given(GALLERIES, st.integers(1, 12))
def test_recall_equals_brute_force(gallery, k):
    """By the definition: a face of the voice's person is among the first k, and ties count against the model."""
    voices, faces, people = gallery
    hits = 0
    for i, voice in enumerate(voices):
        order = sorted(range(len(faces)), key=lambda j: (-cosine(voice, faces[j]), people[j] == people[i]))
        hits += any(people[j] == people[i] for j in order[:k])
    assert recall_at_k(rank(*gallery).ranks, k) == pytest.approx(hits / len(voices))


@given(GALLERIES, st.randoms(use_true_random=False))
def test_gallery_order_changes_no_rank(gallery, random):
    order = list(range(len(gallery[0])))
    random.shuffle(order)
    ranks = rank(*gallery).ranks
    shuffled = rank(gallery[0][order], gallery[1][order], [gallery[2][n] for n in order])
    assert np.array_equal(shuffled.ranks, ranks[order])


@given(GALLERIES)
def test_recall_grows_with_k_and_is_1_at_gallery_size(gallery):
    ranks = rank(*gallery).ranks
    recalls = [recall_at_k(ranks, k) for k in range(1, len(ranks) + 1)]
    assert recalls == sorted(recalls) and recalls[-1] == 1


def test_ties_count_against_the_model():
    faces = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert rank(faces, faces).ranks.tolist() == [2, 2, 1]
    assert rank(np.zeros((1, 2)), faces).ranks.tolist() == [3, 3, 3]  # no prediction, last rank
    assert rank(faces, faces).matching.tolist() == [0.5, 0.5, 1]


def test_several_clips_of_a_person():
    faces = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    voices = np.array([[0, 1, 0.1], [0.8, 0.1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    ranking = rank(voices, faces, ["a", "a", "b", "c"])
    assert ranking.ranks.tolist() == [2, 1, 1, 1]  # the second face of the first voice's person is behind b's only
    assert ranking.better.tolist() == [2, 0, 0, 0]  # the own face is behind c's too
    assert ranking.others.tolist() == [2, 2, 3, 3] and ranking.matching.tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="at least two"):
        rank(voices, faces, ["a"] * 4)


def test_ranks_of_a_large_gallery(rng, monkeypatch):
    monkeypatch.setattr(judging.ranks, "BLOCK", 2500 * 1000)
    faces = rng.normal(size=(2500, 16))
    voices = faces + 0.8 * rng.normal(size=faces.shape)
    cosines = np.corrcoef(np.vstack([voices, faces]))[:2500, 2500:]  # a different way to the same cosines, of centred vectors
    voices_0, faces_0 = (x - x.mean(1, keepdims=True) for x in (voices, faces))
    expected = (cosines > np.diag(cosines)[:, None]).sum(1) + 1
    ranking = rank(voices_0, faces_0)
    assert np.mean(ranking.ranks == expected) > 0.99  # the rest differ by rounding
    nearness = np.corrcoef(faces)
    nearest = np.argsort(-nearness, axis=1)[:, 1:251]
    alike = (np.take_along_axis(cosines, nearest, 1) > np.diag(cosines)[:, None]).sum(1)
    assert np.mean(ranking.better_alike == alike) > 0.99 and (ranking.alike == 250).all()
    assert ranking.matching_alike.mean() < ranking.matching.mean()
    with pytest.raises(ValueError, match="finite"):
        rank(faces * math.nan, faces)


def ranking_of(people, better=0):
    n = len(people)
    others = np.array([sum(person != other for other in people) for person in people])
    return Ranking(np.ones(n, int), np.full(n, better), np.zeros(n, int), others, np.ones(n, int))


def test_chance(rng):
    fifty = ranking_of(range(50))
    assert chance_at_k(fifty, 5) == pytest.approx(0.1)
    assert chance_at_k(fifty, 50) == chance_at_k(fifty, 100) == 1
    people = np.array(list("aaabbc"))
    hits = np.array([[(people[rng.permutation(6)[:2]] == person).any() for person in people] for _ in range(4000)])
    assert chance_at_k(ranking_of(people), 2) == pytest.approx(hits.mean(), abs=0.01)


def test_recall_in_a_fixed_gallery_is_that_of_random_galleries(rng):
    faces = rng.normal(size=(40, 8))
    voices = faces + rng.normal(size=faces.shape)
    ranking = rank(voices, faces)
    expected = recall_in_gallery(ranking.better, ranking.others, 10, 3).mean()
    hits = []
    for _ in range(400):
        sampled = rng.permutation(40)[:10]
        hits += (rank(voices[sampled], faces[sampled]).ranks <= 3).tolist()
    assert expected == pytest.approx(np.mean(hits), abs=0.02)
    whole = recall_in_gallery(ranking.better, ranking.others, 40, 3)
    assert np.array_equal(whole, ranking.ranks <= 3)
    with pytest.raises(InputError, match=r"expected at most 40, .*, found 41"):
        recall_in_gallery(ranking.better, ranking.others, 41, 3)


def test_feature_similarity():
    similarity = feature_similarity(np.array([[2.0, 0], [0, 3]]), np.array([[1.0, 0], [5, 0]]))
    assert similarity == pytest.approx({"degrees": 45, "l1": 1, "l2": math.sqrt(2) / 2})
