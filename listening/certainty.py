"""How sure a prediction is: whether a recording's parts agree, how unusual the voice is, how often such voices are right.

The first two are measured on embeddings, what the last layer of the voice encoder takes, of halves of 6 s windows. The third is
a calibrated number: the expected 1:2 matching, how often the true face is more similar to the prediction than another person's
face is. It is fitted to predictions for people that the encoder was not trained on.

N is the number of clips, M that of halves of windows in a recording, E the size of an embedding, R the number of axes and D the
size of a face feature.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from utils import InputError, normalise, replacing

MOST_AXES = 64  # principal axes of embeddings, at most
FOLDS = 5  # each clip is measured by axes that were fitted to the other folds
PENALTY = 3.0  # of the logistic regression's slopes, in clips
ROUNDS = 20  # of its solution
FALSE_ALARMS = 0.01  # share of clips of one speaker whose halves agree less than those of two speakers do
LEAST_SHARE = 1 / 6  # of a recording's halves, that a second speaker must have to be told
FEW = 0.02  # share of training voices whose halves agree less, below which the parts of a recording do not agree well
USUAL, MANY = 0.8, 0.98  # shares of training voices that are less far, up to which a voice is usual, and beyond which unusual


@dataclasses.dataclass(frozen=True)
class Certainty:
    """How sure a prediction from a recording is."""

    matching: float  # expected 1:2 matching, 0 to 1; 0.5 is chance
    agreement: float  # mean cosine between the speaker embeddings of the halves of windows, -1 to 1
    less_agreement: float  # share of training voices whose halves agree less, 0 to 1
    more_usual: float  # share of training voices that are less far from the mean voice, 0 to 1
    several_speakers: bool  # whether the halves seem to be of several speakers

    def words(self) -> list[str]:
        """Return what the numbers mean, in lines; the first one is the calibrated number."""
        unusual = self.more_usual > MANY
        lines = [
            "how sure: for voices like this, the true face is more similar than another person's in "
            f"{100 * self.matching:.0f} % of comparisons (guessing: 50 %)"
        ]
        if self.several_speakers:
            lines.append("the recording seems to hold several speakers, of whom the face is a mixture; cut out one of them")
        elif self.less_agreement < FEW:
            lines.append(
                f"the parts of the recording agree less than those of {100 * (1 - self.less_agreement):.0f} % of people"
            )
        else:
            lines.append(f"the parts of the recording agree, better than those of {100 * self.less_agreement:.0f} % of people")
        words = "unusual" if unusual else "usual" if self.more_usual < USUAL else "a little unusual"
        far = f"the voice is {words}, farther from the mean voice than those of {100 * self.more_usual:.0f} % of people"
        return [*lines, far + ("; in training there was hardly one like it, so take the face for less" if unusual else "")]


@dataclasses.dataclass(frozen=True)
class TrainingVoices:
    """What tells how sure a prediction is, from the voices of a run. `fit` makes one."""

    mean: np.ndarray  # float32 (E,), of embeddings
    axes: np.ndarray  # float32 (R, E), principal axes of embeddings, divided by the standard deviations along them
    distances: np.ndarray  # float32 (N,), of voices from the mean, sorted
    agreements: np.ndarray  # float32 (N,), between the halves of clips, sorted
    speaker: np.ndarray  # int64 (2,), first and last column, exclusive, of embeddings that tell speakers apart
    one_speaker: np.ndarray  # float32 (), the agreement below which two groups of halves are of two speakers
    ranges: np.ndarray  # float32 (3, 4), of each of the `_signs`: mean, standard deviation, least and largest
    weights: np.ndarray  # float32 (4,), of the logistic regression: constant, slopes for the signs

    def judge(self, halves: np.ndarray, length: float) -> Certainty:
        """Tell how sure a prediction is.

        Args:
            halves: float32 (M, E), embeddings of the halves of the recording's windows, M even.
            length: of the prediction as seen from the centre, before it became a direction.
        """
        distance = float(np.linalg.norm((halves.mean(axis=0) - self.mean) @ self.axes.T))
        of_speaker = halves[:, slice(*self.speaker)]
        agreement = _agreement(of_speaker)
        mean, deviation, least, largest = self.ranges.T
        signs = (_signs(distance, agreement, length).clip(least, largest) - mean) / deviation
        return Certainty(
            matching=float(_logistic(self.weights[0] + signs @ self.weights[1:])),
            agreement=agreement,
            less_agreement=float((self.agreements < agreement).mean()),
            more_usual=float((self.distances < distance).mean()),
            several_speakers=bool(_groups_agree(of_speaker) < self.one_speaker),
        )

    def save(self, path: Path) -> None:
        """Write to a file of numpy's, .npz."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **dataclasses.asdict(self))


