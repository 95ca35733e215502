"""Which voices are compared with which faces: those of all clips of a part, or those of clips with the same label only."""

import numpy as np

from utils import normalise

BLOCK = 2**22  # similarities in memory at a time: several arrays of this size are


def groups_of(people, labels=None) -> list[np.ndarray]:
    """Divide clips into groups: the voices and faces of a group are compared with each other, and with no others.

    Args:
        people: N names, the person of each clip.
        labels: N labels, None where a clip has none; or None for one group of all clips.

    Returns:
        For each label the numbers of its clips, int64, ascending. Labels of one person only are left out: there is nobody else
        to take that person for.
    """
    people = np.asarray(people)
    labels = [""] * len(people) if labels is None else labels
    numbers = {label: [] for label in sorted({label for label in labels if label is not None})}
    for number, label in enumerate(labels):
        if label is not None:
            numbers[label].append(number)
    groups = [np.array(group, np.int64) for group in numbers.values()]
    return [group for group in groups if len(set(people[group])) > 1]


def numbered(people) -> np.ndarray:
    """Return a number for each person, from 0 in the order of the sorted names: N names -> int64 (N,)."""
    return np.unique(np.asarray(people), return_inverse=True)[1]


def directions(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return features as seen from the centre, of length 1: float (N, D), float (D,) -> float32 (N, D)."""
    return normalise(np.asarray(features - centre, np.float32))


def similarities(queries: np.ndarray, gallery: np.ndarray, person: np.ndarray, groups):
    """Compare the clips of each group, a block of queries at a time.

    Args:
        queries, gallery: float32 (N, D), of length 1: voices and faces, or faces and voices. Clip i has query i and face i.
        person: int (N,), each clip's person.
        groups: of `groups_of`.

    Yields:
        The numbers of some queries, int64 (rows,), and of the n clips of their group; the similarities, cosines, float32
        (rows, n); and which of them are of one person, bool (rows, n).
    """
    for group in groups:
        of_group = gallery[group]
        rows = max(1, BLOCK // len(group))
        for start in range(0, len(group), rows):
            numbers = group[start : start + rows]
            yield numbers, group, queries[numbers] @ of_group.T, person[numbers, None] == person[group]
