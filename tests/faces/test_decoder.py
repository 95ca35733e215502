import cv2
import numpy as np
import pytest
from conftest import face_shape, in_picture, write_decoder_run
from scipy.interpolate import RBFInterpolator

import utils
from clips import detection
from faces import decoder, decoder_statistics, refinement, textures
from faces.textures import SIDE
from training import decoder_training, runs, steps
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
    """Pictures without detail, float32 (n, S, S, C), 0 to 255."""
    found = np.stack([cv2.GaussianBlur(one, (0, 0), radius) for one in rng.normal(size=shape).astype(np.float32)])
    return (255 * (found - found.min()) / np.ptp(found)).reshape(shape)


def moved_shapes(rng, n=2):
    """Faces with open mouths, turned a little."""
    return np.stack([in_picture(face_shape(0.1, 0.03, 0.1) + 0.01 * rng.normal(size=(68, 2))) for _ in range(n)])


def small_decoder(rng, feature_size=6, rank=3):
    """A decoder of random statistics: a plain head in the middle, which features colour and move."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    share = 255 * np.exp(-(((x / 0.35) ** 2 + (y / 0.4) ** 2) ** 3))
    mean = np.stack([colour * share / 255 for colour in (190, 140, 110)] + [share], axis=-1)[:, SIDE // 2 :]
    basis = np.stack([cv2.GaussianBlur(one, (0, 0), 8) for one in rng.normal(size=(rank, SIDE, SIDE // 2, 4))])
    basis[..., 3] = 0
    network = decoder.face_decoder(feature_size, rank)
    network.get_layer("texture_coefficients").set_weights([rng.normal(size=(feature_size, rank)), rng.normal(size=rank)])
    network.get_layer("texture_basis").set_weights([300 * basis.reshape(rank, -1), mean.ravel()])
    slopes = rng.normal(size=(feature_size, 68, 2))
    slopes = (slopes + detection.mirror_landmarks(slopes, 1)) / 2  # the face stays symmetric
    network.get_layer("landmark_slopes").set_weights([slopes.reshape(feature_size, -1), REFERENCE.ravel()])
    network.get_layer("warp").set_weights([REFERENCE])
    return network


@pytest.fixture
def network(rng):
    return small_decoder(rng)


# ---------------------------------------------------------------- layers


def test_pictures_are_sampled_as_by_opencv(rng):
    pictures = rng.uniform(0, 255, size=(2, 20, 30, 3)).astype(np.float32)
    x, y = (rng.uniform(-4, size + 4, size=(2, 15, 25)).astype(np.float32) for size in (30, 20))
    x[0, 0, :3], y[0, 0, :3] = (0, 29, 12), (0, 19, 7)  # pixels themselves, the last ones too
    found = decoder.sample(pictures, x, y).numpy()
    assert found.shape == (2, 15, 25, 3)
    np.testing.assert_allclose(found[0, 0, :3], pictures[0, (0, 19, 7), (0, 29, 12)], rtol=1e-5)
    for number in range(2):
        maps = np.dstack([x[number], y[number]])
        # OpenCV rounds places to 1/32 of a pixel.
        maps = np.round(maps * 32) / 32
        expected = cv2.remap(pictures[number], maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        again = decoder.sample(pictures[number][None], maps[None, ..., 0], maps[None, ..., 1])[0]
        np.testing.assert_allclose(again, expected, atol=0.01)


def test_a_head_is_put_on_plain_background_by_hand(rng):
    least, middle, edge, ground = decoder.LEAST_SHARE, decoder.HALF_SHARE, decoder.EDGE, decoder.BACKGROUND
    near = middle + 0.2 / edge  # 0.2 more than half of the picture is head there
    # Colours times the share, and the share; what becomes of them.
    pixels = [
        ((100, 50, 200, 255), (100, 50, 200)),
        ((0, 0, 0, 0), (ground,) * 3),
        ((60, 60, 60, 255 * (middle - 0.6 / edge)), (ground,) * 3),  # too little of a head
        ((60, 30, 9, 255 * near), tuple(0.7 * colour / near + 0.3 * ground for colour in (60, 30, 9))),
        ((300, 20, -5, 255), (255, 20, 0)),
        ((300 * near, 0, 0, 255 * near), (0.7 * 255 + 0.3 * ground, 0.3 * ground, 0.3 * ground)),  # brighter than white
    ]
    assert least < near < 1 and middle - 0.6 / edge > 0
    half = np.zeros((1, SIDE, SIDE // 2, 4), np.float32)
    for column, (given, _) in enumerate(pixels):
        half[0, 7, column] = given
    picture = decoder.Compose()(half).numpy()
    assert picture.shape == (1, SIDE, SIDE, 3)
    for column, (_, expected) in enumerate(pixels):
        np.testing.assert_allclose(picture[0, 7, SIDE // 2 + column], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(picture, picture[:, :, ::-1])


def test_a_texture_of_the_reference_shape_stays_as_it_is(warp, rng):
    textures = rng.uniform(0, 255, size=(2, SIDE, SIDE, 3)).astype(np.float32)
    np.testing.assert_allclose(warp(textures, np.stack([REFERENCE] * 2)), textures, atol=0.05)
    assert warp.trainable_variables == [] and len(warp.weights) == 1


def by_scipy(points, values, places):
    """The spline as scipy has it: its kernel is r^2 log r, half of ours, and so is its smoothing."""
    smoothing = textures.SMOOTHING / (2 * len(points))
    points = points.astype(np.float64)
    return RBFInterpolator(points / SIDE, values, smoothing=smoothing, kernel="thin_plate_spline")(places / SIDE)


def test_the_warp_is_that_of_scipys_spline(warp, rng):
    """On the grid as scipy says, linear between; read by OpenCV."""
    originals, shapes = smooth(rng, 2, SIDE, SIDE, 3), moved_shapes(rng)
    found = warp(originals, shapes).numpy()
    along, values = np.linspace(0, SIDE - 1, textures.N_GRID), np.concatenate([REFERENCE, textures.border()])
    for number in range(2):
        sources = by_scipy(np.concatenate([shapes[number], textures.border()]), values, textures.grid())
        np.testing.assert_allclose(
            textures.spline(np.concatenate([shapes[number], textures.border()]), textures.grid()) @ values,
            sources,
            atol=1e-8,
        )
        rows = [[np.interp(np.arange(SIDE), along, row) for row in of.reshape(len(along), -1)] for of in sources.T]
        maps = [np.stack([np.interp(np.arange(SIDE), along, column) for column in np.transpose(of)], axis=1) for of in rows]
        x, y = (of[0].numpy() for of in warp.sources(shapes[number][None]))
        np.testing.assert_allclose(x, maps[0], atol=2e-3)
        np.testing.assert_allclose(y, maps[1], atol=2e-3)
        expected = cv2.remap(
            originals[number], np.float32(np.dstack(maps)), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        # OpenCV rounds places to 1/32 of a pixel.
        slope = max(np.abs(np.diff(originals[number], axis=axis)).max() for axis in (0, 1))
        assert np.abs(found[number] - expected).max() < 0.01 + slope / 32
        assert np.abs(found[number] - expected).mean() < 0.05
        assert np.abs(originals[number] - expected).max() > 8


def test_the_dots_of_a_texture_come_to_the_landmarks(warp, rng):
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
def test_gradients_of_the_warp_are_those_of_finite_differences(given, warp, rng):
    """Along random directions; in float32, so to a few per cent."""
    textures, shapes, wanted = smooth(rng, 1, SIDE, SIDE, 2), moved_shapes(rng, 1), smooth(rng, 1, SIDE, SIDE, 2)

    def value(textures, shapes):
        return tf.reduce_mean(warp(textures, shapes) * (wanted - 128))

    direction = smooth(rng, 1, SIDE, SIDE, 2) - 128 if given == "textures" else rng.normal(size=shapes.shape)
    direction, step = direction.astype(np.float32), 0.2

    def along(by):
        return value(*((textures + by * direction, shapes) if given == "textures" else (textures, shapes + by * direction)))

    with tf.GradientTape() as tape:
        inputs = tf.constant(textures), tf.constant(shapes)
        tape.watch(inputs)
        gradient = tape.gradient(value(*inputs), inputs[given == "landmarks"])
    slope = float(tf.reduce_sum(gradient * direction))
    assert slope == pytest.approx(float(along(step) - along(-step)) / (2 * step), rel=0.03)
    assert abs(slope) > 1


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("feature_size, rank", [(128, 5), (4096, 2)])
def test_the_decoders_sizes(feature_size, rank, rng):
    network = decoder.face_decoder(feature_size, rank)
    assert network.input_shape == (None, feature_size) and network.output_shape == (None, SIDE, SIDE, 3)
    sizes = [(feature_size + 1) * rank, (rank + 1) * SIDE * SIDE * 2, (feature_size + 1) * 136, 136]
    assert network.count_params() == sum(sizes)
    shapes = {name: network.get_layer(name).output.shape[1:] for name in ("half", "landmarks", "texture")}
    assert shapes == {"half": (SIDE, SIDE // 2, 4), "landmarks": (68, 2), "texture": (SIDE, SIDE, 3)}
    assert len(network.trainable_variables) == 6  # all but the reference shape
    pictures = decoder.decode(network, rng.normal(size=(1, feature_size)).astype(np.float32))
    assert pictures.shape == (1, SIDE, SIDE, 3) and pictures.dtype == np.uint8


def test_a_face_of_symmetric_landmarks_is_symmetric(network, rng):
    features = rng.normal(size=(3, 6)).astype(np.float32)
    pictures = network(features).numpy()
    np.testing.assert_allclose(pictures, pictures[:, :, ::-1], atol=0.2)
    assert np.abs(pictures[0] - pictures[1]).max() > 20
    kernel, bias = network.get_layer("landmark_slopes").get_weights()
    network.get_layer("landmark_slopes").set_weights([kernel, bias + 2 * rng.normal(size=136)])
    pictures = network(features).numpy()
    assert np.abs(pictures - pictures[:, :, ::-1]).max() > 5


def test_a_decoder_is_its_layers_by_hand(network, rng):
    features = rng.normal(size=(2, 6)).astype(np.float32)
    (few, few_bias), (basis, mean), (slopes, shape) = (
        network.get_layer(name).get_weights() for name in ("texture_coefficients", "texture_basis", "landmark_slopes")
    )
    halves = ((features @ few + few_bias) @ basis + mean).reshape(-1, SIDE, SIDE // 2, 4)
    textures = decoder.Compose()(halves)
    expected = network.get_layer("warp")(textures, (features @ slopes + shape).reshape(-1, 68, 2))
    np.testing.assert_allclose(network(features), expected, atol=0.05)


def test_what_is_decoded_is_clipped_and_the_same_in_any_batch(network, rng, monkeypatch):
    features = rng.normal(size=(5, 6)).astype(np.float32)
    together = decoder.decode(network, features)
    assert together.shape == (5, SIDE, SIDE, 3) and together.dtype == np.uint8
    expected = network(features).numpy().clip(0, 255)
    np.testing.assert_allclose(together, expected, atol=0.51)
    monkeypatch.setattr(decoder, "DECODING_BATCH", 2)
    for other in (decoder.decode(network, features), np.concatenate([decoder.decode(network, one[None]) for one in features])):
        assert np.abs(other.astype(int) - together).max() <= 1  # rounded the other way
    bright = decoder.decode(network, 100 * features[:1])
    assert bright.min() == 0 and bright.max() == 255


def test_decoding_follows_the_weights_and_the_decoder(network, rng):
    features, other = rng.normal(size=(2, 6)).astype(np.float32), small_decoder(np.random.default_rng(7))
    before, of_other = decoder.decode(network, features), decoder.decode(other, features)
    assert np.abs(before.astype(int) - of_other).max() > 5
    network.set_weights(other.get_weights())
    np.testing.assert_array_equal(decoder.decode(network, features), of_other)


def test_weights_that_are_saved_and_loaded_give_the_same_face(network, rng, tmp_path):
    folder = write_decoder_run(network, tmp_path / "run")
    run = runs.read_run(folder, "decoder")
    assert run["feature_size"] == 6 and run["rank"] == 3 and run["clips"] == {"train": ["a_1"], "val": ["b_1"]}
    features = rng.normal(size=(2, 6)).astype(np.float32)
    np.testing.assert_array_equal(decoder.decode(runs.load_decoder(folder, run), features), decoder.decode(network, features))


def test_runs_of_the_other_model_and_broken_weights_are_told(network, tmp_path):
    folder = write_decoder_run(network, tmp_path / "run")
    with pytest.raises(InputError, match=r"run: expected a run of train.py --model voice, found one of --model decoder"):
        runs.read_run(folder)
    run = runs.read_run(folder, "decoder")
    with pytest.raises(InputError, match=r"best.weights.h5: expected weights of --model decoder, 6 inputs, 4 components"):
        runs.load_decoder(folder, {**run, "rank": 4})
    (folder / utils.BEST_WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"best.weights.h5: expected the weights of a run, found no such file"):
        runs.load_decoder(folder, run)


def test_statistics_become_the_decoders_weights(rng):
    shapes = {"texture_coefficients": (6, 3), "texture_basis": (3, SIDE * SIDE * 2), "landmark_slopes": (6, 136)}
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


def test_the_first_layer_gives_the_textures_coefficients(network, rng):
    features = rng.normal(size=(4, 6)).astype(np.float32)
    kernel, bias = network.get_layer("texture_coefficients").get_weights()
    np.testing.assert_allclose(decoder.first_layer(network)(tf.constant(features)), features @ kernel + bias, rtol=1e-4)


def test_mixed_precision_elsewhere_does_not_change_the_decoder(rng):
    before = small_decoder(np.random.default_rng(1))
    features = rng.normal(size=(2, 6)).astype(np.float32)
    keras.mixed_precision.set_global_policy("mixed_float16")
    network = small_decoder(np.random.default_rng(1))
    assert {str(layer.compute_dtype) for layer in network.layers[1:]} == {"float32"}
    assert {str(weight.dtype) for weight in network.weights} == {"float32"} and network(features).dtype == tf.float32
    np.testing.assert_array_equal(decoder.decode(network, features), decoder.decode(before, features))
    np.testing.assert_array_equal(decoder.decode(before, features), decoder.decode(before, features))


# ---------------------------------------------------------------- training


def test_a_decoded_picture_is_seen_as_preprocess_would_cut_it(make_demo):
    """A drawn face in its place, the detector and the crop on one side, the constants on the other."""
    photo = make_demo.draw_faces(make_demo.Person(*np.full(11, 0.5)), [(0.1, 1)], (320, 175), 0)[0]
    landmarks = detection.find_landmarks(photo, detection.find_photo_face(photo, "hog").box)
    picture = textures.align(photo, landmarks, REFERENCE)[0]
    top, right, bottom, left = detection.find_photo_face(picture, "hog").box
    side = 1.3 * (bottom - top)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    places = np.stack([x, y, 0 * x], axis=-1)[None]
    shown = decoder_training.seen_by(lambda crops: crops, REFERENCE)(places)[0]
    first, last = shown[0, 0, :2], shown[-1, -1, :2]
    np.testing.assert_allclose((first + last) / 2 + 0.5, ((left + right) / 2, (top + bottom) / 2), atol=4)
    assert shown.shape[0] == shown.shape[1] == pytest.approx(side, rel=0.2)  # the detector's sizes are 1.2 times apart

    half = shown.shape[0] / 2 / 1.3
    centre = (first + last + 1) / 2
    box = tuple(round(edge) for edge in (centre[1] - half, centre[0] + half, centre[1] + half, centre[0] - half))
    seen = decoder_training.seen_by(lambda crops: tf.image.resize(crops, (224, 224)), REFERENCE)(
        picture[None].astype(np.float32)
    )[0]
    assert np.abs(seen.numpy() - detection.crop_face(picture, box)).mean() < 3


def test_the_losses_by_hand(network, rng):
    features = rng.normal(size=(3, 6)).astype(np.float32)
    kernel, bias = network.get_layer("landmark_slopes").get_weights()
    shapes = (features @ kernel + bias).reshape(-1, 68, 2)
    parts = keras.Model(network.input, network.get_layer("half").output)
    halves = parts(features).numpy().reshape(3, -1)
    exact = decoder_training.losses(network)(features, halves, shapes).numpy()
    np.testing.assert_allclose(exact, [0, 0], atol=1e-3)
    other_shapes = shapes + rng.normal(size=shapes.shape).astype(np.float32)
    other_halves = halves + rng.normal(size=halves.shape).astype(np.float32)
    expected = [((shapes - other_shapes) ** 2).sum(-1).mean(), np.abs(halves - other_halves).mean()]
    np.testing.assert_allclose(decoder_training.losses(network)(features, other_halves, other_shapes), expected, rtol=1e-3)

    weights = rng.normal(size=(3, 6)).astype(np.float32)

    def see(pictures):
        return tf.reduce_mean(pictures, axis=(1, 2)) @ weights

    seen = network(features).numpy().mean(axis=(1, 2)) @ weights
    cosines = (seen * features).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(features, axis=1)
    found = decoder_training.losses(network, see)(features, other_halves, other_shapes)
    np.testing.assert_allclose(found, [*expected, 10 * (1 - cosines).mean()], rtol=1e-3)


def tiny_face_network(rng, feature_size=6):
    """A network with random weights that looks at pictures of any size."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 5, 3, activation="relu")(inputs / 128 - 1)
    x = keras.layers.Conv2D(16, 5, 3, activation="relu")(x)
    x = keras.ops.reshape(keras.layers.AveragePooling2D(3)(x)[:, :4, :4], (-1, 256))
    return keras.Model(inputs, keras.layers.Dense(feature_size)(x))


