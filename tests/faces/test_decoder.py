import cv2
import h5py
import numpy as np
import pytest
from conftest import face_shape, in_picture, small_decoder, write_decoder_run
from scipy.interpolate import RBFInterpolator

import utils
from faces import decoder, decoder_statistics, textures
from faces.textures import SIDE
from training import runs
from utils import InputError
from voices.backend import keras, tf

REFERENCE = in_picture(face_shape())


@pytest.fixture(scope="module")
def warp():
    layer = decoder.Warp(dtype="float32")
    layer(np.zeros((1, SIDE, SIDE, 1), np.float32), REFERENCE[None])
    layer.set_weights([REFERENCE])
    return layer


def smooth(rng, *shape, radius=8):
    """Return pictures without detail, float32 (n, S, S, channels), 0 to 255."""
    pictures = np.stack([cv2.GaussianBlur(noise, (0, 0), radius) for noise in rng.normal(size=shape).astype(np.float32)])
    return (255 * (pictures - pictures.min()) / np.ptp(pictures)).reshape(shape)


def moved_shapes(rng, n=2):
    """Return landmarks of faces with open mouths, turned slightly."""
    return np.stack([in_picture(face_shape(0.1, 0.03, 0.1) + 0.01 * rng.normal(size=(68, 2))) for _ in range(n)])


@pytest.fixture
def network(rng):
    return small_decoder(rng)


# ---------------------------------------------------------------- layers


