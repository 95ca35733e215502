"""The records of preprocessing: the rows of AVSpeech's csv, and the lines of the manifest."""

import csv
import dataclasses
import errno
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
from clips import dialects, feature_files
from clips.reasons import REASONS
from utils import FEATURE_SIZE, InputError

COLUMNS = ("video_id", "start", "end", "x", "y")  # x and y may be missing, together

# What is wrong with a row, for the detail in the manifest; the first entry is for rows without a problem.
PROBLEMS = (
    "",
    "expected an id of 1 to 64 letters, digits, - and _",
    "expected 0 <= start < end, in s",
    "expected a face centre in [0, 1], as a fraction of width and height",
    "expected five values, found more",
    "expected an id, found what a spreadsheet makes of one, such as 1.23E+16 or #NAME?",
    "expected numbers, found what a spreadsheet makes of one, such as a date or 1.234.567",
)
_TOO_LONG, _SPREADSHEET_ID, _SPREADSHEET_NUMBER = 4, 5, 6  # positions in PROBLEMS
# What spreadsheets make of ids such as 1234567E-10 and -1nRm4tQL0A, and of times such as 11.05 and 1234.567.
DAMAGED_ID = r"#\S+[?!]|#N/\w+|[+-]?\d([.,]\d+)?E[+-]\d{2,3}|\d+([.,]\d+)?E\+\d+"
DAMAGED_NUMBER = "|".join(
    (
        r"#.+",
        r"\d{1,3}([.,]\d{3}){2,}",  # 1.234.567
        r"\d{1,2}[./-] ?(\d{1,2}|[^\W\d]{3,9})\.?([./ -]+\d{2,4})?",  # 24/07, 24. Jul, 11.05.2025
        r"[^\W\d]{3,9}[. -]+\d{1,4}",  # Nov-11
        r"\d{4}-\d\d-\d\d.*",
    )
)

# ----------------------------------------------------------------------------------------------------------------------
# The csv. AVSpeech has 2.6 million rows: they stay numbers in columns until they are processed.


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the csv: the clip's name, its video, start and end in s, and the centre of the face as a fraction, or nan."""

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
        from 1), video (int32, position of its id), start, end, x, y (float64; both nan in a row without a face centre),
        problem (int8, position in PROBLEMS).

    Raises:
        InputError: if the file is not a csv of five columns, or of three.
    """
    expected = f"{path}: expected a csv of five columns, {', '.join(COLUMNS)}"
    dialect = dialects.dialect_of(path)
    ids, chunks, n_lines = {}, [], 0
    try:
        reader = pd.read_csv(
            path,
            header=None,
            sep=dialect.separator,
            decimal=dialect.decimal,
            dtype={int(dialect.indexed): object},  # text; a column of numbers only is read as numbers
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            on_bad_lines="warn",  # a line with too many values; missing values become empty ones
            skip_blank_lines=False,
            nrows=limit,
            chunksize=1_000_000,
            encoding=dialect.encoding,
            encoding_errors="replace",
        )
        while True:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", pd.errors.ParserWarning)
                warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # a column with text among its numbers
                chunk = next(reader, None)
            if chunk is None:
                break
            chunk = chunk.iloc[:, int(dialect.indexed) :]
            if chunk.shape[1] == dialects.N_VALUES_WITHOUT_CENTRE:
                chunk = chunk.assign(x="", y="")
            if chunk.shape[1] != len(COLUMNS):
                raise InputError(f"{expected}, found {chunk.shape[1]}; pass another --csv")
            chunk.columns = COLUMNS
            too_long = [int(n) for warning in caught for n in re.findall(r"line (\d+)", str(warning.message))]
            lines = np.arange(n_lines + 1, n_lines + 1 + len(chunk) + len(too_long))
            lines, n_lines = np.delete(lines, np.array(too_long, int) - n_lines - 1), n_lines + len(lines)
            codes, names = pd.factorize(chunk.video_id.fillna(""))
            names = [name.strip(' "') for name in names.tolist()]
            video = np.array([ids.setdefault(name, len(ids)) for name in names], np.int32)[codes]
            numbers, damaged = zip(*(_numbers(chunk[column], dialect.decimal) for column in COLUMNS[1:]))
            problem = np.int8(_SPREADSHEET_NUMBER) * np.any(damaged, axis=0)
            blank = np.logical_and(*(_are_blank(chunk[column]) for column in ("x", "y")))
            for of_centre in numbers[-2:]:
                of_centre[np.isnan(of_centre) & ~blank] = np.inf
            rows = pd.DataFrame({"line": lines, "video": video, **dict(zip(COLUMNS[1:], numbers)), "problem": problem})
            rows = rows[(video != ids.get("", -1)) | (problem > 0) | np.any(np.isfinite(numbers), axis=0)]  # not blank
            surplus = pd.DataFrame({"line": too_long, "video": np.int32(-1), "problem": np.int8(_TOO_LONG)})
            chunks.append(pd.concat([rows, surplus]).sort_values("line") if too_long else rows)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        raise InputError(f"{expected}, found none ({' '.join(str(error).split())}); pass another --csv") from error
    rows = pd.concat(chunks, ignore_index=True)
    if limit:
        rows = rows[rows.line <= limit]
    valid, damaged = (  # valid ids are part of file names
        np.array([re.fullmatch(pattern, video_id) is not None for video_id in ids])[rows.video]
        for pattern in (r"[A-Za-z0-9_-]{1,64}", DAMAGED_ID)
    )
    start, end, x, y = (rows[column].to_numpy() for column in COLUMNS[1:])
    rows["problem"] = np.select(
        [
            rows.problem == _TOO_LONG,
            damaged,
            ~valid,
            rows.problem == _SPREADSHEET_NUMBER,
            ~((start >= 0) & (start < end) & (end < math.inf)),
            ~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1) | np.isnan(x) & np.isnan(y)),
        ],
        [_TOO_LONG, _SPREADSHEET_ID, 1, _SPREADSHEET_NUMBER, 2, 3],
        0,
    )
    return list(ids), rows


def _numbers(column: pd.Series, decimal: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of a column, float64 (n,), nan where there is none, and whether a spreadsheet is the cause."""
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float, copy=True)
    damaged = np.isnan(numbers)
    if damaged.any():
        text = column[damaged].astype(str).str.strip(' "')
        numbers[damaged] = pd.to_numeric(text.str.replace(decimal, ".", regex=False), errors="coerce")
        damaged[damaged] = np.isnan(numbers[damaged]) & text.str.fullmatch(DAMAGED_NUMBER)
    return numbers, damaged


