"""The face in a picture, by dlib: detection, the crop, the portrait around it, landmarks, and dlib's own face feature.

Never imports TensorFlow: the worker processes of preprocess.py live on this.
"""

import dataclasses
import functools
import math
import warnings
from pathlib import Path

import cv2
import numpy as np

from clips.media import PHOTOS, read_photo
from clips.reasons import FACE_REASONS, SMALLEST_FACE, Skip
from utils import FACE_SIZE, InputError

DETECTION_SIDE = 640  # pixels, the longer side of what the detector sees
NEAR = 1.0  # sides of the box: the speaker's centre is at most so far from the box's, across and down
LEAST_SHARPNESS = 0.004  # see `sharpness`
FACE_MARGIN = 0.15  # of the detector's box, added on each side: the box ends at brows and chin
PORTRAIT_MARGIN = 0.9  # of the box's side, added on each side: hair and neck
PORTRAIT_SIDE = 320  # pixels, the longer side of a portrait, at most
LEAST_OF_LARGEST = 0.5  # of the height of a photo's largest face: a smaller one stands in the background

# dlib's landmarks: jaw, brows, nose, eyes, mouth, the left of the picture first.
LANDMARK_BOX = 192  # pixels: the box is brought to this size, for dlib gives landmarks in whole pixels
# Where they are looked for: shifts across and down in sides of the box, and its scale; in the mirrored picture too.
LANDMARK_BOXES = ((0, 0, 1), (0.04, 0, 1), (-0.04, 0, 1), (0, 0.04, 1), (0, -0.04, 1.04))
# The landmark that each one is in the mirror.
MIRRORED = np.array(
    [
        *(*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)),  # jaw, brows, nose
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
        *(*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65),  # mouth
    ]
)


# ----------------------------------------------------------------------------------------------------------------------
# Faces.


