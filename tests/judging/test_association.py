import json

import numpy as np
import pytest

from judging import association, parts
from judging.association import ALL, DIRECTIONS


def part_with(rng, people, noise=1.0):
    """Return a part of so many clips of each person, whose faces are seen from (3, 3, ...), and that centre."""
    people = [f"p{number:02}" for number, n in enumerate(people) for _ in range(n)]
    clips = [f"{person}_{number}" for number, person in enumerate(people)]
    centre = np.full(6, 3.0, np.float32)
    faces = (centre + rng.normal(size=(len(clips), 6))).astype(np.float32)
    voices = (faces + noise * rng.normal(size=faces.shape)).astype(np.float32)
    return parts.part_of(clips, voices, voices, faces, centre), centre


def subpart(part, numbers, centre):
    return parts.part_of(
        [part.clips[n] for n in numbers], part.voices[numbers], part.short[numbers], part.faces[numbers], centre
    )


def test_a_part_is_measured_as_seen_from_the_centre(rng):
    part, centre = part_with(rng, [1, 2, 3] * 9)
    row = association.measure(part, centre, {})[ALL]
    assert (row["clips"], row["people"]) == (54, 27)
    assert row["positives"] == 9 * (1 + 4 + 9) and row["positives"] + row["negatives"] == 54**2
    assert row["voice_to_face"]["matching"][2] == pytest.approx(part.ranking.matching.mean())
    assert row["voice_to_face"]["matching_interval"][2] == pytest.approx(part.mean_interval(part.ranking.matching))
    assert 0.6 < row["auc"] < 1 and row["auc_interval"][0] < row["auc"] < row["auc_interval"][1]
    assert 0 < row["eer_interval"][0] < row["eer"] < row["eer_interval"][1] < 0.5
    other = association.measure(part, np.zeros(6), {})[ALL]
    assert other["auc"] != row["auc"]
    swapped = parts.part_of(part.clips, part.faces, part.faces, part.voices, centre)
    turned = association.measure(swapped, centre, {})[ALL]
    assert turned["voice_to_face"] == row["face_to_voice"] and turned["face_to_voice"] == row["voice_to_face"]
    assert turned["auc"] == pytest.approx(row["auc"])


def test_chance_is_what_random_predictions_reach(rng):
    part, centre = part_with(rng, [1, 2, 4, 3] * 30, noise=1000)
    row = association.measure(part, centre, {})[ALL]
    for direction in DIRECTIONS.values():
        assert row[direction]["map"] == pytest.approx(row["chance"]["map"], rel=0.25)
        assert row[direction]["matching"] == pytest.approx(row["chance"]["matching"], abs=0.06)
    assert row["auc"] == pytest.approx(row["chance"]["auc"], abs=0.05) == 0.5
    assert row["eer"] == pytest.approx(row["chance"]["eer"], abs=0.05)
    assert row["chance"]["matching"] == {2: 1 / 2, 3: 1 / 3, 5: 1 / 5, 10: 1 / 10}


def test_restrictions_equal_parts_of_one_label(rng):
    """1:N and mAP of two labels are the means of parts that hold one of them alone; pairs are counted together."""
    part, centre = part_with(rng, [2, 1, 3, 2, 2, 4, 1, 1])
    labels = [None if person == "p07" else "mf"[person > "p02"] for person in part.people]
    rows = association.measure(part, centre, {"equal sex": labels})
    row = rows["equal sex"]
    alone = [
        association.measure(subpart(part, [n for n, of in enumerate(labels) if of == label], centre), centre, {})[ALL]
        for label in "mf"
    ]
    assert [of["clips"] for of in alone] == [6, 9] and (row["clips"], row["people"]) == (15, 7)
    for name in ("positives", "negatives"):
        assert row[name] == sum(of[name] for of in alone)
    for direction in DIRECTIONS.values():
        assert row[direction]["map"] == pytest.approx(sum(of["clips"] * of[direction]["map"] for of in alone) / 15)
        assert row[direction]["matching"][2] == pytest.approx(
            sum(of["clips"] * of[direction]["matching"][2] for of in alone) / 15
        )
        assert row[direction]["matching"][5] is None and rows[ALL][direction]["matching"][5] > 0  # three others in the first
    assert row["chance"]["map"] == pytest.approx(sum(of["clips"] * of["chance"]["map"] for of in alone) / 15)
    assert row["auc_interval"] is row["voice_to_face"]["map_interval"] is None  # fewer than 20 people


def test_the_people_compared_must_suffice_for_an_interval(rng):
    part, centre = part_with(rng, [1] * 30)
    enough, few = (association.measure(part, centre, {"equal age": ["20s"] * n + [None] * (30 - n)}) for n in (20, 19))
    assert few["equal age"]["people"] == 19 and few["equal age"]["auc_interval"] is None
    assert few["equal age"]["face_to_voice"]["matching_interval"][2] is None and few[ALL]["auc_interval"]
    assert len(enough["equal age"]["auc_interval"]) == len(enough["equal age"]["voice_to_face"]["map_interval"]) == 2


def test_what_is_left_out_is_counted(rng):
    part, centre = part_with(rng, [2, 1, 3, 2])
    labels = {"equal sex": ["m"] * 2 + [None] + ["m"] * 3 + ["f"] * 2, "equal age": list("aabcccdd"), "equal all": ["x"] * 8}
    rows = association.measure(part, centre, labels)
    assert list(rows) == [ALL, "equal sex", "equal all"] and rows["equal sex"]["clips"] == 5
    assert rows["equal all"] == rows[ALL]
    assert association.left_out("test", rows, labels) == [
        "equal sex: 3 of 8 test clips left out, 1 without a label, 2 of people alone with theirs",
        "equal age: 8 of 8 test clips left out, 0 without a label, 8 of people alone with theirs",
    ]


def test_all_of_it_is_json(rng):
    part, centre = part_with(rng, [1] * 25)
    text = json.dumps(association.measure(part, centre, {"equal sex": ["m"] * 25}))
    again = json.loads(text)
    assert list(again) == [ALL, "equal sex"] and list(again[ALL]["voice_to_face"]["matching"]) == ["2", "3", "5", "10"]
    assert "NaN" not in text
