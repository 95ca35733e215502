import subprocess

import numpy as np
import pytest
from conftest import ffmpeg, loudest_hertz, second_shown

import utils
from clips import media
from clips.reasons import Skip

# ---------------------------------------------------------------- sound and frames


def test_the_first_frame_and_six_seconds_of_sound_come_from_one_process(counting_video, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **more):
            started.append(arguments)
            super().__init__(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    clip = media.read_clip(counting_video)
    samples, frame = clip.samples, clip.frame.picture
    assert len(started) == 1
    assert (clip.frame.second, clip.seconds) == (0, pytest.approx(12, abs=0.05))
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    assert second_shown(frame) == pytest.approx(0, abs=0.3)
    assert samples.shape == (utils.CLIP_SAMPLES,) and samples.dtype == np.int16
    for second in range(6):
        stretch = samples[second * 16_000 + 2000 : (second + 1) * 16_000 - 2000]
        assert loudest_hertz(stretch) == pytest.approx(200 + 100 * second, abs=2)


def test_later_frames_are_one_a_second_up_to_6_s(counting_video):
    frames = media.read_later_frames(counting_video)
    assert [frame.second for frame in frames] == [1, 2, 3, 4, 5]
    assert {frame.picture.shape for frame in frames} == {(240, 320, 3)} and frames[0].picture.dtype == np.uint8
    assert [second_shown(frame.picture) for frame in frames] == pytest.approx([1, 2, 3, 4, 5], abs=0.3)


def test_frames_are_rgb_and_of_any_size(tmp_path):
    ffmpeg(
        "-f", "lavfi", "-i", "color=0xC02010:s=322x182:d=2:r=5", "-f", "lavfi", "-i", "anullsrc", "-t", 2, tmp_path / "a.mp4"
    )
    frame = media.read_clip(tmp_path / "a.mp4").frame.picture
    assert frame.shape == (182, 322, 3)
    assert np.abs(frame.reshape(-1, 3).mean(axis=0) - (0xC0, 0x20, 0x10)).max() < 6
    assert [frame.picture.shape for frame in media.read_later_frames(tmp_path / "a.mp4")] == [(182, 322, 3)]


def test_a_clip_shorter_than_a_second_has_one_frame_and_its_own_sound(counting_video, tmp_path):
    ffmpeg("-i", counting_video, "-t", 0.8, tmp_path / "short.mp4")
    samples = media.read_clip(tmp_path / "short.mp4").samples
    assert len(samples) == pytest.approx(0.8 * utils.SAMPLE_RATE, abs=1200)
    assert len(media.read_later_frames(tmp_path / "short.mp4")) == 0


def test_files_that_are_not_clips(tmp_path, counting_video):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(counting_video.read_bytes()[:2000])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    ffmpeg("-i", counting_video, "-vn", "-c", "copy", tmp_path / "blind.mp4")
    for name in ("text", "empty", "cut", "list", "blind", "absent"):
        with pytest.raises(Skip, match="unreadable"):
            media.read_clip(tmp_path / f"{name}.mp4")
    with pytest.raises(Skip, match="no-sound"):
        media.read_clip(tmp_path / "mute.mp4")


def test_a_file_that_takes_too_long_is_given_up(counting_video, monkeypatch):
    monkeypatch.setattr(media, "DECODING_SECONDS", 0.01)
    with pytest.raises(Skip, match="unreadable") as skipped:
        media.read_clip(counting_video)
    assert "ffmpeg did not finish within 0.01 s" in skipped.value.detail
