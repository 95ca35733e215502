"""The pictures of retrieval that evaluate.py makes (grids of faces, where the true faces rank, a map of the voices), and of
training that train.py makes.

Never imports TensorFlow.
"""

import dataclasses
import textwrap
from pathlib import Path

import numpy as np

import utils
from utils import FFT_SIZE, POWER, SAMPLE_RATE

CELL = 1.0, 1.32  # inches, width and height of a face and what is written below it
GAP = 0.25  # inches, between the true face and those retrieved
COLUMN_GAP = 0.35  # inches, between two columns of queries
ROWS = 6  # queries in a column, at most
TOP = 0.75  # inches, for the titles
DPI = 120
LOWEST_HZ, HIGHEST_HZ = 70, 400  # of a voice's pitch
VOICED = 0.25  # of the height of the cepstrum's peak, from which a frame has a pitch


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    with utils.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    pyplot.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# ----------------------------------------------------------------------------------------------------------------------
# Grids.


@dataclasses.dataclass(frozen=True)
class Shown:
    """A face in a grid."""

    image: np.ndarray  # uint8 (H, W, 3), RGB
    text: str  # below it
    true: bool = False  # framed in green


@dataclasses.dataclass(frozen=True)
class Query:
    """A voice in a grid."""

    left: list[Shown | str]  # its true face, or what is written in its place, and what else stands there
    found: list[Shown]  # the most similar first


def draw_grid(path: Path, title: str, left: list[str], right: str, queries: list[Query]) -> None:
    """Draw what voices retrieve, as the slides do: the true face, then those found; ROWS queries a column at most.

    Args:
        path: PNG to write.
        title: of the picture.
        left, right: what is written over each of the faces at the left, and over those found.
        queries: at least one.
    """
    pyplot = _pyplot()
    width, height = CELL
    n_columns = -(-len(queries) // ROWS)
    n_rows = -(-len(queries) // n_columns)
    n_left, n_found = len(left), max(len(query.found) for query in queries)
    column_width = (n_left + n_found) * width + GAP
    size = n_columns * column_width + (n_columns - 1) * COLUMN_GAP + 0.2, n_rows * height + TOP
    figure = pyplot.figure(figsize=size)

    def show(x, y, shown):  # inches from the left and from the top, of the cell
        box = x + 0.03 * width, size[1] - y - 0.94 * width, 0.94 * width, 0.94 * width
        axes = figure.add_axes([box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]])
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=False)
        if isinstance(shown, str):
            axes.text(0.5, 0.5, textwrap.fill(shown, 13), ha="center", va="center", fontsize=8)
            return
        axes.imshow(shown.image)
        axes.set_xlabel(shown.text, fontsize=7, labelpad=2, linespacing=1.1)
        for spine in axes.spines.values():
            spine.set(visible=shown.true, color="green", linewidth=3)

    for number, query in enumerate(queries):
        column, row = divmod(number, n_rows)
        x, y = 0.1 + column * (column_width + COLUMN_GAP), TOP + row * height
        if row == 0:
            top = 1 - (TOP - 0.12) / size[1]
            titles = [(place * width + width / 2, text) for place, text in enumerate(left)]
            for at, text in [*titles, (n_left * width + GAP + n_found * width / 2, right)]:
                figure.text((x + at) / size[0], top, text, ha="center", va="bottom", fontsize=9)
        for place, shown in enumerate(query.left):
            show(x + place * width, y, shown)
        for place, shown in enumerate(query.found, n_left):
            show(x + GAP + place * width, y, shown)
    figure.suptitle(title, fontsize=11, y=1 - 0.15 / size[1], va="top")
    _save(figure, path)


# ----------------------------------------------------------------------------------------------------------------------
# All voices at once.


def draw_ranks(path: Path, ranks: dict[str, np.ndarray]) -> None:
    """Draw how many voices have their true face at which rank, each part of the split beside chance.

    Args:
        path: PNG to write.
        ranks: of each part, int (N,), in a gallery of N.
    """
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(
        1, len(ranks), figsize=(4.2 * len(ranks), 3.2), layout="constrained", squeeze=False, sharey=True
    )
    bins = np.linspace(0, 100, 11)
    for axes, (part, of_part) in zip(panels[0], ranks.items()):
        gallery = len(of_part)
        places = 100 * (of_part - 0.5) / gallery
        axes.hist(places, bins, weights=np.full(len(places), 100 / len(places)), color="C0", edgecolor="white")
        axes.axhline(10, color="black", linestyle=":", linewidth=1, label="chance")
        axes.axvline(np.median(places), color="C1", linewidth=1.5, label=f"median rank {np.median(of_part):g}")
        axes.set(xlabel="rank of the true face, % of the gallery", xlim=(0, 100), title=f"{part}, {gallery} faces")
        axes.legend(fontsize=8)
    panels[0, 0].set_ylabel("% of the voices")
    _save(figure, path)


