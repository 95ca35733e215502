"""What the face decoder is made of: landmarks and textures of photos, and their statistics, without pose, mouth and light.

A photo is aligned by its landmarks, its head cut out, and warped to the reference shape: that is its texture. Texture and
landmarks are regressed on the face feature *and* on what is not the person, the conditions: pose, mouth, light, blur. A decoded
face has these at their canonical values: frontal, neutral, evenly lit, sharp. Everything left of the middle is the mirror image
of what is right of it. What TensorFlow computes with these statistics is `decoder.face_decoder`.

N is the number of photos, S the side of a picture in pixels, M = S * S / 2 * 4 the numbers of half a texture, D those of a face
feature, C those of the conditions. Landmarks are (68, 2): x to the right and y down, in pixels, the centre of the first pixel
(0, 0).

Source: Cole et al., "Synthesizing Normalized Faces from Facial Identity Features", CVPR 2017, for landmarks and texture apart.

Never imports TensorFlow: worker processes prepare the photos.
"""

import dataclasses
import functools
from pathlib import Path

import cv2
import numpy as np
import scipy.linalg

import media
import utils
from media import mirror_landmarks

SIDE = 192  # pixels, of a decoded picture
EYE_DISTANCE, EYE_HEIGHT = 0.21, 0.50  # of the side: between the centres of the eyes, and of these below the upper border
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)

# ----------------------------------------------------------------------------------------------------------------------
# Alignment.


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the shift, turn and scale that bring points, (n, 2), nearest to others, least squares: float64 (2, 3), for cv2."""
    source, target = source.astype(np.float64), target.astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = (source - source_mean) @ np.array([1, 1j]), (target - target_mean) @ np.array([1, 1j])
    turn = np.vdot(a, b) / np.vdot(a, a).real
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([matrix, target_mean - matrix @ source_mean])


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a matrix, (2, 3), to points, (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def reference_shape(landmarks: np.ndarray, rounds: int = 5) -> np.ndarray:
    """Return the mean shape of all faces, symmetric, with the eyes at EYE_DISTANCE and EYE_HEIGHT: float32 (68, 2).

    Args:
        landmarks: (N, 68, 2), pixels of each photo.
    """
    wanted = np.array([[0.5 - EYE_DISTANCE / 2, EYE_HEIGHT], [0.5 + EYE_DISTANCE / 2, EYE_HEIGHT]]) * SIDE - 0.5
    mean = landmarks[0].astype(np.float64)
    for _ in range(rounds):
        mean = np.mean([transform(similarity(shape, mean), shape) for shape in landmarks], axis=0)
        mean = (mean + mirror_landmarks(mean, 2 * mean[:, 0].mean() + 1)) / 2
        mean = transform(similarity(np.array([mean[LEFT_EYE].mean(0), mean[RIGHT_EYE].mean(0)]), wanted), mean)
    return mean.astype(np.float32)


def align(photo: np.ndarray, landmarks: np.ndarray, reference: np.ndarray):
    """Bring a face to its place in the picture.

    Args:
        photo: uint8 (height, width, 3), RGB.
        landmarks, reference: (68, 2), pixels of the photo, and of the picture.

    Returns:
        uint8 (S, S, 3), the photo's border repeated outside; bool (S, S), where it is the photo; float32 (68, 2).
    """
    matrix = similarity(landmarks, reference)
    scale = np.hypot(*matrix[:, 0])
    if scale < 0.5:  # a large photo: first smaller, without moiré
        photo = cv2.GaussianBlur(photo, (0, 0), 0.4 / scale)
    picture = cv2.warpAffine(photo, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.full(photo.shape[:2], 255, np.uint8), matrix, (SIDE, SIDE)) > 127
    return picture, inside, transform(matrix, landmarks).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# The head, cut out.

# A network of 250 kB that tells people, hair included, from what is behind them: MediaPipe's, Apache-2.0, from its package
# 0.10.21, which is installable on some of this project's Pythons only and needs much else.
SEGMENTATION = Path(__file__).resolve().parent / "selfie_segmentation.tflite"
SEGMENTATION_SIDE = 256  # pixels, of its input


@functools.cache
def _segmentation():
    return cv2.dnn.readNet(str(SEGMENTATION))


def cut_out(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Tell the person from the background.

    Args:
        picture, inside: as `align` gives them.

    Returns:
        float32 (S, S), the person's share of each pixel, in [0, 1].

    Source: Google, "MediaPipe Selfie Segmentation", model card, 2021.
    """
    large = cv2.resize(picture, (SEGMENTATION_SIDE, SEGMENTATION_SIDE), interpolation=cv2.INTER_CUBIC)
    network = _segmentation()
    network.setInput(cv2.dnn.blobFromImage(large, 1 / 255))
    share = network.forward()[0, 0].clip(0, 1)
    return cv2.resize(share, (SIDE, SIDE), interpolation=cv2.INTER_AREA) * inside


