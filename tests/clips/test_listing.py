import os
import tracemalloc

import pytest

from clips import feature_files, listing, records
from utils import InputError


@pytest.fixture
def recorded(tmp_path):
    """Folder of three ready clips and a photo, with their manifest, whose folders have not changed since."""
    lines = [records.Line("x_1-2", "no-face")]
    for clip in ("b_1-2", "a_1-2", "c_1-2", "p_photo"):
        sizes = {column: 9 for column in records.SIZES if clip != "p_photo" or column != "spectrogram_bytes"}
        lines.append(records.Line(clip, "ready", **sizes))
        for column in sizes:
            path = records.FILES[column](tmp_path, clip)
            path.parent.mkdir(exist_ok=True)
            path.touch()
    records.append_lines(tmp_path, lines)
    return tmp_path


def never(*arguments):
    raise AssertionError("listed")


def test_the_manifest_knows_what_is_ready(recorded, monkeypatch):
    monkeypatch.setattr(os, "scandir", never)
    assert feature_files.ready_clips(recorded) == ["a_1-2", "b_1-2", "c_1-2"]
    assert feature_files.ready_faces(recorded) == ["a_1-2", "b_1-2", "c_1-2", "p_photo"]
    records.append_lines(recorded, [records.Line("b_1-2", "silent"), records.Line("x_1-2", "ready", *[""] * 9, 1, 2, 3, 4, 5)])
    assert feature_files.ready_clips(recorded) == ["a_1-2", "c_1-2", "x_1-2"]  # the last line of a clip counts


def test_a_folder_that_has_changed_since_is_listed(recorded):
    feature_files.face_path(recorded, "b_1-2").unlink()
    later = os.stat(recorded / "manifest.csv").st_mtime_ns + 1
    os.utime(recorded / "faces", ns=(later, later))  # as the clock of the file system may be coarse
    assert feature_files.ready_clips(recorded) == ["a_1-2", "c_1-2"]
    assert feature_files.ready_faces(recorded) == ["a_1-2", "b_1-2", "c_1-2", "p_photo"]  # needs no face crop


@pytest.mark.parametrize("manifest", [None, "clip,status,detail\nz_1-2,ready,\n", "", "\x00\n"])
def test_without_a_manifest_that_has_the_sizes_the_folders_are_listed(manifest, recorded):
    (recorded / "manifest.csv").unlink()
    if manifest is not None:
        (recorded / "manifest.csv").write_text(manifest)
    feature_files.face_path(recorded, "d_1-2").touch()  # without the other files
    feature_files.face_path(recorded, "a_1-2").with_suffix(".txt").touch()
    assert feature_files.ready_clips(recorded) == ["a_1-2", "b_1-2", "c_1-2"]


def test_a_line_cut_short_by_a_kill_is_no_clip(recorded):
    with open(recorded / "manifest.csv", "a") as file:
        file.write("y_1-2,ready,,dlib,h")
    assert feature_files.ready_clips(recorded) == ["a_1-2", "b_1-2", "c_1-2"]


def test_a_missing_folder_leaves_nothing_ready(recorded):
    for path in (recorded / "landmarks").iterdir():
        path.unlink()
    (recorded / "landmarks").rmdir()
    with pytest.raises(InputError, match="expected faces with portraits and landmarks, found none"):
        feature_files.ready_faces(recorded)


def test_millions_of_names_fit_the_memory(tmp_path):
    """About 0.2 GB for 1.7 million names of AVSpeech's length, by the manifest and by the folders."""
    n = 20_000
    lines = [
        records.Line(f"{number:011}_{0:010.6f}-{6:010.6f}", "ready", **dict.fromkeys(records.SIZES, 1)) for number in range(n)
    ]
    for folder, suffix in (("spectrograms", "pkl"), ("embeddings", "pkl"), ("faces", "jpg")):
        (tmp_path / folder).mkdir()
        for line in lines:
            (tmp_path / folder / f"{line.clip}.{suffix}").touch()
    records.append_lines(tmp_path, lines)
    paths = {"spectrogram_bytes": tmp_path / "spectrograms" / "*.pkl", "face_bytes": tmp_path / "faces" / "*.jpg"}
    for find in (
        lambda: listing._in_manifest(tmp_path / "manifest.csv", list(paths)),
        lambda: listing._in_folders(paths.values()),
    ):
        tracemalloc.start()
        assert len(find()) == n
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak / n < 300  # bytes: 0.5 GB for 1.7 million
