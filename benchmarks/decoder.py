"""Benchmark of the face decoder on people that it was not trained on, beside a plain linear decoder and the paper's pictures.

Prints how well a decoder with dlib's features decodes the unseen faces of DATA, the test part of its split: whether the
features of the decoded picture find the person, how far the landmarks are off, how sharp the face is, and pictures a second.
The plain linear decoder is written out below: aligned faces, warped to the mean shape, 128 x 128; principal components of
texture (200) and landmarks (30), predicted from the feature by ridge regression; warped back.

With --voices, runs of voice encoders, also whether faces decoded from the voices of unseen speakers find their true faces, how
varied they are, and how their measures agree with those of the true faces; with --authors beside the paper's own pictures of
the same clips, FOLDER/voice_to_face/<clip>.jpg and FOLDER/face_to_face/<clip>.jpg. With --sheet, a picture to judge by eye.
Two networks judge: dlib's, whose features are decoded, and SFace, which took no part. Nothing is chosen by these figures. It
takes some minutes, and two more for each run of voices.

    python -m benchmarks decoder --data data/lfw --run decoder

N faces, D numbers in a feature, S the side of a picture in pixels; landmarks are (68, 2), pixels.
"""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

import utils
from benchmarks import decoded_voices, judges
from benchmarks.measuring import seconds_of
from clips import feature_files, media, splits
from faces import decoder, decoder_statistics, textures
from judging.ranks import rank, recall_at_k
from training import runs
from voices.backend import keras, tf

GALLERY = 500  # faces to choose from, or as many as the test part has, if that is more
KS = (1, 5, 10)
SHARPNESS_SIDE = 128  # pixels, of the face whose sharpness is measured
PLAIN_SIDE, PLAIN_TEXTURE, PLAIN_LANDMARKS = 128, 200, 30  # the plain decoder: pixels, principal components
PLAIN_PENALTY = 0.1  # of its ridge, a share of the features' mean variance
PLAIN_FRAME = (0.18, 0.885), (0.147, 0.853)  # rows and columns that the plain decoder uses, as a fraction of the picture


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path = utils.option("folder that preprocess.py --faces wrote", metavar="FOLDER")
    run: str = utils.option("run of python train.py decoder, on that data", metavar="RUN")
    voices: tuple[str, ...] = utils.option("runs of voice encoders, each on its own split", (), nargs="+", metavar="RUN")
    authors: Path | None = utils.option("folder of the paper's own pictures of the voices' clips", None, metavar="FOLDER")
    sheet: int = utils.option(
        "draw this many unseen speakers of the first of --voices, with their faces in all ways, in the folder of --run",
        0,
        metavar="N",
    )

    def __post_init__(self):
        utils.check(not self.authors or bool(self.voices), "--authors: expected --voices with it, found none")
        utils.check(not self.sheet or bool(self.voices), "--sheet: expected --voices with it, found none")
        utils.check(self.sheet >= 0, f"--sheet: expected 0 or more, found {self.sheet}")


