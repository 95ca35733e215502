"""Leaks: signs that speakers of the test or validation set are in the training data too, which makes figures too good."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from clips import feature_files, packs, prints
from judging import published
from judging.parts import Part

KINDS = "the same picture", "the same sound"
LEAST = 0.98, 0.95  # least correlation of two thumbnails, and of two sound prints, of one clip, perhaps compressed twice
BLOCK = 4096  # prints, or face features, of training clips in memory at a time
# Distance of two of dlib's features up to which they are one person's. Of 7.9 million pairs of people in LFW, four are as near,
# each one person under two names; of pairs of clips of one person, in several videos, half are.
SAME_FACE = 0.35
MOST_ALIKE = 1e-3  # share of pairs of training people that are as near, above which faces do not tell these people apart
COMPARED = 2000  # training faces, at most, by which that is told
SHOWN = 3  # examples named for each leak


def _named(clips) -> str:
    clips = list(clips)
    return ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else "")


def of_people(unseen: list[str], seen: list[str], how: str) -> list[str]:
    """Find unseen clips of people that the network was trained on.

    Args:
        unseen: clips of speakers that should be unseen.
        seen: clips that training used, or their `utils.hashed` names.
        how: the use of the latter, such as "trained on".

    Returns:
        A line for each kind of leak found.
    """
    clips, people = set(seen), {utils.person_of(clip) for clip in seen}
    names = {clip: (clip, utils.hashed(clip)) for clip in unseen}
    same = [clip for clip in unseen if not clips.isdisjoint(names[clip])]
    known = set(same)
    related = [clip for clip in unseen if not people.isdisjoint(map(utils.person_of, names[clip])) and clip not in known]
    found = []
    if same:
        found.append(f"{len(same)} of {len(unseen)} clips were {how}: {_named(same)}")
    if related:
        found.append(f"{len(related)} of {len(unseen)} clips are of people that were {how}: {_named(related)}")
    return found


def copies(data: Path, unseen: list[str], seen: list[str]) -> list[dict[int, str]]:
    """Find unseen clips that are copies of clips, of other people, that training used. All of these are compared, in blocks.

    Args:
        data: folder of the clips.
        unseen, seen: as of `of_people`.

    Returns:
        For pictures and for sounds, the clip that was copied, by the number of the unseen clip.
    """
    if not unseen or not seen:
        return [{}, {}]
    numbers = {utils.person_of(clip): number for number, clip in enumerate(unseen)}
    ours, people = prints.load_all(data, unseen), np.array([numbers[utils.person_of(clip)] for clip in unseen])
    best, found = [np.array(least, np.float32).repeat(len(unseen)) for least in LEAST], [{}, {}]
    progress = tqdm(desc="search for copies", total=len(seen), unit="clip", leave=False, disable=None)
    with progress:
        for start in range(0, len(seen), BLOCK):
            block = seen[start : start + BLOCK]
            same_person = people[:, None] == np.array([numbers.get(utils.person_of(clip), -1) for clip in block])
            for of_ours, of_block, most, copied in zip(ours, prints.load_all(data, block), best, found):
                correlations = of_ours @ of_block.T
                correlations[same_person] = -1
                nearest = correlations.argmax(axis=1)
                correlation = correlations[np.arange(len(unseen)), nearest]
                for number in np.flatnonzero(correlation >= most):
                    most[number], copied[number] = correlation[number], block[nearest[number]]
            progress.update(len(block))
    return found


def of_copies(clips: list[str], found: list[dict[int, str]]) -> list[str]:
    """Format the `copies` of training clips among unseen clips as a line for each kind."""
    lines = []
    for what, copied in zip(KINDS, found):
        pairs = [f"{clips[number]} and {copied[number]}" for number in sorted(copied)]
        if pairs:
            lines.append(f"{len(pairs)} of {len(clips)} clips have {what} as training clips: {_named(pairs)}")
    return lines


def same_faces(data: Path, unseen: list[str], seen: list[str]) -> dict[int, str]:
    """Find unseen clips with the face of a person, of another name, that training used; by dlib's features.

    There is no such search where many training people are as near to each other, as the demo's synthetic people are.

    Args:
        data, unseen, seen: as of `copies`.

    Returns:
        The nearest of the training clips, by the number of the unseen clip.
    """

    def feature(clip):
        return feature_files.load_embedding(data, clip, utils.FEATURE_SIZE["dlib"])

    def features(clips):
        return np.stack([*packs.in_order(feature, clips)])

    def distances(some, others):
        squares = (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * some @ others.T
        return np.sqrt(np.maximum(squares, 0))

    if not unseen or not seen:
        return {}
    sample = utils.sample_clips(seen, COMPARED, 0)
    faces, people = features(sample), np.array([utils.person_of(clip) for clip in sample])
    others = people[:, None] != people
    if (distances(faces, faces)[others] <= SAME_FACE).sum() > MOST_ALIKE * others.sum():
        return {}
    ours, people = features(unseen), np.array([utils.person_of(clip) for clip in unseen])
    nearest, found = np.full(len(unseen), np.float32(SAME_FACE)), {}
    for start in range(0, len(seen), BLOCK):
        block = seen[start : start + BLOCK]
        distance = distances(ours, features(block))
        distance[people[:, None] == np.array([utils.person_of(clip) for clip in block])] = np.inf
        best = distance.argmin(axis=1)
        for number in np.flatnonzero(distance[np.arange(len(unseen)), best] <= nearest):
            nearest[number], found[number] = distance[number, best[number]], block[best[number]]
    return found


def of_same_faces(clips: list[str], found: dict[int, str]) -> list[str]:
    """Format the `same_faces` of unseen clips as a line, or none."""
    if not found:
        return []
    pairs = _named(f"{clips[number]} and {found[number]}" for number in sorted(found))
    return [f"{len(found)} of {len(clips)} clips show the face of a training clip's person, under another name: {pairs}"]


def of_recall(part: Part) -> list[str]:
    """Check whether R@1 of unseen speakers is more than the paper's own model could reach in such a gallery.

    Both 95 % intervals must be apart. There is no check where there are too few people for an interval.

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


def find_leaks(run: dict, data: Path, seen: dict[str, list[str]], parts: dict[str, Part]) -> list[str]:
    """Search for everything that makes the figures of unseen speakers too good.

    Args:
        run: what the run was started with.
        data: folder of clips.
        seen: names of those in the folder that the run trains on, "train", and validates on, "val".
        parts: of the split, by name.

    Returns:
        A line for each leak found.
    """
    found = []
    unseen = {name: parts[name].clips for name in ("test", "val") if name in parts}
    everything = [clip for clips in unseen.values() for clip in clips]
    of_train = copies(data, everything, seen["train"])  # the many prints of the training clips are read once
    by_face = same_faces(data, everything, seen["train"]) if run["feature_size"] == utils.FEATURE_SIZE["dlib"] else {}
    for name, clips in unseen.items():
        for other in ("train", "val") if name == "test" else ("train",):
            fitted = other == "train" or run["fitted_on_validation"]
            found += of_people(clips, run["clips"][other], "trained on" if fitted else "used to choose the epoch")
            if other == "train":
                first = everything.index(clips[0])
                *copied, faces = [
                    {n - first: of[n] for n in of if first <= n < first + len(clips)} for of in (*of_train, by_face)
                ]
                found += of_same_faces(clips, faces)
            else:
                copied = copies(data, clips, seen[other])
            found += of_copies(clips, copied)
        if name == "test" or not run["fitted_on_validation"]:
            found += of_recall(parts[name])
    return list(dict.fromkeys(found))
