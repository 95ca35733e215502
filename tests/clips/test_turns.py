"""Rate limits, and the turns that sessions of a machine take."""

import dataclasses
import itertools
import os
import threading
import time

from clips import fetch


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
    served, sessions, run_session = [], [], fetch._run_session

    def noting_segments(video_id, segments, *more):
        sessions.append(segments)
        return run_session(video_id, segments, *more)

    def limited(handler, path):
        handler.send_response(429)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        served.append(1)

    monkeypatch.setattr(fetch, "_run_session", noting_segments)
    wanted = [segment(3, 6), segment(7, 9)]
    server.answers["abc/media"] = [limited]
    assert fetch.fetch("abc", wanted, settings) == {}
    assert served and all(path.path.exists() for path in wanted)
    assert sessions == [wanted, wanted[:1]]


def test_a_rate_limit_that_lasts_is_reported(server, settings, segment, counting_video, monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.1, 0.2))
    (server.folder / "abc.mp4").write_bytes(counting_video.read_bytes())
    server.answers["abc"] = [429] * 100
    wanted = segment(3, 6)
    failure = fetch.fetch("abc", [wanted], settings)[wanted.path]
    assert failure.reason == "rate-limited" and "HTTP Error 429" in failure.detail


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
