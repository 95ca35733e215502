import numpy as np
import pytest
from conftest import ffmpeg, loudest_hertz

import utils
from clips import recordings
from clips.reasons import MIN_SPEECH_SECONDS
from utils import InputError


def test_only_sound_above_silence_is_speech(tone):
    def seconds(waveform):
        return recordings.speech_seconds((waveform * 32767).astype(np.int16))

    assert seconds(np.zeros(utils.CLIP_SAMPLES)) == 0
    assert seconds(tone(300, 6, amplitude=1e-4)) == 0
    assert seconds(tone(300, 6, amplitude=0.05)) == pytest.approx(6, abs=0.1)
    assert seconds(np.concatenate([np.zeros(32_000), tone(300, 2), np.zeros(32_000)])) == pytest.approx(2, abs=0.2)
    click = np.zeros(utils.CLIP_SAMPLES)
    click[5000:5100] = 1
    assert seconds(click) < MIN_SPEECH_SECONDS


def write_sound(path, *chunks):
    """Write chunks of (hertz or None, seconds) as an audio file."""
    sources = [f"sine=frequency={hertz}:duration={s}" if hertz else f"anullsrc=r=44100:d={s}" for hertz, s in chunks]
    inputs = [argument for source in sources for argument in ("-f", "lavfi", "-i", source)]
    ffmpeg(*inputs, "-filter_complex", f"concat=n={len(sources)}:v=0:a=1", path)
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.ogg"])
def test_a_recording_without_its_pauses(name, tmp_path):
    path = write_sound(tmp_path / name, (None, 2), (300, 4), (None, 0.2), (500, 3), (None, 3), (700, 2), (None, 1))
    recording = recordings.read_recording(path)
    assert recording.dtype == np.float32 and len(recording) / 16000 == pytest.approx(9.2, abs=0.25)  # the short pause stays
    tones = [loudest_hertz(recording[int(s * 16000) : int((s + 1) * 16000)]) for s in (1, 5, 8)]
    assert tones == pytest.approx([300, 500, 700], abs=5)


def test_a_short_recording_is_repeated(tmp_path):
    recording = recordings.read_recording(write_sound(tmp_path / "a.wav", (300, 3)))
    assert len(recording) == utils.CLIP_SAMPLES
    np.testing.assert_array_equal(recording[:48_000], recording[48_000:])


@pytest.mark.parametrize(
    "chunks, problem",
    [
        ([(None, 5)], "found silence: less than 0.5 s"),
        ([(300, 2)], "found 2.0 s; record more"),
        ([(300, 130)], "found more; cut out"),
    ],
)
def test_recordings_that_cannot_be_used(chunks, problem, tmp_path):
    path = write_sound(tmp_path / "a.wav", *chunks)
    with pytest.raises(InputError, match=f"a.wav: expected a recording of 2.61 to 120 s of speech, {problem}"):
        recordings.read_recording(path)


def test_files_that_are_not_recordings(counting_video, tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    for name, problem in (
        ("text.wav", "nothing that ffmpeg can read"),
        ("mute.mp4", "nothing"),
        ("none.wav", "no such file"),
        ("", "a folder"),
    ):
        with pytest.raises(InputError, match=f"{name or tmp_path}: expected a recording .* found {problem}") as raised:
            recordings.read_recording(tmp_path / name)
        assert "\n" not in str(raised.value)
