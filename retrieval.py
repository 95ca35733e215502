"""How well voices find their faces: ranks, recall, how sure the figures are, and the search of galleries of any size.

N voices look for their N faces: face i is that of voice i, D is the number of numbers in a feature. Several clips may be of one
video: then a voice has found its face when any face of its video is retrieved, and the other videos' faces are those to beat.

Never imports TensorFlow.
"""

import concurrent.futures
import dataclasses

import numpy as np

from utils import InputError

TIE = 1e-6  # similarities that differ by less are equal: the rounding of float32 products
BLOCK = 2**24  # similarities in memory at a time
ALIKE = 0.1  # share of the other faces, those nearest to the true one, that are alike
RESAMPLES = 2000  # of a bootstrap
INTERVAL = (2.5, 97.5)  # percentiles: 95 %

# The true faces' ranks among 5,000 faces for 100 queries drawn at random: the paper's own model, trained on 1.7 million pairs.
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


def normalise(features: np.ndarray) -> np.ndarray:
    """Scale each row to length 1. float (N, D) -> float (N, D); a row of zeros stays."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)


# ----------------------------------------------------------------------------------------------------------------------
# Ranks.


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Where the true faces stand. Each int64 (N,), a number a voice."""

    ranks: np.ndarray  # of the first face of the voice's video, 1 for the best
    better: np.ndarray  # faces of other videos that are at least as similar as the voice's own face
    better_alike: np.ndarray  # of them, those alike: among the ALIKE share of the other faces that are nearest to the true one
    others: np.ndarray  # faces of other videos
    alike: np.ndarray  # faces alike

    @property
    def gallery(self) -> int:
        """Number of faces, N."""
        return len(self.ranks)

    @property
    def matching(self) -> np.ndarray:
        """1:2 matching: how often the true face beats one of another video, float (N,), in [0, 1]; chance is 0.5."""
        return 1 - self.better / self.others

    @property
    def matching_alike(self) -> np.ndarray:
        """The same among faces alike, where sex, age and skin no longer tell: float (N,), in [0, 1]; chance is 0.5."""
        return 1 - self.better_alike / self.alike


