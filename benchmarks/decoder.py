"""Benchmark of the face decoder on people that it never saw, beside a plain linear one and the paper's pictures.

    python tests/benchmark.py decoder --data DATA --run RUN [--voices RUN ...] [--authors FOLDER]

prints how well a run of train.py --model decoder decodes the faces of people that it never saw, the test part of its split of
DATA, photos with dlib's features: whether the decoded picture's own feature finds the person, how far the landmarks are off,
how sharp the face is, pictures a second. Beside it a plain linear decoder, written out below: aligned faces, warped to the
mean shape by the project's spline, 128 x 128; principal components of texture (200) and landmarks (30), predicted from the
feature by ridge regression; warped back. With --voices, runs of voice encoders, also whether what is decoded from the voices
of people that those never heard finds their true faces; with --authors beside the paper's own pictures of the same clips,
FOLDER/voice_to_face/<clip>.jpg and FOLDER/face_to_face/<clip>.jpg. Nothing is chosen by these figures. Some minutes, and three
more for each run of voices.

N faces, D numbers in a feature, S the side of a picture in pixels; landmarks are (68, 2), pixels.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from measuring import seconds_of

import evaluate
import utils
from clips import feature_files, media
from faces import decoder, decoder_statistics, refinement, textures
from judging.intervals import mean_interval, median_interval
from judging.ranks import rank, recall_at_k
from listening import listener
from training import runs
from training.batches import predict_features
from voices.backend import keras, tf

GALLERY = 500  # faces to choose from, where there are not more people to be tested
KS = (1, 5, 10)
SHARPNESS_SIDE = 128  # pixels, of the face whose sharpness is measured
PLAIN_SIDE, PLAIN_TEXTURE, PLAIN_LANDMARKS = 128, 200, 30  # the plain way: pixels, principal components
PLAIN_PENALTY = 0.1  # of its ridge, a share of the features' mean variance
PLAIN_FRAME = (0.19, 0.97), (0.11, 0.89)  # of a picture of S pixels, rows and columns: what the plain way sees
CENTRE_CLIPS = 100  # learned ones, at most, whose pictures' mean feature is where pictures are seen from


@functools.cache
def feature_of_file(path: Path) -> np.ndarray:
    """Return dlib's feature of the largest face in a picture file: float32 (128,), nan where there is no face, or no file."""

    picture = media.read_photo(path)
    return np.full(128, np.nan, np.float32) if picture is None else refinement.face_network(128)([picture])[0]


def face_sharpness(picture: np.ndarray, landmarks: np.ndarray, reference: np.ndarray) -> float:
    """Return the variance of a face's Laplacian, grey, in an aligned picture, uint8 (S, S, 3).

    The face, a box around the reference shape, is brought to SHARPNESS_SIDE, about the size that it has; what is near the edge
    of the landmarks' hull does not count, for the head's outline is sharp before any plain background.
    """
    import cv2

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
    covariates: np.ndarray  # float64 (N, C), of `canonical`: pose, mouth, light, blur
    textures: np.ndarray  # uint8 (N, PLAIN_SIDE ** 2 * 3), PLAIN_FRAME warped to the reference shape
    sharpness: np.ndarray  # float64 (N,)


def plain_frame():
    """Return PLAIN_FRAME as rows and columns of a picture."""

    return tuple(slice(round(low * textures.SIDE), round(high * textures.SIDE)) for low, high in PLAIN_FRAME)


def read_photos(data: Path, names: list[str], feature_size: int, reference: np.ndarray) -> Photos:
    """Read and align photos of preprocess.py."""
    import cv2

    rows = []
    for name in names:
        landmarks = feature_files.load_landmarks(data, name)
        picture, _, shape = textures.align(media.read_portrait(data, name), landmarks, reference)
        texture = textures.to_reference(picture, shape, reference)
        covariates = textures.shape_covariates(shape), textures.light_covariates(texture, reference)
        small = cv2.resize(texture[plain_frame()], (PLAIN_SIDE, PLAIN_SIDE), interpolation=cv2.INTER_AREA)
        feature = feature_files.load_embedding(data, name, feature_size)
        sharpness = face_sharpness(picture, shape, reference)
        rows.append((feature, shape, np.concatenate(covariates), small.ravel(), sharpness))
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


def plain_decoder(learned: Photos, centre: np.ndarray, reference: np.ndarray):
    """Fit the plain way. Returns functions from features, (n, D), to pictures, uint8 (n, S, S, 3), and to landmarks."""
    import cv2

    rows, columns = plain_frame()
    size = (columns.stop - columns.start, rows.stop - rows.start)
    edges = (rows.start, textures.SIDE - rows.stop, columns.start, textures.SIDE - columns.stop)
    mean, slopes = predict_components(learned.features - centre, learned.textures, PLAIN_TEXTURE)
    shapes = learned.shapes.reshape(len(learned.shapes), -1)
    mean_shape, shape_slopes = predict_components(learned.features - centre, shapes, PLAIN_LANDMARKS)

    def landmarks(features):
        return (mean_shape + (features - centre) @ shape_slopes).reshape(-1, 68, 2)

    def picture(texture, shape):
        texture = texture.reshape(PLAIN_SIDE, PLAIN_SIDE, 3).clip(0, 255).round().astype(np.uint8)
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC)
        return textures.to_reference(cv2.copyMakeBorder(texture, *edges, cv2.BORDER_REPLICATE), reference, shape)

    def decode(features):
        return np.stack([picture(*of) for of in zip(mean + (features - centre) @ slopes, landmarks(features))])

    return decode, landmarks


