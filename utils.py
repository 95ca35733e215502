"""Shared by all: constants, the command line, runs by name, files that are whole or absent, the split.

Never imports TensorFlow or Keras: the worker processes of preprocess.py import this, and are to start fast and stay small.
"""

import argparse
import atexit
import dataclasses
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import secrets
import select
import shutil
import sys
import tempfile
import time
import typing
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit(
        "error: expected the package numpy, found none; run: source .venv/bin/activate (make install creates .venv)"
    ) from None

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no log lines from TensorFlow; its errors are exceptions too
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # twice as fast on CPUs without AVX-512, where it is off by default

VERSION = "0.2.0"  # as in CHANGELOG.md and CITATION.cff

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
MIN_SECONDS = 2.61  # s, the shortest clip: the voice encoder needs 259 frames

# Faces.
FACE_SIZE = 224  # pixels, side of a face crop: VGG-Face's input
N_LANDMARKS = 68  # of a face, by dlib
FEATURE_SIZE = {"vggface": 4096, "dlib": 128}  # numbers in a face feature, for each --face-model

# The share of people in each part of the split, in this order.
SPLIT = {"train": 0.8, "val": 0.1, "test": 0.1}

DATA = Path("data")
CHECKPOINTS = Path("checkpoints")
VOICE_RUN, DECODER_RUN = "base", "decoder"  # the runs that are written, and evaluated, where none is named
PRETRAINED_RUN = "pretrained"  # the run that comes with the project
PRETRAINED = Path(__file__).resolve().parent / CHECKPOINTS / PRETRAINED_RUN
# Files in the folder of a run.
OPTIONS, CLIPS, CENTRE, HISTORY = "options.json", "clips.json", "centre.pkl", "history.jsonl"
SPLIT_FILE = "split.csv"  # of a run whose split is read from a file
LIKELY, CERTAINTY, METRICS = "likely.npz", "certainty.npz", "metrics.json"
HASH_LETTERS = 16  # hexadecimal, of the hashes that stand for names
UNFINISHED = ".part-"  # how the name of a file begins that is being written
LEFTOVER_SECONDS = 86_400  # s, age at which unfinished files count as those of a killed process
BEST_WEIGHTS, LAST_WEIGHTS = "best.weights.h5", "last.weights.h5"
COMPACT_WEIGHTS = "weights.npz"  # in place of the best weights in a run that was made to be shared


class InputError(ValueError):
    """Bad input. The message is one line: file or option, what was expected, what was found, the next step.

    The scripts report this error in one line; our own mistakes keep their traceback.
    """


# ----------------------------------------------------------------------------------------------------------------------
# The command line. One frozen dataclass per command holds every default; argparse is filled from it.


def option(help: str, default=dataclasses.MISSING, group: str | None = None, **for_argparse):
    """Declare an option as a dataclass field.

    Args:
        help: its text in --help.
        default: an option without a default is required.
        group: heading above it in --help.
        for_argparse: `metavar`, `nargs`, `choices`; `positional=True` for an argument without a name.
    """
    return dataclasses.field(default=default, metadata={"help": help, "group": group, **for_argparse})


class _Parser(argparse.ArgumentParser):
    """Reports a bad option in one line; argparse alone lists all options before it."""

    def error(self, message):
        self.exit(2, f"error: {message}; {self.prog} --help lists all options\n")


def _parser_of(options_class, description: str, prog: str, commands) -> argparse.ArgumentParser:
    """Return the parser of the options, in the order of the fields, under the headings of their groups."""
    parser = _Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    positionals, groups = "", {None: parser}
    types = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        arguments = dict(field.metadata)
        group, positional = arguments.pop("group"), arguments.pop("positional", False)
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        kind = (typing.get_args(types[field.name]) or (types[field.name],))[0]  # Path | None and tuple[int, ...] too
        if kind is bool:
            arguments["action"] = "store_true"
        else:
            arguments["type"] = kind
            if "choices" not in arguments:
                arguments.setdefault("metavar", kind.__name__.upper())
            if field.default is not dataclasses.MISSING:
                arguments["default"] = field.default
            elif not positional:
                arguments["required"] = True
                arguments["help"] += " (required)"
            if field.default not in (dataclasses.MISSING, None, ()):
                shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
                arguments["help"] += f" (default: {shown})"
        arguments["help"] = arguments["help"].replace("%", "%%")
        groups[group].add_argument(field.name if positional else "--" + field.name.replace("_", "-"), **arguments)
        positionals += f" {arguments['metavar']} ..." if positional else ""
    parser.add_argument("--version", action="version", version=f"Speech2Face {VERSION}", help="show the version and exit")
    forms = ("", *(f" {command}" for command in commands))
    parser.usage = "\n       ".join(f"{prog}{form}{positionals} [options]" for form in forms)
    return parser


