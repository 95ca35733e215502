import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, ffmpeg, loudest_hertz, second_shown

import utils
from clips import detection, media, recordings
from clips.reasons import MIN_SPEECH_SECONDS, SMALLEST_FACE, Skip
from utils import InputError

# ---------------------------------------------------------------- sound and frames


def test_the_first_frame_and_six_seconds_of_sound_come_from_one_process(counting_video, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **more):
            started.append(arguments)
            super().__init__(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    samples, frame = media.read_clip(counting_video)
    assert len(started) == 1
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    assert second_shown(frame) == pytest.approx(0, abs=0.3)
    assert samples.shape == (utils.CLIP_SAMPLES,) and samples.dtype == np.int16
    for second in range(6):
        part = samples[second * 16_000 + 2000 : (second + 1) * 16_000 - 2000]
        assert loudest_hertz(part) == pytest.approx(200 + 100 * second, abs=2)


def test_later_frames_are_one_a_second_as_far_as_6_s(counting_video):
    frames = media.read_later_frames(counting_video)
    assert frames.shape == (5, 240, 320, 3) and frames.dtype == np.uint8
    assert [second_shown(frame) for frame in frames] == pytest.approx([1, 2, 3, 4, 5], abs=0.3)


def test_frames_are_rgb_and_of_any_size(tmp_path):
    ffmpeg(
        "-f", "lavfi", "-i", "color=0xC02010:s=322x182:d=2:r=5", "-f", "lavfi", "-i", "anullsrc", "-t", 2, tmp_path / "a.mp4"
    )
    _, frame = media.read_clip(tmp_path / "a.mp4")
    assert frame.shape == (182, 322, 3)
    assert np.abs(frame.reshape(-1, 3).mean(axis=0) - (0xC0, 0x20, 0x10)).max() < 6
    assert media.read_later_frames(tmp_path / "a.mp4").shape == (1, 182, 322, 3)


def test_a_clip_shorter_than_a_second_has_one_frame_and_its_own_sound(counting_video, tmp_path):
    ffmpeg("-i", counting_video, "-t", 0.8, tmp_path / "short.mp4")
    samples, _ = media.read_clip(tmp_path / "short.mp4")
    assert len(samples) == pytest.approx(0.8 * utils.SAMPLE_RATE, abs=1200)
    assert len(media.read_later_frames(tmp_path / "short.mp4")) == 0


def test_files_that_are_no_clips(tmp_path, counting_video):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(counting_video.read_bytes()[:2000])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    ffmpeg("-i", counting_video, "-vn", "-c", "copy", tmp_path / "blind.mp4")
    for name in ("text", "empty", "cut", "list", "blind", "absent"):
        with pytest.raises(Skip, match="unreadable"):
            media.read_clip(tmp_path / f"{name}.mp4")
    with pytest.raises(Skip, match="no-sound"):
        media.read_clip(tmp_path / "mute.mp4")


def test_a_file_that_takes_for_ever_is_given_up(counting_video, monkeypatch):
    monkeypatch.setattr(media, "DECODING_SECONDS", 0.01)
    with pytest.raises(Skip, match="unreadable") as skipped:
        media.read_clip(counting_video)
    assert "ffmpeg was not done in 0.01 s" in skipped.value.detail


def test_speech_is_what_is_not_silent(tone):
    def seconds(waveform):
        return recordings.speech_seconds((waveform * 32767).astype(np.int16))

    assert seconds(np.zeros(utils.CLIP_SAMPLES)) == 0
    assert seconds(tone(300, 6, amplitude=1e-4)) == 0
    assert seconds(tone(300, 6, amplitude=0.05)) == pytest.approx(6, abs=0.1)
    assert seconds(np.concatenate([np.zeros(32_000), tone(300, 2), np.zeros(32_000)])) == pytest.approx(2, abs=0.2)
    click = np.zeros(utils.CLIP_SAMPLES)
    click[5000:5100] = 1
    assert seconds(click) < MIN_SPEECH_SECONDS


# ---------------------------------------------------------------- faces


def test_the_speaker_is_the_face_nearest_to_the_centre_if_it_is_near():
    left, right = (10, 50, 50, 10), (10, 350, 50, 310)
    assert detection.speaker_box([left, right], 300, 30) == right
    assert detection.speaker_box([left, right], 60, 30) == left
    assert detection.speaker_box([left, right], 70, 30) == left  # a side away from its centre
    assert detection.speaker_box([left, right], 71, 30) is None
    assert detection.speaker_box([left, right], 180, 30) is None
    assert detection.speaker_box([left, right], 330, 71) is None
    assert detection.speaker_box([], 0, 0) is None


@pytest.fixture(scope="module")
def person(make_demo):
    """Return a function: a frame of 640 x 360 with one face, uint8 RGB, of a look between 0 and 1, its centre in pixels."""

    def draw(look, centre):
        return make_demo.draw_faces(make_demo.Person(*np.full(11, look)), [(0.2, 1)], centre, 0)[0]

    return draw


@pytest.fixture(scope="module")
def pair(person):
    """A frame with two people, left and right."""
    return np.hstack([person(0.2, (160, 175))[:, :320], person(0.8, (480, 175))[:, 320:]])


EMPTY = np.full((360, 640, 3), 90, np.uint8)


def find(frame, *later, x=0.5, y=0.5, detector="hog"):
    return detection.find_face(frame, lambda: later, x, y, detector)


def test_two_people_in_a_frame(pair):
    for x, side in ((0.25, 0), (0.75, 1)):
        _, right, _, left = find(pair, x=x).box
        assert (left + right) / 2 // 320 == side
    with pytest.raises(Skip, match="speaker-not-found"):
        find(pair, x=0.5, y=0.02)


def test_the_next_frames_are_looked_at_only_if_needed(person, pair):
    face = person(0.5, (320, 175))
    asked = []

    def later():
        asked.append(1)
        return [EMPTY, face]

    found = detection.find_face(face, later, 0.5, 0.5, "hog")
    assert (found.second, asked) == (0, []) and found.frame is face and found.detector == "hog"
    found = detection.find_face(EMPTY, later, 0.5, 0.5, "hog")
    assert (found.second, asked) == (2, [1])
    assert find(pair, face).second == 1  # the speaker was not among those in the first frame
    with pytest.raises(Skip, match="no-face"):
        find(EMPTY, EMPTY)


def test_small_and_blurred_faces_are_passed_over(person, monkeypatch):
    face = person(0.5, (320, 175))
    small = EMPTY.copy()
    small[140:230, 240:400] = cv2.resize(face, (160, 90), interpolation=cv2.INTER_AREA)  # the face is 37 pixels
    blurred = cv2.GaussianBlur(face, (0, 0), 4)
    monkeypatch.setattr(media, "SMALLEST_FACE", 60)
    monkeypatch.setattr(media, "LEAST_SHARPNESS", 0.05)
    with pytest.raises(Skip, match="face-too-small"):
        find(small)
    with pytest.raises(Skip, match="face-blurred"):
        find(blurred)
    for unusable in (small, blurred):
        assert find(unusable, face).second == 1
    with pytest.raises(Skip, match="face-blurred"):  # of several reasons the one nearest to success
        find(EMPTY, blurred, small, EMPTY)


def test_usable_faces_have_a_least_size(person):
    face = person(0.5, (320, 175))
    box = find(face).box
    for side, reason in ((SMALLEST_FACE - 1, "face-too-small"), (SMALLEST_FACE, None)):
        top, left = 175 - side // 2, 320 - side // 2
        assert box[0] < top and box[3] < left
        small = (top, left + side, top + side, left)
        if reason:
            with pytest.raises(Skip, match=reason):
                detection.usable_face(face, [small], 0.5, 0.5)
        else:
            assert detection.usable_face(face, [small], 0.5, 0.5)[0] == small


def test_sharpness_falls_with_blur_but_not_with_light(person):
    face = detection.crop_face(person(0.5, (320, 175)), (100, 400, 260, 240))
    values = [detection.sharpness(cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 20
    assert detection.sharpness(face // 4) == pytest.approx(detection.sharpness(face), rel=0.2)
    assert detection.sharpness(np.full_like(face, 80)) == 0


def test_large_frames_are_looked_at_smaller_and_boxes_are_the_frames(person):
    face = person(0.5, (320, 175))
    large = cv2.resize(face, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    boxes = [np.array(detection.face_boxes(frame, "hog", 0)[0]) for frame in (face, large)]
    assert np.abs(boxes[1] / 3 - boxes[0]).max() < 12


def test_cnn_looks_only_where_hog_sees_no_speaker(person, monkeypatch):
    face = person(0.5, (320, 175))
    calls = []

    def boxes(frame, detector, upsampling):
        calls.append((detector, upsampling))
        return [(100, 400, 260, 240)] if detector == "cnn" and frame is face else []

    monkeypatch.setattr(media, "face_boxes", boxes)
    with pytest.raises(Skip, match="no-face"):
        find(face, EMPTY, detector="hog")
    assert calls == [("hog", 0), ("hog", 1)] * 2
    calls.clear()
    found = find(EMPTY, face, detector="cnn")
    assert calls == [("hog", 0), ("hog", 1)] * 2 + [("cnn", 0)] * 2
    assert found.detector == "cnn" and found.second == 1


def test_the_real_cnn_sees_a_face_that_hog_does_not(person):
    turned = cv2.rotate(person(0.5, (320, 175))[:, 140:500], cv2.ROTATE_90_CLOCKWISE)[60:300, 60:300]
    with pytest.raises(Skip, match="no-face"):
        find(np.ascontiguousarray(turned))
    found = find(np.ascontiguousarray(turned), detector="cnn")
    assert found.detector == "cnn"


def test_a_crop_is_the_box_and_its_margin():
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


def test_a_photo_s_face_is_the_large_one_nearest_to_the_middle(person):
    """Three people in a row, of different sizes."""
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

    monkeypatch.setattr(media, "face_boxes", note)
    noise = np.random.default_rng(0).integers(0, 256, EMPTY.shape, dtype=np.uint8)
    found = detection.find_photo_face(noise, "cnn")
    assert asked == [("hog", 0), ("hog", 1), ("cnn", 0)] and found.detector == "cnn" and found.box == (100, 300, 200, 200)


def test_a_portrait_is_the_head_and_what_is_around_it():
    frame = np.arange(400 * 600 * 3, dtype=np.uint32).reshape(400, 600, 3).astype(np.uint8)
    portrait, box = detection.portrait(frame, (150, 350, 250, 250))  # of 100 pixels; 90 more on each side
    np.testing.assert_array_equal(portrait, frame[60:340, 160:440])
    assert box == (90, 190, 190, 90)
    portrait, box = detection.portrait(frame, (-10, 90, 90, -10))  # in the corner, beyond the frame
    np.testing.assert_array_equal(portrait, frame[0:180, 0:180])
    assert box == (-10, 90, 90, -10)


def test_a_large_portrait_is_made_smaller_and_its_box_too():
    frame = np.zeros((1200, 1600, 3), np.uint8)
    frame[400:800, 600:1000] = 200
    portrait, (top, right, bottom, left) = detection.portrait(frame, (400, 1000, 800, 600))
    assert portrait.shape == (320, 320, 3) and portrait.flags.c_contiguous
    rows, columns = np.where(portrait[..., 0] > 100)
    assert (top, right, bottom, left) == pytest.approx((rows.min(), columns.max() + 1, rows.max() + 1, columns.min()), abs=1)
    assert bottom - top == pytest.approx(400 * 320 / 1120, abs=0.1)


def landmarks_of(photo):
    return detection.find_landmarks(photo, detection.find_photo_face(photo, "hog").box)


def test_landmarks_are_where_the_face_is_drawn(person, make_demo):
    """Eyes, nose and mouth are where the sketch has them; the left of the picture comes first."""
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


def test_photos_are_read_upright_and_in_rgb(tmp_path):
    """Of any format; a JPEG with a camera's note that it lies on its side."""
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:20] = (200, 30, 10)
    for name in ("a.png", "a.bmp", "a.tif", "a.webp", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), photo[..., ::-1])
        assert np.abs(media.read_photo(tmp_path / name).astype(int) - photo).mean() < 4, name
    content = (tmp_path / "a.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # turn it by 90 degrees
    turned = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
    (tmp_path / "turned.jpg").write_bytes(turned)
    upright = media.read_photo(tmp_path / "turned.jpg")
    assert upright.shape == (60, 40, 3) and upright[30, 35, 0] > 150 and upright[30, 5, 0] < 50
    assert media.read_photo(tmp_path / "none.jpg") is None


# ---------------------------------------------------------------- real people


MOTION = ROOT.parent / "shared" / "real" / "motion"


@pytest.mark.skipif(not MOTION.is_dir(), reason="the real videos are not here")
def test_every_real_talking_face_is_found():
    for path in sorted(MOTION.glob("*.mp*")):
        samples, frame = media.read_clip(path)
        found = detection.find_face(frame, lambda path=path: media.read_later_frames(path), 0.5, 0.5, "hog")
        assert recordings.speech_seconds(samples) > 1, path
        assert 0.8 < np.linalg.norm(detection.dlib_feature(found.frame, found.box)) < 2, path


def test_media_needs_no_tensorflow():
    code = "import media, fetch, sys; print([m for m in ('tensorflow', 'keras', 'librosa', 'yt_dlp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- recordings


def write_sound(path, *chunks):
    """Write chunks of (hertz or None, seconds) as an audio file."""
    sources = [f"sine=frequency={hertz}:duration={s}" if hertz else f"anullsrc=r=44100:d={s}" for hertz, s in chunks]
    inputs = [argument for source in sources for argument in ("-f", "lavfi", "-i", source)]
    ffmpeg(*inputs, "-filter_complex", f"concat=n={len(sources)}:v=0:a=1", path)
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.ogg"])
def test_a_recording_without_its_pauses(name, tmp_path):
    path = write_sound(tmp_path / name, (None, 2), (300, 4), (None, 0.2), (500, 3), (None, 3), (700, 2), (None, 1))
    recording = recordings.read_recording(path)
    assert recording.dtype == np.float32 and len(recording) / 16000 == pytest.approx(9.2, abs=0.25)  # the short pause stays
    heard = [loudest_hertz(recording[int(s * 16000) : int((s + 1) * 16000)]) for s in (1, 5, 8)]
    assert heard == pytest.approx([300, 500, 700], abs=5)


def test_a_short_recording_is_repeated(tmp_path):
    recording = recordings.read_recording(write_sound(tmp_path / "a.wav", (300, 3)))
    assert len(recording) == utils.CLIP_SAMPLES
    np.testing.assert_array_equal(recording[:48_000], recording[48_000:])


@pytest.mark.parametrize(
    "chunks, problem",
    [
        ([(None, 5)], "found silence: less than 0.5 s"),
        ([(300, 2)], "found 2.0 s; record more"),
        ([(300, 130)], "found more; cut out"),
    ],
)
def test_recordings_that_cannot_be_heard(chunks, problem, tmp_path):
    path = write_sound(tmp_path / "a.wav", *chunks)
    with pytest.raises(InputError, match=f"a.wav: expected a recording of 2.61 to 120 s of speech, {problem}"):
        recordings.read_recording(path)


def test_files_that_are_no_recordings(counting_video, tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    for name, problem in (("text.wav", "nothing that ffmpeg can read"), ("mute.mp4", "nothing"), ("none.wav", "no such file")):
        with pytest.raises(InputError, match=f"{name}: expected a recording .* found {problem}") as raised:
            recordings.read_recording(tmp_path / name)
        assert "\n" not in str(raised.value)