@pytest.mark.parametrize("with_network", [False, True])
def test_training_lowers_the_losses(with_network, network, rng):
    features = rng.normal(size=(4, 6)).astype(np.float32)
    wanted = small_decoder(np.random.default_rng(7))
    outputs = [wanted.get_layer(name).output for name in ("half", "landmarks")]
    halves, shapes = keras.Model(wanted.input, outputs)(features)
    halves = tf.reshape(halves, (4, -1))
    see = decoder_training.seen_by(tiny_face_network(rng), REFERENCE) if with_network else None
    score = decoder_training.losses(network, see)
    step = decoder_training.training_step(network, steps.adam(network, "paper", 1e-2, 100, 0), score)
    first = score(features, halves, shapes).numpy()
    np.testing.assert_allclose(step(features, halves, shapes), first, rtol=1e-3)
    for _ in range(8):
        last = step(features, halves, shapes).numpy()
    assert len(last) == (3 if with_network else 2)
    assert last.sum() < 0.95 * first.sum() and last[0] < first[0]
    np.testing.assert_array_equal(network.get_layer("warp").get_weights()[0], REFERENCE)  # never trained


def test_the_feature_loss_alone_teaches_what_the_face_network_wants_to_see(network, rng, monkeypatch):
    monkeypatch.setattr(decoder, "LANDMARK_WEIGHT", 0.0)
    monkeypatch.setattr(decoder, "TEXTURE_WEIGHT", 0.0)
    features = rng.normal(size=(4, 6)).astype(np.float32)
    empty = np.zeros((4, SIDE * SIDE * 2), np.float32), np.zeros((4, 68, 2), np.float32)
    before = [weight.numpy() for weight in network.trainable_variables]
    score = decoder_training.losses(network, decoder_training.seen_by(tiny_face_network(rng), REFERENCE))
    step = decoder_training.training_step(network, steps.adam(network, "paper", 2e-2, 100, 0), score)
    losses = [step(features, *empty).numpy() for _ in range(12)]
    assert losses[0][:2].tolist() == [0, 0] and losses[-1][2] < 0.85 * losses[0][2]
    changed = [np.abs(weight - old).max() > 1e-5 for weight, old in zip(network.trainable_variables, before)]
    assert all(changed)  # textures and landmarks, through the warp


