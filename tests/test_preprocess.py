import concurrent.futures
import itertools
import shutil
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import FFMPEG, contents, lines_of, run_preprocess, sound_rows, statuses, write_csv
from test_fetch import Server

import model
import preprocess
import utils
from clips import detection, extraction, feature_files, fetch, media, records, workers
from clips.reasons import SMALLEST_FACE
from faces import vggface
from utils import InputError

# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "content, said",
    [
        (b"a,1,2,0.5\n", "expected a csv of five columns, video_id, start, end, x, y, found 4"),
        (b"0,a,1,2,0.5,0.5\n1,b,1,2,0.5,0.5\n", "found 6"),
        (b"", "expected a csv of five columns"),
        (b"\xff\xfe\x00\x01", "expected a csv of five columns"),
        (b"\x00\x00\x00 ftypisom" + bytes(range(256)) * 50, "expected a csv of five columns"),
        ("a,1,2,0.5,0.5\n".encode("utf-16"), "expected"),
    ],
    ids=["4", "6", "empty", "binary", "mp4", "utf-16"],
)
def test_another_file_is_told_in_a_line_and_makes_nothing(content, said, tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes(content)
    arguments = ["--csv", tmp_path / "a.csv", "--data", tmp_path / "data", "--face-model", "dlib"]
    assert preprocess.main([*map(str, arguments)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'a.csv'}: ") and said in error
    assert not (tmp_path / "data" / "spectrograms").exists()


def test_no_csv(tmp_path, capsys):
    assert preprocess.main(["--csv", str(tmp_path / "a.csv")]) == 1
    assert "a.csv: expected AVSpeech's csv, found no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--shard", "0/4"),
        ("--shard", "5/4"),
        ("--shard", "a"),
        ("--rate", "fast"),
        ("--rate", "0"),
        ("--sleep", "-1"),
        ("--url-template", "http://x/"),
        ("--retry", "no-reason"),
        ("--workers", "0"),
        ("--limit", "0"),
    ],
    ids=" ".join,
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        preprocess.main(["--csv", "a.csv", *arguments])
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "rate, expected", [(None, None), ("500", 500), ("500K", 512_000), ("1.5M", 1.5 * 2**20), ("1G", 2**30)]
)
def test_rates(rate, expected):
    assert preprocess.Options(Path("a.csv"), rate=rate).bytes_per_second() == expected


# ---------------------------------------------------------------- the whole


def test_all_demo_people_become_ready(demo_data, demo_clips):
    clips = feature_files.ready_clips(demo_data)
    assert len(clips) == 30
    assert set(statuses(demo_data).values()) == {"ready"}
    for clip in clips:
        spectrogram = feature_files.load_array(feature_files.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
        assert np.isfinite(spectrogram).all() and np.abs(spectrogram).max() > 0.5
        feature = feature_files.load_embedding(demo_data, clip, 128)
        assert 0.8 < np.linalg.norm(feature) < 2  # dlib's network maps faces near the unit sphere


def test_the_spectrogram_is_of_the_clips_sound(demo_data, demo_clips):
    clip = feature_files.ready_clips(demo_data)[3]
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-i", demo_clips / "videos" / f"{clip}.mp4", "-f", "f32le", "-ac", "1", "-ar", "16000", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    waveform = np.resize(np.frombuffer(done.stdout, np.float32)[: utils.CLIP_SAMPLES], utils.CLIP_SAMPLES)
    expected = model.spectrogram(waveform[None]).numpy()[0]
    found = feature_files.load_array(feature_files.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
    assert np.corrcoef(found.astype(np.float32).ravel(), expected.ravel())[0, 1] > 0.99


def test_the_face_is_of_the_clip_and_the_feature_of_the_face(demo_data, demo_clips):
    import face_recognition

    clips = feature_files.ready_clips(demo_data)
    features = np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips])
    for clip in clips[:5]:
        face = cv2.imread(str(feature_files.face_path(demo_data, clip)))[..., ::-1]
        assert face.shape == (224, 224, 3)
        again = face_recognition.face_encodings(np.ascontiguousarray(face))[0]
        assert clips[np.linalg.norm(features - again, axis=1).argmin()] == clip


