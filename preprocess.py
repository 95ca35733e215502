"""Turn the rows of an AVSpeech csv into training data: clips -> spectrograms, faces and face features. Or photos -> faces.

Reads a csv without header whose rows are `YouTube id, start s, end s, x, y`; (x, y) is the centre of the speaker's face at the
start, as a fraction of width and height. A row's clip is <videos>/<id>_<start>-<end>.mp4 where that exists; otherwise it is
fetched with yt-dlp. Writes, under --data, for each clip

    spectrograms/<clip>.pkl   float16 (598, 257, 2), the voice encoder's input
    embeddings/<clip>.pkl     float32 (4096,), the VGG-Face feature, or (128,) with --face-model dlib
    faces/<clip>.jpg          the face, 224 x 224 pixels
    portraits/<clip>.jpg      the head and what is around it, 320 pixels at most, for the face decoder
    landmarks/<clip>.pkl      float32 (68, 2), in the portrait's pixels

and a line per row tried to manifest.csv: status is `ready` or the reason why not; the README lists them. A second run does
what is missing and what may pass now (a broken connection, a rate limit), and leaves the rest as it is.

    python preprocess.py --csv avspeech_train.csv
    python preprocess.py --faces photos --data data/photos     all but the spectrograms, of a photo of each person, or a folder
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

import fetch
import media
import records
import utils
import workers
from records import (
    PHOTO_SIZES,
    PROBLEMS,
    REASONS,
    RETRIED,
    SIZES,
    Line,
    Photo,
    Row,
    append_lines,
    find_photos,
    hash_names,
    in_order_of_videos,
    is_ready,
    manifest_path,
    read_manifest,
    read_rows,
    shard_of,
)
from utils import CLIP_SAMPLES, FEATURE_SIZE, InputError, check, option

BATCH = 8  # clips per pass of the networks
SEGMENTS_PER_TASK = 32  # clips of one video that a worker takes at a time
TASKS_PER_WORKER = 8  # under way for each worker, which bounds the memory
BATCH_SECONDS = 10  # s that a clip waits at most, about, for its batch to fill
PHOTOS_PER_TASK = 8
STAGES = ("fetch", "decode", "detect", "landmarks", "spectrogram", "embed", "write")  # whose time is measured


@dataclasses.dataclass(frozen=True)
class Options:
    csv: Path | None = option("csv with AVSpeech's five columns", None)
    faces: Path | None = option(
        "instead: folder of photos, one of each person, or a folder of each person's, for train.py --model decoder",
        None,
        metavar="FOLDER",
    )
    data: Path = option("folder to write to", utils.DATA)
    videos: Path | None = option(
        "folder of the clips, cut to start and end; those missing are fetched (default: <data>/videos)", None
    )
    limit: int | None = option("look at the first LIMIT rows, or photos, only", None, metavar="LIMIT")
    shard: str = option("take the I-th of N parts of the videos only, for N machines without a cluster", "1/1", metavar="I/N")
    retry: tuple[str, ...] = option(
        "try again also the clips with these reasons in manifest.csv", (), nargs="+", choices=tuple(REASONS), metavar="REASON"
    )
    detector: str = option(
        "face detector: hog, or cnn for the clips where hog sees no face, which takes some hundred times as long on a CPU",
        "hog",
        choices=("hog", "cnn"),
    )
    face_model: str = option(
        "network of the face feature: vggface is the paper's (580 MB of weights, downloaded once), dlib needs no download",
        "vggface",
        choices=tuple(FEATURE_SIZE),
    )
    workers: int = option("worker processes that fetch, decode and look for faces", os.cpu_count())
    scheduler: str | None = option(
        "address of a Dask scheduler, such as tcp://host:8786, whose workers do that instead", None, metavar="ADDRESS"
    )
    url_template: str = option("address of a video; {} stands for its id", "https://www.youtube.com/watch?v={}")
    sleep: float = option("mean time in s from one video to the next while fetching, for all workers of a machine", 15.0)
    rate: str | None = option("fetch at most so many bytes a second on average, such as 500K", None, metavar="RATE")
    cookies: Path | None = option("file of cookies for yt-dlp, in Netscape's format", None)
    proxy: str | None = option("address of a proxy for yt-dlp", None, metavar="ADDRESS")

    def __post_init__(self):
        found = "both" if self.csv else "neither"
        check((self.csv is None) != (self.faces is None), f"--csv: expected either --csv or --faces, found {found}")
        check(self.limit is None or self.limit >= 1, f"--limit: expected at least 1, found {self.limit}")
        shard = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        check(
            shard and 1 <= int(shard[1]) <= int(shard[2]),
            f"--shard: expected I/N, such as 3/8, I from 1 to N, found {self.shard}",
        )
        check(self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")
        check("{}" in self.url_template, f"--url-template: expected {{}} in it, found {self.url_template}")
        check(0 <= self.sleep < math.inf, f"--sleep: expected 0 s or more, found {self.sleep}")
        rate = self.bytes_per_second()
        check(rate is None or rate > 0, f"--rate: expected bytes a second, such as 500K or 2M, found {self.rate}")

    def shards(self) -> tuple[int, int]:
        """Return --shard as numbers, I and N."""
        return tuple(map(int, self.shard.split("/")))

    def bytes_per_second(self) -> float | None:
        """Return --rate as a number; 0 if it is none."""
        if self.rate is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", self.rate)
        return float(found[1]) * 1024 ** "KMG".find(found[2] or " ") * 1024 if found else 0


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
            except media.Skip as skip:
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
        found = media.find_face(first_frame, later_frames, row.x, row.y, work.detector)
    return _extract_face(row.clip, found, waveform, work, busy)


def _extract_face(clip: str, found: media.Found, waveform, work: Work, busy: collections.Counter) -> Extract:
    with timed(busy, "landmarks"):
        portrait, box = media.portrait(found.frame, found.box)
        landmarks = media.find_landmarks(portrait, box)
    embedding = None
    if work.face_model == "dlib":
        with timed(busy, "embed"):
            embedding = media.dlib_feature(found.frame, found.box)
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
                        raise media.Skip("unreadable")
                with timed(busy, "detect"):
                    found = media.find_photo_face(picture, work.detector)
                results.append(_extract_face(photo.clip, found, None, work, busy))
            except media.Skip as skip:
                results.append(Line(photo.clip, skip.reason, skip.detail, work.face_model, work.detector))
        return results, busy


# ----------------------------------------------------------------------------------------------------------------------
# Second stage, in the main process: spectrograms and VGG-Face features in batches, then the files.


def finish(batch: list[Extract], data: Path, networks: concurrent.futures.Future) -> tuple[list[Line], collections.Counter]:
    """Turn extracts into files under `data`.

    Args:
        batch: 1 to BATCH, all of clips or all of photos.
        networks: what `load_networks` returns.

    Returns:
        Their lines for the manifest, and the time taken by each stage, in s.
    """
    embed, busy = networks.result(), collections.Counter()
    filled = (batch * BATCH)[:BATCH]  # always as many: in another number of rows the last bit may round differently
    spectrograms, speech = [None] * BATCH, [math.inf] * BATCH
    if batch[0].waveform is not None:
        import model

        with timed(busy, "spectrogram"):
            speech = [media.speech_seconds(extract.waveform) for extract in batch]
            waveforms = np.stack([np.resize(extract.waveform, CLIP_SAMPLES) for extract in filled])  # shorter ones repeated
            waveforms = waveforms.astype(np.float32) / 32768  # (BATCH, CLIP_SAMPLES)
            spectrograms = model.spectrogram(waveforms).numpy().astype(np.float16)  # (BATCH, N_FRAMES, N_BINS, 2)
    embeddings = [extract.embedding for extract in batch]
    if embed:
        with timed(busy, "embed"):
            embeddings = embed(np.stack([extract.face for extract in filled]))  # (BATCH, D)
    lines = []
    with timed(busy, "write"):
        for extract, seconds, spectrogram, embedding in zip(batch, speech, spectrograms, embeddings):
            clip = extract.line.clip
            if seconds < media.MIN_SPEECH_SECONDS:
                lines.append(Line(clip, "silent", f"{seconds:.2f} s", extract.line.face_model, extract.line.detector))
                continue
            sizes = {
                "embedding_bytes": utils.save_array(utils.embedding_path(data, clip), embedding),
                "face_bytes": utils.save_bytes(utils.face_path(data, clip), jpeg(extract.face)),
                "portrait_bytes": utils.save_bytes(utils.portrait_path(data, clip), jpeg(extract.portrait)),
                "landmarks_bytes": utils.save_array(utils.landmarks_path(data, clip), extract.landmarks),
            }
            if spectrogram is not None:
                sizes["spectrogram_bytes"] = utils.save_array(utils.spectrogram_path(data, clip), spectrogram)
                sizes["speech_seconds"] = round(seconds, 2)
            lines.append(dataclasses.replace(extract.line, **sizes))
    return lines, busy


def jpeg(picture: np.ndarray) -> bytes:
    """Return a picture, uint8 (height, width, 3), RGB, as JPEG."""
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()  # OpenCV wants BGR


# ----------------------------------------------------------------------------------------------------------------------
# The run.


def settled(data: Path, clip: str, line, columns: tuple[str, ...], options: Options) -> str | None:
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
    if line.status in media.FACE_REASONS and options.detector == "cnn" and line.detector == "hog":
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


def rows_of(options: Options) -> Source:
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
        for piece in in_order_of_videos(ids, sound[~duplicate]):
            yield from items_to_do(piece, manifest, SIZES, options, count)

    def tasks(record, count):
        for _, of_video in itertools.groupby(rows_to_do(record, count), key=lambda row: row.video_id):
            while task := list(itertools.islice(of_video, SEGMENTS_PER_TASK)):
                yield task

    return Source(len(rows), "row", "clips", options.csv, tasks, extract)


def photos_of(options: Options) -> Source:
    """Find the photos."""
    shard, n_shards = options.shards()
    photos = [photo for photo in find_photos(options.faces, options.limit) if shard_of(photo.video_id, n_shards) == shard]
    manifest = read_manifest(options.data)

    def tasks(record, count):
        to_do = items_to_do(photos, manifest, PHOTO_SIZES, options, count)
        while task := list(itertools.islice(to_do, PHOTOS_PER_TASK)):
            yield task

    return Source(len(photos), "photo", "faces", options.faces, tasks, extract_photos)


def items_to_do(items: list[Row] | list[Photo], manifest: pd.DataFrame, columns, options: Options, count):
    """Yield the items that are to be tried, and count the others by their status."""
    known = manifest.reindex(hash_names([item.clip for item in items]))
    for item, line in zip(items, known.itertuples()):
        status = settled(options.data, item.clip, line, columns, options)
        if status:
            count([status], before=True)
        else:
            yield item


def load_networks(face_model: str, sound: bool):
    """Start TensorFlow, where it is needed.

    Args:
        face_model: "vggface" or "dlib", whose features the workers make.
        sound: whether there are spectrograms to make.

    Returns:
        A function from faces, uint8 (B, FACE_SIZE, FACE_SIZE, 3), to features, float32 (B, D); or None for "dlib".
    """
    if face_model == "vggface":
        import vggface

        return vggface.face_embedder()
    if sound:
        import model  # noqa: F401
    return None


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    for path, what in ((options.csv, "AVSpeech's csv"), (options.cookies, "a file of cookies")):
        if path and not path.is_file():
            raise InputError(f"{path}: expected {what}, found no such file; the README says where to get it")
    manner = fetch.Manner(
        options.url_template,
        options.sleep,
        options.bytes_per_second(),
        options.cookies and options.cookies.read_text(encoding="utf-8", errors="replace"),
        options.proxy,
    )
    work = Work((options.videos or options.data / "videos").absolute(), options.detector, options.face_model, manner)
    fetch.remove_leftovers(work.videos)

    with concurrent.futures.ThreadPoolExecutor(1) as finisher, contextlib.ExitStack() as stack:
        source = rows_of(options) if options.csv else photos_of(options)
        networks = finisher.submit(load_networks, options.face_model, options.csv is not None)  # while the workers begin
        start, window = functools.partial(workers.start_pool, options.workers), TASKS_PER_WORKER * options.workers
        if options.scheduler:
            modules = utils, media, fetch, records, workers, sys.modules[extract.__module__]
            client, n_threads = workers.connect(options.scheduler, modules)
            stack.enter_context(client)
            start, window = functools.partial(client.get_executor, pure=False), TASKS_PER_WORKER * n_threads
        try:
            return run(options, source, work, networks, start, window, finisher)
        except concurrent.futures.CancelledError:
            raise InputError(
                f"--scheduler: expected the Dask scheduler at {options.scheduler} to stay, lost it; what is written stays; "
                "the same command goes on from here"
            ) from None
        finally:
            for worker in multiprocessing.active_children():  # after Ctrl-C, say, one may be waiting for its turn to fetch
                worker.terminate()


def run(options: Options, source: Source, work: Work, networks, start, window: int, finisher) -> int:
    """Do what is to be done, and say what came of it: the second half of main. Returns the exit code."""
    started, busy = time.perf_counter(), collections.Counter()
    counts, n_before = collections.Counter(), 0  # of statuses
    progress = tqdm(desc="preprocess", total=source.n, unit=source.unit)

    def record(lines):
        append_lines(options.data, lines)
        count(line.status for line in lines)

    def count(statuses, before=False):
        nonlocal n_before
        n, n_ready = counts.total(), counts["ready"]
        counts.update(statuses)
        n_before += (counts["ready"] - n_ready) * before
        progress.update(counts.total() - n)

    finishing, batch, batch_finished, bot_check = collections.deque(), [], started, None

    def collect(at_most):
        while len(finishing) > at_most or (finishing and finishing[0].done()):
            lines, seconds = finishing.popleft().result()
            busy.update(seconds)
            record(lines)

    def finish_batch():
        nonlocal batch_finished
        batch_finished = time.perf_counter()
        finishing.append(finisher.submit(finish, list(batch), options.data, networks))
        batch.clear()

    with progress:
        function, tasks = functools.partial(source.extract, work=work), source.tasks(record, count)
        for task, result in workers.in_parallel(start, function, tasks, window):
            if networks.done():
                networks.result()  # raises what keeps them from starting
            if result is None:
                record([Line(item.clip, "crashed", "", options.face_model, options.detector) for item in task])
                continue
            results, seconds = result
            busy.update(seconds)
            for extract_or_line in results:
                if isinstance(extract_or_line, Extract):
                    batch.append(extract_or_line)
                    if len(batch) == BATCH:
                        finish_batch()
                else:
                    record([extract_or_line])
                    if extract_or_line.status == "bot-check":
                        bot_check = extract_or_line
            if batch and time.perf_counter() > batch_finished + BATCH_SECONDS:
                finish_batch()
            collect(at_most=2)
            if bot_check:
                break
        if batch:
            finish_batch()
        collect(at_most=0)

    if busy:
        shares = ", ".join(f"{stage} {busy[stage] / busy.total():.0%}" for stage in STAGES)
        n, seconds = counts["ready"] - n_before, time.perf_counter() - started
        print(f"preprocess: {n} {source.product} in {seconds:.1f} s; share of the work: {shares}", file=sys.stderr)
    return summarise(options, source, counts, n_before, bot_check)


def summarise(options: Options, source: Source, counts: collections.Counter, n_before: int, bot_check: Line | None) -> int:
    """Say what became of all. Returns the exit code; raises InputError for a run that stopped or made nothing."""
    skipped = counts - collections.Counter(ready=counts["ready"])
    reasons = ", ".join(f"{reason} {n}" for reason, n in skipped.most_common())
    not_reached = source.n - counts.total()
    print(
        f"preprocess: {source.n} {source.unit}s, {counts['ready']} {source.product} ready ({n_before} of them before), "
        f"{skipped.total()} skipped"
        + (f" ({reasons})" if reasons else "")
        + (f", {not_reached} not reached" if not_reached else "")
    )
    if bot_check:
        raise InputError(
            f"{bot_check.clip}: expected a video, found the question whether you are a robot; wait some hours, or pass the "
            "--cookies of a browser in which you have answered it; then the same command goes on from here"
        )
    if counts["ready"] == 0:
        raise InputError(
            f"{source.path}: expected at least one {source.unit} to give a face, found none; "
            f"{manifest_path(options.data)} says why"
        )
    return 0


if __name__ == "__main__":
    import preprocess  # by this name Dask's workers find what they are sent, rather than as __main__

    raise SystemExit(preprocess.main())
