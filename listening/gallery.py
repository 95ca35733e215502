"""A gallery: the faces among which a listener finds those most similar to a voice."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from clips import detection, feature_files, media, packs, photos
from clips.reasons import Skip
from faces import vggface
from utils import InputError

# What is wrong with a photo, by the reason that face detection gives.
NO_FACES = {
    "unreadable": f"expected a photo ({', '.join(photos.SUFFIXES)}), found no readable one",
    "no-face": "expected a face, found none; take a photo in which the face is turned to the camera",
}


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Faces to choose from. N faces, D numbers in a feature."""

    names: list[str]  # N, of clips or photos
    features: np.ndarray | packs.Packed  # float32 (N, D), in memory or on the disk
    image: Callable[[int], np.ndarray]  # from a face's number to uint8 (FACE_SIZE, FACE_SIZE, 3), RGB


def of_data(data: Path, feature_size: int, most: int, seed: int) -> Gallery:
    """Return a face of each person in a folder that preprocess.py wrote; from its pack, if there is one, even a large one.

    Args:
        data: the folder.
        feature_size: D, of the run that is to choose.
        most: more people are sampled down to this number.
        seed: of the sample.

    Raises:
        InputError: if there are no faces, they have features of another size, or the pack is stale.
    """
    of_people = {}
    for clip in feature_files.ready_clips(data):
        of_people.setdefault(utils.person_of(clip), clip)
    names = utils.sample_clips([*of_people.values()], most, seed)
    features = packs.open_pack(data, names, feature_size)
    if features is None:
        features = np.stack([*packs.in_order(packs.Pickles(data, names, feature_size).feature, range(len(names)))])
    return Gallery(names, features, lambda number: media.read_face(data, names[number]))


def of_photos(paths: list[Path], below: Path, feature_size: int, one_face: bool) -> Gallery:
    """Find the faces in photos and compute their features, as preprocess.py does for clips.

    Args:
        paths: of the photos. Those without a face are left out, with a line on stderr.
        below: a folder above all photos: they are named by their paths from there.
        feature_size: D, of the run that is to choose.
        one_face: whether a photo with no face or with several faces is an error.

    Raises:
        InputError: if there is no face in any of the photos.
    """
    describe, names, places, features = vggface.face_describer(feature_size), [], [], []
    left_out = {reason: [] for reason in NO_FACES}
    for path in tqdm(paths, desc="photos", unit="photo", leave=False, disable=None):
        name = utils.printable(path.absolute().relative_to(below.absolute()))
        try:
            photo, boxes = detection.faces_in_photo(path)
        except Skip as skip:
            if one_face:
                raise InputError(f"{path}: {NO_FACES[skip.reason]}{skip.detail and f' ({skip.detail})'}") from None
            left_out[skip.reason].append(name)
            continue
        if one_face and len(boxes) > 1:
            raise InputError(f"{path}: expected one face, found {len(boxes)}; crop the photo to one of the faces")
        for number, box in enumerate(boxes, 1):
            names.append(name if len(boxes) == 1 else f"{name}, face {number} from the left")
            places.append((path, box))
        features.append(describe([(photo, box) for box in boxes]))
    if n_left_out := sum(map(len, left_out.values())):
        reasons = (f"{reason} {len(of)} ({of[0]}{', ...' if len(of) > 1 else ''})" for reason, of in left_out.items() if of)
        print(f"hear: {n_left_out} of {len(paths)} photos left out: {', '.join(reasons)}", file=sys.stderr)
    if not names:
        raise InputError(f"{below}: expected photos with faces, found none among {len(paths)}; add other photos")

    def image(number):  # read again: the crops of all faces of a large gallery would fill the memory
        path, box = places[number]
        return detection.crop_face(photos.read_photo(path), box)

    return Gallery(names, np.concatenate(features), image)
