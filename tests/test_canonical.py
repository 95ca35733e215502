import dataclasses
import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, face_shape, in_picture
from scipy.interpolate import RBFInterpolator

import canonical
import media
from canonical import SIDE

REFERENCE = in_picture(face_shape())
HALF = SIDE, SIDE // 2, 4  # half a texture
MIRROR = np.array([-1, 1])


def turned(points, degrees, scale, shift):
    """Points, turned from x towards y, scaled, and shifted."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return scale * np.asarray(points) @ np.array([[c, s], [-s, c]]) + shift


def smooth(rng, *shape, radius=6.0):
    """A picture without detail, float32, 40 to 215."""
    picture = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), radius)
    return 40 + 175 * (picture - picture.min()) / np.ptp(picture)


def spline_by_scipy(points, values, places):
    """The spline as scipy has it: its kernel is r^2 log r, half of ours, and so is its smoothing."""
    smoothing = canonical.SMOOTHING / (2 * len(points))
    return RBFInterpolator(points / SIDE, values, smoothing=smoothing, kernel="thin_plate_spline")(places / SIDE)


def draw(make_demo, person, mouth=0.1):
    """A photo of a synthetic person, uint8 (360, 640, 3), RGB."""
    return make_demo.draw_faces(person, [(mouth, 1)], (320, 175), 0)[0]


def landmarks_of(photo):
    return media.find_landmarks(photo, media.find_photo_face(photo, "hog").box)


def drawn_portrait(make_demo, look=0.5):
    """A photo and its landmarks, as dlib sees them."""
    photo = draw(make_demo, make_demo.Person(*np.full(11, look)))
    return photo, landmarks_of(photo)


def every_pixel():
    return np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)


# ---------------------------------------------------------------- alignment


def test_a_similarity_is_found_again(rng):
    points = rng.normal(50, 20, size=(9, 2))
    c, s = 1.7 * np.cos(0.4), 1.7 * np.sin(0.4)
    expected = np.array([[c, -s, 12.5], [s, c, -3.25]])
    moved = np.array([[c * x - s * y + 12.5, s * x + c * y - 3.25] for x, y in points])
    np.testing.assert_allclose(canonical.similarity(points, moved), expected, atol=1e-10)
    np.testing.assert_allclose(canonical.transform(expected, points), moved, atol=1e-10)


def test_a_similarity_is_the_nearest_one(rng):
    """Solved anew as a linear system in its four numbers, for points that no similarity brings to the others."""
    source, target = rng.normal(50, 20, size=(2, 9, 2))
    rows = np.concatenate([[(x, -y, 1, 0), (y, x, 0, 1)] for x, y in source])
    a, b, right, down = np.linalg.lstsq(rows, target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(canonical.similarity(source, target), [[a, -b, right], [b, a, down]], atol=1e-9)


@pytest.fixture
def faces(rng):
    """Landmarks of 40 people, wherever and as large as a photo may show them, heads a little turned."""
    shapes = face_shape() + 0.02 * rng.normal(size=(40, 68, 2))
    degrees, scales = rng.uniform(-20, 20, 40), np.exp(rng.uniform(2, 5, 40))
    return np.stack([turned(*face) for face in zip(shapes, degrees, scales, rng.uniform(-50, 500, (40, 2)))])


def test_the_reference_is_symmetric_and_its_eyes_are_in_their_places(faces):
    reference = canonical.reference_shape(faces)
    assert reference.shape == (68, 2) and reference.dtype == np.float32
    np.testing.assert_allclose(reference[:, 0] + reference[media.MIRRORED, 0], SIDE - 1, atol=1e-3)
    np.testing.assert_allclose(reference[:, 1], reference[media.MIRRORED, 1], atol=1e-3)
    left, right = reference[36:42].mean(axis=0), reference[42:48].mean(axis=0)
    np.testing.assert_allclose((left + right) / 2 + 0.5, (SIDE / 2, canonical.EYE_HEIGHT * SIDE), atol=1e-3)
    np.testing.assert_allclose(right - left, (canonical.EYE_DISTANCE * SIDE, 0), atol=1e-3)
    np.testing.assert_allclose(reference, REFERENCE, atol=1)  # what all are like


def test_the_reference_does_not_depend_on_where_the_faces_are(faces, rng):
    moved = [turned(shape, rng.uniform(-10, 10), rng.uniform(0.3, 3), rng.uniform(-99, 99, 2)) for shape in faces]
    np.testing.assert_allclose(canonical.reference_shape(np.stack(moved)), canonical.reference_shape(faces), atol=0.02)


@pytest.mark.parametrize("scale", [30, 60, 200])  # pixels between the eyes; the last is much larger than in the picture
def test_alignment_brings_landmarks_to_their_places(scale):
    """Dots are drawn at some landmarks of a turned face, and found again where the aligned landmarks are."""
    landmarks = turned(face_shape(), 15, scale, (5.1 * scale, 4.7 * scale)).astype(np.float32)
    photo = np.zeros((10 * scale, 10 * scale, 3), np.uint8)
    for x, y in landmarks[[0, 8, 16, 30, 36, 45]]:
        cv2.circle(photo, (round(16 * x), round(16 * y)), round(16 * scale / 15), (255, 255, 255), -1, cv2.LINE_AA, 4)
    picture, inside, shape = canonical.align(photo, landmarks, REFERENCE)
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8 and inside.all()
    assert shape.dtype == np.float32
    np.testing.assert_allclose(shape, REFERENCE, atol=1e-3)
    _, _, _, found = cv2.connectedComponentsWithStats((picture[..., 0] > 90).astype(np.uint8))
    expected = REFERENCE[[0, 8, 16, 30, 36, 45]]
    assert len(found) == 7
    away = np.stack([min(found[1:] - place, key=np.linalg.norm) for place in expected])
    assert np.abs(away).max() < 0.45 and np.abs(away.mean(axis=0)).max() < 0.15


def test_beyond_the_photo_its_border_is_repeated():
    photo = np.zeros((SIDE, SIDE, 3), np.uint8)
    photo[:, :20], photo[:, 20:] = (250, 0, 0), (0, 0, 250)
    picture, inside, _ = canonical.align(photo, REFERENCE - (30, 0), REFERENCE)  # the face is 30 pixels too far left
    assert not inside[:, :29].any() and inside[:, 31:].all()
    np.testing.assert_array_equal(picture[:, :48], np.broadcast_to((250, 0, 0), (SIDE, 48, 3)))
    np.testing.assert_array_equal(picture[:, 53:], np.broadcast_to((0, 0, 250), (SIDE, SIDE - 53, 3)))


def test_a_much_larger_photo_is_read_without_moire(rng):
    """A checkerboard of single pixels, ten times as large as the picture, is grey there."""
    y, x = np.mgrid[: 10 * SIDE, : 10 * SIDE]
    photo = np.repeat(np.uint8(255 * ((x + y) % 2))[..., None], 3, axis=2)
    picture, _, _ = canonical.align(photo, 10 * REFERENCE, REFERENCE)
    assert np.abs(picture[8:-8, 8:-8].astype(int) - 127).max() < 5


# ---------------------------------------------------------------- the head, cut out


@pytest.mark.parametrize("look", [0.2, 0.5, 0.8])
def test_a_person_is_cut_out(look, make_demo):
    """The truth is where a drawn person before two backdrops looks the same."""
    person = make_demo.Person(*np.full(11, look))
    photos = [draw(make_demo, dataclasses.replace(person, backdrop=backdrop)) for backdrop in (0.0, 1.0)]
    landmarks = landmarks_of(photos[0])
    (picture, inside, _), (other, _, _) = (canonical.align(photo, landmarks, REFERENCE) for photo in photos)
    truth = inside & (np.abs(picture.astype(int) - other).max(axis=2) < 12)
    for of in (picture, other):
        share = canonical.cut_out(of, inside)
        assert share.shape == (SIDE, SIDE) and 0 <= share.min() <= share.max() <= 1
        found = share > 0.5
        assert (found & truth).sum() / (found | truth).sum() > 0.9
        np.testing.assert_array_equal(canonical.cut_out(of, inside), share)  # nothing random in it


def test_what_is_beyond_the_photo_is_no_person(make_demo):
    photo = draw(make_demo, make_demo.Person(*np.full(11, 0.5)))
    picture, inside, _ = canonical.align(photo, landmarks_of(photo), REFERENCE)
    inside = inside.copy()
    inside[:, : SIDE // 2] = False
    share = canonical.cut_out(picture, inside)
    assert share[:, : SIDE // 2].max() == 0 and share[SIDE // 2, SIDE // 2 + 10] > 0.9


def test_pictures_of_nobody_and_of_a_face_alone_are_cut_out(make_demo):
    everywhere = np.ones((SIDE, SIDE), bool)
    assert canonical.cut_out(np.full((SIDE, SIDE, 3), 128, np.uint8), everywhere).max() < 0.01
    photo = draw(make_demo, make_demo.Person(*np.full(11, 0.5)))
    skin = canonical.align(photo, landmarks_of(photo), in_picture(3 * face_shape()))[0]  # from brow to nose, from eye to eye
    share = canonical.cut_out(skin, everywhere)
    assert np.isfinite(share).all() and 0 <= share.min() <= share.max() <= 1


# ---------------------------------------------------------------- the warp


def test_the_spline_is_scipys(rng):
    points = np.concatenate([REFERENCE + rng.normal(size=(68, 2)), canonical.border()])
    places, values = rng.uniform(0, SIDE, size=(50, 2)), rng.normal(size=(len(points), 3))
    found = canonical.spline(points, places) @ values
    np.testing.assert_allclose(found, spline_by_scipy(points, values, places), rtol=0, atol=1e-8)


def test_the_spline_keeps_what_is_linear_and_does_not_fold_where_points_coincide(rng):
    points = np.concatenate([REFERENCE, canonical.border()]).astype(np.float64)
    places = rng.uniform(0, SIDE, size=(50, 2))
    turn = rng.normal(size=(2, 2))
    np.testing.assert_allclose(canonical.spline(points, places) @ (points @ turn + 7), places @ turn + 7, atol=1e-8)
    points[62] = points[66]  # lips that touch, and part
    moved = points.copy()
    moved[62, 1] += 1
    assert np.abs(canonical.spline(points, places) @ moved - places).max() < 5


def test_the_grid_is_read_linearly(rng):
    along = np.linspace(0, SIDE - 1, canonical.N_GRID)
    assert canonical.grid().shape == (canonical.N_GRID**2, 2)
    np.testing.assert_allclose(canonical.grid()[:: canonical.N_GRID, 1], along, rtol=1e-6)
    np.testing.assert_allclose(canonical.grid()[: canonical.N_GRID, 0], along, rtol=1e-6)
    values = rng.normal(size=canonical.N_GRID)
    np.testing.assert_allclose(canonical.between_grid() @ values, np.interp(np.arange(SIDE), along, values), atol=1e-4)


def test_the_fixed_points_are_in_the_border():
    points = canonical.border()
    assert points.shape == (16, 2) and len(np.unique(points, axis=0)) == 16
    assert np.isin(points, (0, SIDE - 1)).any(axis=1).all() and points.min() == 0 and points.max() == SIDE - 1
    corners = {(0, 0), (SIDE - 1, 0), (0, SIDE - 1), (SIDE - 1, SIDE - 1)}
    assert corners <= {tuple(point) for point in points.tolist()}


def test_a_face_of_the_reference_shape_stays_as_it_is(rng):
    picture = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    found = canonical.to_reference(picture, REFERENCE, REFERENCE)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - picture).max() <= 1


def test_a_shifted_face_comes_to_the_reference_and_the_border_stays(rng):
    picture = smooth(rng, SIDE, SIDE, radius=10)
    found = canonical.to_reference(picture, REFERENCE + np.float32((5, -3)), REFERENCE)
    y, x = np.mgrid[70:140, 75:116]  # among the landmarks
    assert np.abs(found[y, x] - picture[y - 3, x + 5]).max() < 3  # of 175 grey values
    assert np.abs(picture[y, x] - picture[y - 3, x + 5]).max() > 15
    np.testing.assert_allclose(found[[0, -1]], picture[[0, -1]], atol=3)


def test_the_warp_is_that_of_scipys_spline_at_every_pixel(rng):
    picture = smooth(rng, SIDE, SIDE, 3)
    landmarks = in_picture(face_shape(0.15, 0.05, 0.1) + 0.02 * rng.normal(size=(68, 2)))
    points = np.concatenate([REFERENCE, canonical.border()])
    sources = spline_by_scipy(points, np.concatenate([landmarks, canonical.border()]), every_pixel())
    maps = sources.reshape(SIDE, SIDE, 2).astype(np.float32)
    expected = cv2.remap(picture, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    found = canonical.to_reference(picture, landmarks, REFERENCE)
    assert np.abs(found - expected).max() < 6 and np.abs(found - expected).mean() < 0.15  # between the grid's points
    assert np.abs(picture - expected).max() > 20


# ---------------------------------------------------------------- texture


def test_the_side_that_the_camera_saw_makes_the_texture():
    texture = np.full((SIDE, SIDE, 4), 200, np.uint8)
    texture[:, : SIDE // 2] = 10
    for yaw, expected in ((0, 105), (5, 10), (-5, 200), (0.1, 10 + 190 / (1 + np.exp(1.2)))):
        half = canonical.right_half(texture, yaw)  # yaw > 0: towards the right of the picture, which shows the left cheek
        assert half.shape == HALF
        np.testing.assert_allclose(half, expected, atol=1e-3)


def test_two_halves_make_a_symmetric_texture(rng):
    half = rng.normal(size=(2, *HALF)).astype(np.float32)
    full = canonical.both_halves(half)
    assert full.shape == (2, SIDE, SIDE, 4)
    np.testing.assert_array_equal(full, full[:, :, ::-1])
    for one, of in zip(full, half):
        np.testing.assert_array_equal(canonical.right_half(one, 0), of)


def test_the_head_mask_ends_at_the_chin_beside_the_neck():
    mask = canonical.head_mask(REFERENCE)
    assert mask.shape == (SIDE, SIDE) and mask.dtype == np.float32 and 0 <= mask.min() <= mask.max() <= 1
    chin = round(REFERENCE[8, 1])
    x, y = REFERENCE.round().astype(int).T
    assert mask[y, x].min() > 0.5 and mask[SIDE // 2, SIDE // 2] == pytest.approx(1)
    assert mask[chin + 15, SIDE // 2] > 0.99 and mask[chin + 15, [20, SIDE - 20]].max() < 0.01
    np.testing.assert_allclose(mask, mask[:, ::-1], atol=1e-6)


def test_the_texture_of_a_photo(make_demo):
    """Where the head is not there is nothing; where it is, the colours are the photo's, at the landmarks."""
    photo, landmarks = drawn_portrait(make_demo)
    half, shape, conditions = canonical.texture_of(photo, landmarks, REFERENCE)
    assert half.shape == (SIDE * SIDE * 2,) and half.dtype == np.uint8
    assert shape.shape == (68, 2) and conditions.shape == (len(canonical.CONDITIONS),)
    np.testing.assert_allclose(conditions[:7], canonical.shape_conditions(shape))
    np.testing.assert_allclose(shape, canonical.transform(canonical.similarity(landmarks, REFERENCE), landmarks), atol=1e-3)
    half = half.reshape(HALF).astype(float)
    share = half[..., 3]
    assert (half[..., :3] <= share[..., None] + 1).all()  # colours times the share
    assert share[:, -4:].max() == 0 and share[SIDE // 2, 5] == 255
    for number in (12, 13, 14):  # the right cheek, beside the landmarks of the jaw
        x, y = (0.3 * REFERENCE[30] + 0.7 * REFERENCE[number]).round().astype(int)
        colours = []
        for at in (number, 16 - number):
            column, row = (0.3 * landmarks[30] + 0.7 * landmarks[at]).round().astype(int)
            colours.append(photo[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1)))
        np.testing.assert_allclose(half[y, x - SIDE // 2, :3], np.mean(colours, axis=0), atol=16)


def test_a_photo_and_its_mirror_image_have_one_texture(make_demo):
    photo, landmarks = drawn_portrait(make_demo, 0.2)
    half, shape, conditions = canonical.texture_of(photo, landmarks, REFERENCE)
    mirrored = np.ascontiguousarray(photo[:, ::-1]), media.mirror_landmarks(landmarks, photo.shape[1])
    other, other_shape, other_conditions = canonical.texture_of(*mirrored, REFERENCE)
    differences = np.abs(half.astype(int) - other)
    assert np.mean(differences > 8) < 0.02 and differences.mean() < 2
    np.testing.assert_allclose(media.mirror_landmarks(other_shape, SIDE), shape, atol=1e-2)
    for name, ours, theirs in zip(canonical.CONDITIONS, conditions, other_conditions):
        sign = -1 if name == "yaw" else 1
        assert theirs == pytest.approx(sign * ours, rel=0.05, abs=0.02), name


# ---------------------------------------------------------------- conditions

YAW, YAW_SQUARED, EARS, NOSE, OPENING, SMILE, WIDTH = range(7)


def test_pose_and_mouth_are_measured():
    measured = canonical.shape_conditions(in_picture(face_shape(opening=0.12, corners=0.05, nose=0.19)))
    expected = [2 * 0.19 / 1.9, (2 * 0.19 / 1.9) ** 2, 0.05, 0.72 - 0.55, 0.12, 0.05, 0.76]  # of the eyes' distance
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    still = canonical.shape_conditions(REFERENCE)
    assert still[[YAW, YAW_SQUARED, OPENING, SMILE]] == pytest.approx([0, 0, 0, 0], abs=1e-4)


def test_yaw_turns_about_in_the_mirror():
    shape = in_picture(face_shape(0.1, nose=0.2))
    ours, theirs = (canonical.shape_conditions(of) for of in (shape, media.mirror_landmarks(shape, SIDE)))
    assert ours[YAW] > 0.2
    np.testing.assert_allclose(theirs, ours * [-1, 1, 1, 1, 1, 1, 1], atol=1e-5)


def lit_face(across, down, rng):
    """A texture of even skin, brighter by a factor of exp(across) at the right border than at the left, and so below."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    light = 110 * np.exp(across * x + down * y) + 4 * rng.normal(size=x.shape)
    return np.repeat(light.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_light_from_above_is_measured_and_light_from_the_side_is_not(rng):
    down, _ = canonical.light_conditions(lit_face(0, -0.4, rng), REFERENCE)
    assert down == pytest.approx(-0.4 * 110 / 126, rel=0.1)  # of log(16 + grey): 110 / 126 of the slope of log(grey)
    for across in (-0.6, 0.6):
        assert canonical.light_conditions(lit_face(across, -0.4, rng), REFERENCE)[0] == pytest.approx(down, abs=0.04)
    assert canonical.light_conditions(lit_face(0, 0, rng), REFERENCE)[0] == pytest.approx(0, abs=0.02)


def test_light_and_blur_are_the_same_in_the_mirror(rng):
    texture = lit_face(0.6, -0.4, rng)
    ours = canonical.light_conditions(texture, REFERENCE)
    theirs = canonical.light_conditions(np.ascontiguousarray(texture[:, ::-1]), REFERENCE)
    np.testing.assert_allclose(theirs, ours, atol=0.02)


def test_blur_is_seen_and_contrast_is_not(make_demo, rng):
    photo, landmarks = drawn_portrait(make_demo)
    picture = canonical.align(photo, landmarks, REFERENCE)[0]
    sharp = [
        canonical.light_conditions(cv2.GaussianBlur(picture, (0, 0), radius) if radius else picture, REFERENCE)[-1]
        for radius in (0, 1, 2, 4)
    ]
    assert all(more > less + 0.1 for more, less in itertools.pairwise(sharp))
    pale = (128 + 0.6 * (picture.astype(float) - 128)).round().astype(np.uint8)
    assert canonical.light_conditions(pale, REFERENCE)[-1] == pytest.approx(sharp[0], abs=0.1)


def conditions_of(rng, n):
    """Conditions of n photos as they may be, (n, C): all of them about 0, the opening up to 0.06."""
    spreads = {"yaw": 0.2, "ears": 0.1, "nose": 0.1, "smile": 0.05, "width": 0.2, "down": 0.3, "blur": 0.5}
    values = {name: spread * rng.normal(size=n) for name, spread in spreads.items()}
    values |= {"opening": 0.06 * rng.uniform(size=n), "yaw squared": values["yaw"] ** 2}
    return np.stack([values[name] for name in canonical.CONDITIONS], axis=1)


def test_the_canonical_photo_is_frontal_neutral_and_sharp(rng):
    conditions = conditions_of(rng, 400)
    found = dict(zip(canonical.CONDITIONS, canonical.canonical_conditions(conditions)))
    of = dict(zip(canonical.CONDITIONS, conditions.T))
    assert found["yaw"] == found["yaw squared"] == 0
    assert np.mean(of["blur"] < found["blur"]) == pytest.approx(0.85, abs=0.005)
    closed = (of["opening"] < 0.03) & (np.abs(of["yaw"]) < 0.1) & (of["smile"] < np.median(of["smile"]))
    assert 10 < closed.sum() < 100
    for name in ("ears", "nose", "opening", "smile", "width", "down"):
        assert found[name] == pytest.approx(of[name][closed].mean()), name


def test_of_few_photos_those_with_the_mouth_shut_are_canonical(rng):
    conditions = conditions_of(rng, 25)
    conditions[:, OPENING] += 0.1
    found = canonical.canonical_conditions(conditions)
    shut = np.argsort(conditions[:, OPENING])[:10]
    assert found[WIDTH] == pytest.approx(conditions[shut, WIDTH].mean()) and found[YAW] == 0
    assert np.isfinite(canonical.canonical_conditions(conditions[:2])).all()


def test_what_is_canonical_is_not_far_from_the_photos(rng):
    conditions = conditions_of(rng, 400)
    conditions[:, YAW] += 0.7  # all of them look to the right
    found = canonical.canonical_conditions(conditions)
    assert found[YAW] == pytest.approx(conditions[:, YAW].mean() - 1.5 * conditions[:, YAW].std())


def test_frontal_and_sharp_photos_count_for_more():
    conditions = np.zeros((4, len(canonical.CONDITIONS)))
    conditions[:, 0], conditions[:, -1] = (0, 0.2, -0.2, 0), (3, 1, 2, 0)
    shares = 0.3 + 0.7 * np.array([3, 1, 2, 0]) / 4  # by the rank of sharpness
    np.testing.assert_allclose(canonical.quality(conditions), shares * [1, np.exp(-1), np.exp(-1), 1])


# ---------------------------------------------------------------- regression


def test_the_ridge_is_least_squares_with_rows_for_the_penalties(rng):
    n, d, c = 50, 6, 3
    features, conditions, targets = rng.normal(size=(n, d)), rng.normal(size=(n, c)), rng.normal(size=(n, 4))
    weights = rng.uniform(0.2, 2, n)
    weights /= weights.mean()
    solution = canonical.ridge(features, conditions, weights, 0.01)
    assert solution.shape == (d + c + 1, n) and solution.dtype == np.float32
    root = np.sqrt(weights)[:, None]
    penalties = [0.01 * (weights[:, None] * features**2).sum()] * d + [canonical.CONDITION_PENALTY * n] * c
    rows = np.column_stack([np.diag(np.sqrt(penalties)), np.zeros(d + c)])
    left = np.vstack([root * np.column_stack([features, conditions, np.ones(n)]), rows])
    expected = np.linalg.lstsq(left, np.vstack([root * targets, np.zeros((d + c, 4))]), rcond=None)[0]
    np.testing.assert_allclose(solution @ targets, expected, atol=1e-5)


def test_the_penalty_is_a_share_of_the_variance(rng):
    """Features that are scaled, or repeated in more numbers, predict the same."""
    features, conditions, targets = rng.normal(size=(50, 6)), rng.normal(size=(50, 3)), rng.normal(size=(50, 4))
    predicted = []
    for seen in (features, 40 * features, np.repeat(features, 5, axis=1)):
        slopes = canonical.ridge(seen, conditions, np.ones(50), 0.02)[: seen.shape[1]] @ targets
        predicted.append(seen @ slopes)
    np.testing.assert_allclose(predicted[1], predicted[0], atol=1e-4)
    np.testing.assert_allclose(predicted[2], predicted[0], atol=1e-4)
    assert np.abs(predicted[0] - features @ np.linalg.lstsq(features, targets, rcond=None)[0]).max() > 0.01


@pytest.mark.parametrize("m", [10, 4096, 9000])
def test_bytes_are_multiplied_block_by_block(m, rng):
    solution, targets = rng.normal(size=(5, 7)).astype(np.float32), rng.integers(0, 256, (7, m), dtype=np.uint8)
    found = canonical.times(solution, targets)
    assert found.dtype == np.float32 and found.shape == (5, m)
    np.testing.assert_allclose(found, solution.astype(float) @ targets.astype(float), atol=1e-2)


@pytest.fixture
def predictable(rng):
    """Features, and targets that vary most in what no feature says; a little of the variance follows the features.

    Returns features (N, D), targets uint8 (N, M), and what of them the features say, (N, M).
    """
    n, d, m = 400, 6, 500
    features = rng.normal(size=(n, d)).astype(np.float32)
    features -= features.mean(axis=0)
    said = features @ (2 * rng.normal(size=(d, m)))
    noise = rng.normal(size=(n, 12)) @ (4 * rng.normal(size=(12, m)))
    return features, (128 + said + noise).clip(0, 255).round().astype(np.uint8), said


def ridge_of(features, penalty=1e-6):
    return canonical.ridge(features, np.zeros((len(features), 1)), np.ones(len(features)), penalty)[: features.shape[1]]


def test_the_basis_of_full_rank_is_orthonormal_and_loses_nothing(predictable, rng):
    features, targets, _ = predictable
    solutions = [ridge_of(features), ridge_of(features, 0.01)]
    share = rng.uniform(size=targets.shape[1]).astype(np.float32)
    slopes, basis = canonical.predictable_basis(features, solutions, (share, 1 - share), targets, features.shape[1])
    assert slopes.shape == (6, 6) and basis.shape == (6, 500)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-4)
    by_hand = sum(
        features @ (solution @ targets.astype(np.float64)) * of for solution, of in zip(solutions, (share, 1 - share))
    )
    np.testing.assert_allclose(features @ slopes @ basis, by_hand, atol=1e-2)
    strengths = np.var(features @ slopes, axis=0)
    assert (np.diff(strengths) < 0.05 * strengths[0]).all()  # the strongest first


def test_the_basis_holds_what_is_predictable_where_principal_components_do_not(predictable):
    features, targets, said = predictable
    rank, solution = 4, ridge_of(features)
    ones = np.ones(targets.shape[1], np.float32)
    slopes, basis = canonical.predictable_basis(features, [solution], [ones], targets, rank)
    centred = targets - targets.mean(axis=0, dtype=np.float64)
    components = np.linalg.svd(centred, full_matrices=False)[2][:rank]
    regressed = features @ np.linalg.lstsq(features, centred @ components.T, rcond=None)[0] @ components
    held, by_components = (1 - np.var(said - of) / np.var(said) for of in (features @ slopes @ basis, regressed))
    assert held > 0.45 and by_components < 0.2


def test_refining_is_linear_and_leaves_a_constant_alone(rng):
    face = canonical.face_share(REFERENCE)
    a, b = rng.normal(size=(2, 1, SIDE * SIDE * 2)).astype(np.float32)
    refined = canonical.refine(np.concatenate([a, b, 2 * a - 3 * b, np.full_like(a, 7)]), face)
    assert refined.shape == (4, SIDE * SIDE * 2)
    np.testing.assert_allclose(refined[2], 2 * refined[0] - 3 * refined[1], atol=1e-4)
    np.testing.assert_allclose(refined[3], 7, atol=1e-4)


def test_refining_sharpens_the_face_and_smooths_what_is_around(rng):
    face = canonical.face_share(REFERENCE)
    assert face[:20].max() < 0.01 and face[round(REFERENCE[30, 1]), SIDE // 2] == pytest.approx(1, abs=1e-3)
    noise = rng.normal(size=(1, *HALF)).astype(np.float32)
    noise = np.stack([cv2.GaussianBlur(noise[0], (0, 0), 1)])
    refined = canonical.refine(noise.reshape(1, -1), face).reshape(HALF)
    inner, outer = (slice(90, 120), slice(0, 15)), (slice(0, 20), slice(60, 96))
    assert refined[*inner, :3].std() > 1.1 * noise[0][*inner, :3].std()
    assert refined[*outer].std() < 0.9 * noise[0][*outer].std()
    np.testing.assert_allclose(refined[*inner, 3], noise[0][*inner, 3], atol=0.02)  # the share is not sharpened


# ---------------------------------------------------------------- the whole


def waves(n, rng):
    """Textures without detail, which refining hardly changes: float (n, M), of a spread of 1 about."""
    y, x = np.mgrid[:SIDE, : SIDE // 2] / SIDE
    rows = rng.normal(size=(n, 3, 2, 4))
    planes = np.stack([np.cos(np.pi * i * y) * np.cos(np.pi * 2 * j * x) for i in range(3) for j in range(2)])
    return np.tensordot(rows.reshape(n, 6, 4), planes, ([1], [0])).transpose(0, 2, 3, 1).reshape(n, -1) / np.sqrt(6)


@pytest.fixture
def world(rng):
    """A linear world: 60 people, textures and landmarks made of features and of conditions.

    Returns what `canonical.fit` takes but the reference, and the truth: textures and landmarks, under canonical conditions, of
    features, as a function.
    """
    n, d = 60, 5
    features = (0.3 + rng.normal(size=(n, d))).astype(np.float32)
    conditions = conditions_of(rng, n)
    canonical_ones, spread = canonical.canonical_conditions(conditions), conditions.std(axis=0)
    of_feature, of_condition = 6 * waves(d, rng), 4 * waves(len(spread), rng)
    moved, bent = (rng.normal(size=(k, 68, 2)) for k in (d, len(spread)))
    moved, bent = ((of + media.mirror_landmarks(of, 1)) / 2 for of in (moved, 0.5 * bent))  # the face stays symmetric

    def truth(features):
        textures = 120 + (features - 0.3) @ of_feature
        return textures, REFERENCE + np.tensordot(features - 0.3, moved, 1)

    deviations = (conditions - canonical_ones) / spread
    textures, shapes = truth(features)
    halves = (textures + deviations @ of_condition).clip(0, 255).round().astype(np.uint8)
    shapes = (shapes + np.tensordot(deviations, bent, 1)).astype(np.float32)
    names = [f"person{number:02}" for number in range(n)]
    return (features, names, halves, shapes, conditions), truth


def decoded(statistics, features):
    """What a decoder with these weights makes of features: half textures and landmarks, by hand."""
    (to_few, few_bias), (basis, bias), (slopes, shape) = (
        statistics.layers[name] for name in ("texture_coefficients", "texture_basis", "landmark_slopes")
    )
    features = features.astype(np.float64)
    return (features @ to_few + few_bias) @ basis + bias, (features @ slopes + shape).reshape(-1, 68, 2)


def test_the_decoder_finds_what_textures_and_landmarks_are_made_of(world, rng):
    """For people it has not seen, too: without the conditions' part; differences from the mean texture are larger by a gain."""
    given, truth = world
    statistics = canonical.fit(*given, REFERENCE)
    assert statistics.mean.shape == (SIDE * SIDE * 2,) and statistics.texture_slopes.shape == (
        len(canonical.CONDITIONS),
        SIDE * SIDE * 2,
    )
    features = (0.3 + rng.normal(size=(20, 5))).astype(np.float32)
    for seen in (given[0], features):
        textures, shapes = decoded(statistics, seen)
        true_textures, true_shapes = truth(seen)
        mean = truth(given[0].mean(axis=0, keepdims=True))[0]
        expected = mean + canonical.TEXTURE_GAIN * (true_textures - mean)
        error = (textures - expected).reshape(-1, *HALF)
        face = canonical.face_share(REFERENCE)[:, SIDE // 2 :] > 0.9
        assert np.abs(error[:, face]).mean() < 0.4 and np.abs(error).mean() < 0.8  # hair is shrunk more
        assert np.abs(true_textures - mean).mean() > 5
        assert np.abs(shapes - true_shapes).max() < 0.1
        assert np.abs(true_shapes - REFERENCE).mean() > 0.8


def test_two_people_differ_by_one_in_the_first_layer(world):
    given, _ = world
    kernel, bias = canonical.fit(*given, REFERENCE).layers["texture_coefficients"]
    coefficients = given[0] @ kernel + bias
    pairs = np.abs(coefficients[:, None] - coefficients[None]).sum(axis=-1)
    assert pairs.sum() / (60 * 59) == pytest.approx(1, abs=0.12)
    np.testing.assert_allclose(coefficients.mean(axis=0), 0, atol=1e-5)  # the mean person has none


def test_targets_are_photos_under_canonical_conditions(world):
    given, truth = world
    features, _, halves, shapes, conditions = given
    statistics = canonical.fit(*given, REFERENCE)
    textures, landmarks = statistics.targets(halves[:7], shapes[:7], conditions[:7])
    assert textures.dtype == np.float32 and textures.shape == (7, SIDE * SIDE * 2) and landmarks.shape == (7, 68, 2)
    true_textures, true_shapes = truth(features[:7])
    mean = truth(features.mean(axis=0, keepdims=True))[0]
    assert np.abs(textures - mean - canonical.TEXTURE_GAIN * (true_textures - mean)).mean() < 0.8
    assert np.abs(landmarks - true_shapes).max() < 0.25
    assert np.abs(shapes[:7] - true_shapes).max() > 0.8 and np.abs(halves[:7] - true_textures).mean() > 4


def test_several_photos_of_a_person_count_as_one(world, rng, monkeypatch):
    """One person's photo six times, with features that differ: as once with their mean."""
    (features, names, halves, shapes, conditions), _ = world
    monkeypatch.setattr(canonical, "LEAST_WEIGHT", 1.0)  # or ranks of sharpness, which are others of more photos, count too
    halves, shapes, conditions = halves[:30], shapes[:30], np.zeros_like(conditions[:30])
    features, names = features[:30], names[:30]
    once = canonical.fit(features, names, halves, shapes, conditions, REFERENCE)
    more = rng.normal(size=(5, features.shape[1])).astype(np.float32)
    of_one = features[3] + np.concatenate([more, -more.sum(axis=0, keepdims=True)])
    again = [*range(30), *[3] * 5]
    features = np.concatenate([features, of_one[1:]])
    features[3] = of_one[0]
    order = rng.permutation(35)
    often = canonical.fit(
        features[order], *([array[again[i]] for i in order] for array in (names,)), halves[again][order], shapes[again][order],
        conditions[again][order], REFERENCE,
    )  # fmt: skip
    np.testing.assert_allclose(often.centre, once.centre, atol=1e-5)
    np.testing.assert_allclose(often.mean, once.mean, atol=0.02)
    asked = rng.normal(size=(4, features.shape[1]))
    for ours, theirs in zip(decoded(often, asked), decoded(once, asked)):
        np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_fewer_components_than_the_feature_has_numbers(world, monkeypatch):
    monkeypatch.setattr(canonical, "MOST_COMPONENTS", 2)
    given, _ = world
    statistics = canonical.fit(*given, REFERENCE)
    assert statistics.layers["texture_coefficients"][0].shape == (5, 2)
    assert statistics.layers["texture_basis"][0].shape == (2, SIDE * SIDE * 2)


def test_canonical_needs_no_tensorflow():
    code = "import canonical, workers, sys; print([m for m in ('tensorflow', 'keras', 'librosa') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
