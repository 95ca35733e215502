import cv2
import numpy as np
import pytest

import model
from judging import pictures, pitch, plots
from judging.pictures import Query, Shown
from utils import SAMPLE_RATE

COLOURS = np.array([[255, 0, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [90, 120, 30]], np.uint8)


def plain(number):
    return np.broadcast_to(COLOURS[number], (32, 32, 3))


def read(path):
    return cv2.imread(str(path))[..., ::-1].astype(int)


def place_of(picture, colour):
    rows, columns = np.where((picture == colour).all(2))
    return rows.mean(), columns.mean()


def test_a_grid_shows_true_and_retrieved_faces(tmp_path):
    """Faces are plain colours, so that the picture can be read back."""
    found = [Shown(plain(n), f"cosine {n}", n == 0) for n in (1, 0, 2, 3, 4)]
    pictures.draw_grid(tmp_path / "grid.png", "a title", ["true face"], "found", [Query([Shown(plain(0), "rank 2")], found)])
    picture = read(tmp_path / "grid.png")
    columns = [place_of(picture, COLOURS[n])[1] for n in (1, 2, 3, 4)]
    assert columns == sorted(columns)
    red = np.where((picture == COLOURS[0]).all(2).any(0))[0]
    assert red.min() < columns[0] < red.max() < columns[1]  # the true face at the left, and again where it is retrieved
    green = np.where((picture == (0, 128, 0)).all(2).any(0))[0]
    assert columns[0] < green.min() <= red.max() <= green.max() < columns[1]
    assert not (picture == COLOURS[5]).all(2).any()


def test_many_queries_stand_in_columns(tmp_path):
    queries = [Query([f"recording {n}"], [Shown(plain(n % 6), "")]) for n in range(8)]
    pictures.draw_grid(tmp_path / "few.png", "", [""], "", queries[:4])
    pictures.draw_grid(tmp_path / "many.png", "", [""], "", queries)
    few, many = read(tmp_path / "few.png"), read(tmp_path / "many.png")
    assert few.shape[0] == many.shape[0] and many.shape[1] > 1.9 * few.shape[1]
    left, right = many[:, : few.shape[1]], many[:, few.shape[1] :]
    places = [place_of(left, COLOURS[n]) for n in range(4)]
    assert [row for row, _ in places] == sorted(row for row, _ in places) and len({column for _, column in places}) == 1
    assert place_of(right, COLOURS[4])[0] == pytest.approx(places[0][0], abs=2)


def test_ranks_stand_beside_chance(tmp_path):
    ranks = np.repeat([1, 2, 3, 95], [40, 30, 20, 10])
    plots.draw_ranks(tmp_path / "ranks.png", {"Val": ranks, "Test": ranks})
    picture = read(tmp_path / "ranks.png")
    blue = (picture == (31, 119, 180)).all(2)
    left, right = blue[:, : picture.shape[1] // 2], blue[:, picture.shape[1] // 2 :]
    for panel in (left, right):
        heights = panel.sum(0)
        columns = np.flatnonzero(heights)
        assert heights[columns[5]] > 5 * heights[columns[-5]] > 0  # 90 % in the first bar, 10 % in the last
        assert len(columns) < 0.3 * panel.shape[1]  # nothing between them


@pytest.mark.parametrize("hertz", [85, 120, 210, 330])
def test_pitch_of_a_voice(hertz, tone, rng):
    harmonics = sum(tone(hertz * n, 2.0, 0.5 / n) for n in range(1, int(3500 / hertz)))
    noise = 0.003 * rng.normal(size=harmonics.shape).astype(np.float32)
    spectrogram = model.spectrogram((harmonics + noise)[None]).numpy()[0].astype(np.float16)
    assert pitch.pitch(spectrogram) == pytest.approx(hertz, rel=0.04)


def test_no_pitch_in_noise_and_silence(rng):
    noise = rng.normal(size=SAMPLE_RATE).astype(np.float32)
    assert np.isnan(pitch.pitch(model.spectrogram(0.1 * noise[None]).numpy()[0]))
    assert np.isnan(pitch.pitch(np.zeros((300, 257, 2), np.float16)))


def test_the_map_is_the_plane_of_the_voices(tmp_path, rng):
    """Two groups, one of low pitch, one of high, one person without: violet and yellow apart at the left, grey between."""
    where = np.repeat([-1.0, 1.0, 0.0], [20, 20, 1])
    voices = np.zeros((41, 8))
    voices[:, 3] = where
    voices += 0.05 * rng.normal(size=voices.shape)
    plots.draw_map(tmp_path / "map.png", voices, rng.normal(size=(41, 8)), np.where(where == 0, np.nan, 170 + 80 * where))
    picture = read(tmp_path / "map.png")
    left = picture[:, : int(0.45 * picture.shape[1])]
    violet, yellow, grey = (place_of(left, colour)[1] for colour in ((68, 1, 84), (253, 231, 37), (211, 211, 211)))
    assert min(violet, yellow) + 100 < grey < max(violet, yellow) - 100
