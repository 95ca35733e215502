"""Videos in folders, and voices with the faces that belong to them."""

import subprocess
import sys

import pytest

from clips import pairing
from clips.pairing import OF_FOLDER, OF_PERSON, OWN
from utils import InputError


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pairs(tmp_path, voices, faces, names=None):
    """Return by the path of each voice the faces that belong to it, and how."""
    found = pairing.pair(files(tmp_path / "v", *voices), files(tmp_path / "f", *faces), names)
    return {path: found.faces_of(path) for path in found.paths}, found


VIDEOS = ["-1nRm_Q4L0A", "7w0IBEWc9Qw"]


def test_face_tracks_have_the_paths_of_their_voices(tmp_path):
    """VoxCeleb2: aac/<id>/<video>/<n>.m4a and mp4/<id>/<video>/<n>.mp4, unpacked anywhere."""
    stems = [f"id0001{person}/{video}/0000{n}" for person in (2, 7) for video in VIDEOS for n in (1, 2)]
    found, recordings = pairs(
        tmp_path, [f"dev/aac/{stem}.m4a" for stem in stems], [f"vox2_dev_mp4/dev/mp4/{stem}.mp4" for stem in stems]
    )
    assert found == {f"dev/aac/{stem}.m4a": ([f"vox2_dev_mp4/dev/mp4/{stem}.mp4"], OWN) for stem in stems}
    assert recordings.clips[:3] == ["id00012_-1nRm-Q4L0A-00001", "id00012_-1nRm-Q4L0A-00002", "id00012_7w0IBEWc9Qw-00001"]
    (note,) = recordings.notes
    assert note.startswith("folders named aac, dev, mp4, vox2_dev_mp4 are taken for parts of a data set, ")


def test_frames_belong_to_all_voices_of_their_video(tmp_path):
    """VoxCeleb1: wav/<id>/<video>/<n>.wav, and unzippedFaces/<Name>/1.6/<video>/<frame>.jpg, with names by vox1_meta.csv."""
    voices = [f"wav/id10001/{video}/0000{n}.wav" for video in VIDEOS for n in (1, 2)] + ["wav/id10003/abc/00001.wav"]
    frames = [f"A.J._Buckley/1.6/{video}/{25 * n:07}.jpg" for video in VIDEOS[:1] for n in range(9)]
    meta = tmp_path / "vox1_meta.csv"
    meta.write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tA.J._Buckley\tm\tIreland\tdev\n"
        "id10003\tAamir_Khan.\tm\tIndia\tdev\n"
    )
    others = ["Aamir_Khan/1.6/xyz/0000025.jpg", "Zed/1.6/q/0000025.jpg"]
    found, recordings = pairs(tmp_path, voices, frames + others, meta)
    spread = [frames[n] for n in (0, 2, 4, 6, 8)]
    assert [found[path] for path in voices[:2]] == [(spread, OF_FOLDER)] * 2
    assert [found[path] for path in voices[2:4]] == [(spread, OF_PERSON)] * 2  # no frame of this video, so those of the other
    assert found[voices[4]] == (others[:1], OF_PERSON)  # some copies of VoxCeleb lack the dot at the end of a name
    assert recordings.notes[-1] == f"without a voice in {tmp_path / 'v'}: 1 person in {tmp_path / 'f'}, such as Zed"
    with pytest.raises(
        InputError, match=r"expected faces of the people in .*/v, such as id10001, found others, such as A\.J\."
    ):
        pairing.pair(tmp_path / "v", tmp_path / "f")


