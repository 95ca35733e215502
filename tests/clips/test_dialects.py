"""A csv that a spreadsheet or another program has saved again."""

import pytest
from conftest import ROOT, valid_rows

from clips import records
from utils import InputError

CASES = ROOT.parent / "shared" / "cases"
ROWS = ("-1nRm4tQL0A", 24.76, 29.96, 0.5, 0.25), ("---ZOY1kzAc", 231.231, 234.467567, 1, 0), ("1234567E-10", 1, 5, 0.5, 0.5)


def as_text(separator=",", decimal=".", end="\n", quote="", numbered=None, rows=ROWS):
    """Return rows as another program writes them; `numbered` is the number of its first row."""
    lines = []
    for number, values in enumerate(rows, numbered or 0):
        values = [
            f"{quote}{value}{quote}" for value in (values[0], *(str(value).replace(".", decimal) for value in values[1:]))
        ]
        lines.append(separator.join([str(number)] * (numbered is not None) + values) + end)
    return "".join(lines)


HEADER = "YouTube ID,start segment,end segment,X coordinate,Y coordinate\n"


@pytest.mark.parametrize(
    "text, encoding",
    [
        (as_text(";", ","), "utf-8"),
        (as_text(";", ",", "\r\n"), "utf-8-sig"),
        (as_text(";"), "utf-8"),
        (as_text("\t"), "utf-8"),
        (as_text("\t", ",", "\r\n"), "utf-16"),
        (as_text("|"), "utf-8"),
        (as_text(end="\r\n"), "utf-16"),
        (as_text(), "utf-16-le"),
        (as_text(), "utf-16-be"),
        (as_text(), "utf-32"),
        (as_text(quote='"'), "utf-8"),
        (as_text(";", ",", quote='"'), "utf-8"),
        (as_text(", "), "utf-8"),
        (as_text(numbered=0), "utf-8"),
        (as_text(numbered=71), "utf-8"),
        (as_text(";", ",", numbered=1), "utf-16"),
        (as_text(quote='"', numbered=1), "utf-8"),
        (as_text(rows=ROWS[:1]), "utf-8"),
        (as_text(";", ",", rows=ROWS[:1]), "utf-8"),
        ("," + HEADER + as_text(numbered=0), "utf-8"),
        (HEADER.replace(",", ";") + as_text(";", ","), "utf-8"),
        (HEADER + as_text(), "utf-16"),
    ],
    ids=lambda value: value[:40],
)
def test_a_csv_of_another_program_is_read(text, encoding, tmp_path):
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    rows, bad = valid_rows(tmp_path / "a.csv")
    expected = [row for row in ROWS if row[0] in text]
    assert [(row.video_id, row.start, row.end, row.x, row.y) for row in rows] == expected
    assert list(bad) == [1] * text.count("YouTube")  # the header
    assert [row.video_id for row in valid_rows(tmp_path / "a.csv", 2)[0]] == [row[0] for row in expected[: 2 - len(bad)]]


def test_six_columns_that_do_not_begin_with_row_numbers_are_no_csv_of_ours(tmp_path):
    for line in ("a,1,2,0.5,0.5,0.9", "12345678901,1,2,0.5,0.5,0.9", "a,b,1,2,0.5,0.5"):
        (tmp_path / "a.csv").write_text(f"{line}\n" * 3)
        with pytest.raises(InputError, match="found 6"):
            records.read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "line, problem",
    [
        ("1.23E+16,1,5,0.5,0.5", 5),
        ("1.23457E+16,1,5,0.5,0.5", 5),
        ("1E-10,1,5,0.5,0.5", 5),
        ("#NAME?,1,5,0.5,0.5", 5),
        ("#NOMBRE?,1,5,0.5,0.5", 5),
        ("#REF!,1,5,0.5,0.5", 5),
        ("#N/A,1,5,0.5,0.5", 5),
        ("abc,1.234.567,5,0.5,0.5", 6),
        ("abc,24. Jul,29.96,0.5,0.5", 6),
        ("abc,24-Jul,29.96,0.5,0.5", 6),
        ("abc,Nov 11,29.96,0.5,0.5", 6),
        ("abc,1,11.05.2025,0.5,0.5", 6),
        ("abc,1,5,11/05/2025,0.5", 6),
        ("abc,2025-05-11 00:00:00,5,0.5,0.5", 6),
        ("abc,1,#VALUE!,0.5,0.5", 6),
        ("=abc,1,5,0.5,0.5", 1),
        ("1:30,1,5,0.5,0.5", 1),
        ("abc,1:30,5,0.5,0.5", 2),
        ("abc,one,5,0.5,0.5", 2),
        ("abc,1.234,5,0.5,x", 3),
        ("1234567E-10,1,5,0.5,0.5", 0),  # as good an id as any
        ("1E-4567890-,1,5,0.5,0.5", 0),
        ("MAR-10-2018,1,5,0.5,0.5", 0),
    ],
)
def test_what_a_spreadsheet_has_destroyed_is_told(line, problem, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"one,1,2,0.5,0.5\n{line}\ntwo,1,2,0.5,0.5\n")
    rows, bad = valid_rows(path)
    assert [row.video_id for row in rows if row.video_id in ("one", "two")] == ["one", "two"]
    assert bad == ({2: records.PROBLEMS[problem]} if problem else {})
    expected = f"{path}: a spreadsheet has changed ids or times, 1 of 3 rows, the first in line 2; use the csv"
    notes = records.notes_on(path, records.read_rows(path)[1])
    assert [note.startswith(expected) for note in notes] == [True] * (problem in (5, 6))


@pytest.mark.skipif(not CASES.is_dir(), reason="no cases beside this folder")
@pytest.mark.parametrize("name, n, bad", [("semi", 2, [3]), ("utf16", 2, [3]), ("excel", 1, [1, 3]), ("head", 2, [1, 4])])
def test_the_csv_files_of_the_cases(name, n, bad):
    rows, problems = valid_rows(CASES / "csv" / f"{name}.csv")
    assert [row.video_id for row in rows] == ["---ZOY1kzAc", "-1nRm4tQL0A"][-n:] and list(problems) == bad
