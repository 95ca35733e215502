"""The faces that a voice makes likely: a distribution of face features, given the prediction of a voice encoder.

A regression predicts the mean of the faces that a voice may belong to. These means vary far less than faces do, so that decoded
people all come out alike. `LikelyFaces` describes the whole distribution: groups of voices, nearly those of men and women, each
with a mean face, to which the prediction adds; and what the prediction leaves open. It is fitted to predictions for people that
the encoder was not trained on. It answers with a face that differs from the mean face as visibly as true faces do, or with
samples: faces of people who sound like this.

N is the number of clips, D the size of a face feature, R the number of axes and G the number of groups.

Never imports TensorFlow.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from faces.decoder_statistics import NEGLIGIBLE
from utils import InputError, check_directions, replacing

MOST_AXES = 128  # principal axes of faces, at most
GROUPS = 2
LEAST_GROUP = 10  # clips of a group: with fewer there is one group
ROUNDS = 100  # of the search for groups, at most
SHRINKAGE = 30  # clips that count for what all axes, or all groups, have in common
TOWARDS_OTHER = 0.4  # of the way to the mean face of the other group: the most that a sample may lie towards it
MOST_DRAWS = 50  # for each sample
LEAST_SPREAD = 0.05  # of expected faces along an axis, in that of true faces: the smallest divisor
VISIBLE_SHARE = 0.8  # of the variance of pictures, in the axes whose differences are shown as large as those of true faces


@dataclasses.dataclass(frozen=True)
class LikelyFaces:
    """A distribution of face features given the direction of a prediction. `fit` makes one.

    Faces are described by coefficients: feature = centre + coefficients @ axes; directions by their product with the axes.
    """

    centre: np.ndarray  # float32 (D,), the mean face feature
    axes: np.ndarray  # float32 (R, D), principal axes of true faces
    variances: np.ndarray  # float32 (R,), of the coefficients of true faces
    voices: np.ndarray  # float32 (G, R), mean directions of the groups
    spread: np.ndarray  # float32 (), variance of directions within a group along the line between the groups
    shares: np.ndarray  # float32 (G,), of the clips
    means: np.ndarray  # float32 (G, R), mean coefficients of the groups
    slopes: np.ndarray  # float32 (R,), of the coefficients on a direction's difference from its group
    covariance: np.ndarray  # float32 (R, R), of expected coefficients
    residuals: np.ndarray  # float32 (G, R, R), covariances of true coefficients around the expected ones

    def features(self, directions: np.ndarray) -> np.ndarray:
        """Return the expected face features given directions, (N, D): float32 (N, D)."""
        return (self.centre + self.expected(directions) @ self.axes).astype(np.float32)

    def spreads(self, directions: np.ndarray) -> np.ndarray:
        """Return the standard deviation of each number of the face features that directions leave possible: float32 (N, D)."""
        of_groups = np.sqrt(np.einsum("grs,rd,sd->gd", self.residuals, self.axes, self.axes, optimize=True))
        return of_groups[self.groups(directions).argmax(axis=1)].astype(np.float32)

    def groups(self, directions: np.ndarray) -> np.ndarray:
        """Return the probability of each group given directions, (N, D): float64 (N, G)."""
        check_directions(directions)
        return _probabilities(directions @ self.axes.T, self.voices, self.spread, self.shares)

    def expected(self, directions: np.ndarray) -> np.ndarray:
        """Return the expected coefficients given directions, (N, D): float64 (N, R)."""
        return np.einsum("ng,ngr->nr", self.groups(directions), self._of_groups(directions))

    def _of_groups(self, directions):
        """Return the expected coefficients given directions, (N, D), and each group: (N, G, R)."""
        check_directions(directions)
        return self.means + self.slopes * ((directions @ self.axes.T)[:, None] - self.voices)

    def vivid(self, directions: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Return a face for each direction that differs from the mean face as visibly as true faces do.

        Expected faces differ too little. Along the first principal axes of *pictures*, which have VISIBLE_SHARE of their
        variance, the differences are multiplied by so much that the pictures vary as those of true faces do. The other axes,
        which a picture hardly shows but which face networks see, stay as they are expected.

        Args:
            directions: float32 (N, D).
            visible: float32 (D, P), the change of a decoded picture's P values with the feature, of `decoder.visible_changes`.

        Returns:
            float32 (N, D), face features.
        """
        to_pictures, back, gains = self._pictures(visible)
        mean = self.shares @ self.means  # of the expected faces
        differences = ((self.expected(directions) - mean) @ to_pictures * gains) @ back
        return (self.centre + mean @ self.axes + differences).astype(np.float32)

    def _pictures(self, visible):
        """Return the principal axes of pictures: from coefficients to them, (R, R), and back to features, (R, D); and gains."""
        scale = np.sqrt(self.variances.astype(np.float64))
        changes = scale[:, None] * (self.axes.astype(np.float64) @ visible)  # (R, P)
        strengths, rotation = np.linalg.eigh(changes @ changes.T)
        strengths, rotation = strengths[::-1], rotation[:, ::-1]
        to_pictures, back = rotation / scale[:, None], rotation.T * scale @ self.axes
        spread = np.sqrt(np.diag(to_pictures.T @ self.covariance @ to_pictures)).clip(LEAST_SPREAD)  # of true faces: 1
        n_shown = 1 + np.searchsorted(np.cumsum(strengths), VISIBLE_SHARE * strengths.sum())
        gains, others = np.ones(len(spread)), np.sum((strengths * spread**2)[n_shown:])
        gains[:n_shown] = np.sqrt((strengths.sum() - others) / strengths[:n_shown].sum()) / spread[:n_shown]
        return to_pictures, back, gains

    def samples(self, direction: np.ndarray, n: int, seed: int) -> np.ndarray:
        """Draw faces at random from those that a direction, (D,), leaves possible in its most likely group: float32 (n, D).

        Faces that lie nearly as much towards the mean face of the other group are drawn again.
        """
        group = self.groups(direction[None])[0].argmax()
        expected = self._of_groups(direction[None])[0, group]
        values, vectors = np.linalg.eigh(self.residuals[group].astype(np.float64))
        root, other = np.sqrt(np.maximum(values, 0)) * vectors, self.means[-1 - group]  # the same group if there is only one
        line = (other - self.means[group]) / max(np.sum((other - self.means[group]) ** 2), 1e-12)
        rng, found = np.random.default_rng(seed), []
        for _ in range(MOST_DRAWS * n):
            coefficients = expected + root @ rng.normal(size=len(values))
            if (coefficients - self.means[group]) @ line < TOWARDS_OTHER or not line.any():
                found.append(coefficients)
            if len(found) == n:
                break
        else:  # a voice between the groups
            found += [expected] * (n - len(found))
        return (self.centre + np.stack(found) @ self.axes).astype(np.float32)

    def distances(self, directions: np.ndarray, faces: np.ndarray, n_axes: int) -> np.ndarray:
        """Return how far true faces, (N, D), are from the expected ones: squared Mahalanobis distances in the first axes, (N,).

        Where the distribution is right, they are distributed like chi squared with n_axes degrees of freedom.
        """
        left = ((faces - self.centre) @ self.axes.T - self.expected(directions))[:, :n_axes]
        inverse = np.linalg.inv(self.residuals[:, :n_axes, :n_axes].astype(np.float64))[self.groups(directions).argmax(axis=1)]
        return np.einsum("ni,nij,nj->n", left, inverse, left)

    def save(self, path: Path) -> None:
        """Write the distribution to a file of numpy's, .npz."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **dataclasses.asdict(self))


def load(path: Path, feature_size: int) -> LikelyFaces:
    """Read a distribution of faces of so many numbers, which `LikelyFaces.save` wrote. Raises InputError."""
    names = [field.name for field in dataclasses.fields(LikelyFaces)]
    try:
        with np.load(path, allow_pickle=False) as file:
            found = LikelyFaces(**{name: file[name] for name in names})
        if found.axes.shape != (len(found.variances), feature_size):
            raise ValueError(f"axes of shape {found.axes.shape}")
        return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected the likely faces of a run, found {error!r}; run train.py again") from error


def principal_axes(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of face features, (N, D), (D,); their principal axes that are not NEGLIGIBLE, (R, D); variances, (R,)."""
    centre = faces.mean(axis=0, dtype=np.float64)
    _, strengths, axes = np.linalg.svd(faces - centre, full_matrices=False)
    variances = strengths**2 / len(faces)
    kept = variances[:MOST_AXES] > NEGLIGIBLE * variances[0]
    return centre, axes[:MOST_AXES][kept], variances[:MOST_AXES][kept]


