import dataclasses

import cv2
import numpy as np
import pytest
from conftest import face_shape, in_picture
from test_textures import landmarks_of, render

from faces import segmentation, textures
from faces.textures import SIDE

REFERENCE = in_picture(face_shape())


@pytest.mark.parametrize("trait", [0.2, 0.5, 0.8])
def test_a_person_is_cut_out(trait, make_demo):
    """The truth is where a rendered person has the same colours in front of two backdrops."""
    person = make_demo.Person(*np.full(11, trait))
    photos = [render(make_demo, dataclasses.replace(person, backdrop=backdrop)) for backdrop in (0.0, 1.0)]
    landmarks = landmarks_of(photos[0])
    (picture, inside, _), (other, _, _) = (textures.align(photo, landmarks, REFERENCE) for photo in photos)
    truth = inside & (np.abs(picture.astype(int) - other).max(axis=2) < 12)
    for of in (picture, other):
        share = segmentation.person_share(of, inside)
        assert share.shape == (SIDE, SIDE) and 0 <= share.min() <= share.max() <= 1
        found = share > 0.5
        assert (found & truth).sum() / (found | truth).sum() > 0.9
        np.testing.assert_array_equal(segmentation.person_share(of, inside), share)  # deterministic


def test_the_person_ends_where_the_photo_ends(make_demo):
    photo = render(make_demo, make_demo.Person(*np.full(11, 0.5)))
    picture, inside, _ = textures.align(photo, landmarks_of(photo), REFERENCE)
    inside = inside.copy()
    inside[:, : SIDE // 2] = False
    share = segmentation.person_share(picture, inside)
    assert share[:, : SIDE // 2].max() == 0 and share[SIDE // 2, SIDE // 2 + 10] > 0.9


def test_an_empty_picture_and_a_close_up_of_a_face_are_segmented(make_demo):
    everywhere = np.ones((SIDE, SIDE), bool)
    assert segmentation.person_share(np.full((SIDE, SIDE, 3), 128, np.uint8), everywhere).max() < 0.01
    photo = render(make_demo, make_demo.Person(*np.full(11, 0.5)))
    skin = textures.align(photo, landmarks_of(photo), in_picture(3 * face_shape()))[0]  # from brow to nose, from eye to eye
    share = segmentation.person_share(skin, everywhere)
    assert np.isfinite(share).all() and 0 <= share.min() <= share.max() <= 1


HAIR, SKIN, SHIRT = (60, 40, 25), (205, 160, 135), (40, 70, 120)


def drawn_head(long=False):
    """Return a picture, its person and its hair, drawn on the reference shape: hair, skin and a shirt of plain colours."""
    middle = REFERENCE[textures.EYES].mean(axis=0).round().astype(int)
    picture = np.full((SIDE, SIDE, 3), 230, np.uint8)
    person, hair, face = np.zeros((3, SIDE, SIDE), np.uint8)
    cv2.ellipse(hair, tuple(map(int, middle)), (66, 88), 0, 0, 360, 1, -1)
    if long:
        hair[middle[1] : 210, middle[0] - 66 : middle[0] + 66] = 1
    cv2.ellipse(face, (int(middle[0]), int(middle[1] + 18)), (48, 68), 0, 0, 360, 1, -1)
    face[middle[1] + 60 : 215, middle[0] - 20 : middle[0] + 20] = 1  # neck
    shirt = np.zeros_like(face)
    shirt[212:] = 1
    if not long:
        hair[middle[1] + 50 :] = 0
    hair[(face > 0) | (shirt > 0)] = 0
    for mask, colour in ((hair, HAIR), (face, SKIN), (shirt, SHIRT)):
        picture[mask > 0] = colour
        person |= mask
    noise = np.random.default_rng(0).normal(0, 6, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8), person.astype(np.float32), hair > 0


@pytest.mark.parametrize("long", [False, True])
def test_hair_is_told_from_face_neck_and_clothes(long):
    picture, person, truth = drawn_head(long)
    share = segmentation.hair_share(picture, person, REFERENCE)
    assert share.shape == (SIDE, SIDE) and share.dtype == np.float32 and 0 <= share.min() <= share.max() <= 1
    found = share > 0.5
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    np.testing.assert_array_equal(segmentation.hair_share(picture, person, REFERENCE), share)  # deterministic


def test_what_is_not_connected_with_the_head_is_not_hair():
    """A hand with a dark glove beside the head, of the colour of the hair."""
    picture, person, truth = drawn_head()
    picture[90:150, 4:40], person[90:150, 4:40] = HAIR, 1
    share = segmentation.hair_share(picture, person, REFERENCE)
    assert share[90:150, 4:40].max() == 0 and share[truth].mean() > 0.8


def test_nobody_has_no_hair():
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    assert segmentation.hair_share(picture, np.zeros((SIDE, SIDE), np.float32), REFERENCE).max() == 0
