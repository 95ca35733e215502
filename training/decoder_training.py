"""The training of the face decoder, train.py --model decoder: portraits of preprocess.py -> textures -> statistics -> weights.

M is the numbers of half a texture, C those of the covariates; see `textures`.
"""

import dataclasses
import functools
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from clips import feature_files, media, workers
from faces import decoder, decoder_statistics, refinement, textures, vggface
from faces.textures import SIDE
from judging import pictures
from training import runs, steps
from utils import InputError
from voices.backend import keras, tf

MOST_FACES, VALIDATION_FACES = 20_000, 1000  # at most: 74 kB of memory each
LEAST_FACES = 20  # people to learn from
SHOWN_FACES = 24  # in decoded.png
LOSSES = (
    "landmark",
    "texture",
    "feature",
)  # of `decoder_training.losses`; the last one with VGG-Face's features and --epochs only


@dataclasses.dataclass(frozen=True)
class Faces:
    """Faces for the decoder. N of them, D numbers in a feature; the rest as of `textures.texture_of`."""

    names: list[str]
    features: np.ndarray  # float32 (N, D)
    halves: np.ndarray  # uint8 (N, M)
    shapes: np.ndarray  # float32 (N, 68, 2)
    covariates: np.ndarray  # float64 (N, C)


def read_faces(data: Path, names: list[str], feature_size: int, reference: np.ndarray, pool) -> Faces:
    """Make the textures of clips or photos, in the processes of a pool. Raises FileNotFoundError, InputError."""
    features = np.stack([feature_files.load_embedding(data, name, feature_size) for name in names])
    prepare = functools.partial(textures.texture_of_file, data=data, reference=reference)
    made = tqdm(pool.map(prepare, names, chunksize=8), "textures", len(names), unit="face", leave=False, disable=None)
    halves = np.empty((len(names), math.prod(textures.HALF)), np.uint8)
    shapes, covariates = [], []
    for half_row, (half, shape, covariate) in zip(halves, made):
        half_row[:] = half
        shapes.append(shape)
        covariates.append(covariate)
    return Faces(names, features, halves, np.stack(shapes), np.stack(covariates))


def choose_faces(options) -> dict[str, list[str]]:
    """Find the faces to learn from, "train", and to validate on, "val". Raises InputError if there are too few."""
    names = utils.split_clips(feature_files.ready_faces(options.data), options.seed)
    most = {"train": options.clips or MOST_FACES, "val": VALIDATION_FACES}
    chosen = {part: utils.sample_clips(names[part], n, options.seed) for part, n in most.items()}
    n_train, n_val = (len({utils.video_of(name) for name in chosen[part]}) for part in ("train", "val"))
    if n_train < LEAST_FACES or n_val < 2:
        raise InputError(
            f"{options.data}: expected faces of at least {LEAST_FACES} people to learn from and of two to validate on, found "
            f"{n_train} and {n_val}; make more ready with preprocess.py, --csv or --faces"
        )
    if options.epochs and options.batch_size > len(chosen["train"]):
        raise InputError(f"--batch-size: expected at most the {len(chosen['train'])} faces, found {options.batch_size}")
    return chosen


def validate_decoder(network, score, statistics: decoder_statistics.Statistics, faces: Faces, batch_size: int) -> dict:
    """Score a decoder on validation people, and beside it the mean face. Returns what history.jsonl says of them."""
    halves, shapes = statistics.targets(faces.halves, faces.shapes, faces.covariates)

    def mean_score(features):
        batches = [slice(start, start + batch_size) for start in range(0, len(features), batch_size)]
        scores = [score(features[batch], halves[batch], shapes[batch]).numpy() for batch in batches]
        return np.average(scores, axis=0, weights=[len(features[batch]) for batch in batches])

    found, mean_face = mean_score(faces.features), mean_score(np.broadcast_to(statistics.centre, faces.features.shape))
    return {
        "val_loss": float(found.sum()),
        "val_faces": len(faces.names),
        **{f"val_{name}_loss": float(value) for name, value in zip(LOSSES, found)},
        **{f"val_{name}_loss_of_mean_face": float(value) for name, value in zip(LOSSES, mean_face)},
    }


