"""The records of preprocessing: the rows of AVSpeech's csv, the photos in a folder, and the lines of the manifest."""

import csv
import dataclasses
import fcntl
import hashlib
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import utils
from clips import feature_files, media
from clips.reasons import REASONS
from utils import FEATURE_SIZE, InputError

MAX_NAME_BYTES = 100  # of a person's name and of a photo's: together they become a file name
COLUMNS = ("video_id", "start", "end", "x", "y")

# What is wrong with a row, for the detail in the manifest; the first entry is for rows without a problem.
PROBLEMS = (
    "",
    "expected an id of 1 to 64 letters, digits, - and _",
    "expected 0 <= start < end, in s",
    "expected a face centre in [0, 1], as a fraction of width and height",
    "expected five values, found more",
)

# ----------------------------------------------------------------------------------------------------------------------
# The csv. AVSpeech has 2.6 million rows: they stay numbers in columns until they are processed.


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the csv: the clip's name, its video, start and end in s, and the centre of the face as a fraction."""

    clip: str
    video_id: str
    start: float
    end: float
    x: float
    y: float


def read_rows(path: Path, limit: int | None = None) -> tuple[list[str], pd.DataFrame]:
    """Read the csv.

    Returns:
        The video ids, in the order of their first rows; and the rows without blank lines, in the csv's order: line (int64,
        from 1), video (int32, position of its id), start, end, x, y (float64), problem (int8, position in PROBLEMS).

    Raises:
        InputError: if the file is not a csv of five columns.
    """
    expected = f"{path}: expected a csv of five columns, {', '.join(COLUMNS)}"
    ids, chunks, n_lines = {}, [], 0
    try:
        reader = pd.read_csv(
            path,
            header=None,
            dtype={0: object},  # text; a column of numbers only is read as numbers
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            on_bad_lines="warn",  # a line with too many values; missing values become empty ones
            skip_blank_lines=False,
            nrows=limit,
            chunksize=1_000_000,
            encoding="utf-8-sig",
            encoding_errors="replace",
        )
        while True:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", pd.errors.ParserWarning)
                warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # a column with text among its numbers
                chunk = next(reader, None)
            if chunk is None:
                break
            if chunk.shape[1] != len(COLUMNS):
                raise InputError(f"{expected}, found {chunk.shape[1]}; pass another --csv")
            chunk.columns = COLUMNS
            too_long = [int(n) for warning in caught for n in re.findall(r"line (\d+)", str(warning.message))]
            lines = np.arange(n_lines + 1, n_lines + 1 + len(chunk) + len(too_long))
            lines, n_lines = np.delete(lines, np.array(too_long, int) - n_lines - 1), n_lines + len(lines)
            codes, names = pd.factorize(chunk.video_id.fillna(""))
            video = np.array([ids.setdefault(name, len(ids)) for name in names.tolist()], np.int32)[codes]
            numbers = {column: pd.to_numeric(chunk[column], errors="coerce").astype(float) for column in COLUMNS[1:]}
            blank = np.all([values.isna() for values in numbers.values()], axis=0) & (video == ids.get("", -1))
            rows = pd.DataFrame({"line": lines, "video": video, **numbers, "problem": np.int8(0)})[~blank]
            surplus = pd.DataFrame({"line": too_long, "video": np.int32(-1), "problem": np.int8(4)})
            chunks.append(pd.concat([rows, surplus]).sort_values("line") if too_long else rows)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        raise InputError(f"{expected}, found none ({' '.join(str(error).split())}); pass another --csv") from error
    rows = pd.concat(chunks, ignore_index=True)
    if limit:
        rows = rows[rows.line <= limit]
    valid = np.array([re.fullmatch(r"[A-Za-z0-9_-]{1,64}", video_id) is not None for video_id in ids])  # part of file names
    start, end, x, y = (rows[column].to_numpy() for column in COLUMNS[1:])
    wrong_id = ~valid[rows.video] & (rows.problem == 0)
    wrong_times = ~((start >= 0) & (start < end) & (end < math.inf))
    wrong_centre = ~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1))
    rows["problem"] = np.select([rows.problem > 0, wrong_id, wrong_times, wrong_centre], [rows.problem, 1, 2, 3], 0)
    return list(ids), rows


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo of a person: its name, from which `utils.video_of` takes the person as from a clip's name, and its path."""

    clip: str
    path: Path

    @property
    def video_id(self) -> str:
        return utils.video_of(self.clip)


