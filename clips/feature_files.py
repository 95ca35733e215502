"""The feature files of clips and photos: paths, names of ready clips, and a pickle reader that runs no code.

Never imports TensorFlow.
"""

import functools
import io
import math
import pickle
import pickletools
import re
import typing
from pathlib import Path

import numpy as np

from clips import listing
from utils import FEATURE_SIZE, N_BINS, N_FRAMES, N_LANDMARKS, InputError, save_bytes

_FACE_MODELS = {size: face_model for face_model, size in FEATURE_SIZE.items()}


def spectrogram_path(data: Path, clip: str) -> Path:
    """Return the path of a clip's spectrogram: a pickle of float16 (N_FRAMES, N_BINS, 2)."""
    return Path(data) / "spectrograms" / f"{clip}.pkl"


def embedding_path(data: Path, clip: str) -> Path:
    """Return the path of a clip's face feature: a pickle of float32 (4096,) for VGG-Face, (128,) for dlib."""
    return Path(data) / "embeddings" / f"{clip}.pkl"


def face_path(data: Path, clip: str) -> Path:
    """Return the path of a clip's face crop: a JPEG of FACE_SIZE x FACE_SIZE pixels."""
    return Path(data) / "faces" / f"{clip}.jpg"


def portrait_path(data: Path, clip: str) -> Path:
    """Return the path of a portrait, the head with hair and neck: a JPEG, in whose pixels the landmarks are."""
    return Path(data) / "portraits" / f"{clip}.jpg"


def landmarks_path(data: Path, clip: str) -> Path:
    """Return the path of a portrait's landmarks: a pickle of float32 (68, 2)."""
    return Path(data) / "landmarks" / f"{clip}.pkl"


def ready_clips(data: Path) -> list[str]:
    """Return the names of all clips under `data` that have spectrogram, face feature and face, sorted.

    Raises:
        InputError: if there are none.
    """
    paths = {"spectrogram_bytes": spectrogram_path, "embedding_bytes": embedding_path, "face_bytes": face_path}
    clips = listing.names_with(Path(data), {column: path(data, "*") for column, path in paths.items()})
    if not clips:
        raise InputError(f"{data}: expected clips made ready by preprocess.py, found none; run preprocess.py, or pass --data")
    return clips


def ready_faces(data: Path) -> list[str]:
    """Return the names of all clips and photos under `data` that have face feature, portrait and landmarks, sorted.

    Raises:
        InputError: if there are none.
    """
    paths = {"embedding_bytes": embedding_path, "portrait_bytes": portrait_path, "landmarks_bytes": landmarks_path}
    faces = listing.names_with(Path(data), {column: path(data, "*") for column, path in paths.items()})
    if not faces:
        raise InputError(
            f"{data}: expected faces with portraits and landmarks, found none; run preprocess.py with --csv or --faces, or "
            "pass --data"
        )
    return faces


def save_array(path: Path, array: np.ndarray) -> int:
    """Write an array as a pickle, whole or not at all. Returns the size of the file in bytes."""
    return save_bytes(path, pickle.dumps(array, protocol=4))  # a fixed protocol: the same bytes with every Python


class _Dtype:
    """Replaces numpy.dtype while unpickling: numbers only."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[<>|=]?[biuf]\d", code):
            raise pickle.UnpicklingError(f"refused dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replaces numpy.ndarray while unpickling."""

    def __init__(self, *_):
        self.array = None

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, content = state
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran_order else "C").copy()


def _array_of_buffer(content, dtype, shape, order, *_):
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


# The opcodes of numpy's pickles, from protocol 3 up.
_NUMPY_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GLOBAL STACK_GLOBAL REDUCE BUILD MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
"""


class _ArrayUnpickler(pickle.Unpickler):
    """Admits the parts of a pickled numpy array and nothing else: a pickle can otherwise run any code."""

    # numpy 2 writes `numpy._core`, numpy 1 `numpy.core`; protocol 5 writes `_frombuffer`.
    STAND_INS: typing.ClassVar = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): None,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("_core", "core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("_core", "core")},
    }

    OPCODES: typing.ClassVar = frozenset(_NUMPY_OPCODES.split())

    def __init__(self, content: bytes):
        for opcode, argument, _ in pickletools.genops(content):  # executes nothing, and never reads past the end
            if opcode.name not in self.OPCODES:
                raise pickle.UnpicklingError(f"refused opcode {opcode.name}")
            if opcode.name == "LONG_BINPUT" and argument > 1000:
                raise pickle.UnpicklingError(f"refused memo {argument}")  # this memo would fill the memory
        super().__init__(io.BytesIO(content))

    def find_class(self, module, name):
        try:
            return self.STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}") from None


@functools.lru_cache(maxsize=16)
def _opcodes_around(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return what `save_array` writes before and after the numbers of an array."""
    numbers = bytes([165]) * (dtype.itemsize * math.prod(shape))  # 165: no such opcode, so that the numbers are found
    header, _, tail = pickle.dumps(np.frombuffer(numbers, dtype).reshape(shape), protocol=4).partition(numbers)
    return header, tail


