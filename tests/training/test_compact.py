import numpy as np
import pytest
from conftest import small_decoder, write_decoder_run

import model
import utils
from training import compact, runs
from utils import InputError
from voices.backend import keras

VOICE = {"encoder": "conv", "feature_size": 128, "width": 0.03, "embedding": None}


def encoder_of(rng):
    """Return a narrow voice encoder whose weights are all random, with those of batch norm."""
    encoder = model.voice_encoder(128, 0.03)
    encoder.set_weights([rng.uniform(0.01, 1, of.shape).astype(np.float32) for of in encoder.get_weights()])
    return encoder


@pytest.fixture
def saved(rng, tmp_path):
    """An encoder, and the folder of a run that holds its weights in the compact form alone."""
    encoder = encoder_of(rng)
    compact.save(encoder, tmp_path / "run" / utils.COMPACT_WEIGHTS)
    return encoder, tmp_path / "run"


def test_numbers_in_16_bits_are_the_nearest_ones(saved):
    """Also where the run's encoder is loaded: an error of at most one in 2048, of all weights, in their order."""
    encoder, folder = saved
    loaded = runs.load_encoder(folder, VOICE)
    for ours, theirs in zip(loaded.get_weights(), encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float16).astype(np.float32))
        np.testing.assert_allclose(ours, theirs, rtol=2**-11)
    assert [path.name for path in folder.iterdir()] == [utils.COMPACT_WEIGHTS]


def test_a_file_has_two_bytes_a_number(saved):
    encoder, folder = saved
    size = (folder / utils.COMPACT_WEIGHTS).stat().st_size
    assert 2 * encoder.count_params() < size < 2 * encoder.count_params() + 400 * len(encoder.weights)


def test_components_of_pictures_in_8_bits_err_by_half_a_step(rng, tmp_path):
    """A step is the 127th part of a row's largest number; each row has its own, however small; a row of zeros stays."""
    network = small_decoder(rng, rank=4)
    layer = network.get_layer("texture_basis")
    kernel, bias = layer.get_weights()
    kernel *= np.array([[1], [1e-3], [0], [30]])
    layer.set_weights([kernel, bias])
    write_decoder_run(network, tmp_path)
    (tmp_path / utils.BEST_WEIGHTS).unlink()
    compact.save(network, tmp_path / utils.COMPACT_WEIGHTS)
    loaded = runs.load_decoder(tmp_path, runs.read_run(tmp_path, "decoder"))
    found, found_bias = loaded.get_layer("texture_basis").get_weights()
    steps = np.abs(kernel.reshape(4, -1, compact.STRETCH)).max(axis=2) / 127
    errors = np.abs(found - kernel).reshape(4, -1, compact.STRETCH).max(axis=2)
    assert (errors <= 0.5001 * steps).all() and (errors[[0, 1, 3]] > 0.4 * steps[[0, 1, 3]]).mean() > 0.8
    assert not found[2].any()
    np.testing.assert_allclose(np.abs(found).max(axis=1), np.abs(kernel).max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(found_bias, bias.astype(np.float16))  # it alone has 16 bits
    with np.load(tmp_path / utils.COMPACT_WEIGHTS) as stored:
        in_8_bits = [name for name in stored if stored[name].dtype == np.int8]
        assert [stored[name].shape for name in in_8_bits] == [kernel.shape]
        scales = {name: (stored[name].shape, stored[name].dtype) for name in stored if name.endswith(".scale")}
        assert scales == {f"{in_8_bits[0]}.scale": ((4, kernel.shape[1] // compact.STRETCH), np.float32)}
        assert {stored[name].dtype for name in stored} == {np.dtype(of) for of in (np.int8, np.float16, np.float32)}


def test_weights_saved_again_stay_the_same(rng, tmp_path):
    network, again = small_decoder(rng), small_decoder(rng)
    compact.save(network, tmp_path / "a.npz")
    compact.load(network, tmp_path / "a.npz")
    compact.save(network, tmp_path / "b.npz")
    compact.load(again, tmp_path / "b.npz")
    for ours, theirs in zip(again.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def small_network(largest=1.0):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="only")])
    network.layers[0].set_weights([np.full((2, 3), largest, np.float32), np.zeros(3, np.float32)])
    return network


@pytest.mark.parametrize("number", [65_600.0, -1e9, np.inf, np.nan])
def test_a_number_too_large_for_16_bits_is_told(number, tmp_path):
    with pytest.raises(ValueError, match=r"only/kernel: expected numbers of at most 65504\.0, found larger ones"):
        compact.save(small_network(number), tmp_path / "weights.npz")
    assert not list(tmp_path.iterdir())
    compact.save(small_network(65_504.0), tmp_path / "weights.npz")


def arrays_in(path):
    with np.load(path) as stored:
        return dict(stored)


def write(path, arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize("content", [b"", b"no arrays", "cut", "cut in the middle", "one array"])
def test_a_file_that_is_broken_is_named(content, saved):
    path = saved[1] / utils.COMPACT_WEIGHTS
    whole = path.read_bytes()
    if content == "one array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes({"cut": whole[:-100], "cut in the middle": whole[: len(whole) // 2]}.get(content, content))
    with pytest.raises(InputError, match=r"weights\.npz: expected weights of --encoder conv, width 0\.03, 128 outputs, as opt"):
        runs.load_encoder(saved[1], VOICE)


def test_arrays_that_do_not_fit_are_told(saved):
    path = saved[1] / utils.COMPACT_WEIGHTS
    arrays = arrays_in(path)
    n = len(arrays)
    for changed, told in (
        ({name: of for name, of in arrays.items() if name != "3"}, f"expected {n} arrays, found {n - 1}"),
        ({**arrays, str(n): np.zeros(2, np.float16)}, f"expected {n} arrays, found {n + 1}"),
        ({**arrays, "1": arrays["1"][1:]}, r"conv1/bias: expected \(2,\), found \(1,\)"),
    ):
        write(path, changed)
        with pytest.raises(InputError, match=rf"weights\.npz: expected weights of --encoder conv, .* says; .*{told}"):
            runs.load_encoder(saved[1], VOICE)
    write(path, arrays)
    with pytest.raises(InputError, match=r"expected weights of --encoder conv, width 0\.06, 128 outputs"):
        runs.load_encoder(saved[1], {**VOICE, "width": 0.06})


def test_weights_as_keras_writes_them_come_first(saved, rng):
    _, folder = saved
    assert runs.weights_of(folder) == folder / utils.COMPACT_WEIGHTS
    other = encoder_of(rng)
    runs.save_weights(folder / utils.BEST_WEIGHTS, other)
    assert runs.weights_of(folder) == folder / utils.BEST_WEIGHTS
    np.testing.assert_array_equal(runs.load_encoder(folder, VOICE).get_weights()[0], other.get_weights()[0])
    for path in folder.iterdir():
        path.unlink()
    assert runs.weights_of(folder) is None
    with pytest.raises(InputError, match=r"best\.weights\.h5: expected the weights of a run, found no such file"):
        runs.load_encoder(folder, VOICE)
