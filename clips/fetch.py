"""Fetch segments of videos with yt-dlp, politely, each cut exactly at its start and end.

The segments of one video come in one yt-dlp session: one look at the watch page, then each segment by ffmpeg, which reads from
the key frame before the start and encodes anew from the very start on. Sessions take turns over all processes of a machine, so
that more workers do not mean more requests. What came is measured: ffmpeg may end well and leave half a clip, or none.
"""

import contextlib
import copy
import dataclasses
import email.utils
import fcntl
import io
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import imageio_ffmpeg

import utils

# 360p is enough for a face of 224 pixels.
FORMAT = "b[height<=360][ext=mp4]/bv*[height<=360][ext=mp4]+ba[ext=m4a]/b[height<=360]/bv*[height<=360]+ba/b/bv*+ba"
ENCODING = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-c:a", "aac", "-b:a", "128k", "-f", "mp4"]
# YouTube slows a connection that asks for more than 10 MB at once to a crawl; yt-dlp's own downloader asks in chunks too.
REQUEST_BYTES = 10 << 20
TIMEOUT_SECONDS = 20.0  # of a connection that says nothing
# Between two requests while yt-dlp looks at a video. Source: its own preset for slow fetching, `-t sleep`.
REQUEST_SLEEP_SECONDS = 0.75
# Waits after a rate limit that names no time. YouTube's lasts "up to an hour".
BACKOFF_SECONDS = (60, 240, 960, 3600)
LONGEST_WAIT_SECONDS = 7200  # whatever the site says
UNFINISHED = ".fetch"  # folder beside the clips for what is not whole yet
LEFTOVER_SECONDS = 86_400  # age of what a killed run has left
TOLERANCE_SECONDS = 0.5  # by which a clip may be shorter than its segment

# The words of yt-dlp and ffmpeg that tell why a segment could not be fetched; the first reason that fits counts.
_WORDS = {
    "bot-check": r"not a bot|captcha",
    "rate-limited": r"http error 429|too many requests|try again later|rate-?limited",
    "age-gated": r"confirm your age|age.restricted|inappropriate for some users",
    "region": r"in your (country|region|location)|from your (country|region|location)|geo.?restrict",
    "private": r"private video|is private|members.only|channel's members|join this channel|requires? payment|to purchase",
    "removed": r"http error (404|410)|has been removed|no longer available|does not exist|terminated|account .*closed"
    r"|video (is )?(unavailable|not available)",
    "forbidden": r"http error (401|403)|forbidden",
    "network": r"timed? ?out|connection|getaddrinfo|name resolution|failed to resolve|unreachable|proxy|tunnel|ssl|tls"
    r"|http error 5|incomplete ?read|input/output error|prematurely|partial file|invalid data|error opening input",
}


@dataclasses.dataclass(frozen=True)
class Manner:
    """How to fetch: what goes along with every segment."""

    url_template: str  # address of a video; {} stands for its id
    sleep_seconds: float  # mean time from one session to the next on this machine
    bytes_per_second: float | None  # at most, on average over the sessions
    cookies: str | None  # content of a cookie file
    proxy: str | None  # address of a proxy


