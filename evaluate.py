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
import itertools
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import leaks
import media
import pictures
import retrieval
import runs
import utils
from pictures import Query, Shown
from utils import CLIP_SAMPLES, InputError, check, option

MISS_LADDER = (100, 75, 50, 25, 10, 5)  # the third picture shows voices beyond the first of these that has any
TOP = 5  # faces shown for a voice
PART_NAMES = {"train": "Train", "val": "Val", "test": "Test"}
SHORT_SECONDS = 3.0  # s; feature similarity is told for these and for whole clips, as in the paper
WINDOW_HOP = CLIP_SAMPLES // 2  # samples between the windows of a long recording
DECODER = "decoder"  # the run whose decoder is used if there is one


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
        f"run of train.py --model decoder, to decode faces (default: {DECODER}, if there is one for these features)",
        None,
        metavar="RUN",
    )
    exaggerate: float = option("decoded faces are so many times as far from the mean face; the paper's page shows 1.4", 1.0)
    looks: int = option(
        "how often the face network looks at a face decoded from a voice, and what its own feature lacks is added", 3
    )
    audio: tuple[Path, ...] = option("recordings, of any format and 2.6 to 120 s", (), nargs="+", metavar="FILE")
    gallery_faces: Path | None = option("with --audio: folder of photos to choose from, instead of the faces of --data", None)
    match: tuple[Path, ...] = option(
        "with --audio: two photos; which of the faces is the voice's?", (), nargs=2, metavar="PHOTO"
    )

    def __post_init__(self):
        check(all(k >= 1 for k in self.k), f"--k: expected 1 or more, found {' '.join(map(str, self.k))}")
        check(self.gallery is None or self.gallery >= 2, f"--gallery: expected 2 or more, found {self.gallery}")
        check(self.clips >= 2, f"--clips: expected 2 or more, found {self.clips}")
        check(self.batch_size >= 1, f"--batch-size: expected at least 1, found {self.batch_size}")
        check(self.rows >= 1, f"--rows: expected at least 1, found {self.rows}")
        check(0 <= self.exaggerate <= 10, f"--exaggerate: expected 0 to 10, found {self.exaggerate}")
        check(self.looks >= 0, f"--looks: expected 0 or more, found {self.looks}")
        check(not self.gallery_faces or bool(self.audio), "--gallery-faces: expected --audio with it, found none")
        check(not self.match or bool(self.audio), "--match: expected --audio with it, found none")
        check(not (self.match and self.gallery_faces), "--match: expected without --gallery-faces, found both")


# ----------------------------------------------------------------------------------------------------------------------
# The face decoder.


def face_decoder(options: Options, feature_size: int):
    """Find the decoder.

    Returns:
        The decoder.FaceDecoder; None if there is none for features of this size, and none was asked for.

    Raises:
        InputError: if the run asked for is none, is of other features, or is broken.
    """
    folder = utils.run_folder(options.decoder or DECODER)
    if options.decoder is None and not (folder / utils.BEST_WEIGHTS).exists():
        return None
    try:
        run = runs.read_run(folder, "decoder")
        if run["feature_size"] != feature_size:
            raise InputError(f"{folder}: expected a run on {feature_size} numbers a face, found {run['feature_size']}")
        network, correction = runs.load_decoder(folder, run), runs.load_correction(folder, run)
        import decoder

        learned = run["clips"]["train"]
        return decoder.FaceDecoder(network, run["centre"], correction, learned, options.exaggerate, options.looks)
    except InputError as error:
        if options.decoder:
            raise InputError(f"--decoder: {error}") from None
        print(f"evaluate: no decoded faces: {error}", file=sys.stderr)
        return None


# ----------------------------------------------------------------------------------------------------------------------
# The table.


@dataclasses.dataclass(frozen=True)
class Heard:
    """What the network hears of one part of the split. N clips, D numbers in a feature."""

    clips: list[str]
    voices: np.ndarray  # float32 (N, D), predicted from whole clips
    short: np.ndarray  # float32 (N, D), predicted from the first SHORT_SECONDS
    faces: np.ndarray  # float32 (N, D), features of the true faces, the gallery

    @property
    def videos(self) -> list[str]:
        return [utils.video_of(clip) for clip in self.clips]


