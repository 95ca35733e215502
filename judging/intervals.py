"""Bootstrap confidence intervals of the figures: people are resampled, the gallery stays the same."""

import dataclasses

import numpy as np

RESAMPLES = 2000  # of a bootstrap
INTERVAL = (2.5, 97.5)  # percentiles: 95 %
LEAST_PEOPLE = 20  # fewer do not carry an interval
BLOCK = 2**24  # numbers in memory at a time, 8 bytes each


@dataclasses.dataclass(frozen=True)
class Resamples:
    """The bootstrap's resamples of N clips of P people. All clips of a person are sampled together."""

    times: np.ndarray  # uint8 (RESAMPLES, P), how often each person is in each resample
    person: np.ndarray  # int (N,), each clip's person

    def blocks(self):
        """Yield float64 (rows, N), how often each clip is in each resample, a block of resamples at a time."""
        rows = max(1, BLOCK // len(self.person))
        for start in range(0, len(self.times), rows):
            yield self.times[start : start + rows].take(self.person, axis=1).astype(float)


def resample(people) -> Resamples:
    """Sample as many people as there are, with replacement, RESAMPLES times; always the same ones.

    Args:
        people: N names, the person of each clip.
    """
    names, person = np.unique(np.asarray(people), return_inverse=True)
    n = len(names)
    rng = np.random.default_rng(0)
    times = np.empty((RESAMPLES, n), np.uint8)  # a count of 256 or more will not occur
    rows = max(1, BLOCK // n)
    for start in range(0, RESAMPLES, rows):
        block = times[start : start + rows]
        block[:] = rng.multinomial(n, np.full(n, 1 / n), size=len(block))
    return Resamples(times, person)


def mean_interval(values: np.ndarray, resamples: Resamples) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of a mean. values: float (N,)."""
    values = np.asarray(values, float)
    means = [block @ values / block.sum(axis=1) for block in resamples.blocks()]
    low, high = np.percentile(np.concatenate(means), INTERVAL)
    return float(low), float(high)


def median_interval(values: np.ndarray, resamples: Resamples) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of a median. values: float (N,)."""
    order = np.argsort(values, kind="stable")
    ordered, medians = np.asarray(values, float)[order], []
    for block in resamples.blocks():
        upto = np.cumsum(block.take(order, axis=1), axis=1)
        half = upto[:, -1:] / 2
        medians.append((ordered[(upto >= half).argmax(axis=1)] + ordered[(upto > half).argmax(axis=1)]) / 2)
    low, high = np.percentile(np.concatenate(medians), INTERVAL)
    return float(low), float(high)


def sums(of_people: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Sum over the people of each resample. float (P, M), a row for each person -> float (RESAMPLES, M)."""
    rows = max(1, BLOCK // len(of_people))
    starts = range(0, len(resamples.times), rows)
    return np.concatenate([resamples.times[start : start + rows].astype(of_people.dtype) @ of_people for start in starts])


def limits(resampled: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a figure, by its values in the resamples: float (RESAMPLES,)."""
    low, high = np.percentile(resampled, INTERVAL)
    return float(low), float(high)
