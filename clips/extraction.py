"""What a worker process takes out of a clip or a photo: sound, face, portrait, landmarks, and dlib's feature.

Never imports TensorFlow.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from pathlib import Path

import numpy as np

from clips import detection, fetch, media, workers
from clips.reasons import Skip
from clips.records import Line, Photo, Row

# ----------------------------------------------------------------------------------------------------------------------
# First stage, in worker processes, which never import TensorFlow: fetch, decode, detect, crop.


@dataclasses.dataclass(frozen=True)
class Extract:
    """What a worker takes out of a clip."""

    line: Line  # what it knows of the manifest's line
    face: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    portrait: np.ndarray  # uint8 (height, width, 3), RGB
    landmarks: np.ndarray  # float32 (68, 2), pixels of the portrait
    embedding: np.ndarray | None  # float32 (128,) with --face-model dlib
    waveform: np.ndarray | None  # int16 (CLIP_SAMPLES,) or less, mono at SAMPLE_RATE; None of a photo


@dataclasses.dataclass(frozen=True)
class Work:
    """What workers need to know beside the rows."""

    videos: Path
    detector: str
    face_model: str
    manner: fetch.Manner


def video_path(videos: Path, clip: str) -> Path:
    """Return the path of a clip's video; absolute, for a name may begin with "-"."""
    return videos.absolute() / f"{clip}.mp4"


@contextlib.contextmanager
def timed(busy: collections.Counter, stage: str, within: str | None = None):
    """Add the time that the block takes to a stage's, in s, and take it from that of the stage around it, if there is one."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        busy[stage] += seconds
        if within:
            busy[within] -= seconds


# dlib's networks are one per process, and so is stderr, which fetching diverts: a worker with threads takes a clip at a time.
_ONE_AT_A_TIME = threading.Lock()


def extract(rows: list[Row], work: Work) -> tuple[list[Extract | Line], collections.Counter]:
    """Do all of one video's rows that needs no TensorFlow.

    Returns:
        For each row the Extract or, where there is none, the manifest's line; and the time taken by each stage, in s.
    """
    with _ONE_AT_A_TIME:
        workers.compute_in_one_thread()  # Dask's workers too
        busy, results = collections.Counter(), []
        missing = [
            fetch.Segment(row.start, row.end, path) for row in rows if not (path := video_path(work.videos, row.clip)).exists()
        ]
        failures = {}
        if missing:
            with timed(busy, "fetch"):
                failures = fetch.fetch(rows[0].video_id, missing, work.manner)
        for row in rows:
            path = video_path(work.videos, row.clip)
            try:
                problem = failures.get(path)
                if not problem:
                    results.append(_extract_clip(row, path, work, busy))
            except Skip as skip:
                problem = skip
            if problem:
                results.append(Line(row.clip, problem.reason, problem.detail, work.face_model, work.detector))
        return results, busy


def _extract_clip(row: Row, path: Path, work: Work, busy: collections.Counter) -> Extract:
    with timed(busy, "decode"):
        waveform, first_frame = media.read_clip(path)

    def later_frames():
        with timed(busy, "decode", within="detect"):
            return media.read_later_frames(path)

    with timed(busy, "detect"):
        found = detection.find_face(first_frame, later_frames, row.x, row.y, work.detector)
    return _extract_face(row.clip, found, waveform, work, busy)


def _extract_face(clip: str, found: detection.Found, waveform, work: Work, busy: collections.Counter) -> Extract:
    with timed(busy, "landmarks"):
        portrait, box = detection.portrait(found.frame, found.box)
        landmarks = detection.find_landmarks(portrait, box)
    embedding = None
    if work.face_model == "dlib":
        with timed(busy, "embed"):
            embedding = detection.dlib_feature(found.frame, found.box)
    top, right, bottom, left = found.box
    line = Line(clip, "ready", "", work.face_model, found.detector, found.second, top, right, bottom, left, bottom - top)
    return Extract(line, found.face, portrait, landmarks, embedding, waveform)


def extract_photos(photos: list[Photo], work: Work) -> tuple[list[Extract | Line], collections.Counter]:
    """Do all of some photos that needs no TensorFlow. Returns what `extract` does."""
    with _ONE_AT_A_TIME:
        workers.compute_in_one_thread()
        busy, results = collections.Counter(), []
        for photo in photos:
            try:
                with timed(busy, "decode"):
                    picture = media.read_photo(photo.path)
                    if picture is None:
                        raise Skip("unreadable")
                with timed(busy, "detect"):
                    found = detection.find_photo_face(picture, work.detector)
                results.append(_extract_face(photo.clip, found, None, work, busy))
            except Skip as skip:
                results.append(Line(photo.clip, skip.reason, skip.detail, work.face_model, work.detector))
        return results, busy
