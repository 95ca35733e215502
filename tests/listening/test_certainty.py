import dataclasses
import io

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from listening import certainty
from utils import InputError

E, SPEAKER = 40, (8, 40)  # numbers in an embedding, and columns that tell speakers apart
CENTRE = np.where(np.arange(E) < SPEAKER[0], 5.0, 0.0)  # the other columns are nearly the same for all
SCALE = np.linspace(1.5, 0.8, E)


class World:
    """People whose voices are normally distributed; each has several embeddings, which noise tells apart.

    Some people's embeddings are noisier than others', and some predictions are longer. The true matching depends on both.
    """

    def __init__(self, seed, n=1500, n_halves=2):
        rng = np.random.default_rng(seed)
        self.voices = rng.normal(size=(n, 1, E)) * SCALE
        noise = rng.uniform(0.2, 0.5, n)
        halves = self.voices + noise[:, None, None] * rng.normal(size=(n, n_halves, E)) * SCALE
        self.halves = (CENTRE + halves).astype(np.float32)
        self.lengths = np.exp(rng.normal(size=n) / 2).astype(np.float32)
        self.truth = 1 / (1 + np.exp(-(1 + 1.2 * np.log(self.lengths) - 4 * (noise - 0.35))))
        self.matching = rng.binomial(40, self.truth) / 40
        self.people = [f"v{number}" for number in range(n)]

    def fit(self):
        return certainty.fit(self.halves, self.lengths, self.matching, self.people, SPEAKER)

    def judged(self, fitted):
        return [fitted.judge(halves, length) for halves, length in zip(self.halves, self.lengths)]


@pytest.fixture(scope="module")
def fitted():
    return World(1).fit()


FRESH = World(2)
LONG = World(3, 300, n_halves=8)  # recordings of 8 halves


def test_expected_matching_is_the_true_one_of_other_people(fitted):
    """By thirds of the expected matching, which are far apart."""
    expected = np.array([of.matching for of in FRESH.judged(fitted)])
    thirds = np.array_split(np.argsort(expected), 3)
    for third in thirds:
        assert expected[third].mean() == pytest.approx(FRESH.truth[third].mean(), abs=0.02)
    assert expected[thirds[2]].mean() - expected[thirds[0]].mean() > 0.25
    assert np.corrcoef(expected, FRESH.truth)[0, 1] > 0.9


def test_matching_stays_within_what_was_measured(fitted):
    """Lengths beyond all those of training count as the longest, and as the shortest."""
    halves = FRESH.halves[0]
    lengths = np.exp(fitted.ranges[2, 2:])
    for outside, limit in ((1e-9, lengths[0]), (0, lengths[0]), (1e9, lengths[1])):
        assert fitted.judge(halves, outside).matching == pytest.approx(fitted.judge(halves, limit).matching, abs=1e-5)
    assert fitted.judge(halves, 0.5).matching < fitted.judge(halves, 2).matching


def test_shares_are_those_of_people_like_the_training_people(fitted):
    """Nobody of a population is special: shares are uniform, so that their deciles hold a tenth each."""
    judged = FRESH.judged(fitted)
    for shares in ([of.less_agreement for of in judged], [of.more_usual for of in judged]):
        np.testing.assert_allclose(np.histogram(shares, 10, (0, 1))[0] / len(judged), 0.1, atol=0.035)


def test_agreement_and_shares_by_hand(fitted):
    halves = LONG.halves[5, :4].astype(np.float64)
    placed, told = [[(half - fitted.mean) @ axis for axis in fitted.axes] for half in halves], halves[:, 8:40]
    cosines = [
        np.dot(told[i], told[j]) / np.linalg.norm(told[i]) / np.linalg.norm(told[j])
        for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    ]
    judged, distance = fitted.judge(LONG.halves[5, :4], 1.0), np.linalg.norm(np.mean(placed, axis=0))
    assert judged.agreement == pytest.approx(np.mean(cosines), abs=1e-5)
    assert judged.less_agreement == sum(of < np.mean(cosines) for of in fitted.agreements) / 1500
    assert judged.more_usual == sum(of < distance for of in fitted.distances) / 1500


