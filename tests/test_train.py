import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import model
import train
import utils

TINY = ["--width", "0.03", "--seconds", "2.7", "--batch-size", "4"]


def run_train(data, run, *more):
    return train.main([*map(str, ["--data", data, "--run", run, *TINY, *more])])


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def weights(run, name=utils.LAST_WEIGHTS, width=0.03):
    encoder = model.voice_encoder(128, width)
    encoder.load_weights(run / name)
    return encoder.get_weights()


@pytest.fixture(scope="module")
def tiny_run(demo_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert run_train(demo_data, run, "--epochs", 3) == 0
    return run


def test_a_run_leaves_options_history_and_weights(tiny_run, demo_data):
    assert sorted(path.name for path in tiny_run.iterdir()) == [
        "best.weights.h5",
        "history.jsonl",
        "last.weights.h5",
        "options.json",
    ]
    options = json.loads((tiny_run / "options.json").read_text())
    assert options["width"] == 0.03 and options["loss"] == "l2" and options["feature_size"] == 128
    assert options["data"] == str(demo_data)
    n_parameters = model.voice_encoder(128, 0.03).count_params()
    assert (tiny_run / "best.weights.h5").stat().st_size < 1.5 * 4 * n_parameters  # the optimizer's state is not in it
    epochs = history(tiny_run)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[2]["train_loss"] < epochs[0]["train_loss"] / 2
    assert all(epoch["learning_rate"] == pytest.approx(1e-3) for epoch in epochs)
    assert all(epoch["clips_per_second"] > 0 and epoch["seconds"] > 0 for epoch in epochs)


def test_the_validation_loss_is_that_of_the_weights_kept(tiny_run, demo_data):
    clips = utils.split_clips(utils.ready_clips(demo_data), 0)["val"]
    batches, _ = model.clip_batches(demo_data, clips, 128, 3)
    epochs = history(tiny_run)
    best = min(epochs, key=lambda epoch: epoch["val_loss"])
    for name, epoch in ((utils.LAST_WEIGHTS, epochs[-1]), (utils.BEST_WEIGHTS, best)):
        encoder = model.voice_encoder(128, 0.03)
        encoder.load_weights(tiny_run / name)
        losses = np.concatenate([model.l2_loss(faces, encoder(voices)) for voices, faces in batches])
        assert len(losses) == len(clips)
        assert losses.mean() == pytest.approx(epoch["val_loss"], rel=1e-3)


def test_the_same_seed_gives_the_same_run_and_another_another(tiny_run, demo_data, tmp_path):
    assert run_train(demo_data, tmp_path / "again", "--epochs", 3) == 0
    for ours, theirs in zip(weights(tiny_run), weights(tmp_path / "again")):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert run_train(demo_data, tmp_path / "other", "--epochs", 1, "--seed", 1) == 0
    assert abs(history(tmp_path / "other")[0]["train_loss"] - history(tiny_run)[0]["train_loss"]) > 1e-4


@pytest.mark.parametrize(
    "option", [("--loss", "l1"), ("--learning-rate", 0.01), ("--seconds", 4), ("--precision", "mixed_float16")], ids=str
)
def test_an_option_changes_the_result(option, tiny_run, demo_data, tmp_path):
    assert run_train(demo_data, tmp_path / "run", "--epochs", 1, *option) == 0
    assert abs(history(tmp_path / "run")[0]["train_loss"] - history(tiny_run)[0]["train_loss"]) > 1e-5


def test_every_loss_can_be_chosen():
    losses = next(field for field in train.dataclasses.fields(train.Options) if field.name == "loss")
    assert set(losses.metadata["choices"]) == set(model.LOSSES)


def test_pieces_of_a_clip():
    assert train.frames_in(6) == 598
    assert train.frames_in(3) == 298
    assert train.frames_in(train.MIN_SECONDS) >= model.MIN_FRAMES
    assert train.frames_in(train.MIN_SECONDS - 0.01) < model.MIN_FRAMES


def test_the_papers_optimizer(demo_data):
    optimizer = train.compile_encoder(train.Options(width=0.03), 128)[1].optimizer
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 1e-4)
    rate = optimizer._learning_rate
    assert [float(rate(step)) for step in (0, 9_999, 10_000, 20_000)] == pytest.approx([1e-3, 1e-3, 0.95e-3, 0.95**2 * 1e-3])


