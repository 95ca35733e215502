import json
import os
import shutil

import numpy as np
import pytest

import preprocess
from clips import feature_files, packs
from utils import N_BINS, N_FRAMES, InputError

SIZE = 128


def write_clip(data, number, clip=None):
    """Write the files of a clip, of random numbers that depend on `number`. Returns its name."""
    rng, clip = np.random.default_rng(number), clip or f"v{number}_0-6"
    spectrogram = rng.normal(size=(N_FRAMES, N_BINS, 2)).astype(np.float16)
    feature_files.save_array(feature_files.spectrogram_path(data, clip), spectrogram)
    feature_files.save_array(feature_files.embedding_path(data, clip), rng.normal(size=SIZE).astype(np.float32))
    feature_files.face_path(data, clip).parent.mkdir(exist_ok=True)
    feature_files.face_path(data, clip).touch()
    return clip


@pytest.fixture
def seven_clips(tmp_path):
    return tmp_path, [write_clip(tmp_path, number) for number in range(7)]


def assert_as_pickles(data, clips):
    packed, pickles = packs.open_pack(data, clips, SIZE), packs.Pickles(data, clips, SIZE)
    for number in range(len(clips)):
        for frames in (slice(None), slice(100, 398), slice(N_FRAMES - 1, N_FRAMES)):
            found = packed.spectrogram(number)[frames]
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found, pickles.spectrogram(number)[frames])
        found = packed.feature(number)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, pickles.feature(number))


def files_of_pack(data):
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in packs.pack_folder(data).iterdir()}


def test_a_pack_holds_what_the_pickles_hold(seven_clips, capsys):
    data, clips = seven_clips
    assert packs.open_pack(data, clips, SIZE) is None  # none yet
    packs.pack(data, readers=3, clips_in_shard=3)
    n_bytes = sum(len(content) for _, content in files_of_pack(data).values())
    said = capsys.readouterr().out.splitlines()
    assert said == [f"preprocess: {data / 'pack'} holds 7 clips (0 of them before), {n_bytes / 1e9:.2f} GB"]
    assert len(list((data / "pack").glob("clips-*.json"))) == 3
    assert_as_pickles(data, clips)
    assert_as_pickles(data, [clips[number] for number in (5, 0, 3)])  # of another part of the split: others are skipped
    array = np.load(data / "pack" / "features-00001.npy")  # a plain file, for everybody
    np.testing.assert_array_equal(array[2], feature_files.load_embedding(data, clips[5], SIZE))


def test_of_a_packed_clip_no_more_than_the_crop_is_read(seven_clips, monkeypatch):
    data, clips = seven_clips
    packs.pack(data)
    packed, read = packs.open_pack(data, clips, SIZE), []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(preadv(*arguments)) or read[-1])
    packed.spectrogram(4)[7:305]
    assert read == [298 * N_BINS * 2 * 2]


def test_a_pack_that_was_killed_is_continued(seven_clips, tmp_path_factory, monkeypatch):
    data, clips = seven_clips
    undisturbed = shutil.copytree(data, tmp_path_factory.mktemp("other") / "data")
    packs.pack(undisturbed, clips_in_shard=2)
    load = feature_files.load_spectrogram

    def die(data, clip):
        if clip == clips[5]:
            raise KeyboardInterrupt
        return load(data, clip)

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "load_spectrogram", die)
        with pytest.raises(KeyboardInterrupt):
            packs.pack(data, clips_in_shard=2)
    before = files_of_pack(data)
    assert sum(name.startswith("clips-") for name in before) == 2
    (data / "pack" / "spectrograms-00002.npy").write_bytes(b"of a shard whose list of clips was not yet written")
    packs.pack(data, clips_in_shard=2)
    after, expected = files_of_pack(data), files_of_pack(undisturbed)
    assert {name: after[name] for name in before} == before  # complete shards are not written again
    arrays = {name for name in expected if name.endswith(".npy")}
    assert after.keys() == expected.keys() and all(after[name][1] == expected[name][1] for name in arrays)
    assert_as_pickles(data, clips)