def score(heard: Heard, ranking: retrieval.Ranking, centre: np.ndarray, mean_face: np.ndarray, ks, gallery: int | None) -> dict:
    """Score one part of the split.

    Args:
        heard: of that part.
        ranking: of it, as seen from the centre.
        centre: float32 (D,), where the run sees the features from: similar are those in the same direction from there.
        mean_face: float32 (D,), the mean feature of the training faces: what a network that hears nothing would predict.
        ks: sizes of the retrieved list.
        gallery: size of the galleries in which recall is told as well, or None.

    Returns:
        What metrics.json says of it; shares in [0, 1].
    """
    videos, ranks = heard.videos, ranking.ranks
    baseline = retrieval.rank(mean_face[None], heard.faces, videos)
    row = {
        "gallery": ranking.gallery,
        "videos": len(set(videos)),
        "recall": {k: retrieval.recall_at_k(ranks, k) for k in ks},
        "recall_interval": {k: retrieval.mean_interval(ranks <= k, videos) for k in ks},
        "chance": {k: retrieval.chance_at_k(ranking, k) for k in ks},
        "mean_face": {k: retrieval.recall_at_k(baseline.ranks, k) for k in ks},
        "median_rank": float(np.median(ranks)),
        "median_rank_interval": retrieval.median_interval(ranks, videos),
        "mean_face_median_rank": float(np.median(baseline.ranks)),
    }
    for name, beaten in (("matching", ranking.matching), ("matching_alike", ranking.matching_alike)):
        row |= {name: float(beaten.mean()), f"{name}_interval": retrieval.mean_interval(beaten, videos)}
    if gallery:
        found = {k: retrieval.recall_in_gallery(ranking.better, ranking.others, gallery, k) for k in ks}
        row["fixed_gallery"] = {
            "gallery": gallery,
            "recall": {k: float(found[k].mean()) for k in ks},
            "recall_interval": {k: retrieval.mean_interval(found[k], videos) for k in ks},
            "chance": {k: min(k, gallery) / gallery for k in ks},
        }
    row["similarity"] = {
        name: {
            **retrieval.feature_similarity(voices, heard.faces),
            "degrees_from_centre": retrieval.feature_similarity(voices - centre, heard.faces - centre)["degrees"],
        }
        for name, voices in (("6 s", heard.voices), ("3 s", heard.short))
    }
    guesses = np.broadcast_to(mean_face, heard.faces.shape)
    row["similarity"]["mean face"] = retrieval.feature_similarity(guesses, heard.faces)
    return row


def table(rows: dict[str, dict]) -> list[list[str]]:
    """Set rows of `score` as the slides' table, below each what it is to be compared with.

    Returns:
        Lines of cells, the first line being the header.
    """
    ks = list(next(iter(rows.values()))["recall"])

    def percent(shares):
        return [f"{100 * shares[k]:.1f}" for k in ks]

    def interval(low, high, factor=100, digits=1):
        return f"{factor * low:.{digits}f}-{factor * high:.{digits}f}"

    lines = [["recall in %", "gallery", *(f"R@{k}" for k in ks), "median rank", "1:2", "1:2 alike"]]
    for part, row in rows.items():
        n, intervals = row["gallery"], row["recall_interval"]
        matching, alike = (f"{100 * row[name]:.1f}" for name in ("matching", "matching_alike"))
        lines.append([PART_NAMES[part], f"{n}", *percent(row["recall"]), f"{row['median_rank']:g}", matching, alike])
        both = [interval(*row[f"{name}_interval"]) for name in ("matching", "matching_alike")]
        median = interval(*row["median_rank_interval"], 1, 0)
        lines.append(["  95 % interval", "", *(interval(*intervals[k]) for k in ks), median, *both])
        lines.append(["  chance", "", *percent(row["chance"]), f"{(n + 1) / 2:g}", "50.0", "50.0"])
        lines.append(["  mean face", "", *percent(row["mean_face"]), f"{row['mean_face_median_rank']:g}", "", ""])
        if "fixed_gallery" in row:
            fixed = row["fixed_gallery"]
            of_fixed = [interval(*fixed["recall_interval"][k]) for k in ks]
            lines.append(["  in galleries of", f"{fixed['gallery']}", *percent(fixed["recall"]), "", "", ""])
            lines.append(["    95 % interval", "", *of_fixed, "", "", ""])
            lines.append(["    chance", "", *percent(fixed["chance"]), "", "", ""])
        if part != "train" and n <= retrieval.PAPER_GALLERY:
            paper = [retrieval.paper_recall(n, k) for k in ks]
            median = 1 + (np.median(retrieval.PAPER_RANKS) - 1) * (n - 1) / (retrieval.PAPER_GALLERY - 1)
            lines.append(
                ["  the paper's model", f"{n}", *(f"{100 * share:.1f}" for share, *_ in paper), f"{median:.0f}", "", ""]
            )
            lines.append(["    95 % interval", "", *(interval(*limits) for _, *limits in paper), "", "", ""])
        if part in retrieval.SLIDES:
            slides_gallery, recall = retrieval.SLIDES[part]
            slides = [f"{recall[k]}" if k in recall else "" for k in ks]
            lines.append(["  the slides", f"{slides_gallery}", *slides, "", "", ""])
    return lines


