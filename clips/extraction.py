"""What a worker process extracts from a clip or a photo: sound, face, portrait, landmarks, and dlib's face feature.

Never imports TensorFlow, so that the worker processes start fast and stay small.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from pathlib import Path

import numpy as np

from clips import detection, fetch, media, photos, speech, workers
from clips.reasons import LENGTH_TOLERANCE_SECONDS, Skip
from clips.records import Line, Row
from utils import CLIP_SECONDS, SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class ExtractionSettings:
    """What a worker needs to know besides the clips or photos."""

    videos: Path  # folder of the clips, an absolute path
    detector: str  # "hog" or "cnn"
    face_model: str  # "vggface" or "dlib"
    fetching: fetch.FetchSettings
    any_length: bool = False  # whether clips may be of another length than their rows


@dataclasses.dataclass(frozen=True)
class Extract:
    """What a worker extracts from a clip or a photo."""

    line: Line  # for the manifest, without the columns that the main process adds
    face: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    portrait: np.ndarray  # uint8 (height, width, 3), RGB
    landmarks: np.ndarray  # float32 (68, 2), pixels of the portrait
    embedding: np.ndarray | None  # float32 (128,) for --face-model dlib
    waveform: np.ndarray | None  # int16 (samples,), at most CLIP_SAMPLES, mono at SAMPLE_RATE; None for a photo


@contextlib.contextmanager
def timed(seconds: collections.Counter, stage: str, within: str | None = None):
    """Add the duration of the block, in s, to that of a stage, and subtract it from the stage `within` which it runs."""
    started = time.perf_counter()
    try:
        yield
    finally:
        duration = time.perf_counter() - started
        seconds[stage] += duration
        if within:
            seconds[within] -= duration


# A process has one set of dlib's networks, and one stderr, which fetching redirects: threads of a worker take turns.
_ONE_AT_A_TIME = threading.Lock()


def extract_clips(rows: list[Row], settings: ExtractionSettings) -> tuple[list[Extract | Line], collections.Counter]:
    """Fetch, decode and detect the face in clips of one video, as far as it goes without TensorFlow.

    Args:
        rows: of the csv, all of one video.

    Returns:
        For each row the Extract or, if it failed, the line for the manifest; and the duration of each stage, in s.
    """
    with _ONE_AT_A_TIME:
        workers.compute_in_one_thread()  # the workers of a Dask cluster too
        seconds, results = collections.Counter(), []
        paths = [settings.videos / f"{row.clip}.mp4" for row in rows]
        missing = [fetch.Segment(row.start, row.end, path) for row, path in zip(rows, paths) if not path.exists()]
        failures = {}
        if missing:
            with timed(seconds, "fetch"):
                failures = fetch.fetch(rows[0].video_id, missing, settings.fetching)
        for row, path in zip(rows, paths):
            try:
                problem = failures.get(path)
                if not problem:
                    results.append(_extract_clip(row, path, settings, seconds))
            except Skip as skip:
                problem = skip
            if problem:
                results.append(Line(row.clip, problem.reason, problem.detail, settings.face_model, settings.detector))
        return results, seconds


def _extract_clip(row: Row, path: Path, settings: ExtractionSettings, seconds: collections.Counter) -> Extract:
    with timed(seconds, "decode"):
        read = media.read_clip(path)
        if not settings.any_length:
            check_length(read, row)
    with timed(seconds, "speech"):
        speech_seconds = speech.speech_seconds(read.samples)

    def later_frames():
        with timed(seconds, "decode", within="detect"):
            return media.read_later_frames(path)

    with timed(seconds, "detect"):
        found = detection.find_face(read.frame, later_frames, row.x, row.y, settings.detector)
    return _extract_face(row.clip, found, settings, seconds, read.samples, round(speech_seconds, 2))


def check_length(clip: media.Clip, row: Row) -> None:
    """Raise Skip("wrong-length") if a clip is not as long as its row, or its sound ends too early.

    A clip that was cut at the key frame before its start, or not cut at all, is too long: its first 6 s are not the segment's.
    """
    expected, sound = row.end - row.start, len(clip.samples) / SAMPLE_RATE
    if clip.seconds is not None and abs(clip.seconds - expected) > LENGTH_TOLERANCE_SECONDS:
        raise Skip("wrong-length", f"expected {expected:.1f} s, found {clip.seconds:.1f} s")
    if sound < min(expected, CLIP_SECONDS) - LENGTH_TOLERANCE_SECONDS:
        raise Skip("wrong-length", f"expected {expected:.1f} s, found {sound:.1f} s of sound")


def extract_photos(batch: list[photos.Photo], settings: ExtractionSettings) -> tuple[list[Extract | Line], collections.Counter]:
    """Decode photos and detect the face in each. Returns the same as `extract_clips`."""
    with _ONE_AT_A_TIME:
        workers.compute_in_one_thread()
        seconds, results = collections.Counter(), []
        for photo in batch:
            try:
                with timed(seconds, "decode"):
                    picture = photos.read_photo(photo.path)
                with timed(seconds, "detect"):
                    found = detection.find_photo_face(picture, settings.detector)
                results.append(_extract_face(photo.clip, found, settings, seconds))
            except Skip as skip:
                results.append(Line(photo.clip, skip.reason, skip.detail, settings.face_model, settings.detector))
        return results, seconds


def _extract_face(
    clip: str,
    found: detection.Found,
    settings: ExtractionSettings,
    seconds: collections.Counter,
    waveform: np.ndarray | None = None,
    speech_seconds: float | str = "",
) -> Extract:
    with timed(seconds, "landmarks"):
        portrait, box = detection.crop_portrait(found.frame, found.box)
        landmarks = detection.find_landmarks(portrait, box)
    embedding = None
    if settings.face_model == "dlib":
        with timed(seconds, "embed"):
            embedding = detection.dlib_feature(found.frame, found.box)
    top, right, bottom, left = found.box
    place = f"{found.second:g}", top, right, bottom, left, bottom - top
    line = Line(clip, "ready", "", settings.face_model, found.detector, *place, speech_seconds)
    return Extract(line, found.face, portrait, landmarks, embedding, waveform)
