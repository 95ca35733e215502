"""Faces decoded from the voices of unseen speakers, beside the paper's own pictures of the same clips: how well two face
networks match them to the true faces, how varied they are, and how their measures agree with the true faces'; and a sheet.

N clips, S the side of a picture in pixels; landmarks are (68, 2), pixels.
"""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import scipy.stats

import utils
from benchmarks import judges
from benchmarks.authors import CENTRE_CLIPS, MAKER, published_features, published_pictures
from clips import detection, feature_files, media, splits
from faces import textures
from faces.portraits import FaceDecoder, landmarks_in
from judging import craniofacial, pictures, tables
from judging.intervals import mean_interval, median_interval, resample
from judging.ranks import rank
from training import runs
from training.batches import predict_features

VOICE, FACE = "the voice", "the true face"
FOLDERS = {VOICE: "voice_to_face", FACE: "face_to_face"}  # of the authors' pictures
OURS = "decoded"
# The frame in which spread is measured: its side in pixels, the places of the eyes as shares of it, and a blur in pixels.
SPREAD_SIDE, SPREAD_EYES, SPREAD_BLUR = 64, ((0.35, 0.4), (0.65, 0.4)), 1.5
REGIONS, REGION_AXES = (0.5, 0.9), 10  # shares of likely faces; axes
SEEN_VOICES, SEEN_SAMPLES = 24, 8  # of a run, at most, whose samples SFace sees; samples of each
SHEET_SAMPLES, SHEET_ROWS = 3, 12


@dataclasses.dataclass(frozen=True)
class Unseen:
    """The unseen speakers of a run, and their pictures. N test clips, then the training clips that centre the features."""

    clips: list[str]
    n: int  # N
    faces: list[np.ndarray]  # true faces, uint8 (FACE_SIZE, FACE_SIZE, 3), RGB
    voices: np.ndarray  # float32 (all clips, D), directions of the predictions as seen from the centre
    features: np.ndarray  # float32 (all clips, D), of the true faces
    centre: np.ndarray  # float32 (D,)
    decode: FaceDecoder
    pictures: dict[str, np.ndarray]  # by source, uint8 (all clips, S, S, 3), RGB

    @property
    def people(self) -> list[str]:
        return [utils.person_of(clip) for clip in self.clips[: self.n]]


def decode_unseen(folder: Path, decoder: Path) -> Unseen:
    """Decode the unseen speakers of a voice encoder's run, from their voices and from their true faces' features."""
    run = runs.read_run(folder)
    data, size = Path(run["data"]), run["feature_size"]
    ready = feature_files.ready_clips(data)
    test, training = splits.divide(run["split"], ready)["test"], runs.seen_clips(run, ready)["train"]
    clips = test + utils.sample_clips(training, CENTRE_CLIPS, run["seed"])
    predicted, features = predict_features(runs.load_encoder(folder, run), data, clips, size, 8)
    decode = runs.load_face_decoder(str(decoder), folder, size, 1.0)
    voices = utils.normalise(predicted - run["centre"])
    decoded = {VOICE: decode.from_voices(voices), FACE: decode(features)}
    faces = [media.read_face(data, clip) for clip in clips]
    return Unseen(clips, len(test), faces, voices, features, run["centre"], decode, decoded)


def rank_pictures(unseen: Unseen, judge: str, authors: Path | None):
    """Rank the true faces of unseen speakers by their similarity to pictures, as a judge sees both.

    Returns:
        Rankings by source and maker of the pictures, one for the predicted feature itself if the judge is dlib; and for each
        which pictures have a face, bool (N,).
    """
    extract, n = judges.load(judge), unseen.n
    found = {(source, OURS): extract(decoded) for source, decoded in unseen.pictures.items()}
    if authors:
        for source, folder in FOLDERS.items():
            found[source, MAKER] = published_features(authors, folder, unseen.clips, judge)
    true = unseen.features if judge == "dlib" else extract(unseen.faces)
    centre = unseen.centre if judge == "dlib" else np.nanmean(true[n:], axis=0)
    rankings = {}
    if judge == "dlib":
        rankings[VOICE, "the feature, no picture"] = rank(unseen.voices[:n], true[:n] - centre, unseen.people)
    has_face = {name: np.full(n, True) for name in rankings}
    for name, features in found.items():
        seen = features[:n] - np.nanmean(features[n:], axis=0)  # pictures have a mean of their own
        rankings[name] = rank(np.nan_to_num(seen), np.nan_to_num(true[:n] - centre), unseen.people)
        has_face[name] = np.isfinite(seen[:, 0])
    return rankings, has_face


