import shutil

import numpy as np
import pytest

import train
import utils
from clips import feature_files, recordings
from judging.search import most_similar
from listening import gallery, listener
from utils import normalise

pytestmark = pytest.mark.usefixtures("no_named_runs")


@pytest.fixture
def loaded(voice_run):
    return listener.load(voice_run)


def test_a_recording_gives_nearly_the_prediction_of_its_clip(loaded, demo_data, voice, voice_clip):
    """The same voice through AAC, without its pauses."""
    spectrogram = feature_files.load_spectrogram(demo_data, voice_clip)[None].astype(np.float32)
    of_clip = normalise(loaded.encoder(spectrogram).numpy() - loaded.centre)[0]
    predicted = loaded.predict(recordings.read_recording(voice).speech)
    assert predicted @ of_clip > 0.9 and np.linalg.norm(predicted) == pytest.approx(1)
    assert predicted.shape == (128,) and predicted.dtype == np.float32


def test_a_long_recording_is_averaged_over_windows(loaded, rng):
    long = 0.1 * rng.normal(size=13 * 16000).astype(np.float32)
    starts = (0, 3 * 16000, 6 * 16000, 7 * 16000)
    parts = [loaded.predict(long[start : start + 96_000]) for start in starts]
    expected = normalise(np.mean(parts, axis=0, keepdims=True))[0]
    np.testing.assert_allclose(loaded.predict(long), expected, atol=1e-4)


def test_a_prediction_does_not_depend_on_the_recordings_before(loaded, rng):
    sounds = [0.1 * rng.normal(size=seconds * 16000).astype(np.float32) for seconds in (6, 40, 13)]
    predictions = [loaded.predict(sound) for sound in sounds]
    other = listener.load(loaded.folder)
    np.testing.assert_array_equal(other.predict(sounds[0]), predictions[0])
    for sound, prediction in zip(sounds, predictions):
        np.testing.assert_array_equal(loaded.predict(sound), prediction)


def test_the_speaker_encoder_predicts_as_the_other(demo_data, voice, tmp_path, voice_clip):
    folder = tmp_path / "speaker"
    assert train.main(["--data", str(demo_data), "--run", str(folder), "--encoder", "speaker"]) == 0
    loaded, faces = listener.load(folder), gallery.of_data(demo_data, 128, 100, 0)
    prediction = loaded.predict(recordings.read_recording(voice).speech)
    found, _ = loaded.most_similar(prediction[None], faces, 5)
    clips = feature_files.ready_clips(demo_data)
    of_clip = loaded.encoder(feature_files.load_spectrogram(demo_data, voice_clip)[None]).numpy() - loaded.centre
    features = np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - loaded.centre
    expected, _ = most_similar(of_clip, features, 5)
    assert len({faces.names[number] for number in found[0]} & {clips[number] for number in expected[0]}) >= 4


def test_the_most_similar_faces_are_seen_from_the_centre(loaded, rng):
    directions = normalise(rng.normal(size=(7, 128)))
    features = (loaded.centre + directions).astype(np.float32)
    faces = gallery.Gallery(list("abcdefg"), features, None)
    numbers, cosines = loaded.most_similar(directions[[3, 5]].astype(np.float32), faces, 20)
    assert numbers.shape == (2, 7) and numbers[:, 0].tolist() == [3, 5]  # all, where there are fewer than 20
    np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-5)
    assert loaded.most_similar(directions[:1].astype(np.float32), faces, 2)[0].shape == (1, 2)


def test_loading_takes_a_decoder_where_there_is_one(voice_run, decoder_run, no_named_runs):
    assert listener.load(voice_run, None, 1.0).face_decoder is None
    with pytest.raises(utils.InputError, match="decoder: expected a face decoder, or faces to choose from, found neither"):
        listener.load(voice_run, None, 1.0, needs_faces=True)
    shutil.copytree(decoder_run, no_named_runs / utils.DECODER_RUN)
    loaded = listener.load(voice_run, None, 1.4, needs_faces=True)
    assert loaded.face_decoder.exaggerate == 1.4
    assert loaded.folder == voice_run and loaded.run["feature_size"] == 128
