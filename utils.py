"""What the scripts share and no network needs: constants, options, clip names, feature files, the split.

Never imports TensorFlow or Keras, so that the worker processes of preprocess.py start fast and stay small.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
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
VOICE_RUN, DECODER_RUN = "base", "decoder"  # the runs that are meant where none is named
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


def option(help: str, default=dataclasses.MISSING, group: str | None = None, **for_argparse):
    """Declare an option as a dataclass field.

    Args:
        help: what --help says of it.
        default: without one it is required.
        group: heading in --help.
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
    forms = ("", *(f" {command}" for command in commands))
    parser.usage = "\n       ".join(f"{prog}{form}{positionals} [options]" for form in forms)
    return parser


def parse_options(options_class, description: str, argv=None, commands=None):
    """Read a script's command line into its options.

    The field `batch_size: int` is the option `--batch-size INT`; a bool is a switch, a tuple takes several values.

    Args:
        options_class: frozen dataclass with fields made by `option`; its `__post_init__` raises ValueError on bad values.
        description: the script's docstring, which --help shows as it stands.
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


def normalise(features: np.ndarray) -> np.ndarray:
    """Scale each row to length 1. float (N, D) -> float (N, D); a row of zeros stays."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)


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


def sample_clips(clips: list[str], most: int, seed: int) -> list[str]:
    """Return the clips, or `most` of them drawn at random, in the order given."""
    drawn = np.random.default_rng(seed).permutation(len(clips))[:most]
    return [clips[number] for number in sorted(drawn)]
