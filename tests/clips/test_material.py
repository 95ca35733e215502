"""Clips as they come: other tracks, channels, pixels, rotations and ranges than most, damage, and wrong lengths."""

import subprocess
import wave

import numpy as np
import pytest
from conftest import FFMPEG, ROOT, ffmpeg

from clips import detection, extraction, media
from clips.reasons import Skip
from clips.records import Row
from utils import CLIP_SAMPLES, SAMPLE_RATE

CASES = ROOT.parent / "shared" / "cases" / "clips"
PICTURE = ("-f", "lavfi", "-i", "testsrc=s=320x240:r=25:d=6")


@pytest.fixture(scope="module")
def voice():
    """Noise in the bands of a voice, in syllables: float64 (CLIP_SAMPLES,)."""
    rng = np.random.default_rng(3)
    spectrum = np.fft.rfft(rng.normal(size=CLIP_SAMPLES))
    hertz = np.fft.rfftfreq(CLIP_SAMPLES, 1 / SAMPLE_RATE)
    spectrum[(hertz < 120) | (hertz > 5000)] = 0
    noise = np.fft.irfft(spectrum / (1 + (hertz / 500) ** 2))
    syllables = np.repeat(rng.uniform(0.05, 1, size=30), CLIP_SAMPLES // 30)
    return 0.5 * noise * syllables / np.abs(noise * syllables).max()


def write_wav(path, *channels):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels)), file.setsampwidth(2), file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(32767 * np.stack(channels, axis=1)).astype("<i2").tobytes())
    return path


def likeness(samples, voice):
    """Return the correlation of two sounds, whatever the sign."""
    n = min(len(samples), len(voice))
    return abs(np.corrcoef(samples[:n], voice[:n])[0, 1])


# ---------------------------------------------------------------- sound


def inverted_below(hertz, voice):
    spectrum = np.fft.rfft(voice)
    spectrum[: round(hertz * len(voice) / SAMPLE_RATE)] *= -1
    return np.fft.irfft(spectrum)


