"""From a photo to the texture of a face and its covariates.

The texture is the head, aligned by its landmarks, cut out of the background, warped to the reference shape and made symmetric.
The covariates measure pose, mouth, light and blur, which change from photo to photo of one person.

S is the side of a picture in pixels, M = S * S / 2 * 4 the size of half a texture, and C the number of covariates. Landmarks
are (68, 2): x to the right and y down, in pixels; (0, 0) is the centre of the first pixel.

Never imports TensorFlow: worker processes prepare the photos.
"""

import functools
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from clips import feature_files, media
from clips.detection import mirror_landmarks

SIDE = 192  # pixels, of a decoded picture
HALF = SIDE, SIDE // 2, 4  # the right half of a texture: RGB times the head's share of the pixel, and that share
EYE_DISTANCE, EYE_HEIGHT = 0.21, 0.50  # of the side: between the eyes' centres, and from the upper border down to them
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
EYES = slice(LEFT_EYE.start, RIGHT_EYE.stop)

# ----------------------------------------------------------------------------------------------------------------------
# Alignment.


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the shift, rotation and scale that bring points, (n, 2), closest to others by least squares: float64 (2, 3)."""
    source, target = source.astype(np.float64), target.astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = (source - source_mean) @ np.array([1, 1j]), (target - target_mean) @ np.array([1, 1j])
    rotation = np.vdot(a, b) / np.vdot(a, a).real
    matrix = np.array([[rotation.real, -rotation.imag], [rotation.imag, rotation.real]])
    return np.column_stack([matrix, target_mean - matrix @ source_mean])


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a matrix of `similarity`, (2, 3), to points, (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def symmetric(landmarks: np.ndarray, width: float = SIDE) -> np.ndarray:
    """Return the mean of landmarks, (..., 68, 2), and their mirror image in a picture of this width in pixels."""
    return (landmarks + mirror_landmarks(landmarks, width)) / 2


def reference_shape(landmarks: np.ndarray, rounds: int = 5) -> np.ndarray:
    """Return the mean shape of faces, made symmetric, with the eyes at EYE_DISTANCE and EYE_HEIGHT: float32 (68, 2).

    Args:
        landmarks: (N, 68, 2), each in the pixels of its photo.
        rounds: of aligning the faces to their mean.
    """
    eyes = np.array([[0.5 - EYE_DISTANCE / 2, EYE_HEIGHT], [0.5 + EYE_DISTANCE / 2, EYE_HEIGHT]]) * SIDE - 0.5
    mean = landmarks[0].astype(np.float64)
    for _ in range(rounds):
        mean = np.mean([transform(similarity(shape, mean), shape) for shape in landmarks], axis=0)
        mean = symmetric(mean, 2 * mean[:, 0].mean() + 1)
        mean = transform(similarity(np.array([mean[LEFT_EYE].mean(0), mean[RIGHT_EYE].mean(0)]), eyes), mean)
    return mean.astype(np.float32)


def align(photo: np.ndarray, landmarks: np.ndarray, reference: np.ndarray):
    """Shift, rotate and scale a photo so that its landmarks come closest to the reference shape.

    Args:
        photo: uint8 (height, width, 3), RGB.
        landmarks: (68, 2), pixels of the photo.
        reference: (68, 2), pixels of the picture.

    Returns:
        The picture, uint8 (S, S, 3), with the photo's border repeated beyond the photo; where the photo is, bool (S, S); and
        the landmarks in the picture, float32 (68, 2).
    """
    matrix = similarity(landmarks, reference)
    scale = np.hypot(*matrix[:, 0])
    if scale < 0.5:  # blurs a large photo first, against moiré
        photo = cv2.GaussianBlur(photo, (0, 0), 0.4 / scale)
    picture = cv2.warpAffine(photo, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.full(photo.shape[:2], 255, np.uint8), matrix, (SIDE, SIDE)) > 127
    return picture, inside, transform(matrix, landmarks).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# Segmentation.

# A network of 250 kB that separates people, hair included, from the background. From the package mediapipe 0.10.21,
# Apache-2.0, which itself does not install on every Python that this project supports, and has many dependencies.
SEGMENTATION = Path(__file__).resolve().parent / "selfie_segmentation.tflite"
SEGMENTATION_SIDE = 256  # pixels, of its input


@functools.cache
def _segmentation_network():
    return cv2.dnn.readNet(str(SEGMENTATION))


def cut_out(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Separate the person from the background.

    Args:
        picture, inside: of `align`.

    Returns:
        float32 (S, S), the person's share of each pixel, 0 to 1.

    Source: Google, "MediaPipe Selfie Segmentation", model card, 2021.
    """
    large = cv2.resize(picture, (SEGMENTATION_SIDE, SEGMENTATION_SIDE), interpolation=cv2.INTER_CUBIC)
    network = _segmentation_network()
    network.setInput(cv2.dnn.blobFromImage(large, 1 / 255))
    share = network.forward()[0, 0].clip(0, 1)
    return cv2.resize(share, (SIDE, SIDE), interpolation=cv2.INTER_AREA) * inside