@pytest.mark.parametrize(
    "voices, faces, expected",
    [
        (["anna.wav"], ["anna.jpg"], {"anna.wav": (["anna.jpg"], OWN)}),
        (["anna_1.wav", "anna_2.wav"], ["anna.jpg"], {f"anna_{n}.wav": (["anna.jpg"], OF_PERSON) for n in (1, 2)}),
        (["anna_1.wav"], ["anna.jpg"], {"anna_1.wav": (["anna.jpg"], OF_PERSON)}),  # one side alone would not tell
        (["a_1.wav", "a_2.wav"], ["a_1.png", "a_2.png"], {f"a_{n}.wav": ([f"a_{n}.png"], OWN) for n in (1, 2)}),
        (["a/x/1.wav"], ["a/x/1/0.jpg", "a/x/1/5.jpg"], {"a/x/1.wav": (["a/x/1/0.jpg", "a/x/1/5.jpg"], OWN)}),
        (["a/1.wav"], ["a/x/1.jpg", "a/y/2.jpg"], {"a/1.wav": (["a/x/1.jpg", "a/y/2.jpg"], OF_PERSON)}),
        (["a/1.wav", "b/1.wav"], ["a/1.jpg"], {"a/1.wav": (["a/1.jpg"], OWN), "b/1.wav": ([], "")}),
        (["a/x/1.mp4"], ["a/x/1.mp4"], {"a/x/1.mp4": (["a/x/1.mp4"], OWN)}),  # videos for the sake of their sound
        (  # a language between person and video on one side alone: MAV-Celeb
            ["id1/English/v/0.wav", "id2/English/w/0.wav"],
            ["id1/v/7.jpg", "id2/w/7.jpg"],
            {"id1/English/v/0.wav": (["id1/v/7.jpg"], OF_FOLDER), "id2/English/w/0.wav": (["id2/w/7.jpg"], OF_FOLDER)},
        ),
        (
            ["ann/1.wav", "ann2/1.wav"],
            ["ann/1.jpg", "ann2/1.jpg"],
            {f"{p}/1.wav": ([f"{p}/1.jpg"], OWN) for p in ("ann", "ann2")},
        ),
        (
            ["a/1.wav", "a2/1.wav"],
            ["a/9.jpg", "a2/8.jpg"],
            {"a/1.wav": (["a/9.jpg"], OF_PERSON), "a2/1.wav": (["a2/8.jpg"], OF_PERSON)},
        ),
    ],
)
def test_what_belongs_together(voices, faces, expected, tmp_path):
    assert pairs(tmp_path, voices, faces)[0] == expected


@pytest.mark.parametrize(
    "voices, faces",
    [("x1/anna/1.wav x1/bob/1.wav", "anna/1.jpg bob/1.jpg"), ("anna/1.wav bob/1.wav", "y1/y2/anna/1.jpg y1/y2/bob/1.jpg")],
)
def test_folders_above_those_of_people(voices, faces, tmp_path):
    """Folders of other names than those of data sets: people are where both sides have the same ones."""
    found, recordings = pairs(tmp_path, voices.split(), faces.split())
    assert recordings.clips == ["anna_1", "bob_1"] and [how for _, how in found.values()] == [OWN, OWN]
    assert any("people are told by the folders on level" in note for note in recordings.notes)


def test_a_person_under_two_names_is_one(tmp_path):
    (tmp_path / "names.csv").write_text("id,name\nid1,Ann\nid2,Bob\n")
    _, found = pairs(tmp_path, ["Ann/1.wav", "id1/2.wav", "id2/1.wav"], ["Ann/1.jpg", "Bob/1.jpg"], tmp_path / "names.csv")
    assert found.clips == ["Ann_1", "Ann_2", "id2_1"]


def test_a_folder_of_one_person_is_told(tmp_path):
    (note,) = pairing.find_videos(files(tmp_path, "anna/a/1.mp4", "anna/b/1.mp4")).notes
    assert note == "all videos are of one person, anna; where the folders in it are people, name it as --folder"


def test_equal_names(tmp_path):
    """The same recording in two formats counts once; files whose names become alike keep apart."""
    voices = ["a/1.mp3", "a/1.wav", "a/x y.wav", "a/x_y.wav", "b/1.wav"]
    _, found = pairs(tmp_path, voices, ["a.jpg", "b.jpg"])
    names = dict(zip(found.paths, found.clips))
    assert names["a/1.mp3"] == "a_1" and names["a/1.wav"] == "" and names["b/1.wav"] == "b_1"
    assert names["a/x y.wav"] == "a_x-y" and names["a/x_y.wav"].startswith("a_x-y-")
    assert found.notes == ["left out, for another file has the same person and name: 1, such as a/1.wav"]


