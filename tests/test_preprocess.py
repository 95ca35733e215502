import csv
import functools
import http.server
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

import cv2
import imageio_ffmpeg
import librosa
import numpy as np
import pytest
from conftest import ROOT

import model
import preprocess
import utils
from preprocess import Skip
from utils import InputError

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments):
    subprocess.run([FFMPEG, "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def statuses(data):
    """Return the last status of each clip in the manifest."""
    with open(data / "manifest.csv", newline="") as file:
        return {clip: status for clip, status, *_ in csv.reader(file)}


def contents(data):
    """Return the bytes of all feature files, by relative path."""
    files = [path for folder in ("spectrograms", "embeddings", "faces") for path in (data / folder).iterdir()]
    return {str(path.relative_to(data)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- the csv


def test_a_row_of_avspeech():
    row = preprocess.parse_row(("-1nRm4tQL0A", "24.76", "29.96", "0.5", "0.25"))
    assert row == preprocess.Row("-1nRm4tQL0A_024.760000-029.960000", "-1nRm4tQL0A", 24.76, 29.96, 0.5, 0.25)


@pytest.mark.parametrize(
    "values",
    [
        ("../../etc/passwd", "1", "2", "0.5", "0.5"),
        ("", "1", "2", "0.5", "0.5"),
        ("abc", "2", "2", "0.5", "0.5"),
        ("abc", "-1", "2", "0.5", "0.5"),
        ("abc", "1", "inf", "0.5", "0.5"),
        ("abc", "nan", "2", "0.5", "0.5"),
        ("abc", "1", "2", "1.97", "0.5"),
        ("abc", "1", "2", "0.5", "nan"),
        ("abc", "start", "end", "x", "y"),
        ("abc\n", "1", "2", "0.5", "0.5"),
    ],
    ids=str,
)
def test_bad_rows(values):
    with pytest.raises(Skip, match="bad-row"):
        preprocess.parse_row(values)


def test_rows_are_read_as_text_with_or_without_bom_and_crlf(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf-a,1.50,2,0.5,0.5\r\nNA,3,4,0.5,0.5\r\n\r\nc,5,6,0.5,0.5\r\n")
    rows = list(preprocess.read_rows(path, None))
    assert rows == [("-a", "1.50", "2", "0.5", "0.5"), ("NA", "3", "4", "0.5", "0.5"), ("c", "5", "6", "0.5", "0.5")]
    assert list(preprocess.read_rows(path, 1)) == rows[:1]


def test_a_line_with_too_few_or_too_many_values_spoils_no_other(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('a,1,2,0.5,0.5\nb,1,2\n"c,1,2,0.5,0.5\nd,1,2,0.5,0.5,0.5\ne,1,2,0.5,0.5\n')
    rows = list(preprocess.read_rows(tmp_path / "a.csv", None))
    assert "a.csv: 1 lines left out; Skipping line 4: expected 5 fields, saw 6" in capsys.readouterr().err
    assert [row[0] for row in rows] == ["a", "b", '"c', "e"]
    for row in rows[1:3]:
        with pytest.raises(Skip, match="bad-row"):
            preprocess.parse_row(row)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"a,1,2,0.5\n", "expected five columns, video_id, start, end, x, y, found 4"),
        (b"0,a,1,2,0.5,0.5\n", "found 6"),
        (b"", "expected a csv of five columns"),
        (b"\xff\xfe\x00\x01", "expected a csv of five columns"),
    ],
)
def test_another_file_is_told_before_anything_starts(content, said, tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes(content)
    assert preprocess.main(["--csv", str(tmp_path / "a.csv"), "--data", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'a.csv'}: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_no_csv(tmp_path, capsys):
    assert preprocess.main(["--csv", str(tmp_path / "a.csv")]) == 1
    assert "a.csv: expected AVSpeech's csv, found no such file" in capsys.readouterr().err


# ---------------------------------------------------------------- boxes and crops


def test_the_face_nearest_to_the_speakers_centre_is_taken():
    left, right = (10, 50, 50, 10), (10, 350, 50, 310)
    assert preprocess.nearest_box([left, right], 300, 30) == right
    assert preprocess.nearest_box([left, right], 100, 30) == left


def test_two_people_in_a_frame(make_demo):
    one, other = (
        make_demo.draw_faces(make_demo.Person(*np.full(11, level)), [(0.2, 1)], centre, 0)[0]
        for level, centre in ((0.2, (160, 175)), (0.8, (480, 175)))
    )
    frame = np.hstack([one[:, :320], other[:, 320:]])
    for x, side in ((0.25, 0), (0.75, 1)):
        _, (_, right, _, left) = preprocess.find_face(iter([frame]), x, 0.5, "hog")
        assert (left + right) / 2 // 320 == side


def test_frames_without_a_face_are_passed_over(make_demo):
    empty = np.full((360, 640, 3), 90, np.uint8)
    face = make_demo.draw_faces(make_demo.Person(*np.full(11, 0.5)), [(0.2, 1)], (320, 175), 0)[0]
    found, _ = preprocess.find_face(iter([empty, empty, face]), 0.5, 0.5, "hog")
    assert found is face
    with pytest.raises(Skip, match="no-face"):
        preprocess.find_face(iter([empty, empty]), 0.5, 0.5, "hog")
    with pytest.raises(Skip, match="unreadable"):
        preprocess.find_face(iter([]), 0.5, 0.5, "hog")


def test_a_crop_is_the_box_and_its_margin(rng):
    frame = np.zeros((400, 600, 3), np.uint8)
    frame[100:200, 300:400] = (10, 200, 30)
    crop = preprocess.crop_face(frame, (100, 400, 200, 300))
    assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8
    inside = np.all(np.abs(crop.astype(int) - (10, 200, 30)) < 3, axis=2)
    margin = 0.15 / 1.3 * 224
    rows, columns = np.where(inside)
    for edge in (rows.min(), columns.min(), 224 - rows.max(), 224 - columns.max()):
        assert edge == pytest.approx(margin, abs=3)


def test_a_crop_beyond_the_frame_repeats_the_border():
    frame = np.full((100, 100, 3), 77, np.uint8)
    assert (preprocess.crop_face(frame, (-20, 60, 60, -20)) == 77).all()


# ---------------------------------------------------------------- sound and frames


@pytest.fixture(scope="module")
def counting_video(tmp_path_factory):
    """12 s at 25 frames a second: frame n is grey of level 10 * (second), the sound a tone of 200 + 100 * (second) Hz."""
    path = tmp_path_factory.mktemp("video") / "counting.mp4"
    grey = "geq=lum='16+15*floor(T)':cb=128:cr=128"
    tone = "aevalsrc=0.3*sin(2*PI*(200+100*floor(t))*t):s=44100:d=12"
    video = f"color=black:s=320x240:r=25:d=12,format=yuv420p,{grey}"
    ffmpeg("-f", "lavfi", "-i", video, "-f", "lavfi", "-i", tone, "-c:v", "libx264", "-g", 250, "-c:a", "aac", path)
    return path


def second_shown(frame):
    return round((float(frame[..., 1].mean()) * 219 / 255) / 15, 1)


def loudest_hertz(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * utils.SAMPLE_RATE / len(samples)


def test_the_first_frame_and_then_one_a_second_are_read(counting_video):
    frames = list(preprocess.read_frames(counting_video))
    assert frames[0].shape == (240, 320, 3) and frames[0].dtype == np.uint8
    assert [second_shown(frame) for frame in frames] == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.3)


def test_six_seconds_of_sound_are_read(counting_video):
    samples = preprocess.read_sound(counting_video)
    assert samples.shape == (utils.CLIP_SAMPLES,) and samples.dtype == np.int16
    for second in range(6):
        part = samples[second * 16_000 + 2000 : (second + 1) * 16_000 - 2000]
        assert loudest_hertz(part) == pytest.approx(200 + 100 * second, abs=2)


def test_short_sound_is_repeated(tmp_path, tone):
    path = tmp_path / "a.wav"
    ffmpeg("-f", "lavfi", "-i", "aevalsrc=0.5*t/2:s=16000:d=2", path)
    samples = preprocess.read_sound(path)
    assert samples.shape == (utils.CLIP_SAMPLES,)
    assert np.array_equal(samples[:32_000], samples[32_000:64_000]) and np.array_equal(samples[:32_000], samples[64_000:])
    assert samples[31_000] == pytest.approx(0.5 * 31 / 32 * 32768, abs=20)


def test_files_that_are_no_clips(tmp_path, counting_video):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(counting_video.read_bytes()[:2000])
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    ffmpeg("-i", counting_video, "-vn", "-c", "copy", tmp_path / "blind.mp4")
    for name in ("text", "empty", "cut"):
        with pytest.raises(Skip, match="unreadable"):
            preprocess.read_sound(tmp_path / f"{name}.mp4")
        with pytest.raises(Skip, match="unreadable"):
            list(preprocess.read_frames(tmp_path / f"{name}.mp4"))
    with pytest.raises(Skip, match="no-sound"):
        preprocess.read_sound(tmp_path / "mute.mp4")
    with pytest.raises(Skip, match="unreadable"):
        list(preprocess.read_frames(tmp_path / "blind.mp4"))


def test_silence(tone):
    assert preprocess.is_silent(np.zeros(utils.CLIP_SAMPLES, np.float32))
    assert preprocess.is_silent(tone(300, 6, amplitude=1e-4))
    assert not preprocess.is_silent(tone(300, 6, amplitude=0.05))
    click = np.zeros(utils.CLIP_SAMPLES, np.float32)
    click[5000:5100] = 1
    assert preprocess.is_silent(click)


# ---------------------------------------------------------------- fetching, with the real yt-dlp


class RangeServer(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with byte ranges, which ffmpeg needs to seek."""

    def do_GET(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            self.send_error(404)
            return
        with open(path, "rb") as file:
            content = file.read()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(content[first : last + 1])
            except OSError:
                return  # ffmpeg has seen enough

    do_HEAD = do_GET

    def log_message(self, *_):
        return


@pytest.fixture
def mirror(tmp_path):
    """A folder, and the url template of a server on loopback that serves <id>.mp4 out of it."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(RangeServer, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/{{}}.mp4"
        server.shutdown()


def test_a_segment_is_fetched_and_cut_exactly(mirror, counting_video, tmp_path):
    folder, template = mirror
    (folder / "-video_1.mp4").write_bytes(counting_video.read_bytes())
    row = preprocess.parse_row(("-video_1", "3", "7.5", "0.5", "0.5"))  # the only key frame before is at 0 s
    path = tmp_path / "videos" / f"{row.clip}.mp4"
    preprocess.fetch(row, path, template)
    frames = list(preprocess.read_frames(path))
    assert [second_shown(frame) for frame in frames] == pytest.approx([3, 4, 5, 6, 7], abs=0.3)
    samples = preprocess.read_sound(path)
    assert loudest_hertz(samples[1600:14_400]) == pytest.approx(500, abs=3)
    seconds = imageio_ffmpeg.count_frames_and_secs(str(path))[1]
    assert seconds == pytest.approx(4.5, abs=0.1)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_video_that_is_gone(mirror, tmp_path):
    row = preprocess.parse_row(("gone", "3", "6", "0.5", "0.5"))
    with pytest.raises(Skip, match="not-fetched") as skipped:
        preprocess.fetch(row, tmp_path / "videos" / f"{row.clip}.mp4", mirror[1])
    assert "HTTP Error 404" in skipped.value.detail
    assert list((tmp_path / "videos").iterdir()) == []


def test_from_csv_through_the_network_to_a_feature(mirror, demo_clips, tmp_path, capsys):
    folder, template = mirror
    source = sorted((demo_clips / "videos").iterdir())[0]
    (folder / "abc.mp4").write_bytes(source.read_bytes())
    (tmp_path / "a.csv").write_text("abc,0.5,4.5,0.5,0.5\ngone,1,4,0.5,0.5\nabc,4,1,0.5,0.5\nabc,0.5,4.5,0.5,0.5\n")
    arguments = ["--csv", tmp_path / "a.csv", "--data", tmp_path / "data", "--face-model", "dlib", "--url-template", template]
    assert preprocess.main([*map(str, arguments)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("preprocess: 4 rows, 1 clips ready (0 of them before), 3 skipped (")
    assert all(reason in said for reason in ("not-fetched 1", "bad-row 1", "duplicate 1"))
    ready, gone = "abc_000.500000-004.500000", "gone_001.000000-004.000000"
    assert statuses(tmp_path / "data") == {ready: "ready", gone: "not-fetched", "row 3": "bad-row"}
    assert utils.ready_clips(tmp_path / "data") == [ready]
    assert [p.name for p in (tmp_path / "data" / "videos").iterdir()] == [f"{ready}.mp4"]


# ---------------------------------------------------------------- the whole


def test_all_demo_people_become_ready(demo_data, demo_clips):
    clips = utils.ready_clips(demo_data)
    assert len(clips) == 30
    assert set(statuses(demo_data).values()) == {"ready"}
    for clip in clips:
        spectrogram = utils.load_array(utils.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
        assert np.isfinite(spectrogram).all() and np.abs(spectrogram).max() > 0.5
        feature = utils.load_embedding(demo_data, clip, 128)
        assert 0.8 < np.linalg.norm(feature) < 2  # dlib's network maps faces near the unit sphere


def test_the_spectrogram_is_of_the_clips_sound(demo_data, demo_clips):
    clip = utils.ready_clips(demo_data)[3]
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-i", demo_clips / "videos" / f"{clip}.mp4", "-f", "f32le", "-ac", "1", "-ar", "16000", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    waveform = np.resize(np.frombuffer(done.stdout, np.float32)[: utils.CLIP_SAMPLES], utils.CLIP_SAMPLES)
    expected = model.spectrogram(waveform[None]).numpy()[0]
    found = utils.load_array(utils.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
    assert np.corrcoef(found.astype(np.float32).ravel(), expected.ravel())[0, 1] > 0.99


def test_the_face_is_of_the_clip_and_the_feature_of_the_face(demo_data, demo_clips):
    import face_recognition

    clips = utils.ready_clips(demo_data)
    features = np.stack([utils.load_embedding(demo_data, clip, 128) for clip in clips])
    for clip in clips[:5]:
        face = cv2.imread(str(utils.face_path(demo_data, clip)))[..., ::-1]
        assert face.shape == (224, 224, 3)
        again = face_recognition.face_encodings(np.ascontiguousarray(face))[0]
        assert clips[np.linalg.norm(features - again, axis=1).argmin()] == clip


def run_preprocess(demo_clips, data, *more):
    arguments = ["--csv", demo_clips / "avspeech_demo.csv", "--videos", demo_clips / "videos", "--data", data, *more]
    return preprocess.main([*map(str, arguments)])


def test_a_second_run_does_only_what_is_missing(demo_data, demo_clips, tmp_path, capsys):
    data = tmp_path / "data"
    assert run_preprocess(demo_clips, data, "--limit", 6, "--face-model", "dlib") == 0
    clips = utils.ready_clips(data)
    assert len(clips) == 6
    before = {path: path.stat().st_mtime_ns for path in (data / "spectrograms").iterdir()}
    utils.spectrogram_path(data, clips[0]).unlink()
    utils.embedding_path(data, clips[1]).write_bytes(b"broken")
    capsys.readouterr()
    assert run_preprocess(demo_clips, data, "--limit", 7, "--face-model", "dlib") == 0
    assert "7 rows, 7 clips ready (4 of them before), 0 skipped" in capsys.readouterr().out
    kept = [path for path, when in before.items() if path.stat().st_mtime_ns == when]
    assert len(kept) == 4
    whole = contents(demo_data)
    assert all(whole[name] == content for name, content in contents(data).items())  # as of any other run


def test_nothing_ready_is_a_failure_that_names_the_manifest(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("abc,0.5,4.5,0.5,0.5\n")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "abc_000.500000-004.500000.mp4").write_text("no video")
    arguments = [
        "--csv",
        tmp_path / "a.csv",
        "--data",
        tmp_path / "data",
        "--videos",
        tmp_path / "videos",
        "--face-model",
        "dlib",
    ]
    assert preprocess.main([*map(str, arguments)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "preprocess: 1 rows, 0 clips ready (0 of them before), 1 skipped (unreadable 1)\n"
    assert "error: " in shown.err and "manifest.csv says why" in shown.err


def test_vggface_features_are_of_the_crops(demo_clips, tmp_path, monkeypatch):
    """The network itself is tested in test_model.py; here a stand-in tells which faces it is shown."""

    def stand_in(faces):
        assert faces.dtype == np.uint8 and faces.shape[1:] == (224, 224, 3)
        return np.repeat(faces.mean(axis=(1, 2, 3))[:, None], 4096, axis=1).astype(np.float32)

    monkeypatch.setattr(model, "face_embedder", lambda: stand_in)
    assert run_preprocess(demo_clips, tmp_path, "--limit", 3, "--face-model", "dlib") == 0
    assert run_preprocess(demo_clips, tmp_path, "--limit", 3) == 0  # another face model: all anew
    for clip in utils.ready_clips(tmp_path):
        feature = utils.load_embedding(tmp_path, clip, 4096)
        face = cv2.imread(str(utils.face_path(tmp_path, clip)))
        assert feature[0] == pytest.approx(face.mean(), abs=1)


def test_without_vggface_weights_nothing_starts(demo_clips, tmp_path, monkeypatch, capsys):
    def no_weights():
        raise InputError("weights.h5: expected the weights of VGG-Face")

    monkeypatch.setattr(model, "face_embedder", no_weights)
    assert run_preprocess(demo_clips, tmp_path / "data") == 1
    assert capsys.readouterr().err == "error: weights.h5: expected the weights of VGG-Face\n"
    assert not (tmp_path / "data").exists()


def test_workers_never_import_tensorflow(demo_clips, tmp_path):
    work = functools.partial(
        preprocess.extract, videos=demo_clips / "videos", detector="hog", face_model="dlib", url_template="{}"
    )
    rows = [preprocess.parse_row(values) for values in preprocess.read_rows(demo_clips / "avspeech_demo.csv", 1)]
    with preprocess.start_pool(1) as pool:
        extract = pool.submit(work, rows[0]).result()
        modules = pool.submit(eval, "set(__import__('sys').modules)").result()
    assert extract.clip == rows[0].clip and extract.embedding.shape == (128,)
    assert "face_recognition" in modules and not {"tensorflow", "keras", "tf_keras", "librosa"} & modules


def test_no_more_than_the_window_is_under_way():
    taken = []

    class Pool:
        def submit(self, function, item):
            import concurrent.futures

            future = concurrent.futures.Future()
            future.set_result(function(item))
            return future

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    results = preprocess.in_parallel(Pool(), lambda i: i * i, items(), window=3)
    first = next(results)
    assert len(taken) == 3
    assert sorted([first, *results]) == [i * i for i in range(20)]


def test_a_line_cut_short_by_a_kill_is_ended(tmp_path):
    (tmp_path / "manifest.csv").write_text("a,ready,dlib\nb,rea")
    with preprocess.open_manifest(tmp_path) as manifest:
        manifest.write("c,ready,dlib\n")
    assert (tmp_path / "manifest.csv").read_text() == "a,ready,dlib\nb,rea\nc,ready,dlib\n"


def workers_live(process_group):
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(demo_data, demo_clips, tmp_path):
    command = [sys.executable, ROOT / "preprocess.py", "--csv", demo_clips / "avspeech_demo.csv", "--data", tmp_path]
    command += ["--videos", demo_clips / "videos", "--face-model", "dlib"]
    kills = 0
    for n_files in (0, 1, 9, 20):  # while the processes start; then in the midst of writing
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(2)
        while process.poll() is None and len(list(tmp_path.glob("spectrograms/*"))) < n_files:
            time.sleep(0.002)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while workers_live(process.pid):  # they end with their parent
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert kills >= 3
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(tmp_path) == contents(demo_data)


# ---------------------------------------------------------------- the synthetic people


def test_demo_people_follow_from_the_seed(make_demo, tmp_path):
    rows = [make_demo.make_clip(seed, 0, tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    files = [next((tmp_path / name).iterdir()) for name in "abc"]
    assert rows[0] == rows[1] != rows[2]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_demo_clips_are_h264_and_aac_in_avspeechs_columns(demo_clips):
    with open(demo_clips / "avspeech_demo.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 30 and {len(row) for row in rows} == {5}
    for row in map(preprocess.parse_row, rows[:3]):
        shown = subprocess.run([FFMPEG, "-i", demo_clips / "videos" / f"{row.clip}.mp4"], capture_output=True, text=True).stderr
        assert "Video: h264" in shown and "Audio: aac" in shown and "640x360" in shown
        assert 4.9 < row.end - row.start < 7.1


def test_a_demo_voice_has_its_persons_pitch(make_demo, rng):
    for trait in (0.1, 0.5, 0.9):
        person = make_demo.Person(*np.full(11, 0.3))
        sound, loudness = make_demo.synthesise(make_demo.dataclasses.replace(person, pitch=trait, age=0.1), 5, rng)
        pitch, voiced, _ = librosa.pyin(sound / 32768, fmin=60, fmax=450, sr=utils.SAMPLE_RATE)
        expected = 85 * (290 / 85) ** trait
        assert math.log2(np.median(pitch[voiced]) / expected) == pytest.approx(0, abs=0.25)
        assert len(loudness) == 500 and loudness.max() > 0.5
