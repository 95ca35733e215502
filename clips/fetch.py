"""Fetch segments of videos with yt-dlp, politely, each cut exactly at its start and end.

All segments of a video are fetched in one yt-dlp session: one request for the watch page, then ffmpeg for each segment, which
reads from the key frame before the start and re-encodes from the exact start. Sessions take turns across all processes of a
machine, so that more workers do not mean more requests. The length of each file is checked: ffmpeg may report success and
leave half a clip, or none.
"""

import contextlib
import copy
import dataclasses
import functools
import http.cookiejar
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
from clips import records
from clips.failures import Failure, failure_of
from utils import InputError

FORMAT = "bv*+ba/b"  # one file with both, or picture and sound apart, whichever comes first in FORMAT_SORT
# The shorter side decides, for videos may be upright: the largest up to 360 pixels, enough for a face of 224, or the smallest
# above. Then the language of the original, one file with both picture and sound, mp4.
FORMAT_SORT = ["res:360", "lang", "hasaud", "ext:mp4:m4a"]
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
MAX_POSTPONED_SECONDS = 86_400  # s; a turn that is further away is a mistake: the clock was set back
TOLERANCE_SECONDS = 0.5  # s by which a clip may be shorter than its segment
PROBE_BYTES = 1 << 20  # bytes, written to find out whether the disk is full


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


def read_cookies(path: Path) -> str:
    """Read a file of cookies as yt-dlp does.

    Returns:
        The cookies in Netscape's format. Lines that yt-dlp cannot read are left out; a line on stderr counts them.

    Raises:
        InputError: if the file is in another format, or holds no cookie.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    jar = _yt_dlp().cookies.YoutubeDLCookieJar(io.StringIO(text))
    found = "no cookie"
    with contextlib.redirect_stderr(io.StringIO()) as warnings:  # yt-dlp's warnings would show the cookies
        try:
            jar.load()
        except http.cookiejar.LoadError:
            found = "JSON" if re.search(r"(?m)^\s*[\[{]", text) else "another format"
    if not len(jar):
        raise InputError(
            f"{path}: expected cookies in Netscape's format, found {found}; export the cookies of your browser as cookies.txt"
        )
    if n_unread := warnings.getvalue().count("skipping cookie file entry"):
        print(f"preprocess: {path}: {n_unread} of the lines are no cookies in Netscape's format, left out", file=sys.stderr)
    with io.StringIO() as file:
        jar.save(file)
        return file.getvalue()


def fetch(video_id: str, segments: list[Segment], settings: FetchSettings) -> dict[Path, Failure]:
    """Fetch segments of one video in one session; after a rate limit, wait and continue in another session.

    Returns:
        The failures, by path. The files of all other segments are complete.
    """
    failures = {}
    for backoff in (*BACKOFF_SECONDS, None):
        try:
            folder = _new_folder(segments[0].path.parent)
        except OSError as error:
            return failures | dict.fromkeys([segment.path for segment in segments], _not_written(error))
        try:
            started = wait_for_turn(settings)
            failed, n_bytes = _run_session(video_id, segments, settings, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process uses the folder
                folder.parent.rmdir()
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


def _new_folder(videos: Path) -> Path:
    """Make a folder for one session, beside the clips. Its name is its own, for other runs may use the same videos."""
    while True:
        (videos / UNFINISHED).mkdir(parents=True, exist_ok=True)
        try:
            return Path(tempfile.mkdtemp(dir=videos / UNFINISHED))
        except FileNotFoundError:  # another session has just ended, and removed the folder above
            continue


def _not_written(error: OSError) -> Failure:
    return Failure("not-written", f"expected a folder of clips that can be written to, found: {error}")


def remove_leftovers(videos: Path) -> None:
    """Delete unfinished downloads of killed runs that are older than a day."""
    utils.remove_leftovers(videos / UNFINISHED, "")


# ----------------------------------------------------------------------------------------------------------------------
# Turns. A file holds the time at which the next session on this machine may start.


@contextlib.contextmanager
def _next_turn(settings: FetchSettings):
    """Open and lock the file that holds the start of the next session. Gives the time and a function that sets it."""
    site = urllib.parse.urlsplit(settings.url_template).netloc
    site = re.sub(r"[^\w.]", "-", site)
    with open(Path(tempfile.gettempdir()) / f"speech2face-{os.getuid()}-{site}", "a+") as file:
        records.lock(file)
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
            if at <= now or at > now + MAX_POSTPONED_SECONDS:
                put(now + settings.sleep_seconds * random.uniform(2 / 3, 4 / 3))
                return now
        time.sleep(at - now)


def postpone_turns(settings: FetchSettings, until: float) -> None:
    """Let no session start before a time, s since 1970."""
    with _next_turn(settings) as (at, put):
        put(max(at, until))


# ----------------------------------------------------------------------------------------------------------------------
# One session.


def _run_session(
    video_id: str, segments: list[Segment], settings: FetchSettings, folder: Path
) -> tuple[dict[Path, Failure], int]:
    """Fetch segments of one video. Returns the failures, by path, and the number of bytes read by ffmpeg."""
    failures, n_bytes = {}, 0
    options = _yt_dlp_options(folder, settings)
    with contextlib.ExitStack() as stack:
        try:
            downloader = stack.enter_context(_yt_dlp().YoutubeDL(options))
            video = downloader.extract_info(settings.url_template.replace("{}", video_id), download=False, process=False)
        except Exception as error:  # whatever yt-dlp raises, for a page may lead its extractors to any exception
            return dict.fromkeys([segment.path for segment in segments], failure_of(error)), 0
        for number, segment in enumerate(segments):
            try:
                failure, n_read = _fetch_segment(downloader, video, segment, folder / str(number))
            except OSError as error:
                failure, n_read = _not_written(error), 0
            n_bytes += n_read
            if failure:
                failures[segment.path] = failure
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
        "format_sort": FORMAT_SORT,
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
    if video.get("live_status") in ("is_live", "is_upcoming", "post_live"):  # its times are not those of the recording yet
        return Failure("upcoming", f"expected a recording, found the status {video['live_status']}"), 0
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
        except Exception as error:  # as above
            problem = error
    log = log_path.read_text(encoding="utf-8", errors="replace")
    n_bytes = sum(map(int, re.findall(r"Statistics: (\d+) bytes read", log)))
    files = [file for file in folder.iterdir() if file != log_path]
    seconds = _video_seconds(files[0]) if len(files) == 1 and not problem else 0
    if not problem and seconds >= end - segment.start - TOLERANCE_SECONDS:
        os.replace(files[0], segment.path)
        return None, n_bytes
    (folder / "probe").write_bytes(
        bytes(PROBE_BYTES)
    )  # raises OSError if the disk is full, of which ffmpeg's log may say nothing
    failure = failure_of(problem, log, str(folder))
    if not problem:
        reason = "network" if failure.reason == "not-fetched" else failure.reason
        detail = f"expected {end - segment.start:.1f} s of video, found {seconds:.1f} s. {failure.detail}"
        failure = dataclasses.replace(failure, reason=reason, detail=detail.strip())
    return failure, n_bytes


def _video_seconds(path: Path) -> float:
    """Return the length of a file's video in s; 0 if the file holds none."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(str(path))[1]
    except RuntimeError:
        return 0.0
