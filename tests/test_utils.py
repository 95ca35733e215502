import dataclasses
import hashlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import utils
from utils import InputError


def test_derived_constants():
    assert (utils.CLIP_SAMPLES, utils.N_FRAMES, utils.N_BINS) == (96_000, 598, 257)


def test_clip_name_is_that_of_the_papers_authors():
    clip = utils.clip_name("---ZOY1kzAc", 231.231, 234.467567)
    assert clip == "---ZOY1kzAc_231.231000-234.467567"
    assert utils.clip_name("x", 24.76, 29.96) == "x_024.760000-029.960000"
    assert utils.person_of(clip) == "---ZOY1kzAc"
    assert utils.person_of(utils.clip_name("a_b_-c", 0, 3)) == "a_b_-c"


def test_names_are_hashed_by_video_and_clip():
    """The first 16 hexadecimal digits of SHA-256: of "abc" those that its standard, FIPS 180-2, prints."""
    assert utils.hashed("abc_0-6").startswith("ba7816bf8f01cfea_") and utils.hashed("x_abc")[:17] != "ba7816bf8f01cfea_"
    ours, sibling, other = map(utils.hashed, ("a_b_000.0-006.0", "a_b_006.0-012.0", "a_c_000.0-006.0"))
    assert utils.person_of(ours) == utils.person_of(sibling) != utils.person_of(other)
    assert len({ours, sibling, other}) == 3 and all(re.fullmatch("[0-9a-f]{16}_[0-9a-f]{16}", of) for of in (ours, sibling))
    assert ours.partition("_")[2] == hashlib.sha256(b"a_b_000.0-006.0").hexdigest()[:16]


# ---------------------------------------------------------------- options


@dataclasses.dataclass(frozen=True)
class Options:
    width: float = utils.option("scale, 100 % is all", 1.0)
    k: tuple[int, ...] = utils.option("sizes", (1, 5), nargs="+")
    limit: int | None = utils.option("rows", None)
    fast: bool = utils.option("a switch", False)

    def __post_init__(self):
        utils.check(self.width > 0, f"--width: expected more than 0, found {self.width}")


def test_options_take_defaults_types_and_switches():
    assert utils.parse_options(Options, "", []) == Options(1.0, (1, 5), None, False)
    given = utils.parse_options(Options, "", ["--width", "0.5", "--k", "3", "4", "--limit", "7", "--fast"])
    assert given == Options(0.5, (3, 4), 7, True)