def test_the_manifest_tells_how_a_clip_was_made(demo_data, demo_clips):
    lines = lines_of(demo_data)
    rows, _ = sound_rows(demo_clips / "avspeech_demo.csv")
    for row in rows:
        line = lines[row.clip]
        assert (line["status"], line["detector"], line["face_model"]) == ("ready", "hog", "dlib")
        top, right, bottom, left = (int(line[edge]) for edge in ("top", "right", "bottom", "left"))
        assert left < row.x * 640 < right and top < row.y * 360 < bottom
        assert int(line["face_pixels"]) == bottom - top >= SMALLEST_FACE
        assert 2 < float(line["speech_seconds"]) <= min(6, row.end - row.start) + 0.05
        sizes = [path(demo_data, row.clip).stat().st_size for path in records.FILES.values()]
        assert len(sizes) == 5 and [int(line[column]) for column in records.SIZES] == sizes


def test_a_second_run_does_only_what_is_missing(demo_data, demo_clips, tmp_path, capsys):
    data = tmp_path / "data"
    assert run_preprocess(demo_clips, data, "--limit", 6, "--face-model", "dlib") == 0
    clips = feature_files.ready_clips(data)
    assert len(clips) == 6
    before = {path: path.stat().st_mtime_ns for path in (data / "spectrograms").iterdir()}
    feature_files.spectrogram_path(data, clips[0]).unlink()
    feature_files.embedding_path(data, clips[1]).write_bytes(b"broken")
    feature_files.landmarks_path(data, clips[2]).unlink()
    capsys.readouterr()
    assert run_preprocess(demo_clips, data, "--limit", 7, "--face-model", "dlib") == 0
    assert "7 rows, 7 clips ready (3 of them before), 0 skipped" in capsys.readouterr().out
    kept = [path for path, when in before.items() if path.stat().st_mtime_ns == when]
    assert len(kept) == 3
    whole = contents(demo_data)
    assert all(whole[name] == content for name, content in contents(data).items())  # as of any other run


