"""Benchmark of preprocessing, beside the slides' way, in one run on one machine.

Prints clips a second of preprocess.py and of the slides' way, written out below; their ratio; the share of each stage; and the
memory of all processes together. Some clips are also fetched, by yt-dlp from a server on this machine. VGG-Face's weights are
random, which takes the same time.

    python -m benchmarks preprocess                   demo clips, 640 x 360
    python -m benchmarks preprocess --clips FOLDER    the clips of a folder
"""

import contextlib
import csv
import dataclasses
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import librosa
import numpy as np
import psutil

import model
import utils
from benchmarks.measuring import ROOT, random_vggface
from clips import detection, feature_files
from faces import vggface
from tests.video_server import Server

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@dataclasses.dataclass(frozen=True)
class Options:
    clips: Path | None = utils.option("folder of video files; demo clips are made without it", None, metavar="FOLDER")
    n: int = utils.option("clips to make ready", 200, metavar="N")
    slides: int = utils.option("clips for the slides' way", 8, metavar="N")

    def __post_init__(self):
        utils.check(self.clips is None or self.clips.is_dir(), f"--clips: expected a folder, found {self.clips}")
        utils.check(self.n >= 5, f"--n: expected at least 5, found {self.n}")
        utils.check(self.slides >= 1, f"--slides: expected at least 1, found {self.slides}")


def demo_clips(folder: Path, people: int) -> list[Path]:
    """Make demo clips, 640 x 360."""
    command = [sys.executable, ROOT / "data" / "make_demo.py", "--out", folder, "--people", str(people), "--seed", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return sorted((folder / "videos").iterdir())


def under_many_names(clips: list[Path], n: int, folder: Path) -> Path:
    """Link clips under n names in <folder>/videos. Returns a csv of them."""
    (folder / "videos").mkdir(parents=True)
    with open(folder / "clips.csv", "w", encoding="utf-8", newline="") as file:
        for i in range(n):
            (folder / "videos" / f"{utils.clip_name(f'v{i}', 0, 6)}.mp4").symlink_to(clips[i % len(clips)].resolve())
            csv.writer(file).writerow((f"v{i}", 0, 6, 0.5, 0.5))
    return folder / "clips.csv"


@contextlib.contextmanager
def mirror(clips: list[Path], n: int, folder: Path):
    """Serve clips under n ids on loopback. Yields the url template, and a csv with a segment of each."""
    folder.mkdir()
    with open(folder / "clips.csv", "w", encoding="utf-8", newline="") as file, Server(folder) as server:
        for i in range(n):
            (folder / f"v{i}.mp4").symlink_to(clips[i % len(clips)].resolve())
            csv.writer(file).writerow((f"v{i}", 0.2, 2.7, 0.5, 0.5))
        file.flush()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url_template, folder / "clips.csv"
        server.shutdown()


def memory_of(process: psutil.Process) -> float:
    """Return the memory of a process and all its children, in bytes; shared memory counts once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += one.memory_full_info().pss
    return total


def this_way(arguments: list, n: int) -> tuple[float, str, float]:
    """Run preprocess.py. Returns the s of a clip, start-up included, the shares of the stages, and the peak memory in bytes."""
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
    """Preprocess one clip as the slides do: a resampled video, frames as files, CNN, one face, a wav file, librosa."""
    face_recognition = detection._face_recognition()
    folder.mkdir()
    run = [FFMPEG, "-v", "error", "-nostdin", "-y", "-i"]
    subprocess.run([*run, clip, "-t", "6", "-r", "25", folder / "video.mp4"], check=True)
    subprocess.run([*run, folder / "video.mp4", "-vf", "fps=1", folder / "%d.jpg"], check=True)
    subprocess.run([*run, folder / "video.mp4", "-vn", "-ac", "1", "-ar", "16000", folder / "sound.wav"], check=True)
    waveform, _ = librosa.load(folder / "sound.wav", sr=utils.SAMPLE_RATE)
    waveform = np.resize(waveform, utils.CLIP_SAMPLES)
    feature_files.save_array(folder / "spectrogram.pkl", model.spectrogram(waveform[None]).numpy()[0])
    frame = face_recognition.load_image_file(folder / "1.jpg")
    top, right, bottom, left = face_recognition.face_locations(frame, model="cnn")[0]
    face = cv2.resize(frame[max(0, top) : bottom, max(0, left) : right], (utils.FACE_SIZE, utils.FACE_SIZE))
    feature = network.predict(preprocess_input(face[None].astype(np.float32), version=1), verbose=0)
    feature_files.save_array(folder / "embedding.pkl", feature)


def run(options: Options) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips = sorted(options.clips.glob("*.mp*")) if options.clips else demo_clips(folder / "demo", 25)
        print(f"{len(clips)} clips of {options.clips or 'the demo'}, {options.n} to make ready")
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

        detection._face_recognition()  # loads its networks, which is not part of the time
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
