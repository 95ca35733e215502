"""Packed clips: the spectrograms and face features of many clips in a few large files, from which training reads its crops.

A pack stands in <data>/pack/ and is made from the pickles, which stay the interface: other programs read and write those.
Shard number 7 is

    spectrograms-00007.npy    float16 (n, N_FRAMES, N_BINS, 2)
    features-00007.npy        float32 (n, D)
    clips-00007.json          the names of its n clips, and when their pickles were written; the last file to be written

Clips have records of one size, so that a crop is one read at a known place, and the order of the clips is free: it is the order
that the pickles would be read in. The split does not matter to a pack, for clips of other parts are skipped.

Never imports TensorFlow.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from clips import feature_files, workers
from utils import N_BINS, N_FRAMES, InputError

READERS_A_PROCESSOR = 16  # clips read at a time: a network disk lets each wait, and waiting takes no processor
CLIPS_IN_SHARD = 16_384  # 10 GB with VGG-Face's features
CHECKED_CLIPS = 10_000  # whose pickles are compared with the pack even where no folder has changed
CHECKED_AT_A_TIME = 64  # of them, by one thread


def n_readers() -> int:
    """Return how many clips are read at the same time unless an option says otherwise."""
    return READERS_A_PROCESSOR * workers.n_processors()


def in_order(function, items, readers: int | None = None):
    """Yield function(item) for each item, in order, by threads that read ahead by a few items each."""
    readers = readers or n_readers()
    items, under_way = iter(items), []
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) >= 2 * readers:
                    yield under_way.pop(0).result()
            while under_way:
                yield under_way.pop(0).result()
        finally:
            for future in under_way:
                future.cancel()


@dataclasses.dataclass(frozen=True)
class Pickles:
    """The clips of a run in the files of preprocess.py. A clip is known by its number among `clips`."""

    data: Path
    clips: list[str]
    feature_size: int  # D

    def spectrogram(self, number: int) -> np.ndarray:
        """Return a clip's spectrogram, float16 (N_FRAMES, N_BINS, 2). Raises FileNotFoundError, InputError."""
        return feature_files.load_spectrogram(self.data, self.clips[number])

    def feature(self, number: int) -> np.ndarray:
        """Return a clip's face feature, float32 (D,). Raises FileNotFoundError, InputError."""
        return feature_files.load_embedding(self.data, self.clips[number], self.feature_size)


# ----------------------------------------------------------------------------------------------------------------------
# Reading.