def print_judgement(of_runs: list[Unseen], judge: str, authors: Path | None) -> None:
    """Print how well a judge matches pictures of unseen speakers to their true faces, all runs together."""
    judged = [rank_pictures(unseen, judge, authors) for unseen in of_runs]
    names = list(judged[0][0])
    found = {name: np.concatenate([has_face[name] for _, has_face in judged]) for name in names}
    kept = np.logical_and.reduce(list(found.values()))
    resamples = resample(np.concatenate([unseen.people for unseen in of_runs])[kept])

    def cell(values, digits=".1f", mean=np.mean, interval=mean_interval):
        return "{:{d}} ({:{d}} to {:{d}})".format(*(100 * v for v in (mean(values), *interval(values, resamples))), d=digits)

    matching, places = (
        {name: np.concatenate([value(rankings[name]) for rankings, _ in judged])[kept] for name in names}
        for value in (lambda ranking: ranking.matching, lambda ranking: ranking.ranks / ranking.gallery)
    )
    print(f"judged by {judge}, {np.sum(~kept)} voices left out for a picture without a face:")
    print(f"{'source':15}{'picture':25}{'faces':>6}  {'1:2 in %':24}{'median rank, %':21}difference")
    for source, maker in names:
        name = source, maker
        gain = cell(matching[name] - matching[source, MAKER], "+.1f") if authors and maker == OURS else ""
        median = cell(places[name], mean=np.median, interval=median_interval)
        print(f"{source:15}{maker:25}{found[name].sum():6}  {cell(matching[name]):24}{median:21}{gain}".rstrip(), flush=True)


def spread_in_face(faces, landmarks: np.ndarray) -> float:
    """Return the standard deviation over pictures inside the face, in grey values.

    The pictures are aligned by the eyes, made grey, reduced and blurred; the face is the hull of their mean landmarks. What is
    returned is the root of the mean variance over its pixels.

    Args:
        faces: N of uint8 (height, width, 3), RGB.
        landmarks: float (N, 68, 2).
    """
    eyes, aligned, moved = np.array(SPREAD_EYES) * SPREAD_SIDE - 0.5, [], []
    for picture, points in zip(faces, landmarks):
        matrix = textures.similarity(
            np.stack([points[of].mean(axis=0) for of in (textures.LEFT_EYE, textures.RIGHT_EYE)]), eyes
        )
        scale = np.hypot(*matrix[:, 0])
        if scale < 0.5:
            picture = cv2.GaussianBlur(picture, (0, 0), 0.4 / scale)  # against moiré
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        grey = cv2.warpAffine(grey, matrix, (SPREAD_SIDE, SPREAD_SIDE), borderMode=cv2.BORDER_REPLICATE)
        aligned.append(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), SPREAD_BLUR))
        moved.append(textures.transform(matrix, points))
    hull = np.zeros((SPREAD_SIDE, SPREAD_SIDE), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.mean(moved, axis=0).round().astype(np.int32)), 1)
    return float(np.sqrt(np.stack(aligned)[:, hull > 0].var(axis=0).mean()))


def landmarks_of_any(faces) -> np.ndarray:
    """Find the landmarks in pictures, each of one face, float32 (n, 68, 2); nan for pictures without a face."""
    found = np.full((len(faces), utils.N_LANDMARKS, 2), np.nan, np.float32)
    for landmarks, picture in zip(found, faces):
        if box := detection.largest_face(picture):
            landmarks[:] = detection.find_landmarks(picture, box)
    return found


def print_variety(of_runs: list[Unseen], authors: Path | None) -> None:
    """Print how varied the pictures are, and how their craniofacial measures agree, all runs together."""
    made = {OURS: {source: np.concatenate([of.pictures[source][: of.n] for of in of_runs]) for source in FOLDERS}}
    clips = [clip for of in of_runs for clip in of.clips[: of.n]]
    if authors:
        made[MAKER] = {source: published_pictures(authors, folder, clips) for source, folder in FOLDERS.items()}
    measures = {}
    for maker, of_maker in made.items():
        find = landmarks_in if maker == OURS else landmarks_of_any
        landmarks = {source: find(faces) for source, faces in of_maker.items()}
        kept = np.logical_and.reduce([np.isfinite(of[:, 0, 0]) for of in landmarks.values()])
        spread = {}
        for source, faces in of_maker.items():
            spread[source] = spread_in_face([faces[n] for n in np.flatnonzero(kept)], landmarks[source][kept])
        voice, face = spread[VOICE], spread[FACE]
        print(
            f"spread in the face, {maker}: from voices {voice:.1f}, from true faces {face:.1f} grey values: {voice / face:.2f}"
        )
        of = craniofacial.correlations(landmarks[VOICE][kept], landmarks[FACE][kept])
        measures[maker] = {name: dataclasses.asdict(correlation) for name, correlation in of.items()}
    for maker, of_maker in measures.items():
        print(f"{maker}, {len(clips)} clips:", tables.as_text(tables.craniofacial_table(of_maker)), sep="\n", flush=True)