def test_bilinear_sampling_matches_opencv(rng):
    pictures = rng.uniform(0, 255, size=(2, 20, 30, 3)).astype(np.float32)
    x, y = (rng.uniform(-4, size + 4, size=(2, 15, 25)).astype(np.float32) for size in (30, 20))
    x[0, 0, :3], y[0, 0, :3] = (0, 29, 12), (0, 19, 7)  # centres of pixels, the last ones too
    found = decoder.sample_bilinear(pictures, x, y).numpy()
    assert found.shape == (2, 15, 25, 3)
    np.testing.assert_allclose(found[0, 0, :3], pictures[0, (0, 19, 7), (0, 29, 12)], rtol=1e-5)
    for number in range(2):
        maps = np.dstack([x[number], y[number]])
        # OpenCV rounds coordinates to 1/32 of a pixel.
        maps = np.round(maps * 32) / 32
        expected = cv2.remap(pictures[number], maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        again = decoder.sample_bilinear(pictures[number][None], maps[None, ..., 0], maps[None, ..., 1])[0]
        np.testing.assert_allclose(again, expected, atol=0.01)


def composed(**values):
    """Compose half textures whose maps have the given values everywhere: uint8 0 to 255. Returns (S, S, 3)."""
    halves = np.zeros((1, textures.HALF_SIZE), np.float32)
    maps = textures.maps_of(halves)
    for name, of in values.items():
        maps[name][:] = of
    return decoder.Compose()(halves).numpy()[0]


def test_a_person_is_composed_with_the_background_by_hand():
    inside, edge, outside = (textures.DISTANCE_ZERO + shift * decoder.OUTLINE_WIDTH for shift in (5, 0.2, -5))
    skin, wall = np.array([60.0, 120, 180]), decoder.background()
    assert wall.shape == (SIDE, SIDE, 3) and 100 < wall.min() < wall.max() <= 236
    np.testing.assert_allclose(composed(skin=skin / 2, outline=(127.5, inside)), np.broadcast_to(skin, wall.shape), atol=1e-3)
    np.testing.assert_allclose(composed(skin=skin, outline=(255, outside)), wall, atol=1e-3)
    mixed = 0.7 * skin + 0.3 * wall  # 0.2 of the edge's width inside
    np.testing.assert_allclose(composed(skin=skin, outline=(255, edge)), mixed, rtol=1e-5)
    little = decoder.LEAST_SKIN / 2  # so little skin that its colour is uncertain stays dark
    np.testing.assert_allclose(composed(skin=skin * little, outline=(255 * little, inside)), wall * 0 + skin / 2, rtol=1e-4)
    assert composed(skin=400, outline=(255, inside)).max() == 255 and composed(skin=-9, outline=(255, inside)).min() == 0


def test_hair_is_composed_with_skin_by_hand():
    skin, hair, inside = np.array([200.0, 150, 120]), np.array([40.0, 30, 20]), textures.DISTANCE_ZERO + 50
    strands = decoder.strands()
    for share in (0.0, 0.4, 0.7, 1.0):  # all but 0 above LEAST_HAIR
        dense = np.clip((share - decoder.NO_STRANDS) / (decoder.ALL_STRANDS - decoder.NO_STRANDS), 0, 1)
        lit = hair * (1 + decoder.STRAND_CONTRAST * dense * strands)
        found = composed(skin=skin, outline=(255, inside), hair=(*share * hair, 255 * share))
        of_hair = np.clip((share + decoder.STRAND_EDGE * strands - decoder.HALF_HAIR) * decoder.HAIR_STEEPNESS + 0.5, 0, 1)
        np.testing.assert_allclose(found, skin * (1 - of_hair) + (lit if share else 0) * of_hair, rtol=1e-4, atol=1e-3)


def test_strands_fall_from_the_crown_and_are_the_same_on_both_sides():
    strands = decoder.strands()
    assert strands.shape == (SIDE, SIDE, 1) and strands.dtype == np.float32
    np.testing.assert_allclose(strands, strands[:, ::-1], atol=1e-5)
    assert abs(strands.mean()) < 0.1 and 0.7 < strands[SIDE // 2 :].std() < 1.3 and strands[:8].std() < 0.4
    across, down = (np.abs(np.diff(strands[SIDE // 2 :, 40:-40, 0], axis=axis)).mean() for axis in (1, 0))
    assert across > 5 * down  # lines, not spots


def test_landmarks_of_the_reference_shape_change_nothing(warp, rng):
    pictures = rng.uniform(0, 255, size=(2, SIDE, SIDE, 3)).astype(np.float32)
    np.testing.assert_allclose(warp(pictures, np.stack([REFERENCE] * 2)), pictures, atol=0.05)
    assert warp.trainable_variables == [] and len(warp.weights) == 1


def by_scipy(points, values, places):
    """Evaluate scipy's spline; its kernel is r^2 log r, half of the layer's, which halves the smoothing too."""
    smoothing = textures.SMOOTHING / (2 * len(points))
    points = points.astype(np.float64)
    return RBFInterpolator(points / SIDE, values, smoothing=smoothing, kernel="thin_plate_spline")(places / SIDE)


def test_the_warp_follows_scipys_spline(warp, rng):
    """Scipy's spline on the grid, interpolated linearly in between; the picture is sampled by OpenCV."""
    originals, shapes = smooth(rng, 2, SIDE, SIDE, 3), moved_shapes(rng)
    warped = warp(originals, shapes).numpy()
    along, values = np.linspace(0, SIDE - 1, textures.N_GRID), np.concatenate([REFERENCE, textures.border()])
    for number in range(2):
        sources = by_scipy(np.concatenate([shapes[number], textures.border()]), values, textures.grid())
        rows = [[np.interp(np.arange(SIDE), along, row) for row in of.reshape(len(along), -1)] for of in sources.T]
        maps = [np.stack([np.interp(np.arange(SIDE), along, column) for column in np.transpose(of)], axis=1) for of in rows]
        x, y = (of[0].numpy() for of in warp.sources(shapes[number][None]))
        np.testing.assert_allclose(x, maps[0], atol=2e-3)
        np.testing.assert_allclose(y, maps[1], atol=2e-3)
        expected = cv2.remap(
            originals[number], np.float32(np.dstack(maps)), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        # OpenCV rounds coordinates to 1/32 of a pixel.
        slope = max(np.abs(np.diff(originals[number], axis=axis)).max() for axis in (0, 1))
        assert np.abs(warped[number] - expected).max() < 0.01 + slope / 32
        assert np.abs(warped[number] - expected).mean() < 0.05
        assert np.abs(originals[number] - expected).max() > 8


def test_the_layer_and_the_matrix_are_one_spline(warp, rng):
    shape = moved_shapes(rng, 1)[0]
    matrix = textures.spline_matrix(np.concatenate([shape, textures.border()]), textures.grid())
    sources = (matrix @ np.concatenate([REFERENCE, textures.border()])).reshape(textures.N_GRID, textures.N_GRID, 2)
    between = textures.between_grid()
    for of_layer, of_matrix in zip(warp.sources(shape[None]), np.moveaxis(sources, 2, 0)):
        np.testing.assert_allclose(of_layer[0], between @ of_matrix @ between.T, atol=1e-4)


def test_dots_at_the_reference_landmarks_move_to_the_landmarks(warp, rng):
    chosen = [8, 17, 30, 36, 45, 57]
    texture = np.zeros((SIDE, SIDE, 1), np.float32)
    for x, y in REFERENCE[chosen]:
        cv2.circle(texture, (round(16 * x), round(16 * y)), 40, 255.0, -1, cv2.LINE_AA, 4)
    shape = in_picture(face_shape() @ [[1.1, -0.05], [0.05, 0.9]])
    picture = warp(texture[None], shape[None])[0].numpy()
    _, _, _, found = cv2.connectedComponentsWithStats((picture[..., 0] > 100).astype(np.uint8))
    for place in shape[chosen]:
        assert np.linalg.norm(found[1:] - place, axis=1).min() < 0.6


@pytest.mark.parametrize("given", ["textures", "landmarks"])
def test_gradients_of_the_warp_match_finite_differences(given, warp, rng):
    """Along random directions, within a few per cent for float32."""
    pictures, shapes, weights = smooth(rng, 1, SIDE, SIDE, 2), moved_shapes(rng, 1), smooth(rng, 1, SIDE, SIDE, 2)

    def value(pictures, shapes):
        return tf.reduce_mean(warp(pictures, shapes) * (weights - 128))

    direction = smooth(rng, 1, SIDE, SIDE, 2) - 128 if given == "textures" else rng.normal(size=shapes.shape)
    direction, step = direction.astype(np.float32), 0.2

    def along(by):
        return value(*((pictures + by * direction, shapes) if given == "textures" else (pictures, shapes + by * direction)))

    with tf.GradientTape() as tape:
        inputs = tf.constant(pictures), tf.constant(shapes)
        tape.watch(inputs)
        gradient = tape.gradient(value(*inputs), inputs[given == "landmarks"])
    slope = float(tf.reduce_sum(gradient * direction))
    assert slope == pytest.approx(float(along(step) - along(-step)) / (2 * step), rel=0.03)
    assert abs(slope) > 1


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("feature_size, rank", [(128, 5), (4096, 2)])
def test_the_sizes_of_the_decoder(feature_size, rank, rng):
    network = decoder.face_decoder(feature_size, rank)
    assert network.input_shape == (None, feature_size) and network.output_shape == (None, SIDE, SIDE, 3)
    sizes = [(feature_size + 1) * rank, (rank + 1) * textures.HALF_SIZE, (feature_size + 1) * 136, 136]
    assert network.count_params() == sum(sizes)
    shapes = {name: network.get_layer(name).output.shape[1:] for name in ("texture_basis", "landmarks", "texture")}
    assert shapes == {"texture_basis": (textures.HALF_SIZE,), "landmarks": (68, 2), "texture": (SIDE, SIDE, 3)}
    assert len(network.trainable_variables) == 6  # all but the reference shape
    pictures = decoder.decode(network, rng.normal(size=(1, feature_size)).astype(np.float32))
    assert pictures.shape == (1, SIDE, SIDE, 3) and pictures.dtype == np.uint8


def test_symmetric_landmarks_make_a_symmetric_face(network, rng):
    features = rng.normal(size=(3, 6)).astype(np.float32)
    pictures = network(features).numpy()
    np.testing.assert_allclose(pictures, pictures[:, :, ::-1], atol=0.2)
    assert np.abs(pictures[0] - pictures[1]).max() > 20
    kernel, bias = network.get_layer("landmark_slopes").get_weights()
    network.get_layer("landmark_slopes").set_weights([kernel, bias + 2 * rng.normal(size=136)])
    pictures = network(features).numpy()
    assert np.abs(pictures - pictures[:, :, ::-1]).max() > 5


def test_a_decoder_matches_its_layers_by_hand(network, rng):
    features = rng.normal(size=(2, 6)).astype(np.float32)
    (few, few_bias), (basis, mean), (slopes, shape) = (
        network.get_layer(name).get_weights() for name in ("texture_coefficients", "texture_basis", "landmark_slopes")
    )
    halves = (features @ few + few_bias) @ basis + mean
    composed = decoder.Compose()(halves)
    expected = network.get_layer("warp")(composed, (features @ slopes + shape).reshape(-1, 68, 2))
    np.testing.assert_allclose(network(features), expected, atol=0.05)


def test_decoded_pictures_are_clipped_and_do_not_depend_on_the_batch(network, rng, monkeypatch):
    features = rng.normal(size=(5, 6)).astype(np.float32)
    together = decoder.decode(network, features)
    assert together.shape == (5, SIDE, SIDE, 3) and together.dtype == np.uint8
    expected = network(features).numpy().clip(0, 255)
    np.testing.assert_allclose(together, expected, atol=0.51)
    monkeypatch.setattr(decoder, "DECODING_BATCH", 2)
    for other in (decoder.decode(network, features), np.concatenate([decoder.decode(network, one[None]) for one in features])):
        assert np.abs(other.astype(int) - together).max() <= 1  # of values near .5
    bright = decoder.decode(network, 100 * features[:1])
    assert bright.min() == 0 and bright.max() == 255


def test_decoding_uses_the_present_weights_of_the_given_decoder(network, rng):
    features, other = rng.normal(size=(2, 6)).astype(np.float32), small_decoder(np.random.default_rng(7))
    before, of_other = decoder.decode(network, features), decoder.decode(other, features)
    assert np.abs(before.astype(int) - of_other).max() > 5
    network.set_weights(other.get_weights())
    np.testing.assert_array_equal(decoder.decode(network, features), of_other)


def test_saved_and_loaded_weights_decode_the_same_face(network, rng, tmp_path):
    folder = write_decoder_run(network, tmp_path / "run")
    run = runs.read_run(folder, "decoder")
    assert run["feature_size"] == 6 and run["rank"] == 3 and run["clips"] == {"train": ["a_1"], "val": ["b_1"]}
    features = rng.normal(size=(2, 6)).astype(np.float32)
    np.testing.assert_array_equal(decoder.decode(runs.load_decoder(folder, run), features), decoder.decode(network, features))


def test_weights_are_stored_under_the_names_in_earlier_runs(network, tmp_path):
    """Keras names arrays by the classes of layers: another name, and earlier runs no longer load."""
    network.save_weights(tmp_path / "decoder.weights.h5")
    names = []
    with h5py.File(tmp_path / "decoder.weights.h5") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    dense = [f"layers/dense{end}/vars/{n}" for end in ("", "_1", "_2") for n in range(2)]
    assert set(names) == {*dense, "layers/warp/vars/0"}


def test_runs_of_the_other_model_and_broken_weights_are_reported(network, tmp_path):
    folder = write_decoder_run(network, tmp_path / "run")
    with pytest.raises(InputError, match=r"run: expected a run of .*train.py.*, found a run of .*train.py decoder"):
        runs.read_run(folder)
    run = runs.read_run(folder, "decoder")
    with pytest.raises(InputError, match=r"best.weights.h5: expected weights of .*decoder, 6 inputs, 4 components"):
        runs.load_decoder(folder, {**run, "rank": 4})
    (folder / utils.BEST_WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"best.weights.h5: expected the weights of a run, found no"):
        runs.load_decoder(folder, run)


def test_statistics_become_the_decoders_weights(rng):
    shapes = {"texture_coefficients": (6, 3), "texture_basis": (3, textures.HALF_SIZE), "landmark_slopes": (6, 136)}
    layers = {
        name: tuple(rng.normal(size=size).astype(np.float32) for size in (shape, shape[1])) for name, shape in shapes.items()
    }
    empty = np.zeros(0, np.float32)
    network = decoder.face_decoder(6, 3)
    decoder.set_statistics(network, decoder_statistics.Statistics(empty, REFERENCE, layers, *[empty] * 5))
    for name, weights in layers.items():
        for ours, theirs in zip(network.get_layer(name).get_weights(), weights):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(network.get_layer("warp").get_weights()[0], REFERENCE)


def test_visible_changes_are_those_of_decoded_skin(network, rng):
    """Of the texture in the face, seen from afar; linear in the feature."""
    visible = decoder.visible_changes(network)
    assert visible.shape[0] == 6 and visible.shape[1] % 3 == 0 and 200 < visible.shape[1] / 3 < 1600
    features = rng.normal(size=(2, 6)).astype(np.float32)
    half = keras.Model(network.input, network.get_layer("texture_basis").output)
    skin = textures.both_halves(textures.maps_of(half(features).numpy())["skin"])
    change = cv2.GaussianBlur(cv2.resize(skin[1] - skin[0], (64, 64), interpolation=cv2.INTER_AREA), (0, 0), 1.5)
    inside = cv2.resize(textures.face_hull(REFERENCE), (64, 64)) > 0
    np.testing.assert_allclose((features[1] - features[0]) @ visible, change[inside].ravel(), atol=1e-2)


def test_the_first_layer_gives_the_texture_coefficients(network, rng):
    features = rng.normal(size=(4, 6)).astype(np.float32)
    kernel, bias = network.get_layer("texture_coefficients").get_weights()
    np.testing.assert_allclose(decoder.first_layer(network)(tf.constant(features)), features @ kernel + bias, rtol=1e-4)


def test_mixed_precision_does_not_change_the_decoder(rng):
    before = small_decoder(np.random.default_rng(1))
    features = rng.normal(size=(2, 6)).astype(np.float32)
    keras.mixed_precision.set_global_policy("mixed_float16")
    network = small_decoder(np.random.default_rng(1))
    assert {str(layer.compute_dtype) for layer in network.layers[1:]} == {"float32"}
    assert {str(weight.dtype) for weight in network.weights} == {"float32"} and network(features).dtype == tf.float32
    np.testing.assert_array_equal(decoder.decode(network, features), decoder.decode(before, features))
    np.testing.assert_array_equal(decoder.decode(before, features), decoder.decode(before, features))
