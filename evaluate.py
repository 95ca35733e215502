"""Evaluate a trained voice encoder by face retrieval.

Each voice searches for its face among all faces of its part of the split: training, validation and test set. Reads
checkpoints/<run>/ of train.py and the data that the run was trained on. Prints the result and a table, and writes to
checkpoints/<run>/

    metrics.json           all figures
    results.md             the same as tables, ready to paste
    first_hit.png          test voices whose true face is retrieved first, with the five most similar faces
    in_top_5.png           test voices whose true face is in the top 5, but not first
    not_in_top_100.png     test voices whose true face is not in the top 100 (75, 50, ... if no rank is beyond 100)
    ranks.png              the ranks of the true faces, beside chance
    map.png                predictions and true faces in a plane, coloured by pitch
    scores-<name>.txt      with --trials, a score for each trial

With a face decoder (train.py decoder), the first three also show two decoded faces beside each true one: from its own face
feature, and from the feature predicted from the voice. An earlier evaluation with other results is kept in
checkpoints/<run>/evaluation-1/.

    python evaluate.py --k 1 5 10
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

import utils
from utils import InputError, check, option

METRICS, RESULTS = utils.METRICS, "results.md"
# The files of an evaluation in a run's folder.
FILES = (METRICS, RESULTS, *(f"{name}.*" for name in ("first_hit", "in_top_5", "not_in_top_*", "ranks", "map")))

MEASURED_FACES = 500  # test faces whose craniofacial measures are compared, at most
RUN_AND_DATA, FIGURES, PICTURES, DECODER, HARDWARE = "run and data", "figures", "pictures", "face decoder", "hardware"
NOT_TRAINED_ON = "expected training clips of {}, found none; is it the data that this run was trained on?"


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = option(
        "name of the run, whose folder is checkpoints/RUN, or a path such as ./RUN",
        utils.VOICE_RUN,
        group=RUN_AND_DATA,
        metavar="RUN",
    )
    data: Path | None = option(
        "folder that preprocess.py wrote; name it where the data that the run was trained on has moved",
        None,
        group=RUN_AND_DATA,
        metavar="FOLDER",
    )
    clips: int = option(
        "evaluate a sample of this many clips where a part of the split has more; more clips make narrower intervals, and "
        "larger galleries lower recall",
        5000,
        group=RUN_AND_DATA,
        metavar="N",
    )
    k: tuple[int, ...] = option(
        "lengths of the retrieved list: R@k is the share of voices whose face is among the first k",
        (1, 5, 10, 25, 50, 75, 100),
        group=FIGURES,
        nargs="+",
        metavar="K",
    )
    gallery: int | None = option(
        "report recall in galleries of this many faces as well, to compare it with figures from smaller galleries",
        None,
        group=FIGURES,
        metavar="N",
    )
    labels: Path | None = option(
        "also compare voices and faces of equal sex, age or nationality alone, by a csv with a header line and columns of "
        "people and labels, such as VoxCeleb's vox1_meta.csv",
        None,
        group=FIGURES,
        metavar="FILE",
    )
    trials: tuple[Path, ...] = option(
        "also score pairs of a voice and a face, by files of lines `key voice face`, as of the FAME challenge, or `1 voice "
        "face` and `0 voice face`; their paths lead to clips of the data folder",
        (),
        group=FIGURES,
        nargs="+",
        metavar="FILE",
    )
    rows: int = option("show at most this many voices in a picture", 12, group=PICTURES, metavar="N")
    format: str = option(
        "format of the pictures: png for the screen; pdf and svg keep text sharp in print",
        "png",
        group=PICTURES,
        choices=("png", "pdf", "svg"),
    )
    decoder: str | None = option(
        f"run of train.py decoder that decodes faces for the pictures; without the option {utils.DECODER_RUN} is used if it "
        "exists and fits the run",
        None,
        group=DECODER,
        metavar="RUN",
    )
    exaggerate: float = option(
        "multiplies the distance of decoded faces from the mean face; at 1 faces from voices are as varied as faces are; 0 "
        "gives the mean face",
        1.0,
        group=DECODER,
        metavar="FACTOR",
    )
    batch_size: int = option(
        "clips in one pass of the voice encoder; lower it when memory runs out", 8, group=HARDWARE, metavar="N"
    )

    def __post_init__(self):
        check(all(k >= 1 for k in self.k), f"--k: expected 1 or more, found {' '.join(map(str, self.k))}")
        check(self.gallery is None or self.gallery >= 2, f"--gallery: expected 2 or more, found {self.gallery}")
        check(self.clips >= 2, f"--clips: expected 2 or more, found {self.clips}")
        check(self.batch_size >= 1, f"--batch-size: expected at least 1, found {self.batch_size}")
        check(self.rows >= 1, f"--rows: expected at least 1, found {self.rows}")
        check(0 <= self.exaggerate <= 10, f"--exaggerate: expected 0 to 10, found {self.exaggerate}")


def evaluate(options: Options, folder: Path) -> None:
    """Evaluate the run in a folder: print the result, and write figures and pictures there. Raises InputError."""
    import model
    from clips import feature_files, splits
    from judging import association, association_table, leaks, parts, pictures, tables
    from judging import labels as labelling
    from judging import trials as pairs
    from training import runs
    from training.batches import predict_features

    run = runs.read_run(folder)
    data, centre = options.data or (run["data"] and Path(run["data"])), run["centre"]
    if data is None:
        raise InputError(f"{folder}: expected --data with a run that was made to be shared, found none; name a folder of clips")
    if not data.is_dir():
        raise InputError(f"{data}: expected the data that {folder} was trained on, found no such folder; name it with --data")
    ready = feature_files.ready_clips(data)
    clips = splits.divide(run["split"], ready)
    seen = runs.seen_clips(run, ready)
    trained_on = set(seen["train"])
    clips["train"] = [clip for clip in clips["train"] if clip in trained_on]
    if not clips["train"] and (run["hashed"] or options.trials):
        clips = {"test": ready} if run["hashed"] else {}  # other data: all are unseen; or trials alone
    elif not clips["train"]:
        raise InputError(f"{data}: {NOT_TRAINED_ON.format(folder)}")
    for note in splits.notes_on(run["split"], ready) if "val" in clips else ():
        print(f"evaluate: {note}", file=sys.stderr)
    labels = options.labels and labelling.read_labels(options.labels, ready, data)
    trials = [pairs.read_trials(path, ready, data) for path in options.trials]
    if run["encoder"] == "conv":
        model.check_batch(options.batch_size, run["width"], utils.N_FRAMES)
    decode = runs.load_face_decoder(options.decoder, folder, run["feature_size"], options.exaggerate)
    size = run["feature_size"]
    encoder = model.of_whole_and_start(runs.load_encoder(folder, run), utils.frames_in(parts.SHORT_SECONDS))

    judged, rows = {}, {}
    trained_faces = utils.sample_clips(clips.get("train", []), options.clips, run["seed"])
    faces = [feature_files.load_embedding(data, clip, size) for clip in trained_faces]
    mean_face = np.mean(faces, axis=0) if faces else centre
    for name, of_part in clips.items():
        of_part = utils.sample_clips(of_part, options.clips, run["seed"])
        if len({utils.person_of(clip) for clip in of_part}) < 2:
            print(f"evaluate: fewer than two {name} people in {data}, left out of the table", file=sys.stderr)
            continue
        voices, faces = predict_features(encoder, data, of_part, size, options.batch_size)
        judged[name] = part = parts.part_of(of_part, voices[:, :size], voices[:, size:], faces, centre)
        gallery = options.gallery
        if gallery and gallery > part.ranking.others.min() + 1:
            print(f"evaluate: fewer than --gallery {gallery} {name} faces of different people, not reported", file=sys.stderr)
            gallery = None
        rows[name] = parts.score(part, centre, mean_face, options.k, gallery)
        rows[name]["fitted_on"] = name == "train" or (name == "val" and run["fitted_on_validation"])
        restrictions = labelling.restrictions(labels, of_part)
        rows[name]["association"] = association.measure(part, centre, restrictions)
        for line in association.left_out(name, rows[name]["association"], restrictions):
            print(f"evaluate: {line}", file=sys.stderr)
    if not rows and not trials:
        raise InputError(
            f"{data}: expected two people in a part of the split, found none with more than one; pass more --clips"
        )
    scores = pairs.score(trials, judged, lambda some: predict_features(encoder, data, some, size, options.batch_size), centre)
    found, measured = leaks.find_leaks(run, data, seen, judged), {}
    for of in scores:
        told = leaks.of_people(of.trials.clips, run["clips"]["train"], "trained on")
        found += [f"{of.trials.path.name}: {leak}" for leak in told]
    if decode and "test" in judged:
        found += leaks.of_people(judged["test"].clips, decode.training_faces, "used to fit the face decoder")
        measured = craniofacial_of(judged["test"], decode, centre)

    split, said, written = run["split_name"], [of.headline() for of in scores], []
    if rows:
        print(tables.headline(rows, judged), "", tables.screen_table(rows), "", tables.screen_notes(rows), "", sep="\n")
        print(association_table.screen_table(rows, split), "", association_table.screen_notes(rows), sep="\n")
        said = ["", *said] if said else []
    print(*said, sep="\n", end="\n" if said else "")
    if measured:
        print("", tables.as_text(tables.craniofacial_table(measured)), "", tables.CRANIOFACIAL_NOTE, sep="\n")
    for leak in found:
        print(f"LEAK? {leak}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=".part-evaluation-", dir=folder) as temporary:
        made = Path(temporary)
        if rows:
            figures = {"parts": rows, "leaks": found, "craniofacial": measured, "trials": [of.figures for of in scores]}
            utils.write_json(made / METRICS, figures)
            sections = association_table.sections(rows, split, said)
            utils.save_bytes(made / RESULTS, tables.results(run, folder.name, rows, found, measured, sections).encode())
            names = {part: tables.label_of(part, row) for part, row in rows.items()}
            pictures.draw_pictures(made, data, judged, names, centre, options.rows, decode, options.format)
            written = publish(made, folder)
    for of in scores:
        written.append(utils.save_new(folder / of.file_name, of.as_text().encode()))
    print(*written, sep="\n")


def craniofacial_of(part, decode, centre) -> dict[str, dict]:
    """Correlate craniofacial measures of faces decoded from voices with those of faces decoded from the true features.

    Args:
        part: judging.parts.Part; MEASURED_FACES of its clips at most are measured, spread over it.
        decode: faces.portraits.FaceDecoder.
        centre: float32 (D,), of the run.

    Returns:
        Of `judging.craniofacial.correlations`, as dictionaries; empty with too few faces.
    """
    import numpy as np

    from faces.portraits import landmarks_in
    from judging import craniofacial

    some = np.unique(np.linspace(0, len(part.clips) - 1, MEASURED_FACES).round().astype(int))
    if len(some) < craniofacial.LEAST_FACES:
        least = craniofacial.LEAST_FACES
        print(f"evaluate: fewer than {least} test faces, no correlations of craniofacial measures", file=sys.stderr)
        return {}
    decode = dataclasses.replace(decode, exaggerate=1.0)
    from_voices, from_faces = decode.from_voices(utils.normalise(part.voices[some] - centre)), decode(part.faces[some])
    found = craniofacial.correlations(landmarks_in(from_voices), landmarks_in(from_faces))
    return {name: dataclasses.asdict(of) for name, of in found.items()}


def files_of_evaluation(folder: Path) -> list[Path]:
    """Return the files of an evaluation in a folder."""
    return [path for pattern in FILES for path in sorted(folder.glob(pattern))]


def publish(made: Path, folder: Path) -> list[Path]:
    """Move the files of an evaluation to a run's folder.

    An earlier evaluation there, if a file of the same name differs, is first moved as a whole to evaluation-1, or the next free
    number, in that folder.

    Args:
        made: folder of the new files.
        folder: of the run.

    Returns:
        The new paths, without metrics.json.
    """
    new, earlier = files_of_evaluation(made), files_of_evaluation(folder)
    if any((made / path.name).exists() and (made / path.name).read_bytes() != path.read_bytes() for path in earlier):
        number = 1
        while (kept := folder / f"evaluation-{number}").exists():
            number += 1
        kept.mkdir()
        for path in earlier:
            path.rename(kept / path.name)
        print(f"evaluate: {folder} holds another evaluation, now kept in {kept}", file=sys.stderr)
    for path in new:
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    return [folder / path.name for path in new if path.name != METRICS]


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folder = utils.existing_run(options.run)
    if options.decoder:
        utils.existing_run(options.decoder)
    if options.data and not options.data.is_dir():
        found = "a file" if options.data.exists() else "no such folder"
        raise InputError(f"{options.data}: expected a folder that preprocess.py wrote, found {found}; check its name")
    evaluate(options, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
