"""The statistics of the face decoder: textures and landmarks as linear functions of the face feature.

Textures and landmarks are regressed on the face feature *and* on the covariates: pose, mouth, glasses, light and blur. A
decoded face has canonical covariates: it is frontal, neutral, sharp and without glasses. Its left half is the mirror image of
the right half.
The statistics are the weights of the Keras model `decoder.face_decoder`.

N is the number of photos and D the size of a face feature; S, M and C are those of `textures`, which prepares the photos.

Source: Cole et al., "Synthesizing Normalized Faces from Facial Identity Features", CVPR 2017: landmarks and texture are
predicted apart.

Never imports TensorFlow.
"""

import dataclasses

import cv2
import numpy as np
import scipy.linalg

from faces.textures import COVARIATES, EYE_DISTANCE, HALF_SIZE, SIDE, both_halves, face_hull, maps_of, symmetric

# ----------------------------------------------------------------------------------------------------------------------
# Canonical covariates and weights of photos.

NEUTRAL_OPENING = 0.03  # of the distance between the eyes: a gap between the lips that is smaller is neutral
FRONTAL_YAW = 0.1  # of half the face's width: a tip of the nose that is closer to the middle is frontal
SHARP_PERCENTILE = 85  # of blur in the photos, as the canonical value
NO_GLASSES_PERCENTILE = 25  # of the glasses in the photos, as the canonical value: more people wear none
FURTHEST = 1.5  # standard deviations: the largest distance of a canonical covariate from its mean
LEAST_CANONICAL = 10  # the fewest frontal and neutral photos whose mean is canonical
# Of `quality`: the yaw, and the glasses, that divide a weight by e; the share that blur cannot take away.
WEIGHT_YAW, WEIGHT_GLASSES, LEAST_WEIGHT = 0.2, 0.4, 0.3


def canonical_covariates(covariates: np.ndarray) -> np.ndarray:
    """Return the covariates of a frontal, neutral and sharp photo without glasses, (C,), given those of all photos, (N, C).

    They stay within FURTHEST of the mean: regression cannot extrapolate to photos unlike all others.
    """
    of = dict(zip(COVARIATES, covariates.T))
    neutral = (of["opening"] < NEUTRAL_OPENING) & (of["smile"] < np.median(of["smile"])) & (np.abs(of["yaw"]) < FRONTAL_YAW)
    if neutral.sum() < LEAST_CANONICAL:  # too few: take the photos with the smallest opening
        neutral = of["opening"].argsort()[:LEAST_CANONICAL]
    fixed = {name: 0.0 for name in ("yaw", "yaw squared", "cropped")}
    fixed["glasses"] = np.percentile(of["glasses"], NO_GLASSES_PERCENTILE)
    fixed["blur"] = np.percentile(of["blur"], SHARP_PERCENTILE)
    canonical = np.array([fixed.get(name, of[name][neutral].mean()) for name in COVARIATES])
    mean, reach = covariates.mean(0), FURTHEST * covariates.std(0)
    return canonical.clip(mean - reach, mean + reach)


def quality(covariates: np.ndarray) -> np.ndarray:
    """Return the weight of each photo in the regression, (N,), given the covariates, (N, C).

    Frontal and sharp photos weigh more, those with glasses next to nothing: what is not learned leaves no ghosts.
    """
    yaw, glasses, blur = (covariates[:, COVARIATES.index(name)] for name in ("yaw", "glasses", "blur"))
    turned, hidden = (yaw / WEIGHT_YAW) ** 2, (glasses / WEIGHT_GLASSES) ** 2
    return np.exp(-turned - hidden) * (LEAST_WEIGHT + (1 - LEAST_WEIGHT) * blur.argsort().argsort() / len(blur))


# ----------------------------------------------------------------------------------------------------------------------
# Regression.

