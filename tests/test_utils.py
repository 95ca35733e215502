import dataclasses
import os
import pickle
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import utils
from clips import feature_files
from utils import InputError


def test_derived_constants():
    assert (utils.CLIP_SAMPLES, utils.N_FRAMES, utils.N_BINS) == (96_000, 598, 257)


def test_clip_name_is_that_of_the_papers_authors():
    clip = utils.clip_name("---ZOY1kzAc", 231.231, 234.467567)
    assert clip == "---ZOY1kzAc_231.231000-234.467567"
    assert utils.clip_name("x", 24.76, 29.96) == "x_024.760000-029.960000"
    assert utils.video_of(clip) == "---ZOY1kzAc"
    assert utils.video_of(utils.clip_name("a_b_-c", 0, 3)) == "a_b_-c"


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


@pytest.mark.parametrize("arguments, said", [(["--width", "0"], "expected more than 0, found 0.0"), (["--wid", "1"], "--wid")])
def test_bad_options_end_in_one_line_and_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        utils.parse_options(Options, "", arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        utils.parse_options(Options, "What it does.", ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "What it does." in shown and "(default: 1 5)" in shown and "100 % is all (default: 1.0)" in shown


@pytest.mark.parametrize("script", ["preprocess.py", "train.py", "evaluate.py", "data/make_demo.py"])
def test_help_needs_no_tensorflow(script):
    code = "import runpy, sys; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
    code += "except SystemExit as e: print(e.code, 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage:") and done.stdout.endswith("0 False\n")


def test_errors_of_the_users_are_a_line_and_ours_a_traceback(capsys):
    @utils.reporting_errors
    def main(argv=None):
        raise argv

    assert main(InputError("x.csv: expected five columns")) == 1
    assert capsys.readouterr().err == "error: x.csv: expected five columns\n"
    assert main(KeyboardInterrupt()) == 130
    with pytest.raises(ValueError, match="our own"):
        main(ValueError("our own"))


def test_run_folder():
    assert str(utils.run_folder("demo")) == "checkpoints/demo"
    assert str(utils.run_folder("/tmp/x/demo")) == "/tmp/x/demo"


# ---------------------------------------------------------------- files


def test_arrays_come_back(tmp_path, rng):
    array = rng.normal(size=(3, 4)).astype(np.float16)
    feature_files.save_array(tmp_path / "new" / "a.pkl", array)
    loaded = feature_files.load_array(tmp_path / "new" / "a.pkl", np.float16, (3, 4))
    assert loaded.dtype == np.float16 and np.array_equal(loaded, array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pkl"]
    assert np.array_equal(pickle.loads((tmp_path / "new" / "a.pkl").read_bytes()), array)  # a plain pickle, for everybody


def test_another_shape_or_dtype_is_told(tmp_path):
    feature_files.save_array(tmp_path / "a.pkl", np.zeros(128, np.float32))
    with pytest.raises(InputError, match=r"a\.pkl: expected float32 \(4096,\), found float32 \(128,\).*--face-model"):
        feature_files.load_array(tmp_path / "a.pkl", np.float32, (4096,))
    feature_files.save_array(tmp_path / "b.pkl", np.zeros(128, np.int16))
    with pytest.raises(InputError, match=r"expected float16 \(128,\), found int16"):
        feature_files.load_array(tmp_path / "b.pkl", np.float16, (128,))
    feature_files.save_array(tmp_path / "c.pkl", np.array([1, np.nan, 7e4], np.float32))
    with pytest.raises(InputError, match=r"expected float16 \(3,\), found numbers that it cannot hold"):
        feature_files.load_array(tmp_path / "c.pkl", np.float16, (3,))
    with pytest.raises(FileNotFoundError):
        feature_files.load_array(tmp_path / "none.pkl", np.float16, (128,))


def pickled_by_the_original_project(array):
    """Pickle as Python 3.7 and NumPy 1 did."""
    content = pickle.dumps(array, protocol=3)
    return content[:60].replace(b"numpy._core", b"numpy.core") + content[60:]


def test_pickles_of_the_original_project_load_converted(tmp_path, rng):
    voice = rng.normal(size=(598, 257, 2)).astype(np.float32)
    path = feature_files.spectrogram_path(tmp_path, "a")
    path.parent.mkdir()
    path.write_bytes(pickled_by_the_original_project(voice))
    assert b"numpy.core" in path.read_bytes()[:60]
    loaded = feature_files.load_array(path, np.float16, (598, 257, 2))
    assert loaded.dtype == np.float16 and np.array_equal(loaded, voice.astype(np.float16))
    path = feature_files.embedding_path(tmp_path, "a")
    path.parent.mkdir()
    for shape in ((1, 4096), (4096,)):
        face = rng.normal(size=shape).astype(np.float32)
        path.write_bytes(pickled_by_the_original_project(face))
        loaded = feature_files.load_embedding(tmp_path, "a", 4096)
        assert loaded.shape == (4096,) and loaded.dtype == np.float32 and np.array_equal(loaded, face.ravel())
        assert feature_files.feature_size_of(tmp_path, "a") == 4096


HOSTILE = {  # each would make the file `evil`
    "posix": b"cposix\nsystem\n(Vtouch evil\ntR.",
    "os": b"\x80\x03cos\nsystem\nX\x0a\x00\x00\x00touch evil\x85R.",
    "inst": b"(S'touch evil'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch evil'\no.",
    "newobj": b"\x80\x02csubprocess\nPopen\n](X\x05\x00\x00\x00touchX\x04\x00\x00\x00evile\x85\x81.",
    "eval": b"\x80\x04cbuiltins\neval\nX\x11\x00\x00\x00open('evil', 'w')\x85R.",
    "stack global": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x11open('evil', 'w')\x85R.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0aos.system\x93\x8c\x0atouch evil\x85R.",
    "through numpy": b"\x80\x03cnumpy.testing._private.utils\nrunstring\nX\x11\x00\x00\x00open('evil', 'w')}\x86R.",
    "numpy.load": b"\x80\x03cnumpy\nload\nX\x05\x00\x00\x00x.npyN\x88\x87R.",
    "build": b"\x80\x03cos\nsystem\n}X\x08\x00\x00\x00__call__cos\nsystem\nsb.",
    "after an array": pickle.dumps(np.zeros(2, np.float32), protocol=4)[:-1] + b"0cos\nsystem\n\x8c\x0atouch evil\x85R.",
    "persistent": b"Pevil\n.",
    "extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_would_run_code_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl: expected a pickle of float32"):
        feature_files.load_array(tmp_path / "a.pkl", np.float32, (2,))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_the_hostile_pickles_are_hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("posix", "os", "inst", "obj", "eval", "stack global", "after an array"):
        pickle.loads(HOSTILE[name])
        for _ in range(100):
            if (tmp_path / "evil").exists():
                break
            time.sleep(0.02)
        (tmp_path / "evil").unlink()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "content", [Evil(), [1, 2], np.array([Evil()]), np.float32(1), np.ma.array([1.0]), {"a": np.zeros(2)}, None], ids=str
)
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"a\.pkl: expected"):
        feature_files.load_array(tmp_path / "a.pkl", np.float32, (2,))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("array", [np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.ones((2, 3)))], ids=str)
