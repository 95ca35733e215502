import numpy as np
import pytest
import scipy.signal

from benchmarks import speech as made
from clips import media, speech
from clips.reasons import Skip
from utils import CLIP_SAMPLES, SAMPLE_RATE

SOUNDS = made.sounds_without_a_voice()


@pytest.fixture(scope="module")
def voices(demo_clips):
    """The sounds of ten of the synthetic people, int16."""
    return [media.read_sound(path, 6) for path in sorted((demo_clips / "videos").iterdir())[:10]]


def verdict(waveform):
    try:
        return speech.speech_seconds(waveform)
    except Skip as skip:
        return skip.reason


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_without_a_voice_is_no_speech(name):
    for level in (-6, -35):
        waveform = made.at_level(SOUNDS[name], level)
        assert verdict(waveform) in ("no-speech", "silent"), level
    assert verdict(made.through_aac(made.at_level(SOUNDS[name], -20))) in ("no-speech", "silent")


def test_an_offset_and_low_hum_are_silent():
    seconds = np.arange(CLIP_SAMPLES) / SAMPLE_RATE
    for sound in (0.005, 0.4, 0.3 * seconds / 6, 0.01 * np.sin(2 * np.pi * 10 * seconds)):
        waveform = np.rint(32767 * (sound + np.zeros(CLIP_SAMPLES))).astype(np.int16)
        assert verdict(waveform) == "silent"
        assert verdict(made.through_aac(waveform)) == "silent"


def test_voices_are_speech_however_they_are_recorded(voices):
    seconds = np.arange(CLIP_SAMPLES) / SAMPLE_RATE
    found = [verdict(voice) for voice in voices]
    assert min(found) > 0.25
    for voice in (voices[number] for number in np.argsort(found)[-5:]):  # of the others the detector is hardly sure as they are
        sound = voice / 32768
        n = len(sound)
        telephone = scipy.signal.sosfilt(scipy.signal.butter(4, [300, 3400], "bandpass", fs=SAMPLE_RATE, output="sos"), sound)
        for changed in (0.3 + 0.5 * sound, sound + 0.02 * np.sin(2 * np.pi * 50 * seconds[:n]), telephone):
            assert verdict(np.clip(np.rint(32767 * changed), -32768, 32767).astype(np.int16)) > 0.25
        for level in (-45, -3):
            assert verdict(made.at_level(sound, level)) > 0.25


def test_seconds_of_speech_are_those_with_a_voice(voices):
    """A detector that is sure of a voice finds none in the silence around it."""
    voice = max(voices, key=verdict)
    alone, silence = verdict(voice), np.zeros(SAMPLE_RATE * 5, np.int16)
    assert alone > 3
    assert verdict(np.concatenate([silence, voice, silence])) == pytest.approx(alone, abs=0.8)
    assert verdict(np.zeros(CLIP_SAMPLES, np.int16)) == "silent"
    click = np.zeros(CLIP_SAMPLES, np.int16)
    click[5000:5100] = 30_000
    assert verdict(click) == "silent"


def test_stretches_leave_out_noise_and_silence(voices):
    voice = max(voices, key=verdict)
    noise = made.at_level(SOUNDS["white noise"], -20)
    waveform = np.concatenate([noise, voice, np.zeros(CLIP_SAMPLES, np.int16), voice])
    stretches, sure = speech.speech_stretches(waveform)
    inside = np.zeros(len(waveform), bool)
    for first, last in stretches:
        inside[first:last] = True
    n = len(voice)
    shares = [inside[:96_000].mean(), inside[96_000 : 96_000 + n].mean(), inside[96_000 + n : 192_000 + n].mean()]
    assert sure and shares[0] < 0.1 and shares[1] > 0.8 and shares[2] < 0.1 and inside[192_000 + n :].mean() > 0.8


def test_what_is_not_quiet_counts_where_the_detector_is_not_sure(voices, monkeypatch):
    monkeypatch.setattr(speech, "probabilities", lambda sound: np.full(-(-len(sound) // 512), 0.01, np.float32))
    voice, silence = voices[0], np.zeros(SAMPLE_RATE, np.int16)
    stretches, sure = speech.speech_stretches(np.concatenate([silence, voice, silence]))
    assert not sure and stretches[0][0] >= 0.8 * SAMPLE_RATE and stretches[-1][1] <= SAMPLE_RATE * 1.2 + len(voice)
    assert sum(last - first for first, last in stretches) > 0.8 * len(voice)