def test_axes_whiten_voices(fitted):
    """Along each axis the voices of training people have the standard deviation 1, and no two axes tell the same."""
    voices = (World(1).halves.mean(axis=1) - fitted.mean) @ fitted.axes.T
    assert fitted.axes.shape == (E, E)
    np.testing.assert_allclose(np.cov(voices.T, bias=True), np.eye(E), atol=1e-3)
    assert certainty.fit(*(of[:40] for of in (FRESH.halves, FRESH.lengths, FRESH.matching, FRESH.people))).axes.shape == (10, E)


def test_two_speakers_are_told_and_one_is_not(fitted):
    one = np.mean([of.several_speakers for of in LONG.judged(fitted)])
    pairs = np.concatenate([LONG.halves[:-1, :4], LONG.halves[1:, 4:]], axis=1)
    two = np.mean([fitted.judge(halves, 1.0).several_speakers for halves in pairs])
    assert two > 0.95 and one < 0.02
    short = np.stack([FRESH.halves[:-1, 0], FRESH.halves[1:, 1]], axis=1)  # a window of two halves
    assert np.mean([fitted.judge(halves, 1.0).several_speakers for halves in short]) > 0.9
    assert np.mean([of.several_speakers for of in FRESH.judged(fitted)]) == pytest.approx(certainty.FALSE_ALARMS, abs=0.008)


def test_a_single_half_of_another_speaker_is_nobodys(fitted):
    halves = LONG.halves[:, [0, 1, 2, 3, 4, 5, 6, 7] * 2][:50].copy()
    halves[:, 3] = LONG.halves[50:100, 0]  # one of 16
    assert np.mean([fitted.judge(of, 1.0).several_speakers for of in halves]) < 0.1


def test_only_the_columns_that_tell_speakers_apart_count(fitted):
    """Microphone and room, in the other columns, make nobody several people."""
    halves = LONG.halves[:100].copy()
    halves[:, ::2, : SPEAKER[0]] -= 10
    assert np.mean([fitted.judge(of, 1.0).several_speakers for of in halves]) < 0.05
    of_all = certainty.fit(FRESH.halves, FRESH.lengths, FRESH.matching, FRESH.people)
    assert of_all.speaker.tolist() == [0, E] and fitted.speaker.tolist() == [*SPEAKER]
    assert np.mean([of_all.judge(of, 1.0).several_speakers for of in halves]) > 0.95


def test_a_voice_far_from_all_others_is_unusual(fitted):
    far, near = CENTRE + 4 * FRESH.voices[:50], CENTRE + 0.1 * FRESH.voices[:50]
    for voice, usual in zip(far, near):
        of_far, of_near = (fitted.judge(np.repeat(of, 4, axis=0).astype(np.float32), 1.0) for of in (voice, usual))
        assert of_far.more_usual > 0.98 and of_near.more_usual < 0.01
        assert "is unusual" in of_far.words()[2] and "is usual" in of_near.words()[2]
        assert of_far.agreement == pytest.approx(1) and of_far.less_agreement == 1 and not of_far.several_speakers


def test_the_regression_finds_its_own_slopes(rng):
    signs = rng.normal(size=(50_000, 3))
    weights = certainty._regression(signs, 1 / (1 + np.exp(-(0.5 + signs @ [1, -0.3, 0]))))
    np.testing.assert_allclose(weights, [0.5, 1, -0.3, 0], atol=1e-3)
    few = certainty._regression(signs[:6], np.array([1, 1, 1, 0, 1, 1]))  # separable, but for the ridge
    assert np.isfinite(few).all() and np.abs(few[1:]).max() < 3


def test_clips_of_a_person_are_in_one_fold():
    """Thirty clips of each of five people: were they in several folds, these clips would seem to be usual voices."""
    rng = np.random.default_rng(0)
    voices = 5 * rng.normal(size=(5, 1, 1, E)) + 0.1 * rng.normal(size=(5, 30, 2, E))
    halves, ones = voices.reshape(150, 2, E).astype(np.float32), np.ones(150)
    names = [f"v{number // 30}" for number in range(150)]
    together = certainty.fit(halves, ones, ones / 2, names)
    apart = certainty.fit(halves, ones, ones / 2, [f"v{number}" for number in range(150)])
    assert np.median(together.distances) > 5 * np.median(apart.distances)


