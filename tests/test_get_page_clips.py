import csv
import importlib.util
import sys

import cv2
import numpy as np
import pytest
import scipy.io.wavfile
from conftest import ROOT

from clips import media

NAMES = ["-_b-c_012.500000-018.500000", "Zx_y_003.000000-006.120000", "abc_090.000000-104.960000"]


@pytest.fixture(scope="module")
def script():
    """The module data/get_page_clips.py."""
    spec = importlib.util.spec_from_file_location("get_page_clips", ROOT / "data" / "get_page_clips.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["get_page_clips"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tone, tmp_path):
    """A folder with the layout of the authors' page: three clips, each with a colour and a tone of its own."""
    material = tmp_path / "page" / "figures" / "avspeech_res"
    for folder in ("Wav", "Face_ori"):
        (material / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        sound = (32767 * tone(200 * (number + 1), 6)).astype(np.int16)
        scipy.io.wavfile.write(material / "Wav" / f"{name}.wav", 16000, sound)
        cv2.imwrite(str(material / "Face_ori" / f"{name}.jpg"), np.full((224, 224, 3), (40, 90, 60 + 50 * number), np.uint8))
    (material / "Wav" / "without a picture.wav").touch()
    return tmp_path / "page"


def test_pictures_and_sounds_become_clips(script, page, tmp_path, capsys):
    out = tmp_path / "out"
    assert script.main(["--page", str(page), "--out", str(out), "--all"]) == 0
    assert capsys.readouterr().out == f"get_page_clips: 3 clips in {out / 'clips'}, listed in {out / 'avspeech_page.csv'}\n"
    assert sorted(path.name for path in (out / "clips").iterdir()) == [f"{name}.mp4" for name in NAMES]
    for number, name in enumerate(NAMES):
        clip = media.read_clip(out / "clips" / f"{name}.mp4")
        assert clip.samples.shape == (96_000,) and clip.frame.picture.shape == (224, 224, 3)
        assert np.abs(np.fft.rfft(clip.samples)).argmax() / 6 == pytest.approx(200 * (number + 1), abs=1)
        assert np.abs(clip.frame.picture.reshape(-1, 3).mean(0) - (60 + 50 * number, 90, 40)).max() < 4
    with open(out / "avspeech_page.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["-_b-c", "12.5", "18.5", "0.5", "0.5"],
        ["Zx_y", "3.0", "6.12", "0.5", "0.5"],
        ["abc", "90.0", "104.96", "0.5", "0.5"],
    ]


def test_the_results_use_688_of_968_clips(script, tmp_path):
    for folder, suffix in (("Wav", "wav"), ("Face_ori", "jpg")):
        (folder := tmp_path / script.MATERIAL / folder).mkdir(parents=True)
        for number in range(968):
            (folder / f"{number:03}_0-6.{suffix}").touch()
    clips = script.find_clips(tmp_path, every=False)
    assert len(clips) == len(set(clips)) == 688 and clips == sorted(clips)
    assert clips[:4] == ["000_0-6", "001_0-6", "005_0-6", "007_0-6"] and clips[-1] == "967_0-6"  # bits 1100 0101 ... 1
    assert len(script.find_clips(tmp_path, every=True)) == 968


def test_a_folder_that_is_no_clone_of_the_page(script, page, tmp_path, capsys):
    for arguments, expected in (
        ([tmp_path / "none"], "expected Wav/*.wav and Face_ori/*.jpg of the same names, found none; clone https://github.com/"),
        ([page], "expected 968 clips, found 3"),
    ):
        assert script.main(["--page", *map(str, arguments), "--out", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert expected in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_broken_picture_is_named(script, page, tmp_path, capsys):
    (page / script.MATERIAL / "Face_ori" / f"{NAMES[1]}.jpg").write_bytes(b"no picture")
    assert script.main(["--page", str(page), "--out", str(tmp_path / "out"), "--all"]) == 1
    told = capsys.readouterr().err
    assert f"{NAMES[1]}.jpg: expected a picture" in told and not (tmp_path / "out" / "avspeech_page.csv").exists()
    assert not (tmp_path / "out" / "clips" / f"{NAMES[1]}.mp4").exists()


def test_a_name_that_is_no_clips(script, page, tmp_path, capsys):
    for folder, suffix in (("Wav", "wav"), ("Face_ori", "jpg")):
        (page / script.MATERIAL / folder / f"portrait.{suffix}").touch()
    assert script.main(["--page", str(page), "--out", str(tmp_path / "out"), "--all"]) == 1
    assert "portrait: expected a clip named <id>_<start>-<end>" in capsys.readouterr().err


def test_bad_options(script, capsys):
    for arguments, expected in (([], "--page"), (["--page", "a", "--workers", "0"], "--workers: expected at least 1, found 0")):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert expected in capsys.readouterr().err