# ---------------------------------------------------------------- a second look


@pytest.fixture
def seen_through_glass(rng, monkeypatch):
    """A decoder whose pictures are the features themselves, and a face network that sees them distorted: see(features)."""
    size = 12
    glass = np.eye(size) + 0.5 * rng.normal(size=(size, size)) / np.sqrt(size)
    monkeypatch.setattr(decoder, "decode", lambda _, features: features)
    return lambda pictures: (np.tanh(pictures @ glass) + 0.3).astype(np.float32)


def test_looking_finds_what_to_ask_for(seen_through_glass, rng):
    see, centre = seen_through_glass, np.full(12, 0.1, np.float32)
    features = (centre + 0.3 * rng.normal(size=(300, 12))).astype(np.float32)
    correction = refinement.correction(None, see, features, centre)
    assert correction.shape == (2, refinement.REFINEMENT_AXES, 12) and correction.dtype == np.float32
    wanted = (centre + 0.1 * rng.normal(size=(20, 12))).astype(np.float32)

    def off(looks):
        pictures = refinement.decode_refined(None, see, wanted, centre, correction, looks)
        return np.abs(see(pictures) - see(centre[None]) - (wanted - centre)).mean()

    np.testing.assert_allclose(refinement.decode_refined(None, see, wanted, centre, correction, 0), wanted, atol=1e-6)
    assert off(1) < 0.6 * off(0) and off(6) < 0.1 * off(0)


