"""Tables."""

import dataclasses
from pathlib import Path

import numpy as np

import utils
from judging import published
from judging.intervals import mean_interval, median_interval
from judging.ranks import Ranking, chance_at_k, feature_similarity, rank, recall_at_k, recall_in_gallery

PART_NAMES = {"train": "Train", "val": "Val", "test": "Test"}
SHORT_SECONDS = 3.0  # s; feature similarity is told for these and for whole clips, as in the paper


# ----------------------------------------------------------------------------------------------------------------------
# The table.


@dataclasses.dataclass(frozen=True)
class Heard:
    """What the network hears of one part of the split. N clips, D numbers in a feature."""

    clips: list[str]
    voices: np.ndarray  # float32 (N, D), predicted from whole clips
    short: np.ndarray  # float32 (N, D), predicted from the first SHORT_SECONDS
    faces: np.ndarray  # float32 (N, D), features of the true faces, the gallery

    @property
    def videos(self) -> list[str]:
        return [utils.video_of(clip) for clip in self.clips]


def score(heard: Heard, ranking: Ranking, centre: np.ndarray, mean_face: np.ndarray, ks, gallery: int | None) -> dict:
    """Score one part of the split.

    Args:
        heard: of that part.
        ranking: of it, as seen from the centre.
        centre: float32 (D,), where the run sees the features from: similar are those in the same direction from there.
        mean_face: float32 (D,), the mean feature of the training faces: what a network that hears nothing would predict.
        ks: sizes of the retrieved list.
        gallery: size of the galleries in which recall is told as well, or None.

    Returns:
        What metrics.json says of it; shares in [0, 1].
    """
    videos, ranks = heard.videos, ranking.ranks
    baseline = rank(mean_face[None], heard.faces, videos)
    row = {
        "gallery": ranking.gallery,
        "videos": len(set(videos)),
        "recall": {k: recall_at_k(ranks, k) for k in ks},
        "recall_interval": {k: mean_interval(ranks <= k, videos) for k in ks},
        "chance": {k: chance_at_k(ranking, k) for k in ks},
        "mean_face": {k: recall_at_k(baseline.ranks, k) for k in ks},
        "median_rank": float(np.median(ranks)),
        "median_rank_interval": median_interval(ranks, videos),
        "mean_face_median_rank": float(np.median(baseline.ranks)),
    }
    for name, beaten in (("matching", ranking.matching), ("matching_alike", ranking.matching_alike)):
        row |= {name: float(beaten.mean()), f"{name}_interval": mean_interval(beaten, videos)}
    if gallery:
        found = {k: recall_in_gallery(ranking.better, ranking.others, gallery, k) for k in ks}
        row["fixed_gallery"] = {
            "gallery": gallery,
            "recall": {k: float(found[k].mean()) for k in ks},
            "recall_interval": {k: mean_interval(found[k], videos) for k in ks},
            "chance": {k: min(k, gallery) / gallery for k in ks},
        }
    row["similarity"] = {
        name: {
            **feature_similarity(voices, heard.faces),
            "degrees_from_centre": feature_similarity(voices - centre, heard.faces - centre)["degrees"],
        }
        for name, voices in (("6 s", heard.voices), ("3 s", heard.short))
    }
    guesses = np.broadcast_to(mean_face, heard.faces.shape)
    row["similarity"]["mean face"] = feature_similarity(guesses, heard.faces)
    return row


