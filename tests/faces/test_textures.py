import itertools

import cv2
import numpy as np
import pytest
from conftest import face_shape, in_picture

from clips import detection
from faces import textures
from faces.textures import SIDE

REFERENCE = in_picture(face_shape())


def turned(points, degrees, scale, shift):
    """Return points rotated from x towards y, scaled and shifted."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return scale * np.asarray(points) @ np.array([[c, s], [-s, c]]) + shift


def smooth(rng, *shape, radius=6.0):
    """Return a picture without detail, float32, 40 to 215."""
    picture = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), radius)
    return 40 + 175 * (picture - picture.min()) / np.ptp(picture)


def spline_by_hand(points, values, places):
    """Solve the thin-plate spline as a linear system: float64 (P, 2), for values (K, 2) at points (K, 2), read at places."""

    def bending(distances):
        return distances**2 * np.log(np.maximum(distances, 1e-9) ** 2)

    points, places = np.float64(points) / SIDE, np.float64(places) / SIDE
    n, affine = len(points), np.column_stack([np.ones(len(points)), points])
    kernel = bending(np.linalg.norm(points[:, None] - points, axis=-1)) + textures.SMOOTHING / n * np.eye(n)
    system = np.block([[kernel, affine], [affine.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.concatenate([values, np.zeros((3, 2))]))
    distances = np.linalg.norm(places[:, None] - points, axis=-1)
    return bending(distances) @ weights[:n] + np.column_stack([np.ones(len(places)), places]) @ weights[n:]


def render(make_demo, person, mouth=0.1):
    """Return a photo of a synthetic person, uint8 (360, 640, 3), RGB."""
    return make_demo.draw_faces(person, [(mouth, 1)], (320, 175), 0)[0]


def landmarks_of(photo):
    return detection.find_landmarks(photo, detection.find_photo_face(photo, "hog").box)


def rendered_portrait(make_demo, trait=0.5):
    """Return a photo and its landmarks by dlib."""
    photo = render(make_demo, make_demo.Person(*np.full(11, trait)))
    return photo, landmarks_of(photo)


def every_pixel():
    return np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)


# ---------------------------------------------------------------- alignment


def test_a_similarity_is_recovered(rng):
    points = rng.normal(50, 20, size=(9, 2))
    c, s = 1.7 * np.cos(0.4), 1.7 * np.sin(0.4)
    expected = np.array([[c, -s, 12.5], [s, c, -3.25]])
    moved = np.array([[c * x - s * y + 12.5, s * x + c * y - 3.25] for x, y in points])
    np.testing.assert_allclose(textures.similarity(points, moved), expected, atol=1e-10)
    np.testing.assert_allclose(textures.transform(expected, points), moved, atol=1e-10)


def test_a_similarity_is_the_least_squares_solution(rng):
    """Compared with a linear system in its four numbers, for points that no similarity maps exactly."""
    source, target = rng.normal(50, 20, size=(2, 9, 2))
    rows = np.concatenate([[(x, -y, 1, 0), (y, x, 0, 1)] for x, y in source])
    a, b, right, down = np.linalg.lstsq(rows, target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(textures.similarity(source, target), [[a, -b, right], [b, a, down]], atol=1e-9)


@pytest.fixture
def faces(rng):
    """Landmarks of 40 people in photos: random places, sizes and small rotations."""
    shapes = face_shape() + 0.02 * rng.normal(size=(40, 68, 2))
    degrees, scales = rng.uniform(-20, 20, 40), np.exp(rng.uniform(2, 5, 40))
    return np.stack([turned(*face) for face in zip(shapes, degrees, scales, rng.uniform(-50, 500, (40, 2)))])


def test_the_reference_is_symmetric_with_its_eyes_in_place(faces):
    reference = textures.reference_shape(faces)
    assert reference.shape == (68, 2) and reference.dtype == np.float32
    np.testing.assert_allclose(reference[:, 0] + reference[detection.MIRRORED, 0], SIDE - 1, atol=1e-3)
    np.testing.assert_allclose(reference[:, 1], reference[detection.MIRRORED, 1], atol=1e-3)
    left, right = reference[36:42].mean(axis=0), reference[42:48].mean(axis=0)
    np.testing.assert_allclose((left + right) / 2 + 0.5, (SIDE / 2, textures.EYE_HEIGHT * SIDE), atol=1e-3)
    np.testing.assert_allclose(right - left, (textures.EYE_DISTANCE * SIDE, 0), atol=1e-3)
    np.testing.assert_allclose(reference, REFERENCE, atol=1)  # the shape behind all faces


def test_the_reference_does_not_depend_on_where_the_faces_are(faces, rng):
    moved = [turned(shape, rng.uniform(-10, 10), rng.uniform(0.3, 3), rng.uniform(-99, 99, 2)) for shape in faces]
    np.testing.assert_allclose(textures.reference_shape(np.stack(moved)), textures.reference_shape(faces), atol=0.02)


@pytest.mark.parametrize("scale", [30, 60, 200])  # pixels between the eyes; the last is much larger than in the picture
def test_alignment_moves_landmarks_to_the_reference(scale):
    """Dots at some landmarks of a rotated face are found at the aligned landmarks."""
    landmarks = turned(face_shape(), 15, scale, (5.1 * scale, 4.7 * scale)).astype(np.float32)
    photo = np.zeros((10 * scale, 10 * scale, 3), np.uint8)
    for x, y in landmarks[[0, 8, 16, 30, 36, 45]]:
        cv2.circle(photo, (round(16 * x), round(16 * y)), round(16 * scale / 15), (255, 255, 255), -1, cv2.LINE_AA, 4)
    picture, inside, shape = textures.align(photo, landmarks, REFERENCE)
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8 and inside.all()
    assert shape.dtype == np.float32
    np.testing.assert_allclose(shape, REFERENCE, atol=1e-3)
    _, _, _, found = cv2.connectedComponentsWithStats((picture[..., 0] > 90).astype(np.uint8))
    expected = REFERENCE[[0, 8, 16, 30, 36, 45]]
    assert len(found) == 7
    away = np.stack([min(found[1:] - place, key=np.linalg.norm) for place in expected])
    assert np.abs(away).max() < 0.45 and np.abs(away.mean(axis=0)).max() < 0.15


def test_the_border_of_a_photo_is_repeated_beyond_it():
    photo = np.zeros((SIDE, SIDE, 3), np.uint8)
    photo[:, :20], photo[:, 20:] = (250, 0, 0), (0, 0, 250)
    picture, inside, _ = textures.align(photo, REFERENCE - (30, 0), REFERENCE)  # the face is 30 pixels too far left
    assert not inside[:, :29].any() and inside[:, 31:].all()
    np.testing.assert_array_equal(picture[:, :48], np.broadcast_to((250, 0, 0), (SIDE, 48, 3)))
    np.testing.assert_array_equal(picture[:, 53:], np.broadcast_to((0, 0, 250), (SIDE, SIDE - 53, 3)))


def test_a_much_larger_photo_is_reduced_without_moire():
    """A checkerboard of single pixels, ten times as large as the picture, becomes grey."""
    y, x = np.mgrid[: 10 * SIDE, : 10 * SIDE]
    photo = np.repeat(np.uint8(255 * ((x + y) % 2))[..., None], 3, axis=2)
    picture, _, _ = textures.align(photo, 10 * REFERENCE, REFERENCE)
    assert np.abs(picture[8:-8, 8:-8].astype(int) - 127).max() < 5


# ---------------------------------------------------------------- the warp


def test_the_spline_matches_the_one_by_hand(rng):
    points = np.concatenate([REFERENCE + rng.normal(size=(68, 2)), textures.border()])
    places, values = rng.uniform(0, SIDE, size=(50, 2)), rng.normal(size=(len(points), 2))
    interpolated = textures.spline_matrix(points, places) @ values
    np.testing.assert_allclose(interpolated, spline_by_hand(points, values, places), rtol=0, atol=1e-8)


def test_the_spline_keeps_linear_functions_and_does_not_fold_where_points_coincide(rng):
    points = np.concatenate([REFERENCE, textures.border()]).astype(np.float64)
    places = rng.uniform(0, SIDE, size=(50, 2))
    slopes = rng.normal(size=(2, 2))
    np.testing.assert_allclose(textures.spline_matrix(points, places) @ (points @ slopes + 7), places @ slopes + 7, atol=1e-8)
    points[62] = points[66]  # lips that touch, and part
    moved = points.copy()
    moved[62, 1] += 1
    assert np.abs(textures.spline_matrix(points, places) @ moved - places).max() < 5


def test_the_grid_is_interpolated_linearly(rng):
    along = np.linspace(0, SIDE - 1, textures.N_GRID)
    assert textures.grid().shape == (textures.N_GRID**2, 2)
    np.testing.assert_allclose(textures.grid()[:: textures.N_GRID, 1], along, rtol=1e-6)
    np.testing.assert_allclose(textures.grid()[: textures.N_GRID, 0], along, rtol=1e-6)
    values = rng.normal(size=textures.N_GRID)
    np.testing.assert_allclose(textures.between_grid() @ values, np.interp(np.arange(SIDE), along, values), atol=1e-4)


def test_the_fixed_points_are_on_the_border():
    points = textures.border()
    assert points.shape == (16, 2) and len(np.unique(points, axis=0)) == 16
    assert np.isin(points, (0, SIDE - 1)).any(axis=1).all() and points.min() == 0 and points.max() == SIDE - 1
    corners = {(0, 0), (SIDE - 1, 0), (0, SIDE - 1), (SIDE - 1, SIDE - 1)}
    assert corners <= {tuple(point) for point in points.tolist()}


def test_a_face_of_the_reference_shape_is_unchanged(rng):
    picture = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    warped = textures.to_reference(picture, REFERENCE, REFERENCE)
    assert warped.dtype == np.uint8 and np.abs(warped.astype(int) - picture).max() <= 1


def test_a_shifted_face_moves_to_the_reference_and_the_border_stays(rng):
    picture = smooth(rng, SIDE, SIDE, radius=10)
    warped = textures.to_reference(picture, REFERENCE + np.float32((5, -3)), REFERENCE)
    y, x = np.mgrid[110:180, 108:149]  # among the landmarks
    assert np.abs(warped[y, x] - picture[y - 3, x + 5]).max() < 3  # of 175 grey values
    assert np.abs(picture[y, x] - picture[y - 3, x + 5]).max() > 15
    np.testing.assert_allclose(warped[[0, -1]], picture[[0, -1]], atol=3)


def test_the_warp_follows_the_spline_at_every_pixel(rng):
    picture = smooth(rng, SIDE, SIDE, 3, radius=8)
    landmarks = in_picture(face_shape(0.15, 0.05, 0.1) + 0.02 * rng.normal(size=(68, 2)))
    points = np.concatenate([REFERENCE, textures.border()])
    sources = spline_by_hand(points, np.concatenate([landmarks, textures.border()]), every_pixel())
    maps = sources.reshape(SIDE, SIDE, 2).astype(np.float32)
    expected = cv2.remap(picture, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    warped = textures.to_reference(picture, landmarks, REFERENCE)
    assert np.abs(warped - expected).max() < 6 and np.abs(warped - expected).mean() < 0.15  # between the points of the grid
    assert np.abs(picture - expected).max() > 20


# ---------------------------------------------------------------- texture


def test_the_side_that_faces_the_camera_makes_the_texture():
    texture = np.full((SIDE, SIDE, 4), 200, np.uint8)
    texture[:, : SIDE // 2] = 10
    for yaw, expected in ((0, 105), (5, 10), (-5, 200), (0.1, 10 + 190 / (1 + np.exp(1.2)))):
        half = textures.right_half(texture, yaw)  # yaw > 0: turned to the picture's right, left cheek to the camera
        assert half.shape == (SIDE, SIDE // 2, 4)
        np.testing.assert_allclose(half, expected, atol=1e-3)


def test_two_halves_make_a_symmetric_texture(rng):
    half = rng.normal(size=(2, SIDE, SIDE // 2, 4)).astype(np.float32)
    full = textures.both_halves(half)
    assert full.shape == (2, SIDE, SIDE, 4)
    np.testing.assert_array_equal(full, full[:, :, ::-1])
    for one, of in zip(full, half):
        np.testing.assert_array_equal(textures.right_half(one, 0), of)


def test_half_textures_are_three_maps(rng):
    halves = rng.integers(0, 256, (5, textures.HALF_SIZE), dtype=np.uint8)
    maps = textures.maps_of(halves)
    shapes = {"skin": (SIDE, SIDE // 2, 3), "outline": (SIDE // 2, SIDE // 4, 2), "hair": (SIDE // 4, SIDE // 8, 4)}
    assert {name: of.shape for name, of in maps.items()} == {name: (5, *shape) for name, shape in shapes.items()}
    np.testing.assert_array_equal(np.concatenate([of.reshape(5, -1) for of in maps.values()], axis=1), halves)
    maps["hair"][3, 0, 0, 0] += 1  # views
    assert (textures.maps_of(halves)["hair"] == maps["hair"]).all()


def test_the_distance_to_an_outline_by_hand():
    """A disk: the distance to its edge, positive inside."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    radius = np.hypot(x, y)
    found = textures.distance_to_outline((radius < 60).astype(np.float32))
    assert found.dtype == np.float32
    far = np.abs(radius - 60) > 2
    np.testing.assert_allclose(found[far], (60 - radius)[far], atol=1.1)
    assert (found[radius < 60] > 0).all() and (found[radius > 60] < 0).all()