def _probabilities(directions, voices, spread, shares):
    """Return the probabilities of groups whose directions have equal variances along the line between them: (N, G)."""
    if len(voices) == 1:
        return np.ones((len(directions), 1))
    line = (voices[1] - voices[0]) / np.linalg.norm(voices[1] - voices[0])
    distances = (directions @ line)[:, None] - voices @ line
    likelihood = np.log(shares) - distances**2 / (2 * spread)
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    return likelihood / likelihood.sum(axis=1, keepdims=True)


def _grouped(directions: np.ndarray) -> np.ndarray:
    """Divide directions, (N, R), into two groups by k-means, from both ends of their first principal axis: int (N,)."""
    deviations = directions - directions.mean(axis=0)
    group = (deviations @ np.linalg.svd(deviations, full_matrices=False)[2][0] > 0).astype(int)
    for _ in range(ROUNDS):
        if min(np.bincount(group, minlength=GROUPS)) < LEAST_GROUP:
            return np.zeros(len(directions), int)
        middles = np.stack([directions[group == number].mean(axis=0) for number in range(GROUPS)])
        nearest = ((directions[:, None] - middles) ** 2).sum(axis=-1).argmin(axis=1)
        if (nearest == group).all():
            break
        group = nearest
    return group


def _shrinkage(deviations: np.ndarray) -> tuple[float, float]:
    """Return how far a covariance of deviations, (N, R), is best moved to equal variances, 0 to 1, and that variance.

    The axes of the largest variance among some people are chosen by these people, and are smaller among others.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
    Analysis 88, 2004.
    """
    n, size = deviations.shape
    covariance = deviations.T @ deviations / n
    variance = np.trace(covariance) / size
    distance = np.sum((covariance - variance * np.eye(size)) ** 2)
    error = np.sum((deviations**2).T @ deviations**2 / n - covariance**2) / n
    return float(min(1, error / max(distance, 1e-30))), float(variance)


