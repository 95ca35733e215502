import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import SEED, decoder_weights, error_of, history

import train
import utils
from clips import feature_files
from faces import decoder_statistics, textures
from training import runs
from utils import normalise
from voices.backend import keras

DECODER_FILES = {utils.BEST_WEIGHTS, utils.CENTRE, utils.CLIPS, utils.OPTIONS, utils.HISTORY, "decoded.png"}


def train_decoder(data, run, *more):
    return train.main([*map(str, ["decoder", "--data", data, "--run", run, "--seed", SEED, *more])])


def faces_of(data, names, reference):
    """Return features, half textures, shapes and covariates, computed one after another."""
    made = [textures.texture_of_file(name, data, reference) for name in names]
    features = np.stack([feature_files.load_embedding(data, name, 128) for name in names])
    return features, *(np.stack(of) for of in zip(*made))


@pytest.fixture(scope="module")
def fitted(decoder_run, demo_data):
    """Return the statistics of the run's training faces, and its validation faces as `faces_of` returns them."""
    clips = json.loads((decoder_run / "clips.json").read_text())
    landmarks = np.stack([feature_files.load_landmarks(demo_data, name) for name in clips["train"]])
    reference = textures.reference_shape(landmarks)
    features, *of_photos = faces_of(demo_data, clips["train"], reference)
    statistics = decoder_statistics.fit(features, clips["train"], *of_photos, reference)  # one clip each: a name is a person
    return statistics, faces_of(demo_data, clips["val"], reference)


def test_a_decoders_run_leaves_options_history_weights_and_a_picture(decoder_run, demo_data):
    assert {path.name for path in decoder_run.iterdir()} == DECODER_FILES
    options = json.loads((decoder_run / "options.json").read_text())
    assert (options["model"], options["epochs"], options["feature_size"], options["rank"]) == ("decoder", 0, 128, 21)
    clips = utils.split_clips(feature_files.ready_faces(demo_data), SEED)
    assert json.loads((decoder_run / "clips.json").read_text()) == {part: clips[part] for part in ("train", "val")}
    faces = [feature_files.load_embedding(demo_data, clip, 128) for clip in clips["train"]]
    centre = feature_files.load_array(decoder_run / "centre.pkl", np.float32, (128,))
    np.testing.assert_allclose(centre, np.mean(faces, axis=0), atol=1e-6)
    assert runs.read_run(decoder_run, "decoder")["rank"] == 21
    picture = cv2.imread(str(decoder_run / "decoded.png"))
    assert picture.shape[1] == pytest.approx(200 * (2 + 0.25 + 0.2), abs=2)  # two faces beside each other
    assert 200 * 5 * 1.32 < picture.shape[0] < 200 * (5 * 1.32 + 1)  # five people below a title


def test_a_decoders_weights_are_what_the_statistics_say(decoder_run, fitted):
    """Up to rounding: textures and landmarks predicted for validation faces, and the reference shape."""
    statistics, (features, *_) = fitted
    found = decoder_weights(decoder_run)
    np.testing.assert_allclose(found["warp"][0], statistics.reference, atol=1e-4)

    def predicted(layers):
        (few, few_bias), (basis, bias), (slopes, shape) = (
            layers[name] for name in ("texture_coefficients", "texture_basis", "landmark_slopes")
        )
        return (features @ few + few_bias) @ basis + bias, features @ slopes + shape

    for ours, theirs in zip(predicted(found), predicted(statistics.layers)):
        np.testing.assert_allclose(ours, theirs, atol=0.2)
        assert np.ptp(theirs, axis=0).max() > 3


