import pytest

from clips import folders
from judging.labels import ALL_EQUAL, read_labels, restrictions
from utils import InputError

VOX1 = (
    "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    "id10001\tA.J._Buckley\tm\tIreland\tdev\nid10002\tJo_Jr.\tf\tUSA\tdev\n"
)
VOX2 = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,m ,dev \nid00015 ,n000015 ,f ,dev \n"


def read(tmp_path, text, clips):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return read_labels(path, clips, tmp_path / "data")


def test_voxcelebs_files_name_people_by_either_id(tmp_path):
    """Also where a folder has lost the dot at the end of its name; stray spaces do not count."""
    clips = ["id10001_a-1", "A.J._Buckley_b-1", "Jo_Jr._c-1", "Jo_Jr_c-1", "id10002_d-2", "other_1"]
    found = restrictions(read(tmp_path, VOX1, clips), clips)
    sexes = ["male", "male", "female", "female", "female", None]
    assert found["equal sex"] == sexes and found["equal nationality"] == ["ireland", "ireland", "usa", "usa", "usa", None]
    assert found[ALL_EQUAL] == ["male / ireland"] * 2 + ["female / usa"] * 3 + [None] and len(found) == 3
    clips = ["id00012_a-1", "n000012_b-1", "id00015_c-1"]
    assert restrictions(read(tmp_path, VOX2, clips), clips) == {"equal sex": ["male", "male", "female"]}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_plain_csv(separator, tmp_path):
    """Columns in any order and case; one spelling for each label; labels that are not known are none."""
    rows = [
        ("AGE", "Name", "Sex"),
        ("19.9", "Ann Lee", "Female"),
        ("20", "Bo", "M"),
        ("29", "Cy", "unknown"),
        ("81", "Di", "F"),
        ("forties", "Ed", "MALE"),
        ("NaN", "Flo", ""),
    ]
    clips = [f"{folders.person_name('Ann Lee')}_1", "Bo_1", "Cy_1", "Di_1", "Ed_1", "Flo_1"]
    found = restrictions(read(tmp_path, "".join(separator.join(row) + "\n" for row in rows), clips), clips)
    assert found["equal age"] == ["under 20", "20s", "20s", "80 and over", "forties", None]
    assert found["equal sex"] == ["female", "male", None, "female", "male", None]
    expected = ["female / under 20", "male / 20s", None, "female / 80 and over", "male / forties", None]
    assert found[ALL_EQUAL] == expected


def test_a_clips_own_label_wins(tmp_path):
    """Over that of its person, kind by kind."""
    text = "id,age,sex\nAnn,30,f\nAnn_1990,20,\nAnn,30,f\n"
    clips = ["Ann_1990", "Ann_2000"]
    found = restrictions(read(tmp_path, text, clips), clips)
    assert found["equal age"] == ["20s", "30s"] and found["equal sex"] == ["female", "female"]


def test_no_labels_no_restrictions():
    assert restrictions(None, ["a_1"]) == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "expected a csv with a column person, name or id and a column sex, age or nationality, found an empty file"),
        ("person,shoe size\na,40\n", "found person, shoe size"),
        ("person,set\na,train\n", "found no such label; name the columns in the first line"),
        ("person,sex\na,m\na,f\n", "expected one sex for a, found male in line 2 and female in line 3; correct one of them"),
        ("person,sex\na,m,x\n", "expected 2 values in line 2, found 3"),
        ("person,sex\nb,m\nc,f\n", "such as a, found none of its 1 people among 2 names; name people as the folder does"),
    ],
)
def test_bad_files_are_refused_in_one_line(text, said, tmp_path):
    with pytest.raises(InputError, match=r"labels\.csv: expected ") as raised:
        read(tmp_path, text, ["a_1", "a_2"])
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: expected a csv with .*, found no such file; check its name"):
        read_labels(tmp_path / "none.csv", ["a_1"], tmp_path)
