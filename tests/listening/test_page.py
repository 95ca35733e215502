"""The page of hear.py --page, in a browser."""

import asyncio
import base64
import dataclasses
import html
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import wave
from concurrent.futures import ThreadPoolExecutor

import cv2
import gradio
import numpy as np
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, ffmpeg, wait_for
from gradio import processing_utils, route_utils
from playwright.sync_api import sync_playwright

import hear
from clips.recordings import Recording
from listening import page
from utils import MIN_SECONDS, SAMPLE_RATE, InputError

CHROMIUM = shutil.which("chromium")
WOMAN, MAN = (ROOT / "data" / "voices" / f"{name}.m4a" for name in ("woman", "man"))
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
PHOTO = "four & <b>.jpg"  # a name that a page has to escape
WIDE, PHONE = (1280, 900), (390, 844)
in_browser = pytest.mark.skipif(not CHROMIUM, reason="needs the browser chromium (Debian: apt-get install chromium)")


class Served:
    """A running page."""

    def __init__(self, folder, *more):
        with socket.socket() as free:
            free.bind((page.ADDRESS, 0))
            self.port = free.getsockname()[1]
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.errors = folder / "stderr"
        command = [sys.executable, "hear.py", "--page", "--port", str(self.port), *map(str, more)]
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.said = self.process.stdout.readline()
        assert self.said, self.errors.read_text()
        self.url = f"http://{page.ADDRESS}:{self.port}/"

    @property
    def uploads(self):
        return next(self.temporary.glob("speech2face-*/uploads"))

    def status(self, path, method="GET", host=None, body=None, **headers):
        """Return the status of an answer, and its content; the path is sent as it is."""
        connection = http.client.HTTPConnection(page.ADDRESS, self.port, timeout=60)
        connection.request(method, path, body, {"Host": host or f"{page.ADDRESS}:{self.port}", **headers})
        with connection.getresponse() as response:
            return response.status, response.read()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        output = self.process.communicate(timeout=30)[0]
        return self.process.returncode, output, self.errors.read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    faces = cv2.imread(str(ROOT / "data" / "example.jpg"))
    cv2.imwrite(str(folder / "photos" / PHOTO), faces[: len(faces) // 2])
    running = Served(folder, "--among", folder / "photos")
    yield running
    # A recording that nobody asked about, and Ctrl-C: a start of its own would take long for that test.
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\nvoice\r\n--b--\r\n'
    status, _ = running.status("/gradio_api/upload", "POST", body=body, **{"Content-Type": "multipart/form-data; boundary=b"})
    assert status == 200 and b"voice" in [file.read_bytes() for file in running.uploads.glob("*/*")]
    code, said, errors = running.stop()
    assert (code, said) == (130, "") and errors.endswith("interrupted; all files written so far are complete\n")
    assert "Traceback" not in errors
    assert [path for path in running.temporary.iterdir() if not path.name.startswith("__autograph")] == []  # TensorFlow's


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser whose microphone is a loudspeaker's: the woman's voice."""
    voice = tmp_path_factory.mktemp("microphone") / "voice.wav"
    ffmpeg("-i", WOMAN, "-ar", 48_000, voice)
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    arguments = [*QUIET.split(), *microphone, f"--use-file-for-fake-audio-capture={voice}"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@pytest.fixture
def visit(served, browser):
    """Return a function: a visitor's page. No visitor may see an error, or make the browser ask another server."""
    visitors, asked, complaints = [], [], []

    def make(size=WIDE, **options):
        visitors.append(browser.new_context(viewport=dict(zip(("width", "height"), size)), **options))
        visitor = visitors[-1].new_page()
        visitor.on("request", lambda request: asked.append(request.url))
        visitor.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        visitor.on("pageerror", lambda error: complaints.append(str(error)))
        visitor.goto(served.url)
        button_of(visitor).wait_for()
        return visitor

    yield make
    for context in visitors:
        context.close()
    assert len(asked) > 10 and [url for url in asked if not url.startswith((served.url, f"blob:{served.url}", "data:"))] == []
    assert complaints == []


@pytest.fixture(scope="module")
def loaded():
    return hear.load()


def button_of(visitor):
    return visitor.get_by_role("button", name="Show the face")


def choose(visitor, path):
    visitor.locator("input[type=file]").set_input_files(path)
    visitor.locator(".file-preview").wait_for()


def answer_of(visitor):
    """Wait for an answer. Returns its text, and its pictures, (height, width, 3), RGB, by their alternative texts."""
    visitor.locator("#answer h2[tabindex]:focus").wait_for()
    pictures = {}
    for picture in visitor.locator("#answer img").all():
        encoded = picture.get_attribute("src").removeprefix("data:image/png;base64,")
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
        assert picture.evaluate("image => [image.naturalHeight, image.naturalWidth]") == [*decoded.shape[:2]]
        pictures[picture.get_attribute("alt")] = decoded[..., ::-1]
    return visitor.locator("#answer").inner_text(), pictures


def ask(visitor, path=None):
    if path:
        choose(visitor, path)
    visitor.evaluate("document.activeElement.blur()")
    button_of(visitor).click()
    return answer_of(visitor)


def face_in(pictures):
    return next(picture for alt, picture in pictures.items() if alt.startswith("A face that"))


def violations(visitor):
    found = Axe().run(visitor).response["violations"]
    return [(of["id"], of["impact"], [node["html"] for node in of["nodes"]]) for of in found]


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


# ----------------------------------------------------------------------------------------------------------------------


@in_browser
@pytest.mark.parametrize("size, scheme", [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_the_page_is_accessible(visit, size, scheme):
    visitor = visit(size, color_scheme=scheme)
    assert visitor.title() == page.TITLE
    assert visitor.locator("html").get_attribute("lang") == "en"
    for label in ("Exaggeration", "Other faces"):
        assert visitor.get_by_role("slider", name=label).count() == 1
    assert violations(visitor) == []
    ask(visitor, WOMAN)
    assert violations(visitor) == []
    levels = [int(of.evaluate("heading => heading.tagName[1]")) for of in visitor.get_by_role("heading").all()]
    assert levels[:2] == [1, 2] and max(np.diff(levels)) == 1
    assert visitor.evaluate("document.documentElement.scrollWidth") == size[0]
    box = visitor.locator("img.face").bounding_box()
    assert box["width"] >= 300 and box["y"] >= 0 and box["y"] + box["height"] <= size[1]


@in_browser
def test_a_recording_gets_its_face(visit, served, loaded):
    text, pictures = ask(visit(), WOMAN)
    expected = loaded.face(WOMAN)
    assert "A face for woman.m4a" in text and "Not a likeness of the speaker." in text
    shown = face_in(pictures)
    assert shown.shape == (256, 256, 3) and shown.std() > 20
    assert np.abs(shown.astype(int) - expected.picture).max() <= 1
    for number, sample in enumerate(loaded.samples(expected, 4), 1):
        assert np.abs(pictures[f"Sampled face {number} of 4"].astype(int) - sample).max() <= 1
    assert f"{100 * expected.certainty.matching:.0f} % of comparisons (guessing: 50 %)" in text
    assert text.count(" % of people.") == 2
    assert [alt for alt in pictures if alt.startswith("Spectrogram of 10.4 s of sound.")]
    similar = [alt for alt in pictures if alt.startswith("Photo ")]
    assert len(similar) == 5 and all(PHOTO in alt for alt in similar)
    cosines = [float(of) for of in re.findall(r"cosine (-?\d\.\d{3})", text)]
    assert len(cosines) == 5 and cosines == sorted(cosines, reverse=True)
    assert [*served.uploads.iterdir()] == []


@in_browser
def test_exaggeration_and_number_of_faces(visit, served, loaded, tmp_path):
    """Of a video, whose file is deleted with the first answer."""
    video = tmp_path / "a talk.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=64x64:r=5", "-i", MAN, "-shortest", "-pix_fmt", "yuv420p", video)
    visitor, shown = visit(), {}
    for exaggerate, n_samples in ((2, 0), (0, 2)):
        visitor.get_by_label(re.compile("number input for Exaggeration")).fill(str(exaggerate))
        visitor.get_by_label(re.compile("number input for Other faces")).fill(str(n_samples))
        text, pictures = ask(visitor, None if shown else video)
        assert "A face for a talk.mp4" in text
        assert sum(alt.startswith("Sampled") for alt in pictures) == n_samples
        shown[exaggerate] = face_in(pictures).astype(int)
        assert [*served.uploads.iterdir()] == []
    decoder = dataclasses.replace(loaded.face_decoder, exaggerate=2)
    expected = decoder.from_voices(loaded.face(video).direction[None])[0]
    assert np.abs(shown[2] - expected).max() <= 1
    mean = loaded.face_decoder(loaded.face_decoder.centre[None])[0]
    assert np.abs(shown[0] - mean).max() <= 1
    assert np.abs(shown[2] - shown[0]).mean() > 5


@in_browser
def test_the_microphone(visit, served):
    visitor = visit(permissions=["microphone"])
    visitor.get_by_role("button", name="Record", exact=True).click()
    visitor.get_by_role("button", name="Stop").wait_for()
    visitor.wait_for_timeout(3500)
    assert violations(visitor) == []
    visitor.get_by_role("button", name="Stop").click()
    visitor.get_by_label("Play").first.wait_for()
    wait_for(lambda: [*served.uploads.glob("*/*.wav")])
    assert violations(visitor) == []
    text, pictures = ask(visitor)
    assert "A face for your recording" in text and face_in(pictures).std() > 20
    assert [*served.uploads.iterdir()] == []


@in_browser
def test_what_holds_no_speech_is_told_in_a_line(visit, served, tmp_path, rng):
    secret = write_wav(tmp_path / "secret.wav", 3000 * rng.normal(size=5 * SAMPLE_RATE))
    (tmp_path / "broken.m4a").write_bytes(WOMAN.read_bytes()[:200])
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n")
    write_wav(tmp_path / "silence.wav", np.zeros(5 * SAMPLE_RATE))
    write_wav(tmp_path / "short.wav", np.zeros(SAMPLE_RATE))
    visitor = visit()
    assert ask(visitor)[0].endswith("record a voice, or choose a file, first")
    expected = {
        "broken.m4a": "a file that cannot be read",
        "list.m3u8": "a file that cannot be read",
        "silence.wav": "found silence",
        "short.wav": "found 1.0 s",
    }
    for name, found in expected.items():
        text, pictures = ask(visitor, tmp_path / name)
        heading, line = text.split("\n", 1)
        assert heading == "No face" and pictures == {}
        assert line.strip().startswith(f"{name}: expected a recording of at least {MIN_SECONDS} s of speech") and found in line
        assert "\n" not in line.strip() and str(served.temporary) not in line and "secret" not in line
        assert visitor.get_by_role("alert").count() == 1
        assert [*served.uploads.iterdir()] == []
    assert "Traceback" not in served.errors.read_text()


@in_browser
def test_two_visitors_at_the_same_time(visit, served):
    """Who bring the same file: the answer to one does not delete the other's."""
    visitors = [visit() for _ in range(2)]
    for visitor in visitors:
        choose(visitor, MAN)
    assert len([*served.uploads.iterdir()]) == 2
    for visitor in visitors:
        button_of(visitor).click(no_wait_after=True)
    one, other = (face_in(answer_of(visitor)[1]) for visitor in visitors)
    np.testing.assert_array_equal(one, other)
    assert [*served.uploads.iterdir()] == []


def test_no_other_file_and_no_other_route_is_served(served, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    files = [
        "/etc/passwd",
        ROOT / "README.md",
        "README.md",
        ROOT / "checkpoints/pretrained/weights.npz",
        tmp_path / "secret.txt",
    ]
    files += [f"{served.uploads}/../../../secret.txt", f"{served.uploads}/%2e%2e/%2e%2e/stderr", served.url, served.uploads]
    routes = ["info", "openapi.json", f"proxy={served.url}", "runs", "dev/reload", "vibe-code", "token"]
    for path in [f"file={file}" for file in files] + [f"file/{file}" for file in files] + routes:
        assert served.status(f"/gradio_api/{path}") == (404, b"not found"), path
    for path in ("/monitoring", "/monitoring/summary", "/docs", "/redoc", "/openapi.json", "/login", "/gradio_api"):
        assert served.status(path) == (404, b"not found"), path
    assert served.status("/assets/../../../../README.md")[0] == served.status("/static/%2e%2e/x")[0] == 404


def test_another_site_s_name_is_refused(served):
    """A website whose name was made to mean this machine may not read the page; nor may another website post to it."""
    assert served.status("/", host=f"localhost:{served.port}")[0] == 200
    assert served.status("/", host=f"example.org:{served.port}")[0] == served.status("/", host="example.org")[0] == 404
    body = json.dumps({"data": [None, None, 1, 0, None], "fn_index": 2, "session_hash": "x"})
    headers = {"Content-Type": "application/json", "Origin": "http://example.org"}
    assert served.status("/gradio_api/queue/join", "POST", body=body, **headers)[0] == 404
    assert served.status("/gradio_api/upload", "POST", body=body, Origin="null")[0] == 404


def test_the_page_names_no_other_server(served):
    _, content = served.status("/")
    loading = re.findall(rb"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)", content)
    assert len(loading) >= 3 and [address for address in loading if not re.match(rb"\.?/(?!/)", address)] == []
    connection = http.client.HTTPConnection(page.ADDRESS, served.port)
    connection.request("GET", "/")
    policy = connection.getresponse().headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy


def test_the_server_listens_on_this_machine_alone(served):
    connections = psutil.Process(served.process.pid).net_connections()
    assert {of.laddr.ip for of in connections if of.status == psutil.CONN_LISTEN} == {page.ADDRESS}
    assert {of.raddr.ip for of in connections if of.raddr} <= {page.ADDRESS}
    assert served.said == f"hear: {served.url.rstrip('/')}, stop with Ctrl-C\n"


def test_a_large_upload_is_refused(served):
    def content():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="long.wav"\r\n\r\n'
        for _ in range(101):
            yield bytes(2**20)
        yield b"\r\n--b--\r\n"

    try:
        status, _ = served.status(
            "/gradio_api/upload", "POST", body=content(), **{"Content-Type": "multipart/form-data; boundary=b"}
        )
    except (BrokenPipeError, ConnectionResetError):  # refused before it was sent
        status = 413
    assert status == 413
    assert sum(file.stat().st_size for file in served.uploads.rglob("*") if file.is_file()) < 2**20


def test_a_port_in_use(served):
    with pytest.raises(InputError, match=f"--port: expected a free port, found {served.port} in use"):
        page.serve(None, None, served.port)


def test_uploads_that_nobody_asked_about_are_deleted(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "voice.wav").write_bytes(b"voice")
        (tmp_path / f"{name}-part").write_bytes(b"voi")
    for path in (tmp_path / "old", tmp_path / "old-part"):
        os.utime(path, (time.time() - 100,) * 2)
    page.sweep(tmp_path, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new-part"]


def test_only_an_upload_is_deleted(tmp_path):
    """Whatever path a visitor names."""
    upload, other = tmp_path / "own" / "me.wav", tmp_path / "other" / "you.wav"
    for path in (upload, other):
        path.parent.mkdir()
        path.write_bytes(b"voice")
    for path in (tmp_path / "none.wav", other.parent, upload):
        page.forget(path)
    assert [*tmp_path.rglob("*")] == [other.parent, other]


def test_an_unforeseen_error_is_a_line(capsys, tmp_path):
    """And the recording is deleted all the same."""

    class Broken:
        def face(self, path):
            raise RuntimeError(f"secret of {path}")

    upload = tmp_path / "own" / "me.wav"
    upload.parent.mkdir()
    upload.write_bytes(b"voice")
    show = next(of.fn for of in page.page_of(Broken(), None).fns.values() if of.fn)
    content, *_ = show(None, str(upload), 1, 4, None)
    assert "unforeseen" in content and "secret" not in content and not upload.parent.exists()
    assert "secret" in capsys.readouterr().err


def test_the_bar_marks_speech_and_two_minutes_are_shown(rng):
    sound = (1000 * rng.normal(size=10 * SAMPLE_RATE)).astype(np.int16)
    recording = Recording(sound / np.float32(32768), sound, [(2 * SAMPLE_RATE, 5 * SAMPLE_RATE)], True, 10.0)
    picture = page.spectrogram_picture(recording)
    assert picture.shape == (257 + page.BAR, 960, 3) and picture.dtype == np.uint8
    marked = (picture[-1] == page.BAR_COLOUR).all(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(marked), np.arange(192, 480))
    assert (picture[-1][~marked] == 255).all()
    saturation = np.ptp(picture[:257].astype(int), axis=-1).mean(axis=0)
    assert saturation[~marked].max() == 0 and saturation[marked].min() > 10
    long = dataclasses.replace(recording, sound=np.tile(sound, 24), seconds=900.0, is_sure=False)
    assert page.spectrogram_picture(long).shape == (257 + page.BAR, 960, 3)
    text = html.unescape(page.sound_part(long))
    assert "The first 120 s." in text and "3.0 s of speech in 240.0 s of sound; 15 minutes long: 20 excerpts" in text
    assert "little of it is clearly speech" in text
    marked = (page.spectrogram_picture(long)[-1] == page.BAR_COLOUR).all(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(marked), np.arange(16, 40))


@pytest.mark.parametrize("source", ["Audio", "File"])
def test_an_address_is_not_fetched(source, monkeypatch):
    for module, name in ((processing_utils, "async_ssrf_protected_download"), (route_utils, "GradioUploadFile")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that they are put back
    page.restrict_gradio()
    block = next(of for of in page.page_of(None, None).blocks.values() if type(of).__name__ == source)
    payload = {"path": "http://127.0.0.1:9/voice.wav", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(gradio.Error, match="expected an upload, found an address"):
        moving = processing_utils.async_move_files_to_cache(payload, block, check_in_upload_folder=True)
        with ThreadPoolExecutor() as apart:  # from the loop of the browser's driver
            apart.submit(asyncio.run, moving).result()
