import shutil

import cv2
import numpy as np
import pytest

import utils
from clips import detection, feature_files, packs
from judging.search import most_similar
from listening import gallery


def test_a_gallery_of_data_holds_its_faces(demo_data):
    clips = feature_files.ready_clips(demo_data)
    faces = gallery.of_data(demo_data, 128, 1000, 0)
    assert faces.names == clips and faces.features.shape == (len(clips), 128) and faces.features.dtype == np.float32
    np.testing.assert_array_equal(faces.features[2], feature_files.load_embedding(demo_data, clips[2], 128))
    picture = cv2.imread(str(feature_files.face_path(demo_data, clips[2])))[..., ::-1]
    np.testing.assert_array_equal(faces.image(2), picture)


def arrays_in(function):
    """Return the arrays that a function holds on to."""
    values = [cell.cell_contents for cell in function.__closure__]
    return [item for value in values for item in (value if isinstance(value, list) else [value]) if hasattr(item, "nbytes")]


def test_large_data_are_sampled(demo_data):
    few, other = (gallery.of_data(demo_data, 128, 10, seed).names for seed in (0, 1))
    assert len(few) == len(set(few)) == len(other) == 10 and few != other
    assert few == gallery.of_data(demo_data, 128, 10, 0).names and set(few) < set(feature_files.ready_clips(demo_data))


def test_each_person_is_shown_once(demo_data, tmp_path):
    shutil.copytree(demo_data, tmp_path / "data")
    clips = feature_files.ready_clips(demo_data)
    sibling = utils.clip_name(utils.person_of(clips[3]), 900, 906)
    for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
        shutil.copy(path_of(demo_data, clips[3]), path_of(tmp_path / "data", sibling))
    assert sibling in feature_files.ready_clips(tmp_path / "data")
    assert gallery.of_data(tmp_path / "data", 128, 1000, 0).names == clips


def test_data_without_faces_or_with_others(demo_data, tmp_path):
    with pytest.raises(utils.InputError, match=r"expected clips made ready by preprocess\.py, found none"):
        gallery.of_data(tmp_path / "none", 128, 10, 0)
    with pytest.raises(utils.InputError, match=r"expected float32 \(4096,\), found float32 \(128,\)"):
        gallery.of_data(demo_data, 4096, 10, 0)


def test_a_gallery_of_photos_holds_all_their_faces(photos, demo_data, capsys):
    faces = gallery.of_photos(sorted(photos.glob("*.[pj]*g")), photos, 128, one_face=False)
    assert faces.names == ["a.png", "b.png", "c.png", "pair.jpg, face 1 from the left", "pair.jpg, face 2 from the left"]
    told = capsys.readouterr().err.splitlines()
    assert told == ["hear: 2 of 6 photos left out: unreadable 1 (broken.jpg), no-face 1 (wall.jpg)"]
    photo, boxes = detection.faces_in_photo(photos / "b.png")
    np.testing.assert_array_equal(faces.image(1), detection.crop_face(photo, boxes[0]))
    np.testing.assert_allclose(faces.features[1], detection.dlib_feature(photo, boxes[0]), atol=1e-6)
    distances = np.linalg.norm(faces.features[:3, None] - faces.features[None, 3:], axis=2)
    assert distances.argmin(axis=0).tolist() == [0, 1]  # the pair are the first and the second


def test_photos_are_named_by_their_paths(photos, tmp_path):
    """A folder for each person, in which photos are called 1, 2, ..."""
    for person, name in (("Ann", "a.png"), ("B\nob", "b.png")):
        (tmp_path / person).mkdir()
        shutil.copy(photos / name, tmp_path / person / "1.png")
    paths = [tmp_path / "Ann" / "1.png", tmp_path / "B\nob" / "1.png"]
    assert gallery.of_photos(paths, tmp_path, 128, one_face=True).names == ["Ann/1.png", "B\\nob/1.png"]


def test_a_gallery_of_photos_keeps_no_pictures(photos, monkeypatch):
    """Of 100,000 photos the crops alone take 15 GB: those that are shown are read again."""
    faces = gallery.of_photos([photos / "a.png", photos / "pair.jpg"], photos, 128, one_face=False)
    assert sum(array.nbytes for array in arrays_in(faces.image)) == 0
    read = []
    monkeypatch.setattr(gallery.photos, "read_photo", lambda path: read.append(path) or detection.faces_in_photo(path)[0])
    assert faces.image(2).shape == (224, 224, 3) and read == [photos / "pair.jpg"]


def test_photos_without_any_face(photos):
    with pytest.raises(utils.InputError, match="expected photos with faces, found none among 2"):
        gallery.of_photos([photos / "wall.jpg", photos / "broken.jpg"], photos, 128, one_face=False)


@pytest.mark.parametrize(
    "name, problem",
    [
        ("pair.jpg", "pair.jpg: expected one face, found 2; crop the photo"),
        ("wall.jpg", "wall.jpg: expected a face, found none"),
        ("broken.jpg", "broken.jpg: expected a photo"),
    ],
)
def test_one_face_in_each_photo_may_be_required(name, problem, photos):
    with pytest.raises(utils.InputError, match=problem):
        gallery.of_photos([photos / "a.png", photos / name], photos, 128, one_face=True)


def test_a_gallery_larger_than_memory_is_searched_from_its_pack(demo_data, tmp_path, rng, monkeypatch):
    """The same faces are found, and never more than a block of their features is in memory."""
    data, centre = shutil.copytree(demo_data, tmp_path / "data"), rng.normal(size=128).astype(np.float32) / 10
    in_memory = gallery.of_data(data, 128, 1000, 0)
    packs.pack(data, clips_in_shard=9)
    from_pack = gallery.of_data(data, 128, 1000, 0)
    assert from_pack.names == in_memory.names and not isinstance(from_pack.features, np.ndarray)
    voices = rng.normal(size=(3, 128)).astype(np.float32)
    expected = most_similar(voices, in_memory.features - centre, 5)
    sizes, read = [], packs.Packed.__getitem__
    monkeypatch.setattr(packs.Packed, "__getitem__", lambda *arguments: sizes.append(len(read(*arguments))) or read(*arguments))
    for ours, theirs in zip(most_similar(voices, from_pack.features, 5, rows=7, centre=centre), expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert max(sizes) == 7 and sum(sizes) == len(from_pack.names)
