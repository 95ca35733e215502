"""Fetching with the real yt-dlp and the real ffmpeg, from a server on this machine."""

import dataclasses
import email.utils
import itertools
import os
import re
import threading
import time

import imageio_ffmpeg
import pytest
from conftest import ffmpeg, loudest_hertz, second_shown
from video_server import Server

from clips import fetch, media
from clips.fetch import Failure, FetchSettings, Segment
from clips.reasons import REASONS


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    with Server(folder) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def settings(server):
    return FetchSettings(server.url_template, sleep_seconds=0, bytes_per_second=None, cookies=None, proxy=None)


@pytest.fixture
def segment(tmp_path):
    """Return a function: the segment from a start to an end, in s."""
    (tmp_path / "videos").mkdir()

    def make(start, end):
        return Segment(start, end, tmp_path / "videos" / f"clip_{start}.mp4")

    return make


def fetched_seconds(path):
    return imageio_ffmpeg.count_frames_and_secs(str(path))[1]


# ---------------------------------------------------------------- segments


def test_all_segments_of_a_video_are_fetched_in_one_session_and_cut_exactly(server, settings, segment, counting_video):
    (server.folder / "-video_1.mp4").write_bytes(counting_video.read_bytes())  # its only key frames are at 0 and 10 s
    segments = [segment(3, 7.5), segment(0, 2), segment(9.2, 11.9)]
    assert fetch.fetch("-video_1", segments, settings) == {}
    for wanted in segments:
        assert fetched_seconds(wanted.path) == pytest.approx(wanted.end - wanted.start, abs=0.1)
    samples, frame = media.read_clip(segments[0].path)
    frames = [frame, *media.read_later_frames(segments[0].path)]
    assert [second_shown(frame) for frame in frames] == pytest.approx([3, 4, 5, 6, 7], abs=0.3)
    assert loudest_hertz(samples[1600:14_400]) == pytest.approx(500, abs=3)
    assert second_shown(media.read_clip(segments[2].path)[1]) == pytest.approx(9, abs=0.3)
    assert {path.name for path in segments[0].path.parent.iterdir()} == {wanted.path.name for wanted in segments}
    by_ytdlp = [request for request in server.requests if request[1] == "yt-dlp"]
    assert len(by_ytdlp) <= 2  # one request for the page, not one for each segment


@pytest.fixture
def dash_page(server, counting_video):
    """The id of a page with separate picture and sound, 12 s long, as on YouTube."""
    ffmpeg("-i", counting_video, "-an", "-c", "copy", server.folder / "picture.mp4")
    ffmpeg("-i", counting_video, "-vn", "-c", "copy", server.folder / "sound.mp4")
    (server.folder / "page.mp4").write_text(f"""<?xml version="1.0"?>
        <MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT12S"
             profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
        <AdaptationSet mimeType="video/mp4">
          <Representation id="v" width="320" height="240" bandwidth="90000" codecs="avc1.4d400d">
          <BaseURL>{server.url_template.format("picture")}</BaseURL></Representation></AdaptationSet>
        <AdaptationSet mimeType="audio/mp4"><Representation id="a" bandwidth="64000" codecs="mp4a.40.2">
          <BaseURL>{server.url_template.format("sound")}</BaseURL></Representation></AdaptationSet></Period></MPD>""")
    return "page"


def test_separate_picture_and_sound_are_merged(dash_page, settings, segment):
    wanted = segment(4, 7)
    assert fetch.fetch(dash_page, [wanted], settings) == {}
    samples, frame = media.read_clip(wanted.path)
    assert second_shown(frame) == pytest.approx(4, abs=0.3)
    assert loudest_hertz(samples[1600:14_400]) == pytest.approx(600, abs=3)


def test_a_segment_after_the_end_of_its_video_is_a_bad_row(segment, tmp_path):
    failure, _ = fetch._fetch_segment(None, {"duration": 12}, segment(20, 23), tmp_path)
    assert failure == Failure("bad-row", "expected a segment of the video, which ends at 12.0 s")


def test_ffmpeg_requests_chunks(server, settings, segment, counting_video, monkeypatch):
    monkeypatch.setattr(fetch, "REQUEST_BYTES", 20_000)
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    assert fetch.fetch("abc", [segment(1, 11)], settings) == {}
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"]) for _, by, headers, _ in server.requests if by == "ffmpeg"]
    assert len(ranges) > 3 and all(int(asked[2]) - int(asked[1]) < 20_000 for asked in ranges)


def test_cookies_and_proxy_are_used(server, settings, segment, counting_video):
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    cookies = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tlogin\tsecret\n"
    assert fetch.fetch("abc", [segment(1, 3)], dataclasses.replace(settings, cookies=cookies)) == {}
    assert server.requests[0][2]["Cookie"] == "login=secret"
    server.requests.clear()
    through = dataclasses.replace(
        settings, url_template="http://video.invalid/{}.mp4", proxy=f"http://127.0.0.1:{server.server_port}"
    )
    assert fetch.fetch("abc", [segment(2, 4)], through) == {}  # a name that only the proxy knows
    assert {by for _, by, *_ in server.requests} == {"yt-dlp", "ffmpeg"}


