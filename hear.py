"""Listen to recordings: show the face that each voice suggests, and list the faces most similar to it.

Reads the run checkpoints/<run>/ of train.py and the run of a face decoder (python train.py decoder). The list is of faces from
the run's data, or from photos; without either, or without a decoder, the other half still works. Writes to
checkpoints/<run>/heard/

    <recording>.png            the face decoded from the voice
    <recording>-samples.png    with --samples, faces sampled from those that the voice leaves possible
    <recording>-similar.png    the most similar faces, for all recordings in one picture

and replaces no file of other content: -2, -3, ... is added to the name instead.

    python hear.py me.m4a
    python hear.py me.m4a --samples 8              eight other faces that the voice leaves possible
    python hear.py me.m4a --among photos           which faces of a folder of photos are the most similar
    python hear.py me.m4a --match a.jpg b.jpg      which of two faces is more similar
"""

import dataclasses
import os
import sys
import tempfile
import zlib
from pathlib import Path

import utils
from utils import InputError, check, option

TOP = 5  # faces listed for a recording
SAMPLES_A_ROW = 4  # of them
MOST_SAMPLES = 64  # faces sampled for a recording
MAX_NAME_BYTES = 200  # of a recording's name, in the names of its pictures
DECODED = "decoded from\nthe voice"  # heading
RUN, CHOICE, FACE, PICTURE = "run", "faces to choose from", "decoded face", "picture of the most similar faces"


@dataclasses.dataclass(frozen=True)
class Options:
    recordings: tuple[Path, ...] = option(
        "recordings of one person's speech, 2.6 to 120 s, in any format that ffmpeg reads",
        nargs="+",
        metavar="RECORDING",
        positional=True,
    )
    run: str = option("run of train.py: a name, for checkpoints/<name>, or a path", utils.VOICE_RUN, group=RUN, metavar="RUN")
    data: Path | None = option(
        "folder of preprocess.py whose faces are listed; name it where the folder that the run was trained on has moved",
        None,
        group=CHOICE,
        metavar="FOLDER",
    )
    among: Path | None = option(
        "choose among the faces in a folder of photos instead of those of the data", None, group=CHOICE, metavar="FOLDER"
    )
    match: tuple[Path, ...] = option(
        "choose between two photos, each with one face", (), group=CHOICE, nargs=2, metavar="PHOTO"
    )
    clips: int = option(
        "larger data are sampled down to this number of faces; raise it to search all faces of large data, which "
        "preprocess.py pack prepares for where they are too many for the memory",
        5000,
        group=CHOICE,
        metavar="N",
    )
    decoder: str | None = option(
        f"run of a face decoder; without the option {utils.DECODER_RUN} is used if it exists and fits the run",
        None,
        group=FACE,
        metavar="RUN",
    )
    exaggerate: float = option(
        "multiplies the distance of the decoded face from the mean face; at 1 faces from voices are as varied as faces are; 0 "
        "gives the mean face",
        1.0,
        group=FACE,
        metavar="FACTOR",
    )
    samples: int = option(
        "sample this many faces from those that the voice leaves possible, beside the likeliest one",
        0,
        group=FACE,
        metavar="N",
    )
    format: str = option(
        "format of the picture; pdf and svg keep its text sharp in print", "png", group=PICTURE, choices=("png", "pdf", "svg")
    )

    def __post_init__(self):
        check(not (self.match and self.among), "--match: expected without --among, found both")
        chosen = "--match" if self.match else "--among"
        check(not (self.data and (self.match or self.among)), f"--data: expected without {chosen}, found both")
        check(self.clips >= 2, f"--clips: expected 2 or more, found {self.clips}")
        check(0 <= self.exaggerate <= 10, f"--exaggerate: expected 0 to 10, found {self.exaggerate}")
        check(0 <= self.samples <= MOST_SAMPLES, f"--samples: expected 0 to {MOST_SAMPLES}, found {self.samples}")


def check_paths(options: Options) -> Path:
    """Check all paths in the options before anything slow is imported. Returns the folder of the run. Raises InputError."""
    for path in options.recordings:
        if path.is_dir():
            raise InputError(f"{path}: expected a recording, found a folder; name the files in it")
        if not path.exists():
            raise InputError(f"{path}: expected a recording, found no such file; check its name")
    for path in options.match:
        if not path.is_file():
            raise InputError(f"{path}: expected a photo, found no such file; check its name")
    for path, expected in ((options.data, "a folder that preprocess.py wrote"), (options.among, "a folder of photos")):
        if path and not path.is_dir():
            found = "a file" if path.exists() else "no such folder"
            raise InputError(f"{path}: expected {expected}, found {found}; check its name")
    if options.decoder:
        utils.existing_run(options.decoder)
    return utils.existing_run(options.run)


