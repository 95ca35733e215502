"""The run of preprocess.py: workers extract; the main process computes spectrograms and features in batches and writes files.

Never imports TensorFlow: the networks are passed in.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from clips import feature_files, fetch, prints, workers
from clips.extraction import Extract, ExtractionSettings, timed
from clips.records import FILES, Line, append_lines, manifest_path
from clips.sources import Source, counted
from utils import CLIP_SAMPLES, InputError, remove_leftovers, save_bytes

BATCH = 8  # clips per pass of the networks
TASKS_PER_WORKER = 8  # submitted at a time for each worker, which bounds the memory
BATCH_SECONDS = 10  # s, about, that a clip waits at most for its batch to fill
REPORT_SECONDS = 60  # s between two lines of progress where stderr is no terminal
NEARLY_ALL = 0.8  # share of clips of the wrong length, from which on the csv rather than the clips may be wrong
STAGES = ("fetch", "decode", "speech", "detect", "landmarks", "spectrogram", "embed", "write")  # whose durations are reported


@dataclasses.dataclass(frozen=True)
class Networks:
    """The computations of the main process."""

    spectrogram: Callable | None  # float32 (B, CLIP_SAMPLES) -> float32 (B, N_FRAMES, N_BINS, 2); None for photos
    embed: Callable | None  # uint8 (B, FACE_SIZE, FACE_SIZE, 3), RGB -> float32 (B, D); None if the workers embed


def finish(batch: list[Extract], data: Path, networks: concurrent.futures.Future) -> tuple[list[Line], collections.Counter]:
    """Turn extracts into files under `data`.

    Args:
        batch: 1 to BATCH extracts, all from clips or all from photos.
        networks: future of the Networks.

    Returns:
        The lines for the manifest, and the duration of each stage, in s.
    """
    compute, durations = networks.result(), collections.Counter()
    filled = (batch * BATCH)[:BATCH]  # always BATCH rows: with another number the last bit may round differently
    spectrograms = [None] * BATCH
    if batch[0].waveform is not None:
        with timed(durations, "spectrogram"):
            waveforms = np.stack([np.resize(extract.waveform, CLIP_SAMPLES) for extract in filled])  # shorter ones repeated
            waveforms = waveforms.astype(np.float32) / 32768  # (BATCH, CLIP_SAMPLES)
            spectrograms = compute.spectrogram(waveforms).astype(np.float16)  # (BATCH, N_FRAMES, N_BINS, 2)
    embeddings = [extract.embedding for extract in batch]
    if compute.embed:
        with timed(durations, "embed"):
            embeddings = _mean_features(compute.embed, [extract.faces for extract in batch])
    lines = []
    with timed(durations, "write"):
        for extract, spectrogram, embedding in zip(batch, spectrograms, embeddings):
            clip = extract.line.clip
            sizes = {
                "embedding_bytes": feature_files.save_array(feature_files.embedding_path(data, clip), embedding),
                "face_bytes": save_bytes(feature_files.face_path(data, clip), jpeg(extract.faces[0])),
                "portrait_bytes": save_bytes(feature_files.portrait_path(data, clip), jpeg(extract.portrait)),
                "landmarks_bytes": feature_files.save_array(feature_files.landmarks_path(data, clip), extract.landmarks),
            }
            if spectrogram is not None:
                sizes["spectrogram_bytes"] = feature_files.save_array(feature_files.spectrogram_path(data, clip), spectrogram)
                prints.save_prints(data, clip, extract.faces[0], spectrogram)
            lines.append(dataclasses.replace(extract.line, **sizes))
    return lines, durations


def _mean_features(embed: Callable, faces: list[np.ndarray]) -> list[np.ndarray]:
    """Return the mean feature, float32 (D,), of each of several groups of faces, uint8 (n, FACE_SIZE, FACE_SIZE, 3)."""
    every, features = np.concatenate(faces), []
    for first in range(0, len(every), BATCH):
        block = every[first : first + BATCH]
        features.append(embed(np.resize(block, (BATCH, *block.shape[1:])))[: len(block)])
    ends = np.cumsum([len(group) for group in faces])
    return [group.mean(axis=0) for group in np.split(np.concatenate(features), ends[:-1])]


def jpeg(picture: np.ndarray) -> bytes:
    """Return a picture, uint8 (height, width, 3), RGB, as JPEG."""
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()  # OpenCV expects BGR


def preprocess(
    source: Source, data: Path, settings: ExtractionSettings, load_networks, n_workers: int, scheduler: str | None = None
) -> int:
    """Make a source's clips or photos ready.

    Args:
        source: of `sources.rows_of`, `sources.recordings_of` or `sources.photos_of`.
        data: folder to write to.
        load_networks: function of the face model and of whether there is sound, which returns Networks. Loading takes seconds
            and happens while the workers start, unless all is ready already.
        n_workers: number of processes on this machine.
        scheduler: address of a Dask scheduler, whose workers are used instead.

    Returns:
        The exit code.

    Raises:
        InputError: if no clip or photo became ready, or the cluster or the networks cannot be used.
    """
    fetch.remove_leftovers(settings.videos)
    with concurrent.futures.ThreadPoolExecutor(1) as finisher, contextlib.ExitStack() as stack:
        load = functools.partial(finisher.submit, load_networks, settings.face_model, source.product == "clip")
        if scheduler:
            from clips import cluster  # imports distributed, which takes half a second

            client, n_workers = cluster.connect(scheduler)
            stack.enter_context(client)

        def start():
            if scheduler:
                tqdm.write(f"preprocess: using {counted(n_workers, 'thread')} of the workers at {scheduler}", sys.stderr)
                return client.get_executor(pure=False)
            tqdm.write(f"preprocess: starting {counted(n_workers, 'worker')}", sys.stderr)
            return workers.start_pool(n_workers)

        try:
            return _run(source, data, settings, load, start, TASKS_PER_WORKER * n_workers, finisher)
        except concurrent.futures.CancelledError:
            raise InputError(
                f"--scheduler: expected the Dask scheduler at {scheduler} to keep running, lost the connection; all files "
                "written so far are complete, and the same command continues from there"
            ) from None


def _run(source: Source, data: Path, settings: ExtractionSettings, load, start, window: int, finisher) -> int:
    """Process the tasks of a source and report the result. Returns the exit code."""
    started, durations = time.perf_counter(), collections.Counter()
    counts, n_before, doubts, reported = collections.Counter(), 0, [], started  # counts of statuses; clips that are doubtful
    progress = tqdm(desc="preprocess", total=source.n, unit=source.unit, disable=None)  # no bar unless stderr is a terminal

    def record(lines):
        append_lines(data, lines)
        doubts.extend(line.clip for line in lines if line.status == "ready" and line.detail)
        count(line.status for line in lines)

    def count(statuses, before=False):
        nonlocal n_before, reported
        n, n_ready = counts.total(), counts["ready"]
        counts.update(statuses)
        n_before += (counts["ready"] - n_ready) * before
        progress.update(counts.total() - n)
        if progress.disable and time.perf_counter() >= reported + REPORT_SECONDS:
            reported = time.perf_counter()
            rows = f"{counts.total()} of {counted(source.n, source.unit)}"
            print(f"preprocess: {rows}, {counts['ready']} ready", file=sys.stderr)

    finishing, batch, batch_finished, bot_check = collections.deque(), [], started, None

    def collect(at_most):
        while len(finishing) > at_most or (finishing and finishing[0].done()):
            lines, seconds = finishing.popleft().result()
            durations.update(seconds)
            record(lines)

    def finish_batch():
        nonlocal batch_finished
        batch_finished = time.perf_counter()
        finishing.append(finisher.submit(finish, list(batch), data, networks))
        batch.clear()

    with progress, contextlib.ExitStack() as stack:
        tasks, results = source.tasks(record, count), ()
        if first := next(tasks, None):  # without a task no networks are loaded
            networks = load()
            results = workers.in_parallel(start, source.extract, itertools.chain([first], tasks), window)
            stack.enter_context(contextlib.closing(results))
        for task, result in results:
            if networks.done():
                networks.result()  # raises the error that kept them from loading
            if result is None:
                record([Line(item.clip, "crashed", "", settings.face_model, settings.detector) for item in task])
                continue
            extracts, seconds = result
            durations.update(seconds)
            for extract_or_line in extracts:
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

    if durations:
        shares = ", ".join(f"{stage} {durations[stage] / durations.total():.0%}" for stage in STAGES)
        made, seconds = counted(counts["ready"] - n_before, source.product), time.perf_counter() - started
        print(f"preprocess: {made} in {seconds:.1f} s; share of the work: {shares}", file=sys.stderr)
    for path_of in (*FILES.values(), prints.prints_path):  # at the end, for the folders may be large
        remove_leftovers(path_of(data, "").parent)
    if doubts:
        n = counted(len(doubts), "clip")
        source.notes.append(f"{n} may show another face than the speaker's, such as {doubts[0]}: several faces stay")
    return _summarise(source, data, counts, n_before, bot_check)


def _summarise(source: Source, data: Path, counts: collections.Counter, n_before: int, bot_check: Line | None) -> int:
    """Print the summary. Returns the exit code; raises InputError if the run was stopped or nothing is ready."""
    skipped = counts - collections.Counter(ready=counts["ready"])
    reasons = ", ".join(f"{reason} {n}" for reason, n in skipped.most_common())
    not_reached = source.n - counts.total()
    print(
        f"preprocess: {counted(source.n, source.unit)}, {counted(counts['ready'], source.product)} ready "
        f"({n_before} of them before), {skipped.total()} skipped"
        + (f" ({reasons})" if reasons else "")
        + (f", {not_reached} not reached" if not_reached else "")
    )
    if n_wrong := counts["wrong-length"]:
        advice = "to fetch them again, delete them and pass --retry wrong-length"
        if n_wrong >= NEARLY_ALL * (n_wrong + counts["ready"]):
            advice = "if clips of another length are right for this csv, pass --any-length"
        print(f"preprocess: {counted(n_wrong, 'clip')} not as long as the csv says, and left out; {advice}", file=sys.stderr)
    for note in source.notes:
        print(f"preprocess: {note}", file=sys.stderr)
    if bot_check:
        raise InputError(
            f"{bot_check.clip}: expected a video, found the question whether you are a robot; wait some hours, or pass the "
            "--cookies of a browser in which you have answered the question; then the same command continues from here"
        )
    if source.n == 0:
        raise InputError(
            f"{source.path}: expected at least one {source.unit}, found none in this part; pass a smaller N in --shard"
        )
    if counts["ready"] == 0:
        raise InputError(
            f"{source.path}: expected at least one {source.unit} to give a face, found none; "
            f"{manifest_path(data)} names the reason for each"
        )
    return 0
