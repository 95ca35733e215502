"""Turn the rows of an AVSpeech csv into training data: clips -> spectrograms, faces and face features.

Reads a csv without header whose rows are `YouTube id, start s, end s, x, y`; (x, y) is the centre of the speaker's face at the
start, as a fraction of width and height. A row's clip is <videos>/<id>_<start>-<end>.mp4 where that exists; otherwise it is
fetched with yt-dlp. Writes, under --data, for each clip

    spectrograms/<clip>.pkl   float16 (598, 257, 2), the voice encoder's input
    embeddings/<clip>.pkl     float32 (4096,), the VGG-Face feature, or (128,) with --face-model dlib
    faces/<clip>.jpg          the face, 224 x 224 pixels

and manifest.csv, a line `clip,status,face_model,detail` per row tried: status is `ready` or the reason why not. A second run
does only what is not ready.

    python preprocess.py --csv avspeech_train.csv
"""

import collections
import concurrent.futures
import csv
import dataclasses
import functools
import itertools
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pandas as pd
from tqdm import tqdm

import utils
from utils import CLIP_SAMPLES, CLIP_SECONDS, FACE_SIZE, FEATURE_SIZE, SAMPLE_RATE, InputError, check, option

COLUMNS = ("video_id", "start", "end", "x", "y")
FACE_MARGIN = 0.15  # of the detector's box, added on each side: the box ends at brows and chin
BATCH = 16  # clips per pass of the networks
WINDOW_PER_WORKER = 8  # clips in flight for each worker, which bounds the memory
SILENCE_DB = 60  # dB below full scale: what is never louder is silence
MIN_SOUND_SECONDS = 0.5  # s of a clip that are louder than that, at least
# 360p is enough for 224 pixels; mp4, because the cut is encoded anew, in the format of the source.
FETCH_FORMAT = "b[height<=360][ext=mp4]/bv*[height<=360][ext=mp4]+ba[ext=m4a]/b[height<=360]/bv*[height<=360]+ba/b/bv*+ba"

# Why a row is not ready.
REASONS = {
    "bad-row": "id, times or face centre make no sense",
    "not-fetched": "yt-dlp could not get the video: removed, private, blocked, or the network",
    "unreadable": "ffmpeg reads no picture, or no sound, out of the file",
    "no-sound": "the clip has no sound track",
    "silent": f"less than {MIN_SOUND_SECONDS} s of the sound are louder than -{SILENCE_DB} dB of full scale",
    "no-face": f"the detector sees no face in the frames looked at, one a second over {CLIP_SECONDS} s",
}


@dataclasses.dataclass(frozen=True)
class Options:
    csv: Path = option("csv with AVSpeech's five columns")
    data: Path = option("folder to write to", utils.DATA)
    videos: Path | None = option(
        "folder of the clips, cut to start and end; those missing are fetched (default: <data>/videos)", None
    )
    detector: str = option(
        "face detector: hog is fast, cnn finds more but takes about a hundred times as long on a CPU",
        "hog",
        choices=("hog", "cnn"),
    )
    face_model: str = option(
        "network of the face feature: vggface is the paper's (580 MB of weights, downloaded once), dlib needs no download",
        "vggface",
        choices=tuple(FEATURE_SIZE),
    )
    limit: int | None = option("look at the first LIMIT rows only", None, metavar="LIMIT")
    workers: int = option("worker processes that fetch, decode and look for faces", os.cpu_count())
    url_template: str = option("address of a video; {} stands for its id", "https://www.youtube.com/watch?v={}")

    def __post_init__(self):
        check(self.limit is None or self.limit >= 1, f"--limit: expected at least 1, found {self.limit}")
        check(self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")
        check("{}" in self.url_template, f"--url-template: expected {{}} in it, found {self.url_template}")


class Skip(Exception):
    """A row cannot be made ready; `reason` is a key of REASONS, `detail` what else is known, in a line."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS
        super().__init__(reason)
        self.reason, self.detail = reason, " ".join(detail.split())


# ----------------------------------------------------------------------------------------------------------------------
# The csv.


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the csv: the clip's name, its video, start and end in s, and the face's centre as a fraction."""

    clip: str
    video_id: str
    start: float
    end: float
    x: float
    y: float


def parse_row(values) -> Row:
    """Check one row's five values, given as text. Raises Skip("bad-row")."""
    try:
        video_id, start, end, x, y = (str(values[0]), *map(float, values[1:]))
    except ValueError:
        raise Skip("bad-row") from None
    sound_id = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", video_id)  # it becomes part of file names
    if not (sound_id and 0 <= start < end < math.inf and 0 <= x <= 1 and 0 <= y <= 1):
        raise Skip("bad-row")
    return Row(utils.clip_name(video_id, start, end), video_id, start, end, x, y)


def read_rows(path: Path, limit: int | None):
    """Read the csv bit by bit. Lines with too many values are left out, with a word on stderr.

    Yields:
        Each row's text values, a tuple of five str.

    Raises:
        InputError: if the file is no csv of five columns.
    """
    try:
        pieces = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            on_bad_lines="warn",  # a line with too many values; one with too few is a bad row
            nrows=limit,
            chunksize=10_000,
            encoding="utf-8-sig",
        )
        while True:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", pd.errors.ParserWarning)
                piece = next(pieces, None)
            if piece is None:
                return
            if piece.shape[1] != len(COLUMNS):
                raise InputError(
                    f"{path}: expected five columns, {', '.join(COLUMNS)}, found {piece.shape[1]}; is it AVSpeech's csv?"
                )
            lines = [line for warning in said for line in str(warning.message).splitlines() if line]
            if lines:
                print(f"preprocess: {path}: {len(lines)} lines left out; {lines[0]}", file=sys.stderr)
            yield from piece.itertuples(index=False, name=None)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        message = str(error).strip().replace("\n", " ")
        raise InputError(f"{path}: expected a csv of five columns, {', '.join(COLUMNS)}; {message}") from error


