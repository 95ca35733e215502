"""The speaker's face in a clip of which no csv says where the face is.

Never imports TensorFlow: the worker processes of preprocess.py import this.
"""

import functools
import math

import numpy as np

from clips.detection import Found, detect_faces, dlib_feature, face_boxes, usable_face
from clips.media import Frame
from clips.reasons import FACE_REASONS, Skip

RULES = "staying", "largest", "middle"  # which face is the speaker's; see `find_speaker`
STAYING_SHARE = 0.5  # of the frames examined, in which a face that stays is found
MAX_STEP = 1.0  # sides of the box, across and down, by which a face moves from one frame to the next, a second later
RIVAL_SHARE = 0.5  # of the speaker's size, summed over the frames, from which on another face that stays is told of
SAME_PERSON = 0.6  # distance of two of dlib's features, up to which dlib takes faces for the same person's


def find_speaker(first: Frame, later_frames, rule: str, detector: str) -> Found:
    """Find the face of the speaker in a clip.

    Args:
        first: the first frame.
        later_frames: function that returns more Frames, one a second.
        rule: "staying" takes the face that is largest over all frames, among those found in half of the frames at least, and
            refuses a face that becomes another person's; "largest" and "middle" take the largest face, or the one nearest to
            the middle, in the first frame in which it is large and sharp enough.
        detector: "hog" or "cnn", which examines the clips in which HOG finds no face.

    Returns:
        The face; `doubt` says how many faces stay if there are others nearly as large.

    Raises:
        Skip: one of FACE_REASONS.
    """
    later_frames = functools.cache(later_frames)

    def frames():
        yield first
        yield from later_frames()

    find = _staying if rule == "staying" else _in_one_frame
    try:
        return find(frames(), rule, "hog")
    except Skip as skip:
        if detector == "hog" or skip.reason not in ("no-face", "speaker-not-found"):
            raise
    return find(frames(), rule, "cnn")


def _boxes(frame: Frame, method: str) -> list[tuple[int, int, int, int]]:
    return detect_faces(frame.picture)[0] if method == "hog" else face_boxes(frame.picture, method, 0)


def _height(box) -> int:
    return box[2] - box[0]


def _centre(box) -> tuple[float, float]:
    top, right, bottom, left = box
    return (left + right) / 2, (top + bottom) / 2


def _from_middle(box, frame: Frame) -> float:
    """Return the distance of a box from the middle of the frame, in pixels."""
    height, width = frame.picture.shape[:2]
    x, y = _centre(box)
    return math.hypot(x - width / 2, y - height / 2)


def _usable(frame: Frame, box, method: str, doubt: str = "") -> Found:
    """Return the face in a box. Raises Skip: face-too-small or face-blurred."""
    height, width = frame.picture.shape[:2]
    x, y = _centre(box)
    box, face = usable_face(frame.picture, [box], x / width, y / height)
    return Found(face, frame.picture, frame.second, box, method, doubt)


def _first_usable(places, method: str, doubt: str = "") -> Found:
    """Return the first of several (frame, box) that is large and sharp enough. Raises Skip, of the one that came nearest."""
    best = Skip("no-face")
    for frame, box in places:
        try:
            return _usable(frame, box, method, doubt)
        except Skip as skip:
            best = max(best, skip, key=lambda skip: FACE_REASONS.index(skip.reason))
    raise best


def _in_one_frame(frames, rule: str, method: str) -> Found:
    def choose(boxes, frame):
        if rule == "largest":
            return max(boxes, key=_height)
        return min(boxes, key=lambda box: _from_middle(box, frame))

    found = ((frame, _boxes(frame, method)) for frame in frames)
    return _first_usable(((frame, choose(boxes, frame)) for frame, boxes in found if boxes), method)


def _staying(frames, rule: str, method: str) -> Found:
    frames, tracks = list(frames), []
    for number, frame in enumerate(frames):
        open_tracks = list(tracks)
        for box in sorted(_boxes(frame, method), key=_height, reverse=True):
            track = min(open_tracks, key=lambda track: _step(track[-1][1], box), default=None)
            if track is None or _step(track[-1][1], box) > MAX_STEP:
                tracks.append([(number, box)])
            else:
                track.append((number, box))
                open_tracks.remove(track)
    if not tracks:
        raise Skip("no-face")
    staying = [track for track in tracks if len(track) >= STAYING_SHARE * len(frames)]
    if not staying:
        raise Skip("speaker-not-found", "no face stays for half of the clip")

    def size(track):
        return sum(_height(box) for _, box in track)

    speaker = max(staying, key=lambda track: (size(track), -_from_middle(track[0][1], frames[track[0][0]])))
    rivals = sum(size(track) >= RIVAL_SHARE * size(speaker) for track in staying) - 1
    doubt = f"{1 + rivals} faces stay" if rivals else ""
    places = [(frames[number], box) for number, box in speaker]
    first, last = (_first_usable(ordered, method, doubt) for ordered in (places, places[::-1]))
    if last.second > first.second:
        features = dlib_feature(first.frame, first.box), dlib_feature(last.frame, last.box)
        if np.linalg.norm(features[0] - features[1]) > SAME_PERSON:
            raise Skip("speaker-not-found", "the face that stays becomes another person's")
    return first


def _step(before, box) -> float:
    """Return how far a box is from another one, across or down, in sides of the smaller one."""
    (x, y), (other_x, other_y) = _centre(box), _centre(before)
    return max(abs(x - other_x), abs(y - other_y)) / min(_height(box), _height(before))