def test_leftovers_of_killed_runs_are_deleted_after_a_day(tmp_path):
    for name, age in (("old", 90_000), ("new", 60)):
        (tmp_path / ".fetch" / name / "0").mkdir(parents=True)
        os.utime(tmp_path / ".fetch" / name, (time.time() - age, time.time() - age))
    (tmp_path / "clip.mp4").touch()
    fetch.remove_leftovers(tmp_path)
    fetch.remove_leftovers(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".fetch", "0", "clip.mp4", "new"]


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "status, reason", [(404, "removed"), (410, "removed"), (403, "forbidden"), (500, "network"), (503, "network")]
)
def test_errors_of_the_page(status, reason, server, settings, segment, counting_video):
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    server.answers["abc"] = [status] * 20
    wanted = segment(3, 6)
    failures = fetch.fetch("abc", [wanted], settings)
    assert failures[wanted.path].reason == reason and f"HTTP Error {status}" in failures[wanted.path].detail
    assert list(wanted.path.parent.iterdir()) == []


@pytest.mark.parametrize("status, reason", [(404, "removed"), (403, "forbidden"), (500, "network")])
def test_errors_of_one_segment_do_not_affect_the_others(status, reason, server, settings, segment, counting_video):
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    server.answers["abc/media"] = [status]
    wanted = [segment(3, 6), segment(7, 9)]
    failures = fetch.fetch("abc", wanted, settings)
    assert list(failures) == [wanted[0].path] and failures[wanted[0].path].reason == reason
    assert fetched_seconds(wanted[1].path) == pytest.approx(2, abs=0.1)


def test_a_missing_server_is_a_network_failure(settings, segment):
    wanted = segment(3, 6)
    nobody = dataclasses.replace(settings, url_template="http://127.0.0.1:9/{}.mp4")
    assert fetch.fetch("abc", [wanted], nobody)[wanted.path].reason == "network"


def test_a_stalled_download_is_given_up(server, settings, segment, counting_video, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 1.0)
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    ended = threading.Event()

    def stall(handler, path):
        handler.send_range(path.read_bytes(), length=30_000)
        ended.wait(30)

    server.answers["abc/media"] = [stall] * 20
    wanted = segment(3, 9)
    started = time.monotonic()
    failures = fetch.fetch("abc", [wanted], settings)
    ended.set()
    assert time.monotonic() - started < 25
    assert failures[wanted.path].reason == "network"
    assert list(wanted.path.parent.iterdir()) == []


def test_a_truncated_file_is_detected_by_its_length(server, settings, segment, counting_video, tmp_path):
    ffmpeg("-i", counting_video, "-c", "copy", "-movflags", "+faststart", tmp_path / "index_first.mp4")
    content = (tmp_path / "index_first.mp4").read_bytes()
    (server.folder / "abc.mp4").write_bytes(content[: len(content) // 2])
    wanted = [segment(1, 3), segment(2, 11)]
    failures = fetch.fetch("abc", wanted, settings)
    assert list(failures) == [wanted[1].path] and failures[wanted[1].path].reason == "network"
    assert "expected 9.0 s of video, found" in failures[wanted[1].path].detail
    assert [path.name for path in wanted[0].path.parent.iterdir()] == [wanted[0].path.name]


def test_a_download_that_breaks_off(server, settings, segment, counting_video, tmp_path):
    ffmpeg("-i", counting_video, "-c", "copy", "-movflags", "+faststart", server.folder / "abc.mp4")
    server.answers["abc/media"] = [lambda handler, path: handler.send_range(path.read_bytes(), length=40_000)]
    wanted = segment(2, 11)
    failures = fetch.fetch("abc", [wanted], settings)
    assert failures[wanted.path].reason == "network"


def test_a_page_without_a_video(server, settings, segment):
    (server.folder / "abc.mp4").write_text("<html><title>Welcome</title></html>")
    wanted = segment(3, 6)
    assert fetch.fetch("abc", [wanted], settings)[wanted.path].reason in ("not-fetched", "network")


# ---------------------------------------------------------------- rate limits and turns


def test_a_rate_limit_of_the_page_is_waited_out(server, settings, segment, counting_video, capfd):
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    server.answers["abc"], server.headers = [429, 429], {"Retry-After": "2"}
    started = time.monotonic()
    assert fetch.fetch("abc", [segment(3, 6)], settings) == {}
    assert time.monotonic() - started > 2
    assert "abc: rate limited, continuing in 2 s" in capfd.readouterr().err


def test_after_a_rate_limit_only_missing_segments_are_fetched_again(server, settings, segment, counting_video, monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.5, 0.5))
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    served = []

    def limited(handler, path):
        handler.send_response(429)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        served.append(1)

    wanted = [segment(3, 6), segment(7, 9)]
    server.answers["abc/media"] = [limited]
    assert fetch.fetch("abc", wanted, settings) == {}
    assert served and all(path.path.exists() for path in wanted)


def test_a_rate_limit_that_lasts_is_reported(server, settings, segment, counting_video, monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.1, 0.2))
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    server.answers["abc"] = [429] * 100
    wanted = segment(3, 6)
    failure = fetch.fetch("abc", [wanted], settings)[wanted.path]
    assert failure.reason == "rate-limited" and "HTTP Error 429" in failure.detail


