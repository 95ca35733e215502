import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ffmpeg

import evaluate
import hear
import model
import train
import utils
from clips import feature_files, recordings
from faces import refinement
from judging import pictures, tables
from judging.ranks import feature_similarity, rank
from judging.search import most_similar
from listening import listener
from training import runs
from utils import normalise


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


@pytest.fixture(autouse=True)
def checkpoints(tmp_path, monkeypatch):
    """The folder of runs that have a name, empty: whatever decoder may be in the project's own is not of these tests."""
    monkeypatch.setattr(utils, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def evaluated(run):
    assert evaluate.main(["--run", str(run), "--k", "1", "5", "10"]) == 0
    return json.loads((run / "metrics.json").read_text())


def test_three_scripts_end_in_a_table(run, demo_data, capsys):
    assert evaluate.main(["--run", str(run), "--k", "1", "5", "--gallery", "3"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert re.split("  +", lines[0]) == ["recall in %", "gallery", "R@1", "R@5", "median rank", "1:2", "1:2 alike"]
    names = [re.split("  +", line.strip())[0] for line in lines[1:]]
    below = ["95 % interval", "chance", "mean face", "in galleries of", "95 % interval", "chance"]
    paper = ["the paper's model", "95 % interval"]
    expected = []
    for part, more in (("Train", ["the slides"]), ("Val", paper), ("Test", [*paper, "the slides"])):
        too_few = f"fewer than --gallery 3 {part.lower()} faces" in printed.err
        expected += [part, *(below[:3] if too_few else below), *more]
    assert names[: len(expected)] == expected
    n_train = len(utils.split_clips(feature_files.ready_clips(demo_data), 0)["train"])
    assert lines[1].split()[1] == str(n_train)
    assert lines[3].split()[:3] == ["chance", f"{100 / n_train:.1f}", f"{500 / n_train:.1f}"]
    assert lines[8].split() == ["the", "slides", "4800", "45", "52"]
    assert lines[-2].endswith(".png") or lines[-1].endswith("map.png")
    written = [line for line in lines if line.startswith(str(run))]
    assert written[0].endswith("results.md") and len(written) >= 4 and all(map(os.path.getsize, written))


def test_metrics_have_their_form(evaluated, demo_data):
    clips = utils.split_clips(feature_files.ready_clips(demo_data), 0)
    assert evaluated["leaks"] == [] and list(evaluated["parts"]) == ["train", "val", "test"]
    for part, row in evaluated["parts"].items():
        assert row["gallery"] == row["videos"] == len(clips[part])
        for name in ("recall", "chance", "mean_face"):
            assert list(row[name]) == ["1", "5", "10"]
            assert all(0 <= share <= 1 for share in row[name].values())
        assert row["chance"]["1"] == pytest.approx(1 / row["gallery"])
        low, high = row["median_rank_interval"]
        assert 1 <= low <= row["median_rank"] <= high <= row["gallery"]
        for name in ("matching", "matching_alike"):
            assert row[f"{name}_interval"][0] <= row[name] <= row[f"{name}_interval"][1]
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


def score(voices, faces, centre, mean_face, ks, gallery=None, videos=None):
    clips = [f"{video}_0-6" for video in videos or range(len(faces))]
    heard = tables.Heard(clips, voices, voices, faces)
    ranking = rank(voices - centre, faces - centre, heard.videos)
    return tables.score(heard, ranking, centre, mean_face, ks, gallery)


def test_a_perfect_and_a_deaf_voice(rng):
    faces = rng.normal(size=(40, 16)) + 3
    perfect = score(faces * 2, faces, np.zeros(16), faces.mean(0), (1, 5, 100), 20)
    assert perfect["recall"] == {1: 1, 5: 1, 100: 1} and perfect["median_rank"] == perfect["matching"] == 1
    assert perfect["recall_interval"][1] == (1, 1) and perfect["fixed_gallery"]["recall"][1] == 1
    assert perfect["similarity"]["6 s"] == pytest.approx({"degrees": 0, "l1": 0, "l2": 0, "degrees_from_centre": 0}, abs=1e-4)
    deaf = score(np.repeat(faces.mean(0)[None], 40, 0), faces, np.zeros(16), faces.mean(0), (1, 5, 100), 20)
    assert deaf["recall"] == deaf["mean_face"] == {1: 1 / 40, 5: 5 / 40, 100: 1} == pytest.approx(deaf["chance"])
    assert deaf["fixed_gallery"]["recall"][5] == pytest.approx(5 / 20) == deaf["fixed_gallery"]["chance"][5]
    assert deaf["matching"] == pytest.approx(0.5)


def test_similarity_is_seen_from_the_centre(rng):
    faces = rng.normal(size=(40, 16))
    voices = 0.001 * faces + 100  # as seen from 100, the same directions; from 0, all of one direction
    assert score(voices, faces + 100, np.full(16, 100.0), faces[0], (1,))["recall"] == {1: 1}
    assert score(voices, faces + 100, np.zeros(16), faces[0], (1,))["recall"][1] < 1


def test_several_clips_of_a_video_are_said(rng):
    faces = rng.normal(size=(6, 4))
    row = score(faces, faces, np.zeros(4), faces[0], (1,), videos=list("aabbcd"))
    assert (row["gallery"], row["videos"]) == (6, 4) and row["chance"][1] == pytest.approx((4 * 2 + 2) / 36)
    assert "any face of its video" in " ".join(tables.notes({"test": row}))
    assert "any face of its video" not in " ".join(tables.notes({"test": {**row, "videos": 6}}))


def test_the_table_in_the_slides_form():
    row = {"gallery": 40, "recall": {1: 0.5, 10: 1.0}, "chance": {1: 0.025, 10: 0.25}, "mean_face": {1: 0, 10: 0.3}}
    row |= {"recall_interval": {1: (0.4, 0.6), 10: (1, 1)}, "median_rank": 1.5, "median_rank_interval": (1, 3)}
    row |= {"matching": 0.9, "matching_interval": (0.8, 0.95), "matching_alike": 0.7, "matching_alike_interval": (0.6, 0.8)}
    lines = tables.table({"train": {**row, "mean_face_median_rank": 20.0}})
    assert tables.as_text(lines).splitlines() == [
        "recall in %      gallery        R@1         R@10  median rank        1:2  1:2 alike",
        "Train                 40       50.0        100.0          1.5       90.0       70.0",
        "  95 % interval           40.0-60.0  100.0-100.0          1-3  80.0-95.0  60.0-80.0",
        "  chance                        2.5         25.0         20.5       50.0       50.0",
        "  mean face                     0.0         30.0           20",
        "  the slides        4800         45           55",
    ]
    markdown = tables.as_markdown(lines).splitlines()
    assert markdown[2] == "| Train | 40 | 50.0 | 100.0 | 1.5 | 90.0 | 70.0 |" and markdown[1].count("---:") == 6


def test_pictures_show_first_hits_the_top_5_and_misses():
    ranks = np.array([1, 150, 3, 1, 5, 6, 100, 101])
    (first, _, hits), (top, _, in_top), (missed, title, misses) = pictures.pick_queries(ranks)
    assert (first, top, missed) == ("first_hit", "in_top_5", "not_in_top_100")
    assert hits.tolist() == [0, 3] and in_top.tolist() == [2, 4] and misses.tolist() == [7, 1]
    assert title == "true face not in the top 100"
    small = pictures.pick_queries(np.array([1, 2, 12, 26]))[2]
    assert small[0] == "not_in_top_25" and small[2].tolist() == [3]
    assert len(pictures.pick_queries(np.array([1, 2]))[2][2]) == 0


def test_a_leak_is_shouted(run, demo_data, tmp_path, capsys):
    """A test clip in the list of those trained on, and a test person's face and voice once more under a training video's id."""
    other, data = shutil.copytree(run, tmp_path / "other"), shutil.copytree(demo_data, tmp_path / "data")
    parts = utils.split_clips(feature_files.ready_clips(data), 0)
    clips = json.loads((other / "clips.json").read_text())
    video = next(name for name in map("again{}".format, range(99)) if utils.part_of(name, 0) == "train")
    copy = f"{video}_{parts['test'][1].rpartition('_')[2]}"
    for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
        shutil.copy(path_of(data, parts["test"][1]), path_of(data, copy))
    utils.write_json(other / "clips.json", {**clips, "train": [*clips["train"], parts["test"][0], copy]})
    assert evaluate.main(["--run", str(other), "--data", str(data), "--k", "1"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("LEAK")]
    n = len(parts["test"])
    assert [line.partition(":")[0] for line in said] == [
        f"LEAK? 1 of {n} clips were trained on",
        f"LEAK? 1 of {n} clips have the same picture as clips learned from",
        f"LEAK? 1 of {n} clips have the same sound as clips learned from",
    ]
    assert [f"LEAK? {leak}" for leak in json.loads((other / "metrics.json").read_text())["leaks"]] == said
    assert (other / "results.md").read_text().count("**Leak: ") == 3


# ---------------------------------------------------------------- decoded faces

GRIDS = ("first_hit.png", "in_top_5.png", "not_in_top_*.png")


def grids(folder):
    return {path.name: cv2.imread(str(path)) for pattern in GRIDS for path in folder.glob(pattern)}


def test_grids_show_two_decoded_faces(run, decoder_run, demo_data, tmp_path, capsys):
    """Of the true face's feature and of the voice's; with --exaggerate 0 all of them are the mean face."""
    found = []
    for more in ([], ["--decoder", decoder_run], ["--decoder", decoder_run, "--exaggerate", 0]):
        folder = shutil.copytree(run, tmp_path / str(len(found)))
        arguments = ["--run", folder, "--k", 1, "--rows", 6, *more]
        assert evaluate.main([*map(str, arguments)]) == 0
        found.append(grids(folder))
    without, decoded, plain = found
    assert len(without) >= 1 and without.keys() == decoded.keys() == plain.keys()
    for name, picture in decoded.items():
        assert picture.shape[1] - without[name].shape[1] == pytest.approx(2 * 120, abs=1)
        assert picture.shape[0] == without[name].shape[0] and picture.shape == plain[name].shape
        np.testing.assert_array_equal(picture[100:, 15:128], plain[name][100:, 15:128])  # the true face
        assert np.abs(picture[100:190, 140:360].astype(int) - plain[name][100:190, 140:360]).mean() > 1
        left, right = (plain[name][92:200, 14 + 120 * column : 14 + 120 * column + 108] for column in (1, 2))
        np.testing.assert_array_equal(left, right)
        assert np.abs(picture[92:200, 134:242].astype(int) - picture[92:200, 254:362]).mean() > 0.1


def test_a_decoder_that_learned_test_people_is_shouted(run, decoder_run, demo_data, tmp_path, capsys):
    folder, faces = (shutil.copytree(of, tmp_path / name) for of, name in ((run, "run"), (decoder_run, "decoder")))
    seed = json.loads((run / utils.OPTIONS).read_text())["seed"]
    test = utils.split_clips(feature_files.ready_clips(demo_data), seed)["test"]
    clips = json.loads((faces / utils.CLIPS).read_text())
    for learned, n in ((test[:1], 1), ([], 0)):
        (faces / utils.CLIPS).write_text(json.dumps({**clips, "train": learned}))
        assert evaluate.main(["--run", str(folder), "--k", "1", "--decoder", str(faces)]) == 0
        told = [f"1 of {len(test)} clips were used to fit the face decoder: {test[0]}"] if n else []
        assert [line for line in capsys.readouterr().err.splitlines() if "fit the" in line] == [
            f"LEAK? {leak}" for leak in told
        ]
        assert json.loads((folder / "metrics.json").read_text())["leaks"] == told


def test_decoded_faces_are_exaggerated_from_the_mean(decoder_run, rng):
    network, read = runs.load_decoder(decoder_run, runs.read_run(decoder_run, "decoder")), runs.read_run(decoder_run, "decoder")
    features = (read["centre"] + 0.05 * rng.normal(size=(3, 128))).astype(np.float32)
    decoded = {}
    for factor in (0.0, 1.0, 1.4):
        options = evaluate.Options(decoder=str(decoder_run), exaggerate=factor)
        decoded[factor] = listener.face_decoder(options, 128)(features)
        assert decoded[factor].shape == (3, 192, 192, 3) and decoded[factor].dtype == np.uint8
        by_hand = (network(read["centre"] + factor * (features - read["centre"])).numpy().clip(0, 255)).round()
        assert np.abs(decoded[factor] - by_hand).max() <= 1
    mean = decoded[0.0][0].astype(int)
    assert (decoded[0.0] == mean).all()
    away = [np.abs(decoded[factor] - mean).mean() for factor in (1.0, 1.4)]
    assert 1.1 * away[0] < away[1] < 1.7 * away[0]


def test_what_is_heard_is_looked_at(decoder_run, demo_data, rng):
    """The decoded face's own feature comes nearer to what was heard; features of true faces are decoded as they are."""
    network = refinement.face_network(128)
    clips = feature_files.ready_clips(demo_data)[:6]
    centre = runs.read_run(decoder_run, "decoder")["centre"]
    heard = centre + 0.4 * (np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - centre)
    plain, looking = (listener.face_decoder(evaluate.Options(decoder=str(decoder_run), refinements=n), 128) for n in (0, 3))
    np.testing.assert_array_equal(plain(heard), looking(heard))
    again = plain.from_voices(7 * (heard - centre), centre)
    np.testing.assert_array_equal(plain.from_voices(heard - centre, centre), again)  # whatever the length
    axes = feature_files.load_array(decoder_run / utils.CORRECTION, np.float32, (2, 64, 128))[1]
    as_far = centre + 0.4 * np.linalg.norm(axes) * normalise(heard - centre)
    assert np.abs(again - plain(as_far).astype(int)).max() <= 1
    whole = plain.from_voices(heard, np.zeros(128, np.float32))  # --centre zero
    assert np.abs(whole - plain(np.linalg.norm(centre) * normalise(heard)).astype(int)).max() <= 1
    mean = network(plain(centre[None]))
    cosines = [
        (normalise(network(pictures) - mean) * normalise(heard - centre)).sum(axis=1).mean()
        for pictures in (plain.from_voices(heard - centre, centre), looking.from_voices(heard - centre, centre))
    ]
    assert cosines[1] > cosines[0] + 0.03


def test_looks_need_what_training_found(run, decoder_run, tmp_path, capsys):
    broken = shutil.copytree(decoder_run, tmp_path / "broken")
    (broken / utils.CORRECTION).unlink()
    assert evaluate.main(["--run", str(run), "--decoder", str(broken)]) == 1
    said = f"{broken / utils.CORRECTION}: expected what train.py --model decoder wrote, found no such file; train anew"
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--refinements", "-1"])
    assert "--refinements: expected 0 or more, found -1" in capsys.readouterr().err


def test_a_decoder_is_taken_without_being_named_if_it_fits(decoder_run, wide_decoder_run, checkpoints, capsys):
    options = evaluate.Options()
    assert listener.face_decoder(options, 128) is None and capsys.readouterr().err == ""
    shutil.copytree(wide_decoder_run, checkpoints / "decoder")
    assert listener.face_decoder(options, 128) is None
    said = f"{checkpoints / 'decoder'}: expected a run on 128 numbers a face, found 4096"
    assert capsys.readouterr().err == f"evaluate: no decoded faces: {said}\n"
    (checkpoints / "decoder" / utils.OPTIONS).write_text('{"model": "voice"}')
    assert listener.face_decoder(options, 128) is None
    assert "expected a run of train.py --model decoder, found one of --model voice" in capsys.readouterr().err
    shutil.rmtree(checkpoints / "decoder")
    shutil.copytree(decoder_run, checkpoints / "decoder")
    assert listener.face_decoder(options, 128)(np.zeros((1, 128), np.float32)).shape == (1, 192, 192, 3)


def test_a_decoder_that_does_not_fit_is_told(run, decoder_run, wide_decoder_run, tmp_path, capsys):
    def error_of(*arguments):
        assert evaluate.main([*map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    said = f"error: --decoder: {wide_decoder_run}: expected a run on 128 numbers a face, found 4096\n"
    assert error_of("--run", run, "--decoder", wide_decoder_run) == said
    said = f"error: {decoder_run}: expected a run of train.py --model voice, found one of --model decoder\n"
    assert error_of("--run", decoder_run) == said
    said = f"error: --decoder: {run}: expected a run of train.py --model decoder, found one of --model voice\n"
    assert error_of("--run", run, "--decoder", run) == said
    assert "none/options.json: expected the options of a run" in error_of("--run", run, "--decoder", tmp_path / "none")
    broken = shutil.copytree(decoder_run, tmp_path / "broken")
    (broken / utils.BEST_WEIGHTS).write_bytes(b"no weights")
    said = "best.weights.h5: expected weights of --model decoder, 128 inputs, 21 components, as options.json beside it says"
    assert said in error_of("--run", run, "--decoder", broken)


def test_where_the_faces_of_recordings_go(tmp_path):
    recordings = [Path("me.m4a"), Path("b/you.wav"), Path("c/me.wav"), Path("me"), Path("me-2.mp3")]
    names = [path.relative_to(tmp_path).as_posix() for path in hear.heard_paths(tmp_path, recordings)]
    assert names == ["heard/me.png", "heard/you.png", "heard/me-2.png", "heard/me-3.png", "heard/me-2-2.png"]


def test_the_face_that_a_recording_is_heard_as(run, decoder_run, voice, demo_data, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    arguments = ["--run", folder, "--audio", voice, voice, "--decoder", decoder_run, "--refinements", 0]
    assert evaluate.main([*map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    written = [str(folder / "heard" / name) for name in ("me.png", "me-2.png")]
    assert lines[-3:] == [*written, str(folder / "audio.png")]
    centre = feature_files.load_array(folder / utils.CENTRE, np.float32, (128,))
    heard = listener.hear(runs.load_encoder(folder, runs.read_run(folder)), recordings.read_recording(voice), centre)
    network = runs.load_decoder(decoder_run, runs.read_run(decoder_run, "decoder"))
    axes = feature_files.load_array(decoder_run / utils.CORRECTION, np.float32, (2, 64, 128))[1]
    heard = centre + 0.4 * np.linalg.norm(axes) * heard  # an encoder's own length means nothing
    expected = network(heard[None].astype(np.float32)).numpy()[0].clip(0, 255)
    for path in written:
        picture = cv2.imread(path)[..., ::-1]
        assert picture.shape == (192, 192, 3) and np.abs(picture - expected).max() < 1.1
    plain = cv2.imread(str(folder / "audio.png")).shape[1]
    assert evaluate.main([*map(str, arguments[:5])]) == 0
    assert plain - cv2.imread(str(folder / "audio.png")).shape[1] == pytest.approx(120, abs=1)


# ---------------------------------------------------------------- recordings


@pytest.fixture(scope="module")
def voice(demo_clips, demo_data, tmp_path_factory):
    """A demo person's clip, as an m4a without its picture."""
    clip = feature_files.ready_clips(demo_data)[0]
    path = tmp_path_factory.mktemp("voice") / "me.m4a"
    ffmpeg("-i", next((demo_clips / "videos").glob(f"{clip}.*")), "-vn", "-c:a", "aac", path)
    return path


def test_whose_face_a_recording_is_like(run, demo_data, voice, capsys):
    assert evaluate.main(["--run", str(run), "--audio", str(voice), str(voice)]) == 0
    lines = capsys.readouterr().out.splitlines()
    clips = feature_files.ready_clips(demo_data)
    assert lines[0] == f"{voice}: the most similar of {len(clips)} faces" and lines[:6] == lines[6:12]
    centre = feature_files.load_array(run / utils.CENTRE, np.float32, (128,))
    heard = listener.hear(runs.load_encoder(run, runs.read_run(run)), recordings.read_recording(voice), centre)
    faces = normalise(np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - centre)
    best = np.argsort(-(faces @ heard))[:5]
    expected = [f"  {place}  cosine {faces[n] @ heard:.3f}  {clips[n]}" for place, n in enumerate(best, 1)]
    assert lines[1:6] == expected
    assert lines[12] == str(run / "audio.png") and cv2.imread(lines[12]).shape[1] > 500


def test_a_recording_is_heard_as_its_clip_was(run, demo_data, voice):
    """The same voice through AAC, without its pauses: nearly what the clip's spectrogram gives."""
    encoder = runs.load_encoder(run, runs.read_run(run))
    centre = feature_files.load_array(run / utils.CENTRE, np.float32, (128,))
    clip = feature_files.ready_clips(demo_data)[0]
    of_clip = encoder(feature_files.load_spectrogram(demo_data, clip)[None].astype(np.float32)).numpy() - centre
    heard = listener.hear(encoder, recordings.read_recording(voice), centre)
    assert heard @ normalise(of_clip)[0] > 0.9 and np.linalg.norm(heard) == pytest.approx(1)


def test_the_speaker_encoder_is_judged_and_asked_as_the_other(demo_data, voice, tmp_path, capsys):
    run = tmp_path / "speaker"
    assert train.main(["--data", str(demo_data), "--run", str(run), "--encoder", "speaker"]) == 0
    assert evaluate.main(["--run", str(run), "--k", "1", "5"]) == 0
    parts = json.loads((run / "metrics.json").read_text())["parts"]
    assert parts["train"]["matching"] > 0.7 and list(parts) == ["train", "val", "test"]
    assert "Encoder speaker, loss l2" in (run / "results.md").read_text() and (run / "map.png").exists()
    capsys.readouterr()
    assert evaluate.main(["--run", str(run), "--audio", str(voice)]) == 0
    found = capsys.readouterr().out.splitlines()[1:6]
    encoder, centre = (
        runs.load_encoder(run, runs.read_run(run)),
        feature_files.load_array(run / "centre.pkl", np.float32, (128,)),
    )
    clips = feature_files.ready_clips(demo_data)
    heard = (
        encoder(feature_files.load_spectrogram(demo_data, clips[0])[None]).numpy() - centre
    )  # the clip that the recording is of
    faces = np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - centre
    numbers, _ = most_similar(heard, faces, 5)
    assert len({line.split()[-1] for line in found} & {clips[number] for number in numbers[0]}) >= 4


def test_a_long_recording_is_averaged_over_windows(run, rng):
    encoder = runs.load_encoder(run, runs.read_run(run))
    centre = feature_files.load_array(run / utils.CENTRE, np.float32, (128,))
    long = 0.1 * rng.normal(size=13 * 16000).astype(np.float32)
    starts = (0, 3 * 16000, 6 * 16000, 7 * 16000)
    parts = [listener.hear(encoder, long[start : start + 96_000], centre) for start in starts]
    expected = normalise(np.mean(parts, axis=0, keepdims=True))[0]
    np.testing.assert_allclose(listener.hear(encoder, long, centre), expected, atol=1e-4)


@pytest.fixture
def photos(demo_data, tmp_path):
    """Three demo people's faces as photos; two of them side by side in a fourth; no face in a fifth; a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    faces = [cv2.imread(str(feature_files.face_path(demo_data, clip))) for clip in feature_files.ready_clips(demo_data)[:3]]
    faces = [cv2.copyMakeBorder(face, 60, 60, 60, 60, cv2.BORDER_REPLICATE) for face in faces]
    for name, face in zip("abc", faces):
        cv2.imwrite(str(folder / f"{name}.png"), face)
    cv2.imwrite(str(folder / "pair.jpg"), np.hstack(faces[:2]))
    cv2.imwrite(str(folder / "wall.jpg"), np.full((200, 200, 3), 90, np.uint8))
    (folder / "broken.jpg").write_text("no photo")
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_a_folder_of_photos(run, voice, photos, capsys):
    assert evaluate.main(["--run", str(run), "--audio", str(voice), "--gallery-faces", str(photos)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith("the most similar of 5 faces")
    cosines = {line.split("  ")[3]: float(line.split()[2]) for line in out.splitlines()[1:6]}
    assert set(cosines) == {"a.png", "b.png", "c.png", "pair.jpg, face 1 from the left", "pair.jpg, face 2 from the left"}
    for name, number in (("a.png", 1), ("b.png", 2)):
        assert cosines[name] == pytest.approx(cosines[f"pair.jpg, face {number} from the left"], abs=0.25)
    assert "wall.jpg: expected a face, found none" in err and "broken.jpg: expected a photo" in err and "notes" not in err


def test_which_of_two_faces(run, voice, photos, capsys):
    said = []
    for pair in ("ab", "ba"):
        photo_arguments = [str(photos / f"{name}.png") for name in pair]
        assert evaluate.main(["--run", str(run), "--audio", str(voice), "--match", *photo_arguments]) == 0
        said.append(capsys.readouterr().out.splitlines()[0])
    assert said[0] == said[1]
    better, worse = (float(word.strip(",")) for word in re.search(r"cosines (\S+) and (\S+)", said[0]).groups())
    margin = float(said[0].rpartition(" ")[2])
    assert better > worse and margin == pytest.approx(better - worse, abs=0.0011)


@pytest.mark.parametrize(
    "names, problem",
    [
        (["a.png", "pair.jpg"], "pair.jpg: expected one face, found 2"),
        (["a.png", "wall.jpg"], "wall.jpg: expected a face, found none"),
        (["broken.jpg", "a.png"], "broken.jpg: expected a photo"),
        (["a.png", "none.png"], "none.png: expected a photo"),
    ],
)
def test_photos_that_do_not_answer(names, problem, run, voice, photos, capsys):
    arguments = ["--audio", voice, "--match", *(photos / name for name in names)]
    assert evaluate.main(["--run", str(run), *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_a_folder_without_photos(run, voice, tmp_path, capsys):
    assert evaluate.main(["--run", str(run), "--audio", str(voice), "--gallery-faces", str(tmp_path)]) == 1
    assert f"{tmp_path}: expected a folder of photos" in capsys.readouterr().err


# ---------------------------------------------------------------- mistakes


def test_no_run(tmp_path, capsys):
    assert evaluate.main(["--run", str(tmp_path / "none")]) == 1
    assert "options.json: expected the options of a run, found no such file; run train.py" in capsys.readouterr().err


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
    assert "options.json: expected what a run was started with, found" in capsys.readouterr().err


def test_features_of_another_network(run, demo_data, tmp_path, capsys):
    data = shutil.copytree(demo_data, tmp_path / "data")
    for clip in feature_files.ready_clips(data):
        feature_files.save_array(feature_files.embedding_path(data, clip), np.ones(4096, np.float32))
    assert evaluate.main(["--run", str(run), "--data", str(data)]) == 1
    assert "expected float32 (128,), found float32 (4096,)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--k", "0"],
        ["--k"],
        ["--rows", "0"],
        ["--gallery", "1"],
        ["--clips", "1"],
        ["--exaggerate", "-1"],
        ["--exaggerate", "nan"],
        ["--match", "a.jpg", "b.jpg"],
        ["--gallery-faces", "photos"],
        ["--match", "a.jpg", "b.jpg", "--audio", "a.wav", "--gallery-faces", "photos"],
        ["--match", "a.jpg", "--audio", "a.wav"],
    ],
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