@dataclasses.dataclass(frozen=True)
class Segment:
    """A chunk of a video, in s, and the file to put it in."""

    start: float
    end: float
    path: Path


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a segment was not fetched: a key of `reasons.REASONS` (or "bad-row"), a line of detail, and the s to wait, if told."""

    reason: str
    detail: str
    retry_after: float | None = None


def fetch(video_id: str, segments: list[Segment], manner: Manner) -> dict[Path, Failure]:
    """Fetch segments of one video, in one session; after a rate limit wait and go on, in another.

    Returns:
        The failures, by path. The other segments' files are there, whole.
    """
    failures = {}
    for backoff in (*BACKOFF_SECONDS, None):
        started = wait_for_turn(manner)
        failed, n_bytes = _session(video_id, segments, manner)
        if manner.bytes_per_second:
            put_off_turns(manner, started + n_bytes / manner.bytes_per_second)
        failures = {path: failure for path, failure in failures.items() if failure.reason != "rate-limited"} | failed
        limited = [failure for failure in failed.values() if failure.reason == "rate-limited"]
        if not limited or backoff is None:
            return failures
        seconds = min(max(failure.retry_after or 0 for failure in limited) or backoff, LONGEST_WAIT_SECONDS)
        print(f"preprocess: {video_id}: rate limited, going on in {seconds:.0f} s", file=sys.stderr)
        put_off_turns(manner, time.time() + seconds)
        segments = [segment for segment in segments if failures.get(segment.path) in limited]
    return failures


def remove_leftovers(videos: Path) -> None:
    """Remove what killed runs have left of unfinished clips beside the clips, a day ago or earlier."""
    for folder in (videos / UNFINISHED).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if folder.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------
# Turns. A file holds the time at which the next session of this machine may begin.


@contextlib.contextmanager
def _next_turn(manner: Manner):
    """Open and lock the file with the next session's time. Gives the time and a function that sets it."""
    site = urllib.parse.urlsplit(manner.url_template).netloc
    site = re.sub(r"[^\w.]", "-", site)
    with open(Path(tempfile.gettempdir()) / f"speech2face-{os.getuid()}-{site}", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        file.seek(0)
        try:
            at = float(file.read())
        except ValueError:
            at = 0.0

        def put(new):
            file.truncate(0)
            file.write(repr(new))

        yield at, put


def wait_for_turn(manner: Manner) -> float:
    """Wait until a session may begin, and say when the next one may. Returns the time, s since 1970."""
    while True:
        with _next_turn(manner) as (at, put):
            now = time.time()
            if at <= now or at > now + LEFTOVER_SECONDS:  # the clock was set back
                put(now + manner.sleep_seconds * random.uniform(2 / 3, 4 / 3))
                return now
        time.sleep(at - now)


def put_off_turns(manner: Manner, until: float) -> None:
    """Let no session begin before a time, s since 1970."""
    with _next_turn(manner) as (at, put):
        put(max(at, until))


# ----------------------------------------------------------------------------------------------------------------------
# One session.


def _session(video_id: str, segments: list[Segment], manner: Manner) -> tuple[dict[Path, Failure], int]:
    """Fetch segments of one video. Returns the failures, by path, and the number of bytes that ffmpeg read."""
    import yt_dlp
    from yt_dlp.postprocessor import FFmpegPostProcessor

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    FFmpegPostProcessor._ffmpeg_location.set(ffmpeg)  # as yt-dlp's own command line does; the option alone is not enough
    log = logging.Logger("yt-dlp")  # says nothing: what went wrong goes to the manifest
    log.addHandler(logging.NullHandler())
    folder = segments[0].path.parent / UNFINISHED / f"{video_id}-{segments[0].path.stem}"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    folder.mkdir(parents=True)
    settings = {
        "format": FORMAT,
        "paths": {"home": str(folder)},
        "force_keyframes_at_cuts": True,  # encode anew from the start on, not from the key frame before it
        "ffmpeg_location": ffmpeg,
        "external_downloader_args": {
            "ffmpeg_i": [
                *("-loglevel", "verbose", "-request_size", str(REQUEST_BYTES)),
                *("-rw_timeout", str(round(TIMEOUT_SECONDS * 1e6))),  # microseconds
            ],
            "ffmpeg_o": ENCODING,
        },
        "socket_timeout": TIMEOUT_SECONDS,
        "extractor_retries": 3,
        "sleep_interval_requests": REQUEST_SLEEP_SECONDS if manner.sleep_seconds else 0,
        "ratelimit": manner.bytes_per_second,
        "cookiefile": io.StringIO(manner.cookies) if manner.cookies else None,  # yt-dlp would write to a file
        "proxy": manner.proxy,
        "noplaylist": True,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": log,
    }
    failures, n_bytes = {}, 0
    try:
        with yt_dlp.YoutubeDL(settings) as downloader:
            try:
                video = downloader.extract_info(manner.url_template.replace("{}", video_id), download=False, process=False)
            except yt_dlp.utils.DownloadError as error:
                failure = _failure(error)
                return {segment.path: failure for segment in segments}, 0
            for number, segment in enumerate(segments):
                failure, n_read = _fetch_segment(downloader, video, segment, folder / str(number))
                n_bytes += n_read
                if failure:
                    failures[segment.path] = failure
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are at work in it
            folder.parent.rmdir()
    return failures, n_bytes


def _fetch_segment(downloader, video: dict, segment: Segment, folder: Path) -> tuple[Failure | None, int]:
    """Fetch one segment, by way of `folder`. Returns the failure, if it failed, and the number of bytes that ffmpeg read."""
    import yt_dlp

    end = min(segment.end, video.get("duration") or segment.end)
    if segment.start >= end:
        return Failure("bad-row", f"expected a segment of the video, which ends at {end:.1f} s"), 0
    downloader.params["download_ranges"] = yt_dlp.utils.download_range_func(None, [(segment.start, segment.end)])
    downloader.params["outtmpl"]["default"] = f"{folder.name}/clip.%(ext)s"
    folder.mkdir()
    log, problem = folder / "log", None
    with utils.stderr_to(log):
        try:
            downloader.process_ie_result(copy.deepcopy(video), download=True)
        except yt_dlp.utils.DownloadError as error:
            problem = error
    said = log.read_text(errors="replace")
    n_bytes = sum(map(int, re.findall(r"Statistics: (\d+) bytes read", said)))
    if problem:
        return _failure(problem, said), n_bytes
    files = [file for file in folder.iterdir() if file != log]
    seconds = _video_seconds(files[0]) if len(files) == 1 else 0
    if seconds < end - segment.start - TOLERANCE_SECONDS:
        failure = _failure(None, said)
        reason = "network" if failure.reason == "not-fetched" else failure.reason
        detail = f"expected {end - segment.start:.1f} s of video, {seconds:.1f} s came. {failure.detail}"
        return Failure(reason, detail.strip(), failure.retry_after), n_bytes
    os.replace(files[0], segment.path)
    return None, n_bytes


def _video_seconds(path: Path) -> float:
    """Return how long a file's video is, in s; 0 if there is none."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(str(path))[1]
    except RuntimeError:
        return 0.0


def _failure(error, said: str = "") -> Failure:
    """Tell from yt-dlp's error, or None, and ffmpeg's log why a segment was not fetched."""
    import yt_dlp

    wrong = [
        line for line in said.splitlines() if re.search(r"(?i)(?<!decode )error|fail|invalid|premature|timed out|partial", line)
    ]
    texts = [str(error).removeprefix("ERROR: ")] if error else []
    texts = [yt_dlp.utils.remove_terminal_sequences(text) for text in texts + wrong]
    texts = [re.sub(r"^\[[^]]*@ 0x[0-9a-f]+\] |; please report this issue.*|ERROR: ", "", text) for text in texts]
    text = " | ".join(dict.fromkeys(texts))
    return Failure(reason_of(text), " ".join(text.split())[:500], _retry_after(error))


def reason_of(text: str) -> str:
    """Return the reason, a key of `reasons.REASONS`, that yt-dlp's or ffmpeg's words give."""
    text = text.replace("\u2019", "'")
    if re.search(r"(?i)incomplete youtube id", text):
        return "bad-row"
    return next((reason for reason, words in _WORDS.items() if re.search(f"(?i){words}", text)), "not-fetched")


def _retry_after(error) -> float | None:
    """Return the s that a server asked to wait, by the header Retry-After, out of yt-dlp's error, which may be None."""
    while error is not None:
        headers = getattr(getattr(error, "response", None), "headers", {})
        if value := headers.get("Retry-After"):
            if value.isdigit():
                return float(value)
            try:
                return max(1.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
            except ValueError:
                return None
        wrapped = getattr(error, "exc_info", None)
        error = getattr(error, "cause", None) or (wrapped[1] if wrapped else None)
    return None
