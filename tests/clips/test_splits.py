import dataclasses
import re
import shutil
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import utils
from clips import folders, splits
from clips.splits import SHIPPED, Split
from utils import InputError

SHIPPED_NAMES = SHIPPED / "voxceleb1-names.csv"
VOX1_META = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n" + "".join(
    f"{line}\n"
    for line in (
        "id10001\tA.J._Buckley\tm\tIreland\tdev",
        "id10002\tHarry_Shum_Jr.\tm\tCosta Rica\tdev",
        "id10270\tEartha_Kitt\tf\tUSA\ttest",
        "id10271\tEd_Westwick\tm\tUK\ttest",
    )
)


@pytest.fixture
def read(tmp_path):
    """Return a function: read a text as --split, another one as --names."""

    def make(text, names=None, seed=0):
        path, of_names = tmp_path / "split.txt", tmp_path / "names.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        if names:
            of_names.write_text(names)
        return splits.read_split(path, of_names if names else None, seed)

    return make


def parts_of(split, *people):
    """Return the part of each person's clip, "-" if it is left out."""
    parts = splits.divide(split, [f"{person}_a-1" for person in people])
    found = {utils.person_of(clip): part for part, clips in parts.items() for clip in clips}
    return " ".join(found.get(person, "-") for person in people)


# ---------------------------------------------------------------- formats


def test_vox1_meta(read):
    """Tabs; ids and names lead to the part, also where a drive has lost the dot at the end of a name."""
    split = read(VOX1_META.replace("UK\ttest", "UK\tval"))
    people = ["id10001", "A.J._Buckley", "id10002", "Harry_Shum_Jr.", "Harry_Shum_Jr", "id10270", "Eartha_Kitt", "Ed_Westwick"]
    assert parts_of(split, *people, "new") == "train train train train train test test val -"


def test_vox2_meta_with_its_stray_spaces_and_a_byte_order_mark(read):
    lines = ("VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", "id00012 ,n000012 ,m ,dev ", "id00017 ,n000017 ,m ,test ")
    for text in ("\ufeff" + "\n".join(lines) + "\n", "\r\n".join(lines), "\n".join(lines).replace(" ,", ",")):
        split = read(text)
        assert split.named == {"id00012": "train", "n000012": "train", "id00017": "test", "n000017": "test"}


def test_full_vox2_meta(read):
    split = read(
        "Class_ID,Name,Sample_Num,Flag,Gender_x,VoxCeleb2ID,VGGFace2ID,Gender_y,Set\n"
        "n000012,Aaron_Ashmore,382,1,m,id00012,n000012,m,dev\n"
        "n000017,Aaron_Hernandez,300,1,m,id00017,n000017,m,test\n"
    )
    assert [*split.named] == ["n000012", "Aaron_Ashmore", "id00012", "n000017", "Aaron_Hernandez", "id00017"]
    assert split.named["Aaron_Ashmore"] == "train" and split.named["id00017"] == "test"


def test_people_of_the_set_none_are_left_out(read):
    """As in the lists of VoxCeleb1 for voices and faces; also where the others would train."""
    split = read("VoxCeleb1_ID,VGGFace1_ID,Gender,Nationality,Set\nid1,Dr._Dre,m,USA,none\nid2,Cher,f,USA,test\nid3,Ann,f,,\n")
    assert parts_of(split, "id1", "Dr._Dre", "id2", "id3", "x").split()[:4] == ["-", "-", "test", "-"]
    assert parts_of(split, "x") in ("train", "val")


def test_iden_split_is_by_clip(read):
    split = read("1 id10001/1zcIwhmdeo4/00001.wav\n3 id10001/1zcIwhmdeo4/00002.wav\n2 id10001/7gWzIy6yIIk/00001.wav\n")
    clips = [folders.clip_name("id10001", rest) for rest in ("1zcIwhmdeo4/00001", "1zcIwhmdeo4/00002", "7gWzIy6yIIk/00001")]
    other, another = folders.clip_name("id10001", "7gWzIy6yIIk/00002"), "id10002_a-1"
    windows = [f"{clip}.2" for clip in clips]
    assert splits.divide(split, [*clips, other, another, *windows]) == {
        "train": [clips[0], windows[0]],
        "val": [clips[2], windows[2]],
        "test": [clips[1], windows[1]],
    }


def test_pins_identity_splits_are_by_person(read):
    """The digit stands last, and a space ends each line; 3 and 4 are tested."""
    split = read("A.J._Buckley 1 \nA.R._Rahman 2 \nAamir_Khan 4 \nAbbie_Cornish 3 \n")
    assert parts_of(split, "A.J._Buckley", "A.R._Rahman", "Aamir_Khan", "Abbie_Cornish", "x") == "train val test test -"