def read_inputs(options: Options):
    """Read what needs no network.

    Returns:
        The recordings, each as of `clips.recordings.read_recording`, and the paths of the photos to choose from.

    Raises:
        InputError: if a recording has no speech in it, or the folder of photos has no photo.
    """
    from clips import photos, recordings

    paths = list(options.match)
    if options.among:
        paths, left_out = photos.photos_under(options.among)
        if not paths:
            found = f"none but {left_out}" if left_out else "none"
            raise InputError(
                f"{options.among}: expected photos ({', '.join(photos.SUFFIXES)}), found {found}; name another folder"
            )
        if left_out:
            print(f"hear: left out of {options.among}: {left_out}", file=sys.stderr)
    return [recordings.read_recording(path) for path in options.recordings], paths


def picture_name(recording: Path) -> str:
    """Return what the names of a recording's pictures begin with: its own name in one line, not too long for a file."""
    return utils.printable(recording.stem).encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def listen(options: Options, folder: Path, recordings: list, photos: list[Path]) -> None:
    """Print what the recordings suggest, and write the pictures."""
    import cv2
    import numpy as np

    from judging import pictures
    from listening import gallery, listener
    from training import runs

    run = runs.read_run(folder)
    size, faces = run["feature_size"], None
    if photos:
        below = options.among or Path(os.path.commonpath([path.absolute().parent for path in photos]))
        faces = gallery.of_photos(photos, below, size, one_face=bool(options.match))
    else:
        try:
            faces = gallery.of_data(options.data or Path(run["data"]), size, options.clips, run["seed"])
        except InputError as error:
            if options.data:
                raise
            print(f"hear: no list of similar faces: {error}", file=sys.stderr)  # a run is of use without its data
    loaded = listener.load(folder, options.decoder, options.exaggerate, needs_faces=faces is None)
    if options.samples and not loaded.face_decoder:
        raise InputError("--samples: expected a face decoder with it, found none; make one with python train.py decoder")

    def save_grid(name, *grid):
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{name}.{options.format}"
            pictures.draw_grid(path, *grid)
            print(utils.save_new(folder / "heard" / path.name, path.read_bytes()))

    predictions = np.stack([loaded.predict(recording) for recording in recordings])
    columns = {"recording": [utils.printable(path.name) for path in options.recordings]}
    if loaded.face_decoder:
        decoded = [loaded.decode(prediction) for prediction in predictions]
        columns[DECODED] = [pictures.Shown(picture, "") for picture in decoded]
    if faces:
        numbers, cosines = loaded.most_similar(predictions, faces, TOP)
    for row, path in enumerate(options.recordings):
        if loaded.face_decoder:
            png = cv2.imencode(".png", decoded[row][..., ::-1])[1].tobytes()
            print(utils.save_new(folder / "heard" / f"{picture_name(path)}.png", png))
        if loaded.face_decoder and options.samples:
            seed = zlib.crc32(recordings[row].tobytes())  # the same faces for the same recording
            sampled = [pictures.Shown(picture, "") for picture in loaded.samples(predictions[row], options.samples, seed)]
            parts = [sampled[first : first + SAMPLES_A_ROW] for first in range(0, len(sampled), SAMPLES_A_ROW)]
            left = [columns[DECODED][row], *[""] * (len(parts) - 1)]
            rows = [pictures.Query([first], part) for first, part in zip(left, parts)]
            title = "people who sound like this: faces sampled from those that the voice leaves possible"
            save_grid(f"{picture_name(path)}-samples", title, [DECODED], "samples", rows)
        if options.match:
            better, worse = (utils.printable(options.match[number]) for number in numbers[row])
            margin = cosines[row, 0] - cosines[row, 1]
            print(f"{utils.printable(path)}: {better} rather than {worse}, ", end="")
            print(f"cosines {cosines[row, 0]:.3f} and {cosines[row, 1]:.3f}, margin {margin:.3f}")
        elif faces:
            print(f"{utils.printable(path)}: the most similar of {len(faces.names)} faces")
            for place, (number, cosine) in enumerate(zip(numbers[row], cosines[row]), 1):
                print(f"  {place}  cosine {cosine:.3f}  {faces.names[number]}")
    if faces:
        title = f"the most similar of {len(faces.names)} faces"
        if options.match:
            title = f"which of two faces: {' or '.join(faces.names)}"
        found = pictures.as_shown(numbers, cosines, faces.image)
        rows = [pictures.Query(list(left), of_row) for *left, of_row in zip(*columns.values(), found)]
        name = f"{picture_name(options.recordings[0])}-similar"
        save_grid(name, title, list(columns), "retrieved from the voice", rows)


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folder = check_paths(options)
    listen(options, folder, *read_inputs(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
