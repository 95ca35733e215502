"""What the tests share: a seeded generator, a tone, synthetic people and a tiny data set made of them."""

import csv
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import h5py
import hypothesis
import imageio_ffmpeg
import numpy as np
import pytest
from video_server import Server

import model
import preprocess
import train
import utils
from clips import detection, feature_files, fetch, media, records
from faces import decoder, textures, vggface
from training import runs
from utils import SAMPLE_RATE

hypothesis.settings.register_profile("no deadline", deadline=None)  # machines pause now and then
hypothesis.settings.load_profile("no deadline")

SEED = 11  # of train.py's split of `demo_data`: 22 people train and 5 validate
ROOT = Path(__file__).resolve().parent.parent
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments):
    subprocess.run([FFMPEG, "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


@pytest.fixture(autouse=True)
def full_precision():
    """Undo what train.main did in this process: it sets Keras's precision for all that follows."""
    if "keras" in sys.modules:
        sys.modules["keras"].mixed_precision.set_global_policy("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tone():
    """Return a function: a sine, float32 (samples,), of so many Hz and seconds."""

    def make(hertz, seconds, amplitude=0.5):
        return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(
            np.float32
        )

    return make


@pytest.fixture(scope="session")
def make_demo():
    """The module data/make_demo.py."""
    spec = importlib.util.spec_from_file_location("make_demo", ROOT / "data" / "make_demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo"] = module  # its processes pickle functions by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def demo_clips(tmp_path_factory):
    """Folder with `videos/` and `avspeech_demo.csv` of 30 synthetic people."""
    folder = tmp_path_factory.mktemp("clips")
    subprocess.run(
        [sys.executable, ROOT / "data" / "make_demo.py", "--out", folder, "--people", "30", "--seed", "5"], check=True
    )
    return folder


@pytest.fixture(scope="session")
def demo_data(demo_clips, tmp_path_factory):
    """What preprocess.py makes of `demo_clips`, with dlib's features."""
    data = tmp_path_factory.mktemp("data")
    arguments = ["--csv", demo_clips / "avspeech_demo.csv", "--videos", demo_clips / "videos", "--data", data]
    assert preprocess.main([*map(str, arguments), "--face-model", "dlib"]) == 0
    return data


@pytest.fixture(scope="session")
def random_data(tmp_path_factory):
    """40 clips of random spectrograms, face features of dlib's size and faces: faster to make than `demo_data`."""
    data, rng = tmp_path_factory.mktemp("random-data"), np.random.default_rng(1)
    (data / "faces").mkdir()
    for clip in (f"person{number}_1" for number in range(40)):
        spectrogram = rng.normal(size=(utils.N_FRAMES, utils.N_BINS, 2)).astype(np.float16)
        feature = (1 + rng.normal(size=128)).astype(np.float32)
        feature_files.save_array(feature_files.spectrogram_path(data, clip), spectrogram)
        feature_files.save_array(feature_files.embedding_path(data, clip), feature)
        cv2.imwrite(str(feature_files.face_path(data, clip)), rng.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    return data


@pytest.fixture(scope="session")
def decoder_run(demo_data, tmp_path_factory):
    """The face decoder of `demo_data`, by train.py in closed form; 22 people train and 5 validate."""
    run = tmp_path_factory.mktemp("runs") / "faces"
    assert train.main([*map(str, ["decoder", "--data", demo_data, "--run", run, "--seed", SEED])]) == 0
    return run


TINY = ["--width", "0.03", "--seconds", "2.7", "--batch-size", "4", "--seed", str(SEED)]  # options of a fast training


def run_train(data, run, *more):
    return train.main([*map(str, ["--data", data, "--run", run, *TINY, *more])])


@pytest.fixture(scope="session")
def tiny_run(demo_data, tmp_path_factory):
    """A voice encoder trained for three epochs of five steps."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert run_train(demo_data, run, "--epochs", 3) == 0
    return run


def encoder_weights(run, name=utils.LAST_WEIGHTS):
    encoder = model.voice_encoder(128, 0.03)
    encoder.load_weights(run / name)
    return encoder.get_weights()


def arrays_of(path):
    """Return all float arrays of a weight file or checkpoint, by name."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            found[name] = item[...]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def write_decoder_run(network, folder):
    """Write a face decoder's weights and what train.py writes beside them."""
    feature_size, rank = network.input_shape[1], network.get_layer("texture_coefficients").units
    runs.save_weights(folder / utils.BEST_WEIGHTS, network)
    options = {"model": "decoder", "data": "data", "seed": 0, "feature_size": feature_size, "rank": rank}
    utils.write_json(folder / utils.OPTIONS, options)
    utils.write_json(folder / utils.CLIPS, {"train": ["a_1"], "val": ["b_1"]})
    feature_files.save_array(folder / utils.CENTRE, np.zeros(feature_size, np.float32))
    return folder


@pytest.fixture(scope="session")
def wide_decoder_run(tmp_path_factory):
    """A face decoder of random weights, for VGG-Face's features."""

    network = decoder.face_decoder(utils.FEATURE_SIZE["vggface"], 3)
    return write_decoder_run(network, tmp_path_factory.mktemp("runs") / "wide")


@pytest.fixture
def small_fc8(monkeypatch, rng):
    """VGG-Face's last layer, of random weights, in a file that holds nothing else."""

    kernel, bias = rng.normal(size=(4096, 30)).astype(np.float32) / 20, rng.normal(size=30).astype(np.float32)
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("KERAS_HOME", home)
        vggface.weights_path().parent.mkdir(parents=True)
        with h5py.File(vggface.weights_path(), "w") as file:
            file["fc8/fc8/kernel:0"], file["fc8/fc8/bias:0"] = kernel, bias
            file["fc8"].attrs["weight_names"] = ["fc8/kernel:0", "fc8/bias:0"]
        yield kernel, bias


@pytest.fixture(scope="session")
def frames(demo_clips):
    """The first frames of the clips of six of the synthetic people, uint8 (360, 640, 3), RGB."""
    return [media.read_clip(path).frame.picture for path in sorted((demo_clips / "videos").iterdir())[:6]]


def face_shape(opening=0.0, corners=0.0, nose=0.0):
    """Landmarks of a face, (68, 2): the origin is between the eyes, whose distance is 1, x to the right, y down.

    Args:
        opening: between the lips.
        corners: how much higher the mouth's corners are than its middle.
        nose: how far the tip of the nose is to the right.
    """
    around = np.linspace(np.pi, 0, 17)
    jaw = np.stack([0.95 * np.cos(around), 0.05 + 1.3 * np.sin(around)], axis=1)
    along = np.linspace(-0.8, -0.2, 5)
    brow = np.stack([along, -0.25 - 0.1 * np.sin((along + 0.8) / 0.6 * np.pi)], axis=1)
    bridge = [(0, 0), (0, 0.18), (0, 0.36), (nose, 0.55)]
    wings = [(x, 0.72 - x * x) for x in (-0.2, -0.1, 0, 0.1, 0.2)]
    eye = np.array([(-0.18, 0), (-0.06, -0.07), (0.06, -0.07), (0.18, 0), (0.06, 0.07), (-0.06, 0.07)])
    upper, lower = 1.02 - opening / 2, 1.02 + opening / 2
    corner, middle = 1.02 - corners, (-0.15, 0, 0.15)
    outer = [(-0.38, corner), (-0.25, upper - 0.06), *((x, upper - 0.1) for x in middle), (0.25, upper - 0.06), (0.38, corner)]
    outer += [(0.25, lower + 0.06), *((-x, lower + 0.1) for x in middle), (-0.25, lower + 0.06)]
    inner = [(-0.3, corner), *((x, upper) for x in middle), (0.3, corner), *((-x, lower) for x in middle)]
    other_brow, (left_eye, right_eye) = (brow * (-1, 1))[::-1], (eye + np.array([x, 0]) for x in (-0.5, 0.5))
    return np.concatenate([jaw, brow, other_brow, bridge, wings, left_eye, right_eye, outer, inner])


def in_picture(shape, side=256):
    """Put a `face_shape` where the decoder has its faces, in a picture of so many pixels: float32 (68, 2)."""
    return (0.19 * side * shape + np.array([0.5, 0.46]) * side - 0.5).astype(np.float32)


def small_decoder(rng, feature_size=6, rank=3):
    """Return a face decoder of random statistics: a plain head in the middle, which features colour and move."""
    reference, means, bases = in_picture(face_shape()), [], []
    for name, (height, width, channels) in textures.HALVES.items():
        y, x = (np.mgrid[:height, :width] + 0.5) / height
        depth = 1 - np.hypot(x / 0.35, (y - 0.5) / 0.4)  # 0 on the outline of the head
        share = np.clip(20 * depth, 0, 1) * (y < 0.3 if name == "hair" else 1)
        colours = {"skin": (190, 140, 110), "hair": (90, 60, 40)}.get(name, ())  # in the first channels, which features change
        planes = [*(colour * share for colour in colours), 255 * share, textures.DISTANCE_ZERO + 100 * depth][:channels]
        noise = np.stack([cv2.GaussianBlur(of, (0, 0), height / 24) for of in rng.normal(size=(rank, height, width, channels))])
        noise[..., len(colours) :] = 0
        means.append(np.stack(planes, axis=-1).ravel())
        bases.append(300 * noise.reshape(rank, -1))
    network = decoder.face_decoder(feature_size, rank)
    network.get_layer("texture_coefficients").set_weights([rng.normal(size=(feature_size, rank)), rng.normal(size=rank)])
    network.get_layer("texture_basis").set_weights([np.concatenate(bases, axis=1), np.concatenate(means)])
    slopes = rng.normal(size=(feature_size, 68, 2))
    slopes = (slopes + detection.mirror_landmarks(slopes, 1)) / 2  # the face stays symmetric
    network.get_layer("landmark_slopes").set_weights([slopes.reshape(feature_size, -1), reference.ravel()])
    network.get_layer("warp").set_weights([reference])
    return network


@pytest.fixture(scope="session")
def counting_video(tmp_path_factory):
    """12 s at 25 frames a second: the grey says the second, the sound a tone of 200 + 100 * (second) Hz."""
    path = tmp_path_factory.mktemp("video") / "counting.mp4"
    grey = "geq=lum='16+15*floor(T)':cb=128:cr=128"
    tone = "aevalsrc=0.3*sin(2*PI*(200+100*floor(t))*t):s=44100:d=12"
    video = f"color=black:s=320x240:r=25:d=12,format=yuv420p,{grey}"
    ffmpeg("-f", "lavfi", "-i", video, "-f", "lavfi", "-i", tone, "-c:v", "libx264", "-g", 250, "-c:a", "aac", path)
    return path


def second_shown(frame):
    return round((float(frame[..., 1].mean()) * 219 / 255) / 15, 1)


def loudest_hertz(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples)


def die_of(items, deadly, folder):
    """Return the items, doubled; die of a deadly one, and of a sick one the first time."""
    for item in items:
        marker = folder / f"seen-{item}"
        if item in deadly or (item % 10 == 0 and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return [2 * item for item in items]


def wait_for(is_done, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_csv(path, *rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def valid_rows(path, limit=None):
    """Return the valid rows of a csv, a list of Row, and the problems of the others, by line."""
    ids, rows = records.read_rows(path, limit)
    bad = rows[rows.problem > 0]
    good = itertools.chain.from_iterable(records.rows_by_video(ids, rows[rows.problem == 0]))
    return list(good), {int(line): records.PROBLEMS[problem] for line, problem in zip(bad.line, bad.problem)}


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def own_data(demo_data, tmp_path):
    return shutil.copytree(demo_data, tmp_path / "data")


def error_of(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def decoder_weights(run):
    network = runs.load_decoder(run, runs.read_run(run, "decoder"))
    return {layer.name: layer.get_weights() for layer in network.layers if layer.weights}


def lines_of(data):
    """Return the last line of each clip in the manifest, a dictionary by column."""
    with open(data / "manifest.csv", newline="") as file:
        return {line["clip"]: line for line in csv.DictReader(file)}


def statuses(data):
    """Return the last status of each clip in the manifest."""
    return {clip: line["status"] for clip, line in lines_of(data).items()}


FOLDERS = {"spectrograms": "pkl", "embeddings": "pkl", "faces": "jpg", "portraits": "jpg", "landmarks": "pkl"}


def contents(data):
    """Return the bytes of all feature files, by relative path."""
    files = [path for folder in FOLDERS for path in (data / folder).iterdir()]
    return {str(path.relative_to(data)): path.read_bytes() for path in files}


def run_preprocess(demo_clips, data, *more):
    arguments = ["--csv", demo_clips / "avspeech_demo.csv", "--videos", demo_clips / "videos", "--data", data, *more]
    return preprocess.main([*map(str, arguments)])


@pytest.fixture(scope="session")
def voice_run(demo_data, tmp_path_factory):
    """A narrow voice encoder, trained on `demo_data` for one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "voices"
    options = ["--width", "0.03", "--seconds", "2.7", "--batch-size", "4", "--epochs", "1"]
    assert train.main(["--data", str(demo_data), "--run", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="session")
def voice_clip(demo_data):
    """The clip of `demo_data` with the most speech."""
    lines = lines_of(demo_data)
    return max(feature_files.ready_clips(demo_data), key=lambda clip: float(lines[clip]["speech_seconds"]))


@pytest.fixture(scope="session")
def voice(demo_clips, voice_clip, tmp_path_factory):
    """The voice of `voice_clip`, as an m4a."""
    path = tmp_path_factory.mktemp("voice") / "me.m4a"
    ffmpeg("-i", next((demo_clips / "videos").glob(f"{voice_clip}.*")), "-vn", "-c:a", "aac", path)
    return path


@pytest.fixture(scope="session")
def photos(demo_data, tmp_path_factory):
    """Photos of three faces, two of them side by side in a fourth; one without a face, a broken one, and another file."""
    folder = tmp_path_factory.mktemp("photos")
    faces = [cv2.imread(str(feature_files.face_path(demo_data, clip))) for clip in feature_files.ready_clips(demo_data)[:3]]
    faces = [cv2.copyMakeBorder(face, 60, 60, 60, 60, cv2.BORDER_REPLICATE) for face in faces]
    for name, face in zip("abc", faces):
        cv2.imwrite(str(folder / f"{name}.png"), face)
    cv2.imwrite(str(folder / "pair.jpg"), np.hstack(faces[:2]))
    cv2.imwrite(str(folder / "wall.jpg"), np.full((200, 200, 3), 90, np.uint8))
    (folder / "broken.jpg").write_text("no photo")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def no_runs_of_the_project(tmp_path_factory):
    """As `no_named_runs`, for fixtures of a module too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("no-runs") / "checkpoints"
        patch.setattr(utils, "CHECKPOINTS", folder)
        patch.setattr(utils, "PRETRAINED", folder / "pretrained")
        yield


@pytest.fixture
def no_named_runs(tmp_path, monkeypatch):
    """The folder of runs that have a name, and none in it: the project's own runs do not change a test."""
    monkeypatch.setattr(utils, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(utils, "PRETRAINED", tmp_path / "checkpoints" / "pretrained")
    return tmp_path / "checkpoints"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    with Server(folder) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def settings(server):
    return fetch.FetchSettings(server.url_template, sleep_seconds=0, bytes_per_second=None, cookies=None, proxy=None)


@pytest.fixture
def segment(tmp_path):
    """Return a function: the segment from a start to an end, in s."""
    (tmp_path / "videos").mkdir()

    def make(start, end):
        return fetch.Segment(start, end, tmp_path / "videos" / f"clip_{start}.mp4")

    return make