def _are_blank(column: pd.Series) -> np.ndarray:
    """Tell which values of a column are missing: bool (n,)."""
    blank = column.isna()
    if not pd.api.types.is_numeric_dtype(column):
        blank |= column.isin(["", " ", '""'])
    return blank.to_numpy()


def notes_on(path: Path, rows: pd.DataFrame) -> list[str]:
    """Return a line that counts the rows without a face centre, and one that names a spreadsheet as the cause of bad rows."""
    notes, without_centre = [], np.count_nonzero(np.isnan(rows.x[rows.problem == 0]))
    if without_centre:
        notes.append(f"{path}: {without_centre} of {len(rows)} rows have no face centre; --speaker says whose face is taken")
    damaged = rows.line[rows.problem.isin([_SPREADSHEET_ID, _SPREADSHEET_NUMBER])]
    if len(damaged):
        notes.append(
            f"{path}: a spreadsheet has changed ids or times, {len(damaged)} of {len(rows)} rows, the first in line "
            f"{damaged.iloc[0]}; use the csv as it was before, or import all columns as text"
        )
    return notes


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
    frame_second: float | str = ""
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
    start_second: float | str = ""  # in the file, of a clip of --folder or --voices
    faces: int | str = ""  # whose features are averaged


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


def lock(file) -> None:
    """Lock a file until it is closed, even by a kill. Where the drive knows no locks, do without."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def append_lines(data: Path, lines: list[Line]) -> None:
    """Add lines to the manifest; other shards may write too. A line cut short by a kill is ended first.

    All lines are written at once, which keeps them whole where there are no locks.
    """
    if not lines:
        return
    data.mkdir(parents=True, exist_ok=True)
    text = [",".join(re.sub(r'[",\s\0]+', " ", str(value)) for value in dataclasses.astuple(line)) for line in lines]
    with open(manifest_path(data), "a+b", buffering=0) as file:
        lock(file)
        if file.seek(0, os.SEEK_END) == 0:
            text.insert(0, ",".join(MANIFEST_COLUMNS))
        else:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text.insert(0, "")
        content = ("\n".join(text) + "\n").encode(errors="backslashreplace")
        while content:  # a second time only if the disk is full, which raises OSError
            content = content[file.write(content) :]


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
