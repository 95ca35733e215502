"""Training from a pack: the same to the bit as from the pickles."""

import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, arrays_of, error_of, history, run_train

import utils
from clips import feature_files, packs
from training.batches import Crops, clip_batches, training_batches


@pytest.fixture(scope="module")
def packed_data(demo_data, tmp_path_factory):
    data = shutil.copytree(demo_data, tmp_path_factory.mktemp("packed") / "data")
    packs.pack(data, clips_in_shard=8)
    return data


@pytest.mark.parametrize("readers", [1, 5])
def test_batches_of_a_pack_are_those_of_the_pickles(packed_data, readers):
    clips = feature_files.ready_clips(packed_data)[::-2]
    crops = Crops(4, 300, 20, 30, seed=3)
    source = packs.open_pack(packed_data, clips, 128)
    (packed, _), (plain, _) = (
        training_batches(packed_data, clips, 128, crops, 2, 9, *more) for more in ((source, readers), (None, 2))
    )
    both = [*zip(packed, plain, strict=True)]
    assert len(both) == 7
    for parts in both:
        for found, expected in zip(*parts, strict=True):
            np.testing.assert_array_equal(found, expected)


def assert_same_weights(run, expected):
    ours, theirs = (arrays_of(folder / utils.LAST_WEIGHTS) for folder in (run, expected))
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    assert [epoch["val_loss"] for epoch in history(run)] == [epoch["val_loss"] for epoch in history(expected)]


def test_a_run_from_a_pack_killed_and_resumed_equals_one_from_pickles(tiny_run, packed_data, tmp_path, capsys):
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "train.py", "--data", packed_data, "--run", run, *TINY, "--epochs", "3"]
    process = subprocess.Popen(
        [*map(str, command), "--save-minutes", "0.0005"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline().startswith("epoch  1/3  train ")
    process.kill()
    process.wait()
    assert run_train(packed_data, run, "--resume", "--readers", 3) == 0
    assert f"{packed_data / 'pack'}: 22 clips are read from the pack" in capsys.readouterr().err.splitlines()
    assert_same_weights(run, tiny_run)


def test_a_stale_pack_ends_training_in_one_line(packed_data, tmp_path, capsys):
    data = shutil.copytree(packed_data, tmp_path / "data")  # copies keep the time of each file
    clip = feature_files.ready_clips(data)[0]
    feature_files.save_array(feature_files.embedding_path(data, clip), np.ones(128, np.float32))
    assert run_train(data, tmp_path / "run", "--epochs", 1, "--seed", 1) == 1
    assert "expected clips as they are in their own files, found 1 of" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_as_many_clips_are_read_at_the_same_time_as_readers(demo_data, monkeypatch):
    clips, crops = feature_files.ready_clips(demo_data)[:16], Crops(4, 300, 0, 0, 0)
    load, lock, now, most = feature_files.load_spectrogram, threading.Lock(), [0], [0]

    def slow(data, clip):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return load(data, clip)

    monkeypatch.setattr(feature_files, "load_spectrogram", slow)
    for readers in (1, 6):
        most[0] = 0
        batches, errors = training_batches(demo_data, clips, 128, crops, 0, 4, None, readers)
        assert len(list(batches)) == 4 and errors == [] and most[0] == readers
    monkeypatch.setattr(packs.workers, "n_processors", lambda: 1)
    most[0] = 0
    batches, _ = clip_batches(demo_data, clips, 128, 4)
    assert len(list(batches)) == 4 and most[0] == min(16, packs.READERS_A_PROCESSOR)  # by default, of 16 clips