def fit(directions: np.ndarray, faces: np.ndarray, population: np.ndarray) -> LikelyFaces:
    """Fit the distribution.

    Args:
        directions: float32 (N, D), of predictions for clips of people that the encoder was not trained on, of length 1.
        faces: float32 (N, D), the features of these people's faces.
        population: float32 (anything, D), features of faces whose principal axes and variances are taken.
    """
    centre, axes, variances = principal_axes(population)
    given, true = directions.astype(np.float64) @ axes.T, (faces - centre) @ axes.T  # (N, R)
    group = _grouped(given)
    members = [group == number for number in range(group.max() + 1)]
    voices, means = (np.stack([of[some].mean(axis=0) for some in members]) for of in (given, true))
    shares = np.array([some.mean() for some in members])
    around, residual = given - voices[group], true - means[group]
    line = voices[-1] - voices[0]
    spread = np.mean((around @ (line / max(np.linalg.norm(line), 1e-12))) ** 2)
    products, squares = (around * residual).sum(axis=0), (around**2).sum(axis=0)
    shrinkage = SHRINKAGE * squares / len(group)
    slopes = np.maximum(products + shrinkage * products.sum() / max(squares.sum(), 1e-12), 0) / (squares + shrinkage + 1e-12)
    of_groups = means + slopes * (given[:, None] - voices)
    expected = np.einsum("ng,ngr->nr", _probabilities(given, voices, spread, shares), of_groups)
    left = true - np.take_along_axis(of_groups, group[:, None, None], axis=1)[:, 0]
    common = left.T @ left / len(left)
    share, variance = _shrinkage(left)
    residuals = [
        (1 - share) * (left[some].T @ left[some] + SHRINKAGE * common) / (some.sum() + SHRINKAGE)
        + share * variance * np.eye(len(axes))
        for some in members
    ]
    covariance = np.cov(expected.T, bias=True).reshape(len(axes), len(axes))
    fields = (centre, axes, variances, voices, spread, shares, means, slopes, covariance, np.stack(residuals))
    return LikelyFaces(*(np.asarray(values, np.float32) for values in fields))
