import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import (
    FFMPEG,
    ROOT,
    contents,
    error_of,
    lines_of,
    run_preprocess,
    statuses,
    valid_rows,
    write_csv,
)
from video_server import Server

import model
import preprocess
import utils
from clips import feature_files, records
from clips.reasons import MIN_FACE_PIXELS

# ---------------------------------------------------------------- the command line


def test_help_has_headings():
    done = subprocess.run([sys.executable, "preprocess.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    headings = [line for line in done.stdout.splitlines() if line.endswith(":") and " " not in line]
    assert headings == ["options:", "material:", "extraction:", "fetching:", "work:"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a,1,2,0.5\n", "expected a csv of five columns, video_id, start, end, x, y, found 4"),
        (b"a,1,2,0.5,0.5,x\nb,1,2,0.5,0.5,x\n", "found 6"),
        (b"", "expected a csv of five columns, video_id, start, end, x, y, found none (No columns"),
        (b"\xff\xfe\x00\x01", "expected a csv of five columns"),
        (b"\x00\x00\x00 ftypisom" + bytes(range(256)) * 50, "expected a csv of five columns"),
    ],
    ids=["4", "6", "empty", "binary", "mp4"],
)
def test_a_file_that_is_not_the_csv_is_reported_in_one_line_and_makes_nothing(content, message, tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes(content)
    arguments = ["--csv", tmp_path / "a.csv", "--data", tmp_path / "data", "--face-model", "dlib"]
    assert preprocess.main([*map(str, arguments)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'a.csv'}: ") and message in error
    assert not (tmp_path / "data" / "spectrograms").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--csv", "none.csv"], "none.csv: expected AVSpeech's csv, found no such file; download it from https://"),
        (["--csv", "folder"], "folder: expected AVSpeech's csv, found a folder; download it from https://"),
        (["--csv", "a.csv", "--cookies", "folder"], "folder: expected a file of cookies, found a folder; export"),
        (["--csv", "a.csv", "--cookies", "none"], "none: expected a file of cookies, found no such file; export"),
        (
            ["--csv", "a.csv", "--cookies", "a.csv"],
            "a.csv: expected cookies in Netscape's format, found another format; export",
        ),
        (["--csv", "a.csv", "--data", "a.csv"], "a.csv: expected a folder, found a file; pass another --data"),
        (["--csv", "a.csv", "--videos", "a.csv"], "a.csv: expected a folder, found a file; pass another --videos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_paths_are_reported_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", ("v", 1, 4, 0.5, 0.5))
    (tmp_path / "folder").mkdir()
    assert preprocess.main(arguments) == 1
    assert error_of(capsys).startswith(f"error: {message}")


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
        ("--url-template", "ftp://x/{}"),
        ("--url-template", "http://[x/{}"),
        ("--proxy", "socks5://host:1080"),
        ("--proxy", "https://host:8080"),
        ("--proxy", "http://host:99999"),
        ("--proxy", "http://host:port"),
        ("--proxy", "host name:80"),
        ("--proxy", ""),
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


@pytest.mark.parametrize("address", ["http://host:8080", "host:8080", "http://me:secret@10.0.0.1/", "http://[::1]:3128"])
def test_addresses_of_proxies(address):
    assert preprocess.Options(Path("a.csv"), proxy=address).proxy == address


@pytest.mark.parametrize(
    "rate, expected", [(None, None), ("500", 500), ("500K", 512_000), ("1.5M", 1.5 * 2**20), ("1G", 2**30)]
)
def test_rates(rate, expected):
    assert preprocess.Options(Path("a.csv"), rate=rate).bytes_per_second() == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "--csv: expected --csv, --folder, --faces, or --voices and --faces, found none"),
        ("--csv a --faces b", "--csv: expected --csv, --folder, --faces, or --voices and --faces, found --csv and --faces"),
        ("--folder a --voices b --faces c", "found --folder and --voices and --faces"),
        ("--voices wav", "--voices: expected --faces with it, found none"),
        ("--csv a.csv --list", "--list: expected --folder or --voices with it, found --csv"),
        ("--faces a --windows 2", "--windows: expected --folder or --voices with it, found --faces"),
        ("--folder a --names b.csv", "--names: expected --voices with it, found --folder"),
        ("--folder a --videos b", "--videos: expected --csv with it, found --folder"),
        ("--voices a --faces b --any-length", "--any-length: expected --csv with it, found --voices"),
        ("--folder a --windows 0", "--windows: expected at least 1, found 0"),
    ],
)
def test_one_kind_of_material_with_its_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        preprocess.main(arguments.split())
    assert ended.value.code == 2
    assert f"{message}; " in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- clips


