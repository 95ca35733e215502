"""The head of the speaker encoder, fitted in closed form: from speaker embedding to face feature, by ridge regression.

E is the size of an embedding, D that of a face feature.
"""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

import model
import utils
from judging.ranks import rank
from training.batches import predict_features

PENALTIES = 10.0 ** np.arange(-2, 3.5, 0.5)  # of the ridge, in mean variances of the embedding's numbers
TARGET_PENALTY = 1.0  # of the whitening, in mean variances of the face feature's numbers
FIT_CLIPS = 4096  # clips whose embeddings are in memory at a time
FEW_PEOPLE = 200  # validation people below which cross-validation chooses the penalty
TIE = 1e-9  # scores that differ by less are equal: their sums are rounded


@dataclasses.dataclass
class Moments:
    """Sums over clips, all that the regression needs."""

    n: int
    x: np.ndarray  # float64 (E,), sum of the embeddings
    y: np.ndarray  # float64 (D,), sum of the face features
    xx: np.ndarray  # float64 (E, E), sum of the products; the same for xy and yy
    xy: np.ndarray  # float64 (E, D)
    yy: np.ndarray  # float64 (D, D)

    @classmethod
    def zero(cls, embedding_size: int, feature_size: int) -> "Moments":
        """Return the sums over no clips."""
        e, d = embedding_size, feature_size
        return cls(0, np.zeros(e), np.zeros(d), np.zeros((e, e)), np.zeros((e, d)), np.zeros((d, d)))

    def __add__(self, other: "Moments") -> "Moments":
        """Return the sums over the clips of both."""
        return Moments(*(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self)))

    def covariances(self) -> tuple[np.ndarray, ...]:
        """Return the means of embeddings and face features, and the covariances of xx, xy and yy."""
        mean_x, mean_y = self.x / self.n, self.y / self.n
        pairs = (self.xx, mean_x, mean_x), (self.xy, mean_x, mean_y), (self.yy, mean_y, mean_y)
        return mean_x, mean_y, *(products / self.n - np.outer(a, b) for products, a, b in pairs)

    def add(self, embeddings: np.ndarray, faces: np.ndarray) -> None:
        """Add clips: embeddings, float (n, E), and face features, float (n, D)."""
        x, y = np.asarray(embeddings, np.float64), np.asarray(faces, np.float64)
        self.n += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.T @ y


class _Spectrum:
    """The principal axes of a covariance, from which its powers follow."""

    def __init__(self, covariance: np.ndarray):
        variances, self.axes = np.linalg.eigh(covariance)
        self.variances = np.maximum(variances, 0)
        self.mean = max(self.variances.mean(), np.finfo(np.float32).tiny)

    def power(self, penalty: float, exponent: float) -> np.ndarray:
        """Return a power of the covariance, its variances raised by `penalty` times their mean."""
        return (self.axes * (self.variances + penalty * self.mean) ** exponent) @ self.axes.T


def heads(moments: Moments, penalties, whitening: float):
    """Solve the ridge regression of face features on embeddings for several penalties.

    Whitening lets the regression use small differences between faces. A face feature varies much in a few directions, but its
    other directions tell people apart too. The targets are multiplied by the power -whitening / 2 of their covariance, and so
    is the prediction: cosines to the original face features then count every direction as the regression did.

    Args:
        moments: sums over the training clips.
        penalties: of the ridge, in mean variances of the embedding's numbers.
        whitening: 0 for plain ridge regression, 1 for full whitening.

    Yields:
        For each penalty, kernel float32 (E, D) and bias float32 (D,): face feature = embedding @ kernel + bias. The kernel has
        the length that fits the training faces best.
    """
    mean_x, mean_y, xx, xy, yy = moments.covariances()
    targets = xy @ _Spectrum(yy).power(TARGET_PENALTY, -whitening) if whitening else xy
    spectrum = _Spectrum(xx)
    for penalty in penalties:
        kernel = spectrum.power(penalty, -1) @ targets
        kernel *= _best_length(kernel, xx, xy)
        yield kernel.astype(np.float32), (mean_y - mean_x @ kernel).astype(np.float32)


def _best_length(kernel: np.ndarray, xx: np.ndarray, xy: np.ndarray) -> float:
    """Return the factor of a kernel that fits the face features best."""
    return np.sum(kernel * xy) / max(np.sum((xx @ kernel) * kernel), np.finfo(np.float32).tiny)


def left_out(moments: Moments, embeddings: np.ndarray, faces: np.ndarray, people, penalties, whitening: float):
    """Predict clips by the heads that would be fitted without the speaker's clips, for several penalties.

    The hat matrix gives these predictions without fitting a head for each person. Means, whitening and length of the kernel are
    those of all clips.

    Args:
        moments: sums over all clips; among them, the speakers of the clips to predict have no other clips.
        embeddings: of the clips to predict, float (n, E).
        faces: their face features, float (n, D).
        people: n names, the person of each clip.
        penalties, whitening: of `heads`.

    Yields:
        For each penalty, the predicted face features, float32 (n, D).

    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", 2nd edition, 2009, section 7.10.1, for
    several clips instead of one.
    """
    n = moments.n
    mean_x, mean_y, xx, xy, yy = moments.covariances()
    whiten = _Spectrum(yy).power(TARGET_PENALTY, -whitening) if whitening else np.eye(len(yy))
    x, targets = embeddings - mean_x, (faces - mean_y) @ whiten  # (n, E), (n, D)
    _, person = np.unique(np.asarray(people), return_inverse=True)
    groups = np.split(np.argsort(person, kind="stable"), np.cumsum(np.bincount(person))[:-1])
    spectrum = _Spectrum(xx)
    for penalty in penalties:
        inverse = spectrum.power(penalty, -1)
        kernel = inverse @ xy @ whiten
        residuals, weights, predicted = targets - x @ kernel, x @ inverse / n, np.empty_like(targets)
        for rows in groups:
            hat = weights[rows] @ x[rows].T + 1 / n
            without = targets[rows] - np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
            # Less the mean target of the other people, which lies opposite to the own one; the head has the mean of all.
            predicted[rows] = without + targets[rows].sum(axis=0) / (n - len(rows))
        yield (mean_y + predicted * _best_length(kernel, xx, xy)).astype(np.float32)