# ----------------------------------------------------------------------------------------------------------------------
# The warp: a thin-plate spline. Source: Bookstein, "Principal warps", PAMI 1989.

GRID_STEP = 4  # pixels: the spline is computed so often, bilinear between
SMOOTHING = 1e-3  # of the spline, no unit: lets landmarks that nearly coincide (closed lips) not fold the picture
BORDER_POINTS = 4  # a side: fixed points of the warp, in the picture's border
N_GRID = SIDE // GRID_STEP + 1


def border() -> np.ndarray:
    """Return the fixed points of the warp, in the picture's border: float32 (4 * BORDER_POINTS, 2), pixels."""
    along = np.linspace(0, SIDE - 1, BORDER_POINTS + 1)[:-1]
    low, high = np.zeros_like(along), np.full_like(along, SIDE - 1)
    edges = [(along, low), (high, along), (SIDE - 1 - along, high), (low, SIDE - 1 - along)]
    return np.concatenate([np.stack(edge, axis=1) for edge in edges]).astype(np.float32)


def grid() -> np.ndarray:
    """Return the places where the spline is computed, row by row: float32 (N_GRID ** 2, 2), pixels."""
    along = np.linspace(0, SIDE - 1, N_GRID)
    return np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2).astype(np.float32)


def between_grid() -> np.ndarray:
    """Return how values on `grid` become values at all pixels of a row or a column: float32 (S, N_GRID)."""
    at = np.arange(SIDE) * (N_GRID - 1) / (SIDE - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(N_GRID))).astype(np.float32)