def train(options, folder: Path) -> None:
    """Fit the face decoder in closed form; with --epochs train it on by gradients.

    Args:
        options: of train.py.
        folder: of the run.

    Raises:
        InputError: if there are too few faces, or a file is broken.
    """
    chosen = choose_faces(options)
    feature_size = feature_files.feature_size_of(options.data, chosen["train"][0])
    print(
        f"train: {len(chosen['train'])} faces to learn from, {len(chosen['val'])} to validate on, "
        f"{feature_size} numbers a face",
        file=sys.stderr,
    )

    see = refinement.face_network(feature_size)
    started = time.perf_counter()
    landmarks = np.stack([feature_files.load_landmarks(options.data, name) for name in chosen["train"]])
    reference = textures.reference_shape(landmarks)
    with workers.start_pool(os.cpu_count()) as pool:
        faces, unseen = (read_faces(options.data, chosen[part], feature_size, reference, pool) for part in ("train", "val"))
    people = [utils.video_of(name) for name in faces.names]
    statistics = decoder_statistics.fit(faces.features, people, faces.halves, faces.shapes, faces.covariates, reference)

    network, score = build(options, statistics)
    feature_size, rank = network.input_shape[1], network.get_layer("texture_coefficients").units
    runs.set_aside(folder)
    feature_files.save_array(folder / utils.CENTRE, statistics.centre)
    utils.write_json(folder / utils.CLIPS, chosen)
    utils.write_json(folder / utils.OPTIONS, {**dataclasses.asdict(options), "feature_size": feature_size, "rank": rank})
    history, best = [], math.inf
    n_steps = options.epochs * (len(faces.names) // options.batch_size)
    optimizer = steps.adam(network, options.schedule, options.learning_rate, n_steps, options.weight_decay)
    step = training_step(network, optimizer, score)
    for epoch in range(options.epochs + 1):  # the first one is the closed form
        if epoch:
            train_epoch(step, statistics, faces, epoch, options.batch_size, options.seed)
        record = {"epoch": epoch, **validate_decoder(network, score, statistics, unseen, options.batch_size)}
        record["seconds"], started = round(time.perf_counter() - started, 2), time.perf_counter()
        history.append(record)
        utils.save_bytes(folder / utils.HISTORY, "".join(json.dumps(record) + "\n" for record in history).encode())
        print(line_of_decoder(record, options.epochs), flush=True)
        if record["val_loss"] < best:
            best = record["val_loss"]
            runs.save_weights(folder / utils.BEST_WEIGHTS, network)
    network = runs.load_decoder(folder, runs.read_run(folder, "decoder"))
    feature_files.save_array(folder / utils.CORRECTION, refinement.correction(network, see, faces.features, statistics.centre))
    draw_decoded(folder / "decoded.png", options.data, unseen, network)
    print(f"train: {folder / 'decoded.png'}: validation people, as they are and decoded from their features")
    print(f"train: {folder / utils.BEST_WEIGHTS}")


def build(options, statistics: decoder_statistics.Statistics):
    """Build the decoder with the closed form's weights. Returns it, and the function that scores it, of `decoder_training.losses`."""

    keras.utils.set_random_seed(options.seed)
    feature_size, rank = statistics.layers["texture_coefficients"][0].shape
    network = decoder.face_decoder(feature_size, rank)
    decoder.set_statistics(network, statistics)
    see = None
    if options.epochs and feature_size == utils.FEATURE_SIZE["vggface"]:
        see = seen_by(vggface.picture_network(), statistics.reference)
    return network, losses(network, see)


def train_epoch(step, statistics: decoder_statistics.Statistics, faces: Faces, epoch: int, batch_size: int, seed: int) -> None:
    """Train on all faces once, in an order of the epoch's own. Raises InputError if the loss is not finite."""
    order = np.random.default_rng([seed, epoch]).permutation(len(faces.names))
    for number in tqdm(range(len(order) // batch_size), f"epoch {epoch}", unit="step", leave=False, disable=None):
        batch = order[number * batch_size : (number + 1) * batch_size]
        targets = statistics.targets(faces.halves[batch], faces.shapes[batch], faces.covariates[batch])
        loss = float(step(faces.features[batch], *targets).numpy().sum())
        if not math.isfinite(loss):
            raise InputError(
                f"the loss of epoch {epoch}, step {number + 1} is {loss}, expected a finite number; try a lower --learning-rate"
            )


def line_of_decoder(record: dict, n_epochs: int) -> str:
    """Set a record of a decoder's history.jsonl as one line."""
    losses = [
        f"{name} {record[f'val_{name}_loss']:.2f} (mean face {record[f'val_{name}_loss_of_mean_face']:.2f})"
        for name in LOSSES
        if f"val_{name}_loss" in record
    ]
    return f"epoch {record['epoch']}/{n_epochs}  val loss of {'  '.join(losses)}  {record['seconds']:.1f} s"


def draw_decoded(path: Path, data: Path, faces: Faces, network) -> None:
    """Draw faces beside what is decoded from their features."""

    names = faces.names[:SHOWN_FACES]
    decoded = decoder.decode(network, faces.features[: len(names)])
    rows = [
        pictures.Query([pictures.Shown(media.read_portrait(data, name), "")], [pictures.Shown(picture, "")])
        for name, picture in zip(names, decoded)
    ]
    pictures.draw_grid(path, f"{len(names)} of {len(faces.names)} validation faces", ["true face"], "decoded", rows)


# Where preprocess.py would cut the face out of a decoded picture, in distances of the eyes: the crop's side, and how far its
# middle is below the eyes; median over the photos of LFW.
CROP_SIDE, CROP_BELOW_EYES = 3.2, 0.56


# ----------------------------------------------------------------------------------------------------------------------
# Training by gradients. Source of the three losses: Cole et al.

LANDMARK_WEIGHT, TEXTURE_WEIGHT, FEATURE_WEIGHT = 1.0, 1.0, 10.0  # of square pixels, grey values, 1 - cosine


def seen_by(network, reference: np.ndarray):
    """Return a face network as a function of whole pictures, which it sees cut as preprocess.py cuts faces out of frames.

    Args:
        network: function from float32 (B, s, s, 3), RGB, 0 to 255, to features, (B, D).
        reference: float32 (68, 2), pixels.
    """
    eyes = reference[textures.EYES].mean(axis=0)
    half = CROP_SIDE * SIDE * textures.EYE_DISTANCE / 2
    x, y = eyes[0], eyes[1] + CROP_BELOW_EYES * SIDE * textures.EYE_DISTANCE
    rows, columns = (slice(max(0, round(at - half)), round(at + half)) for at in (y, x))
    return lambda pictures: network(pictures[:, rows, columns])


def losses(decoder: keras.Model, see=None):
    """Return the function that scores what is decoded.

    Args:
        decoder: of `face_decoder`.
        see: the face network, a differentiable function from pictures, float32 (B, S, S, 3), 0 to 255, to features, (B, D); or
            None, for no feature loss.

    Returns:
        Function of features, float32 (B, D), half textures, (B, M), and landmarks, (B, 68, 2), to the means over the batch of
        the landmarks' squared distance, the texture's absolute difference, and, with `see`, 1 - the cosine between the
        feature and that of the decoded picture: float32 (2,) or (3,), each times its weight.
    """
    outputs = [decoder.get_layer(name).output for name in ("half", "landmarks", "warp")]
    parts = keras.Model(decoder.input, outputs)

    def score(features, halves, landmarks):
        decoded, shape, pictures = parts(features)
        found = [
            LANDMARK_WEIGHT * tf.reduce_mean(tf.reduce_sum((shape - landmarks) ** 2, axis=-1)),
            TEXTURE_WEIGHT * tf.reduce_mean(tf.abs(tf.reshape(decoded, tf.shape(halves)) - halves)),
        ]
        if see:
            cosine = tf.reduce_sum(tf.math.l2_normalize(see(pictures), -1) * tf.math.l2_normalize(features, -1), axis=-1)
            found.append(FEATURE_WEIGHT * tf.reduce_mean(1 - cosine))
        return tf.stack(found)

    return score


def training_step(decoder: keras.Model, optimizer, score):
    """Return a function that trains on what `losses`'s function takes, and returns what it returns."""

    @tf.function(reduce_retracing=True)
    def step(features, halves, landmarks):
        with tf.GradientTape() as tape:
            found = score(features, halves, landmarks)
            total = tf.reduce_sum(found)
        optimizer.apply(tape.gradient(total, decoder.trainable_variables), decoder.trainable_variables)
        return found

    return step
