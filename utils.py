"""What the scripts share and no network needs: constants, options, clip names, feature files, the split.

Never imports TensorFlow or Keras, so that the worker processes of preprocess.py start fast and stay small.
"""

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import sys
import typing
from contextlib import contextmanager
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's chatter, if it is started; its errors are exceptions too
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # twice as fast on CPUs without AVX-512, where it is off by default

# Sound. Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
SAMPLE_RATE = 16_000  # Hz, mono
CLIP_SECONDS = 6  # s; shorter clips are repeated, longer ones cut
WINDOW = 400  # samples, 25 ms, periodic Hann
HOP = 160  # samples, 10 ms
FFT_SIZE = 512  # samples
POWER = 0.3  # exponent of the power-law compression, no unit
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE  # 96 000
N_FRAMES = 1 + (CLIP_SAMPLES - WINDOW) // HOP  # 598
N_BINS = FFT_SIZE // 2 + 1  # 257
MIN_SECONDS = 2.61  # s; the voice encoder needs 259 frames

# Faces.
FACE_SIZE = 224  # pixels, side of a face crop: VGG-Face's input
N_LANDMARKS = 68  # of dlib, in a face
FEATURE_SIZE = {"vggface": 4096, "dlib": 128}  # numbers in a face feature, for each --face-model

# The share of the videos in each part of the split, in this order.
SPLIT = {"train": 0.8, "val": 0.1, "test": 0.1}

DATA = Path("data")
CHECKPOINTS = Path("checkpoints")
# In a run's folder.
OPTIONS, CLIPS, CENTRE, HISTORY = "options.json", "clips.json", "centre.pkl", "history.jsonl"
CORRECTION = "correction.pkl"
BEST_WEIGHTS, LAST_WEIGHTS = "best.weights.h5", "last.weights.h5"


class InputError(ValueError):
    """Bad input. Its message is one line: the file or option, what was expected, what was found, the next step.

    A class of its own, so that a script can report it in a line while our own mistakes keep their traceback.
    """


# ----------------------------------------------------------------------------------------------------------------------
# The command line. One frozen dataclass per script holds every default; argparse is filled from it.


def option(help: str, default=dataclasses.MISSING, **for_argparse):
    """Declare an option as a dataclass field: what --help says of it, its default (without one it is required)."""
    return dataclasses.field(default=default, metadata={"help": help, **for_argparse})


