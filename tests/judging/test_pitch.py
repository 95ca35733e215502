import dataclasses

import numpy as np
import pytest

import model
from clips import feature_files
from judging import pitch
from utils import SAMPLE_RATE


def spectrogram(samples):
    return model.spectrogram(np.asarray(samples, np.float32)[None]).numpy()[0].astype(np.float16)


@pytest.mark.parametrize("hertz", [75, 85, 120, 210, 330, 390])
def test_pitch_of_a_voice(hertz, tone, rng):
    harmonics = sum(tone(hertz * n, 2.0, 0.5 / n) for n in range(1, int(3500 / hertz)))
    noise = 0.003 * rng.normal(size=harmonics.shape)
    assert pitch.pitch(spectrogram(harmonics + noise)) == pytest.approx(hertz, rel=0.005)


def test_hiss_does_not_hide_the_pitch(tone, rng):
    """White noise with twice the power of the voice: most of the noise is above the frequencies that count."""
    voice = sum(tone(120 * n, 2.0, 0.1) for n in range(1, 5))
    hiss = rng.normal(size=voice.shape) * np.sqrt(2 * np.mean(voice**2))
    assert pitch.pitch(spectrogram(voice + hiss)) == pytest.approx(120, rel=0.01)


@pytest.mark.parametrize("height", [0, 0.2, 0.4, 0.6, 0.8, 1])
def test_pitch_of_synthetic_people(height, make_demo, rng):
    """People who speak without melody, so that the pitch of the whole clip is known; old ones are rough and breathy."""
    for age in (0.1, 0.9):
        traits = {field.name: 0.5 for field in dataclasses.fields(make_demo.Person)}
        person = make_demo.Person(**{**traits, "pitch": height, "age": age, "liveliness": -0.5})  # melody * 0
        sound, _ = make_demo.synthesise(person, 6.1, rng)
        known = 85 * (290 / 85) ** height  # the middle of a fall by a fifth
        assert pitch.pitch(spectrogram(sound[:96_000] / 32767)) == pytest.approx(known, rel=0.05)


def test_pitch_of_clips(demo_data, make_demo):
    """People with melody, after video and AAC: the median of the clip is near the person's own pitch."""
    errors = []
    for clip in feature_files.ready_clips(demo_data):
        _, seed, number = clip.split("_")[0].split("-")
        person = make_demo.sample_person(np.random.default_rng([int(seed), int(number)]))
        found = pitch.pitch(feature_files.load_spectrogram(demo_data, clip))
        errors.append(abs(found / (85 * (290 / 85) ** person.pitch) - 1))
    assert max(errors) < 0.15 and np.median(errors) < 0.05


def test_no_pitch_in_noise_and_silence(rng):
    for seconds in (1, 6):
        assert np.isnan(pitch.pitch(spectrogram(0.1 * rng.normal(size=seconds * SAMPLE_RATE))))
    assert np.isnan(pitch.pitch(np.zeros((300, 257, 2), np.float16)))


def test_a_spectrogram_gives_the_sound_back(tone, rng):
    sound = tone(220, 2.0) + 0.05 * rng.normal(size=2 * SAMPLE_RATE)
    restored = pitch.waveform_of(model.spectrogram(sound[None].astype(np.float32)).numpy()[0])
    assert restored.shape == (31_920,)  # whole frames
    np.testing.assert_allclose(restored[400:-400], sound[400:31_520], atol=1e-3)
