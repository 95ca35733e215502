"""Plots."""

from pathlib import Path

import numpy as np

import utils

DPI = 120


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