def test_a_decoders_scores_are_those_of_its_weights(decoder_run, fitted):
    """And so are the scores of the mean face."""
    statistics, (features, *of_photos) = fitted
    (record,) = history(decoder_run)
    assert (record["epoch"], record["val_faces"]) == (0, 5) and len(features) == 5
    network = runs.load_decoder(decoder_run, runs.read_run(decoder_run, "decoder"))
    parts = keras.Model(network.input, [network.get_layer(name).output for name in ("texture_basis", "landmarks")])
    halves, shapes = statistics.targets(*of_photos)
    for seen, ending in ((features, ""), (np.repeat(statistics.centre[None], len(features), axis=0), "_of_mean_face")):
        textures, landmarks = (part.numpy() for part in parts(seen))
        distances = ((landmarks - shapes) ** 2).sum(axis=2).mean()
        differences = np.abs(textures.reshape(len(seen), -1) - halves).mean()
        assert record[f"val_landmark_loss{ending}"] == pytest.approx(distances, rel=0.02)
        assert record[f"val_texture_loss{ending}"] == pytest.approx(differences, rel=0.02)
    assert record["val_loss"] == pytest.approx(record["val_landmark_loss"] + record["val_texture_loss"])
    assert record["val_texture_loss"] < record["val_texture_loss_of_mean_face"]


def test_a_decoder_tells_people_apart(decoder_run, fitted, demo_data):
    """Most faces decoded from a feature are more similar to their own photo than to those of other people."""
    _, (features, halves, *_) = fitted
    (few, few_bias), (basis, bias) = (decoder_weights(decoder_run)[f"texture_{name}"] for name in ("coefficients", "basis"))
    decoded = (features @ few + few_bias) @ basis + bias
    decoded, true = (of - of.mean(axis=0, keepdims=True) for of in (decoded, halves.astype(np.float32)))
    nearest = (normalise(decoded) @ normalise(true).T).argmax(axis=1)
    assert (nearest == np.arange(5)).sum() >= 3


def test_the_same_faces_give_the_same_decoder_and_an_earlier_run_is_kept(decoder_run, demo_data, tmp_path, capsys):
    run = shutil.copytree(decoder_run, tmp_path / "run")
    assert train_decoder(demo_data, run) == 0
    assert f"{run} holds an earlier run, now kept as {run}-1" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run-1").iterdir()} == DECODER_FILES
    assert (tmp_path / "run-1" / utils.BEST_WEIGHTS).read_bytes() == (decoder_run / utils.BEST_WEIGHTS).read_bytes()
    ours, theirs = decoder_weights(run), decoder_weights(decoder_run)
    for name, weights in theirs.items():
        for a, b in zip(ours[name], weights):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max(), err_msg=name)
    assert history(run)[0]["val_loss"] == pytest.approx(history(decoder_run)[0]["val_loss"], rel=1e-4)


def test_training_by_gradients_follows_the_decoders_closed_form(decoder_run, demo_data, tmp_path, capsys):
    """Of the closed form and the epoch, the weights with the smaller validation loss are kept."""
    run = tmp_path / "run"
    assert train_decoder(demo_data, run, "--epochs", 1, "--learning-rate", 1e-4, "--batch-size", 5) == 0
    closed, trained = history(run)
    assert (closed["epoch"], trained["epoch"]) == (0, 1)
    assert closed["val_loss"] == pytest.approx(history(decoder_run)[0]["val_loss"], rel=1e-3)
    assert abs(trained["val_loss"] - closed["val_loss"]) > 1e-3
    before, after = decoder_weights(decoder_run), decoder_weights(run)
    changed = {name: np.abs(after[name][0] - before[name][0]).max() > 1e-5 for name in before}
    better = trained["val_loss"] < closed["val_loss"]
    assert (
        changed["texture_coefficients"] == better and not changed["warp"]
    )  # the closed form fits the rest of 22 faces exactly
    lines = capsys.readouterr().out.splitlines()
    landmark, texture = (closed[f"val_{name}_loss"] for name in ("landmark", "texture"))
    said = f"fitted in {closed['seconds']:.1f} s, losses on 5 validation faces: landmark {landmark:.2f} (mean face "
    assert lines[0].startswith(said) and f"  texture {texture:.2f} (mean face " in lines[0]
    assert lines[1].startswith(f"epoch 1/1 in {trained['seconds']:.1f} s, losses on 5 validation faces: landmark ")
    assert lines[-1] == f"train: {run / utils.BEST_WEIGHTS}"


