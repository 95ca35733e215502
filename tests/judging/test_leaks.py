import shutil

import cv2
import numpy as np
import pytest
from conftest import FFMPEG, ffmpeg

import preprocess
import utils
from clips import feature_files, prints
from judging import intervals, leaks, parts
from judging.ranks import Ranking


@pytest.fixture(scope="module")
def clips(demo_data):
    return feature_files.ready_clips(demo_data)


@pytest.fixture
def data(demo_data, tmp_path):
    return shutil.copytree(demo_data, tmp_path / "data")


def copy_clip(data, clip, person):
    """Publish a clip again with the id of another person."""
    copy = person + clip[len(utils.person_of(clip)) :]
    for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
        shutil.copy(path_of(data, clip), path_of(data, copy))
    return copy


def copies_of_faces(data, unseen, seen):
    return leaks.of_copies(unseen, [leaks.copies(data, unseen, seen)[0], {}])


def copies_of_sounds(data, unseen, seen):
    return leaks.of_copies(unseen, [{}, leaks.copies(data, unseen, seen)[1]])


def test_other_people_are_no_leak(demo_data, clips):
    unseen, seen = clips[:10], clips[10:]
    assert copies_of_faces(demo_data, unseen, seen) == copies_of_sounds(demo_data, unseen, seen) == []
    assert leaks.of_people(unseen, seen, "trained on") == []
    assert copies_of_faces(demo_data, unseen, []) == copies_of_faces(demo_data, [], seen) == []


def test_a_clip_trained_on(clips):
    assert leaks.of_people(clips[:3], clips[2:], "trained on") == [f"1 of 3 clips were trained on: {clips[2]}"]
    sibling = utils.clip_name(utils.person_of(clips[0]), 100, 106)
    assert leaks.of_people(clips[:5], [sibling, *clips[5:]], "trained on") == [
        f"1 of 5 clips are of people that were trained on: {clips[0]}"
    ]
    many = leaks.of_people(clips[:9], clips, "trained on")
    assert many == [f"9 of 9 clips were trained on: {', '.join(clips[:3])} and 6 more"]


def test_clips_are_known_by_their_hashed_names(clips):
    """As of a run that was made to be shared; the lines name our own clips."""
    seen = [*map(utils.hashed, clips[2:])]
    assert leaks.of_people(clips[:3], seen, "trained on") == [f"1 of 3 clips were trained on: {clips[2]}"]
    assert leaks.of_people(clips[:2], seen, "trained on") == []
    sibling = utils.hashed(utils.clip_name(utils.person_of(clips[0]), 100, 106))
    assert leaks.of_people(clips[:5], [sibling, *map(utils.hashed, clips[5:])], "trained on") == [
        f"1 of 5 clips are of people that were trained on: {clips[0]}"
    ]
    assert leaks.of_people(clips[:1], [utils.hashed(sibling)], "trained on") == []


def test_a_person_published_twice(data, clips):
    copy = copy_clip(data, clips[12], "republished")
    assert copies_of_faces(data, [*clips[:3], copy], clips[10:]) == [
        f"1 of 4 clips have the same picture as training clips: {copy} and {clips[12]}"
    ]
    assert copies_of_sounds(data, [*clips[:3], copy], clips[10:]) == [
        f"1 of 4 clips have the same sound as training clips: {copy} and {clips[12]}"
    ]


def test_a_face_compressed_again(data, clips):
    copy = copy_clip(data, clips[12], "republished")
    path = feature_files.face_path(data, copy)
    face = cv2.imread(str(path))
    smaller = cv2.resize(cv2.resize(face, (150, 150)), (utils.FACE_SIZE, utils.FACE_SIZE))
    cv2.imwrite(str(path), np.clip(smaller * 1.05 + 4, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])
    assert len(copies_of_faces(data, [copy], clips)) == 1


def test_a_sound_compressed_again(demo_clips, data, clips, tmp_path):
    """As MP3 of 64 kbit/s, and quieter."""
    assert FFMPEG
    clip = clips[12]
    source = next((demo_clips / "videos").glob(f"{clip}.*"))
    copy = "republished" + clip[len(utils.person_of(clip)) :]
    (tmp_path / "videos").mkdir()
    ffmpeg(
        "-i",
        source,
        "-c:v",
        "copy",
        "-af",
        "volume=0.7",
        "-c:a",
        "libmp3lame",
        "-b:a",
        "64k",
        tmp_path / "videos" / f"{copy}.mp4",
    )
    start, _, end = copy.rpartition("_")[2].partition("-")
    (tmp_path / "one.csv").write_text(f"republished,{float(start)},{float(end)},0.5,0.5\n")
    arguments = ["--csv", tmp_path / "one.csv", "--videos", tmp_path / "videos", "--data", data, "--face-model", "dlib"]
    assert preprocess.main([*map(str, arguments)]) == 0
    others = [other for other in clips if other != clip]
    assert copies_of_sounds(data, [copy], clips) and not copies_of_sounds(data, [copy], others)