# Of the ridge, in the face; around it, where hair changes between photos; and below it, where clothes do.
PENALTY, HAIR_PENALTY, BODY_PENALTY = 2.5e-4, 2e-3, 3e-2
COVARIATE_PENALTY = 1e-3  # of the ridge, as a share of N: the covariates' variance is 1
TEXTURE_GAIN = 1.25  # factor on a texture's difference from the mean: makes up for shrinkage by ridge and averaging
# Where clothes are, in distances between the eyes: below the chin, or beside the neck and below a line a little higher.
BODY_BELOW_CHIN, BODY_BESIDE_NECK, BODY_BELOW_CHIN_BESIDE = 0.15, 0.95, -0.3
SHARPENING, SHARPENING_RADIUS = 1.0, 2.0  # of the unsharp mask: no unit; pixels
SURROUNDINGS_RADIUS = 1.3  # pixels, of the blur around the face
MOST_COMPONENTS = 256  # of the texture, at most
NEGLIGIBLE = 1e-5  # of the largest variance of a principal axis of the features: dlib's 128 numbers have 77 axes above that
BLOCK = 4096  # columns of the textures that are converted to float32 at a time
PHOTOS = 1024  # photos whose features are converted to float64 at a time


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The result of `fit`."""

    centre: np.ndarray  # float32 (D,), the mean face feature
    reference: np.ndarray  # float32 (68, 2), pixels
    layers: dict[str, tuple[np.ndarray, np.ndarray]]  # kernels and biases of `decoder.face_decoder`
    mean: np.ndarray  # float32 (M,), the texture of the mean feature at canonical covariates
    canonical: np.ndarray  # float64 (C,), the canonical covariates
    spread: np.ndarray  # float64 (C,), standard deviations of the covariates
    texture_slopes: np.ndarray  # float32 (C, M), change of the texture for each standard deviation of a covariate
    shape_slopes: np.ndarray  # float32 (C, 136), the same for the landmarks

    def targets(self, halves: np.ndarray, shapes: np.ndarray, covariates: np.ndarray):
        """Return the decoder's targets for photos: textures and landmarks at canonical covariates, sharpened like the basis.

        Args:
            halves: uint8 (n, M).
            shapes: float32 (n, 68, 2), aligned landmarks, pixels.
            covariates: float64 (n, C).

        Returns:
            float32 (n, M), and symmetric landmarks, float32 (n, 68, 2).
        """
        deviations = ((covariates - self.canonical) / self.spread).astype(np.float32)
        textures = halves - deviations @ self.texture_slopes
        textures = sharpen(self.mean + TEXTURE_GAIN * (textures - self.mean), face_share(self.reference))
        return textures, symmetric(shapes) - (deviations @ self.shape_slopes).reshape(shapes.shape)


def ridge(features: np.ndarray, covariates: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Solve the weighted ridge regression on features and covariates for any targets.

    Args:
        features: (N, D), less their mean.
        covariates: (N, C), less the canonical values, in standard deviations.
        weights: (N,), mean 1.
        penalty: of the features, as a share of N times their total variance, so that one value suits features of 128 and of
            4096 numbers. The penalty of the covariates is COVARIATE_PENALTY.

    Returns:
        float32 (D + C + 1, N): times the targets, (N, anything), it gives the slopes and, in the last row, the intercept: the
        target of the mean feature at canonical covariates.
    """
    n, size = features.shape
    photos = [slice(first, first + PHOTOS) for first in range(0, n, PHOTOS)]

    def inputs(some):
        return np.column_stack([features[some], covariates[some], np.ones(len(covariates[some]))]).astype(np.float64)

    square = sum((inputs(some) * weights[some, None]).T @ inputs(some) for some in photos)
    diagonal = np.full(len(square), COVARIATE_PENALTY * n)
    diagonal[:size] = penalty * np.trace(square[:size, :size])
    diagonal[-1] = 0
    square[np.diag_indices_from(square)] += diagonal
    factors, solution = scipy.linalg.lu_factor(square, overwrite_a=True), np.empty((len(square), n), np.float32)
    for some in photos:
        solution[:, some] = scipy.linalg.lu_solve(factors, (inputs(some) * weights[some, None]).T)
    return solution


