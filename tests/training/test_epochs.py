import numpy as np
import pytest

from training import epochs, runs
from utils import InputError


@pytest.mark.parametrize(
    "seconds, shown",
    [(0.2, "1 s"), (45, "45 s"), (89, "89 s"), (720, "12 min"), (5399, "90 min"), (6 * 3600, "6 h"), (3 * 86_400, "3 days")],
)
def test_a_duration_has_one_unit(seconds, shown):
    assert epochs.duration(seconds) == shown


def test_the_time_of_an_epoch_and_of_all_epochs():
    assert epochs.line_of_time(0.36, 2000, 30) == "train: about 12 min an epoch, 6 h for 30 epochs"
    assert epochs.line_of_time(0.36, 2000, 1) == "train: about 12 min an epoch"


def test_validation_compares_directions_from_the_centre(monkeypatch, rng):
    """From the centre each voice points to its own face; from zero all faces lie in nearly the same direction."""
    centre = np.full(8, 50, np.float32)
    directions = rng.normal(size=(6, 8)).astype(np.float32)
    predicted = centre + 0.1 * directions, centre + directions
    monkeypatch.setattr(epochs, "predict_features", lambda *_, **__: predicted)
    clips = [f"{name}_1" for name in "abcdef"]
    scores = epochs.validate(None, lambda face, voice: np.abs(face - voice).sum(axis=1), centre, None, clips, 4)
    assert (scores["val_matching"], scores["val_median_rank"], scores["val_recall"]["1"]) == (1, 1, 1)
    assert scores["val_loss"] == pytest.approx(0.9 * np.abs(directions).sum(axis=1).mean(), rel=1e-3)
    assert scores["val_gallery"] == 6 and scores["val_chance"]["1"] == pytest.approx(1 / 6)


@pytest.fixture
def train_four_steps(monkeypatch):
    """Return a function that trains an epoch of four steps, on a clock of its own: steps take 100, 2, 4 and 8 s."""

    def train(losses=(4.0, 3.0, 2.0, 1.0), timed=None, **more):
        seconds, clock = iter((100, 2, 4, 8)), [0]
        monkeypatch.setattr(epochs.time, "perf_counter", lambda: clock[0])
        found = iter(losses)

        def step(_):
            clock[0] += next(seconds)
            return next(found)

        progress = runs.Progress(step=8)
        arguments = {"errors": [], "progress": progress, "n_steps": 4, "save": list, "save_minutes": 1e9, "stopping": []}
        epochs.train_epoch(step, iter(range(4)), **{**arguments, **more}, timed=timed)
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
        train_four_steps(losses=(1.0, np.nan))


def test_a_signal_ends_training_after_a_checkpoint(train_four_steps):
    saved = []
    with pytest.raises(KeyboardInterrupt):
        train_four_steps(stopping=[2], save=lambda: saved.append(1))
    assert saved == [1]


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