def print_distribution(of_runs: list[Unseen]) -> None:
    """Print how many true faces the regions of likely faces hold, and how many samples SFace sees in the voice's group."""
    held, same = [], {VOICE: [], "samples": []}
    for unseen in of_runs:
        likely, directions = unseen.decode.likely, unseen.voices[: unseen.n]
        held.append(likely.distances(directions, unseen.features[: unseen.n], REGION_AXES))
        if len(likely.means) < 2:  # too few clips for groups
            continue
        group = likely.groups(unseen.voices).argmax(axis=1)
        seen, n = judges.sface_features(unseen.pictures[FACE][unseen.n :]), unseen.n
        means = [np.nanmean(seen[group[n:] == number], axis=0) for number in (0, 1)]  # of pictures of training speakers
        line, middle = means[1] - means[0], np.mean(means, axis=0) @ (means[1] - means[0])
        some = np.linspace(0, n - 1, min(n, SEEN_VOICES)).round().astype(int)
        samples = [unseen.decode.samples(unseen.voices[number], SEEN_SAMPLES, int(number)) for number in some]
        for name, shown, of in (
            (VOICE, unseen.pictures[VOICE][some], group[some]),
            ("samples", np.concatenate(samples), group[some].repeat(SEEN_SAMPLES)),
        ):
            same[name] += list((judges.sface_features(shown) @ line > middle) == of)
    shares = {share: np.mean(np.concatenate(held) < scipy.stats.chi2.ppf(share, REGION_AXES)) for share in REGIONS}
    regions = ", ".join(f"{100 * share:.0f} % region {100 * of:.1f} %" for share, of in shares.items())
    print(f"unseen faces in regions of the first {REGION_AXES} axes: {regions}")
    of_group = ", ".join(f"{name} {100 * np.mean(of):.1f} % of {len(of)}" for name, of in same.items() if of)
    print(f"pictures that SFace sees on the side of the voice's group, nearly its sex: from {of_group}", flush=True)


def draw_sheet(path: Path, unseen: Unseen, n: int, authors: Path | None) -> None:
    """Draw n unseen speakers, spread over them: true face, decoded from it, decoded from the voice, samples, the authors'."""
    some = np.linspace(0, unseen.n - 1, min(n, unseen.n)).round().astype(int)
    titles = ["true face", "decoded from it", "decoded from the voice", *["sample"] * SHEET_SAMPLES]
    own = published_pictures(authors, FOLDERS[VOICE], [unseen.clips[number] for number in some]) if authors else []
    rows = []
    for place, number in enumerate(some):
        samples = unseen.decode.samples(unseen.voices[number], SHEET_SAMPLES, seed=int(number))
        decoded = [unseen.pictures[source][number] for source in (FACE, VOICE)]
        shown = [unseen.faces[number], *decoded, *samples]
        left = [
            pictures.Shown(picture, unseen.clips[number][:11] if not column else "") for column, picture in enumerate(shown)
        ]
        rows.append(pictures.Query(left, [pictures.Shown(own[place], "")] if authors else []))
    pictures.draw_grid(path, f"{len(some)} of {unseen.n} unseen speakers", titles, MAKER if authors else "", rows, SHEET_ROWS)
    print(path)


def report(folders: list[Path], decoder: Path, authors: Path | None, sheet: int) -> None:
    """Decode and judge the unseen speakers of several runs of voice encoders; with `sheet` speakers of the first on a sheet."""
    of_runs = [decode_unseen(folder, decoder) for folder in folders]
    people = {person for unseen in of_runs for person in unseen.people}
    galleries = [unseen.n for unseen in of_runs]
    print(f"voices: {sum(galleries)} of unseen speakers in {len(folders)} runs, from {len(people)} people;")
    print(f"    galleries of {', '.join(map(str, galleries))} true faces; chance: 1:2 50 %, median rank 50 % of the gallery")
    print("    in brackets 95 % intervals, bootstrap over people; the last column: 1:2 less that of the paper's own, points")
    for judge in judges.JUDGES:
        print_judgement(of_runs, judge, authors)
    print_variety(of_runs, authors)
    print_distribution(of_runs)
    if sheet:
        draw_sheet(decoder / "sheet.png", of_runs[0], sheet, authors)
