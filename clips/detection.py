"""The face in a picture, by dlib: detection, the crop, the portrait around it, landmarks, and dlib's own face feature.

Never imports TensorFlow: the worker processes of preprocess.py import this.
"""

import dataclasses
import functools
import math
import warnings
from pathlib import Path

import cv2
import numpy as np

from clips.media import Frame
from clips.photos import read_photo
from clips.reasons import FACE_REASONS, MIN_FACE_PIXELS, Skip
from utils import FACE_SIZE

DETECTION_SIDE = 640  # pixels, the longer side of a frame for the detector; larger frames are made smaller
MAX_CENTRE_DISTANCE = 1.0  # sides of the box, across and down, from the speaker's centre in the csv to the box's
MIN_SHARPNESS = 0.004  # see `sharpness`
FACE_MARGIN = 0.15  # of the detector's box, added on each side: the box ends at brows and chin
PORTRAIT_MARGIN = 0.9  # of the box's side, added on each side: hair and neck
PORTRAIT_SIDE = 320  # pixels, the longer side of a portrait, at most
MIN_RELATIVE_HEIGHT = 0.5  # of a photo's largest face: smaller faces are in the background

# dlib's landmarks: jaw, brows, nose, eyes, mouth, each from the left of the picture to the right.
LANDMARK_BOX = 192  # pixels: the box is scaled to this size, because dlib gives landmarks in whole pixels
# The boxes whose landmarks are averaged: shift across and down in sides of the box, and scale; also in the mirrored picture.
LANDMARK_BOXES = ((0, 0, 1), (0.04, 0, 1), (-0.04, 0, 1), (0, 0.04, 1), (0, -0.04, 1.04))
# The landmark that each one becomes in the mirror image.
MIRRORED = np.array(
    [
        *(*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)),  # jaw, brows, nose
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
        *(*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65),  # mouth
    ]
)


# ----------------------------------------------------------------------------------------------------------------------
# Detection.


