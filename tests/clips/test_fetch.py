"""Fetching with the real yt-dlp and the real ffmpeg, from a server on this machine."""

import copy
import dataclasses
import errno
import os
import pickle
import re
import threading
import time
from pathlib import Path

import imageio_ffmpeg
import pytest
import yt_dlp
from conftest import ffmpeg, loudest_hertz, second_shown

from clips import fetch, media
from clips.fetch import Failure, Segment
from utils import InputError


def fetched_seconds(path):
    return imageio_ffmpeg.count_frames_and_secs(str(path))[1]


# ---------------------------------------------------------------- segments


def test_all_segments_of_a_video_are_fetched_in_one_session_and_cut_exactly(server, settings, segment, counting_video):
    (server.folder / "-video_1.mp4").write_bytes(counting_video.read_bytes())  # its only key frames are at 0 and 10 s
    segments = [segment(3, 7.5), segment(0, 2), segment(9.2, 11.9)]
    assert fetch.fetch("-video_1", segments, settings) == {}
    for wanted in segments:
        assert fetched_seconds(wanted.path) == pytest.approx(wanted.end - wanted.start, abs=0.1)
    clip = media.read_clip(segments[0].path)
    frames = [clip.frame, *media.read_later_frames(segments[0].path)]
    assert [second_shown(frame.picture) for frame in frames] == pytest.approx([3, 4, 5, 6, 7], abs=0.3)
    assert loudest_hertz(clip.samples[1600:14_400]) == pytest.approx(500, abs=3)
    assert second_shown(media.read_clip(segments[2].path).frame.picture) == pytest.approx(9, abs=0.3)
    assert {path.name for path in segments[0].path.parent.iterdir()} == {wanted.path.name for wanted in segments}
    by_ytdlp = [request for request in server.requests if request[1] == "yt-dlp"]
    assert len(by_ytdlp) <= 2  # one request for the page, not one for each segment


def write_dash(server, name, sizes):
    """Serve a page of separate pictures, 6 s in each (width, height), and of sound, as YouTube does. Returns its address."""
    video = "".join(
        f'''<Representation id="{w}x{h}" width="{w}" height="{h}" bandwidth="{w * h}" codecs="avc1.4d400d">
          <BaseURL>{server.url_template.format(f"{name}-{w}x{h}")}</BaseURL></Representation>'''
        for w, h in sizes
    )
    for w, h in sizes:
        picture = ("-f", "lavfi", "-i", f"color=gray:s={w}x{h}:r=10:d=6", "-c:v", "libx264", "-preset", "ultrafast")
        ffmpeg(*picture, server.folder / f"{name}-{w}x{h}.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=600:d=6", "-c:a", "aac", server.folder / f"{name}-sound.mp4")
    (server.folder / f"{name}.mpd").write_text(f"""<?xml version="1.0"?>
        <MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT6S"
             profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
        <AdaptationSet mimeType="video/mp4">{video}</AdaptationSet>
        <AdaptationSet mimeType="audio/mp4"><Representation id="a" bandwidth="64000" codecs="mp4a.40.2">
          <BaseURL>{server.url_template.format(f"{name}-sound")}</BaseURL></Representation></AdaptationSet></Period></MPD>""")
    return server.url_template.replace(".mp4", ".mpd")


SIZES = {  # from which to choose, and the one to choose: the largest whose shorter side is at most 360 pixels
    "landscape": ([(256, 144), (640, 360), (1280, 720)], (640, 360)),
    "upright": ([(144, 256), (360, 640), (720, 1280)], (360, 640)),
    "square": ([(144, 144), (360, 360), (720, 720)], (360, 360)),
    "small": ([(100, 176), (144, 256)], (144, 256)),
    "large": ([(1080, 1920), (480, 854)], (480, 854)),
}


@pytest.mark.parametrize("shape", ["landscape", "upright"])
def test_separate_picture_and_sound_are_merged(shape, server, settings, segment):
    sizes, (width, height) = SIZES[shape]
    settings = dataclasses.replace(settings, url_template=write_dash(server, "page", sizes))
    wanted = segment(2, 4)
    assert fetch.fetch("page", [wanted], settings) == {}
    clip = media.read_clip(wanted.path)
    assert clip.frame.picture.shape[:2] == (height, width)
    assert loudest_hertz(clip.samples[1600:14_400]) == pytest.approx(600, abs=3)
    asked = {name for name, by, *_ in server.requests if by == "ffmpeg"}
    assert asked == {f"page-{width}x{height}", "page-sound"}