def face_sharpness(picture: np.ndarray, landmarks: np.ndarray, reference: np.ndarray) -> float:
    """Return the variance of a face's Laplacian, grey, in an aligned picture, uint8 (S, S, 3).

    The face, a box around the reference shape, is resized to SHARPNESS_SIDE, about its own size. Pixels near the edge of the
    landmarks' hull do not count, because the head's outline is sharp before any plain background.
    """
    margin = np.ptp(reference[:, 0]) / 10
    (left, top), (right, bottom) = (reference.min(0) - margin).astype(int), (reference.max(0) + margin).astype(int)
    side = (SHARPNESS_SIDE, SHARPNESS_SIDE)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[top:bottom, left:right]
    inner = cv2.erode(textures.face_hull(landmarks), np.ones((textures.SIDE // 12 | 1,) * 2))[top:bottom, left:right]
    laplacian = cv2.Laplacian(cv2.resize(grey, side, interpolation=cv2.INTER_CUBIC), cv2.CV_64F)
    return laplacian[cv2.resize(inner, side, interpolation=cv2.INTER_NEAREST) > 0].var()


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos, aligned."""

    features: np.ndarray  # float32 (N, D)
    shapes: np.ndarray  # float32 (N, 68, 2)
    covariates: np.ndarray  # float64 (N, C), textures.COVARIATES: pose, mouth, light, blur
    textures: np.ndarray  # uint8 (N, PLAIN_SIDE ** 2 * 3), PLAIN_FRAME warped to the reference shape
    sharpness: np.ndarray  # float64 (N,)


def plain_frame():
    """Return PLAIN_FRAME as slices of rows and columns."""
    return tuple(slice(round(low * textures.SIDE), round(high * textures.SIDE)) for low, high in PLAIN_FRAME)


def read_photos(data: Path, names: list[str], feature_size: int, reference: np.ndarray) -> Photos:
    """Read and align photos of preprocess.py."""
    rows = []
    for name in names:
        landmarks = feature_files.load_landmarks(data, name)
        picture, inside, shape = textures.align(media.read_portrait(data, name), landmarks, reference)
        texture = textures.to_reference(picture, shape, reference)
        covariates = textures.covariates_of(shape, inside, texture, reference)
        small = cv2.resize(texture[plain_frame()], (PLAIN_SIDE, PLAIN_SIDE), interpolation=cv2.INTER_AREA)
        feature = feature_files.load_embedding(data, name, feature_size)
        sharpness = face_sharpness(picture, shape, reference)
        rows.append((feature, shape, covariates, small.ravel(), sharpness))
    return Photos(*map(np.stack, zip(*rows)))


def predict_components(x: np.ndarray, y: np.ndarray, rank: int):
    """Regress the first `rank` principal components of y, (N, M), on x, (N, D), whose mean is 0. Returns mean and slopes."""
    mean = y.mean(0, dtype=np.float32)
    y = y.astype(np.float32)
    y -= mean
    first = np.linalg.eigh(y @ y.T)[1][:, -rank:]  # (N, rank)
    square = x.T @ x
    square += PLAIN_PENALTY * np.trace(square) / len(square) * np.eye(len(square))
    return mean, np.linalg.solve(square, x.T @ first) @ (first.T @ y)  # (M,), (D, M)


def plain_decoder(training: Photos, centre: np.ndarray, reference: np.ndarray):
    """Fit the plain decoder. Returns functions from features, (n, D), to pictures, uint8 (n, S, S, 3), and to landmarks."""
    rows, columns = plain_frame()
    size = (columns.stop - columns.start, rows.stop - rows.start)
    edges = (rows.start, textures.SIDE - rows.stop, columns.start, textures.SIDE - columns.stop)
    mean, slopes = predict_components(training.features - centre, training.textures, PLAIN_TEXTURE)
    shapes = training.shapes.reshape(len(training.shapes), -1)
    mean_shape, shape_slopes = predict_components(training.features - centre, shapes, PLAIN_LANDMARKS)

    def landmarks(features):
        return (mean_shape + (features - centre) @ shape_slopes).reshape(-1, 68, 2)

    def picture(texture, shape):
        texture = texture.reshape(PLAIN_SIDE, PLAIN_SIDE, 3).clip(0, 255).round().astype(np.uint8)
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC)
        return textures.to_reference(cv2.copyMakeBorder(texture, *edges, cv2.BORDER_REPLICATE), reference, shape)

    def decode(features):
        return np.stack([picture(*of) for of in zip(mean + (features - centre) @ slopes, landmarks(features))])

    return decode, landmarks


def in_canonical_pose(photos: Photos, training: Photos, centre: np.ndarray) -> np.ndarray:
    """Return the symmetric landmarks of photos without the effect of pose, mouth and light, by least squares on `training`."""
    wanted, size = decoder_statistics.canonical_covariates(training.covariates), len(centre)
    inputs = np.column_stack([training.features - centre, training.covariates - wanted, np.ones(len(training.features))])
    slopes = np.linalg.lstsq(inputs, textures.symmetric(training.shapes).reshape(len(inputs), -1))[0]
    effect = (photos.covariates - wanted) @ slopes[size:-1]
    return textures.symmetric(photos.shapes) - effect.reshape(photos.shapes.shape)


def print_decoder(decode, landmarks, one_pass, photos: Photos, people, gallery, truths, centre, reference) -> None:
    """Print the figures of one decoder.

    Args:
        decode, landmarks: functions from features to pictures and to landmarks; one_pass: `decode`, for its time.
        photos: the queries.
        people: the person of each face in the gallery; the queries come first.
        gallery: name of a judge -> its features of these faces, and their origin.
        truths: name -> (N, 68, 2), the true landmarks.
        centre: of the features.
        reference: the mean shape.
    """
    n = len(photos.features)
    pictures, shapes = decode(photos.features), landmarks(photos.features)
    for judge, (of_gallery, origin) in gallery.items():
        found = judges.load(judge)(pictures) - origin
        queries = np.zeros_like(of_gallery)  # zeros, where no face was found, are similar to no face
        queries[:n] = np.nan_to_num(found)
        ranks = rank(queries, np.nan_to_num(of_gallery - origin), people).ranks[:n]
        print(f"    {judge}: {'  '.join(f'R@{k} {100 * recall_at_k(ranks, k):.1f} %' for k in KS)}; ", end="")
        print(f"a face is found in {100 * np.mean(np.isfinite(found[:, 0])):.1f} % of the pictures")
    for name, truth in truths.items():
        ours, mean = (np.linalg.norm(of - truth, axis=-1).mean() for of in (shapes, landmarks(centre[None])))
        print(f"    landmarks, {name}: off by {ours:.2f} pixels of {pictures.shape[1]}, its mean face by {mean:.2f}")
    sharpness = np.median([face_sharpness(*of, reference) for of in zip(pictures, shapes)])
    photo = np.median(photos.sharpness)
    print(f"    sharpness {sharpness:.0f}, the photos' {photo:.0f} (medians): {sharpness / photo:.2f} of it")
    rates = {size: size / seconds_of(lambda size=size: one_pass(photos.features[:size]), 5) for size in (32, 1)}
    print(f"    {rates[32]:.0f} pictures/s in batches of 32, {rates[1]:.0f} one at a time", flush=True)


def unseen_photos(data: Path, run: dict, network) -> None:
    """Measure a decoder, and the plain one, on photos of unseen people."""
    ready = feature_files.ready_faces(data)
    names, fitted_on = splits.divide(run["split"], ready), runs.seen_clips(run, ready)["train"]
    test, n_others = names["test"], max(0, GALLERY - len(names["test"]))
    size, centre = run["feature_size"], run["centre"]
    reference = textures.reference_shape(np.stack([feature_files.load_landmarks(data, name) for name in fitted_on]))
    training, photos = (read_photos(data, part, size, reference) for part in (fitted_on, test))
    others = names["val"][:n_others]
    shown = [media.read_portrait(data, name) for name in test + others]
    of_judge = judges.load(judges.SFACE)(shown)
    gallery = {
        "dlib": (np.stack([feature_files.load_embedding(data, name, size) for name in test + others]), centre),
        judges.SFACE: (of_judge, np.nanmean(of_judge, axis=0)),
    }
    people = [utils.person_of(name) for name in test + others]
    print(f"photos: {len(training.features)} for training, {len(test)} of unseen people as queries, among {len(people)} faces:")
    print(f"    their own and {len(others)} of the validation set, by which the closed form chooses nothing; chance: ", end="")
    print(", ".join(f"R@{k} {100 * k / len(people):.1f} %" for k in KS), flush=True)
    truths = {
        "symmetric, in canonical pose": in_canonical_pose(photos, training, centre),
        "symmetric, as they are": textures.symmetric(photos.shapes),
    }
    of_landmarks = keras.Model(network.input, network.get_layer("landmarks").output)
    compiled = tf.function(lambda features: network(features, training=False))
    print("train.py decoder:")
    print_decoder(
        lambda features: decoder.decode(network, features),
        lambda features: of_landmarks(features).numpy(),
        lambda features: compiled(features).numpy(),
        *(photos, people, gallery, truths, centre, reference),
    )
    decode, landmarks = plain_decoder(training, centre, reference)
    print(f"the plain decoder, {PLAIN_SIDE} x {PLAIN_SIDE}:")
    print_decoder(decode, landmarks, decode, photos, people, gallery, truths, centre, reference)


def run(options: Options) -> None:
    folder = utils.existing_run(options.run)
    run = runs.read_run(folder, "decoder")
    if run["feature_size"] != utils.FEATURE_SIZE["dlib"]:
        raise utils.InputError(
            f"--run: expected a decoder of dlib's features, found one of {run['feature_size']} numbers a face"
        )
    unseen_photos(options.data, run, runs.load_decoder(folder, run))
    if options.voices:
        folders = [utils.existing_run(name) for name in options.voices]
        decoded_voices.report(folders, folder.absolute(), options.authors, options.sheet)
