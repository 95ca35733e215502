"""Training of the face decoder, by train.py decoder: portraits -> textures -> statistics -> weights; then by gradients.

M is the number of values in half a texture, C the number of covariates, S the side of a picture in pixels, D the size of a face
feature; see `faces.textures`.
"""

import dataclasses
import functools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from clips import feature_files, media, splits, workers
from faces import decoder, decoder_statistics, textures, vggface
from faces.textures import SIDE
from judging import pictures
from training import runs, setup, steps
from utils import InputError
from voices.backend import keras, tf

MOST_FACES, VALIDATION_FACES = 20_000, 1000  # at most; 123 kB of memory each
LEAST_PEOPLE = 20  # in the training set
SHOWN_FACES = 24  # in decoded.png
LOSSES = "landmark", "texture", "feature"  # the terms of `losses`; the last one only with VGG-Face's features and --epochs
LANDMARK_WEIGHT, TEXTURE_WEIGHT, FEATURE_WEIGHT = 1.0, 1.0, 10.0  # of square pixels, grey values, 1 - cosine
# The face crop of preprocess.py in a decoded picture, in distances between the eyes: its side, and how far its middle is below
# the eyes. Medians over the photos of LFW.
CROP_SIDE, CROP_BELOW_EYES = 3.2, 0.56

# ----------------------------------------------------------------------------------------------------------------------
# Faces.


@dataclasses.dataclass(frozen=True)
class Faces:
    """N faces, as `textures.texture_of` returns them, and their features."""

    names: list[str]
    features: np.ndarray  # float32 (N, D)
    halves: np.ndarray  # uint8 (N, M)
    shapes: np.ndarray  # float32 (N, 68, 2)
    covariates: np.ndarray  # float64 (N, C)


def read_faces(data: Path, names: list[str], feature_size: int, reference: np.ndarray, pool) -> Faces:
    """Make the textures of clips or photos in a pool of processes. Raises FileNotFoundError, InputError."""
    features = np.stack([feature_files.load_embedding(data, name, feature_size) for name in names])
    prepare = functools.partial(textures.texture_of_file, data=data, reference=reference)
    made = tqdm(pool.map(prepare, names, chunksize=8), "textures", len(names), unit="face", leave=False, disable=None)
    halves = np.empty((len(names), textures.HALF_SIZE), np.uint8)
    shapes, covariates = [], []
    for half_row, (half, shape, covariate) in zip(halves, made):
        half_row[:] = half
        shapes.append(shape)
        covariates.append(covariate)
    return Faces(names, features, halves, np.stack(shapes), np.stack(covariates))


def choose_faces(
    data: Path, split: splits.Split, n_train: int | None, batch_size: int, epochs: int
) -> tuple[dict[str, list[str]], splits.Split]:
    """Choose the faces of a new run.

    Args:
        data: folder that preprocess.py wrote.
        split: its seed is that of the samples too.
        n_train: faces to train on; None for MOST_FACES; more faces are sampled down to this number.
        batch_size, epochs: of the training by gradients.

    Returns:
        The names of the faces to train on, "train", and to validate on, "val"; and the split, for the run's folder.

    Raises:
        InputError: if there are too few, or the split names none of them.
    """
    ready, split = setup.divide(split, data, feature_files.ready_faces(data))
    most = {"train": n_train or MOST_FACES, "val": VALIDATION_FACES}
    chosen = {part: utils.sample_clips(ready[part], n, split.seed) for part, n in most.items()}
    n_train_people, n_val_people = (len({utils.person_of(name) for name in chosen[part]}) for part in ("train", "val"))
    if n_train_people < LEAST_PEOPLE or n_val_people < 2:
        limited = n_train_people < LEAST_PEOPLE and len(chosen["train"]) < len(ready["train"])
        next_step = (
            "raise --clips" if limited else f"make more ready with preprocess.py, --csv or --faces{setup.or_name_more(split)}"
        )
        raise InputError(
            f"{data}: expected faces of at least {LEAST_PEOPLE} people to train on and of two to validate on, found "
            f"{n_train_people} and {n_val_people}; {next_step}"
        )
    if epochs and batch_size > len(chosen["train"]):
        raise InputError(f"--batch-size: expected at most {len(chosen['train'])}, the training faces, found {batch_size}")
    return chosen, split


