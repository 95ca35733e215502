"""Who trains, who validates and who is tested: by a hash of people's names, or as a file says, such as a data set's own split.

Never imports TensorFlow.
"""

import collections
import csv
import dataclasses
import functools
import io
import re
from fnmatch import fnmatchcase
from pathlib import Path

import utils
from clips import people
from clips.folders import clip_name, person_name, recording_of, without_suffix
from utils import InputError

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "splits"  # the splits that come with the project
NONE = "none"  # in no part
# How files name the parts: in words, by VoxCeleb's iden_split.txt, and by PINs' identity_splits.txt, whose 4 is the test of
# people whom training neither saw nor heard.
WORDS = {
    **{"train": "train", "training": "train", "dev": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test", NONE: NONE},
}
OF_CLIPS = {"1": "train", "2": "val", "3": "test"}
OF_PEOPLE = {**OF_CLIPS, "4": "test"}
EXPECTED = (
    "a split (a csv with a Set column, VoxCeleb's iden_split.txt or veri_test.txt, PINs' identity_splits.txt, AVSpeech's test "
    "csv, a list of test people, or lines such as test,NAME or test,C*)"
)
NEXT_STEP = "docs/training.md describes the formats"
EXPECTED_NAMES = "a csv that gives people their other names, such as vox1_meta.csv"
_VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # as in a csv of clips


@dataclasses.dataclass(frozen=True)
class Split:
    """A split, of `read_split` or `read_kept`. Without `named` and `patterns`, people are divided by a hash."""

    seed: int
    named: dict[str, str] = dataclasses.field(default_factory=dict)  # from people and clips to their part, or NONE
    patterns: tuple[tuple[str, str], ...] = ()  # of names of people, with * and ?, and their parts; the first that fits counts
    name: str | None = None  # of the split in SHIPPED with the same content
    hashed: bool = False  # whether `named` holds hashes, utils.hash_of, instead of names
    path: Path | None = None  # the file that was read
    entries: dict[str, str] = dataclasses.field(default_factory=dict)  # from each name to the first of its person's, to count

    @property
    def is_of_file(self) -> bool:
        """Whether a file says who is in which part."""
        return bool(self.named or self.patterns)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """What a line of a file says: the part of a person or clip, by its names, or of the people whom a pattern fits."""

    line: int
    part: str
    names: tuple[str, ...] = ()
    pattern: str = ""


# ----------------------------------------------------------------------------------------------------------------------
# Dividing clips.


def divide(split: Split, clips: list[str]) -> dict[str, list[str]]:
    """Divide clips into the parts of a split, each in the order given.

    A clip that the file names goes to its part, as do the further clips of the same recording; another clip goes to its
    person's part. People that the file does not name train where the file names no training people, and are left out otherwise.
    Where the file names no validation people, a hash takes them from the training people: a pure function of name and seed.

    Returns:
        The clips of each part of utils.SPLIT. Clips in no part are left out.
    """
    if not split.is_of_file:
        return utils.split_clips(clips, split.seed)
    part_of_clip, named = _by_file(split), _parts_named(split)
    parts = {part: [] for part in utils.SPLIT}
    for clip in clips:
        part = part_of_clip(clip) or (NONE if "train" in named else "train")
        if part == "train" and "val" not in named:
            # Another hash than that of a split without a file: test people chosen by that one would leave few to validate.
            part = utils.part_of(f"validation:{utils.person_of(clip)}", split.seed, ("train", "val"))
        if part != NONE:
            parts[part].append(clip)
    return parts


def _parts_named(split: Split) -> set[str]:
    return {*split.named.values(), *(part for _, part in split.patterns)}


def _by_file(split: Split):
    """Return the function from a clip to the part that the file gives it, perhaps NONE; None if the file does not name it."""
    key = utils.hash_of if split.hashed else str

    @functools.cache
    def of_person(person: str) -> str | None:
        return split.named.get(key(person)) or _of_patterns(split.patterns, (person,))

    def of_clip(clip: str) -> str | None:
        return split.named.get(key(clip)) or split.named.get(key(recording_of(clip))) or of_person(utils.person_of(clip))

    return of_clip


def _of_patterns(patterns, names) -> str | None:
    """Return the part of the first pattern that fits one of the names; None if none does."""
    return next((part for pattern, part in patterns if any(fnmatchcase(name, pattern) for name in names)), None)


def notes_on(split: Split, clips: list[str]) -> list[str]:
    """Return a line for each thing that a user of the split should know; none for a split by hash.

    Args:
        split: of `read_split` or `read_kept`.
        clips: those that it divides.
    """
    if not split.is_of_file:
        return []
    parts, named, notes = divide(split, clips), _parts_named(split), []
    if split.entries:
        present = {split.entries.get(name) for clip in clips for name in (clip, utils.person_of(clip))} - {None}
        n = len(set(split.entries.values()))
        notes.append(f"{len(present):,} of the {n:,} people or clips that {split.path} names are in the data")
    people_of_parts = [{utils.person_of(clip) for clip in of_part} for of_part in parts.values()]
    left_out = set(clips).difference(*parts.values())
    if left_out:
        of_people = _counted({utils.person_of(clip) for clip in left_out})
        notes.append(f"{len(left_out):,} of {len(clips):,} clips, of {of_people}, are in no part of the split: left out")
    n_parts = collections.Counter(person for of_part in people_of_parts for person in of_part)
    in_several = [person for person, n in n_parts.items() if n > 1]
    if in_several:
        notes.append(
            f"the clips of {_counted(in_several)}, such as {min(in_several)}, are in more than one part of the split, as in "
            "iden_split.txt: its figures are not those of unseen people"
        )
    if split.path and "val" not in named:
        notes.append("the split names no validation people: a ninth of its training people validate, chosen by --seed")
    if "test" not in named:
        notes.append("the split names no test people: the test set is empty")
    return notes


def _counted(people_found) -> str:
    n = len(people_found)
    return "1 person" if n == 1 else f"{n:,} people"


def check_names(split: Split, clips: list[str], data: Path) -> None:
    """Raise InputError if a split that was read from a file names none of the people and clips in a folder."""
    if not split.is_of_file or not clips or any(map(_by_file(split), clips)):
        return
    example = next(iter(split.named), None) or split.patterns[0][0]
    raise InputError(
        f"{split.path}: expected people or clips of {data}, such as {utils.person_of(clips[0])}, found none, but such as "
        f"{example}; pass --names with a csv of the people's other names, or another --split"
    )


def resolved(split: Split, clips: list[str]) -> Split:
    """Return a split that names the people of clips whom its patterns fit; it divides clips in the same way."""
    people_of_clips = dict.fromkeys(map(utils.person_of, clips)) if split.patterns else ()
    found = {person: _of_patterns(split.patterns, (person,)) for person in people_of_clips}
    return dataclasses.replace(split, named={**{person: part for person, part in found.items() if part}, **split.named})


# ----------------------------------------------------------------------------------------------------------------------
# Reading a file.


def read_split(path: Path | None, names: Path | None, seed: int) -> Split:
    """Read a split from a file, in one of the formats of docs/training.md.

    Args:
        path: of the file; None for a split by hash.
        names: of a csv that gives people their other names; None without.
        seed: of the hash.

    Raises:
        InputError: if a file cannot be read or has another format, or puts a person or clip into two parts.
    """
    if path is None:
        return Split(seed)
    split = _collected(path, _entries(path), seed)
    if not split.is_of_file:
        raise InputError(f"{path}: expected {EXPECTED}, found no name in it; {NEXT_STEP}")
    shipped = (file for file in sorted(SHIPPED.glob("*.csv")) if _is_same(split, _collected(file, _entries(file), seed)))
    split = dataclasses.replace(split, name=next((file.stem for file in shipped), None))
    return _with_names(split, names) if names else split


def _is_same(split: Split, other: Split) -> bool:
    return split.named == other.named and dict(split.patterns) == dict(other.patterns)


def _collected(path: Path, entries: list[_Entry], seed: int) -> Split:
    """Join the lines of a file to a split. Raises InputError if a name or a pattern is in two parts."""
    first, named, patterns, first_names = {}, {}, {}, {}
    for entry in entries:
        names = people.spellings(entry.names)
        for name in names or [entry.pattern]:
            before = first.setdefault(name, entry)
            if before.part != entry.part:
                raise InputError(
                    f"{path}: expected one part for {utils.printable(name)}, found {before.part} in line {before.line} and "
                    f"{entry.part} in line {entry.line}; correct one of them"
                )
        known = next((first_names[name] for name in names if name in first_names), names[0] if names else "")
        for name in names:
            named[name], first_names[name] = entry.part, known
        if not names:
            patterns[entry.pattern] = entry.part
    return Split(seed, named, tuple(patterns.items()), path=path, entries=first_names)


def _with_names(split: Split, path: Path) -> Split:
    """Let a split name people by all their names in a csv; its patterns are tried on all of them. Raises InputError."""
    named, entries = {**split.named}, {**split.entries}
    for person in people.read_people(path, EXPECTED_NAMES):
        names = people.spellings(person.names)
        of_names = {name: named[name] for name in names if name in named}
        if len(set(of_names.values())) > 1:
            found = " and ".join(f"{name} in {part}" for name, part in of_names.items())
            raise InputError(
                f"{path}: expected one part of {split.path} for the person in line {person.line}, found {found}; correct one "
                "of the files"
            )
        part = next(iter(of_names.values()), None) or _of_patterns(split.patterns, names)
        if part:
            known = next((entries[name] for name in names if name in entries), names[0])
            named.update(dict.fromkeys(names, part))
            entries.update(dict.fromkeys(names, known))
    return dataclasses.replace(split, named=named, entries=entries)


def _entries(path: Path) -> list[_Entry]:
    """Read the lines of a file in any of the formats, told apart by the first line. Raises InputError."""
    lines = people.read_cells(path, EXPECTED)
    if not lines:
        raise InputError(f"{path}: expected {EXPECTED}, found an empty file; {NEXT_STEP}")
    cells = lines[0][1]
    names, labels = people.columns_of(cells)
    has_header = bool(names) and "part" in labels
    if has_header and len(cells) > 2:
        return _of_csv(path)
    lines = lines[has_header:]
    cells = lines[0][1] if lines else []
    read, n_cells, entries = _FORMATS.get(len(cells), lambda first: None)(cells), len(cells), []
    for number, cells in lines:
        found = read(number, cells) if read and len(cells) == n_cells else None
        if found is None:
            text = utils.printable(" ".join(cells))[:80]
            raise InputError(f"{path}: expected {EXPECTED}, found in line {number}: {text}; {NEXT_STEP}")
        entries += found
    return entries


def _of_csv(path: Path) -> list[_Entry]:
    """Read a csv with a header, such as vox1_meta.csv. Raises InputError."""
    entries = []
    for person in people.read_people(path, EXPECTED):
        said = person.labels.get("part", NONE)
        part = WORDS.get(said) or OF_PEOPLE.get(said)
        if part is None:
            expected = "train, dev, val, test or none"
            raise InputError(f"{path}: expected {expected} in line {person.line}, found {utils.printable(said)}; {NEXT_STEP}")
        entries.append(_Entry(person.line, part, person.names))
    return entries


# Each of the following takes the cells of the first line, and returns the function from the number and the cells of a line to
# what it says, None for a line that does not fit; or returns None if the file has another format.


def _test_list(first):
    """A list of test people, one a line, by names or by paths that begin with them: their other clips are no training clips."""

    def read(number, cells):
        return [_person(number, "test", cells[0]) if "/" in cells[0] else _entry(number, "test", cells[0])]

    return read


def _two_columns(first):
    """A part, and a name, a path or a pattern, in either order; the digits of parts stand where the two formats have them."""
    for column, parts in ((0, WORDS), (1, WORDS), (0, OF_CLIPS), (1, OF_PEOPLE)):
        if first[column].casefold() in parts and (parts is not OF_CLIPS or "/" in first[1]):
            break
    else:
        return None

    def read(number, cells):
        part = parts.get(cells[column].casefold())
        return [_entry(number, part, cells[1 - column])] if part and cells[1 - column] else None

    return read


def _trials(first):
    """Trials, 0 or 1 and the paths of two clips: all people in them are tested."""

    def read(number, cells):
        if cells[0] not in ("0", "1") or "/" not in cells[1] or "/" not in cells[2]:
            return None
        return [_person(number, "test", path) for path in cells[1:]]

    return read


def _clip_rows(first):
    """Rows of a csv of clips, such as AVSpeech's: id, start, end and the face's centre. All of their ids are tested."""

    def read(number, cells):
        try:
            [float(cell) for cell in cells[1:]]
        except ValueError:
            return None
        return [_Entry(number, "test", (cells[0],))] if _VIDEO_ID.fullmatch(cells[0]) else []

    return read


_FORMATS = {1: _test_list, 2: _two_columns, 3: _trials, 5: _clip_rows}  # by the number of cells in a line


def _person(number: int, part: str, path: str) -> _Entry:
    """Return the entry of the person whose folder a path begins with."""
    return _Entry(number, part, (person_name(path.partition("/")[0]),))


def _entry(number: int, part: str, text: str) -> _Entry:
    """Return what a line says of a name, a path or a pattern."""
    if "/" in text:
        person, _, rest = without_suffix(text).partition("/")
        return _Entry(number, part, (clip_name(person, rest),))
    if re.search(r"[*?]", text):
        return _Entry(number, part, pattern=text)
    # The name of a clip stays as it is; it may be longer than that of a person.
    return _Entry(number, part, tuple(dict.fromkeys([person_name(text), *re.findall(r"^[\w.-]+$", text)])))


# ----------------------------------------------------------------------------------------------------------------------
# The split of a run.


def write_kept(path: Path, split: Split) -> None:
    """Write a split into the folder of a run, as lines `part,name` and `part,pattern`."""
    text = io.StringIO()
    text.write("# part,name or pattern of names: whom train.py --split put into which part\n")
    csv.writer(text, lineterminator="\n").writerows((part, name) for name, part in (*split.named.items(), *split.patterns))
    utils.save_bytes(path, text.getvalue().encode())


def read_kept(path: Path, seed: int, name: str | None, hashed: bool) -> Split:
    """Read the split of a run; one by hash if there is no file.

    Args:
        path: of `write_kept`.
        seed: of the run.
        name: of the split, as the run's options have it.
        hashed: whether names are hashes.

    Raises:
        InputError: if a line is no part and a name.
    """
    if not path.exists():
        return Split(seed)
    named, patterns = {}, []
    for number, line in enumerate(csv.reader(path.read_text(encoding="utf-8").splitlines()), 1):
        if number == 1 and line and line[0].startswith("#"):
            continue
        if len(line) != 2 or line[0] not in (*utils.SPLIT, NONE):
            raise InputError(
                f"{path}: expected a part and a name in line {number}, found {utils.printable(line)}; copy the file again"
            )
        if re.search(r"[*?]", line[1]):
            patterns.append((line[1], line[0]))
        else:
            named[line[1]] = line[0]
    return Split(seed, named, tuple(patterns), name, hashed)


def without_names(split: Split) -> Split:
    """Return a split whose names are hashes, in their order, for a run that is shared.

    Patterns stay where they say no more than a letter, such as C*, and the people whom these fit are not named then.
    """
    if split.hashed or not split.is_of_file:
        return split
    letters = tuple((pattern, part) for pattern, part in split.patterns if re.fullmatch(r"[^\W_]\*", pattern))
    kept = {
        utils.hash_of(name): part
        for name, part in split.named.items()
        if _of_patterns(letters, (name,)) != part or utils.person_of(name) in split.named
    }
    return Split(split.seed, dict(sorted(kept.items())), letters, split.name, hashed=True)
