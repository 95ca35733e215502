import collections
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import evaluate
import model
import train
import utils
from clips import feature_files, prints
from judging.ranks import feature_similarity
from training import runs
from utils import normalise

pytestmark = pytest.mark.usefixtures("no_runs_of_the_project")


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["--data", demo_data, "--run", folder, "--width", 0.03, "--seconds", 2.7, "--batch-size", 4, "--epochs", 2]
    assert train.main([*map(str, arguments)]) == 0
    return folder


def run_evaluate(run, *more):
    return evaluate.main([*map(str, ["--run", run, *more])])


@pytest.fixture(autouse=True)
def checkpoints(tmp_path, monkeypatch):
    """An empty folder of named runs: these tests must not find the decoder of the project's own."""
    monkeypatch.setattr(utils, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def evaluated(run):
    assert run_evaluate(run, "--k", 1, 5, 10) == 0
    return json.loads((run / "metrics.json").read_text())


def test_three_scripts_end_in_a_table(run, demo_data, tmp_path, capsys):
    """The result that counts stands first and alone; then the table, its notes, and the paths of the files."""
    folder = shutil.copytree(run, tmp_path / "run")
    assert run_evaluate(folder, "--k", 1, 5, "--gallery", 3) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    n = {part: len(clips) for part, clips in utils.split_clips(feature_files.ready_clips(demo_data), 0).items()}
    assert n["train"] >= 20 > max(n["val"], n["test"])
    headline = rf"Test: R@1 [\d.]+ % of {n['test']} faces \(chance {100 / n['test']:.1f}\), 1:2 [\d.]+ %"
    assert re.fullmatch(headline, lines[0]) and lines[1] == ""
    assert re.split("  +", lines[2]) == ["recall in %", "R@1", "R@5", "median", "1:2", "1:2 alike"]
    end = lines.index("", 2)
    names = [re.split("  +", line.strip())[0] for line in lines[3:end]]
    expected = []
    for part in ("train", "val", "test"):
        smaller = ["smaller (3)", "95 %", "chance"] if f"fewer than --gallery 3 {part} faces" not in printed.err else []
        rows = [f"{part.title()} ({n[part]})", "95 %", "chance", "mean face", *smaller]
        expected += rows if part == "train" else [name for name in rows if name != "95 %"]  # too few videos
    assert names == expected
    assert lines[5].split()[:3] == ["chance", f"{100 / n['train']:.1f}", f"{500 / n['train']:.1f}"]
    assert max(map(len, lines[:-6])) <= 100 and "No interval and no check of R@1" in printed.out
    written = [line for line in lines if line.startswith(str(folder))]
    assert written[0].endswith("results.md") and written[-1].endswith("map.png") and lines[-len(written) :] == written
    assert len(written) >= 4 and all(map(os.path.getsize, written))


def test_metrics_have_their_form(evaluated, demo_data):
    clips = utils.split_clips(feature_files.ready_clips(demo_data), 0)
    assert evaluated["leaks"] == [] and list(evaluated["parts"]) == ["train", "val", "test"]
    for part, row in evaluated["parts"].items():
        assert row["gallery"] == row["people"] == len(clips[part])
        for name in ("recall", "recall_interval", "chance", "mean_face"):
            assert list(row[name]) == ["1", "5", "10"]
        assert all(0 <= share <= 1 for name in ("recall", "chance", "mean_face") for share in row[name].values())
        assert row["chance"]["1"] == pytest.approx(1 / row["gallery"])
        intervals = {name: row[f"{name}_interval"] for name in ("median_rank", "matching", "matching_alike")}
        if part == "train":
            assert all(low <= row[name] <= high for name, (low, high) in intervals.items())
            assert intervals["median_rank"][0] >= 1 and intervals["median_rank"][1] <= row["gallery"]
        else:  # fewer than 20 videos
            assert [*intervals.values(), *row["recall_interval"].values()] == [None] * 6
        assert list(row["similarity"]) == ["6 s", "3 s", "mean face"] and 0 < row["similarity"]["mean face"]["degrees"] < 40


def test_results_are_ready_to_paste(evaluated, run):
    text = (run / "results.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0].startswith("| recall in % | gallery | R@1 |") and len({line.count("|") for line in table[:10]}) == 1
    test = evaluated["parts"]["test"]
    assert f"| Test | {test['gallery']} | {100 * test['recall']['1']:.1f} |" in text
    assert f"| Test, 3 s | {test['similarity']['3 s']['degrees']:.2f} |" in text and "Leak" not in text


def test_three_seconds_are_the_first_ones(evaluated, run, demo_data):
    clips = utils.split_clips(feature_files.ready_clips(demo_data), 0)["test"]
    encoder = runs.load_encoder(run, runs.read_run(run))
    short = np.stack([feature_files.load_spectrogram(demo_data, clip)[:298] for clip in clips]).astype(np.float32)
    faces = np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips])
    expected = feature_similarity(encoder(short).numpy(), faces)
    found = evaluated["parts"]["test"]["similarity"]["3 s"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_metrics_are_those_of_the_weights_and_the_faces(evaluated, run, demo_data):
    clips = utils.split_clips(feature_files.ready_clips(demo_data), 0)["train"]
    encoder = model.voice_encoder(128, 0.03)
    encoder.load_weights(run / utils.BEST_WEIGHTS)
    hits = 0
    centre = feature_files.load_array(run / utils.CENTRE, np.float32, (128,))
    faces = normalise(np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - centre)
    for number, clip in enumerate(clips):
        spectrogram = feature_files.load_array(feature_files.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
        predicted = encoder(spectrogram[None].astype(np.float32)).numpy()
        hits += number in np.argsort(-(faces @ (predicted[0] - centre)))[:5]
    assert evaluated["parts"]["train"]["recall"]["5"] == pytest.approx(hits / len(clips), abs=1.5 / len(clips))


def test_figures_are_seen_from_the_centre_and_stand_beside_the_mean_training_face(random_data, tmp_path):
    run = tmp_path / "run"
    arguments = ["--data", random_data, "--run", run, "--width", 0.03, "--seconds", 2.7, "--batch-size", 4, "--epochs", 1]
    assert train.main([*map(str, arguments)]) == run_evaluate(run, "--k", 1) == 0
    evaluated = json.loads((run / "metrics.json").read_text())
    assert list(evaluated["parts"]) == ["train", "val", "test"]
    centre = feature_files.load_array(run / utils.CENTRE, np.float32, (128,))
    encoder = runs.load_encoder(run, runs.read_run(run))
    clips = utils.split_clips(feature_files.ready_clips(random_data), 0)
    faces = {
        part: np.stack([feature_files.load_embedding(random_data, clip, 128) for clip in of_part])
        for part, of_part in clips.items()
    }
    for part, row in evaluated["parts"].items():
        spectrograms = np.stack([feature_files.load_spectrogram(random_data, clip) for clip in clips[part]]).astype(np.float32)
        predicted = encoder(spectrograms).numpy() - centre
        cosines = normalise(predicted) @ normalise(faces[part] - centre).T
        beaten, n = (cosines < np.diag(cosines)[:, None]).sum(), len(cosines)
        assert row["matching"] == pytest.approx(beaten / (n * (n - 1)), abs=2 / (n * (n - 1)))
        degrees = feature_similarity(predicted, faces[part] - centre)["degrees"]
        assert row["similarity"]["6 s"]["degrees_from_centre"] == pytest.approx(degrees, abs=0.5)  # near 90, from zero near 45
        mean_face = np.broadcast_to(faces["train"].mean(axis=0), faces[part].shape)
        assert row["similarity"]["mean face"] == pytest.approx(feature_similarity(mean_face, faces[part]), rel=1e-4)


def test_leaks_are_reported(run, demo_data, tmp_path, capsys):
    """A test clip in the list of training clips, and the face and voice of a test speaker with the id of a training video."""
    other, data = shutil.copytree(run, tmp_path / "other"), shutil.copytree(demo_data, tmp_path / "data")
    parts = utils.split_clips(feature_files.ready_clips(data), 0)
    clips = json.loads((other / "clips.json").read_text())
    video = next(name for name in map("again{}".format, range(99)) if utils.part_of(name, 0) == "train")
    copy = f"{video}_{parts['test'][1].rpartition('_')[2]}"
    for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
        shutil.copy(path_of(data, parts["test"][1]), path_of(data, copy))
    utils.write_json(other / "clips.json", {**clips, "train": [*clips["train"], parts["test"][0], copy]})
    assert run_evaluate(other, "--data", data, "--k", 1) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("LEAK")]
    n = len(parts["test"])
    assert [line.partition(":")[0] for line in said] == [
        f"LEAK? 1 of {n} clips were trained on",
        f"LEAK? 1 of {n} clips have the same picture as training clips",
        f"LEAK? 1 of {n} clips have the same sound as training clips",
    ]
    assert [f"LEAK? {leak}" for leak in json.loads((other / "metrics.json").read_text())["leaks"]] == said
    assert (other / "results.md").read_text().count("**Leak: ") == 3


def test_copies_are_looked_for_among_all_training_clips(run, demo_data, tmp_path, capsys):
    """Not only among the training clips that are evaluated, here 2 of 20."""
    other, data = shutil.copytree(run, tmp_path / "other"), shutil.copytree(demo_data, tmp_path / "data")
    parts = utils.split_clips(feature_files.ready_clips(data), 0)
    evaluated = utils.sample_clips(parts["train"], 2, 0)
    for of_test, of_train in zip(parts["test"], [clip for clip in parts["train"] if clip not in evaluated]):
        for path_of in (prints.prints_path, feature_files.spectrogram_path, feature_files.face_path):
            shutil.copy(path_of(data, of_train), path_of(data, of_test))
    assert run_evaluate(other, "--data", data, "--k", 1, "--clips", 2) == 0
    said = capsys.readouterr().err
    assert "LEAK? 2 of 2 clips have the same picture as training clips" in said
    assert "LEAK? 2 of 2 clips have the same sound as training clips" in said


def test_each_spectrogram_is_read_once(run, demo_data, tmp_path, monkeypatch):
    """Those of test clips in the map are read once more, for their pitch."""
    folder, reads = shutil.copytree(run, tmp_path / "run"), collections.Counter()
    load_array = feature_files.load_array

    def counting(path, *more):
        reads[path] += 1
        return load_array(path, *more)

    monkeypatch.setattr(feature_files, "load_array", counting)
    assert run_evaluate(folder, "--k", 1) == 0
    clips = utils.split_clips(feature_files.ready_clips(demo_data), 0)
    for part, n in (("train", 1), ("val", 1), ("test", 2)):
        assert {reads[feature_files.spectrogram_path(demo_data, clip)] for clip in clips[part]} == {n}
        assert {reads[prints.prints_path(demo_data, clip)] for clip in clips[part]} <= {1, 2}


@pytest.mark.parametrize("n_videos", [1, 2])
def test_one_training_video_left(n_videos, run, demo_data, tmp_path, capsys):
    """Of one video with nine clips, or of this and another one, but not in the sample: the other parts are judged."""
    folder, data = shutil.copytree(run, tmp_path / "run"), shutil.copytree(demo_data, tmp_path / "data")
    first, *others = utils.split_clips(feature_files.ready_clips(data), 0)["train"]
    for clip in others[n_videos - 1 :]:
        feature_files.face_path(data, clip).unlink()
    siblings = [utils.clip_name(utils.person_of(first), start, start + 6) for start in range(100, 180, 10)]
    for sibling in siblings:
        for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
            shutil.copy(path_of(data, first), path_of(data, sibling))
    clips = json.loads((folder / utils.CLIPS).read_text())
    utils.write_json(folder / utils.CLIPS, {**clips, "train": [*clips["train"], *siblings]})
    assert run_evaluate(folder, "--data", data, "--k", 1, "--clips", 2) == 0
    assert "fewer than two train people" in capsys.readouterr().err
    assert list(json.loads((folder / "metrics.json").read_text())["parts"]) == ["val", "test"]


# ---------------------------------------------------------------- files of an evaluation


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_is_repeated_or_kept(evaluated, run, tmp_path, capsys):
    """The same evaluation again changes no file; another one keeps the earlier files together."""
    folder = shutil.copytree(run, tmp_path / run.name)
    before = contents(folder)
    assert run_evaluate(folder, "--k", 1, 5, 10) == 0
    assert contents(folder) == before
    capsys.readouterr()
    files = [path.name for path in evaluate.files_of_evaluation(folder)]
    assert {"metrics.json", "results.md", "ranks.png", "map.png"} < {*files}
    assert run_evaluate(folder, "--k", 1, 2) == 0
    assert f"{folder} holds another evaluation, now kept in {folder / 'evaluation-1'}\n" in capsys.readouterr().err
    after = contents(folder)
    assert {name: after[f"evaluation-1/{name}"] for name in files} == {name: before[name] for name in files}
    assert {name: content for name, content in after.items() if name in before and name not in files} == {
        name: content for name, content in before.items() if name not in files
    }
    assert list(json.loads(after["metrics.json"])["parts"]["test"]["recall"]) == ["1", "2"]


def write_files(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_files_of_another_evaluation_are_kept_as_a_whole(tmp_path, capsys):
    """Files that the new evaluation has not, too; but for the pictures of the same evaluation in another format."""
    run = write_files(tmp_path / "run", metrics__json="1", results__md="a", not_in_top_25__png="old", options__json="{}")
    for number, metrics in enumerate("234", 1):
        made = write_files(tmp_path / "made", metrics__json=metrics, results__md="a", map__png="new")
        assert evaluate.publish(made, run) == [run / "results.md", run / "map.png"]
        assert (run / f"evaluation-{number}" / "metrics.json").read_text() == str(number)
        assert capsys.readouterr().err.count("now kept in") == 1
    assert sorted(path.name for path in (run / "evaluation-1").iterdir()) == ["metrics.json", "not_in_top_25.png", "results.md"]
    made = write_files(tmp_path / "made", metrics__json="4", results__md="a", map__pdf="new")
    assert evaluate.publish(made, run) == [run / "results.md", run / "map.pdf"] and capsys.readouterr().err == ""
    assert (run / "map.png").exists() and not (run / "evaluation-4").exists() and (run / "options.json").exists()


def test_pictures_in_another_format(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "metrics.json", "results.md"))
    assert run_evaluate(folder, "--k", 1, "--format", "svg", "--rows", 1, "--clips", 12) == 0
    pictures = [line for line in capsys.readouterr().out.splitlines() if line.endswith(".svg")]
    assert {str(folder / "ranks.svg"), str(folder / "map.svg")} < {*pictures} and not [*folder.glob("*.png")]
    assert all("<svg" in Path(path).read_text() for path in pictures)
    assert json.loads((folder / "metrics.json").read_text())["parts"]["train"]["gallery"] == 12


# ---------------------------------------------------------------- decoded faces

GRIDS = ("first_hit.png", "in_top_5.png", "not_in_top_*.png")


def grids(folder):
    return {path.name: cv2.imread(str(path)) for pattern in GRIDS for path in folder.glob(pattern)}


def cell(picture, column):
    """Return the face in a column at the left of a grid's last row; cells are 200 x 264 pixels, faces 188 x 188."""
    top, left = picture.shape[0] - 264, 26 + 200 * column
    return picture[top + 2 : top + 186, left + 2 : left + 186].astype(int)


def test_grids_show_two_decoded_faces(run, decoder_run, demo_data, tmp_path, capsys):
    """One from the true feature, one from the voice; with --exaggerate 0 both are the mean face."""
    found = []
    mean_face = ["--exaggerate", 0]
    for more in ([], ["--decoder", decoder_run], ["--decoder", decoder_run, *mean_face]):
        folder = shutil.copytree(run, tmp_path / str(len(found)))
        assert run_evaluate(folder, "--k", 1, "--rows", 6, *more) == 0
        found.append(grids(folder))
    without, decoded, plain = found
    assert len(without) >= 1 and without.keys() == decoded.keys() == plain.keys()
    for name, picture in decoded.items():
        assert picture.shape[1] - without[name].shape[1] == pytest.approx(2 * 200, abs=1)
        assert picture.shape == plain[name].shape
        np.testing.assert_array_equal(cell(picture, 0), cell(plain[name], 0))  # the true face
        np.testing.assert_array_equal(cell(picture, 0), cell(without[name], 0))
        assert max(np.abs(cell(picture, column) - cell(plain[name], column)).mean() for column in (1, 2)) > 1
        np.testing.assert_array_equal(cell(plain[name], 1), cell(plain[name], 2))
        assert np.abs(cell(picture, 1) - cell(picture, 2)).mean() > 0.1


def test_a_decoder_fitted_to_test_faces_is_reported(run, decoder_run, demo_data, tmp_path, capsys):
    folder, faces = (shutil.copytree(of, tmp_path / name) for of, name in ((run, "run"), (decoder_run, "decoder")))
    seed = json.loads((run / utils.OPTIONS).read_text())["seed"]
    test = utils.split_clips(feature_files.ready_clips(demo_data), seed)["test"]
    clips = json.loads((faces / utils.CLIPS).read_text())
    for training_faces, n in ((test[:1], 1), ([], 0)):
        (faces / utils.CLIPS).write_text(json.dumps({**clips, "train": training_faces}))
        assert run_evaluate(folder, "--k", 1, "--decoder", faces) == 0
        told = [f"1 of {len(test)} clips were used to fit the face decoder: {test[0]}"] if n else []
        assert [line for line in capsys.readouterr().err.splitlines() if "fit the" in line] == [
            f"LEAK? {leak}" for leak in told
        ]
        assert json.loads((folder / "metrics.json").read_text())["leaks"] == told


def test_a_decoder_that_does_not_fit_is_reported(run, decoder_run, wide_decoder_run, tmp_path, capsys):
    def error_of(*arguments):
        assert evaluate.main([*map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    said = f"error: --decoder: {wide_decoder_run}: expected a decoder for face features of 128 numbers, found one for 4096"
    assert said in error_of("--run", run, "--decoder", wide_decoder_run)
    said = f"error: {decoder_run}: expected a run of python train.py, found a run of python train.py decoder\n"
    assert error_of("--run", decoder_run) == said
    said = f"error: --decoder: {run}: expected a run of python train.py decoder, found a run of python train.py\n"
    assert error_of("--run", run, "--decoder", run) == said
    assert "none: expected a run of train.py, found none; make one with train.py" in error_of(
        "--run", run, "--decoder", tmp_path / "none"
    )
    broken = shutil.copytree(decoder_run, tmp_path / "broken")
    (broken / utils.BEST_WEIGHTS).write_bytes(b"no weights")
    said = "best.weights.h5: expected weights of "
    assert said in error_of("--run", run, "--decoder", broken)


def test_the_speaker_encoder_is_evaluated_as_the_other(demo_data, tmp_path, capsys):
    """Its few validation clips are among those that it is fitted on, and the table says so."""
    run = tmp_path / "speaker"
    assert train.main(["--data", str(demo_data), "--run", str(run), "--encoder", "speaker"]) == 0
    assert evaluate.main(["--run", str(run), "--k", "1", "5"]) == 0
    parts = json.loads((run / "metrics.json").read_text())["parts"]
    assert parts["train"]["matching"] > 0.7 and list(parts) == ["train", "val", "test"]
    assert [parts[name]["fitted_on"] for name in parts] == [True, True, False]
    said = capsys.readouterr().out
    assert f"\nVal, fitted on ({parts['val']['gallery']}) " in said and said.count("their row is that of training clips") == 1
    assert f"| Val, fitted on | {parts['val']['gallery']} |" in (run / "results.md").read_text()
    assert "| Val, fitted on, 6 s |" in (run / "results.md").read_text()
    assert "Encoder speaker, loss l2" in (run / "results.md").read_text() and (run / "map.png").exists()


# ---------------------------------------------------------------- mistakes


def test_no_run_and_no_data(run, checkpoints, tmp_path, capsys):
    assert evaluate.main(["--run", str(tmp_path / "none")]) == 1
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'none'}: expected a run of train.py, found none; make one with train.py\n"
    )
    shutil.copytree(run, checkpoints / "mine")
    assert evaluate.main(["--run", "none"]) == 1
    assert f"the runs in {checkpoints} are: mine\n" in capsys.readouterr().err
    assert run_evaluate(run, "--data", tmp_path / "gone") == 1
    assert (
        f"error: {tmp_path / 'gone'}: expected a folder that preprocess.py wrote, found no such folder"
        in capsys.readouterr().err
    )


def test_data_that_has_moved(run, tmp_path, capsys):
    """Since training: --data names its new place."""
    other = shutil.copytree(run, tmp_path / "other")
    options = json.loads((other / utils.OPTIONS).read_text())
    utils.write_json(other / utils.OPTIONS, {**options, "data": "gone/for/ever"})
    assert run_evaluate(other) == 1
    assert "gone/for/ever: expected the data that" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_evaluate(other, "--data", tmp_path / "empty") == 1
    assert "expected" in capsys.readouterr().err


def test_a_batch_that_no_operation_can_take_is_refused(run, capsys):
    """At width 0.03, conv3 returns 589 x 248 x 4 numbers a clip."""
    assert evaluate.main(["--run", str(run), "--batch-size", "3676"]) == 1
    error = capsys.readouterr().err
    assert "--batch-size: expected at most 3675 clips of 598 frames on a device" in error and "found 3676 on a device" in error


def test_weights_of_another_width(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    options = json.loads((other / "options.json").read_text())
    utils.write_json(other / "options.json", {**options, "width": 0.06})
    assert evaluate.main(["--run", str(other)]) == 1
    error = capsys.readouterr().err
    assert "best.weights.h5: expected weights of --encoder conv, width 0.06, 128 outputs" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", '{"seed": 0}'])
def test_broken_options(content, run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "options.json").write_text(content)
    assert evaluate.main(["--run", str(other)]) == 1
    assert "options.json: expected a file of a run, found" in capsys.readouterr().err


def test_features_of_another_network(run, demo_data, tmp_path, capsys):
    data = shutil.copytree(demo_data, tmp_path / "data")
    for clip in feature_files.ready_clips(data):
        feature_files.save_array(feature_files.embedding_path(data, clip), np.ones(4096, np.float32))
    assert evaluate.main(["--run", str(run), "--data", str(data)]) == 1
    assert "expected float32 (128,), found float32 (4096,)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", ["--k 0", "--k", "--rows 0", "--gallery 1", "--clips 1", "--exaggerate -1", "--exaggerate nan"]
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments.split())
    assert ended.value.code == 2 and arguments.split()[0] in capsys.readouterr().err
