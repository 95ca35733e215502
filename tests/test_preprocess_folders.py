"""preprocess.py with folders of videos, and of voices and faces apart: real files, from the command to the features."""

import itertools
import shutil
import wave

import numpy as np
import pytest
from conftest import contents, ffmpeg, lines_of, statuses, write_csv

import model
import preprocess
import utils
from clips import detection, feature_files, media, preprocessing, speech, windows
from utils import SAMPLE_RATE


def run(*arguments):
    return preprocess.main([*map(str, arguments), "--face-model", "dlib"])


@pytest.fixture(scope="module")
def films(demo_clips):
    """Three videos of three people, by the names of their clips."""
    return {path.stem: path for path in sorted((demo_clips / "videos").iterdir())[:3]}


def features(data, clip):
    return feature_files.load_spectrogram(data, clip), feature_files.load_embedding(data, clip, 128)


def spectrogram_of(sound):
    filled = np.resize(sound, (preprocessing.BATCH, utils.CLIP_SAMPLES)).astype(np.float32) / 32768
    return model.spectrogram(filled).numpy().astype(np.float16)[0]


def equal(ours, others):
    return all(np.array_equal(one, other) for one, other in zip(ours, others))


# ---------------------------------------------------------------- the same people by every road


@pytest.fixture(scope="module")
def material(films, tmp_path_factory):
    """The same three videos as a flat folder, a folder of people, and voices with face tracks, frames and several frames."""
    folder = tmp_path_factory.mktemp("material")
    for number, film in enumerate(films.values()):
        person = f"id{number}"
        places = {
            name: folder / name / inside
            for name, inside in {
                "flat": "",
                "people": f"dev/{person}/video",
                "wav": f"{person}/vid_eo",
                "tracks": f"mp4/{person}/vid_eo",
                "photos": f"Name {number}/1.6/vid_eo",
                "several": f"{person}/vid_eo",
            }.items()
        }
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, places["flat"] / film.name)
        ffmpeg("-i", film, "-c", "copy", places["people"] / "00001.mkv")
        ffmpeg("-i", film, "-vn", "-ac", "1", "-ar", "16000", places["wav"] / "00001.wav")
        ffmpeg("-i", film, "-an", "-c", "copy", places["tracks"] / "00001.mp4")
        ffmpeg("-i", film, "-frames:v", "1", places["photos"] / "0000025.png")
        ffmpeg("-i", film, "-vf", "fps=2", places["several"] / "frame%02d.png")
        write_csv(folder / f"{number}.csv", ("VoxCeleb1 ID", "VGGFace1 ID"), (person, f"Name {number}"))
    names = [(folder / f"{number}.csv").read_text().splitlines()[1] for number in range(3)]
    (folder / "names.csv").write_text("\n".join(["VoxCeleb1 ID,VGGFace1 ID", *names]) + "\n")
    return folder


def test_a_folder_of_clips_gives_what_their_csv_gives(material, demo_data, tmp_path, capsys):
    assert run("--folder", material / "flat", "--data", tmp_path) == 0
    made, expected = contents(tmp_path), contents(demo_data)
    assert len(made) == 15 and all(expected[name] == content for name, content in made.items())
    assert capsys.readouterr().out.startswith("preprocess: 3 recordings, 3 clips ready (0 of them before), 0 skipped")


@pytest.mark.parametrize(
    "faces, clips", [(None, "id{}_video-00001"), ("tracks", "id{}_vid-eo-00001"), ("photos", "id{}_vid-eo-00001")]
)
def test_every_road_gives_the_same_features(faces, clips, material, demo_data, films, tmp_path):
    apart = () if faces is None else ("--voices", material / "wav", "--faces", material / faces)
    named = ("--names", material / "names.csv") if faces == "photos" else ()
    assert run(*(apart or ("--folder", material / "people")), *named, "--data", tmp_path) == 0
    assert feature_files.ready_clips(tmp_path) == [clips.format(number) for number in range(3)]
    for number, clip in enumerate(films):
        ours, expected = features(tmp_path, clips.format(number)), features(demo_data, clip)
        assert equal(ours[:1], expected[:1])
        if faces == "photos":  # a frame that was converted to RGB by other means
            assert np.linalg.norm(ours[1] - expected[1]) < 0.1
        else:
            assert equal(ours, expected)


