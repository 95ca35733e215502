import contextlib

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

import model
from clips import feature_files
from training import epochs, runs, steps
from training.losses import loss_function
from utils import InputError
from voices.backend import keras


@pytest.mark.parametrize(
    "seconds, shown",
    [(0.2, "1 s"), (45, "45 s"), (89, "89 s"), (720, "12 min"), (5399, "90 min"), (6 * 3600, "6 h"), (3 * 86_400, "3 days")],
)
def test_a_duration_has_one_unit(seconds, shown):
    assert epochs.duration(seconds) == shown


def test_the_time_of_an_epoch_and_of_all_epochs():
    assert epochs.line_of_time(0.36, 2000, 30) == "train: about 12 min an epoch, 6 h for 30 epochs"
    assert epochs.line_of_time(0.36, 2000, 1) == "train: about 12 min an epoch"


def test_validation_compares_directions_from_the_centre(rng):
    """From the centre each voice points to its own face; from zero all faces lie in nearly the same direction."""
    centre = np.full(8, 50, np.float32)
    directions = rng.normal(size=(6, 8)).astype(np.float32)
    predicted = centre + 0.1 * directions, centre + directions
    clips = [f"{name}_1" for name in "abcdef"]
    scores = epochs.validate(predicted, lambda face, voice, people: np.abs(face - voice).sum(axis=1), centre, clips, 4)
    assert (scores["val_matching"], scores["val_median_rank"], scores["val_recall"]["1"]) == (1, 1, 1)
    assert scores["val_loss"] == pytest.approx(0.9 * np.abs(directions).sum(axis=1).mean(), rel=1e-3)
    assert scores["val_gallery"] == 6 and scores["val_chance"]["1"] == pytest.approx(1 / 6)


@pytest.fixture
def train_four_steps(monkeypatch):
    """Return a function that trains an epoch of four steps, on a clock of its own: steps take 100, 2, 4 and 8 s."""

    def train(losses=(4.0, 3.0, 2.0, 1.0), timed=None, wishes=(), **more):
        seconds, clock = iter((100, 2, 4, 8)), [0]
        monkeypatch.setattr(epochs.time, "perf_counter", lambda: clock[0])
        found = iter(losses)

        def step(_):
            clock[0] += next(seconds)
            return next(found)

        progress = runs.Progress(step=8)
        arguments = {"errors": [], "progress": progress, "n_steps": 4, "save": list, "save_minutes": 1e9}
        stops = steps.agreement(wishes)
        epochs.train_epoch(step, iter(range(4)), **{**arguments, **more}, stops=stops, timed=timed)
        return progress

    return train


def test_an_epoch_is_timed_by_its_second_and_third_step(train_four_steps):
    """The first one includes compilation."""
    times = []
    progress = train_four_steps(timed=times.append)
    assert times == [3]
    assert (progress.step, progress.loss_sum, progress.seconds) == (12, 10, 114)


def test_a_loss_that_is_not_finite_names_epoch_and_step(train_four_steps):
    with pytest.raises(InputError, match=r"the loss of epoch 3, step 2 is nan, expected a finite number"):
        train_four_steps(losses=(1.0, np.nan, 1.0, 1.0))


def test_a_signal_ends_training_after_a_checkpoint(train_four_steps):
    saved = []
    with pytest.raises(KeyboardInterrupt):
        train_four_steps(wishes=[2], save=lambda: saved.append(1))
    assert saved == [1]


class Loss:
    """A loss that notes when it is read."""

    def __init__(self, number, value, events):
        self.number, self.value, self.events = number, value, events

    def __float__(self):
        self.events.append(f"read {self.number}")
        return self.value


def train_on_a_device(values, **more):
    """Train an epoch whose losses have these values. Returns what happened, in order, and the progress."""
    events, found, progress = [], enumerate(values, 1), runs.Progress()

    def step(_):
        number, value = next(found)
        events.append(f"step {number}")
        return Loss(number, value, events)

    def save():
        events.append(f"save {progress.loss_sum:g}")

    arguments = {"errors": [], "progress": progress, "n_steps": len(values), "save": save, "save_minutes": 1e9}
    with contextlib.suppress(InputError):
        epochs.train_epoch(step, iter(values), **{**arguments, "stops": lambda: False, **more})
    return events, progress


def test_losses_are_read_while_the_device_computes():
    """Two steps are under way when a loss is read; at the end of the epoch, all have been read."""
    events, progress = train_on_a_device([5.0, 4.0, 3.0, 2.0])
    assert events == ["step 1", "step 2", "step 3", "read 1", "step 4", "read 2", "read 3", "read 4"]
    assert progress.loss_sum == 14


def test_a_checkpoint_holds_the_losses_of_all_its_steps():
    events, _ = train_on_a_device([5.0, 4.0, 3.0], save_minutes=0)
    assert events == ["step 1", "read 1", "save 5", "step 2", "read 2", "save 9", "step 3", "read 3"]


