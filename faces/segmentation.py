"""Segmentation of an aligned portrait: the person, hair included, and the hair.

S is the side of a picture in pixels. Landmarks are (68, 2), pixels.

Never imports TensorFlow: worker processes segment photos.
"""

import functools
from pathlib import Path

import cv2
import numpy as np

# A network of 250 kB that separates people, hair included, from the background. From the package mediapipe 0.10.21,
# Apache-2.0, which itself does not install on every Python that this project supports, and has many dependencies.
PERSON_NETWORK = Path(__file__).resolve().parent / "selfie_segmentation.tflite"
PERSON_SIDE = 256  # pixels, of its input

HAIR_SIDE = 128  # pixels, of the picture in which hair is found
HAIR_ROUNDS = 2  # of GrabCut
LEAST_HAIR = 10  # pixels of HAIR_SIDE that are surely hair, from whose colours the others are told

# Where hair, skin and clothes surely are, in distances between the eyes, or in half widths of the face.
FACE_WIDTH, FACE_HEIGHT, FACE_BELOW_EYES = 1.02, 1.35, 0.25  # half axes of the ellipse of the face: half widths, distances
TOP_BAND, TOP_ABOVE_BROWS = 0.3, 0.55  # hair: this far below the top of the person, and this far above the brows
FOREHEAD_WIDTH, FOREHEAD_ABOVE_BROWS = 0.75, 0.3  # skin: above the eyes
NECK_WIDTH, NECK_HEIGHT = 0.35, 0.35  # skin: below the chin; half widths, distances
HAIR_BELOW_CHIN = 0.5  # hair may begin no lower; it may hang lower
CLOTHES_WIDTH, CLOTHES_HEIGHT = 0.8, 0.08  # clothes: at the lower border; half widths, share of the side
OUTSIDE = (255, 0, 255)  # colour that stands for the background, which no hair has


@functools.cache
def _person_network():
    return cv2.dnn.readNet(str(PERSON_NETWORK))


def person_share(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Separate the person from the background.

    Args:
        picture, inside: of `textures.align`.

    Returns:
        float32 (S, S), the person's share of each pixel, 0 to 1.

    Source: Google, "MediaPipe Selfie Segmentation", model card, 2021.
    """
    large = cv2.resize(picture, (PERSON_SIDE, PERSON_SIDE), interpolation=cv2.INTER_CUBIC)
    network = _person_network()
    network.setInput(cv2.dnn.blobFromImage(large, 1 / 255))
    share = network.forward()[0, 0].clip(0, 1)
    return cv2.resize(share, picture.shape[1::-1], interpolation=cv2.INTER_AREA) * inside


def hair_share(picture: np.ndarray, person: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Separate hair, or what covers it, from face, neck and clothes, by colour.

    GrabCut starts from where the landmarks say that hair is: at the top of the person, and around the face. What is not
    connected with the top of the head is not hair.

    Args:
        picture: uint8 (S, S, 3), aligned.
        person: of `person_share`.
        landmarks: (68, 2), pixels of the picture.

    Returns:
        float32 (S, S), the hair's share of each pixel, 0 to 1. All 0 where there is too little to learn its colours from.

    Source: Rother, Kolmogorov and Blake, "GrabCut", SIGGRAPH 2004, in OpenCV.
    """
    side = len(picture)
    points = np.asarray(landmarks) * HAIR_SIDE / side
    small = cv2.resize(picture, (HAIR_SIDE, HAIR_SIDE), interpolation=cv2.INTER_AREA)
    of_person = cv2.resize(person, (HAIR_SIDE, HAIR_SIDE), interpolation=cv2.INTER_AREA) > 0.5
    y, x = np.mgrid[:HAIR_SIDE, :HAIR_SIDE]
    middle, brows, chin = points[36:48].mean(axis=0), points[17:27, 1].mean(), points[8]
    distance, half_width = np.linalg.norm(points[42:48].mean(0) - points[36:42].mean(0)), np.ptp(points[[0, 16], 0]) / 2

    hull = np.zeros((HAIR_SIDE, HAIR_SIDE), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points.round().astype(np.int32)), 1)
    below = (y - middle[1]) / distance - FACE_BELOW_EYES
    around = ((x - middle[0]) / (FACE_WIDTH * half_width)) ** 2 + (below / FACE_HEIGHT) ** 2 >= 1
    forehead = (np.abs(x - middle[0]) < FOREHEAD_WIDTH * distance) & (y > brows - FOREHEAD_ABOVE_BROWS * distance)
    neck = (np.abs(x - chin[0]) < NECK_WIDTH * half_width) & (y > chin[1]) & (y < chin[1] + NECK_HEIGHT * distance)
    clothes = (y > (1 - CLOTHES_HEIGHT) * HAIR_SIDE) & (np.abs(x - middle[0]) < CLOTHES_WIDTH * half_width)
    first = np.where(of_person.any(axis=0), of_person.argmax(axis=0), HAIR_SIDE)  # row of each column's first pixel
    top = (y < first + TOP_BAND * distance) & (y < brows - TOP_ABOVE_BROWS * distance) & of_person & around

    regions = np.full(hull.shape, cv2.GC_PR_BGD, np.uint8)
    regions[of_person & around & (y < chin[1] + HAIR_BELOW_CHIN * distance)] = cv2.GC_PR_FGD
    regions[top] = cv2.GC_FGD
    skin = (cv2.erode(hull, np.ones((3, 3))) > 0) | (forehead & (y < middle[1])) | neck
    regions[~of_person | skin | clothes] = cv2.GC_BGD
    if (regions == cv2.GC_FGD).sum() < LEAST_HAIR:
        return np.zeros((side, side), np.float32)
    small[~of_person] = OUTSIDE
    cv2.setRNGSeed(0)  # GrabCut clusters colours from random starts
    cv2.grabCut(small, regions, None, np.zeros((1, 65)), np.zeros((1, 65)), HAIR_ROUNDS, cv2.GC_INIT_WITH_MASK)
    hair = np.uint8((regions == cv2.GC_FGD) | (regions == cv2.GC_PR_FGD))
    hair = cv2.morphologyEx(hair, cv2.MORPH_OPEN, np.ones((3, 3)))
    _, connected = cv2.connectedComponents(hair)
    on_top = np.unique(connected[top & (hair > 0)])
    hair = cv2.morphologyEx(np.isin(connected, on_top[on_top > 0]).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3)))
    soft = cv2.GaussianBlur(hair.astype(np.float32), (0, 0), 0.7)
    return cv2.resize(soft, (side, side), interpolation=cv2.INTER_LINEAR) * person
