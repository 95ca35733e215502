"""The run of preprocess.py: workers extract, the main process computes spectrograms and face features in batches and writes.

Never imports TensorFlow: the networks are passed in.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from clips import feature_files, fetch, recordings, sources, workers
from clips.extraction import Extract, Work, timed
from clips.reasons import MIN_SPEECH_SECONDS
from clips.records import Line, append_lines, manifest_path
from clips.sources import Source
from utils import CLIP_SAMPLES, InputError, save_bytes

BATCH = 8  # clips per pass of the networks
TASKS_PER_WORKER = 8  # under way for each worker, which bounds the memory
BATCH_SECONDS = 10  # s that a clip waits at most, about, for its batch to fill
STAGES = ("fetch", "decode", "detect", "landmarks", "spectrogram", "embed", "write")  # whose time is measured


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the main process computes with."""

    spectrogram: Callable | None  # float32 (B, CLIP_SAMPLES) -> float32 (B, N_FRAMES, N_BINS, 2); None for photos
    embed: Callable | None  # uint8 (B, FACE_SIZE, FACE_SIZE, 3), RGB -> float32 (B, D); None where the workers embed


def finish(batch: list[Extract], data: Path, networks: concurrent.futures.Future) -> tuple[list[Line], collections.Counter]:
    """Turn extracts into files under `data`.

    Args:
        batch: 1 to BATCH, all of clips or all of photos.
        networks: gives Networks.

    Returns:
        Their lines for the manifest, and the time taken by each stage, in s.
    """
    compute, busy = networks.result(), collections.Counter()
    filled = (batch * BATCH)[:BATCH]  # always as many: in another number of rows the last bit may round differently
    spectrograms, speech = [None] * BATCH, [math.inf] * BATCH
    if batch[0].waveform is not None:
        with timed(busy, "spectrogram"):
            speech = [recordings.speech_seconds(extract.waveform) for extract in batch]
            waveforms = np.stack([np.resize(extract.waveform, CLIP_SAMPLES) for extract in filled])  # shorter ones repeated
            waveforms = waveforms.astype(np.float32) / 32768  # (BATCH, CLIP_SAMPLES)
            spectrograms = compute.spectrogram(waveforms).astype(np.float16)  # (BATCH, N_FRAMES, N_BINS, 2)
    embeddings = [extract.embedding for extract in batch]
    if compute.embed:
        with timed(busy, "embed"):
            embeddings = compute.embed(np.stack([extract.face for extract in filled]))  # (BATCH, D)
    lines = []
    with timed(busy, "write"):
        for extract, seconds, spectrogram, embedding in zip(batch, speech, spectrograms, embeddings):
            clip = extract.line.clip
            if seconds < MIN_SPEECH_SECONDS:
                lines.append(Line(clip, "silent", f"{seconds:.2f} s", extract.line.face_model, extract.line.detector))
                continue
            sizes = {
                "embedding_bytes": feature_files.save_array(feature_files.embedding_path(data, clip), embedding),
                "face_bytes": save_bytes(feature_files.face_path(data, clip), jpeg(extract.face)),
                "portrait_bytes": save_bytes(feature_files.portrait_path(data, clip), jpeg(extract.portrait)),
                "landmarks_bytes": feature_files.save_array(feature_files.landmarks_path(data, clip), extract.landmarks),
            }
            if spectrogram is not None:
                sizes["spectrogram_bytes"] = feature_files.save_array(feature_files.spectrogram_path(data, clip), spectrogram)
                sizes["speech_seconds"] = round(seconds, 2)
            lines.append(dataclasses.replace(extract.line, **sizes))
    return lines, busy


def jpeg(picture: np.ndarray) -> bytes:
    """Return a picture, uint8 (height, width, 3), RGB, as JPEG."""
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()  # OpenCV wants BGR


def preprocess(options, load_networks) -> int:
    """Do all that preprocess.py was asked for.

    Args:
        options: of preprocess.py.
        load_networks: function of --face-model and of whether there is sound, to what `finish` computes with; it takes seconds,
            and runs while the workers begin.

    Returns:
        The exit code.

    Raises:
        InputError: if nothing became ready, or input or a cluster is at fault.
    """
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
        source = sources.rows_of(options) if options.csv else sources.photos_of(options)
        networks = finisher.submit(load_networks, options.face_model, options.csv is not None)
        start, window = functools.partial(workers.start_pool, options.workers), TASKS_PER_WORKER * options.workers
        if options.scheduler:
            from clips import cluster  # takes half a second, and only this needs it

            client, n_threads = cluster.connect(options.scheduler)
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


def run(options, source: Source, work: Work, networks, start, window: int, finisher) -> int:
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


def summarise(options, source: Source, counts: collections.Counter, n_before: int, bot_check: Line | None) -> int:
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
