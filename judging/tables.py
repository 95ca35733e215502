"""The figures as text: the line that counts first, a table for the screen, and the whole of them as Markdown."""

import textwrap

from judging import intervals, published
from judging.craniofacial import BASELINE
from judging.parts import PART_NAMES, Part
from judging.ranks import chance_at_k, recall_at_k

SCREEN = 100  # characters in a line of the table on the screen
GAP = "  "  # between two columns of it
SLIDES_FACTOR = 2  # the screen shows the slides beside a gallery at most so many times smaller or larger than theirs
PAPER_FACTOR = 10  # and the paper's model, which is rescaled to any gallery, beside one at most so many times smaller
SCREEN_LABELS = {
    "95 % interval": "95 %",
    "in galleries of": "smaller",
    "the paper's model": "paper",
    "the slides": "slides",
    "median rank": "median",
}


def label_of(part: str, row: dict) -> str:
    """Return the name of a part of the split, with a word where the encoder has been fitted on clips that should judge it."""
    return PART_NAMES[part] + (", fitted on" if part != "train" and row.get("fitted_on") else "")


def headline(rows: dict[str, dict], parts: dict[str, Part]) -> str:
    """Return the result that counts in one line: that of unseen speakers, if there are any."""
    name = next(name for name in ("test", "val", "train") if name in rows)
    ranking, row = parts[name].ranking, rows[name]
    recall, chance, matching = (
        100 * share for share in (recall_at_k(ranking.ranks, 1), chance_at_k(ranking, 1), row["matching"])
    )
    line = f"{label_of(name, row)}: R@1 {recall:.1f} % of {ranking.gallery} faces (chance {chance:.1f}), 1:2 {matching:.1f} %"
    if row["matching_interval"]:
        line += " ({:.1f} to {:.1f})".format(*(100 * limit for limit in row["matching_interval"]))
    return line


# ----------------------------------------------------------------------------------------------------------------------
# Rows of cells.


def percent(share: float) -> str:
    """Set a share in %, with a digit after the point."""
    return f"{100 * share:.1f}"


def exact_interval(limits) -> str:
    """Set an interval of shares in %, with a digit after the point."""
    return "{:.1f}-{:.1f}".format(*(100 * limit for limit in limits)) if limits else ""


def short_interval(limits) -> str:
    """Set an interval of shares in %, with a digit after the point below 10 only."""
    if not limits:
        return ""
    low, high = (f"{100 * limit:.1f}" if 100 * limit < 9.95 and limit > 0 else f"{100 * limit:.0f}" for limit in limits)
    return low if low == high else f"{low}-{high}"


def _median(limits) -> str:
    return "{:.0f}-{:.0f}".format(*limits) if limits else ""


def _rows_of_part(part: str, row: dict, screen: bool) -> list[list[str]]:
    """Return the lines of one part of the split: a label, the gallery, R@k for each k, median rank, 1:2 and 1:2 alike."""
    n, ks = row["gallery"], list(row["recall"])
    interval, blank = short_interval if screen else exact_interval, [""] * 3

    def shares(of):
        return [percent(of[k]) for k in ks]

    def limits(of, rest):
        found = [interval(of[k]) for k in ks]
        return [["  95 % interval", "", *found, *rest]] if any(found) else []

    lines = [[label_of(part, row), f"{n}", *shares(row["recall"]), f"{row['median_rank']:g}"]]
    lines[0] += [percent(row[name]) for name in ("matching", "matching_alike")]
    matching = [interval(row[f"{name}_interval"]) for name in ("matching", "matching_alike")]
    lines += limits(row["recall_interval"], [_median(row["median_rank_interval"]), *matching])
    lines.append(["  chance", "", *shares(row["chance"]), f"{(n + 1) / 2:g}", "50.0", "50.0"])
    lines.append(["  mean face", "", *shares(row["mean_face"]), f"{row['mean_face_median_rank']:g}", "", ""])
    if "fixed_gallery" in row:
        fixed = row["fixed_gallery"]
        lines.append(["  in galleries of", f"{fixed['gallery']}", *shares(fixed["recall"]), *blank])
        lines += [[f"  {label}", *rest] for label, *rest in limits(fixed["recall_interval"], blank)]
        lines.append(["    chance", "", *shares(fixed["chance"]), *blank])
    least = published.PAPER_GALLERY / PAPER_FACTOR if screen else 0
    if part != "train" and least <= n <= published.PAPER_GALLERY:
        paper = {k: published.paper_recall(n, k) for k in ks}
        recall = [percent(share) for share, *_ in paper.values()]
        lines.append(["  the paper's model", f"{n}", *recall, f"{published.paper_median_rank(n):.0f}", "", ""])
        lines += [[f"  {label}", *rest] for label, *rest in limits({k: of[1:] for k, of in paper.items()}, blank)]
    if part in published.SLIDES:
        size, recall = published.SLIDES[part]
        if not screen or size / SLIDES_FACTOR <= n <= size * SLIDES_FACTOR:
            lines.append(["  the slides", f"{size}", *(f"{recall[k]}" if k in recall else "" for k in ks), *blank])
    return lines


