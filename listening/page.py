"""The page of hear.py --page: speak into it, and it shows the face that the voice suggests.

The page is for the one who sits at this machine, unless somebody hosts it for others. It asks no other machine for anything,
and keeps nothing: the file of a recording is deleted with the answer, and what was computed from it is forgotten when the page
is closed.
"""

import base64
import contextlib
import dataclasses
import html
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

# Read by Gradio, and by what it imports, as they are imported: nothing is reported to anyone.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

import cv2
import gradio
import numpy as np
from gradio import processing_utils, route_utils, routes
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

import model
import utils
from clips.recordings import EXCERPT_SECONDS, EXCERPTS, WHOLE_SECONDS, Recording
from listening.answers import TOP
from listening.gallery import Gallery
from listening.listener import Face, Listener
from utils import SAMPLE_RATE, InputError

ADDRESS = "127.0.0.1"  # of this machine for itself
OF_SPACES = "https://huggingface.co"  # shows hosted pages in a frame
TITLE = "A face from your voice"
MOST_BYTES = "100mb"  # of an upload
MOST_WAITING = 8  # visitors; one is answered after the other
MOST_SESSIONS = 16  # pages whose last answer is remembered, for another exaggeration
FORGET_SECONDS = 1800  # s after which an upload that nobody asked about is deleted, and an answer forgotten
SWEEP_SECONDS = 60  # s between two searches for such uploads
MOST_SAMPLES = 8
MOST_EXAGGERATION = 3.0
WIDEST = 960  # pixels of a spectrogram
LOUD = 1.2  # of a compressed spectrogram's magnitude: shown brightest
BAR = 10  # pixels high, below the spectrogram, where there is speech
BAR_COLOUR = (30, 120, 250)  # RGB

BLUES = {"": 600, "_dark": 600, "_hover": 700, "_hover_dark": 700}  # of the button, by Gradio's names

PROPER_USE = (
    ("It renders a plausible face for a voice.", "The face is not a likeness of the speaker. Sex follows the voice, and age to "
     "some degree. Complexion and build are little more than a guess, shown as vividly as if it were sure, and often wrong."),
    ("It identifies nobody.", "Many people with different faces sound alike."),
    ("It repeats what it was trained on,", "with its prejudices."),
    ("Do not use it to find, name or judge a person.", "Record only people who agree to it."),
)  # fmt: skip

