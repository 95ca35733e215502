"""What preprocess.py has to do: the rows of a csv, recordings or photos that are not ready yet.

Never imports TensorFlow.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import utils
from clips import extraction, feature_files, folders, pairing, photos, records, windows
from clips.reasons import FACE_REASONS, REASONS, RETRIED
from utils import InputError

CLIPS_PER_TASK = 32  # of one video, for a worker at a time
PHOTOS_PER_TASK = 8
ITEMS_AT_A_TIME = 10_000  # that are compared with the manifest


@dataclasses.dataclass(frozen=True)
class Source:
    """The material of a run: the rows of a csv, recordings or photos."""

    n: int  # rows, recordings or photos
    unit: str  # "row", "recording" or "photo"; "window" for several clips of a recording
    product: str  # "clip" or "face"
    path: Path  # of the csv, or of the folder
    tasks: Callable  # (record, count) -> lists of items for a worker; record takes manifest lines, count takes statuses
    extract: Callable  # what a worker does with such a list
    notes: list[str] = dataclasses.field(default_factory=list)  # what was left out or assumed, for the end of the run


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless n is 1."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def rows_of(
    csv: Path,
    data: Path,
    settings: extraction.ExtractionSettings,
    retry: tuple[str, ...] = (),
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Source:
    """Read the csv.

    Args:
        csv: path of the csv.
        data: folder to write to.
        retry: reasons for which clips are tried again.
        limit: number of lines to read, or None for all.
        shard: (i, n) for the i-th of n parts of the videos.

    Raises:
        InputError: if the file is not a csv of five columns, or `data` holds features of another face model.
    """
    ids, rows = records.read_rows(csv, limit)
    notes = records.notes_on(csv, rows)
    i, n_shards = shard
    if n_shards > 1:
        mine = np.array([records.shard_of(video_id, n_shards) == i for video_id in ids] + [i == 1])
        rows = rows[mine[rows.video]]  # a line without an id has position -1, the last
    manifest = _manifest_of(data, settings.face_model)

    def rows_to_do(record, count):
        bad = rows[rows.problem > 0]
        names = [f"{csv.name} line {line}" for line in bad.line]
        known = manifest.status.reindex(records.hash_names(names)).tolist()
        record(
            [
                records.Line(name, "bad-row", records.PROBLEMS[problem])
                for name, problem, status in zip(names, bad.problem, known)
                if status != "bad-row"
            ]
        )
        count("bad-row" for status in known if status == "bad-row")
        valid = rows[rows.problem == 0]
        duplicate = valid.assign(start=valid.start.round(6), end=valid.end.round(6)).duplicated(["video", "start", "end"])
        count("duplicate" for _ in range(duplicate.sum()))
        for chunk in records.rows_by_video(ids, valid[~duplicate]):
            yield from _items_to_do(chunk, data, manifest, records.SIZES, settings, retry, count)

    def tasks(record, count):
        for _, of_video in itertools.groupby(rows_to_do(record, count), key=lambda row: row.video_id):
            while task := list(itertools.islice(of_video, CLIPS_PER_TASK)):
                yield task

    extract = functools.partial(extraction.extract_clips, settings=settings)
    return Source(len(rows), "row", "clip", csv, tasks, extract, notes)


def photos_of(
    folder: Path,
    data: Path,
    settings: extraction.ExtractionSettings,
    retry: tuple[str, ...] = (),
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Source:
    """Find the photos in a folder. Args and Raises as `rows_of`; a shard is a part of the people."""
    i, n_shards = shard
    found, notes = photos.find_photos(folder, limit)
    mine = [photo for photo in found if records.shard_of(photo.person, n_shards) == i]
    manifest = _manifest_of(data, settings.face_model)

    def tasks(record, count):
        to_do = _items_to_do(mine, data, manifest, records.PHOTO_SIZES, settings, retry, count)
        while task := list(itertools.islice(to_do, PHOTOS_PER_TASK)):
            yield task

    extract = functools.partial(extraction.extract_photos, settings=settings)
    return Source(len(mine), "photo", "face", folder, tasks, extract, notes)


def recordings_of(
    found: pairing.Recordings,
    n_windows: int,
    data: Path,
    settings: extraction.ExtractionSettings,
    retry: tuple[str, ...] = (),
    limit: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Source:
    """Take clips from recordings.

    Args:
        found: of `pairing.find_videos` or `pairing.pair`.
        n_windows: number of clips of each recording, at most.
        data, settings, retry, limit, shard: as `rows_of`; a shard is a part of the people.

    Raises:
        InputError: if `data` holds features of another face model.
    """
    i, n_shards = shard
    numbers = range(len(found.paths))[:limit]
    if n_shards > 1:
        of_people = [utils.person_of(clip) for clip in found.clips[:limit]]  # "" for what is left out, too
        numbers = [number for number in numbers if records.shard_of(of_people[number], n_shards) == i]
    manifest, notes = _manifest_of(data, settings.face_model), list(found.notes)

    def items(record, count):
        n_of_others = 0
        for number in numbers:
            path, clip = found.paths[number], found.clips[number]
            clips = [folders.clip_of_window(clip, window) for window in range(1, n_windows + 1)]
            pictures, how = found.faces_of(path) if found.faces_of else (None, "")
            if not clip:
                count(["duplicate"] * n_windows)
            elif pictures == []:
                status = manifest.status.reindex(records.hash_names(clips)).tolist()
                detail = f"no face of {utils.person_of(clip)}"
                record([records.Line(of, "unpaired", detail) for of, known in zip(clips, status) if known != "unpaired"])
                count(known for known in status if known == "unpaired")
            else:
                n_of_others += how == pairing.OF_PERSON
                faces = pictures and tuple(found.faces / picture for picture in pictures)
                for window, of_window in enumerate(clips, 1):
                    yield pairing.Recording(of_window, found.folder / path, faces, window)
        if n_of_others:
            notes.append(f"{n_of_others} recordings have faces from other folders of the same person: their own have none")

    def items_to_do(record, count):
        every = items(record, count)
        while some := list(itertools.islice(every, ITEMS_AT_A_TIME)):
            yield from _items_to_do(some, data, manifest, records.SIZES, settings, retry, count)

    def tasks(record, count):
        def group(item):  # what shares faces, or the windows of one recording
            return item.voice.parent if item.faces else item.voice

        for _, of_group in itertools.groupby(items_to_do(record, count), key=group):
            task = []
            for _, of_recording in itertools.groupby(of_group, key=lambda item: item.voice):
                task += of_recording
                if len(task) >= CLIPS_PER_TASK:
                    yield task
                    task = []
            if task:
                yield task

    extract = functools.partial(windows.extract_recordings, settings=settings)
    n, unit = len(numbers) * n_windows, "recording" if n_windows == 1 else "window"
    return Source(n, unit, "clip", found.folder, tasks, extract, notes)


def _manifest_of(data: Path, face_model: str) -> pd.DataFrame:
    """Read the manifest. Raises InputError if `data` holds features of another face model, which a run would replace."""
    manifest = records.read_manifest(data)
    others = manifest[(manifest.status == "ready") & manifest.face_model.notna() & (manifest.face_model != face_model)]
    if len(others):
        names = [path.stem for path in feature_files.embedding_path(data, "*").parent.glob("*.pkl")]
        others = others[others.index.isin(records.hash_names(names))]
    if len(others):
        features = f"{counted(len(others), 'feature')} in {data}"
        raise InputError(
            f"--face-model: expected {others.face_model.iloc[0]}, the model of {features}, found {face_model}; pass another "
            f"--data, or delete {feature_files.embedding_path(data, '*').parent}"
        )
    return manifest


def _items_to_do(items: list, data: Path, manifest, columns, settings, retry, count):
    """Yield the items that are to be tried, and count the others by their status."""
    known = manifest.reindex(records.hash_names([item.clip for item in items]))
    for item, line in zip(items, known.itertuples()):
        ready = line.status == "ready" and line.face_model == settings.face_model
        if ready and records.is_ready(data, item.clip, {column: getattr(line, column) for column in columns}):
            count(["ready"], before=True)
        elif is_final(line.status, line.detector, settings, retry):
            count([line.status], before=True)
        else:
            yield item


def is_final(status, detector_before, settings: extraction.ExtractionSettings, retry: tuple[str, ...]) -> bool:
    """Tell whether a clip or photo with a status in the manifest is not to be tried again.

    Args:
        status, detector_before: of the manifest; nan if unknown.
        settings: of this run. The detector cnn tries clips again in which hog found no usable face; any_length those of another
            length than their rows.
        retry: reasons for which clips are tried again.
    """
    if status not in REASONS or status in RETRIED or status in retry:
        return False
    if status == "wrong-length" and settings.any_length:
        return False
    for_want_of_a_face = status in (*FACE_REASONS, "no-window")
    return not (for_want_of_a_face and settings.detector == "cnn" and detector_before == "hog")