def as_text(lines: list[list[str]]) -> str:
    """Set lines of cells in columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()
        for cells in lines
    )


def as_markdown(lines: list[list[str]]) -> str:
    """Set lines of cells as a Markdown table."""
    header, *body = (
        "| " + " | ".join(cell.replace("  ", "&nbsp;&nbsp;") if cell.startswith(" ") else cell for cell in cells) + " |"
        for cells in lines
    )
    return "\n".join([header, "|" + " --- |" + " ---: |" * (len(lines[0]) - 1), *body])


def notes(rows: dict[str, dict]) -> list[str]:
    """Say what the table's columns are."""
    said = [
        "Intervals: bootstrap over videos, 95 %, the gallery staying as it is. Ties count against the model.",
        "1:2: how often the true face beats another one. 1:2 alike: the same among the tenth of the other faces that are "
        "nearest to the true one.",
    ]
    if any(row["videos"] < row["gallery"] for row in rows.values()):
        said.append("Some videos have several clips: a voice has found its face when any face of its video is retrieved.")
    return said


def results(run: dict, folder: Path, rows: dict[str, dict], found: list[str]) -> str:
    """Write the figures down as Markdown."""
    similarity = [["", "degrees", "degrees from the centre", "L1", "L2"]]
    for part, row in rows.items():
        similarity += [
            [
                f"{PART_NAMES[part]}, {name}",
                *(f"{of[key]:.2f}" if key in of else "" for key in ("degrees", "degrees_from_centre", "l1", "l2")),
            ]
            for name, of in row["similarity"].items()
        ]
    n_learned = len(run["clips"]["train"])
    return "\n\n".join(
        [
            f"# {folder.name}",
            f"Encoder {run['encoder']}, loss {run['loss']}, width {run['width']:g}, {run['feature_size']} numbers a face, seed "
            f"{run['seed']}, trained on {n_learned:,} clips.",
            *(f"**Leak: {leak}.**" for leak in found),
            as_markdown(table(rows)),
            *notes(rows),
            "## Feature similarity",
            "Means over the clips: the angle between the feature heard and the true one (the paper, 5,000 test clips: 45.75 "
            "degrees with 6 s, 48.43 with 3 s), the same as seen from where retrieval sees them, and, both scaled to length 1, "
            "the sum of absolute differences and the distance.",
            as_markdown(similarity),
        ]
    )


def find_leaks(run: dict, data: Path, clips: dict[str, list[str]], rankings: dict, heard: dict[str, Heard]) -> list[str]:
    """Look for what makes figures of unseen people too good. Returns a line for each thing found; see `leaks`."""
    found = []
    for part, learned in (("test", ("train", "val")), ("val", ("train",))):
        if part not in clips:
            continue
        for other in learned:
            how = "trained on" if other == "train" else "used to choose the epoch"
            found += leaks.of_videos(clips[part], run["clips"][other], how)
            for read, least, what in (
                (leaks.thumbnail, leaks.SAME_FACE, "the same picture"),
                (leaks.sound_print, leaks.SAME_SOUND, "the same sound"),
            ):
                found += leaks.of_copies(data, clips[part], clips.get(other, []), read, least, what)
        found += leaks.of_recall(rankings[part], heard[part].videos)
    return list(dict.fromkeys(found))


