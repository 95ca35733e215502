"""Fetch segments of videos with yt-dlp, politely, each cut exactly at its start and end.

All segments of a video are fetched in one yt-dlp session: one request for the watch page, then ffmpeg for each segment, which
reads from the key frame before the start and re-encodes from the exact start. Sessions take turns across all processes of a
machine, so that more workers do not mean more requests. The length of each file is checked: ffmpeg may report success and
leave half a clip, or none.
"""

import contextlib
import copy
import dataclasses
import email.utils
import fcntl
import functools
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
# YouTube throttles a connection that requests more than 10 MB at once; yt-dlp's own downloader requests chunks too.
REQUEST_BYTES = 10 << 20
TIMEOUT_SECONDS = 20.0  # s without data, after which a connection is given up
# Source: yt-dlp's preset for slow fetching, `-t sleep`.
REQUEST_SLEEP_SECONDS = 0.75  # s between two requests of a session
# s to wait after a rate limit that names no time. YouTube's lasts "up to an hour".
BACKOFF_SECONDS = (60, 240, 960, 3600)
MAX_WAIT_SECONDS = 7200  # s, however long the site asks to wait
UNFINISHED = ".fetch"  # folder beside the clips for unfinished downloads
LEFTOVER_SECONDS = 86_400  # s, age at which unfinished downloads are deleted
TOLERANCE_SECONDS = 0.5  # s by which a clip may be shorter than its segment