def test_several_faces_are_averaged(material, demo_data, films, tmp_path):
    """The mean feature of five frames differs from that of one no more than another frame's does."""
    assert run("--voices", material / "wav", "--faces", material / "several", "--data", tmp_path) == 0
    for number, (clip, film) in enumerate(films.items()):
        name = f"id{number}_vid-eo-00001"
        (spectrogram, mean), (expected, first) = features(tmp_path, name), features(demo_data, clip)
        np.testing.assert_array_equal(spectrogram, expected)
        assert lines_of(tmp_path)[name]["faces"] == "5" and not np.array_equal(mean, first)
        later = [(frame.picture, detection.face_boxes(frame.picture, "hog", 0)) for frame in media.read_later_frames(film)]
        others = [detection.dlib_feature(picture, boxes[0]) for picture, boxes in later if boxes]
        assert np.linalg.norm(mean - first) <= max(np.linalg.norm(other - first) for other in others)


def test_a_csv_without_face_centres(demo_clips, demo_data, tmp_path, capsys):
    rows = [line.split(",") for line in (demo_clips / "avspeech_demo.csv").read_text().splitlines()[:3]]
    of_three = write_csv(tmp_path / "three.csv", *(row[:3] for row in rows))
    mixed = write_csv(
        tmp_path / "mixed.csv", rows[0], [*rows[1][:3], "", ""], [*rows[2][:3], "0.5", ""], [*rows[2][:3], "no", ""]
    )
    for csv in (of_three, mixed):
        data = tmp_path / csv.stem
        assert run("--csv", csv, "--videos", demo_clips / "videos", "--data", data) == 0
        made, expected = contents(data), contents(demo_data)
        assert made and all(expected[name] == content for name, content in made.items())
    assert [*statuses(tmp_path / "three").values()] == ["ready"] * 3
    assert sorted(statuses(tmp_path / "mixed").values()) == ["bad-row", "bad-row", "ready", "ready"]
    assert f"{mixed}: 1 of 4 rows have no face centre; --speaker says whose face is taken" in capsys.readouterr().err


# ---------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def long_film(films, tmp_path_factory):
    """Return a function: a film of parts of 5 s each, a letter each: a still picture in silence, "-", or a speaker, "s"."""
    folder, film = tmp_path_factory.mktemp("long"), max(films.values(), key=lambda film: len(media.read_sound(film, 6)))
    still = folder / "still.mp4"
    picture = ("-f", "lavfi", "-i", "color=gray:s=640x360:r=15", "-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono")
    ffmpeg(*picture, "-t", "6", "-c:v", "libx264", "-c:a", "aac", still)

    def make(letters, path):
        inputs = [argument for letter in letters for argument in ("-t", "5", "-i", film if letter == "s" else still)]
        streams = "".join(f"[{number}:v][{number}:a]" for number in range(len(letters)))
        joined = f"{streams}concat=n={len(letters)}:v=1:a=1"
        path.parent.mkdir(exist_ok=True)
        ffmpeg(*inputs, "-filter_complex", joined, "-c:v", "libx264", "-c:a", "pcm_s16le", path)

    return make


def test_windows_are_where_speech_is(long_film, tmp_path, capsys):
    """25 s with silence in the first and the last 5 s."""
    folder = tmp_path / "videos"
    long_film("-sss-", folder / "anna.mkv")
    assert run("--folder", folder, "--data", tmp_path / "one") == 0
    assert run("--folder", folder, "--data", tmp_path / "five", "--windows", "5") == 0
    assert "preprocess: 5 windows, " in capsys.readouterr().out
    lines = lines_of(tmp_path / "five")
    assert sorted(lines) == ["anna_clip", "anna_clip.2", "anna_clip.3", "anna_clip.4", "anna_clip.5"]
    ready = {clip: float(line["start_second"]) for clip, line in lines.items() if line["status"] == "ready"}
    assert len(ready) >= 2 and {line["status"] for line in lines.values()} == {"ready", "no-window"}
    assert lines["anna_clip.5"]["detail"] == f"found {len(ready)}"
    assert all(later - start >= 6 for start, later in itertools.pairwise(sorted(ready.values())))  # nothing is used twice
    assert 5 <= ready["anna_clip"] <= 14  # not the first stretch, which has 1 s of speech
    for clip, start in ready.items():
        sound = media.read_sound(folder / "anna.mkv", 6, start)
        np.testing.assert_array_equal(features(tmp_path / "five", clip)[0], spectrogram_of(sound))
    assert equal(
        features(tmp_path / "one", "anna_clip"), features(tmp_path / "five", "anna_clip")
    )  # however many are asked for
    assert run("--folder", folder, "--data", tmp_path / "one", "--windows", "2") == 0
    assert "2 clips ready (1 of them before)" in capsys.readouterr().out


