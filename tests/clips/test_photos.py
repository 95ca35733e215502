import hashlib
import shutil

import cv2
import numpy as np
import pytest
from conftest import lines_of, statuses

import preprocess
import utils
from clips import detection, feature_files, media, records
from clips.reasons import MIN_FACE_PIXELS


@pytest.fixture(scope="module")
def photos(frames, tmp_path_factory):
    """A folder of rendered people: four photos, one of them grey; a subfolder of two; no face, no picture, no photo."""
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


JO, ONEIL = (
    f"{name}-{hashlib.sha256(person.encode()).hexdigest()[:8]}" for name, person in (("Jo-Doe", "Jo Doe"), ("O-Neil", "O'Neil"))
)
READY = ["Ada_photo", "Grey_photo", f"{JO}_photo", f"{ONEIL}_photo", "Sam_1_at-home", "Sam_1_b-c"]


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
    assert [utils.person_of(name) for name in READY] == ["Ada", "Grey", JO, ONEIL, "Sam_1", "Sam_1"]
    folders = {path.name for path in photo_data.iterdir()}
    assert folders == {"embeddings", "faces", "portraits", "landmarks", "manifest.csv"}
    for name, frame in zip((f"{JO}_photo", f"{ONEIL}_photo", "Ada_photo", "Sam_1_at-home", "Sam_1_b-c"), frames):
        found = detection.find_photo_face(frame, "hog")
        portrait, box = detection.crop_portrait(found.frame, found.box)
        feature, landmarks = feature_files.load_embedding(photo_data, name, 128), feature_files.load_landmarks(photo_data, name)
        written = media.read_portrait(photo_data, name)
        assert written.shape == portrait.shape and media.read_face(photo_data, name).shape == (224, 224, 3)
        if name in (f"{JO}_photo", "Sam_1_at-home", "Sam_1_b-c"):  # the others were JPEG before
            np.testing.assert_array_equal(feature, detection.dlib_feature(frame, found.box))
            np.testing.assert_array_equal(landmarks, detection.find_landmarks(portrait, box))
            assert np.abs(written.astype(int) - portrait).mean() < 3
        assert np.linalg.norm(feature - detection.dlib_feature(frame, found.box)) < 0.3
        assert np.abs(landmarks - detection.find_landmarks(portrait, box)).max() < 4
    grey = media.read_portrait(photo_data, "Grey_photo").astype(int)
    assert np.abs(grey - grey.mean(axis=2, keepdims=True)).max() < 6


def test_the_manifest_records_photos_too(photo_data):
    lines = lines_of(photo_data)
    assert statuses(photo_data) == {**dict.fromkeys(READY, "ready"), "wall_photo": "no-face", "broken_photo": "unreadable"}
    for name in READY:
        line = lines[name]
        assert (line["detector"], line["face_model"], line["frame_second"]) == ("hog", "dlib", "0")
        assert (line["spectrogram_bytes"], line["speech_seconds"]) == ("", "")
        assert int(line["bottom"]) - int(line["top"]) == int(line["face_pixels"]) >= MIN_FACE_PIXELS
        sizes = [records.FILES[column](photo_data, name).stat().st_size for column in records.PHOTO_SIZES]
        assert len(sizes) == 4 and [int(line[column]) for column in records.PHOTO_SIZES] == sizes


def test_a_second_run_on_photos_does_only_what_is_missing(photos, photo_data, tmp_path, capsys):
    data = shutil.copytree(photo_data, tmp_path / "data")
    manifest = (data / "manifest.csv").read_text()
    assert of_photos(photos, data) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("preprocess: 8 photos, 6 faces ready (6 of them before), 2 skipped (")
    assert "no-face 1" in shown.out and "unreadable 1" in shown.out
    assert (data / "manifest.csv").read_text() == manifest
    feature_files.landmarks_path(data, f"{JO}_photo").unlink()
    assert of_photos(photos, data) == 0
    assert "8 photos, 6 faces ready (5 of them before), 2 skipped" in capsys.readouterr().out
    added = (data / "manifest.csv").read_text().removeprefix(manifest).splitlines()
    assert [line.split(",")[0] for line in added] == [f"{JO}_photo"]
    for path in photo_data.glob("*/*"):
        assert (data / path.relative_to(photo_data)).read_bytes() == path.read_bytes()


def test_only_the_first_photos_are_processed(photos, photo_data, tmp_path, capsys):
    assert of_photos(photos, tmp_path, "--limit", 2) == 0
    assert capsys.readouterr().out == "preprocess: 2 photos, 2 faces ready (0 of them before), 0 skipped\n"
    assert feature_files.ready_faces(tmp_path) == ["Ada_photo", "Grey_photo"]
    for name in ("Ada_photo", "Grey_photo"):
        assert (
            feature_files.portrait_path(tmp_path, name).read_bytes()
            == feature_files.portrait_path(photo_data, name).read_bytes()
        )


def test_what_is_left_out_is_counted_at_the_end(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "notes.CR2").touch()
    (folder / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    content = (folder / "Ada.JPEG").read_bytes()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    assert of_photos(folder, tmp_path / "data") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("preprocess: 9 photos, 6 faces ready (0 of them before), 3 skipped (")
    told = f"preprocess: left out of {folder}: files of other kinds 2 (.cr2 1, .txt 1), links to nothing 1 (gone.jpg)"
    assert shown.err.splitlines()[-1] == told
    half = lines_of(tmp_path / "data")["half_photo"]
    assert half["status"] == "unreadable" and "truncated" in half["detail"]


def test_folders_without_photos(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.cr2").touch()
    (tmp_path / "file").write_text("")
    suffixes = ".jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .tif, .tiff, .gif, .heic, .heif, .hif, .avif"
    for name, problem in (
        ("empty", f"expected photos ({suffixes}), found none; pass another --faces"),
        ("other", f"expected photos ({suffixes}), found none but files of other kinds 1 (.cr2 1); pass another --faces"),
        ("file", "expected a folder of photos, found a file; pass another --faces"),
        ("none", "expected a folder of photos, found none; pass another --faces"),
    ):
        assert of_photos(tmp_path / name, tmp_path / "data") == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / name}: {problem}"
    assert not (tmp_path / "data").exists()


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
    assert error.endswith("manifest.csv names the reason for each")
