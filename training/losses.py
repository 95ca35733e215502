"""The losses of the voice encoder.

Each loss takes the true and the predicted face features, float32 (B, D), and returns one number a clip, float32 (B,); training
takes the mean over the batch, over all replicas. Those of `loss_function` also take the number of each clip's person, int (B,),
which contrastive alone needs.

Source: slides, "Loss calculations".
"""

import numpy as np

from utils import FEATURE_SIZE, InputError
from voices.backend import tf

LOSSES = "l1", "l2", "total", "contrastive"  # the choices of train.py's --loss
LAMBDA_1, LAMBDA_2 = 0.025, 200.0  # weights of l2 and distillation. Source: Oh et al., CVPR 2019, implementation details
DISTILLATION_TEMPERATURE = 2.0  # same source
# Weight of the third term. Differs from the paper, whose decoder has another scale: here two people differ by 1 in the
# decoder's first layer, and by 2 in l2 when their directions from the centre are independent. The weight makes the two terms
# about equal.
DECODING_WEIGHT = 2 * LAMBDA_1
CONTRASTIVE_TEMPERATURE = 0.1


def l1_loss(face, voice):
    """Return ||v_f - v_s||_1, the sum over the feature."""
    return tf.reduce_sum(tf.abs(face - voice), axis=-1)


def l2_loss(face, voice):
    """Return || v_f/||v_f|| - v_s/||v_s|| ||_2^2, the squared distance of the normalised features, in [0, 4]."""
    difference = tf.math.l2_normalize(face, axis=-1) - tf.math.l2_normalize(voice, axis=-1)
    return tf.reduce_sum(difference**2, axis=-1)


def distillation_loss(face, voice, fc8):
    """Return -sum_i p_i(v_f) log p_i(v_s) over VGG-Face's 2,622 people, with p(a) = softmax(fc8(relu(a)) / T).

    Args:
        face, voice: float32 (B, 4096).
        fc8: function from float32 (B, 4096) to logits, float32 (B, 2622); see `vggface.fc8`.
    """
    p_face, log_p_voice = (
        activation(fc8(tf.nn.relu(feature)) / DISTILLATION_TEMPERATURE)
        for activation, feature in ((tf.nn.softmax, face), (tf.nn.log_softmax, voice))
    )
    return -tf.reduce_sum(p_face * log_p_voice, axis=-1)


def contrastive_loss(face, voice, people):
    """Return the mean of -log p(true face | voice) and -log p(true voice | face), among all clips of the step.

    p is the softmax of the cosine similarities divided by CONTRASTIVE_TEMPERATURE, over the clips of all replicas. Other clips
    of the same person are left out.

    Args:
        face, voice: float32 (B, D).
        people: int (B,), the person of each clip.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018 (InfoNCE).
    """
    face, voice = tf.math.l2_normalize(face, axis=-1), tf.math.l2_normalize(voice, axis=-1)
    all_faces, all_voices, all_people, first = face, voice, people, 0
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        of_clips = face, voice, tf.identity(people)  # the gathering asks for a device, which arguments of a step do not have
        all_faces, all_voices, all_people = (context.all_gather(of_replica, axis=0) for of_replica in of_clips)
        first = context.replica_id_in_sync_group * tf.shape(face)[0]
    true = first + tf.range(tf.shape(face)[0])
    same_person = people[:, None] == all_people  # (B, B of all replicas)
    left_out = same_person & (true[:, None] != tf.range(tf.shape(all_faces)[0]))

    def cross_entropy(queries, answers):
        logits = tf.matmul(queries, answers, transpose_b=True) / CONTRASTIVE_TEMPERATURE  # (B, B of all replicas)
        logits = tf.where(left_out, logits.dtype.min, logits)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(true, logits)

    return (cross_entropy(voice, all_faces) + cross_entropy(face, all_voices)) / 2


def decoding_loss(face, voice, first_layer):
    """Return || f_dec(v_f) - f_dec(v_s) ||_1, the sum over the first layer of the face decoder: the paper's third term.

    Args:
        face, voice: float32 (B, D).
        first_layer: `decoder.first_layer`, a function from float32 (B, D) to float32 (B, R).
    """
    return tf.reduce_sum(tf.abs(first_layer(face) - first_layer(voice)), axis=-1)


def loss_function(name: str, centre: np.ndarray, load_fc8=None, first_layer=None):
    """Return one of LOSSES, by train.py's --loss: a function of faces, voices and the people of the clips.

    Args:
        name: l1, l2, total or contrastive.
        centre: float32 (D,), the origin from which l2 and contrastive compare directions. Most of a face feature is the mean
            face, which all people share and which hides the differences between them.
        load_fc8: `vggface.fc8`, which is called for total.
        first_layer: first layer of the face decoder, for total's third term, see `decoding_loss`; None leaves the term out.

    Raises:
        InputError: if VGG-Face's weights are needed and missing, or the features are not VGG-Face's.
    """
    centre = tf.constant(centre)

    def l2(face, voice, people=None):
        return l2_loss(face - centre, voice - centre)

    if name == "total":
        if len(centre) != FEATURE_SIZE["vggface"]:
            raise InputError(
                f"--loss total: expected face features of {FEATURE_SIZE['vggface']} numbers, for VGG-Face's last layer, found "
                f"{len(centre)}; use another --loss, or make the clips ready with preprocess.py --face-model vggface"
            )
        fc8 = load_fc8()

        def total(face, voice, people=None):
            of_both = LAMBDA_1 * l2(face, voice) + LAMBDA_2 * distillation_loss(face, voice, fc8)
            return of_both + DECODING_WEIGHT * decoding_loss(face, voice, first_layer) if first_layer else of_both

        return total
    return {
        "l1": lambda face, voice, people=None: l1_loss(face, voice),
        "l2": l2,
        "contrastive": lambda face, voice, people: contrastive_loss(face - centre, voice - centre, people),
    }[name]
