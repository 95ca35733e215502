import cv2
import numpy as np
import pytest
from conftest import ROOT

from clips import detection, media, speech
from clips.reasons import MIN_FACE_PIXELS, Skip

# ---------------------------------------------------------------- the speaker in a frame


def test_the_speaker_is_the_nearest_face_within_a_side_of_the_box():
    left, right = (10, 50, 50, 10), (10, 350, 50, 310)
    assert detection.speaker_box([left, right], 300, 30) == right
    assert detection.speaker_box([left, right], 60, 30) == left
    assert detection.speaker_box([left, right], 70, 30) == left  # a side away from its centre
    beside = (10, 80, 50, 40)
    assert detection.speaker_box([left, beside], 50, 30) == detection.speaker_box([beside, left], 50, 30) == beside
    assert detection.speaker_box([left, right], 71, 30) is None
    assert detection.speaker_box([left, right], 180, 30) is None
    assert detection.speaker_box([left, right], 330, 71) is None
    assert detection.speaker_box([], 0, 0) is None


@pytest.fixture(scope="module")
def person(make_demo):
    """Return a function: a frame of 640 x 360 pixels, uint8 RGB, with one face; all traits have one value, between 0 and 1."""

    def draw(trait, centre):
        return make_demo.draw_faces(make_demo.Person(*np.full(11, trait)), [(0.2, 1)], centre, 0)[0]

    return draw


@pytest.fixture(scope="module")
def pair(person):
    """A frame with two people, left and right."""
    return np.hstack([person(0.2, (160, 175))[:, :320], person(0.8, (480, 175))[:, 320:]])


EMPTY = np.full((360, 640, 3), 90, np.uint8)


def find(*pictures, x=0.5, y=0.5, detector="hog"):
    first, *later = (media.Frame(second, picture) for second, picture in enumerate(pictures))
    return detection.find_face(first, lambda: later, x, y, detector)


def test_two_people_in_a_frame(pair):
    for x, side in ((0.25, 0), (0.75, 1)):
        _, right, _, left = find(pair, x=x).box
        assert (left + right) / 2 // 320 == side
    with pytest.raises(Skip, match="speaker-not-found"):
        find(pair, x=0.5, y=0.02)


def test_later_frames_are_examined_only_if_needed(person, pair):
    face = person(0.5, (320, 175))
    asked = []

    def later():
        asked.append(1)
        return [media.Frame(1.0, EMPTY), media.Frame(3.2, face)]

    found = detection.find_face(media.Frame(0.0, face), later, 0.5, 0.5, "hog")
    assert (found.second, asked) == (0, []) and found.frame is face and found.detector == "hog"
    found = detection.find_face(media.Frame(0.0, EMPTY), later, 0.5, 0.5, "hog")
    assert (found.second, asked) == (3.2, [1])
    assert find(pair, face).second == 1  # the speaker is not among the faces in the first frame
    with pytest.raises(Skip, match="no-face"):
        find(EMPTY, EMPTY)


def test_small_and_blurred_faces_are_skipped(person, monkeypatch):
    face = person(0.5, (320, 175))
    small = EMPTY.copy()
    small[140:230, 240:400] = cv2.resize(face, (160, 90), interpolation=cv2.INTER_AREA)  # the face is 37 pixels
    blurred = cv2.GaussianBlur(face, (0, 0), 4)
    monkeypatch.setattr(detection, "MIN_FACE_PIXELS", 60)
    monkeypatch.setattr(detection, "MIN_SHARPNESS", 0.05)
    with pytest.raises(Skip, match="face-too-small"):
        find(small)
    with pytest.raises(Skip, match="face-blurred"):
        find(blurred)
    for unusable in (small, blurred):
        assert find(unusable, face).second == 1
    with pytest.raises(Skip, match="face-blurred"):  # of several reasons, the one nearest to success
        find(EMPTY, blurred, small, EMPTY)


def test_usable_faces_have_a_minimum_size(person):
    face = person(0.5, (320, 175))
    box = find(face).box
    for side, reason in ((MIN_FACE_PIXELS - 1, "face-too-small"), (MIN_FACE_PIXELS, None)):
        top, left = 175 - side // 2, 320 - side // 2
        assert box[0] < top and box[3] < left
        small = (top, left + side, top + side, left)
        if reason:
            with pytest.raises(Skip, match=reason):
                detection.usable_face(face, [small], 0.5, 0.5)
        else:
            assert detection.usable_face(face, [small], 0.5, 0.5)[0] == small


