import re

import cv2
import matplotlib
import numpy as np
import pytest

from judging import pictures
from judging.pictures import Query, Shown

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


@pytest.mark.parametrize("n_found, n_queries", [(1, 1), (5, 1), (5, 12)])
def test_headers_touch_no_title(n_found, n_queries, tmp_path, monkeypatch):
    """In svg each text has its size and baseline; in png no letter reaches the margin of a narrow picture."""
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    title = "true face not in the top 100, among 5000 faces: 12 of 4321 such voices"
    queries = [Query([Shown(plain(0), "")] * 2, [Shown(plain(1), "")] * n_found)] * n_queries
    for suffix in ("svg", "png"):
        path = tmp_path / f"grid.{suffix}"
        pictures.draw_grid(path, title, ["true face", "decoded from the voice"], "retrieved from the voice", queries)
    places = re.findall(r'font-size: (\d+)px[^>]*?(?: y="|translate\(\S+ )([\d.]+)', (tmp_path / "grid.svg").read_text())
    titles, headers = ([float(y) for points, y in places if int(points) == of] for of in (11, 9))
    assert titles and len(headers) >= 3 and max(titles) + 4 < min(headers) - 9  # baselines; a letter is 9 points high
    picture = read(tmp_path / "grid.png")
    assert (picture[:, :15] == 255).all() and (picture[:, -15:] == 255).all()


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_gives_the_format_of_a_grid(suffix, start, tmp_path):
    for name in "ab":
        path = tmp_path / name / f"grid.{suffix}"
        pictures.draw_grid(path, "a title", ["true face"], "found", [Query([Shown(plain(0), "")], [Shown(plain(1), "")])])
    first, second = ((tmp_path / name / f"grid.{suffix}").read_bytes() for name in "ab")
    assert first.startswith(start) and first == second  # no date, no random name


def test_pictures_show_first_hits_the_top_5_and_misses():
    ranks = np.array([1, 150, 3, 1, 5, 6, 100, 101])
    (first, _, hits), (top, _, in_top), (missed, title, misses) = pictures.pick_queries(ranks)
    assert (first, top, missed) == ("first_hit", "in_top_5", "not_in_top_100")
    assert hits.tolist() == [0, 3] and in_top.tolist() == [2, 4] and misses.tolist() == [7, 1]
    assert title == "true face not in the top 100"
    small = pictures.pick_queries(np.array([1, 2, 12, 26]))[2]
    assert small[0] == "not_in_top_25" and small[2].tolist() == [3]
    assert len(pictures.pick_queries(np.array([1, 2]))[2][2]) == 0
