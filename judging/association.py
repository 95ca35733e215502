"""The measures of voice-face association for one part of the split: verification, 1:N matching and mean average precision.

Everything is seen from the run's centre, as retrieval is.
"""

import numpy as np

from judging import comparisons, intervals, matching, verification
from judging.parts import Part

ALL = "all"  # the row of clips that are compared with all others
DIRECTIONS = {"voice to face": "voice_to_face", "face to voice": "face_to_voice"}  # names for humans and in metrics.json


def measure(part: Part, centre: np.ndarray, restrictions: dict[str, list]) -> dict[str, dict]:
    """Measure how voices and faces of a part are associated.

    Args:
        part: the part, of N clips.
        centre: float32 (D,), from which the run sees the features.
        restrictions: by name, such as "equal sex", the label of each clip, None where it has none: only clips with the same
            label are compared.

    Returns:
        The entry `association` in metrics.json: for ALL and for each restriction that leaves two people to compare, the
        numbers of `clips` and `people` compared, what `verification.verify` returns, what `matching.score` returns for each of
        DIRECTIONS, and `chance`. Shares are in [0, 1]; None for an interval with too few people, and for a figure of 1:N
        matching with too few candidates.
    """
    person = comparisons.numbered(part.people)
    voices, faces = (comparisons.directions(features, centre) for features in (part.voices, part.faces))
    rows = {}
    for name, labels in {ALL: None, **restrictions}.items():
        groups = comparisons.groups_of(part.people, labels)
        if groups:
            rows[name] = _measure(voices, faces, person, groups, part.resamples)
    return rows


def _measure(voices, faces, person, groups, resamples) -> dict:
    clips = np.concatenate(groups)
    people = len(set(person[clips].tolist()))
    if people < intervals.LEAST_PEOPLE:
        resamples = None
    found = [matching.match(*pair, person, groups) for pair in ((voices, faces), (faces, voices))]
    sizes = np.concatenate([np.full(len(group), len(group)) for group in groups])
    directions = {key: matching.score(of, person, resamples) for key, of in zip(DIRECTIONS.values(), found)}
    chance = {"auc": 0.5, "eer": 0.5, "map": float(matching.chance_precision(sizes - found[0].others, sizes).mean())}
    chance["matching"] = {n: None if share is None else 1 / n for n, share in directions["voice_to_face"]["matching"].items()}
    pairs = verification.verify(voices, faces, person, groups, resamples)
    return {"clips": len(clips), "people": people, **pairs, **directions, "chance": chance}


def left_out(part: str, rows: dict[str, dict], restrictions: dict[str, list]) -> list[str]:
    """Return a line for each restriction that leaves out clips of a part, for they have no label, or are alone with theirs.

    Args:
        part: its name, "train", "val" or "test".
        rows, restrictions: what `measure` returned, and from what.
    """
    lines = []
    for name, labels in restrictions.items():
        without, compared = labels.count(None), rows[name]["clips"] if name in rows else 0
        if compared < len(labels):
            lines.append(
                f"{name}: {len(labels) - compared} of {len(labels)} {part} clips left out, {without} without a label, "
                f"{len(labels) - without - compared} of people alone with theirs"
            )
    return lines