def test_all_demo_people_become_ready(demo_data, demo_clips):
    clips = feature_files.ready_clips(demo_data)
    assert len(clips) == 30
    assert set(statuses(demo_data).values()) == {"ready"}
    for clip in clips:
        spectrogram = feature_files.load_array(feature_files.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
        assert np.isfinite(spectrogram).all() and np.abs(spectrogram).max() > 0.5
        feature = feature_files.load_embedding(demo_data, clip, 128)
        assert 0.8 < np.linalg.norm(feature) < 2  # dlib's network maps faces near the unit sphere


def test_the_spectrogram_is_computed_from_the_sound_of_the_clip(demo_data, demo_clips):
    clip = feature_files.ready_clips(demo_data)[3]
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-i", demo_clips / "videos" / f"{clip}.mp4", "-f", "f32le", "-ac", "1", "-ar", "16000", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    waveform = np.resize(np.frombuffer(done.stdout, np.float32)[: utils.CLIP_SAMPLES], utils.CLIP_SAMPLES)
    expected = model.spectrogram(waveform[None]).numpy()[0]
    found = feature_files.load_array(feature_files.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
    assert np.corrcoef(found.astype(np.float32).ravel(), expected.ravel())[0, 1] > 0.99


def test_the_feature_belongs_to_the_face_of_the_clip(demo_data, demo_clips):
    import face_recognition

    clips = feature_files.ready_clips(demo_data)
    features = np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips])
    for clip in clips[:5]:
        face = cv2.imread(str(feature_files.face_path(demo_data, clip)))[..., ::-1]
        assert face.shape == (224, 224, 3)
        again = face_recognition.face_encodings(np.ascontiguousarray(face))[0]
        assert clips[np.linalg.norm(features - again, axis=1).argmin()] == clip


def test_the_manifest_records_how_a_clip_was_made(demo_data, demo_clips):
    lines = lines_of(demo_data)
    rows, _ = valid_rows(demo_clips / "avspeech_demo.csv")
    for row in rows:
        line = lines[row.clip]
        assert (line["status"], line["detector"], line["face_model"]) == ("ready", "hog", "dlib")
        top, right, bottom, left = (int(line[edge]) for edge in ("top", "right", "bottom", "left"))
        assert left < row.x * 640 < right and top < row.y * 360 < bottom
        assert int(line["face_pixels"]) == bottom - top >= MIN_FACE_PIXELS
        assert 0.25 <= float(line["speech_seconds"]) <= min(6, row.end - row.start) + 0.05
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
    assert all(whole[name] == content for name, content in contents(data).items())  # as in any other run


def test_the_shards_together_are_the_whole(demo_data, demo_clips, tmp_path, capsys):
    made = []
    for shard in ("1/3", "2/3", "3/3"):
        assert run_preprocess(demo_clips, tmp_path / "data", "--shard", shard, "--face-model", "dlib") == 0
        made.append(int(capsys.readouterr().out.split()[1]))
    assert sum(made) == 30 and min(made) > 0
    assert contents(tmp_path / "data") == contents(demo_data)
    assert set(statuses(tmp_path / "data").values()) == {"ready"}


# ---------------------------------------------------------------- fetched clips


@pytest.fixture
def mirror(tmp_path, demo_clips):
    """A server of two demo videos, `one` and `two`."""
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
    shown = capsys.readouterr()
    assert shown.out.startswith("preprocess: 7 rows, 3 clips ready (0 of them before), 4 skipped (")
    assert all(f"{reason} 1" in shown.out for reason in ("removed", "bad-row", "duplicate", "speaker-not-found"))
    assert "preprocess: 3 clips in " in shown.err and "share of the work: fetch " in shown.err
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


def test_a_second_run_repeats_only_temporary_failures(mirror, tmp_path, capsys):
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
    assert "3 rows, 1 clip ready (0 of them before), 2 skipped (bad-row 1, removed 1)" in capsys.readouterr().out
    mirror.requests.clear()
    lines = (data / "manifest.csv").read_text().count("\n")
    assert fetch_and_preprocess(mirror, path, data) == 0
    assert mirror.requests == [] and (data / "manifest.csv").read_text().count("\n") == lines
    assert fetch_and_preprocess(mirror, path, data, "--retry", "removed", "no-face") == 0
    assert {name for name, *_ in mirror.requests} == {"gone"}


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
    # The rate of a session is known only after its end: with one worker the sessions follow each other.
    assert fetch_and_preprocess(mirror, path, tmp_path / "data", *more, "--workers", 1) == 0
    begun = [next(at for name, _, _, at in mirror.requests if name == wanted) for wanted in ("one", "two")]
    assert (mirror.folder / "one.mp4").stat().st_size > 60_000  # 6.5 s at that rate
    assert begun[1] - begun[0] > 4  # at least 6, less the time that yt-dlp takes to start; 1 without waiting


def test_a_missing_folder_of_videos_is_reported(mirror, tmp_path, capsys):
    path, videos = write_csv(tmp_path / "a.csv", ("one", 1, 4, 0.5, 0.5)), tmp_path / "clips"
    assert fetch_and_preprocess(mirror, path, tmp_path / "data", "--videos", videos) == 0
    assert f"preprocess: no folder {videos} yet, all clips are fetched into this folder\n" in capsys.readouterr().err
    assert fetch_and_preprocess(mirror, path, tmp_path / "data", "--videos", videos) == 0
    assert "no folder" not in capsys.readouterr().err
