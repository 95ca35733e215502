"""Runs whose split is read from a file: train.py, evaluate.py and share.py follow it, and leaks across it are told."""

import json
import shutil

import pytest
from conftest import error_of, run_train, small_decoder, write_decoder_run

import evaluate
import share
import train
import utils
from clips import feature_files, splits
from training import runs

pytestmark = pytest.mark.usefixtures("no_named_runs")

PEOPLE = [f"id1000{number}" if number < 10 else f"id100{number}" for number in range(20)]
NAMES = [f"{letter}{name}" for letter, name in zip("ABCDEFGHIJKLMNOPQRST", ["nn", "ob"] * 10)]
META = "VoxCeleb1 ID\tVGGFace1 ID\tSet\n"


@pytest.fixture(scope="module")
def data(random_data, tmp_path_factory):
    """Two clips of each of 20 people, as preprocess.py names the files of VoxCeleb."""
    data = tmp_path_factory.mktemp("vox")
    (data / "faces").mkdir()
    clips = [f"{person}_video-{number:05}" for person in PEOPLE for number in (1, 2)]
    for source, clip in zip(feature_files.ready_clips(random_data), clips):
        for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
            path_of(data, clip).parent.mkdir(exist_ok=True)
            shutil.copy(path_of(random_data, source), path_of(data, clip))
    assert feature_files.ready_clips(data) == clips
    return data


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def trained(data, folder, lines, *more):
    """Train a run on the split of a file, for an epoch. Returns the run's folder."""
    assert run_train(data, folder / "run", "--epochs", 1, "--split", write(folder / "split.txt", lines), *more) == 0
    return folder / "run"


def evaluated(run, *more):
    """Evaluate a run. Returns what metrics.json says."""
    assert evaluate.main([*map(str, ["--run", run, "--k", 1, *more])]) == 0
    return json.loads((run / utils.METRICS).read_text())


def clips_of(*people):
    return [f"{person}_video-0000{number}" for person in people for number in (1, 2)]


@pytest.fixture(scope="module")
def by_meta(data, tmp_path_factory):
    """A run on a csv of VoxCeleb's form: 4 people are tested, 3 are in no part, one of them unnamed."""
    parts = ["test"] * 4 + ["none"] * 2 + ["val"] * 3 + ["dev"] * 10
    lines = [META.strip(), *("\t".join(line) for line in zip(PEOPLE, NAMES, parts))]
    return trained(data, tmp_path_factory.mktemp("runs"), lines)


def test_a_run_follows_its_file(by_meta, data):
    clips = json.loads((by_meta / utils.CLIPS).read_text())
    assert clips == {"train": clips_of(*PEOPLE[9:19]), "val": clips_of(*PEOPLE[6:9])}
    run = runs.read_run(by_meta)
    assert run["split"].named[PEOPLE[0]] == run["split"].named[NAMES[0]] == "test" and run["split_name"] is None
    assert (by_meta / utils.SPLIT_FILE).read_text().splitlines()[1:3] == [f"test,{PEOPLE[0]}", f"test,{NAMES[0]}"]
    assert json.loads((by_meta / utils.OPTIONS).read_text())["split"] == str(by_meta.parent / "split.txt")


def test_evaluate_follows_the_run_without_the_file(by_meta, tmp_path, capsys):
    """People left out are in no row. A person that is added later is divided by the same file."""
    run = shutil.copytree(by_meta, tmp_path / "run")
    found = evaluated(run)
    assert {part: row["gallery"] for part, row in found["parts"].items()} == {"train": 20, "val": 6, "test": 8}
    assert {part: row["people"] for part, row in found["parts"].items()} == {"train": 10, "val": 3, "test": 4}
    assert found["leaks"] == []
    said = capsys.readouterr().err
    assert "evaluate: 6 of 40 clips, of 3 people, are in no part of the split: left out\n" in said
    parts = splits.divide(runs.read_run(run)["split"], ["id10003_new-00007", f"{NAMES[12]}_a-1", "id10019_a-1", "id10004_a-1"])
    assert parts == {"train": [f"{NAMES[12]}_a-1"], "val": [], "test": ["id10003_new-00007"]}


