"""Listener."""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import model
from clips import detection
from faces import vggface
from utils import CLIP_SAMPLES, InputError, normalise
from voices.backend import tf

WINDOW_HOP = CLIP_SAMPLES // 2  # samples between the windows of a long recording
# ----------------------------------------------------------------------------------------------------------------------
# A person with a recording.


def hear(encoder, recording: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Hear a recording of any length: windows of CLIP_SAMPLES, WINDOW_HOP apart, the last one at its end, averaged.

    Args:
        encoder: the voice encoder.
        recording: float32 (samples,), CLIP_SAMPLES at least.
        centre: float32 (D,).

    Returns:
        float32 (D,): the mean direction of the windows' features as seen from the centre, of length 1.
    """

    last = len(recording) - CLIP_SAMPLES
    starts = sorted({*range(0, last, WINDOW_HOP), last})
    windows = [recording[start : start + CLIP_SAMPLES] for start in starts]
    listen = tf.function(model.waveform_encoder(encoder), reduce_retracing=True)
    features = np.concatenate([listen(np.stack(windows[i : i + 8])).numpy() for i in range(0, len(windows), 8)])
    return normalise(normalise(features - centre).mean(axis=0, keepdims=True))[0]


def photo_features(paths: list[Path], feature_size: int, one_face: bool) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Find the faces in photos and compute their features, as preprocess.py does of clips.

    Args:
        paths: of the photos; one without a face is left out, with a line on stderr.
        feature_size: of the features that the run was trained on.
        one_face: whether a photo with none or several is an error.

    Returns:
        Names; float32 (n, feature_size); and faces, each uint8 (FACE_SIZE, FACE_SIZE, 3), RGB.

    Raises:
        InputError: if there is no face at all.
    """

    describe, names, crops, features = vggface.face_describer(feature_size), [], [], []
    for path in tqdm(paths, desc="photos", unit="photo", leave=False, disable=None):
        try:
            photo, boxes = detection.faces_in_photo(path)
            if one_face and len(boxes) > 1:
                raise InputError(f"{path}: expected one face, found {len(boxes)}; cut out the one that is meant")
        except InputError as error:
            if one_face:
                raise
            print(f"evaluate: left out: {error}", file=sys.stderr)
            continue
        for number, box in enumerate(boxes, 1):
            names.append(path.name if len(boxes) == 1 else f"{path.name}, face {number} from the left")
            crops.append(detection.crop_face(photo, box))
        features.append(describe([(photo, box) for box in boxes]))
    if not names:
        raise InputError(f"{paths[0].parent}: expected photos with faces, found none among {len(paths)}")
    return names, np.concatenate(features), crops