def chosen(formats, settings, tmp_path):
    """Return the ids of the formats that yt-dlp chooses."""
    for number, given in enumerate(formats):
        given.update(format_id=str(number), url="http://127.0.0.1:9/x.mp4")
    with yt_dlp.YoutubeDL(fetch._yt_dlp_options(tmp_path, settings)) as downloader:
        video = {"id": "x", "title": "x", "extractor": "x", "extractor_key": "Generic", "formats": copy.deepcopy(formats)}
        return [int(number) for number in downloader.process_ie_result(video, download=False)["format_id"].split("+")]


WHOLE, PICTURE, SOUND = (
    {"vcodec": video, "acodec": audio, "ext": "mp4"}
    for video, audio in (("avc1", "mp4a.40.2"), ("avc1", "none"), ("none", "mp4a.40.2"))
)


@pytest.mark.parametrize("shape", SIZES)
def test_the_shorter_side_chooses_the_format(shape, settings, tmp_path):
    sizes, best = SIZES[shape]
    sizes = [{"width": width, "height": height} for width, height in sizes]
    best = sizes.index({"width": best[0], "height": best[1]})
    whole, pictures = ([{**kind, **size} for size in sizes] for kind in (WHOLE, PICTURE))
    sound = [{**SOUND, "ext": "m4a"}]
    assert chosen(whole, settings, tmp_path) == [best]
    assert chosen(pictures + sound, settings, tmp_path) == [best, len(sizes)]
    assert chosen([*pictures, *sound, *whole], settings, tmp_path) == [len(sizes) + 1 + best]  # one file rather than two
    assert chosen([*pictures, *sound, whole[best - 1]], settings, tmp_path) == [best, len(sizes)]  # but not a smaller one


def test_mp4_and_the_language_of_the_original_are_preferred(settings, tmp_path):
    size = {"width": 640, "height": 360}
    webm = {**WHOLE, **size, "ext": "webm", "vcodec": "vp9", "acodec": "opus"}
    assert chosen([{**WHOLE, **size}, webm], settings, tmp_path) == [0]
    opus = {**SOUND, "ext": "webm", "acodec": "opus", "abr": 160, "language_preference": 10}
    m4a = {**SOUND, "ext": "m4a", "abr": 128, "language_preference": 10}
    dubbed = {**m4a, "abr": 192, "language_preference": -1}
    assert chosen([{**PICTURE, **size}, dubbed, opus, m4a], settings, tmp_path) == [0, 3]
    assert chosen([{**PICTURE, **size}, dubbed, opus], settings, tmp_path) == [0, 2]  # the voice of the speaker before mp4


@pytest.mark.parametrize("status", ["is_live", "is_upcoming", "post_live"])
def test_a_live_video_is_tried_again_later(status, segment, tmp_path):
    """Its times are those of what is on now, not those of the csv."""
    failure, _ = fetch._fetch_segment(None, {"live_status": status}, segment(20, 23), tmp_path)
    assert failure == Failure("upcoming", f"expected a recording, found the status {status}")


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


COOKIE = "127.0.0.1\tFALSE\t/\tFALSE\t0\tlogin\tsecret\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("more", ["", "copied from a page login=hidden\n", "#HttpOnly_.x.org\tTRUE\t/\tTRUE\t0\ta\tb\n"])
def test_cookies_are_read_as_yt_dlp_reads_them(more, mark, tmp_path, capsys):
    (tmp_path / "cookies.txt").write_text(f"{mark}# Netscape HTTP Cookie File\n{COOKIE}{more}", encoding="utf-8")
    text = fetch.read_cookies(tmp_path / "cookies.txt")
    assert COOKIE in text and ("\ta\tb\n" in text) == more.startswith("#")
    told = capsys.readouterr().err
    assert "hidden" not in told and "secret" not in told
    assert ("cookies.txt: 1 of the lines are no cookies in Netscape's format, left out\n" in told) == ("copied" in more)


@pytest.mark.parametrize(
    "content, found",
    [
        ('[{"domain": ".youtube.com", "name": "PREF", "value": "x"}]', "JSON"),
        ('# Netscape HTTP Cookie File\n{"cookies": []}', "JSON"),
        (COOKIE, "another format"),  # without the first line
        ("login=secret; other=x", "another format"),
        ("", "another format"),
        ("# Netscape HTTP Cookie File\n", "no cookie"),
        (f"# Netscape HTTP Cookie File\n{COOKIE}".replace("\t", " "), "no cookie"),
        (f"# Netscape HTTP Cookie File\n{COOKIE}".encode("utf-16").decode("latin-1"), "another format"),
    ],
)
def test_other_cookies_are_reported(content, found, tmp_path, capsys):
    (tmp_path / "cookies").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=rf"cookies: expected cookies in Netscape's format, found {found}; export the cookies"):
        fetch.read_cookies(tmp_path / "cookies")
    assert "secret" not in capsys.readouterr().err


