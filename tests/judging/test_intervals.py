import math
import tracemalloc

import numpy as np
import pytest

from judging import intervals
from judging.intervals import mean_interval, median_interval, resample


def test_intervals_cover_the_truth_and_treat_a_person_as_one(rng):
    covered, of_60 = 0, resample(range(60))
    for _ in range(200):
        values = rng.random(60) < 0.3
        low, high = mean_interval(values, of_60)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99
    values = rng.normal(size=60)
    width = np.ptp(mean_interval(values, of_60))
    assert width == pytest.approx(2 * 1.96 * values.std() / math.sqrt(60), rel=0.1)
    repeated = np.repeat(values, 4)
    assert np.ptp(mean_interval(repeated, resample(np.repeat(np.arange(60), 4)))) == pytest.approx(width, rel=0.1)


def test_median_interval_is_that_of_the_resamples(rng):
    values, people = rng.integers(1, 50, 31), rng.integers(0, 12, 31)
    resamples = resample(people)
    times = np.concatenate([*resamples.blocks()])
    medians = [np.median(np.repeat(values, row.astype(int))) for row in times]
    assert median_interval(values, resamples) == tuple(np.percentile(medians, (2.5, 97.5)))
    names = np.unique(people)
    assert all(len({*row[people == name]}) == 1 for row in times[:50] for name in names)  # a person's clips come together
    assert (np.array([[row[people == name][0] for name in names] for row in times]).sum(1) == len(names)).all()


def test_resamples_are_those_of_one_call(rng):
    """In blocks, the same numbers as the whole matrix from the same generator."""
    people = rng.integers(0, 40, 150)
    names, person = np.unique(people, return_inverse=True)
    expected = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)[:, person]
    np.testing.assert_array_equal(np.concatenate([*resample(people).blocks()]), expected)


def test_blocks_change_no_interval(rng, monkeypatch):
    values, people = rng.normal(size=500), rng.integers(0, 300, 500)
    whole = resample(people)
    expected = mean_interval(values, whole), median_interval(values, whole)
    monkeypatch.setattr(intervals, "BLOCK", 500 * 7)
    in_blocks = resample(people)
    assert len([*in_blocks.blocks()]) == -(-2000 // 7)
    np.testing.assert_array_equal(in_blocks.times, whole.times)
    assert mean_interval(values, in_blocks) == pytest.approx(expected[0], rel=1e-12)
    assert median_interval(values, in_blocks) == expected[1]


def test_many_clips_fit_in_memory(rng, monkeypatch):
    """8,000 clips take 16 MB, a byte for each person and resample; 2,000 x 8,000 numbers of 8 bytes would take 128 MB."""
    monkeypatch.setattr(intervals, "BLOCK", 2**18)
    values = rng.normal(size=8_000)
    tracemalloc.start()
    resamples = resample(np.arange(8_000))
    low, high = mean_interval(values, resamples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < values.mean() < high and peak < 40e6