def parse_options(options_class, description: str, argv=None, commands=None):
    """Read a script's command line into its options.

    The field `batch_size: int` is the option `--batch-size INT`; a bool is a switch, a tuple takes several values.

    Args:
        options_class: frozen dataclass with fields made by `option`; its `__post_init__` raises ValueError on bad values.
        description: the script's docstring, shown by --help.
        argv: list of str, or None for the process's own command line.
        commands: of each subcommand, named by the first word of the command line, its options_class and description.

    Returns:
        An instance of options_class, or of the subcommand's.

    Raises:
        SystemExit: after --help (code 0), or after one line about bad options (code 2).
    """
    arguments, commands = list(sys.argv[1:] if argv is None else argv), commands or {}
    prog = Path(sys.argv[0]).name
    if arguments and arguments[0] in commands:
        prog, (options_class, description) = f"{prog} {arguments[0]}", commands[arguments[0]]
        arguments, commands = arguments[1:], {}
    parser = _parser_of(options_class, description, prog, commands)
    values = vars(parser.parse_args(arguments))
    try:
        return options_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except ValueError as error:
        parser.error(str(error))


def options_given(argv=None) -> set[str]:
    """Return the names of the fields that a command line sets."""
    arguments = sys.argv[1:] if argv is None else argv
    return {word.partition("=")[0][2:].replace("-", "_") for word in arguments if word.startswith("--")}


