"""Answers to recordings as hear.py gives them: lines on the screen, and pictures in the folder of a run."""

import dataclasses
import tempfile
from pathlib import Path

import cv2
import numpy as np

import utils
from listening.gallery import Gallery
from listening.listener import Face, Listener

TOP = 5  # faces listed for a recording
SAMPLES_A_ROW = 4
MAX_NAME_BYTES = 200  # of a recording's name, in the names of its pictures
DECODED = "decoded from\nthe voice"  # heading


def picture_name(recording: Path) -> str:
    """Return what the names of a recording's pictures begin with: its own name in one line, not too long for a file."""
    return utils.printable(recording.stem).encode()[:MAX_NAME_BYTES].decode(errors="ignore")


@dataclasses.dataclass(frozen=True)
class Answers:
    """The faces of recordings."""

    folder: Path  # for the pictures
    format: str  # of grids
    faces: list[tuple[Path, Face]]  # of each recording

    def print_faces(self, loaded: Listener, n_samples: int) -> None:
        """Print how sure the faces are, and write them; with n_samples others that the voice leaves possible, in a sheet."""
        for path, face in self.faces:
            if face.picture is not None:
                png = cv2.imencode(".png", face.picture[..., ::-1])[1].tobytes()
                print(utils.save_new(self.folder / f"{picture_name(path)}.png", png))
            if n_samples:
                self._print_samples(path, face, loaded.samples(face, n_samples))
            if face.certainty:
                print(f"{utils.printable(path)}: " + "\n  ".join(face.certainty.words()))

    def _print_samples(self, path: Path, face: Face, samples: np.ndarray) -> None:
        from judging.pictures import Query, Shown

        shown = [Shown(picture, "") for picture in samples]
        parts = [shown[first : first + SAMPLES_A_ROW] for first in range(0, len(shown), SAMPLES_A_ROW)]
        left = [Shown(face.picture, ""), *[""] * (len(parts) - 1)]
        rows = [Query([first], part) for first, part in zip(left, parts)]
        title = "people who sound like this: faces sampled from those that the voice leaves possible"
        self._print_grid(f"{picture_name(path)}-samples", title, [DECODED], "samples", rows)

    def print_similar(self, loaded: Listener, gallery: Gallery, match: tuple[Path, ...]) -> None:
        """Print which faces of a gallery are the most similar, and write them as a picture.

        Args:
            loaded: what made the faces.
            gallery: faces to choose from.
            match: the photos of the gallery's two faces, if one of the two is asked for.
        """
        from judging.pictures import Query, Shown, as_shown

        directions = np.stack([face.direction for _, face in self.faces])
        numbers, cosines = loaded.most_similar(directions, gallery, TOP)
        for (path, _), found, of_path in zip(self.faces, numbers, cosines):
            if match:
                better, worse = (utils.printable(match[number]) for number in found)
                print(f"{utils.printable(path)}: {better} rather than {worse}, ", end="")
                print(f"cosines {of_path[0]:.3f} and {of_path[1]:.3f}, margin {of_path[0] - of_path[1]:.3f}")
                continue
            print(f"{utils.printable(path)}: the most similar of {len(gallery.names)} faces")
            for place, (number, cosine) in enumerate(zip(found, of_path), 1):
                print(f"  {place}  cosine {cosine:.3f}  {gallery.names[number]}")
        columns = {"recording": [utils.printable(path.name) for path, _ in self.faces]}
        if self.faces[0][1].picture is not None:
            columns[DECODED] = [Shown(face.picture, "") for _, face in self.faces]
        title = f"the most similar of {len(gallery.names)} faces"
        if match:
            title = f"which of two faces: {' or '.join(gallery.names)}"
        rows = [Query(list(left), row) for *left, row in zip(*columns.values(), as_shown(numbers, cosines, gallery.image))]
        name = f"{picture_name(self.faces[0][0])}-similar"
        self._print_grid(name, title, list(columns), "retrieved from the voice", rows)

    def _print_grid(self, name: str, *grid) -> None:
        """Draw a grid of `pictures.draw_grid`, save it under a name, and print its path."""
        from judging import pictures  # slow to import, and a face alone needs none

        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{name}.{self.format}"
            pictures.draw_grid(path, *grid)
            print(utils.save_new(self.folder / path.name, path.read_bytes()))
