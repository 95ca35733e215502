"""A gallery: the faces among which a listener finds those most similar to a voice."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from clips import detection, feature_files, media
from faces import vggface
from utils import InputError


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Faces to choose from. N faces, D numbers in a feature."""

    names: list[str]  # N, of clips or photos
    features: np.ndarray  # float32 (N, D)
    image: Callable[[int], np.ndarray]  # from a face's number to uint8 (FACE_SIZE, FACE_SIZE, 3), RGB


def of_data(data: Path, feature_size: int, most: int, seed: int) -> Gallery:
    """Return the faces of a folder that preprocess.py wrote.

    Args:
        data: the folder.
        feature_size: D, of the run that is to choose.
        most: larger data are sampled down to this number of faces.
        seed: of the sample.

    Raises:
        InputError: if there are no faces, or they have features of another size.
    """
    names = utils.sample_clips(feature_files.ready_clips(data), most, seed)
    features = np.stack([feature_files.load_embedding(data, clip, feature_size) for clip in names])
    return Gallery(names, features, lambda number: media.read_face(data, names[number]))


def of_photos(paths: list[Path], feature_size: int, one_face: bool) -> Gallery:
    """Find the faces in photos and compute their features, as preprocess.py does for clips.

    Args:
        paths: of the photos. One without a face is left out, with a line on stderr.
        feature_size: D, of the run that is to choose.
        one_face: whether a photo with no face or with several faces is an error.

    Raises:
        InputError: if there is no face in any of the photos.
    """
    describe, names, crops, features = vggface.face_describer(feature_size), [], [], []
    for path in tqdm(paths, desc="photos", unit="photo", leave=False, disable=None):
        try:
            photo, boxes = detection.faces_in_photo(path)
            if one_face and len(boxes) > 1:
                raise InputError(f"{path}: expected one face, found {len(boxes)}; crop the photo to one of the faces")
        except InputError as error:
            if one_face:
                raise
            print(f"hear: left out: {error}", file=sys.stderr)
            continue
        for number, box in enumerate(boxes, 1):
            names.append(path.name if len(boxes) == 1 else f"{path.name}, face {number} from the left")
            crops.append(detection.crop_face(photo, box))
        features.append(describe([(photo, box) for box in boxes]))
    if not names:
        raise InputError(f"{paths[0].parent}: expected photos with faces, found none among {len(paths)}; add other photos")
    return Gallery(names, np.concatenate(features), crops.__getitem__)
