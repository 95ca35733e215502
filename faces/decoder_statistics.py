"""What the face decoder is made of: the statistics of many people's landmarks and textures, without pose, mouth and light.

Texture and landmarks are regressed on the face feature *and* on what is not the person, the covariates. A decoded face has
these at their canonical values: frontal, neutral, sharp. Everything left of the middle is the mirror image of what is right of
it. What TensorFlow computes with these statistics is `decoder.face_decoder`.

N is the number of photos, D the numbers of a face feature; S, M and C are those of `textures`, which makes the photos ready.

Source: Cole et al., "Synthesizing Normalized Faces from Facial Identity Features", CVPR 2017, for landmarks and texture apart.

Never imports TensorFlow.
"""

import dataclasses

import cv2
import numpy as np
import scipy.linalg

from clips.detection import mirror_landmarks
from faces.textures import COVARIATES, HALF, SIDE, both_halves, face_hull

# ----------------------------------------------------------------------------------------------------------------------
# What is canonical.

NEUTRAL_OPENING = 0.03  # of the eyes' distance, between the lips
FRONTAL_YAW = 0.1  # of half the face's width: the nose's tip beside the middle
SHARP_PERCENTILE = 85
FURTHEST = 1.5  # spreads from the mean, of what is canonical
LEAST_CANONICAL = 10  # photos that are frontal and neutral, for their mean to be taken
WEIGHT_YAW, LEAST_WEIGHT = 0.2, 0.3  # see `quality`


def canonical_covariates(covariates: np.ndarray) -> np.ndarray:
    """Return the covariates, (C,), of a frontal, neutral and sharp photo, from those of all photos, (N, C).

    They stay within a spread and a half of the mean: what no photo is like, regression cannot tell.
    """
    of = dict(zip(COVARIATES, covariates.T))
    neutral = (of["opening"] < NEUTRAL_OPENING) & (of["smile"] < np.median(of["smile"])) & (np.abs(of["yaw"]) < FRONTAL_YAW)
    if neutral.sum() < LEAST_CANONICAL:  # few photos: those that open the mouth least
        neutral = of["opening"].argsort()[:LEAST_CANONICAL]
    fixed = {name: 0.0 for name in ("yaw", "yaw squared")}
    fixed["blur"] = np.percentile(of["blur"], SHARP_PERCENTILE)
    wanted = np.array([fixed.get(name, of[name][neutral].mean()) for name in COVARIATES])
    mean, reach = covariates.mean(0), FURTHEST * covariates.std(0)
    return wanted.clip(mean - reach, mean + reach)


def quality(covariates: np.ndarray) -> np.ndarray:
    """Return how much each photo, by its covariates, (N, C), counts in the regression: frontal and sharp ones more."""
    yaw, blur = covariates[:, 0], covariates[:, -1]
    return np.exp(-((yaw / WEIGHT_YAW) ** 2)) * (LEAST_WEIGHT + (1 - LEAST_WEIGHT) * blur.argsort().argsort() / len(blur))


# ----------------------------------------------------------------------------------------------------------------------
# Regression.