def table(rows: dict[str, dict]) -> list[list[str]]:
    """Set rows of `score` as the slides' table, below each what it is to be compared with.

    Returns:
        Lines of cells, the first line being the header.
    """
    ks = list(next(iter(rows.values()))["recall"])

    def percent(shares):
        return [f"{100 * shares[k]:.1f}" for k in ks]

    def interval(low, high, factor=100, digits=1):
        return f"{factor * low:.{digits}f}-{factor * high:.{digits}f}"

    lines = [["recall in %", "gallery", *(f"R@{k}" for k in ks), "median rank", "1:2", "1:2 alike"]]
    for part, row in rows.items():
        n, intervals = row["gallery"], row["recall_interval"]
        matching, alike = (f"{100 * row[name]:.1f}" for name in ("matching", "matching_alike"))
        lines.append([PART_NAMES[part], f"{n}", *percent(row["recall"]), f"{row['median_rank']:g}", matching, alike])
        both = [interval(*row[f"{name}_interval"]) for name in ("matching", "matching_alike")]
        median = interval(*row["median_rank_interval"], 1, 0)
        lines.append(["  95 % interval", "", *(interval(*intervals[k]) for k in ks), median, *both])
        lines.append(["  chance", "", *percent(row["chance"]), f"{(n + 1) / 2:g}", "50.0", "50.0"])
        lines.append(["  mean face", "", *percent(row["mean_face"]), f"{row['mean_face_median_rank']:g}", "", ""])
        if "fixed_gallery" in row:
            fixed = row["fixed_gallery"]
            of_fixed = [interval(*fixed["recall_interval"][k]) for k in ks]
            lines.append(["  in galleries of", f"{fixed['gallery']}", *percent(fixed["recall"]), "", "", ""])
            lines.append(["    95 % interval", "", *of_fixed, "", "", ""])
            lines.append(["    chance", "", *percent(fixed["chance"]), "", "", ""])
        if part != "train" and n <= published.PAPER_GALLERY:
            paper = [published.paper_recall(n, k) for k in ks]
            median = 1 + (np.median(published.PAPER_RANKS) - 1) * (n - 1) / (published.PAPER_GALLERY - 1)
            lines.append(
                ["  the paper's model", f"{n}", *(f"{100 * share:.1f}" for share, *_ in paper), f"{median:.0f}", "", ""]
            )
            lines.append(["    95 % interval", "", *(interval(*limits) for _, *limits in paper), "", "", ""])
        if part in published.SLIDES:
            slides_gallery, recall = published.SLIDES[part]
            slides = [f"{recall[k]}" if k in recall else "" for k in ks]
            lines.append(["  the slides", f"{slides_gallery}", *slides, "", "", ""])
    return lines


def as_text(lines: list[list[str]]) -> str:
    """Set lines of cells in columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()
        for cells in lines
    )


def as_markdown(lines: list[list[str]]) -> str:
    """Set lines of cells as a Markdown table."""
    header, *body = (
        "| " + " | ".join(cell.replace("  ", "&nbsp;&nbsp;") if cell.startswith(" ") else cell for cell in cells) + " |"
        for cells in lines
    )
    return "\n".join([header, "|" + " --- |" + " ---: |" * (len(lines[0]) - 1), *body])


def notes(rows: dict[str, dict]) -> list[str]:
    """Say what the table's columns are."""
    said = [
        "Intervals: bootstrap over videos, 95 %, the gallery staying as it is. Ties count against the model.",
        "1:2: how often the true face beats another one. 1:2 alike: the same among the tenth of the other faces that are "
        "nearest to the true one.",
    ]
    if any(row["videos"] < row["gallery"] for row in rows.values()):
        said.append("Some videos have several clips: a voice has found its face when any face of its video is retrieved.")
    return said


def results(run: dict, folder: Path, rows: dict[str, dict], found: list[str]) -> str:
    """Write the figures down as Markdown."""
    similarity = [["", "degrees", "degrees from the centre", "L1", "L2"]]
    for part, row in rows.items():
        similarity += [
            [
                f"{PART_NAMES[part]}, {name}",
                *(f"{of[key]:.2f}" if key in of else "" for key in ("degrees", "degrees_from_centre", "l1", "l2")),
            ]
            for name, of in row["similarity"].items()
        ]
    n_learned = len(run["clips"]["train"])
    return "\n\n".join(
        [
            f"# {folder.name}",
            f"Encoder {run['encoder']}, loss {run['loss']}, width {run['width']:g}, {run['feature_size']} numbers a face, seed "
            f"{run['seed']}, trained on {n_learned:,} clips.",
            *(f"**Leak: {leak}.**" for leak in found),
            as_markdown(table(rows)),
            *notes(rows),
            "## Feature similarity",
            "Means over the clips: the angle between the feature heard and the true one (the paper, 5,000 test clips: 45.75 "
            "degrees with 6 s, 48.43 with 3 s), the same as seen from where retrieval sees them, and, both scaled to length 1, "
            "the sum of absolute differences and the distance.",
            as_markdown(similarity),
        ]
    )