@pytest.mark.parametrize(
    "arguments, reported",
    [
        (["--width", "0"], "expected more than 0, found 0.0"),
        (["--width", "wide"], "argument --width: invalid float value: 'wide'"),
        (["--wid", "1"], "unrecognized arguments: --wid 1"),
        (["--k"], "argument --k: expected at least one argument"),
    ],
)
def test_bad_options_end_in_one_line_and_code_2(arguments, reported, capsys):
    with pytest.raises(SystemExit) as ended:
        utils.parse_options(Options, "", arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and reported in error and error.count("\n") == 1


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Options in groups, a required one, and arguments without a name."""

    files: tuple[str, ...] = utils.option("what is read", nargs="+", metavar="FILE", positional=True)
    out: str = utils.option("where it goes", group="output", metavar="FOLDER")
    rate: float = utils.option("how fast", 1.0, group="work", metavar="RATE")
    kind: str = utils.option("which", "a", group="output", choices=("a", "b"))


def test_options_stand_in_groups(capsys):
    assert utils.parse_options(Grouped, "", ["x", "y", "--out", "z"]) == Grouped(("x", "y"), "z")
    with pytest.raises(SystemExit):
        utils.parse_options(Grouped, "", ["--help"])
    text = capsys.readouterr().out
    output, work = text.index("\noutput:\n"), text.index("\nwork:\n")
    assert output < text.index("--out FOLDER") < text.index("--kind {a,b}") < work < text.index("--rate RATE")
    assert "where it goes (required)" in text and "FILE ... [options]" in text
    for arguments in (["x"], ["--out", "z"]):
        with pytest.raises(SystemExit) as ended:
            utils.parse_options(Grouped, "", arguments)
        assert ended.value.code == 2


def test_the_first_word_chooses_the_command(capsys):
    commands = {"other": (Grouped, "Another command.")}
    assert utils.parse_options(Options, "", ["other", "x", "--out", "z"], commands) == Grouped(("x",), "z")
    assert utils.parse_options(Options, "", ["--limit", "7"], commands) == Options(limit=7)
    assert utils.options_given(["other", "x", "--out", "z", "--rate=3"]) == {"out", "rate"}
    with pytest.raises(SystemExit):
        utils.parse_options(Options, "", ["other", "--help"], commands)
    assert "Another command." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        utils.parse_options(Options, "", ["--help"], commands)
    assert " other [options]" in capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        utils.parse_options(Options, "", ["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"Speech2Face {utils.VERSION}\n"
    assert f"## {utils.VERSION} " in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {utils.VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        utils.parse_options(Options, "What it does.", ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "What it does." in shown and "(default: 1 5)" in shown and "100 % is all (default: 1.0)" in shown


@pytest.mark.parametrize("script", ["preprocess.py", "train.py", "evaluate.py", "hear.py", "share.py", "data/make_demo.py"])
def test_help_needs_no_tensorflow(script):
    code = "import runpy, sys; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    code += "except SystemExit as e: print(e.code, 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage:") and done.stdout.endswith("0 False\n")


@pytest.mark.parametrize("script", ["preprocess.py", "train.py", "evaluate.py", "hear.py", "share.py"])
def test_help_answers_at_once(script):
    """In half a second of processor time, however busy the machine is."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


@pytest.mark.parametrize("package", ["numpy", "imageio_ffmpeg"])
def test_without_the_environment_one_line_says_what_to_do(package, tmp_path):
    run = tmp_path / "checkpoints" / "base"
    run.mkdir(parents=True)
    (run / utils.OPTIONS).write_text("{}")
    (tmp_path / "me.wav").write_text("")
    code = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['hear.py', 'me.wav']\n"
    code += f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(ROOT / 'hear.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    expected = (
        f"error: expected the package {package}, found none; run: source .venv/bin/activate (make install creates .venv)\n"
    )
    assert done.stderr == expected


def test_errors_of_the_users_are_a_line_and_ours_a_traceback(capsys):
    @utils.reporting_errors
    def main(argv=None):
        raise argv

    assert main(InputError("x.csv: expected five columns")) == 1
    assert capsys.readouterr().err == "error: x.csv: expected five columns\n"
    assert main(KeyboardInterrupt()) == 130
    with pytest.raises(ValueError, match="our own"):
        main(ValueError("our own"))
    with pytest.raises(ModuleNotFoundError):
        main(ModuleNotFoundError("", name="clips.none"))


def test_a_closed_pipe_is_no_error():
    code = "import utils\n@utils.reporting_errors\ndef main(argv=None):\n    while True: print('line', flush=True)\nmain()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


def test_run_folder():
    assert str(utils.run_folder("demo")) == "checkpoints/demo"
    assert str(utils.run_folder("/x/demo")) == "/x/demo"
    assert utils.run_folder("./demo") == Path("demo") == utils.run_folder("demo/")


def test_the_run_that_comes_with_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    assert utils.PRETRAINED == ROOT / "checkpoints" / "pretrained"
    monkeypatch.chdir(tmp_path)
    assert utils.run_folder("pretrained") == utils.PRETRAINED
    assert utils.run_folder("base") == Path("checkpoints/base") and utils.run_folder("./pretrained") == Path("pretrained")
    own = tmp_path / "checkpoints" / "pretrained"  # one's own of that name comes first
    own.mkdir(parents=True)
    assert utils.run_folder("pretrained").resolve() == own


def test_a_run_that_does_not_exist_is_reported_with_those_that_do(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "CHECKPOINTS", tmp_path)
    with pytest.raises(InputError, match=r"base: expected a run of train\.py, found none; make one with train\.py"):
        utils.existing_run("base")
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / utils.OPTIONS).write_text("{}")
    (tmp_path / "empty").mkdir()
    assert utils.existing_run("a") == tmp_path / "a" == utils.existing_run(f"{tmp_path}/a")
    with pytest.raises(InputError, match=r"empty: expected a run of train\.py, found none; the runs in .* are: a, b"):
        utils.existing_run("empty")


