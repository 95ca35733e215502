"""Read clips by ffmpeg: the sound as mono; the frames upright, with square pixels, in standard dynamic range.

How a file is read depends on what ffmpeg reports of its tracks: the track that players take, one channel where the mean of the
channels cancels, tone mapping for HDR. Damaged frames are passed over. No other file than the one given is opened.

Never imports TensorFlow: the worker processes of preprocess.py import this.
"""

import concurrent.futures
import dataclasses
import math
import os
import re
import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from clips.feature_files import face_path, portrait_path
from clips.reasons import Skip
from utils import CLIP_SAMPLES, CLIP_SECONDS, SAMPLE_RATE, InputError

DECODING_SECONDS = 60  # s that ffmpeg may take for a clip
LONGEST_SECONDS = 86_400  # s of a file that are searched for its end

# What recordings and videos of people come in, by ffmpeg's names; one name of a format that has several stands for all. Before
# adding one, see that ffmpeg opens no other file for it: playlists (hls, dash, imf), lists of files (concat), descriptions of
# streams (sdp), patterns of names (image2) and files that come in parts (vobsub, mlv) would bring in whatever they name.
# Samples without a header (s16le, mulaw) are left out too: their rate is not known.
FORMATS = """
    mov matroska avi asf mpegts mpeg flv ogg rm mxf gxf nut dv wtv nsv ivf dhav gif
    mpegvideo m4v h261 h263 h264 hevc vvc av1 obu vc1 dirac mjpeg
    wav w64 aiff iff caf au ircam nistsphere sox voc pvf avr wve dsf xwma
    mp3 aac loas ac3 ac4 eac3 dts dtshd truehd mlp mpc mpc8 oma aea
    flac ape wv tta tak shn osq qoa
    amr amrnb amrwb gsm qcp act dss g722 g723_1 g728 g729 ilbc lc3 codec2 sln
"""
REFUSED = r"Format not on whitelist|Skipped opening external track"  # ffmpeg's words

# Codecs of floats that are not lossy: nothing but a mistake in the scale takes these above full scale.
LOSSLESS_FLOAT = r"pcm_f\d\d|wavpack"
# Of full scale. A lossy codec overshoots (by 1.46 at most in 713 clips), and players clip; beyond this the scale is wrong too.
MAX_OVERSHOOT = 2.0
# Where channels cancel, their mean is softer than the loudest channel by more than this many dB: for two channels, and for
# more. (A voice in one channel alone is 6 dB softer in the mean of two, and 11 to 19 dB in ffmpeg's mix of more.)
CANCELLED_DB, CANCELLED_DB_OF_MANY = 10.0, 20.0
CANCELLED_SHARE = 0.1  # of the loudest channel's energy, above which that channel replaces the mean
BANDS = (150, 300, 1000, 3000, 8000)  # Hz: cancellation is judged in each band, in blocks of BLOCK windows of WINDOW_SAMPLES
BLOCK, WINDOW_SAMPLES = 16, 512

