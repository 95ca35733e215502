"""Hardware, optimizer and training step."""

import os

from model import cpu_flags
from voices.backend import keras, tf

# ----------------------------------------------------------------------------------------------------------------------
# Training: hardware, optimizer, step.

# Source: Oh et al., "Speech2Face", CVPR 2019, implementation details.
BETA_1 = 0.5
EPSILON = 1e-4
DECAY_RATE, DECAY_STEPS = 0.95, 10_000  # the paper's learning rate: times 0.95 every 10,000 steps

WARM_UP = 0.05  # of all steps, while the cosine schedule rises
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000  # of mixed_float16, as Keras has them


def best_precision() -> str:
    """Return the Keras policy that is fastest on this machine: mixed only where the hardware computes with 16 bits."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = min(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
        return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def strategy():
    """Return how to spread the work: over the machines that TF_CONFIG names; over all GPUs; or, where there is no GPU, over all
    CPU devices. To be called before anything is computed.

    One device alone takes TensorFlow's default strategy: the same computation, without the hand-over of batches between
    devices.
    """
    if os.environ.get("TF_CONFIG"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def is_chief() -> bool:
    """Return whether this machine, of those that train together, is the one that validates and writes."""
    cluster = tf.distribute.get_strategy().cluster_resolver
    return (
        cluster is None
        or cluster.task_type in (None, "", "chief")
        or (cluster.task_id == 0 and "chief" not in cluster.cluster_spec().jobs)
    )


def adam(encoder, schedule: str, learning_rate: float, n_steps: int, weight_decay: float):
    """Return Adam with the paper's constants, ready for the encoder's weights.

    Args:
        encoder: the model to be trained.
        schedule: "paper", steps down by DECAY_RATE; or "cosine", up over the first WARM_UP of n_steps, then down to 0.
        learning_rate: the highest, at the start or after the warm-up.
        n_steps: of the whole training.
        weight_decay: share of the kernels that a step takes away, times the learning rate (AdamW).
    """
    if schedule == "paper":
        rate = keras.optimizers.schedules.ExponentialDecay(learning_rate, DECAY_STEPS, DECAY_RATE, staircase=True)
    else:
        rising = max(1, round(WARM_UP * n_steps))
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, n_steps - rising), warmup_target=learning_rate, warmup_steps=rising
        )
    optimizer = keras.optimizers.Adam(rate, beta_1=BETA_1, epsilon=EPSILON, weight_decay=weight_decay or None)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(encoder.trainable_variables)
    return optimizer


class LossScale(keras.layers.Layer):
    """The factor that keeps mixed_float16's gradients above its smallest number: halved when they overflow, doubled after
    STEPS_TO_DOUBLE steps in which they did not. Keras's own does not work over several GPUs.
    """

    def __init__(self):
        super().__init__(dtype="float32", trainable=False)
        self.factor = self.add_weight(name="factor", initializer=keras.initializers.Constant(FIRST_LOSS_SCALE))
        self.steps = self.add_weight(name="steps", initializer="zeros")

    def update(self, finite):
        """Take note of a step. Returns nothing."""
        steps = tf.where(finite, self.steps + 1, 0.0)
        double = steps >= STEPS_TO_DOUBLE
        self.factor.assign(tf.where(finite, tf.where(double, 2.0, 1.0), 0.5) * self.factor)
        self.steps.assign(tf.where(double, 0.0, steps))


def training_step(encoder, optimizer, loss, batch_size: int, loss_scale: LossScale | None = None):
    """Return a function that trains on a batch of `training_batches` and returns its mean loss over all replicas."""
    strategy = tf.distribute.get_strategy()
    variables = encoder.trainable_variables

    def on_one_replica(spectrograms, faces):
        with tf.GradientTape() as tape:
            clip_losses = loss(faces, encoder(spectrograms, training=True))
            mean = tf.reduce_sum(clip_losses) / batch_size
            scaled = mean * tf.convert_to_tensor(loss_scale.factor) if loss_scale else mean
        gradients = tape.gradient(scaled, variables)
        if loss_scale:
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
            if strategy.num_replicas_in_sync > 1:
                failures = tf.distribute.get_replica_context().all_reduce("SUM", tf.cast(~finite, tf.float32))
                finite = failures == 0
            gradients = [tf.where(finite, gradient / loss_scale.factor, 0.0) for gradient in gradients]  # 0: a step left out
            loss_scale.update(finite)
        optimizer.apply(gradients, variables)
        return mean

    @tf.function
    def step(batch):
        return strategy.reduce("SUM", strategy.run(on_one_replica, batch), axis=None)

    return step
