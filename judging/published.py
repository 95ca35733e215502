"""The figures that the paper and the slides report, to set beside our own."""

import functools

import numpy as np

from judging.intervals import mean_interval, resample
from judging.ranks import recall_in_gallery

# The ranks of the true faces among 5,000 for 100 random queries, by the paper's own model, trained on 1.7 million pairs.
# Source: "Additional 100 randomly-sampled S2F-based retrieval results", speech2face.github.io/supplemental/retrieve.
PAPER_GALLERY = 5000
_RANKS = """
    140 952 1234 140 2513 44 1373 2898 2116 421 4849 527 1726 1212 1213 271 313 2 274 1511 215 121 4438 130 511 873 17 6 782
    98 1249 708 559 11 1872 361 1017 108 2404 324 234 1506 611 1666 847 166 1219 447 109 730 65 444 11 166 138 1702 2383 382
    590 1846 2496 200 364 23 1133 660 504 194 3323 324 283 3781 541 202 2725 26 395 140 2123 1074 741 639 48 658 2903 166
    2012 1821 238 2302 137 1192 257 566 283 14 584 881 93 1025
"""
PAPER_RANKS = tuple(map(int, _RANKS.split()))

# The slides' retrieval table: gallery and recall in %. Source: slides, "Results".
SLIDES = {
    "train": (4800, {1: 45, 5: 52, 10: 55, 25: 58, 50: 62, 75: 64, 100: 66}),
    "test": (600, {1: 51, 5: 61, 10: 66, 25: 70, 50: 75, 75: 77, 100: 81}),
}

# Pearson's correlations of craniofacial measures between faces decoded from voices and from the true faces' features, over
# 1,000 test images, all with p < 0.001 but the baseline. Source: speech2face.github.io/supplemental, figure 5.
PAPER_CRANIOFACIAL = {
    "upper lip height": 0.16,
    "lateral upper lip heights": 0.26,
    "jaw width": 0.11,
    "nose height": 0.14,
    "nose width": 0.35,
    "labio-oral region": 0.17,
    "mandibular index": 0.20,
    "intercanthal index": 0.21,
    "nasal index": 0.38,
    "vermilion height index": 0.29,
    "mouth-face width index": 0.20,
    "nose area": 0.28,
    "random baseline": 0.02,
}


@functools.cache
def _resamples():
    return resample(range(len(PAPER_RANKS)))


def paper_recall(size: int, k: int) -> tuple[float, float, float]:
    """Return the R@k that the paper's own model would reach in a gallery of `size` faces, and its 95 % interval, in [0, 1].

    Raises:
        InputError: if size is more than PAPER_GALLERY.
    """
    better = np.array(PAPER_RANKS) - 1
    found = recall_in_gallery(better, np.full(len(better), PAPER_GALLERY - 1), size, k)
    return (float(found.mean()), *mean_interval(found, _resamples()))


def paper_median_rank(size: int) -> float:
    """Return the median rank of the paper's own model, scaled from PAPER_GALLERY to a gallery of `size` faces."""
    return 1 + (float(np.median(PAPER_RANKS)) - 1) * (size - 1) / (PAPER_GALLERY - 1)
