import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from conftest import ROOT, SEED, TINY, arrays_of, encoder_weights, error_of, history, run_train

import model
import train
import utils
from clips import feature_files
from training import runs, steps
from training.batches import clip_batches, predict_features
from training.epochs import validate
from training.losses import l2_loss
from utils import normalise
from voices.backend import tf

N_STEPS = 5  # of an epoch

FILES = {utils.BEST_WEIGHTS, utils.LAST_WEIGHTS, utils.CENTRE, utils.CLIPS, utils.OPTIONS, utils.LIKELY, utils.CERTAINTY} | {
    "curves.png",
    "history.jsonl",
    "tensorboard",
}


def assert_same_run(ours, theirs):
    """Assert that weights, optimizer and history are equal to the bit, except for the times."""
    ours_of, theirs_of = (arrays_of(run / utils.LAST_WEIGHTS) for run in (ours, theirs))
    assert ours_of.keys() == theirs_of.keys() and len(ours_of) > 100
    for name, values in ours_of.items():
        np.testing.assert_array_equal(values, theirs_of[name], err_msg=name)
    of_time = {"seconds", "clips_per_second", "input_share"}
    timeless = [[{k: v for k, v in epoch.items() if k not in of_time} for epoch in history(run)] for run in (ours, theirs)]
    assert timeless[0] == timeless[1]


def test_a_run_leaves_options_history_and_weights(tiny_run, demo_data):
    assert {path.name for path in tiny_run.iterdir()} == FILES
    options = json.loads((tiny_run / "options.json").read_text())
    assert options["width"] == 0.03 and options["loss"] == "l2" and options["feature_size"] == 128
    assert options["data"] == str(demo_data) and options["precision"] == steps.best_precision()
    clips = utils.split_clips(feature_files.ready_clips(demo_data), SEED)
    assert json.loads((tiny_run / "clips.json").read_text()) == {part: clips[part] for part in ("train", "val")}
    faces = [feature_files.load_embedding(demo_data, clip, 128) for clip in clips["train"]]
    centre = feature_files.load_array(tiny_run / "centre.pkl", np.float32, (128,))
    np.testing.assert_allclose(centre, np.mean(faces, axis=0), atol=1e-6)
    n_parameters = model.voice_encoder(128, 0.03).count_params()
    assert (tiny_run / "best.weights.h5").stat().st_size < 1.5 * 4 * n_parameters  # the optimizer's state is not in it
    epochs = history(tiny_run)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert [epoch["step"] for epoch in epochs] == [N_STEPS, 2 * N_STEPS, 3 * N_STEPS]
    assert all(0 <= epoch["input_share"] < 1 and epoch["clips_per_second"] > 0 for epoch in epochs)
    assert cv2.imread(str(tiny_run / "curves.png")).shape[1] == 2000


@pytest.mark.parametrize(
    "options, message",
    [
        (["--width", "0.5"], "--width: expected --encoder conv with it, found --encoder speaker"),
        (["--precision", "mixed_bfloat16"], "--precision: expected float32 with --encoder speaker, found mixed_bfloat16"),
        (["--whitening", "2"], "--whitening: expected 0 to 1, found 2.0"),
        (["--clips", "0"], "--clips: expected at least 1, found 0"),
        (["--clips", "7"], "--clips: expected at least --batch-size, 8, found 7"),
        (["--encoder", "conv", "--embedding", "ge2e"], "--embedding: expected --encoder speaker with it, found --encoder conv"),
        (["--encoder", "conv", "--whitening", "0"], "--whitening: expected --encoder speaker with it, found --encoder conv"),
    ],
)
def test_options_of_the_other_encoder_and_bad_values_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--encoder", "speaker", *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_epochs_and_learning_rate_default_by_encoder():
    """The defaults are filled in without changing the options of the command line."""
    for encoder, epochs, rate in (("conv", 30, 1e-3), ("speaker", 0, 1e-5)):
        options = train.Options(encoder=encoder)
        filled = train.with_defaults(options)
        assert (filled.epochs, filled.learning_rate) == (epochs, rate) and options.epochs is None
    filled = train.with_defaults(train.Options(epochs=7, learning_rate=0.5))
    assert (filled.epochs, filled.learning_rate) == (7, 0.5)


