"""Benchmark of evaluation, beside the slides' way and bare matrix products.

Prints clips a second of evaluate.py's passes of the encoder, and of one Keras `predict` a clip, as in the slides' project; and
the time and memory of finding the 100 nearest of a million faces on disk, beside the matrix products alone.

    python -m benchmarks evaluate
"""

import dataclasses
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import model
import utils
from benchmarks.measuring import seconds_of
from clips import feature_files
from judging.search import most_similar
from training.batches import predict_features

NEAREST = 100
BLOCK_ROWS = 8192  # faces in a block of the gallery


@dataclasses.dataclass(frozen=True)
class Options:
    widths: tuple[float, ...] = utils.option("widths of the encoder", (0.03125, 0.125), nargs="+", metavar="WIDTH")
    n: int = utils.option("clips that the encoder predicts", 400, metavar="N")
    gallery: int = utils.option("faces on disk, 8 kB each", 1_000_000, metavar="N")
    folder: Path | None = utils.option("folder for the faces; else the system's for temporary files", None, metavar="FOLDER")

    def __post_init__(self):
        utils.check(self.n >= 10, f"--n: expected at least 10, found {self.n}")
        utils.check(self.gallery >= NEAREST, f"--gallery: expected at least {NEAREST}, found {self.gallery}")


def predict_one_by_one(encoder, data: Path, clips: list[str]) -> np.ndarray:
    """Predict as the slides' project did: one pickle, one `predict`."""
    return np.concatenate([encoder.predict(feature_files.load_spectrogram(data, clip)[None], verbose=0) for clip in clips])


def encoder_passes(width: float, n: int) -> None:
    """Compare the encoder's passes in batches with one `predict` a clip."""
    rng = np.random.default_rng(0)
    encoder = model.voice_encoder(128, width)
    with tempfile.TemporaryDirectory() as folder:
        data, clips = Path(folder), [f"v{i}_0-6" for i in range(n)]
        for clip in clips:
            spectrogram = rng.normal(size=(utils.N_FRAMES, utils.N_BINS, 2)).astype(np.float16)
            feature_files.save_array(feature_files.spectrogram_path(data, clip), spectrogram)
            feature_files.save_array(feature_files.embedding_path(data, clip), rng.normal(size=128).astype(np.float32))
        ours, few = predict_features(encoder, data, clips, 128, 8)[0], clips[: n // 10]
        assert np.allclose(predict_one_by_one(encoder, data, few), ours[: len(few)], rtol=1e-2, atol=1e-3)
        batches = seconds_of(lambda: predict_features(encoder, data, clips, 128, 8), 3) / n
        single = seconds_of(lambda: predict_one_by_one(encoder, data, few), 3) / len(few)
    print(f"encoder of width {width:g}, 6 s, from pickles: evaluate.py {1 / batches:.0f} clips/s, ", end="")
    print(f"one predict a clip {1 / single:.1f}; ratio {single / batches:.1f}", flush=True)


def private_memory() -> int:
    """Return the bytes of this process, without files that the system keeps in memory."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def search_gallery(n: int, n_queries: int, folder: Path) -> None:
    """Search a gallery on disk, float16 (n, 4096), for the faces most similar to each query."""
    size = 4096
    rng = np.random.default_rng(0)
    path = folder / "gallery.npy"
    base = rng.standard_normal((BLOCK_ROWS, size), np.float32).astype(np.float16)
    gallery = np.lib.format.open_memmap(path, "w+", np.float16, (n, size))
    for start in range(0, n, BLOCK_ROWS):
        signs = rng.choice(np.array([-1, 1], np.float16), size)
        gallery[start : start + BLOCK_ROWS] = (base * signs)[: n - start]
    gallery.flush()
    del gallery
    queries = rng.standard_normal((n_queries, size), np.float32)
    block = base.astype(np.float32)
    bare = seconds_of(lambda: queries @ block.T, 5) * n / BLOCK_ROWS
    before, peak, ended = private_memory(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, private_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    most_similar(queries, np.load(path, mmap_mode="r"), NEAREST)
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    print(f"{n_queries} queries among {n:,} faces of {size} numbers, {path.stat().st_size / 1e9:.1f} GB on disk: ", end="")
    print(f"{seconds:.1f} s, the products alone {bare:.1f} s, ratio {seconds / bare:.2f}; ", end="")
    print(f"memory {peak / 1e9:.2f} GB at most, {(peak - before) / 1e9:.2f} GB of them for the search", flush=True)


def run(options: Options) -> None:
    for width in options.widths:
        encoder_passes(width, options.n)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        search_gallery(options.gallery, 1000, Path(folder))
