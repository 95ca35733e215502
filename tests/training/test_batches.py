import numpy as np
import pytest

from clips import feature_files
from training import epochs
from training.batches import PREDICTION_CLIPS, Crops, clip_batches, person_numbers, predict_features, training_batches
from training.losses import loss_function
from utils import N_BINS, N_FRAMES, InputError
from voices.backend import tf


@pytest.fixture
def ten_clips(tmp_path, rng):
    clips = [f"v{i // 2}_{i}-6" for i in range(10)]
    for i, clip in enumerate(clips):
        spectrogram = np.full((N_FRAMES, N_BINS, 2), i, np.float16)
        spectrogram[:, 0, 0] = np.arange(N_FRAMES)  # the number of the frame
        feature_files.save_array(feature_files.spectrogram_path(tmp_path, clip), spectrogram)
        feature_files.save_array(feature_files.embedding_path(tmp_path, clip), np.full(128, i, np.float32))
    return tmp_path, clips


def test_batches_for_evaluation_keep_order_and_all_clips(ten_clips):
    batches, errors = clip_batches(*ten_clips, 128, batch_size=4)
    batches = list(batches.as_numpy_iterator())
    assert [len(x) for x, _ in batches] == [4, 4, 2] and errors == []
    spectrograms, features = (np.concatenate(parts) for parts in zip(*batches))
    assert spectrograms.dtype == np.float16 and spectrograms.shape == (10, N_FRAMES, N_BINS, 2)
    assert features.dtype == np.float32
    assert features[:, 0].tolist() == spectrograms[:, 0, 1, 0].tolist() == list(range(10))


def crops(**changes):
    return Crops(**{"batch_size": 4, "n_frames": 300, "mask_bins": 0, "mask_frames": 0, "seed": 0, **changes})


def steps(data, clips, first, last, **changes):
    batches, errors = training_batches(data, clips, 128, crops(**changes), first, last)
    parts = [tuple(part.numpy() for part in batch) for batch in batches]
    assert errors == [] and len(parts) == last - first
    return parts


def test_training_takes_each_clip_once_an_epoch(ten_clips):
    orders, starts = [], []
    for epoch in range(3):
        parts = steps(*ten_clips, 2 * epoch, 2 * epoch + 2)
        assert [x.shape for x, *_ in parts] == [(4, 300, N_BINS, 2)] * 2
        spectrograms, features, people = (np.concatenate(part) for part in zip(*parts))
        assert people.tolist() == [i // 2 for i in features[:, 0]]  # and its person
        assert features[:, 0].tolist() == spectrograms[:, 5, 1, 0].tolist()  # a clip keeps its feature
        assert (np.diff(spectrograms[:, :, 0, 0].astype(float), axis=1) == 1).all()  # the frames of a crop are consecutive
        orders.append(tuple(features[:, 0]))
        starts.append(tuple(spectrograms[:, 0, 0, 0]))
        assert len(set(orders[-1])) == 8 and len(set(starts[-1])) > 4 and min(starts[-1]) >= 0 and max(starts[-1]) <= 298
    assert len(set(orders)) == len(set(starts)) == 3


def test_steps_are_a_function_of_seed_and_number(ten_clips):
    changes = {"mask_bins": 30, "mask_frames": 30}
    all_steps = steps(*ten_clips, 0, 6, **changes)
    for ours, theirs in zip(steps(*ten_clips, 3, 5, **changes), all_steps[3:5]):  # as after --resume
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b)
    assert any((a != c).any() for (a, *_), (c, *_) in zip(steps(*ten_clips, 0, 6, seed=1, **changes), all_steps))


def test_masks_silence_two_bands_and_two_spans(rng):
    ones, most_at_once = np.ones((N_FRAMES, N_BINS, 2), np.float16), {20: 0, 40: 0}
    for epoch in range(30):
        masked = crops(n_frames=500, mask_bins=40, mask_frames=20).crop(ones, epoch, 0)[..., 0] == 0
        assert masked.shape == (500, N_BINS)
        frames, bins = masked.all(axis=1), masked.all(axis=0)
        np.testing.assert_array_equal(masked, frames[:, None] | bins[None])
        for silent, most in ((frames, 20), (bins, 40)):
            most_at_once[most] = max(most_at_once[most], np.count_nonzero(np.diff(np.pad(silent, 1).astype(int)) == 1))
            assert silent.sum() <= 2 * most
    assert most_at_once == {20: 2, 40: 2}
    assert crops(mask_bins=0).crop(ones, 0, 0).all() and not crops(mask_bins=10**6).crop(ones, 3, 0).all()
    assert ones.all()  # the clip itself is unchanged


@pytest.mark.parametrize("first", [0, 3])
def test_several_machines_share_each_batch(ten_clips, first, monkeypatch):
    """Two machines read one half each of the batches of one machine."""
    whole = steps(*ten_clips, first, 5)
    halves = []
    for machine in range(2):
        context = tf.distribute.InputContext(num_input_pipelines=2, input_pipeline_id=machine, num_replicas_in_sync=2)

        class Strategy:
            def distribute_datasets_from_function(self, function, context=context):
                return function(context)

        with monkeypatch.context() as patch:
            patch.setattr(tf.distribute, "get_strategy", Strategy)
            halves.append(steps(*ten_clips, first, 5))
    for of_step, *of_machines in zip(whole, *halves):
        for values, *of_both in zip(of_step, *of_machines):
            np.testing.assert_array_equal(values, np.concatenate(of_both))


def test_people_are_numbered_as_they_appear():
    assert person_numbers(["b_0-6", "a_0-6", "b_9-15", "c_0-6", "a_7-9"]).tolist() == [0, 1, 0, 2, 1]


def test_a_broken_file_is_named(ten_clips):
    data, clips = ten_clips
    feature_files.spectrogram_path(data, clips[7]).write_bytes(b"not a pickle")
    batches, errors = clip_batches(data, clips, 128, batch_size=4)
    with pytest.raises(tf.errors.OpError):
        list(batches)
    assert isinstance(errors[0], InputError) and "v3_7-6.pkl: expected a pickle" in str(errors[0])


def test_validation_takes_no_more_clips_at_a_time_than_prediction_does(ten_clips):
    """Whatever --batch-size is: a step's batch is divided among the devices, and may be too large for one of them."""
    data, clips = ten_clips
    seen = []

    def encoder(spectrograms, training):
        tf.numpy_function(lambda n: seen.append(int(n)), [tf.shape(spectrograms)[0]], [])
        return tf.repeat(tf.cast(spectrograms[:, 0, 1:2, 0], "float32"), 128, axis=1)

    centre = np.zeros(128, np.float32)
    predicted = predict_features(encoder, data, clips, 128)
    scores = epochs.validate(predicted, loss_function("l1", centre), centre, clips, batch_size=1000)
    assert seen == [PREDICTION_CLIPS, 10 - PREDICTION_CLIPS] == [8, 2]
    assert scores["val_gallery"] == 10 and scores["val_loss"] == 0