# ----------------------------------------------------------------------------------------------------------------------
# The warp: a thin-plate spline. Source: Bookstein, "Principal warps", PAMI 1989.

GRID_STEP = 4  # pixels between the places where the spline is computed; bilinear in between
SMOOTHING = 1e-3  # of the spline, no unit: keeps landmarks that nearly coincide (closed lips) from folding the picture
BORDER_POINTS = 4  # fixed points of the warp on each side of the picture
N_GRID = SIDE // GRID_STEP + 1


def border() -> np.ndarray:
    """Return the fixed points of the warp, on the picture's border: float32 (4 * BORDER_POINTS, 2), pixels."""
    along = np.linspace(0, SIDE - 1, BORDER_POINTS + 1)[:-1]
    low, high = np.zeros_like(along), np.full_like(along, SIDE - 1)
    edges = [(along, low), (high, along), (SIDE - 1 - along, high), (low, SIDE - 1 - along)]
    return np.concatenate([np.stack(edge, axis=1) for edge in edges]).astype(np.float32)


def grid() -> np.ndarray:
    """Return the points where the spline is computed, row by row: float32 (N_GRID ** 2, 2), pixels."""
    along = np.linspace(0, SIDE - 1, N_GRID)
    return np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2).astype(np.float32)


def between_grid() -> np.ndarray:
    """Return the matrix that interpolates a row or column of `grid` at all pixels: float32 (S, N_GRID)."""
    positions = np.arange(SIDE) * (N_GRID - 1) / (SIDE - 1)  # of the pixels, in steps of the grid
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(N_GRID))).astype(np.float32)


