"""Csv files about people, as VoxCeleb's."""

import pytest

from clips.people import read_cells, read_people
from utils import InputError


def read(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "people.csv"
    path.write_bytes(text.encode(encoding))
    return [(person.names, person.labels) for person in read_people(path, "labels of people")]


def test_voxcelebs_files(tmp_path):
    """VoxCeleb2's has spaces around its values, and sometimes a byte order mark."""
    first = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J._Buckley\tm\tIreland\tdev\n"
    assert read(tmp_path, first) == [
        (("id10001", "A.J._Buckley"), {"sex": "male", "nationality": "ireland", "part": "dev"}),
    ]
    second = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,f ,dev \n\nid00013 ,n000013 ,m ,test \n"
    expected = [
        (("id00012", "n000012"), {"sex": "female", "part": "dev"}),
        (("id00013", "n000013"), {"sex": "male", "part": "test"}),
    ]
    assert read(tmp_path, second) == read(tmp_path, second, "utf-8-sig") == expected
    full = "Class_ID,Name,Sample_Num,Flag,Gender_x,VoxCeleb2ID,VGGFace2ID,Gender_y,Set"
    aaron = "n000012,Aaron_Ashmore,382,1,m,id00012,n000012,m,dev"
    expected = [(("n000012", "Aaron_Ashmore", "id00012"), {"sex": "male", "part": "dev"})]
    assert read(tmp_path, f"{full}\n{aaron}\n") == expected


def test_people_are_named_as_in_names_of_clips(tmp_path):
    ((names, _),) = read(tmp_path, "name;sex\nAnna O'Neil;F\n")
    assert names[0].startswith("Anna-O-Neil-")


@pytest.mark.parametrize(
    "age, group",
    [
        *(("7", "under 20"), ("19.5", "under 20"), ("20", "20s"), ("79", "70s"), ("80", "80 and over"), ("101", "80 and over")),
        *(("Teen", "teen"), ("n/a", None), ("", None), ("?", None)),
    ],
)
def test_ages_are_grouped_in_decades(age, group, tmp_path):
    ((_, labels),) = read(tmp_path, f"name,age,sex\nAnn,{age},f\n")
    assert labels.get("age") == group


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected labels of people, found an empty file; name the columns of people and labels in the first line"),
        ("Ann,f\nBob,m\n", "expected labels of people, found Ann, f; name the columns"),
        ("name\nAnn\n", "found name; name the columns"),
        ("name,sex\nAnn\n", "expected 2 values in line 2, found 1; correct the line"),
    ],
)
def test_what_says_nothing_of_people(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"name,sex\nRen\xe9,m\n")
    for name, found in (
        ("latin.csv", "other bytes; save it as UTF-8"),
        ("no.csv", "no such file"),
        (".", "a folder"),
    ):
        with pytest.raises(InputError, match=f"found {found}"):
            read_people(tmp_path / name, "labels")


def test_separators_are_told_by_the_lines(tmp_path):
    for mark in (",", ";", "\t", " "):
        (tmp_path / "a.txt").write_text(f"a{mark}b\n\nc{mark}d\n")
        assert read_cells(tmp_path / "a.txt", "a list") == [(1, ["a", "b"]), (3, ["c", "d"])]


def test_a_person_without_a_name_is_passed_over(tmp_path):
    assert read(tmp_path, "name,sex\n,f\nAnn,f\n") == [(("Ann",), {"sex": "female"})]
