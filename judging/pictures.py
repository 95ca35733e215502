"""The pictures of retrieval that evaluate.py makes (grids of faces, where the true faces rank, a map of the voices), and of
training that train.py makes.

Never imports TensorFlow.
"""

import dataclasses
import sys
import textwrap
from pathlib import Path

import numpy as np

from clips import feature_files, media
from judging import pitch, plots
from judging.plots import _pyplot, _save
from judging.search import most_similar
from judging.tables import PART_NAMES, Heard
from utils import normalise

CELL = 1.0, 1.32  # inches, width and height of a face and what is written below it
GAP = 0.25  # inches, between the true face and those retrieved
COLUMN_GAP = 0.35  # inches, between two columns of queries
ROWS = 6  # queries in a column, at most
TOP = 0.75  # inches, for the titles


# ----------------------------------------------------------------------------------------------------------------------
# Grids.


@dataclasses.dataclass(frozen=True)
class Shown:
    """A face in a grid."""

    image: np.ndarray  # uint8 (H, W, 3), RGB
    text: str  # below it
    true: bool = False  # framed in green


@dataclasses.dataclass(frozen=True)
class Query:
    """A voice in a grid."""

    left: list[Shown | str]  # its true face, or what is written in its place, and what else stands there
    found: list[Shown]  # the most similar first


def draw_grid(path: Path, title: str, left: list[str], right: str, queries: list[Query]) -> None:
    """Draw what voices retrieve, as the slides do: the true face, then those found; ROWS queries a column at most.

    Args:
        path: PNG to write.
        title: of the picture.
        left, right: what is written over each of the faces at the left, and over those found.
        queries: at least one.
    """
    pyplot = _pyplot()
    width, height = CELL
    n_columns = -(-len(queries) // ROWS)
    n_rows = -(-len(queries) // n_columns)
    n_left, n_found = len(left), max(len(query.found) for query in queries)
    column_width = (n_left + n_found) * width + GAP
    size = n_columns * column_width + (n_columns - 1) * COLUMN_GAP + 0.2, n_rows * height + TOP
    figure = pyplot.figure(figsize=size)

    def show(x, y, shown):  # inches from the left and from the top, of the cell
        box = x + 0.03 * width, size[1] - y - 0.94 * width, 0.94 * width, 0.94 * width
        axes = figure.add_axes([box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]])
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=False)
        if isinstance(shown, str):
            axes.text(0.5, 0.5, textwrap.fill(shown, 13), ha="center", va="center", fontsize=8)
            return
        axes.imshow(shown.image)
        axes.set_xlabel(shown.text, fontsize=7, labelpad=2, linespacing=1.1)
        for spine in axes.spines.values():
            spine.set(visible=shown.true, color="green", linewidth=3)

    for number, query in enumerate(queries):
        column, row = divmod(number, n_rows)
        x, y = 0.1 + column * (column_width + COLUMN_GAP), TOP + row * height
        if row == 0:
            top = 1 - (TOP - 0.12) / size[1]
            titles = [(place * width + width / 2, text) for place, text in enumerate(left)]
            for at, text in [*titles, (n_left * width + GAP + n_found * width / 2, right)]:
                figure.text((x + at) / size[0], top, text, ha="center", va="bottom", fontsize=9)
        for place, shown in enumerate(query.left):
            show(x + place * width, y, shown)
        for place, shown in enumerate(query.found, n_left):
            show(x + GAP + place * width, y, shown)
    figure.suptitle(title, fontsize=11, y=1 - 0.15 / size[1], va="top")
    _save(figure, path)


MISS_LADDER = (100, 75, 50, 25, 10, 5)  # the third picture shows voices beyond the first of these that has any


# ----------------------------------------------------------------------------------------------------------------------
# The pictures.


def pick_queries(ranks: np.ndarray):
    """Choose the voices that the three grids show.

    Args:
        ranks: int (N,), rank of each voice's true face.

    Returns:
        List of three tuples: the picture's name, its title, and the voices, int (n,), best rank first.
    """
    by_rank = np.argsort(ranks, kind="stable")
    beyond = next((k for k in MISS_LADDER if (ranks > k).any()), MISS_LADDER[0])
    return [
        ("first_hit", "true face retrieved first", by_rank[ranks[by_rank] == 1]),
        ("in_top_5", "true face in the top 5", by_rank[(ranks[by_rank] > 1) & (ranks[by_rank] <= 5)]),
        (f"not_in_top_{beyond}", f"true face not in the top {beyond}", by_rank[ranks[by_rank] > beyond]),
    ]


def as_shown(numbers: np.ndarray, cosines: np.ndarray, images, own=lambda query, face: False) -> list[list[Shown]]:
    """Turn what `search.most_similar` returns into what is drawn.

    Args:
        numbers: of the faces found, int (Q, k).
        cosines: float (Q, k).
        images: function from a face's number to uint8 (H, W, 3), RGB.
        own: function that says whether a face is that of a query, by their numbers.
    """
    return [
        [
            Shown(images(face), f"{place}: cosine {cosine:.2f}", own(query, face))
            for place, (face, cosine) in enumerate(zip(*of_query), 1)
        ]
        for query, of_query in enumerate(zip(numbers, cosines))
    ]


def draw_pictures(folder: Path, data: Path, heard: dict[str, Heard], rankings: dict, centre: np.ndarray, n_rows: int, decode):
    """Draw the grids of unseen people, the ranks of all, and the map. Returns the pictures' paths."""
    paths = [folder / "ranks.png"]
    plots.draw_ranks(paths[0], {PART_NAMES[part]: ranking.ranks for part, ranking in rankings.items()})
    for old in [*folder.glob("not_in_top_*.png"), *(folder / f"{name}.png" for name in ("first_hit", "in_top_5", "map"))]:
        old.unlink(missing_ok=True)  # of an earlier evaluation
    if "test" not in heard:
        return paths
    test, ranks, videos = heard["test"], rankings["test"].ranks, heard["test"].videos
    voices, faces = test.voices - centre, test.faces - centre

    def image(number):
        return media.read_face(data, test.clips[number])

    for name, title, all_queries in pick_queries(ranks):
        if len(all_queries) == 0:
            print(f"evaluate: no test voice with its {title}, no picture", file=sys.stderr)
            continue
        spread = np.linspace(0, len(all_queries) - 1, min(n_rows, len(all_queries))).round().astype(int)
        queries = all_queries[spread]
        found = as_shown(
            *most_similar(voices[queries], faces, min(TOP, len(faces))),
            image,
            lambda query, face, of=queries: videos[of[query]] == videos[face],
        )
        columns = {"true face": [Shown(image(n), f"rank {ranks[n]} of {len(ranks)}") for n in queries]}
        if decode:
            columns["decoded from it"] = [Shown(picture, "") for picture in decode(test.faces[queries])]
            columns["decoded from\nthe voice"] = [Shown(picture, "") for picture in decode.from_voices(voices[queries], centre)]
        rows = [Query(list(left), of_query) for *left, of_query in zip(*columns.values(), found)]
        shown = f"{len(queries)} of {len(all_queries)} such voices" if len(queries) < len(all_queries) else "all such voices"
        paths.append(folder / f"{name}.png")
        title = f"{title}, among {len(ranks)}: {shown}"
        draw_grid(paths[-1], title, list(columns), "retrieved from the voice", rows)
    pitches = np.array([pitch.pitch(feature_files.load_spectrogram(data, clip)) for clip in test.clips])
    paths.append(folder / "map.png")
    plots.draw_map(paths[-1], normalise(voices), normalise(faces), pitches)
    return paths