@pytest.mark.parametrize("whole", [True, False])
def test_a_stale_pack_is_refused_and_packed_again(whole, seven_clips):
    """Whether the changed file was replaced, as by this project, or written in place."""
    data, clips = seven_clips
    packs.pack(data, clips_in_shard=3)
    before = files_of_pack(data)
    if whole:
        write_clip(data, 99, clips[4])
    else:
        path = feature_files.embedding_path(data, clips[4])
        path.write_bytes(feature_files.embedding_path(data, clips[0]).read_bytes())
    with pytest.raises(
        InputError,
        match=rf"pack: expected clips as .*, found 1 of 7 that have changed since, such as {clips[4]}; run preprocess.py pack",
    ):
        packs.open_pack(data, clips, SIZE)
    assert packs.open_pack(data, clips[:4], SIZE) is not None  # the clips of another run
    packs.pack(data, clips_in_shard=3)
    assert_as_pickles(data, clips)
    after = files_of_pack(data)
    others = {name for name in before if "-00001" not in name}
    assert len(others) == 6 and all(after[name] == before[name] for name in others)  # the other two shards are left alone


def test_added_clips_are_packed_by_the_next_run(seven_clips, capsys):
    data, clips = seven_clips
    packs.pack(data)
    clips.append(write_clip(data, 7))
    assert packs.open_pack(data, clips, SIZE) is None
    assert f"{data / 'pack'}: lacks 1 of 8 clips, so that all are read from their own files" in capsys.readouterr().err
    packs.pack(data)
    assert "holds 8 clips (7 of them before)" in capsys.readouterr().out
    assert_as_pickles(data, clips)
    feature_files.face_path(data, clips[0]).unlink()  # no longer ready: its shard is packed again, without it
    packs.pack(data)
    assert packs.open_pack(data, clips, SIZE) is None
    assert_as_pickles(data, clips[1:])


def test_a_broken_pack_is_refused(seven_clips):
    data, clips = seven_clips
    packs.pack(data)
    with pytest.raises(InputError, match=r"features-00000.npy: expected float32 \(None, 4096\), found float32 \(7, 128\)"):
        packs.open_pack(data, clips, 4096)
    path = data / "pack" / "spectrograms-00000.npy"
    packed = packs.open_pack(data, clips, SIZE)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OSError, match=r"spectrograms-00000.npy: expected 1 more bytes; delete the folder"):
        packed.spectrogram(6)[:]
    with pytest.raises(InputError, match=r"spectrograms-00000.npy: expected float16 .*; delete the folder, rerun"):
        packs.open_pack(data, clips, SIZE)
    path = data / "pack" / "clips-00000.json"
    path.write_text(json.dumps({"clips": clips}))
    with pytest.raises(InputError, match=r"clips-00000.json: expected the clips of a shard, found KeyError"):
        packs.open_pack(data, clips, SIZE)


def test_the_command(seven_clips, capsys):
    data, clips = seven_clips
    assert preprocess.main(["pack", "--data", str(data), "--readers", "2"]) == 0
    assert_as_pickles(data, clips)
    write_clip(data, 7)
    path = feature_files.spectrogram_path(data, "v7_0-6")
    path.write_bytes(b"broken")
    assert preprocess.main(["pack", "--data", str(data)]) == 1
    assert f"error: {path}: expected a pickle" in capsys.readouterr().err
    assert not list((data / "pack").glob(".part-*"))
    with pytest.raises(SystemExit):
        preprocess.main(["pack", "--readers", "0"])
    assert "--readers: expected at least 1, found 0" in capsys.readouterr().err


def test_a_gallery_is_read_from_a_pack(seven_clips):
    data, clips = seven_clips
    packs.pack(data, clips_in_shard=3)
    some = [clips[number] for number in (0, 1, 2, 3, 6, 5)]
    packed, expected = packs.open_pack(data, some, SIZE), [feature_files.load_embedding(data, clip, SIZE) for clip in some]
    assert len(packed) == 6
    for part in (slice(0, 6), slice(2, 5), slice(5, 9)):
        np.testing.assert_array_equal(packed[part], expected[part])


def test_results_come_in_order_and_an_error_ends_them():
    def slow(number):
        if number == 50:
            raise ValueError("fifty")
        return 2 * number

    assert [*packs.in_order(slow, range(40), 3)] == list(range(0, 80, 2))
    with pytest.raises(ValueError, match="fifty"):
        list(packs.in_order(slow, range(100), 3))