def test_a_clip_of_a_test_person_among_the_training_clips_is_told(by_meta, data, tmp_path, capsys):
    """In clips.json, as when the run or the data were changed by hand."""
    run = shutil.copytree(by_meta, tmp_path / "run")
    clips = json.loads((run / utils.CLIPS).read_text())
    utils.write_json(run / utils.CLIPS, {**clips, "train": [*clips["train"], clips_of(PEOPLE[1])[0]]})
    one, other = clips_of(PEOPLE[1])
    assert evaluated(run)["leaks"] == [
        f"1 of 8 clips were trained on: {one}",
        f"1 of 8 clips are of people that were trained on: {other}",
    ]


def test_a_run_is_resumed_on_its_own_split(by_meta, data, tmp_path, capsys):
    """Without the file; another one is refused."""
    run = shutil.copytree(by_meta, tmp_path / "run")
    kept = (run / utils.SPLIT_FILE).read_bytes()
    other = write(tmp_path / "other.txt", PEOPLE[:3])
    assert run_train(data, run, "--resume", "--split", other) == 1
    assert f"--split: expected {by_meta.parent / 'split.txt'}, with which {run} was started, found {other}" in error_of(capsys)
    utils.write_json(run / utils.OPTIONS, {**json.loads((run / utils.OPTIONS).read_text()), "split": "/nowhere/split.txt"})
    assert run_train(data, run, "--resume", "--epochs", 2) == 0
    assert (run / utils.SPLIT_FILE).read_bytes() == kept
    assert runs.read_run(run)["clips"] == runs.read_run(by_meta)["clips"]


def test_a_shared_run_divides_its_data_in_the_same_way(by_meta, data, tmp_path, rng):
    decoder = write_decoder_run(small_decoder(rng, 128, 3), tmp_path / "faces")
    run, shared = shutil.copytree(by_meta, tmp_path / "run"), tmp_path / "shared"
    assert share.main([*map(str, ["--run", run, "--decoder", decoder, "--out", shared])]) == 0
    shutil.rmtree(shared / "decoder")  # of random numbers
    ours, theirs = (evaluated(of, "--data", data)["parts"] for of in (shared, run))
    assert {part: row["people"] for part, row in ours.items()} == {part: row["people"] for part, row in theirs.items()}
    text = (shared / utils.SPLIT_FILE).read_text()
    assert [name for name in (*PEOPLE, *NAMES, "split.txt") if name in text] == [] and text.count("test,") == 8


def test_iden_split_is_taken_as_it_is_and_its_leak_told(data, tmp_path, capsys):
    """By clip, with the same people in all parts."""
    lines = [f"1 {person}/video/00001.wav" for person in PEOPLE]
    lines += [f"{2 if number < 10 else 3} {person}/video/00002.wav" for number, person in enumerate(PEOPLE)]
    run = trained(data, tmp_path, lines)
    assert "train: the clips of 20 people, such as id10000, are in more than one part of the split" in capsys.readouterr().err
    clips = runs.read_run(run)["clips"]
    assert clips["train"] == [f"{person}_video-00001" for person in PEOPLE]
    assert clips["val"] == [f"{person}_video-00002" for person in PEOPLE[:10]]
    leaks = evaluated(run)["leaks"]
    assert [leak.partition(": ")[0] for leak in leaks] == ["10 of 10 clips are of people that were trained on"] * 2


def test_two_clips_of_a_person_on_both_sides_are_told(data, tmp_path, capsys):
    """By names of clips; people of test and validation set share nobody else."""
    lines = [f"test,{clip}" for clip in clips_of(*PEOPLE[:3])] + [f"val,{person}" for person in PEOPLE[3:6]]
    lines += [f"train,{person}" for person in PEOPLE[6:]] + [f"train,{PEOPLE[2]}"]
    lines.remove(f"test,{clips_of(PEOPLE[2])[1]}")
    leaks = evaluated(trained(data, tmp_path, lines))["leaks"]
    assert leaks == [f"1 of 5 clips are of people that were trained on: {PEOPLE[2]}_video-00001"]
    assert "train: the clips of 1 person, such as id10002, are in more than one part" in capsys.readouterr().err