def test_a_recording_is_used_where_much_is_said(long_film, films, tmp_path):
    """Not the first stretch of 6 s, of which 1 s is speech."""
    for name in ("voices", "faces"):
        (tmp_path / name).mkdir()
    long_film("-sss-", tmp_path / "long.mkv")
    ffmpeg("-i", tmp_path / "long.mkv", "-vn", tmp_path / "voices" / "anna.wav")
    ffmpeg("-i", next(iter(films.values())), "-frames:v", "1", tmp_path / "faces" / "anna.png")
    assert run("--voices", tmp_path / "voices", "--faces", tmp_path / "faces", "--data", tmp_path / "data") == 0
    (line,) = lines_of(tmp_path / "data").values()
    assert 5 <= float(line["start_second"]) <= 14 and float(line["speech_seconds"]) >= windows.ENOUGH_SECONDS


def test_a_file_too_short_for_two_clips_gives_the_part_with_speech(long_film, tmp_path):
    folder = tmp_path / "videos"
    long_film("-s", folder / "late.mkv")
    long_film("s-", folder / "soon.mkv")
    assert run("--folder", folder, "--data", tmp_path / "data") == 0
    starts = {clip: float(line["start_second"]) for clip, line in lines_of(tmp_path / "data").items()}
    assert starts["soon_clip"] == 0 and 3 <= starts["late_clip"] <= 4


def test_stretches_are_spread_over_the_whole_file():
    assert windows.stretches(None) == windows.stretches(3) == [(0, 6)]
    assert windows.stretches(7.5) == [(0, 7.5)]
    assert windows.stretches(18) == [(0, 6), (12, 6), (6, 6)]
    hour = [start for start, _ in windows.stretches(3600)]
    assert sorted(hour) == [6 * number for number in range(600)]
    for n in (2, 4, 8, 30):  # any first n leave no gap of more than twice the mean
        edges = sorted([*hour[:n], 3600])
        assert max(later - start for start, later in itertools.pairwise(edges)) <= 2.6 * 3600 / n


def test_the_start_with_most_speech(demo_clips):
    samples = media.read_sound(sorted((demo_clips / "videos").iterdir())[1], 6)
    voice = samples[: 5 * SAMPLE_RATE]
    silence = np.zeros(5 * SAMPLE_RATE, np.int16)
    assert speech.best_start(voice) == 0 == speech.best_start(np.concatenate([voice, silence]))
    late = speech.best_start(np.concatenate([silence, voice])) / SAMPLE_RATE
    assert 3 <= late <= 4


# ---------------------------------------------------------------- what cannot be used


