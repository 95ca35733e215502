"""Benchmark of reading: the clips a second that reach the training step from pickles and from a pack, near and far.

Writes clips of noise with VGG-Face's features, and counts crops to the batch that is handed to the step: warm, which means that
the files are in memory, and with a latency before each call that opens or reads one of them, as on a network disk (by a shared
library in C, benchmarks/latency.c, which needs gcc). Beside them, what a pack of 16-bit sound would give, whose spectrogram is
computed after reading, and how long that takes on this machine.

    python -m benchmarks reading
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import model
import utils
from benchmarks.measuring import ROOT, seconds_of
from clips import feature_files, packs
from training.batches import BATCHES_AT_A_TIME, PREFETCH, Crops, training_batches
from utils import CLIP_SAMPLES, HOP, N_BINS, N_FRAMES, WINDOW
from voices.backend import tf

FEATURE_SIZE = utils.FEATURE_SIZE["vggface"]
SOUND = "sound.npy"


@dataclasses.dataclass(frozen=True)
class Options:
    clips: int = utils.option("clips of noise, 2.3 MB on the disk each", 2000, metavar="N")
    batch_size: int = utils.option("clips in a step", 32, metavar="N")
    seconds: float = utils.option("length of the crops", 3.0, metavar="SECONDS")
    latency: float = utils.option("time before each call that opens or reads a file, ms", 10.0, metavar="MS")
    readers: int | None = utils.option("clips read at the same time, as for train.py", None, metavar="N")


def clip_names(n: int) -> list[str]:
    """Return names of clips."""
    return [utils.clip_name(f"v{number:06}", 0, 6) for number in range(n)]


def write_clips(data: Path, clips: list[str]) -> None:
    """Write the files of preprocess.py that train.py reads, and all of the sound in one file."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=N_FRAMES * N_BINS * 2).astype(np.float16)
    sound = np.lib.format.open_memmap(data / SOUND, "w+", np.int16, (len(clips), CLIP_SAMPLES))
    for number, clip in enumerate(clips):
        spectrogram = np.roll(noise, number).reshape(N_FRAMES, N_BINS, 2)
        feature_files.save_array(feature_files.spectrogram_path(data, clip), spectrogram)
        feature_files.save_array(feature_files.embedding_path(data, clip), rng.normal(size=FEATURE_SIZE).astype(np.float32))
        utils.save_bytes(feature_files.face_path(data, clip), b"")
        sound[number] = np.resize(noise, CLIP_SAMPLES)
    sound.flush()


def sound_batches(data: Path, n_steps: int, n_clips: int, batch_size: int, n_frames: int, readers: int | None):
    """Read crops of 16-bit sound, with the features of the pack, as `training_batches` reads spectrograms."""
    n_samples = WINDOW + (n_frames - 1) * HOP
    records = packs._open_records(data / SOUND, (None, CLIP_SAMPLES), np.int16)
    features = packs.open_pack(data, clip_names(n_clips), FEATURE_SIZE)
    order = np.random.default_rng(0).permutation(n_clips)
    pool = packs.concurrent.futures.ThreadPoolExecutor(readers or packs.n_readers())

    def read(place):
        number = order[place % n_clips]
        start = np.random.default_rng([0, 0, place]).integers(N_FRAMES - n_frames + 1) * HOP
        return records.read(number, start, start + n_samples), features.feature(number)

    def read_batch(places):
        return tuple(map(np.stack, zip(*pool.map(read, places))))

    def read_tensors(places):
        return tf.numpy_function(read_batch, [places], (tf.int16, tf.float32), stateful=False)

    places = tf.data.Dataset.range(n_steps * batch_size).batch(batch_size)
    return iter(places.map(read_tensors, num_parallel_calls=BATCHES_AT_A_TIME).prefetch(PREFETCH))


def rate(kind: str, data: str, n_clips: int, batch_size: int, seconds: float, n_steps: int, readers: int | None):
    """Read `n_steps` batches of pickles, pack or sound, after the first ones. Returns clips a second, and a CPU second."""
    data, clips, n_frames = Path(data), clip_names(n_clips), utils.frames_in(seconds)
    ahead = (
        BATCHES_AT_A_TIME + PREFETCH
    )  # the batches that may be ready when the clock starts, and those that are left at its end
    if kind == "sound":
        batches = sound_batches(data, n_steps + 2 * ahead, n_clips, batch_size, n_frames, readers)
    else:
        source = packs.open_pack(data, clips, FEATURE_SIZE) if kind == "pack" else None
        crops = Crops(batch_size, n_frames, 0, 0, 0)
        batches, _ = training_batches(data, clips, FEATURE_SIZE, crops, 0, n_steps + 2 * ahead, source, readers)
    for _ in range(ahead):
        next(batches)
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(n_steps):
        next(batches)
    n = n_steps * batch_size
    return n / (time.perf_counter() - started), n / (time.process_time() - cpu)


def in_a_process(arguments: tuple, **environment) -> tuple[float, float]:
    """Call `rate` in a process of its own, with more variables in its environment."""
    code = f"from benchmarks import reading; print(*reading.rate(*{arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    per_second, per_cpu_second = map(float, done.stdout.split())
    return per_second, per_cpu_second


def spectrogram_rate(batch_size: int, n_frames: int) -> float:
    """Return the clips a second whose spectrogram is computed from 16-bit sound, on the device that trains."""
    sound = tf.zeros((batch_size, WINDOW + (n_frames - 1) * HOP), tf.int16)
    compute = tf.function(lambda sound: tf.cast(model.spectrogram(tf.cast(sound, tf.float32) / 32768), tf.float16))
    return batch_size / seconds_of(lambda: compute(sound).numpy())


def run(options: Options) -> None:
    readers = options.readers or packs.n_readers()
    with tempfile.TemporaryDirectory() as folder:
        data, clips = Path(folder, "data"), clip_names(options.clips)
        data.mkdir()
        write_clips(data, clips)
        started = time.perf_counter()
        packs.pack(data, readers)
        print(f"packing: {options.clips / (time.perf_counter() - started):.0f} clips/s; {readers} readers", flush=True)
        library, count = Path(folder, "latency.so"), Path(folder, "count")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, ROOT / "benchmarks" / "latency.c", "-ldl"], check=True)
        slow = {"LD_PRELOAD": str(library), "SLOW_FOLDER": str(data), "SLOW_COUNT": str(count)}
        for kind in ("pickles", "pack", "sound"):
            warm = options.clips // options.batch_size
            arguments = (kind, str(data), options.clips, options.batch_size, options.seconds)
            near, per_cpu_second = in_a_process((*arguments, warm, readers))
            few = warm // (10 if kind == "pickles" else 2)
            wait = str(round(1000 * options.latency))
            far, _ = in_a_process((*arguments, few, readers), SLOW_MICROSECONDS=wait, **slow)
            calls = int(count.read_text()) / options.batch_size / (few + 2 * (BATCHES_AT_A_TIME + PREFETCH))
            print(
                f"{kind}: {near:.0f} clips/s warm ({per_cpu_second:.0f} a CPU second), {far:.0f} with {options.latency:g} ms "
                f"before each call that opens or reads a file, {calls:.1f} calls a clip",
                flush=True,
            )
    n_frames = utils.frames_in(options.seconds)
    print(f"spectrograms of the sound: {spectrogram_rate(options.batch_size, n_frames):.0f} clips/s on this machine")
