"""Judge a trained voice encoder by face retrieval: each voice looks for its face among all faces of its part of the split.

Reads checkpoints/<run>/ of train.py and the data that it was trained on. Prints recall at k, for training, validation and
test people, and writes to checkpoints/<run>/

    metrics.json           the same figures
    first_hit.png          voices whose true face is retrieved first, with the five most similar faces
    in_top_5.png           voices whose true face is in the top 5, but not first
    not_in_top_100.png     voices whose true face is not in the top 100 (75, 50, ... in a gallery where none is that far down)

    python evaluate.py --k 1 5 10
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

import utils
from utils import InputError, check, option

MISS_LADDER = (100, 75, 50, 25, 10, 5)  # the third picture shows voices beyond the first of these that has any
TOP = 5  # faces shown for a voice
PART_NAMES = {"train": "Train", "val": "Val", "test": "Test"}


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = option("name of the run: its folder is checkpoints/<run>; or a path", "base")
    data: Path | None = option("folder that preprocess.py wrote (default: the one the run was trained on)", None)
    k: tuple[int, ...] = option("sizes of the retrieved list", (1, 5, 10, 25, 50, 75, 100), nargs="+", metavar="K")
    batch_size: int = option("clips in a pass of the network", 8)
    rows: int = option("voices in a picture, at most", 6)

    def __post_init__(self):
        check(all(k >= 1 for k in self.k), f"--k: expected 1 or more, found {' '.join(map(str, self.k))}")
        check(self.batch_size >= 1, f"--batch-size: expected at least 1, found {self.batch_size}")
        check(self.rows >= 1, f"--rows: expected at least 1, found {self.rows}")


# ----------------------------------------------------------------------------------------------------------------------
# The network.


def read_run(folder: Path) -> dict:
    """Read what a run was trained with: train.py's options, and `feature_size`.

    Raises:
        InputError: if there is no run, or its options are broken.
    """
    path = folder / utils.OPTIONS
    if not path.exists():
        raise InputError(f"{path}: expected the options of a run, found no such file; run train.py, or name --run")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return {name: run[name] for name in ("data", "seed", "width", "feature_size", "loss")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the options of a run, found {error!r}; run train.py again") from error


def load_encoder(folder: Path, feature_size: int, width: float):
    """Build the voice encoder with the best weights of a run.

    Raises:
        InputError: if they are missing or do not fit.
    """
    import model

    path = folder / utils.BEST_WEIGHTS
    if not path.exists():
        raise InputError(f"{path}: expected the weights of a run, found no such file; let train.py end its first epoch")
    encoder = model.voice_encoder(feature_size, width)
    try:
        model.load_weights(encoder, path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: expected weights of width {width}, {feature_size} outputs, as options.json beside it says; {reason}"
        ) from error
    return encoder


# ----------------------------------------------------------------------------------------------------------------------
# The table.


def retrieval_row(voices: np.ndarray, faces: np.ndarray, centre: np.ndarray, mean_face: np.ndarray, ks) -> dict:
    """Score one part of the split.

    Args:
        voices: float32 (N, D), predicted features.
        faces: float32 (N, D), features of the true faces, the gallery.
        centre: float32 (D,), where the run sees the features from: similar are those in the same direction from there.
        mean_face: float32 (D,), the mean feature of the training faces: what a network that hears nothing would predict.
        ks: sizes of the retrieved list.

    Returns:
        `gallery`, its size; `recall`, `chance` and `mean_face`, each a map from k to a share in [0, 1]; `median_rank`.
    """
    ranks = utils.retrieval_ranks(voices - centre, faces - centre)
    mean_ranks = utils.retrieval_ranks(mean_face[None], faces)
    return {
        "gallery": len(faces),
        "recall": {k: utils.recall_at_k(ranks, k) for k in ks},
        "chance": {k: utils.chance_at_k(len(faces), k) for k in ks},
        "mean_face": {k: utils.recall_at_k(mean_ranks, k) for k in ks},
        "median_rank": float(np.median(ranks)),
    }


def table(rows: dict[str, dict]) -> str:
    """Set rows of `retrieval_row` as the slides' table: recall at k in %, chance and the mean face below each."""
    ks = list(next(iter(rows.values()))["recall"])
    lines = [f"{'recall in %':14}{'gallery':>9}" + "".join(f"{f'R@{k}':>8}" for k in ks) + f"{'median rank':>13}"]
    for part, row in rows.items():
        for name, scores in ((PART_NAMES[part], row["recall"]), ("  chance", row["chance"]), ("  mean face", row["mean_face"])):
            line = f"{name:14}" + (f"{row['gallery']:9}" if scores is row["recall"] else " " * 9)
            line += "".join(f"{100 * scores[k]:8.1f}" for k in ks)
            lines.append(line + (f"{row['median_rank']:13g}" if scores is row["recall"] else ""))
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# The pictures.


