"""Judge a trained voice encoder by face retrieval, or ask it whose face a recording's voice is like.

Each voice looks for its face among all faces of its part of the split. Reads checkpoints/<run>/ of train.py and the data that
it was trained on. Prints recall at k, for training, validation and test people, and writes to checkpoints/<run>/

    metrics.json           all figures
    results.md             the same, ready to paste
    first_hit.png          voices whose true face is retrieved first, with the five most similar faces
    in_top_5.png           voices whose true face is in the top 5, but not first
    not_in_top_100.png     voices whose true face is not in the top 100 (75, 50, ... in a gallery where none is that far down)
    ranks.png              where the true faces rank, beside chance
    map.png                what was heard and the true faces, in a plane

With a face decoder (train.py --model decoder) the first three show, beside the true face, what it makes of that face's feature
and of what was heard; and --audio writes a picture of the face that it hears, heard/<recording>.png.

    python evaluate.py --k 1 5 10
    python evaluate.py --audio me.m4a                              whose faces of --data the voice is like: audio.png
    python evaluate.py --audio me.m4a --gallery-faces photos       which of a folder's
    python evaluate.py --audio me.m4a --match a.jpg b.jpg          which of two
"""

import dataclasses
import sys
from pathlib import Path

import utils
from utils import InputError, check, option


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = option("name of the run: its folder is checkpoints/<run>; or a path", "base")
    data: Path | None = option("folder that preprocess.py wrote (default: the one the run was trained on)", None)
    k: tuple[int, ...] = option("sizes of the retrieved list", (1, 5, 10, 25, 50, 75, 100), nargs="+", metavar="K")
    gallery: int | None = option("tell recall in galleries of so many faces as well, to compare it with others'", None)
    clips: int = option("clips of each part of the split, at most; of more, so many are drawn", 5000)
    batch_size: int = option("clips in a pass of the network", 8)
    rows: int = option("voices in a picture, at most", 12)
    decoder: str | None = option(
        f"run of train.py --model decoder, to decode faces (default: {utils.DECODER_RUN}, if there is one for these features)",
        None,
        metavar="RUN",
    )
    exaggerate: float = option("decoded faces are so many times as far from the mean face; the paper's page shows 1.4", 1.0)
    refinements: int = option(
        "how often the face network looks at a face decoded from a voice, and what its own feature lacks is added", 3
    )

    def __post_init__(self):
        check(all(k >= 1 for k in self.k), f"--k: expected 1 or more, found {' '.join(map(str, self.k))}")
        check(self.gallery is None or self.gallery >= 2, f"--gallery: expected 2 or more, found {self.gallery}")
        check(self.clips >= 2, f"--clips: expected 2 or more, found {self.clips}")
        check(self.batch_size >= 1, f"--batch-size: expected at least 1, found {self.batch_size}")
        check(self.rows >= 1, f"--rows: expected at least 1, found {self.rows}")
        check(0 <= self.exaggerate <= 10, f"--exaggerate: expected 0 to 10, found {self.exaggerate}")
        check(self.refinements >= 0, f"--refinements: expected 0 or more, found {self.refinements}")


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)

    from clips import feature_files
    from judging import leaks
    from judging.leaks import find_leaks
    from judging.pictures import draw_pictures
    from judging.ranks import rank
    from judging.tables import SHORT_SECONDS, Heard, as_text, notes, results, score, table
    from training import runs
    from training.batches import predict_features

    folder = utils.run_folder(options.run)
    run = runs.read_run(folder)
    data = options.data or Path(run["data"])
    decode = runs.load_face_decoder(options.decoder, run["feature_size"], options.exaggerate, options.refinements)
    centre = run["centre"]
    parts, learned = utils.split_clips(feature_files.ready_clips(data), run["seed"]), set(run["clips"]["train"])
    parts["train"] = [clip for clip in parts["train"] if clip in learned]
    if not parts["train"]:
        raise InputError(f"{data}: expected training clips, found none; is it the data that {folder} was trained on?")

    encoder = runs.load_encoder(folder, run)
    heard, rankings, rows, mean_face = {}, {}, {}, None
    for part, clips in parts.items():
        if len({utils.video_of(clip) for clip in clips}) < 2:
            print(f"evaluate: fewer than two {part} videos in {data}, no row for them", file=sys.stderr)
            continue
        clips = utils.sample_clips(clips, options.clips, run["seed"])
        hear = [
            predict_features(encoder, data, clips, run["feature_size"], options.batch_size, n_frames)
            for n_frames in (utils.N_FRAMES, utils.frames_in(SHORT_SECONDS))
        ]
        heard[part] = Heard(clips, hear[0][0], hear[1][0], hear[0][1])
        mean_face = heard[part].faces.mean(axis=0) if part == "train" else mean_face
        rankings[part] = rank(heard[part].voices - centre, heard[part].faces - centre, heard[part].videos)
        gallery = options.gallery
        if gallery and gallery > rankings[part].others.min() + 1:
            print(f"evaluate: fewer than --gallery {gallery} {part} faces of different videos, no row for it", file=sys.stderr)
            gallery = None
        rows[part] = score(heard[part], rankings[part], centre, mean_face, options.k, gallery)
    found = find_leaks(run, data, {part: of_part.clips for part, of_part in heard.items()}, rankings, heard)
    if decode and "test" in heard:
        found += leaks.of_videos(heard["test"].clips, decode.training_faces, "used to fit the face decoder")
    utils.write_json(folder / "metrics.json", {"parts": rows, "leaks": found})
    utils.save_bytes(folder / "results.md", (results(run, folder, rows, found) + "\n").encode())
    print(as_text(table(rows)))
    print("\n".join(notes(rows)))
    for leak in found:
        print(f"LEAK? {leak}", file=sys.stderr)
    for path in [folder / "results.md", *draw_pictures(folder, data, heard, rankings, centre, options.rows, decode)]:
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