@pytest.mark.parametrize("kind", ["wholly", "softer", "half of the time", "low tones", "with an offset"])
def test_one_channel_is_taken_where_two_cancel(kind, voice, tmp_path):
    other = {
        "wholly": -voice,
        "softer": -0.8 * voice,
        "half of the time": voice * np.where(np.arange(CLIP_SAMPLES) < CLIP_SAMPLES // 2, -1, 1),
        "low tones": inverted_below(1000, voice),
        "with an offset": 0.1 - voice,
    }[kind]
    ffmpeg("-i", write_wav(tmp_path / "a.wav", voice, other), "-c:a", "aac", "-b:a", "96k", tmp_path / "a.m4a")
    samples = media.read_sound(tmp_path / "a.m4a", 6)
    best = max(likeness(samples, voice), likeness(samples, other))
    assert best > 0.97 and samples.std() == pytest.approx(32767 * voice.std(), rel=0.2)


def mixed_by_ffmpeg(path):
    command = [FFMPEG, "-v", "error", "-i", path, "-ac", "1", "-ar", "16000", "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2")


def test_channels_that_do_not_cancel_are_mixed(voice, rng, tmp_path):
    room = 0.02 * rng.normal(size=CLIP_SAMPLES)
    none = np.zeros(CLIP_SAMPLES)
    stereo = {"same": (voice, voice), "left": (voice, none), "right": (none, voice), "wide": (voice + room, voice - room)}
    for name, channels in stereo.items():
        path = write_wav(tmp_path / f"{name}.wav", *channels)
        np.testing.assert_array_equal(media.read_sound(path, 6), mixed_by_ffmpeg(path))
    mono = write_wav(tmp_path / "mono.wav", voice)
    for layout, channel in (("5.1", "FC"), ("5.1", "BL"), ("7.1", "FC"), ("quad", "FL")):
        path = tmp_path / f"{layout}-{channel}.wav"
        ffmpeg("-i", mono, "-af", f"pan={layout}|{channel}=c0", path)
        np.testing.assert_array_equal(media.read_sound(path, 6), mixed_by_ffmpeg(path))


def test_channels_of_surround_sound_that_cancel(voice, tmp_path):
    ffmpeg("-i", write_wav(tmp_path / "a.wav", voice), "-af", "pan=5.1|FL=c0|FR=-1*c0", "-c:a", "aac", tmp_path / "a.m4a")
    samples = media.read_sound(tmp_path / "a.m4a", 6)
    assert likeness(samples, voice) > 0.95 and samples.std() == pytest.approx(32767 * voice.std(), rel=0.2)


@pytest.mark.parametrize(
    "suffix, codec", [("wav", "pcm_f32le"), ("wav", "pcm_f64le"), ("aiff", "pcm_f32be"), ("wv", "wavpack")]
)
@pytest.mark.parametrize("gain", [3, 32768, 2.0**31])
def test_floats_above_full_scale_are_scaled(suffix, codec, gain, voice, tmp_path):
    path = tmp_path / f"a.{suffix}"
    scaled = f"aformat=dbl,volume={gain}:precision=double"
    ffmpeg("-i", write_wav(tmp_path / "plain.wav", voice), "-af", scaled, "-c:a", codec, path)
    samples = media.read_sound(path, 6)
    assert likeness(samples, voice) > 0.9999 and np.abs(samples.astype(int)).max() in range(32600, 32769)


def test_a_lossy_sound_may_overshoot_but_not_by_far(voice, tmp_path):
    for gain in (2.8, 20):  # of a voice with a peak of 0.5
        path = tmp_path / f"{gain}.m4a"
        loud = f"aformat=flt,volume={gain}:precision=float"
        ffmpeg("-i", write_wav(tmp_path / "plain.wav", voice), "-af", loud, "-c:a", "aac", "-b:a", "128k", path)
        samples = media.read_sound(path, 6)
        n_clipped = (np.abs(samples.astype(int)) >= 32767).sum()
        if gain == 20:
            assert n_clipped == 1
        else:  # as players do
            np.testing.assert_array_equal(samples, mixed_by_ffmpeg(path))
            assert n_clipped > 1


def test_samples_that_are_no_numbers_are_unreadable(voice, tmp_path):
    path = tmp_path / "a.wav"
    ffmpeg("-i", write_wav(tmp_path / "plain.wav", voice), "-c:a", "pcm_f32le", path)
    content = bytearray(path.read_bytes())
    content[-8000:-7996] = np.array([np.nan], "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(Skip, match="unreadable") as skipped:
        media.read_sound(path, 6)
    assert skipped.value.detail == "expected finite samples, found nan or inf"


def two_tracks(path, first, second, *flags):
    ffmpeg(*PICTURE, "-i", first, "-i", second, "-map", 0, "-map", 1, "-map", 2, "-c:a", "aac", *flags, path)
    return path


def test_the_track_that_players_take(voice, tmp_path):
    speech, other = write_wav(tmp_path / "a.wav", voice), write_wav(tmp_path / "b.wav", voice[::-1])
    second = ("-disposition:a:0", 0, "-disposition:a:1", "default")
    for suffix in ("mp4", "mkv"):
        path = two_tracks(tmp_path / f"second.{suffix}", other, speech, *second)
        assert likeness(media.read_clip(path).samples, voice) > 0.98
        path = two_tracks(tmp_path / f"first.{suffix}", speech, other)
        assert likeness(media.read_clip(path).samples, voice) > 0.98


def test_a_track_without_samples_is_passed_over(voice, tmp_path):
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", 0.1, tmp_path / "none.wav")
    speech = write_wav(tmp_path / "a.wav", voice)
    path = two_tracks(tmp_path / "two.mkv", tmp_path / "none.wav", speech)
    ffmpeg("-i", path, "-map", 0, "-c", "copy", "-bsf:a:0", "noise=drop=1", tmp_path / "empty.mkv")
    assert likeness(media.read_clip(tmp_path / "empty.mkv").samples, voice) > 0.98


def test_a_cover_picture_is_no_video(voice, tmp_path):
    ffmpeg("-f", "lavfi", "-i", "color=red:s=100x100", "-frames:v", 1, tmp_path / "cover.png")
    inputs = ("-i", tmp_path / "cover.png", *PICTURE, "-i", write_wav(tmp_path / "a.wav", voice))
    codecs = ("-c:v:0", "mjpeg", "-c:v:1", "libx264", "-disposition:v:0", "attached_pic")
    ffmpeg(*inputs, "-map", 0, "-map", 1, "-map", 2, *codecs, tmp_path / "a.mp4")
    assert media.read_clip(tmp_path / "a.mp4").frame.picture.shape == (240, 320, 3)


def test_names_that_mean_something_to_ffmpeg(voice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speech = write_wav(tmp_path / "a.wav", voice)
    expected = media.read_sound(speech, 6)
    for name in ("2026-11-25T09:12:33.wav", "-i.wav", "a%03d.wav", "Ba$$in.wav", "http:x.wav", "concat:a|b.wav", "मीरा.wav"):
        speech.rename(name)
        np.testing.assert_array_equal(media.read_sound(name, 6), expected)
        speech = tmp_path / name


# ---------------------------------------------------------------- frames


@pytest.fixture(scope="module")
def film(frames, tmp_path_factory):
    """6 s of one person's frame, which moves a little: H.264, a key frame every 2 s, with sound."""
    folder = tmp_path_factory.mktemp("film")
    picture = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "640x360", "-i", folder / "frame.raw")
    (folder / "frame.raw").write_bytes(frames[0].tobytes())
    motion = "loop=149:1,setpts=N/25/TB,crop=600:340:20+10*sin(n/9):10+5*cos(n/7),scale=640:360"
    sound = ("-f", "lavfi", "-i", "anoisesrc=a=0.1:c=pink:r=16000")
    encoding = ("-r", 25, "-c:v", "libx264", "-crf", 16, "-g", 50, "-keyint_min", 50, "-sc_threshold", 0, "-pix_fmt", "yuv420p")
    ffmpeg(*picture, *sound, "-vf", motion, "-t", 6, *encoding, "-c:a", "aac", folder / "film.mp4")
    return folder / "film.mp4"


def difference(a, b):
    """Return the mean difference of two pictures of one size, in grey values."""
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).mean()


def feature_of(picture):
    box = detection.largest_face(picture)
    return detection.dlib_feature(picture, box)


@pytest.mark.parametrize("aspect, size", [("64/45", "450:360"), ("8/9", "720:360"), ("128/33", "166:360"), ("3/2", "480:404")])
def test_pixels_become_square(film, aspect, size, tmp_path):
    path = tmp_path / "a.mp4"
    ffmpeg("-i", film, "-vf", f"scale={size},setsar={aspect}", "-crf", 14, "-c:a", "copy", path)
    square, squeezed = media.read_clip(film).frame.picture, media.read_clip(path).frame.picture
    height, width = squeezed.shape[:2]
    assert width / height == pytest.approx(640 / 360, rel=0.03)
    assert np.linalg.norm(feature_of(square) - feature_of(squeezed)) < 0.15
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    turned = media.read_clip(tmp_path / "turned.mp4").frame.picture
    assert turned.shape == (width, height, 3)
    assert difference(np.rot90(squeezed, 1), turned) < 3
    later = media.read_later_frames(path)
    assert [frame.picture.shape for frame in later] == [squeezed.shape] * 5


def test_an_absurd_shape_of_pixels_is_ignored(film, tmp_path):
    ffmpeg("-i", film, "-vf", "setsar=1000", "-c:a", "copy", tmp_path / "a.mp4")
    assert media.read_clip(tmp_path / "a.mp4").frame.picture.shape == (360, 640, 3)


def test_each_frame_has_its_own_size_and_rotation(film, tmp_path):
    for name, filters in (("a", "null"), ("b", "scale=320:360"), ("c", "transpose=clock")):
        turned = ("-bsf:v", "h264_metadata=display_orientation=insert:rotate=90") if name == "c" else ()
        ffmpeg("-i", film, "-t", 2, "-vf", filters, "-an", "-c:v", "libx264", *turned, "-f", "mpegts", tmp_path / f"{name}.ts")
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join((tmp_path / f"{name}.ts").read_bytes() for name in "abc"))
    frames = media.read_later_frames(path)
    shapes = [frame.picture.shape[:2] for frame in frames]
    assert set(shapes) == {(360, 640), (360, 320)} and shapes[0] == shapes[-1] == (360, 640)
    assert difference(frames[0].picture, frames[-1].picture) < 20  # upright


