import contextlib
import json
import resource
import shutil

import pytest
from conftest import error_of, run_train

import model
import utils
from training import runs
from utils import InputError


def test_the_options_of_a_run_are_read(tiny_run, decoder_run):
    run = runs.read_run(tiny_run)
    assert (run["encoder"], run["width"], run["loss"], run["feature_size"]) == ("conv", 0.03, "l2", 128)
    assert len(run["clips"]["train"]) == 22 and len(run["clips"]["val"]) == 5 and run["centre"].shape == (128,)
    assert json.loads((tiny_run / utils.OPTIONS).read_text())["model"] == "voice"
    assert runs.read_run(decoder_run, "decoder")["rank"] == 21
    assert json.loads((decoder_run / utils.OPTIONS).read_text())["model"] == "decoder"


def test_a_run_of_the_other_model_is_refused(tiny_run, decoder_run):
    with pytest.raises(InputError, match=r"expected a run of python train\.py, found a run of python train\.py decoder"):
        runs.read_run(decoder_run)
    with pytest.raises(InputError, match=r"expected a run of python train\.py decoder, found a run of python train\.py$"):
        runs.read_run(tiny_run, "decoder")


def test_a_missing_run_is_reported_with_those_that_exist(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("second", "first"):
        shutil.copytree(tiny_run, tmp_path / "checkpoints" / name)
    with pytest.raises(InputError, match=r"checkpoints/third: expected a run of train\.py, found none; .*: first, second"):
        runs.read_run(utils.run_folder("third"))
    shutil.copytree(tiny_run, tmp_path / "fourth")
    assert runs.read_run(utils.run_folder("./fourth"))["width"] == 0.03


@pytest.mark.parametrize("name", [utils.OPTIONS, utils.CLIPS, utils.CENTRE])
def test_a_broken_file_of_a_run_is_named(name, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / name).write_text("[]")
    with pytest.raises(InputError, match=rf"run/{name}: expected"):
        runs.read_run(run)


def test_a_run_that_was_made_to_be_shared_is_read(tiny_run, tmp_path):
    """Without the folder of its data, and with hashes for names."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    options = json.loads((run / utils.OPTIONS).read_text())
    utils.write_json(run / utils.OPTIONS, {name: of for name, of in options.items() if name != "data"})
    clips = runs.read_run(tiny_run)["clips"]
    hashed = {part: [*map(utils.hashed, names)] for part, names in clips.items()}
    utils.write_json(run / utils.CLIPS, {**hashed, "hashed": True})
    read = runs.read_run(run)
    assert read["data"] is None and read["hashed"] and read["clips"] == hashed
    assert runs.read_run(tiny_run)["data"] == options["data"] and not runs.read_run(tiny_run)["hashed"]


@pytest.mark.parametrize("is_hashed", [False, True])
def test_clips_of_a_folder_that_a_run_has_seen(is_hashed):
    """In the order of the run; those that the folder lacks are left out."""
    clips = {"train": ["b_1", "a_1", "c_2"], "val": ["d_1"]}
    if is_hashed:
        clips = {part: [*map(utils.hashed, names)] for part, names in clips.items()}
    run = {"hashed": is_hashed, "clips": clips}
    assert runs.seen_clips(run, ["a_1", "b_1", "b_2", "d_1"]) == {"train": ["b_1", "a_1"], "val": ["d_1"]}
    assert runs.seen_clips(run, ["x_1"]) == {"train": [], "val": []}
    hashes = [*map(utils.hashed, ("a_1", "d_1"))]
    assert runs.seen_clips(run, hashes) == {"train": [], "val": []}  # names are hashed once, in the run alone


def test_a_decoder_is_taken_from_the_first_place_that_has_one(decoder_run, voice_run, tmp_path, no_named_runs, capsys):
    """With the voices' run, by its name, with the run that comes with the project; a folder without weights is no run."""
    voices = shutil.copytree(voice_run, tmp_path / "voices")
    places = runs.decoder_folders(voices)
    assert places == [voices / "decoder", no_named_runs / "decoder", no_named_runs / "pretrained" / "decoder"]
    assert runs.load_face_decoder(None, voices, 128, 1.0) is None
    for number, folder in reversed([*enumerate(places)]):
        shutil.copytree(decoder_run, folder)
        utils.write_json(folder / utils.CLIPS, {"train": [f"{number}_1"], "val": []})
        assert runs.load_face_decoder(None, voices, 128, 1.0).training_faces == [f"{number}_1"]
    (places[0] / utils.BEST_WEIGHTS).unlink()
    assert runs.load_face_decoder(None, voices, 128, 1.0).training_faces == ["1_1"]
    assert runs.load_face_decoder(str(places[2]), voices, 128, 1.0).training_faces == ["2_1"]
    assert capsys.readouterr().err == ""


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


@contextlib.contextmanager
def files_of_at_most(n_bytes):
    """Limit the size of files, so that writing fails half-way, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_reported_and_harms_no_file(tiny_run, demo_data, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in (utils.BEST_WEIGHTS, utils.LAST_WEIGHTS, "history.jsonl")}
    with files_of_at_most(900_000):
        assert run_train(demo_data, run, "--resume", "--epochs", 5, "--save-minutes", 0) == 1
    assert f"{run / utils.LAST_WEIGHTS}: could not be written" in error_of(capsys)
    with files_of_at_most(500_000), pytest.raises(OSError, match=r"best\.weights\.h5: could not be written .*File too large"):
        runs.save_weights(run / utils.BEST_WEIGHTS, model.voice_encoder(128, 0.03))
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".part-*"))