def test_a_picture_without_a_face_stays_as_it_is(seen_through_glass, rng):
    centre = np.zeros(12, np.float32)
    features = (0.3 * rng.normal(size=(300, 12))).astype(np.float32)

    def see(pictures):
        return np.where(pictures[:, :1] > 0.35, np.nan, seen_through_glass(pictures)).astype(np.float32)

    correction = refinement.correction(None, see, features, centre)
    assert np.isfinite(correction).all() and np.abs(correction).max() > 0
    wanted = features[:2].copy()
    wanted[:, 0] = 0.5, 0.0
    pictures = refinement.decode_refined(None, see, wanted, centre, correction, 3)
    np.testing.assert_array_equal(pictures[0], wanted[0])
    assert np.abs(pictures[1] - wanted[1]).max() > 0.01
    blind = refinement.correction(None, lambda pictures: np.full_like(pictures, np.nan), features, centre)
    np.testing.assert_array_equal(blind[0], 0)
    assert (blind[1] ** 2).sum() == pytest.approx((features**2).sum(axis=1).mean(), rel=0.05)  # the faces' spread


def test_the_face_network_sees_as_preprocessing_does(frames):
    import face_recognition

    blank = np.full((80, 90, 3), 200, np.uint8)
    seen = refinement.face_network(128)([frames[0], blank, frames[1]])
    assert seen.shape == (3, 128) and seen.dtype == np.float32 and np.isnan(seen[1]).all()
    for number in (0, 1):
        expected = face_recognition.face_encodings(frames[number])[0]
        np.testing.assert_allclose(seen[2 * number], expected, atol=0.02)
