"""From a photo to its texture: aligned by its landmarks, its head cut out, warped to the reference shape, made symmetric; and
what is not the person in it, measured: pose, mouth, light, blur.

S is the side of a picture in pixels, M = S * S / 2 * 4 the numbers of half a texture, C those of the covariates. Landmarks are
(68, 2): x to the right and y down, in pixels, the centre of the first pixel (0, 0).

Never imports TensorFlow: worker processes prepare the photos.
"""

import functools
from pathlib import Path

import cv2
import numpy as np

from clips import feature_files, media
from clips.detection import mirror_landmarks

SIDE = 192  # pixels, of a decoded picture
HALF = SIDE, SIDE // 2, 4  # half a texture: the right half's colours times the head's share of the pixel, and that share
EYE_DISTANCE, EYE_HEIGHT = 0.21, 0.50  # of the side: between the centres of the eyes, and of these below the upper border
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
EYES = slice(LEFT_EYE.start, RIGHT_EYE.stop)

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
        uint8 (M,), half a texture, see HALF, 0 to 255; landmarks, float32 (68, 2), aligned; covariates, float64 (C,).
    """
    picture, inside, shape = align(photo, landmarks, reference)
    person = (255 * cut_out(picture, inside)).round().astype(np.uint8)
    warped = to_reference(np.dstack([picture, person]), shape, reference)
    plain, share = np.ascontiguousarray(warped[..., :3]), warped[..., 3] * head_mask(reference)
    covariates = np.concatenate([shape_covariates(shape), light_covariates(plain, reference)])
    half = right_half(np.dstack([plain * (share[..., None] / 255), share]), covariates[0])
    return half.clip(0, 255).round().astype(np.uint8).ravel(), shape, covariates


def texture_of_file(name: str, data: Path, reference: np.ndarray):
    """Do `texture_of` of a clip or photo of preprocess.py. Raises FileNotFoundError, InputError."""
    return texture_of(media.read_portrait(data, name), feature_files.load_landmarks(data, name), reference)


# ----------------------------------------------------------------------------------------------------------------------
# What is not the person.

COVARIATES = ("yaw", "yaw squared", "ears", "nose", "opening", "smile", "width", "down", "blur")
BLUR_SIDE = 128  # pixels, of a texture made smaller to measure its blur; high is sharp


def shape_covariates(landmarks: np.ndarray) -> np.ndarray:
    """Measure pose and mouth by aligned landmarks (68, 2), pixels: float64 (7,), the first of COVARIATES."""
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


def light_covariates(texture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Measure light and blur in the face of a texture, uint8 (S, S, 3): float64 (2,), the last of COVARIATES."""
    skin, small, solve = _skin(reference.tobytes())
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)
    down = (solve @ np.log(16.0 + grey[skin]))[2]  # light from the side is gone with the mean of both halves
    edges = cv2.Laplacian(cv2.resize(grey, (BLUR_SIDE, BLUR_SIDE), interpolation=cv2.INTER_AREA), cv2.CV_32F)[small]
    return np.array([down, np.log((edges.std() + 0.1) / (grey[skin].astype(float).std() + 1))])
