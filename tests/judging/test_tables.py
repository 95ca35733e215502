import numpy as np
import pytest

from judging import parts, tables

KS = (1, 5, 10, 25, 50, 75, 100)


def row_of(n, ks, seed=0):
    """Return a part of the split with n faces and predictions better than chance, and its row."""
    rng = np.random.default_rng(seed)
    faces = rng.normal(size=(n, 6))
    part = parts.part_of([f"{i}_0-6" for i in range(n)], *[faces + 2 * rng.normal(size=faces.shape)] * 2, faces, np.zeros(6))
    row = parts.score(part, np.zeros(6), faces.mean(0), ks, None)
    return part, row


HAND_MADE = {
    "gallery": 40,
    "people": 40,
    "recall": {1: 0.5, 10: 1.0},
    "chance": {1: 0.025, 10: 0.25},
    "mean_face": {1: 0, 10: 0.3},
    "recall_interval": {1: (0.4, 0.6), 10: (1, 1)},
    "median_rank": 1.5,
    "median_rank_interval": (1, 3),
    "mean_face_median_rank": 20.0,
    "matching": 0.9,
    "matching_interval": (0.8, 0.95),
    "matching_alike": 0.7,
    "matching_alike_interval": (0.6, 0.8),
}


def test_the_table_in_the_slides_form():
    lines = tables.table({"train": HAND_MADE})
    assert tables.as_text(lines).splitlines() == [
        "recall in %      gallery        R@1         R@10  median rank        1:2  1:2 alike",
        "Train                 40       50.0        100.0          1.5       90.0       70.0",
        "  95 % interval           40.0-60.0  100.0-100.0          1-3  80.0-95.0  60.0-80.0",
        "  chance                        2.5         25.0         20.5       50.0       50.0",
        "  mean face                     0.0         30.0           20",
        "  the slides        4800         45           55",
    ]
    markdown = tables.as_markdown(lines).splitlines()
    assert markdown[2] == "| Train | 40 | 50.0 | 100.0 | 1.5 | 90.0 | 70.0 |" and markdown[1].count("---:") == 6


def test_the_table_on_the_screen():
    assert tables.screen_table({"train": HAND_MADE}).splitlines() == [
        "recall in %    R@1   R@10  median    1:2  1:2 alike",
        "Train (40)    50.0  100.0     1.5   90.0       70.0",
        "  95 %       40-60    100     1-3  80-95      60-80",
        "  chance       2.5   25.0    20.5   50.0       50.0",
        "  mean face    0.0   30.0      20",
    ]


def test_small_intervals_keep_a_digit():
    row = {**HAND_MADE, "recall_interval": {1: (0.0, 0.0124), 10: (0.0951, 0.1049)}}
    assert tables.screen_table({"train": row}).splitlines()[2].split() == [
        "95",
        "%",
        "0-1.2",
        "9.5-10",
        "1-3",
        "80-95",
        "60-80",
    ]


@pytest.mark.parametrize("galleries", [(300, 40, 40), (5000, 600, 600)])
def test_the_table_fits_the_screen(galleries):
    """With the k that evaluate.py has by default; in galleries of the slides' size, with their figures and the paper's."""
    rows = {name: row_of(min(n, 700), KS)[1] for name, n in zip(("train", "val", "test"), galleries)}
    for row, n in zip(rows.values(), galleries):
        row["gallery"] = n  # the figures of a smaller one
    text = tables.screen_table(rows)
    assert max(map(len, text.splitlines())) <= 100 and "" not in text.splitlines()
    assert ("paper (600)" in text) == ("slides (600)" in text) == ("slides (4800)" in text) == (galleries[0] == 5000)


def test_many_k_are_set_in_blocks():
    ks = tuple(range(1, 31))
    _, row = row_of(40, ks)
    text = tables.screen_table({"test": row})
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert len(blocks) > 1 and max(map(len, text.splitlines())) <= 100
    assert [word for block in blocks for word in block[0].split() if word.startswith("R@")] == [f"R@{k}" for k in ks]
    assert all(block[1].startswith("Test (40)") for block in blocks)


@pytest.mark.parametrize("n, screen", [(299, False), (300, True), (1200, True), (1201, False)])
def test_slides_are_shown_beside_comparable_galleries(n, screen):
    row = {**HAND_MADE, "gallery": n}
    assert ("slides (600)" in tables.screen_table({"test": row})) == screen
    assert "| &nbsp;&nbsp;the slides | 600 |" in tables.as_markdown(tables.table({"test": row}))


@pytest.mark.parametrize("n, screen", [(499, False), (500, True), (5000, True)])
def test_the_papers_model_is_shown_beside_comparable_galleries(n, screen):
    row = {**HAND_MADE, "gallery": n}
    assert (f"paper ({n})" in tables.screen_table({"val": row})) == screen
    assert f"| &nbsp;&nbsp;the paper's model | {n} |" in tables.as_markdown(tables.table({"val": row}))


def test_no_row_of_intervals_where_there_are_none():
    _, row = row_of(12, (1, 5))
    rows = {"val": row, "test": {**HAND_MADE, "recall": {1: 0.5, 5: 0.7}, "recall_interval": {1: (0, 0.1), 5: (0.1, 0.2)}}}
    rows["test"] |= {"chance": {1: 0, 5: 0}, "mean_face": {1: 0, 5: 0}}
    assert tables.screen_table({"val": row}).count("95 %") == 0 and tables.screen_table(rows).count("95 %") == 1
    assert "95 % interval" not in tables.as_markdown(tables.table({"train": row}))
    said = "No interval and no check of R@1 for leaks with fewer than 20 people: Val (12)."
    assert said in tables.notes(rows) and not any("No interval" in note for note in tables.notes({"test": HAND_MADE}))
    assert max(map(len, tables.screen_notes(rows).splitlines())) <= 100


def test_the_headline_is_of_unseen_speakers():
    (test, test_row), (val, val_row), (few, few_row) = row_of(60, (5,)), row_of(30, (1,), 1), row_of(8, (1,), 2)
    parts_by_name, rows = {"train": val, "val": val, "test": test}, {"train": val_row, "val": val_row, "test": test_row}
    hits, (low, high) = (test.ranking.ranks == 1).mean(), test_row["matching_interval"]
    assert tables.headline(rows, parts_by_name) == (
        f"Test: R@1 {100 * hits:.1f} % of 60 faces (chance 1.7), 1:2 {100 * test_row['matching']:.1f} % "
        f"({100 * low:.1f} to {100 * high:.1f})"
    )
    del rows["test"]
    assert tables.headline(rows, parts_by_name).startswith("Val: R@1 ")
    assert tables.headline({"train": few_row}, {"train": few}) == (
        f"Train: R@1 {100 * few_row['recall'][1]:.1f} % of 8 faces (chance 12.5), 1:2 {100 * few_row['matching']:.1f} %"
    )
