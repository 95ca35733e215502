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

    python tests/benchmark.py decoder --data DATA --run RUN [--voices RUN ...] [--authors FOLDER]

prints how well a run of train.py --model decoder decodes the faces of people that it never saw, the test part of its split of
DATA, photos with dlib's features: whether the decoded picture's own feature finds the person, how far the landmarks are off,
how sharp the face is, pictures a second. Beside it a plain linear decoder, written out below: aligned faces, warped to the
mean shape by the project's spline, 128 x 128; principal components of texture (200) and landmarks (30), predicted from the
feature by ridge regression; warped back. With --voices, runs of voice encoders, also whether what is decoded from the voices
of people that those never heard finds their true faces; with --authors beside the paper's own pictures of the same clips,
FOLDER/voice_to_face/<clip>.jpg and FOLDER/face_to_face/<clip>.jpg. Nothing is chosen by these figures. Some minutes, and three
more for each run of voices.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
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


# ----------------------------------------------------------------------------------------------------------------------
# The face decoder. N faces, D numbers in a feature, S the side of a picture in pixels; landmarks are (68, 2), pixels.

GALLERY = 500  # faces to choose from, where there are not more people to be tested
KS = (1, 5, 10)
SHARPNESS_SIDE = 128  # pixels, of the face whose sharpness is measured
PLAIN_SIDE, PLAIN_TEXTURE, PLAIN_LANDMARKS = 128, 200, 30  # the plain way: pixels, principal components
PLAIN_PENALTY = 0.1  # of its ridge, a share of the features' mean variance
PLAIN_FRAME = (0.19, 0.97), (0.11, 0.89)  # of a picture of S pixels, rows and columns: what the plain way sees
CENTRE_CLIPS = 100  # learned ones, at most, whose pictures' mean feature is where pictures are seen from


@functools.cache
def feature_of_file(path: Path) -> np.ndarray:
    """Return dlib's feature of the largest face in a picture file: float32 (128,), nan where there is no face, or no file."""
    import decoder
    import media

    picture = media.read_photo(path)
    return np.full(128, np.nan, np.float32) if picture is None else decoder.face_network(128)([picture])[0]