def test_arrays_of_every_protocol_and_order_come_back(array, protocol, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(array, protocol=protocol))
    assert np.array_equal(feature_files.load_array(tmp_path / "a.pkl", array.dtype, (2, 3)), array)


BOMBS = {
    "memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "nesting": b"\x80\x04" + b"N" + b"\x85" * 100_000 + b".",
    "array": b"\x80\x04cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
    "dtype": b"\x80\x04cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_would_fill_the_memory_is_refused(content, tmp_path):
    (tmp_path / "a.pkl").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.pkl: expected"):
        feature_files.load_array(tmp_path / "a.pkl", np.float32, (2,))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@given(st.binary(max_size=200), st.integers(0, 160), st.booleans())
def test_whatever_bytes_a_file_holds_loading_gives_the_array_or_the_documented_error(tmp_path_factory, noise, at, spliced):
    good = pickle.dumps(np.arange(3, dtype=np.float32), protocol=4)
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    path.write_bytes(good[:at] + noise + good[at + len(noise) :] if spliced else noise)
    try:
        array = feature_files.load_array(path, np.float32, (3,))
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert array.dtype == np.float32 and array.shape == (3,)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), utils.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_ready_clips_have_all_three_files_and_are_sorted(tmp_path):
    for clip, paths in {
        "b_1-2": (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path),
        "a_1-2": (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path),
        "c_1-2": (feature_files.spectrogram_path, feature_files.embedding_path),
    }.items():
        for path in paths:
            path(tmp_path, clip).parent.mkdir(exist_ok=True)
            path(tmp_path, clip).touch()
    feature_files.embedding_path(tmp_path, "x").with_name(".part-a.pkl").touch()
    assert feature_files.ready_clips(tmp_path) == ["a_1-2", "b_1-2"]
    with pytest.raises(InputError, match=r"nowhere: expected clips .* run preprocess\.py"):
        feature_files.ready_clips(tmp_path / "nowhere")


def test_features_must_be_finite(tmp_path):
    feature_files.save_array(feature_files.embedding_path(tmp_path, "a"), np.full(128, np.nan, np.float32))
    with pytest.raises(InputError, match="expected finite numbers"):
        feature_files.load_embedding(tmp_path, "a", 128)


def test_feature_size_is_read_off_a_file(tmp_path):
    for size in (128, 4096):
        feature_files.save_array(feature_files.embedding_path(tmp_path, f"a{size}"), np.ones(size, np.float32))
        assert feature_files.feature_size_of(tmp_path, f"a{size}") == size
    feature_files.save_array(feature_files.embedding_path(tmp_path, "b"), np.ones(7, np.float32))
    with pytest.raises(InputError, match=r"found float32 \(7,\)"):
        feature_files.feature_size_of(tmp_path, "b")


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
def test_no_video_is_in_two_parts_and_no_clip_is_lost(pairs, seed):
    clips = [utils.clip_name(video, start, start + 3) for video, start in pairs]
    parts = utils.split_clips(clips, seed)
    assert sorted(clips) == sorted(clip for part in parts.values() for clip in part)
    videos = [{utils.video_of(clip) for clip in part} for part in parts.values()]
    assert sum(map(len, videos)) == len(set.union(*videos))
    more = utils.split_clips([*clips, "new_0-1"], seed)
    assert all(set(parts[name]) <= set(more[name]) for name in parts)


def test_clips_are_drawn_in_their_order_by_the_seed():
    clips = [f"v{i}_0-6" for i in range(100)]
    assert utils.sample_clips(clips, 100, 0) == utils.sample_clips(clips, 1000, 1) == clips
    drawn = utils.sample_clips(clips, 10, 0)
    assert drawn == sorted(drawn, key=clips.index) and len(set(drawn)) == 10
    assert utils.sample_clips(clips, 10, 0) == drawn != utils.sample_clips(clips, 10, 1)
