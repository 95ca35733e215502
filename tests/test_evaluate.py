import json
import shutil

import cv2
import matplotlib.image
import numpy as np
import pytest

import evaluate
import train
import utils


@pytest.fixture(scope="module")
def run(demo_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = [
        "--data",
        demo_data,
        "--run",
        folder,
        "--width",
        "0.03",
        "--seconds",
        "2.7",
        "--batch-size",
        "4",
        "--epochs",
        "2",
    ]
    assert train.main([*map(str, arguments)]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(run):
    assert evaluate.main(["--run", str(run), "--k", "1", "5", "10"]) == 0
    return json.loads((run / "metrics.json").read_text())


def test_three_scripts_end_in_a_table(run, demo_data, capsys):
    assert evaluate.main(["--run", str(run), "--k", "1", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["recall", "in", "%", "gallery", "R@1", "R@5", "median", "rank"]
    assert [line.split()[0] for line in lines[1:10]] == [
        "Train",
        "chance",
        "mean",
        "Val",
        "chance",
        "mean",
        "Test",
        "chance",
        "mean",
    ]
    n_train = len(utils.split_clips(utils.ready_clips(demo_data), 0)["train"])
    assert lines[1].split()[1] == str(n_train)
    assert lines[2].split() == ["chance", f"{100 / n_train:.1f}", f"{500 / n_train:.1f}"]
    pictures = [line for line in lines[10:] if line.endswith(".png")]
    assert len(pictures) >= 1 and all(cv2.imread(picture) is not None for picture in pictures)


def test_metrics_have_their_form(evaluated, demo_data):
    clips = utils.split_clips(utils.ready_clips(demo_data), 0)
    assert list(evaluated) == ["train", "val", "test"]
    for part, row in evaluated.items():
        assert row["gallery"] == len(clips[part])
        for name in ("recall", "chance", "mean_face"):
            assert list(row[name]) == ["1", "5", "10"]
            assert all(0 <= share <= 1 for share in row[name].values())
        assert row["chance"]["1"] == 1 / row["gallery"]


def test_metrics_are_those_of_the_weights_and_the_faces(evaluated, run, demo_data):
    import model

    clips = utils.split_clips(utils.ready_clips(demo_data), 0)["train"]
    encoder = model.voice_encoder(128, 0.03)
    encoder.load_weights(run / utils.BEST_WEIGHTS)
    hits = 0
    centre = utils.load_array(run / utils.CENTRE, np.float32, (128,))
    faces = utils.normalise(np.stack([utils.load_embedding(demo_data, clip, 128) for clip in clips]) - centre)
    for number, clip in enumerate(clips):
        spectrogram = utils.load_array(utils.spectrogram_path(demo_data, clip), np.float16, (598, 257, 2))
        predicted = encoder(spectrogram[None].astype(np.float32)).numpy()
        hits += number in np.argsort(-(faces @ (predicted[0] - centre)))[:5]
    assert evaluated["train"]["recall"]["5"] == pytest.approx(hits / len(clips), abs=1.5 / len(clips))


def test_a_perfect_and_a_deaf_voice(rng):
    faces = rng.normal(size=(40, 16)) + 3
    perfect = evaluate.retrieval_row(faces * 2, faces, np.zeros(16), faces.mean(0), (1, 5, 100))
    assert perfect["recall"] == {1: 1, 5: 1, 100: 1} and perfect["median_rank"] == 1
    deaf = evaluate.retrieval_row(np.repeat(faces.mean(0)[None], 40, 0), faces, np.zeros(16), faces.mean(0), (1, 5, 100))
    assert deaf["recall"] == deaf["mean_face"] == deaf["chance"] == {1: 1 / 40, 5: 5 / 40, 100: 1}


def test_similarity_is_seen_from_the_centre(rng):
    faces = rng.normal(size=(40, 16))
    voices = 0.001 * faces + 100  # as seen from 100, the same directions; from 0, all of one direction
    assert evaluate.retrieval_row(voices, faces + 100, np.full(16, 100.0), faces[0], (1,))["recall"] == {1: 1}
    assert evaluate.retrieval_row(voices, faces + 100, np.zeros(16), faces[0], (1,))["recall"][1] < 1


def test_the_table_in_the_slides_form():
    row = {"gallery": 40, "recall": {1: 0.5, 10: 1.0}, "chance": {1: 0.025, 10: 0.25}, "mean_face": {1: 0, 10: 0.3}}
    assert evaluate.table({"test": {**row, "median_rank": 1.5}}).splitlines() == [
        "recall in %     gallery     R@1    R@10  median rank",
        "Test                 40    50.0   100.0          1.5",
        "  chance                    2.5    25.0",
        "  mean face                 0.0    30.0",
    ]


def test_pictures_show_first_hits_the_top_5_and_misses():
    ranks = np.array([1, 150, 3, 1, 5, 6, 100, 101])
    (first, _, hits), (top, _, in_top), (missed, title, misses) = evaluate.pick_queries(ranks)
    assert (first, top, missed) == ("first_hit", "in_top_5", "not_in_top_100")
    assert hits.tolist() == [0, 3] and in_top.tolist() == [2, 4] and misses.tolist() == [7, 1]
    assert title == "true face not in the top 100"
    small = evaluate.pick_queries(np.array([1, 2, 12, 26]))[2]
    assert small[0] == "not_in_top_25" and small[2].tolist() == [3]
    assert len(evaluate.pick_queries(np.array([1, 2]))[2][2]) == 0


def test_a_grid_shows_true_and_retrieved_faces(tmp_path):
    """Faces are plain colours, so that the picture can be read back."""
    faces = np.eye(6, dtype=np.float32)
    voices = np.array([[0.9, 1.0, 0.8, 0.7, 0.6, 0.1]] * 6, np.float32)  # retrieves 1, 0, 2, 3, 4
    colours = np.array([[255, 0, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [90, 120, 30]], np.uint8)
    path = tmp_path / "grid.png"
    evaluate.draw_grid(path, "a title", [0], voices, faces, np.full(6, 2), lambda n: np.broadcast_to(colours[n], (32, 32, 3)))
    picture = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    places = [np.mean(np.where((picture == colours[n]).all(2))[1]) for n in (1, 0, 2, 3, 4)]
    red_columns = np.where((picture == colours[0]).all(2).any(0))[0]
    assert np.ptp(red_columns) > 200  # the true face at the left, and again where it is retrieved
    assert places[0] < places[2] < places[3] < places[4]
    assert (picture == (0, 128, 0)).all(2).any()  # the green frame
    assert not (picture == colours[5]).all(2).any()


def test_no_run(tmp_path, capsys):
    assert evaluate.main(["--run", str(tmp_path / "none")]) == 1
    assert "options.json: expected the options of a run, found no such file; run train.py" in capsys.readouterr().err


def test_weights_of_another_width(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    options = json.loads((other / "options.json").read_text())
    utils.write_json(other / "options.json", {**options, "width": 0.06})
    assert evaluate.main(["--run", str(other)]) == 1
    error = capsys.readouterr().err
    assert "best.weights.h5: expected weights of width 0.06, 128 outputs" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", '{"seed": 0}'])
def test_broken_options(content, run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "options.json").write_text(content)
    assert evaluate.main(["--run", str(other)]) == 1
    assert "options.json: expected the options of a run, found" in capsys.readouterr().err


def test_features_of_another_network(run, demo_data, tmp_path, capsys):
    data = shutil.copytree(demo_data, tmp_path / "data")
    for clip in utils.ready_clips(data):
        utils.save_array(utils.embedding_path(data, clip), np.ones(4096, np.float32))
    assert evaluate.main(["--run", str(run), "--data", str(data)]) == 1
    assert "expected float32 (128,), found float32 (4096,)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--k", "0"], ["--k"], ["--rows", "0"]])
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