@dataclasses.dataclass(frozen=True)
class Records:
    """The rows of an array in a .npy file, of which a part of one is read at a time, without holding up other threads."""

    file: object  # opened, unbuffered
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes

    def read(self, row: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return [first:last] of a row, along its first axis, as a new array. Raises OSError if the file is cut off."""
        row_shape = self.shape[1:]
        last = row_shape[0] if last is None else last
        return self._read(row * row_shape[0] + first, (last - first, *row_shape[1:]))

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return the rows [first:last], as `read`."""
        return self._read(first * self.shape[1], (last - first, *self.shape[1:]))

    def _read(self, n_before: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return a part of the array of this shape, before which there are `n_before` entries of the second axis."""
        part = np.empty(shape, self.dtype)
        at = self.offset + n_before * self.dtype.itemsize * math.prod(self.shape[2:])
        left = memoryview(part).cast("B")
        while n_read := os.preadv(self.file.fileno(), [left], at):  # once, but some network disks read part by part
            left, at = left[n_read:], at + n_read
            if not left:
                return part
        raise OSError(f"{self.file.name}: expected {len(left)} more bytes; delete the folder, rerun preprocess.py pack")


@dataclasses.dataclass(frozen=True)
class Frames:
    """A packed spectrogram, float16 (N_FRAMES, N_BINS, 2), of which no more is read than the frames of a slice."""

    records: Records
    row: int

    def __getitem__(self, frames: slice) -> np.ndarray:
        first, last, _ = frames.indices(N_FRAMES)
        return self.records.read(self.row, first, last)


@dataclasses.dataclass(frozen=True)
class Packed:
    """The clips of a run in a pack. n clips, known by their numbers among those that `open_pack` was given."""

    spectrograms: dict[int, Records]  # by shard
    features: dict[int, Records]
    shard: np.ndarray  # int32 (n,)
    row: np.ndarray  # int32 (n,), in the shard

    def spectrogram(self, number: int) -> Frames:
        """Return a clip's spectrogram. Its frames raise OSError where they cannot be read."""
        return Frames(self.spectrograms[self.shard[number]], int(self.row[number]))

    def feature(self, number: int) -> np.ndarray:
        """Return a clip's face feature, float32 (D,). Raises OSError."""
        return self.features[self.shard[number]].read(int(self.row[number]))

    def __len__(self):
        return len(self.shard)

    def __getitem__(self, numbers: slice) -> np.ndarray:
        """Return the face features of clips in a row, float32 (m, D): a gallery for `judging.search`, read part by part."""
        shard, row = self.shard[numbers], self.row[numbers]
        ends = [*(1 + np.flatnonzero((np.diff(shard) != 0) | (np.diff(row) != 1))), len(row)]  # of rows that follow one another

        def read(first, end):
            return self.features[shard[first]].rows(int(row[first]), int(row[end - 1]) + 1)

        return np.concatenate([*in_order(lambda ends: read(*ends), zip([0, *ends], ends))])


def pack_folder(data: Path) -> Path:
    """Return the folder of the pack of a data folder."""
    return Path(data) / "pack"


def _paths(folder: Path, shard: int) -> tuple[Path, Path, Path]:
    """Return the files of a shard: spectrograms, features, and the clips."""
    return folder / f"spectrograms-{shard:05}.npy", folder / f"features-{shard:05}.npy", folder / f"clips-{shard:05}.json"


def _shards(folder: Path) -> list[int]:
    """Return the numbers of the shards that are complete, sorted."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.glob("clips-*.json"))


def _read_index(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the clips of a shard, and when their pickles were written, int64 (n, 2), ns. Raises InputError."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return index["clips"], np.array(index["written"], np.int64).reshape(len(index["clips"]), 2)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the clips of a shard, found {error!r}; delete it, rerun preprocess.py pack"
        ) from error


def _open_records(path: Path, shape: tuple[int | None, ...], dtype) -> Records:
    """Open an array in a .npy file of this shape, of which None fits any length. Raises InputError."""
    expected = f"{path}: expected {np.dtype(dtype)} {shape}"
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:  # also a file that is shorter than its array
        raise InputError(f"{expected}, found {error}; delete the folder, rerun preprocess.py pack") from error
    fits = array.ndim == len(shape) and all(want in (None, found) for want, found in zip(shape, array.shape))
    if array.dtype != dtype or not fits:
        raise InputError(f"{expected}, found {array.dtype} {array.shape}; delete the folder, rerun preprocess.py pack")
    return Records(open(path, "rb", buffering=0), array.dtype, array.shape, array.offset)


def _written(data: Path, clip: str) -> list[int]:
    """Return when the spectrogram and the feature of a clip were written, ns; 0 for a file that is not there."""

    def of(path):
        try:
            return os.stat(path).st_mtime_ns
        except FileNotFoundError:
            return 0

    return [of(feature_files.spectrogram_path(data, clip)), of(feature_files.embedding_path(data, clip))]


def _changed(data: Path, index: Path, clips: list[str], written: np.ndarray, rows: list[int], most: int) -> list[str]:
    """Return the clips of a shard whose pickles have changed since they were packed.

    A file that is written whole changes its folder. As long as neither folder has changed since the shard was made, a sample of
    the clips is compared: on a network disk, each comparison takes as long as a read.

    Args:
        index: path of the shard's index.
        clips, written: of the index.
        rows: those of the clips that matter.
        most: clips in the sample.
    """
    folders = feature_files.spectrogram_path(data, "x").parent, feature_files.embedding_path(data, "x").parent
    made = index.stat().st_mtime_ns
    if all(folder.is_dir() and folder.stat().st_mtime_ns <= made for folder in folders):
        rows = utils.sample_clips(rows, most, 0)

    def compare(some):
        return [clips[row] for row in some if written[row].tolist() != _written(data, clips[row])]

    found = in_order(compare, (rows[first : first + CHECKED_AT_A_TIME] for first in range(0, len(rows), CHECKED_AT_A_TIME)))
    return [clip for some in found for clip in some]


def open_pack(data: Path, clips: list[str], feature_size: int) -> Packed | None:
    """Open the pack of a data folder, for these clips.

    Returns:
        The packed clips, or None where there is no pack or it lacks clips. A line on stderr says which.

    Raises:
        InputError: if the pack is broken, or stale: pickles of these clips have changed since they were packed.
    """
    folder = pack_folder(data)
    shards = _shards(folder)
    if not shards:
        return None
    numbers = {clip: number for number, clip in enumerate(clips)}
    shard_of, row_of = np.full(len(clips), -1, np.int32), np.zeros(len(clips), np.int32)
    changed = []
    for shard in shards:
        index = _paths(folder, shard)[2]
        names, written = _read_index(index)
        found = np.array([numbers.get(name, -1) for name in names], np.int64)
        rows = np.flatnonzero(found >= 0)
        shard_of[found[rows]], row_of[found[rows]] = shard, rows
        changed += _changed(data, index, names, written, rows.tolist(), CHECKED_CLIPS // len(shards))
    if changed:
        raise InputError(
            f"{folder}: expected clips as they are in their own files, found {len(changed)} of {len(clips)} that have changed "
            f"since, such as {changed[0]}; run preprocess.py pack --data {data}, or delete the folder"
        )
    if n_missing := int((shard_of < 0).sum()):
        print(
            f"{folder}: lacks {n_missing} of {len(clips)} clips, so that all are read from their own files; "
            f"preprocess.py pack --data {data} adds them",
            file=sys.stderr,
        )
        return None
    needed = np.unique(shard_of).tolist()
    shapes = ((None, N_FRAMES, N_BINS, 2), np.float16), ((None, feature_size), np.float32)
    spectrograms, features = (
        {shard: _open_records(_paths(folder, shard)[kind], *of_kind) for shard in needed} for kind, of_kind in enumerate(shapes)
    )
    print(f"{folder}: {len(clips)} clips are read from the pack", file=sys.stderr)
    return Packed(spectrograms, features, shard_of, row_of)


# ----------------------------------------------------------------------------------------------------------------------
# Packing.


def _write_shard(data: Path, folder: Path, shard: int, clips: list[str], feature_size: int, readers: int, bar) -> None:
    """Pack clips into a shard, whole or not at all. Raises FileNotFoundError, InputError for a broken pickle."""
    spectrograms, features, index = _paths(folder, shard)
    pickles, started = Pickles(data, clips, feature_size), time.time_ns()
    written = []

    def read(number):  # when it was written first: a pickle that changes while it is read counts as changed
        return _written(data, clips[number]), pickles.spectrogram(number), pickles.feature(number)

    with (
        utils.replacing(spectrograms) as large,
        utils.replacing(features) as small,
        open(large, "wb") as of_spectrograms,
        open(small, "wb") as of_features,
    ):
        for file, dtype, shape in (
            (of_spectrograms, np.float16, (N_FRAMES, N_BINS, 2)),
            (of_features, np.float32, (feature_size,)),
        ):
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(clips), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
        for times, spectrogram, feature in in_order(read, range(len(clips)), readers):
            of_spectrograms.write(spectrogram)
            of_features.write(feature)
            written.append(times)
            bar.update()
    with utils.replacing(index) as temporary:
        temporary.write_text(json.dumps({"clips": clips, "written": written}), encoding="utf-8")
        os.utime(temporary, ns=(started, started))  # folders that change from now on are newer


def pack(data: Path, readers: int | None = None, clips_in_shard: int = CLIPS_IN_SHARD) -> int:
    """Pack the clips under `data`: those that no shard holds, and those of shards whose pickles have changed.

    A run that was killed is continued with the shard that it was writing.

    Returns:
        0, the exit code: all clips are packed.

    Raises:
        InputError: if there are no clips, or a file is broken.
    """
    folder, clips = pack_folder(data), feature_files.ready_clips(data)
    feature_size = feature_files.feature_size_of(data, clips[0])
    utils.remove_leftovers(folder)
    left, known, started = dict.fromkeys(clips), set(), time.time_ns()
    for shard in (shards := _shards(folder)):
        index = _paths(folder, shard)[2]
        names, written = _read_index(index)
        lost = [name for name in names if name not in left]
        if lost or _changed(data, index, names, written, list(range(len(names))), CHECKED_CLIPS // len(shards)):
            index.unlink()  # first: without it there is no such shard
        else:
            os.utime(index, ns=(started, started))
            known.add(shard)
            for name in names:
                del left[name]
    for path in folder.glob("*-*.npy"):
        if int(path.stem.rpartition("-")[2]) not in known:
            path.unlink()
    n_before, left = len(clips) - len(left), list(left)
    free = (number for number in itertools.count() if number not in known)
    with tqdm(desc="pack", total=len(left), unit="clip", leave=False, disable=None) as bar:
        for first in range(0, len(left), clips_in_shard):
            some = left[first : first + clips_in_shard]
            _write_shard(data, folder, next(free), some, feature_size, readers or n_readers(), bar)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    print(f"preprocess: {folder} holds {len(clips)} clips ({n_before} of them before), {n_bytes / 1e9:.2f} GB")
    return 0