def _header(rows: dict[str, dict]) -> list[str]:
    return [*(f"R@{k}" for k in next(iter(rows.values()))["recall"]), "median rank", "1:2", "1:2 alike"]


def table(rows: dict[str, dict]) -> list[list[str]]:
    """Set rows of `score` as the slides' table, each with its intervals and everything that it is to be compared with.

    Returns:
        Lines of cells, first the header.
    """
    lines = [line for part, row in rows.items() for line in _rows_of_part(part, row, screen=False)]
    return [["recall in %", "gallery", *_header(rows)], *lines]


def as_markdown(lines: list[list[str]]) -> str:
    """Set lines of cells as a Markdown table."""
    header, *body = (
        "| " + " | ".join(cell.replace("  ", "&nbsp;&nbsp;") if cell.startswith(" ") else cell for cell in cells) + " |"
        for cells in lines
    )
    return "\n".join([header, "|" + " --- |" + " ---: |" * (len(lines[0]) - 1), *body])


def _shortened(label: str) -> str:
    indent = label[: len(label) - len(label.lstrip())]
    return indent + SCREEN_LABELS.get(label.strip(), label.strip())


def screen_table(rows: dict[str, dict]) -> str:
    """Set rows of `score` as a table for the screen: SCREEN characters wide, in several blocks where there are many k.

    The gallery stands in the labels, intervals are rounded, and published figures appear beside comparable galleries only.
    """
    lines = [line for part, row in rows.items() for line in _rows_of_part(part, row, screen=True)]
    labels = [
        "recall in %",
        *(f"{_shortened(label)} ({gallery})" if gallery else _shortened(label) for label, gallery, *_ in lines),
    ]
    columns = list(zip(map(_shortened, _header(rows)), *(cells for _, _, *cells in lines)))
    label_width = max(map(len, labels))
    blocks, width = [[]], label_width
    for column in columns:
        more = len(GAP) + max(map(len, column))
        if blocks[-1] and width + more > SCREEN:
            blocks.append([])
            width = label_width
        blocks[-1].append(column)
        width += more
    return "\n\n".join(as_text([list(line) for line in zip(labels, *block)]) for block in blocks)


