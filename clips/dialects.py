"""How the values of a csv are written: by AVSpeech's authors, or by a spreadsheet or another program that saved it again."""

import codecs
import collections
import dataclasses
import re
from pathlib import Path

HEAD_BYTES = 65_536  # of the file, by which its dialect is told
N_VALUES, N_VALUES_WITHOUT_CENTRE = 5, 3  # in a row
SEPARATORS = ("\t", ";", "|", ",")  # the comma last: it may be a decimal comma
BOMS = {  # UTF-32 first: its mark begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How the values of a csv are written."""

    encoding: str = "utf-8-sig"
    separator: str = ","
    decimal: str = "."
    indexed: bool = False  # whether a column of row numbers comes first


def dialect_of(path: Path) -> Dialect:
    """Tell the dialect of a csv by its first lines; what no line supports is as in AVSpeech's own files."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    encoding = _encoding_of(head)
    text = head.decode(encoding, errors="replace").replace("\0", "")
    lines = [line for line in text.splitlines() if line.strip()]
    if len(head) == HEAD_BYTES:
        lines = lines[:-1]  # cut off
    for numbers in ((N_VALUES, N_VALUES + 1), (N_VALUES_WITHOUT_CENTRE,)):
        counts = collections.Counter(
            (separator, n) for line in lines for separator in SEPARATORS if (n := line.count(separator) + 1) in numbers
        )
        frequent = [(separator, n) for (separator, n), count in counts.items() if count > len(lines) / 2]
        if frequent:
            break
    separator, n_values = min(frequent, key=lambda found: SEPARATORS.index(found[0]), default=(",", N_VALUES))
    rows = [line.split(separator) for line in lines]
    rows = [[value.strip(' "') for value in row] for row in rows if len(row) == n_values]
    indexed = n_values > N_VALUES and _are_indexed(rows)
    times = [value for row in rows for value in row[1 + indexed :]]
    decimal = "," if separator != "," and any(re.fullmatch(r"-?\d+,\d+", value) for value in times) else "."
    return Dialect(encoding, separator, decimal, indexed)


def _encoding_of(head: bytes) -> str:
    """Return the encoding of a text: UTF-8, or what its byte order mark says, or UTF-16 where every other byte is zero."""
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            return encoding
    pairs = head[: len(head) // 2 * 2]
    for encoding, zeros, others in (("utf-16-le", pairs[1::2], pairs[::2]), ("utf-16-be", pairs[::2], pairs[1::2])):
        if zeros and zeros.count(0) > 0.9 * len(zeros) and others.count(0) == 0:
            return encoding
    return "utf-8-sig"


def _are_indexed(rows: list[list[str]]) -> bool:
    """Tell whether rows of six values are row number, id and four numbers: the ids are no numbers, most of the others are."""
    numbered = [row for row in rows if row[0].isdigit() and all(re.fullmatch(r"-?\d+([.,]\d+)?", value) for value in row[2:])]
    return 2 * len(numbered) > len(rows) and any(not re.fullmatch(r"-?\d+([.,]\d+)?", row[1]) for row in numbered)