def test_sharpness_decreases_with_blur_but_not_with_light(person):
    face = detection.crop_face(person(0.5, (320, 175)), (100, 400, 260, 240))
    values = [detection.sharpness(cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 20
    assert detection.sharpness(face // 4) == pytest.approx(detection.sharpness(face), rel=0.2)
    assert detection.sharpness(np.full_like(face, 80)) == 0


def test_large_frames_are_made_smaller_for_detection_and_boxes_are_scaled_back(person):
    face = person(0.5, (320, 175))
    large = cv2.resize(face, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    boxes = [np.array(detection.face_boxes(frame, "hog", 0)[0]) for frame in (face, large)]
    assert np.abs(boxes[1] / 3 - boxes[0]).max() < 12


def test_cnn_runs_only_where_hog_finds_no_speaker(person, monkeypatch):
    face = person(0.5, (320, 175))
    calls = []

    def boxes(frame, detector, upsampling):
        calls.append((detector, upsampling))
        return [(100, 400, 260, 240)] if detector == "cnn" and frame is face else []

    monkeypatch.setattr(detection, "face_boxes", boxes)
    with pytest.raises(Skip, match="no-face"):
        find(face, EMPTY, detector="hog")
    assert calls == [("hog", 0), ("hog", 1)] * 2
    calls.clear()
    found = find(EMPTY, face, detector="cnn")
    assert calls == [("hog", 0), ("hog", 1)] * 2 + [("cnn", 0)] * 2
    assert found.detector == "cnn" and found.second == 1


def test_the_real_cnn_finds_a_face_that_hog_misses(person):
    turned = cv2.rotate(person(0.5, (320, 175))[:, 140:500], cv2.ROTATE_90_CLOCKWISE)[60:300, 60:300]
    with pytest.raises(Skip, match="no-face"):
        find(np.ascontiguousarray(turned))
    found = find(np.ascontiguousarray(turned), detector="cnn")
    assert found.detector == "cnn"


def test_a_crop_is_the_box_with_its_margin():
    frame = np.zeros((400, 600, 3), np.uint8)
    frame[100:200, 300:400] = (10, 200, 30)
    crop = detection.crop_face(frame, (100, 400, 200, 300))
    assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8
    inside = np.all(np.abs(crop.astype(int) - (10, 200, 30)) < 3, axis=2)
    margin = 0.15 / 1.3 * 224
    rows, columns = np.where(inside)
    for edge in (rows.min(), columns.min(), 224 - rows.max(), 224 - columns.max()):
        assert edge == pytest.approx(margin, abs=3)


def test_a_crop_beyond_the_frame_repeats_the_border():
    frame = np.full((100, 100, 3), 77, np.uint8)
    assert (detection.crop_face(frame, (-20, 60, 60, -20)) == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (50, 3)])
def test_a_tiny_frame_has_no_face(size):
    with pytest.raises(Skip, match="no-face"):
        find(np.zeros((*size, 3), np.uint8))


# ---------------------------------------------------------------- photos and landmarks


def test_of_the_large_faces_in_a_photo_the_one_nearest_to_the_middle_is_found(person):
    """People of different sizes side by side."""
    small, large = person(0.3, (320, 175)), person(0.7, (320, 175))
    apart = np.full((360, 200, 3), 90, np.uint8)
    two = np.hstack([large[:, 200:440], apart, large[:, 200:440], large[:, 200:300]])
    for photo, expected in ((two, 560), (two[:, ::-1], 660 - 560 + 120)):
        _, right, _, left = detection.find_photo_face(np.ascontiguousarray(photo), "hog").box
        assert (left + right) / 2 == pytest.approx(expected, abs=25)
    little = cv2.resize(small[60:300, 200:440], (100, 100), interpolation=cv2.INTER_AREA)
    beside = np.hstack([large[:, 140:500], np.full((360, 300, 3), 90, np.uint8)])
    beside[130:230, 380:480] = little  # nearer to the middle, but in the background
    _, right, _, left = detection.find_photo_face(beside, "hog").box
    assert (left + right) / 2 == pytest.approx(180, abs=25)


def test_photos_in_which_no_face_is_found(person, monkeypatch):
    with pytest.raises(Skip, match="no-face"):
        detection.find_photo_face(EMPTY, "hog")
    small = cv2.resize(person(0.5, (320, 175)), None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA)
    with pytest.raises(Skip, match=r"no-face|face-too-small"):
        detection.find_photo_face(np.pad(small, ((60, 60), (60, 60), (0, 0)), "edge"), "hog")
    asked, boxes = [], detection.face_boxes

    def note(photo, detector, upsampling):
        asked.append((detector, upsampling))
        return boxes(photo, detector, upsampling) if detector == "hog" else [(100, 300, 200, 200)]

    monkeypatch.setattr(detection, "face_boxes", note)
    noise = np.random.default_rng(0).integers(0, 256, EMPTY.shape, dtype=np.uint8)
    found = detection.find_photo_face(noise, "cnn")
    assert asked == [("hog", 0), ("hog", 1), ("cnn", 0)] and found.detector == "cnn" and found.box == (100, 300, 200, 200)


def test_a_portrait_is_the_box_with_its_margin_as_far_as_the_frame_reaches():
    frame = np.arange(400 * 600 * 3, dtype=np.uint32).reshape(400, 600, 3).astype(np.uint8)
    portrait, box = detection.crop_portrait(frame, (150, 350, 250, 250))  # of 100 pixels; 90 more on each side
    np.testing.assert_array_equal(portrait, frame[60:340, 160:440])
    assert box == (90, 190, 190, 90)
    portrait, box = detection.crop_portrait(frame, (-10, 90, 90, -10))  # in the corner, beyond the frame
    np.testing.assert_array_equal(portrait, frame[0:180, 0:180])
    assert box == (-10, 90, 90, -10)


def test_a_large_portrait_and_its_box_are_made_smaller():
    frame = np.zeros((1200, 1600, 3), np.uint8)
    frame[400:800, 600:1000] = 200
    portrait, (top, right, bottom, left) = detection.crop_portrait(frame, (400, 1000, 800, 600))
    assert portrait.shape == (320, 320, 3) and portrait.flags.c_contiguous
    rows, columns = np.where(portrait[..., 0] > 100)
    assert (top, right, bottom, left) == pytest.approx((rows.min(), columns.max() + 1, rows.max() + 1, columns.min()), abs=1)
    assert bottom - top == pytest.approx(400 * 320 / 1120, abs=0.1)


def landmarks_of(photo):
    return detection.find_landmarks(photo, detection.find_photo_face(photo, "hog").box)


def test_landmarks_are_where_the_face_was_rendered(person, make_demo):
    """Eyes, nose and mouth are where the sketch has them, from the left of the picture to the right."""
    photo = person(0.5, (320, 175))
    landmarks = landmarks_of(photo)
    assert landmarks.shape == (68, 2) and landmarks.dtype == np.float32
    sketch = make_demo.Sketch(make_demo.Person(*np.full(11, 0.5)), (320, 175), 0)
    u, v = sketch.eye
    for eye, side in ((slice(36, 42), -1), (slice(42, 48), 1)):
        expected = np.array(sketch.at(side * u, v)) / 16
        np.testing.assert_allclose(landmarks[eye].mean(axis=0), expected, atol=4)
    np.testing.assert_allclose(landmarks[48:60].mean(axis=0), np.array(sketch.at(0, 0.56)) / 16, atol=7)
    np.testing.assert_allclose(landmarks[33], np.array(sketch.at(0, sketch.nose_tip + 0.07)) / 16, atol=8)
    np.testing.assert_allclose(landmarks[8], np.array(sketch.at(0, 1)) / 16, atol=10)


def test_landmarks_follow_the_face_and_the_size_of_the_photo(person):
    photo = person(0.5, (320, 175))
    box, landmarks = detection.find_photo_face(photo, "hog").box, landmarks_of(photo)
    moved = np.roll(photo, (20, -30), axis=(0, 1))
    top, right, bottom, left = box
    found = detection.find_landmarks(moved, (top + 20, right - 30, bottom + 20, left - 30))
    np.testing.assert_allclose(found, landmarks + np.array([-30, 20]), atol=0.8)
    half = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    found = detection.find_landmarks(half, tuple(edge / 2 for edge in box))
    np.testing.assert_allclose(found, (landmarks + 0.5) / 2 - 0.5, atol=1.2)


def test_landmarks_of_the_mirror_image_are_mirrored(person):
    photo = person(0.5, (300, 175))
    top, right, bottom, left = detection.find_photo_face(photo, "hog").box
    landmarks = detection.find_landmarks(photo, (top, right, bottom, left))
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    found = detection.find_landmarks(mirrored, (top, 640 - left, bottom, 640 - right))
    np.testing.assert_allclose(detection.mirror_landmarks(found, 640), landmarks, atol=0.6)


def test_mirrored_landmarks_by_hand(rng):
    assert sorted(detection.MIRRORED) == list(range(68)) and (detection.MIRRORED[detection.MIRRORED] == np.arange(68)).all()
    pairs = {
        0: 16,
        8: 8,
        17: 26,
        21: 22,
        27: 27,
        31: 35,
        36: 45,
        37: 44,
        39: 42,
        41: 46,
        48: 54,
        55: 59,
        57: 57,
        60: 64,
        67: 65,
    }
    assert {number: detection.MIRRORED[number] for number in pairs} == pairs
    landmarks = rng.uniform(0, 100, size=(2, 68, 2))
    mirrored = detection.mirror_landmarks(landmarks, 101)
    np.testing.assert_allclose(mirrored[1, 36], (100 - landmarks[1, 45, 0], landmarks[1, 45, 1]))
    np.testing.assert_allclose(detection.mirror_landmarks(mirrored, 101), landmarks)


# ---------------------------------------------------------------- real people

MOTION = ROOT.parent / "shared" / "real" / "motion"


@pytest.mark.skipif(not MOTION.is_dir(), reason="the real videos are not here")
def test_every_real_talking_face_is_found():
    for path in sorted(MOTION.glob("*.mp*")):
        clip = media.read_clip(path)
        found = detection.find_face(clip.frame, lambda path=path: media.read_later_frames(path), 0.5, 0.5, "hog")
        assert speech.speech_seconds(clip.samples) > 1, path
        assert 0.8 < np.linalg.norm(detection.dlib_feature(found.frame, found.box)) < 2, path