# Messages of yt-dlp and ffmpeg, by the reason that they stand for; the first match counts.
_MESSAGES = {
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


@functools.cache
def _yt_dlp():
    """Import yt-dlp at the first use: the import takes half a second, and runs that fetch nothing do without."""
    import yt_dlp

    return yt_dlp


@dataclasses.dataclass(frozen=True)
class FetchSettings:
    """How to fetch."""

    url_template: str  # address of a video; {} stands for its id
    sleep_seconds: float  # mean time between the starts of two sessions on this machine
    bytes_per_second: float | None  # at most, averaged over the sessions
    cookies: str | None  # content of a cookie file
    proxy: str | None  # address of a proxy


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video, from start to end in s, and the path of the file to write."""

    start: float
    end: float
    path: Path


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a segment was not fetched."""

    reason: str  # a key of `reasons.REASONS`
    detail: str  # one line
    retry_after: float | None = None  # s to wait, if the site named a time


def fetch(video_id: str, segments: list[Segment], settings: FetchSettings) -> dict[Path, Failure]:
    """Fetch segments of one video in one session; after a rate limit, wait and continue in another session.

    Returns:
        The failures, by path. The files of all other segments are complete.
    """
    failures = {}
    for backoff in (*BACKOFF_SECONDS, None):
        started = wait_for_turn(settings)
        failed, n_bytes = _run_session(video_id, segments, settings)
        if settings.bytes_per_second:
            postpone_turns(settings, started + n_bytes / settings.bytes_per_second)
        failures = {path: failure for path, failure in failures.items() if failure.reason != "rate-limited"} | failed
        limited = [failure for failure in failed.values() if failure.reason == "rate-limited"]
        if not limited or backoff is None:
            return failures
        seconds = min(max(failure.retry_after or 0 for failure in limited) or backoff, MAX_WAIT_SECONDS)
        print(f"preprocess: {video_id}: rate limited, continuing in {seconds:.0f} s", file=sys.stderr)
        postpone_turns(settings, time.time() + seconds)
        segments = [segment for segment in segments if failures.get(segment.path) in limited]
    return failures


def remove_leftovers(videos: Path) -> None:
    """Delete unfinished downloads of killed runs that are older than a day."""
    for folder in (videos / UNFINISHED).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if folder.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------
# Turns. A file holds the time at which the next session on this machine may start.


@contextlib.contextmanager
def _next_turn(settings: FetchSettings):
    """Open and lock the file that holds the start of the next session. Gives the time and a function that sets it."""
    site = urllib.parse.urlsplit(settings.url_template).netloc
    site = re.sub(r"[^\w.]", "-", site)
    with open(Path(tempfile.gettempdir()) / f"speech2face-{os.getuid()}-{site}", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even by a kill
        file.seek(0)
        try:
            at = float(file.read())
        except ValueError:
            at = 0.0

        def put(new):
            file.truncate(0)
            file.write(repr(new))

        yield at, put


def wait_for_turn(settings: FetchSettings) -> float:
    """Wait until a session may start, and set the time of the next one. Returns the current time, s since 1970."""
    while True:
        with _next_turn(settings) as (at, put):
            now = time.time()
            if at <= now or at > now + LEFTOVER_SECONDS:  # the clock was set back
                put(now + settings.sleep_seconds * random.uniform(2 / 3, 4 / 3))
                return now
        time.sleep(at - now)


def postpone_turns(settings: FetchSettings, until: float) -> None:
    """Let no session start before a time, s since 1970."""
    with _next_turn(settings) as (at, put):
        put(max(at, until))


# ----------------------------------------------------------------------------------------------------------------------
# One session.


def _run_session(video_id: str, segments: list[Segment], settings: FetchSettings) -> tuple[dict[Path, Failure], int]:
    """Fetch segments of one video. Returns the failures, by path, and the number of bytes read by ffmpeg."""
    folder = segments[0].path.parent / UNFINISHED / f"{video_id}-{segments[0].path.stem}"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    folder.mkdir(parents=True)
    failures, n_bytes = {}, 0
    try:
        with _yt_dlp().YoutubeDL(_yt_dlp_options(folder, settings)) as downloader:
            try:
                video = downloader.extract_info(settings.url_template.replace("{}", video_id), download=False, process=False)
            except _yt_dlp().utils.DownloadError as error:
                failure = _failure(error)
                return {segment.path: failure for segment in segments}, 0
            for number, segment in enumerate(segments):
                failure, n_read = _fetch_segment(downloader, video, segment, folder / str(number))
                n_bytes += n_read
                if failure:
                    failures[segment.path] = failure
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process uses the folder
            folder.parent.rmdir()
    return failures, n_bytes


def _yt_dlp_options(folder: Path, settings: FetchSettings) -> dict:
    """Return yt-dlp's options for a session that writes to a folder."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    # As yt-dlp's own command line does; the option `ffmpeg_location` alone is not enough.
    _yt_dlp().postprocessor.FFmpegPostProcessor._ffmpeg_location.set(ffmpeg)
    log = logging.Logger("yt-dlp")  # silent: failures are recorded in the manifest
    log.addHandler(logging.NullHandler())
    return {
        "format": FORMAT,
        "paths": {"home": str(folder)},
        "force_keyframes_at_cuts": True,  # re-encode from the exact start, not from the key frame before it
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
        "sleep_interval_requests": REQUEST_SLEEP_SECONDS if settings.sleep_seconds else 0,
        "ratelimit": settings.bytes_per_second,
        "cookiefile": io.StringIO(settings.cookies) if settings.cookies else None,  # a file would be overwritten by yt-dlp
        "proxy": settings.proxy,
        "noplaylist": True,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": log,
    }


def _fetch_segment(downloader, video: dict, segment: Segment, folder: Path) -> tuple[Failure | None, int]:
    """Fetch one segment, using `folder`. Returns the failure, or None, and the number of bytes read by ffmpeg."""
    end = min(segment.end, video.get("duration") or segment.end)
    if segment.start >= end:
        return Failure("bad-row", f"expected a segment of the video, which ends at {end:.1f} s"), 0
    downloader.params["download_ranges"] = _yt_dlp().utils.download_range_func(None, [(segment.start, segment.end)])
    downloader.params["outtmpl"]["default"] = f"{folder.name}/clip.%(ext)s"
    folder.mkdir()
    log_path, problem = folder / "log", None
    with utils.stderr_to(log_path):
        try:
            downloader.process_ie_result(copy.deepcopy(video), download=True)
        except _yt_dlp().utils.DownloadError as error:
            problem = error
    log = log_path.read_text(errors="replace")
    n_bytes = sum(map(int, re.findall(r"Statistics: (\d+) bytes read", log)))
    if problem:
        return _failure(problem, log), n_bytes
    files = [file for file in folder.iterdir() if file != log_path]
    seconds = _video_seconds(files[0]) if len(files) == 1 else 0
    if seconds < end - segment.start - TOLERANCE_SECONDS:
        failure = _failure(None, log)
        reason = "network" if failure.reason == "not-fetched" else failure.reason
        detail = f"expected {end - segment.start:.1f} s of video, found {seconds:.1f} s. {failure.detail}"
        return Failure(reason, detail.strip(), failure.retry_after), n_bytes
    os.replace(files[0], segment.path)
    return None, n_bytes


def _video_seconds(path: Path) -> float:
    """Return the length of a file's video in s; 0 if the file holds none."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(str(path))[1]
    except RuntimeError:
        return 0.0


def _failure(error, log: str = "") -> Failure:
    """Read off yt-dlp's error, or None, and ffmpeg's log why a segment was not fetched."""
    lines = [
        line for line in log.splitlines() if re.search(r"(?i)(?<!decode )error|fail|invalid|premature|timed out|partial", line)
    ]
    texts = [str(error).removeprefix("ERROR: ")] if error else []
    texts = [_yt_dlp().utils.remove_terminal_sequences(text) for text in texts + lines]
    texts = [re.sub(r"^\[[^]]*@ 0x[0-9a-f]+\] |; please report this issue.*|ERROR: ", "", text) for text in texts]
    text = " | ".join(dict.fromkeys(texts))
    return Failure(reason_of(text), " ".join(text.split())[:500], _retry_after(error))


def reason_of(text: str) -> str:
    """Return the reason, a key of `reasons.REASONS`, for a message of yt-dlp or ffmpeg."""
    text = text.replace("\u2019", "'")
    if re.search(r"(?i)incomplete youtube id", text):
        return "bad-row"
    return next((reason for reason, words in _MESSAGES.items() if re.search(f"(?i){words}", text)), "not-fetched")


def _retry_after(error) -> float | None:
    """Return the s that a server asks to wait, by the header Retry-After in yt-dlp's error, which may be None."""
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
