"""Retrieval ranks and recall: at which place the true face stands in a gallery ordered by similarity to the voice.

There are N voices and N faces: face i belongs to voice i. D is the size of a feature. Several clips may be of one person:
then any face of that person counts as found, and only the faces of other people compete with it.
"""

import dataclasses

import numpy as np
from scipy.stats import hypergeom

from utils import InputError, normalise

TIE = 1e-6  # similarities that differ by less are equal: float32 products are rounded
BLOCK = 2**24  # similarities in memory at a time
ALIKE = 0.1  # share of the other faces, the nearest to the true one, that count as alike


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Where the true faces stand. Each int64 (N,), a number for each voice."""

    ranks: np.ndarray  # rank of the speaker's best face, 1 at the top
    better: np.ndarray  # number of faces of other people that are at least as similar as the voice's own face
    better_alike: np.ndarray  # the number of these among the alike ones: the ALIKE share of the others nearest to the true face
    others: np.ndarray  # number of faces of other people
    alike: np.ndarray  # number of alike faces

    @property
    def gallery(self) -> int:
        """Number of faces, N."""
        return len(self.ranks)

    @property
    def matching(self) -> np.ndarray:
        """1:2 matching: how often the true face beats one face of another person, float (N,), in [0, 1]; chance is 0.5."""
        return 1 - self.better / self.others

    @property
    def matching_alike(self) -> np.ndarray:
        """The same among alike faces, of mostly the same sex, age and skin: float (N,), in [0, 1]; chance is 0.5."""
        return 1 - self.better_alike / self.alike


def rank(voices: np.ndarray, faces: np.ndarray, people=None) -> Ranking:
    """Rank the true face of each voice among all faces by cosine similarity, or, equally, by distance of normalised features.

    Args:
        voices: float (N, D), features predicted from the voices; or (1, D), one prediction for all of them.
        faces: float (N, D), features of the faces.
        people: N names, the person of each clip; None if all differ.

    Returns:
        The ranking. Ties count against the model: an equally similar face of another person ranks before the true one.

    Raises:
        ValueError: if a feature is not finite, or all clips are of one person.
    """
    voices, faces = (normalise(np.asarray(features, np.float32)) for features in (voices, faces))
    voices = np.broadcast_to(voices, faces.shape)
    if not (np.isfinite(voices).all() and np.isfinite(faces).all()):
        raise ValueError("voices and faces: expected finite features, found nan or inf")
    n = len(faces)
    _, person = np.unique(np.arange(n) if people is None else np.asarray(people), return_inverse=True)
    others = n - np.bincount(person)[person]
    if not others.all():
        raise ValueError("people: expected at least two, found one")
    alike = np.maximum(1, np.round(ALIKE * others)).astype(np.int64)
    ranks, better, better_alike = (np.empty(n, np.int64) for _ in range(3))
    rows = max(1, BLOCK // n)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        similarity = voices[block] @ faces.T  # (rows, N)
        own = person[block, None] == person  # (rows, N)
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
    """Return the R@k of guessing, in [0, 1]: k / N where each person has one clip."""
    own = ranking.gallery - ranking.others
    any_own = hypergeom.sf(0, ranking.gallery, own, min(k, ranking.gallery))  # that k sampled faces include one of the own
    return float(np.mean(any_own))


def recall_in_gallery(better, others, size: int, k: int) -> np.ndarray:
    """Return the probability that a voice finds its face among the first k in a random gallery of `size` faces.

    The gallery holds the voice's own face and size - 1 sampled faces of other people. The number of sampled faces that beat the
    own one follows the hypergeometric distribution, so no gallery needs to be sampled.

    Args:
        better, others: int (N,), of a `Ranking`.
        size: number of faces in the gallery.
        k: length of the retrieved list.

    Returns:
        float (N,), in [0, 1].

    Raises:
        InputError: if there are too few faces.
    """
    if size - 1 > np.min(others):
        raise InputError(f"--gallery: expected at most {np.min(others) + 1}, the number of faces, found {size}")
    return hypergeom.cdf(k - 1, others, better, size - 1)


def feature_similarity(voices: np.ndarray, faces: np.ndarray) -> dict[str, float]:
    """Compare predicted features with the true ones, as the paper's table of feature similarity does.

    Args:
        voices, faces: float (N, D).

    Returns:
        Means over the clips: `degrees`, the angle between the two features; `l1` and `l2`, the sum of absolute differences and
        the Euclidean distance after both are scaled to length 1.
    """
    voices, faces = normalise(voices), normalise(faces)
    cosines = np.clip(np.einsum("nd,nd->n", voices, faces), -1, 1)
    return {
        "degrees": float(np.degrees(np.arccos(cosines)).mean()),
        "l1": float(np.abs(voices - faces).sum(axis=1).mean()),
        "l2": float(np.linalg.norm(voices - faces, axis=1).mean()),
    }