def rank(voices: np.ndarray, faces: np.ndarray, videos=None) -> Ranking:
    """Rank, for each voice, the true face among all faces by cosine similarity (as the distance of normalised features does).

    Args:
        voices: float (N, D), features predicted from the voices; or (1, D), one prediction for all of them.
        faces: float (N, D), features of the faces.
        videos: N names, of the video of each; None if all differ.

    Returns:
        The ranking. Ties count against the model: another video's face that is as similar ranks before the true one.

    Raises:
        ValueError: if a feature is not finite, or all are of one video.
    """
    voices, faces = (normalise(np.asarray(features, np.float32)) for features in (voices, faces))
    voices = np.broadcast_to(voices, faces.shape)
    if not (np.isfinite(voices).all() and np.isfinite(faces).all()):
        raise ValueError("voices and faces: expected finite features, found nan or inf")
    n = len(faces)
    _, video = np.unique(np.arange(n) if videos is None else np.asarray(videos), return_inverse=True)
    others = n - np.bincount(video)[video]
    if not others.all():
        raise ValueError("videos: expected at least two, found one")
    alike = np.maximum(1, np.round(ALIKE * others)).astype(np.int64)
    ranks, better, better_alike = (np.empty(n, np.int64) for _ in range(3))
    rows = max(1, BLOCK // n)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        similarity = voices[block] @ faces.T  # (rows, N)
        own = video[block, None] == video  # (rows, N)
        true = np.einsum("nd,nd->n", voices[block], faces[block])
        best = np.where(own, similarity, -np.inf).max(axis=1)
        similarity[own] = -np.inf
        ranks[block] = 1 + np.count_nonzero(similarity >= best[:, None] - TIE, axis=1)
        beats = similarity >= true[:, None] - TIE
        better[block] = np.count_nonzero(beats, axis=1)
        nearness = faces[block] @ faces.T
        nearness[own] = -np.inf
        for number, row in enumerate(nearness, start):
            nearest = np.argpartition(-row, alike[number] - 1)[: alike[number]]
            better_alike[number] = np.count_nonzero(beats[number - start, nearest])
    return Ranking(ranks, better, better_alike, others, alike)


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Return R@k: the share of voices whose face is among the k most similar, in [0, 1]."""
    return float(np.mean(ranks <= k))


def chance_at_k(ranking: Ranking, k: int) -> float:
    """Return the R@k of guessing, in [0, 1]: k / N where each video has one clip."""
    from scipy.stats import hypergeom

    own = ranking.gallery - ranking.others
    return float(np.mean(hypergeom.sf(0, ranking.gallery, own, min(k, ranking.gallery))))  # of k faces drawn, any of the own


def recall_in_gallery(better, others, size: int, k: int) -> np.ndarray:
    """Return how likely each voice has its face among the first k of a gallery of `size` faces, drawn at random.

    The gallery holds the voice's own face and size - 1 of other videos: how many of those that beat it are among them follows
    the hypergeometric distribution, so that no gallery need be drawn.

    Args:
        better, others: of a `Ranking`, int (N,).
        size: of the gallery.
        k: length of the retrieved list.

    Returns:
        float (N,), in [0, 1].

    Raises:
        InputError: if there are too few faces.
    """
    from scipy.stats import hypergeom

    if size - 1 > np.min(others):
        raise InputError(f"--gallery: expected {np.min(others) + 1} at most, the faces that there are, found {size}")
    return hypergeom.cdf(k - 1, others, better, size - 1)


def paper_recall(size: int, k: int) -> tuple[float, float, float]:
    """Return the R@k that the paper's own model would reach in a gallery of `size` faces, and its 95 % interval, in [0, 1].

    Raises:
        InputError: if size is more than PAPER_GALLERY.
    """
    better = np.array(PAPER_RANKS) - 1
    found = recall_in_gallery(better, np.full(len(better), PAPER_GALLERY - 1), size, k)
    return (float(found.mean()), *mean_interval(found, np.arange(len(found))))


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


# ----------------------------------------------------------------------------------------------------------------------
# Similarity, and search.


def feature_similarity(voices: np.ndarray, faces: np.ndarray) -> dict[str, float]:
    """Compare what was heard with the true faces' features, as the paper's table of feature similarity does.

    Args:
        voices, faces: float (N, D).

    Returns:
        Means over the clips of `degrees`, the angle between the two features; `l1` and `l2`, the sum of absolute differences
        and the Euclidean distance of the two, both scaled to length 1.
    """
    voices, faces = normalise(voices), normalise(faces)
    cosines = np.clip(np.einsum("nd,nd->n", voices, faces), -1, 1)
    return {
        "degrees": float(np.degrees(np.arccos(cosines)).mean()),
        "l1": float(np.abs(voices - faces).sum(axis=1).mean()),
        "l2": float(np.linalg.norm(voices - faces, axis=1).mean()),
    }


def most_similar(voices: np.ndarray, faces, k: int, rows: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """Find the k faces most similar to each voice, by cosine. Exact.

    The faces are read in blocks, the next one while the present one is compared, so that a gallery may be larger than the
    memory. No whole row is sorted: only what beats the k-th best so far is looked at.

    Args:
        voices: float (Q, D).
        faces: float (M, D), anything that gives arrays for slices, such as numpy.memmap.
        k: faces wanted, M at most.
        rows: faces in a block.

    Returns:
        int64 (Q, k), numbers of faces, the most similar first; of equal ones the first in the gallery comes first. And
        float32 (Q, k), their cosines.
    """
    voices = normalise(np.asarray(voices, np.float32))
    best = np.full((len(voices), k), -np.inf, np.float32)
    found = np.full((len(voices), k), -1, np.int64)

    def read(start):
        block = np.asarray(faces[start : start + rows], np.float32)
        return block, np.sqrt(np.einsum("nd,nd->n", block, block))

    starts = range(0, len(faces), rows)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, 0)
        for start in starts:
            block, lengths = coming.result()
            if start + rows < len(faces):
                coming = reader.submit(read, start + rows)
            similarity = voices @ block.T
            similarity /= np.maximum(lengths, np.finfo(np.float32).tiny)
            if start == 0:  # the first k are a beginning
                first = min(k, len(block))
                found[:, :first] = np.argpartition(-similarity, first - 1, axis=1)[:, :first]
                found[:, :first].sort(axis=1)
                best[:, :first] = np.take_along_axis(similarity, found[:, :first], axis=1)
                if first == k:
                    continue
                similarity[np.arange(len(voices))[:, None], found[:, :first]] = -np.inf
            voice, face = np.nonzero(similarity > best.min(axis=1, keepdims=True))
            if len(voice) == 0:
                continue
            place = np.arange(len(voice)) - np.searchsorted(voice, voice)  # among the candidates of the same voice
            shape = (len(voices), place.max() + 1)
            scores, numbers = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
            scores[voice, place], numbers[voice, place] = similarity[voice, face], start + face
            scores, numbers = np.concatenate([best, scores], axis=1), np.concatenate([found, numbers], axis=1)
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            best, found = (np.take_along_axis(array, kept, axis=1) for array in (scores, numbers))
    order = np.lexsort((found, -best), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(best, order, axis=1)