def test_videos_named_as_the_clips_of_a_csv_keep_their_names(tmp_path):
    """So that the same folder gives the same clips by a csv and without one."""
    names = ["-1nRm_Q_000.500000-006.500000", "-1nRm_Q_1000.000000-1006.000000", "anna_1", "anna_2", "IMG_1", "IMG_2"]
    found = pairing.find_videos(files(tmp_path, *(f"{name}.mp4" for name in names), "notes.txt", "a.jpg"))
    assert sorted(found.clips) == sorted([*names[:2], "anna_1", "anna_2", "IMG_1_clip", "IMG_2_clip"])
    assert any("files of other kinds 2 (.jpg 1, .txt 1)" in note for note in found.notes)
    said = "2 files are of a person each, such as IMG_1.mp4; put the files of one person into a folder"
    assert said in found.notes


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "id1,Ann\nid2,Bob\n",
            "expected a csv with two columns of names, such as vox1_meta.csv, found id1, Ann; name the",
        ),
        ("id,name\nid1,Ann\nid2,Ann\n", "found Ann for both id1 and id2; correct the file"),
        ("id,name\nid1\n", "expected 2 values in line 2, found 1"),
        ("", "found an empty file"),
    ],
)
def test_a_csv_of_names_that_says_nothing_or_too_much(text, message, tmp_path):
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        pairs(tmp_path, ["id1/1.wav"], ["Ann/1.jpg"], tmp_path / "names.csv")


def test_missing_sides(tmp_path):
    files(tmp_path / "v", "a/1.wav")
    files(tmp_path / "f", "a/notes.txt")
    with pytest.raises(InputError, match=r"f: expected photos or videos, found none but files of other kinds 1 \(.txt 1\)"):
        pairing.pair(tmp_path / "v", tmp_path / "f")
    with pytest.raises(InputError, match="nowhere: expected a folder of recordings, found none; pass another --voices"):
        pairing.pair(tmp_path / "nowhere", tmp_path / "f")
    with pytest.raises(InputError, match=r"1\.wav: expected a folder of videos, found a file; pass another --folder"):
        pairing.find_videos(tmp_path / "v" / "a" / "1.wav")


def test_the_dry_run_says_what_becomes_of_each_file(tmp_path):
    _, found = pairs(tmp_path, ["a/1.wav", "a/1.mp3", "a/x/2.wav", "b/1.wav"], ["a/1.jpg", "a/x/3.jpg"])
    *lines, summary = pairing.listed(found)
    assert [line.split("\t") for line in lines] == [
        ["a/1.mp3", "a_1", OWN, "a/1.jpg"],
        ["a/1.wav", "left out: another recording has its person and name"],
        ["a/x/2.wav", "a_x-2", OF_FOLDER, "a/x/3.jpg"],
        ["b/1.wav", "unpaired: no face of its speaker"],
    ]
    kinds = "1 with faces of its own, 1 with faces of the same folder; 1 unpaired, 1 left out"
    assert summary == f"4 recordings, 2 of 1 person to be used; {kinds}"
    assert len([*pairing.listed(found, 2)]) == 3


def test_a_million_recordings_are_paired_in_little_time_and_memory(tmp_path):
    """A fifth of VoxCeleb2, in a process of its own, whose memory is measured: the whole of it takes 5 times as long."""
    script = tmp_path / "pair.py"
    script.write_text(f"""
import resource, sys, time
from pathlib import Path
sys.path.insert(0, {str(pairing.Path(pairing.__file__).parents[1])!r})
from clips import folders, pairing
stems = [f"id{{person:05}}/video-{{video:04}}/{{n:05}}" for person in range(1250) for video in range(24) for n in range(8)]
kinds = {{"v": "dev/aac/{{}}.m4a", "f": "dev/mp4/{{}}.mp4"}}
folders.files_under = lambda folder, suffixes: ([kinds[folder.name].format(stem) for stem in stems], "")
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
found = pairing.pair(Path("v"), Path("f"))
*_, last = pairing.listed(found)
assert last == "240000 recordings, 240000 of 1250 people to be used; 240000 with faces of its own", last
print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
""")
    for name in "vf":
        (tmp_path / name).mkdir()
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, run.stdout.split())
    assert seconds < 8 and gigabytes < 0.25
