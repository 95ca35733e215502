"""What a worker process extracts from a clip, a recording or a photo: sound, face, portrait, landmarks, dlib's face feature.

Never imports TensorFlow, so that the worker processes start fast and stay small.
"""

import collections
import contextlib
import dataclasses
import math
import threading
import time
from pathlib import Path

import numpy as np

from clips import detection, fetch, media, photos, speakers, speech, workers
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
    speaker: str = "staying"  # one of speakers.RULES, for clips of which no csv says where the face is


@dataclasses.dataclass(frozen=True)
class Extract:
    """What a worker extracts from a clip or a photo."""

    line: Line  # for the manifest, without the columns that the main process adds
    faces: np.ndarray  # uint8 (n, FACE_SIZE, FACE_SIZE, 3), RGB: those whose features are averaged, first the one that is kept
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


# ----------------------------------------------------------------------------------------------------------------------
# What a face gives.


@dataclasses.dataclass(frozen=True)
class Face:
    """What is kept of a face: not its frame, which may be large."""

    crop: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    portrait: np.ndarray  # uint8 (height, width, 3), RGB
    landmarks: np.ndarray  # float32 (68, 2), pixels of the portrait
    feature: np.ndarray | None  # float32 (128,), by dlib
    place: tuple  # for the manifest: second, top, right, bottom, left, and height
    detector: str
    doubt: str


def face_of(found: detection.Found, settings: ExtractionSettings, seconds: collections.Counter, is_one: bool = True) -> Face:
    """Extract a face. It gets a feature where --face-model asks for it, and where it is one of several, which are compared."""
    with timed(seconds, "landmarks"):
        portrait, box = detection.crop_portrait(found.frame, found.box)
        landmarks, feature = detection.find_landmarks(portrait, box), None
    if settings.face_model == "dlib" or not is_one:
        with timed(seconds, "embed"):
            feature = detection.dlib_feature(found.frame, found.box)
    top, right, bottom, left = found.box
    place = f"{found.second:g}", top, right, bottom, left, bottom - top
    return Face(found.face, portrait, landmarks, feature, place, found.detector, found.doubt)


def extract_of(
    clip: str, faces: list[Face], settings: ExtractionSettings, waveform=None, speech_seconds="", start_second=""
) -> Extract:
    """Make an Extract of one or more faces of a person: of several, the one nearest to the mean feature is kept as picture."""
    kept, n, mean = faces[0], "", None
    if len(faces) > 1 or settings.face_model == "dlib":
        features = np.stack([face.feature for face in faces])  # (n, 128)
        mean = features.mean(axis=0)
    if len(faces) > 1:
        nearest, n = int(np.linalg.norm(features - mean, axis=1).argmin()), len(faces)
        faces = [faces[nearest], *faces[:nearest], *faces[nearest + 1 :]]
        kept = faces[0]
    more = {"speech_seconds": speech_seconds, "start_second": start_second, "faces": n}
    line = Line(clip, "ready", kept.doubt, settings.face_model, kept.detector, *kept.place, **more)
    embedding = mean if settings.face_model == "dlib" else None
    return Extract(line, np.stack([face.crop for face in faces]), kept.portrait, kept.landmarks, embedding, waveform)


# ----------------------------------------------------------------------------------------------------------------------
# Clips and photos.

# A process has one set of dlib's networks, and one stderr, which fetching redirects: threads of a worker take turns.
ONE_AT_A_TIME = threading.Lock()


def extract_clips(rows: list[Row], settings: ExtractionSettings) -> tuple[list[Extract | Line], collections.Counter]:
    """Fetch, decode and detect the face in clips of one video, as far as it goes without TensorFlow.

    Args:
        rows: of the csv, all of one video.

    Returns:
        For each row the Extract or, if it failed, the line for the manifest; and the duration of each stage, in s.
    """
    with ONE_AT_A_TIME:
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
        if math.isnan(row.x):
            found = speakers.find_speaker(read.frame, later_frames, settings.speaker, settings.detector)
        else:
            found = detection.find_face(read.frame, later_frames, row.x, row.y, settings.detector)
    return extract_of(row.clip, [face_of(found, settings, seconds)], settings, read.samples, round(speech_seconds, 2))


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
    with ONE_AT_A_TIME:
        workers.compute_in_one_thread()
        seconds, results = collections.Counter(), []
        for photo in batch:
            try:
                with timed(seconds, "decode"):
                    picture = photos.read_photo(photo.path)
                with timed(seconds, "detect"):
                    found = detection.find_photo_face(picture, settings.detector)
                results.append(extract_of(photo.clip, [face_of(found, settings, seconds)], settings))
            except Skip as skip:
                results.append(Line(photo.clip, skip.reason, skip.detail, settings.face_model, settings.detector))
        return results, seconds