def test_an_earlier_run_is_kept(demo_data, tmp_path, capsys):
    run = tmp_path / "run"
    for _ in range(3):
        assert run_train(demo_data, run, "--epochs", 1) == 0
    assert f"{run} holds an earlier run, now kept as {run}-2" in capsys.readouterr().err
    assert [(tmp_path / name / "best.weights.h5").exists() for name in ("run", "run-1", "run-2")] == [True] * 3


TWO_DEVICES = """
import sys
from model import tf
devices = int(sys.argv.pop(1))
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
import train
raise SystemExit(train.main(sys.argv[1:]))
"""


def test_two_devices_train_as_one(demo_data, tmp_path):
    for devices in (1, 2):
        command = [sys.executable, "-c", TWO_DEVICES, devices, "--data", demo_data, "--run", tmp_path / f"on-{devices}"]
        command += [*TINY, "--epochs", 2, "--learning-rate", "1e-4"]
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{devices} device{'s' if devices > 1 else ''}, {4 // devices} clips a step on each" in done.stderr
    one, two = (history(tmp_path / f"on-{devices}") for devices in (1, 2))
    assert [epoch["train_loss"] for epoch in two] == pytest.approx([epoch["train_loss"] for epoch in one], rel=1e-3)
    for ours, theirs in zip(weights(tmp_path / "on-1"), weights(tmp_path / "on-2")):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_batch_that_does_not_divide_is_told(demo_data, tmp_path):
    command = [sys.executable, "-c", TWO_DEVICES, "2", "--data", demo_data, "--run", tmp_path / "run", "--batch-size", "3"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "error: --batch-size: expected a multiple of the 2 devices, found 3" in done.stderr


# ---------------------------------------------------------------- what can go wrong


@pytest.fixture
def own_data(demo_data, tmp_path):
    return shutil.copytree(demo_data, tmp_path / "data")


def error_of(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_no_data(tmp_path, capsys):
    assert run_train(tmp_path / "none", tmp_path / "run") == 1
    assert "expected clips made ready by preprocess.py, found none" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_too_little_data(own_data, tmp_path, capsys):
    for clip in utils.ready_clips(own_data)[3:]:
        utils.face_path(own_data, clip).unlink()
    assert run_train(own_data, tmp_path / "run") == 1
    assert "make more clips ready" in error_of(capsys)


def test_a_broken_file_ends_in_one_line_that_names_it(own_data, tmp_path, capsys):
    broken = utils.spectrogram_path(own_data, utils.split_clips(utils.ready_clips(own_data), 0)["train"][5])
    broken.write_bytes(broken.read_bytes()[:1000])
    assert run_train(own_data, tmp_path / "run", "--epochs", 1) == 1
    assert str(broken) in error_of(capsys)


def test_features_of_two_networks_are_not_mixed(own_data, tmp_path, capsys):
    other = utils.embedding_path(own_data, utils.split_clips(utils.ready_clips(own_data), 0)["val"][0])
    utils.save_array(other, np.ones(4096, np.float32))
    assert run_train(own_data, tmp_path / "run", "--epochs", 1) == 1
    assert f"{other}: expected float32 (128,), found float32 (4096,)" in error_of(capsys)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(own_data, tmp_path, capsys):
    for clip in utils.ready_clips(own_data):
        utils.save_array(utils.embedding_path(own_data, clip), np.full(128, 3e38, np.float32))  # their sum overflows
    assert run_train(own_data, tmp_path / "run", "--loss", "l1") == 1
    assert "the loss of epoch 1, step 1 is inf, expected a finite number" in error_of(capsys)


@pytest.mark.parametrize(
    "arguments", [("--epochs", "0"), ("--width", "-1"), ("--seconds", "2"), ("--learning-rate", "nan"), ("--loss", "l3")]
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main([*arguments])
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_killed_run_leaves_whole_weights_and_the_next_one_runs(demo_data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--data", demo_data, "--run", run, *TINY, "--epochs", "500"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / utils.LAST_WEIGHTS).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.5)  # anywhere in an epoch
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert all(np.isfinite(values).all() for values in weights(run, utils.BEST_WEIGHTS))
    assert run_train(demo_data, run, "--epochs", 1) == 0
    assert len(history(run)) == 1 and len(history(tmp_path / "run-1")) >= 1
