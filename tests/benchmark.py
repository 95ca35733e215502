"""Measure this project against the ways of the slides, in one run on one machine.

    python tests/benchmark.py preprocess

prints clips a second of preprocess.py and of the slides' way, written out below; their ratio; the share of each stage; and the
memory of all processes together. The clips are the real talking faces of --clips where that folder is there, demo clips of
640 x 360 otherwise; some are also fetched, by yt-dlp from a server on this machine. VGG-Face's weights are random, which takes
the same time.

    python tests/benchmark.py train

prints, of the full-size voice encoder, clips a second of the training step, of the slides' way (float32, batch 1, Keras's `fit`
on arrays that are loaded 100 clips at a time), and of the machine's ceiling: the rate of large matrix products in the same
precision, at 534 GFLOP a clip; where the time of a step goes, layer by layer; clips a second that the input pipeline reads; and
the peak memory of --loss total beside l2's.

    python tests/benchmark.py evaluate

prints clips a second of evaluate.py's passes of the encoder, and of one Keras `predict` a clip, as in the slides' project; and
the time and memory of finding the 100 nearest of a million faces on disk, beside the bare matrix products.
"""

import argparse
import contextlib
import csv
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def demo_clips(folder: Path, people: int) -> list[Path]:
    """Make demo clips, 640 x 360."""
    command = [sys.executable, ROOT / "data" / "make_demo.py", "--out", folder, "--people", str(people), "--seed", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return sorted((folder / "videos").iterdir())


def under_many_names(clips: list[Path], n: int, folder: Path) -> Path:
    """Give clips n names, in <folder>/videos. Returns a csv of them."""
    import utils

    (folder / "videos").mkdir(parents=True)
    with open(folder / "clips.csv", "w", newline="") as file:
        for i in range(n):
            (folder / "videos" / f"{utils.clip_name(f'v{i}', 0, 6)}.mp4").symlink_to(clips[i % len(clips)].resolve())
            csv.writer(file).writerow((f"v{i}", 0, 6, 0.5, 0.5))
    return folder / "clips.csv"


@contextlib.contextmanager
def mirror(clips: list[Path], n: int, folder: Path):
    """Serve clips under n ids on loopback. Gives the url template, and a csv with a piece of each."""
    from test_fetch import Server

    folder.mkdir()
    with open(folder / "clips.csv", "w", newline="") as file, Server(folder) as server:
        for i in range(n):
            (folder / f"v{i}.mp4").symlink_to(clips[i % len(clips)].resolve())
            csv.writer(file).writerow((f"v{i}", 0.2, 2.7, 0.5, 0.5))
        file.flush()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url_template, folder / "clips.csv"
        server.shutdown()


def random_vggface(home: Path) -> None:
    """Put random weights where VGG-Face's are looked for."""

    import vggface

    os.environ["KERAS_HOME"] = str(home)
    vggface.weights_path().parent.mkdir(parents=True)
    vggface._keras_vggface()[0].VGG16(weights=None).save_weights(vggface.weights_path())


def memory_of(process: psutil.Process) -> float:
    """Return the memory of a process and all its children, in bytes; what they share counts once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += one.memory_full_info().pss
    return total


def this_way(arguments: list, n: int) -> tuple[float, str, float]:
    """Run preprocess.py. Returns the s that it took for a clip, start-up included, the shares, and the peak memory in bytes."""
    started, peak = time.perf_counter(), 0.0
    command = [sys.executable, ROOT / "preprocess.py", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.extend(process.communicate()))
    reader.start()
    while reader.is_alive():
        with contextlib.suppress(psutil.Error):  # it has just ended
            peak = max(peak, memory_of(psutil.Process(process.pid)))
        reader.join(0.25)
    seconds = time.perf_counter() - started
    if f"{n} rows, {n} clips ready" not in said[0]:
        raise SystemExit(f"expected {n} clips ready, found: {said[0]}{said[1]}")
    return seconds / n, re.search(r"share of the work: (.*)", said[1])[1], peak


def slides_way(clip: Path, folder: Path, network, preprocess_input) -> None:
    """Preprocess one clip as the slides tell it: a resampled video, frames as files, CNN, one face, a wav file, librosa."""
    import cv2
    import face_recognition
    import librosa

    import model
    import utils

    folder.mkdir()
    run = [FFMPEG, "-v", "error", "-nostdin", "-y", "-i"]
    subprocess.run([*run, clip, "-t", "6", "-r", "25", folder / "video.mp4"], check=True)
    subprocess.run([*run, folder / "video.mp4", "-vf", "fps=1", folder / "%d.jpg"], check=True)
    subprocess.run([*run, folder / "video.mp4", "-vn", "-ac", "1", "-ar", "16000", folder / "sound.wav"], check=True)
    waveform, _ = librosa.load(folder / "sound.wav", sr=utils.SAMPLE_RATE)
    waveform = np.resize(waveform, utils.CLIP_SAMPLES)
    utils.save_array(folder / "spectrogram.pkl", model.spectrogram(waveform[None]).numpy()[0])
    frame = face_recognition.load_image_file(folder / "1.jpg")
    top, right, bottom, left = face_recognition.face_locations(frame, model="cnn")[0]
    face = cv2.resize(frame[max(0, top) : bottom, max(0, left) : right], (utils.FACE_SIZE, utils.FACE_SIZE))
    feature = network.predict(preprocess_input(face[None].astype(np.float32), version=1), verbose=0)
    utils.save_array(folder / "embedding.pkl", feature)


def preprocess(options) -> None:
    """Compare preprocess.py with the slides' way."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips = sorted(options.clips.glob("*.mp*")) if options.clips.is_dir() else demo_clips(folder / "demo", 25)
        print(f"{len(clips)} clips of {options.clips if options.clips.is_dir() else 'the demo'}, {options.n} to be made ready")
        path = under_many_names(clips, options.n, folder / "many")
        random_vggface(folder / "keras")
        ours = {}
        for face_model in ("vggface", "dlib"):
            arguments = ["--csv", path, "--videos", path.parent / "videos", "--data", folder / face_model]
            ours[face_model], shares, peak = this_way([*arguments, "--face-model", face_model], options.n)
            print(f"preprocess.py --face-model {face_model}: {ours[face_model]:.3f} s a clip, start-up included, ", end="")
            print(f"{1 / ours[face_model]:.1f} clips/s, at most {peak / 1e9:.2f} GB in all; {shares}", flush=True)

        n = options.n // 5
        with mirror([clip for clip in clips if clip.suffix == ".mp4"], n, folder / "mirror") as (template, path):
            arguments = ["--csv", path, "--data", folder / "fetched", "--url-template", template, "--sleep", 0]
            seconds, shares, _ = this_way([*arguments, "--face-model", "dlib"], n)
            print(f"preprocess.py --face-model dlib, {n} clips of 2.5 s fetched: {seconds:.3f} s a clip; {shares}", flush=True)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import face_recognition  # noqa: F401, loads its networks: not part of the time
        import librosa

        import vggface

        librosa.effects.split(np.zeros(1000, np.float32))
        network, preprocess_input = vggface.network(), vggface._keras_vggface()[1].preprocess_input
        network.predict(np.zeros((1, 224, 224, 3), np.float32), verbose=0)
        seconds = []
        for i, clip in enumerate(clips[:: max(1, len(clips) // options.slides)][: options.slides]):
            started = time.perf_counter()
            slides_way(clip, folder / f"slides-{i}", network, preprocess_input)
            seconds.append(time.perf_counter() - started)
        slides = float(np.mean(seconds))
        print(
            f"the slides' way, start-up not included: {slides:.2f} s a clip, {1 / slides:.2f} clips/s (mean of {len(seconds)})"
        )
        print(f"ratio, both with VGG-Face: {slides / ours['vggface']:.1f}")


# ----------------------------------------------------------------------------------------------------------------------
# Training.


def flop_of_layers(width: float, n_frames: int) -> dict[str, tuple[int, ...]]:
    """Return, for each convolution, the operations of a clip's forward pass: 2 for each product in the sum."""
    import model
    import utils

    size, n_in, flop = [n_frames, utils.N_BINS], 2, {}
    for name, channels, kernel, stride in model.ENCODER:
        size = [(s - k) // step + 1 for s, k, step in zip(size, kernel, stride)]
        if channels:
            n_out = max(1, round(channels * width))
            flop[name] = 2 * size[0] * size[1] * kernel[0] * kernel[1] * n_in * n_out
            n_in = n_out
    return flop


def seconds_of(function, repeats: int = 3) -> float:
    """Return the least time that a function takes, in s, after one call that does not count."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_rate(dtype) -> float:
    """Return the operations a second of large matrix products."""
    from model import tf

    n = 4096
    a, b = (tf.cast(tf.random.normal((n, n)), dtype) for _ in range(2))
    product = tf.function(lambda: tf.reduce_max(tf.matmul(a, b)))
    return 2 * n**3 / seconds_of(lambda: product().numpy(), 5)


def layer_table(width: float, batch_size: int, n_frames: int, ceiling: float) -> None:
    """Print the time of each convolution with its relu and batch norm, and of each pooling, forward and backward together."""
    import model
    import utils
    from model import keras, tf

    flop = flop_of_layers(width, n_frames)
    size, n_in = [n_frames, utils.N_BINS], 2
    dtype = keras.mixed_precision.dtype_policy().compute_dtype
    total = at_ceiling = 0.0
    for name, channels, kernel, stride in model.ENCODER:
        x = tf.cast(tf.random.normal((batch_size, *size, n_in)), dtype)
        if channels:
            n_in = max(1, round(channels * width))
            block = [model.Conv2D(n_in, kernel, stride), keras.layers.ReLU(), model.BatchNormalization()]
        else:
            block = [keras.layers.MaxPooling2D(kernel, stride)]
        block = keras.Sequential(block)
        block.build(x.shape)

        @tf.function
        def both_ways(x=x, block=block, first=name == "conv1"):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = block(x, training=True)
            wanted = block.trainable_variables + ([] if first else [x])
            return [tf.reduce_max(g) for g in tape.gradient(y, wanted, output_gradients=y)]

        seconds = seconds_of(lambda run=both_ways: [g.numpy() for g in run()], 2)
        size = [(s - k) // step + 1 for s, k, step in zip(size, kernel, stride)]
        ideal = (
            batch_size * flop.get(name, 0) * (2 if name == "conv1" else 3) / ceiling
        )  # forward, and back to weights and input
        total, at_ceiling = total + seconds, at_ceiling + ideal
        share = f", {100 * ideal / seconds:3.0f} % of the ceiling, to {size[0]} x {size[1]} x {n_in}" if ideal else ""
        print(f"    {name}: {seconds:6.2f} s{share}", flush=True)
    print(f"    together: {total:.2f} s; at the ceiling's rate {at_ceiling:.2f} s")


def step_seconds(
    width: float, batch_size: int, n_frames: int, precision: str, feature_size: int = 4096, loss: str = "l2"
) -> float:
    """Return the s that a step of train.py takes."""
    import model
    import utils
    import vggface
    from model import keras, tf

    keras.mixed_precision.set_global_policy(precision)
    rng = np.random.default_rng(0)
    batch = (
        tf.constant(rng.normal(size=(batch_size, n_frames, utils.N_BINS, 2)).astype(np.float16)),
        tf.constant(rng.normal(size=(batch_size, feature_size)).astype(np.float32)),
    )
    encoder = model.voice_encoder(feature_size, width)
    optimizer = model.adam(encoder, "cosine", 1e-3, 1000, 0)
    loss = model.loss_function(loss, np.zeros(feature_size, np.float32), vggface.fc8)
    step = model.training_step(encoder, optimizer, loss, batch_size)
    return seconds_of(lambda: float(step(batch)), 2)


def slides_training(width: float, n: int, n_frames: int) -> float:
    """Train as the slides' project did, on n clips. Returns s a clip.

    Keras's own layers in float32, `fit` with batches of one on arrays, loaded from pickles 100 clips (or n) at a time.
    """
    import pickle

    import model
    import utils
    from model import keras

    keras.mixed_precision.set_global_policy("float32")
    ours = model.Conv2D, model.BatchNormalization
    model.Conv2D, model.BatchNormalization = keras.layers.Conv2D, keras.layers.BatchNormalization
    encoder = model.voice_encoder(4096, width)
    model.Conv2D, model.BatchNormalization = ours
    encoder.compile(keras.optimizers.Adam(1e-3, beta_1=0.5, epsilon=1e-4), model.l2_loss)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            clip = rng.normal(size=(n_frames, utils.N_BINS, 2)).astype(np.float32), rng.normal(size=4096).astype(np.float32)
            Path(folder, f"{i}.pkl").write_bytes(pickle.dumps(clip))

        def epoch(n):
            x, y = zip(*(pickle.loads(Path(folder, f"{i}.pkl").read_bytes()) for i in range(n)))
            encoder.fit(np.stack(x), np.stack(y), batch_size=1, verbose=0)

        epoch(1)  # builds the step
        return seconds_of(lambda: epoch(n), 2) / n


def pipeline_rate(n: int, batch_size: int) -> float:
    """Return clips a second that train.py's input pipeline reads from pickles, 6 s each, VGG-Face features."""
    import pipeline
    import utils

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        clips = [f"v{i}_0-6" for i in range(n)]
        for clip in clips:
            spectrogram = rng.normal(size=(utils.N_FRAMES, utils.N_BINS, 2)).astype(np.float16)
            utils.save_array(utils.spectrogram_path(folder, clip), spectrogram)
            utils.save_array(utils.embedding_path(folder, clip), rng.normal(size=4096).astype(np.float32))
        pieces = pipeline.Pieces(batch_size, utils.N_FRAMES, 40, 40, 0)
        n_steps = n // batch_size

        def epoch():
            batches, _ = pipeline.training_batches(Path(folder), clips, 4096, pieces, 0, n_steps)
            for _ in batches:
                pass

        return n_steps * batch_size / seconds_of(epoch, 2)


def in_a_process(function: str, *arguments):
    """Call one of this file's functions in a process of its own. Returns what it returns, and the peak memory in bytes."""
    code = (
        f"import resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import benchmark; "
        f"result = benchmark.{function}(*{arguments!r}); "
        "print(result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    *_, last = done.stdout.splitlines()
    result, peak = last.rsplit(" ", 1)
    return float(result), int(peak)


def train(options) -> None:
    """Compare train.py with the slides' way and with the machine's ceiling."""
    import model
    import utils
    from model import keras

    precision = model.best_precision() if options.precision == "auto" else options.precision
    batch_size, n_frames = options.batch_size, utils.N_FRAMES
    flop = flop_of_layers(options.width, n_frames)
    gflop = (3 * sum(flop.values()) - flop["conv1"]) / 1e9
    print(f"width {options.width:g}, {precision}, batches of {batch_size}, 6 s; {gflop:.0f} GFLOP a clip in the convolutions")

    ceiling = matmul_rate("bfloat16" if precision == "mixed_bfloat16" else "float32")
    print(f"ceiling: {ceiling / 1e9:.0f} GFLOP/s in matrix products of 4096, {ceiling / gflop / 1e9:.2f} clips/s", flush=True)
    step = in_a_process("step_seconds", options.width, batch_size, n_frames, precision)[0] / batch_size
    print(
        f"train.py's step: {step:.2f} s a clip, {1 / step:.2f} clips/s, {100 * gflop * 1e9 / step / ceiling:.0f} % of it",
        flush=True,
    )
    slides, _ = in_a_process("slides_training", options.width, options.slides, n_frames)
    print(f"the slides' way: {slides:.2f} s a clip, {1 / slides:.2f} clips/s; ratio {slides / step:.2f}", flush=True)
    print("where a step's time goes, forward and backward:")
    keras.mixed_precision.set_global_policy(precision)
    layer_table(options.width, batch_size, n_frames, ceiling)
    print(f"input pipeline alone: {pipeline_rate(1000, batch_size):.0f} clips/s", flush=True)

    with tempfile.TemporaryDirectory() as home:
        random_vggface(Path(home))
        peaks = {}
        for loss in ("l2", "total"):
            arguments = (options.width, batch_size, n_frames, precision, 4096, loss)
            peaks[loss] = [in_a_process("step_seconds", *arguments)[1] for _ in range(2)]
    l2, total = (min(peaks[loss]) for loss in ("l2", "total"))
    print(
        f"peak memory: --loss l2 {l2 / 1e9:.2f} GB, total {total / 1e9:.2f} GB, {(total - l2) / 1e6:+.0f} MB (least of 2 runs)"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation.


def predict_one_by_one(encoder, data: Path, clips: list[str]) -> np.ndarray:
    """Hear clips as the slides' project did: one pickle, one `predict`."""
    import utils

    return np.concatenate([encoder.predict(utils.load_spectrogram(data, clip)[None], verbose=0) for clip in clips])


def encoder_passes(width: float, n: int) -> None:
    """Compare the encoder's passes in batches with one `predict` a clip."""
    import model
    import pipeline
    import utils

    rng = np.random.default_rng(0)
    encoder = model.voice_encoder(128, width)
    with tempfile.TemporaryDirectory() as folder:
        data, clips = Path(folder), [f"v{i}_0-6" for i in range(n)]
        for clip in clips:
            spectrogram = rng.normal(size=(utils.N_FRAMES, utils.N_BINS, 2)).astype(np.float16)
            utils.save_array(utils.spectrogram_path(data, clip), spectrogram)
            utils.save_array(utils.embedding_path(data, clip), rng.normal(size=128).astype(np.float32))
        ours, few = pipeline.predict_features(encoder, data, clips, 128, 8)[0], clips[: n // 10]
        assert np.allclose(predict_one_by_one(encoder, data, few), ours[: len(few)], rtol=1e-2, atol=1e-3)
        batches = seconds_of(lambda: pipeline.predict_features(encoder, data, clips, 128, 8), 3) / n
        single = seconds_of(lambda: predict_one_by_one(encoder, data, few), 3) / len(few)
    print(f"encoder of width {width:g}, 6 s, from pickles: evaluate.py {1 / batches:.0f} clips/s, ", end="")
    print(f"one predict a clip {1 / single:.1f}; ratio {single / batches:.1f}", flush=True)


def memory_of_its_own() -> int:
    """Return the bytes that this process holds, without files that the system keeps in memory for it."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def search_a_million(n: int, n_queries: int, folder: Path) -> None:
    """Search a gallery on disk, float16 (n, 4096), for the 100 faces most similar to each query."""
    import retrieval

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
    retrieval.most_similar(queries, np.load(path, mmap_mode="r"), 100)
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    print(f"{n_queries} queries among {n:,} faces of {size} numbers, {path.stat().st_size / 1e9:.1f} GB on disk: ", end="")
    print(f"{seconds:.1f} s, the products alone {bare:.1f} s, ratio {seconds / bare:.2f}; ", end="")
    print(f"memory {peak / 1e9:.2f} GB at most, {(peak - before) / 1e9:.2f} GB of it for the search", flush=True)


def evaluate(options) -> None:
    """Compare evaluate.py's passes of the encoder with the slides' way, and its search with the bare products."""
    for width in options.widths:
        encoder_passes(width, options.n)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        search_a_million(options.gallery, 1000, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("preprocess", help=preprocess.__doc__)
    command.set_defaults(call=preprocess)
    command.add_argument("--clips", type=Path, default=ROOT.parent / "shared" / "real" / "motion", help="folder of video files")
    command.add_argument("--n", type=int, default=200, help="clips to be made ready (default: 200)")
    command.add_argument("--slides", type=int, default=8, help="clips for the slides' way (default: 8)")
    command = commands.add_parser("train", help=train.__doc__)
    command.set_defaults(call=train)
    command.add_argument("--width", type=float, default=1.0, help="of the encoder (default: 1.0)")
    command.add_argument("--batch-size", type=int, default=8, help="clips in a step (default: 8)")
    command.add_argument("--precision", default="auto", help="as train.py's (default: auto)")
    command.add_argument("--slides", type=int, default=4, help="clips for the slides' way (default: 4)")
    command = commands.add_parser("evaluate", help=evaluate.__doc__)
    command.set_defaults(call=evaluate)
    command.add_argument(
        "--widths", type=float, nargs="+", default=[0.03125, 0.125], help="of the encoder (default: 1/32, 1/8)"
    )
    command.add_argument("--n", type=int, default=400, help="clips to be heard (default: 400)")
    command.add_argument("--gallery", type=int, default=1_000_000, help="faces on disk, 8 kB each (default: 1,000,000)")
    command.add_argument("--folder", type=Path, help="for them (default: the system's for temporary files)")
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