def test_the_old_option_for_the_decoder_names_the_new_command(capsys):
    for arguments in (["--model", "decoder"], ["--model=decoder", "--data", "x"]):
        assert train.main(arguments) == 2
        assert error_of(capsys).endswith("to train the face decoder: python train.py decoder")


def test_help_shows_the_options_in_groups(capsys):
    for arguments, groups in (
        ([], ["run", "data", "network", "only with --encoder conv", "only with --encoder speaker", "optimisation", "hardware"]),
        (["decoder"], ["run", "data", "optimisation", "hardware"]),
    ):
        with pytest.raises(SystemExit):
            train.main([*arguments, "--help"])
        lines = capsys.readouterr().out.splitlines()
        found = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
        assert found == ["options", *groups]
        described = {line.split()[0] for line in lines if line.startswith("  --")}
        options = dataclasses.fields(train.DecoderOptions if arguments else train.Options)
        assert described == {"--version", *(f"--{field.name.replace('_', '-')}" for field in options)}


def test_tensorboard_has_the_losses(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "tensorboard"), size_guidance={"tensors": 0}).Reload()

    def of(name):
        return {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}

    assert list(of("loss of a step")) == list(range(1, 3 * N_STEPS + 1))
    for epoch in history(tiny_run):
        assert of("val_matching")[epoch["step"]] == pytest.approx(epoch["val_matching"])
        steps = [of("loss of a step")[step] for step in range(epoch["step"] - N_STEPS + 1, epoch["step"] + 1)]
        assert epoch["train_loss"] == pytest.approx(np.mean(steps), rel=1e-5)


def test_the_validation_scores_are_those_of_the_weights_kept(tiny_run, demo_data):
    clips = utils.split_clips(feature_files.ready_clips(demo_data), SEED)["val"]
    batches, _ = clip_batches(demo_data, clips, 128, 3)
    centre = feature_files.load_array(tiny_run / utils.CENTRE, np.float32, (128,))
    epochs = history(tiny_run)
    best = min(epochs, key=lambda epoch: epoch["val_loss"])
    for name, epoch in ((utils.LAST_WEIGHTS, epochs[-1]), (utils.BEST_WEIGHTS, best)):
        encoder = model.voice_encoder(128, 0.03)
        encoder.load_weights(tiny_run / name)
        voices, faces = (np.concatenate(part) for part in zip(*((encoder(voices), faces) for voices, faces in batches)))
        losses = l2_loss(faces - centre, voices - centre).numpy()
        assert len(losses) == len(clips) == epoch["val_gallery"]
        assert losses.mean() == pytest.approx(epoch["val_loss"], rel=1e-3)
        cosine = normalise(voices - centre) @ normalise(faces - centre).T
        ranks = 1 + (cosine > np.diag(cosine)[:, None]).sum(axis=1)
        assert epoch["val_median_rank"] == np.median(ranks)
        assert epoch["val_recall"]["5"] == np.mean(ranks <= 5)
        assert epoch["val_matching"] == pytest.approx(np.mean((len(clips) - ranks) / (len(clips) - 1)))


def test_the_weights_of_the_least_validation_loss_are_kept(random_data, tmp_path, monkeypatch):
    """Of three epochs, the second one. The cosine of their learning rates falls to 0 in the last one, after a first step up."""
    run, losses, validated = tmp_path / "run", iter((0.5, 0.3, 0.4)), []

    def with_loss(*arguments):
        return {**validate(*arguments), "val_loss": next(losses)}

    def noting_weights(encoder, *more):
        validated.append(encoder.get_weights())
        return predict_features(encoder, *more)

    monkeypatch.setattr("training.epochs.validate", with_loss)
    monkeypatch.setattr("training.batches.predict_features", noting_weights)
    assert run_train(random_data, run, "--epochs", 3) == 0
    np.testing.assert_equal(encoder_weights(run, utils.BEST_WEIGHTS), validated[1])
    np.testing.assert_equal(encoder_weights(run, utils.LAST_WEIGHTS), validated[2])
    steps_done = np.array([epoch["step"] for epoch in history(run)])
    expected = 0.5e-3 * (1 + np.cos(np.pi * (steps_done - 1) / (steps_done[-1] - 1)))
    assert [epoch["learning_rate"] for epoch in history(run)] == pytest.approx(expected, abs=1e-8)