# ----------------------------------------------------------------------------------------------------------------------
# The pictures.


def pick_queries(ranks: np.ndarray):
    """Choose the voices that the three grids show.

    Args:
        ranks: int (N,), rank of each voice's true face.

    Returns:
        List of three tuples: the picture's name, its title, and the voices, int (n,), best rank first.
    """
    by_rank = np.argsort(ranks, kind="stable")
    beyond = next((k for k in MISS_LADDER if (ranks > k).any()), MISS_LADDER[0])
    return [
        ("first_hit", "true face retrieved first", by_rank[ranks[by_rank] == 1]),
        ("in_top_5", "true face in the top 5", by_rank[(ranks[by_rank] > 1) & (ranks[by_rank] <= 5)]),
        (f"not_in_top_{beyond}", f"true face not in the top {beyond}", by_rank[ranks[by_rank] > beyond]),
    ]


def as_shown(numbers: np.ndarray, cosines: np.ndarray, images, own=lambda query, face: False) -> list[list[Shown]]:
    """Turn what `retrieval.most_similar` returns into what is drawn.

    Args:
        numbers: of the faces found, int (Q, k).
        cosines: float (Q, k).
        images: function from a face's number to uint8 (H, W, 3), RGB.
        own: function that says whether a face is that of a query, by their numbers.
    """
    return [
        [
            Shown(images(face), f"{place}: cosine {cosine:.2f}", own(query, face))
            for place, (face, cosine) in enumerate(zip(*of_query), 1)
        ]
        for query, of_query in enumerate(zip(numbers, cosines))
    ]


def draw_pictures(folder: Path, data: Path, heard: dict[str, Heard], rankings: dict, centre: np.ndarray, n_rows: int, decode):
    """Draw the grids of unseen people, the ranks of all, and the map. Returns the pictures' paths."""
    paths = [folder / "ranks.png"]
    pictures.draw_ranks(paths[0], {PART_NAMES[part]: ranking.ranks for part, ranking in rankings.items()})
    for old in [*folder.glob("not_in_top_*.png"), *(folder / f"{name}.png" for name in ("first_hit", "in_top_5", "map"))]:
        old.unlink(missing_ok=True)  # of an earlier evaluation
    if "test" not in heard:
        return paths
    test, ranks, videos = heard["test"], rankings["test"].ranks, heard["test"].videos
    voices, faces = test.voices - centre, test.faces - centre

    def image(number):
        return media.read_face(data, test.clips[number])

    for name, title, all_queries in pick_queries(ranks):
        if len(all_queries) == 0:
            print(f"evaluate: no test voice with its {title}, no picture", file=sys.stderr)
            continue
        spread = np.linspace(0, len(all_queries) - 1, min(n_rows, len(all_queries))).round().astype(int)
        queries = all_queries[spread]
        found = as_shown(
            *retrieval.most_similar(voices[queries], faces, min(TOP, len(faces))),
            image,
            lambda query, face, of=queries: videos[of[query]] == videos[face],
        )
        columns = {"true face": [Shown(image(n), f"rank {ranks[n]} of {len(ranks)}") for n in queries]}
        if decode:
            columns["decoded from it"] = [Shown(picture, "") for picture in decode(test.faces[queries])]
            columns["decoded from\nthe voice"] = [Shown(picture, "") for picture in decode.heard(voices[queries], centre)]
        rows = [Query(list(left), of_query) for *left, of_query in zip(*columns.values(), found)]
        shown = f"{len(queries)} of {len(all_queries)} such voices" if len(queries) < len(all_queries) else "all such voices"
        paths.append(folder / f"{name}.png")
        title = f"{title}, among {len(ranks)}: {shown}"
        pictures.draw_grid(paths[-1], title, list(columns), "retrieved from the voice", rows)
    pitches = np.array([pictures.pitch(utils.load_spectrogram(data, clip)) for clip in test.clips])
    paths.append(folder / "map.png")
    pictures.draw_map(paths[-1], retrieval.normalise(voices), retrieval.normalise(faces), pitches)
    return paths


