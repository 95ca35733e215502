"""Messages of yt-dlp 2026 for YouTube, of other sites, and of ffmpeg, each with its reason."""

import email.utils
import time

import pytest
from yt_dlp.networking.exceptions import HTTPError, SSLError
from yt_dlp.utils import ContentTooShortError, DownloadError, ExtractorError, GeoRestrictedError, UnsupportedError, UserNotLive

from clips import failures
from clips.failures import Failure
from clips.reasons import REASONS, RETRIED

MESSAGES = {
    "bot-check": [
        "Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser or --cookies for the authentication.",
        "Video unavailable. YouTube is requiring a captcha challenge before playback",
    ],
    "rate-limited": [
        "Video unavailable. This content isn't available, try again later. The current session has been rate-limited by "
        "YouTube for up to an hour.",
        "unable to download video data: HTTP Error 429: Too Many Requests",
    ],
    "age-gated": [
        "Sign in to confirm your age. This video may be inappropriate for some users. Use --cookies-from-browser",
        "This video is age-restricted and only available on YouTube",
    ],
    "region": [
        "The uploader has not made this video available in your country",
        "Video unavailable. This video contains content from X, who has blocked it in your country on copyright grounds",
        "Video unavailable. This video is not available in your country",
        "This video is not available from your location due to geo restriction",
        "HTTP Error 451: Unavailable For Legal Reasons",
    ],
    "upcoming": [
        "Premieres in 3 hours",
        "Premiere will begin shortly",
        "This live event will begin in 2 days.",
        "This live event will begin in a few moments.",
        "Offline.",
        "The channel is not currently live",
        "We're processing this video. Check back later.",
    ],
    "private": [
        "Private video. Sign in if you've been granted access to this video",
        "Video unavailable. This video is private",
        "This video has been made private by the uploader",
        "The uploader has made this video private",
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        "This video is available to this channel's members on level: Fans (or any higher level).",
        "This video requires payment to watch.",
        "This video is only available to Music Premium members",
        "Sign in to view this video",
        "This video is restricted. Try signing in with a Google Workspace account.",
        "This video is only available for registered users. Use --cookies-from-browser or --cookies for the authentication.",
    ],
    "removed": [
        "Video unavailable",
        "Video unavailable. This video has been removed by the uploader",
        "This video has been removed for violating YouTube's Terms of Service",
        "This video is no longer available because the YouTube account associated with this video has been terminated.",
        "This video is no longer available because the uploader has closed their YouTube account.",
        "Video unavailable. This video is no longer available due to a copyright claim by Someone",
        "This video isn't available anymore",
        "Video unavailable. This channel was removed because it violated our Community Guidelines.",
        "This video was taken down",
        "This video is not available",
        "This live stream recording is not available.",
        "This live event has ended.",
        "Video unavailable. The uploader has not made this video available",
        "YouTube said: The playlist does not exist.",
        "Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
        "HTTP Error 410: Gone",
    ],
    "forbidden": ["unable to download video data: HTTP Error 403: Forbidden", "HTTP Error 401: Unauthorized"],
    "network": [
        "Unable to download API page: <urlopen error [Errno 111] Connection refused>",
        "Failed to resolve 'www.youtube.com' ([Errno -3] Temporary failure in name resolution)",
        "The read operation timed out",
        "Unable to connect to proxy",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate",
        "HTTP Error 503: Service Unavailable",
        "[tls @ 0x55d0] Error in the pull function. | Input/output error",
        "Stream ends prematurely at 3000, should be 90000",
    ],
    "not-written": [
        "unable to write data: [Errno 28] No space left on device",
        "Error opening output /data/videos/x.mp4: Permission denied",
        "Unable to create directory: [Errno 30] Read-only file system: '/data'",
    ],
    "not-fetched": [
        "Requested format is not available. Use --list-formats for a list of available formats",
        "Signature solving failed: Some formats may be missing",
        "The following content is not available on this app. Watch on the latest version of YouTube.",
        "This video is DRM protected",
        "Unsupported URL: http://host/",
        "Failed to extract any player response",
    ],
    "bad-row": ["Incomplete YouTube ID abc. URL https://www.youtube.com/watch?v=abc"],
}


