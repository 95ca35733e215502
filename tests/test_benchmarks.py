import cv2
import numpy as np
import pytest
from conftest import face_shape, in_picture

from benchmarks import decoded_voices, judges


def test_spread_is_the_standard_deviation_of_grey_faces(rng):
    """Wherever the faces are in their pictures, and however large; what is around the face does not count."""
    greys, pictures, landmarks = rng.integers(60, 200, 30), [], []
    for grey in greys:
        picture = rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)
        shape = in_picture(face_shape()) + rng.uniform(-20, 20, 2)
        cv2.circle(picture, tuple(map(int, shape[30])), 90, (int(grey),) * 3, -1)  # reaches beyond the hull, and the blur
        picture[:, : int(shape[30, 0])] //= 2  # the left half is darker in all: half of the grey, and of its deviation
        if grey % 2:
            picture, shape = cv2.resize(picture, (512, 512)), 2 * shape + 0.5
        pictures.append(picture)
        landmarks.append(shape)
    assert decoded_voices.spread_in_face(pictures, np.stack(landmarks)) == pytest.approx(
        greys.std() * np.sqrt((1 + 0.25) / 2), rel=0.04
    )


def test_sface_describes_the_largest_face_of_a_picture(frames):
    """A unit vector, the same at half the size, and nothing for a picture without a face."""
    small = cv2.resize(frames[0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    features = judges.load(judges.SFACE)([frames[0], small, np.full((300, 200, 3), 200, np.uint8), frames[1]])
    assert features.shape == (4, 128) and features.dtype == np.float32 and np.isnan(features[2]).all()
    np.testing.assert_allclose(np.linalg.norm(features[[0, 1, 3]], axis=1), 1, atol=1e-5)
    assert features[0] @ features[1] > 0.8


def test_landmarks_of_any_picture_or_none(frames):
    found = decoded_voices.landmarks_of_any([frames[0], np.zeros((200, 200, 3), np.uint8)])
    assert found.shape == (2, 68, 2) and np.isfinite(found[0]).all() and np.isnan(found[1]).all()
