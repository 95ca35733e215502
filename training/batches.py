"""The clips of preprocess.py as batches, for training and for hearing them all.

B is the batch size.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from clips.feature_files import load_embedding, load_spectrogram
from utils import N_BINS, N_FRAMES, InputError
from voices.backend import tf

READERS = 4  # clips read at the same time
PREFETCH = 4  # batches ready in memory


def _read_all(numbers, read, n_frames: int, feature_size: int, batch_size: int, errors: list):
    """Batch what `read` gives for each number of a dataset, in its order. `errors` receives the error of a file at fault."""

    def read_or_note(number):
        try:
            return read(int(number))
        except (InputError, OSError) as error:
            errors.append(error)
            raise

    def read_tensors(number):
        spectrogram, feature = tf.numpy_function(read_or_note, [number], (tf.float16, tf.float32), stateful=False)
        return tf.ensure_shape(spectrogram, (n_frames, N_BINS, 2)), tf.ensure_shape(feature, (feature_size,))

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread sleeps on for seconds when the clips are at their end, and all wait for it
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = numbers.map(read_tensors, num_parallel_calls=READERS).batch(batch_size)
    return dataset.prefetch(PREFETCH).with_options(options)


def clip_batches(data: Path, clips: list[str], feature_size: int, batch_size: int):
    """Read clips as batches, in their order, whole; the last batch may be smaller.

    Args:
        data: folder that preprocess.py wrote.
        clips: names of clips.
        feature_size: numbers in their face features.
        batch_size: clips in a batch.

    Returns:
        tf.data.Dataset of (float16 (B, N_FRAMES, N_BINS, 2), float32 (B, feature_size)), and a list that receives the error
        when a file is at fault: TensorFlow itself only passes its text on.
    """
    errors = []

    def read(number):
        return load_spectrogram(data, clips[number]), load_embedding(data, clips[number], feature_size)

    return _read_all(tf.data.Dataset.range(len(clips)), read, N_FRAMES, feature_size, batch_size, errors), errors


@dataclasses.dataclass(frozen=True)
class Crops:
    """What training hears of the clips: a function of seed, epoch and clip, whatever the hardware."""

    batch_size: int  # clips in a step, over all replicas
    n_frames: int  # of a clip, from anywhere in it, N_FRAMES or fewer
    mask_bins: int  # two bands of up to so many frequency bins are silenced
    mask_frames: int  # two spans of up to so many frames are silenced
    seed: int

    def of(self, spectrogram: np.ndarray, epoch: int, number: int) -> np.ndarray:
        """Cut and mask clip `number` for an epoch. float16 (N_FRAMES, N_BINS, 2) -> float16 (n_frames, N_BINS, 2)

        Source of the masks: Park et al., "SpecAugment", Interspeech 2019.
        """
        rng = np.random.default_rng([self.seed, epoch, number])
        start = rng.integers(N_FRAMES - self.n_frames + 1)
        crop = spectrogram[start : start + self.n_frames].copy()
        for _ in range(2):
            for axis, most in enumerate((self.mask_frames, self.mask_bins)):
                length = rng.integers(min(most, crop.shape[axis]) + 1)
                start = rng.integers(crop.shape[axis] - length + 1)
                crop[(slice(None),) * axis + (slice(start, start + length),)] = 0
        return crop


def training_batches(data: Path, clips: list[str], feature_size: int, crops: Crops, first_step: int, last_step: int):
    """Read crops of clips for the steps [first_step, last_step), counted over all epochs, on all replicas of the strategy.

    Each epoch takes the clips in an order of its own, and leaves out the last ones where they fill no batch. Which clips make
    up a step, and what is heard of each, depends on `crops` alone.

    Returns:
        Iterator of what `training_step` takes, and a list that receives the error when a file is at fault.
    """
    strategy, errors = tf.distribute.get_strategy(), []
    n_steps = len(clips) // crops.batch_size  # in an epoch

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng([crops.seed, epoch]).permutation(len(clips))

    def read(place):
        step, in_batch = divmod(place, crops.batch_size)
        epoch, step = divmod(step, n_steps)
        number = order(epoch)[step * crops.batch_size + in_batch]
        spectrogram = crops.of(load_spectrogram(data, clips[number]), epoch, number)
        return spectrogram, load_embedding(data, clips[number], feature_size)

    def of_one_machine(context):
        share = crops.batch_size // context.num_input_pipelines  # of each batch, this machine's
        numbers = tf.data.Dataset.range(first_step * share, last_step * share)
        places = numbers.map(lambda n: n // share * crops.batch_size + context.input_pipeline_id * share + n % share)
        per_replica = context.get_per_replica_batch_size(crops.batch_size)
        return _read_all(places, read, crops.n_frames, feature_size, per_replica, errors)

    return iter(strategy.distribute_datasets_from_function(of_one_machine)), errors


@functools.lru_cache(maxsize=1)
def _hearing(encoder):
    """Return the encoder as a compiled function."""
    return tf.function(lambda spectrograms: encoder(spectrograms, training=False), reduce_retracing=True)


def predict_features(encoder, data: Path, clips: list[str], feature_size: int, batch_size: int, n_frames: int = N_FRAMES):
    """Hear all clips, the first n_frames of each.

    Returns:
        The features predicted from the voices, and those of the true faces, both float32 (len(clips), feature_size).

    Raises:
        InputError: if a clip's files are broken.
    """
    batches, errors = clip_batches(data, clips, feature_size, batch_size)
    voices, faces = [], []
    try:
        for spectrograms, features in batches:
            voices.append(_hearing(encoder)(spectrograms[:, :n_frames]).numpy())
            faces.append(features.numpy())
    except tf.errors.OpError as error:
        raise (errors or [error])[0] from None
    return np.concatenate(voices), np.concatenate(faces)
