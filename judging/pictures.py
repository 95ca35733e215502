"""Grids of faces: what is retrieved from each voice beside the true face, and beside what the face decoder makes of both."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clips import feature_files, media
from judging import lettering, plots
from judging.parts import Part
from judging.pitch import pitch
from judging.search import most_similar
from utils import normalise

TOP = 5  # faces shown for a voice
MISS_LADDER = (100, 75, 50, 25, 10, 5)  # the third picture shows the misses beyond the first of these that has any
MAPPED = 2000  # voices in the map, at most

# Layout, in inches.
CELL = 1.0, 1.32  # width and height of a face and the text below it
FACE = 0.94  # width and height of the face itself
GAP = 0.25  # between the faces at the left and those retrieved
COLUMN_GAP = 0.35  # between two columns of queries
MARGIN = 0.1
ROWS = 6  # queries in a column, at most
TITLE_LINE, TITLE_CHARACTER = 0.2, 0.088  # height of a line and width of a character, at TITLE_POINTS
HEADER_LINE, HEADER_CHARACTERS = 0.16, 15  # height of a line, at HEADER_POINTS, and characters across a cell
TEXT_CHARACTERS = 13  # across a cell, of a text in place of a face
TITLE_POINTS, HEADER_POINTS, TEXT_POINTS = 11, 9, 7


# ----------------------------------------------------------------------------------------------------------------------
# Any grid.


@dataclasses.dataclass(frozen=True)
class Shown:
    """A face in a grid."""

    image: np.ndarray  # uint8 (H, W, 3), RGB
    text: str  # below it
    true: bool = False  # framed in green


@dataclasses.dataclass(frozen=True)
class Query:
    """A voice in a grid."""

    left: list[Shown | str]  # its true face, or text in place of a face, and further columns beside it
    found: list[Shown]  # the most similar first


def draw_grid(path: Path, title: str, left: list[str], right: str, queries: list[Query], most_rows: int = ROWS) -> None:
    """Show the faces retrieved from voices as the slides do: the true face, then those found.

    Args:
        path: file to write; its suffix, of plots.FORMATS, is the format.
        title: of the picture.
        left, right: headers over each of the faces at the left, and over those found.
        queries: at least one.
        most_rows: queries in a column, at most.
    """
    n_columns = -(-len(queries) // most_rows)
    n_rows = -(-len(queries) // n_columns)
    n_left, n_found = len(left), max(len(query.found) for query in queries)
    column_width = (n_left + n_found) * CELL[0] + GAP
    width = n_columns * column_width + (n_columns - 1) * COLUMN_GAP + 2 * MARGIN
    texts = [text for query in queries for text in query.left if isinstance(text, str)]
    letters = lettering.lettering_for([title, *left, right, *texts])
    if letters.lacking:
        lacking = "".join(sorted(letters.lacking))
        print(
            f"{path.name}: no font on this machine has the letters {lacking}, shown as {letters.shown(lacking)}",
            file=sys.stderr,
        )
    title = letters.wrapped(title, int((width - 2 * MARGIN) / TITLE_CHARACTER))
    left = [letters.wrapped(header, HEADER_CHARACTERS) for header in left]
    right = letters.wrapped(right, max(1, n_found) * HEADER_CHARACTERS)
    header_lines, title_lines = max(header.count("\n") + 1 for header in (*left, right)), title.count("\n") + 1
    top = MARGIN + title_lines * TITLE_LINE + MARGIN + header_lines * HEADER_LINE + MARGIN / 2  # of the first row
    height = top + n_rows * CELL[1]
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - MARGIN / height, title, ha="center", va="top", fontsize=TITLE_POINTS, **letters.font)
    for number, query in enumerate(queries):
        column, row = divmod(number, n_rows)
        x, y = MARGIN + column * (column_width + COLUMN_GAP), top + row * CELL[1]
        if row == 0:
            headers = [((place + 0.5) * CELL[0], text) for place, text in enumerate(left)]
            headers.append((n_left * CELL[0] + GAP + n_found * CELL[0] / 2, right))
            for at, text in headers:
                place = (x + at) / width, 1 - (top - MARGIN / 2) / height
                figure.text(*place, text, ha="center", va="bottom", fontsize=HEADER_POINTS, **letters.font)
        for place, shown in enumerate(query.left):
            _show(figure, x + place * CELL[0], y, shown, letters)
        for place, shown in enumerate(query.found, n_left):
            _show(figure, x + GAP + place * CELL[0], y, shown, letters)
    plots.save_figure(figure, path)


def _show(figure: Figure, x: float, y: float, shown: Shown | str, letters: lettering.Lettering) -> None:
    """Show a face, or text, in the cell that is x inches from the left and y inches from the top."""
    width, height = figure.get_size_inches()
    box = x + (CELL[0] - FACE) / 2, height - y - FACE
    axes = figure.add_axes([box[0] / width, box[1] / height, FACE / width, FACE / height], xticks=[], yticks=[])
    framed = not isinstance(shown, str) and shown.true
    for spine in axes.spines.values():
        spine.set(visible=framed, color="green", linewidth=3)
    if isinstance(shown, str):
        text = letters.wrapped(shown, TEXT_CHARACTERS)
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=TEXT_POINTS + 1, **letters.font)
        return
    axes.imshow(shown.image)
    axes.set_xlabel(shown.text, fontsize=TEXT_POINTS, labelpad=2, linespacing=1.1)


def as_shown(numbers: np.ndarray, cosines: np.ndarray, images, own=lambda query, face: False) -> list[list[Shown]]:
    """Turn the results of `search.most_similar` into the cells of a grid.

    Args:
        numbers: int (Q, k), of the faces found.
        cosines: float (Q, k).
        images: function from the number of a face to uint8 (H, W, 3), RGB.
        own: function from the numbers of a query and a face to whether the face is the query's own.
    """
    return [
        [
            Shown(images(face), f"{place}: cosine {cosine:.2f}", own(query, face))
            for place, (face, cosine) in enumerate(zip(*of_query), 1)
        ]
        for query, of_query in enumerate(zip(numbers, cosines))
    ]


# ----------------------------------------------------------------------------------------------------------------------
# The pictures of an evaluation.


def pick_queries(ranks: np.ndarray):
    """Choose the voices that the three grids show.

    Args:
        ranks: int (N,), rank of each voice's true face.

    Returns:
        List of three tuples: the name of the picture, its title, and the voices, int (n,), the best rank first.
    """
    by_rank = np.argsort(ranks, kind="stable")
    beyond = next((k for k in MISS_LADDER if (ranks > k).any()), MISS_LADDER[0])
    return [
        ("first_hit", "true face retrieved first", by_rank[ranks[by_rank] == 1]),
        ("in_top_5", "true face in the top 5", by_rank[(ranks[by_rank] > 1) & (ranks[by_rank] <= 5)]),
        (f"not_in_top_{beyond}", f"true face not in the top {beyond}", by_rank[ranks[by_rank] > beyond]),
    ]


def draw_pictures(
    folder: Path, data: Path, parts: dict[str, Part], labels: dict, centre: np.ndarray, n_rows: int, decode, suffix: str
) -> None:
    """Make the pictures of an evaluation: the ranks in all parts, and grids and a map of the test set.

    Args:
        folder: to write to.
        data: folder of the clips.
        parts: of the split, by name.
        labels: what the parts are called, see `tables.label_of`.
        centre: float32 (D,), from which the run sees the features.
        n_rows: voices in a grid, at most.
        decode: portraits.FaceDecoder, or None for grids without decoded faces.
        suffix: of plots.FORMATS.
    """
    ranks_of_parts = {labels[name]: part.ranking.ranks for name, part in parts.items()}
    plots.draw_ranks(folder / f"ranks.{suffix}", ranks_of_parts)
    if "test" not in parts:
        return
    test = parts["test"]
    ranks, people, n = test.ranking.ranks, test.people, test.ranking.gallery
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
            *most_similar(voices[queries], faces, min(TOP, n)),
            image,
            lambda query, face, of=queries: people[of[query]] == people[face],
        )
        columns = {"true face": [Shown(image(number), f"rank {ranks[number]} of {n}") for number in queries]}
        if decode:
            columns["decoded from it"] = [Shown(picture, "") for picture in decode(test.faces[queries])]
            from_voices = decode.from_voices(normalise(voices[queries]))
            columns["decoded from the voice"] = [Shown(picture, "") for picture in from_voices]
        rows = [Query(list(left), of_query) for *left, of_query in zip(*columns.values(), found)]
        shown = f"{len(queries)} of {len(all_queries)} such voices" if len(queries) < len(all_queries) else "all such voices"
        path = folder / f"{name}.{suffix}"
        draw_grid(path, f"{title}, among {n} faces: {shown}", list(columns), "retrieved from the voice", rows)
    mapped = np.linspace(0, n - 1, min(n, MAPPED)).round().astype(int)
    pitches = np.array([pitch(feature_files.load_spectrogram(data, test.clips[number])) for number in mapped])
    plots.draw_map(folder / f"map.{suffix}", normalise(voices)[mapped], normalise(faces)[mapped], pitches)