# Gradio's routes that the page needs. Others would serve files, fetch addresses for a visitor, or describe the server.
ROUTES = ("/", "/config", "/theme.css", "/manifest.json", "/favicon.ico")
ROUTES_UNDER = ("/assets/", "/static/", "/gradio_api/heartbeat/")
ROUTES_OF_THE_API = ("queue/join", "queue/data", "upload", "upload_progress", "cancel", "startup-events", "theme.css", "app_id")
HEADERS = {
    # Gradio's scripts stand in the page, and compile templates. Nothing can be loaded from, or sent to, another server.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' "
    "data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}

STYLE = """
.gradio-container { max-width: 1180px !important; padding: 0 1rem !important; margin: 0 auto !important; }
.gradio-container .main { padding: .5rem 0 1.5rem !important; }
.html-container { padding-left: 0 !important; padding-right: 0 !important; }
#answer h2, #voice h2, #use h2 { font-size: 1.15rem; margin: 0 0 .5rem; outline-offset: .3rem; }
#title h1 { font-size: 1.6rem; margin: .6rem 0 .1rem; }
#title p, #answer p, #use li, #answer li { line-height: 1.45; margin: .25rem 0; }
#answer ul, #use ul { list-style: disc; padding-left: 1.2rem; }
#answer .face { width: min(100%, 24rem); border-radius: .5rem; display: block; }
#answer .faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 0 .6rem; }
#answer .faces img, #answer .sound img { width: 100%; border-radius: .35rem; display: block; }
#answer .sound img { height: 8rem; }
#answer figure { margin: 0 0 .8rem; overflow-wrap: anywhere; }
#answer figcaption { font-size: .9rem; margin-top: .25rem; }
#answer h3 { font-size: 1rem; margin: .9rem 0 .3rem; }
#answer .error { border-left: .3rem solid #b91c1c; padding-left: .7rem; overflow-wrap: anywhere; }
#answer .two h3:first-child { margin-top: 0; }
.or, .min_value, .max_value, #recorder time, #recorder span { color: var(--body-text-color) !important; }
#answer .two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .8rem 1.2rem; }
"""
# After an answer: for those who listen to the page, and on a phone, where the answer is below what was filled in.
SHOW_ANSWER = """() => {
    const heading = document.querySelector("#answer h2");
    heading?.focus({preventScroll: true});
    heading?.scrollIntoView({block: innerWidth < 800 ? "start" : "nearest"});
}"""


class Wall:
    """ASGI middleware: answers this machine's own page, and nothing but what the page needs."""

    def __init__(self, app, uploads: str, is_public: bool):
        """Stand before an app; of files, those in the folder of uploads alone are served. A public page has any name."""
        self.app, self.is_public, self.headers = app, is_public, dict(HEADERS)
        if is_public:
            policy = HEADERS["content-security-policy"]
            self.headers["content-security-policy"] = policy.replace("frame-ancestors 'none'", f"frame-ancestors {OF_SPACES}")
        self.files = f"/gradio_api/file={uploads}/"

    def admits(self, path: str) -> bool:
        """Tell whether the page needs a path."""
        if ".." in path:
            return False
        api = path.removeprefix("/gradio_api/") in ROUTES_OF_THE_API
        return path in ROUTES or (api and path.startswith("/gradio_api/")) or path.startswith((*ROUTES_UNDER, self.files))

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                kept = [(key, value) for key, value in message["headers"] if key.decode().lower() not in self.headers]
                message["headers"] = kept + [(key.encode(), value.encode()) for key, value in self.headers.items()]
            await send(message)

        # Another name for this machine is that of a website which had its address changed to this one; and no website may post.
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        is_own = host.rpartition(":")[0] in (ADDRESS, "localhost") and headers.get("origin") in (None, f"http://{host}")
        if (is_own or self.is_public) and self.admits(scope["path"]):
            await self.app(scope, receive, send_with_headers)
        else:
            await PlainTextResponse("not found", 404)(scope, receive, send_with_headers)


class Upload(route_utils.GradioUploadFile):
    """An upload in a folder of its own. Gradio names folders by content, but two visitors may bring the same file."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sha.update(secrets.token_bytes(16))


async def fetch_nothing(*_, **__):
    """Stands in for Gradio's download of a file whose address a visitor gives."""
    raise gradio.Error("expected an upload, found an address")


def restrict_gradio() -> None:
    """Change what Gradio has no option for."""
    route_utils.GradioUploadFile = Upload
    processing_utils.async_ssrf_protected_download = fetch_nothing


# ----------------------------------------------------------------------------------------------------------------------
# What the page shows.


def image(picture: np.ndarray, alt: str, style: str = "") -> str:
    """Return a picture, uint8 (height, width, 3), RGB, as an element of the page; it is in the page itself, and in no file."""
    png = base64.b64encode(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()).decode()
    height, width = picture.shape[:2]
    of_class = f'class="{style}" ' if style else ""
    return f'<img {of_class}width="{width}" height="{height}" alt="{html.escape(alt)}" src="data:image/png;base64,{png}">'


def spectrogram_picture(recording: Recording) -> np.ndarray:
    """Draw the first WHOLE_SECONDS of a recording's sound.

    Returns:
        uint8 (N_BINS + BAR, width, 3), RGB, width at most WIDEST: the spectrogram, high tones above, pale where there is no
        speech; and below it a bar where there is.
    """
    sound = recording.sound[: WHOLE_SECONDS * SAMPLE_RATE]
    parts = model.spectrogram(sound[None] / np.float32(32768))[0].numpy()  # (T, N_BINS, 2)
    loudness = np.linalg.norm(parts, axis=-1).T[::-1] / LOUD
    width = min(WIDEST, loudness.shape[1])
    loudness = cv2.resize(loudness, (width, len(loudness)), interpolation=cv2.INTER_AREA)
    colours = cv2.applyColorMap((255 * loudness.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_MAGMA)[..., ::-1]
    is_speech = np.zeros(width, bool)
    for first, last in recording.stretches:
        is_speech[int(first / len(sound) * width) : int(np.ceil(last / len(sound) * width))] = True
    grey = colours.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    colours = np.where(is_speech[:, None], colours, 128 + grey / 2).astype(np.uint8)
    bar = np.where(is_speech[:, None], BAR_COLOUR, (255, 255, 255)).astype(np.uint8)[None].repeat(BAR, axis=0)
    return np.concatenate([colours, bar])


def words_of_sound(recording: Recording) -> list[str]:
    """Return what was taken for speech, in lines."""
    lines = [f"{recording.speech_seconds:.1f} s of speech in {len(recording.sound) / SAMPLE_RATE:.1f} s of sound"]
    if recording.seconds > WHOLE_SECONDS + 1:
        minutes = recording.seconds / 60
        lines.append(f"{minutes:.0f} minutes long: {EXCERPTS} excerpts of {EXCERPT_SECONDS} s were used, spread over it")
    if not recording.is_sure:
        lines.append("little of it is clearly speech: all that is not quiet was used")
    return lines


def sound_part(recording: Recording) -> str:
    shown = min(len(recording.sound) / SAMPLE_RATE, WHOLE_SECONDS)
    alt = f"Spectrogram of {shown:.1f} s of sound. {words_of_sound(recording)[0]}."
    lines = "; ".join(words_of_sound(recording))
    caption = f"The first {shown:.0f} s. " if shown < len(recording.sound) / SAMPLE_RATE else ""
    caption += f"Time runs to the right, over {shown:.1f} s; high tones are above. The bar marks speech: {lines}."
    return f'<figure class="sound">{image(spectrogram_picture(recording), alt)}<figcaption>{caption}</figcaption></figure>'


def faces_part(heading: str, faces: list[tuple[np.ndarray, str, str]]) -> str:
    """Return faces side by side: each a picture, its alternative text, and its caption or nothing."""
    figures = (
        f"<figure>{image(picture, alt)}{caption and f'<figcaption>{html.escape(caption)}</figcaption>'}</figure>"
        for picture, alt, caption in faces
    )
    return f'<h3>{html.escape(heading)}</h3><div class="faces">{"".join(figures)}</div>'


def certainty_part(face: Face) -> str:
    if not face.certainty:
        return ""
    lines = (line.removeprefix("how sure: ") for line in face.certainty.words())
    items = (f"<li>{html.escape(line[0].upper() + line[1:])}.</li>" for line in lines)
    return f'<h3>How sure is it?</h3><ul class="certainty">{"".join(items)}</ul>'


def answer(loaded: Listener, gallery: Gallery | None, name: str, face: Face, exaggerate: float, n_samples: int) -> str:
    """Return the answer to a recording, for the page.

    Args:
        name: of the recording.
        face: of `loaded.face`, whatever its picture's exaggeration.
        exaggerate: of `faces.portraits.FaceDecoder`.
        n_samples: faces sampled beside the likeliest one.
    """
    exaggerating = dataclasses.replace(loaded, face_decoder=dataclasses.replace(loaded.face_decoder, exaggerate=exaggerate))
    picture = exaggerating.face_decoder.from_voices(face.direction[None])[0]
    alt = f"A face that the voice in {name} suggests; not a likeness of the speaker"
    shown = f"<figure>{image(picture, alt, 'face')}<figcaption>Not a likeness of the speaker.</figcaption></figure>"
    parts = [f'<h2 tabindex="-1">A face for {html.escape(name)}</h2>', f'<div class="two"><div>{shown}</div>']
    parts.append(f"<div>{certainty_part(face)}<h3>What was taken for speech</h3>{sound_part(face.recording)}</div></div>")
    if n_samples:
        samples = exaggerating.samples(face, n_samples)
        alts = (f"Sampled face {number} of {n_samples}" for number in range(1, n_samples + 1))
        parts.append(faces_part("Others who sound like this", [(of, alt, "") for of, alt in zip(samples, alts)]))
    if gallery:
        numbers, cosines = loaded.most_similar(face.direction[None], gallery, TOP)
        similar = [
            (gallery.image(number), f"Photo {gallery.names[number]}", f"{gallery.names[number]}, cosine {cosine:.3f}")
            for number, cosine in zip(numbers[0], cosines[0])
        ]
        parts.append(faces_part(f"The most similar of {len(gallery.names)} faces", similar))
    return "".join(parts)


def error_part(message: str) -> str:
    return f'<h2 tabindex="-1">No face</h2><p class="error" role="alert">{html.escape(message)}</p>'


# ----------------------------------------------------------------------------------------------------------------------
# The page.


def forget(path: Path) -> None:
    """Delete an upload, and the folder that it has for itself."""
    if path.is_file():
        path.unlink()
        path.parent.rmdir()


def sweep(uploads: Path, seconds: float) -> None:
    """Delete uploads of more than so many seconds ago: nobody asked for their faces, or they broke off."""
    for path in uploads.iterdir():
        with contextlib.suppress(FileNotFoundError):  # answered just now
            if time.time() - path.stat().st_mtime > seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def page_of(loaded: Listener, gallery: Gallery | None, is_public: bool = False) -> gradio.Blocks:
    """Return the page. What a visitor sends is read once; the answer is remembered for other exaggerations of it."""

    def show(recorded, chosen, exaggerate, n_samples, known):
        path = recorded or chosen
        name = "your recording" if recorded else path and utils.printable(Path(path).name)
        try:
            if path:
                known = None
                if not Path(path).is_file():
                    raise InputError(f"{name}: expected a recording, found it deleted; record or choose it again")
                known = name, loaded.face(path)
            if not known:
                raise InputError("record a voice, or choose a file, first")
            content = answer(loaded, gallery, *known, exaggerate, n_samples)  # Gradio has checked the numbers
        except InputError as error:
            content = error_part(utils.printable(str(error).replace(str(path), name or "")))
        except Exception:  # whatever it is, a visitor reads a line, and the one who started the server the rest
            traceback.print_exc()
            content = error_part("this went wrong in an unforeseen way; the terminal in which the page was started says more")
        finally:
            for upload in filter(None, (recorded, chosen)):
                forget(Path(upload))
        return content, None, None, known

    use = "".join(f"<li><strong>{first}</strong> {rest}</li>" for first, rest in PROPER_USE)
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        kept = "Your recording is deleted with the answer." if is_public else "Everything stays on this machine."
        gradio.HTML(f"<h1>{TITLE}</h1><p>Speak for six seconds or more. {kept}</p>", elem_id="title")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                gradio.HTML("<h2>Your voice</h2>", elem_id="voice")
                recorded = gradio.Audio(
                    sources=["microphone"], type="filepath", label="Record", editable=False, buttons=[], elem_id="recorder"
                )
                chosen = gradio.File(label="Or choose a sound or video file", height=160, buttons=[])
                chosen._process_single_file = lambda upload: upload.path  # Gradio's own leaves an empty file for each
                exaggerate = gradio.Slider(
                    0, MOST_EXAGGERATION, 1.0, step=0.1, label="Exaggeration", info="0 gives the mean face", buttons=[]
                )
                n_samples = gradio.Slider(
                    0, MOST_SAMPLES, 4, step=1, label="Other faces", info="people who sound like this", buttons=[]
                )
                button = gradio.Button("Show the face", variant="primary")
            with gradio.Column(scale=5, min_width=300):
                shown = gradio.HTML(
                    "<h2>The face</h2><p>It appears here. It takes a few seconds.</p>", elem_id="answer", min_height=200
                )
        gradio.HTML(f"<h2>What it can and cannot do</h2><ul>{use}</ul>", elem_id="use")
        known = gradio.State(None, time_to_live=FORGET_SECONDS)
        # The newer of the two counts.
        recorded.stop_recording(None, js="() => null", outputs=chosen, api_visibility="private")
        chosen.upload(None, js="() => null", outputs=recorded, api_visibility="private")
        button.click(
            show,
            [recorded, chosen, exaggerate, n_samples, known],
            [shown, recorded, chosen, known],
            show_progress_on=shown,
            concurrency_limit=1,
            api_visibility="private",
        ).then(None, js=SHOW_ANSWER, api_visibility="private")
    return page.queue(max_size=MOST_WAITING, api_open=False)


def theme() -> gradio.themes.Base:
    """Return colours of enough contrast, and the system's own fonts."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    blue = {f"button_primary_background_fill{of}": f"*primary_{shade}" for of, shade in BLUES.items()}
    grey = {"block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300"}
    return gradio.themes.Default(primary_hue="blue", **fonts).set(**blue, **grey)


def serve(loaded: Listener, gallery: Gallery | None, port: int, host: str = ADDRESS) -> None:
    """Serve the page until Ctrl-C, which is passed on.

    Args:
        loaded: with a face decoder.
        gallery: faces to choose from, if any.
        port: on this machine.
        host: the address that is listened on; any other than ADDRESS makes the page public.

    Raises:
        InputError: if the port is in use.
        KeyboardInterrupt: after Ctrl-C or a request to end, when all is deleted.
    """
    in_use = f"--port: expected a free port, found {port} in use; name another one"
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise InputError(f"{in_use} ({error.strerror})") from None
    for number in (signal.SIGINT, signal.SIGTERM):  # the first is ignored in what a shell runs in the background
        signal.signal(number, signal.default_int_handler)
    os.environ["no_proxy"] = ",".join(
        filter(None, [os.environ.get("no_proxy"), ADDRESS])
    )  # Gradio asks the page whether it is up
    restrict_gradio()
    with tempfile.TemporaryDirectory(prefix="speech2face-", ignore_cleanup_errors=True) as folder:
        uploads, internal = (os.path.join(os.path.realpath(folder), name) for name in ("uploads", "gradio"))
        os.mkdir(uploads)
        os.environ["GRADIO_TEMP_DIR"] = uploads
        routes.DEFAULT_TEMP_DIR = internal
        is_public = host != ADDRESS
        page = page_of(loaded, gallery, is_public)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                inbrowser=False,
                prevent_thread_lock=True,
                theme=theme(),
                css=STYLE,
                footer_links=[],
                run_history=False,
                max_file_size=MOST_BYTES,
                enable_monitoring=False,
                state_session_capacity=MOST_SESSIONS,
                allowed_paths=[],
                root_path="",
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                app_kwargs={"middleware": [Middleware(Wall, uploads=uploads, is_public=is_public)]},
            )
        except OSError:  # another program was faster
            raise InputError(in_use) from None
        try:
            print(f"hear: http://{host}:{port}, stop with Ctrl-C", flush=True)
            while True:
                time.sleep(SWEEP_SECONDS)
                sweep(Path(uploads), FORGET_SECONDS)
        finally:
            page.close(verbose=False)
            sys.stdout.flush()
