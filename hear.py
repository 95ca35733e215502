"""Listen to recordings and show the faces that they suggest.

python hear.py me.m4a
python hear.py me.m4a --among photos            which of a folder's faces is the most similar
python hear.py me.m4a --match a.jpg b.jpg       which of two
"""

import dataclasses
import itertools
from pathlib import Path

import utils
from utils import InputError, check, option

TOP = 5  # faces shown for a voice


@dataclasses.dataclass(frozen=True)
class Options:
    recordings: tuple[Path, ...] = option(
        "recordings, of any format and 2.6 to 120 s", nargs="+", metavar="RECORDING", positional=True
    )
    run: str = option("name of the run: its folder is checkpoints/<run>; or a path", utils.VOICE_RUN)
    data: Path | None = option("folder that preprocess.py wrote (default: the one the run was trained on)", None)
    among: Path | None = option("folder of photos to choose from, instead of the faces of --data", None, metavar="FOLDER")
    match: tuple[Path, ...] = option("two photos; which of the faces is the voice's?", (), nargs=2, metavar="PHOTO")
    clips: int = option("faces of --data to choose from, at most; of more, so many are sampled", 5000)
    decoder: str | None = option("run of train.py decoder", None, metavar="RUN")
    exaggerate: float = option("decoded faces are so many times as far from the mean face; the paper's page shows 1.4", 1.0)
    refinements: int = option("refinement steps", 3)

    def __post_init__(self):
        check(self.clips >= 2, f"--clips: expected 2 or more, found {self.clips}")
        check(0 <= self.exaggerate <= 10, f"--exaggerate: expected 0 to 10, found {self.exaggerate}")
        check(self.refinements >= 0, f"--refinements: expected 0 or more, found {self.refinements}")
        check(not (self.match and self.among), "--match: expected without --among, found both")


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)

    import cv2
    import numpy as np

    from clips import feature_files, media
    from clips.recordings import read_recording
    from judging import pictures
    from judging.pictures import Query, Shown, as_shown
    from judging.search import most_similar
    from listening.listener import hear, photo_features
    from training import runs

    folder = utils.run_folder(options.run)
    run = runs.read_run(folder)
    data = options.data or Path(run["data"])
    decode = runs.load_face_decoder(options.decoder, run["feature_size"], options.exaggerate, options.refinements)
    centre = run["centre"]
    sounds = [read_recording(path) for path in options.recordings]
    if options.among or options.match:
        paths = list(options.match) or media.photos_under(options.among)
        if not paths:
            raise InputError(f"{options.among}: expected a folder of photos ({', '.join(media.PHOTOS)}), found none")
        names, faces, crops = photo_features(paths, run["feature_size"], bool(options.match))
        image = crops.__getitem__
    else:
        names = utils.sample_clips(feature_files.ready_clips(data), options.clips, run["seed"])
        faces = np.stack([feature_files.load_embedding(data, clip, run["feature_size"]) for clip in names])

        def image(number):
            return media.read_face(data, names[number])

    encoder = runs.load_encoder(folder, run)
    voices = np.stack([hear(encoder, recording, centre) for recording in sounds])
    numbers, cosines = most_similar(voices, faces - centre, min(TOP, len(faces)))
    for path, of_voice, of_cosines in zip(options.recordings, numbers, cosines):
        if options.match:
            margin = of_cosines[0] - of_cosines[1]
            print(f"{path}: {options.match[of_voice[0]]} rather than {options.match[of_voice[1]]}, ", end="")
            print(f"cosines {of_cosines[0]:.3f} and {of_cosines[1]:.3f}, margin {margin:.3f}")
        else:
            print(f"{path}: the most similar of {len(names)} faces")
            for place, (number, cosine) in enumerate(zip(of_voice, of_cosines), 1):
                print(f"  {place}  cosine {cosine:.3f}  {names[number]}")
    columns = {"recording": [recording.name for recording in options.recordings]}
    if decode:
        faces_heard = decode.from_voices(voices, centre)
        columns["the face it hears"] = [Shown(picture, "") for picture in faces_heard]
        for path, picture in zip(heard_paths(folder, options.recordings), faces_heard):
            utils.save_bytes(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
            print(path)
    rows = [Query(list(left), found) for *left, found in zip(*columns.values(), as_shown(numbers, cosines, image))]
    path = folder / "audio.png"
    pictures.draw_grid(path, f"the most similar of {len(names)} faces", list(columns), "retrieved from the voice", rows)
    print(path)
    return 0


def heard_paths(folder: Path, recordings) -> list[Path]:
    """Return where the pictures of the faces heard in recordings go: heard/<name>.png; <name>-2 where names are equal."""
    paths = []
    for recording in recordings:
        names = itertools.chain([recording.stem], (f"{recording.stem}-{n}" for n in itertools.count(2)))
        paths.append(next(path for name in names if (path := folder / "heard" / f"{name}.png") not in paths))
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