def test_prints_are_kept_with_the_features(data, clips):
    """preprocess.py writes them; without them they are made again, nearly the same."""
    kept = prints.load_all(data, clips)
    assert [of.shape for of in kept] == [(len(clips), 1024), (len(clips), 736)]
    assert all(np.allclose(np.linalg.norm(of, axis=1), 1, atol=1e-3) for of in kept)
    for clip in clips:
        prints.prints_path(data, clip).unlink()
    for ours, theirs in zip(prints.load_all(data, clips), kept):
        assert np.einsum("nd,nd->n", ours, theirs).min() > 0.999


def test_copies_are_found_beyond_the_first_block(data, clips, monkeypatch):
    """Of the training clips in blocks of three, the most similar clip is named, also where it comes late."""
    copy = copy_clip(data, clips[-2], "republished")
    monkeypatch.setattr(leaks, "BLOCK", 3)
    assert leaks.copies(data, [*clips[:4], copy], clips[4:]) == [{4: clips[-2]}, {4: clips[-2]}]
    own = utils.clip_name(utils.person_of(copy), 100, 106)
    for path_of in (feature_files.spectrogram_path, feature_files.embedding_path, feature_files.face_path):
        shutil.copy(path_of(data, copy), path_of(data, own))
    assert leaks.copies(data, [copy], [own]) == [{}, {}]  # another clip of the same person is not a copy


def part_with(hits, n):
    """Return a part of the split with n faces, the first `hits` of them at rank 1."""
    ranks = np.where(np.arange(n) < hits, 1, n // 2)
    ranking = Ranking(ranks, ranks - 1, ranks * 0, np.full(n, n - 1), np.ones(n, int))
    none = np.zeros((n, 0))
    return parts.Part([f"{i}_0-6" for i in range(n)], none, none, none, ranking, intervals.resample(range(n)))


def test_a_recall_that_nobody_reaches():
    """The slides' 51 % of 600, and a recall that the paper's own model would reach."""
    assert leaks.of_recall(part_with(15, 604)) == []
    found = leaks.of_recall(part_with(308, 604))
    assert len(found) == 1 and found[0].startswith("R@1 is 51.0 % of 604 faces (at least 4")
    assert "would reach 2.4 % (at most 4.7 %)" in found[0]
    assert leaks.of_recall(part_with(5, 20)) == []  # chance is 5 %, the paper's model would reach 28 %


def test_a_person_under_two_names_is_found_by_the_face(random_data, tmp_path):
    """One person in train and in test, in other videos and under another name: neither names nor prints tell."""
    shutil.copytree(random_data, tmp_path / "data")
    data = tmp_path / "data"
    ready = feature_files.ready_clips(data)
    seen, unseen = ready[:30], ready[30:]
    assert leaks.same_faces(data, unseen, seen) == {}
    step = np.random.default_rng(0).normal(size=128).astype(np.float32)
    step /= np.linalg.norm(step)
    for number, (copied, distance) in enumerate([(seen[3], 0.33), (seen[7], 0.37), (seen[9], 0.2)]):
        feature = feature_files.load_embedding(data, copied, 128) + distance * step
        feature_files.save_array(feature_files.embedding_path(data, unseen[number]), feature)
    found = leaks.same_faces(data, unseen, seen)
    assert found == {0: seen[3], 2: seen[9]}
    (line,) = leaks.of_same_faces(unseen, found)
    assert line.startswith("2 of 10 clips show the face of a training clip's person, under another name: ")
    assert f"{unseen[0]} and {seen[3]}" in line
    own = [f"{utils.person_of(unseen[0])}_9", *seen[4:]]  # of one name it is no news
    shutil.copy(feature_files.embedding_path(data, unseen[0]), feature_files.embedding_path(data, own[0]))
    assert leaks.same_faces(data, unseen[:1], own) == {}


def test_people_whose_faces_are_alike_are_not_told_apart_by_them(demo_data):
    """The demo's synthetic people: too many are as near as one person's faces."""
    ready = feature_files.ready_clips(demo_data)
    assert leaks.same_faces(demo_data, ready[:5], ready[5:]) == {}


def test_few_people_carry_no_recall():
    """R@1 of 100 % in 20 faces is too good; in 19 there is no interval to say so."""
    assert len(leaks.of_recall(part_with(20, 20))) == 1
    assert leaks.of_recall(part_with(19, 19)) == []


@pytest.mark.parametrize("fitted", [True, False])
def test_a_validation_set_that_the_encoder_is_fitted_on_may_be_found(fitted, monkeypatch):
    """Its row says so already; of the test set nobody expects it."""
    monkeypatch.setattr(leaks, "copies", lambda data, unseen, seen: [{}, {}])
    run = {"clips": {"train": ["t_0"], "val": ["v_0"]}, "fitted_on_validation": fitted, "feature_size": 8}
    of_parts = {name: part_with(308, 604) for name in ("val", "test")}
    assert len(leaks.find_leaks(run, None, run["clips"], {"val": of_parts["val"]})) == (0 if fitted else 1)
    assert len(leaks.find_leaks(run, None, run["clips"], of_parts)) == 1