def damaged(path, out, *frames, codec="copy"):
    """Copy a video, with some of the bytes of some frames overwritten."""
    chosen = "+".join(f"eq(n,{frame})" for frame in frames)
    if codec != "copy":
        ffmpeg("-i", path, "-c:v", codec, "-q:v", 3, "-g", 50, "-c:a", "copy", out.with_stem("whole"))
        path = out.with_stem("whole")
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", f"noise=amount='if({chosen},60,0)'", out)
    return out


@pytest.mark.parametrize("codec", ["copy", "mpeg4", "mpeg2video"])
def test_damaged_frames_are_passed_over(codec, film, tmp_path):
    """The film has key frames at 0, 2 and 4 s."""
    whole = {0: media.read_clip(film).frame.picture} | {f.second: f.picture for f in media.read_later_frames(film)}
    path = damaged(film, tmp_path / "first.mkv", 0, codec=codec)
    first = media.read_clip(path).frame
    assert first.second == pytest.approx(2, abs=0.01) and difference(first.picture, whole[2]) < 6
    later = media.read_later_frames(path)
    assert [frame.second for frame in later] == pytest.approx([2, 3, 4, 5], abs=0.01)
    path = damaged(film, tmp_path / "middle.mkv", 30, codec=codec)  # at 1.2 s
    assert media.read_clip(path).frame.second == 0
    later = media.read_later_frames(path)
    assert [frame.second for frame in later] == pytest.approx([1, 2, 3, 4, 5], abs=0.01)
    path = damaged(film, tmp_path / "second.mkv", 50, codec=codec)  # the key frame at 2 s
    later = media.read_later_frames(path)
    assert [frame.second for frame in later] == pytest.approx([1, 4, 5], abs=0.01)
    for frame in later:
        assert difference(frame.picture, whole[round(frame.second)]) < 6
    with pytest.raises(Skip, match="unreadable") as skipped:
        media.read_clip(damaged(film, tmp_path / "all.mkv", 0, 50, 100, codec=codec))
    assert skipped.value.detail == "expected an intact frame, found only damaged ones"