@pytest.mark.parametrize("n, n_people", [(1, 1), (2, 1), (2, 2), (3, 3), (7, 1), (12, 4)])
def test_few_clips_and_few_people(n, n_people):
    """As the validation set of a small trial: all numbers are finite."""
    people = [f"v{number % n_people}" for number in range(n)]
    fitted = certainty.fit(FRESH.halves[:n], FRESH.lengths[:n], np.full(n, 0.5), people)
    assert all(np.isfinite(of).all() and of.dtype in (np.float32, np.int64) for of in dataclasses.astuple(fitted))
    judged = fitted.judge(LONG.halves[0], 1.0)
    assert judged.matching == pytest.approx(0.5, abs=1e-3) and np.isfinite(judged.agreement)
    assert 0 <= judged.less_agreement <= 1 and 0 <= judged.more_usual <= 1
    assert len(judged.words()) == 3
    assert fitted.one_speaker == pytest.approx(np.quantile(fitted.agreements, 0.01), abs=1e-6)


def test_what_is_saved_is_loaded(fitted, tmp_path):
    path = tmp_path / "certainty.npz"
    fitted.save(path)
    for ours, theirs in zip(dataclasses.astuple(fitted), dataclasses.astuple(certainty.load(path)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert certainty.load(path).judge(FRESH.halves[3], 1.0) == fitted.judge(FRESH.halves[3], 1.0)
    assert certainty.load(tmp_path / "none.npz") is None  # of a run of an earlier version
    assert [file.name for file in tmp_path.iterdir()] == ["certainty.npz"]


def content_of(kind, fitted, tmp_path):
    fitted.save(tmp_path / "whole.npz")
    whole, file = (tmp_path / "whole.npz").read_bytes(), io.BytesIO()
    if kind == "an array is missing":
        np.savez(file, **{name: of for name, of in dataclasses.asdict(fitted).items() if name != "ranges"})
    elif kind == "objects":
        np.savez(file, **{name: np.array({}, object) for name in dataclasses.asdict(fitted)})
    elif kind == "one array":
        np.save(file, fitted.mean)
    else:
        return {"empty": b"", "no file of arrays": b"no zip", "cut": whole[:-3000]}[kind]
    return file.getvalue()


@pytest.mark.parametrize("kind", ["empty", "no file of arrays", "cut", "an array is missing", "objects", "one array"])
def test_a_broken_file_is_reported(kind, fitted, tmp_path):
    path = tmp_path / "certainty.npz"
    path.write_bytes(content_of(kind, fitted, tmp_path))
    with pytest.raises(InputError, match=r"certainty\.npz: expected how sure voices are, found .*; run train\.py again"):
        certainty.load(path)


SURE = certainty.Certainty(matching=0.734, agreement=0.6, less_agreement=0.55, more_usual=0.3, several_speakers=False)


@pytest.mark.parametrize(
    "changes, parts, voice",
    [
        ({}, "agree, better than those of 55 % of people", "usual, farther from the mean voice than those of 30 % of people"),
        ({"less_agreement": 0.02}, "agree, better than those of 2 % of people", "usual, "),
        ({"less_agreement": 0.01}, "agree less than those of 99 % of people", "usual, "),
        ({"more_usual": 0.8}, "agree, better", "a little unusual, farther from the mean voice than those of 80 % of people"),
        ({"more_usual": 0.98}, "agree, better", "a little unusual, "),
        ({"more_usual": 0.99}, "agree, better", "unusual, farther from the mean voice than those of 99 % of people; "),
    ],
)
def test_what_the_numbers_mean_in_words(changes, parts, voice):
    first, second, third = dataclasses.replace(SURE, **changes).words()
    assert first.startswith("how sure: ") and first.endswith(" in 73 % of comparisons (guessing: 50 %)")
    assert second.startswith(f"the parts of the recording {parts}")
    assert third.startswith(f"the voice is {voice}")
    assert ("take the face for less" in third) == (changes.get("more_usual", 0) > 0.98)


def test_several_speakers_come_before_their_agreement():
    _, second, _ = dataclasses.replace(SURE, several_speakers=True, less_agreement=0.0).words()
    assert second == "the recording seems to hold several speakers, of whom the face is a mixture; cut out one of them"


def test_agreement_is_the_mean_cosine_of_all_pairs(rng):
    placed = rng.normal(size=(7, E))
    cosines = cosine_similarity(placed)[np.triu_indices(7, 1)]
    assert certainty._agreement(placed) == pytest.approx(cosines.mean())
    assert certainty._groups_agree(np.concatenate([placed[:1], -placed[:1]])) == pytest.approx(-1)