# ----------------------------------------------------------------------------------------------------------------------
# Losses and the training step. Source of the three losses: Cole et al.


def differentiable_extractor(network, reference: np.ndarray):
    """Return a face network as a function of decoded pictures, which are cropped as preprocess.py crops faces.

    Args:
        network: function from float32 (B, s, s, 3), RGB, 0 to 255, to features, float32 (B, D).
        reference: reference shape of the decoder, float32 (68, 2), pixels.
    """
    eyes = reference[textures.EYES].mean(axis=0)
    half = CROP_SIDE * SIDE * textures.EYE_DISTANCE / 2
    x, y = eyes[0], eyes[1] + CROP_BELOW_EYES * SIDE * textures.EYE_DISTANCE
    rows, columns = (slice(max(0, round(at - half)), round(at + half)) for at in (y, x))
    return lambda pictures: network(pictures[:, rows, columns])


def losses(network: keras.Model, extract=None):
    """Return the function that scores decoded faces.

    Args:
        network: of `decoder.face_decoder`.
        extract: the face network, a differentiable function from pictures, float32 (B, S, S, 3), 0 to 255, to features, (B, D);
            None leaves out the feature loss.

    Returns:
        Function from features, float32 (B, D), half textures, (B, M), and landmarks, (B, 68, 2), to the weighted losses,
        float32 (2,) or (3,), means over the batch: squared distance of the landmarks; absolute difference of the textures;
        and, with `extract`, 1 - the cosine between the feature and that of the decoded picture.
    """
    outputs = [network.get_layer(name).output for name in ("texture_basis", "landmarks", "warp")]
    parts = keras.Model(network.input, outputs)

    def score(features, halves, landmarks):
        decoded, shape, pictures = parts(features)
        found = [
            LANDMARK_WEIGHT * tf.reduce_mean(tf.reduce_sum((shape - landmarks) ** 2, axis=-1)),
            TEXTURE_WEIGHT * tf.reduce_mean(tf.abs(decoded - halves)),
        ]
        if extract:
            cosine = tf.reduce_sum(tf.math.l2_normalize(extract(pictures), -1) * tf.math.l2_normalize(features, -1), axis=-1)
            found.append(FEATURE_WEIGHT * tf.reduce_mean(1 - cosine))
        return tf.stack(found)

    return score


def training_step(network: keras.Model, optimizer, score):
    """Return a function with the arguments and the result of `score`, of `losses`, that also trains the network."""

    @tf.function(reduce_retracing=True)
    def step(features, halves, landmarks):
        with tf.GradientTape() as tape:
            found = score(features, halves, landmarks)
            total = tf.reduce_sum(found)
        optimizer.apply(tape.gradient(total, network.trainable_variables), network.trainable_variables)
        return found

    return step


# ----------------------------------------------------------------------------------------------------------------------
# Training.


def build(statistics: decoder_statistics.Statistics, epochs: int, seed: int):
    """Build the decoder with the weights of the closed form.

    Returns:
        The decoder, and the function of `losses` that scores it.
    """
    keras.utils.set_random_seed(seed)
    feature_size, rank = statistics.layers["texture_coefficients"][0].shape
    network = decoder.face_decoder(feature_size, rank)
    decoder.set_statistics(network, statistics)
    extract = None
    if epochs and feature_size == utils.FEATURE_SIZE["vggface"]:
        extract = differentiable_extractor(vggface.picture_network(), statistics.reference)
    return network, losses(network, extract)