def as_text(lines: list[list[str]]) -> str:
    """Set lines of cells in columns. Lines without figures are left out."""
    lines = [cells for cells in lines if any(cells[1:])]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join(
        GAP.join([cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()
        for cells in lines
    )


# ----------------------------------------------------------------------------------------------------------------------
# Text around the tables.


def notes(rows: dict[str, dict]) -> list[str]:
    """Explain the table's columns and rows."""
    lines = [
        "95 %: bootstrap over people in an unchanged gallery. Ties count against the model.",
        "1:2: how often the true face beats one other face. 1:2 alike: the same among the tenth of the other faces that are "
        "most similar to the true one.",
    ]
    few = [f"{PART_NAMES[part]} ({row['people']})" for part, row in rows.items() if row["people"] < intervals.LEAST_PEOPLE]
    if few:
        lines.append(
            f"No interval and no check of R@1 for leaks with fewer than {intervals.LEAST_PEOPLE} people: {', '.join(few)}."
        )
    if rows.get("val", {}).get("fitted_on"):
        lines.append(
            "Val, fitted on: the validation people are few, so the encoder is fitted on their clips too, and their row is that "
            "of training clips."
        )
    if any(row["people"] < row["gallery"] for row in rows.values()):
        lines.append("Some people have several clips: any face of the speaker counts as found.")
    return lines


def screen_notes(rows: dict[str, dict]) -> str:
    """Set `notes` as lines for the screen."""
    return "\n".join(line for note in notes(rows) for line in textwrap.wrap(note, SCREEN))


CRANIOFACIAL_NOTE = (
    "Pearson's correlation of measures between faces decoded from unseen voices and from the true faces; p: of so large a\n"
    "correlation by chance; the paper: its own model and decoder, 1,000 test images."
)


def craniofacial_table(found: dict[str, dict]) -> list[list[str]]:
    """Set the correlations of `craniofacial.correlations`, as dictionaries, beside the paper's. Returns lines of cells."""
    of_paper = published.PAPER_CRANIOFACIAL
    lines = [
        [name, f"{of['r']:.2f}", f"{of['p']:.3f}" if of["p"] >= 0.001 else "< 0.001", f"{of_paper[name]:.2f}"]
        for name, of in found.items()
    ]
    measures = [name for name in found if name != BASELINE]
    mean, mean_of_paper = (
        sum(of[name] for name in measures) / len(measures) for of in ({name: of["r"] for name, of in found.items()}, of_paper)
    )
    lines.insert(len(measures), ["mean", f"{mean:.2f}", "", f"{mean_of_paper:.2f}"])
    return [["craniofacial measure", "r", "p", "the paper"], *lines]


def results(
    run: dict, name: str, rows: dict[str, dict], leaks: list[str], craniofacial: dict[str, dict], sections: list[str]
) -> str:
    """Return results.md.

    Args:
        run: what the run was started with.
        name: of the run.
        rows: of `score`, by part.
        leaks: of `leaks.find_leaks`.
        craniofacial: of `craniofacial.correlations`, as dictionaries; empty without decoded faces.
        sections: paragraphs that follow the table of retrieval and its notes.
    """
    similarity = [["", "degrees", "degrees from the centre", "L1", "L2"]]
    for part, row in rows.items():
        similarity += [
            [
                f"{label_of(part, row)}, {kind}",
                *(f"{of[key]:.2f}" if key in of else "" for key in ("degrees", "degrees_from_centre", "l1", "l2")),
            ]
            for kind, of in row["similarity"].items()
        ]
    paragraphs = [
        f"# {name}",
        f"Encoder {run['encoder']}, loss {run['loss']}, width {run['width']:g}, {run['feature_size']} numbers a face, seed "
        f"{run['seed']}, trained on {len(run['clips']['train']):,} clips.",
        *(f"**Leak: {leak}.**" for leak in leaks),
        as_markdown(table(rows)),
        *notes(rows),
        *sections,
        "## Feature similarity",
        "Means over the clips: the angle between the predicted and the true feature (the paper, 5,000 test clips: 45.75 "
        "degrees with 6 s, 48.43 with 3 s); the same angle as seen from the centre, as retrieval sees it; and, after both are "
        "scaled to length 1, the sum of absolute differences and the distance.",
        as_markdown(similarity),
    ]
    if craniofacial:
        paragraphs += ["## Craniofacial measures", CRANIOFACIAL_NOTE, as_markdown(craniofacial_table(craniofacial))]
    return "\n\n".join(paragraphs) + "\n"