@functools.cache
def _face_recognition():
    """Import face_recognition where it is used: it loads its networks at once, which takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its models' package still uses pkg_resources
        import face_recognition
    return face_recognition


def face_boxes(frame: np.ndarray, detector: str, upsampling: int) -> list[tuple[int, int, int, int]]:
    """Find faces in a frame, uint8 (height, width, 3), RGB, made smaller where it is larger than DETECTION_SIDE.

    Returns:
        Boxes (top, right, bottom, left), pixels of the frame.
    """
    scale = max(1.0, max(frame.shape[:2]) / DETECTION_SIDE)
    if scale > 1:
        frame = cv2.resize(frame, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    boxes = _face_recognition().face_locations(np.ascontiguousarray(frame), upsampling, detector)
    return [tuple(round(edge * scale) for edge in box) for box in boxes]


def detect_faces(picture: np.ndarray, detector: str = "hog"):
    """Find faces in a picture, uint8 (height, width, 3), RGB: HOG as it is, then at twice its size, then CNN, if it is that.

    Returns:
        The boxes of the first look that finds any, as of `face_boxes`, and which detector it was; no boxes if there is none.
    """
    for looking, upsampling in (("hog", 0), ("hog", 1), ("cnn", 0)):
        if looking in ("hog", detector) and (boxes := face_boxes(picture, looking, upsampling)):
            return boxes, looking
    return [], detector


def speaker_box(boxes, x: float, y: float):
    """Return the box (top, right, bottom, left) of the speaker: whose centre is nearest to (x, y), if it is NEAR; else None.

    Args:
        boxes: all in pixels, as x and y.
    """

    def distance(box):  # in sides of the box, the larger of across and down
        top, right, bottom, left = box
        return max(abs((left + right) / 2 - x), abs((top + bottom) / 2 - y)) / (bottom - top)

    return min((box for box in boxes if distance(box) <= NEAR), key=distance, default=None)


def crop_face(frame: np.ndarray, box) -> np.ndarray:
    """Cut a face out of a frame, with FACE_MARGIN around the box; outside the frame its border is repeated.

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
    """Return how sharp a face is, no unit: the variance of its Laplacian over its own variance, in grey, at half size.

    Of 639 faces of AVSpeech the least has 0.0076 and half have more than 0.086; blurred with a Gaussian of 4 pixels half of
    them are below 0.0044, with 6 below 0.0023.

    Args:
        face: uint8 (FACE_SIZE, FACE_SIZE, 3), RGB.
    """
    grey = cv2.cvtColor(cv2.resize(face, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var() / max(1.0, grey.astype(float).var()))


def usable_face(frame: np.ndarray, boxes, x: float, y: float):
    """Pick the speaker's face out of a frame's.

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
    if box[2] - box[0] < SMALLEST_FACE:
        raise Skip("face-too-small", f"{box[2] - box[0]} pixels")
    face = crop_face(frame, box)
    if sharpness(face) < LEAST_SHARPNESS:
        raise Skip("face-blurred", f"sharpness {sharpness(face):.4f}")
    return box, face


@dataclasses.dataclass(frozen=True)
class Found:
    """The speaker's face, where and how it was found."""

    face: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    frame: np.ndarray  # uint8 (height, width, 3), RGB
    second: int  # of the frame in the clip
    box: tuple[int, int, int, int]  # top, right, bottom, left, pixels of the frame
    detector: str


def find_face(first_frame: np.ndarray, later_frames, x: float, y: float, detector: str) -> Found:
    """Find the speaker's face: in the first frame where it is near (x, y), large and sharp enough.

    HOG looks at a frame as it is and then at twice its size; CNN only at a clip in which HOG did not see the speaker.

    Args:
        first_frame: uint8 (height, width, 3), RGB.
        later_frames: function that returns more frames, one a second; called if they are needed.
        x, y: where the face is, as a fraction of width and height.
        detector: "hog" or "cnn".

    Raises:
        Skip: one of FACE_REASONS.
    """
    later_frames = functools.cache(later_frames)

    def frames():
        yield first_frame
        yield from later_frames()

    best = Skip("no-face")
    for looking, upsamplings in (("hog", (0, 1)), ("cnn", (0,))):
        if looking == "cnn" and (detector != "cnn" or best.reason not in ("no-face", "speaker-not-found")):
            break
        for second, frame in enumerate(frames()):
            for upsampling in upsamplings:
                try:
                    box, face = usable_face(frame, face_boxes(frame, looking, upsampling), x, y)
                except Skip as skip:
                    best = max(best, skip, key=lambda skip: FACE_REASONS.index(skip.reason))
                else:
                    return Found(face, frame, second, box, looking)
    raise best


def find_photo_face(photo: np.ndarray, detector: str) -> Found:
    """Find the face of a photo, uint8 (height, width, 3), RGB: of the large ones, the one nearest to the middle.

    Raises:
        Skip: one of FACE_REASONS.
    """
    height, width = photo.shape[:2]
    boxes, looking = detect_faces(photo, detector)
    least = LEAST_OF_LARGEST * max((bottom - top for top, _, bottom, _ in boxes), default=0)
    centres = [((left + right) / 2, (top + bottom) / 2) for top, right, bottom, left in boxes if bottom - top >= least]
    x, y = min(centres, key=lambda at: math.hypot(at[0] - width / 2, at[1] - height / 2), default=(0, 0))
    box, face = usable_face(photo, boxes, x / width, y / height)
    return Found(face, photo, 0, box, looking)


def portrait(frame: np.ndarray, box):
    """Cut a head and what is around it out of a frame, as far as the frame goes.

    Args:
        frame: uint8 (height, width, 3).
        box: (top, right, bottom, left), pixels.

    Returns:
        uint8 (height, width, 3), PORTRAIT_SIDE pixels at most; and the box in it, float.
    """
    top, right, bottom, left = box
    margin = round(PORTRAIT_MARGIN * (bottom - top))
    first_row, first_column = max(0, top - margin), max(0, left - margin)
    cut = frame[first_row : bottom + margin, first_column : right + margin]
    scale = min(1, PORTRAIT_SIDE / max(cut.shape[:2]))
    if scale < 1:
        cut = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    edges = top - first_row, right - first_column, bottom - first_row, left - first_column
    return np.ascontiguousarray(cut), tuple(scale * edge for edge in edges)


def find_landmarks(picture: np.ndarray, box) -> np.ndarray:
    """Find the landmarks of a face: the mean over LANDMARK_BOXES, in the picture and in its mirror image, which steadies them.

    Args:
        picture: uint8 (height, width, 3), RGB.
        box: (top, right, bottom, left), pixels, as a detector of dlib gives it.

    Returns:
        float32 (N_LANDMARKS, 2): x to the right and y down, pixels; (0, 0) is the centre of the first pixel.
    """
    import dlib

    predict = _face_recognition().api.pose_predictor_68_point
    top, right, bottom, left = box
    scale = LANDMARK_BOX / (bottom - top)
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    found = []
    for mirror in (False, True):
        seen = np.ascontiguousarray(large[:, ::-1]) if mirror else large
        for across, down, size in LANDMARK_BOXES:
            x, y = (left + right) / 2 + across * (right - left), (top + bottom) / 2 + down * (bottom - top)
            x, half = picture.shape[1] - x if mirror else x, size * (bottom - top) / 2
            around = dlib.rectangle(*(round(scale * edge) for edge in (x - half, y - half, x + half, y + half)))
            points = np.array([(point.x, point.y) for point in predict(seen, around).parts()])
            points = (points + 0.5) / scale - 0.5
            found.append(mirror_landmarks(points, picture.shape[1]) if mirror else points)
    return np.mean(found, axis=0).astype(np.float32)


def mirror_landmarks(landmarks: np.ndarray, width: int) -> np.ndarray:
    """Return landmarks, (..., N_LANDMARKS, 2), as they are in the mirror image of a picture of this width in pixels."""
    mirrored = landmarks[..., MIRRORED, :].copy()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


def largest_face(picture: np.ndarray):
    """Return the box (top, right, bottom, left), pixels, of a picture's largest face, uint8 (height, width, 3), or None."""
    boxes, _ = detect_faces(picture)
    return max(boxes, key=lambda box: box[2] - box[0], default=None)


def dlib_feature(frame: np.ndarray, box) -> np.ndarray:
    """Return dlib's feature of a face in a frame, uint8 (height, width, 3), RGB, by its box: float32 (128,)."""
    return _face_recognition().face_encodings(np.ascontiguousarray(frame), [box])[0].astype(np.float32)


def faces_in_photo(path: Path) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Find all faces in a photo.

    Returns:
        The photo, uint8 (height, width, 3), RGB; and the boxes (top, right, bottom, left), pixels, from left to right.

    Raises:
        InputError: if it is no photo, or there is no face in it.
    """
    photo = read_photo(path)
    if photo is None:
        raise InputError(f"{path}: expected a photo ({', '.join(PHOTOS)}), found none that can be read")
    boxes, _ = detect_faces(photo)
    if not boxes:
        raise InputError(f"{path}: expected a face, found none; take a photo where it looks into the camera")
    return photo, sorted(boxes, key=lambda box: box[3])
