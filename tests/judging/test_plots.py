import cv2
import numpy as np
import pytest

from judging import plots

BLUE, ORANGE, GREY, VIOLET, YELLOW = (31, 119, 180), (255, 127, 14), (211, 211, 211), (68, 1, 84), (253, 231, 37)


def read(path):
    return cv2.imread(str(path))[..., ::-1].astype(int)


def where(picture, colour):
    return (picture == colour).all(2)


def test_ranks_stand_beside_chance(tmp_path):
    ranks = np.repeat([1, 2, 3, 95], [40, 30, 20, 10])
    plots.draw_ranks(tmp_path / "ranks.png", {"Val": ranks, "Test": ranks})
    blue = where(read(tmp_path / "ranks.png"), BLUE)
    left, right = blue[:, : blue.shape[1] // 2], blue[:, blue.shape[1] // 2 :]
    for panel in (left, right):
        heights = panel.sum(0)
        columns = np.flatnonzero(heights)
        assert heights[columns[5]] > 5 * heights[columns[-5]] > 0  # 90 % in the first bar, 10 % in the last
        assert len(columns) < 0.3 * panel.shape[1]  # nothing between them


def test_a_rank_covers_its_share_of_the_gallery():
    assert plots.rank_shares(np.ones(5, int)) == pytest.approx([0.5, 0.5, *[0] * 8])  # rank 1 of 5: the first 20 %
    assert plots.rank_shares(np.array([3, 3, 3])) == pytest.approx([*[0] * 6, 0.1, 0.3, 0.3, 0.3])  # 67 to 100 %
    assert plots.rank_shares(np.arange(1, 38)) == pytest.approx(np.full(10, 0.1))
    assert plots.rank_shares(np.repeat([1, 100], 50)) == pytest.approx([0.5, *[0] * 8, 0.5])


def people(rng):
    """Two groups, one of low and one of high pitch, and one person of unknown pitch between them."""
    side = np.repeat([-1.0, 1.0, 0.0], [20, 20, 1])
    voices = np.zeros((41, 8))
    voices[:, 3] = side
    voices += 0.05 * rng.normal(size=voices.shape)
    pitches = np.select([side < 0, side > 0], [70.0, 400.0], np.nan)
    return voices, pitches


def test_the_map_is_the_plane_of_the_voices(tmp_path, rng):
    """Violet and yellow are apart in the left panel, with grey between them."""
    voices, pitches = people(rng)
    plots.draw_map(tmp_path / "map.png", voices, rng.normal(size=(41, 8)), pitches)
    picture = read(tmp_path / "map.png")
    left = picture[100 : int(0.85 * picture.shape[0]), : int(0.45 * picture.shape[1])]
    violet, yellow, grey = (np.where(where(left, colour))[1].mean() for colour in (VIOLET, YELLOW, GREY))
    assert min(violet, yellow) + 50 < grey < max(violet, yellow) - 50


def test_both_panels_of_the_map_have_one_scale(tmp_path, rng):
    """The same points in both give the same pictures, and twice as far ones stand twice as far from the middle."""
    voices, pitches = people(rng)
    found = []
    for factor in (1, 2):
        plots.draw_map(tmp_path / "map.png", voices, factor * (voices - voices.mean(0)) + voices.mean(0), pitches)
        picture = read(tmp_path / "map.png")
        panels = (picture[:, : int(0.45 * picture.shape[1])], picture[:, int(0.47 * picture.shape[1]) : -230])
        found.append([np.ptp([np.where(where(panel, of))[1].mean() for of in (VIOLET, YELLOW)]) for panel in panels])
    (voice, face), (small_voice, far_face) = found
    assert face == pytest.approx(voice, rel=0.02) and far_face == pytest.approx(2 * small_voice, rel=0.02)


def test_unknown_pitch_has_a_legend(tmp_path, rng):
    """In svg the text of the legend can be read."""
    voices, pitches = people(rng)
    for number, (of, n) in enumerate(((pitches, 1), (np.full(41, 100.0), 0), (np.full(41, np.nan), 1))):
        plots.draw_map(tmp_path / f"map-{number}.svg", voices, voices, of)
        assert (tmp_path / f"map-{number}.svg").read_text().count("no pitch found") == n


def epoch(number, loss):
    recall = {"1": 0.9, "5": 0.95, "10": 1.0}
    row = {"epoch": number, "train_loss": loss, "val_loss": loss, "val_gallery": 50, "val_matching": 0.99}
    return {**row, "val_recall": recall, "val_chance": {"1": 0.02, "5": 0.1, "10": 0.2}}


def test_legends_cover_no_point(tmp_path):
    """Curves through the upper right corner of both panels, where a legend would stand."""
    plots.draw_curves(tmp_path / "curves.png", [epoch(number, number / 10) for number in range(1, 11)])
    picture = read(tmp_path / "curves.png")
    left = where(picture[:, : picture.shape[1] // 2], ORANGE)
    rows, columns = np.where(left)
    right_end = left[:, columns.max() - 8 : columns.max() + 1]
    assert np.where(right_end.any(1))[0].min() == rows.min()  # the last point of a rising curve is the highest one
    legend = rows > 0.85 * picture.shape[0]
    assert legend.any() and not ((rows > 0.8 * picture.shape[0]) & ~legend).any()


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_the_same_content_has_the_same_bytes(suffix, tmp_path, rng):
    voices, pitches = people(rng)
    for name in "ab":
        plots.draw_map(tmp_path / name / f"map.{suffix}", voices, voices, pitches)
    first, second = ((tmp_path / name / f"map.{suffix}").read_bytes() for name in "ab")
    assert first == second and first.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])


def test_pictures_have_200_pixels_an_inch(tmp_path):
    plots.draw_ranks(tmp_path / "ranks.png", {"Test": np.arange(1, 11)})
    assert read(tmp_path / "ranks.png").shape == (720, 840, 3)