def parse_options(options_class, description: str, argv=None):
    """Read a script's command line into its options.

    The field `batch_size: int` is the option `--batch-size INT`; a bool is a switch, a tuple takes several values.

    Args:
        options_class: frozen dataclass with fields made by `option`; its `__post_init__` raises ValueError on bad values.
        description: the script's docstring, which --help shows as it stands.
        argv: list of str, or None for the process's own command line.

    Returns:
        An instance of options_class.

    Raises:
        SystemExit: after --help (code 0), or after one line about bad options (code 2).
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    types = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        arguments = dict(field.metadata)
        kind = (typing.get_args(types[field.name]) or (types[field.name],))[0]  # Path | None and tuple[int, ...] too
        if kind is bool:
            arguments["action"] = "store_true"
        else:
            arguments["type"] = kind
            if "choices" not in arguments:
                arguments.setdefault("metavar", kind.__name__.upper())
            if field.default is dataclasses.MISSING:
                arguments["required"] = True
            else:
                arguments["default"] = field.default
            if field.default not in (dataclasses.MISSING, None, ()):
                shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
                arguments["help"] += f" (default: {shown})"
        arguments["help"] = arguments["help"].replace("%", "%%")
        parser.add_argument("--" + field.name.replace("_", "-"), **arguments)
    values = vars(parser.parse_args(argv))
    try:
        return options_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except ValueError as error:
        parser.error(str(error))


def options_given(argv=None) -> set[str]:
    """Return the names of the fields that a command line names, whatever their values."""
    arguments = sys.argv[1:] if argv is None else argv
    return {word.partition("=")[0][2:].replace("-", "_") for word in arguments if word.startswith("--")}


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def reporting_errors(main):
    """Make a script's `main` end in one line on stderr and exit code 1 (130 after Ctrl-C) where input or disk is at fault."""

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        try:
            return main(argv)
        except (InputError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; what is written so far is complete", file=sys.stderr)
            return 130

    return wrapped


def run_folder(run: str) -> Path:
    """Return the folder of a run: `checkpoints/<run>` for a plain name, the path itself for anything with a slash."""
    return Path(run) if len(Path(run).parts) > 1 else CHECKPOINTS / run


def frames_in(seconds: float) -> int:
    """Return how many spectrogram frames so much sound gives, N_FRAMES at most."""
    return min(N_FRAMES, 1 + (round(seconds * SAMPLE_RATE) - WINDOW) // HOP)


# ----------------------------------------------------------------------------------------------------------------------
# Clips and their files.


def clip_name(video_id: str, start: float, end: float) -> str:
    """Return a clip's name, `<id>_<start>-<end>`, with times in seconds as %010.6f: the naming of the paper's authors."""
    return f"{video_id}_{start:010.6f}-{end:010.6f}"


def video_of(clip: str) -> str:
    """Return the video id in a clip's name: all before the last underscore (an id may hold underscores itself)."""
    return clip.rpartition("_")[0]


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
    """Return the path of a head and what is around it: a JPEG; the landmarks are in its pixels."""
    return Path(data) / "portraits" / f"{clip}.jpg"


def landmarks_path(data: Path, clip: str) -> Path:
    """Return the path of a portrait's landmarks: a pickle of float32 (68, 2)."""
    return Path(data) / "landmarks" / f"{clip}.pkl"


def _names_with(*of_any) -> list[str]:
    """Return the names for which there is a file at each of several paths, which have * in the name's place; sorted."""
    names = [{path.stem for path in of.parent.glob(of.name) if not path.name.startswith(".")} for of in of_any]
    return sorted(set.intersection(*names))


def ready_clips(data: Path) -> list[str]:
    """Return the names of all clips under `data` that have spectrogram, face feature and face, sorted.

    Raises:
        InputError: if there is none.
    """
    clips = _names_with(spectrogram_path(data, "*"), embedding_path(data, "*"), face_path(data, "*"))
    if not clips:
        raise InputError(f"{data}: expected clips made ready by preprocess.py, found none; run preprocess.py, or name --data")
    return clips


def ready_faces(data: Path) -> list[str]:
    """Return the names of all clips and photos under `data` that have face feature, portrait and landmarks, sorted.

    Raises:
        InputError: if there is none.
    """
    faces = _names_with(embedding_path(data, "*"), portrait_path(data, "*"), landmarks_path(data, "*"))
    if not faces:
        raise InputError(
            f"{data}: expected faces with portraits and landmarks, found none; run preprocess.py, with --csv or --faces, or "
            "name --data"
        )
    return faces


@contextmanager
def replacing(path: Path):
    """Give a temporary path beside `path`, which takes its place when the block ends well and goes when it fails.

    A process killed half-way leaves at most the temporary, whose name starts with a dot; the next try writes over it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_bytes(path: Path, content: bytes) -> int:
    """Write a file, whole or not at all. Returns its size in bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def save_array(path: Path, array: np.ndarray) -> int:
    """Write one array as a pickle, whole or not at all. Returns the file's size in bytes."""
    return save_bytes(path, pickle.dumps(array, protocol=4))  # one protocol for all Pythons: the same bytes everywhere


def write_json(path: Path, values: dict) -> None:
    """Write a dictionary as JSON, whole or not at all; paths become text."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")


@contextmanager
def stderr_to(path: Path):
    """Send what this process and its children write to stderr to a file while the block runs."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)


class _Dtype:
    """Stands for numpy.dtype while unpickling: numbers only."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[<>|=]?[biuf]\d", code):
            raise pickle.UnpicklingError(f"refused dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray while unpickling."""

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
    """Admits what a pickled numpy array consists of and nothing else: a pickle can otherwise run any code."""

    # numpy 2 writes `numpy._core`, numpy 1 `numpy.core`; protocol 5 writes `_frombuffer`.
    STAND_INS: typing.ClassVar = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): None,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("_core", "core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("_core", "core")},
    }

    OPCODES: typing.ClassVar = frozenset(_NUMPY_OPCODES.split())

    def __init__(self, content: bytes):
        for opcode, argument, _ in pickletools.genops(content):  # reads on without acting, and never past the end
            if opcode.name not in self.OPCODES:
                raise pickle.UnpicklingError(f"refused opcode {opcode.name}")
            if opcode.name == "LONG_BINPUT" and argument > 1000:
                raise pickle.UnpicklingError(f"refused memo {argument}")  # the memo would fill the memory
        super().__init__(io.BytesIO(content))

    def find_class(self, module, name):
        try:
            return self.STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}") from None