def test_all_people_of_trials_are_tested(read):
    split = read(
        "1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav\n"
        "0 id10271/x6uYqmx31kE/00001.wav id10300/ize_eiCFEg0/00003.wav\n"
    )
    assert split.named == {"id10270": "test", "id10271": "test", "id10300": "test"}


def test_all_ids_of_avspeechs_test_csv_are_tested(read):
    split = read("PmD-LzPS2rg,282.5823,285.5853,0.371875,0.425\n-_a,0,3,0.5,0.5\nPmD-LzPS2rg,3,6,0.1,0.2\n")
    assert split.named == {"PmD-LzPS2rg": "test", "-_a": "test"}
    clips = [utils.clip_name(video, 0, 3) for video in ("-_a", "PmD-LzPS2rg", "other")]
    parts = splits.divide(split, clips)
    assert parts["test"] == clips[:2] and parts["train"] + parts["val"] == clips[2:]


def test_a_list_of_test_people_or_of_their_files(read):
    """The other clips of a person whose file is listed train nobody either."""
    split = read("id10270\n# a comment, with a comma\nAnn\nid10280/x6uYqmx31kE/00001.wav\n\nC*\n")
    assert parts_of(split, "id10270", "Ann", "id10280", "Cher") == "test test test test"
    assert parts_of(split, "ann") in ("train", "val")


@pytest.mark.parametrize("mark", [",", "\t", ";", " ", " , "])
def test_a_part_and_a_name_in_either_order(mark, read):
    lines = [("# who, and where", ""), ("test", "C*"), ("Validation", "A?"), ("dev", "Ann"), ("none", "Dr._Dre")]
    for order in (1, -1):
        split = read("\n".join(mark.join(line[::order]) if line[1] else line[0] for line in lines))
        assert split.patterns == (("C*", "test"), ("A?", "val")) and split.named["Ann"] == "train"
        assert parts_of(split, "Cher", "Al", "Ann", "Anna", "Dr._Dre", "cher") == "test val train - - -"


def test_a_header_above_two_columns(read):
    assert read("name,set\nA*,val\nAnn,test\n").patterns == (("A*", "val"),)


def test_names_are_written_as_preprocess_py_writes_them(read):
    """A person's name with a space, and a clip's name that is longer than a person's may be."""
    clip = "Ann_" + "x" * 150
    split = read(f"test,Ann Smith\ntest,{clip}\ntrain,Ann\n")
    assert splits.divide(split, [f"{folders.person_name('Ann Smith')}_1", clip, "Ann_2"])["test"] == [
        f"{folders.person_name('Ann Smith')}_1",
        clip,
    ]


