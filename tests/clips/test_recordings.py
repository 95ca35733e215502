import wave

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
    assert recording.speech.dtype == np.float32 and np.abs(recording.speech).max() <= 1
    assert 1.6 * len(spoken) < len(recording.speech) < 2.2 * len(spoken)
    assert recording.seconds == pytest.approx(6 + 2 * len(spoken) / SAMPLE_RATE, abs=0.1) and recording.is_sure
    assert recording.speech_seconds == len(recording.speech) / SAMPLE_RATE
    expected = np.concatenate([recording.sound[first:last] for first, last in recording.stretches]) / np.float32(32768)
    np.testing.assert_array_equal(recording.speech, expected)


def test_a_short_recording_is_repeated(spoken, tmp_path):
    recording = recordings.read_recording(write_sound(tmp_path / "a.wav", spoken[:48_000])).speech
    assert len(recording) == utils.CLIP_SAMPLES
    n = np.flatnonzero([np.array_equal(recording[:500], recording[at : at + 500]) for at in range(1, 50_000)])[0] + 1
    np.testing.assert_array_equal(recording[:n], recording[n : 2 * n])
    assert 30_000 < n <= 48_000


def test_a_voice_that_the_detector_is_not_sure_of_is_read_with_a_warning(spoken, tmp_path, capsys, monkeypatch):
    path = write_sound(tmp_path / "a.wav", spoken)
    recordings.read_recording(path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(speech, "MIN_SECONDS", 100)
    assert not (recording := recordings.read_recording(path)).is_sure and len(recording.speech) >= utils.CLIP_SAMPLES
    assert capsys.readouterr().err == f"hear: {path}: little of it is clearly speech; all that is not quiet was used\n"


@pytest.mark.parametrize(
    "sound, problem",
    [
        (silence(5), "found silence: less than 0.5 s"),
        (silence(5) + 3000, "found silence: less than 0.5 s"),
        (made.at_level(made.sounds_without_a_voice()["white noise"], -20), "found no speech: the sound is noise"),
        (made.at_level(made.sounds_without_a_voice()["tone of 440 Hz"], -20), "found no speech: the sound is noise"),
        (silence(2), "found 2.0 s; record more"),
        (silence(130), "found silence"),
    ],
)
def test_recordings_that_cannot_be_used(sound, problem, tmp_path):
    path = write_sound(tmp_path / "a.wav", sound)
    with pytest.raises(InputError, match=f"a.wav: expected a recording of at least 2.61 s of speech, {problem}"):
        recordings.read_recording(path)


def test_excerpts_of_a_long_recording(spoken, tmp_path, capsys):
    """The middle third is silent: excerpts from both ends hold the speech, in their order."""
    n = round(100 * SAMPLE_RATE / len(spoken))
    quiet = (spoken // 4).astype(np.int16)
    path = write_sound(tmp_path / "a.mp3", *[spoken] * n, silence(100), *[quiet] * n)
    recording = recordings.read_recording(path)
    assert recording.seconds == pytest.approx(100 + 2 * n * len(spoken) / SAMPLE_RATE, abs=0.5)
    assert len(recording.sound) == 20 * 12 * SAMPLE_RATE
    assert 100 < recording.speech_seconds < 180
    assert capsys.readouterr().err == f"hear: {path}: 5 minutes long; 20 excerpts of 12 s, spread over it, are used\n"
    third = len(recording.speech) // 3
    first, last = (np.sqrt(np.mean(part**2)) for part in (recording.speech[:third], recording.speech[-third:]))
    assert first == pytest.approx(4 * last, rel=0.1)


def test_excerpts_do_not_overlap(spoken, tmp_path):
    n = round(130 * SAMPLE_RATE / len(spoken))
    recording = recordings.read_recording(write_sound(tmp_path / "a.wav", *[spoken] * n))
    assert len(recording.sound) / SAMPLE_RATE <= recording.seconds


def test_a_long_recording_whose_length_is_not_known(spoken, tmp_path, capsys, monkeypatch):
    path = write_sound(tmp_path / "a.wav", *[spoken] * round(140 * SAMPLE_RATE / len(spoken)))
    monkeypatch.setattr(media, "seconds_of", lambda path: None)
    assert recordings.read_recording(path).seconds == pytest.approx(121, abs=0.1)
    assert capsys.readouterr().err == f"hear: {path}: how long it is cannot be told; its first 120 s are used\n"


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
def test_samples_are_read_as_a_file_is(rate, spoken, tmp_path):
    path = tmp_path / "a.wav"
    ffmpeg("-i", write_sound(tmp_path / "b.wav", spoken), "-ar", rate, "-c:a", "pcm_s16le", path)
    expected = recordings.read_recording(path)
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_array_equal(recordings.from_samples(samples, rate).speech, expected.speech)
    stereo = np.stack([samples, samples], axis=1) / np.float32(32768)
    np.testing.assert_allclose(recordings.from_samples(stereo, rate).speech, expected.speech, atol=2e-4)


@pytest.mark.parametrize(
    "samples, rate, problem",
    [
        (np.zeros((2, 48_000)), 16_000, r"found shape \(2, 48000\); a channel is a column"),
        (np.zeros(48_000, np.int32), 16_000, "found int32"),
        (np.full(48_000, 3e4), 16_000, "found values up to 3e\\+04; divide by the full scale"),
        (np.full(48_000, np.nan), 16_000, "found values up to nan"),
        (np.zeros(48_000), 16, "rate: expected 4000 to 384000 Hz, found 16"),
        (np.zeros(96_000), 16_000, "found silence"),
    ],
)
def test_samples_that_cannot_be_used(samples, rate, problem):
    with pytest.raises(InputError, match=problem):
        recordings.from_samples(samples, rate)


def test_files_that_are_not_recordings(counting_video, tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:12\n#EXTINF:12,\n{counting_video}\n#EXT-X-ENDLIST\n")
    for name, problem in (
        ("text.wav", "a file that cannot be read"),
        ("list.m3u8", "a file that cannot be read \\(it names other files, as playlists do, or is of a kind that is not read"),
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
    expected = recordings.read_recording(AUDIO / "me.wav").speech
    for name in ("2026-11-25T09:12:33.wav", "Ba$$in.wav"):
        (tmp_path / name).write_bytes((AUDIO / "me.wav").read_bytes())
        np.testing.assert_array_equal(recordings.read_recording(name).speech, expected)
    with pytest.raises(InputError, match="found silence"):
        recordings.read_recording(AUDIO / "dc.wav")
    anti, plain = media.read_sound(AUDIO / "anti.m4a", 6), media.read_sound(AUDIO / "me.wav", 6)
    n = min(len(anti), len(plain))
    assert abs(np.corrcoef(anti[:n], plain[:n])[0, 1]) > 0.97
