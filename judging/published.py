"""The figures that the paper, the slides and other papers report, to set beside our own."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Association:
    """What a paper reports of the association of voices and faces; shares in %, None where it reports none."""

    paper: str
    task: str  # "voice to face" or "face to voice"; "verification" where the pairs have no direction
    restriction: str  # "all", or as in `labels.restrictions`
    data: str  # data set
    split: str | None  # as runs name theirs; None for one that is no run's
    people: int | None  # test people
    auc: float | None = None
    eer: float | None = None
    matching: dict[int, float] = dataclasses.field(default_factory=dict)  # 1:N, by N
    mean_precision: float | None = None  # mean average precision
    gallery: int | None = None  # faces, or voices, on which the mean average precision depends


# VoxCeleb1's people by the first letter of their names: F to Z train, C to E test; 189 test people have voices and faces.
BY_NAME = "voxceleb1-names"
LEAST_PEOPLE = 0.95  # share of a protocol's test people that a part must have for a figure to stand beside ours
GALLERY_FACTOR = 2  # mean average precision, which depends on the gallery, only beside one at most so many times another size

# 1:2 matching, AUC and mAP of each paper's own lists of pairs.
_SHAPE = "Wen et al. 2021"  # "Seeking the Shape of Sound", CVPR 2021. Source: github.com/KID-7391/seeking-the-shape-of-sound
_ARCHETYPE = "MM 2023"  # "Taking a Part for the Whole", ACM MM 2023, archetype-agnostic framework.
# Source: github.com/starxliu/ACM-MM2023-Voice-Face-Association. The split and the galleries of its AVSpeech are not told there.
_FAME = "MAV-Celeb"  # each figure the mean of four EERs: trained and tested in either language
_VOX, _AVSPEECH = "VoxCeleb1, VGGFace", "AVSpeech"
ASSOCIATION = (
    # "Disjoint Mapping Network", ICLR 2019, arXiv 1807.04836: in whole per cent.
    Association("DIMNet 2019", "voice to face", "all", _VOX, BY_NAME, 189, None, None, {2: 84.0}),
    Association(_SHAPE, "voice to face", "all", _VOX, BY_NAME, 189, 87.2, None, {2: 87.2}, 5.5, 20_076),
    Association(_SHAPE, "face to voice", "all", _VOX, BY_NAME, 189, 87.0, None, {2: 86.5}, 5.8, 21_850),
    Association(_SHAPE, "voice to face", "equal sex", _VOX, BY_NAME, 189, 77.5, None, {2: 77.7}),
    Association(_SHAPE, "face to voice", "equal sex", _VOX, BY_NAME, 189, 76.1, None, {2: 75.3}),
    Association(_ARCHETYPE, "voice to face", "all", _VOX, BY_NAME, 189, 88.42, None, {2: 87.87}, 6.77),
    Association(_ARCHETYPE, "face to voice", "all", _VOX, BY_NAME, 189, 89.02, None, {2: 88.63}, 7.16),
    Association(_ARCHETYPE, "voice to face", "equal sex", _VOX, BY_NAME, 189, 79.17, None, {2: 78.90}),
    Association(_ARCHETYPE, "face to voice", "equal sex", _VOX, BY_NAME, 189, 78.95, None, {2: 78.58}),
    Association(_ARCHETYPE, "voice to face", "all", _AVSPEECH, None, None, 80.69, None, {2: 80.29}, 11.80),
    Association(_ARCHETYPE, "face to voice", "all", _AVSPEECH, None, None, 81.16, None, {2: 79.98}, 13.43),
    Association(_ARCHETYPE, "voice to face", "equal sex", _AVSPEECH, None, None, 68.63, None, {2: 68.78}),
    Association(_ARCHETYPE, "face to voice", "equal sex", _AVSPEECH, None, None, 69.05, None, {2: 67.81}),
    # PAEFF, arXiv 2505.17002, by PINs's lists of pairs: 250 people of random names.
    Association("PAEFF 2025", "verification", "all", "VoxCeleb1", None, 250, 84.4, 22.9),
    # The first place: "Shared Multi-modal Embedding Space for Face-Voice Association", arXiv 2512.04814. FOP, the challenge's
    # baseline, with English and Urdu, and with English and German: github.com/mavceleb/mavceleb_baseline, November 2025.
    Association("FAME 2026, first place", "verification", "all", _FAME, None, None, None, 23.99),
    Association("FOP, FAME 2026", "verification", "all", f"{_FAME} v1", None, 6, None, 33.4),
    Association("FOP, FAME 2026", "verification", "all", f"{_FAME} v3", None, 8, None, 41.5),
)


def association_beside(
    split: str | None, part: str, people: int, task: str, restriction: str, gallery: int
) -> list[Association]:
    """Return the published figures that may stand beside ours: those of the same people, known by the name of the split.

    Args:
        split: name of the run's split; None for one without a name.
        part: of the split, "train", "val" or "test".
        people: number of people in the part.
        task, restriction: as of `Association`.
        gallery: clips in the part, on which the mean average precision depends.
    """
    found = []
    for figures in ASSOCIATION:
        same = (figures.split, figures.task, figures.restriction) == (split, task, restriction)
        if part != "test" or split is None or not same or not LEAST_PEOPLE * figures.people <= people <= figures.people:
            continue
        size = figures.gallery
        if size is None or not size / GALLERY_FACTOR <= gallery <= size * GALLERY_FACTOR:
            figures = dataclasses.replace(figures, mean_precision=None)
        found.append(figures)
    return found


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