def spline_matrix(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the thin-plate spline as a matrix: it is linear in the values that it interpolates.

    Args:
        points: (K, 2), pixels, where the values are given.
        places: (P, 2), pixels, where the spline is evaluated.

    Returns:
        float64 (P, K): times the values at the points, (K, anything), it gives the values at the places.
    """
    points, places = points.astype(np.float64) / SIDE, places.astype(np.float64) / SIDE
    smoothing = SMOOTHING / (2 * len(points))  # scipy's kernel is r^2 log r, half of the r^2 log r^2 of `decoder.Warp`
    return RBFInterpolator(points, np.eye(len(points)), kernel="thin_plate_spline", smoothing=smoothing)(places)


@functools.lru_cache(1)
def _spline_of(reference: bytes) -> np.ndarray:
    """Return the `spline_matrix` from landmarks and border in the reference shape to the grid."""
    return spline_matrix(np.concatenate([np.frombuffer(reference, np.float32).reshape(-1, 2), border()]), grid())


def to_reference(picture: np.ndarray, landmarks: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Warp an aligned picture, (S, S, ...), so that its landmarks move to the reference shape, float32 (68, 2)."""
    sources = _spline_of(reference.tobytes()) @ np.concatenate([landmarks, border()])  # (N_GRID ** 2, 2)
    between = between_grid()
    maps = cv2.merge([np.float32(between @ sources[:, i].reshape(N_GRID, N_GRID) @ between.T) for i in (0, 1)])
    return cv2.remap(picture, maps, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


# ----------------------------------------------------------------------------------------------------------------------
# Texture.

HALF_NECK = 0.15  # of the side, from the middle of the neck to its edge
YAW_SLOPE = 12.0  # how fast `right_half` prefers one side as the head turns


def head_mask(reference: np.ndarray) -> np.ndarray:
    """Return 1 where head or neck can be in the reference shape, 0 elsewhere, with a soft edge: float32 (S, S)."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    chin = reference[8, 1] / SIDE
    neck = (np.abs(x - 0.5) < HALF_NECK) & (y > chin - 0.1)
    head = (y < chin - 0.08) & (((x - 0.5) / 0.47) ** 2 + ((y - 0.45) / 0.52) ** 2 < 1)
    return cv2.GaussianBlur(np.float32(head | neck), (0, 0), SIDE / 64)


def right_half(texture: np.ndarray, yaw: float) -> np.ndarray:
    """Average the two halves of a texture, (S, S, channels): float32 (S, S / 2, channels), as the right half.

    The half that faces the camera has the larger weight.
    """
    right_share = np.float32(1 / (1 + np.exp(np.clip(YAW_SLOPE * yaw, -30, 30))))
    left, right = texture[:, SIDE // 2 - 1 :: -1].astype(np.float32), texture[:, SIDE // 2 :].astype(np.float32)
    return right_share * right + (1 - right_share) * left


def both_halves(half, concatenate=np.concatenate):
    """Put the mirror image of right halves, (n, S, S / 2, channels), to their left: (n, S, S, channels).

    Args:
        concatenate: tf.concat for tensors.
    """
    return concatenate([half[:, :, ::-1], half], axis=2)


def texture_of(photo: np.ndarray, landmarks: np.ndarray, reference: np.ndarray):
    """Prepare a photo for the regression of `decoder_statistics`: its targets and its covariates.

    Args:
        photo: uint8 (height, width, 3), RGB.
        landmarks: float32 (68, 2), pixels of the photo.
        reference: float32 (68, 2), pixels of the picture.

    Returns:
        Half a texture, uint8 (M,), see HALF; the aligned landmarks, float32 (68, 2); and the covariates, float64 (C,).
    """
    picture, inside, shape = align(photo, landmarks, reference)
    person = (255 * cut_out(picture, inside)).round().astype(np.uint8)
    warped = to_reference(np.dstack([picture, person]), shape, reference)
    plain, share = np.ascontiguousarray(warped[..., :3]), warped[..., 3] * head_mask(reference)
    covariates = np.concatenate([shape_covariates(shape), light_covariates(plain, reference)])
    half = right_half(np.dstack([plain * (share[..., None] / 255), share]), covariates[0])
    return half.clip(0, 255).round().astype(np.uint8).ravel(), shape, covariates


def texture_of_file(name: str, data: Path, reference: np.ndarray):
    """Call `texture_of` for a clip or photo that preprocess.py made ready. Raises FileNotFoundError, InputError."""
    return texture_of(media.read_portrait(data, name), feature_files.load_landmarks(data, name), reference)


# ----------------------------------------------------------------------------------------------------------------------
# Covariates.

# Pose by the position of the ends of the jaw line and the tip of the nose; the mouth; light from above; blur (high is sharp).
COVARIATES = ("yaw", "yaw squared", "jaw", "nose", "opening", "smile", "width", "down", "blur")
BLUR_SIDE = 128  # pixels, side of the smaller texture in which blur is measured


def shape_covariates(landmarks: np.ndarray) -> np.ndarray:
    """Measure pose and mouth by aligned landmarks, (68, 2), pixels: float64 (7,), all COVARIATES but the last two."""
    x, y = landmarks.astype(np.float64).T
    eyes = (y[LEFT_EYE].mean() + y[RIGHT_EYE].mean()) / 2
    distance = x[RIGHT_EYE].mean() - x[LEFT_EYE].mean()
    yaw = (2 * x[30] - x[0] - x[16]) / (x[16] - x[0])
    jaw = ((y[0] + y[16]) / 2 - eyes) / distance
    nose = (y[33] - y[30]) / distance
    opening = (y[65:68].mean() - y[61:64].mean()) / distance
    smile = ((y[51] + y[57]) / 2 - (y[48] + y[54]) / 2) / distance
    width = (x[54] - x[48]) / distance
    return np.array([yaw, yaw**2, jaw, nose, opening, smile, width])


def face_hull(reference: np.ndarray) -> np.ndarray:
    """Return the convex hull of the landmarks: uint8 (S, S), 1 inside."""
    hull = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(reference.round().astype(np.int32)), 1)
    return hull


@functools.lru_cache(1)
def _skin(reference: bytes):
    """Return where skin is, bool (S, S) and (BLUR_SIDE, BLUR_SIDE), and the regression of light on position, float64 (4, n)."""
    inner = cv2.erode(face_hull(np.frombuffer(reference, np.float32).reshape(-1, 2)), np.ones((9, 9), np.uint8))
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    solve = np.linalg.pinv(np.stack([np.ones_like(x), x, y, x**2], axis=-1)[inner > 0])
    return inner > 0, cv2.resize(inner, (BLUR_SIDE, BLUR_SIDE)) > 0, solve


def light_covariates(texture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Measure light and blur in the face of a texture, uint8 (S, S, 3): float64 (2,), the last two COVARIATES."""
    skin, small, solve = _skin(reference.tobytes())
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)
    down = (solve @ np.log(16.0 + grey[skin]))[2]  # averaging both halves removes light from the side
    edges = cv2.Laplacian(cv2.resize(grey, (BLUR_SIDE, BLUR_SIDE), interpolation=cv2.INTER_AREA), cv2.CV_32F)[small]
    return np.array([down, np.log((edges.std() + 0.1) / (grey[skin].astype(float).std() + 1))])