def covariance(features: np.ndarray) -> np.ndarray:
    """Return the covariance of features, (N, D), as float64 (D, D), without a second copy of all of them."""
    mean, square = features.mean(axis=0, dtype=np.float64), 0
    for first in range(0, len(features), PHOTOS):
        some = features[first : first + PHOTOS] - mean
        square = square + some.T @ some
    return square / (len(features) - 1)


def _blocks(targets: np.ndarray):
    """Yield the columns of targets, uint8 (N, M), block by block: a slice, and float32 (N, BLOCK or fewer)."""
    for first in range(0, targets.shape[1], BLOCK):
        block = slice(first, first + BLOCK)
        yield block, targets[:, block].astype(np.float32)


def multiply(solution: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Multiply float32 (n, N) by targets, uint8 (N, M), without a float32 copy of all targets. Returns float32 (n, M)."""
    return np.concatenate([solution @ values for _, values in _blocks(targets)], axis=1)


def predictable_basis(features: np.ndarray, solutions, shares, targets: np.ndarray, rank: int):
    """Find the directions in which the *predicted* targets vary most.

    The first few hundred principal components of the targets themselves would lose the features of a person, which are a small
    part of the variance of photos.

    Args:
        features: (N, D), less their mean.
        solutions: of `ridge`, each (D, N).
        shares: of the solutions, each float32 (M,): their weights for each target, with a sum of 1.
        targets: uint8 (N, M).
        rank: components, at most; only as many principal components of the features count, and none that is NEGLIGIBLE.

    Returns:
        float32 (D, rank), from features to coefficients; float32 (rank, M), orthonormal, the strongest direction first.
    """
    size = features.shape[1]
    values, vectors = scipy.linalg.eigh(covariance(features), overwrite_a=True, subset_by_index=(size - rank, size - 1))
    kept = values > NEGLIGIBLE * values[-1]
    root = np.float32(vectors[:, kept] * np.sqrt(values[kept]))  # (D, rank)
    spread = sum(multiply(root.T @ solution, targets) * share for solution, share in zip(solutions, shares))  # (rank, M)
    values, rotation = np.linalg.eigh(np.float64(spread @ spread.T))  # (rank, rank)
    basis = np.float32(rotation / np.sqrt(np.maximum(values, 1e-12 * values[-1]))).T[::-1] @ spread
    slopes = sum(
        solution @ sum(values @ (basis[:, block] * share[block]).T for block, values in _blocks(targets))
        for solution, share in zip(solutions, shares)
    )
    return slopes, basis


def face_share(reference: np.ndarray) -> np.ndarray:
    """Return 1 in the face and 0 in hair, neck and background, with a soft edge: float32 (S, S)."""
    hull = cv2.dilate(face_hull(reference), np.ones((SIDE // 15 | 1,) * 2, np.uint8)).astype(np.float32)
    return cv2.GaussianBlur(hull, (0, 0), SIDE / 38)


def body_share(reference: np.ndarray) -> np.ndarray:
    """Return 1 below the face and beside the neck, where clothes are, 0 above, with a soft edge: float32 (S, S)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    below_chin, beside = (y - reference[8, 1]) / (EYE_DISTANCE * SIDE), np.abs(x - (SIDE - 1) / 2) / (EYE_DISTANCE * SIDE)
    body = (below_chin > BODY_BELOW_CHIN) | ((beside > BODY_BESIDE_NECK) & (below_chin > BODY_BELOW_CHIN_BESIDE))
    return cv2.GaussianBlur(body.astype(np.float32), (0, 0), SIDE / 64)


def shares_of_penalties(reference: np.ndarray) -> list[np.ndarray]:
    """Return how much each of PENALTY, HAIR_PENALTY and BODY_PENALTY counts for each number of half a texture.

    The outline and the hair have HAIR_PENALTY alone.

    Returns:
        Three float32 (M,), with a sum of 1.
    """
    face, body = face_share(reference), body_share(reference)
    inner, lower = np.zeros((2, 1, HALF_SIZE), np.float32)
    for flat, share in ((inner, face * (1 - body)), (lower, body)):
        maps = maps_of(flat)  # views
        maps["skin"][:] = share[None, :, SIDE // 2 :, None]
        small = cv2.resize(share, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
        maps["outline"][..., 0] = small[None, :, SIDE // 4 :]
    return [inner[0], 1 - inner[0] - lower[0], lower[0]]


def sharpen(halves: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Sharpen the skin of half textures in the face by an unsharp mask, and smooth the rest of it.

    The operation is linear, so that applying it once to the basis sharpens every decoded texture.

    Args:
        halves: float32 (n, M), a basis or a mean.
        face: float32 (S, S), of `face_share`.

    Returns:
        float32 (n, M).
    """
    sharpened = halves.copy()
    for half in maps_of(sharpened)["skin"]:  # views
        full = both_halves(half[None])[0]
        sharp = full + SHARPENING * (full - cv2.GaussianBlur(full, (0, 0), SHARPENING_RADIUS))
        smooth = cv2.GaussianBlur(full, (0, 0), SURROUNDINGS_RADIUS)
        half[:] = (smooth + face[..., None] * (sharp - smooth))[:, SIDE // 2 :]
    return sharpened


def fit(features: np.ndarray, people, halves: np.ndarray, shapes: np.ndarray, covariates: np.ndarray, reference: np.ndarray):
    """Compute the statistics of the decoder. The features of a person's photos are averaged; each person has the same weight.

    Args:
        features: float32 (N, D).
        people: N names.
        halves, shapes, covariates: uint8 (N, M), float32 (N, 68, 2) and float64 (N, C), of `textures.texture_of`.
        reference: float32 (68, 2), pixels, of `textures.reference_shape`.

    Returns:
        Statistics.
    """
    _, first_photo, person, n_photos = np.unique(people, return_index=True, return_inverse=True, return_counts=True)
    of_people = np.empty((len(n_photos), features.shape[1]))  # (people, D)
    for mean, column in zip(of_people.T, features.T):
        mean[:] = np.bincount(person, column) / n_photos
    centre = of_people.mean(0)
    of_people -= centre
    n, deviations = len(halves), of_people[person]
    del of_people  # 0.65 GB for 20,000 people and VGG-Face's features, which `deviations` holds too
    canonical, spread = canonical_covariates(covariates), np.maximum(covariates.std(0), 1e-6)
    scaled = (covariates - canonical) / spread
    weights = quality(covariates) / n_photos[person]
    weights /= weights.mean()

    face, shares, size = face_share(reference), shares_of_penalties(reference), len(centre)
    solutions = [ridge(deviations, scaled, weights, penalty) for penalty in (PENALTY, HAIR_PENALTY, BODY_PENALTY)]
    rank = min(MOST_COMPONENTS, size, len(n_photos) - 1)
    slopes, basis = predictable_basis(deviations, [s[:size] for s in solutions], shares, halves, rank)
    rest = sum(multiply(solution[size:], halves) * share for solution, share in zip(solutions, shares))  # (C + 1, M)
    shape = solutions[0] @ symmetric(shapes).reshape(n, -1)  # (D + C + 1, 136)

    # The absolute differences between two people's coefficients add up to 1 on average.
    coefficients = (deviations @ slopes)[first_photo]
    scale = 1 / max(np.abs(coefficients - np.roll(coefficients, 1, axis=0)).sum(1).mean(), 1e-6)
    return Statistics(
        centre.astype(np.float32),
        reference,
        {
            name: (kernel.astype(np.float32), bias.astype(np.float32))
            for name, kernel, bias in (
                ("texture_coefficients", scale * slopes, -scale * centre @ slopes),
                ("texture_basis", TEXTURE_GAIN / scale * sharpen(basis, face), sharpen(rest[-1:], face)[0]),
                ("landmark_slopes", shape[:size], shape[-1] - centre @ shape[:size]),
            )
        },
        rest[-1],
        canonical,
        spread,
        rest[:-1],
        shape[size:-1],
    )
