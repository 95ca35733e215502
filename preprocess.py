"""Turn the rows of an AVSpeech csv into training data: clips -> spectrograms, faces and face features.

Reads a csv without header whose rows are `YouTube id, start s, end s, x, y`; (x, y) is the centre of the speaker's face at the
start, as a fraction of width and height. A row's clip is <videos>/<id>_<start>-<end>.mp4 where that exists; otherwise it is
fetched with yt-dlp. Writes, under --data, for each clip

    spectrograms/<clip>.pkl   float16 (598, 257, 2), the voice encoder's input
    embeddings/<clip>.pkl     float32 (4096,), the VGG-Face feature, or (128,) with --face-model dlib
    faces/<clip>.jpg          the face, 224 x 224 pixels

and a line per row tried to manifest.csv: status is `ready` or the reason why not; the README lists them. A second run does
what is missing and what may pass now (a broken connection, a rate limit), and leaves the rest as it is.

    python preprocess.py --csv avspeech_train.csv
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

import fetch
import media
import records
import utils
from records import (
    PROBLEMS,
    REASONS,
    RETRIED,
    SIZES,
    Line,
    Row,
    append_lines,
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
SCHEDULER_SECONDS = 30  # s to wait for a Dask scheduler and its first worker
STAGES = ("fetch", "decode", "detect", "spectrogram", "embed", "write")  # whose time is measured


@dataclasses.dataclass(frozen=True)
class Options:
    csv: Path = option("csv with AVSpeech's five columns")
    data: Path = option("folder to write to", utils.DATA)
    videos: Path | None = option(
        "folder of the clips, cut to start and end; those missing are fetched (default: <data>/videos)", None
    )
    limit: int | None = option("look at the first LIMIT rows only", None, metavar="LIMIT")
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
    waveform: np.ndarray  # int16 (CLIP_SAMPLES,) or less, mono at SAMPLE_RATE
    face: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    embedding: np.ndarray | None  # float32 (128,) with --face-model dlib


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
        cv2.setNumThreads(1)
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
    embedding = None
    if work.face_model == "dlib":
        with timed(busy, "embed"):
            embedding = media.dlib_feature(found.frame, found.box)
    top, right, bottom, left = found.box
    line = Line(row.clip, "ready", "", work.face_model, found.detector, found.second, top, right, bottom, left, bottom - top)
    return Extract(line, waveform, found.face, embedding)


def start_worker() -> None:
    """Set up a worker process: Ctrl-C is the main process's affair, and it never outlives that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def start_pool(workers: int) -> concurrent.futures.Executor:
    """Start worker processes, new ones rather than forks, which would carry TensorFlow along."""
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)


def connect(address: str):
    """Connect to a Dask scheduler.

    Returns:
        Its client, and the number of its workers' threads.

    Raises:
        InputError: if there is none, or it has no worker.
    """
    import distributed

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of it becomes an error here
    client = None
    try:
        client = distributed.Client(address, timeout=SCHEDULER_SECONDS)
        client.wait_for_workers(1, timeout=SCHEDULER_SECONDS)
        for module in (utils, media, fetch, records, sys.modules[extract.__module__]):  # the packages are the cluster's affair
            client.upload_file(module.__file__)
        return client, sum(client.nthreads().values())
    except (OSError, ValueError, TimeoutError) as error:
        if client:
            client.close(timeout=1)
        raise InputError(
            f"--scheduler: expected a Dask scheduler with workers at {address}, found {'no worker' if client else 'none'}; "
            f"start some: dask scheduler, dask worker {address}; {' '.join(str(error).split())}"
        ) from None


