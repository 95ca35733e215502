"""Plots of many values at once: the ranks of the true faces, a map of the voices, and the curves of training.

The suffix of a path gives the format: png, pdf or svg. The same content gives the same bytes.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

import utils
from judging.pitch import HIGHEST_HZ, LOWEST_HZ

FORMATS = ("png", "pdf", "svg")
DPI = 200
NO_DATE = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # for each format
RANK_BINS = 10  # tenths of the gallery
PITCH_TICKS = (70, 100, 150, 200, 300, 400)  # Hz


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, in the format of the path's suffix."""
    kind = path.suffix[1:]
    with utils.replacing(path) as temporary, matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=NO_DATE[kind])


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation.


def rank_shares(ranks: np.ndarray) -> np.ndarray:
    """Return the share of voices in each tenth of the gallery, float (RANK_BINS,), sum 1.

    Rank r of n covers [(r - 1) / n, r / n] of the gallery: in a small gallery its share is spread over several tenths.

    Args:
        ranks: int (N,), in a gallery of N faces.
    """
    edges = np.linspace(0, 1, RANK_BINS + 1)
    first, last = ((ranks[:, None] - shift) / len(ranks) for shift in (1, 0))  # (N, 1)
    overlap = np.clip(np.minimum(last, edges[1:]) - np.maximum(first, edges[:-1]), 0, None)  # (N, RANK_BINS)
    return overlap.sum(axis=0)  # a rank covers 1 / N


def draw_ranks(path: Path, ranks: dict[str, np.ndarray]) -> None:
    """Plot how many voices have their true face at which rank, for each part of the split, beside chance.

    Args:
        path: file to write.
        ranks: of each part, int (N,), in a gallery of N faces.
    """
    figure = Figure(figsize=(4.2 * len(ranks), 3.6), layout="constrained")
    panels = figure.subplots(1, len(ranks), squeeze=False, sharey=True)[0]
    width = 100 / RANK_BINS
    for axes, (part, of_part) in zip(panels, ranks.items()):
        gallery = len(of_part)
        axes.bar(width * (np.arange(RANK_BINS) + 0.5), 100 * rank_shares(of_part), width, color="C0", edgecolor="white")
        axes.axhline(width, color="black", linestyle=":", linewidth=1, label="chance")
        median = np.median(of_part)
        axes.axvline(100 * (median - 0.5) / gallery, color="C1", linewidth=1.5, label=f"median rank {median:g}")
        axes.set(xlabel="rank of the true face, % of the gallery", xlim=(0, 100), title=f"{part}, {gallery} faces")
    panels[0].set_ylabel("% of the voices")
    for axes in panels:
        legend_below(axes)
    save_figure(figure, path)


def legend_below(axes) -> None:
    """Put a legend below a panel, where it covers nothing."""
    n = len(axes.get_legend_handles_labels()[0])
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=min(n, 3), frameon=False)


def draw_map(path: Path, voices: np.ndarray, faces: np.ndarray, pitches: np.ndarray) -> None:
    """Plot predictions and true faces in the plane in which the predictions differ most, coloured by the voices' pitch.

    Args:
        path: file to write.
        voices, faces: float (N, D), of length 1 as seen from the centre.
        pitches: float (N,), of the voices, Hz; nan where none was found, shown in grey.
    """
    mean = voices.mean(axis=0)
    _, strengths, axes_of_voices = np.linalg.svd(voices - mean, full_matrices=False)
    plane = axes_of_voices[:2]  # the first two principal components
    shares = 100 * strengths[:2] ** 2 / max((strengths**2).sum(), 1e-12)
    points = [(features - mean) @ plane.T for features in (voices, faces)]  # (N, 2) each
    reach = 1.06 * max(np.abs(of_panel).max() for of_panel in points) + 1e-6
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    known = np.isfinite(pitches)
    for axes, of_panel, title in zip(panels, points, (f"predictions from {len(voices)} voices", "their true faces")):
        unknown = axes.scatter(*of_panel[~known].T, s=14, color="lightgrey", label="no pitch found")
        coloured = axes.scatter(*of_panel[known].T, s=14, c=pitches[known], cmap="viridis", norm=LogNorm(LOWEST_HZ, HIGHEST_HZ))
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    figure.supxlabel(f"1st principal component ({shares[0]:.0f} % of the predictions' variance)", fontsize=10)
    panels[0].set_ylabel(f"2nd principal component ({shares[1]:.0f} %)")
    if not known.all():
        figure.legend(handles=[unknown], loc="outside lower right", fontsize=8, frameon=False)
    bar = figure.colorbar(coloured, ax=panels, label="pitch of the voice, Hz", shrink=0.8)
    bar.ax.yaxis.set_major_locator(FixedLocator(PITCH_TICKS))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter("{x:g}")
    save_figure(figure, path)


# ----------------------------------------------------------------------------------------------------------------------
# Training.


def draw_curves(path: Path, history: list[dict]) -> None:
    """Plot loss and validation recall over the epochs, with the best epoch marked.

    Args:
        path: file to write.
        history: the objects of history.jsonl, one for each epoch.
    """
    epochs = [record["epoch"] for record in history]
    gallery = history[-1]["val_gallery"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    losses, recalls = figure.subplots(1, 2)
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
        axes.axvline(best, color="grey", linewidth=1, label="best epoch")
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(axes)
    save_figure(figure, path)
