"""The clips of preprocess.py as batches: crops for training, whole clips for prediction.

B is the batch size.
"""

import concurrent.futures
import dataclasses
import functools
from pathlib import Path

import numpy as np

from clips.packs import Pickles, n_readers
from utils import N_BINS, N_FRAMES, InputError, person_of
from voices.backend import tf

BATCHES_AT_A_TIME = 4  # batches that are being read
PREFETCH = 4  # batches ready in memory
BATCH = tf.float16, tf.float32  # spectrograms and face features
TRAINING_BATCH = *BATCH, tf.int64  # and the numbers of the people
PREDICTION_CLIPS = 8  # clips that a device receives at a time for prediction: 0.7 GB for the largest layer at width 1


def person_numbers(clips: list[str]) -> np.ndarray:
    """Return the number of each clip's person, in the order in which the people first appear: int64 (len(clips),)."""
    numbers = {}
    return np.array([numbers.setdefault(person_of(clip), len(numbers)) for clip in clips], np.int64)


def _read_all(
    numbers, read, n_frames: int, feature_size: int, batch_size: int, errors: list, readers: int | None = None, dtypes=BATCH
):
    """Read and batch the clips of a dataset of numbers, in its order.

    Args:
        numbers: tf.data.Dataset of int64.
        read: function from a number to a spectrogram, a face feature and, for training, the number of the person.
        errors: list that receives the error of a broken file.
        readers: clips read at the same time; None for `packs.n_readers`.
    """
    readers = readers or n_readers()
    pool = concurrent.futures.ThreadPoolExecutor(readers)  # not tf.data's threads, which are few
    share = max(1, BATCHES_AT_A_TIME * batch_size // (2 * readers))  # clips that a thread reads at a time, of those under way

    def read_or_note(number):
        try:
            return read(int(number))
        except (InputError, OSError) as error:
            errors.append(error)
            raise

    def read_share(numbers):
        return [read_or_note(number) for number in numbers]

    def read_batch(numbers):
        shares = pool.map(read_share, (numbers[first : first + share] for first in range(0, len(numbers), share)))
        return tuple(map(np.stack, zip(*(clip for clips in shares for clip in clips))))

    def read_tensors(numbers):
        values = tf.numpy_function(read_batch, [numbers], dtypes, stateful=False)
        shapes = (None, n_frames, N_BINS, 2), (None, feature_size), (None,)
        return tuple(tf.ensure_shape(value, shape) for value, shape in zip(values, shapes))

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread would sleep for seconds after the last clip, and hold up everything else
    options.threading.private_threadpool_size = BATCHES_AT_A_TIME  # each waits for its readers; TensorFlow has one a processor
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = numbers.batch(batch_size).map(read_tensors, num_parallel_calls=BATCHES_AT_A_TIME)
    return dataset.prefetch(PREFETCH).with_options(options)


def clip_batches(data: Path, clips: list[str], feature_size: int, batch_size: int):
    """Read whole clips as batches, in the order given; the last batch may be smaller.

    Args:
        data: folder that preprocess.py wrote.
        clips: names of clips.
        feature_size: numbers in their face features.
        batch_size: clips in a batch.

    Returns:
        tf.data.Dataset of (float16 (B, N_FRAMES, N_BINS, 2), float32 (B, feature_size)), and a list that receives the error
        of a broken file: TensorFlow passes on no more than its text.
    """
    errors, source = [], Pickles(data, clips, feature_size)

    def read(number):
        return source.spectrogram(number), source.feature(number)

    return _read_all(tf.data.Dataset.range(len(clips)), read, N_FRAMES, feature_size, batch_size, errors), errors


@dataclasses.dataclass(frozen=True)
class Crops:
    """How training crops and masks the clips: a function of seed, epoch and clip, the same on any hardware."""

    batch_size: int  # clips in a step, over all replicas
    n_frames: int  # length of a crop, N_FRAMES at most; it starts anywhere in the clip
    mask_bins: int  # widest of the two frequency bands that are silenced in a crop
    mask_frames: int  # longest of the two spans of frames that are silenced in a crop
    seed: int

    def crop(self, spectrogram, epoch: int, number: int) -> np.ndarray:
        """Crop and mask clip `number` for an epoch: float16 (N_FRAMES, N_BINS, 2) -> float16 (n_frames, N_BINS, 2).

        The spectrogram may be any object whose slices are arrays, such as `packs.Frames`, which reads no more than the crop.

        Source of the masks: Park et al., "SpecAugment", Interspeech 2019.
        """
        rng = np.random.default_rng([self.seed, epoch, number])
        start = rng.integers(N_FRAMES - self.n_frames + 1)
        crop = spectrogram[start : start + self.n_frames]
        crop = crop if crop.flags.owndata else crop.copy()  # read for this crop alone, or part of the clip's own array
        for _ in range(2 if self.mask_frames or self.mask_bins else 0):
            for axis, most in enumerate((self.mask_frames, self.mask_bins)):
                length = rng.integers(min(most, crop.shape[axis]) + 1)
                start = rng.integers(crop.shape[axis] - length + 1)
                crop[(slice(None),) * axis + (slice(start, start + length),)] = 0
        return crop


def training_batches(
    data: Path,
    clips: list[str],
    feature_size: int,
    crops: Crops,
    first_step: int,
    last_step: int,
    source=None,
    readers: int | None = None,
):
    """Read crops of clips for the steps [first_step, last_step), counted over all epochs, on all replicas of the strategy.

    Each epoch has its own order of the clips and leaves out the last ones where they fill no batch. The clips of a step and
    their crops depend on `crops` alone: they are the same from a pack.

    Args:
        source: packs.Packed of the same clips; None for their pickles.
        readers: clips read at the same time; None for `packs.n_readers`.

    Returns:
        Iterator of batches for `steps.training_step`, each of crops, float16 (B, n_frames, N_BINS, 2), face features, float32
        (B, feature_size), and the numbers of their people, int64 (B,); and a list that receives the error of a broken file.
    """
    strategy, errors, people = tf.distribute.get_strategy(), [], person_numbers(clips)
    source = source or Pickles(data, clips, feature_size)
    n_steps = len(clips) // crops.batch_size  # in an epoch

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng([crops.seed, epoch]).permutation(len(clips))

    def read(place):
        step, in_batch = divmod(place, crops.batch_size)
        epoch, step = divmod(step, n_steps)
        number = order(epoch)[step * crops.batch_size + in_batch]
        return crops.crop(source.spectrogram(number), epoch, number), source.feature(number), people[number]

    def dataset_of_machine(context):
        share = crops.batch_size // context.num_input_pipelines  # clips of each batch on this machine
        numbers = tf.data.Dataset.range(first_step * share, last_step * share)
        places = numbers.map(lambda n: n // share * crops.batch_size + context.input_pipeline_id * share + n % share)
        per_replica = context.get_per_replica_batch_size(crops.batch_size)
        return _read_all(places, read, crops.n_frames, feature_size, per_replica, errors, readers, TRAINING_BATCH)

    return iter(strategy.distribute_datasets_from_function(dataset_of_machine)), errors


@functools.lru_cache(maxsize=1)
def _compiled(encoder, strategy):
    """Return the encoder as a compiled function of one batch for each replica."""

    @functools.partial(tf.function, reduce_retracing=True)
    def predict(spectrograms):
        return strategy.run(lambda of_replica: encoder(of_replica, training=False), (spectrograms,))

    return predict


def _predict(encoder, strategy, spectrograms) -> np.ndarray:
    """Predict the features of clips that are divided among this machine's replicas: (B, T, N_BINS, 2) -> float32 (B, D)."""
    n_clips, n_replicas = len(spectrograms), _replicas_of_machine(strategy)
    filling = tf.repeat(spectrograms[-1:], -n_clips % n_replicas, axis=0)  # each replica gets the same number of clips
    shares = iter(tf.split(tf.concat([spectrograms, filling], axis=0), n_replicas))
    features = _compiled(encoder, strategy)(strategy.experimental_distribute_values_from_function(lambda _: next(shares)))
    return np.concatenate([share.numpy() for share in strategy.experimental_local_results(features)])[:n_clips]


def _replicas_of_machine(strategy) -> int:
    """Return how many replicas of a strategy this machine has: of several machines, only one predicts."""
    values = strategy.experimental_distribute_values_from_function(lambda _: tf.zeros(()))
    return len(strategy.experimental_local_results(values))


def predict_features(
    encoder, data: Path, clips: list[str], feature_size: int, batch_size: int = PREDICTION_CLIPS, n_frames: int = N_FRAMES
):
    """Predict the face features of all clips from their voices, on all replicas of the strategy on this machine.

    Args:
        encoder: Keras model from spectrograms to features; the speaker embedding alone will do.
        data: folder that preprocess.py wrote.
        clips: names of clips.
        feature_size: numbers in their face features.
        batch_size: clips that a replica receives at a time.
        n_frames: frames of each clip that the encoder receives, from its start.

    Returns:
        The predicted features and the features of the true faces, both float32 (len(clips), feature_size).

    Raises:
        InputError: if a file of a clip is broken.
    """
    strategy = tf.distribute.get_strategy()
    batches, errors = clip_batches(data, clips, feature_size, batch_size * _replicas_of_machine(strategy))
    voices, faces = [], []
    try:
        for spectrograms, features in batches:
            voices.append(_predict(encoder, strategy, spectrograms[:, :n_frames]))
            faces.append(features.numpy())
    except tf.errors.OpError as error:
        raise (errors or [error])[0] from None
    return np.concatenate(voices), np.concatenate(faces)
