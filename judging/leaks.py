"""What makes a figure too good: whether anything of the people that a network is judged by was there when it learned.

Never imports TensorFlow.
"""

from pathlib import Path

import cv2
import numpy as np

import utils
from clips import feature_files, media
from judging import published
from judging.intervals import mean_interval
from judging.ranks import Ranking
from judging.search import most_similar
from judging.tables import Heard
from utils import normalise

THUMBNAIL = 32  # pixels, side: what a face is compared at
SAME_FACE = 0.98  # correlation of two thumbnails from which they are one picture, compressed twice perhaps
SOUND_FRAMES, SOUND_BINS = 13, 16  # spectrogram frames and bins in a cell of what sounds are compared at
SAME_SOUND = 0.95  # correlation of two sounds' cells from which they are one recording
SHOWN = 3  # examples named of each leak


def thumbnail(data: Path, clip: str) -> np.ndarray:
    """Read a clip's face as a small grey picture, its mean taken away, of length 1: float32 (THUMBNAIL ** 2,).

    Raises:
        InputError: as `media.read_face`.
    """
    grey = cv2.cvtColor(media.read_face(data, clip), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return normalise((small - small.mean())[None])[0]


def sound_print(data: Path, clip: str) -> np.ndarray:
    """Read how loud a clip is in cells of time and frequency, each band's mean taken away, of length 1: float32 (46 * 16,).

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


def of_videos(unseen: list[str], learned: list[str], how: str) -> list[str]:
    """Look for clips of videos that the network has learned from.

    Args:
        unseen: clips of people that are said to be unseen.
        learned: clips that it learned from.
        how: what they were used for.

    Returns:
        What was found: a line, or none.
    """
    clips, videos = set(learned), {utils.video_of(clip) for clip in learned}
    same = [clip for clip in unseen if clip in clips]
    related = [clip for clip in unseen if utils.video_of(clip) in videos and clip not in clips]
    found = []
    if same:
        found.append(f"{len(same)} of {len(unseen)} clips were {how}: {_named(same)}")
    if related:
        found.append(f"{len(related)} of {len(unseen)} clips are of videos that were {how}: {_named(related)}")
    return found


def of_copies(data: Path, unseen: list[str], learned: list[str], read, least: float, what: str) -> list[str]:
    """Look for clips that are copies of other videos' clips, from which the network has learned.

    Args:
        data: folder of the clips.
        unseen, learned: clips.
        read: `thumbnail` or `sound_print`.
        least: correlation from which two are one.
        what: they are.

    Returns:
        What was found: a line, or none.
    """
    if not unseen or not learned:
        return []
    prints = [np.stack([read(data, clip) for clip in clips]) for clips in (unseen, learned)]
    nearest, correlations = most_similar(*prints, k=1)
    copies = [
        f"{unseen[number]} and {learned[other]}"
        for number, (other, correlation) in enumerate(zip(nearest[:, 0], correlations[:, 0]))
        if correlation >= least and utils.video_of(unseen[number]) != utils.video_of(learned[other])
    ]
    return [f"{len(copies)} of {len(unseen)} clips have {what} as clips learned from: {_named(copies)}"] if copies else []


def of_recall(ranking: Ranking, videos: list[str]) -> list[str]:
    """Look whether R@1 is more than the paper's own model could reach in such a gallery, by both's 95 % intervals.

    Args:
        ranking: of people that are said to be unseen.
        videos: of each clip.

    Returns:
        What was found: a line, or none.
    """
    if ranking.gallery > published.PAPER_GALLERY:
        return []
    hits = ranking.ranks == 1
    low, _ = mean_interval(hits, videos)
    expected, _, high = published.paper_recall(ranking.gallery, 1)
    if low <= high:
        return []
    return [
        f"R@1 is {100 * hits.mean():.1f} % of {ranking.gallery} (at least {100 * low:.1f} %); the paper's own model, with 1.7 "
        f"million pairs, would reach {100 * expected:.1f} % ({100 * high:.1f} % at most): real people are not so easily found, "
        "the demo's may be"
    ]


def find_leaks(run: dict, data: Path, clips: dict[str, list[str]], rankings: dict, heard: dict[str, Heard]) -> list[str]:
    """Look for what makes figures of unseen people too good. Returns a line for each thing found; see `leaks`."""
    found = []
    for part, learned in (("test", ("train", "val")), ("val", ("train",))):
        if part not in clips:
            continue
        for other in learned:
            how = "trained on" if other == "train" else "used to choose the epoch"
            found += of_videos(clips[part], run["clips"][other], how)
            for read, least, what in (
                (thumbnail, SAME_FACE, "the same picture"),
                (sound_print, SAME_SOUND, "the same sound"),
            ):
                found += of_copies(data, clips[part], clips.get(other, []), read, least, what)
        found += of_recall(rankings[part], heard[part].videos)
    return list(dict.fromkeys(found))
