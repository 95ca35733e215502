import warnings

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from judging import lettering, pictures
from judging.pictures import Query, Shown

HAN = "\u540d\u5b57"
FACE = np.full((32, 32, 3), 90, np.uint8)


@pytest.fixture
def default_fonts(monkeypatch):
    """Only matplotlib's own fonts, whatever else this machine has."""
    own = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)


def draw(path, title, recording="a.wav", header="recording"):
    pictures.draw_grid(path, title, [header], "found", [Query([recording], [Shown(FACE, "1: cosine 0.50")])])


@pytest.mark.parametrize("name", ["Ba$$in.wav", "$x$", "$\\frac{1}{", "a_b^c$_{", "100 %", "\\$", "#1 {x}", "-a.wav"])
def test_names_are_shown_letter_by_letter(name, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    draw(tmp_path / "a.svg", name, name, name)
    shown = (tmp_path / "a.svg").read_text().replace("&lt;", "<").replace("&amp;", "&")
    assert shown.count(f">{name}</text>") == 3


def test_letters_without_a_font_are_escaped_and_told_once(default_fonts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "a.svg", f"a title with {HAN}", f"{HAN}.wav", f"\u200b{HAN[0]}\ufe0f")
    told = capsys.readouterr().err.splitlines()
    assert told == [f"a.svg: no font on this machine has the letters {HAN}, shown as \\u540d\\u5b57"]
    text = (tmp_path / "a.svg").read_text()
    assert "a title with" in text and text.count("\\u540d") == 3 and HAN[0] not in text.replace(told[0], "")


def test_usual_names_need_no_other_font(default_fonts, capsys):
    letters = lettering.lettering_for(["Zo\u00eb \u0416\u03a9 a\nb\u200d.wav", ""])
    assert letters == lettering.Lettering((), frozenset())
    assert letters.font == {"parse_math": False} and letters.shown("a\nb\u200dc") == "a\nbc"


def test_a_font_that_has_the_letters_is_used(tmp_path, monkeypatch, capsys):
    """Of those that come with matplotlib, one with letters that the default font lacks."""
    fonts = [font for font in font_manager.fontManager.ttflist if font.name in ("DejaVu Sans", "STIXSizeOneSym")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    other = next(font.fname for font in fonts if font.name == "STIXSizeOneSym" and font.weight == 400)
    lacking = "\u23b1"  # half of a large bracket
    assert lacking in lettering._letters_of(other) - lettering._letters_of(font_manager.findfont("DejaVu Sans"))
    letters = lettering.lettering_for([f"a{lacking}"])
    assert letters == lettering.Lettering(("STIXSizeOneSym",), frozenset())
    assert letters.font["fontfamily"][-1] == "STIXSizeOneSym" and letters.shown(f"a{lacking}") == f"a{lacking}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "a.png", f"a{lacking}")
    assert cv2.imread(str(tmp_path / "a.png")) is not None and capsys.readouterr().err == ""


def test_wide_letters_take_two_places():
    letters = lettering.Lettering((), frozenset())
    assert letters.wrapped(20 * HAN[0], 10).split("\n") == 4 * [5 * HAN[0]]
    assert letters.wrapped("ten letters and ten", 11) == "ten letters\nand ten"