def judge(options: Options, folder: Path, run: dict, data: Path, decode) -> None:
    """Score a run: print the table, write it down, look for leaks, draw the pictures."""
    centre = run["centre"]
    parts, learned = utils.split_clips(utils.ready_clips(data), run["seed"]), set(run["clips"]["train"])
    parts["train"] = [clip for clip in parts["train"] if clip in learned]
    if not parts["train"]:
        raise InputError(f"{data}: expected training clips, found none; is it the data that {folder} was trained on?")

    import pipeline

    encoder = runs.load_encoder(folder, run)
    heard, rankings, rows, mean_face = {}, {}, {}, None
    for part, clips in parts.items():
        if len({utils.video_of(clip) for clip in clips}) < 2:
            print(f"evaluate: fewer than two {part} videos in {data}, no row for them", file=sys.stderr)
            continue
        clips = utils.draw_clips(clips, options.clips, run["seed"])
        hear = [
            pipeline.predict_features(encoder, data, clips, run["feature_size"], options.batch_size, n_frames)
            for n_frames in (utils.N_FRAMES, utils.frames_in(SHORT_SECONDS))
        ]
        heard[part] = Heard(clips, hear[0][0], hear[1][0], hear[0][1])
        mean_face = heard[part].faces.mean(axis=0) if part == "train" else mean_face
        rankings[part] = retrieval.rank(heard[part].voices - centre, heard[part].faces - centre, heard[part].videos)
        gallery = options.gallery
        if gallery and gallery > rankings[part].others.min() + 1:
            print(f"evaluate: fewer than --gallery {gallery} {part} faces of different videos, no row for it", file=sys.stderr)
            gallery = None
        rows[part] = score(heard[part], rankings[part], centre, mean_face, options.k, gallery)
    found = find_leaks(run, data, {part: of_part.clips for part, of_part in heard.items()}, rankings, heard)
    if decode and "test" in heard:
        found += leaks.of_videos(heard["test"].clips, decode.learned, "used to fit the face decoder")
    utils.write_json(folder / "metrics.json", {"parts": rows, "leaks": found})
    utils.save_bytes(folder / "results.md", (results(run, folder, rows, found) + "\n").encode())
    print(as_text(table(rows)))
    print("\n".join(notes(rows)))
    for leak in found:
        print(f"LEAK? {leak}", file=sys.stderr)
    for path in [folder / "results.md", *draw_pictures(folder, data, heard, rankings, centre, options.rows, decode)]:
        print(path)


# ----------------------------------------------------------------------------------------------------------------------
# A person with a recording.