def in_canonical_pose(photos: Photos, learned: Photos, centre: np.ndarray) -> np.ndarray:
    """Return the symmetric landmarks of photos without what pose, mouth and light do to them, by least squares on `learned`."""

    wanted, size = decoder_statistics.canonical_covariates(learned.covariates), len(centre)
    inputs = np.column_stack([learned.features - centre, learned.covariates - wanted, np.ones(len(learned.features))])
    slopes = np.linalg.lstsq(inputs, decoder_statistics.symmetric(learned.shapes).reshape(len(inputs), -1))[0]
    effect = (photos.covariates - wanted) @ slopes[size:-1]
    return decoder_statistics.symmetric(photos.shapes) - effect.reshape(photos.shapes.shape)


def print_decoder(decode, landmarks, one_pass, photos: Photos, people, gallery, truths, centre, reference) -> None:
    """Print the figures of one way to decode faces.

    Args:
        decode, landmarks: functions from features to pictures and to landmarks; one_pass: `decode`, for its time.
        photos: of the people asked for.
        people, gallery: whose faces there are to choose from, and their features; first those asked for.
        truths: name -> (N, 68, 2), what the landmarks ought to be.
        centre: where features are seen from.
        reference: the mean shape.
    """

    n = len(photos.features)
    pictures, shapes = decode(photos.features), landmarks(photos.features)
    found = refinement.face_network(len(centre))(pictures) - centre
    asked = np.zeros_like(gallery)  # where there is no face, nothing is similar
    asked[:n] = np.nan_to_num(found)
    ranks = rank(asked, gallery - centre, people).ranks[:n]
    print(f"    {'  '.join(f'R@{k} {100 * recall_at_k(ranks, k):.1f} %' for k in KS)}; ", end="")
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
    """Measure a decoder, and the plain way, on photos of people that it never saw."""

    names = utils.split_clips(feature_files.ready_faces(data), run["seed"])
    test, n_others = names["test"], max(0, GALLERY - len(names["test"]))
    size, centre = run["feature_size"], run["centre"]
    reference = textures.reference_shape(np.stack([feature_files.load_landmarks(data, name) for name in run["clips"]["train"]]))
    learned, photos = (read_photos(data, part, size, reference) for part in (run["clips"]["train"], test))
    others = names["val"][:n_others]
    gallery = np.stack([feature_files.load_embedding(data, name, size) for name in test + others])
    people = [utils.video_of(name) for name in test + others]
    print(f"photos: {len(learned.features)} learned from; {len(test)} of unseen people asked for, among {len(gallery)} faces:")
    print(f"    theirs and {len(others)} of validation people, by whom the closed form chooses nothing; chance: ", end="")
    print(", ".join(f"R@{k} {100 * k / len(gallery):.1f} %" for k in KS), flush=True)
    truths = {
        "symmetric, in canonical pose": in_canonical_pose(photos, learned, centre),
        "symmetric, as they are": decoder_statistics.symmetric(photos.shapes),
    }
    of_landmarks = keras.Model(network.input, network.get_layer("landmarks").output)
    compiled = tf.function(lambda features: network(features, training=False))
    print("train.py --model decoder:")
    print_decoder(
        lambda features: decoder.decode(network, features),
        lambda features: of_landmarks(features).numpy(),
        lambda features: compiled(features).numpy(),
        *(photos, people, gallery, truths, centre, reference),
    )
    decode, landmarks = plain_decoder(learned, centre, reference)
    print(f"the plain way, {PLAIN_SIDE} x {PLAIN_SIDE}:")
    print_decoder(decode, landmarks, decode, photos, people, gallery, truths, centre, reference)


def pictures_seen(decode, voices: np.ndarray, faces: np.ndarray, centre: np.ndarray, authors: Path | None, clips) -> dict:
    """Return the features of all pictures to be compared, each (N, 128), by what they are made of and by whom.

    Args:
        decode: a refinement.FaceDecoder.
        voices, faces: features predicted from the voices, as seen from `centre`, and those of the true faces.
        centre: of the voices' run.
        authors: folder with the paper's own pictures, or None; clips: names of them.
    """

    see, seen = refinement.face_network(128), {}
    at_once = dataclasses.replace(decode, refinements=0)
    pictures = {
        "the voice": {
            "decoded": at_once.from_voices(voices, centre),
            f"decoded, {decode.refinements} looks": decode.from_voices(voices, centre),
        },
        "the true face": {"decoded": decode(faces)},
    }
    for made_of, folder in (("the voice", "voice_to_face"), ("the true face", "face_to_face")):
        for way, of_way in pictures[made_of].items():
            seen[made_of, way] = see(of_way)
        if authors:
            files = [authors / folder / f"{clip}.jpg" for clip in clips]
            seen[made_of, "the paper's own"] = np.stack([feature_of_file(path) for path in files])
    return seen


