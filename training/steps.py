"""The devices that training runs on, the optimizer, and one training step."""

import collections
import os
from pathlib import Path

from model import cpu_flags
from voices.backend import keras, tf

# Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
BETA_1 = 0.5
EPSILON = 1e-4
DECAY_RATE, DECAY_STEPS = 0.95, 10_000  # the paper's learning rate: times 0.95 every 10,000 steps

SYSTEM = Path("/")
NVIDIA_FILES = "dev/nvidia[0-9]*", "usr/lib/wsl/lib/libcuda.so*"  # of NVIDIA's driver on Linux, and on Linux within Windows
VOTES_UNREAD = 2  # of the machines, on whether to stop

WARM_UP = 0.05  # share of all steps in which the cosine schedule rises
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000  # of mixed_float16, Keras's values
LEAST_LOSS_SCALE = 1.0  # of mixed_float16; at 0 every further loss would be nan


def best_precision() -> str:
    """Return the fastest Keras policy on this machine: a mixed one only where the hardware computes with 16 bits."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = min(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
        return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def strategy():
    """Return the TensorFlow strategy: all machines that TF_CONFIG names, all GPUs, or, without a GPU, all CPU devices.

    Call this function before anything is computed. A single device gets TensorFlow's default strategy: the same computation,
    without handing batches over between devices.
    """
    if os.environ.get("TF_CONFIG"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def devices(replicas: int) -> str:
    """Describe the devices of a strategy with this many replicas: "1 CPU", "2 GPUs (NVIDIA H100)"."""
    gpus = tf.config.list_physical_devices("GPU")
    names = {tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus} - {None}
    several = "s" if replicas > 1 else ""
    return f"{replicas} {'GPU' if gpus else 'CPU'}{several}" + (f" ({', '.join(sorted(names))})" if names else "")


def has_unused_gpu() -> bool:
    """Return whether NVIDIA's driver offers a GPU, and TensorFlow finds none that the user has not hidden from it."""
    offered = any(list(SYSTEM.glob(pattern)) for pattern in NVIDIA_FILES)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return offered and not hidden and not tf.config.list_physical_devices("GPU")


def is_chief() -> bool:
    """Return whether this machine validates and writes; one of the machines that train together does."""
    cluster = tf.distribute.get_strategy().cluster_resolver
    return (
        cluster is None
        or cluster.task_type in (None, "", "chief")
        or (cluster.task_id == 0 and "chief" not in cluster.cluster_spec().jobs)
    )


def learning_rates(schedule: str, learning_rate: float, n_steps: int):
    """Return a Keras schedule, a function from the step to the learning rate. Args as `adam`."""
    if schedule == "paper":
        return keras.optimizers.schedules.ExponentialDecay(learning_rate, DECAY_STEPS, DECAY_RATE, staircase=True)
    rising = max(1, round(WARM_UP * n_steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_steps - rising), warmup_target=learning_rate, warmup_steps=rising
    )


def agreement(wishes: list):
    """Return a function that tells, alike on all machines, whether one of them wishes to stop.

    All machines must call the function equally often. On several machines its answer is that of VOTES_UNREAD calls before:
    their wishes are added up on the devices, behind the step, and to read the sum at once would let the devices wait.

    Args:
        wishes: list of this machine, empty unless it wishes to stop.
    """
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda: bool(wishes)
    votes = collections.deque()

    @tf.function
    def total(vote):
        return strategy.reduce("SUM", strategy.run(lambda: tf.identity(vote)), axis=None)

    def stops():
        votes.append(total(tf.constant(float(bool(wishes)))))
        return len(votes) > VOTES_UNREAD and float(votes.popleft()) > 0

    return stops


def adam(encoder, schedule: str, learning_rate: float, n_steps: int, weight_decay: float):
    """Return Adam with the paper's constants, built for the encoder's weights.

    Args:
        encoder: the model to be trained.
        schedule: "paper" falls in steps, by DECAY_RATE; "cosine" rises over the first WARM_UP of n_steps, then falls to 0.
        learning_rate: the highest rate, at the start or after the warm-up.
        n_steps: steps of the whole training.
        weight_decay: times the learning rate, the share that each step takes from the kernels (AdamW).
    """
    rate = learning_rates(schedule, learning_rate, n_steps)
    optimizer = keras.optimizers.Adam(rate, beta_1=BETA_1, epsilon=EPSILON, weight_decay=weight_decay or None)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(encoder.trainable_variables)
    return optimizer


class LossScale(keras.layers.Layer):
    """The factor that keeps the gradients of mixed_float16 above its smallest number.

    The factor is halved when gradients overflow, to LEAST_LOSS_SCALE at least, and doubled after STEPS_TO_DOUBLE steps without
    overflow. Keras's own implementation does not work over several GPUs.
    """

    def __init__(self):
        super().__init__(dtype="float32", trainable=False)
        self.factor = self.add_weight(name="factor", initializer=keras.initializers.Constant(FIRST_LOSS_SCALE))
        self.steps = self.add_weight(name="steps", initializer="zeros")

    def update(self, finite):
        """Count a step whose gradients were finite, bool (), or halve the factor."""
        steps = tf.where(finite, self.steps + 1, 0.0)
        double = steps >= STEPS_TO_DOUBLE
        factor = tf.where(finite, tf.where(double, 2.0, 1.0), 0.5) * self.factor
        self.factor.assign(tf.maximum(factor, LEAST_LOSS_SCALE))
        self.steps.assign(tf.where(double, 0.0, steps))


def training_step(encoder, optimizer, loss, batch_size: int, loss_scale: LossScale | None = None):
    """Return a function that trains on a batch of `training_batches` and returns its mean loss over all replicas.

    With a loss scale, a step whose gradients overflow on one of the replicas changes nothing but the loss scale: no weight, no
    state of the optimizer and no running statistics of batch norm, on any replica.
    """
    strategy = tf.distribute.get_strategy()
    variables = encoder.trainable_variables

    def loss_and_gradients(spectrograms, faces, *people):
        with tf.GradientTape() as tape:
            clip_losses = loss(faces, encoder(spectrograms, training=True), *people)
            mean = tf.reduce_sum(clip_losses) / batch_size
            scaled = mean * tf.convert_to_tensor(loss_scale.factor) if loss_scale else mean
        return mean, tape.gradient(scaled, variables)

    def apply(gradients):
        optimizer.apply(gradients, variables)

    def plain_step(*batch):
        mean, gradients = loss_and_gradients(*batch)
        apply(gradients)
        return mean

    def scaled_gradients(*batch):
        statistics = [tf.identity(variable) for variable in encoder.non_trainable_variables]  # before this step
        mean, gradients = loss_and_gradients(*batch)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        gradients = [gradient / loss_scale.factor for gradient in gradients]
        return mean, gradients, statistics, tf.cast(~finite, tf.float32)

    def restore(statistics):
        for variable, value in zip(encoder.non_trainable_variables, statistics):
            variable.assign(value)

    @tf.function
    def step(batch):
        return strategy.reduce("SUM", strategy.run(plain_step, batch), axis=None)

    @tf.function
    def scaled_step(batch):
        means, gradients, statistics, failures = strategy.run(scaled_gradients, batch)
        finite = strategy.reduce("SUM", failures, axis=None) == 0  # on all replicas
        if finite:
            strategy.run(apply, (gradients,))
        else:
            strategy.run(restore, (statistics,))
        loss_scale.update(finite)
        return strategy.reduce("SUM", means, axis=None)

    return scaled_step if loss_scale else step