def test_the_texture_of_a_photo(make_demo):
    """The colours of the photo at the landmarks; nothing of skin or hair beside the person; hair above the face only."""
    photo, landmarks = rendered_portrait(make_demo)
    half, shape, covariates = textures.texture_of(photo, landmarks, REFERENCE)
    assert half.shape == (textures.HALF_SIZE,) and half.dtype == np.uint8
    assert shape.shape == (68, 2) and covariates.shape == (len(textures.COVARIATES),)
    np.testing.assert_allclose(covariates[:7], textures.shape_covariates(shape))
    np.testing.assert_allclose(shape, textures.transform(textures.similarity(landmarks, REFERENCE), landmarks), atol=1e-3)
    maps = {name: of[0].astype(float) for name, of in textures.maps_of(half[None]).items()}
    skin, (share, distance), hair = maps["skin"], np.moveaxis(maps["outline"], 2, 0), maps["hair"]
    middle = round(REFERENCE[30, 1])
    assert share[middle // 2, 2] == 255 and distance[middle // 2, 2] > textures.DISTANCE_ZERO + 20
    assert share[middle // 2, -4:].max() == 0 and distance[middle // 2, -4:].max() < textures.DISTANCE_ZERO
    assert skin[middle, -8:].max() == 0
    assert (hair[..., :3] <= hair[..., 3:] + 1).all()  # colours times the share
    assert hair[: middle // 4, ..., 3].max() > 200 and hair[middle // 4, 2, 3] == 0
    for number in (12, 13, 14):  # the right cheek, beside the landmarks of the jaw
        x, y = (0.3 * REFERENCE[30] + 0.7 * REFERENCE[number]).round().astype(int)
        colours = []
        for at in (number, 16 - number):
            column, row = (0.3 * landmarks[30] + 0.7 * landmarks[at]).round().astype(int)
            colours.append(photo[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1)))
        np.testing.assert_allclose(skin[y, x - SIDE // 2], np.mean(colours, axis=0), atol=16)


def test_a_photo_that_does_not_reach_all_of_the_picture_is_cropped(make_demo):
    photo, landmarks = rendered_portrait(make_demo)
    left, top = np.floor(landmarks.min(axis=0)).astype(int) - 30
    right, bottom = np.ceil(landmarks.max(axis=0)).astype(int) + 30
    tight = np.ascontiguousarray(photo[top:bottom, left:right])
    cropped = [
        dict(zip(textures.COVARIATES, textures.texture_of(of, points, REFERENCE)[2]))["cropped"]
        for of, points in ((photo, landmarks), (tight, landmarks - (left, top)))
    ]
    assert cropped[0] < 0.2 < cropped[1] < 0.9


def test_a_photo_and_its_mirror_image_have_one_texture(make_demo):
    photo, landmarks = rendered_portrait(make_demo, 0.2)
    half, shape, covariates = textures.texture_of(photo, landmarks, REFERENCE)
    mirrored = np.ascontiguousarray(photo[:, ::-1]), detection.mirror_landmarks(landmarks, photo.shape[1])
    other, other_shape, other_covariates = textures.texture_of(*mirrored, REFERENCE)
    differences = np.abs(half.astype(int) - other)
    assert np.mean(differences > 8) < 0.02 and differences.mean() < 2
    np.testing.assert_allclose(detection.mirror_landmarks(other_shape, SIDE), shape, atol=1e-2)
    for name, ours, theirs in zip(textures.COVARIATES, covariates, other_covariates):
        sign = -1 if name == "yaw" else 1
        assert theirs == pytest.approx(sign * ours, rel=0.05, abs=0.02), name


# ---------------------------------------------------------------- covariates

YAW, YAW_SQUARED, JAW, NOSE, OPENING, SMILE, WIDTH = range(7)


def test_pose_and_mouth_are_measured():
    measured = textures.shape_covariates(in_picture(face_shape(opening=0.12, corners=0.05, nose=0.19)))
    expected = [2 * 0.19 / 1.9, (2 * 0.19 / 1.9) ** 2, 0.05, 0.72 - 0.55, 0.12, 0.05, 0.76]  # of the eyes' distance
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    still = textures.shape_covariates(REFERENCE)
    assert still[[YAW, YAW_SQUARED, OPENING, SMILE]] == pytest.approx([0, 0, 0, 0], abs=1e-4)


def test_yaw_changes_sign_in_the_mirror():
    shape = in_picture(face_shape(0.1, nose=0.2))
    ours, theirs = (textures.shape_covariates(of) for of in (shape, detection.mirror_landmarks(shape, SIDE)))
    assert ours[YAW] > 0.2
    np.testing.assert_allclose(theirs, ours * [-1, 1, 1, 1, 1, 1, 1], atol=1e-5)


def test_glasses_are_measured_by_their_bridge(make_demo):
    photo, landmarks = rendered_portrait(make_demo)
    picture, _, shape = textures.align(photo, landmarks, REFERENCE)
    texture = textures.to_reference(picture, shape, REFERENCE)
    smooth = cv2.GaussianBlur(texture, (0, 0), 3)
    assert textures.glasses_covariate(smooth, REFERENCE) == 0
    (x, y), half = REFERENCE[textures.EYES].mean(axis=0), round(0.3 * textures.EYE_DISTANCE * SIDE)
    cv2.line(smooth, (round(x) - half, round(y)), (round(x) + half, round(y)), (20, 20, 20), 3)
    assert textures.glasses_covariate(smooth, REFERENCE) > 1


def lit_face(across, down, rng):
    """Return a texture of even skin, exp(across) times brighter at the right border than at the left, exp(down) below."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    light = 110 * np.exp(across * x + down * y) + 4 * rng.normal(size=x.shape)
    return np.repeat(light.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_light_from_above_is_measured_and_light_from_the_side_is_not(rng):
    down, _ = textures.light_covariates(lit_face(0, -0.4, rng), REFERENCE)
    assert down == pytest.approx(-0.4 * 110 / 126, rel=0.1)  # of log(16 + grey): 110 / 126 of the slope of log(grey)
    for across in (-0.6, 0.6):
        assert textures.light_covariates(lit_face(across, -0.4, rng), REFERENCE)[0] == pytest.approx(down, abs=0.04)
    assert textures.light_covariates(lit_face(0, 0, rng), REFERENCE)[0] == pytest.approx(0, abs=0.02)


def test_light_and_blur_are_the_same_in_the_mirror(rng):
    texture = lit_face(0.6, -0.4, rng)
    ours = textures.light_covariates(texture, REFERENCE)
    theirs = textures.light_covariates(np.ascontiguousarray(texture[:, ::-1]), REFERENCE)
    np.testing.assert_allclose(theirs, ours, atol=0.02)


def test_blur_is_measured_and_contrast_is_not(make_demo, rng):
    photo, landmarks = rendered_portrait(make_demo)
    picture = textures.align(photo, landmarks, REFERENCE)[0]
    sharp = [
        textures.light_covariates(cv2.GaussianBlur(picture, (0, 0), radius) if radius else picture, REFERENCE)[-1]
        for radius in (0, 1, 2, 4)
    ]
    assert all(more > less + 0.1 for more, less in itertools.pairwise(sharp))
    pale = (128 + 0.6 * (picture.astype(float) - 128)).round().astype(np.uint8)
    assert textures.light_covariates(pale, REFERENCE)[-1] == pytest.approx(sharp[0], abs=0.1)
