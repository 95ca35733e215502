"""Why a segment was not fetched: the classes of yt-dlp's exceptions, and the words of YouTube, yt-dlp and ffmpeg.

Messages are sorted by their words alone: ids, addresses and paths may hold any word.
"""

import dataclasses
import email.utils
import re
import time

# Exceptions of yt-dlp that name the reason, whatever their words.
_CLASSES = {"GeoRestrictedError": "region", "UserNotLive": "upcoming", "UnsupportedError": "not-fetched"}
_NETWORK_CLASSES = {"TransportError", "ContentTooShortError", "ConnectionError", "TimeoutError"}  # used if no word matches

# Words of messages, by the reason that they stand for; the first match counts.
WORDS = {
    "bad-row": r"incomplete youtube id",
    "bot-check": r"not a bot\b|\bcaptcha\b",
    "rate-limited": r"http error 429|too many requests|try again later|\brate-?limited",
    "not-fetched": r"on this app\b|requested format",
    "age-gated": r"confirm your age|\bage.restricted|inappropriate for some users",
    "region": r"(in|from) your (country|region|location)\b|\bgeo.?restrict|http error 451",
    "upcoming": r"\bpremieres? (in|on|will)\b|\blive (event|stream) will begin|\bnot (currently|yet) live\b|^offline\b"
    r"|live ?stream is offline|processing this video",
    "private": r"\bprivate video|\bis private\b|\bmade (\w+ ){0,3}private|members.only|channel's members|channel members"
    r"|join this channel|requires? payment|to purchase\b|\brent(al)?\b|\bpremium\b|for registered users"
    r"|login (details|required)|sign(ing)? in (to (view|watch|continue)|with a google workspace)|protected by a password",
    "removed": r"http error (404|410)|\b(been|was|were) (removed|deleted|taken down)|no longer available|available anymore"
    r"|\bdoes(n't| not) exist|\bterminated\b|\baccount .*closed|closed .*\baccount|recording is not available"
    r"|live event has ended|video unavailable|video is unavailable|(video|content) (is )?(not|isn't) available|\bcopyright\b"
    r"|not made this video available",
    "forbidden": r"http error (401|403)|\bforbidden\b",
    "not-written": r"no space left|quota exceeded|read-only file system|permission denied|file too large",
    "network": r"\btimed? ?out\b|\bconnection\b|\bgetaddrinfo\b|name resolution|failed to resolve|\bunreachable\b|\bproxy\b"
    r"|\btunnel\b|\bssl\b|\btls\b|\bcertificate\b|http error (408|5\d\d)|incomplete ?read|input/output error"
    r"|\bprematurely\b|partial file|invalid data|error opening input",
}
_PLACES = r"\[[^][]*\] \S+: |\S+://\S*|(?<!\w)/\S+"  # yt-dlp's `[extractor] id: `, addresses, paths


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a segment was not fetched."""

    reason: str  # a key of `reasons.REASONS`
    detail: str  # one line
    retry_after: float | None = None  # s to wait, if the site named a time


def failure_of(error: Exception | None, log: str = "", folder: str = "") -> Failure:
    """Read off an exception and ffmpeg's log why a segment was not fetched.

    Args:
        error: of yt-dlp; None if yt-dlp reported success.
        log: of ffmpeg.
        folder: path that the messages may name, and whose words mean nothing.
    """
    lines = [  # those that begin with a space show titles and the like
        line
        for line in log.splitlines()
        if re.match(r"(?i)\S.*((?<!decode )error|fail|invalid|premature|timed out|partial)", line)
    ]
    texts = [str(error).removeprefix("ERROR: ") or type(error).__name__] if error else []
    texts = [re.sub(r"\x1b\[[\d;]*m|; please report this issue.*|ERROR: ", "", text) for text in texts + lines]
    texts = [re.sub(r"^\[[^]]*@ 0x[0-9a-f]+\] ", "", text) for text in texts]
    text = " ".join(" | ".join(dict.fromkeys(texts)).split())
    words = text.replace(folder, "") if folder else text
    named = [cause.__name__ for exception in _chain(error) for cause in type(exception).__mro__]
    reason = next((_CLASSES[name] for name in named if name in _CLASSES), None) or reason_of(words)
    if reason == "not-fetched" and _NETWORK_CLASSES.intersection(named):
        reason = "network"
    return Failure(reason, text[:500], _retry_after(error))


def reason_of(text: str) -> str:
    """Return the reason, a key of `reasons.REASONS`, for a message of yt-dlp or ffmpeg."""
    text = re.sub(_PLACES, "", text.replace("\u2019", "'"))
    return next((reason for reason, words in WORDS.items() if re.search(f"(?i){words}", text)), "not-fetched")


def _chain(error: Exception | None):
    """Yield an exception of yt-dlp, and those that caused it."""
    while error is not None:
        yield error
        wrapped = getattr(error, "exc_info", None)
        error = getattr(error, "cause", None) or (wrapped[1] if wrapped else None)


def _retry_after(error: Exception | None) -> float | None:
    """Return the s that a server asks to wait, by the header Retry-After in yt-dlp's exception."""
    for exception in _chain(error):
        headers = getattr(getattr(exception, "response", None), "headers", {})
        if value := headers.get("Retry-After"):
            if value.isdigit():
                return float(value)
            try:
                return max(1.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
            except ValueError:
                return None
    return None