def spline(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the thin-plate spline through values at some points, read at some places: it is linear in the values.

    Args:
        points: (K, 2); places: (P, 2), pixels.

    Returns:
        float64 (P, K): times the values at the points, it gives those at the places.
    """

    def bending(squared):
        return squared * np.log(np.maximum(squared, 1e-12))

    points, places = points.astype(np.float64) / SIDE, places.astype(np.float64) / SIDE
    n = len(points)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = bending(((points[:, None] - points) ** 2).sum(-1)) + SMOOTHING / n * np.eye(n)
    system[:n, n:] = np.column_stack([np.ones(n), points])
    system[n:, :n] = system[:n, n:].T
    at_places = np.column_stack([bending(((places[:, None] - points) ** 2).sum(-1)), np.ones(len(places)), places])
    return np.linalg.solve(system, at_places.T).T[:, :n]


@functools.lru_cache(1)
def _spline_of(reference: bytes) -> np.ndarray:
    return spline(np.concatenate([np.frombuffer(reference, np.float32).reshape(-1, 2), border()]), grid())


def to_reference(picture: np.ndarray, landmarks: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Warp a picture, (S, S, ...), aligned, so that its landmarks come to the reference shape, float32 (68, 2)."""
    sources = _spline_of(reference.tobytes()) @ np.concatenate([landmarks, border()])  # (N_GRID ** 2, 2)
    between = between_grid()
    maps = cv2.merge([np.float32(between @ sources[:, i].reshape(N_GRID, N_GRID) @ between.T) for i in (0, 1)])
    return cv2.remap(picture, maps, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


# ----------------------------------------------------------------------------------------------------------------------
# Texture.

NECK_WIDTH = 0.15  # of the side, half of it
YAW_SLOPE = 12.0  # see `right_half`


def head_mask(reference: np.ndarray) -> np.ndarray:
    """Return where head and neck may be in the reference shape, not the clothes; soft at its edge: float32 (S, S), 0 to 1."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    chin = reference[8, 1] / SIDE
    neck = (np.abs(x - 0.5) < NECK_WIDTH) & (y > chin - 0.1)
    head = (y < chin - 0.08) & (((x - 0.5) / 0.47) ** 2 + ((y - 0.45) / 0.52) ** 2 < 1)
    return cv2.GaussianBlur(np.float32(head | neck), (0, 0), SIDE / 64)


def right_half(texture: np.ndarray, yaw: float) -> np.ndarray:
    """Return the symmetric part of a texture, (S, S, C): the right half, float32 (S, S / 2, C), made from both.

    The side that the camera saw better counts for more.
    """
    right_share = np.float32(1 / (1 + np.exp(np.clip(YAW_SLOPE * yaw, -30, 30))))
    left, right = texture[:, SIDE // 2 - 1 :: -1].astype(np.float32), texture[:, SIDE // 2 :].astype(np.float32)
    return right_share * right + (1 - right_share) * left


def both_halves(half: np.ndarray) -> np.ndarray:
    """Return (n, S, S, C), whose right halves are (n, S, S / 2, C) and left ones these in the mirror."""
    return np.concatenate([half[:, :, ::-1], half], axis=2)


def texture_of(photo: np.ndarray, landmarks: np.ndarray, reference: np.ndarray):
    """Make what the regression predicts of a photo, and what it is told beside the face feature.

    Args:
        photo: uint8 (height, width, 3), RGB.
        landmarks, reference: float32 (68, 2), pixels of the photo, and of the picture.

    Returns:
        uint8 (M,), half a texture (S, S / 2, 4): colours times the head's share of the pixel, and that share; landmarks,
        float32 (68, 2), aligned; conditions, float64 (C,).
    """
    picture, inside, shape = align(photo, landmarks, reference)
    person = (255 * cut_out(picture, inside)).round().astype(np.uint8)
    warped = to_reference(np.dstack([picture, person]), shape, reference)
    plain, share = np.ascontiguousarray(warped[..., :3]), warped[..., 3] * head_mask(reference)
    conditions = np.concatenate([shape_conditions(shape), light_conditions(plain, reference)])
    half = right_half(np.dstack([plain * (share[..., None] / 255), share]), conditions[0])
    return half.clip(0, 255).round().astype(np.uint8).ravel(), shape, conditions


def texture_of_file(name: str, data: Path, reference: np.ndarray):
    """Do `texture_of` of a clip or photo of preprocess.py. Raises FileNotFoundError, InputError."""
    cv2.setNumThreads(1)
    return texture_of(media.read_portrait(data, name), utils.load_landmarks(data, name), reference)


# ----------------------------------------------------------------------------------------------------------------------
# What is not the person.

CONDITIONS = ("yaw", "yaw squared", "ears", "nose", "opening", "smile", "width", "down", "blur")
BLUR_SIDE = 128  # pixels, of a texture made smaller to measure its blur; high is sharp
NEUTRAL_OPENING = 0.03  # of the eyes' distance, between the lips
FRONTAL_YAW = 0.1  # of half the face's width: the nose's tip beside the middle
SHARP_PERCENTILE = 85
FURTHEST = 1.5  # spreads from the mean, of what is canonical
LEAST_CANONICAL = 10  # photos that are frontal and neutral, for their mean to be taken
WEIGHT_YAW, LEAST_WEIGHT = 0.2, 0.3  # see `quality`


def shape_conditions(landmarks: np.ndarray) -> np.ndarray:
    """Measure pose and mouth by aligned landmarks (68, 2), pixels: float64 (7,), the first of CONDITIONS."""
    x, y = landmarks.astype(np.float64).T
    eyes = (y[LEFT_EYE].mean() + y[RIGHT_EYE].mean()) / 2
    distance = x[RIGHT_EYE].mean() - x[LEFT_EYE].mean()
    yaw = (2 * x[30] - x[0] - x[16]) / (x[16] - x[0])
    ears = ((y[0] + y[16]) / 2 - eyes) / distance
    nose = (y[33] - y[30]) / distance
    opening = (y[65:68].mean() - y[61:64].mean()) / distance
    smile = ((y[51] + y[57]) / 2 - (y[48] + y[54]) / 2) / distance
    width = (x[54] - x[48]) / distance
    return np.array([yaw, yaw**2, ears, nose, opening, smile, width])


def face_hull(reference: np.ndarray) -> np.ndarray:
    """Return the convex hull of the landmarks: uint8 (S, S), 1 within."""
    hull = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(reference.round().astype(np.int32)), 1)
    return hull


@functools.lru_cache(1)
def _skin(reference: bytes):
    """Return where skin is, bool (S, S) and (BLUR_SIDE, BLUR_SIDE), and what finds its light's slopes, float64 (4, pixels)."""
    inner = cv2.erode(face_hull(np.frombuffer(reference, np.float32).reshape(-1, 2)), np.ones((9, 9), np.uint8))
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    solve = np.linalg.pinv(np.stack([np.ones_like(x), x, y, x**2], axis=-1)[inner > 0])
    return inner > 0, cv2.resize(inner, (BLUR_SIDE, BLUR_SIDE)) > 0, solve


def light_conditions(texture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Measure light and blur in the face of a texture, uint8 (S, S, 3): float64 (2,), the last of CONDITIONS."""
    skin, small, solve = _skin(reference.tobytes())
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)
    down = (solve @ np.log(16.0 + grey[skin]))[2]  # light from the side is gone with the mean of both halves
    edges = cv2.Laplacian(cv2.resize(grey, (BLUR_SIDE, BLUR_SIDE), interpolation=cv2.INTER_AREA), cv2.CV_32F)[small]
    return np.array([down, np.log((edges.std() + 0.1) / (grey[skin].astype(float).std() + 1))])


def canonical_conditions(conditions: np.ndarray) -> np.ndarray:
    """Return the conditions, (C,), of a frontal, neutral and sharp photo, from those of all photos, (N, C).

    They stay within a spread and a half of the mean: what no photo is like, regression cannot tell.
    """
    of = dict(zip(CONDITIONS, conditions.T))
    neutral = (of["opening"] < NEUTRAL_OPENING) & (of["smile"] < np.median(of["smile"])) & (np.abs(of["yaw"]) < FRONTAL_YAW)
    if neutral.sum() < LEAST_CANONICAL:  # few photos: those that open the mouth least
        neutral = of["opening"].argsort()[:LEAST_CANONICAL]
    fixed = {name: 0.0 for name in ("yaw", "yaw squared")}
    fixed["blur"] = np.percentile(of["blur"], SHARP_PERCENTILE)
    wanted = np.array([fixed.get(name, of[name][neutral].mean()) for name in CONDITIONS])
    mean, reach = conditions.mean(0), FURTHEST * conditions.std(0)
    return wanted.clip(mean - reach, mean + reach)


def quality(conditions: np.ndarray) -> np.ndarray:
    """Return how much each photo, by its conditions, (N, C), counts in the regression: frontal and sharp ones more."""
    yaw, blur = conditions[:, 0], conditions[:, -1]
    return np.exp(-((yaw / WEIGHT_YAW) ** 2)) * (LEAST_WEIGHT + (1 - LEAST_WEIGHT) * blur.argsort().argsort() / len(blur))


# ----------------------------------------------------------------------------------------------------------------------
# Regression.

PENALTY, HAIR_PENALTY = 2.5e-4, 2e-3  # of the ridge, in the face and around it, where hair differs from photo to photo
CONDITION_PENALTY = 1e-3  # of the ridge, a share of N: the conditions' variance is 1
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
    mean: np.ndarray  # float32 (M,), the texture of the mean feature under canonical conditions
    canonical: np.ndarray  # float64 (C,)
    spread: np.ndarray  # float64 (C,), of the conditions
    texture_slopes: np.ndarray  # float32 (C, M), of the conditions over their spread, and so are the next
    shape_slopes: np.ndarray  # float32 (C, 136)

    def targets(self, halves: np.ndarray, shapes: np.ndarray, conditions: np.ndarray):
        """Return what the decoder is to make of photos: what they show, under canonical conditions, refined as the basis is.

        Args:
            halves: uint8 (n, M); shapes: float32 (n, 68, 2), aligned; conditions: float64 (n, C).

        Returns:
            float32 (n, M), and symmetric landmarks, float32 (n, 68, 2).
        """
        deviations = ((conditions - self.canonical) / self.spread).astype(np.float32)
        textures = halves - deviations @ self.texture_slopes
        textures = refine(self.mean + TEXTURE_GAIN * (textures - self.mean), face_share(self.reference))
        return textures, symmetric(shapes) - (deviations @ self.shape_slopes).reshape(shapes.shape)


def symmetric(shapes: np.ndarray) -> np.ndarray:
    """Return the mean of aligned landmarks, (n, 68, 2), and their mirror image."""
    return (shapes + mirror_landmarks(shapes, SIDE)) / 2


def ridge(features: np.ndarray, conditions: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Solve the regression on features and conditions at once, weighted least squares, for whatever targets.

    Args:
        features: (N, D), the mean subtracted.
        conditions: (N, C), the canonical ones subtracted, scaled to a spread of 1.
        weights: (N,), mean 1.
        penalty: of the features, as a share of N times their whole variance, so that the same one suits features of 128 and of
            4096 numbers; the conditions' is small.

    Returns:
        float32 (D + C + 1, N), which times the targets, (N, anything), gives the slopes, and in its last row the target of the
        mean feature at canonical conditions.
    """
    n, size = features.shape
    inputs = np.column_stack([features, conditions, np.ones(n)]).astype(np.float64)
    weighted = inputs * weights[:, None]
    square = weighted.T @ inputs
    diagonal = np.full(len(square), CONDITION_PENALTY * n)
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
        full = both_halves(row.reshape(1, SIDE, SIDE // 2, 4))[0]
        sharp = full + SHARPENING * (full - cv2.GaussianBlur(full, (0, 0), SHARPENING_RADIUS))
        sharp[..., 3] = full[..., 3]
        smooth = cv2.GaussianBlur(full, (0, 0), HAIR_RADIUS)
        fine[number] = (smooth + face[..., None] * (sharp - smooth))[:, SIDE // 2 :].ravel()
    return fine


def fit(features: np.ndarray, people, halves: np.ndarray, shapes: np.ndarray, conditions: np.ndarray, reference: np.ndarray):
    """Compute the statistics of the decoder. Of several photos of a person, who counts as one, the features are averaged.

    Args:
        features: float32 (N, D).
        people: N names.
        halves: uint8 (N, M); shapes: float32 (N, 68, 2), aligned, pixels; conditions: float64 (N, C): of `texture_of`.
        reference: float32 (68, 2), pixels.

    Returns:
        Statistics.
    """
    _, person, n_photos = np.unique(people, return_inverse=True, return_counts=True)
    features = np.stack([np.bincount(person, column) for column in features.T], axis=1) / n_photos[:, None]  # (people, D)
    centre = features.mean(0)
    n, deviations = len(halves), (features - centre)[person]
    canonical, spread = canonical_conditions(conditions), np.maximum(conditions.std(0), 1e-6)
    scaled = (conditions - canonical) / spread
    weights = quality(conditions) / n_photos[person]
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
