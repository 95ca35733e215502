"""1:N matching and mean average precision: how often the true one wins among N, and how well all of a person are ranked.

Queries are voices that search among faces, or faces that search among voices. Ties count against the model: whatever is of
another person and as similar ranks before.
"""

import dataclasses

import numpy as np

from judging.comparisons import similarities
from judging.intervals import Resamples, limits, sums
from judging.ranks import TIE, recall_in_gallery

CANDIDATES = (2, 3, 5, 10)  # numbers of candidates, N, in 1:N matching


@dataclasses.dataclass(frozen=True)
class Matches:
    """How Q queries matched their group of the gallery."""

    queries: np.ndarray  # int64 (Q,), their numbers
    better: np.ndarray  # int64 (Q,), how many of other people are at least as similar as the query's own counterpart
    others: np.ndarray  # int64 (Q,), how many are of other people
    precision: np.ndarray  # float64 (Q,), average precision, in (0, 1]


def match(queries: np.ndarray, gallery: np.ndarray, person: np.ndarray, groups) -> Matches:
    """Let each query search the gallery of its group. Args: see `comparisons.similarities`.

    Average precision is the mean, over all in the gallery that are of the query's person, of the precision at their rank: the
    share of that person among all down to there.
    """
    found = []
    for numbers, group, scores, same in similarities(queries, gallery, person, groups):
        true = scores[np.arange(len(numbers)), np.searchsorted(group, numbers)]
        negatives = np.sort(np.where(same, -np.inf, scores), axis=1)
        n = len(group)
        for row, number in enumerate(numbers):
            positives = np.sort(scores[row, same[row]])[::-1]
            before = n - np.searchsorted(negatives[row], [true[row] - np.float32(TIE), *(positives - np.float32(TIE))])
            of_person = np.arange(1, len(positives) + 1)
            precision = np.mean(of_person / (of_person + before[1:]))
            found.append((number, before[0], n - len(positives), precision))
    found = np.array(found)
    return Matches(*(column.astype(np.int64) for column in found.T[:3]), found[:, 3])


def share_won(better: np.ndarray, others: np.ndarray, candidates: int) -> np.ndarray | None:
    """Return how often each query finds its own counterpart among some candidates: it and sampled ones of other people.

    Args:
        better, others: int (Q,), of `Matches`.
        candidates: how many the query chooses among, N.

    Returns:
        float (Q,), in [0, 1]; chance is 1 / N. None if a query has fewer than N - 1 others.
    """
    if candidates - 1 > others.min():
        return None
    return recall_in_gallery(better, others, candidates, 1)


def chance_precision(own: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Return the average precision to be expected of a random order.

    With R of n relevant, the place k is relevant with probability R / n, and then (k - 1) (R - 1) / (n - 1) of those before it
    are to be expected relevant too. So the expected precision at a relevant place k is (1 + (k - 1) (R - 1) / (n - 1)) / k, and
    the mean over the places is (H + (R - 1) / (n - 1) (n - H)) / n, where H = 1 + 1/2 + ... + 1/n.

    Args:
        own: int (Q,), R: how many of the gallery are of the query's person.
        gallery: int (Q,), n: how many there are; more than 1.

    Returns:
        float (Q,), in (0, 1].
    """
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, gallery.max() + 1))])[gallery]
    return (harmonic + (own - 1) / (gallery - 1) * (gallery - harmonic)) / gallery


def score(found: Matches, person: np.ndarray, resamples: Resamples | None) -> dict:
    """Score the matches of one direction.

    Args:
        found: the matches.
        person: int (N,), the person of each clip of the part.
        resamples: of these clips, for intervals; None for none.

    Returns:
        `matching`, for each of CANDIDATES, and `map`, the mean average precision: means over the queries, in [0, 1], and their
        intervals: bootstrap over the people of the queries, with the gallery as it is.
    """
    values = {n: share_won(found.better, found.others, n) for n in CANDIDATES} | {"map": found.precision}
    known = {name: of for name, of in values.items() if of is not None}
    means = {name: float(of.mean()) for name, of in known.items()}
    intervals = {}
    if resamples is not None:
        table = np.stack([*known.values(), np.ones(len(found.queries))], axis=1)
        of_people = np.zeros((resamples.times.shape[1], table.shape[1]))
        np.add.at(of_people, person[found.queries], table)
        *totals, n_queries = sums(of_people, resamples).T
        intervals = {name: limits(total / n_queries) for name, total in zip(known, totals)}
    row = {"matching": {n: means.get(n) for n in CANDIDATES}, "map": means["map"]}
    return row | {"matching_interval": {n: intervals.get(n) for n in CANDIDATES}, "map_interval": intervals.get("map")}
