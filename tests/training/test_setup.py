import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import SEED, decoder_weights, error_of, history, run_train

import train
import utils
from clips import feature_files, splits
from judging import plots
from training import runs, setup
from training.batches import predict_features
from training.losses import LOSSES
from utils import InputError, normalise


def test_every_loss_and_picture_format_can_be_chosen():
    fields = {field.name: field for field in dataclasses.fields(train.Options)}
    assert set(fields["loss"].metadata["choices"]) == set(LOSSES)
    assert set(fields["format"].metadata["choices"]) == set(plots.FORMATS)


def test_clips_are_a_sample_of_those_ready(demo_data):
    ready = utils.split_clips(feature_files.ready_clips(demo_data), SEED)
    split = splits.Split(SEED)
    chosen, feature_size, kept = setup.choose_clips(demo_data, split, None, 8)
    assert chosen == {part: ready[part] for part in ("train", "val")} and feature_size == 128 and kept == split
    few, _, _ = setup.choose_clips(demo_data, split, 9, 8)
    assert len(few["train"]) == 9 and set(few["train"]) < set(ready["train"]) and few["val"] == ready["val"]
    with pytest.raises(InputError, match=r"at least --batch-size 23 clips .*, found 22 and 5; make more clips ready"):
        setup.choose_clips(demo_data, split, None, 23)


def test_the_centre_is_the_mean_of_a_sample_or_zero(demo_data, monkeypatch):
    clips = feature_files.ready_clips(demo_data)[:6]
    faces = np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips])
    np.testing.assert_allclose(setup.choose_centre("mean", demo_data, clips, 128, 0), faces.mean(axis=0), atol=1e-6)
    assert not setup.choose_centre("zero", demo_data, clips, 128, 0).any()
    monkeypatch.setattr(setup, "CENTRE_FACES", 2)
    sample = [clips.index(clip) for clip in utils.sample_clips(clips, 2, 3)]
    np.testing.assert_allclose(setup.choose_centre("mean", demo_data, clips, 128, 3), faces[sample].mean(axis=0), atol=1e-6)


def test_parameters_and_the_size_of_a_checkpoint_are_printed(tmp_path, capsys):
    options = train.with_defaults(train.Options(width=0.03, precision="float32"))
    training = setup.build(options, np.zeros(128, np.float32), 10)
    path = tmp_path / utils.LAST_WEIGHTS
    runs.save_weights(path, training.encoder, training.state, runs.Progress())
    said = capsys.readouterr().err
    assert f"train: {training.encoder.count_params():,} parameters, float32; a checkpoint takes 3 MB" in said
    assert 1.6e6 < path.stat().st_size <= 1.05 * runs.weights_bytes(training.encoder, training.state) < 3e6


@pytest.mark.parametrize(
    "precision, computed_in, n_scales",
    [("float32", "float32", 0), ("mixed_bfloat16", "bfloat16", 0), ("mixed_float16", "float16", 2)],
)
def test_the_network_computes_with_the_precision_of_the_option(precision, computed_in, n_scales):
    """Weights and predictions stay float32; float16 alone has a loss scale, of two variables."""
    training = setup.build(train.with_defaults(train.Options(width=0.03, precision=precision)), np.zeros(128, np.float32), 10)
    encoder = training.encoder
    assert {encoder.get_layer(name).compute_dtype for name in ("conv1", "conv9", "bn1", "bn9", "fc1")} == {computed_in}
    assert encoder.output.dtype == "float32" and {weight.dtype for weight in encoder.weights} == {"float32"}
    assert len(training.state) - len(training.optimizer.variables) == n_scales


# ---------------------------------------------------------------- the face decoder in the loss


@pytest.fixture
def wide_data(demo_data, tmp_path, rng):
    """`demo_data` with random face features of VGG-Face's size."""
    data = shutil.copytree(demo_data, tmp_path / "wide-data")
    for clip in feature_files.ready_clips(data):
        feature_files.save_array(feature_files.embedding_path(data, clip), (1 + rng.normal(size=4096)).astype(np.float32))
    return data


def test_a_voice_encoder_trains_through_the_decoder(wide_decoder_run, wide_data, small_fc8, tmp_path):
    """The validation loss belongs to the weights that are kept; all three terms are computed by hand."""
    run = tmp_path / "run"
    assert run_train(wide_data, run, "--epochs", 1, "--loss", "total", "--decoder", wide_decoder_run) == 0
    options = json.loads((run / "options.json").read_text())
    assert (options["loss"], options["decoder"]) == ("total", str(wide_decoder_run))
    read = runs.read_run(run)
    encoder, clips = runs.load_encoder(run, read), read["clips"]["val"]
    voices, faces = predict_features(encoder, wide_data, clips, 4096, 4)
    seen = [normalise(features - read["centre"]) for features in (voices, faces)]
    l2 = ((seen[0] - seen[1]) ** 2).sum(axis=1)
    logits = [(np.maximum(features, 0) @ small_fc8[0] + small_fc8[1]) / 2 for features in (voices, faces)]
    log_p, log_q = (of - np.logaddexp.reduce(of, axis=1, keepdims=True) for of in logits)
    distillation = -(np.exp(log_q) * log_p).sum(axis=1)
    kernel, _ = decoder_weights(wide_decoder_run)["texture_coefficients"]
    decoding = np.abs((voices - faces) @ kernel).sum(axis=1)
    by_hand = np.mean(0.025 * l2 + 200 * distillation + 0.05 * decoding)
    assert history(run)[0]["val_loss"] == pytest.approx(by_hand, rel=1e-3)


def test_the_third_term_is_added_and_leaves_the_first_weights_as_they_are(wide_decoder_run, small_fc8, rng):
    centre, (voices, faces) = np.zeros(4096, np.float32), rng.normal(size=(2, 3, 4096)).astype(np.float32)
    options = {"loss": "total", "width": 0.03, "precision": "float32"}
    without, with_decoder = (
        setup.build(train.with_defaults(train.Options(**options, decoder=run)), centre, 10)
        for run in (None, str(wide_decoder_run))
    )
    np.testing.assert_equal(with_decoder.encoder.get_weights(), without.encoder.get_weights())
    kernel, _ = decoder_weights(wide_decoder_run)["texture_coefficients"]
    expected = 0.05 * np.abs((voices - faces) @ kernel).sum(axis=1)
    np.testing.assert_allclose(with_decoder.loss(faces, voices) - without.loss(faces, voices), expected, atol=2e-3)
    assert expected.min() > 0.05


def test_a_decoder_that_does_not_fit_or_is_missing_is_reported(decoder_run, tiny_run, wide_data, small_fc8, tmp_path, capsys):
    arguments = ("--loss", "total", "--epochs", 1, "--decoder")
    assert run_train(wide_data, tmp_path / "run", *arguments, decoder_run) == 1
    error = error_of(capsys)
    assert f"--decoder: {decoder_run}: expected a decoder for face features of 4096 numbers, found one for 128" in error
    assert error.endswith("train one on data of preprocess.py --face-model vggface")
    assert run_train(wide_data, tmp_path / "run", *arguments, tiny_run) == 1
    assert f"{tiny_run}: expected a run of python train.py decoder, found a run of python train.py" in error_of(capsys)
    assert run_train(wide_data, tmp_path / "run", *arguments, tmp_path / "none") == 1
    assert f"{tmp_path / 'none'}: expected a run of train.py, found none" in error_of(capsys)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        train.main(["--decoder", str(decoder_run)])
    assert "--decoder: expected --loss total with it, found l2; " in capsys.readouterr().err.splitlines()[-1]