def rank_pictures(folder: Path, decode, authors: Path | None):
    """Let the pictures of a voice run's unseen people look for the true faces.

    Returns:
        The rankings, of what `pictures_seen` names and of the predicted feature itself, among all test people's faces; the
        videos; and for each ranking whether it has a face to look with, bool (N,).
    """

    run = runs.read_run(folder)
    data, size = Path(run["data"]), run["feature_size"]
    test = utils.split_clips(feature_files.ready_clips(data), run["seed"])["test"]
    learned = utils.sample_clips(run["clips"]["train"], CENTRE_CLIPS, run["seed"])
    clips, n = test + learned, len(test)
    voices, faces = predict_features(runs.load_encoder(folder, run), data, clips, size, 8)
    seen = {("the voice", "the feature, no picture"): voices[:n] - run["centre"]}
    for name, features in pictures_seen(decode, voices - run["centre"], faces, run["centre"], authors, clips).items():
        seen[name] = features[:n] - np.nanmean(features[n:], axis=0)  # pictures have a mean of their own
    videos = [utils.video_of(clip) for clip in test]
    rankings = {name: rank(np.nan_to_num(features), faces[:n] - run["centre"], videos) for name, features in seen.items()}
    return rankings, videos, {name: np.isfinite(features[:, 0]) for name, features in seen.items()}


def unseen_voices(folders: list[Path], decode, authors: Path | None) -> None:
    """Measure what is decoded from unseen people's voices, all runs together."""

    of_runs = [rank_pictures(folder, decode, authors) for folder in folders]
    galleries = [len(videos) for _, videos, _ in of_runs]
    found = {name: np.concatenate([has[name] for *_, has in of_runs]) for name in of_runs[0][2]}
    kept = np.logical_and.reduce(list(found.values()))
    videos = np.concatenate([videos for _, videos, _ in of_runs])[kept]
    print(
        f"voices: {len(kept)} of unseen people in {len(folders)} runs, {np.sum(~kept)} left out for a picture without a face, ",
        end="",
    )
    print(f"{len(set(videos))} videos in what is left;")
    print(f"    galleries of {', '.join(map(str, galleries))} true faces; chance: 1:2 50 %, median rank 50 % of the gallery")
    print("    in brackets 95 %, bootstrap over videos; the last column: 1:2, beside the paper's own, points")

    def cell(values, digits=".1f", mean=np.mean, interval=mean_interval):
        return "{:{d}} ({:{d}} to {:{d}})".format(*(100 * v for v in (mean(values), *interval(values, videos))), d=digits)

    matching, places = (
        {name: np.concatenate([value(rankings[name]) for rankings, *_ in of_runs])[kept] for name in found}
        for value in (lambda ranking: ranking.matching, lambda ranking: ranking.ranks / ranking.gallery)
    )
    print(f"{'made of':15}{'picture':25}{'faces':>6}  {'1:2 in %':24}{'median rank, %':21}difference")
    for made_of, by in found:
        name, own = (made_of, by), (made_of, "the paper's own")
        gain = cell(matching[name] - matching[own], "+.1f") if own in matching and by.startswith("decoded") else ""
        median = cell(places[name], mean=np.median, interval=median_interval)
        print(f"{made_of:15}{by:25}{found[name].sum():6}  {cell(matching[name]):24}{median:21}{gain}".rstrip())


def run(options) -> None:
    """Measure the face decoder on people that it never saw, beside a plain linear one and the paper's pictures."""

    folder = utils.run_folder(options.run)
    run = runs.read_run(folder, "decoder")
    if run["feature_size"] != utils.FEATURE_SIZE["dlib"]:
        raise SystemExit(f"--run: expected a decoder of dlib's features, found one of {run['feature_size']} numbers")
    network = runs.load_decoder(folder, run)
    unseen_photos(options.data, run, network)
    if options.voices:
        folders = [utils.run_folder(name) for name in options.voices]
        decode = listener.face_decoder(evaluate.Options(decoder=options.run), run["feature_size"])
        unseen_voices(folders, decode, options.authors)


def add_options(command) -> None:
    """Add the options of this benchmark to its parser."""
    command.add_argument("--data", type=Path, required=True, help="folder that preprocess.py --faces wrote")
    command.add_argument("--run", required=True, help="of train.py --model decoder, on that data")
    command.add_argument("--voices", nargs="+", default=[], metavar="RUN", help="of voice encoders, each on its own split")
    command.add_argument("--authors", type=Path, metavar="FOLDER", help="the paper's own pictures of the voices' clips")