def test_retry_after_can_be_a_date():
    class Error(Exception):
        class response:
            headers = {"Retry-After": email.utils.formatdate(time.time() + 90, usegmt=True)}  # noqa: RUF012

    assert fetch._retry_after(Error()) == pytest.approx(90, abs=3)
    assert fetch._retry_after(Exception()) is None


def test_sessions_of_a_machine_take_turns(settings):
    settings = dataclasses.replace(settings, url_template=f"http://turns-{os.getpid()}/{{}}", sleep_seconds=0.6)
    times = []

    def worker():
        for _ in range(2):
            times.append(fetch.wait_for_turn(settings))

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    assert len(times) == 6 and all(later - earlier >= 0.39 for earlier, later in itertools.pairwise(times))


def test_turns_are_postponed_but_not_forever(settings):
    settings = dataclasses.replace(settings, url_template=f"http://postponed-{os.getpid()}/{{}}")
    now = time.time()
    fetch.postpone_turns(settings, now + 1)
    fetch.postpone_turns(settings, now + 0.2)  # an earlier time has no effect
    assert fetch.wait_for_turn(settings) >= now + 1
    fetch.postpone_turns(settings, time.time() + 1e6)  # as if the clock had been set back
    assert fetch.wait_for_turn(settings) < now + 10


def test_the_rate_is_kept_on_average(server, settings, segment, counting_video):
    size = (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    slow = dataclasses.replace(settings, bytes_per_second=size / 3)
    started = time.time()
    assert fetch.fetch("abc", [segment(0, 12)], slow) == {}
    fetched = sum(1 for _, by, *_ in server.requests if by == "ffmpeg")
    assert fetched and fetch.wait_for_turn(settings) - started > 2


# ---------------------------------------------------------------- messages of yt-dlp


@pytest.mark.parametrize(
    "text, reason",
    [  # messages of yt-dlp 2026 for YouTube
        ("[youtube] abc: Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser or --cookies", "bot-check"),
        ("[youtube] abc: Video unavailable. YouTube is requiring a captcha challenge before playback", "bot-check"),
        (
            "[youtube] abc: Video unavailable. This content isn't available, try again later. The current session has been "
            "rate-limited by YouTube for up to an hour.",
            "rate-limited",
        ),
        ("unable to download video data: HTTP Error 429: Too Many Requests", "rate-limited"),
        ("[youtube] abc: Sign in to confirm your age. This video may be inappropriate for some users.", "age-gated"),
        ("[youtube] abc: The uploader has not made this video available in your country", "region"),
        ("[youtube] abc: Video unavailable. This video contains content from X, who has blocked it in your country", "region"),
        ("[youtube] abc: Private video. Sign in if you've been granted access to this video", "private"),
        ("[youtube] abc: Join this channel to get access to members-only content like this video", "private"),
        ("[youtube] abc: This video requires payment to watch.", "private"),
        ("[youtube] abc: Video unavailable. This video has been removed by the uploader", "removed"),
        ("[youtube] abc: This video is no longer available because the YouTube account has been terminated.", "removed"),
        ("[youtube] abc: Video unavailable", "removed"),
        ("[youtube] abc: This video is not available", "removed"),
        ("[youtube:truncated_id] abc: Incomplete YouTube ID abc.", "bad-row"),
        ("unable to download video data: HTTP Error 403: Forbidden", "forbidden"),
        ("[youtube] abc: Unable to download API page: <urlopen error [Errno 111] Connection refused>", "network"),
        ("[youtube] abc: Failed to resolve 'www.youtube.com' ([Errno -3] Temporary failure in name resolution)", "network"),
        ("[youtube] abc: The read operation timed out", "network"),
        ("[youtube] abc: Requested format is not available.", "not-fetched"),
        ("[youtube] abc: Signature solving failed: Some formats may be missing", "not-fetched"),
    ],
)
def test_the_reason_is_read_off_the_message(text, reason):
    assert fetch.reason_of(text) == reason


def test_the_detail_of_a_failure_is_one_line():
    failure = fetch._failure(Exception("ERROR: [youtube] abc:\n gone; please report this issue on x"))
    assert failure == Failure("not-fetched", "[youtube] abc: gone")


def test_every_message_stands_for_a_reason():
    assert set(fetch._MESSAGES) < set(REASONS)
