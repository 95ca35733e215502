"""Why a row of the csv, or a photo, is not ready: the fixed list of reasons, and the exception that carries one."""

from utils import CLIP_SECONDS

SILENCE_DB = 60  # dB below full scale: quieter sound is silence
MIN_SOUND_SECONDS = 0.5  # s of a clip that must be louder than silence
LENGTH_TOLERANCE_SECONDS = 0.5  # s by which a clip may be longer or shorter than its row
MIN_FACE_PIXELS = 40  # pixels, side of the detector's box in the frame: the crop has 224

REASONS = {
    "bad-row": "not five values, or the id, the times or the face centre make no sense; the detail says which",
    "bot-check": "the site asks whether you are a robot: the run stops; pass --cookies",
    "rate-limited": "the site refused further requests, even after waiting",
    "age-gated": "the site asks for proof of age: pass --cookies of an account that has given it",
    "region": "blocked in this country: pass --proxy",
    "private": "not public: private, for members only, or for payment",
    "removed": "taken down by its owner or the site, or never existed (HTTP 404, 410)",
    "upcoming": "a premiere or live event that has not begun or not ended yet",
    "forbidden": "the server refused (HTTP 401, 403): most often yt-dlp is out of date",
    "network": "the connection failed, stalled or broke off",
    "not-fetched": "yt-dlp failed in another way, named in the detail: most often yt-dlp is out of date",
    "not-written": "the folder of clips cannot be written to, or the disk is full",
    "unreadable": "the file holds no readable sound, or no picture that is readable, whole and undamaged",
    "wrong-length": f"the clip is longer or shorter than its row by more than {LENGTH_TOLERANCE_SECONDS} s: it was cut "
    "elsewhere, not cut, or cut off; see --any-length",
    "no-sound": "the clip has no sound track",
    "silent": f"less than {MIN_SOUND_SECONDS} s of the sound is louder than -{SILENCE_DB} dB of full scale",
    "no-speech": "the sound is noise, a tone, hum or music: no voice is found in it",
    "no-face": f"no face in the frames examined, one a second over {CLIP_SECONDS} s, or in the photo",
    "speaker-not-found": "there are faces, but none near the centre given in the csv; without a centre: none that stays",
    "face-too-small": f"the speaker's face is less than {MIN_FACE_PIXELS} pixels high",
    "face-blurred": "the speaker's face is too blurred for a meaningful feature",
    "no-window": f"the file holds no further {CLIP_SECONDS} s of speech with a face: fewer clips than --windows asks for",
    "unpaired": "a voice of --voices for whose speaker there is no file under --faces",
    "crashed": "the worker process died twice while working on this clip",
}
# Temporary reasons: a later run tries these clips again. All others are final, unless --retry names them.
RETRIED = ("bot-check", "rate-limited", "forbidden", "network", "not-fetched", "upcoming", "not-written", "unpaired", "crashed")
# Reasons given by face detection, by progress: the last one that a clip reaches is reported.
FACE_REASONS = ("no-face", "speaker-not-found", "face-too-small", "face-blurred")


class Skip(Exception):
    """A clip cannot be made ready. `reason` is a key of REASONS, `detail` is one line of further information."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS
        super().__init__(reason)
        self.reason, self.detail = reason, detail
