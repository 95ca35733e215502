import csv
import math
import subprocess

import librosa
import numpy as np
import pytest
from conftest import FFMPEG, valid_rows

import utils
from clips import detection, media


def test_demo_people_follow_from_the_seed(make_demo, tmp_path):
    rows = [make_demo.make_clip(seed, 0, 0, tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    files = [next((tmp_path / name).iterdir()) for name in "abc"]
    assert rows[0] == rows[1] != rows[2]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_several_videos_of_a_person_show_the_same_face_elsewhere(make_demo, tmp_path):
    """One id, so that they are on one side of the split; the face is nearer to the person's own than to another's."""
    rows = [make_demo.make_clip(1, person, video, tmp_path) for person, video in ((0, 0), (0, 1), (1, 0))]
    assert [row[0] for row in rows] == ["demo-1-0000", "demo-1-0000", "demo-1-0001"] and float(rows[1][1]) > float(rows[0][2])
    first, second, other = (
        detection.dlib_feature(picture, detection.largest_face(picture))
        for picture in (
            media.read_first_frame(tmp_path / f"{utils.clip_name(row[0], *map(float, row[1:3]))}.mp4").picture for row in rows
        )
    )
    assert np.linalg.norm(first - second) < 0.8 * np.linalg.norm(first - other) and rows[0][3:] != rows[1][3:]


def test_demo_clips_are_h264_and_aac_in_avspeechs_columns(demo_clips):
    with open(demo_clips / "avspeech_demo.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 30 and {len(row) for row in rows} == {5}
    for row in valid_rows(demo_clips / "avspeech_demo.csv", 3)[0]:
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