def in_parallel(start, function, tasks, window: int):
    """Compute function(task) of each task in a pool's processes, at most `window` of them under way.

    Where processes die the pool is started anew, and what was under way is done again, bit by bit.

    Args:
        start: function that starts the pool, a concurrent.futures.Executor.
        tasks: lists.

    Yields:
        Each task and its result, as they end; None for a task, of one item, whose process died twice when it was alone.
    """
    tasks, under_way, pool = iter(tasks), {}, start()
    alone, died, broken = collections.deque(), 0, False  # tasks that killed a process, perhaps; how often the first of them

    def submit(task):
        try:
            future = pool.submit(function, task)
        except concurrent.futures.BrokenExecutor as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
        under_way[future] = task

    try:
        while True:
            if broken and not under_way:
                pool, broken = start(), False
            if alone and not under_way:
                submit(alone[0])
            elif not alone and not broken:
                for task in itertools.islice(tasks, window - len(under_way)):
                    submit(task)
            if not under_way:
                return
            done, _ = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                task, error = under_way.pop(future), future.exception()
                suspected = bool(alone) and task is alone[0]
                if error is None:
                    if suspected:
                        alone.popleft()
                        died = 0
                    yield task, future.result()
                elif isinstance(error, concurrent.futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":  # Dask's
                    broken, died = True, died + suspected
                    if not suspected:
                        alone.extend([item] for item in task)
                    elif died == 2:
                        yield alone.popleft(), None
                        died = 0
                else:
                    raise error
    finally:
        for future in under_way:
            future.cancel()
        pool.shutdown(wait=False)


# ----------------------------------------------------------------------------------------------------------------------
# Second stage, in the main process: spectrograms and VGG-Face features in batches, then the files.


def finish(batch: list[Extract], data: Path, networks: concurrent.futures.Future) -> tuple[list[Line], collections.Counter]:
    """Turn extracts into files under `data`.

    Args:
        batch: 1 to BATCH.
        networks: what `load_networks` returns.

    Returns:
        Their lines for the manifest, and the time taken by each stage, in s.
    """
    import model

    embed, busy = networks.result(), collections.Counter()
    with timed(busy, "spectrogram"):
        speech = [media.speech_seconds(extract.waveform) for extract in batch]
        # The networks are always shown BATCH clips: in another number of rows the last bit may round differently.
        filled = (batch * BATCH)[:BATCH]
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
            jpeg = cv2.imencode(".jpg", extract.face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]  # OpenCV wants BGR
            sizes = {
                "spectrogram_bytes": utils.save_array(utils.spectrogram_path(data, clip), spectrogram),
                "embedding_bytes": utils.save_array(utils.embedding_path(data, clip), embedding),
                "face_bytes": utils.save_bytes(utils.face_path(data, clip), jpeg.tobytes()),
            }
            lines.append(dataclasses.replace(extract.line, speech_seconds=round(seconds, 2), **sizes))
    return lines, busy


# ----------------------------------------------------------------------------------------------------------------------
# The run.


def settled(data: Path, clip: str, line, face_model: str, detector: str, retry) -> str | None:
    """Return the status of a clip that needs nothing more, by its line in the manifest; None for one that is to be tried."""
    if line.status == "ready":
        sizes = [getattr(line, column) for column in SIZES]
        return "ready" if line.face_model == face_model and is_ready(data, clip, sizes) else None
    if line.status not in REASONS or line.status in RETRIED or line.status in retry:
        return None
    if line.status in media.FACE_REASONS and detector == "cnn" and line.detector == "hog":
        return None
    return line.status


def load_networks(face_model: str):
    """Start TensorFlow.

    Returns:
        A function from faces, uint8 (B, FACE_SIZE, FACE_SIZE, 3), to features, float32 (B, D); or None for "dlib", whose
        features the workers make.
    """
    import vggface

    return vggface.face_embedder() if face_model == "vggface" else None


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
    shard, n_shards = map(int, options.shard.split("/"))
    fetch.remove_leftovers(work.videos)

    with concurrent.futures.ThreadPoolExecutor(1) as finisher:
        ids, rows = read_rows(options.csv, options.limit)
        manifest = read_manifest(options.data)
        if n_shards > 1:
            mine = np.array([shard_of(video_id, n_shards) == shard for video_id in ids] + [shard == 1])
            rows = rows[mine[rows.video]]  # a line without id has the position -1, the last
        networks = finisher.submit(load_networks, options.face_model)  # while the workers begin
        start, window = functools.partial(start_pool, options.workers), TASKS_PER_WORKER * options.workers
        with contextlib.ExitStack() as stack:
            if options.scheduler:
                client, n_threads = connect(options.scheduler)
                stack.enter_context(client)
                start, window = functools.partial(client.get_executor, pure=False), TASKS_PER_WORKER * n_threads
            try:
                return run(options, work, ids, rows, manifest, networks, start, window, finisher)
            except concurrent.futures.CancelledError:
                raise InputError(
                    f"--scheduler: expected the Dask scheduler at {options.scheduler} to stay, lost it; what is written stays; "
                    "the same command goes on from here"
                ) from None
            finally:
                for worker in multiprocessing.active_children():  # after Ctrl-C, say, one may be waiting for its turn to fetch
                    worker.terminate()


def run(options, work: Work, ids, rows: pd.DataFrame, manifest: pd.DataFrame, networks, start, window: int, finisher) -> int:
    """Do what is to be done of the rows, and say what came of it: the second half of main. Returns the exit code."""
    started, busy = time.perf_counter(), collections.Counter()
    counts, n_before = collections.Counter(), 0  # of statuses
    progress = tqdm(desc="preprocess", total=len(rows), unit="row")

    def record(lines):
        append_lines(options.data, lines)
        count(line.status for line in lines)

    def count(statuses):
        n = counts.total()
        counts.update(statuses)
        progress.update(counts.total() - n)

    def rows_to_do():
        nonlocal n_before
        bad = rows[rows.problem > 0]
        names = [f"{options.csv.name} line {line}" for line in bad.line]
        known = manifest.status.reindex(hash_names(names)).tolist()
        record([Line(name, "bad-row", PROBLEMS[p]) for name, p, was in zip(names, bad.problem, known) if was != "bad-row"])
        count("bad-row" for was in known if was == "bad-row")
        sound = rows[rows.problem == 0]
        duplicate = sound.assign(start=sound.start.round(6), end=sound.end.round(6)).duplicated(["video", "start", "end"])
        count("duplicate" for _ in range(duplicate.sum()))
        for piece in in_order_of_videos(ids, sound[~duplicate]):
            known = manifest.reindex(hash_names([row.clip for row in piece]))
            for row, line in zip(piece, known.itertuples()):
                status = settled(options.data, row.clip, line, options.face_model, options.detector, options.retry)
                if status:
                    n_before += status == "ready"
                    count([status])
                else:
                    yield row

    def tasks():
        for _, of_video in itertools.groupby(rows_to_do(), key=lambda row: row.video_id):
            while task := list(itertools.islice(of_video, SEGMENTS_PER_TASK)):
                yield task

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
        for task, result in in_parallel(start, functools.partial(extract, work=work), tasks(), window):
            if networks.done():
                networks.result()  # raises what keeps them from starting
            if result is None:
                record([Line(row.clip, "crashed", "", options.face_model, options.detector) for row in task])
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
        print(f"preprocess: {n} clips in {seconds:.1f} s; share of the work: {shares}", file=sys.stderr)
    return summarise(options, counts, n_before, len(rows), bot_check)


def summarise(options, counts: collections.Counter, n_before: int, n_rows: int, bot_check: Line | None) -> int:
    """Say what became of the rows. Returns the exit code; raises InputError for a run that stopped or made nothing."""
    skipped = counts - collections.Counter(ready=counts["ready"])
    reasons = ", ".join(f"{reason} {n}" for reason, n in skipped.most_common())
    not_reached = n_rows - counts.total()
    print(
        f"preprocess: {n_rows} rows, {counts['ready']} clips ready ({n_before} of them before), {skipped.total()} skipped"
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
            f"{options.csv}: expected at least one row to make a clip, found none; {manifest_path(options.data)} says why"
        )
    return 0


if __name__ == "__main__":
    import preprocess  # by this name Dask's workers find what they are sent, rather than as __main__

    raise SystemExit(preprocess.main())