def test_a_decoders_scores_do_not_depend_on_the_batches(decoder_run, demo_data, tmp_path):
    assert train_decoder(demo_data, tmp_path / "run", "--batch-size", 4) == 0
    assert history(tmp_path / "run")[0]["val_loss"] == pytest.approx(history(decoder_run)[0]["val_loss"], rel=1e-3)


def test_a_batch_larger_than_the_training_set_is_reported(demo_data, tmp_path, capsys):
    assert train_decoder(demo_data, tmp_path / "run", "--epochs", 1, "--batch-size", 40) == 1
    assert "--batch-size: expected at most 22, the training faces, found 40" in error_of(capsys)


def test_fewer_training_faces_and_too_few(demo_data, own_data, decoder_run, tmp_path, capsys):
    run = tmp_path / "run"
    assert train_decoder(demo_data, run, "--clips", 20) == 0
    clips, everything = (json.loads((folder / "clips.json").read_text()) for folder in (run, decoder_run))
    assert len(clips["train"]) == 20 and set(clips["train"]) < set(everything["train"]) and clips["val"] == everything["val"]
    capsys.readouterr()
    before = (run / utils.BEST_WEIGHTS).read_bytes()
    assert train_decoder(demo_data, run, "--clips", 19) == 1
    said = "expected faces of at least 20 people to train on and of two to validate on, found 19 and 5; "
    assert error_of(capsys).endswith(said + "raise --clips")
    assert (run / utils.BEST_WEIGHTS).read_bytes() == before
    for name in everything["train"][:3]:
        feature_files.portrait_path(own_data, name).unlink()
    assert train_decoder(own_data, run) == 1
    assert error_of(capsys).endswith(said + "make more ready with preprocess.py, --csv or --faces")


def test_the_decoder_has_options_of_its_own():
    options = train.DecoderOptions()
    assert (options.run, options.epochs, options.learning_rate) == ("decoder", 0, 1e-5)
    assert train.Options().run == "base"
    with pytest.raises(ValueError, match="--epochs: expected at least 0, found -1"):
        train.DecoderOptions(epochs=-1)


@pytest.mark.parametrize(
    "option",
    [
        ["--resume"],
        ["--encoder", "speaker"],
        ["--loss", "total"],
        ["--decoder", "other"],
        ["--centre", "zero"],
        ["--width", "0.5"],
        ["--whitening", "0"],
        ["--seconds", "3"],
        ["--mask-bins", "9"],
        ["--mask-frames", "9"],
        ["--precision", "float32"],
        ["--save-minutes", "1"],
    ],
    ids=str,
)
def test_options_of_the_encoder_are_refused(option, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["decoder", *option])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: unrecognized arguments: {' '.join(option)}; ") and "decoder --help" in error


def test_no_faces(tmp_path, capsys):
    assert train_decoder(tmp_path / "none", tmp_path / "run") == 1
    assert "expected a folder that preprocess.py wrote, found none; run preprocess.py" in error_of(capsys)
    (tmp_path / "empty").mkdir()
    assert train_decoder(tmp_path / "empty", tmp_path / "run") == 1
    assert "expected faces with portraits and landmarks, found none; run preprocess.py" in error_of(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_broken_file_of_a_face_ends_in_one_line_that_names_it(part, own_data, tmp_path, capsys):
    clip = utils.split_clips(feature_files.ready_faces(own_data), SEED)[part][1]
    broken, content = feature_files.landmarks_path(own_data, clip), np.full((68, 2), np.nan, np.float32)
    feature_files.save_array(broken, content)
    assert train_decoder(own_data, tmp_path / "run") == 1
    assert f"{broken}: expected finite numbers, found nan or inf" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_a_broken_portrait_ends_in_one_line_that_names_it(own_data, tmp_path, capsys):
    broken = feature_files.portrait_path(own_data, utils.split_clips(feature_files.ready_faces(own_data), SEED)["val"][0])
    broken.write_text("no picture")
    assert train_decoder(own_data, tmp_path / "run") == 1
    assert f"{broken}: expected a JPEG, found something else" in error_of(capsys)
