"""Labels of people, such as sex and age, and the restrictions that follow from them: only equals are compared."""

import dataclasses
from pathlib import Path

import utils
from clips.people import read_people, spellings
from utils import InputError

KINDS = ("sex", "age", "nationality")  # of labels, those that comparisons may be restricted by
ALL_EQUAL = "equal all"  # the restriction to clips whose labels of all kinds are equal
EXPECTED = "a csv with a column person, name or id and a column sex, age or nationality"
SHOWN = 3  # names shown in an error


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of people and clips."""

    path: Path  # the file
    of: dict[str, dict[str, str]]  # for each name of a person or clip the labels by kind, without those that are not known

    @property
    def kinds(self) -> list[str]:
        """The kinds that the file has."""
        return [kind for kind in KINDS if any(kind in labels for labels in self.of.values())]

    def of_clip(self, clip: str) -> dict[str, str]:
        """Return the labels of a clip: its own, and those of its person for the rest."""
        return {**self.of.get(utils.person_of(clip), {}), **self.of.get(clip, {})}


def read_labels(path: Path, clips: list[str], data: Path) -> Labels:
    """Read a file of labels, such as VoxCeleb1's vox1_meta.csv; see `clips.people.read_people`.

    Args:
        path: of the file.
        clips: names of clips, those of the folder `data`.

    Raises:
        InputError: if the file cannot be read, has no usable columns, contradicts itself, or names nobody of these clips.
    """
    labels, first = {}, {}
    for person in read_people(path, EXPECTED):
        for name in spellings(person.names):
            known = labels.setdefault(name, {})
            for kind in KINDS:
                label = person.labels.get(kind)
                if label and known.setdefault(kind, label) != label:
                    before, here = f"{utils.printable(known[kind])} in line {first[name, kind]}", utils.printable(label)
                    raise InputError(
                        f"{path}: expected one {kind} for {name}, found {before} and {here} in line {person.line}; "
                        "correct one of them"
                    )
                if label:
                    first.setdefault((name, kind), person.line)
    if not any(labels.values()):
        raise InputError(f"{path}: expected {EXPECTED}, found no such label; name the columns in the first line")
    if not any(clip in labels or utils.person_of(clip) in labels for clip in clips):
        people = list(dict.fromkeys(map(utils.person_of, clips)))
        raise InputError(
            f"{path}: expected people of {data}, such as {', '.join(people[:SHOWN])}, found none of its {len(people):,} people "
            f"among {len(labels):,} names; name people as the folder does"
        )
    return Labels(path, labels)


def restrictions(labels: Labels | None, clips: list[str]) -> dict[str, list]:
    """Return the restrictions of comparisons: for each, the label of each clip, None where it has none.

    Only clips with the same label are to be compared: "equal sex", and so on; and where the file has several kinds, ALL_EQUAL,
    of which a clip has a label if it has one of each kind. Without labels there are no restrictions.
    """
    if labels is None:
        return {}
    found = [labels.of_clip(clip) for clip in clips]
    by_name = {f"equal {kind}": [of.get(kind) for of in found] for kind in labels.kinds}
    if len(by_name) > 1:
        by_name[ALL_EQUAL] = [None if None in of_clip else " / ".join(of_clip) for of_clip in zip(*by_name.values())]
    return by_name
