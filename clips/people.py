"""What a csv says about people: their names, sex, age, nationality and part of a split. VoxCeleb's meta files are such csvs.

Never imports TensorFlow.
"""

import collections
import csv
import dataclasses
import re
from pathlib import Path

from clips.folders import person_name
from utils import InputError

# Columns by their headers, of which letters and digits alone count: `VoxCeleb1 ID`, `vggface2id`.
NAMES = r"(voxceleb\d*|vggface\d*|class|speaker|person|celeb\w*)?(id|name)|person|speaker|identity|clip|file"
LABELS = {
    "sex": r"sex|gender\w?",
    "age": r"age|agegroup",
    "nationality": r"nationality|nation|country",
    "part": r"set|split|part",
}
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
UNKNOWN = frozenset(("", "nan", "none", "null", "n/a", "na", "unknown", "?", "-"))
OLDEST = 80  # years; the last group of ages


@dataclasses.dataclass(frozen=True)
class Person:
    """What a line says: names of one person, or of a clip, as they are in names of clips, and labels by the keys of LABELS."""

    names: tuple[str, ...]
    labels: dict[str, str]  # without those that are unknown
    line: int = dataclasses.field(default=0, compare=False)  # its number in the file


def read_people(path: Path, expected: str) -> list[Person]:
    """Read a csv with a header, its columns separated by commas, tabs or semicolons.

    Args:
        path: of the csv.
        expected: what is expected of the file, for messages.

    Raises:
        InputError: if the file cannot be read, or has no column of names beside one of LABELS or another of names.
    """
    lines = read_cells(path, expected)
    header = lines[0][1] if lines else []
    names, labels = columns_of(header)
    if not names or len(names) + len(labels) < 2:
        found = ", ".join(lines[0][1]) if lines else "an empty file"
        raise InputError(f"{path}: expected {expected}, found {found}; name the columns of people and labels in the first line")
    people = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}: expected {len(header)} values in line {number}, found {len(cells)}; correct the line")
        keys = tuple(dict.fromkeys(person_name(cells[column]) for column in names if cells[column].casefold() not in UNKNOWN))
        found = {label: _label(label, cells[column]) for label, column in labels.items()}
        if keys:
            people.append(Person(keys, {label: value for label, value in found.items() if value}, number))
    return people


def spellings(names) -> list[str]:
    """Return all names that a person may have in the data: folders lose a dot at the end of their name on some drives."""
    return list(dict.fromkeys(spelling for name in names for spelling in (name, name.rstrip(".") or name)))


def columns_of(header: list[str]) -> tuple[list[int], dict[str, int]]:
    """Return the numbers of the columns of names, and those of the labels, by the keys of LABELS, as a header says."""
    titles = [re.sub(r"[\W_]", "", cell.casefold()) for cell in header]
    labels = {label: [n for n, title in enumerate(titles) if re.fullmatch(of, title)] for label, of in LABELS.items()}
    names = [n for n, title in enumerate(titles) if re.fullmatch(NAMES, title)]
    return names, {label: columns[0] for label, columns in labels.items() if columns}


def read_cells(path: Path, expected: str) -> list[tuple[int, list[str]]]:
    """Read a text file of columns, separated by tabs, semicolons, commas or else white space. Blank lines are left out, and
    comments, which begin with #.

    Returns:
        For each line its number, from 1, and its values, without spaces around them.

    Raises:
        InputError: if the file cannot be read, or is no text.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: expected {expected}, found {'a folder' if path.is_dir() else 'no such file'}; check its name"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected {expected} in UTF-8, found other bytes; save it as UTF-8") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"]
    counts = collections.Counter(mark for _, line in lines[:100] for mark in "\t;," if mark in line)
    if not counts:
        return [(number, line.split()) for number, line in lines]
    mark = max("\t;,", key=lambda mark: counts[mark])
    rows = csv.reader([line for _, line in lines], delimiter=mark)
    return [(number, [cell.strip() for cell in cells]) for (number, _), cells in zip(lines, rows)]


def _label(label: str, text: str) -> str:
    """Return a label as one text for all its spellings: sexes in words, ages in decades; "" if it is unknown."""
    text = text.strip().casefold()
    if text in UNKNOWN:
        return ""
    if label == "sex":
        return SEXES.get(text, text)
    if label == "age" and re.fullmatch(r"\d{1,3}(\.\d+)?", text):
        decade = min(int(float(text)) // 10 * 10, OLDEST)
        return "under 20" if decade < 20 else f"{decade} and over" if decade == OLDEST else f"{decade}s"
    return text