def pitch(spectrogram: np.ndarray) -> float:
    """Estimate a voice's pitch: the median over the voiced frames of the cepstrum's peak, Hz; nan if no frame is voiced.

    Args:
        spectrogram: float (T, N_BINS, 2), of `model.spectrogram`.

    Source: Noll, "Cepstrum pitch determination", JASA 1967.
    """
    parts = np.abs(spectrogram.astype(np.float64)) ** (1 / POWER)
    power = (parts**2).sum(axis=-1)  # (T, N_BINS)
    loud = power.sum(axis=1)
    power = power[loud > 0.05 * loud.max()] if loud.max() > 0 else power[:0]
    if len(power) == 0:
        return float("nan")
    power = power / power.max(axis=1, keepdims=True)
    cepstrum = np.fft.irfft(np.log(power + 1e-5), FFT_SIZE, axis=1)  # (T, FFT_SIZE), over samples
    first = SAMPLE_RATE // HIGHEST_HZ
    peaks = cepstrum[:, first : SAMPLE_RATE // LOWEST_HZ + 1]
    place = peaks.argmax(axis=1)
    voiced = peaks.max(axis=1) > VOICED
    return float(np.median(SAMPLE_RATE / (first + place[voiced]))) if voiced.any() else float("nan")


def draw_map(path: Path, voices: np.ndarray, faces: np.ndarray, pitches: np.ndarray) -> None:
    """Draw what was heard, and the true faces, in the plane where the voices' features differ most, coloured by pitch.

    Args:
        path: PNG to write.
        voices, faces: float (N, D), of length 1 as seen from the centre.
        pitches: of the voices, Hz, float (N,); nan is grey.
    """
    pyplot = _pyplot()
    mean = voices.mean(axis=0)
    _, strengths, axes_of_voices = np.linalg.svd(voices - mean, full_matrices=False)
    plane = axes_of_voices[:2]  # the two first principal components
    shares = 100 * strengths[:2] ** 2 / max((strengths**2).sum(), 1e-12)
    figure, panels = pyplot.subplots(1, 2, figsize=(9.4, 4), layout="constrained")
    known = np.isfinite(pitches)
    for axes, features, title in zip(
        panels, (voices, faces), (f"what was heard of {len(voices)} people", "their true faces, the same plane")
    ):
        points = (features - mean) @ plane.T  # (N, 2)
        axes.scatter(*points[~known].T, s=14, color="lightgrey")
        coloured = axes.scatter(*points[known].T, s=14, c=pitches[known], cmap="viridis", vmin=90, vmax=250)
        axes.set(xlabel=f"1st component ({shares[0]:.0f} % of the voices' variance)", title=title)
        axes.set_ylabel(f"2nd ({shares[1]:.0f} %)")
    figure.colorbar(coloured, ax=panels, label="pitch of the voice, Hz")
    _save(figure, path)


# ----------------------------------------------------------------------------------------------------------------------
# Training.


def draw_curves(path: Path, history: list[dict]) -> None:
    """Draw loss and validation recall over the epochs, the best epoch marked.

    Args:
        path: PNG to write.
        history: objects of history.jsonl, one an epoch.
    """
    pyplot = _pyplot()
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    gallery = history[-1]["val_gallery"]
    figure, (losses, recalls) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [record[name] for record in history], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="loss", title="loss")
    for k, colour in zip(history[-1]["val_recall"], ("C0", "C1", "C2")):
        percent = [100 * record["val_recall"][k] for record in history]
        recalls.plot(epochs, percent, colour, marker=".", label=f"R@{k}")
        recalls.axhline(100 * history[-1]["val_chance"][k], color=colour, linestyle=":", linewidth=1)
    recalls.plot(epochs, [100 * record["val_matching"] for record in history], "C3", marker=".", label="1:2 matching")
    recalls.axhline(50, color="C3", linestyle=":", linewidth=1)
    recalls.set(xlabel="epoch", ylabel="%", ylim=(0, 100), title=f"validation, {gallery} faces (dotted: chance)")
    best = min(history, key=lambda record: record["val_loss"])["epoch"]
    for axes in (losses, recalls):
        axes.axvline(best, color="grey", linewidth=1, label="best epoch" if axes is recalls else None)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*recalls.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    losses.legend(loc="upper right", fontsize=8)
    _save(figure, path)