def best_penalty(matching) -> int:
    """Return the number of the penalty with the best 1:2 matching; of several that tie, the last and largest."""
    return int(np.flatnonzero(np.asarray(matching) >= np.max(matching) - TIE)[-1])


def has_few_people(validation_clips: list[str]) -> bool:
    """Tell whether the validation set has too few people to choose a penalty alone."""
    return len({utils.person_of(clip) for clip in validation_clips}) < FEW_PEOPLE


def some_people(clips: list[str], most: int) -> list[str]:
    """Return all clips of randomly chosen people, always the same ones, `most` clips at most, in the order given."""
    of_person = {}
    for clip in clips:
        of_person.setdefault(utils.person_of(clip), []).append(clip)
    people, chosen = list(of_person), set()
    for number in np.random.default_rng(0).permutation(len(people)):
        most -= len(of_person[people[number]])
        if most < 0:
            break
        chosen.add(people[number])
    return [clip for clip in clips if utils.person_of(clip) in chosen]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the closed form has chosen, and by what."""

    train_loss: float  # mean loss of the first FIT_CLIPS training clips
    penalty: float
    matching: float  # 1:2 that chose the penalty, in [0, 1]
    n_clips: int  # by which it was chosen
    cross_validated: bool  # whether these are training and validation clips, instead of validation clips
    validation: tuple[np.ndarray, np.ndarray]  # predicted and true features of the validation clips, as `predict_features`
    unseen: tuple[list[str], np.ndarray, np.ndarray]  # of n_clips, names and the same, predicted without the speaker's clips


def fit(encoder, loss, centre: np.ndarray, data: Path, clips: dict, whitening: float, on_both: bool = False) -> Fit:
    """Load the pretrained speaker networks and fit the encoder's head in closed form, see `heads`.

    Of PENALTIES, the one with the best 1:2 matching on the validation set is chosen; where that has few people, by
    cross-validation among training and validation people.

    Args:
        encoder: of `model.speaker_encoder`; its weights are changed.
        loss: of `losses.loss_function`.
        centre: origin of the cosines, float32 (D,).
        data: folder that preprocess.py wrote.
        clips: names of the clips to train on, "train", and to validate on, "val".
        whitening: of the targets, 0 to 1.
        on_both: whether the head is fitted on training and validation clips instead of training clips.

    Raises:
        InputError: if a file of a clip is broken, or the pretrained weights are missing.
    """
    model.load_pretrained(encoder)
    embedder = model.embedder(encoder)

    def embed(names):
        return predict_features(embedder, data, names, len(centre))

    few = has_few_people(clips["val"])
    names = [*clips["train"], *(clips["val"] if few else ())]
    judges = set(some_people(names, FIT_CLIPS) if few else clips["val"])  # the clips that choose the penalty
    moments = {part: Moments.zero(embedder.output_shape[-1], len(centre)) for part in ("train", "val")}
    first, judging, validation = None, [], []
    for part in moments:
        for start in tqdm(range(0, len(clips[part]), FIT_CLIPS), desc="speaker embeddings", leave=False, disable=None):
            of_block = clips[part][start : start + FIT_CLIPS]
            embeddings, faces = embed(of_block)
            first = first or (embeddings, faces)
            moments[part].add(embeddings, faces)
            if part == "val":
                validation.append((embeddings, faces))
            chosen = [number for number, clip in enumerate(of_block) if clip in judges]
            judging.append((embeddings[chosen], faces[chosen], [of_block[number] for number in chosen]))
    embeddings, faces = (np.concatenate(arrays) for arrays in list(zip(*judging))[:2])
    unseen_clips = [clip for *_, of_block in judging for clip in of_block]
    people = [utils.person_of(clip) for clip in unseen_clips]
    both = moments["train"] + moments["val"]
    if few:
        predictions = left_out(both, embeddings, faces, people, PENALTIES, whitening)
    else:
        predictions = (embeddings @ kernel + bias for kernel, bias in heads(moments["train"], PENALTIES, whitening))
    matching = []
    for voices in predictions:
        matching.append(rank(voices - centre, faces - centre, people).matching.mean())
        best = best_penalty(matching)
        if best == len(matching) - 1:
            unseen = unseen_clips, voices, faces
    ((kernel, bias),) = heads(both if on_both else moments["train"], PENALTIES[best : best + 1], whitening)
    encoder.get_layer("head").set_weights([kernel, bias])
    embeddings, faces = first
    train_loss = float(np.mean(loss(faces, embeddings @ kernel + bias)))
    embeddings, faces = map(np.concatenate, zip(*validation))
    predicted = embeddings @ kernel + bias, faces
    return Fit(train_loss, float(PENALTIES[best]), float(matching[best]), len(people), few, predicted, unseen)
