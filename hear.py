"""Listen to recordings: show the face that each voice suggests, and list the faces most similar to it.

Uses the weights that come with the project, or a run of your own: checkpoints/<run>/ of train.py, with the face decoder in its
folder, in checkpoints/decoder/ (python train.py decoder), or that of the project. The list is of faces in a folder of photos,
or in the run's data. Prints how sure the face is, and writes to checkpoints/<run>/heard/

    <recording>.png            the face decoded from the voice
    <recording>-samples.png    with --samples, faces sampled from those that the voice leaves possible
    <recording>-similar.png    the most similar faces, for all recordings in one picture

and replaces no file of other content: -2, -3, ... is added to the name instead.

    python hear.py me.m4a
    python hear.py me.m4a --samples 8              eight other faces that the voice leaves possible
    python hear.py me.m4a --among photos           which faces of a folder of photos are the most similar
    python hear.py me.m4a --match a.jpg b.jpg      which of two faces is more similar
    python hear.py --page                          a page to speak into, at http://127.0.0.1:7860

From Python:

    from hear import load
    face = load().face("me.m4a")                   face.picture, face.feature, face.spread, face.certainty
"""

import dataclasses
import os
import sys
from pathlib import Path

import utils
from utils import InputError, check, option

MOST_SAMPLES = 64  # faces sampled for a recording
RUN, CHOICE, FACE, PICTURE = "run", "faces to choose from", "decoded face", "picture of the most similar faces"
PAGE = "page"


@dataclasses.dataclass(frozen=True)
class Options:
    recordings: tuple[Path, ...] = option(
        "recordings of one person's speech, 2.6 s or longer, in any common format; videos too",
        nargs="*",
        metavar="RECORDING",
        positional=True,
    )
    run: str = option(
        "run of train.py or share.py: a name, for checkpoints/<name>, or a path; without the option that of the project",
        utils.PRETRAINED_RUN,
        group=RUN,
        metavar="RUN",
    )
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
        "number of faces, one of each person, to which larger data are sampled down; raise it to search all people of large "
        "data, which preprocess.py pack prepares for where they are too many for the memory",
        5000,
        group=CHOICE,
        metavar="N",
    )
    decoder: str | None = option(
        f"run of a face decoder; without the option the one in the run's folder, {utils.DECODER_RUN}, or that of the project",
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
    page: bool = option("serve a page to speak into, on this machine alone, instead of answering recordings", False, group=PAGE)
    port: int = option("of the page", 7860, group=PAGE, metavar="N")

    def __post_init__(self):
        check(bool(self.recordings) != self.page, f"RECORDING: expected {'none with' if self.page else 'some, or'} --page")
        check(not (self.page and (self.match or self.data)), "--page: expected without --match and --data, found both")
        check(1024 <= self.port < 65536, f"--port: expected 1024 to 65535, found {self.port}")
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


def load(run: str | Path = utils.PRETRAINED_RUN, decoder: str | None = None, exaggerate: float = 1.0):
    """Load a run, to be used from Python.

    Args:
        run: a name, for checkpoints/<name>, or a path; the run that comes with the project unless given.
        decoder: run of a face decoder; see --decoder.
        exaggerate: multiplies the distance of decoded faces from the mean face.

    Returns:
        listening.listener.Listener: its `face` takes the path of a recording, or samples and their rate, and returns a
        listening.listener.Face.

    Raises:
        InputError: if there is no such run, or it is broken.
    """
    from listening import listener

    return listener.load(utils.existing_run(run), decoder, exaggerate)


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folder = check_paths(options)
    from clips import photos, recordings  # without TensorFlow, so that a mistake in the inputs is told at once

    paths = photos.below(options.among) if options.among else list(options.match)
    read = [recordings.read_recording(path) for path in options.recordings]
    from listening import answers, gallery, listener
    from training import runs

    run, faces = runs.read_run(folder), None
    data = options.data or (run["data"] and Path(run["data"]))
    if paths:
        below = options.among or Path(os.path.commonpath([path.absolute().parent for path in paths]))
        faces = gallery.of_photos(paths, below, run["feature_size"], one_face=bool(options.match))
    elif data and not options.page:
        try:
            faces = gallery.of_data(data, run["feature_size"], options.clips, run["seed"])
        except InputError as error:
            if options.data:
                raise
            print(f"hear: no list of similar faces: {error}", file=sys.stderr)  # a run is of use without its data
    loaded = listener.load(folder, options.decoder, options.exaggerate, needs_faces=faces is None or options.page)
    if options.page:
        from listening import page

        page.serve(loaded, faces, options.port)
    if options.samples and not loaded.face_decoder:
        raise InputError("--samples: expected a face decoder with it, found none; make one with python train.py decoder")
    heard = answers.Answers(folder / "heard", options.format, [*zip(options.recordings, map(loaded.face, read))])
    heard.print_faces(loaded, options.samples)
    if faces:
        heard.print_similar(loaded, faces, options.match)
    return 0


if __name__ == "__main__":
    utils.leave(main())
