"""Clips from recordings: where in them, and what a worker process extracts, with the recording's picture or other files' faces.

Never imports TensorFlow.
"""

import collections
import itertools
from pathlib import Path

from clips import detection, media, photos, speakers, speech, workers
from clips.extraction import ONE_AT_A_TIME, Extract, ExtractionSettings, Face, extract_of, face_of, timed
from clips.pairing import Recording
from clips.reasons import LENGTH_TOLERANCE_SECONDS, Skip
from clips.records import Line
from utils import CLIP_SECONDS, SAMPLE_RATE

ENOUGH_SECONDS = 3.0  # s of speech in a clip; stretches with less are used where there are too few others
TRIES = 20  # stretches in a row without enough speech or a face, after which the rest of a file is not searched


def stretches(seconds: float | None) -> list[tuple[float, float]]:
    """Divide a file into equal stretches of at least a clip's length, each for one clip.

    Args:
        seconds: length of the file; None if it cannot be told.

    Returns:
        Start and length of each, in s, in the order in which they are tried: the first ones of the list are spread over the
        whole file, however many they are. So a file's first clip stays the same when more are asked for.
    """
    n = max(1, int((seconds or 0) // CLIP_SECONDS))
    length = max(seconds or 0, CLIP_SECONDS) / n
    digits = (n - 1).bit_length()
    order = sorted(range(n), key=lambda number: int(f"{number:0{digits}b}"[::-1], 2) if digits else 0)
    return [(number * length, length) for number in order]


def extract_recordings(
    items: list[Recording], settings: ExtractionSettings
) -> tuple[list[Extract | Line], collections.Counter]:
    """Find the clips of recordings: decode, find speech and faces. Returns the same as `extract_clips`."""
    with ONE_AT_A_TIME:
        workers.compute_in_one_thread()
        seconds, results, faces = collections.Counter(), [], {}
        for voice, of_file in itertools.groupby(items, key=lambda item: item.voice):
            of_file = {item.window: item for item in of_file}
            found, skip = _windows(voice, max(of_file), of_file[min(of_file)].faces, faces, settings, seconds)
            for number, item in of_file.items():
                if number <= len(found):
                    start, samples, speech_seconds, of_window = found[number - 1]
                    more = round(speech_seconds, 2), round(start, 2)
                    results.append(extract_of(item.clip, of_window, settings, samples, *more))
                else:
                    reason, detail = (skip.reason, skip.detail) if not found else ("no-window", f"found {len(found)}")
                    results.append(Line(item.clip, reason, detail, settings.face_model, settings.detector))
        return results, seconds


def _windows(voice: Path, most: int, pictures, faces: dict, settings: ExtractionSettings, seconds: collections.Counter):
    """Find clips in a recording.

    Args:
        voice: path of the recording.
        most: number of clips, at most.
        pictures: paths of photos or videos of the speaker; None if the recording is a video of the speaker.
        faces: what is known of the faces in pictures already; more is added.

    Returns:
        For each clip its start in s, its samples, its seconds of speech, and the faces, each Face; and the Skip of
        the stretch that came first, if that has no clip.
    """
    found, poor, first_skip, failures = [], [], None, 0
    try:
        with timed(seconds, "decode"):
            read = media.read_clip(voice, picture=pictures is None)
        of_voice = pictures and _faces_of(pictures, faces, settings, seconds)
    except Skip as skip:
        return [], skip
    for start, length in stretches(read.seconds):
        try:
            if length >= CLIP_SECONDS + LENGTH_TOLERANCE_SECONDS:
                with timed(seconds, "decode"):
                    stretch = media.read_sound(voice, length, start)
                with timed(seconds, "speech"):
                    start += speech.best_start(stretch) / SAMPLE_RATE
            if start:
                with timed(seconds, "decode"):
                    read = media.read_clip(voice, start, picture=pictures is None)
            with timed(seconds, "speech"):
                speech_seconds = speech.speech_seconds(read.samples)
            if not pictures:
                found_face = _speaker_of(voice, start, read.frame, settings.speaker, settings, seconds)
                of_voice = [face_of(found_face, settings, seconds)]
            enough = speech_seconds >= ENOUGH_SECONDS
            (found if enough else poor).append((start, read.samples, speech_seconds, of_voice))
            failures = 0 if enough else failures + 1
        except Skip as skip:
            first_skip, failures = first_skip or skip, failures + 1
        if len(found) == most or failures == TRIES:
            break
    return (found + poor)[:most], first_skip


def _speaker_of(
    path: Path, start: float, first: media.Frame, rule: str, settings: ExtractionSettings, seconds: collections.Counter
) -> detection.Found:
    """Find the speaker's face in 6 s of a video, from `start` on; rule: of speakers.RULES."""

    def later_frames():
        with timed(seconds, "decode", within="detect"):
            return media.read_later_frames(path, start)

    with timed(seconds, "detect"):
        return speakers.find_speaker(first, later_frames, rule, settings.detector)


def _faces_of(pictures, known: dict, settings: ExtractionSettings, seconds: collections.Counter) -> list[Face]:
    """Find the face in each of several photos or videos of a person. Raises Skip if there is none in any."""
    skips = []
    for path in pictures:
        if path not in known:
            try:
                known[path] = face_of(_face_in(path, settings, seconds), settings, seconds, len(pictures) == 1)
            except Skip as skip:
                known[path] = skip
        if isinstance(known[path], Skip):
            skips.append(known[path])
    if len(skips) == len(pictures):
        raise skips[0]
    return [known[path] for path in pictures if not isinstance(known[path], Skip)]


def _face_in(path: Path, settings: ExtractionSettings, seconds: collections.Counter) -> detection.Found:
    """Find the face in a photo, or in a face track, which shows the speaker in its middle."""
    if path.suffix.lower() in photos.SUFFIXES:
        with timed(seconds, "decode"):
            picture = photos.read_photo(path)
        with timed(seconds, "detect"):
            return detection.find_photo_face(picture, settings.detector)
    with timed(seconds, "decode"):
        first = media.read_first_frame(path)
    return _speaker_of(path, 0, first, "middle", settings, seconds)