def train_epoch(step, statistics: decoder_statistics.Statistics, faces: Faces, epoch: int, batch_size: int, seed: int) -> None:
    """Train on all faces once, in an order that depends on seed and epoch. Raises InputError if the loss is not finite."""
    order = np.random.default_rng([seed, epoch]).permutation(len(faces.names))
    for number in tqdm(range(len(order) // batch_size), f"epoch {epoch}", unit="step", leave=False, disable=None):
        batch = order[number * batch_size : (number + 1) * batch_size]
        targets = statistics.targets(faces.halves[batch], faces.shapes[batch], faces.covariates[batch])
        loss = float(step(faces.features[batch], *targets).numpy().sum())
        if not math.isfinite(loss):
            raise InputError(
                f"the loss of epoch {epoch}, step {number + 1} is {loss}, expected a finite number; try a lower --learning-rate"
            )


def validate(network, score, statistics: decoder_statistics.Statistics, faces: Faces, batch_size: int) -> dict:
    """Score a decoder and, beside it, the mean face on the validation set.

    Returns:
        The entries of history.jsonl that begin with val_.
    """
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


def line_of_record(record: dict, n_epochs: int) -> str:
    """Format a record of a decoder's history.jsonl as one line; epoch 0 is the closed form."""
    scores = "  ".join(
        f"{name} {record[f'val_{name}_loss']:.2f} (mean face {record[f'val_{name}_loss_of_mean_face']:.2f})"
        for name in LOSSES
        if f"val_{name}_loss" in record
    )
    done = f"epoch {record['epoch']}/{n_epochs}" if record["epoch"] else "fitted"
    return f"{done} in {record['seconds']:.1f} s, losses on {record['val_faces']} validation faces: {scores}"


def draw_decoded(path: Path, data: Path, faces: Faces, network) -> None:
    """Draw a picture of true faces beside the faces decoded from their features."""
    names = faces.names[:SHOWN_FACES]
    decoded = decoder.decode(network, faces.features[: len(names)])
    rows = [
        pictures.Query([pictures.Shown(media.read_portrait(data, name), "")], [pictures.Shown(picture, "")])
        for name, picture in zip(names, decoded)
    ]
    pictures.draw_grid(path, f"{len(names)} of {len(faces.names)} validation faces", ["true face"], "decoded", rows)


def train(options, split: splits.Split, folder: Path) -> None:
    """Fit the face decoder in closed form; with --epochs, train it further by gradients.

    Args:
        options: options.DecoderOptions.
        split: of `splits.read_split`.
        folder: of the run.

    Raises:
        InputError: if there are too few faces, or a file is broken.
    """
    chosen, split = choose_faces(options.data, split, options.clips, options.batch_size, options.epochs)
    feature_size = feature_files.feature_size_of(options.data, chosen["train"][0])
    print(
        f"train: {len(chosen['train'])} faces to train on, {len(chosen['val'])} to validate on, face features of "
        f"{feature_size} numbers",
        file=sys.stderr,
    )
    started = time.perf_counter()
    landmarks = np.stack([feature_files.load_landmarks(options.data, name) for name in chosen["train"]])
    reference = textures.reference_shape(landmarks)
    with workers.start_pool(workers.n_processors()) as pool:
        faces, validation = (read_faces(options.data, chosen[part], feature_size, reference, pool) for part in ("train", "val"))
    people = [utils.person_of(name) for name in faces.names]
    statistics = decoder_statistics.fit(faces.features, people, faces.halves, faces.shapes, faces.covariates, reference)

    network, score = build(statistics, options.epochs, options.seed)
    feature_size, rank = network.input_shape[1], network.get_layer("texture_coefficients").units
    runs.set_aside(folder)
    feature_files.save_array(folder / utils.CENTRE, statistics.centre)
    runs.write_clips(folder, chosen, split)
    runs.write_options(folder, "decoder", options, split, feature_size=feature_size, rank=rank)
    history, best = [], math.inf
    n_steps = options.epochs * (len(faces.names) // options.batch_size)
    optimizer = steps.adam(network, options.schedule, options.learning_rate, n_steps, options.weight_decay)
    step = training_step(network, optimizer, score)
    for epoch in range(options.epochs + 1):  # 0 is the closed form
        if epoch:
            train_epoch(step, statistics, faces, epoch, options.batch_size, options.seed)
        record = {"epoch": epoch, **validate(network, score, statistics, validation, options.batch_size)}
        record["seconds"], started = round(time.perf_counter() - started, 2), time.perf_counter()
        history.append(record)
        utils.save_bytes(folder / utils.HISTORY, "".join(json.dumps(record) + "\n" for record in history).encode())
        print(line_of_record(record, options.epochs), flush=True)
        if record["val_loss"] < best:
            best = record["val_loss"]
            runs.save_weights(folder / utils.BEST_WEIGHTS, network)
    network = runs.load_decoder(folder, runs.read_run(folder, "decoder"))
    picture = folder / f"decoded.{options.format}"
    draw_decoded(picture, options.data, validation, network)
    print(f"train: {picture}: faces of the validation set, true and decoded from their features")
    print(f"train: {folder / utils.BEST_WEIGHTS}")
