"""Which photos a folder holds, and which people are on them."""

import hashlib
import os
import unicodedata
from pathlib import Path

import pytest

import utils
from clips import folders, photos, records
from utils import InputError


def photos_in(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_in(folder, *names):
    """Return the clip's name of each photo, by its path below the folder."""
    found, _ = photos.find_photos(photos_in(folder, *names))
    return {str(photo.path.relative_to(folder)): photo.clip for photo in found}


def people_in(folder, *names):
    return {name: utils.person_of(clip) for name, clip in names_in(folder, *names).items()}


def hashed(name, person):
    return f"{name}-{hashlib.sha256(person.encode()).hexdigest()[:8]}"


# ---------------------------------------------------------------- names


def test_photos_of_people_and_of_folders_of_people(tmp_path):
    """The name of a person may hold underscores; the part that distinguishes the photos holds none."""
    expected = {
        "Jane.jpg": ("Jane_photo", "Jane"),
        "Jane_Doe.PNG": ("Jane_Doe_photo", "Jane_Doe"),
        "J._Doe_jr..tiff": ("J._Doe_jr._photo", "J._Doe_jr."),
        "Zoë.bmp": ("Zoë_photo", "Zoë"),
        "A_B/1.jpg": ("A_B_1", "A_B"),
        "A_B/2_c d.jpeg": ("A_B_2-c-d", "A_B"),
        "A_B/more/1.tif": ("A_B_more-1", "A_B"),
        "A/B_1.jpg": ("A_B-1", "A"),
        "C/(!).jpg": ("C_-", "C"),
        "-x/1.jpg": ("-x_1", "-x"),
        "Aaron_Eckhart/Aaron_Eckhart_0001.jpg": ("Aaron_Eckhart_Aaron-Eckhart-0001", "Aaron_Eckhart"),
    }
    folder = photos_in(tmp_path, *expected, "A_B/film.mp4", ".hidden.jpg", "A_B/.2.jpg", ".x/1.jpg", "dir.jpg/a.txt")
    found, notes = photos.find_photos(folder)
    assert {str(photo.path.relative_to(tmp_path)): (photo.clip, photo.person) for photo in found} == expected
    assert [photo.path for photo in found] == sorted(tmp_path / name for name in expected)
    assert notes == [f"left out of {tmp_path}: files of other kinds 2 (.mp4 1, .txt 1)"]
    assert photos.find_photos(tmp_path, 3)[0] == found[:3]


NAMES = ["O'Neil", "O-Neil", "O Neil", "Jane", "Jane ", "Jane.", "jane", "Jane_", "José", "Jose", "अमित", "अमीत", "अमत"]
NAMES += ["\U0001f600", "\U0001f601", "!", "?", "a\nb", "a\tb", "a" * 150, "a" * 149 + "b", "名" * 60, "名" * 61, "न्‍य", "न्य"]


@pytest.mark.parametrize("form", ["{}/1.jpg", "{}.jpg"])
def test_different_people_stay_different(form, tmp_path):
    people = people_in(tmp_path, *(form.format(name) for name in NAMES))
    assert len(people) == len(NAMES) == len(set(people.values()))
    for person in people.values():
        assert "/" not in person and not any(letter.isspace() for letter in person) and len(person.encode()) <= 109
    plain = {name: people[form.format(name)] for name in ("O-Neil", "Jane", "Jane.", "jane", "Jane_", "José", "अमित", "अमीत")}
    assert all(name == person for name, person in plain.items())
    assert people[form.format("O'Neil")] == hashed("O-Neil", "O'Neil")
    assert people[form.format("\U0001f600")] == hashed("", "\U0001f600")
    assert people[form.format("Jane ")] == hashed("Jane", "Jane ")


def test_a_person_has_one_name_whatever_composes_the_accents(tmp_path):
    """macOS takes accents apart: a folder copied from there is the same person's."""
    composed, apart = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    assert people_in(tmp_path, f"{composed}/1.jpg", f"{apart}/2.jpg") == {f"{composed}/1.jpg": "Zoë", f"{apart}/2.jpg": "Zoë"}
    (tmp_path / "flat").mkdir()
    assert people_in(tmp_path / "flat", f"{unicodedata.normalize('NFD', 'André')}.jpg").popitem()[1] == "André"


def test_names_of_other_bytes(tmp_path):
    """File names are bytes; not all are UTF-8."""
    for name in (b"Ren\xe9", b"Ren\xe8"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        open(os.fsencode(tmp_path) + b"/" + name + b"/1.jpg", "w").close()
    found, _ = photos.find_photos(tmp_path)
    people = [photo.person for photo in found]
    assert people == [f"Ren-{hashlib.sha256(name).hexdigest()[:8]}" for name in (b"Ren\xe8", b"Ren\xe9")]
    assert all(photo.path.is_file() and photo.clip.encode() for photo in found)


def test_photos_of_a_person_have_different_names(tmp_path):
    names = names_in(tmp_path, "a/1 2.jpg", "a/1_2.jpg", "a/3.heic", "a/3.jpg", "b.jpg", "b.png", "b/photo.jpg")
    assert len(set(names.values())) == len(names)
    assert {name: utils.person_of(clip) for name, clip in names.items()} == {name: name[0] for name in names}
    assert (names["a/1 2.jpg"], names["a/3.heic"], names["b/photo.jpg"]) == ("a_1-2", "a_3", "b_photo")  # the first in order
    assert names["a/3.jpg"] == hashed("a_3", "a/3.jpg")


def test_no_name_of_a_photo_leads_out_of_its_folder(tmp_path):
    for clip in names_in(tmp_path, "a\\b.jpg", "b\nc.jpg", "c,d.jpg", "a/x...png").values():
        assert not clip.startswith(".") and set(clip) <= set("abcdefx.-_photo0123456789"), clip


@pytest.mark.parametrize("letter", ["a", "é", "名"])
def test_long_names_are_shortened_to_file_names(letter, tmp_path):
    long = letter * (250 // len(letter.encode()) - 3)
    for clip in names_in(tmp_path, f"{long}/{long}.jpg", f"{long}/{long}-.jpg").values():
        for path_of in records.FILES.values():
            utils.save_bytes(path_of(tmp_path / "data", clip), b"")
        assert utils.person_of(clip).startswith(letter * 30)


def test_people_whose_names_differ_in_case_are_named(tmp_path):
    _, notes = photos.find_photos(photos_in(tmp_path, "Jane/1.jpg", "jane/2.jpg", "Bob.jpg"))
    assert len(notes) == 1 and notes[0].startswith("Jane and jane are taken for different people; ")


# ---------------------------------------------------------------- numbers after names


def test_numbered_photos_show_the_person_that_they_are_named_for(tmp_path):
    """As LFW names them. One photo of a person keeps its name; a number alone makes nobody the same."""
    of_lfw = ["Aaron_Eckhart_0001.jpg", "Abba_Eban_0001.jpg", "Abba_Eban_0002.jpg", "Abba_Eban_0010.png"]
    more = ["Jo.jpg", "Jo (2).jpg", "Zoë-1.jpg", "Zoë-2.jpg", "Max/1.jpg", "Max_0007.jpg"]
    names = names_in(tmp_path, *of_lfw, *more)
    assert names == {
        "Aaron_Eckhart_0001.jpg": "Aaron_Eckhart_0001_photo",
        "Abba_Eban_0001.jpg": "Abba_Eban_0001",
        "Abba_Eban_0002.jpg": "Abba_Eban_0002",
        "Abba_Eban_0010.png": "Abba_Eban_0010",
        "Jo.jpg": "Jo_photo",
        "Jo (2).jpg": "Jo_2",
        "Zoë-1.jpg": "Zoë_1",
        "Zoë-2.jpg": "Zoë_2",
        "Max/1.jpg": "Max_1",
        "Max_0007.jpg": "Max_0007",
    }
    (note,) = photos.find_photos(tmp_path)[1]
    assert note.startswith("7 files named <person>_<number>, such as Abba_Eban_0001, are of 4 people; where this is wrong, ")
    assert photos.find_photos(tmp_path, 2)[0][1].clip == "Abba_Eban_0001"  # whether or not the others are read


def test_two_underscores_end_a_persons_name(tmp_path):
    """As in A.J._Buckley__1zcIwhmdeo4_00001_368-571.mp4; one file alone keeps its name."""
    names = [
        "A.J._B__1zc_00001_368-571.jpg",
        "A.J._B__7w0_2.jpg",
        "Al__x.jpg",
        "Al_3.jpg",
        "Bo__x.jpg",
        "IMG__a.jpg",
        "IMG__b.jpg",
    ]
    people = people_in(tmp_path, *names, "__c.jpg", "d__.jpg")
    found = ["A.J._B", "A.J._B", "Al", "Al", "Bo__x", "IMG__a", "IMG__b", "__c", "d__"]
    assert people == dict(zip([*names, "__c.jpg", "d__.jpg"], found))


def test_numbers_of_cameras_make_nobody_the_same(tmp_path):
    files = ["IMG_0001.jpg", "IMG_0002.jpg", "DSC-1.jpg", "DSC-2.jpg", "IMG_20200101_1234.jpg", "IMG_20200101_1235.jpg"]
    files += ["2020_1.jpg", "2020_2.jpg", "person_1.jpg", "person_2.jpg", "Photo (1).jpg", "Photo (2).jpg", "000001.jpg"]
    people = people_in(tmp_path, *files)
    assert len(set(people.values())) == len(files) and people["IMG_0001.jpg"] == "IMG_0001"
    (note,) = photos.find_photos(tmp_path)[1]
    assert note.startswith("12 files with a number and no person's name, such as 2020_1, are of a person each; where this is ")
    assert note.endswith("put the files of each person into a folder of their own")


# ---------------------------------------------------------------- links


def test_links_are_followed_once(tmp_path):
    elsewhere = photos_in(tmp_path / "elsewhere", "Ann/1.jpg", "2.jpg", "deep/Bob/3.jpg")
    folder = photos_in(tmp_path / "photos", "Zoe/1.jpg")
    links = {"Ann": elsewhere / "Ann", "Bob/more": elsewhere / "deep", "Cy.jpg": elsewhere / "2.jpg"}
    links |= {"Zoe/back": folder, "Zoe/self": folder / "Zoe" / "self", "Alias": folder / "Zoe", "gone": tmp_path / "gone"}
    links |= {"Al.jpg": folder / "Zoe" / "1.jpg", "Dee.jpg": elsewhere / "2.jpg"}
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    found, left_out = folders.files_under(folder, photos.SUFFIXES)
    assert found == ["Ann/1.jpg", "Bob/more/Bob/3.jpg", "Cy.jpg", "Zoe/1.jpg"]
    assert "links to nothing 2 (Zoe/self)" in left_out or "links to nothing 2 (gone)" in left_out
    assert "links to folders already listed 2 (" in left_out and "links to files already listed 2 (Al.jpg)" in left_out
    people = [photo.person for photo in photos.find_photos(folder)[0]]
    assert people == ["Ann", "Bob", "Cy", "Zoe"]


def test_what_is_no_file_or_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    folder = photos_in(tmp_path, "a.jpg", "closed/b.jpg")
    os.mkfifo(folder / "pipe.jpg")
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    found, left_out = folders.files_under(folder, photos.SUFFIXES)
    assert found == ["a.jpg"]
    assert left_out == "special files 1 (pipe.jpg), folders that may not be read 1 (closed)"


def test_photos_are_found_from_anywhere(tmp_path, monkeypatch):
    photos_in(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert photos.find_photos(Path("photos")) == ([photos.Photo("a_photo", tmp_path / "photos" / "a.jpg")], [])
    with pytest.raises(InputError, match="nothing: expected a folder of photos, found none; pass another --faces"):
        photos.find_photos(Path("nothing"))