def pick_queries(ranks: np.ndarray):
    """Choose the voices that the three pictures show.

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


def draw_grid(path: Path, title: str, queries, voices: np.ndarray, faces: np.ndarray, ranks: np.ndarray, images) -> None:
    """Draw voices' true faces and the faces most similar to what was heard, as the slides do.

    Args:
        path: PNG to write.
        title: of the picture.
        queries: voices to show, a row each, int (n,), n >= 1.
        voices, faces: float32 (N, D), predicted features and the gallery.
        ranks: int (N,), of the true faces.
        images: function from a number in the gallery to its face, uint8 (H, W, 3), RGB.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    similarity = utils.normalise(voices[queries]) @ utils.normalise(faces).T  # (n, N)
    shown = min(TOP, len(faces))
    columns = [0.0] + [1.3 + column for column in range(shown)]  # a gap sets the true face apart
    figure = pyplot.figure(figsize=(1.45 * (columns[-1] + 1) + 0.3, 1.75 * len(queries) + 0.8))
    rows_height = 1 - 0.8 / figure.get_figheight()
    width, height = 0.96 / (columns[-1] + 1), rows_height / len(queries)

    def show(row, column, number, text, frame=None):
        box = (0.02 + columns[column] * width, rows_height - (row + 1) * height + 0.17 * height, 0.94 * width, 0.81 * height)
        axes = figure.add_axes(box)
        axes.imshow(images(number))
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(text, fontsize=8, labelpad=3)
        for spine in axes.spines.values():
            spine.set(visible=frame is not None, color=frame, linewidth=3)

    for row, query in enumerate(queries):
        show(row, 0, query, f"true face: rank {ranks[query]} of {len(faces)}")
        for column, number in enumerate(np.argsort(-similarity[row], kind="stable")[:shown], 1):
            show(row, column, number, f"{column}: cosine {similarity[row, number]:.3f}", "green" if number == query else None)
    figure.suptitle(f"{title}, among {len(faces)}", fontsize=11, y=1 - 0.18 / figure.get_figheight())
    header = 1 - 0.62 / figure.get_figheight()
    figure.text(0.02 + 0.47 * width, header, "true face", ha="center", fontsize=9)
    figure.text(
        0.02 + (columns[1] + shown / 2) * width, header, "retrieved from the voice, most similar first", ha="center", fontsize=9
    )
    with utils.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def read_face(data: Path, clip: str) -> np.ndarray:
    """Read a clip's face crop. Returns uint8 (FACE_SIZE, FACE_SIZE, 3), RGB. Raises InputError."""
    import cv2

    path = utils.face_path(data, clip)
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"{path}: expected a JPEG, found something else; delete it, rerun preprocess.py")
    return image[..., ::-1]


# ----------------------------------------------------------------------------------------------------------------------


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folder = utils.run_folder(options.run)
    run = read_run(folder)
    data = options.data or Path(run["data"])
    clips = utils.split_clips(utils.ready_clips(data), run["seed"])
    if not clips["train"]:
        raise InputError(f"{data}: expected training clips, found none; is it the data that {folder} was trained on?")

    centre = utils.load_array(folder / utils.CENTRE, np.float32, (run["feature_size"],))
    encoder = load_encoder(folder, run["feature_size"], run["width"])

    import model

    rows, mean_face = {}, None
    for part, part_clips in clips.items():
        if not part_clips:
            print(f"evaluate: no {part} clips in {data}, no row for them", file=sys.stderr)
            continue
        voices, faces = model.predict_features(encoder, data, part_clips, run["feature_size"], options.batch_size)
        mean_face = faces.mean(axis=0) if part == "train" else mean_face
        rows[part] = retrieval_row(voices, faces, centre, mean_face, options.k)
    utils.write_json(folder / "metrics.json", rows)
    print(table(rows))

    if "test" in rows:
        voices, faces = voices - centre, faces - centre
        ranks = utils.retrieval_ranks(voices, faces)
        pictures = pick_queries(ranks)
        for old in [*folder.glob("not_in_top_*.png"), *(folder / f"{name}.png" for name, _, _ in pictures)]:
            old.unlink(missing_ok=True)  # of an earlier evaluation
        for name, title, queries in pictures:
            if len(queries) == 0:
                print(f"evaluate: no test voice with its {title}, no picture", file=sys.stderr)
                continue
            path = folder / f"{name}.png"
            spread = queries[np.linspace(0, len(queries) - 1, min(options.rows, len(queries))).round().astype(int)]
            draw_grid(path, title, spread, voices, faces, ranks, lambda n: read_face(data, clips["test"][n]))
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
