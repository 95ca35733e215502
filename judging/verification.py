"""Verification: is this the face of this voice? AUC and EER over pairs of a voice and a face.

A pair is positive if both are of one person, else negative. Its score is the similarity, a cosine, counted in levels of
ranks.TIE: smaller differences are equal, for float32 products are rounded. Few levels are possible, so pairs are counted rather
than sorted: memory does not grow with their number.
"""

import numpy as np

from judging.comparisons import similarities
from judging.intervals import Resamples, limits, sums
from judging.ranks import TIE

N_LEVELS = 1 + round(2 / TIE)  # from similarity -1 to 1
GRID = 500  # quantiles of the positive and of the negative pairs: the thresholds by which intervals are computed


def levels_of(scores: np.ndarray) -> np.ndarray:
    """Return the level of each similarity, in [0, N_LEVELS): float32 in [-1, 1] -> int32."""
    levels = np.rint((scores + 1) * np.float32(1 / TIE))
    return np.clip(levels, 0, N_LEVELS - 1).astype(np.int32)


def counts_of(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Count pairs by level.

    Args:
        scores: float32, any shape, similarities.
        same: bool, of this shape: which pairs are positive.

    Returns:
        int64 (2, N_LEVELS): the negative pairs, and the positive ones.
    """
    counts = np.zeros((2, N_LEVELS), np.int64)
    _count(counts, levels_of(scores), same)
    return counts


def _count(counts: np.ndarray, levels: np.ndarray, same: np.ndarray) -> None:
    positive = levels[same]
    np.add.at(counts[0], levels.ravel(), 1)
    np.subtract.at(counts[0], positive, 1)
    np.add.at(counts[1], positive, 1)


def area_under_curve(counts: np.ndarray) -> np.ndarray:
    """Return the AUC: how often a positive pair is more similar than a negative one; ties count half.

    Args:
        counts: (..., 2, L), negative and positive pairs on each of L levels, from the least similar.

    Returns:
        float (...), in [0, 1]; chance is 0.5.
    """
    negatives, positives = np.moveaxis(np.asarray(counts, float), -2, 0)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return (positives * below).sum(axis=-1) / (positives.sum(axis=-1) * negatives.sum(axis=-1))


def equal_error_rate(counts: np.ndarray) -> np.ndarray:
    """Return the EER: where as large a share of the negative pairs is accepted as of the positive ones is rejected.

    Between two thresholds the ROC curve is a straight line.

    Args:
        counts: as of `area_under_curve`.

    Returns:
        float (...), in [0, 1]; 0 is perfect, chance is 0.5.
    """
    counts = np.asarray(counts, float)
    accepted = np.cumsum(counts[..., ::-1], axis=-1) / counts.sum(axis=-1, keepdims=True)
    accepted = np.concatenate([np.zeros((*accepted.shape[:-1], 1)), accepted], axis=-1)  # a threshold that accepts none
    false_acceptance, false_rejection = accepted[..., 0, :], 1 - accepted[..., 1, :]
    excess = false_acceptance - false_rejection  # grows from -1 to 1
    after = np.maximum(1, (excess >= 0).argmax(axis=-1))[..., None]
    low, high = (np.take_along_axis(excess, at, axis=-1) for at in (after - 1, after))
    start, end = (np.take_along_axis(false_acceptance, at, axis=-1) for at in (after - 1, after))
    return (start + (end - start) * -low / (high - low))[..., 0]


def figures_of(counts: np.ndarray) -> dict:
    """Return the numbers of `positives` and `negatives`, `auc` and `eer`. counts: of `counts_of`."""
    counts = counts[:, counts.any(axis=0)]  # most levels have no pair
    negatives, positives = counts.sum(axis=1).tolist()
    auc, eer = float(area_under_curve(counts)), float(equal_error_rate(counts))
    return {"positives": positives, "negatives": negatives, "auc": auc, "eer": eer}


def verify(voices: np.ndarray, faces: np.ndarray, person: np.ndarray, groups, resamples: Resamples | None) -> dict:
    """Verify all pairs of a voice and a face of each group; the pairs of all groups are judged together.

    Args:
        voices, faces, person, groups: of `comparisons.similarities`.
        resamples: of the clips, for intervals; None for none.

    Returns:
        What `figures_of` returns, and `auc_interval` and `eer_interval`: bootstrap over the people of the voices, with the
        faces as they are.
    """
    counts = np.zeros((2, N_LEVELS), np.int64)
    for _, _, scores, same in similarities(voices, faces, person, groups):
        _count(counts, levels_of(scores), same)
    row = {**figures_of(counts), "auc_interval": None, "eer_interval": None}
    if resamples is not None:
        of_people = _counts_of_people(voices, faces, person, groups, _grid(counts))
        resampled = np.stack([sums(of_kind, resamples) for of_kind in of_people], axis=1)
        row |= {"auc_interval": limits(area_under_curve(resampled)), "eer_interval": limits(equal_error_rate(resampled))}
    return row


def _grid(counts: np.ndarray) -> np.ndarray:
    """Divide the levels into bins, at quantiles of both kinds of pairs: int32 (N_LEVELS,), the bin of each level."""
    upto = np.cumsum(counts, axis=1)
    edges = [np.searchsorted(of, np.linspace(0, of[-1], GRID + 1)) for of in upto]
    return np.searchsorted(np.unique(edges), np.arange(N_LEVELS)).astype(np.int32)


def _counts_of_people(voices, faces, person, groups, bin_of_level) -> np.ndarray:
    """Count each person's pairs by bin: float32 (2, P, bins), negative and positive ones of the person's voices."""
    shape = 2, person.max() + 1, bin_of_level.max() + 1
    counts = np.zeros(np.prod(shape), np.int32)
    for numbers, _, scores, same in similarities(voices, faces, person, groups):
        cells = same.astype(int), person[numbers, None], bin_of_level[levels_of(scores)]
        np.add.at(counts, np.ravel_multi_index(cells, shape), 1)
    return counts.reshape(shape).astype(np.float32)