def face_sharpness(picture: np.ndarray, landmarks: np.ndarray, reference: np.ndarray) -> float:
    """Return the variance of a face's Laplacian, grey, in an aligned picture, uint8 (S, S, 3).

    The face, a box around the reference shape, is brought to SHARPNESS_SIDE, about the size that it has; what is near the edge
    of the landmarks' hull does not count, for the head's outline is sharp before any plain background.
    """
    import cv2

    import canonical

    margin = np.ptp(reference[:, 0]) / 10
    (left, top), (right, bottom) = (reference.min(0) - margin).astype(int), (reference.max(0) + margin).astype(int)
    side = (SHARPNESS_SIDE, SHARPNESS_SIDE)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[top:bottom, left:right]
    inner = cv2.erode(canonical.face_hull(landmarks), np.ones((canonical.SIDE // 12 | 1,) * 2))[top:bottom, left:right]
    laplacian = cv2.Laplacian(cv2.resize(grey, side, interpolation=cv2.INTER_CUBIC), cv2.CV_64F)
    return laplacian[cv2.resize(inner, side, interpolation=cv2.INTER_NEAREST) > 0].var()


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos, aligned."""

    features: np.ndarray  # float32 (N, D)
    shapes: np.ndarray  # float32 (N, 68, 2)
    conditions: np.ndarray  # float64 (N, C), of `canonical`: pose, mouth, light, blur
    textures: np.ndarray  # uint8 (N, PLAIN_SIDE ** 2 * 3), PLAIN_FRAME warped to the reference shape
    sharpness: np.ndarray  # float64 (N,)


def plain_frame():
    """Return PLAIN_FRAME as rows and columns of a picture."""
    import canonical

    return tuple(slice(round(low * canonical.SIDE), round(high * canonical.SIDE)) for low, high in PLAIN_FRAME)


def read_photos(data: Path, names: list[str], feature_size: int, reference: np.ndarray) -> Photos:
    """Read and align photos of preprocess.py."""
    import cv2

    import canonical
    import media
    import utils

    rows = []
    for name in names:
        landmarks = utils.load_landmarks(data, name)
        picture, _, shape = canonical.align(media.read_portrait(data, name), landmarks, reference)
        texture = canonical.to_reference(picture, shape, reference)
        conditions = canonical.shape_conditions(shape), canonical.light_conditions(texture, reference)
        small = cv2.resize(texture[plain_frame()], (PLAIN_SIDE, PLAIN_SIDE), interpolation=cv2.INTER_AREA)
        feature = utils.load_embedding(data, name, feature_size)
        sharpness = face_sharpness(picture, shape, reference)
        rows.append((feature, shape, np.concatenate(conditions), small.ravel(), sharpness))
    return Photos(*map(np.stack, zip(*rows)))


def predict_components(x: np.ndarray, y: np.ndarray, rank: int):
    """Regress the first `rank` principal components of y, (N, M), on x, (N, D), whose mean is 0. Returns mean and slopes."""
    mean = y.mean(0, dtype=np.float32)
    y = y.astype(np.float32)
    y -= mean
    first = np.linalg.eigh(y @ y.T)[1][:, -rank:]  # (N, rank)
    square = x.T @ x
    square += PLAIN_PENALTY * np.trace(square) / len(square) * np.eye(len(square))
    return mean, np.linalg.solve(square, x.T @ first) @ (first.T @ y)  # (M,), (D, M)


def plain_decoder(learned: Photos, centre: np.ndarray, reference: np.ndarray):
    """Fit the plain way. Returns functions from features, (n, D), to pictures, uint8 (n, S, S, 3), and to landmarks."""
    import cv2

    import canonical

    rows, columns = plain_frame()
    size = (columns.stop - columns.start, rows.stop - rows.start)
    edges = (rows.start, canonical.SIDE - rows.stop, columns.start, canonical.SIDE - columns.stop)
    mean, slopes = predict_components(learned.features - centre, learned.textures, PLAIN_TEXTURE)
    shapes = learned.shapes.reshape(len(learned.shapes), -1)
    mean_shape, shape_slopes = predict_components(learned.features - centre, shapes, PLAIN_LANDMARKS)

    def landmarks(features):
        return (mean_shape + (features - centre) @ shape_slopes).reshape(-1, 68, 2)

    def picture(texture, shape):
        texture = texture.reshape(PLAIN_SIDE, PLAIN_SIDE, 3).clip(0, 255).round().astype(np.uint8)
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC)
        return canonical.to_reference(cv2.copyMakeBorder(texture, *edges, cv2.BORDER_REPLICATE), reference, shape)

    def decode(features):
        return np.stack([picture(*of) for of in zip(mean + (features - centre) @ slopes, landmarks(features))])

    return decode, landmarks


def in_canonical_pose(photos: Photos, learned: Photos, centre: np.ndarray) -> np.ndarray:
    """Return the symmetric landmarks of photos without what pose, mouth and light do to them, by least squares on `learned`."""
    import canonical

    wanted, size = canonical.canonical_conditions(learned.conditions), len(centre)
    inputs = np.column_stack([learned.features - centre, learned.conditions - wanted, np.ones(len(learned.features))])
    slopes = np.linalg.lstsq(inputs, canonical.symmetric(learned.shapes).reshape(len(inputs), -1))[0]
    effect = (photos.conditions - wanted) @ slopes[size:-1]
    return canonical.symmetric(photos.shapes) - effect.reshape(photos.shapes.shape)


def print_decoder(decode, landmarks, one_pass, photos: Photos, people, gallery, truths, centre, reference) -> None:
    """Print the figures of one way to decode faces.

    Args:
        decode, landmarks: functions from features to pictures and to landmarks; one_pass: `decode`, for its time.
        photos: of the people asked for.
        people, gallery: whose faces there are to choose from, and their features; first those asked for.
        truths: name -> (N, 68, 2), what the landmarks ought to be.
        centre: where features are seen from.
        reference: the mean shape.
    """
    import decoder
    import retrieval

    n = len(photos.features)
    pictures, shapes = decode(photos.features), landmarks(photos.features)
    found = decoder.face_network(len(centre))(pictures) - centre
    asked = np.zeros_like(gallery)  # where there is no face, nothing is similar
    asked[:n] = np.nan_to_num(found)
    ranks = retrieval.rank(asked, gallery - centre, people).ranks[:n]
    print(f"    {'  '.join(f'R@{k} {100 * retrieval.recall_at_k(ranks, k):.1f} %' for k in KS)}; ", end="")
    print(f"a face is found in {100 * np.mean(np.isfinite(found[:, 0])):.1f} % of the pictures")
    for name, truth in truths.items():
        ours, mean = (np.linalg.norm(of - truth, axis=-1).mean() for of in (shapes, landmarks(centre[None])))
        print(f"    landmarks, {name}: off by {ours:.2f} pixels of {pictures.shape[1]}, its mean face by {mean:.2f}")
    sharpness = np.median([face_sharpness(*of, reference) for of in zip(pictures, shapes)])
    photo = np.median(photos.sharpness)
    print(f"    sharpness {sharpness:.0f}, the photos' {photo:.0f} (medians): {sharpness / photo:.2f} of it")
    rates = {size: size / seconds_of(lambda size=size: one_pass(photos.features[:size]), 5) for size in (32, 1)}
    print(f"    {rates[32]:.0f} pictures/s in batches of 32, {rates[1]:.0f} one at a time", flush=True)


def unseen_photos(data: Path, run: dict, network) -> None:
    """Measure a decoder, and the plain way, on photos of people that it never saw."""
    import canonical
    import decoder
    import utils
    from model import keras, tf

    names = utils.split_clips(utils.ready_faces(data), run["seed"])
    test, n_others = names["test"], max(0, GALLERY - len(names["test"]))
    size, centre = run["feature_size"], run["centre"]
    reference = canonical.reference_shape(np.stack([utils.load_landmarks(data, name) for name in run["clips"]["train"]]))
    learned, photos = (read_photos(data, part, size, reference) for part in (run["clips"]["train"], test))
    others = names["val"][:n_others]
    gallery = np.stack([utils.load_embedding(data, name, size) for name in test + others])
    people = [utils.video_of(name) for name in test + others]
    print(f"photos: {len(learned.features)} learned from; {len(test)} of unseen people asked for, among {len(gallery)} faces:")
    print(f"    theirs and {len(others)} of validation people, by whom the closed form chooses nothing; chance: ", end="")
    print(", ".join(f"R@{k} {100 * k / len(gallery):.1f} %" for k in KS), flush=True)
    truths = {
        "symmetric, in canonical pose": in_canonical_pose(photos, learned, centre),
        "symmetric, as they are": canonical.symmetric(photos.shapes),
    }
    of_landmarks = keras.Model(network.input, network.get_layer("landmarks").output)
    compiled = tf.function(lambda features: network(features, training=False))
    print("train.py --model decoder:")
    print_decoder(
        lambda features: decoder.decode(network, features),
        lambda features: of_landmarks(features).numpy(),
        lambda features: compiled(features).numpy(),
        *(photos, people, gallery, truths, centre, reference),
    )
    decode, landmarks = plain_decoder(learned, centre, reference)
    print(f"the plain way, {PLAIN_SIDE} x {PLAIN_SIDE}:")
    print_decoder(decode, landmarks, decode, photos, people, gallery, truths, centre, reference)


def pictures_seen(decode, voices: np.ndarray, faces: np.ndarray, centre: np.ndarray, authors: Path | None, clips) -> dict:
    """Return the features of all pictures to be compared, each (N, 128), by what they are made of and by whom.

    Args:
        decode: an evaluate.FaceDecoder.
        voices, faces: features predicted from the voices, as seen from `centre`, and those of the true faces.
        centre: of the voices' run.
        authors: folder with the paper's own pictures, or None; clips: names of them.
    """
    import decoder

    see, seen = decoder.face_network(128), {}
    at_once = dataclasses.replace(decode, looks=0)
    pictures = {
        "the voice": {
            "decoded": at_once.heard(voices, centre),
            f"decoded, {decode.looks} looks": decode.heard(voices, centre),
        },
        "the true face": {"decoded": decode(faces)},
    }
    for made_of, folder in (("the voice", "voice_to_face"), ("the true face", "face_to_face")):
        for way, of_way in pictures[made_of].items():
            seen[made_of, way] = see(of_way)
        if authors:
            files = [authors / folder / f"{clip}.jpg" for clip in clips]
            seen[made_of, "the paper's own"] = np.stack([feature_of_file(path) for path in files])
    return seen


def rank_pictures(folder: Path, decode, authors: Path | None):
    """Let the pictures of a voice run's unseen people look for the true faces.

    Returns:
        The rankings, of what `pictures_seen` names and of the predicted feature itself, among all test people's faces; the
        videos; and for each ranking whether it has a face to look with, bool (N,).
    """
    import pipeline
    import retrieval
    import runs
    import utils

    run = runs.read_run(folder)
    data, size = Path(run["data"]), run["feature_size"]
    test = utils.split_clips(utils.ready_clips(data), run["seed"])["test"]
    learned = utils.draw_clips(run["clips"]["train"], CENTRE_CLIPS, run["seed"])
    clips, n = test + learned, len(test)
    voices, faces = pipeline.predict_features(runs.load_encoder(folder, run), data, clips, size, 8)
    seen = {("the voice", "the feature, no picture"): voices[:n] - run["centre"]}
    for name, features in pictures_seen(decode, voices - run["centre"], faces, run["centre"], authors, clips).items():
        seen[name] = features[:n] - np.nanmean(features[n:], axis=0)  # pictures have a mean of their own
    videos = [utils.video_of(clip) for clip in test]
    rankings = {
        name: retrieval.rank(np.nan_to_num(features), faces[:n] - run["centre"], videos) for name, features in seen.items()
    }
    return rankings, videos, {name: np.isfinite(features[:, 0]) for name, features in seen.items()}


def unseen_voices(folders: list[Path], decode, authors: Path | None) -> None:
    """Measure what is decoded from unseen people's voices, all runs together."""
    import retrieval

    of_runs = [rank_pictures(folder, decode, authors) for folder in folders]
    galleries = [len(videos) for _, videos, _ in of_runs]
    found = {name: np.concatenate([has[name] for *_, has in of_runs]) for name in of_runs[0][2]}
    kept = np.logical_and.reduce(list(found.values()))
    videos = np.concatenate([videos for _, videos, _ in of_runs])[kept]
    print(
        f"voices: {len(kept)} of unseen people in {len(folders)} runs, {np.sum(~kept)} left out for a picture without a face, ",
        end="",
    )
    print(f"{len(set(videos))} videos in what is left;")
    print(f"    galleries of {', '.join(map(str, galleries))} true faces; chance: 1:2 50 %, median rank 50 % of the gallery")
    print("    in brackets 95 %, bootstrap over videos; the last column: 1:2, beside the paper's own, points")

    def cell(values, digits=".1f", mean=np.mean, interval=retrieval.mean_interval):
        return "{:{d}} ({:{d}} to {:{d}})".format(*(100 * v for v in (mean(values), *interval(values, videos))), d=digits)

    matching, places = (
        {name: np.concatenate([value(rankings[name]) for rankings, *_ in of_runs])[kept] for name in found}
        for value in (lambda ranking: ranking.matching, lambda ranking: ranking.ranks / ranking.gallery)
    )
    print(f"{'made of':15}{'picture':25}{'faces':>6}  {'1:2 in %':24}{'median rank, %':21}difference")
    for made_of, by in found:
        name, own = (made_of, by), (made_of, "the paper's own")
        gain = cell(matching[name] - matching[own], "+.1f") if own in matching and by.startswith("decoded") else ""
        median = cell(places[name], mean=np.median, interval=retrieval.median_interval)
        print(f"{made_of:15}{by:25}{found[name].sum():6}  {cell(matching[name]):24}{median:21}{gain}".rstrip())


def decoder(options) -> None:
    """Measure the face decoder on people that it never saw, beside a plain linear one and the paper's pictures."""
    import evaluate
    import runs
    import utils

    folder = utils.run_folder(options.run)
    run = runs.read_run(folder, "decoder")
    if run["feature_size"] != utils.FEATURE_SIZE["dlib"]:
        raise SystemExit(f"--run: expected a decoder of dlib's features, found one of {run['feature_size']} numbers")
    network = runs.load_decoder(folder, run)
    unseen_photos(options.data, run, network)
    if options.voices:
        folders = [utils.run_folder(name) for name in options.voices]
        decode = evaluate.face_decoder(evaluate.Options(decoder=options.run), run["feature_size"])
        unseen_voices(folders, decode, options.authors)


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
    command = commands.add_parser("decoder", help=decoder.__doc__)
    command.set_defaults(call=decoder)
    command.add_argument("--data", type=Path, required=True, help="folder that preprocess.py --faces wrote")
    command.add_argument("--run", required=True, help="of train.py --model decoder, on that data")
    command.add_argument("--voices", nargs="+", default=[], metavar="RUN", help="of voice encoders, each on its own split")
    command.add_argument("--authors", type=Path, metavar="FOLDER", help="the paper's own pictures of the voices' clips")
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
