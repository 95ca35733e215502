"""Leaks: signs that speakers of the test or validation set are in the training data too, which makes figures too good."""

from pathlib import Path

import cv2
import numpy as np

import utils
from clips import feature_files, media
from judging import published
from judging.parts import Part
from judging.search import most_similar
from utils import normalise

THUMBNAIL = 32  # pixels, side of the pictures that are compared
SAME_FACE = 0.98  # least correlation of two thumbnails of one picture, perhaps compressed twice
SOUND_FRAMES, SOUND_BINS = 13, 16  # spectrogram frames and bins in a cell of the sounds that are compared
SAME_SOUND = 0.95  # least correlation of the cells of one recording, perhaps compressed twice
SHOWN = 3  # examples named for each leak


def thumbnail(data: Path, clip: str) -> np.ndarray:
    """Read a clip's face as a small grey picture, centred and of length 1: float32 (THUMBNAIL ** 2,).

    Raises:
        InputError: as `media.read_face`.
    """
    grey = cv2.cvtColor(media.read_face(data, clip), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return normalise((small - small.mean())[None])[0]


def sound_print(data: Path, clip: str) -> np.ndarray:
    """Read a clip's loudness in cells of time and frequency, each band centred, of length 1: float32 (46 * 16,).

    Raises:
        FileNotFoundError, InputError: as `feature_files.load_spectrogram`.
    """
    spectrogram = feature_files.load_spectrogram(data, clip).astype(np.float32)
    loudness = np.hypot(spectrogram[..., 0], spectrogram[..., 1])  # (frames, bins), compressed
    times, bands = (n // cell for n, cell in zip(loudness.shape, (SOUND_FRAMES, SOUND_BINS)))
    cells = loudness[: times * SOUND_FRAMES, : bands * SOUND_BINS].reshape(times, SOUND_FRAMES, bands, SOUND_BINS).mean((1, 3))
    return normalise((cells - cells.mean(axis=0)).reshape(1, -1))[0]


def _named(clips) -> str:
    clips = list(clips)
    return ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else "")


def of_videos(unseen: list[str], seen: list[str], how: str) -> list[str]:
    """Find unseen clips that belong to videos the network was trained on.

    Args:
        unseen: clips of speakers that should be unseen.
        seen: clips that training used.
        how: the use of the latter, such as "trained on".

    Returns:
        A line for each kind of leak found.
    """
    clips, videos = set(seen), {utils.video_of(clip) for clip in seen}
    same = [clip for clip in unseen if clip in clips]
    related = [clip for clip in unseen if utils.video_of(clip) in videos and clip not in clips]
    found = []
    if same:
        found.append(f"{len(same)} of {len(unseen)} clips were {how}: {_named(same)}")
    if related:
        found.append(f"{len(related)} of {len(unseen)} clips are of videos that were {how}: {_named(related)}")
    return found


def of_copies(data: Path, unseen: list[str], seen: list[str], read, least: float, what: str) -> list[str]:
    """Find unseen clips that are copies of clips, of other videos, that training used.

    Args:
        data: folder of the clips.
        unseen, seen: as of `of_videos`.
        read: `thumbnail` or `sound_print`.
        least: correlation from which two clips count as one.
        what: name of the thing copied, such as "the same picture".

    Returns:
        One line, or none.
    """
    if not unseen or not seen:
        return []
    prints = [np.stack([read(data, clip) for clip in clips]) for clips in (unseen, seen)]
    nearest, correlations = most_similar(*prints, k=1)
    copies = [
        f"{unseen[number]} and {seen[other]}"
        for number, (other, correlation) in enumerate(zip(nearest[:, 0], correlations[:, 0]))
        if correlation >= least and utils.video_of(unseen[number]) != utils.video_of(seen[other])
    ]
    return [f"{len(copies)} of {len(unseen)} clips have {what} as training clips: {_named(copies)}"] if copies else []


def of_recall(part: Part) -> list[str]:
    """Check whether R@1 of unseen speakers is more than the paper's own model could reach in such a gallery.

    Both 95 % intervals must be apart. There is no check where there are too few videos for an interval.

    Returns:
        One line, or none.
    """
    gallery, hits = part.ranking.gallery, part.ranking.ranks == 1
    if gallery > published.PAPER_GALLERY or not part.has_intervals:
        return []
    low, _ = part.mean_interval(hits)
    expected, _, high = published.paper_recall(gallery, 1)
    if low <= high:
        return []
    return [
        f"R@1 is {100 * hits.mean():.1f} % of {gallery} faces (at least {100 * low:.1f} %); the paper's own model, trained on "
        f"1.7 million pairs, would reach {100 * expected:.1f} % (at most {100 * high:.1f} %): real people are not found so "
        "easily, the demo's synthetic ones may be"
    ]


def find_leaks(run: dict, data: Path, parts: dict[str, Part]) -> list[str]:
    """Search for everything that makes the figures of unseen speakers too good.

    Args:
        run: what the run was started with.
        data: folder of the clips.
        parts: of the split, by name.

    Returns:
        A line for each leak found.
    """
    found = []
    for name, others in (("test", ("train", "val")), ("val", ("train",))):
        if name not in parts:
            continue
        clips = parts[name].clips
        for other in others:
            how = "trained on" if other == "train" else "used to choose the epoch"
            found += of_videos(clips, run["clips"][other], how)
            for read, least, what in ((thumbnail, SAME_FACE, "the same picture"), (sound_print, SAME_SOUND, "the same sound")):
                found += of_copies(data, clips, parts[other].clips if other in parts else [], read, least, what)
        found += of_recall(parts[name])
    return list(dict.fromkeys(found))
