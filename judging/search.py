"""Exact search for the most similar faces in a gallery of any size, in memory or on disk."""

import concurrent.futures

import numpy as np

from utils import normalise


def most_similar(voices: np.ndarray, faces, k: int, rows: int = 8192, centre=None) -> tuple[np.ndarray, np.ndarray]:
    """Find the k faces with the highest cosine similarity to each voice.

    The faces are read in blocks, the next block while the current one is compared, so that a gallery may be larger than
    memory. No whole row is sorted: only faces that beat the k-th best so far are considered.

    Args:
        voices: float (Q, D).
        faces: float (M, D), any object whose slices are arrays, such as numpy.memmap.
        k: number of faces to find, at most M.
        rows: faces in a block.
        centre: float32 (D,), from which the faces are seen; None for zero. The voices are already seen from there.

    Returns:
        int64 (Q, k), numbers of the faces, the most similar first; equal ones in the order of the gallery. And float32 (Q, k),
        their cosines.
    """
    voices = normalise(np.asarray(voices, np.float32))
    best = np.full((len(voices), k), -np.inf, np.float32)
    found = np.full((len(voices), k), -1, np.int64)

    def read(start):
        block = np.asarray(faces[start : start + rows], np.float32)
        block = block if centre is None else block - centre
        return block, np.sqrt(np.einsum("nd,nd->n", block, block))

    starts = range(0, len(faces), rows)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, 0)
        for start in starts:
            block, lengths = coming.result()
            if start + rows < len(faces):
                coming = reader.submit(read, start + rows)
            similarity = voices @ block.T
            similarity /= np.maximum(lengths, np.finfo(np.float32).tiny)
            if start == 0:  # the k best of the first block are the first to beat
                first = min(k, len(block))
                found[:, :first] = np.argpartition(-similarity, first - 1, axis=1)[:, :first]
                found[:, :first].sort(axis=1)
                best[:, :first] = np.take_along_axis(similarity, found[:, :first], axis=1)
                if first == k:
                    continue
                similarity[np.arange(len(voices))[:, None], found[:, :first]] = -np.inf
            voice, face = np.nonzero(similarity > best.min(axis=1, keepdims=True))
            if len(voice) == 0:
                continue
            place = np.arange(len(voice)) - np.searchsorted(voice, voice)  # among the candidates of the same voice
            shape = (len(voices), place.max() + 1)
            scores, numbers = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
            scores[voice, place], numbers[voice, place] = similarity[voice, face], start + face
            scores, numbers = np.concatenate([best, scores], axis=1), np.concatenate([found, numbers], axis=1)
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            best, found = (np.take_along_axis(array, kept, axis=1) for array in (scores, numbers))
    order = np.lexsort((found, -best), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(best, order, axis=1)