@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
@pytest.mark.parametrize("tagged", [True, False])
def test_high_dynamic_range_is_mapped_to_standard_range(transfer, tagged, film, tmp_path):
    linear = "setparams=color_trc=bt709:color_primaries=bt709:colorspace=bt709:range=tv,zscale=t=linear:npl=203"
    encoded = f"zscale=p=2020,zscale=t={transfer}:m=2020_ncl:r=tv:npl=203,format=yuv420p10le"
    tags = f"transfer={transfer}" + (":colorprim=bt2020:colormatrix=bt2020nc" if tagged else "")
    untag = "" if tagged else f",setparams=color_primaries=unknown:colorspace=unknown:color_trc={transfer}"
    encoder = ("-c:v", "libx265", "-crf", 12, "-x265-params", f"log-level=none:{tags}")
    ffmpeg("-i", film, "-t", 1, "-vf", f"{linear},format=gbrpf32le,{encoded}{untag}", *encoder, tmp_path / "a.mp4")
    standard, high = (media.read_clip(path).frame.picture for path in (film, tmp_path / "a.mp4"))
    assert difference(standard, high) < 8
    assert np.linalg.norm(feature_of(standard) - feature_of(high)) < 0.15


def test_seconds_of_frames_with_a_variable_frame_rate(film, tmp_path):
    path = tmp_path / "a.mp4"
    kept = "select='lt(t,0.5)+gte(t,3.2)',settb=1/1000"
    ffmpeg("-i", film, "-vf", kept, "-fps_mode", "vfr", "-c:a", "copy", path)
    assert [frame.second for frame in media.read_later_frames(path)] == pytest.approx([3.2, 4.2, 5.2])