def find_photos(folder: Path, limit: int | None = None) -> list[Photo]:
    """Find the photos in a folder: one photo per person, or a subfolder per person.

    Returns:
        The first `limit` photos, sorted by path. Names are `<person>_photo`, or `<person>_<photo>` from a subfolder. They
        consist of letters, digits, dots and hyphens; the person's name may hold underscores too.

    Raises:
        InputError: if there are none, or two would have the same name.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of photos, found {'a file' if folder.exists() else 'none'}; pass another --faces"
        )
    photos = {}
    for path in media.photos_under(folder)[:limit]:
        person, *more = path.relative_to(folder).with_suffix("").parts
        photo = re.sub(r"[\W_]+", "-", "-".join(more)) or "photo"
        person, photo = (part.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore") for part in (person, photo))
        name = re.sub(r"[^\w.-]+", "-", f"{person}_{photo}")
        if name in photos:
            raise InputError(
                f"{path}: expected a name that differs from {photos[name].path}, found {name} for both; rename the photo"
            )
        photos[name] = Photo(name, path.absolute())
    if not photos:
        raise InputError(f"{folder}: expected photos ({', '.join(media.PHOTOS)}), found none; pass another --faces")
    return list(photos.values())


def shard_of(video_id: str, n_shards: int) -> int:
    """Return the shard of a video, from 1 to n_shards: a pure function of its id."""
    return 1 + int.from_bytes(hashlib.sha256(video_id.encode(errors="replace")).digest()[:8], "big") % n_shards


def rows_by_video(ids: list[str], rows: pd.DataFrame, chunk_size: int = 10_000):
    """Go through the valid rows video by video, in the order of each video's first row.

    Args:
        ids, rows: from `read_rows`.

    Yields:
        Lists of at most `chunk_size` Rows.
    """
    order = np.argsort(rows.video.to_numpy(), kind="stable")
    for start in range(0, len(order), chunk_size):
        chunk = rows.iloc[order[start : start + chunk_size]]
        yield [
            Row(utils.clip_name(ids[video], start, end), ids[video], start, end, x, y)
            for video, start, end, x, y in zip(chunk.video, chunk.start, chunk.end, chunk.x, chunk.y)
        ]


# ----------------------------------------------------------------------------------------------------------------------
# The manifest: a line for each attempt at a clip; the last line of a clip counts. No value holds a comma, a quote or a line
# break, so that each line can be read even if the line before is damaged.


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of manifest.csv; a clip that is not ready has only the first five values."""

    clip: str
    status: str
    detail: str = ""
    face_model: str = ""
    detector: str = ""
    frame_second: int | str = ""
    top: int | str = ""
    right: int | str = ""
    bottom: int | str = ""
    left: int | str = ""
    face_pixels: int | str = ""
    speech_seconds: float | str = ""
    spectrogram_bytes: int | str = ""
    embedding_bytes: int | str = ""
    face_bytes: int | str = ""
    portrait_bytes: int | str = ""
    landmarks_bytes: int | str = ""


MANIFEST_COLUMNS = tuple(field.name for field in dataclasses.fields(Line))
# The files of a clip, by the column that holds their size; a photo has all but the first.
FILES = {
    "spectrogram_bytes": feature_files.spectrogram_path,
    "embedding_bytes": feature_files.embedding_path,
    "face_bytes": feature_files.face_path,
    "portrait_bytes": feature_files.portrait_path,
    "landmarks_bytes": feature_files.landmarks_path,
}
SIZES = tuple(FILES)
PHOTO_SIZES = SIZES[1:]


def manifest_path(data: Path) -> Path:
    """Return the path of the manifest."""
    return data / "manifest.csv"


def append_lines(data: Path, lines: list[Line]) -> None:
    """Add lines to the manifest, under a lock: other shards may write too. A line cut short by a kill is ended first."""
    if not lines:
        return
    data.mkdir(parents=True, exist_ok=True)
    text = [",".join(re.sub(r'[",\s\0]+', " ", str(value)) for value in dataclasses.astuple(line)) for line in lines]
    with open(manifest_path(data), "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even by a kill
        if file.seek(0, os.SEEK_END) == 0:
            text.insert(0, ",".join(MANIFEST_COLUMNS))
        else:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(("\n".join(text) + "\n").encode())


def read_manifest(data: Path) -> pd.DataFrame:
    """Read the last line of each clip from the manifest.

    Returns:
        status, face_model and detector (category; unknown values are missing) and SIZES (float32), indexed by the hash of the
        clip's name (uint64): as Python strings, the names of millions of clips would fill the memory.
    """
    known = {"status": ("ready", *REASONS), "face_model": tuple(FEATURE_SIZE), "detector": ("hog", "cnn")}
    types = {**{column: pd.CategoricalDtype(values) for column, values in known.items()}, **dict.fromkeys(SIZES, np.float32)}
    chunks = [pd.DataFrame(columns=[*types], index=np.array([], np.uint64)).astype(types)]
    if manifest_path(data).exists():
        reader = pd.read_csv(
            manifest_path(data),
            header=None,
            names=MANIFEST_COLUMNS,
            dtype=object,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            on_bad_lines="skip",
            index_col=False,
            chunksize=200_000,
            encoding_errors="replace",
        )
        for chunk in reader:
            chunk.index = hash_names(chunk["clip"])
            chunk = chunk[[*types]].copy()  # not by `usecols`: an older manifest may lack columns
            for column, values in known.items():
                chunk[column] = pd.Categorical(chunk[column].where(chunk[column].isin(values), None), values)
            for column in SIZES:
                chunk[column] = pd.to_numeric(chunk[column], errors="coerce")
            chunks.append(chunk.astype(types))
    manifest = pd.concat(chunks)
    return manifest[~manifest.index.duplicated(keep="last")]


def hash_names(names) -> np.ndarray:
    """Hash names of clips. Returns uint64 (n,)."""
    return pd.util.hash_array(np.asarray(names, dtype=object), categorize=False)


def is_ready(data: Path, clip: str, sizes: dict) -> bool:
    """Tell whether all files of a clip or photo exist and have the given sizes, by the columns of FILES."""
    try:
        return all(FILES[column](data, clip).stat().st_size == size for column, size in sizes.items())
    except FileNotFoundError:
        return False
