"""How sure figures are: bootstrap intervals."""

import numpy as np

RESAMPLES = 2000  # of a bootstrap
INTERVAL = (2.5, 97.5)  # percentiles: 95 %


# ----------------------------------------------------------------------------------------------------------------------
# How sure the figures are: bootstrap over videos (a video's clips come together), the gallery staying as it is.


def _resamples(videos) -> np.ndarray:
    """Return how often each clip is in each resample, int (RESAMPLES, N): videos drawn with replacement."""
    names, video = np.unique(np.asarray(videos), return_inverse=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return drawn.astype(np.int16)[:, video]


def mean_interval(values: np.ndarray, videos) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of a mean. float (N,), and the N clips' videos."""
    times = _resamples(videos)
    low, high = np.percentile(times @ np.asarray(values, float) / times.sum(axis=1), INTERVAL)
    return float(low), float(high)


def median_interval(values: np.ndarray, videos) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of a median. float (N,), and the N clips' videos."""
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(_resamples(videos)[:, order], axis=1, dtype=np.int64)
    half = upto[:, -1:] / 2
    ordered = np.asarray(values, float)[order]
    medians = (ordered[(upto >= half).argmax(axis=1)] + ordered[(upto > half).argmax(axis=1)]) / 2
    low, high = np.percentile(medians, INTERVAL)
    return float(low), float(high)