# ---------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), utils.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_file_replaces_none(tmp_path):
    path = tmp_path / "new" / "me.png"
    assert utils.save_new(path, b"a") == path == utils.save_new(path, b"a")
    assert [utils.save_new(path, content).name for content in (b"b", b"c", b"b", b"a")] == [
        "me-2.png",
        "me-3.png",
        "me-2.png",
        "me.png",
    ]
    assert [(tmp_path / "new" / name).read_bytes() for name in ("me.png", "me-2.png", "me-3.png")] == [b"a", b"b", b"c"]
    assert len(list((tmp_path / "new").iterdir())) == 3


# ---------------------------------------------------------------- the split


def test_the_split_is_the_same_in_every_process_and_for_ever():
    ids = [f"video{i}" for i in range(12)]
    expected = "test train val train train train train train train val train train"
    here = " ".join(utils.part_of(i, seed=0) for i in ids)
    code = f"import utils; print(' '.join(utils.part_of(i, seed=0) for i in {ids}))"
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "77"}
    )
    assert here == there.stdout.strip() == expected


def test_the_split_has_its_shares_and_depends_on_the_seed():
    parts = [[utils.part_of(f"v{i}", seed) for i in range(20_000)] for seed in (0, 1)]
    for part, share in utils.SPLIT.items():
        assert parts[0].count(part) / 20_000 == pytest.approx(share, abs=0.01)
    same = np.mean([a == b for a, b in zip(*parts)])
    assert same == pytest.approx(0.8**2 + 0.1**2 + 0.1**2, abs=0.02)  # as of two independent draws


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 9)), min_size=1, unique=True), st.integers(0, 3))
def test_no_person_is_in_two_parts_and_no_clip_is_lost(pairs, seed):
    clips = [utils.clip_name(video, start, start + 3) for video, start in pairs]
    parts = utils.split_clips(clips, seed)
    assert sorted(clips) == sorted(clip for part in parts.values() for clip in part)
    videos = [{utils.person_of(clip) for clip in part} for part in parts.values()]
    assert sum(map(len, videos)) == len(set.union(*videos))
    more = utils.split_clips([*clips, "new_0-1"], seed)
    assert all(set(parts[name]) <= set(more[name]) for name in parts)


def test_clips_are_sampled_in_their_order_by_the_seed():
    clips = [f"v{i}_0-6" for i in range(100)]
    assert utils.sample_clips(clips, 100, 0) == utils.sample_clips(clips, 1000, 1) == clips
    chosen = utils.sample_clips(clips, 10, 0)
    assert chosen == sorted(chosen, key=clips.index) and len(set(chosen)) == 10
    assert utils.sample_clips(clips, 10, 0) == chosen != utils.sample_clips(clips, 10, 1)


def test_directions_have_length_one(rng):
    directions = utils.normalise(rng.normal(size=(4, 9))).astype(np.float32)
    assert utils.check_directions(directions) is None
    for wrong, found in ((directions[0], r"shape \(9,\)"), (directions * [[1], [1], [3], [0.5]], "lengths from 0.5 to 3")):
        with pytest.raises(ValueError, match=rf"directions: expected \(N, D\), each of length 1, .* found {found}; of a face"):
            utils.check_directions(wrong)