@pytest.mark.parametrize("reason, text", [(reason, text) for reason, texts in MESSAGES.items() for text in texts])
def test_the_reason_is_read_off_the_words_alone(reason, text):
    for extractor, video_id in (("youtube", "aqz-KE-bpKQ"), ("youtube:tab", "a-tls-b-ssl"), ("generic", "proxy")):
        assert failures.reason_of(f"[{extractor}] {video_id}: {text}") == reason
    hidden = f"{text} (see https://host/ssl/tls?v=private, http://429:80/captcha, '/data/private video/timeout.mp4')"
    assert failures.reason_of(hidden.replace("private video", "captcha")) == reason


def test_premieres_are_tried_again_and_what_is_gone_is_not():
    assert {"upcoming", "not-written", "network"} <= set(RETRIED) and not {"private", "removed", "region"} & set(RETRIED)


def test_words_in_the_name_of_the_folder_mean_nothing():
    folder = "/mnt/my tls connection/videos/.fetch/x"
    failure = failures.failure_of(Exception(f"unable to open for writing: '{folder}/0/clip.mp4'"), "", folder)
    assert failure.reason == "not-fetched" and folder in failure.detail


def test_titles_in_the_log_mean_nothing():
    log = "  Metadata:\n    title           : A failed connection, private video\n[https @ 0x5] HTTP error 404 Not Found\n"
    assert failures.failure_of(None, log) == Failure("removed", "HTTP error 404 Not Found")


def raised(error):
    """Return yt-dlp's DownloadError for an exception."""
    try:
        raise error
    except Exception as caught:
        return DownloadError(f"ERROR: {caught}", (type(caught), caught, caught.__traceback__))


@pytest.mark.parametrize(
    "error, reason",
    [
        (GeoRestrictedError("Only in Wonderland"), "region"),
        (UserNotLive("Nobody is here"), "upcoming"),
        (UnsupportedError("https://private.video/connection"), "not-fetched"),
        (SSLError("EOF occurred in violation of protocol (_ssl.c:2427)"), "network"),
        (ExtractorError("Unable to do it", cause=SSLError("EOF occurred")), "network"),
        (ExtractorError("This video is private", cause=SSLError("EOF occurred")), "private"),
        (ContentTooShortError(1, 2), "network"),
        (ExtractorError("Unable to extract uploader id"), "not-fetched"),
    ],
    ids=repr,
)
def test_the_class_of_the_exception_counts(error, reason):
    assert failures.failure_of(raised(error)).reason == reason
    assert failures.failure_of(error).reason == reason


def test_any_exception_becomes_one_line():
    assert failures.failure_of(KeyError("videoDetails")) == Failure("not-fetched", "'videoDetails'")
    assert failures.failure_of(AssertionError()) == Failure("not-fetched", "AssertionError")
    failure = failures.failure_of(Exception("ERROR: \x1b[31m[youtube] abc:\x1b[0m\n gone; please report this issue on x"))
    assert failure == Failure("not-fetched", "[youtube] abc: gone")


@pytest.mark.parametrize(
    "value, seconds",
    [("120", 120), ("date", 90), ("soon", None), (None, None)],
)
def test_the_wait_that_a_site_asks_for(value, seconds):
    if value == "date":
        value = email.utils.formatdate(time.time() + seconds, usegmt=True)

    class Response:
        status, reason, headers = 429, "Too Many Requests", {"Retry-After": value} if value else {}

        def close(self):
            return

    failure = failures.failure_of(raised(ExtractorError("HTTP Error 429", cause=HTTPError(Response()))))
    assert failure.reason == "rate-limited"
    assert failure.retry_after == (seconds and pytest.approx(seconds, abs=60))


def test_every_message_stands_for_a_reason():
    assert set(failures.WORDS) < set(REASONS)
