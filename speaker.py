"""The pretrained ear: a speaker encoder's weights, and the closed-form step from what it hears to a face feature.

The network was trained to tell 18,000 people apart by their voices, without faces; its weights (17 MB) come with the package
resemblyzer, whose code is not needed. What it computes is `model.speaker_encoder`.

Source: Wan et al., "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018 (GE2E).

Never imports TensorFlow.
"""

import collections
import dataclasses
import importlib.util
import pickle
import struct
import typing
from pathlib import Path

import numpy as np

from utils import FFT_SIZE, SAMPLE_RATE, WINDOW, InputError

N_MELS = 40  # mel bands
WINDOW_FRAMES = 160  # spectrogram frames heard at a time, 1.6 s
WINDOW_STEP = 77  # frames from one window to the next, at most: 1.3 windows a second
LEVEL_DB = -30.0  # dB of full scale: softer voices are made as loud as this
PAUSE_DB = 30.0  # dB below a clip's loudest frame: what is softer is a pause
PAUSE_MARGIN = 10  # frames of a pause that stay on each side of speech
N_LAYERS, UNITS = 3, 256  # of the LSTM; the embedding has as many numbers

PENALTIES = 10.0 ** np.arange(-2, 3.5, 0.5)  # of ridge regression, in mean variances of the embedding's numbers
TARGET_PENALTY = 1.0  # of whitening, in mean variances of the face feature's numbers


def mel_filterbank() -> np.ndarray:
    """Return the network's mel filterbank for this project's power spectra, float32 (N_BINS, N_MELS).

    The package's own frames are of 400 samples, these of 512: as much power lies in more bins.
    """
    import librosa

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT_SIZE, n_mels=N_MELS).T * np.float32(WINDOW / FFT_SIZE)


# ----------------------------------------------------------------------------------------------------------------------
# The weights.


class _Unpickler(pickle.Unpickler):
    """Reads an old file of torch.save without PyTorch, and admits only what such a file of weights needs."""

    ADMITTED: typing.ClassVar = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "FloatStorage"): np.float32,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides),
    }

    def find_class(self, module, name):
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused {module}.{name}") from None

    def persistent_load(self, key):
        _, _, name, _, size, _ = key  # "storage", class, name, device, numbers in it, view
        return name, size


def weights_path() -> Path:
    """Return the path of the package's file of weights. Raises InputError if the package is not installed."""
    package = importlib.util.find_spec("resemblyzer")  # found, not imported
    path = Path(package.submodule_search_locations[0], "pretrained.pt") if package else None
    if path is None or not path.exists():
        raise InputError(
            "--encoder speaker: expected the weights in the package resemblyzer, found none; "
            "pip install --no-deps resemblyzer==0.1.4"
        )
    return path


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """Read the network's weights out of a file that an old torch.save wrote.

    Such a file is five pickles (magic number, version, sizes of types, the objects, names of the storages), and then the
    storages: each its size, int64, and its numbers.

    Returns:
        Arrays by name, float32: lstm.weight_ih_l0 (1024, 40), lstm.weight_hh_l0 (1024, 256), ..., linear.weight (256, 256).

    Raises:
        InputError: if it is something else.
    """
    try:
        with open(path, "rb") as file:
            _, _, _, objects, names = (_Unpickler(file).load() for _ in range(5))
            storages = {}
            for name in names:
                (size,) = struct.unpack("<q", file.read(8))
                storages[name] = np.frombuffer(file.read(4 * size), "<f4", size)
        weights = {}
        for name, ((storage, _), offset, shape, strides) in objects["model_state"].items():
            numbers, last = storages[storage][offset:], sum((n - 1) * stride for n, stride in zip(shape, strides))
            if last >= len(numbers) or min(strides, default=0) < 0:
                raise ValueError(f"{name} is cut off")
            weights[name] = np.lib.stride_tricks.as_strided(numbers, shape, [4 * stride for stride in strides]).copy()
        return weights
    except Exception as error:  # broken bytes may make the unpickler raise anything
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"{path}: expected the weights of resemblyzer 0.1.4, found something else ({reason}); "
            "pip install --no-deps --force-reinstall resemblyzer==0.1.4"
        ) from error


# ----------------------------------------------------------------------------------------------------------------------
# From embedding to face feature, in closed form.


@dataclasses.dataclass
class Moments:
    """Sums over clips: all that regression needs to know of them. E numbers in an embedding, D in a face feature."""

    n: int
    x: np.ndarray  # float64 (E,), sum of the embeddings
    y: np.ndarray  # float64 (D,), sum of the face features
    xx: np.ndarray  # float64 (E, E), sums of products, and so are the next two
    xy: np.ndarray  # float64 (E, D)
    yy: np.ndarray  # float64 (D, D)

    @classmethod
    def zero(cls, embedding_size: int, feature_size: int) -> "Moments":
        """Return those of no clip."""
        e, d = embedding_size, feature_size
        return cls(0, np.zeros(e), np.zeros(d), np.zeros((e, e)), np.zeros((e, d)), np.zeros((d, d)))

    def add(self, embeddings: np.ndarray, faces: np.ndarray) -> None:
        """Add clips, float (n, E) and (n, D)."""
        x, y = np.asarray(embeddings, np.float64), np.asarray(faces, np.float64)
        self.n += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.T @ y


def _power(covariance: np.ndarray, penalty: float, exponent: float) -> np.ndarray:
    """Return a power of a covariance, its variances raised by `penalty` times their mean."""
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0) + penalty * max(variances.mean(), np.finfo(np.float32).tiny)
    return (axes * variances**exponent) @ axes.T


def heads(moments: Moments, penalties, whitening: float):
    """Solve the regression of face features on embeddings, for several penalties.

    Ridge regression, whose targets may be whitened in part: a face feature varies much in a few directions, and what is left
    of the others tells people apart too. The targets are multiplied by the power -whitening / 2 of their covariance, and so is
    the answer, which makes similarity to the faces as they are the one that the regression was for.

    Args:
        moments: of the training clips.
        penalties: of the ridge, in mean variances of the embedding's numbers.
        whitening: 0 for plain ridge regression, 1 for whole whitening.

    Yields:
        For each penalty, kernel float32 (E, D) and bias float32 (D,): face feature = embedding @ kernel + bias, as long as it
        fits the training faces best.
    """
    n = moments.n
    mean_x, mean_y = moments.x / n, moments.y / n
    xx, xy, yy = (
        products / n - np.outer(a, b)
        for products, a, b in (
            (moments.xx, mean_x, mean_x),
            (moments.xy, mean_x, mean_y),
            (moments.yy, mean_y, mean_y),
        )
    )
    targets = xy @ _power(yy, TARGET_PENALTY, -whitening) if whitening else xy
    for penalty in penalties:
        kernel = _power(xx, penalty, -1) @ targets
        kernel *= np.sum(kernel * xy) / max(np.sum((xx @ kernel) * kernel), np.finfo(np.float32).tiny)
        yield kernel.astype(np.float32), (mean_y - mean_x @ kernel).astype(np.float32)