MAX_PIXEL_ASPECT = 5  # pixels wider or higher than that are a mistake in the file, and taken for square
# To standard dynamic range; reference white is 203 cd/m2. Source: ITU-R BT.2408.
TONE_MAPPING = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=709,tonemap=mobius,zscale=t=709:m=709:r=tv,"
# What ffmpeg says of damage: of a frame or packet of the video track, or, in the decoder's own words, of what it predicts from.
DAMAGE = r"vist#.*(corrupt decoded frame|[Ee]rror)|.*(concealing \d|Could not find ref|issing reference|picture missing)"
FIRST_FRAME = "isnan(prev_selected_t)"  # expressions of ffmpeg's filter `select`
ONE_A_SECOND = "gte(t,1)*(isnan(prev_selected_t)+gte(t-prev_selected_t,1))"


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a clip."""

    second: float  # when it is shown, in s from the start of the clip
    picture: np.ndarray  # uint8 (height, width, 3), RGB


@dataclasses.dataclass(frozen=True)
class Clip:
    """The start of a clip."""

    samples: np.ndarray  # int16 (samples,), mono at SAMPLE_RATE, at most CLIP_SAMPLES
    frame: Frame | None  # the first one that is not damaged
    seconds: float | None  # length of the whole file; None if the file does not say


# ----------------------------------------------------------------------------------------------------------------------
# ffmpeg, and what it reports on a file.


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """The output of one ffmpeg process."""

    frames: list[Frame]
    mono: np.ndarray  # int16 (samples,): ffmpeg's mix of all channels
    channels: np.ndarray  # float32 (samples, channels)
    log: str  # on the file, its tracks, and each frame


def _run(path: Path, seconds: float, *outputs, before=(), pipes=()) -> tuple[list[bytes], str]:
    """Run ffmpeg on the first `seconds` of a file.

    Args:
        outputs: arguments after the input.
        before: arguments before the input.
        pipes: file descriptors of os.pipe, (read, write), that the outputs write to besides stdout.

    Returns:
        What is written to stdout and to each pipe, and the log. ffmpeg's exit code says little: it conceals damage.

    Raises:
        Skip: "unreadable" after DECODING_SECONDS.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-nostdin", *before]
    # Of the input alone, for they stand before it: the outputs are pipes.
    command += ["-protocol_whitelist", "file", "-format_whitelist", ",".join(FORMATS.split())]
    # With "file:", because a name that holds a colon would be taken for an address.
    command += ["-t", str(seconds), "-i", f"file:{Path(path).absolute()}", *outputs]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[write for _, write in pipes])
    for _, write in pipes:
        os.close(write)
    with concurrent.futures.ThreadPoolExecutor(max(1, len(pipes))) as readers:
        readings = [readers.submit(_read_all, read) for read, _ in pipes]
        try:
            stdout, log = process.communicate(timeout=DECODING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Skip("unreadable", f"ffmpeg did not finish within {DECODING_SECONDS} s") from None
        contents = [stdout, *(reading.result() for reading in readings)]
    return contents, log.decode(errors="replace")


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as pipe:
        return pipe.read()


def _tracks(log: str, kind: str) -> list[str]:
    """Return ffmpeg's descriptions of a file's tracks. `kind`: "Audio", or "Video", of which cover pictures do not count."""
    of_input = re.split(r"^(?:Stream mapping:|Output #0)", log, maxsplit=1, flags=re.MULTILINE)[0]
    tracks = re.findall(rf"^  Stream #0:\d.*?: {kind}: (.*)$", of_input, re.MULTILINE)
    return [track for track in tracks if "(attached pic)" not in track and "(timed thumbnails)" not in track]


def _order(tracks: list[str]) -> list[int]:
    """Return the numbers of tracks, the one that players take first: the first one flagged as default, or else the first."""
    return sorted(range(len(tracks)), key=lambda number: "(default)" not in tracks[number])


def _file_seconds(path: Path, log: str) -> float | None:
    """Return the length of a file; ffmpeg goes through the file where the header has none."""
    clock = r"(\d+):(\d\d):(\d\d\.\d+)"
    times = re.findall(f"^  Duration: {clock}", log, re.MULTILINE)
    if not times or "Estimating duration" in log:
        copying = ("-map", "0:V?", "-map", "0:a?", "-c", "copy", "-f", "null", "-stats", "-")
        times = re.findall(f"time={clock}", _run(path, LONGEST_SECONDS, *copying)[1])
    if not times:
        return None
    hours, minutes, seconds = map(float, times[-1])
    return 3600 * hours + 60 * minutes + seconds


def _decode(
    path: Path, seconds: float, select=None, video=0, tone_mapping="", audio=None, gain=1.0, start: float = 0
) -> _Decoded:
    """Decode frames, sound, or both in one ffmpeg process.

    Args:
        seconds: decoded from the start of the file.
        select: expression of ffmpeg's filter of that name for the frames; None for no frames.
        video, audio: numbers of the tracks; audio is None for no sound.
        tone_mapping: filters, each with a comma after it.
        gain: factor of the sound.
        start: s of the file that are passed over.
    """
    outputs, pipes = [], []
    if select:
        aspect = f"if(between(sar,1/{MAX_PIXEL_ASPECT},{MAX_PIXEL_ASPECT}),sar,1)"
        scale = f"scale=w='round(iw*max(1,{aspect}))':h='round(ih*max(1,1/({aspect})))',setsar=1"
        filters = f"select='{select}',{tone_mapping}{scale},format=rgb24,showinfo=checksum=0"
        outputs += ["-map", f"0:V:{video}", "-vf", filters, "-fps_mode", "passthrough"]
        outputs += ["-noautoscale"]  # otherwise frames of another size would be stretched to the first one's
        outputs += ["-frames:v", "1"] if select == FIRST_FRAME else []
        outputs += ["-c:v", "rawvideo", "-f", "rawvideo", "pipe:1"]
    if audio is not None:
        pipes = [os.pipe(), os.pipe()]
        scaled = ["-af", f"volume={gain!r}:precision=double"] if gain != 1 else []
        sound = ["-map", f"0:a:{audio}", *scaled, "-ar", str(SAMPLE_RATE)]
        outputs += [*sound, "-ac", "1", "-f", "s16le", f"pipe:{pipes[0][1]}"]
        outputs += [*sound, "-f", "f32le", f"pipe:{pipes[1][1]}"]
    (pictures, *sounds), log = _run(path, seconds, *outputs, before=_seeking(start), pipes=pipes)
    mono, channels = np.empty(0, np.int16), np.empty((0, 1), np.float32)
    if sounds and (n := len(sounds[0]) // 2):
        mono = np.frombuffer(sounds[0], "<i2", n)
        channels = np.frombuffer(sounds[1], "<f4", len(sounds[1]) // 4 // n * n).reshape(n, -1)
    return _Decoded(_cut_frames(pictures, log), mono, channels, log)


def _seeking(start: float) -> tuple[str, ...]:
    """Return the arguments before an input that pass over its first `start` s."""
    return ("-ss", f"{start:.3f}") if start else ()


def _cut_frames(content: bytes, log: str) -> list[Frame]:
    """Cut ffmpeg's raw frames apart, each in the size that the filter `showinfo` reports."""
    frames, at = [], 0
    for second, width, height in re.findall(r"^\[Parsed_showinfo\S* @ .*? pts_time:(\S+) .* s:(\d+)x(\d+) ", log, re.MULTILINE):
        shape = int(height), int(width), 3
        if (end := at + shape[0] * shape[1] * 3) > len(content):
            break
        frames.append(Frame(round(float(second), 2), np.frombuffer(content[at:end], np.uint8).reshape(shape)))
        at = end
    return frames


# ----------------------------------------------------------------------------------------------------------------------
# Frames.


def _is_damaged(log: str) -> bool:
    """Tell whether ffmpeg reports damage in frames: it conceals damage, or drops the frame, and still reports success."""
    return re.search(f"^\\[({DAMAGE})", log, re.MULTILINE) is not None


def _intact_stretches(path: Path, video: int, start: float) -> list[tuple[float, float]]:
    """Return from when to when, in s from `start`, the frames of a clip are intact.

    A damaged frame spoils the frames after it, which are predicted from it, up to the next key frame.
    """
    to_nothing = ("-map", f"0:V:{video}", "-f", "null", "-")
    before = (*_seeking(start), "-debug_ts", "-threads", "1")  # in the order of the file
    _, log = _run(path, CLIP_SECONDS, *to_nothing, before=before)
    stretches, spoiled, corrupt, continues = [], True, False, False
    for line in log.splitlines():
        if _is_damaged(line):
            spoiled, corrupt = True, "corrupt decoded frame" in line  # of the next frame in the log
        elif found := re.search(r"decoder -> .*\bpts_time:(\S+) .*\bkeyframe:([01])", line):
            second, is_key = float(found[1]), found[2] == "1"
            spoiled = corrupt or (spoiled and not is_key)
            corrupt = False
            if not spoiled:
                first = stretches.pop()[0] if continues else second
                stretches.append((first, second))
            continues = not spoiled
    return stretches


def _frames(path: Path, decoded: _Decoded, select: str, start: float) -> list[Frame]:
    """Return the frames that an expression selects, decoded again where what ffmpeg reported asks for it.

    Args:
        decoded: by `_decode` with this expression, from the first track, without tone mapping.
    """
    tracks = _tracks(decoded.log, "Video")
    if not tracks:
        return decoded.frames
    video, tone_mapping = _order(tracks)[0], ""
    if tags := re.search(r"[^(,]*\b(smpte2084|arib-std-b67)\b", tracks[video]):  # PQ or HLG
        untagged = "setparams=colorspace=bt2020nc:color_primaries=bt2020," if "unknown" in tags[0] else ""
        tone_mapping = untagged + TONE_MAPPING
    if video or tone_mapping:
        decoded = _decode(path, CLIP_SECONDS, select, video, tone_mapping, start=start)
    if not _is_damaged(decoded.log):
        return decoded.frames
    stretches = _intact_stretches(path, video, start)
    if not stretches:
        return []
    intact = "+".join(f"between(t,{first - 0.001:.6f},{last + 0.001:.6f})" for first, last in stretches)
    return _decode(path, CLIP_SECONDS, f"({intact})*({select})", video, tone_mapping, start=start).frames


# ----------------------------------------------------------------------------------------------------------------------
# Sound.


def _sound(path: Path, seconds: float, decoded: _Decoded, start: float = 0) -> np.ndarray:
    """Return the sound of the track that players take, or of the first one after it that holds any.

    Args:
        decoded: by `_decode`, of the first track.

    Returns:
        int16 (samples,), mono at SAMPLE_RATE.

    Raises:
        Skip: "no-sound" without a sound track, "unreadable".
    """
    tracks = _tracks(decoded.log, "Audio")
    if not tracks and _tracks(decoded.log, "Video"):
        raise Skip("no-sound")
    for audio in _order(tracks):
        of_track = decoded if audio == 0 else _decode(path, seconds, audio=audio, start=start)
        if len(of_track.mono):
            break
    else:
        raise Skip("unreadable", _problem(decoded.log))
    peak = float(np.abs(of_track.channels).max())
    if not math.isfinite(peak):
        raise Skip("unreadable", "expected finite samples, found nan or inf")
    if peak > (1.0 if re.match(LOSSLESS_FLOAT, tracks[audio]) else MAX_OVERSHOOT):
        of_track = _decode(path, seconds, audio=audio, gain=1 / peak, start=start)
    return mono_of(of_track.mono, of_track.channels)


def mono_of(mix: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Return the mix of several channels or, where they cancel in it, the loudest channel.

    Args:
        mix: int16 (samples,).
        channels: float32 (samples, channels), in [-1, 1].

    Returns:
        int16 (samples,).
    """
    n_channels = channels.shape[1]
    n_blocks = len(mix) // (BLOCK * WINDOW_SAMPLES)
    if n_channels == 1 or n_blocks == 0:
        return mix
    sounds = np.column_stack([mix / np.float32(32768), channels])[: n_blocks * BLOCK * WINDOW_SAMPLES]
    windows = sounds.reshape(n_blocks * BLOCK, WINDOW_SAMPLES, -1) * np.hanning(WINDOW_SAMPLES)[:, None]
    power = np.square(np.abs(np.fft.rfft(windows, axis=1)))  # (n_blocks * BLOCK, bins, 1 + channels)
    edges = np.searchsorted(np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE), BANDS)
    power = np.add.reduceat(power, edges[:-1], axis=1).reshape(n_blocks, BLOCK, len(edges) - 1, -1).sum(axis=1)
    loudest = power[..., 1:].sum(axis=(0, 1)).argmax()
    of_mix, of_loudest = power[..., 0], power[..., 1 + loudest]  # (n_blocks, bands)
    below = CANCELLED_DB if n_channels == 2 else CANCELLED_DB_OF_MANY
    cancelled = of_loudest[of_mix < of_loudest * 10 ** (-below / 10)].sum()
    if cancelled <= CANCELLED_SHARE * of_loudest.sum():
        return mix
    return np.clip(np.rint(channels[:, loudest] * 32768), -32768, 32767).astype(np.int16)


def _problem(log: str) -> str:
    """Return why nothing was read, for a detail: the last line that ffmpeg wrote, unless that hides the reason."""
    if re.search(REFUSED, log):
        return "it names other files, as playlists do, or is of a kind that is not read"
    return (log.strip().splitlines() or [""])[-1][-200:]


# ----------------------------------------------------------------------------------------------------------------------
# Clips and recordings.


def read_clip(path: Path, start: float = 0, picture: bool = True) -> Clip:
    """Decode 6 s of a clip's sound, from `start` on, and the first intact frame; nearly always in one ffmpeg process.

    Without `picture` the frame is None, and a file of sound alone will do.

    Raises:
        Skip: "no-sound" without a sound track, "unreadable".
    """
    decoded = _decode(path, CLIP_SECONDS, FIRST_FRAME if picture else None, audio=0, start=start)
    if picture and not _tracks(decoded.log, "Video"):
        raise Skip("unreadable", _problem(decoded.log))
    samples = _sound(path, CLIP_SECONDS, decoded, start)[:CLIP_SAMPLES]
    frame = _first_frame(path, decoded, start) if picture else None
    return Clip(samples, frame, _file_seconds(path, decoded.log))


def read_first_frame(path: Path) -> Frame:
    """Decode the first intact frame of a video, with or without sound. Raises Skip: "unreadable"."""
    decoded = _decode(path, CLIP_SECONDS, FIRST_FRAME)
    if not _tracks(decoded.log, "Video"):
        raise Skip("unreadable", _problem(decoded.log))
    return _first_frame(path, decoded, 0)


def _first_frame(path: Path, decoded: _Decoded, start: float) -> Frame:
    frames = _frames(path, decoded, FIRST_FRAME, start)
    if not frames:
        damaged = _is_damaged(decoded.log)
        raise Skip("unreadable", "expected an intact frame, found only damaged ones" if damaged else _problem(decoded.log))
    return frames[0]


def read_later_frames(path: Path, start: float = 0) -> list[Frame]:
    """Decode a clip's intact frames after the first: one a second, from 1 s after `start` up to 6 s. There may be none."""
    return _frames(path, _decode(path, CLIP_SECONDS, ONE_A_SECOND, start=start), ONE_A_SECOND, start)


def read_sound(path: Path, seconds: float, start: float = 0) -> np.ndarray:
    """Decode `seconds` of the sound of a file, of any of FORMATS, from `start` on.

    Returns:
        int16 (samples,), mono at SAMPLE_RATE.

    Raises:
        Skip: "no-sound" of a video without a sound track, "unreadable".
    """
    return _sound(path, seconds, _decode(path, seconds, audio=0, start=start), start)


def seconds_of(path: Path) -> float | None:
    """Return the length of a file of sound; None if it cannot be told. Raises Skip: "unreadable"."""
    return _file_seconds(path, _run(path, 0.1, "-map", "0:a:0?", "-f", "null", "-")[1])


# ----------------------------------------------------------------------------------------------------------------------
# Pictures.


def read_face(data: Path, clip: str) -> np.ndarray:
    """Read a clip's face crop. Returns uint8 (FACE_SIZE, FACE_SIZE, 3), RGB. Raises InputError."""
    return _read_jpeg(face_path(data, clip))


def read_portrait(data: Path, clip: str) -> np.ndarray:
    """Read a clip's or photo's portrait. Returns uint8 (height, width, 3), RGB. Raises InputError."""
    return _read_jpeg(portrait_path(data, clip))


def _read_jpeg(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"{path}: expected a JPEG, found something else; delete it, rerun preprocess.py")
    return image[..., ::-1]
