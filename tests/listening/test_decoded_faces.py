import shutil

import numpy as np
import pytest

import utils
from clips import feature_files
from faces import refinement
from training import runs
from utils import normalise


@pytest.fixture(autouse=True)
def checkpoints(no_named_runs):
    return no_named_runs


def test_decoded_faces_are_exaggerated_from_the_mean(decoder_run, rng):
    read = runs.read_run(decoder_run, "decoder")
    network = runs.load_decoder(decoder_run, read)
    features = (read["centre"] + 0.05 * rng.normal(size=(3, 128))).astype(np.float32)
    decoded = {}
    for factor in (0.0, 1.0, 1.4):
        decoded[factor] = runs.load_face_decoder(str(decoder_run), 128, factor, 3)(features)
        assert decoded[factor].shape == (3, 192, 192, 3) and decoded[factor].dtype == np.uint8
        by_hand = (network(read["centre"] + factor * (features - read["centre"])).numpy().clip(0, 255)).round()
        assert np.abs(decoded[factor] - by_hand).max() <= 1
    mean = decoded[0.0][0].astype(int)
    assert (decoded[0.0] == mean).all()
    away = [np.abs(decoded[factor] - mean).mean() for factor in (1.0, 1.4)]
    assert 1.1 * away[0] < away[1] < 1.7 * away[0]


def test_refinement_brings_a_decoded_face_nearer_to_the_prediction(decoder_run, demo_data):
    """By the decoded face's own feature. Features of true faces are decoded as they are."""
    extract = refinement.feature_extractor(128)
    clips = feature_files.ready_clips(demo_data)[:6]
    centre = runs.read_run(decoder_run, "decoder")["centre"]
    predicted = centre + 0.4 * (np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - centre)
    plain, refined = (runs.load_face_decoder(str(decoder_run), 128, 1.0, steps) for steps in (0, 3))
    np.testing.assert_array_equal(plain(predicted), refined(predicted))
    again = plain.from_voices(8 * (predicted - centre), centre)
    np.testing.assert_array_equal(plain.from_voices(predicted - centre, centre), again)  # whatever the length
    axes = feature_files.load_array(decoder_run / utils.CORRECTION, np.float32, (2, 64, 128))[1]
    as_far = centre + 0.4 * np.linalg.norm(axes) * normalise(predicted - centre)
    assert np.abs(again - plain(as_far).astype(int)).max() <= 1
    whole = plain.from_voices(predicted, np.zeros(128, np.float32))  # --centre zero
    assert np.abs(whole - plain(np.linalg.norm(centre) * normalise(predicted)).astype(int)).max() <= 1
    mean = extract(plain(centre[None]))
    cosines = [
        (normalise(extract(pictures) - mean) * normalise(predicted - centre)).sum(axis=1).mean()
        for pictures in (plain.from_voices(predicted - centre, centre), refined.from_voices(predicted - centre, centre))
    ]
    assert cosines[1] > cosines[0] + 0.03


def test_a_decoder_is_taken_without_being_named_if_it_fits(decoder_run, wide_decoder_run, checkpoints, capsys):
    def load():
        return runs.load_face_decoder(None, 128, 1.0, 3)

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
    assert load()(np.zeros((1, 128), np.float32)).shape == (1, 192, 192, 3)
