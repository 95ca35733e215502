import shutil

import numpy as np
import pytest

import utils
from clips import feature_files
from faces import decoder, likely, portraits
from faces.textures import SIDE
from training import runs
from training.batches import predict_features
from utils import normalise
from voices.backend import keras


@pytest.fixture(autouse=True)
def checkpoints(no_named_runs):
    return no_named_runs


def test_decoded_faces_are_exaggerated_from_the_mean(decoder_run, voice_run, rng):
    read = runs.read_run(decoder_run, "decoder")
    network = runs.load_decoder(decoder_run, read)
    features = (read["centre"] + 0.05 * rng.normal(size=(3, 128))).astype(np.float32)
    decoded = {}
    for factor in (0.0, 1.0, 1.4):
        decoded[factor] = runs.load_face_decoder(str(decoder_run), voice_run, 128, factor)(features)
        assert decoded[factor].shape == (3, SIDE, SIDE, 3) and decoded[factor].dtype == np.uint8
        by_hand = (network(read["centre"] + factor * (features - read["centre"])).numpy().clip(0, 255)).round()
        assert np.abs(decoded[factor] - by_hand).max() <= 1
    mean = decoded[0.0][0].astype(int)
    assert (decoded[0.0] == mean).all()
    away = [np.abs(decoded[factor] - mean).mean() for factor in (1.0, 1.4)]
    assert 1.1 * away[0] < away[1] < 1.7 * away[0]


def test_faces_from_voices_are_vivid(decoder_run, voice_run, demo_data):
    """As the run's `likely.npz` and the decoder say; whatever the length of the predictions."""
    decode = runs.load_face_decoder(str(decoder_run), voice_run, 128, 1.0)
    encoder, run = runs.load_encoder(voice_run, runs.read_run(voice_run)), runs.read_run(voice_run)
    voices, _ = predict_features(encoder, demo_data, feature_files.ready_clips(demo_data)[:6], 128)
    faces = likely.load(voice_run / utils.LIKELY, 128)
    features = faces.vivid(normalise(voices - run["centre"]), decoder.visible_changes(decode.network))
    pictures = decode.from_voices(normalise(voices - run["centre"]))
    np.testing.assert_array_equal(pictures, decode(features))
    with pytest.raises(ValueError, match=r"directions: expected \(N, D\), each of length 1"):
        decode.from_voices(voices)
    with pytest.raises(
        ValueError, match="features: expected face features of the decoder's network, found others or directions"
    ):
        decode(normalise(voices - run["centre"]))
    assert np.abs(pictures.astype(int) - pictures[:1]).max() > 20


def test_samples_are_decoded(decoder_run, voice_run, rng):
    decode = runs.load_face_decoder(str(decoder_run), voice_run, 128, 1.0)
    prediction = rng.normal(size=128).astype(np.float32)
    drawn = decode.samples(normalise(prediction[None])[0], 3, 0)
    assert drawn.shape == (3, SIDE, SIDE, 3) and drawn.dtype == np.uint8
    expected = decode(decode.likely.samples(normalise(prediction[None])[0], 3, 0))
    np.testing.assert_array_equal(drawn, expected)
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 5


def test_landmarks_are_found_in_decoded_faces(decoder_run, voice_run, demo_data):
    """As in the photo, without a detector: where the decoder has put them, within a few pixels."""
    decode = runs.load_face_decoder(str(decoder_run), voice_run, 128, 1.0)
    names = feature_files.ready_clips(demo_data)[:4]
    features = np.stack([feature_files.load_embedding(demo_data, name, 128) for name in names])
    found = portraits.landmarks_in(decode(features))
    of_decoder = keras.Model(decode.network.input, decode.network.get_layer("landmarks").output)(features).numpy()
    assert found.shape == (4, 68, 2)
    assert np.median(np.linalg.norm(found - of_decoder, axis=2)) < 6


def test_a_run_without_likely_faces_is_told(decoder_run, voice_run, tmp_path, checkpoints, capsys):
    """As those of earlier versions."""
    shutil.copytree(decoder_run, checkpoints / "decoder")
    earlier = shutil.copytree(voice_run, tmp_path / "earlier")
    (earlier / utils.LIKELY).unlink()
    assert runs.load_face_decoder(None, earlier, 128, 1.0) is None
    told = capsys.readouterr().err
    assert told.startswith(f"no decoded faces: {earlier / utils.LIKELY}: expected the likely faces of a run, found")
    assert "run train.py again" in told and told.count("\n") == 1
    with pytest.raises(utils.InputError, match=r"--decoder: .*likely.npz"):
        runs.load_face_decoder(str(decoder_run), earlier, 128, 1.0)


def test_a_decoder_is_taken_without_being_named_if_it_fits(decoder_run, voice_run, wide_decoder_run, checkpoints, capsys):
    def load():
        return runs.load_face_decoder(None, voice_run, 128, 1.0)

    assert load() is None and capsys.readouterr().err == ""
    shutil.copytree(wide_decoder_run, checkpoints / "decoder")
    assert load() is None
    told = capsys.readouterr().err
    assert told.startswith(f"no decoded faces: {checkpoints / 'decoder'}: expected a decoder for face features of 128 numbers")
    assert "found one for 4096" in told and told.count("\n") == 1
    (checkpoints / "decoder" / utils.OPTIONS).write_text('{"model": "voice"}')
    assert load() is None
    assert "expected a run of python train.py decoder, found a run of python train.py" in capsys.readouterr().err
    shutil.rmtree(checkpoints / "decoder")
    shutil.copytree(decoder_run, checkpoints / "decoder")
    assert load()(runs.read_run(decoder_run, "decoder")["centre"][None]).shape == (1, SIDE, SIDE, 3)
