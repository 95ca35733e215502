"""The measures of voice-face association as a table, for the screen and for results.md."""

import textwrap

from judging import published
from judging.association import ALL, DIRECTIONS
from judging.matching import CANDIDATES
from judging.parts import PART_NAMES
from judging.tables import SCREEN, as_markdown, as_text, exact_interval, percent, short_interval

HEADER = ["association in %", "people", "AUC", "EER", *(f"1:{n}" for n in CANDIDATES), "mAP"]
VOICES = "voice to face"  # of DIRECTIONS, the one whose lines also have AUC and EER, which have no direction
BLANK = [""] * (len(HEADER) - 2)


def _label_of(part: str, row: dict) -> str:
    """Return the name of a part, and whether its people are seen: the encoder was fitted on their clips."""
    return f"{PART_NAMES[part]}, {'seen' if row['fitted_on'] else 'unseen'}"


def _shares(row: dict, of_direction: dict, task: str) -> list[str]:
    pairs = [row[name] if task == VOICES else None for name in ("auc", "eer")]
    shares = [*pairs, *of_direction["matching"].values(), of_direction["map"]]
    return ["" if share is None else percent(share) for share in shares]


def _intervals(row: dict, of_direction: dict, task: str, set_interval) -> list[str]:
    pairs = [row[f"{name}_interval"] if task == VOICES else None for name in ("auc", "eer")]
    found = [*pairs, *of_direction["matching_interval"].values(), of_direction["map_interval"]]
    return [set_interval(of) for of in found]


def _published(figures: published.Association) -> list[str]:
    shares = [figures.auc, figures.eer, *(figures.matching.get(n) for n in CANDIDATES), figures.mean_precision]
    return ["" if share is None else f"{share:.1f}" for share in shares]


def _rows_of_part(part: str, row: dict, split: str | None, screen: bool) -> list[list[str]]:
    """Return the lines of one part of the split: for all pairs, then for each restriction, both directions and chance."""
    label, set_interval = _label_of(part, row), short_interval if screen else exact_interval
    lines = []
    for name, of in row["association"].items():
        lines.append([label if name == ALL else f"  {name}", f"{of['people']}", *BLANK])
        for task, key in DIRECTIONS.items():
            lines.append([f"    {task}", "", *_shares(of, of[key], task)])
            lines.append(["      95 %", "", *_intervals(of, of[key], task, set_interval)])
            for figures in published.association_beside(split, part, row["people"], task, name, row["gallery"]):
                lines.append([f"      {figures.paper}", f"{figures.people}", *_published(figures)])
        lines.append(["    chance", "", *_shares(of["chance"], of["chance"], VOICES)])
    return [cells for cells in lines if any(cells[1:])]


def table(rows: dict[str, dict], split: str | None) -> list[list[str]]:
    """Set the association of all parts of the split.

    Args:
        rows: the parts' entries in metrics.json.
        split: name of the run's split; None for one without a name.

    Returns:
        Lines of cells, first the header.
    """
    return [HEADER, *(line for part, row in rows.items() for line in _rows_of_part(part, row, split, screen=False))]


def screen_table(rows: dict[str, dict], split: str | None) -> str:
    """Set the same for the screen, SCREEN characters wide, with rounded intervals."""
    return as_text([HEADER, *(line for part, row in rows.items() for line in _rows_of_part(part, row, split, screen=True))])


def notes(rows: dict[str, dict]) -> list[str]:
    """Explain the table's columns and rows."""
    lines = [
        "Seen: people whose clips the encoder was fitted on; their figures say nothing about others.",
        "AUC: how often a voice and a face of one person are more similar than a voice and a face of two; ties count half. "
        "EER: the share of errors where it is the same among pairs of one person and of two. Both are of all pairs.",
        "1:N: how often the true face, or voice, wins among N, the others of other people. mAP: mean average precision; it "
        "depends on the gallery. Ties count against the model.",
    ]
    if any(len(row["association"]) > 1 for row in rows.values()):
        lines.append("Equal sex, age, ...: only voices and faces of people with the same label are compared.")
    return lines


def sections(rows: dict[str, dict], split: str | None, trials: list[str]) -> list[str]:
    """Return the paragraphs of results.md about association. Args: as of `table`, and lines about trials."""
    return ["## Association of voices and faces", as_markdown(table(rows, split)), *notes(rows), *filter(None, trials)]


def screen_notes(rows: dict[str, dict]) -> str:
    """Set `notes` as lines for the screen."""
    return "\n".join(line for note in notes(rows) for line in textwrap.wrap(note, SCREEN))
