import re

import numpy as np
import pytest

from judging import association, parts, published
from judging.association_table import HEADER, notes, screen_notes, screen_table, sections, table

KINDS = ("equal sex", "equal age", "equal nationality", "equal all")


def row_of(rng, people, fitted_on=False, restricted=False):
    faces = rng.normal(size=(people, 5)).astype(np.float32)
    clips = [f"p{number}_1" for number in range(people)]
    part = parts.part_of(clips, faces + rng.normal(size=faces.shape).astype(np.float32), faces, faces, np.zeros(5))
    restrictions = {kind: ["mf"[number % 2] for number in range(people)] for kind in KINDS} if restricted else {}
    row = association.measure(part, np.zeros(5, np.float32), restrictions)
    return {"people": people, "gallery": people, "fitted_on": fitted_on, "association": row}


def labels_of(text):
    return [re.split("  +", line.strip())[0] for line in text.splitlines()]


def test_the_table_fits_the_screen_and_says_who_is_seen(rng):
    rows = {"train": row_of(rng, 60, True, True), "val": row_of(rng, 12, False, True), "test": row_of(rng, 24, False, True)}
    text = screen_table(rows, None)
    assert max(map(len, text.splitlines())) <= 100 and max(map(len, screen_notes(rows).splitlines())) <= 100
    header = ["association in %", "people", "AUC", "EER", "1:2", "1:3", "1:5", "1:10", "mAP"]
    assert re.split("  +", text.splitlines()[0]) == HEADER == header
    of_pairs = ["voice to face", "95 %", "face to voice", "95 %", "chance"]
    expected = [HEADER[0]]
    for part in ("Train, seen", "Val, unseen", "Test, unseen"):
        lines = [label for label in of_pairs if label != "95 %"] if part.startswith("Val") else of_pairs  # too few people
        expected += [label for heading in (part, *KINDS) for label in (heading, *lines)]
    assert labels_of(text) == expected
    assert any("only voices and faces of people with the same label" in note for note in notes(rows))


def test_cells_are_the_figures(rng):
    rows = {"test": row_of(rng, 40)}
    of = rows["test"]["association"]["all"]
    lines = {cells[0].strip(): cells[1:] for cells in table(rows, None)[2:]}
    percent = "{:.1f}".format
    shares = [of["auc"], of["eer"], *of["voice_to_face"]["matching"].values(), of["voice_to_face"]["map"]]
    assert lines["voice to face"] == ["", *(percent(100 * share) for share in shares)]
    shares = [*of["face_to_voice"]["matching"].values(), of["face_to_voice"]["map"]]
    assert lines["face to voice"] == ["", "", "", *(percent(100 * share) for share in shares)]
    assert lines["chance"][1:-1] == ["50.0", "50.0", "50.0", "33.3", "20.0", "10.0"]
    assert float(lines["chance"][-1]) == pytest.approx(100 * of["chance"]["map"], abs=0.05)
    low, high = of["auc_interval"]
    intervals = [cells[2] for cells in table(rows, None) if cells[0].strip() == "95 %"]
    assert intervals == [f"{100 * low:.1f}-{100 * high:.1f}", ""]
    text = "\n".join(sections(rows, None, ["", "a.txt: 3 trials"]))
    assert "| Test, unseen | 40 |" in text and text.endswith("a.txt: 3 trials") and "with the same label" not in text


def test_few_people_have_no_line_of_intervals(rng):
    assert "95 %" not in screen_table({"test": row_of(rng, 12)}, None)
    lines = {cells[0].strip(): cells for cells in table({"test": row_of(rng, 8)}, None)}
    assert lines["voice to face"][7] == "" != lines["voice to face"][6]  # 1:10 and 1:5


@pytest.mark.parametrize(
    "split, part, people, shown",
    [
        (published.BY_NAME, "test", 189, True),
        (published.BY_NAME, "test", 180, True),
        (published.BY_NAME, "test", 179, False),
        (published.BY_NAME, "test", 190, False),
        (published.BY_NAME, "val", 189, False),
        (published.BY_NAME, "train", 189, False),
        ("another", "test", 189, False),
        (None, "test", 189, False),
    ],
)
def test_published_figures_stand_beside_the_same_people_alone(split, part, people, shown, rng):
    row = {**row_of(rng, 40, restricted=True), "people": people, "gallery": people}
    text = screen_table({part: row}, split)
    assert ("MM 2023" in text) == ("Wen et al. 2021" in text) == shown and "AVSpeech" not in text
    if shown:
        lines = [line.split() for line in text.splitlines() if "MM 2023" in line]
        assert lines == [  # both directions for all, and for equal sex; no mAP, whose gallery was another
            ["MM", "2023", "189", "88.4", "87.9"],
            ["MM", "2023", "189", "89.0", "88.6"],
            ["MM", "2023", "189", "79.2", "78.9"],
            ["MM", "2023", "189", "79.0", "78.6"],
        ]
        assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("gallery, shown", [(10_037, False), (10_038, True), (40_152, True), (40_153, False)])
def test_mean_average_precision_stands_beside_the_same_gallery_alone(gallery, shown):
    of = published.association_beside(published.BY_NAME, "test", 189, "voice to face", "all", gallery)
    assert [(figures.paper, figures.mean_precision) for figures in of] == [
        ("DIMNet 2019", None),
        ("Wen et al. 2021", 5.5 if shown else None),
        ("MM 2023", None),
    ]
