"""The head of the speaker encoder, fitted in closed form: from speaker embedding to face feature, by ridge regression.

E is the size of an embedding, D that of a face feature.
"""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from judging.ranks import rank
from training.batches import predict_features
from voices import ge2e
from voices.backend import keras

PENALTIES = 10.0 ** np.arange(-2, 3.5, 0.5)  # of the ridge, in mean variances of the embedding's numbers
TARGET_PENALTY = 1.0  # of the whitening, in mean variances of the face feature's numbers
FIT_CLIPS = 4096  # clips whose embeddings are in memory at a time


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

    def add(self, embeddings: np.ndarray, faces: np.ndarray) -> None:
        """Add clips: embeddings, float (n, E), and face features, float (n, D)."""
        x, y = np.asarray(embeddings, np.float64), np.asarray(faces, np.float64)
        self.n += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.T @ y


def _power(covariance: np.ndarray, penalty: float, exponent: float) -> np.ndarray:
    """Return a power of a covariance whose variances are raised by `penalty` times their mean."""
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0) + penalty * max(variances.mean(), np.finfo(np.float32).tiny)
    return (axes * variances**exponent) @ axes.T


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


def fit(encoder, loss, centre: np.ndarray, data: Path, clips: dict, whitening: float) -> tuple[float, float]:
    """Load the pretrained speaker network and fit the encoder's head in closed form, see `heads`.

    Of PENALTIES, the one with the best 1:2 matching on the validation set is chosen.

    Args:
        encoder: of `model.speaker_encoder`; its weights are changed.
        loss: of `losses.loss_function`.
        centre: origin of the cosines, float32 (D,).
        data: folder that preprocess.py wrote.
        clips: names of the clips to train on, "train", and to validate on, "val".
        whitening: of the targets, 0 to 1.

    Returns:
        The mean loss of the first FIT_CLIPS training clips, and the penalty chosen.

    Raises:
        InputError: if a file of a clip is broken, or the pretrained weights are missing.
    """
    encoder.get_layer("speaker_embedding").load_pretrained()
    embedder = keras.Model(encoder.input, encoder.get_layer("speaker_embedding").output)

    def embed(names):
        return predict_features(embedder, data, names, len(centre))

    moments, first = Moments.zero(ge2e.UNITS, len(centre)), None
    for start in tqdm(range(0, len(clips["train"]), FIT_CLIPS), desc="speaker embeddings", leave=False, disable=None):
        embeddings, faces = embed(clips["train"][start : start + FIT_CLIPS])
        first = first or (embeddings, faces)
        moments.add(embeddings, faces)
    embeddings, faces = embed(clips["val"])
    videos = [utils.video_of(clip) for clip in clips["val"]]
    solutions = list(heads(moments, PENALTIES, whitening))
    matching = [rank(embeddings @ kernel + bias - centre, faces - centre, videos).matching.mean() for kernel, bias in solutions]
    best = int(np.argmax(matching))
    kernel, bias = solutions[best]
    encoder.get_layer("head").set_weights([kernel, bias])
    embeddings, faces = first
    return float(np.mean(loss(faces, embeddings @ kernel + bias))), float(PENALTIES[best])