def _unpickled(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array in a pickle. One that `save_array` wrote is known by the bytes around its numbers, all others by every
    opcode. Raises any exception for what is no pickle of an array.
    """
    header, tail = _opcodes_around(dtype, shape)
    n_bytes = dtype.itemsize * math.prod(shape)
    ours = n_bytes and len(content) == len(header) + n_bytes + len(tail) and content.startswith(header)
    if ours and content.endswith(tail):
        return np.frombuffer(content, dtype, math.prod(shape), len(header)).reshape(shape).copy()
    return _ArrayUnpickler(content).load().array


def load_array(path: Path, dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array of floats from a pickle.

    Args:
        path: the pickle. Files of the original project are read too: they may have another float dtype, or more axes of
            length 1, and are converted.
        dtype: the expected float dtype.
        shape: the expected shape.

    Returns:
        The array.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file is not a pickle of one plain array, or the array has another dtype or shape.
    """
    expected = f"{np.dtype(dtype)} {tuple(shape)}"
    content = Path(path).read_bytes()
    try:
        array = _unpickled(content, np.dtype(dtype), tuple(shape))
    except Exception as error:  # broken bytes may make the unpickler raise anything
        raise InputError(f"{path}: expected a pickle of {expected}, found {error}; delete it, rerun preprocess.py") from error
    same_axes = [n for n in array.shape if n != 1] == [n for n in shape if n != 1]
    if array.dtype.kind != "f" or not same_axes:
        found, wanted = (_FACE_MODELS.get(math.prod(size)) for size in (array.shape, shape))
        next_step = "delete it, rerun preprocess.py"
        if found and wanted and found != wanted:
            next_step = f"made with --face-model {found}: run preprocess.py --face-model {wanted}"
        raise InputError(f"{path}: expected {expected}, found {array.dtype} {array.shape}; {next_step}")
    if array.dtype != dtype and not (np.abs(array) <= np.finfo(dtype).max).all():
        raise InputError(
            f"{path}: expected {expected}, found numbers that {np.dtype(dtype)} cannot hold; delete it, rerun preprocess.py"
        )
    return array.astype(dtype, copy=False).reshape(shape)


def load_spectrogram(data: Path, clip: str) -> np.ndarray:
    """Read a clip's spectrogram, float16 (N_FRAMES, N_BINS, 2). Raises FileNotFoundError, InputError as `load_array`."""
    return load_array(spectrogram_path(data, clip), np.float16, (N_FRAMES, N_BINS, 2))


def load_embedding(data: Path, clip: str, feature_size: int) -> np.ndarray:
    """Read a clip's face feature.

    Returns:
        float32 (feature_size,).

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file holds something else, or numbers that are not finite.
    """
    return _finite(embedding_path(data, clip), (feature_size,))


def load_landmarks(data: Path, clip: str) -> np.ndarray:
    """Read the landmarks of a clip or photo, float32 (N_LANDMARKS, 2), pixels. Raises FileNotFoundError, InputError."""
    return _finite(landmarks_path(data, clip), (N_LANDMARKS, 2))


def _finite(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a float32 array of finite numbers. Raises FileNotFoundError, InputError."""
    array = load_array(path, np.float32, shape)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: expected finite numbers, found nan or inf; delete it, rerun preprocess.py")
    return array


def feature_size_of(data: Path, clip: str) -> int:
    """Return how many numbers a clip's face feature has.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file holds no face feature of a size in FEATURE_SIZE.
    """
    for size in sorted(FEATURE_SIZE.values()):
        try:
            return len(load_embedding(data, clip, size))
        except InputError as error:
            problem = error
    raise problem