PENALTY, HAIR_PENALTY = 2.5e-4, 2e-3  # of the ridge, in the face and around it, where hair differs from photo to photo
COVARIATE_PENALTY = 1e-3  # of the ridge, a share of N: the covariates' variance is 1
TEXTURE_GAIN = 1.25  # of what makes a texture differ from the mean: against the shrinking by ridge and averaging
SHARPENING, SHARPENING_RADIUS = 1.0, 1.5  # no unit; pixels
HAIR_RADIUS = 1.0  # pixels
MOST_COMPONENTS = 256  # of the texture
BLOCK = 4096  # numbers of the textures that are made float32 at a time


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What `fit` finds. R is the number of the texture's components."""

    centre: np.ndarray  # float32 (D,), the mean face feature
    reference: np.ndarray  # float32 (68, 2), pixels
    layers: dict[str, tuple[np.ndarray, np.ndarray]]  # kernels and biases of `decoder.face_decoder`
    mean: np.ndarray  # float32 (M,), the texture of the mean feature under canonical covariates
    canonical: np.ndarray  # float64 (C,)
    spread: np.ndarray  # float64 (C,), of the covariates
    texture_slopes: np.ndarray  # float32 (C, M), of the covariates over their spread, and so are the next
    shape_slopes: np.ndarray  # float32 (C, 136)

    def targets(self, halves: np.ndarray, shapes: np.ndarray, covariates: np.ndarray):
        """Return what the decoder is to make of photos: what they show, under canonical covariates, refined as the basis is.

        Args:
            halves: uint8 (n, M); shapes: float32 (n, 68, 2), aligned; covariates: float64 (n, C).

        Returns:
            float32 (n, M), and symmetric landmarks, float32 (n, 68, 2).
        """
        deviations = ((covariates - self.canonical) / self.spread).astype(np.float32)
        textures = halves - deviations @ self.texture_slopes
        textures = refine(self.mean + TEXTURE_GAIN * (textures - self.mean), face_share(self.reference))
        return textures, symmetric(shapes) - (deviations @ self.shape_slopes).reshape(shapes.shape)


def symmetric(shapes: np.ndarray) -> np.ndarray:
    """Return the mean of aligned landmarks, (n, 68, 2), and their mirror image."""
    return (shapes + mirror_landmarks(shapes, SIDE)) / 2