@pytest.mark.parametrize(
    "text, found",
    [
        ("", "an empty file"),
        ("id10001 id10002\n", "in line 1: id10001 id10002"),
        ("test,Ann\nspam,Bob\n", "in line 2: spam Bob"),
        ("test,Ann\ntest\n", "in line 2: test"),
        ("test,\n", "in line 1: test"),
        ("1 id10001/a/1.wav\n4 id10001/a/2.wav\n", "in line 2: 4 id10001/a/2.wav"),
        ("Ann 1\nBob 5\n", "in line 2: Bob 5"),
        ("a,1,2,0.5,0.5\nb,1,2,x,0.5\n", "in line 2: b 1 2 x 0.5"),
        ("1 a/1.wav b/1.wav\n2 a/1.wav b/1.wav\n", "in line 2: 2 a/1.wav b/1.wav"),
        ("a b c d e f g\n", "in line 1: a b c d e f g"),
        ('{"train": ["a"],\n "test": ["b"]}\n', 'in line 1: {"train": ["a"]'),
        ("name,set\n", "no name in it"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, found, read):
    with pytest.raises(InputError) as error:
        read(text)
    assert re.fullmatch(r".*split.txt: expected a split \(a csv .*\), found .*; docs/training.md .*", str(error.value))
    assert f", found {found}" in str(error.value)


def test_other_files_are_refused(read, tmp_path):
    with pytest.raises(InputError, match=r"split.txt: expected a split .* in UTF-8, found other bytes"):
        read(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"none.txt: expected a split .*, found no such file"):
        splits.read_split(tmp_path / "none.txt", None, 0)
    with pytest.raises(InputError, match=r"expected train, dev, val, test or none in line 3, found spam"):
        read("name,sex,set\nAnn,f,dev\nBob,m,spam\n")


@pytest.mark.parametrize(
    "text, said",
    [
        ("test,Ann\ntrain,Bob\ntrain,Ann\n", "Ann, found test in line 1 and train in line 3"),
        ("3 id1/a/1.wav\n1 id1/a/1.wav\n", "id1_a-1, found test in line 1 and train in line 2"),
        ("test,C*\nval,C*\n", "C*, found test in line 1 and val in line 2"),
        ("name,id,set\nAnn,id1,dev\nBob,id1,test\n", "id1, found train in line 2 and test in line 3"),
    ],
)
def test_contradictions_are_refused_with_their_lines(text, said, read):
    with pytest.raises(InputError, match=re.escape(f"expected one part for {said}; correct one of them")):
        read(text)
    assert read("test,Ann\ntest,Ann\n").named == {"Ann": "test"}


# ---------------------------------------------------------------- other names


def test_patterns_and_lists_with_the_other_names_of_people(read, tmp_path):
    """Patterns are tried on the people's names where the data has their ids; a list may use any name."""
    shutil.copy(SHIPPED_NAMES, tmp_path / "letters.csv")
    (tmp_path / "names.csv").write_text(VOX1_META)
    split = splits.read_split(tmp_path / "letters.csv", tmp_path / "names.csv", 0)
    assert parts_of(split, "id10001", "id10002", "id10270", "id10271", "Cher") == "val train test test test"
    split = read("Eartha_Kitt\n", VOX1_META)
    assert parts_of(split, "id10270", "Eartha_Kitt") == "test test" and parts_of(split, "id10271") in ("train", "val")


def test_names_of_one_person_in_two_parts_are_refused(read):
    with pytest.raises(
        InputError, match=r"names.csv: expected one part of .*split.txt for the person in line 2, found id10001 in"
    ):
        read("test,id10001\ntrain,A.J._Buckley\n", VOX1_META)


def test_a_split_that_names_nobody_of_the_data_is_refused(read, tmp_path):
    split = read(SHIPPED_NAMES.read_text())
    message = f"split.txt: expected people or clips of {tmp_path}, such as id10001, found none, but such as A*; pass --names"
    with pytest.raises(InputError, match=re.escape(message)):
        splits.check_names(split, ["id10001_a-1", "id10002_a-1"], tmp_path)
    splits.check_names(split, ["id10001_a-1", "Cher_a-1"], tmp_path)
    splits.check_names(Split(0), ["id10001_a-1"], tmp_path)


# ---------------------------------------------------------------- the split by name that comes with the project


def test_the_split_by_names_has_all_letters():
    split = splits.read_split(SHIPPED_NAMES, None, 0)
    assert split.name == "voxceleb1-names"
    found = {letter: parts_of(split, f"{letter}x") for letter in string.ascii_uppercase}
    assert found == {letter: "val" if letter < "C" else "test" if letter < "F" else "train" for letter in found}
    assert SHIPPED_NAMES.read_text().startswith("# ") and not split.named


def test_a_split_is_known_by_its_content(read):
    """Wherever the file is, in any order and form; not with a line more."""
    lines = SHIPPED_NAMES.read_text().splitlines()[1:]
    assert read("\n".join(reversed(lines))).name == "voxceleb1-names"
    assert read("\n".join(" ".join(line.split(",")[::-1]) for line in lines), VOX1_META).name == "voxceleb1-names"
    assert read("\n".join([*lines, "none,Dr._Dre"])).name is None
    assert read("\n".join(lines[1:])).name is None


# ---------------------------------------------------------------- who is not named


PEOPLE = [f"p{number}" for number in range(2000)]


def test_without_a_file_a_hash_decides():
    clips = [f"{person}_a-1" for person in PEOPLE]
    for seed in (0, 1):
        assert splits.divide(splits.read_split(None, None, seed), clips) == utils.split_clips(clips, seed)
    assert splits.notes_on(Split(0), clips) == []


def test_validation_people_are_taken_from_the_training_people_by_a_hash(read):
    """A ninth of them, others with another seed, the same ones when clips are added; no test person."""
    clips = [f"{person}_{n}" for person in PEOPLE for n in (1, 2)]
    split = read("\n".join(PEOPLE[:500]))
    parts = splits.divide(split, clips)
    assert {*map(utils.person_of, parts["test"])} == {*PEOPLE[:500]}
    val = {*map(utils.person_of, parts["val"])}
    assert len(parts["val"]) == 2 * len(val) and len(val) / 1500 == pytest.approx(1 / 9, abs=0.02)
    assert {*map(utils.person_of, parts["train"])} == {*PEOPLE[500:]} - val
    other = splits.divide(dataclasses.replace(split, seed=1), clips)
    assert other["test"] == parts["test"] and other["val"] != parts["val"]
    tested = [person for person in PEOPLE if utils.part_of(person, 0) == "test"]  # by a run without a file, with this seed
    of_others = splits.divide(read("\n".join(tested)), clips)
    assert len(of_others["val"]) / len(of_others["val"] + of_others["train"]) == pytest.approx(1 / 9, abs=0.02)
    more = splits.divide(split, [*clips, "new_1", "p3_3"])
    assert all(set(parts[part]) <= set(more[part]) for part in parts) and "p3_3" in more["test"]


def test_notes(read, tmp_path):
    clips = ["id10001_a-1", "id10001_b-1", "id10270_a-1", "new_1", "new_2"]
    assert splits.notes_on(read(VOX1_META), clips) == [
        f"2 of the 4 people or clips that {tmp_path / 'split.txt'} names are in the data",
        "2 of 5 clips, of 1 person, are in no part of the split: left out",
        "the split names no validation people: a ninth of its training people validate, chosen by --seed",
    ]
    assert splits.notes_on(read("1 id10001/a/1.wav\n2 id10001/b/1.wav\n1 x/a/1.wav\n"), clips[:2])[1:] == [
        "the clips of 1 person, such as id10001, are in more than one part of the split, as in iden_split.txt: its figures are "
        "not those of unseen people",
        "the split names no test people: the test set is empty",
    ]


# ---------------------------------------------------------------- kept in a run


FILES = {
    "meta": VOX1_META,
    "letters": SHIPPED_NAMES.read_text(),
    "patterns": "test,Ea*\ntrain,A*\nval,id10002\n",
    "clips": "1 id10001/a/1.wav\n3 id10270/a/1.wav\n",
    "list": "id10270\nEd_Westwick\n",
}
PRESENT = ("id10001", "id10002", "Eartha_Kitt", "id10270", "Ed_Westwick", "Anna", "Eaton", "Earl", "Zoe", "new")
CLIPS = [f"{person}_a-1" for person in PRESENT]


@pytest.mark.parametrize("names", [None, VOX1_META], ids=["", "names"])
@pytest.mark.parametrize("file", FILES)
def test_a_run_keeps_its_split(file, names, read, tmp_path):
    """It divides as before, without the file and the names, and with hashed names, which tell nothing but letters."""
    split = read(FILES[file], names, seed=5)
    expected = splits.divide(split, CLIPS)
    splits.write_kept(tmp_path / "kept.csv", splits.resolved(split, CLIPS))
    kept = splits.read_kept(tmp_path / "kept.csv", 5, split.name, False)
    assert splits.divide(kept, CLIPS) == expected and kept.patterns == split.patterns and kept.name == split.name
    hidden = splits.without_names(kept)
    splits.write_kept(tmp_path / "shared.csv", hidden)
    shared = splits.read_kept(tmp_path / "shared.csv", 5, split.name, True)
    assert shared == hidden == splits.without_names(shared) and splits.divide(shared, CLIPS) == expected
    text = (tmp_path / "shared.csv").read_text()
    secret = [*map(utils.person_of, CLIPS), "Ea*"]
    assert [name for name in secret if name in text] == []
    assert [*hidden.named] == sorted(hidden.named) and (file != "letters" or ("C*", "test") in hidden.patterns)


def test_people_whom_a_letter_tells_are_not_even_hashed(read):
    kept = splits.resolved(read("test,C*\ntrain,Carl\ntrain,D?n\nval,F*\n"), ["Cher_1", "Carl_1", "Dan_1"])
    assert kept.named == {"Cher": "test", "Dan": "train", "Carl": "train"}
    hidden = splits.without_names(kept)
    assert hidden.named == {utils.hash_of(name): "train" for name in sorted(("Carl", "Dan"), key=utils.hash_of)}
    assert hidden.patterns == (("C*", "test"), ("F*", "val"))
    assert splits.without_names(Split(3)) == Split(3)


def test_no_file_in_the_folder_of_a_run_and_a_broken_one(tmp_path):
    """Runs of earlier versions have none."""
    assert splits.read_kept(tmp_path / "kept.csv", 7, None, False) == Split(7)
    for text in ("# comment\nspam,Ann\n", "\ntest,Ann,\n", "# comment\ntest\n"):
        (tmp_path / "kept.csv").write_text(text)
        with pytest.raises(InputError, match=r"kept.csv: expected a part and a name in line [12], found"):
            splits.read_kept(tmp_path / "kept.csv", 7, None, False)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["train", "val", "test", "none"]), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 9)), unique=True),
    st.integers(0, 3),
)
def test_a_person_is_in_one_part_at_most(named, pairs, seed):
    clips, split = [f"{person}_{n}" for person, n in pairs], Split(seed, named)
    parts = splits.divide(split, clips)
    of_people = [{utils.person_of(clip) for clip in of_part} for of_part in parts.values()]
    assert sum(map(len, of_people)) == len(set().union(*of_people))
    assert all(named.get(utils.person_of(clip)) != "none" for of_part in parts.values() for clip in of_part)
    assert all(of_part == [clip for clip in clips if clip in of_part] for of_part in parts.values())
    assert splits.divide(splits.without_names(split), clips) == parts
