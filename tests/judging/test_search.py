import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from judging.search import most_similar
from utils import normalise


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12), st.integers(1, 45), st.integers(0, 9))
@settings(max_examples=60)
def test_most_similar_is_exact(n_voices, n_faces, rows, k, seed):
    rng = np.random.default_rng(seed)
    voices = rng.integers(-2, 3, (n_voices, 4)).astype(np.float32)  # few values, many ties
    faces = rng.integers(-2, 3, (n_faces, 4)).astype(np.float16)
    k = min(k, n_faces)
    numbers, cosines = most_similar(voices, faces, k, rows)
    all_cosines = normalise(voices) @ normalise(faces.astype(np.float32)).T
    assert numbers.shape == cosines.shape == (n_voices, k) and all(len({*row}) == k for row in numbers)
    np.testing.assert_allclose(cosines, -np.sort(-all_cosines, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(all_cosines, numbers, 1), cosines, atol=1e-6)


def test_a_gallery_on_disk_is_never_in_memory(tmp_path, rng):
    path = tmp_path / "faces.npy"
    np.save(path, rng.normal(size=(40_000, 512)).astype(np.float16))  # 41 MB; 82 MB as float32
    faces = np.load(path, mmap_mode="r")
    voices = np.asarray(faces[[3, 39_999]], np.float32)
    tracemalloc.start()
    numbers, _ = most_similar(voices, faces, 5, rows=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers[:, 0].tolist() == [3, 39_999] and peak < 12e6
