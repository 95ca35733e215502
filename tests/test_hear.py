import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, ffmpeg

import hear
import utils
from clips import feature_files, recordings
from faces import decoder, likely
from faces.textures import SIDE
from judging import pictures, plots
from listening import listener
from training import runs
from utils import normalise

pytestmark = pytest.mark.usefixtures("no_named_runs")


@pytest.fixture
def run(voice_run, tmp_path):
    return shutil.copytree(voice_run, tmp_path / "run")


def predict(run, recording):
    return listener.load(run).predict(recordings.read_recording(recording).speech)


def listen(capsys, *arguments):
    """Call hear.py. Returns the lines that it prints to stdout, without those on certainty, and to stderr."""
    code = hear.main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return without_certainty(printed.out.splitlines()), printed.err.splitlines()


def without_certainty(lines):
    return [line for line in lines if not re.search(r": how sure: |^  the (recording|parts|voice) ", line)]


def error_of(capsys, *arguments):
    assert hear.main([*map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("error: ")
    return printed.err


# ---------------------------------------------------------------- the faces of the data


def test_the_most_similar_faces_of_the_data(run, demo_data, voice, tmp_path, capsys):
    other = shutil.copy(voice, tmp_path / "you.m4a")
    lines, _ = listen(capsys, voice, other, "--run", run)
    clips = feature_files.ready_clips(demo_data)
    assert lines[0] == f"{voice}: the most similar of {len(clips)} faces" and lines[1:6] == lines[7:12]
    predicted, centre = predict(run, voice), runs.read_run(run)["centre"]
    faces = normalise(np.stack([feature_files.load_embedding(demo_data, clip, 128) for clip in clips]) - centre)
    best = np.argsort(-(faces @ predicted))[:5]
    assert lines[1:6] == [f"  {place}  cosine {faces[n] @ predicted:.3f}  {clips[n]}" for place, n in enumerate(best, 1)]
    assert lines[12:] == [str(run / "heard" / "me-similar.png")] and cv2.imread(lines[12]).shape[1] > 500


def test_a_sample_of_the_data(run, voice, capsys):
    lines, _ = listen(capsys, voice, "--run", run, "--clips", 7)
    assert lines[0] == f"{voice}: the most similar of 7 faces"


def test_a_run_works_without_its_data(run, decoder_run, demo_data, voice, tmp_path, capsys):
    """A run that was passed on: the face comes without the list. The data at their new place bring the list back."""
    options = json.loads((run / utils.OPTIONS).read_text())
    utils.write_json(run / utils.OPTIONS, {**options, "data": str(tmp_path / "gone")})
    arguments = [voice, "--run", run, "--decoder", decoder_run]
    lines, told = listen(capsys, *arguments)
    assert lines == [str(run / "heard" / "me.png")]
    assert len(told) == 1 and told[0].startswith(f"hear: no list of similar faces: {tmp_path / 'gone'}: expected clips")
    assert listen(capsys, *arguments, "--data", demo_data)[0][1].startswith(f"{voice}: the most similar of")
    error = error_of(capsys, *arguments, "--data", tmp_path)
    assert f"{tmp_path}: expected clips made ready by preprocess.py, found none" in error


def test_neither_a_decoder_nor_faces(run, voice, tmp_path, capsys):
    options = json.loads((run / utils.OPTIONS).read_text())
    utils.write_json(run / utils.OPTIONS, {**options, "data": str(tmp_path / "gone")})
    assert hear.main([str(voice), "--run", str(run)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {utils.CHECKPOINTS / 'decoder'}: expected a face decoder, or faces to choose from")
    assert "--among FOLDER" in error and "python train.py decoder" in error


# ---------------------------------------------------------------- the decoded face


def test_the_decoded_face_of_a_recording(run, decoder_run, voice, capsys):
    arguments = [voice, "--run", run, "--decoder", decoder_run]
    lines, _ = listen(capsys, *arguments)
    assert lines[0] == str(run / "heard" / "me.png") and lines[1].startswith(f"{voice}: the most similar of")
    predicted = predict(run, voice)
    network = runs.load_decoder(decoder_run, runs.read_run(decoder_run, "decoder"))
    faces = likely.load(run / utils.LIKELY, 128)
    feature = faces.vivid(predicted[None], decoder.visible_changes(network))[0]
    expected = network(feature[None].astype(np.float32)).numpy()[0].clip(0, 255)
    picture = cv2.imread(lines[0])[..., ::-1]
    assert picture.shape == (SIDE, SIDE, 3) and np.abs(picture - expected).max() < 1.1
    with_face = cv2.imread(lines[-1]).shape[1]
    without = cv2.imread(listen(capsys, voice, "--run", run)[0][-1]).shape[1]
    assert with_face - without == pytest.approx(plots.DPI * pictures.CELL[0], abs=1)


def test_nothing_is_overwritten(run, decoder_run, voice, tmp_path, capsys):
    """Another face of the same name goes to a new name, the same face keeps its name; the printed path is the one written."""
    arguments = [voice, "--run", run, "--decoder", decoder_run]
    first = listen(capsys, *arguments)[0]
    content = {path: path.read_bytes() for path in (run / "heard").iterdir()}
    assert listen(capsys, *arguments)[0] == first
    other = listen(capsys, *arguments, "--exaggerate", 3)[0]
    assert [Path(path).name for path in (first[0], first[-1])] == ["me.png", "me-similar.png"]
    assert [Path(path).name for path in (other[0], other[-1])] == ["me-2.png", "me-similar-2.png"]
    assert {path: path.read_bytes() for path in content} == content
    assert Path(other[0]).read_bytes() != Path(first[0]).read_bytes()
    other_voice = tmp_path / "other" / "me.wav"
    other_voice.parent.mkdir()
    ffmpeg("-i", voice, "-af", "asetrate=20000", other_voice)
    both = listen(capsys, voice, other_voice, *arguments[1:])[0]
    assert [Path(line).name for line in both if line.endswith(".png")] == ["me.png", "me-3.png", "me-similar-3.png"]


def test_a_sheet_of_samples(run, decoder_run, voice, capsys):
    """The likeliest face, and so many others beside it in rows of four."""
    arguments = [voice, "--run", run, "--decoder", decoder_run]
    likeliest, sheet, *_ = listen(capsys, *arguments, "--samples", 6)[0]
    assert [Path(path).name for path in (likeliest, sheet)] == ["me.png", "me-samples.png"]
    assert cv2.imread(likeliest).shape == (SIDE, SIDE, 3)
    smaller = listen(capsys, *arguments, "--samples", 4)[0][1]
    rows = (cv2.imread(sheet).shape[0] - cv2.imread(smaller).shape[0]) / (plots.DPI * pictures.CELL[1])
    assert rows == pytest.approx(1, abs=0.02) and cv2.imread(sheet).shape[1] == cv2.imread(smaller).shape[1]
    assert "--samples: expected a face decoder with it, found none" in error_of(capsys, voice, "--run", run, "--samples", 4)


def test_other_recordings_have_other_samples(run, decoder_run, voice, tmp_path, monkeypatch, capsys):
    seeds, sample = [], listener.Listener.samples

    def noting_seed(self, face, n):
        seeds.append(face.seed)
        return sample(self, face, n)

    monkeypatch.setattr(listener.Listener, "samples", noting_seed)
    ffmpeg("-i", voice, "-af", "volume=0.5", tmp_path / "quiet.wav")
    for recording in (voice, tmp_path / "quiet.wav", voice):
        listen(capsys, recording, "--run", run, "--decoder", decoder_run, "--samples", 2)
    assert seeds[0] == seeds[2] != seeds[1]


# ---------------------------------------------------------------- photos


def test_the_most_similar_faces_of_a_folder_of_photos(run, voice, photos, capsys):
    lines, told = listen(capsys, voice, "--run", run, "--among", photos)
    assert lines[0] == f"{voice}: the most similar of 5 faces"
    cosines = {line.split("  ")[3]: float(line.split()[2]) for line in lines[1:6]}
    assert set(cosines) == {"a.png", "b.png", "c.png", "pair.jpg, face 1 from the left", "pair.jpg, face 2 from the left"}
    for name, number in (("a.png", 1), ("b.png", 2)):
        assert cosines[name] == pytest.approx(cosines[f"pair.jpg, face {number} from the left"], abs=0.25)
    assert told == [
        f"hear: left out of {photos}: files of other kinds 1 (.txt 1)",
        "hear: 2 of 6 photos left out: unreadable 1 (broken.jpg), no-face 1 (wall.jpg)",
    ]


def test_photos_of_one_name(run, voice, photos, tmp_path, capsys, monkeypatch):
    """Folders of people hold photos of the same names."""
    for person in "ab":
        (tmp_path / person).mkdir()
        shutil.copy(photos / f"{person}.png", tmp_path / person / "1.png")
    titles, draw = [], pictures.draw_grid
    monkeypatch.setattr(pictures, "draw_grid", lambda path, title, *more: titles.append(title) or draw(path, title, *more))
    monkeypatch.chdir(tmp_path)
    lines, _ = listen(capsys, voice, "--run", run, "--match", "a/1.png", tmp_path / "b" / "1.png")
    assert titles == ["which of two faces: a/1.png or b/1.png"]
    other = f"{tmp_path}/b/1.png"
    assert lines[0].startswith((f"{voice}: a/1.png rather than {other}, ", f"{voice}: {other} rather than a/1.png, "))
    for person in "ab":
        (tmp_path / "photos" / person).mkdir(parents=True)
        (tmp_path / "photos" / person / "1.png").symlink_to(tmp_path / person / "1.png")
    lines, _ = listen(capsys, voice, "--run", run, "--among", "photos")
    assert {line.split("  ")[3] for line in lines[1:3]} == {"a/1.png", "b/1.png"}


@pytest.mark.parametrize("name", ["Ba$$in 100 %d #1", "2026-11-25T09:12:33", "a\nb", 60 * "\u540d" + 60 * "x", "Ren\udce9"])
def test_recordings_of_any_name(name, run, decoder_run, voice, tmp_path, capsys):
    recording = shutil.copy(voice, tmp_path / f"{name}.m4a")
    arguments = [recording, "--run", run, "--decoder", decoder_run]
    assert hear.main([*map(str, arguments)]) == 0
    printed = capsys.readouterr()
    lines = without_certainty(printed.out.splitlines())
    shown = utils.printable(recording)
    assert lines[1].startswith(f"{shown}: the most similar of") and len(lines) == 8
    written = {path.name for path in (run / "heard").iterdir()}
    assert {Path(lines[0]).name, Path(lines[-1]).name} == written
    stem = utils.printable(name).encode()[:200].decode()
    assert written == {f"{stem}.png", f"{stem}-similar.png"}
    told = printed.err.splitlines()
    assert len(told) <= ("\u540d" in name) and all("no font on this machine has the letters \u540d" in line for line in told)


def test_which_of_two_faces(run, voice, photos, capsys, monkeypatch):
    said, titles, draw = [], [], pictures.draw_grid
    monkeypatch.setattr(pictures, "draw_grid", lambda path, title, *more: titles.append(title) or draw(path, title, *more))
    for pair in ("ab", "ba"):
        lines, _ = listen(capsys, voice, "--run", run, "--match", *(photos / f"{name}.png" for name in pair))
        said.append(lines[0])
    assert titles == ["which of two faces: a.png or b.png", "which of two faces: b.png or a.png"]
    assert said[0] == said[1]
    better, worse = (float(word.strip(",")) for word in re.search(r"cosines (\S+) and (\S+)", said[0]).groups())
    margin = float(said[0].rpartition(" ")[2])
    assert better > worse and margin == pytest.approx(better - worse, abs=0.0011)


def test_a_photo_with_two_faces_does_not_match(run, voice, photos, capsys):
    assert "pair.jpg: expected one face, found 2" in error_of(
        capsys, voice, "--run", run, "--match", photos / "a.png", photos / "pair.jpg"
    )


@pytest.mark.parametrize("suffix, start", [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_format_of_the_picture(suffix, start, run, voice, photos, capsys):
    lines, _ = listen(capsys, voice, "--run", run, "--match", photos / "a.png", photos / "b.png", "--format", suffix)
    assert lines[-1] == str(run / "heard" / f"me-similar.{suffix}") and Path(lines[-1]).read_bytes().startswith(start)


# ---------------------------------------------------------------- mistakes


def mistakes(voice, photos, tmp_path):
    """Command lines, each with what is wrong, and the expected error."""
    (empty := tmp_path / "empty").mkdir()
    silent = tmp_path / "silent.wav"
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", 4, silent)
    return [
        ([tmp_path / "none.wav"], "none.wav: expected a recording, found no such file"),
        ([voice, tmp_path], f"{tmp_path}: expected a recording, found a folder"),
        ([silent], "silent.wav: expected a recording"),
        ([voice, "--match", photos / "a.png", photos / "none.png"], "none.png: expected a photo, found no such file"),
        ([voice, "--among", tmp_path / "none"], "none: expected a folder of photos, found no such folder"),
        ([voice, "--among", photos / "a.png"], "a.png: expected a folder of photos, found a file"),
        ([voice, "--among", empty], "empty: expected photos (.jpg, "),
        ([voice, "--data", tmp_path / "none"], "none: expected a folder that preprocess.py wrote, found no such folder"),
        ([voice, "--decoder", tmp_path / "none"], "none: expected a run of"),
        ([voice, "--run", tmp_path / "none"], "none: expected a run of"),
    ]


def test_inputs_are_checked_before_anything_slow_is_loaded(voice_run, voice, photos, tmp_path):
    """In a process of its own, where TensorFlow is not loaded yet."""
    wrong = mistakes(voice, photos, tmp_path)
    lines = [["--run", str(voice_run), *map(str, arguments)] for arguments, _ in wrong]
    code = f"import sys, hear\nprint([hear.main(line) for line in {lines!r}], {{'tensorflow', 'keras'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{[1] * len(wrong)} set()\n", done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(wrong)
    for line, (_, expected) in zip(told, wrong):
        assert line.startswith("error: ") and expected in line


def test_runs_that_exist_are_listed(run, voice, no_named_runs, capsys):
    shutil.copytree(run, no_named_runs / "mine")
    assert "mine" in error_of(capsys, voice, "--run", "yours")


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "RECORDING: expected some, or --page"),
        (["a.wav", "--page"], "RECORDING: expected none with --page"),
        (["--page", "--match", "a.jpg", "b.jpg"], "--page: expected without --match"),
        (["--page", "--port", "80"], "--port: expected 1024 to 65535, found 80"),
        (["a.wav", "--match", "a.jpg"], "--match"),
        (["a.wav", "--match", "a.jpg", "b.jpg", "--among", "photos"], "--match: expected without --among, found both"),
        (["a.wav", "--data", "data", "--among", "photos"], "--data: expected without --among, found both"),
        (["a.wav", "--data", "data", "--match", "a.jpg", "b.jpg"], "--data: expected without --match, found both"),
        (["a.wav", "--clips", "1"], "--clips: expected 2 or more, found 1"),
        (["a.wav", "--exaggerate", "-1"], "--exaggerate: expected 0 to 10, found -1"),
        (["a.wav", "--exaggerate", "nan"], "--exaggerate: expected 0 to 10, found nan"),
        (["a.wav", "--samples", "65"], "--samples: expected 0 to 64, found 65"),
        (["a.wav", "--format", "gif"], "--format"),
    ],
)
def test_bad_options(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        hear.main(arguments)
    assert ended.value.code == 2 and told in capsys.readouterr().err
