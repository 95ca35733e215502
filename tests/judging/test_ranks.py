import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import judging.ranks
from judging import published
from judging.intervals import _resamples, mean_interval, median_interval
from judging.ranks import Ranking, chance_at_k, feature_similarity, rank, recall_at_k, recall_in_gallery
from judging.search import most_similar
from utils import InputError, normalise

GALLERIES = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        *[hnp.arrays(np.float32, (n, 3), elements=st.integers(-3, 3).map(float))] * 2,
        st.lists(st.sampled_from("abcdefghij"), min_size=n, max_size=n).filter(lambda videos: len(set(videos)) > 1),
    )
)


def cosine(a, b):
    """In exact arithmetic, for small integers: sign and square, as a fraction."""
    from fractions import Fraction

    a, b = [int(x) for x in a], [int(x) for x in b]
    dot, norms = sum(x * y for x, y in zip(a, b)), sum(x * x for x in a) * sum(y * y for y in b)
    return Fraction(0) if norms == 0 else Fraction(dot * abs(dot), norms)


def brute_force(voices, faces, videos):
    """For each voice: its rank, better and others, by looking at each face."""
    for i, voice in enumerate(voices):
        others = [face for face, video in zip(faces, videos) if video != videos[i]]
        own = max(cosine(voice, face) for face, video in zip(faces, videos) if video == videos[i])
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
    """By the definition: a voice has found its face when a face of its video is among the k first, ties against it."""
    voices, faces, videos = gallery
    hits = 0
    for i, voice in enumerate(voices):
        order = sorted(range(len(faces)), key=lambda j: (-cosine(voice, faces[j]), videos[j] == videos[i]))
        hits += any(videos[j] == videos[i] for j in order[:k])
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
    assert rank(np.zeros((1, 2)), faces).ranks.tolist() == [3, 3, 3]  # says nothing, ranks last
    assert rank(faces, faces).matching.tolist() == [0.5, 0.5, 1]


