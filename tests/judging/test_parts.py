import numpy as np
import pytest

from judging import parts, tables


def part_with(voices, faces, centre, people=None):
    clips = [f"{person}_0-6" for person in people or range(len(faces))]
    return parts.part_of(clips, voices, voices, faces, centre)


def score(voices, faces, centre, mean_face, ks, gallery=None, people=None):
    return parts.score(part_with(voices, faces, centre, people), centre, mean_face, ks, gallery)


def test_a_perfect_and_a_constant_prediction(rng):
    faces = rng.normal(size=(40, 16)) + 3
    perfect = score(faces * 2, faces, np.zeros(16), faces.mean(0), (1, 5, 100), 20)
    assert perfect["recall"] == {1: 1, 5: 1, 100: 1} and perfect["median_rank"] == perfect["matching"] == 1
    assert perfect["recall_interval"][1] == (1, 1) and perfect["fixed_gallery"]["recall"][1] == 1
    assert perfect["similarity"]["6 s"] == pytest.approx({"degrees": 0, "l1": 0, "l2": 0, "degrees_from_centre": 0}, abs=1e-4)
    constant = score(np.repeat(faces.mean(0)[None], 40, 0), faces, np.zeros(16), faces.mean(0), (1, 5, 100), 20)
    assert constant["recall"] == constant["mean_face"] == {1: 1 / 40, 5: 5 / 40, 100: 1} == pytest.approx(constant["chance"])
    assert constant["fixed_gallery"]["recall"][5] == pytest.approx(5 / 20) == constant["fixed_gallery"]["chance"][5]
    assert constant["matching"] == pytest.approx(0.5)


def test_similarity_is_measured_from_the_centre(rng):
    faces = rng.normal(size=(40, 16))
    voices = 0.001 * faces + 100  # from 100, the directions of the faces; from 0, all the same direction
    assert score(voices, faces + 100, np.full(16, 100.0), faces[0], (1,))["recall"] == {1: 1}
    assert score(voices, faces + 100, np.zeros(16), faces[0], (1,))["recall"][1] < 1


def test_several_clips_of_a_person_are_noted(rng):
    faces = rng.normal(size=(6, 4))
    row = score(faces, faces, np.zeros(4), faces[0], (1,), people=list("aabbcd"))
    assert (row["gallery"], row["people"]) == (6, 4) and row["chance"][1] == pytest.approx((4 * 2 + 2) / 36)
    assert "any face of the speaker" in " ".join(tables.notes({"test": row}))
    assert "any face of the speaker" not in " ".join(tables.notes({"test": {**row, "people": 6}}))


def test_few_people_carry_no_interval(rng):
    """19 people: None instead of each interval, and all other figures as for 20."""
    faces = rng.normal(size=(20, 8))
    voices, centre = faces + rng.normal(size=faces.shape), np.zeros(8)
    enough = score(voices, faces, centre, faces[0], (1, 5), 10)
    few = score(voices, faces, centre, faces[0], (1, 5), 10, people=["0", "0", *range(2, 20)])
    assert few.keys() == enough.keys()
    assert few["median_rank_interval"] is few["matching_interval"] is few["matching_alike_interval"] is None
    assert few["recall_interval"] == few["fixed_gallery"]["recall_interval"] == {1: None, 5: None}
    assert len(enough["median_rank_interval"]) == len(enough["fixed_gallery"]["recall_interval"][5]) == 2
    assert few["recall"].keys() == enough["recall"].keys() and 0 < few["matching"] < 1


def test_all_intervals_of_a_part_share_its_resamples(rng, monkeypatch):
    made = []
    resample = parts.intervals.resample
    monkeypatch.setattr(parts.intervals, "resample", lambda people: made.append(people) or resample(people))
    faces = rng.normal(size=(30, 8))
    score(faces, faces, np.zeros(8), faces[0], (1, 5, 10), 10)
    assert len(made) == 1
