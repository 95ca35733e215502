import itertools

import numpy as np
import pytest
from conftest import write_csv

from clips import extraction, photos, records, sources


def settings(detector="hog"):
    return extraction.ExtractionSettings(None, detector, "dlib", None)


def to_do(source):
    """Return the names of the items of all tasks, and the statuses counted."""
    counted = []
    tasks = list(source.tasks(lambda lines: None, lambda statuses, before=False: counted.extend(statuses)))
    return [item.clip for item in itertools.chain(*tasks)], counted


def test_clips_in_which_hog_found_no_face_are_tried_again_with_cnn():
    def final(detector_before, detector, *retry):
        return sources.is_final("no-face", detector_before, settings(detector), retry)

    assert final("hog", "hog") and final("cnn", "cnn") and final("cnn", "hog")
    assert not final("hog", "cnn")
    assert not final("hog", "hog", "no-face")


@pytest.mark.parametrize(
    "status, expected", [("removed", True), ("no-face", True), ("network", False), ("ready", False), (np.nan, False)]
)
def test_temporary_and_unknown_statuses_are_not_final(status, expected):
    assert sources.is_final(status, "hog", settings("hog"), ()) is expected


def test_clips_with_a_final_status_are_counted_and_the_others_are_to_do(tmp_path):
    path = write_csv(tmp_path / "a.csv", *((video, 1, 2, 0.5, 0.5) for video in ("a", "b", "c")))
    names = [f"{video}_001.000000-002.000000" for video in ("a", "b", "c")]
    lines = [records.Line(names[0], "removed", "", "dlib", "hog"), records.Line(names[1], "network", "", "dlib", "hog")]
    records.append_lines(tmp_path, lines)
    assert to_do(sources.rows_of(path, tmp_path, settings())) == (names[1:], ["removed"])
    assert to_do(sources.rows_of(path, tmp_path, settings(), retry=("removed",))) == (names, [])
    assert to_do(sources.rows_of(path, tmp_path, settings(), limit=2)) == (names[1:2], ["removed"])


def test_a_task_holds_clips_of_one_video(tmp_path):
    rows = [(video, start, start + 1, 0.5, 0.5) for start in range(40) for video in ("a", "b")]
    source = sources.rows_of(write_csv(tmp_path / "a.csv", *rows), tmp_path, settings())
    tasks = list(source.tasks(lambda lines: None, lambda statuses, before=False: None))
    assert [({row.video_id for row in task}, len(task)) for task in tasks] == [
        ({"a"}, 32),
        ({"a"}, 8),
        ({"b"}, 32),
        ({"b"}, 8),
    ]


def test_the_shards_of_photos_keep_the_photos_of_a_person_together(tmp_path):
    folder, names = tmp_path / "photos", []
    for name in ("Ada.jpg", "Grey.tif", "Jo.png", "Neil.jpg", "Sam_1/a.png", "Sam_1/b.png", "broken.jpg", "wall.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for i in (1, 2, 3):
        source = sources.photos_of(folder, tmp_path / "data", settings(), shard=(i, 3))
        names.append(to_do(source)[0])
        assert source.n == len(names[-1])
    assert sorted(itertools.chain(*names)) == sorted(photo.clip for photo in photos.find_photos(folder)[0])
    assert [{"Sam_1_a", "Sam_1_b"} <= set(of_shard) for of_shard in names].count(True) == 1