@functools.cache
def _face_recognition():
    """Import face_recognition at the first use: the import loads its networks, which takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its models' package still uses pkg_resources
        import face_recognition
    return face_recognition


def face_boxes(frame: np.ndarray, detector: str, upsampling: int) -> list[tuple[int, int, int, int]]:
    """Find the faces in a frame, which is made smaller first if larger than DETECTION_SIDE.

    Args:
        frame: uint8 (height, width, 3), RGB.
        detector: "hog" or "cnn".
        upsampling: how many times the frame is doubled in size.

    Returns:
        Boxes (top, right, bottom, left), pixels of the frame.
    """
    scale = max(1.0, max(frame.shape[:2]) / DETECTION_SIDE)
    if min(frame.shape[:2]) < scale:  # a line, which would have no pixel left
        return []
    if scale > 1:
        frame = cv2.resize(frame, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    boxes = _face_recognition().face_locations(np.ascontiguousarray(frame), upsampling, detector)
    return [tuple(round(edge * scale) for edge in box) for box in boxes]


def detect_faces(picture: np.ndarray, detector: str = "hog"):
    """Find the faces in a picture: by HOG in its own size, then in twice its size, then by CNN if `detector` is "cnn".

    Args:
        picture: uint8 (height, width, 3), RGB.

    Returns:
        The boxes of the first attempt that finds any, as `face_boxes` gives them, and its detector; no boxes if none does.
    """
    for method, upsampling in (("hog", 0), ("hog", 1), ("cnn", 0)):
        if method in ("hog", detector) and (boxes := face_boxes(picture, method, upsampling)):
            return boxes, method
    return [], detector


def speaker_box(boxes, x: float, y: float):
    """Return the box (top, right, bottom, left) nearest to (x, y), or None if all exceed MAX_CENTRE_DISTANCE. Pixels."""

    def distance(box):  # in sides of the box, the larger of across and down
        top, right, bottom, left = box
        return max(abs((left + right) / 2 - x), abs((top + bottom) / 2 - y)) / (bottom - top)

    return min((box for box in boxes if distance(box) <= MAX_CENTRE_DISTANCE), key=distance, default=None)


def crop_face(frame: np.ndarray, box) -> np.ndarray:
    """Crop a face, with FACE_MARGIN around the box; beyond the frame its border is repeated.

    Args:
        frame: uint8 (height, width, 3).
        box: (top, right, bottom, left), pixels.

    Returns:
        uint8 (FACE_SIZE, FACE_SIZE, 3).
    """
    top, right, bottom, left = box
    side = round(max(bottom - top, right - left) * (1 + 2 * FACE_MARGIN))
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    padded = cv2.copyMakeBorder(frame, side, side, side, side, cv2.BORDER_REPLICATE)
    crop = padded[top + side : top + 2 * side, left + side : left + 2 * side]
    return cv2.resize(crop, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA if side > FACE_SIZE else cv2.INTER_CUBIC)


def sharpness(face: np.ndarray) -> float:
    """Return the sharpness of a face, no unit: the variance of its Laplacian over its own variance, in grey, at half size.

    Among 639 faces of AVSpeech the minimum is 0.0076 and the median 0.086. Blurred with a Gaussian of 4 pixels their median
    is 0.0044, with 6 pixels 0.0023.

    Args:
        face: uint8 (FACE_SIZE, FACE_SIZE, 3), RGB.
    """
    grey = cv2.cvtColor(cv2.resize(face, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var() / max(1.0, grey.astype(float).var()))


def usable_face(frame: np.ndarray, boxes, x: float, y: float):
    """Pick the speaker's face among the faces in a frame.

    Args:
        frame: uint8 (height, width, 3), RGB.
        boxes: of the faces, (top, right, bottom, left), pixels.
        x, y: the centre of the speaker's face, as a fraction of width and height.

    Returns:
        Its box, and the face, uint8 (FACE_SIZE, FACE_SIZE, 3).

    Raises:
        Skip: one of FACE_REASONS.
    """
    if not boxes:
        raise Skip("no-face")
    height, width = frame.shape[:2]
    box = speaker_box(boxes, x * width, y * height)
    if box is None:
        raise Skip("speaker-not-found")
    if box[2] - box[0] < MIN_FACE_PIXELS:
        raise Skip("face-too-small", f"{box[2] - box[0]} pixels")
    face = crop_face(frame, box)
    if sharpness(face) < MIN_SHARPNESS:
        raise Skip("face-blurred", f"sharpness {sharpness(face):.4f}")
    return box, face


@dataclasses.dataclass(frozen=True)
class Found:
    """The speaker's face, and where and how it was found."""

    face: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    frame: np.ndarray  # uint8 (height, width, 3), RGB
    second: float  # when the frame is shown, in s from the start of the clip
    box: tuple[int, int, int, int]  # top, right, bottom, left, pixels of the frame
    detector: str
    doubt: str = ""  # in words, if another face may be the speaker's


def find_face(first: Frame, later_frames, x: float, y: float, detector: str) -> Found:
    """Find the speaker's face: in the first frame where it is near (x, y), large and sharp enough.

    HOG examines each frame in its own size and then in twice its size; CNN only the clips in which HOG finds no speaker.

    Args:
        first: the first frame.
        later_frames: function that returns more Frames, one a second; called only if they are needed.
        x, y: the centre of the face, as a fraction of width and height.
        detector: "hog" or "cnn".

    Raises:
        Skip: one of FACE_REASONS.
    """
    later_frames = functools.cache(later_frames)

    def frames():
        yield first
        yield from later_frames()

    best = Skip("no-face")
    for method, upsamplings in (("hog", (0, 1)), ("cnn", (0,))):
        if method == "cnn" and (detector != "cnn" or best.reason not in ("no-face", "speaker-not-found")):
            break
        for frame in frames():
            for upsampling in upsamplings:
                try:
                    box, face = usable_face(frame.picture, face_boxes(frame.picture, method, upsampling), x, y)
                except Skip as skip:
                    best = max(best, skip, key=lambda skip: FACE_REASONS.index(skip.reason))
                else:
                    return Found(face, frame.picture, frame.second, box, method)
    raise best