def test_the_centre_is_the_mean_face_of_training_people_alone(random_data, tmp_path):
    run, clips = tmp_path / "run", utils.split_clips(feature_files.ready_clips(random_data), SEED)
    assert run_train(random_data, run, "--epochs", 1) == 0
    centre = feature_files.load_array(run / "centre.pkl", np.float32, (128,))
    faces = [feature_files.load_embedding(random_data, clip, 128) for clip in clips["train"]]
    np.testing.assert_allclose(centre, np.mean(faces, axis=0), atol=1e-6)


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(tiny_run, demo_data, tmp_path):
    """A run that is killed at a random moment of each of its three epochs, and resumed each time."""
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--data", demo_data, "--run", run, *TINY, "--epochs", "3"]
    command += ["--save-minutes", "0.0005"]
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    for epoch in (1, 2, 3):
        resume = ["--resume"] if epoch > 1 else []
        process = subprocess.Popen([*map(str, command), *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while step_saved(run) < (epoch - 1) * N_STEPS + rng.integers(1, N_STEPS):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert (epoch - 1) * N_STEPS <= step_saved(run)
    assert all(np.isfinite(values).all() for values in arrays_of(run / utils.LAST_WEIGHTS).values())
    assert run_train(demo_data, run, "--epochs", 3, "--save-minutes", 0.0005, "--resume") == 0
    assert_same_run(run, tiny_run)
    np.testing.assert_equal(encoder_weights(run, utils.BEST_WEIGHTS), encoder_weights(tiny_run, utils.BEST_WEIGHTS))


def step_saved(run):
    try:
        with h5py.File(run / utils.LAST_WEIGHTS) as file:
            return json.loads(file["training/progress"][()])["step"]
    except OSError:
        return 0


def test_ctrl_c_leaves_a_checkpoint_to_resume_from(tiny_run, demo_data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--data", demo_data, "--run", run, *TINY, "--epochs", "3"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("epoch  1/3  train ")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"train: to continue: python train.py --run {run} --resume" in stderr and "Traceback" not in stderr
    assert N_STEPS <= step_saved(run) < 3 * N_STEPS
    assert run_train(demo_data, run, "--resume") == 0
    assert_same_run(run, tiny_run)


def test_a_finished_run_can_be_continued(tiny_run, demo_data, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert run_train(demo_data, run, "--resume") == 0
    assert_same_run(run, tiny_run)
    assert "the cosine" not in capsys.readouterr().err
    assert run_train(demo_data, run, "--resume", "--epochs", 4) == 0
    said = capsys.readouterr().err
    assert f"train: resumed after step {3 * N_STEPS} of {4 * N_STEPS}" in said
    rate = (1 + np.cos(np.pi * (3 * N_STEPS - 1) / (4 * N_STEPS - 1))) / 2 * 1e-3  # after one step of warm-up
    assert f"the cosine now falls to 0 in epoch 4: the learning rate is {rate:.1e} here, instead of 0.0e+00\n" in said
    assert [epoch["epoch"] for epoch in history(run)] == [1, 2, 3, 4]
    assert history(run)[:3] == history(tiny_run)


@pytest.mark.parametrize(
    "given, found", [(("--width", "0.06"), "--width: expected 0.03"), (("--loss=l1",), "--loss: expected l2")], ids=str
)
def test_a_run_is_resumed_with_its_own_options_only(given, found, tiny_run, demo_data, capsys):
    before = (tiny_run / utils.LAST_WEIGHTS).read_bytes()
    assert run_train(demo_data, tiny_run, "--resume", *given) == 1
    assert f"{found}, with which {tiny_run} was started, found" in error_of(capsys)
    assert (tiny_run / utils.LAST_WEIGHTS).read_bytes() == before


def test_a_checkpoint_of_another_width_is_refused(tiny_run, demo_data, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    options = json.loads((run / "options.json").read_text())
    utils.write_json(run / "options.json", {**options, "width": 0.06})
    assert train.main(["--run", str(run), "--resume"]) == 1
    assert f"{run / utils.LAST_WEIGHTS}: expected the checkpoint of this run, found something else" in error_of(capsys)


def test_nothing_to_resume(tiny_run, decoder_run, demo_data, tmp_path, capsys):
    assert run_train(demo_data, tmp_path / "none", "--resume") == 1
    assert f"{tmp_path / 'none'}: expected a run of train.py, found none" in error_of(capsys)
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns(utils.LAST_WEIGHTS))
    assert run_train(demo_data, run, "--resume") == 1
    assert "expected last.weights.h5, a checkpoint to resume, found none; leave out --resume" in error_of(capsys)
    assert train.main(["--run", str(decoder_run), "--resume"]) == 1
    assert "expected a run of python train.py, found a run of python train.py decoder" in error_of(capsys)
    (run / utils.OPTIONS).write_text("[]")
    assert train.main(["--run", str(run), "--resume"]) == 1
    assert f"{run / utils.OPTIONS}: expected the options of a run, found" in error_of(capsys)


def test_a_run_of_an_earlier_version_is_resumed(tiny_run, tmp_path):
    """An option that its options.json lacks has its default."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    options = json.loads((run / utils.OPTIONS).read_text())
    earlier = {name: value for name, value in options.items() if name not in ("model", "format", "whitening")}
    utils.write_json(run / utils.OPTIONS, earlier)
    assert train.main(["--run", str(run), "--resume"]) == 0
    assert_same_run(run, tiny_run)


def test_a_copied_run_is_resumed_in_its_new_folder(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "copy")
    options = train.resumed(train.Options(run=str(run), resume=True, epochs=9), {"run", "resume", "epochs"})
    assert (options.run, options.epochs, options.width, options.seed) == (str(run), 9, 0.03, SEED)
    assert train.resumed(train.Options(run=str(run), resume=True), {"resume"}).run == str(run)


def test_a_run_outlives_its_data_folder(tiny_run, demo_data, own_data, tmp_path, capsys):
    """It can be loaded, and resumed with --data; a folder without its clips is refused."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    options = json.loads((run / utils.OPTIONS).read_text())
    utils.write_json(run / utils.OPTIONS, {**options, "data": str(tmp_path / "moved")})
    assert runs.load_encoder(run, runs.read_run(run)).output_shape == (None, 128)
    assert train.main(["--run", str(run), "--resume"]) == 1
    assert f"{tmp_path / 'moved'}: expected a folder that preprocess.py wrote, found none" in error_of(capsys)
    lost = json.loads((run / utils.CLIPS).read_text())["val"][0]
    feature_files.face_path(own_data, lost).unlink()
    assert train.main(["--run", str(run), "--resume", "--data", str(own_data)]) == 1
    said = f"{own_data}: expected the 27 clips of {run}, found 26, without {lost}; pass --data with the folder"
    assert said in error_of(capsys)
    assert train.main(["--run", str(run), "--resume", "--data", str(demo_data)]) == 0
    assert_same_run(run, tiny_run)
    assert runs.read_run(run)["data"] == str(demo_data)  # the next script finds the data without --data


def test_the_data_folder_is_noted_as_an_absolute_path(demo_data, tmp_path, monkeypatch):
    """A run named by a path stays where the path points to; the run's options do not depend on the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").symlink_to(demo_data)
    assert run_train("elsewhere", "./r2", "--epochs", 1, "--format", "svg") == 0
    assert not (tmp_path / "checkpoints").exists()
    assert json.loads((tmp_path / "r2" / utils.OPTIONS).read_text())["data"] == str(tmp_path / "elsewhere")
    assert (tmp_path / "r2" / "curves.svg").read_bytes().startswith(b"<?xml") and not (tmp_path / "r2" / "curves.png").exists()
    assert runs.read_run(Path("r2"))["data"] == str(tmp_path / "elsewhere")


def test_the_same_seed_gives_the_same_run(tiny_run, demo_data, tmp_path):
    assert run_train(demo_data, tmp_path / "other", "--epochs", 1, "--seed", 1) == 0
    assert abs(history(tmp_path / "other")[0]["train_loss"] - history(tiny_run)[0]["train_loss"]) > 1e-4
    assert run_train(demo_data, tmp_path / "again", "--epochs", 3) == 0
    assert_same_run(tmp_path / "again", tiny_run)


@pytest.fixture(scope="module")
def one_epoch(random_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "one"
    assert run_train(random_data, run, "--epochs", 1) == 0
    return run


@pytest.mark.parametrize(
    "option",
    [
        ("--centre", "zero"),
        ("--seconds", 4),
        ("--mask-bins", 100),
        ("--mask-frames", 100),
        ("--schedule", "paper"),
        ("--weight-decay", 9),
        ("--learning-rate", 0.01),
    ],
    ids=str,
)
def test_an_option_changes_the_result(option, one_epoch, random_data, tmp_path):
    """The same options give the same loss to the bit, see `test_the_same_seed_gives_the_same_run`."""
    assert run_train(random_data, tmp_path / "run", "--epochs", 1, *option) == 0
    assert abs(history(tmp_path / "run")[0]["train_loss"] - history(one_epoch)[0]["train_loss"]) > 1e-5


def test_the_precision_is_that_of_the_option(one_epoch, random_data, tmp_path):
    """With mixed_float16 the checkpoint holds the loss scale too, two numbers."""
    run = tmp_path / "run"
    assert run_train(random_data, run, "--epochs", 1, "--precision", "mixed_float16") == 0
    assert json.loads((run / "options.json").read_text())["precision"] == "mixed_float16"
    assert len(arrays_of(run / utils.LAST_WEIGHTS)) == len(arrays_of(one_epoch / utils.LAST_WEIGHTS)) + 2


# ---------------------------------------------------------------- what can go wrong


def test_no_data(tmp_path, capsys):
    assert run_train(tmp_path / "none", tmp_path / "run") == 1
    assert f"{tmp_path / 'none'}: expected a folder that preprocess.py wrote, found none" in error_of(capsys)
    (tmp_path / "empty").mkdir()
    assert run_train(tmp_path / "empty", tmp_path / "run") == 1
    assert "expected clips made ready by preprocess.py, found none" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_too_little_data(own_data, tmp_path, capsys):
    for clip in feature_files.ready_clips(own_data)[3:]:
        feature_files.face_path(own_data, clip).unlink()
    assert run_train(own_data, tmp_path / "run") == 1
    assert "make more clips ready" in error_of(capsys)


def test_a_missing_decoder_run_is_reported_before_the_slow_imports(demo_data, tmp_path):
    script = "import sys, train; code = train.main(sys.argv[1:]); sys.exit(10 * ('tensorflow' in sys.modules) + code)"
    for more in (["--loss", "total", "--decoder", tmp_path / "none"], ["--resume"]):
        command = [sys.executable, "-c", script, "--data", demo_data, "--run", tmp_path / "run", *more]
        process = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 1 and "expected a run of train.py, found none" in process.stderr


def test_a_broken_file_ends_in_one_line_that_names_it(own_data, tmp_path, capsys):
    broken = feature_files.spectrogram_path(own_data, utils.split_clips(feature_files.ready_clips(own_data), SEED)["train"][5])
    broken.write_bytes(broken.read_bytes()[:1000])
    assert run_train(own_data, tmp_path / "run", "--epochs", 1) == 1
    assert str(broken) in error_of(capsys)


def test_features_of_two_networks_are_not_mixed(own_data, tmp_path, capsys):
    other = feature_files.embedding_path(own_data, utils.split_clips(feature_files.ready_clips(own_data), SEED)["val"][0])
    feature_files.save_array(other, np.ones(4096, np.float32))
    assert run_train(own_data, tmp_path / "run", "--epochs", 1) == 1
    assert f"{other}: expected float32 (128,), found float32 (4096,)" in error_of(capsys)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(own_data, tmp_path, capsys):
    for clip in feature_files.ready_clips(own_data):
        feature_files.save_array(
            feature_files.embedding_path(own_data, clip), np.full(128, 3e38, np.float32)
        )  # their sum overflows
    assert run_train(own_data, tmp_path / "run", "--loss", "l1", "--centre", "zero") == 1
    assert "the loss of epoch 1, step 1 is inf, expected a finite number" in error_of(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--epochs", "0"),
        ("--width", "-1"),
        ("--seconds", "2"),
        ("--learning-rate", "nan"),
        ("--loss", "l3"),
        ("--encoder", "decoder"),
    ],
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main([*arguments])
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err.splitlines()[-1]
