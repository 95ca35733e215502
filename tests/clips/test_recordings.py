import numpy as np
import pytest
from conftest import ROOT, ffmpeg

import utils
from benchmarks import speech as made
from clips import media, recordings, speech
from clips.reasons import Skip
from utils import SAMPLE_RATE, InputError

AUDIO = ROOT.parent / "shared" / "cases" / "audio"


@pytest.fixture(scope="module")
def spoken(demo_clips):
    """The sound of one of the synthetic people of which the detector is sure, int16."""

    def seconds(waveform):
        try:
            return speech.speech_seconds(waveform)
        except Skip:
            return 0

    sounds = [media.read_sound(path, 6) for path in sorted((demo_clips / "videos").iterdir())]
    return max(sounds, key=seconds)


def write_sound(path, *chunks):
    """Write chunks, int16 at SAMPLE_RATE, as an audio file."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.concatenate(chunks).astype("<i2").tobytes())
    ffmpeg("-f", "s16le", "-ar", SAMPLE_RATE, "-ac", 1, "-i", raw, path)
    return path


def silence(seconds):
    return np.zeros(round(seconds * SAMPLE_RATE), np.int16)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.ogg"])
def test_a_recording_without_its_pauses(name, spoken, tmp_path):
    path = write_sound(tmp_path / name, silence(2), spoken, silence(3), spoken, silence(1))
    recording = recordings.read_recording(path)
    assert recording.dtype == np.float32 and np.abs(recording).max() <= 1
    assert 1.6 * len(spoken) < len(recording) < 2.2 * len(spoken)


def test_a_short_recording_is_repeated(spoken, tmp_path):
    recording = recordings.read_recording(write_sound(tmp_path / "a.wav", spoken[:48_000]))
    assert len(recording) == utils.CLIP_SAMPLES
    n = np.flatnonzero([np.array_equal(recording[:500], recording[at : at + 500]) for at in range(1, 50_000)])[0] + 1
    np.testing.assert_array_equal(recording[:n], recording[n : 2 * n])
    assert 30_000 < n <= 48_000


def test_a_voice_that_the_detector_is_not_sure_of_is_read_with_a_warning(spoken, tmp_path, capsys, monkeypatch):
    path = write_sound(tmp_path / "a.wav", spoken)
    recordings.read_recording(path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(speech, "MIN_SECONDS", 100)
    assert len(recordings.read_recording(path)) >= utils.CLIP_SAMPLES
    assert capsys.readouterr().err == f"hear: {path}: little of it is clearly speech; all that is not quiet was used\n"


@pytest.mark.parametrize(
    "sound, problem",
    [
        (silence(5), "found silence: less than 0.5 s"),
        (silence(5) + 3000, "found silence: less than 0.5 s"),
        (made.at_level(made.sounds_without_a_voice()["white noise"], -20), "found no speech: the sound is noise"),
        (made.at_level(made.sounds_without_a_voice()["tone of 440 Hz"], -20), "found no speech: the sound is noise"),
        (silence(2), "found 2.0 s; record more"),
        (silence(130), "found more; cut out"),
    ],
)
def test_recordings_that_cannot_be_used(sound, problem, tmp_path):
    path = write_sound(tmp_path / "a.wav", sound)
    with pytest.raises(InputError, match=f"a.wav: expected a recording of 2.61 to 120 s of speech, {problem}"):
        recordings.read_recording(path)


def test_files_that_are_not_recordings(counting_video, tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    for name, problem in (
        ("text.wav", "nothing that ffmpeg can read"),
        ("mute.mp4", "a file without a sound track"),
        ("none.wav", "no such file"),
        ("", "a folder"),
    ):
        with pytest.raises(InputError, match=f"{name or tmp_path}: expected a recording .* found {problem}") as raised:
            recordings.read_recording(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.skipif(not AUDIO.is_dir(), reason="the cases are not here")
def test_the_cases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = recordings.read_recording(AUDIO / "me.wav")
    for name in ("2026-11-25T09:12:33.wav", "Ba$$in.wav"):
        (tmp_path / name).write_bytes((AUDIO / "me.wav").read_bytes())
        np.testing.assert_array_equal(recordings.read_recording(name), expected)
    with pytest.raises(InputError, match="found silence"):
        recordings.read_recording(AUDIO / "dc.wav")
    anti, plain = media.read_sound(AUDIO / "anti.m4a", 6), media.read_sound(AUDIO / "me.wav", 6)
    n = min(len(anti), len(plain))
    assert abs(np.corrcoef(anti[:n], plain[:n])[0, 1]) > 0.97