def test_files_that_give_no_clip_are_recorded_with_the_reason(films, tmp_path, capsys):
    voices, faces = tmp_path / "voices", tmp_path / "faces"
    film = next(iter(films.values()))
    for name in ("ann", "bob", "cy", "dee", "eve", "flo"):
        (voices / name).mkdir(parents=True)
        (faces / name).mkdir(parents=True)
        ffmpeg("-i", film, "-frames:v", "1", faces / name / "1.png")
        ffmpeg("-i", film, "-vn", voices / name / "1.wav")
    (voices / "ann" / "2.wav").touch()  # empty
    (voices / "bob" / "1.wav").write_text("no sound")
    with wave.open(str(voices / "cy" / "1.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(bytes(4 * SAMPLE_RATE))  # 2 s of silence
    (faces / "dee" / "1.png").write_text("no picture")
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=320x240", "-frames:v", "1", faces / "eve" / "1.png")
    shutil.rmtree(faces / "flo")
    ffmpeg("-i", film, "-an", "-c", "copy", voices / "ann" / "3.mp4")  # no sound track
    shutil.copy(voices / "ann" / "1.wav", voices / "ann" / "1.w64")  # the same name
    assert run("--voices", voices, "--faces", faces, "--data", tmp_path / "data") == 0
    assert statuses(tmp_path / "data") == {
        "ann_1": "ready",
        "ann_2": "unreadable",
        "ann_3": "no-sound",
        "bob_1": "unreadable",
        "cy_1": "silent",
        "dee_1": "unreadable",
        "eve_1": "no-face",
        "flo_1": "unpaired",
    }
    out, err = capsys.readouterr()
    assert out.startswith("preprocess: 9 recordings, 1 clip ready (0 of them before), 8 skipped (unreadable 3, ")
    assert "left out, for another file has the same person and name: 1, such as ann/1.wav" in err
    (faces / "flo").mkdir()  # later the missing face comes: the second run makes what is missing
    shutil.copy(faces / "ann" / "1.png", faces / "flo" / "1.png")
    assert run("--voices", voices, "--faces", faces, "--data", tmp_path / "data") == 0
    assert "2 clips ready (1 of them before)" in capsys.readouterr().out and statuses(tmp_path / "data")["flo_1"] == "ready"


def test_a_second_face_is_told_at_the_end(films, tmp_path, capsys):
    left, right = [*films.values()][:2]
    (tmp_path / "videos").mkdir()
    half = "[0:v]crop=320:360:160:0[a];[1:v]crop=320:360:160:0[b];[a][b]hstack"
    ffmpeg("-i", left, "-i", right, "-filter_complex", half, "-map", "0:a", "-shortest", tmp_path / "videos" / "pair.mp4")
    assert run("--folder", tmp_path / "videos", "--data", tmp_path / "data") == 0
    assert lines_of(tmp_path / "data")["pair_clip"]["detail"] == "2 faces stay"
    said = "preprocess: 1 clip may show another face than the speaker's, such as pair_clip: several faces stay"
    assert said in capsys.readouterr().err


def test_nothing_to_use_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "videos" / "ann").mkdir(parents=True)
    (tmp_path / "videos" / "ann" / "1.mp4").touch()
    assert run("--folder", tmp_path / "videos", "--data", tmp_path / "data") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'videos'}: expected at least one recording to give a face, found none; ")
    assert run("--voices", tmp_path / "videos", "--faces", tmp_path / "nowhere", "--data", tmp_path / "data") == 1
    assert "nowhere: expected a folder of photos or videos, found none; pass another --faces" in capsys.readouterr().err


def test_the_dry_run_writes_nothing(material, tmp_path, capsys):
    arguments = ("--voices", material / "wav", "--faces", material / "tracks", "--data", tmp_path / "data", "--list")
    assert run(*arguments) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "3 recordings, 3 of 3 people to be used; 3 with faces of its own"
    assert out.splitlines()[0].split("\t")[1] == "id0_vid-eo-00001" and not (tmp_path / "data").exists()
    assert "folders named mp4 are taken for parts of a data set" in err


def test_shards_keep_people_together(material, tmp_path):
    made = []
    for i in (1, 2):
        data = tmp_path / str(i)
        code = run("--folder", material / "people", "--data", data, "--shard", f"{i}/2")
        made.append({utils.person_of(clip) for clip in feature_files.ready_clips(data)} if code == 0 else set())
    assert made[0].isdisjoint(made[1]) and made[0] | made[1] == {"id0", "id1", "id2"}


def test_a_hundred_thousand_empty_files(tmp_path, capsys):
    """Listed at once; a run begins with the first of them without delay."""
    for number in range(1000):
        folder = tmp_path / "videos" / f"id{number:04}" / "video"
        folder.mkdir(parents=True)
        for n in range(100):
            (folder / f"{n:05}.mp4").touch()
    assert run("--folder", tmp_path / "videos", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 100_001 and lines[-1] == "100000 recordings, 100000 of 1000 people to be used"
    assert run("--folder", tmp_path / "videos", "--data", tmp_path / "data", "--limit", "40") == 1
    assert set(statuses(tmp_path / "data").values()) == {"unreadable"} and len(statuses(tmp_path / "data")) == 40
