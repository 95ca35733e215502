"""A listener: a trained run, loaded once, that answers recordings with faces.

S is the side of a decoded picture in pixels, D the numbers of a face feature, E those of an embedding.
"""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

import model
import utils
from clips import recordings
from clips.recordings import Recording
from faces.portraits import FaceDecoder
from judging.search import most_similar
from listening import certainty
from listening.certainty import Certainty, TrainingVoices
from listening.gallery import Gallery
from training import runs
from utils import CLIP_SAMPLES, InputError, check_directions, normalise
from voices.backend import keras

WINDOW_HOP = CLIP_SAMPLES // 2  # samples between the starts of two windows of a long recording
MOST_WINDOWS = 20  # of a recording; of more, so many are taken, spread over it
WINDOWS_PER_PASS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """The face that a recording suggests."""

    picture: np.ndarray | None  # uint8 (S, S, 3), RGB: the likeliest face; None without a face decoder
    feature: np.ndarray | None  # float32 (D,), the expected face feature, as of photos; None without a face decoder
    spread: np.ndarray | None  # float32 (D,), standard deviation of what the voice leaves possible, of each of its numbers
    direction: np.ndarray  # float32 (D,), of length 1: of the prediction as seen from the centre, for the most similar faces
    certainty: Certainty | None  # None for a run of an earlier version
    recording: Recording  # what was taken for speech

    @property
    def seed(self) -> int:
        """Of the samples: the same for the same recording."""
        return zlib.crc32(self.recording.speech.tobytes())


@dataclasses.dataclass(frozen=True)
class Listener:
    """A loaded run. `load` makes one."""

    folder: Path
    run: dict  # of `runs.read_run`
    encoder: keras.Model  # from spectrograms to face features
    embedder: keras.Model  # the same without its last layer
    face_decoder: FaceDecoder | None  # None where there is no run of a face decoder
    voices: TrainingVoices | None  # None for a run of an earlier version

    @property
    def centre(self) -> np.ndarray:
        """The mean face feature of the training faces, float32 (D,): directions of features are measured from there."""
        return self.run["centre"]

    def face(self, recording, rate: int | None = None) -> Face:
        """Answer a recording with the face that it suggests.

        Args:
            recording: path of a file in any of `clips.media.FORMATS`; or samples, float in [-1, 1] or int16, (samples,) or
                (samples, channels); or a `Recording`.
            rate: of samples, Hz.

        Raises:
            InputError: if the recording cannot be read or has no speech in it.
        """
        if not isinstance(recording, Recording):
            is_path = isinstance(recording, (str, Path))
            if is_path != (rate is None):
                expected = "no rate with a path" if is_path else "a sampling rate with samples"
                raise InputError(f"rate: expected {expected}, found {rate}")
            recording = recordings.read_recording(Path(recording)) if is_path else recordings.from_samples(recording, rate)
        direction, length, halves = self._predict(recording.speech)
        picture = feature = spread = None
        if self.face_decoder:
            likely = self.face_decoder.likely
            picture = self.face_decoder.from_voices(direction[None])[0]
            feature, spread = likely.features(direction[None])[0], likely.spreads(direction[None])[0]
        sure = self.voices and self.voices.judge(halves, length)
        return Face(picture, feature, spread, direction, sure, recording)

    def predict(self, speech: np.ndarray) -> np.ndarray:
        """Predict the direction of a face feature from speech of any length.

        More than a clip is cut into windows of CLIP_SAMPLES, WINDOW_HOP apart; the last one ends with the speech. Their
        predictions are averaged.

        Args:
            speech: float32 (samples,), mono at SAMPLE_RATE, in [-1, 1]; CLIP_SAMPLES at least.

        Returns:
            float32 (D,), of length 1: the mean direction of the windows' predictions as seen from the centre.
        """
        return self._predict(speech)[0]

    def _predict(self, speech):
        """Return the direction, (D,), the mean length of the windows' predictions, and embeddings of halves, (M, E)."""
        last = len(speech) - CLIP_SAMPLES
        starts = np.array(sorted({*range(0, last, WINDOW_HOP), last}))
        if len(starts) > MOST_WINDOWS:
            starts = starts[np.linspace(0, len(starts) - 1, MOST_WINDOWS).round().astype(int)]
        predicted, halves = [], []
        for first in range(0, len(starts), WINDOWS_PER_PASS):
            windows = np.stack([speech[start : start + CLIP_SAMPLES] for start in starts[first : first + WINDOWS_PER_PASS]])
            # Not compiled: that would take longer than it saves on some recordings.
            predicted.append(self.encoder.layers[-1](self.embedder(model.spectrogram(windows))).numpy())
            if self.voices:
                of_halves = windows.reshape(2 * len(windows), CLIP_SAMPLES // 2)
                halves.append(self.embedder(model.spectrogram(of_halves)).numpy())
        differences = np.concatenate(predicted) - self.centre
        direction = normalise(normalise(differences).mean(axis=0, keepdims=True))[0]
        return direction, float(np.linalg.norm(differences, axis=1).mean()), np.concatenate(halves) if halves else None

    def samples(self, face: Face, n: int) -> np.ndarray:
        """Decode n faces sampled from those that a voice leaves possible: people who sound like this. Needs a face decoder.

        Returns:
            uint8 (n, S, S, 3), RGB; always the same ones for a recording.
        """
        return self.face_decoder.samples(face.direction, n, face.seed)

    def most_similar(self, directions: np.ndarray, gallery: Gallery, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k faces of a gallery, or all if there are fewer, that are the most similar to each prediction.

        Args:
            directions: float32 (Q, D), `Face.direction` of each.

        Returns:
            int64 (Q, k), numbers of faces, the most similar first; float32 (Q, k), their cosines as seen from the centre.

        Raises:
            ValueError: if a direction's length is not 1.
        """
        check_directions(directions)
        return most_similar(directions, gallery.features, min(k, len(gallery.names)), centre=self.centre)


def load(folder: Path, decoder: str | None = None, exaggerate: float = 1.0, needs_faces: bool = False) -> Listener:
    """Load a run and, where there is one, the face decoder for its features.

    Args:
        folder: of the run of a voice encoder.
        decoder: run of a face decoder; None for the first of `runs.decoder_folders`.
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
    encoder = runs.load_encoder(folder, run)
    return Listener(folder, run, encoder, model.embedder(encoder), face_decoder, certainty.load(folder / utils.CERTAINTY))