def hear(encoder, recording: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Hear a recording of any length: windows of CLIP_SAMPLES, WINDOW_HOP apart, the last one at its end, averaged.

    Args:
        encoder: the voice encoder.
        recording: float32 (samples,), CLIP_SAMPLES at least.
        centre: float32 (D,).

    Returns:
        float32 (D,): the mean direction of the windows' features as seen from the centre, of length 1.
    """
    import model
    from model import tf

    last = len(recording) - CLIP_SAMPLES
    starts = sorted({*range(0, last, WINDOW_HOP), last})
    windows = [recording[start : start + CLIP_SAMPLES] for start in starts]
    listen = tf.function(model.waveform_encoder(encoder), reduce_retracing=True)
    features = np.concatenate([listen(np.stack(windows[i : i + 8])).numpy() for i in range(0, len(windows), 8)])
    return retrieval.normalise(retrieval.normalise(features - centre).mean(axis=0, keepdims=True))[0]


def photo_features(paths: list[Path], feature_size: int, one_face: bool) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Find the faces in photos and compute their features, as preprocess.py does of clips.

    Args:
        paths: of the photos; one without a face is left out, with a line on stderr.
        feature_size: of the features that the run was trained on.
        one_face: whether a photo with none or several is an error.

    Returns:
        Names; float32 (n, feature_size); and faces, each uint8 (FACE_SIZE, FACE_SIZE, 3), RGB.

    Raises:
        InputError: if there is no face at all.
    """
    import vggface

    describe, names, crops, features = vggface.face_describer(feature_size), [], [], []
    for path in tqdm(paths, desc="photos", unit="photo", leave=False, disable=None):
        try:
            photo, boxes = media.faces_in_photo(path)
            if one_face and len(boxes) > 1:
                raise InputError(f"{path}: expected one face, found {len(boxes)}; cut out the one that is meant")
        except InputError as error:
            if one_face:
                raise
            print(f"evaluate: left out: {error}", file=sys.stderr)
            continue
        for number, box in enumerate(boxes, 1):
            names.append(path.name if len(boxes) == 1 else f"{path.name}, face {number} from the left")
            crops.append(media.crop_face(photo, box))
        features.append(describe([(photo, box) for box in boxes]))
    if not names:
        raise InputError(f"{paths[0].parent}: expected photos with faces, found none among {len(paths)}")
    return names, np.concatenate(features), crops


def answer(options: Options, folder: Path, run: dict, data: Path, decode) -> None:
    """Say whose faces the recordings' voices are like: of the data, of a folder of photos, or which of two."""
    centre = run["centre"]
    recordings = [media.read_recording(path) for path in options.audio]
    if options.gallery_faces or options.match:
        paths = list(options.match) or media.photos_under(options.gallery_faces)
        if not paths:
            raise InputError(f"{options.gallery_faces}: expected a folder of photos ({', '.join(media.PHOTOS)}), found none")
        names, faces, crops = photo_features(paths, run["feature_size"], bool(options.match))
        image = crops.__getitem__
    else:
        names = utils.draw_clips(utils.ready_clips(data), options.clips, run["seed"])
        faces = np.stack([utils.load_embedding(data, clip, run["feature_size"]) for clip in names])

        def image(number):
            return media.read_face(data, names[number])

    encoder = runs.load_encoder(folder, run)
    voices = np.stack([hear(encoder, recording, centre) for recording in recordings])
    numbers, cosines = retrieval.most_similar(voices, faces - centre, min(TOP, len(faces)))
    for path, of_voice, of_cosines in zip(options.audio, numbers, cosines):
        if options.match:
            margin = of_cosines[0] - of_cosines[1]
            print(f"{path}: {options.match[of_voice[0]]} rather than {options.match[of_voice[1]]}, ", end="")
            print(f"cosines {of_cosines[0]:.3f} and {of_cosines[1]:.3f}, margin {margin:.3f}")
        else:
            print(f"{path}: the most similar of {len(names)} faces")
            for place, (number, cosine) in enumerate(zip(of_voice, of_cosines), 1):
                print(f"  {place}  cosine {cosine:.3f}  {names[number]}")
    columns = {"recording": [recording.name for recording in options.audio]}
    if decode:
        faces_heard = decode.heard(voices, centre)
        columns["the face it hears"] = [Shown(picture, "") for picture in faces_heard]
        for path, picture in zip(heard_paths(folder, options.audio), faces_heard):
            utils.save_bytes(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
            print(path)
    rows = [Query(list(left), found) for *left, found in zip(*columns.values(), as_shown(numbers, cosines, image))]
    path = folder / "audio.png"
    pictures.draw_grid(path, f"the most similar of {len(names)} faces", list(columns), "retrieved from the voice", rows)
    print(path)


def heard_paths(folder: Path, recordings) -> list[Path]:
    """Return where the pictures of the faces heard in recordings go: heard/<name>.png; <name>-2 where names are equal."""
    paths = []
    for recording in recordings:
        names = itertools.chain([recording.stem], (f"{recording.stem}-{n}" for n in itertools.count(2)))
        paths.append(next(path for name in names if (path := folder / "heard" / f"{name}.png") not in paths))
    return paths


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folder = utils.run_folder(options.run)
    run = runs.read_run(folder)
    data = options.data or Path(run["data"])
    decode = face_decoder(options, run["feature_size"])
    (answer if options.audio else judge)(options, folder, run, data, decode)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
