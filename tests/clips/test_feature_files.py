import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips import feature_files
from utils import InputError


def test_arrays_come_back(tmp_path, rng):
    array = rng.normal(size=(3, 4)).astype(np.float16)
    feature_files.save_array(tmp_path / "new" / "a.pkl", array)
    loaded = feature_files.load_array(tmp_path / "new" / "a.pkl", np.float16, (3, 4))
    assert loaded.dtype == np.float16 and np.array_equal(loaded, array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pkl"]
    assert np.array_equal(pickle.loads((tmp_path / "new" / "a.pkl").read_bytes()), array)  # a plain pickle, for everybody


def test_another_shape_or_dtype_is_reported(tmp_path):
    feature_files.save_array(tmp_path / "a.pkl", np.zeros(128, np.float32))
    with pytest.raises(
        InputError,
        match=r"a\.pkl: expected float32 \(4096,\), found .*; made with --face-model dlib: run .* --face-model vggface$",
    ):
        feature_files.load_array(tmp_path / "a.pkl", np.float32, (4096,))
    feature_files.save_array(tmp_path / "b.pkl", np.zeros(128, np.int16))
    with pytest.raises(InputError, match=r"expected float16 \(128,\), found int16 \(128,\); delete it, rerun preprocess"):
        feature_files.load_array(tmp_path / "b.pkl", np.float16, (128,))
    feature_files.save_array(tmp_path / "c.pkl", np.array([1, np.nan, 7e4], np.float32))
    with pytest.raises(InputError, match=r"expected float16 \(3,\), found numbers that float16 cannot hold"):
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


def test_of_our_own_pickles_no_opcode_is_read_one_by_one(tmp_path, rng, monkeypatch):
    """They are known by the bytes around the numbers."""
    array = rng.normal(size=(5, 3)).astype(np.float16)
    feature_files.save_array(tmp_path / "a.pkl", array)
    monkeypatch.setattr(feature_files.pickletools, "genops", None)
    loaded = feature_files.load_array(tmp_path / "a.pkl", np.float16, (5, 3))
    np.testing.assert_array_equal(loaded, array)
    loaded[0] = 0  # an array of its own


@pytest.mark.parametrize("end", [b"\x94t\x94bR", b"c\ns\nR"], ids=["another opcode", "a call"])
def test_what_only_begins_as_our_own_pickles_is_refused(end, tmp_path):
    """Whatever stands after the numbers is read too."""
    good = pickle.dumps(np.arange(4, dtype=np.float32), protocol=4)
    (tmp_path / "a.pkl").write_bytes(good[: -len(end)] + end)
    with pytest.raises(InputError, match=r"a\.pkl: expected a pickle"):
        feature_files.load_array(tmp_path / "a.pkl", np.float32, (4,))
