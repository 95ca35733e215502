"""A listener: a trained run, loaded once, that predicts face features from recordings and decodes them to faces.

S is the side of a decoded picture in pixels, D the numbers of a face feature.
"""

import dataclasses
from pathlib import Path

import numpy as np

import model
import utils
from faces.portraits import FaceDecoder
from judging.search import most_similar
from listening.gallery import Gallery
from training import runs
from utils import CLIP_SAMPLES, InputError, normalise
from voices.backend import keras

WINDOW_HOP = CLIP_SAMPLES // 2  # samples between the starts of two windows of a long recording
WINDOWS_PER_PASS = 8


@dataclasses.dataclass(frozen=True)
class Listener:
    """A loaded run. `load` makes one."""

    folder: Path
    run: dict  # of `runs.read_run`
    encoder: keras.Model  # from spectrograms to face features
    face_decoder: FaceDecoder | None  # None where there is no run of a face decoder

    @property
    def centre(self) -> np.ndarray:
        """The mean face feature of the training faces, float32 (D,): directions of features are measured from there."""
        return self.run["centre"]

    def predict(self, recording: np.ndarray) -> np.ndarray:
        """Predict the direction of a face feature from a recording of any length.

        A recording longer than a clip is cut into windows of CLIP_SAMPLES, WINDOW_HOP apart; the last one ends with the
        recording. Their predictions are averaged.

        Args:
            recording: float32 (samples,), mono at SAMPLE_RATE, in [-1, 1]; CLIP_SAMPLES at least.

        Returns:
            float32 (D,), of length 1: the mean direction of the windows' predictions as seen from the centre.
        """
        last = len(recording) - CLIP_SAMPLES
        starts = sorted({*range(0, last, WINDOW_HOP), last})
        windows = [recording[start : start + CLIP_SAMPLES] for start in starts]
        passes = [windows[first : first + WINDOWS_PER_PASS] for first in range(0, len(windows), WINDOWS_PER_PASS)]
        # Not compiled: that would take longer than it saves on some recordings.
        features = np.concatenate([self.encoder(model.spectrogram(np.stack(some))).numpy() for some in passes])
        return normalise(normalise(features - self.centre).mean(axis=0, keepdims=True))[0]

    def decode(self, prediction: np.ndarray) -> np.ndarray:
        """Decode a prediction to a face. Needs a face decoder.

        One at a time: in a batch the rounding, and with it a few pixels, would depend on the other predictions.

        Args:
            prediction: float32 (D,), of `predict`.

        Returns:
            uint8 (S, S, 3), RGB.
        """
        return self.face_decoder.from_voices(prediction[None])[0]

    def samples(self, prediction: np.ndarray, n: int, seed: int) -> np.ndarray:
        """Decode n faces sampled from those that a prediction of `predict` leaves possible: uint8 (n, S, S, 3), RGB."""
        return self.face_decoder.samples(prediction, n, seed)

    def most_similar(self, predictions: np.ndarray, gallery: Gallery, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k faces of a gallery, or all if there are fewer, that are the most similar to each prediction.

        Args:
            predictions: float32 (Q, D), of `predict`.

        Returns:
            int64 (Q, k), numbers of faces, the most similar first; float32 (Q, k), their cosines as seen from the centre.
        """
        return most_similar(predictions, gallery.features, min(k, len(gallery.names)), centre=self.centre)


def load(folder: Path, decoder: str | None, exaggerate: float, needs_faces: bool = False) -> Listener:
    """Load a run and, where there is one, the face decoder for its features.

    Args:
        folder: of the run of a voice encoder.
        decoder: run of a face decoder; None for utils.DECODER_RUN, if there is such a run.
        exaggerate: of `faces.portraits.FaceDecoder`.
        needs_faces: whether a listener without a face decoder is of no use.

    Raises:
        InputError: if a run does not exist or is broken, or a face decoder is needed and there is none.
    """
    run = runs.read_run(folder)
    face_decoder = runs.load_face_decoder(decoder, folder, run["feature_size"], exaggerate)
    if needs_faces and face_decoder is None:
        expected = "expected a face decoder, or faces to choose from, found neither"
        advice = "choose from photos with --among FOLDER, or make a decoder with python train.py decoder"
        raise InputError(f"{utils.run_folder(utils.DECODER_RUN)}: {expected}; {advice}")
    return Listener(folder, run, runs.load_encoder(folder, run), face_decoder)