# ----------------------------------------------------------------------------------------------------------------------
# First stage, in worker processes, which never import TensorFlow: fetch, decode, detect, crop.


@dataclasses.dataclass(frozen=True)
class Extract:
    """What a worker takes out of a clip."""

    clip: str
    waveform: np.ndarray  # int16 (CLIP_SAMPLES,)
    face: np.ndarray  # uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    embedding: np.ndarray | None  # float32 (128,) with --face-model dlib


def fetch(row: Row, path: Path, url_template: str) -> None:
    """Fetch a row's segment of its video with yt-dlp, cut exactly at start and end, to `path`. Raises Skip("not-fetched")."""
    import yt_dlp
    from yt_dlp.postprocessor import FFmpegPostProcessor

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    FFmpegPostProcessor._ffmpeg_location.set(ffmpeg)  # as yt-dlp's own command line does; the option alone is not enough
    log = logging.Logger("yt-dlp")  # says nothing: what went wrong goes to the manifest
    log.addHandler(logging.NullHandler())
    folder = path.with_name(f".fetch-{path.stem}")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    folder.mkdir(parents=True)
    try:
        settings = {
            "format": FETCH_FORMAT,
            "paths": {"home": str(folder)},
            "outtmpl": {"default": "clip.%(ext)s"},
            "download_ranges": yt_dlp.utils.download_range_func(None, [(row.start, row.end)]),
            "force_keyframes_at_cuts": True,  # cut anew at start, not at the key frame before it
            "ffmpeg_location": ffmpeg,
            "external_downloader_args": {"ffmpeg_i": ["-loglevel", "error"]},
            "noplaylist": True,
            "quiet": True,
            "no_warnings": True,
            "noprogress": True,
            "logger": log,
        }
        try:
            with yt_dlp.YoutubeDL(settings) as downloader:
                downloader.download([url_template.format(row.video_id)])
        except yt_dlp.utils.DownloadError as error:
            raise Skip("not-fetched", yt_dlp.utils.remove_terminal_sequences(str(error))) from None
        files = [file for file in sorted(folder.iterdir()) if file.stat().st_size > 1000]  # an empty mp4 has 261 bytes
        if len(files) != 1:
            raise Skip("not-fetched", "yt-dlp ended well, but left no video")
        os.replace(files[0], path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_sound(path: Path) -> np.ndarray:
    """Decode the first 6 s of a clip's sound with ffmpeg.

    Returns:
        int16 (CLIP_SAMPLES,), mono at SAMPLE_RATE; shorter sound is repeated.

    Raises:
        Skip: "no-sound" without a sound track, "unreadable".
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:a:0"]
    command += ["-t", str(CLIP_SECONDS), "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le", "-"]
    done = subprocess.run(command, capture_output=True)
    if b"matches no streams" in done.stderr:
        raise Skip("no-sound")
    samples = np.frombuffer(done.stdout[: len(done.stdout) // 2 * 2], "<i2")
    if done.returncode != 0 or len(samples) == 0:
        raise Skip("unreadable")
    return np.resize(samples, CLIP_SAMPLES)  # repeats or cuts


def read_frames(path: Path):
    """Decode a clip's first frame and then one a second, over 6 s, as they are asked for.

    Yields:
        uint8 (height, width, 3), RGB.

    Raises:
        Skip: "unreadable".
    """
    one_a_second = "select='isnan(prev_selected_t)+gte(t-prev_selected_t,1)'"
    frames = imageio_ffmpeg.read_frames(
        str(path), input_params=["-t", str(CLIP_SECONDS)], output_params=["-an", "-vf", one_a_second, "-fps_mode", "vfr"]
    )
    try:
        width, height = next(frames)["size"]
        for frame in frames:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError, KeyError, IndexError, ValueError, StopIteration):
        raise Skip("unreadable") from None
    finally:
        frames.close()


def nearest_box(boxes, x: float, y: float):
    """Return the box (top, right, bottom, left) whose centre is nearest to (x, y), all in pixels."""
    return min(boxes, key=lambda box: ((box[1] + box[3]) / 2 - x) ** 2 + ((box[0] + box[2]) / 2 - y) ** 2)


def crop_face(frame: np.ndarray, box) -> np.ndarray:
    """Cut a face out of a frame, with FACE_MARGIN around the box; outside the frame its border is repeated.

    Args:
        frame: uint8 (height, width, 3).
        box: (top, right, bottom, left), pixels.

    Returns:
        uint8 (FACE_SIZE, FACE_SIZE, 3).
    """
    top, right, bottom, left = box
    side = round(max(bottom - top, right - left) * (1 + 2 * FACE_MARGIN))
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    padded = cv2.copyMakeBorder(frame, side, side, side, side, cv2.BORDER_REPLICATE)
    crop = padded[top + side : top + 2 * side, left + side : left + 2 * side]
    return cv2.resize(crop, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA if side > FACE_SIZE else cv2.INTER_CUBIC)


def find_face(frames, x: float, y: float, detector: str):
    """Find the speaker's face: in the first frame that shows a face, the one nearest to (x, y).

    Args:
        frames: uint8 (height, width, 3) each, RGB.
        x, y: where the face is, as a fraction of width and height.
        detector: "hog" or "cnn".

    Returns:
        The frame, and the face's box in it: (top, right, bottom, left), pixels.

    Raises:
        Skip: "no-face"; "unreadable" if there is not one frame.
    """
    face_recognition = _face_recognition()
    reason = "unreadable"
    for frame in frames:
        reason = "no-face"
        height, width = frame.shape[:2]
        if boxes := face_recognition.face_locations(frame, model=detector):
            return frame, nearest_box(boxes, x * width, y * height)
    raise Skip(reason)


def _face_recognition():
    """Import face_recognition where it is used: it loads its networks at once, which takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its models' package still uses pkg_resources
        import face_recognition
    return face_recognition


def extract(row: Row, videos: Path, detector: str, face_model: str, url_template: str) -> Extract | tuple[str, str, str]:
    """Do all of a row that needs no TensorFlow.

    Returns:
        The Extract; or, where there is none, the clip, the reason, a key of REASONS, and its detail.
    """
    path = videos.absolute() / f"{row.clip}.mp4"  # absolute: a name may begin with "-"
    try:
        if not path.exists():
            fetch(row, path, url_template)
        waveform = read_sound(path)
        frame, box = find_face(read_frames(path), row.x, row.y, detector)
        embedding = None
        if face_model == "dlib":
            embedding = _face_recognition().face_encodings(frame, [box])[0].astype(np.float32)
        return Extract(row.clip, waveform, crop_face(frame, box), embedding)
    except Skip as skip:
        return row.clip, skip.reason, skip.detail


def start_worker() -> None:
    """Set up a worker process: one thread each, Ctrl-C is the main process's affair, and it never outlives that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def start_pool(workers: int) -> concurrent.futures.Executor:
    """Start worker processes, new ones rather than forks, which would carry TensorFlow along."""
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)


# ----------------------------------------------------------------------------------------------------------------------
# Second stage, in the main process: spectrograms and VGG-Face features in batches, then the files.


def is_silent(waveform: np.ndarray) -> bool:
    """Tell whether a clip, float32 (CLIP_SAMPLES,), is silent as REASONS has it."""
    import librosa

    loud = librosa.effects.split(waveform, top_db=SILENCE_DB, ref=1.0)  # (n, 2), first and last sample
    return (loud[:, 1] - loud[:, 0]).sum() < MIN_SOUND_SECONDS * SAMPLE_RATE


def finish(batch: list[Extract], data: Path, embed) -> dict[str, str]:
    """Turn extracts into files under `data`.

    Args:
        batch: at least one.
        embed: function from uint8 (B, FACE_SIZE, FACE_SIZE, 3) to float32 (B, D), or None: the extracts have features.

    Returns:
        Each clip's status, "ready" or "silent".
    """
    import model

    status = {}
    waveforms = np.stack([extract.waveform for extract in batch]).astype(np.float32) / 32768  # (B, CLIP_SAMPLES)
    spectrograms = model.spectrogram(waveforms).numpy().astype(np.float16)  # (B, N_FRAMES, N_BINS, 2)
    embeddings = embed(np.stack([extract.face for extract in batch])) if embed else [extract.embedding for extract in batch]
    for extract, waveform, spectrogram, embedding in zip(batch, waveforms, spectrograms, embeddings):
        if is_silent(waveform):
            status[extract.clip] = "silent"
            continue
        utils.save_array(utils.spectrogram_path(data, extract.clip), spectrogram)
        with utils.replacing(utils.face_path(data, extract.clip)) as temporary:
            jpeg = cv2.imencode(".jpg", extract.face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]  # OpenCV wants BGR
            temporary.write_bytes(jpeg.tobytes())
        utils.save_array(utils.embedding_path(data, extract.clip), embedding)
        status[extract.clip] = "ready"
    return status


def is_ready(data: Path, clip: str, face_model: str) -> bool:
    """Tell whether a clip's three files are there, with a feature of this face model."""
    if not (utils.spectrogram_path(data, clip).exists() and utils.face_path(data, clip).exists()):
        return False
    try:
        utils.load_array(utils.embedding_path(data, clip), np.float32, (FEATURE_SIZE[face_model],))
    except (InputError, FileNotFoundError):
        return False
    return True


def open_manifest(data: Path):
    """Open <data>/manifest.csv for more lines; a line cut short by a kill is ended first."""
    data.mkdir(parents=True, exist_ok=True)
    manifest = open(data / "manifest.csv", "a+", newline="", encoding="utf-8")  # noqa: SIM115, the caller closes it
    if manifest.tell() > 0:
        manifest.seek(manifest.tell() - 1)
        if manifest.read() != "\n":
            manifest.write("\n")
    return manifest


def in_parallel(pool, function, items, window: int):
    """Yield function(item) of each item, as they end, with at most `window` of them under way in the pool."""
    items, under_way = iter(items), set()
    while True:
        under_way |= {pool.submit(function, item) for item in itertools.islice(items, window - len(under_way))}
        if not under_way:
            return
        done, under_way = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            yield future.result()


def count_rows(path: Path) -> int:
    """Count the lines of a file, without holding it in memory."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    if not options.csv.is_file():
        raise InputError(f"{options.csv}: expected AVSpeech's csv, found no such file; the README says where to get it")
    n_rows = min(count_rows(options.csv), options.limit or sys.maxsize)
    rows = read_rows(options.csv, options.limit)
    rows = itertools.chain([next(rows)], rows)  # a wrong csv is told before anything starts
    embed = None
    if options.face_model == "vggface":
        import model

        embed = model.face_embedder()

    counts = collections.Counter()  # of statuses
    with open_manifest(options.data) as manifest, tqdm(desc="preprocess", total=n_rows, unit="row") as progress:
        lines = csv.writer(manifest, lineterminator="\n")

        def record(clip, status, detail=""):
            lines.writerow((clip, status, options.face_model, detail))
            count(status)

        def count(status):
            counts[status] += 1
            progress.update()

        def rows_to_do():
            seen = set()
            for number, values in enumerate(rows, 1):
                try:
                    row = parse_row(values)
                except Skip as skip:
                    record(f"row {number}", skip.reason)
                    continue
                if row.clip in seen:
                    count("duplicate")
                elif is_ready(options.data, row.clip, options.face_model):
                    count("ready before")
                else:
                    yield row
                seen.add(row.clip)

        def finish_batch():
            for clip, status in finish(batch, options.data, embed).items():
                record(clip, status)
            manifest.flush()
            batch.clear()

        work = functools.partial(
            extract,
            videos=options.videos or options.data / "videos",
            detector=options.detector,
            face_model=options.face_model,
            url_template=options.url_template,
        )
        batch = []
        pool = start_pool(options.workers)
        try:
            for result in in_parallel(pool, work, rows_to_do(), options.workers * WINDOW_PER_WORKER):
                if isinstance(result, Extract):
                    batch.append(result)
                    if len(batch) == BATCH:
                        finish_batch()
                else:
                    record(*result)
            if batch:
                finish_batch()
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a worker process died, out of memory? what is written stays; go on with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    n_before = counts.pop("ready before", 0)
    n_ready = counts.pop("ready", 0) + n_before
    reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common())
    print(
        f"preprocess: {n_ready + counts.total()} rows, {n_ready} clips ready ({n_before} of them before), "
        f"{counts.total()} skipped" + (f" ({reasons})" if reasons else "")
    )
    if n_ready == 0:
        raise InputError(
            f"{options.csv}: expected at least one row to make a clip, found none; {options.data / 'manifest.csv'} says why"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
