"""Why a row of the csv, or a photo, is not ready: the fixed list of reasons, and the exception that carries one."""

from utils import CLIP_SECONDS

SILENCE_DB = 60  # dB below full scale: sound that is never louder is silence
MIN_SPEECH_SECONDS = 0.5  # s of a clip that must be louder than that
SMALLEST_FACE = 40  # pixels, side of the detector's box in the frame: the crop is 224

REASONS = {
    "bad-row": "not five values, or id, times or face centre make no sense; the detail says which",
    "bot-check": "the site wants to know whether you are a robot: the run stops; pass --cookies",
    "rate-limited": "the site let nothing through any more, even after waiting",
    "age-gated": "the site wants proof of age: pass --cookies of an account that has given it",
    "region": "not shown in this country: pass --proxy",
    "private": "not public: private, for members only, or for payment",
    "removed": "gone: taken down by its owner or the site, or it never was there (HTTP 404, 410)",
    "forbidden": "the server refused (HTTP 401, 403): most often yt-dlp is out of date",
    "network": "connection failed, stalled, or broke off",
    "not-fetched": "yt-dlp failed in another way, told by the detail: most often it is out of date",
    "unreadable": "no picture, or no sound, can be read out of the file",
    "no-sound": "the clip has no sound track",
    "silent": f"less than {MIN_SPEECH_SECONDS} s of the sound are louder than -{SILENCE_DB} dB of full scale",
    "no-face": f"no face in the frames examined, one a second over {CLIP_SECONDS} s, or in the photo",
    "speaker-not-found": "faces, but none near the centre that the csv gives",
    "face-too-small": f"the speaker's face is less than {SMALLEST_FACE} pixels high",
    "face-blurred": "the speaker's face is too blurred to be worth a feature",
    "crashed": "the worker process died of this clip, twice",
}
# Reasons that may pass: a later run tries these clips again. All others are final, unless --retry names them.
RETRIED = ("bot-check", "rate-limited", "forbidden", "network", "not-fetched", "crashed")
# Reasons of the face detector, in order: the last one that a clip reaches is reported.
FACE_REASONS = ("no-face", "speaker-not-found", "face-too-small", "face-blurred")


class Skip(Exception):
    """A clip cannot be made ready; `reason` is a key of REASONS, `detail` one line of what else is known."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS
        super().__init__(reason)
        self.reason, self.detail = reason, detail
