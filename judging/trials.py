"""Trials: pairs of a voice and a face that a file lists, as those of the FAME challenge and of VoxCeleb do.

A line is `key voice face`, or `1 voice face` and `0 voice face` for pairs of one person and of two, or `voice face`. Voices and
faces are paths of files, or names of clips; a path leads to the clip that preprocess.py made of the file.

Source: github.com/mavceleb/mavceleb_baseline, README and computeScore.py, for the form of trials and of scores.
"""

import dataclasses
from pathlib import Path

import numpy as np

from clips import folders
from clips.people import read_cells
from judging import verification
from judging.comparisons import directions
from judging.parts import Part
from utils import InputError, printable

EXPECTED = "trials, lines such as `key voice face`"
SHOWN = 3  # paths shown in an error


@dataclasses.dataclass(frozen=True)
class Trials:
    """T trials of a file."""

    path: Path  # the file
    keys: list[str]  # the first column, or both names joined by a space where it is no key
    same: np.ndarray | None  # bool (T,), whether voice and face are of one person; None where the file does not tell
    voices: list[str]  # clips
    faces: list[str]  # clips

    @property
    def clips(self) -> list[str]:
        """The clips of voices and faces, each once."""
        return list(dict.fromkeys([*self.voices, *self.faces]))


def read_trials(path: Path, clips: list[str], data: Path) -> Trials:
    """Read a file of trials.

    Args:
        path: of the file.
        clips: names of clips, those of the folder `data`.

    Raises:
        InputError: if the file cannot be read, is none of trials, or names something that has no clip.
    """
    lines = read_cells(path, EXPECTED)
    if not lines:
        raise InputError(f"{path}: expected {EXPECTED}, found an empty file; check its name")
    n_columns = len(lines[0][1])
    for number, cells in lines:
        if len(cells) != n_columns or n_columns not in (2, 3):
            count = "two or three" if n_columns not in (2, 3) else n_columns
            raise InputError(f"{path}: expected {count} values a line, found {len(cells)} in line {number}; correct it")
    *first, voices, faces = zip(*(cells for _, cells in lines))
    labelled = bool(first) and set(first[0]) <= {"0", "1"}
    known = set(clips)
    found = {name: _clip_of(name, known) for name in dict.fromkeys([*voices, *faces])}
    if missing := [name for name, clip in found.items() if clip is None]:
        raise InputError(
            f"{path}: expected clips of {data}, found none for {len(missing):,} of {len(found):,} voices and faces, such as "
            f"{printable(', '.join(missing[:SHOWN]))}; run preprocess.py on these files, or leave their lines out"
        )
    return Trials(
        path,
        list(first[0]) if first and not labelled else [f"{voice} {face}" for voice, face in zip(voices, faces)],
        np.array(first[0]) == "1" if labelled else None,
        [found[name] for name in voices],
        [found[name] for name in faces],
    )


def _clip_of(name: str, clips: set[str]) -> str | None:
    """Return the clip that a path or name leads to, None without one. Folders above that of the person do not count."""
    if name in clips:
        return name
    parts = [part for part in folders.without_suffix(name.replace("\\", "/")).split("/") if part not in ("", ".")]
    names = [folders.clip_name(parts[n], "/".join(parts[n + 1 :])) for n in range(len(parts) - 1)]
    return next((clip for clip in (*names, *parts[-1:]) if clip in clips), None)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Trials and how similar voice and face are in each."""

    trials: Trials
    similarities: np.ndarray  # float32 (T,), cosines as seen from the run's centre, in [-1, 1]

    @property
    def file_name(self) -> str:
        return f"scores-{self.trials.path.stem}.txt"

    def as_text(self) -> str:
        """Set the scores as the challenge has them: a line `key score` for each trial, in order.

        The score is the distance of both directions, from 0 to 2: the less, the more likely they are of one person.
        """
        distances = np.sqrt(2 - 2 * self.similarities.astype(float))
        return "".join(f"{key} {distance:.6f}\n" for key, distance in zip(self.trials.keys, distances))

    @property
    def figures(self) -> dict:
        """The entry in metrics.json: the numbers of `positives` and `negatives`, `auc` and `eer`; only `trials`, the number of
        all, unless the file tells both kinds apart."""
        same, row = self.trials.same, {"trials": len(self.trials.keys)}
        if same is None or same.all() or not same.any():
            return row
        return row | verification.figures_of(verification.counts_of(self.similarities, same))

    def headline(self) -> str:
        """Return what there is to say about the trials in one line."""
        figures = self.figures
        line = f"{self.trials.path.name}: {figures['trials']:,} trials"
        if "auc" not in figures:
            return line
        return line + ", AUC {:.1f} % (chance 50.0), EER {:.1f} % (chance 50.0)".format(
            *(100 * figures[name] for name in ("auc", "eer"))
        )


def score(files: list[Trials], parts: dict[str, Part], predict, centre: np.ndarray) -> list[Scores]:
    """Score the trials of some files.

    Args:
        files: the trials.
        parts: by name, parts of the split, whose predictions are known.
        predict: function from names of clips to the features predicted from their voices, float32 (N, D or more), of which the
            first D numbers count, and those of their faces, float32 (N, D). It is called for all other clips.
        centre: float32 (D,), of the run.
    """
    voices, faces = {}, {}
    for part in parts.values():
        voices.update(zip(part.clips, directions(part.voices, centre)))
        faces.update(zip(part.clips, directions(part.faces, centre)))
    if others := [clip for clip in dict.fromkeys(clip for trials in files for clip in trials.clips) if clip not in voices]:
        of_voices, of_faces = predict(others)
        voices.update(zip(others, directions(of_voices[:, : len(centre)], centre)))
        faces.update(zip(others, directions(of_faces, centre)))
    return [
        Scores(of, np.array([voices[voice] @ faces[face] for voice, face in zip(of.voices, of.faces)], np.float32).clip(-1, 1))
        for of in files
    ]
