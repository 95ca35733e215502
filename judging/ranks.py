"""How well voices find their faces: ranks, recall, how sure the figures are, and the search of galleries of any size.

N voices look for their N faces: face i is that of voice i, D is the number of numbers in a feature. Several clips may be of one
video: then a voice has found its face when any face of its video is retrieved, and the other videos' faces are those to beat.

Never imports TensorFlow.
"""

import dataclasses

import numpy as np

from utils import InputError, normalise

TIE = 1e-6  # similarities that differ by less are equal: the rounding of float32 products
BLOCK = 2**24  # similarities in memory at a time
ALIKE = 0.1  # share of the other faces, those nearest to the true one, that are alike


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