def printable(text) -> str:
    """Return a text in one line: line breaks and other letters that no terminal shows become escapes, such as \\n."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def check(valid: bool, message: str) -> None:
    """Raise ValueError with the message unless the value is valid."""
    if not valid:
        raise ValueError(message)


def _print_any_letter() -> None:
    """Let stdout and stderr escape the letters that the terminal's encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _find_caches() -> None:
    """Give libraries a temporary folder for their caches where the home folder cannot be written to, as in containers.

    librosa's compiler, numba, fails otherwise; matplotlib warns, and yt-dlp starts afresh with each video.
    """

    def is_writable(path: Path) -> bool:
        existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
        return path.is_absolute() and os.access(existing, os.W_OK | os.X_OK)

    homes = {"XDG_CACHE_HOME": "~/.cache", "XDG_CONFIG_HOME": "~/.config"}  # and where they are by default
    if all(is_writable(Path(os.environ.get(name) or os.path.expanduser(usual))) for name, usual in homes.items()):
        return
    folder = tempfile.mkdtemp(prefix="speech2face-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = folder  # for worker processes too
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        os.environ.setdefault(name, folder)


def _has_no_reader(stream) -> bool:
    """Tell whether whoever reads a stream has ended, such as `| head`."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


def reporting_errors(main):
    """Make a script's `main` end in one line on stderr and exit code 1 (130 after Ctrl-C) where the user can help."""

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        try:
            _print_any_letter()
            _find_caches()
            return main(argv)
        except (InputError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _has_no_reader(sys.stdout):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            print(f"error: {printable(error)}", file=sys.stderr)
            return 1
        except ModuleNotFoundError as error:
            module = Path(__file__).with_name(error.name.partition(".")[0])
            if module.exists() or module.with_suffix(".py").exists():  # of this project: our own mistake
                raise
            expected = f"expected the package {error.name}, found none"
            print(f"error: {expected}; run: source .venv/bin/activate (make install creates .venv)", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; all files written so far are complete", file=sys.stderr)
            return 130

    return wrapped


def leave(code: int) -> None:
    """End the process at once, after what is registered to be done at exit: TensorFlow takes a second to be taken apart."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def run_folder(run: str) -> Path:
    """Return the folder of a run: `checkpoints/<run>` for a plain name, the path itself for anything with a slash.

    The run that comes with the project is found from any folder.
    """
    folder = Path(run) if "/" in str(run) or os.sep in str(run) else CHECKPOINTS / run
    return PRETRAINED if str(run) == PRETRAINED_RUN and not folder.exists() else folder


def existing_run(run: str) -> Path:
    """Return the folder of a run. Raises InputError, with the names of the existing runs, if there is none."""
    folder = run_folder(run)
    if not (folder / OPTIONS).is_file():
        runs = sorted(path.parent.name for path in CHECKPOINTS.glob(f"*/{OPTIONS}"))
        advice = f"the runs in {CHECKPOINTS} are: {', '.join(runs)}" if runs else "make one with train.py"
        raise InputError(f"{folder}: expected a run of train.py, found none; {advice}")
    return folder


def normalise(features: np.ndarray) -> np.ndarray:
    """Scale each row to length 1. float (N, D) -> float (N, D); a row of zeros stays."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def check_directions(directions: np.ndarray) -> None:
    """Raise ValueError unless each row, (N, D), has length 1, as directions from the centre have and face features have not."""
    lengths = np.linalg.norm(directions, axis=-1)
    if directions.ndim != 2 or not np.allclose(lengths, 1, atol=1e-3):
        found = (
            f"shape {directions.shape}" if directions.ndim != 2 else f"lengths from {lengths.min():.3g} to {lengths.max():.3g}"
        )
        raise ValueError(
            f"directions: expected (N, D), each of length 1, as seen from the centre, found {found}; of a face feature: "
            "utils.normalise(features - centre)"
        )


def frames_in(seconds: float) -> int:
    """Return the number of spectrogram frames in a sound of this length, N_FRAMES at most."""
    return min(N_FRAMES, 1 + (round(seconds * SAMPLE_RATE) - WINDOW) // HOP)


# ----------------------------------------------------------------------------------------------------------------------
# Names of clips, and files.


def clip_name(video_id: str, start: float, end: float) -> str:
    """Return a clip's name, `<id>_<start>-<end>`, with times in seconds as %010.6f: as the paper's authors name clips."""
    return f"{video_id}_{start:010.6f}-{end:010.6f}"


def person_of(clip: str) -> str:
    """Return the person in a clip's name: all before the last underscore; the video's id where the person is not known."""
    return clip.rpartition("_")[0]


def hashed(clip: str) -> str:
    """Return the name of a clip in runs that are shared: the hashes of its person and of itself, joined as names are."""
    return f"{hash_of(person_of(clip))}_{hash_of(clip)}"


def hash_of(name: str) -> str:
    """Return the hash that stands for the name of a person or a clip in runs that are shared."""
    return hashlib.sha256(name.encode()).hexdigest()[:HASH_LETTERS]


@contextmanager
def replacing(path: Path):
    """Yield a temporary path, which replaces `path` when the block succeeds and is removed when it fails.

    The temporary name is new each time, for another process may write the same file. A killed process leaves at most the
    temporary file, which `remove_leftovers` deletes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk: the error names no file
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, prefix: str = UNFINISHED) -> None:
    """Delete the files and folders of killed processes: those older than a day whose names begin with `prefix`."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.startswith(prefix)]
    except OSError:  # no such folder, or one that cannot be read
        return
    for entry in entries:
        with suppress(OSError):  # another process deletes it, or the folder cannot be written to
            if entry.stat(follow_symlinks=False).st_mtime >= time.time() - LEFTOVER_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def save_bytes(path: Path, content: bytes) -> int:
    """Write a file, whole or not at all. Returns its size in bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def save_new(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all, without replacing another one.

    Where a file of other content has the name, -2, -3, ... is added to it.

    Returns:
        The path of the file with this content.
    """
    path = Path(path)
    names = itertools.chain([path.name], (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(2)))
    for candidate in map(path.with_name, names):
        if not candidate.exists():
            save_bytes(candidate, content)
            return candidate
        if candidate.read_bytes() == content:
            return candidate


def write_json(path: Path, values: dict) -> None:
    """Write a dictionary as JSON, whole or not at all; paths become text."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")


@contextmanager
def stderr_to(path: Path):
    """Redirect stderr of this process and its children to a file while the block runs."""
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


# ----------------------------------------------------------------------------------------------------------------------
# The split.


def part_of(person: str, seed: int, parts: tuple[str, ...] = tuple(SPLIT)) -> str:
    """Return the part of the split that a person belongs to: a pure function of the name and the seed.

    The part is the same in every process and order, and stays the same when clips are added. All clips of a person share it.

    Returns:
        One of `parts`, in proportion to their shares in SPLIT.
    """
    digest = hashlib.sha256(f"{seed}:{person}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64  # [0, 1)
    position *= sum(SPLIT[part] for part in parts)
    for part in parts:
        position -= SPLIT[part]
        if position < 0:
            return part
    return part  # rounding of the shares' sum


def split_clips(clips: list[str], seed: int) -> dict[str, list[str]]:
    """Divide clips into the parts of the split, each in the order given. Splits from a file: `clips.splits`."""
    parts = {part: [] for part in SPLIT}
    for clip in clips:
        parts[part_of(person_of(clip), seed)].append(clip)
    return parts


def sample_clips(clips: list[str], most: int, seed: int) -> list[str]:
    """Return the clips, or a random sample of `most` of them, in the order given."""
    chosen = np.random.default_rng(seed).permutation(len(clips))[:most]
    return [clips[number] for number in sorted(chosen)]