@pytest.fixture
def mirror(tmp_path, demo_clips):
    """A server of videos on loopback, with two of the demo's, `one` and `two`."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, source in zip(("one", "two"), sorted((demo_clips / "videos").iterdir())):
        (folder / f"{name}.mp4").write_bytes(source.read_bytes())
    with Server(folder) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def fetch_and_preprocess(mirror, path, data, *more):
    arguments = ["--csv", path, "--data", data, "--face-model", "dlib", "--url-template", mirror.url_template, "--sleep", 0]
    return preprocess.main([*map(str, [*arguments, *more])])


def test_from_csv_through_the_network_to_a_feature(mirror, tmp_path, capsys):
    data = tmp_path / "data"
    path = write_csv(
        tmp_path / "a.csv",
        ("one", 0.5, 4.5, 0.5, 0.5),
        ("gone", 1, 4, 0.5, 0.5),
        ("one", 4, 1, 0.5, 0.5),
        ("two", 1, 4, 0.5, 0.5),
        ("one", 0.5, 4.5, 0.5, 0.5),
        ("one", 2, 5, 0.5, 0.5),
        ("two", 1, 4.5, 0.02, 0.02),
    )
    assert fetch_and_preprocess(mirror, path, data) == 0
    said = capsys.readouterr()
    assert said.out.startswith("preprocess: 7 rows, 3 clips ready (0 of them before), 4 skipped (")
    assert all(f"{reason} 1" in said.out for reason in ("removed", "bad-row", "duplicate", "speaker-not-found"))
    assert "preprocess: 3 clips in " in said.err and "share of the work: fetch " in said.err
    ready = ["one_000.500000-004.500000", "one_002.000000-005.000000", "two_001.000000-004.000000"]
    assert statuses(data) == {
        **dict.fromkeys(ready, "ready"),
        "two_001.000000-004.500000": "speaker-not-found",
        "gone_001.000000-004.000000": "removed",
        "a.csv line 3": "bad-row",
    }
    assert feature_files.ready_clips(data) == ready
    assert {path.stem for path in (data / "videos").iterdir()} == {*ready, "two_001.000000-004.500000"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "data", "mirror"}


def test_a_rerun_tries_what_may_pass_and_leaves_the_rest(mirror, tmp_path, capsys):
    data = tmp_path / "data"
    path = write_csv(tmp_path / "a.csv", ("one", 1, 4, 0.5, 0.5), ("gone", 1, 4, 0.5, 0.5), ("x!", 1, 4, 0.5, 0.5))
    mirror.answers["one"] = [403] * 2
    assert fetch_and_preprocess(mirror, path, data) == 1
    one, gone = "one_001.000000-004.000000", "gone_001.000000-004.000000"
    assert statuses(data) == {one: "forbidden", gone: "removed", "a.csv line 3": "bad-row"}
    mirror.answers.clear()
    mirror.requests.clear()
    assert fetch_and_preprocess(mirror, path, data) == 0
    assert {name for name, *_ in mirror.requests} == {"one"}
    assert statuses(data) == {one: "ready", gone: "removed", "a.csv line 3": "bad-row"}
    assert "3 rows, 1 clips ready (0 of them before), 2 skipped (bad-row 1, removed 1)" in capsys.readouterr().out
    mirror.requests.clear()
    lines = (data / "manifest.csv").read_text().count("\n")
    assert fetch_and_preprocess(mirror, path, data) == 0
    assert mirror.requests == [] and (data / "manifest.csv").read_text().count("\n") == lines
    assert fetch_and_preprocess(mirror, path, data, "--retry", "removed", "no-face") == 0
    assert {name for name, *_ in mirror.requests} == {"gone"}


def test_faces_that_hog_did_not_see_are_looked_for_again_with_cnn():
    line = pd.Series({"status": "no-face", "face_model": "dlib", "detector": "hog"})

    def settled(**options):
        return preprocess.settled(Path("."), "a", line, records.SIZES, preprocess.Options(Path("a.csv"), **options))

    assert settled(detector="hog") == "no-face"
    assert settled(detector="cnn") is None
    line.detector = "cnn"
    assert settled(detector="cnn") == "no-face"
    assert settled(detector="hog", retry=("no-face",)) is None


def test_the_shards_make_up_the_whole(demo_data, demo_clips, tmp_path, capsys):
    made = []
    for shard in ("1/3", "2/3", "3/3"):
        assert run_preprocess(demo_clips, tmp_path / "data", "--shard", shard, "--face-model", "dlib") == 0
        made.append(int(capsys.readouterr().out.split()[1]))
    assert sum(made) == 30 and min(made) > 0
    assert contents(tmp_path / "data") == contents(demo_data)
    assert set(statuses(tmp_path / "data").values()) == {"ready"}


def test_a_bot_check_stops_the_run_and_says_what_to_do(mirror, tmp_path, capsys, monkeypatch):
    asked = []

    def session(video_id, segments, manner):
        asked.append(video_id)
        reason = "bot-check" if len(asked) == 2 else "removed"
        return {segment.path: fetch.Failure(reason, "Sign in to confirm you're not a bot") for segment in segments}

    monkeypatch.setattr(fetch, "fetch", session)
    monkeypatch.setattr(workers, "start_pool", lambda workers: concurrent.futures.ThreadPoolExecutor(1))
    path = write_csv(tmp_path / "a.csv", *((f"v{i}", 1, 4, 0.5, 0.5) for i in range(100)))
    assert fetch_and_preprocess(mirror, path, tmp_path / "data", "--workers", 1) == 1
    shown = capsys.readouterr()
    assert "100 rows, 0 clips ready (0 of them before), " in shown.out and " not reached" in shown.out
    error = shown.err.splitlines()[-1]
    assert error.startswith("error: v1_001.000000-004.000000: ") and "--cookies" in error
    assert len(asked) < 20
    assert statuses(tmp_path / "data")["v1_001.000000-004.000000"] == "bot-check"


def test_fetching_options_reach_yt_dlp(mirror, tmp_path):
    path = write_csv(tmp_path / "a.csv", ("one", 1, 4, 0.5, 0.5))
    (tmp_path / "cookies").write_text("# Netscape HTTP Cookie File\nvideo.invalid\tFALSE\t/\tFALSE\t0\tlogin\tsecret\n")
    proxy = f"http://127.0.0.1:{mirror.server_port}"
    more = ("--cookies", tmp_path / "cookies", "--proxy", proxy, "--url-template", "http://video.invalid/{}.mp4")
    assert fetch_and_preprocess(mirror, path, tmp_path / "data", *more) == 0
    assert mirror.requests[0][2]["Cookie"] == "login=secret"


@pytest.mark.parametrize("more", [("--sleep", "9"), ("--rate", "9K")], ids=" ".join)
def test_the_second_video_waits(more, mirror, tmp_path):
    path = write_csv(tmp_path / "a.csv", ("one", 1, 4, 0.5, 0.5), ("two", 1, 4, 0.5, 0.5))
    # A rate is known only after a session: one worker, so that the sessions follow each other.
    assert fetch_and_preprocess(mirror, path, tmp_path / "data", *more, "--workers", 1) == 0
    begun = [next(at for name, _, _, at in mirror.requests if name == wanted) for wanted in ("one", "two")]
    assert (mirror.folder / "one.mp4").stat().st_size > 60_000  # 6.5 s at that rate
    assert begun[1] - begun[0] > 4  # 6 at least, less what yt-dlp's start takes the first time; 1 without waiting


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

    monkeypatch.setattr(vggface, "face_embedder", lambda: stand_in)
    assert run_preprocess(demo_clips, tmp_path, "--limit", 3, "--face-model", "dlib") == 0
    assert run_preprocess(demo_clips, tmp_path, "--limit", 3) == 0  # another face model: all anew
    for clip in feature_files.ready_clips(tmp_path):
        feature = feature_files.load_embedding(tmp_path, clip, 4096)
        face = cv2.imread(str(feature_files.face_path(tmp_path, clip)))
        assert feature[0] == pytest.approx(face.mean(), abs=1)


def test_without_vggface_weights_nothing_is_made(demo_clips, tmp_path, monkeypatch, capsys):
    def no_weights():
        raise InputError("weights.h5: expected the weights of VGG-Face")

    monkeypatch.setattr(vggface, "face_embedder", no_weights)
    assert run_preprocess(demo_clips, tmp_path / "data") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: weights.h5: expected the weights of VGG-Face"
    assert not (tmp_path / "data").exists()


def test_files_do_not_depend_on_the_others_in_a_batch(rng, tmp_path):
    extracts = [
        extraction.Extract(
            records.Line(f"a_{i}", "ready"),
            rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
            rng.integers(0, 256, (200 + i, 240, 3), dtype=np.uint8),
            rng.uniform(0, 200, (68, 2)).astype(np.float32),
            None,
            rng.integers(-9000, 9000, 60_000 + 7000 * i, dtype=np.int16),
        )
        for i in range(4)
    ]
    shown = []

    def embed(faces):
        shown.append(len(faces))
        return faces.reshape(len(faces), -1)[:, :4096].astype(np.float32)

    networks = concurrent.futures.Future()
    networks.set_result(embed)
    lines, _ = preprocess.finish(extracts, tmp_path / "together", networks)
    for extract in extracts:
        preprocess.finish([extract], tmp_path / "alone", networks)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert shown == [preprocess.BATCH] * 5  # a network sees as many every time: batches of one may round otherwise
    assert [line.speech_seconds for line in lines] == pytest.approx([3.75, 4.19, 4.62, 5.06], abs=0.05)


# ---------------------------------------------------------------- photos


@pytest.fixture(scope="module")
def photos(frames, tmp_path_factory):
    """A folder of drawn people: three photos, of one grey; a folder of two; no face, no picture, no photo."""
    folder = tmp_path_factory.mktemp("people") / "photos"
    (folder / "Sam_1").mkdir(parents=True)
    for name, frame in zip(("Jo Doe.png", "O'Neil.jpg", "Ada.JPEG", "Sam_1/at home.png", "Sam_1/b.c.bmp"), frames):
        cv2.imwrite(str(folder / name), frame[..., ::-1])
    cv2.imwrite(str(folder / "Grey.tif"), cv2.cvtColor(frames[5], cv2.COLOR_RGB2GRAY))
    cv2.imwrite(str(folder / "wall.png"), np.full((200, 300, 3), 90, np.uint8))
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.png").write_bytes((folder / "Jo Doe.png").read_bytes())
    return folder


READY = ["Ada_photo", "Grey_photo", "Jo-Doe_photo", "O-Neil_photo", "Sam_1_at-home", "Sam_1_b-c"]


def of_photos(photos, data, *more):
    return preprocess.main([*map(str, ["--faces", photos, "--data", data, "--face-model", "dlib", *more])])


@pytest.fixture(scope="module")
def photo_data(photos, tmp_path_factory):
    """What preprocess.py makes of `photos`."""
    data = tmp_path_factory.mktemp("of-photos") / "data"
    assert of_photos(photos, data) == 0
    return data


def test_photos_become_faces_without_sound(photo_data, frames):
    assert feature_files.ready_faces(photo_data) == READY
    assert [utils.video_of(name) for name in READY] == ["Ada", "Grey", "Jo-Doe", "O-Neil", "Sam_1", "Sam_1"]
    folders = {path.name for path in photo_data.iterdir()}
    assert folders == {"embeddings", "faces", "portraits", "landmarks", "manifest.csv"}
    for name, frame in zip(("Jo-Doe_photo", "O-Neil_photo", "Ada_photo", "Sam_1_at-home", "Sam_1_b-c"), frames):
        found = detection.find_photo_face(frame, "hog")
        portrait, box = detection.portrait(found.frame, found.box)
        feature, landmarks = feature_files.load_embedding(photo_data, name, 128), feature_files.load_landmarks(photo_data, name)
        written = media.read_portrait(photo_data, name)
        assert written.shape == portrait.shape and media.read_face(photo_data, name).shape == (224, 224, 3)
        if name in ("Jo-Doe_photo", "Sam_1_at-home", "Sam_1_b-c"):  # others were JPEG before
            np.testing.assert_array_equal(feature, detection.dlib_feature(frame, found.box))
            np.testing.assert_array_equal(landmarks, detection.find_landmarks(portrait, box))
            assert np.abs(written.astype(int) - portrait).mean() < 3
        assert np.linalg.norm(feature - detection.dlib_feature(frame, found.box)) < 0.3
        assert np.abs(landmarks - detection.find_landmarks(portrait, box)).max() < 4
    grey = media.read_portrait(photo_data, "Grey_photo").astype(int)
    assert np.abs(grey - grey.mean(axis=2, keepdims=True)).max() < 6


def test_the_manifest_tells_of_photos_too(photo_data):
    lines = lines_of(photo_data)
    assert statuses(photo_data) == {**dict.fromkeys(READY, "ready"), "wall_photo": "no-face", "broken_photo": "unreadable"}
    for name in READY:
        line = lines[name]
        assert (line["detector"], line["face_model"], line["frame_second"]) == ("hog", "dlib", "0")
        assert (line["spectrogram_bytes"], line["speech_seconds"]) == ("", "")
        assert int(line["bottom"]) - int(line["top"]) == int(line["face_pixels"]) >= SMALLEST_FACE
        sizes = [records.FILES[column](photo_data, name).stat().st_size for column in records.PHOTO_SIZES]
        assert len(sizes) == 4 and [int(line[column]) for column in records.PHOTO_SIZES] == sizes


def test_a_second_run_on_photos_does_only_what_is_missing(photos, photo_data, tmp_path, capsys):
    data = shutil.copytree(photo_data, tmp_path / "data")
    manifest = (data / "manifest.csv").read_text()
    assert of_photos(photos, data) == 0
    said = capsys.readouterr()
    assert said.out.startswith("preprocess: 8 photos, 6 faces ready (6 of them before), 2 skipped (")
    assert "no-face 1" in said.out and "unreadable 1" in said.out
    assert (data / "manifest.csv").read_text() == manifest
    feature_files.landmarks_path(data, "Jo-Doe_photo").unlink()
    assert of_photos(photos, data) == 0
    assert "8 photos, 6 faces ready (5 of them before), 2 skipped" in capsys.readouterr().out
    added = (data / "manifest.csv").read_text().removeprefix(manifest).splitlines()
    assert [line.split(",")[0] for line in added] == ["Jo-Doe_photo"]
    for path in photo_data.glob("*/*"):
        assert (data / path.relative_to(photo_data)).read_bytes() == path.read_bytes()


def test_the_first_photos_only(photos, photo_data, tmp_path, capsys):
    assert of_photos(photos, tmp_path, "--limit", 2) == 0
    assert capsys.readouterr().out == "preprocess: 2 photos, 2 faces ready (0 of them before), 0 skipped\n"
    assert feature_files.ready_faces(tmp_path) == ["Ada_photo", "Grey_photo"]
    for name in ("Ada_photo", "Grey_photo"):
        assert (
            feature_files.portrait_path(tmp_path, name).read_bytes()
            == feature_files.portrait_path(photo_data, name).read_bytes()
        )


def test_the_shards_of_photos_keep_a_person_together(photos, tmp_path):
    names = []
    for shard in ("1/3", "2/3", "3/3"):
        source = preprocess.photos_of(preprocess.Options(faces=photos, data=tmp_path, shard=shard))
        tasks = list(source.tasks(print, print))
        names.append([photo.clip for task in tasks for photo in task])
        assert source.n == len(names[-1])
    assert sorted(itertools.chain(*names)) == sorted([*READY, "broken_photo", "wall_photo"])
    assert [set(READY[-2:]) & set(of_shard) for of_shard in names].count(set(READY[-2:])) == 1


@pytest.mark.parametrize("arguments, found", [([], "neither"), (["--csv", "a.csv", "--faces", "photos"], "both")])
def test_either_a_csv_or_photos(arguments, found, capsys):
    with pytest.raises(SystemExit) as ended:
        preprocess.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"--csv: expected either --csv or --faces, found {found}")


def test_folders_without_photos(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, problem in (
        ("empty", "expected photos (.jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff), found none"),
        ("file", "expected a folder of photos, found a file"),
        ("none", "expected a folder of photos, found nothing"),
    ):
        assert of_photos(tmp_path / name, tmp_path / "data") == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / name}: {problem}"
    assert not (tmp_path / "data").exists()


def test_photos_of_one_name_are_told(tmp_path, capsys):
    for name in ("a b.jpg", "a-b.png"):
        (tmp_path / name).write_text("whatever")
    assert of_photos(tmp_path, tmp_path / "data") == 1
    said = f"error: {tmp_path / 'a-b.png'}: expected another name than that of {tmp_path / 'a b.jpg'}, found a-b_photo for both"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_photos_without_any_face_are_a_failure_that_names_the_manifest(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photos / "broken.jpg", folder)
    shutil.copy(photos / "wall.png", folder)
    assert of_photos(folder, tmp_path / "data") == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("preprocess: 2 photos, 0 faces ready (0 of them before), 2 skipped (")
    error = shown.err.splitlines()[-1]
    assert error.startswith(f"error: {folder}: expected at least one photo to give a face, found none; ")
    assert error.endswith("manifest.csv says why")
