"""Benchmark of evaluation, beside the slides' way and the bare matrix products.

    python tests/benchmark.py evaluate

prints clips a second of evaluate.py's passes of the encoder, and of one Keras `predict` a clip, as in the slides' project; and
the time and memory of finding the 100 nearest of a million faces on disk, beside the bare matrix products.
"""

import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from measuring import seconds_of

import model
import utils
from clips import feature_files
from judging.search import most_similar
from training.batches import predict_features


def predict_one_by_one(encoder, data: Path, clips: list[str]) -> np.ndarray:
    """Hear clips as the slides' project did: one pickle, one `predict`."""

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


def memory_of_its_own() -> int:
    """Return the bytes that this process holds, without files that the system keeps in memory for it."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def search_a_million(n: int, n_queries: int, folder: Path) -> None:
    """Search a gallery on disk, float16 (n, 4096), for the 100 faces most similar to each query."""

    rows, size = 8192, 4096
    rng = np.random.default_rng(0)
    path = folder / "gallery.npy"
    base = rng.standard_normal((rows, size), np.float32).astype(np.float16)
    gallery = np.lib.format.open_memmap(path, "w+", np.float16, (n, size))
    for start in range(0, n, rows):
        signs = rng.choice(np.array([-1, 1], np.float16), size)
        gallery[start : start + rows] = (base * signs)[: n - start]
    gallery.flush()
    del gallery
    queries = rng.standard_normal((n_queries, size), np.float32)
    block = base.astype(np.float32)
    bare = seconds_of(lambda: queries @ block.T, 5) * n / rows
    before, peak, ended = memory_of_its_own(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, memory_of_its_own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    most_similar(queries, np.load(path, mmap_mode="r"), 100)
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    print(f"{n_queries} queries among {n:,} faces of {size} numbers, {path.stat().st_size / 1e9:.1f} GB on disk: ", end="")
    print(f"{seconds:.1f} s, the products alone {bare:.1f} s, ratio {seconds / bare:.2f}; ", end="")
    print(f"memory {peak / 1e9:.2f} GB at most, {(peak - before) / 1e9:.2f} GB of it for the search", flush=True)


def run(options) -> None:
    """Compare evaluate.py's passes of the encoder with the slides' way, and its search with the bare products."""
    for width in options.widths:
        encoder_passes(width, options.n)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        search_a_million(options.gallery, 1000, Path(folder))


def add_options(command) -> None:
    """Add the options of this benchmark to its parser."""
    command.add_argument(
        "--widths", type=float, nargs="+", default=[0.03125, 0.125], help="of the encoder (default: 1/32, 1/8)"
    )
    command.add_argument("--n", type=int, default=400, help="clips to be heard (default: 400)")
    command.add_argument("--gallery", type=int, default=1_000_000, help="faces on disk, 8 kB each (default: 1,000,000)")
    command.add_argument("--folder", type=Path, help="for them (default: the system's for temporary files)")