def load(path: Path) -> TrainingVoices | None:
    """Read a file of `TrainingVoices.save`; None if there is none. Raises InputError if the file is broken."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return TrainingVoices(**{field.name: stored[field.name] for field in dataclasses.fields(TrainingVoices)})
    except FileNotFoundError:  # of a run of an earlier version
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected how sure voices are, found {error!r}; run train.py again") from error


def _signs(distance, agreement, length) -> np.ndarray:
    """Return what the expected matching depends on: (..., 3)."""
    return np.stack([np.log(np.maximum(distance, 1e-6)), agreement, np.log(np.maximum(length, 1e-6))], axis=-1)


def _logistic(values):
    return 1 / (1 + np.exp(-values))


def _agreement(halves: np.ndarray) -> float:
    """Return the mean cosine between all pairs of halves."""
    n, directions = len(halves), normalise(halves)
    return float((np.sum(directions.sum(axis=0) ** 2) - n) / (n * (n - 1)))


def _groups_agree(halves: np.ndarray) -> float:
    """Divide halves into two groups, as different as possible, and return the cosine between their means.

    A group of less than LEAST_SHARE is nobody's: then that is 1.
    """
    directions = normalise(halves)
    deviations = directions - directions.mean(axis=0)
    second = deviations @ np.linalg.svd(deviations, full_matrices=False)[2][0] > 0
    if not LEAST_SHARE <= second.mean() <= 1 - LEAST_SHARE:
        return 1.0
    first, second = normalise(np.stack([halves[~second].mean(axis=0), halves[second].mean(axis=0)]))
    return float(first @ second)


def _axes(halves: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the whitening principal axes of voices: (N, 2, E) -> (E,), (R, E)."""
    voices = halves.mean(axis=1)
    mean = voices.mean(axis=0)
    _, values, axes = np.linalg.svd(voices - mean, full_matrices=False)
    values, axes = values[:most], axes[:most]
    kept = values > 1e-5 * max(values.max(initial=0), 1e-12)
    return mean, axes[kept] / (values[kept, None] / np.sqrt(len(voices)))


def _regression(signs: np.ndarray, matching: np.ndarray) -> np.ndarray:
    """Fit a logistic regression with a ridge to shares, float (N,): the constant, and a slope for each of the signs, (N, 3)."""
    x = np.column_stack([np.ones(len(signs)), signs])
    weights, penalty = np.zeros(x.shape[1]), PENALTY * (np.arange(x.shape[1]) > 0)
    for _ in range(ROUNDS):  # of Newton's method
        share = _logistic(x @ weights)
        slope = x.T @ (share - matching) + penalty * weights
        curvature = (x * (share * (1 - share))[:, None]).T @ x + np.diag(penalty + 1e-6)
        weights = weights - np.linalg.solve(curvature, slope)
    return weights


def fit(halves: np.ndarray, lengths: np.ndarray, matching: np.ndarray, people: list[str], speaker=None) -> TrainingVoices:
    """Fit to voices.

    Args:
        halves: float32 (N, 2, E), embeddings of the halves of clips.
        lengths: float32 (N,), of predictions as seen from the centre, by an encoder that was not trained on the clips' people.
        matching: float (N,), the 1:2 matching of these predictions.
        people: N names; clips of one person are in one fold.
        speaker: of `model.speaker_columns`; None for all columns.
    """
    halves = halves.astype(np.float64)
    _, person = np.unique(people, return_inverse=True)
    fold = person % min(FOLDS, person.max() + 1)
    most = min(MOST_AXES, max(1, len(halves) // 4))
    distances, speaker = np.zeros(len(halves)), (0, halves.shape[-1]) if speaker is None else speaker
    for number in range(fold.max() + 1):
        chosen = fold == number
        mean, axes = _axes(halves[~chosen if fold.max() > 0 else chosen], most)
        distances[chosen] = np.linalg.norm((halves[chosen].mean(axis=1) - mean) @ axes.T, axis=-1)
    first, second = (normalise(halves[:, half, slice(*speaker)]) for half in (0, 1))
    agreements = np.einsum("ne,ne->n", first, second)
    signs = _signs(distances, agreements, lengths.astype(np.float64))
    ranges = np.stack([signs.mean(axis=0), signs.std(axis=0).clip(1e-6), signs.min(axis=0), signs.max(axis=0)], axis=1)
    weights = _regression((signs - ranges[:, 0]) / ranges[:, 1], matching)
    threshold = np.quantile(agreements, FALSE_ALARMS)
    fields = (*_axes(halves, most), np.sort(distances), np.sort(agreements), speaker, threshold, ranges, weights)
    kinds = {"speaker": np.int64}
    names = [field.name for field in dataclasses.fields(TrainingVoices)]
    return TrainingVoices(*(np.asarray(values, kinds.get(name, np.float32)) for name, values in zip(names, fields)))
