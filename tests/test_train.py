import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import cv2
import h5py
import numpy as np
import pytest
from conftest import ROOT, SEED, decoder_weights, error_of, history

import model
import train
import utils
from clips import feature_files
from judging.ranks import rank
from training import closed_form, runs, steps
from training.batches import clip_batches, predict_features
from training.losses import LOSSES, l2_loss
from utils import normalise
from voices import ge2e
from voices.backend import keras, tf

TINY = ["--width", "0.03", "--seconds", "2.7", "--batch-size", "4", "--seed", str(SEED)]

N_STEPS = 5  # of an epoch

FILES = {utils.BEST_WEIGHTS, utils.LAST_WEIGHTS, utils.CENTRE, utils.CLIPS, utils.OPTIONS} | {
    "curves.png",
    "history.jsonl",
    "tensorboard",
}


def run_train(data, run, *more):
    return train.main([*map(str, ["--data", data, "--run", run, *TINY, *more])])


def weights(run, name=utils.LAST_WEIGHTS, width=0.03):
    encoder = model.voice_encoder(128, width)
    encoder.load_weights(run / name)
    return encoder.get_weights()


def arrays(path):
    """All that is in a weight file or checkpoint, by name, but for text."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            found[name] = item[...]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def assert_same_run(ours, theirs):
    """Weights, optimizer and history, bit for bit; but for the times."""
    ours_of, theirs_of = (arrays(run / utils.LAST_WEIGHTS) for run in (ours, theirs))
    assert ours_of.keys() == theirs_of.keys() and len(ours_of) > 100
    for name, values in ours_of.items():
        np.testing.assert_array_equal(values, theirs_of[name], err_msg=name)
    of_time = {"seconds", "clips_per_second", "input_share"}
    timeless = [[{k: v for k, v in epoch.items() if k not in of_time} for epoch in history(run)] for run in (ours, theirs)]
    assert timeless[0] == timeless[1]


@pytest.fixture(scope="module")
def tiny_run(demo_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert run_train(demo_data, run, "--epochs", 3) == 0
    return run


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
    assert cv2.imread(str(tiny_run / "curves.png")).shape[1] == 1200


@pytest.fixture(scope="module")
def speaker_run(demo_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "speaker"
    assert train.main(list(map(str, ["--data", demo_data, "--run", run, "--encoder", "speaker", "--seed", SEED]))) == 0
    return run


def test_the_speaker_encoder_is_fitted_in_closed_form(speaker_run, demo_data):
    """Its head is solved anew, from its ear's embeddings, for every penalty; that of the best 1:2 matching is there."""
    assert {path.name for path in speaker_run.iterdir()} == FILES
    options = json.loads((speaker_run / "options.json").read_text())
    assert (options["encoder"], options["epochs"], options["precision"]) == ("speaker", 0, "float32")
    encoder = model.build_encoder("speaker", 128, 1)
    model.load_weights(encoder, speaker_run / utils.BEST_WEIGHTS)
    clips = json.loads((speaker_run / "clips.json").read_text())
    centre = feature_files.load_array(speaker_run / "centre.pkl", np.float32, (128,))
    ear = encoder.get_layer("speaker_embedding")
    heard = {part: predict_features(encoder, demo_data, clips[part], 128, 4) for part in clips}
    embeddings = {part: np.concatenate([ear(batch).numpy() for batch in in_fours(demo_data, clips[part])]) for part in clips}
    moments = closed_form.Moments.zero(256, 128)
    moments.add(embeddings["train"], heard["train"][1])
    videos = [utils.video_of(clip) for clip in clips["val"]]
    faces = heard["val"][1] - centre
    solutions = list(closed_form.heads(moments, closed_form.PENALTIES, 0.5))
    scores = [rank(embeddings["val"] @ kernel + bias - centre, faces, videos).matching.mean() for kernel, bias in solutions]
    kernel, bias = encoder.get_layer("head").get_weights()
    np.testing.assert_allclose(kernel, solutions[int(np.argmax(scores))][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(heard["val"][0], embeddings["val"] @ kernel + bias, atol=1e-4)
    (epoch,) = history(speaker_run)
    assert (epoch["epoch"], epoch["step"]) == (0, 0) and epoch["val_matching"] == pytest.approx(max(scores))
    voices, true = heard["train"]
    assert epoch["train_loss"] == pytest.approx(float(np.mean(l2_loss(true - centre, voices - centre))), rel=1e-3)
    assert epoch["train_loss"] < 1.6 < 2  # 2: right angles


def in_fours(data, clips):
    spectrograms = np.stack([feature_files.load_spectrogram(data, clip) for clip in clips])
    return [spectrograms[start : start + 4] for start in range(0, len(clips), 4)]


def test_the_speaker_encoder_s_ear_has_the_package_s_weights(speaker_run):
    encoder = model.build_encoder("speaker", 128, 1)
    model.load_weights(encoder, speaker_run / utils.BEST_WEIGHTS)
    stored = ge2e.stored_weights(ge2e.weights_path())
    np.testing.assert_array_equal(encoder.get_layer("speaker_embedding").dense.kernel, stored["linear.weight"].T)
    np.testing.assert_array_equal(encoder.get_layer("speaker_embedding").lstms[2].cell.kernel, stored["lstm.weight_ih_l2"].T)


def test_the_speaker_encoder_goes_on_by_gradients(speaker_run, demo_data, tmp_path):
    """--resume after the closed form learns further, the ear too."""
    run = tmp_path / "run"
    shutil.copytree(speaker_run, run)
    assert train.main(["--run", str(run), "--resume", "--epochs", "1"]) == 0
    assert [epoch["epoch"] for epoch in history(run)] == [0, 1] and history(run)[1]["step"] == 2
    before, after = (arrays(folder / utils.LAST_WEIGHTS) for folder in (speaker_run, run))
    changed = {name for name in before if not name.startswith("training") and (before[name] != after[name]).any()}
    assert len(changed) == len([name for name in before if not name.startswith("training")])


def test_fewer_clips_to_train_on(demo_data, tmp_path):
    run = tmp_path / "run"
    arguments = ["--data", demo_data, "--run", run, "--encoder", "speaker", "--seed", SEED, "--clips", 9, "--whitening", 0]
    assert train.main(list(map(str, arguments))) == 0
    clips = json.loads((run / "clips.json").read_text())
    everything = utils.split_clips(feature_files.ready_clips(demo_data), SEED)
    assert len(clips["train"]) == 9 < len(everything["train"]) and set(clips["train"]) < set(everything["train"])
    assert clips["val"] == everything["val"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--width", "0.5"], "--width: expected --encoder conv with it, whose channels it scales, found speaker"),
        (["--precision", "mixed_bfloat16"], "--precision: expected float32 with --encoder speaker, found mixed_bfloat16"),
        (["--whitening", "2"], "--whitening: expected 0 to 1, found 2.0"),
        (["--clips", "0"], "--clips: expected at least 1, found 0"),
    ],
)
def test_options_that_the_speaker_encoder_lacks_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        train.main(["--encoder", "speaker", *options])
    assert message in capsys.readouterr().err


def test_the_speaker_encoder_takes_one_machine(demo_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert train.main(["--data", str(demo_data), "--run", str(tmp_path / "run"), "--encoder", "speaker"]) == 1
    assert "error: TF_CONFIG: expected none with --encoder speaker" in capsys.readouterr().err


def test_tensorboard_reads_the_losses(tiny_run):
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


def test_a_run_cut_off_anywhere_goes_on_as_if_nothing_had_happened(tiny_run, demo_data, tmp_path):
    """Killed in each of its three epochs, at any moment; each time --resume goes on."""
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
    assert all(np.isfinite(values).all() for values in arrays(run / utils.LAST_WEIGHTS).values())
    assert run_train(demo_data, run, "--epochs", 3, "--save-minutes", 0.0005, "--resume") == 0
    assert_same_run(run, tiny_run)
    np.testing.assert_equal(weights(run, utils.BEST_WEIGHTS), weights(tiny_run, utils.BEST_WEIGHTS))


def step_saved(run):
    try:
        with h5py.File(run / utils.LAST_WEIGHTS) as file:
            return json.loads(file["training/progress"][()])["step"]
    except OSError:
        return 0


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tiny_run, demo_data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--data", demo_data, "--run", run, *TINY, "--epochs", "3"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("epoch  1/3  train ")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"train: goes on with: python train.py --run {run} --resume" in stderr and "Traceback" not in stderr
    assert N_STEPS <= step_saved(run) < 3 * N_STEPS
    assert run_train(demo_data, run, "--resume") == 0
    assert_same_run(run, tiny_run)


def test_a_run_that_is_done_can_be_made_longer(tiny_run, demo_data, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert run_train(demo_data, run, "--resume") == 0
    assert_same_run(run, tiny_run)
    assert run_train(demo_data, run, "--resume", "--epochs", 4) == 0
    assert "train: goes on after step" in capsys.readouterr().err
    assert [epoch["epoch"] for epoch in history(run)] == [1, 2, 3, 4]
    assert history(run)[:3] == history(tiny_run)


@pytest.mark.parametrize(
    "given, found", [(("--width", "0.06"), "--width: expected 0.03"), (("--loss=l1",), "--loss: expected l2")], ids=str
)
def test_a_run_goes_on_with_its_own_options_only(given, found, tiny_run, demo_data, capsys):
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


def test_nothing_to_go_on_with(demo_data, tmp_path, capsys):
    assert run_train(demo_data, tmp_path / "none", "--resume") == 1
    assert "expected a run's last.weights.h5 to go on with, found none; leave out --resume" in error_of(capsys)


def test_the_same_seed_gives_the_same_run_and_another_another(tiny_run, demo_data, tmp_path):
    assert run_train(demo_data, tmp_path / "other", "--epochs", 1, "--seed", 1) == 0
    assert abs(history(tmp_path / "other")[0]["train_loss"] - history(tiny_run)[0]["train_loss"]) > 1e-4
    assert run_train(demo_data, tmp_path / "again", "--epochs", 3) == 0
    assert_same_run(tmp_path / "again", tiny_run)


@pytest.mark.parametrize(
    "option",
    [("--centre", "zero"), ("--seconds", 4), ("--mask-bins", 0), ("--precision", "mixed_float16")],
    ids=str,
)
def test_an_option_changes_the_result(option, tiny_run, demo_data, tmp_path):
    assert run_train(demo_data, tmp_path / "run", "--epochs", 1, *option) == 0
    assert abs(history(tmp_path / "run")[0]["train_loss"] - history(tiny_run)[0]["train_loss"]) > 1e-5


def test_every_loss_can_be_chosen():
    losses = next(field for field in train.dataclasses.fields(train.Options) if field.name == "loss")
    assert set(losses.metadata["choices"]) == set(LOSSES)


def test_pieces_of_a_clip():
    assert utils.frames_in(6) == 598
    assert utils.frames_in(3) == 298
    assert utils.frames_in(utils.MIN_SECONDS) >= model.MIN_FRAMES
    assert utils.frames_in(utils.MIN_SECONDS - 0.01) < model.MIN_FRAMES


def test_an_earlier_run_is_kept(tmp_path, capsys):
    run = tmp_path / "run"
    for number in range(3):
        runs.set_aside(run)
        run.mkdir()
        (run / utils.LAST_WEIGHTS).write_text(f"run {number}")
    assert f"{run} holds an earlier run, now kept as {run}-2" in capsys.readouterr().err
    assert [(tmp_path / name / utils.LAST_WEIGHTS).read_text() for name in ("run-1", "run-2", "run")] == [
        "run 0",
        "run 1",
        "run 2",
    ]


# ---------------------------------------------------------------- learning through the face decoder


@pytest.fixture
def wide_data(demo_data, tmp_path, rng):
    """`demo_data` with random face features of VGG-Face's size."""
    data = shutil.copytree(demo_data, tmp_path / "wide-data")
    for clip in feature_files.ready_clips(data):
        feature_files.save_array(feature_files.embedding_path(data, clip), (1 + rng.normal(size=4096)).astype(np.float32))
    return data


def test_a_voice_encoder_learns_through_the_decoder(wide_decoder_run, wide_data, small_fc8, tmp_path):
    """The loss on validation people is that of the weights kept, all three terms by hand."""
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
    (encoder, _, without, *_), (other, _, loss, *_) = (
        train.build(train.Options(**options, decoder=decoder), centre, 10) for decoder in (None, str(wide_decoder_run))
    )
    np.testing.assert_equal(other.get_weights(), encoder.get_weights())
    kernel, _ = decoder_weights(wide_decoder_run)["texture_coefficients"]
    expected = 0.05 * np.abs((voices - faces) @ kernel).sum(axis=1)
    np.testing.assert_allclose(loss(faces, voices) - without(faces, voices), expected, atol=2e-3)
    assert expected.min() > 0.05


def test_a_decoder_of_other_features_or_none_is_told(decoder_run, tiny_run, wide_data, small_fc8, tmp_path, capsys):
    arguments = ("--loss", "total", "--epochs", 1, "--decoder")
    assert run_train(wide_data, tmp_path / "run", *arguments, decoder_run) == 1
    said = f"--decoder: expected a run on face features of 4096 numbers, found 128 in {decoder_run}"
    assert said in error_of(capsys)
    assert run_train(wide_data, tmp_path / "run", *arguments, tiny_run) == 1
    assert f"{tiny_run}: expected a run of train.py --model decoder, found one of --model voice" in error_of(capsys)
    assert run_train(wide_data, tmp_path / "run", *arguments, tmp_path / "none") == 1
    assert "options.json: expected the options of a run, found no such file" in error_of(capsys)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        train.main(["--decoder", str(decoder_run)])
    assert capsys.readouterr().err.splitlines()[-1].endswith("--decoder: expected --loss total with it, found l2")


# ---------------------------------------------------------------- several devices, several machines

# In float32: 16 bits round so much that the order of sums shows.
GENTLY = ["--loss", "contrastive", "--learning-rate", "1e-5", "--schedule", "paper", "--precision", "float32"]

ON_DEVICES = """
import sys
devices = int(sys.argv.pop(1))
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
raise SystemExit(train.main(sys.argv[1:]))
"""


def on_devices(devices, data, run, *more, environment=None):
    command = [sys.executable, "-c", ON_DEVICES, devices, "--data", data, "--run", run, *TINY, *more]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE, text=True
    )


def assert_nearly_same_run(ours, theirs):
    """To the rounding that another order of sums brings: the way that the weights went is the same within 15 %, batch norm's
    running statistics within 0.1 % (of each half of a batch alone they would be far off).
    """
    losses = [[epoch["train_loss"] for epoch in history(run)] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    keras.utils.set_random_seed(SEED)
    encoder = model.voice_encoder(128, 0.03)
    encoder.get_layer("fc2").bias.assign(feature_files.load_array(ours / utils.CENTRE, np.float32, (128,)))
    first, ours, theirs = encoder.get_weights(), weights(ours), weights(theirs)
    for trained, tolerance in ((True, 0.15), (False, 0.001)):
        chosen = [number for number, variable in enumerate(encoder.weights) if variable.trainable == trained]
        a, b, start = (np.concatenate([of[number].ravel() for number in chosen]) for of in (ours, theirs, first))
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b - start)


@pytest.fixture(scope="module")
def on_one_device(demo_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "on-one"
    assert run_train(demo_data, run, *GENTLY, "--epochs", 2) == 0
    return run


def test_two_devices_train_as_one(on_one_device, demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", *GENTLY, "--epochs", 2)
    stderr = process.communicate()[1]
    assert process.returncode == 0 and "2 devices, 2 clips a step on each" in stderr, stderr
    assert_nearly_same_run(tmp_path / "run", on_one_device)


def test_two_machines_train_as_one(on_one_device, demo_data, tmp_path):
    """Two processes on loopback, which end after the first epoch, then resume."""
    for more in ((*GENTLY, "--epochs", 1), ("--epochs", 2, "--resume")):
        with contextlib.ExitStack() as sockets:
            ports = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
        workers = [on_devices(1, demo_data, tmp_path / "run", *more, environment={"TF_CONFIG": config}) for config in configs]
        for worker in workers:
            stderr = worker.communicate()[1]
            assert worker.returncode == 0 and "2 devices, 2 clips a step on each" in stderr, stderr
    assert_nearly_same_run(tmp_path / "run", on_one_device)


def test_16_bit_floats_on_two_devices(demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", "--epochs", 1, "--precision", "mixed_float16")
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    assert all(np.isfinite(values).all() for values in weights(tmp_path / "run"))


def test_a_batch_that_does_not_divide_is_told(demo_data, tmp_path):
    process = on_devices(2, demo_data, tmp_path / "run", "--batch-size", 3)
    stderr = process.communicate()[1]
    assert process.returncode == 1 and "error: --batch-size: expected a multiple of the 2 devices, found 3" in stderr


# ---------------------------------------------------------------- what can go wrong


def test_no_data(tmp_path, capsys):
    assert run_train(tmp_path / "none", tmp_path / "run") == 1
    assert "expected clips made ready by preprocess.py, found none" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_too_little_data(own_data, tmp_path, capsys):
    for clip in feature_files.ready_clips(own_data)[3:]:
        feature_files.face_path(own_data, clip).unlink()
    assert run_train(own_data, tmp_path / "run") == 1
    assert "make more clips ready" in error_of(capsys)


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


@contextlib.contextmanager
def files_of_at_most(n_bytes):
    """Let no file grow beyond a size: as a full disk would, writing fails half-way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_told_and_harms_nothing(tiny_run, demo_data, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in (utils.BEST_WEIGHTS, utils.LAST_WEIGHTS, "history.jsonl")}
    with files_of_at_most(900_000):
        assert run_train(demo_data, run, "--resume", "--epochs", 5, "--save-minutes", 0) == 1
    assert f"{run / utils.LAST_WEIGHTS}: could not be written" in error_of(capsys)
    with files_of_at_most(500_000), pytest.raises(OSError, match=r"best\.weights\.h5: could not be written .*File too large"):
        runs.save_weights(run / utils.BEST_WEIGHTS, model.voice_encoder(128, 0.03))
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".part-*"))
