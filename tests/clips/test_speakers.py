"""The speaker's face where no csv says where it is."""

import cv2
import numpy as np
import pytest

from clips import detection, media, speakers
from clips.reasons import Skip

EMPTY = np.full((360, 640, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def person(make_demo):
    """Return a function: a frame with one face, whose traits have one value."""

    def draw(trait, x=320, openness=0.2):
        return make_demo.draw_faces(make_demo.Person(*np.full(11, trait)), [(openness, 1)], (x, 175), 0)[0]

    return draw


@pytest.fixture(scope="module")
def pair(person):
    """A large face on the left, and a smaller one nearer to the middle."""
    small = cv2.resize(person(0.8), None, fx=0.62, fy=0.62, interpolation=cv2.INTER_AREA)[:, 90:310]
    frame = person(0.2, 150).copy()
    frame[60 : 60 + small.shape[0], 280 : 280 + small.shape[1]] = small
    return frame


def find(rule, *pictures, detector="hog"):
    first, *later = (media.Frame(float(second), picture) for second, picture in enumerate(pictures))
    return speakers.find_speaker(first, lambda: later, rule, detector)


def across(found):
    _, right, _, left = found.box
    return (left + right) / 2


def test_the_same_face_as_by_its_centre_in_a_csv(person):
    """To the bit: the frame, the box and the crop do not depend on who says where the face is."""
    frames = [person(0.4, 300 + 6 * second, 0.1 * second) for second in range(6)]
    first, *later = (media.Frame(float(second), picture) for second, picture in enumerate(frames))
    expected = detection.find_face(first, lambda: later, 300 / 640, 175 / 360, "hog")
    for rule in speakers.RULES:
        found = find(rule, *frames)
        assert (found.box, found.second, found.detector, found.doubt) == (expected.box, 0, "hog", "")
        np.testing.assert_array_equal(found.face, expected.face)


def test_largest_and_middle_go_by_the_first_frame_with_a_face(person, pair):
    assert across(find("largest", pair)) < 230 < across(find("middle", pair))
    later = find("middle", EMPTY, pair, person(0.5))
    assert later.second == 1 and across(later) > 230
    with pytest.raises(Skip, match="no-face"):
        find("largest", EMPTY, EMPTY)


def test_a_face_that_stays_wins_over_a_larger_one_that_goes(person, pair):
    alone = EMPTY.copy()
    alone[:, 280:640] = pair[:, 280:640]
    found = find("staying", pair, alone, alone, alone, alone, alone)
    assert across(found) > 230 and found.second == 0 and found.doubt == ""
    assert across(find("staying", pair, pair, pair, pair, pair, pair)) < 230


def test_a_second_face_that_stays_is_told(pair):
    assert find("staying", pair, pair, pair).doubt == "2 faces stay"


def test_no_face_that_stays(person):
    """A face that is seen in two of six frames, and faces that jump: nobody speaks through the clip."""
    with pytest.raises(Skip) as skip:
        find("staying", person(0.5), person(0.5), EMPTY, EMPTY, EMPTY, EMPTY)
    assert (skip.value.reason, skip.value.detail) == ("speaker-not-found", "no face stays for half of the clip")
    with pytest.raises(Skip, match="speaker-not-found"):
        find("staying", *(person(0.5, x) for x in (120, 520, 320, 120, 520, 320)))
    with pytest.raises(Skip, match="no-face"):
        find("staying", EMPTY, EMPTY)


def test_a_face_that_becomes_another_persons(person):
    """A cut from one speaker to another, both in the middle."""
    with pytest.raises(Skip) as skip:
        find("staying", *[person(0.0)] * 3, *[person(1.0)] * 3)
    assert skip.value.detail == "the face that stays becomes another person's"


def test_the_first_sharp_frame_of_the_speaker_is_taken(person, monkeypatch):
    blurred = cv2.GaussianBlur(person(0.5), None, 3)
    assert find("staying", blurred, person(0.5), person(0.5)).second == 0
    monkeypatch.setattr(detection, "MIN_SHARPNESS", 0.02)  # the blurred face has 0.014
    assert find("staying", blurred, person(0.5), person(0.5)).second == 1


def test_cnn_examines_what_hog_does_not_find(person, monkeypatch):
    asked, face = [], person(0.5)

    def boxes(frame, method):
        asked.append(method)
        return [] if method == "hog" else [(100, 400, 260, 240)]

    monkeypatch.setattr(speakers, "_boxes", boxes)
    with pytest.raises(Skip, match="no-face"):
        find("staying", face)
    assert find("staying", face, detector="cnn").detector == "cnn" and asked == ["hog", "hog", "cnn"]