def ridge(features: np.ndarray, covariates: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Solve the regression on features and covariates at once, weighted least squares, for whatever targets.

    Args:
        features: (N, D), the mean subtracted.
        covariates: (N, C), the canonical ones subtracted, scaled to a spread of 1.
        weights: (N,), mean 1.
        penalty: of the features, as a share of N times their whole variance, so that the same one suits features of 128 and of
            4096 numbers; the covariates' is small.

    Returns:
        float32 (D + C + 1, N), which times the targets, (N, anything), gives the slopes, and in its last row the target of the
        mean feature at canonical covariates.
    """
    n, size = features.shape
    inputs = np.column_stack([features, covariates, np.ones(n)]).astype(np.float64)
    weighted = inputs * weights[:, None]
    square = weighted.T @ inputs
    diagonal = np.full(len(square), COVARIATE_PENALTY * n)
    diagonal[:size] = penalty * np.trace(square[:size, :size])
    diagonal[-1] = 0
    return np.linalg.solve(square + np.diag(diagonal), weighted.T).astype(np.float32)


def _blocks(targets: np.ndarray):
    """Give the columns of targets, uint8 (N, M), block by block: a slice, and float32 (N, BLOCK or less)."""
    for first in range(0, targets.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        yield block, targets[:, block].astype(np.float32)


def times(solution: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Multiply float32 (n, N) with targets, uint8 (N, M), which need not be float32 in memory. Returns float32 (n, M)."""
    return np.concatenate([solution @ values for _, values in _blocks(targets)], axis=1)


def predictable_basis(features: np.ndarray, solutions, shares, targets: np.ndarray, rank: int):
    """Find the directions in which the predicted targets vary: the most predictable ones, not those of most variance.

    A person's marks are a small part of the variance of photos, and the first few hundred principal components lose them.

    Args:
        features: (N, D), the mean subtracted.
        solutions: some (D, N), of `ridge`; shares: as many float32 (M,), how much each counts for each target, 1 together.
        targets: uint8 (N, M).
        rank: D loses nothing; where it is less, the features' first principal components count.

    Returns:
        float32 (D, rank), from features to coefficients; float32 (rank, M), orthonormal, the strongest first.
    """
    size = features.shape[1]
    values, vectors = scipy.linalg.eigh(np.cov(features.T, dtype=np.float64), subset_by_index=(size - rank, size - 1))
    root = np.float32(vectors * np.sqrt(np.maximum(values, 0)))  # (D, rank)
    spread = sum(times(root.T @ solution, targets) * share for solution, share in zip(solutions, shares))
    values, turn = np.linalg.eigh(np.float64(spread @ spread.T))  # (rank, rank)
    basis = np.float32(turn / np.sqrt(np.maximum(values, 1e-12 * values[-1]))).T[::-1] @ spread
    slopes = sum(
        solution @ sum(values @ (basis[:, block] * share[block]).T for block, values in _blocks(targets))
        for solution, share in zip(solutions, shares)
    )
    return slopes, basis


def face_share(reference: np.ndarray) -> np.ndarray:
    """Return 1 in the face and 0 in hair, neck and background, soft between: float32 (S, S)."""
    hull = cv2.dilate(face_hull(reference), np.ones((SIDE // 15 | 1,) * 2, np.uint8)).astype(np.float32)
    return cv2.GaussianBlur(hull, (0, 0), SIDE / 38)


def refine(halves: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Sharpen half textures in the face by an unsharp mask and smooth what is around: linear, so done to the basis, once.

    Args:
        halves: float32 (n, M), a basis or a mean; face: float32 (S, S), of `face_share`.

    Returns:
        float32 (n, M).
    """
    fine = np.empty_like(halves)
    for number, row in enumerate(halves):
        full = both_halves(row.reshape(1, *HALF))[0]
        sharp = full + SHARPENING * (full - cv2.GaussianBlur(full, (0, 0), SHARPENING_RADIUS))
        sharp[..., 3] = full[..., 3]
        smooth = cv2.GaussianBlur(full, (0, 0), HAIR_RADIUS)
        fine[number] = (smooth + face[..., None] * (sharp - smooth))[:, SIDE // 2 :].ravel()
    return fine


def fit(features: np.ndarray, people, halves: np.ndarray, shapes: np.ndarray, covariates: np.ndarray, reference: np.ndarray):
    """Compute the statistics of the decoder. Of several photos of a person, who counts as one, the features are averaged.

    Args:
        features: float32 (N, D).
        people: N names.
        halves: uint8 (N, M); shapes: float32 (N, 68, 2), aligned, pixels; covariates: float64 (N, C): of `texture_of`.
        reference: float32 (68, 2), pixels.

    Returns:
        Statistics.
    """
    _, person, n_photos = np.unique(people, return_inverse=True, return_counts=True)
    features = np.stack([np.bincount(person, column) for column in features.T], axis=1) / n_photos[:, None]  # (people, D)
    centre = features.mean(0)
    n, deviations = len(halves), (features - centre)[person]
    canonical, spread = canonical_covariates(covariates), np.maximum(covariates.std(0), 1e-6)
    scaled = (covariates - canonical) / spread
    weights = quality(covariates) / n_photos[person]
    weights /= weights.mean()

    face = face_share(reference)
    in_face = np.repeat(face[:, SIDE // 2 :].ravel(), 4)  # (M,)
    shares = in_face, 1 - in_face
    size = len(centre)
    solutions = [ridge(deviations, scaled, weights, penalty) for penalty in (PENALTY, HAIR_PENALTY)]
    rank = min(MOST_COMPONENTS, size, len(n_photos) - 1)
    slopes, basis = predictable_basis(deviations, [s[:size] for s in solutions], shares, halves, rank)
    rest = sum(times(solution[size:], halves) * share for solution, share in zip(solutions, shares))  # (C + 1, M)
    shape = solutions[0] @ symmetric(shapes).reshape(n, -1)  # (D + C + 1, 136)

    # Two people differ by 1, as the sum over the coefficients.
    coefficients = (features - centre) @ slopes
    scale = 1 / max(np.abs(coefficients - np.roll(coefficients, 1, axis=0)).sum(1).mean(), 1e-6)
    return Statistics(
        centre.astype(np.float32),
        reference,
        {
            name: (kernel.astype(np.float32), bias.astype(np.float32))
            for name, kernel, bias in (
                ("texture_coefficients", scale * slopes, -scale * centre @ slopes),
                ("texture_basis", TEXTURE_GAIN / scale * refine(basis, face), refine(rest[-1:], face)[0]),
                ("landmark_slopes", shape[:size], shape[-1] - centre @ shape[:size]),
            )
        },
        rest[-1],
        canonical,
        spread,
        rest[:-1],
        shape[size:-1],
    )
