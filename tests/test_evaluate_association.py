"""evaluate.py's measures of voice-face association: in its table, its files, with --labels and with --trials."""

import json
import shutil

import numpy as np
import pytest
from conftest import error_of

import evaluate
import utils
from clips import feature_files
from judging import published
from training import runs
from utils import normalise

pytestmark = pytest.mark.usefixtures("no_named_runs")


@pytest.fixture
def run(voice_run, tmp_path):
    return shutil.copytree(voice_run, tmp_path / "run")


@pytest.fixture
def clips(demo_data):
    return utils.split_clips(feature_files.ready_clips(demo_data), 0)


def run_evaluate(run, *more):
    return evaluate.main([*map(str, ["--run", run, "--k", 1, *more])])


def cosines_of(run, data, voices, faces):
    """Return the similarity of each voice and each face, from the weights and the files."""
    encoder, centre = runs.load_encoder(run, runs.read_run(run)), runs.read_run(run)["centre"]
    spectrograms = np.stack([feature_files.load_spectrogram(data, clip) for clip in voices]).astype(np.float32)
    features = np.stack([feature_files.load_embedding(data, clip, 128) for clip in faces])
    return normalise(encoder(spectrograms).numpy() - centre) @ normalise(features - centre).T


def test_association_is_printed_and_written(run, demo_data, clips, capsys):
    """After the table of retrieval, whose 1:2 it repeats; and as numbers in metrics.json."""
    assert run_evaluate(run) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("association in %"))
    assert lines[0].startswith("Test: R@1") and lines[2].startswith("recall in %") and first > 3
    assert max(map(len, lines[: first + 30])) <= 100
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["trials"] == []
    for part, row in metrics["parts"].items():
        (of,) = row["association"].values()
        assert of["people"] == of["clips"] == of["positives"] == len(clips[part])
        assert of["voice_to_face"]["matching"]["2"] == pytest.approx(row["matching"])
        assert all(0 <= share <= 1 for share in (of["auc"], of["eer"], of["voice_to_face"]["map"], of["face_to_voice"]["map"]))
        assert (of["auc_interval"] is None) == (part != "train")
    same = np.eye(len(clips["test"]), dtype=bool)
    cosines = cosines_of(run, demo_data, clips["test"], clips["test"])
    auc = np.mean([(a > b) + (a == b) / 2 for a in cosines[same] for b in cosines[~same]])
    assert metrics["parts"]["test"]["association"]["all"]["auc"] == pytest.approx(auc, abs=0.01)
    results = (run / "results.md").read_text()
    assert "## Association of voices and faces" in results and f"| Test, unseen | {len(clips['test'])} |" in results


def test_labels_restrict_who_is_compared(run, demo_data, clips, tmp_path, capsys):
    people = [utils.person_of(clip) for of_part in clips.values() for clip in of_part]
    rows = [f"{person},{'mf'[number % 2]},{20 + number}" for number, person in enumerate(people)]
    unknown = utils.person_of(clips["train"][0])
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["name,sex,age", *(row for row in rows if not row.startswith(f"{unknown},"))]) + "\n")
    assert run_evaluate(run, "--labels", labels) == 0
    said = capsys.readouterr()
    train = json.loads((run / "metrics.json").read_text())["parts"]["train"]["association"]
    n = len(clips["train"])
    assert list(train)[:3] == ["all", "equal sex", "equal age"] and train["equal sex"]["clips"] == n - 1
    assert train["equal sex"]["negatives"] < train["all"]["negatives"]
    assert f"evaluate: equal sex: 1 of {n} train clips left out, 1 without a label, 0 of people alone with theirs\n" in said.err
    assert "\n  equal sex " in said.out and "| &nbsp;&nbsp;equal sex | " in (run / "results.md").read_text()


