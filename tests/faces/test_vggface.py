import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from faces import vggface
from utils import InputError
from voices.backend import keras, tf


@pytest.fixture(scope="module")
def random_vggface(tmp_path_factory):
    """keras-vggface's own network, its random weights in its own cache folder."""
    home = tmp_path_factory.mktemp("keras")
    previous = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = str(home)
    network = vggface._keras_vggface()[0].VGG16(weights=None)
    vggface.weights_path().parent.mkdir(parents=True)
    network.save_weights(vggface.weights_path())
    yield network
    vggface.weights_path().unlink()
    if previous is None:
        del os.environ["KERAS_HOME"]
    else:
        os.environ["KERAS_HOME"] = previous


def test_vggface_is_the_packages_own_network(random_vggface, rng):
    assert random_vggface.count_params() == 145_002_878
    faces = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    features = vggface.face_embedder()(faces)
    assert features.shape == (2, 4096) and features.dtype == np.float32
    assert (features < 0).any()  # before the ReLU

    preprocessed = vggface._keras_vggface()[1].preprocess_input(faces.astype(np.float32), version=1)
    assert preprocessed[0, 0, 0, 0] == pytest.approx(faces[0, 0, 0, 2] - 93.5940, abs=1e-3)  # BGR, less the mean
    own = random_vggface.predict(preprocessed, verbose=0)
    weights, bias = random_vggface.get_layer("fc8").get_weights()
    logits = np.maximum(features, 0) @ weights + bias
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True), np.log(own) - np.log(own).mean(1, keepdims=True), atol=1e-4
    )
    assert np.std(logits) > 0.05


def test_the_last_layer_is_read_alone(random_vggface, rng):
    features = rng.normal(size=(3, 4096)).astype(np.float32)
    kernel, bias = random_vggface.get_layer("fc8").get_weights()
    np.testing.assert_allclose(vggface.fc8()(features), features @ kernel + bias, rtol=1e-3, atol=1e-4)


def test_pictures_of_any_size_have_features_and_gradients(random_vggface, rng):
    """Features as by the package's network; the gradient matches finite differences along its direction."""
    picture = cv2.GaussianBlur(rng.integers(0, 256, (110, 120, 3), dtype=np.uint8), (0, 0), 5)[None].astype(np.float32)
    large = cv2.resize(picture[0], (224, 224), interpolation=cv2.INTER_LINEAR)[None]
    preprocessed = vggface._keras_vggface()[1].preprocess_input(large.copy(), version=1)
    fc7 = vggface._keras_vggface()[2].Model(random_vggface.input, random_vggface.get_layer("fc7").output)
    expected = fc7(preprocessed).numpy()
    embed = vggface.picture_network()
    np.testing.assert_allclose(embed(picture), expected, atol=2e-3 * np.abs(expected).max())
    weights = rng.normal(size=4096).astype(np.float32)

    def value(pictures):
        return tf.reduce_sum(embed(pictures) * weights)

    with tf.GradientTape() as tape:
        pictures = tf.constant(picture)
        tape.watch(pictures)
        gradient = tape.gradient(value(pictures), pictures).numpy()
    direction = gradient / np.abs(gradient).mean()
    slope = float((gradient * direction).sum())
    step = 0.01  # grey values on average: a network of random weights is linear only nearby
    difference = float(value(picture + step * direction) - value(picture - step * direction)) / (2 * step)
    assert slope == pytest.approx(difference, rel=0.1) and slope > 1


def test_faces_are_cropped_and_described_in_rgb(monkeypatch):
    """By a network that describes a crop by its mean colour."""
    monkeypatch.setattr(vggface, "face_embedder", lambda: lambda faces: faces.mean(axis=(1, 2)).astype(np.float32))
    picture = np.full((120, 160, 3), (90, 90, 90), np.uint8)
    picture[20:100, 40:120] = 200, 30, 10  # the box (40, 100, 80, 60) with its margin
    features = vggface.face_describer(4096)([(picture, (40, 100, 80, 60))] * (vggface.BATCH + 1))
    np.testing.assert_allclose(features, np.tile([200, 30, 10], (vggface.BATCH + 1, 1)), atol=1)


def test_importing_keras_2_leaves_keras_3_alone(random_vggface):
    import keras as keras_now

    assert keras_now is keras and keras_now.__version__.startswith("3.")
    assert keras_now.layers.Dense is keras.layers.Dense


def test_a_wrong_weight_file_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    path = vggface.weights_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"vgg16\.h5: expected the weights of VGG-Face, found something else"):
        vggface.network()


@pytest.fixture
def server():
    """A server on loopback with one file, /weights.h5."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/weights.h5"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(b"the weights" if found else b"")

        def log_message(self, *_):
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_weights_are_announced_then_downloaded_once(tmp_path, monkeypatch, server, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(vggface._keras_vggface()[1], "VGG16_WEIGHTS_PATH", f"{server}/weights.h5")
    path = vggface.weights_path()
    path.parent.mkdir(parents=True)
    path.with_name(f".part-{path.name}").write_bytes(b"part of a download that was killed two days ago")
    os.utime(path.with_name(f".part-{path.name}"), (time.time() - 172_800,) * 2)
    assert vggface.fetch_weights().read_bytes() == b"the weights"
    assert capsys.readouterr().err.startswith("downloading the weights of VGG-Face (580 MB)")
    assert vggface.fetch_weights() == path and capsys.readouterr().err == ""
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_download_is_reported(tmp_path, monkeypatch, server):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(vggface._keras_vggface()[1], "VGG16_WEIGHTS_PATH", f"{server}/gone.h5")
    with pytest.raises(InputError, match=r"could not download .*404.*put http.*gone\.h5 there by hand, or use --face-m"):
        vggface.fetch_weights()
    assert list(tmp_path.rglob("*.h5")) == []


def test_features_are_extracted_as_by_preprocessing(frames):
    import face_recognition

    blank = np.full((80, 90, 3), 200, np.uint8)
    features = vggface.feature_extractor(128)([frames[0], blank, frames[1]])
    assert features.shape == (3, 128) and features.dtype == np.float32 and np.isnan(features[1]).all()
    for number in (0, 1):
        expected = face_recognition.face_encodings(frames[number])[0]
        np.testing.assert_allclose(features[2 * number], expected, atol=0.02)