def test_the_split_by_names_needs_the_names_of_ids(data, tmp_path, capsys):
    """The run knows the split by its name, and needs neither file later."""
    meta = write(tmp_path / "meta.csv", [META.strip(), *("\t".join(line) for line in zip(PEOPLE, NAMES, ["dev"] * 20))])
    letters = (splits.SHIPPED / "voxceleb1-names.csv").read_text().splitlines()
    write(tmp_path / "split.txt", letters)
    assert run_train(data, tmp_path / "run", "--epochs", 1, "--split", tmp_path / "split.txt") == 1
    assert f"expected people or clips of {data}, such as id10000, found none, but such as A*; pass --names" in error_of(capsys)
    assert not (tmp_path / "run").exists()
    run = trained(data, tmp_path, letters, "--names", meta)
    clips = runs.read_run(run)["clips"]
    assert clips == {"train": clips_of(*PEOPLE[5:]), "val": clips_of(*PEOPLE[:2])}
    assert runs.read_run(run)["split_name"] == "voxceleb1-names"
    meta.unlink()
    (tmp_path / "split.txt").unlink()
    assert evaluated(run)["parts"]["test"]["people"] == 3  # C, D and E
    assert run_train(data, run, "--resume", "--epochs", 2) == 0
    assert runs.read_run(run)["split_name"] == "voxceleb1-names"


def test_without_test_people_training_goes_on(data, tmp_path, capsys):
    run = trained(data, tmp_path, [f"{person} {2 if number < 4 else 1} " for number, person in enumerate(PEOPLE)])
    assert "train: the split names no test people: the test set is empty" in capsys.readouterr().err
    assert [*evaluated(run)["parts"]] == ["train", "val"]
    assert "evaluate: the split names no test people" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lines, found",
    [
        ([f"train,{person}" for person in PEOPLE[:5]] + ["val,nobody"], "10 and 0"),
        ([f"test,{person}" for person in PEOPLE], "0 and 0"),
    ],
)
def test_a_split_without_training_or_validation_people_is_refused(lines, found, data, tmp_path, capsys):
    split = write(tmp_path / "split.txt", lines)
    assert run_train(data, tmp_path / "run", "--split", split) == 1
    error = error_of(capsys)
    assert f"found {found}; make more clips ready with preprocess.py, or let --split name more people of the data" in error
    assert not (tmp_path / "run").exists()


def test_a_broken_split_is_told_before_the_slow_imports(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "train_encoder", None)
    for lines in ([], ["a b c d"]):
        split = write(tmp_path / "split.txt", lines)
        for command in ([], ["decoder"]):
            assert train.main([*command, "--data", str(data), "--split", str(split)]) == 1
            assert f"{split}: expected a split (" in error_of(capsys)
    for command in ([], ["decoder"]):
        with pytest.raises(SystemExit):
            train.main([*command, "--names", "meta.csv"])
        assert "--names: expected --split with it, found --names meta.csv alone" in capsys.readouterr().err


def test_a_run_without_a_file_keeps_none_of_an_unfinished_one(data, tmp_path):
    """Nor does a run of an earlier version need one."""
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / utils.SPLIT_FILE, ["test,Ann"])
    assert run_train(data, tmp_path / "run", "--epochs", 1, "--seed", 4) == 0
    assert not (tmp_path / "run" / utils.SPLIT_FILE).exists()
    assert runs.read_run(tmp_path / "run")["split"] == splits.Split(4)


def test_the_face_decoder_follows_a_file(demo_data, tmp_path):
    """Of 30 people, 3 are tested and 24 or so train; in the run's folder as for voices."""
    ready = feature_files.ready_faces(demo_data)
    people = list(dict.fromkeys(map(utils.person_of, ready)))
    split = write(tmp_path / "split.txt", [*(f"test,{person}" for person in people[:3]), "val,nobody"])
    assert train.main([*map(str, ["decoder", "--data", demo_data, "--run", tmp_path / "run", "--split", split])]) == 1
    write(split, [*(f"test,{person}" for person in people[:3]), *(f"val,{person}" for person in people[3:6])])
    assert train.main([*map(str, ["decoder", "--data", demo_data, "--run", tmp_path / "run", "--split", split])]) == 0
    run = runs.read_run(tmp_path / "run", "decoder")
    assert run["clips"] == {"train": ready[6:], "val": ready[3:6]} and run["split_name"] is None
    assert splits.divide(run["split"], ready)["test"] == ready[:3]
