"""The speaker encoder's head in closed form."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from judging.ranks import rank
from training.batches import predict_features
from voices import ge2e
from voices.backend import keras

PENALTIES = 10.0 ** np.arange(-2, 3.5, 0.5)  # of ridge regression, in mean variances of the embedding's numbers
TARGET_PENALTY = 1.0  # of whitening, in mean variances of the face feature's numbers


# ----------------------------------------------------------------------------------------------------------------------
# From embedding to face feature, in closed form.


@dataclasses.dataclass
class Moments:
    """Sums over clips: all that regression needs to know of them. E numbers in an embedding, D in a face feature."""

    n: int
    x: np.ndarray  # float64 (E,), sum of the embeddings
    y: np.ndarray  # float64 (D,), sum of the face features
    xx: np.ndarray  # float64 (E, E), sums of products, and so are the next two
    xy: np.ndarray  # float64 (E, D)
    yy: np.ndarray  # float64 (D, D)

    @classmethod
    def zero(cls, embedding_size: int, feature_size: int) -> "Moments":
        """Return those of no clip."""
        e, d = embedding_size, feature_size
        return cls(0, np.zeros(e), np.zeros(d), np.zeros((e, e)), np.zeros((e, d)), np.zeros((d, d)))

    def add(self, embeddings: np.ndarray, faces: np.ndarray) -> None:
        """Add clips, float (n, E) and (n, D)."""
        x, y = np.asarray(embeddings, np.float64), np.asarray(faces, np.float64)
        self.n += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.T @ y


def _power(covariance: np.ndarray, penalty: float, exponent: float) -> np.ndarray:
    """Return a power of a covariance, its variances raised by `penalty` times their mean."""
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0) + penalty * max(variances.mean(), np.finfo(np.float32).tiny)
    return (axes * variances**exponent) @ axes.T


def heads(moments: Moments, penalties, whitening: float):
    """Solve the regression of face features on embeddings, for several penalties.

    Ridge regression, whose targets may be whitened in part: a face feature varies much in a few directions, and what is left
    of the others tells people apart too. The targets are multiplied by the power -whitening / 2 of their covariance, and so is
    the answer, which makes similarity to the faces as they are the one that the regression was for.

    Args:
        moments: of the training clips.
        penalties: of the ridge, in mean variances of the embedding's numbers.
        whitening: 0 for plain ridge regression, 1 for whole whitening.

    Yields:
        For each penalty, kernel float32 (E, D) and bias float32 (D,): face feature = embedding @ kernel + bias, as long as it
        fits the training faces best.
    """
    n = moments.n
    mean_x, mean_y = moments.x / n, moments.y / n
    xx, xy, yy = (
        products / n - np.outer(a, b)
        for products, a, b in (
            (moments.xx, mean_x, mean_x),
            (moments.xy, mean_x, mean_y),
            (moments.yy, mean_y, mean_y),
        )
    )
    targets = xy @ _power(yy, TARGET_PENALTY, -whitening) if whitening else xy
    for penalty in penalties:
        kernel = _power(xx, penalty, -1) @ targets
        kernel *= np.sum(kernel * xy) / max(np.sum((xx @ kernel) * kernel), np.finfo(np.float32).tiny)
        yield kernel.astype(np.float32), (mean_y - mean_x @ kernel).astype(np.float32)


FIT_CLIPS = 4096  # clips whose embeddings are in memory at a time


def fit_in_closed_form(encoder, loss, centre: np.ndarray, data: Path, clips: dict, whitening: float, batch_size: int) -> float:
    """Give the speaker encoder its pretrained ear, and its head in closed form: see `closed_form.heads`.

    Of PENALTIES the one is taken whose 1:2 matching of the validation people is best.

    Args:
        encoder: of `model.speaker_encoder`; its weights are changed.
        loss: of `losses.loss_function`.
        centre: where similarity is seen from, float32 (D,).
        data: folder that preprocess.py wrote.
        clips: those to train on, "train", and to validate on, "val".
        whitening: of the targets, 0 to 1.
        batch_size: clips heard at a time.

    Returns:
        The mean loss of the training clips, FIT_CLIPS of them at most.

    Raises:
        InputError: if a clip's files are broken, or the pretrained weights cannot be had.
    """

    encoder.get_layer("speaker_embedding").load_pretrained()
    ear = keras.Model(encoder.input, encoder.get_layer("speaker_embedding").output)

    def hear(some):
        return predict_features(ear, data, some, len(centre), batch_size)

    moments, first = Moments.zero(ge2e.UNITS, len(centre)), None
    for start in tqdm(range(0, len(clips["train"]), FIT_CLIPS), desc="hearing", leave=False, disable=None):
        heard = hear(clips["train"][start : start + FIT_CLIPS])
        first = first or heard
        moments.add(*heard)
    embeddings, faces = hear(clips["val"])
    videos = [utils.video_of(clip) for clip in clips["val"]]
    solutions = list(heads(moments, PENALTIES, whitening))
    matching = [rank(embeddings @ kernel + bias - centre, faces - centre, videos).matching.mean() for kernel, bias in solutions]
    best = int(np.argmax(matching))
    encoder.get_layer("head").set_weights(solutions[best])
    print(
        f"train: penalty {PENALTIES[best]:.3g} of {PENALTIES[0]:g} to {PENALTIES[-1]:g}",
        file=sys.stderr,
    )
    kernel, bias = solutions[best]
    return float(np.mean(loss(first[1], first[0] @ kernel + bias)))
