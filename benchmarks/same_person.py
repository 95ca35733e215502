"""How far apart dlib's features are for faces of one person and of several: the ground of limits in speakers.py and leaks.py.

Of videos, in a folder as of preprocess.py --folder: frames of one clip, a second apart; the mean feature of five frames beside
the first frame's; clips of one person; first frames of different people. Of data: the pairs of different people that leaks.py
would take for one.

    python -m benchmarks faces --clips my-videos
    python -m benchmarks faces --data data/lfw
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

import utils
from clips import detection, feature_files, media, pairing, speakers
from judging.leaks import SAME_FACE


@dataclasses.dataclass(frozen=True)
class Options:
    clips: Path | None = utils.option("folder of videos", None, metavar="FOLDER")
    data: Path | None = utils.option("folder that preprocess.py --face-model dlib wrote", None, metavar="FOLDER")

    def __post_init__(self):
        utils.check(self.clips or self.data, "--clips: expected --clips or --data, found neither")


def features_of(path: Path) -> np.ndarray:
    """Return the features of the largest face in frames a second apart: float32 (n, 128)."""
    found = []
    for frame in (media.read_first_frame(path), *media.read_later_frames(path)):
        box = detection.largest_face(frame.picture)
        if box is not None:
            found.append(detection.dlib_feature(frame.picture, box))
    return np.array(found).reshape(-1, 128)


def describe(name: str, distances) -> None:
    percentiles = "  ".join(f"{np.percentile(distances, q):.2f}" for q in (0, 5, 50, 95, 100)) if len(distances) else "none"
    print(f"{name:45}{len(distances):>9} pairs  {percentiles}")


def of_videos(folder: Path) -> None:
    found = pairing.find_videos(folder)
    features = {clip: features_of(found.folder / path) for path, clip in zip(found.paths, found.clips) if clip}
    features = {clip: of for clip, of in features.items() if len(of)}
    print(f"distance of features; percentiles 0, 5, 50, 95, 100 (dlib's own limit: {speakers.SAME_PERSON})")
    every = features.values()
    describe("frames of one clip", [np.linalg.norm(a - b) for of in every for a, b in itertools.combinations(of, 2)])
    describe("mean of five frames, and the first", [np.linalg.norm(of[:5].mean(0) - of[0]) for of in every if len(of) > 4])
    same, different = [], []
    for (clip, of), (other, of_other) in itertools.combinations(features.items(), 2):
        distance = np.linalg.norm(of[0] - of_other[0])
        (same if utils.person_of(clip) == utils.person_of(other) else different).append(distance)
    describe("clips of one person, first frames", same)
    describe("different people, first frames", different)


def of_data(data: Path) -> None:
    names = feature_files.ready_faces(data)
    people = np.array([utils.person_of(name) for name in names])
    features = np.stack([feature_files.load_embedding(data, name, utils.FEATURE_SIZE["dlib"]) for name in names])
    pairs = []
    for number in range(len(names) - 1):
        distance = np.linalg.norm(features[number + 1 :] - features[number], axis=1)
        near = np.flatnonzero((distance <= SAME_FACE) & (people[number + 1 :] != people[number]))
        pairs += [(float(distance[other]), people[number], people[number + 1 + other]) for other in near]
    n = len(names) * (len(names) - 1) // 2
    print(f"{n:,} pairs of faces; {len(pairs)} of different names within {SAME_FACE}:")
    for distance, person, other in sorted(pairs)[:20]:
        print(f"    {distance:.2f}  {person}  {other}")


def run(options: Options) -> None:
    if options.clips:
        of_videos(options.clips)
    if options.data:
        of_data(options.data)
