"""A run that share.py made, in use: evaluate.py has the same figures from the same data, and hear.py the same face."""

import json
import shutil

import numpy as np
import pytest
from conftest import error_of

import evaluate
import hear
import share
import utils
from clips import feature_files
from training import runs

pytestmark = pytest.mark.usefixtures("no_named_runs")


@pytest.fixture(scope="module")
def own(voice_run, decoder_run, tmp_path_factory):
    """The run of a voice encoder, with its decoder."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    shutil.copytree(voice_run, folder)
    shutil.copytree(decoder_run, folder / "decoder")
    return folder


@pytest.fixture(scope="module")
def shared(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "shared"
    assert share.main([*map(str, ["--run", own, "--decoder", own / "decoder", "--out", folder])]) == 0
    return folder


def figures(run, *more):
    """Evaluate a copy of the run in its place. Returns its figures, and the leaks that were told."""
    assert evaluate.main([*map(str, ["--run", run, "--k", 1, 5, *more])]) == 0
    return json.loads((run / "metrics.json").read_text())


def numbers_in(values, name=""):
    """Return all numbers in nested dictionaries and lists, by their path."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {name: values}
    return {path: of for key, value in items for path, of in numbers_in(value, f"{name}/{key}").items()}


def test_the_same_data_have_the_same_figures(own, shared, demo_data, tmp_path):
    """Within the rounding of weights; and the same leaks are told, of the clips' hashed names."""
    ours = figures(shutil.copytree(shared, tmp_path / "shared"), "--data", demo_data)
    theirs = figures(shutil.copytree(own, tmp_path / "own"))
    assert [*ours["parts"]] == [*theirs["parts"]] == ["train", "val", "test"]
    found, expected = numbers_in(ours["parts"]), numbers_in(theirs["parts"])
    assert found.keys() == expected.keys() and len(found) > 60
    near = {name: of if of is None else pytest.approx(of, rel=0.02, abs=0.05) for name, of in expected.items()}
    assert found == near
    assert ours["leaks"] == theirs["leaks"]
    assert any("used to fit the face decoder" in leak for leak in ours["leaks"])  # whose split has another seed


def test_hear_answers_with_nearly_the_same_face(own, shared, voice):
    """But for the edges of heads and hair, where small errors of the share of hair are divided by it."""
    ours, theirs = (hear.load(run).face(str(voice)) for run in (shared, own))
    assert ours.direction @ theirs.direction > 0.9999
    difference = np.abs(ours.picture.astype(int) - theirs.picture)
    assert difference.mean() < 2.5 and np.quantile(difference, 0.9) <= 4
    assert theirs.picture.std() > 40
    np.testing.assert_allclose(ours.feature, theirs.feature, atol=0.01)
    np.testing.assert_allclose(ours.spread, theirs.spread)
    assert ours.certainty.words() == theirs.certainty.words()


def test_a_clip_trained_on_is_told(shared, demo_data, tmp_path):
    run = shutil.copytree(shared, tmp_path / "run", ignore=shutil.ignore_patterns("decoder"))
    test = utils.split_clips(feature_files.ready_clips(demo_data), 0)["test"]
    clips = json.loads((run / utils.CLIPS).read_text())
    utils.write_json(run / utils.CLIPS, {**clips, "train": [*clips["train"], utils.hashed(test[0])]})
    assert figures(run, "--data", demo_data)["leaks"] == [f"1 of {len(test)} clips were trained on: {test[0]}"]


def test_all_clips_of_other_data_are_unseen(shared, own, random_data, tmp_path, capsys):
    run = shutil.copytree(shared, tmp_path / "run", ignore=shutil.ignore_patterns("decoder"))
    found = figures(run, "--data", random_data)
    assert [*found["parts"]] == ["test"] and found["leaks"] == []
    test = found["parts"]["test"]
    assert test["gallery"] == test["people"] == len(feature_files.ready_clips(random_data)) == 40
    assert not test["fitted_on"] and 0.3 < test["matching"] < 0.7  # random voices and faces
    assert capsys.readouterr().out.startswith("Test: R@1 ")
    assert evaluate.main([*map(str, ["--run", shutil.copytree(own, tmp_path / "own"), "--data", random_data])]) == 1
    assert f"{random_data}: expected training clips of {tmp_path / 'own'}, found none" in error_of(capsys)


def test_data_must_be_named(shared, capsys):
    before = {path.name for path in shared.iterdir()}
    assert evaluate.main(["--run", str(shared)]) == 1
    assert f"{shared}: expected --data with a run that was made to be shared, found none; name a folder" in error_of(capsys)
    assert {path.name for path in shared.iterdir()} == before and runs.read_run(shared)["data"] is None