def test_several_clips_of_a_video():
    faces = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    voices = np.array([[0, 1, 0.1], [0.8, 0.1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    ranking = rank(voices, faces, ["a", "a", "b", "c"])
    assert ranking.ranks.tolist() == [2, 1, 1, 1]  # the first voice's: its video's second face is behind b's only
    assert ranking.better.tolist() == [2, 0, 0, 0]  # its own face is behind c's too
    assert ranking.others.tolist() == [2, 2, 3, 3] and ranking.matching.tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="at least two"):
        rank(voices, faces, ["a"] * 4)


def test_ranks_of_a_large_gallery(rng, monkeypatch):
    monkeypatch.setattr(judging.ranks, "BLOCK", 2500 * 1000)
    faces = rng.normal(size=(2500, 16))
    voices = faces + 0.8 * rng.normal(size=faces.shape)
    cosines = np.corrcoef(np.vstack([voices, faces]))[:2500, 2500:]  # another road: those of what is centred first
    voices_0, faces_0 = (x - x.mean(1, keepdims=True) for x in (voices, faces))
    expected = (cosines > np.diag(cosines)[:, None]).sum(1) + 1
    ranking = rank(voices_0, faces_0)
    assert np.mean(ranking.ranks == expected) > 0.99  # the rest: within the rounding
    nearness = np.corrcoef(faces)
    nearest = np.argsort(-nearness, axis=1)[:, 1:251]
    alike = (np.take_along_axis(cosines, nearest, 1) > np.diag(cosines)[:, None]).sum(1)
    assert np.mean(ranking.better_alike == alike) > 0.99 and (ranking.alike == 250).all()
    assert ranking.matching_alike.mean() < ranking.matching.mean()
    with pytest.raises(ValueError, match="finite"):
        rank(faces * math.nan, faces)


def ranking_of(videos, better=0):
    n = len(videos)
    others = np.array([sum(video != other for other in videos) for video in videos])
    return Ranking(np.ones(n, int), np.full(n, better), np.zeros(n, int), others, np.ones(n, int))


def test_chance(rng):
    fifty = ranking_of(range(50))
    assert chance_at_k(fifty, 5) == pytest.approx(0.1)
    assert chance_at_k(fifty, 50) == chance_at_k(fifty, 100) == 1
    videos = np.array(list("aaabbc"))
    drawn = np.array([[(videos[rng.permutation(6)[:2]] == video).any() for video in videos] for _ in range(4000)])
    assert chance_at_k(ranking_of(videos), 2) == pytest.approx(drawn.mean(), abs=0.01)


def test_recall_in_a_fixed_gallery_is_that_of_random_galleries(rng):
    faces = rng.normal(size=(40, 8))
    voices = faces + rng.normal(size=faces.shape)
    ranking = rank(voices, faces)
    expected = recall_in_gallery(ranking.better, ranking.others, 10, 3).mean()
    hits = []
    for _ in range(400):
        drawn = rng.permutation(40)[:10]
        hits += (rank(voices[drawn], faces[drawn]).ranks <= 3).tolist()
    assert expected == pytest.approx(np.mean(hits), abs=0.02)
    whole = recall_in_gallery(ranking.better, ranking.others, 40, 3)
    assert np.array_equal(whole, ranking.ranks <= 3)
    with pytest.raises(InputError, match=r"expected 40 at most, .*, found 41"):
        recall_in_gallery(ranking.better, ranking.others, 41, 3)


def test_the_papers_model_in_other_galleries():
    """What its 100 published ranks give in the slides' gallery. Source: the project's reference figures."""
    assert len(published.PAPER_RANKS) == 100 and np.median(published.PAPER_RANKS) == 550
    for k, share in ((1, 0), (10, 0.02), (50, 0.10), (100, 0.13), (500, 0.46)):
        assert np.mean(np.array(published.PAPER_RANKS) <= k) == share
        assert published.paper_recall(5000, k)[0] == pytest.approx(share)
    for k, share in ((1, 0.024), (5, 0.085), (10, 0.118), (100, 0.62)):
        assert published.paper_recall(604, k)[0] == pytest.approx(share, abs=0.005)
    assert published.paper_recall(604, 1)[1:] == pytest.approx((0.006, 0.048), abs=0.002)


def test_intervals_cover_the_truth_and_know_of_videos(rng):
    covered = 0
    for _ in range(200):
        values = rng.random(60) < 0.3
        low, high = mean_interval(values, range(60))
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99
    values = rng.normal(size=60)
    width = np.ptp(mean_interval(values, range(60)))
    assert width == pytest.approx(2 * 1.96 * values.std() / math.sqrt(60), rel=0.1)
    repeated = np.repeat(values, 4)
    assert np.ptp(mean_interval(repeated, np.repeat(np.arange(60), 4))) == pytest.approx(width, rel=0.1)


def test_median_interval_is_that_of_the_resamples(rng):
    values, videos = rng.integers(1, 50, 31), rng.integers(0, 12, 31)
    times = _resamples(videos)
    medians = [np.median(np.repeat(values, row)) for row in times]
    assert median_interval(values, videos) == tuple(np.percentile(medians, (2.5, 97.5)))
    names = np.unique(videos)
    assert all(len({*row[videos == name]}) == 1 for row in times[:50] for name in names)  # a video's clips come together
    assert (np.array([[row[videos == name][0] for name in names] for row in times]).sum(1) == len(names)).all()


def test_feature_similarity():
    similarity = feature_similarity(np.array([[2.0, 0], [0, 3]]), np.array([[1.0, 0], [5, 0]]))
    assert similarity == pytest.approx({"degrees": 45, "l1": 1, "l2": math.sqrt(2) / 2})


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12), st.integers(1, 45), st.integers(0, 9))
@settings(max_examples=60)
def test_most_similar_is_exact(n_voices, n_faces, rows, k, seed):
    rng = np.random.default_rng(seed)
    voices = rng.integers(-2, 3, (n_voices, 4)).astype(np.float32)  # few values, many ties
    faces = rng.integers(-2, 3, (n_faces, 4)).astype(np.float16)
    k = min(k, n_faces)
    numbers, cosines = most_similar(voices, faces, k, rows)
    all_cosines = normalise(voices) @ normalise(faces.astype(np.float32)).T
    assert numbers.shape == cosines.shape == (n_voices, k) and all(len({*row}) == k for row in numbers)
    np.testing.assert_allclose(cosines, -np.sort(-all_cosines, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(all_cosines, numbers, 1), cosines, atol=1e-6)


def test_a_gallery_on_disk_is_never_in_memory(tmp_path, rng):
    path = tmp_path / "faces.npy"
    np.save(path, rng.normal(size=(40_000, 512)).astype(np.float16))  # 41 MB; 82 MB as float32
    faces = np.load(path, mmap_mode="r")
    voices = np.asarray(faces[[3, 39_999]], np.float32)
    tracemalloc.start()
    numbers, _ = most_similar(voices, faces, 5, rows=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers[:, 0].tolist() == [3, 39_999] and peak < 12e6
