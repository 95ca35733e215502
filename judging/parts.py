"""One part of the split under judgement: its predictions, their ranking, and the figures that metrics.json holds of it."""

import dataclasses

import numpy as np

import utils
from judging import intervals
from judging.intervals import Resamples, mean_interval, median_interval
from judging.ranks import Ranking, chance_at_k, feature_similarity, rank, recall_at_k, recall_in_gallery

PART_NAMES = {"train": "Train", "val": "Val", "test": "Test"}
SHORT_SECONDS = 3.0  # s; feature similarity is reported for these and for whole clips, as in the paper


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the split. N clips, D numbers in a feature."""

    clips: list[str]
    voices: np.ndarray  # float32 (N, D), predicted from whole clips
    short: np.ndarray  # float32 (N, D), predicted from the first SHORT_SECONDS
    faces: np.ndarray  # float32 (N, D), features of the true faces, the gallery
    ranking: Ranking  # as seen from the run's centre
    resamples: Resamples  # of the clips, for all intervals

    @property
    def people(self) -> list[str]:
        return [utils.person_of(clip) for clip in self.clips]

    @property
    def has_intervals(self) -> bool:
        """Whether there are enough people for an interval."""
        return self.resamples.times.shape[1] >= intervals.LEAST_PEOPLE

    def mean_interval(self, values: np.ndarray) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean of values, float (N,); None for too few people."""
        return mean_interval(values, self.resamples) if self.has_intervals else None

    def median_interval(self, values: np.ndarray) -> tuple[float, float] | None:
        """Return the 95 % interval of the median of values, float (N,); None for too few people."""
        return median_interval(values, self.resamples) if self.has_intervals else None


def part_of(clips: list[str], voices: np.ndarray, short: np.ndarray, faces: np.ndarray, centre: np.ndarray) -> Part:
    """Rank the predictions of a part; see `Part`. centre: float32 (D,), from which the run sees the features."""
    people = [utils.person_of(clip) for clip in clips]
    return Part(clips, voices, short, faces, rank(voices - centre, faces - centre, people), intervals.resample(people))


def score(part: Part, centre: np.ndarray, mean_face: np.ndarray, ks, gallery: int | None) -> dict:
    """Score one part of the split.

    Args:
        part: the part.
        centre: float32 (D,), from which the run sees the features: similar features lie in the same direction from there.
        mean_face: float32 (D,), the mean feature of the training faces: the prediction of a network that ignores the voice.
        ks: lengths of the retrieved list.
        gallery: size of the smaller galleries for which recall is reported as well, or None.

    Returns:
        The part's entry in metrics.json; shares in [0, 1]; an interval is None where there are too few people for one.
    """
    ranking, ranks = part.ranking, part.ranking.ranks
    baseline = rank(mean_face[None], part.faces, part.people)
    row = {
        "gallery": ranking.gallery,
        "people": len(set(part.people)),
        "recall": {k: recall_at_k(ranks, k) for k in ks},
        "recall_interval": {k: part.mean_interval(ranks <= k) for k in ks},
        "chance": {k: chance_at_k(ranking, k) for k in ks},
        "mean_face": {k: recall_at_k(baseline.ranks, k) for k in ks},
        "median_rank": float(np.median(ranks)),
        "median_rank_interval": part.median_interval(ranks),
        "mean_face_median_rank": float(np.median(baseline.ranks)),
    }
    for name, beaten in (("matching", ranking.matching), ("matching_alike", ranking.matching_alike)):
        row |= {name: float(beaten.mean()), f"{name}_interval": part.mean_interval(beaten)}
    if gallery:
        found = {k: recall_in_gallery(ranking.better, ranking.others, gallery, k) for k in ks}
        row["fixed_gallery"] = {
            "gallery": gallery,
            "recall": {k: float(found[k].mean()) for k in ks},
            "recall_interval": {k: part.mean_interval(found[k]) for k in ks},
            "chance": {k: min(k, gallery) / gallery for k in ks},
        }
    row["similarity"] = {
        name: {
            **feature_similarity(voices, part.faces),
            "degrees_from_centre": feature_similarity(voices - centre, part.faces - centre)["degrees"],
        }
        for name, voices in (("6 s", part.voices), ("3 s", part.short))
    }
    guesses = np.broadcast_to(mean_face, part.faces.shape)
    row["similarity"]["mean face"] = feature_similarity(guesses, part.faces)
    return row
