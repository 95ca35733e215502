"""From a photo to the texture of a face and its covariates.

The texture is head and shoulders, aligned by the landmarks of the face, cut out of the background, warped to the reference
shape and made symmetric. It has three maps: skin and clothes, as they are behind the hair too; the outline of the person; and
the hair. The covariates measure pose, mouth, light, glasses and blur, which change from photo to photo of one person.

S is the side of a picture in pixels, M the size of half a texture, the sum of the sizes of HALVES, and C the number of
covariates. Landmarks are (68, 2): x to the right and y down, in pixels; (0, 0) is the centre of the first pixel.

Never imports TensorFlow: worker processes prepare the photos.
"""

import functools
import math
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from clips import feature_files, media
from clips.detection import mirror_landmarks
from faces import segmentation

SIDE = 256  # pixels, of a decoded picture
# The right halves of a texture's maps, (height, width, channels), each at the resolution that it needs.
HALVES = {
    "skin": (SIDE, SIDE // 2, 3),  # skin and clothes: RGB times their share of the pixel
    "outline": (SIDE // 2, SIDE // 4, 2),  # that share, times 255; the distance to the person's outline, see DISTANCE_ZERO
    "hair": (SIDE // 4, SIDE // 8, 4),  # hair: RGB times its share of the pixel; that share, times 255
}
HALF_SIZE = sum(map(math.prod, HALVES.values()))  # M
DISTANCE_ZERO = 128  # value of the outline; pixels inside the person are higher by their distance to it in pixels of the side
EYE_DISTANCE, EYE_HEIGHT = 0.19, 0.46  # of the side: between the eyes' centres, and from the upper border down to them
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

YAW_SLOPE = 12.0  # how fast `right_half` prefers one side as the head turns


def right_half(texture: np.ndarray, yaw: float) -> np.ndarray:
    """Average the two halves of a map, (height, width, channels): float32 (height, width / 2, channels), as the right half.

    The half that faces the camera has the larger weight.
    """
    right_share = np.float32(1 / (1 + np.exp(np.clip(YAW_SLOPE * yaw, -30, 30))))
    middle = texture.shape[1] // 2
    left, right = texture[:, middle - 1 :: -1].astype(np.float32), texture[:, middle:].astype(np.float32)
    return right_share * right + (1 - right_share) * left


def both_halves(half, concatenate=np.concatenate):
    """Put the mirror image of right halves, (n, height, width, channels), to their left: (n, height, 2 * width, channels).

    Args:
        concatenate: tf.concat for tensors.
    """
    return concatenate([half[:, :, ::-1], half], axis=2)


def maps_of(halves, reshape=np.reshape) -> dict:
    """Return the maps of half textures, (n, M), by their names in HALVES: views, each (n, height, width, channels).

    Args:
        reshape: tf.reshape for tensors.
    """
    maps, first = {}, 0
    for name, shape in HALVES.items():
        maps[name] = reshape(halves[:, first : first + math.prod(shape)], (-1, *shape))
        first += math.prod(shape)
    return maps


def distance_to_outline(share: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the outline of a person's share, (S, S): float32, pixels, positive inside."""
    inside = np.uint8(share > 0.5)
    inner, outer = (cv2.distanceTransform(of, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for of in (inside, 1 - inside))
    return inner - outer


def texture_of(photo: np.ndarray, landmarks: np.ndarray, reference: np.ndarray):
    """Prepare a photo for the regression of `decoder_statistics`: its targets and its covariates.

    Args:
        photo: uint8 (height, width, 3), RGB.
        landmarks: float32 (68, 2), pixels of the photo.
        reference: float32 (68, 2), pixels of the picture.

    Returns:
        Half a texture, uint8 (M,), see HALVES; the aligned landmarks, float32 (68, 2); and the covariates, float64 (C,).
    """
    picture, inside, shape = align(photo, landmarks, reference)
    person = segmentation.person_share(picture, inside)
    hair = segmentation.hair_share(picture, person, shape)
    warped = to_reference(picture, shape, reference)
    person, hair = np.moveaxis(to_reference(np.dstack([person, hair]), shape, reference).clip(0, 1), 2, 0)
    hair = np.minimum(hair, person)
    covariates = covariates_of(shape, inside, warped, reference)
    # Not quite to the edges, where the colours mix.
    skin, inner_hair = (cv2.erode(share, np.ones((3, 3)))[..., None] for share in (person - hair, hair))
    maps = {
        "skin": warped * skin,
        "outline": np.dstack([255 * skin, DISTANCE_ZERO + distance_to_outline(person)]).clip(0, 255),
        "hair": np.dstack([warped * inner_hair, 255 * inner_hair]),
    }
    halves = []
    for name, whole in maps.items():
        height, width, _ = HALVES[name]
        whole = cv2.resize(np.float32(whole), (2 * width, height), interpolation=cv2.INTER_AREA)
        halves.append(right_half(whole, covariates[0]).ravel())
    half = np.concatenate(halves)
    return half.clip(0, 255).round().astype(np.uint8), shape, covariates


def texture_of_file(name: str, data: Path, reference: np.ndarray):
    """Call `texture_of` for a clip or photo that preprocess.py made ready. Raises FileNotFoundError, InputError."""
    return texture_of(media.read_portrait(data, name), feature_files.load_landmarks(data, name), reference)


# ----------------------------------------------------------------------------------------------------------------------
# Covariates.

# Pose by the position of the ends of the jaw line and the tip of the nose; the mouth; glasses; the share of the picture that
# the photo does not reach; light from above; blur (high is sharp).
COVARIATES = ("yaw", "yaw squared", "jaw", "nose", "opening", "smile", "width", "glasses", "cropped", "down", "blur")
BLUR_SIDE = 128  # pixels, side of the smaller texture in which blur is measured


def covariates_of(shape: np.ndarray, inside: np.ndarray, texture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the COVARIATES of a photo, float64 (C,).

    Args:
        shape, inside: of `align`.
        texture: uint8 (S, S, 3), the aligned photo, warped to the reference shape.
        reference: float32 (68, 2), pixels of the picture.
    """
    of_texture = glasses_covariate(texture, reference), 1 - inside.mean(), *light_covariates(texture, reference)
    return np.array([*shape_covariates(shape), *of_texture])


def shape_covariates(landmarks: np.ndarray) -> np.ndarray:
    """Measure pose and mouth by aligned landmarks, (68, 2), pixels: float64 (7,), the first COVARIATES."""
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


# Where the bridge of glasses is: rows from above the eyes to below them, columns around the middle; distances between the eyes.
BRIDGE_ROWS, BRIDGE_HALF_WIDTH = (-0.22, 0.12), 0.13
NO_GLASSES = -3.7  # of the logarithm below: three in five photos of LFW are below, of people without glasses


def glasses_covariate(texture: np.ndarray, reference: np.ndarray) -> float:
    """Measure the bridge of glasses, horizontal edges between the eyes, in a texture, uint8 (S, S, 3): 0 without glasses."""
    distance, (x, y) = EYE_DISTANCE * SIDE, reference[EYES].mean(axis=0)
    top, bottom = (round(y + row * distance) for row in BRIDGE_ROWS)
    left, right = (round(x + sign * BRIDGE_HALF_WIDTH * distance) for sign in (-1, 1))
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY)[top:bottom, left:right].astype(float)
    return max(0.0, float(np.log((np.abs(np.diff(grey, axis=0)).mean() + 0.1) / (grey.mean() + 10))) - NO_GLASSES)


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
