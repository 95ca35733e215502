import concurrent.futures
import csv
import io
import shutil
import sys

import cv2
import numpy as np
import pytest
from conftest import contents, error_of, run_preprocess, statuses, write_csv
from PIL import Image

import model
import preprocess
import utils
from clips import extraction, feature_files, fetch, media, preprocessing, records, sources, workers
from faces import vggface
from utils import InputError


def test_files_do_not_depend_on_the_others_in_a_batch(rng, tmp_path):
    extracts = [
        extraction.Extract(
            records.Line(f"a_{i}", "ready"),
            rng.integers(0, 256, (3 if i == 2 else 1, 224, 224, 3), dtype=np.uint8),
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

    def spectrogram(waveforms):
        return model.spectrogram(waveforms).numpy()

    networks = concurrent.futures.Future()
    networks.set_result(preprocessing.Networks(spectrogram, embed))
    preprocessing.finish(extracts, tmp_path / "together", networks)
    for extract in extracts:
        preprocessing.finish([extract], tmp_path / "alone", networks)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert shown == [preprocessing.BATCH] * 5  # the batch size is constant: others may round differently


def test_pictures_are_described_and_stored_in_rgb(tmp_path):
    colours = {"face": (200, 30, 10), "portrait": (20, 60, 190)}
    face, portrait = (np.full((224, 224, 3), colour, np.uint8) for colour in colours.values())
    line, landmarks, sound = records.Line("a_1", "ready"), np.zeros((68, 2), np.float32), np.zeros(60_000, np.int16)
    described = []

    def embed(faces):
        described.extend(faces[:, 100, 100].tolist())
        return np.zeros((len(faces), 4096), np.float32)

    networks = concurrent.futures.Future()
    networks.set_result(preprocessing.Networks(lambda sounds: np.zeros((len(sounds), 598, 257, 2), np.float32), embed))
    preprocessing.finish([extraction.Extract(line, face[None], portrait, landmarks, None, sound)], tmp_path, networks)
    assert described == [[200, 30, 10]] * preprocessing.BATCH
    for path_of, read, colour in (
        (feature_files.face_path, media.read_face, colours["face"]),
        (feature_files.portrait_path, media.read_portrait, colours["portrait"]),
    ):
        stored = np.asarray(Image.open(path_of(tmp_path, "a_1")))  # Pillow knows no BGR
        assert stored.shape == (224, 224, 3) and np.abs(stored.astype(int) - colour).max() <= 3
        np.testing.assert_allclose(read(tmp_path, "a_1").astype(int), stored, atol=3)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_lines_and_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    """The videos are unreadable, so that the run is short."""
    monkeypatch.setattr(workers, "start_pool", lambda workers: concurrent.futures.ThreadPoolExecutor(1))
    path = write_csv(tmp_path / "a.csv", *((f"v{i}", 1, 4, 0.5, 0.5) for i in range(3)))
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(3):
        (videos / f"{utils.clip_name(f'v{i}', 1, 4)}.mp4").write_text("no video")

    def run(name):
        arguments = ["--csv", path, "--videos", videos, "--data", tmp_path / name, "--face-model", "dlib", "--workers", 2]
        assert preprocess.main([*map(str, arguments)]) == 1

    run("a")
    assert capsys.readouterr().err.splitlines()[0] == "preprocess: starting 2 workers"
    monkeypatch.setattr(preprocessing, "REPORT_SECONDS", 0)
    run("b")
    lines = [f"preprocess: {n} of 3 rows, 0 ready" for n in (1, 2, 3)]
    log = capsys.readouterr().err
    assert [line for line in log.splitlines() if " of 3 rows" in line][-3:] == lines and "\r" not in log and "%|" not in log
    monkeypatch.setattr(sys, "stderr", Terminal())
    run("c")
    shown = sys.stderr.getvalue()
    assert "preprocess: 100%|" in shown and " of 3 rows" not in shown


@pytest.mark.parametrize("n, expected", [(0, "0 rows"), (1, "1 row"), (2, "2 rows")])
def test_plurals(n, expected):
    assert sources.counted(n, "row") == expected


def test_a_bot_check_stops_the_run_and_names_the_next_step(tmp_path, capsys, monkeypatch):
    asked = []

    def session(video_id, segments, settings):
        asked.append(video_id)
        reason = "bot-check" if len(asked) == 2 else "removed"
        return {segment.path: fetch.Failure(reason, "Sign in to confirm you're not a bot") for segment in segments}

    monkeypatch.setattr(fetch, "fetch", session)
    monkeypatch.setattr(workers, "start_pool", lambda workers: concurrent.futures.ThreadPoolExecutor(1))
    path = write_csv(tmp_path / "a.csv", *((f"v{i}", 1, 4, 0.5, 0.5) for i in range(100)))
    assert (
        preprocess.main(["--csv", str(path), "--data", str(tmp_path / "data"), "--face-model", "dlib", "--workers", "1"]) == 1
    )
    shown = capsys.readouterr()
    assert "100 rows, 0 clips ready (0 of them before), " in shown.out and " not reached" in shown.out
    error = shown.err.splitlines()[-1]
    assert error.startswith("error: v1_001.000000-004.000000: ") and "--cookies" in error
    assert len(asked) < 20
    assert statuses(tmp_path / "data")["v1_001.000000-004.000000"] == "bot-check"


def test_nothing_ready_is_a_failure_that_names_the_manifest(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("abc,0.5,4.5,0.5,0.5\n")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "abc_000.500000-004.500000.mp4").write_text("no video")
    paths = ["--csv", tmp_path / "a.csv", "--videos", tmp_path / "videos", "--data", tmp_path / "data"]
    assert preprocess.main([*map(str, paths), "--face-model", "dlib"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "preprocess: 1 row, 0 clips ready (0 of them before), 1 skipped (unreadable 1)\n"
    assert "error: " in shown.err and "manifest.csv names the reason" in shown.err


def test_clips_of_another_length_than_their_rows(demo_clips, tmp_path, capsys):
    """Of five rows one is right; --any-length takes the others too, and a later run without it keeps them."""
    (tmp_path / "videos").mkdir()
    with open(demo_clips / "avspeech_demo.csv", newline="") as file:
        demo = list(csv.reader(file))
    rows = []
    for number, (video_id, start, end, x, y) in enumerate(demo[:5]):
        clip = utils.clip_name(video_id, float(start), float(end))
        start, end = (float(start), float(end)) if number == 0 else (float(start) - 2, float(end) + 1)
        rows.append((video_id, start, end, x, y))
        named = tmp_path / "videos" / f"{utils.clip_name(video_id, start, end)}.mp4"
        shutil.copy(demo_clips / "videos" / f"{clip}.mp4", named)
    paths = ["--csv", write_csv(tmp_path / "a.csv", *rows), "--videos", tmp_path / "videos", "--data", tmp_path / "data"]
    arguments = [*map(str, paths), "--face-model", "dlib", "--workers", "1"]

    def lines():
        shown = capsys.readouterr()
        return shown.out.strip(), shown.err.strip().rpartition("\n")[2]

    assert preprocess.main([*arguments, "--limit", "2"]) == 0
    out, told = lines()
    assert out == "preprocess: 2 rows, 1 clip ready (0 of them before), 1 skipped (wrong-length 1)"
    assert told.startswith("preprocess: 1 clip not as long as the csv says") and told.endswith("--retry wrong-length")
    assert preprocess.main(arguments) == 0
    out, told = lines()
    assert out == "preprocess: 5 rows, 1 clip ready (1 of them before), 4 skipped (wrong-length 4)"
    assert told.startswith("preprocess: 4 clips not as long as the csv says") and told.endswith("pass --any-length")
    for more, before in ((["--any-length"], 1), ([], 5)):
        assert preprocess.main([*arguments, *more]) == 0
        assert lines()[0] == f"preprocess: 5 rows, 5 clips ready ({before} of them before), 0 skipped"


def stand_in(faces):
    """Return features that hold the mean of each face."""
    assert faces.dtype == np.uint8 and faces.shape[1:] == (224, 224, 3)
    return np.repeat(faces.mean(axis=(1, 2, 3))[:, None], 4096, axis=1).astype(np.float32)


def test_vggface_features_are_computed_from_the_crops(demo_clips, tmp_path, monkeypatch):
    """The network itself is tested elsewhere."""
    monkeypatch.setattr(vggface, "face_embedder", lambda: stand_in)
    assert run_preprocess(demo_clips, tmp_path, "--limit", 3) == 0
    assert len(feature_files.ready_clips(tmp_path)) == 3
    for clip in feature_files.ready_clips(tmp_path):
        feature = feature_files.load_embedding(tmp_path, clip, 4096)
        face = cv2.imread(str(feature_files.face_path(tmp_path, clip)))
        assert feature[0] == pytest.approx(face.mean(), abs=1)


def test_features_of_another_face_model_are_not_replaced(demo_clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vggface, "face_embedder", lambda: stand_in)
    data = tmp_path / "data"
    assert run_preprocess(demo_clips, data, "--limit", 3, "--face-model", "dlib") == 0
    before, manifest = contents(data), (data / "manifest.csv").read_text()
    capsys.readouterr()
    assert run_preprocess(demo_clips, data, "--limit", 4) == 1
    assert error_of(capsys) == (
        f"error: --face-model: expected dlib, the model of 3 features in {data}, found vggface; pass another --data, "
        f"or delete {data / 'embeddings'}"
    )
    assert contents(data) == before and (data / "manifest.csv").read_text() == manifest
    for clip in feature_files.ready_clips(data)[:2]:
        feature_files.embedding_path(data, clip).unlink()
    assert run_preprocess(demo_clips, data, "--limit", 3) == 1
    assert "the model of 1 feature in" in error_of(capsys)
    shutil.rmtree(data / "embeddings")
    assert run_preprocess(demo_clips, data, "--limit", 3) == 0  # all clips are made again
    assert "3 rows, 3 clips ready (0 of them before)" in capsys.readouterr().out
    assert all(feature_files.feature_size_of(data, clip) == 4096 for clip in feature_files.ready_clips(data))


def test_a_run_with_nothing_to_do_loads_no_networks(demo_data, demo_clips, monkeypatch, capsys):
    loaded = []
    monkeypatch.setattr(preprocess, "load_networks", lambda *arguments: loaded.append(arguments))
    assert run_preprocess(demo_clips, demo_data, "--face-model", "dlib") == 0
    assert loaded == []
    shown = capsys.readouterr()
    assert shown.out == "preprocess: 30 rows, 30 clips ready (30 of them before), 0 skipped\n" and shown.err == ""


def test_a_part_without_rows_is_reported(tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", ("v", 1, 4, 0.5, 0.5))
    i = 1 + records.shard_of("v", 2) % 2
    assert preprocess.main(["--csv", str(path), "--data", str(tmp_path), "--face-model", "dlib", "--shard", f"{i}/2"]) == 1
    assert error_of(capsys) == f"error: {path}: expected at least one row, found none in this part; pass a smaller N in --shard"


def test_without_vggface_weights_nothing_is_made(demo_clips, tmp_path, monkeypatch, capsys):
    def no_weights():
        raise InputError("weights.h5: expected the weights of VGG-Face")

    monkeypatch.setattr(vggface, "face_embedder", no_weights)
    assert run_preprocess(demo_clips, tmp_path / "data") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: weights.h5: expected the weights of VGG-Face"
    assert not (tmp_path / "data").exists()