def test_leftovers_of_killed_runs_are_deleted_after_a_day(tmp_path):
    for name, age in (("old", 90_000), ("new", 60)):
        (tmp_path / ".fetch" / name / "0").mkdir(parents=True)
        os.utime(tmp_path / ".fetch" / name, (time.time() - age, time.time() - age))
    (tmp_path / "clip.mp4").touch()
    fetch.remove_leftovers(tmp_path)
    fetch.remove_leftovers(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".fetch", "0", "clip.mp4", "new"]


def test_two_runs_fetch_the_same_segment(server, settings, segment, counting_video, monkeypatch):
    """Neither takes the other's unfinished download for its own, or for a leftover."""
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    wanted, by_the_other, fetch_segment = segment(1, 4), [], fetch._fetch_segment

    def meanwhile(*arguments):
        if not by_the_other:
            by_the_other.append({"under way"})
            by_the_other[0] = fetch.fetch("abc", [wanted], settings)
        return fetch_segment(*arguments)

    monkeypatch.setattr(fetch, "_fetch_segment", meanwhile)
    assert fetch.fetch("abc", [wanted], settings) == {} and by_the_other == [{}]
    assert fetched_seconds(wanted.path) == pytest.approx(3, abs=0.1)
    assert list(wanted.path.parent.iterdir()) == [wanted.path]


def test_the_folder_of_downloads_may_disappear_when_another_session_ends(tmp_path, monkeypatch):
    def late(dir, real=fetch.tempfile.mkdtemp, gone=[]):  # noqa: B006
        if not gone:
            gone.append(dir.rmdir())
        return real(dir=dir)

    monkeypatch.setattr(fetch.tempfile, "mkdtemp", late)
    assert fetch._new_folder(tmp_path / "videos").parent == tmp_path / "videos" / ".fetch"


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [KeyError("videoDetails"), AssertionError(), ValueError("bad port"), RecursionError("deep")])
@pytest.mark.parametrize("method", ["__init__", "extract_info", "process_ie_result"])
def test_whatever_yt_dlp_raises_is_the_reason_of_one_video(
    method, error, server, settings, segment, counting_video, monkeypatch
):
    def fail(*_, **__):
        raise error

    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    monkeypatch.setattr(yt_dlp.YoutubeDL, method, fail)
    wanted = [segment(1, 2), segment(3, 4)]
    failures = fetch.fetch("abc", wanted, settings)
    assert failures == dict.fromkeys([each.path for each in wanted], Failure("not-fetched", str(error) or type(error).__name__))
    assert pickle.loads(pickle.dumps(failures)) == failures  # a worker's answer


def test_a_folder_that_cannot_be_written_to(server, settings, segment):
    wanted = [segment(1, 2), segment(3, 4)]
    (wanted[0].path.parent / ".fetch").write_text("in the way")
    failures = fetch.fetch("abc", wanted, settings)
    assert [(failure.reason, failure.detail[:51]) for failure in failures.values()] == [
        ("not-written", "expected a folder of clips that can be written to, ")
    ] * 2
    assert "File exists" in failures[wanted[0].path].detail and server.requests == []
    assert fetch.fetch("abc", [Segment(1, 2, Path("/proc/none/clip.mp4"))], settings).popitem()[1].reason == "not-written"


def test_a_folder_that_is_read_only_for_its_owner(server, settings, segment, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "videos")

    wanted = segment(1, 2)
    monkeypatch.setattr(fetch.tempfile, "mkdtemp", refuse)
    assert "Permission denied: 'videos'" in fetch.fetch("abc", [wanted], settings)[wanted.path].detail


def test_a_full_disk_is_told_from_a_broken_connection(server, settings, segment, counting_video, monkeypatch):
    """ffmpeg's log says nothing of it, for the log is on that disk."""

    def no_space(self, content, real=Path.write_bytes):
        if self.name == "probe":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, content)

    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    wanted = [segment(3, 6), segment(7, 9)]
    server.answers["abc/media"] = [404]
    monkeypatch.setattr(Path, "write_bytes", no_space)
    failures = fetch.fetch("abc", wanted, settings)
    assert list(failures) == [wanted[0].path]  # space has been made in the meantime
    assert failures[wanted[0].path].reason == "not-written" and "No space left" in failures[wanted[0].path].detail


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
