"""What preprocess.py has to do: the rows of a csv, or photos, that are not ready yet.

Never imports TensorFlow.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from clips.extraction import extract, extract_photos
from clips.reasons import FACE_REASONS, REASONS, RETRIED
from clips.records import (
    PHOTO_SIZES,
    PROBLEMS,
    SIZES,
    Line,
    Photo,
    Row,
    find_photos,
    hash_names,
    in_order_of_videos,
    is_ready,
    read_manifest,
    read_rows,
    shard_of,
)

SEGMENTS_PER_TASK = 32  # clips of one video that a worker takes at a time
PHOTOS_PER_TASK = 8


def settled(data: Path, clip: str, line, columns: tuple[str, ...], options) -> str | None:
    """Return the status of a clip or photo that needs nothing more; None for one that is to be tried.

    Args:
        line: of the manifest.
        columns: of the sizes of its files.
    """
    if line.status == "ready":
        sizes = {column: getattr(line, column) for column in columns}
        return "ready" if line.face_model == options.face_model and is_ready(data, clip, sizes) else None
    if line.status not in REASONS or line.status in RETRIED or line.status in options.retry:
        return None
    if line.status in FACE_REASONS and options.detector == "cnn" and line.detector == "hog":
        return None
    return line.status


@dataclasses.dataclass(frozen=True)
class Source:
    """What a run goes through: the rows of a csv, or photos."""

    n: int  # of them
    unit: str  # what one of them is called
    product: str  # and what becomes of them
    path: Path  # of the csv, or of the folder
    tasks: Callable  # of functions `record`, of lines, and `count`, of statuses: gives lists of items for a worker
    extract: Callable  # what a worker does with such a list


def rows_of(options) -> Source:
    """Read the csv."""
    ids, rows = read_rows(options.csv, options.limit)
    shard, n_shards = options.shards()
    if n_shards > 1:
        mine = np.array([shard_of(video_id, n_shards) == shard for video_id in ids] + [shard == 1])
        rows = rows[mine[rows.video]]  # a line without id has the position -1, the last
    manifest = read_manifest(options.data)

    def rows_to_do(record, count):
        bad = rows[rows.problem > 0]
        names = [f"{options.csv.name} line {line}" for line in bad.line]
        known = manifest.status.reindex(hash_names(names)).tolist()
        record([Line(name, "bad-row", PROBLEMS[p]) for name, p, was in zip(names, bad.problem, known) if was != "bad-row"])
        count("bad-row" for was in known if was == "bad-row")
        sound = rows[rows.problem == 0]
        duplicate = sound.assign(start=sound.start.round(6), end=sound.end.round(6)).duplicated(["video", "start", "end"])
        count("duplicate" for _ in range(duplicate.sum()))
        for chunk in in_order_of_videos(ids, sound[~duplicate]):
            yield from items_to_do(chunk, manifest, SIZES, options, count)

    def tasks(record, count):
        for _, of_video in itertools.groupby(rows_to_do(record, count), key=lambda row: row.video_id):
            while task := list(itertools.islice(of_video, SEGMENTS_PER_TASK)):
                yield task

    return Source(len(rows), "row", "clips", options.csv, tasks, extract)


def photos_of(options) -> Source:
    """Find the photos."""
    shard, n_shards = options.shards()
    photos = [photo for photo in find_photos(options.faces, options.limit) if shard_of(photo.video_id, n_shards) == shard]
    manifest = read_manifest(options.data)

    def tasks(record, count):
        to_do = items_to_do(photos, manifest, PHOTO_SIZES, options, count)
        while task := list(itertools.islice(to_do, PHOTOS_PER_TASK)):
            yield task

    return Source(len(photos), "photo", "faces", options.faces, tasks, extract_photos)


def items_to_do(items: list[Row] | list[Photo], manifest: pd.DataFrame, columns, options, count):
    """Yield the items that are to be tried, and count the others by their status."""
    known = manifest.reindex(hash_names([item.clip for item in items]))
    for item, line in zip(items, known.itertuples()):
        status = settled(options.data, item.clip, line, columns, options)
        if status:
            count([status], before=True)
        else:
            yield item