def test_a_loss_that_is_not_finite_ends_training_soon_and_without_a_checkpoint():
    times = iter([0.0, 1.0, 1.0, 1e9, 1e9, 1e9])  # a checkpoint is due at the third step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs.time, "monotonic", lambda: next(times))
        events, progress = train_on_a_device([5.0, np.inf, 3.0, 2.0, 1.0], save_minutes=1)
    assert events == ["step 1", "step 2", "step 3", "read 1", "read 2"] and progress.loss_sum == 5


def test_an_epoch_is_recorded_and_the_next_one_starts_from_zero():
    progress = runs.Progress(step=12, loss_sum=10.0, seconds=8.0, waiting_seconds=2.0)
    record = epochs.record_epoch(progress, 3, 2.5, 40, 1e-3, {"val_loss": 1.5})
    assert record == {
        "epoch": 3,
        "step": 12,
        "train_loss": 2.5,
        "val_loss": 1.5,
        "learning_rate": 1e-3,
        "seconds": 8.0,
        "clips_per_second": 5.0,
        "input_share": 0.25,
    }
    assert progress == runs.Progress(step=12, history=[record])


def test_the_last_line_names_the_best_epoch(tmp_path):
    scores = {"val_matching": 0.775, "val_median_rank": 9.5, "val_gallery": 67}
    progress = runs.Progress(history=[{"epoch": number, **scores} for number in (0, 1, 2)])
    for best, shown in ((2, "epoch 2 of 2 is the best"), (0, "the closed form, before all epochs, is the best")):
        progress.best_epoch = best
        assert epochs.line_of_best(progress, "w") == f"train: {shown}, 1:2 77.5 %, median rank 9.5 of 67: w"
    assert epochs.line_of_best(runs.Progress(history=[{"epoch": 0}]), "w") == "train: w"


def test_the_validation_loss_compares_different_people(rng):
    """10 clips each of 50 people, by name: an encoder that tells all voices apart is far better than one that ignores them."""
    faces = rng.normal(size=(50, 1, 16)) + 0.1 * rng.normal(size=(50, 10, 16))  # of one person nearly the same
    faces = faces.reshape(500, 16).astype(np.float32)
    clips = [f"v{number // 10:02}_{number % 10}-9" for number in range(500)]
    loss, found = loss_function("contrastive", np.zeros(16, np.float32)), []
    for voices in (faces, np.ones_like(faces) + 1e-3 * faces):
        predicted = voices, faces
        found.append(epochs.validate(predicted, loss, np.zeros(16, np.float32), clips, 16)["val_loss"])
    assert found[0] < 0.1 and found[1] > 3.5  # in the order of names, with clips of the same person: 1.94 and 3.23
    again = epochs.validate(predicted, loss, np.zeros(16, np.float32), clips, 16)["val_loss"]
    assert again == found[1]  # after each epoch in the same batches


def test_voices_are_measured_by_the_halves_of_their_clips(random_data, rng, monkeypatch):
    """All clips, or as many as are wanted, spread over them; the last layer of the encoder plays no part in embeddings."""
    encoder, clips = model.voice_encoder(128, 0.03), feature_files.ready_clips(random_data)[:9]
    centre = rng.normal(size=128).astype(np.float32)
    voices, faces = centre + rng.normal(size=(2, 9, 128)).astype(np.float32)
    faces = (0.7 * voices + 0.3 * faces).astype(np.float32)
    layer = keras.Model(encoder.input, encoder.get_layer("fc1").output)
    spectrograms = [feature_files.load_spectrogram(random_data, clip).astype(np.float32) for clip in clips]
    for most, chosen in ((600, [*range(9)]), (3, [0, 4, 8])):
        monkeypatch.setattr(epochs, "UNSEEN_CLIPS", most)
        halves, lengths, matching, people, speaker = epochs.unseen_voices(encoder, random_data, (clips, voices, faces), centre)
        assert halves.shape == (len(chosen), 2, layer.output.shape[-1]) and speaker == (0, halves.shape[-1])
        for of, number in zip(halves, chosen):
            both = np.stack([spectrograms[number][:299], spectrograms[number][299:]])
            np.testing.assert_allclose(of, layer(both), rtol=1e-3, atol=1e-4)
        assert np.abs(halves[:, 0] - halves[:, 1]).max() > 1e-3
        np.testing.assert_allclose(lengths, [np.linalg.norm(voices[number] - centre) for number in chosen], rtol=1e-5)
        cosines = cosine_similarity((voices - centre)[chosen], (faces - centre)[chosen])
        beaten = (cosines < np.diag(cosines)[:, None]).sum(axis=1) / (len(chosen) - 1)
        np.testing.assert_allclose(matching, beaten)
        assert people == [clips[number].rpartition("_")[0] for number in chosen]


def test_clips_of_a_single_person_match_by_chance(random_data):
    clip = feature_files.ready_clips(random_data)[0]
    ones = np.ones((1, 128), np.float32)
    halves, lengths, matching, people, _ = epochs.unseen_voices(
        model.voice_encoder(128, 0.03), random_data, ([clip], ones, ones), np.zeros(128, np.float32)
    )
    assert halves.shape[:2] == (1, 2) and matching == [0.5] and people == ["person0"]
    assert lengths == pytest.approx([128**0.5])