def load_array(path: Path, dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Read one array of floats from a pickle.

    Args:
        path: the pickle. The original project's are read too: another float dtype, or more axes of length 1, are converted.
        dtype: the float dtype that the array is to have.
        shape: the shape that it is to have.

    Returns:
        The array.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file is no pickle of one plain array, or the array is another.
    """
    expected = f"{np.dtype(dtype)} {tuple(shape)}"
    content = Path(path).read_bytes()
    try:
        array = _ArrayUnpickler(content).load().array
    except Exception as error:  # broken bytes may make the unpickler raise anything
        raise InputError(f"{path}: expected a pickle of {expected}, found {error}; delete it, rerun preprocess.py") from error
    same_axes = [n for n in array.shape if n != 1] == [n for n in shape if n != 1]
    if array.dtype.kind != "f" or not same_axes:
        raise InputError(
            f"{path}: expected {expected}, found {array.dtype} {array.shape}; "
            "made with another --face-model? rerun preprocess.py"
        )
    if array.dtype != dtype and not (np.abs(array) <= np.finfo(dtype).max).all():
        raise InputError(f"{path}: expected {expected}, found numbers that it cannot hold; delete it, rerun preprocess.py")
    return array.astype(dtype, copy=False).reshape(shape)


def load_spectrogram(data: Path, clip: str) -> np.ndarray:
    """Read a clip's spectrogram, float16 (N_FRAMES, N_BINS, 2). Raises FileNotFoundError, InputError as `load_array`."""
    return load_array(spectrogram_path(data, clip), np.float16, (N_FRAMES, N_BINS, 2))


def load_embedding(data: Path, clip: str, feature_size: int) -> np.ndarray:
    """Read a clip's face feature.

    Returns:
        float32 (feature_size,).

    Raises:
        FileNotFoundError: if there is none.
        InputError: if it is something else, or not finite.
    """
    return _finite(embedding_path(data, clip), (feature_size,))


def load_landmarks(data: Path, clip: str) -> np.ndarray:
    """Read the landmarks of a clip or photo, float32 (N_LANDMARKS, 2), pixels. Raises FileNotFoundError, InputError."""
    return _finite(landmarks_path(data, clip), (N_LANDMARKS, 2))


def _finite(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array, float32, of finite numbers. Raises FileNotFoundError, InputError."""
    array = load_array(path, np.float32, shape)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: expected finite numbers, found nan or inf; delete it, rerun preprocess.py")
    return array


def feature_size_of(data: Path, clip: str) -> int:
    """Return how many numbers a clip's face feature has.

    Raises:
        FileNotFoundError: if there is none.
        InputError: if it is no face feature of a size in FEATURE_SIZE.
    """
    for size in sorted(FEATURE_SIZE.values()):
        try:
            return len(load_embedding(data, clip, size))
        except InputError as error:
            problem = error
    raise problem


# ----------------------------------------------------------------------------------------------------------------------
# The split.


def part_of(video_id: str, seed: int) -> str:
    """Return the part of the split that a video belongs to: a pure function of its id and the seed.

    It is the same in every process and order, and stays when clips are added; all clips of a video share one part.

    Returns:
        "train", "val" or "test", in the shares of SPLIT.
    """
    digest = hashlib.sha256(f"{seed}:{video_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64  # [0, 1)
    for part, share in SPLIT.items():
        position -= share
        if position < 0:
            return part
    return part  # rounding of the shares' sum


def split_clips(clips: list[str], seed: int) -> dict[str, list[str]]:
    """Divide clips into the parts of the split, each in the order given."""
    parts = {part: [] for part in SPLIT}
    for clip in clips:
        parts[part_of(video_of(clip), seed)].append(clip)
    return parts


def draw_clips(clips: list[str], most: int, seed: int) -> list[str]:
    """Return the clips, or `most` of them drawn at random, in the order given."""
    drawn = np.random.default_rng(seed).permutation(len(clips))[:most]
    return [clips[number] for number in sorted(drawn)]