# ---------------------------------------------------------------- lengths


def row(start, end):
    return Row("a_1", "a", start, end, 0.5, 0.5)


def problem_of(path, start, end):
    try:
        extraction.check_length(media.read_clip(path), row(start, end))
    except Skip as skip:
        return skip.reason, skip.detail


def test_a_clip_is_as_long_as_its_row(film, tmp_path):
    assert problem_of(film, 10, 16) is None
    assert problem_of(film, 10, 16.4) is None
    assert problem_of(film, 10, 20) == ("wrong-length", "expected 10.0 s, found 6.0 s")
    assert problem_of(film, 10, 14) == ("wrong-length", "expected 4.0 s, found 6.0 s")
    for name, arguments in {
        "mkv": (),
        "ts": (),
        "webm": ("-c:v", "libvpx", "-c:a", "libopus"),
        "live.mkv": ("-live", 1),
    }.items():
        path = tmp_path / f"a.{name}"
        ffmpeg("-i", film, *(("-c", "copy") if "-c:v" not in arguments else ()), *arguments, path)
        assert problem_of(path, 10, 16) is None, name
        assert problem_of(path, 10, 13)[0] == "wrong-length", name


def test_a_clip_cut_at_a_key_frame_before_its_start(film, tmp_path):
    cut = ("-ss", 3.5, "-i", film, "-t", 2, "-c", "copy")
    ffmpeg(*cut, tmp_path / "edited.mp4")  # an edit list hides what comes before the start
    ffmpeg(*cut, tmp_path / "plain.mkv")
    assert problem_of(tmp_path / "edited.mp4", 0, 2) is None
    assert problem_of(tmp_path / "plain.mkv", 0, 2)[0] == "wrong-length"


def test_a_clip_whose_sound_or_file_ends_early(film, tmp_path):
    ffmpeg("-i", film, "-c:v", "copy", "-af", "atrim=0:3", tmp_path / "sound.mp4")
    assert problem_of(tmp_path / "sound.mp4", 0, 6) == ("wrong-length", "expected 6.0 s, found 3.0 s of sound")
    ffmpeg("-i", film, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "part.mp4").write_bytes(content[: len(content) // 2])
    assert problem_of(tmp_path / "part.mp4", 0, 6)[0] == "wrong-length"


# ---------------------------------------------------------------- the cases of public reports


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")
def test_the_cases():
    def case(name):
        return CASES / f"{name}_000.000000-006.000000.mp4"

    def found(name):
        clip = media.read_clip(case(name))
        return detection.find_face(clip.frame, list, 0.28, 0.5, "hog")

    base = media.read_clip(case("base"))
    feature = detection.dlib_feature(found("base").frame, found("base").box)
    assert problem_of(case("base"), 0, 6) is None
    assert likeness(media.read_clip(case("antiphase")).samples, base.samples) > 0.99
    wide = found("palwide")
    assert np.linalg.norm(detection.dlib_feature(wide.frame, wide.box) - feature) < 0.11
    with pytest.raises(Skip, match="unreadable"):
        media.read_clip(case("damaged0"))
    assert problem_of(case("keyframecut-mkv"), 0, 6) == ("wrong-length", "expected 6.0 s, found 10.0 s")
    assert problem_of(case("keyframecut-mp4"), 0, 6) is None
    assert likeness(media.read_clip(case("keyframecut-mp4")).samples, base.samples) > 0.95