def find_photo_face(photo: np.ndarray, detector: str) -> Found:
    """Find the face in a photo, uint8 (height, width, 3), RGB: among the large faces, the one nearest to the middle.

    Raises:
        Skip: one of FACE_REASONS.
    """
    height, width = photo.shape[:2]
    boxes, method = detect_faces(photo, detector)
    min_height = MIN_RELATIVE_HEIGHT * max((bottom - top for top, _, bottom, _ in boxes), default=0)
    centres = [((left + right) / 2, (top + bottom) / 2) for top, right, bottom, left in boxes if bottom - top >= min_height]
    x, y = min(centres, key=lambda at: math.hypot(at[0] - width / 2, at[1] - height / 2), default=(0, 0))
    box, face = usable_face(photo, boxes, x / width, y / height)
    return Found(face, photo, 0, box, method)


def largest_face(picture: np.ndarray):
    """Return the box (top, right, bottom, left), pixels, of a picture's largest face, uint8 (height, width, 3), or None."""
    boxes, _ = detect_faces(picture)
    return max(boxes, key=lambda box: box[2] - box[0], default=None)


def faces_in_photo(path: Path) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Find all faces in a photo.

    Returns:
        The photo, uint8 (height, width, 3), RGB; and the boxes (top, right, bottom, left), pixels, from left to right.

    Raises:
        Skip: "unreadable" or "no-face".
    """
    photo = read_photo(path)
    boxes, _ = detect_faces(photo)
    if not boxes:
        raise Skip("no-face")
    return photo, sorted(boxes, key=lambda box: box[3])


# ----------------------------------------------------------------------------------------------------------------------
# What is extracted around a box.


def crop_portrait(frame: np.ndarray, box):
    """Crop a portrait, the head with hair and neck, as far as the frame reaches.

    Args:
        frame: uint8 (height, width, 3).
        box: (top, right, bottom, left), pixels.

    Returns:
        uint8 (height, width, 3), at most PORTRAIT_SIDE pixels; and the box in the portrait's pixels, float.
    """
    top, right, bottom, left = box
    margin = round(PORTRAIT_MARGIN * (bottom - top))
    first_row, first_column = max(0, top - margin), max(0, left - margin)
    crop = frame[first_row : bottom + margin, first_column : right + margin]
    scale = min(1, PORTRAIT_SIDE / max(crop.shape[:2]))
    if scale < 1:
        crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    edges = top - first_row, right - first_column, bottom - first_row, left - first_column
    return np.ascontiguousarray(crop), tuple(scale * edge for edge in edges)


def find_landmarks(picture: np.ndarray, box) -> np.ndarray:
    """Find the landmarks of a face: the mean over LANDMARK_BOXES, in the picture and in its mirror image, for stability.

    Args:
        picture: uint8 (height, width, 3), RGB.
        box: (top, right, bottom, left), pixels, from one of dlib's detectors.

    Returns:
        float32 (N_LANDMARKS, 2): x to the right and y down, pixels; (0, 0) is the centre of the first pixel.
    """
    api = _face_recognition().api
    top, right, bottom, left = box
    scale = LANDMARK_BOX / (bottom - top)
    scaled = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    found = []
    for mirror in (False, True):
        image = np.ascontiguousarray(scaled[:, ::-1]) if mirror else scaled
        for across, down, size in LANDMARK_BOXES:
            x, y = (left + right) / 2 + across * (right - left), (top + bottom) / 2 + down * (bottom - top)
            x, half = picture.shape[1] - x if mirror else x, size * (bottom - top) / 2
            square = api.dlib.rectangle(*(round(scale * edge) for edge in (x - half, y - half, x + half, y + half)))
            points = np.array([(point.x, point.y) for point in api.pose_predictor_68_point(image, square).parts()])
            points = (points + 0.5) / scale - 0.5
            found.append(mirror_landmarks(points, picture.shape[1]) if mirror else points)
    return np.mean(found, axis=0).astype(np.float32)


def mirror_landmarks(landmarks: np.ndarray, width: int) -> np.ndarray:
    """Return landmarks, (..., N_LANDMARKS, 2), as they are in the mirror image of a picture of `width` pixels."""
    mirrored = landmarks[..., MIRRORED, :].copy()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


def dlib_feature(frame: np.ndarray, box) -> np.ndarray:
    """Return dlib's feature, float32 (128,), of the face in a box of a frame, uint8 (height, width, 3), RGB."""
    return _face_recognition().face_encodings(np.ascontiguousarray(frame), [box])[0].astype(np.float32)