def test_trials_are_scored(run, demo_data, clips, tmp_path, capsys):
    """Of any part, in the order of the file; a line of results and a file for each, and an alarm for clips trained on."""
    train, test = clips["train"][:2], clips["test"][:2]
    unseen, mixed = tmp_path / "unseen.txt", tmp_path / "mixed.txt"
    unseen.write_text(f"1 {test[0]} {test[0]}\n0 {test[0]} {test[1]}\n1 {test[1]} {test[1]}\n")
    mixed.write_text(f"k1 {train[0]} {test[1]}\nk2 {test[0]} {train[1]}\n")
    assert run_evaluate(run, "--trials", unseen, mixed, "--clips", 3) == 0
    said = capsys.readouterr()
    found = [line.split(" ") for line in (run / "scores-mixed.txt").read_text().splitlines()]
    assert [key for key, _ in found] == ["k1", "k2"]
    cosines = cosines_of(run, demo_data, [train[0], test[0]], [test[1], train[1]])
    assert [float(score) for _, score in found] == pytest.approx(np.sqrt(2 - 2 * np.diag(cosines)), abs=1e-3)
    assert (run / "scores-unseen.txt").read_text().count("\n") == 3
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["trials"][0].keys() == {"trials", "positives", "negatives", "auc", "eer"}
    assert metrics["trials"][1] == {"trials": 2}
    assert "\nunseen.txt: 3 trials, AUC " in said.out and "\nmixed.txt: 2 trials\n" in said.out
    assert said.out.splitlines()[-2:] == [str(run / "scores-unseen.txt"), str(run / "scores-mixed.txt")]
    assert [line for line in said.err.splitlines() if line.startswith("LEAK?")] == [
        f"LEAK? mixed.txt: 2 of 4 clips were trained on: {train[0]}, {train[1]}"
    ]
    assert "unseen.txt: 3 trials" in (run / "results.md").read_text()


def test_trials_of_other_data_are_scored_alone(run, random_data, tmp_path, capsys):
    """Without a table: their people need not be known. Without trials, such data are a mistake."""
    trials = tmp_path / "English_test.txt"
    trials.write_text("ysuvkz41 voices/person1/1.wav faces/person2/1.jpg\n")
    before = {path.name for path in run.iterdir()}
    assert run_evaluate(run, "--data", random_data, "--trials", trials) == 0
    assert capsys.readouterr().out == f"English_test.txt: 1 trials\n{run / 'scores-English_test.txt'}\n"
    assert {path.name for path in run.iterdir()} - before == {"scores-English_test.txt"}
    expected = np.sqrt(2 - 2 * cosines_of(run, random_data, ["person1_1"], ["person2_1"])[0, 0])
    key, score = (run / "scores-English_test.txt").read_text().split()
    assert key == "ysuvkz41" and float(score) == pytest.approx(expected, abs=1e-3)


def test_scores_do_not_replace_others(run, random_data, tmp_path):
    trials = tmp_path / "a.txt"
    for voice in ("person1_1", "person3_1", "person1_1"):
        trials.write_text(f"k {voice} person2_1\n")
        assert run_evaluate(run, "--data", random_data, "--trials", trials) == 0
    assert sorted(path.name for path in run.glob("scores*")) == ["scores-a-2.txt", "scores-a.txt"]


def test_mistakes_are_told_before_anything_is_predicted(run, demo_data, tmp_path, capsys):
    labels, trials = tmp_path / "labels.csv", tmp_path / "trials.txt"
    labels.write_text("person,sex\nnobody,m\n")
    trials.write_text("k nobody_1 nobody_2\n")
    before = {path.name for path in run.iterdir()}
    assert run_evaluate(run, "--labels", labels) == 1
    assert f"error: {labels}: expected people of {demo_data}, such as " in error_of(capsys)
    assert run_evaluate(run, "--trials", trials) == 1
    assert f"error: {trials}: expected clips of {demo_data}, found none for 2 of 2 voices and faces" in error_of(capsys)
    assert run_evaluate(run, "--trials", tmp_path / "none.txt") == 1
    assert "none.txt: expected trials, lines such as `key voice face`, found no such file" in error_of(capsys)
    assert {path.name for path in run.iterdir()} == before


@pytest.mark.parametrize("split", ["by-names", "another"])
def test_published_figures_are_shown_by_the_name_of_the_runs_split(split, run, clips, monkeypatch, capsys):
    figures = published.Association("Some paper", "voice to face", "all", "data", "by-names", len(clips["test"]), 87.65)
    monkeypatch.setattr(published, "ASSOCIATION", (figures,))
    options = json.loads((run / utils.OPTIONS).read_text())
    utils.write_json(run / utils.OPTIONS, {**options, "split_name": split})
    assert run_evaluate(run) == 0
    shown = split == "by-names"
    assert capsys.readouterr().out.count("Some paper") == shown
    assert (run / "results.md").read_text().count(f"Some paper | {len(clips['test'])} | 87.7 |") == shown
