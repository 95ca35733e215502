import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
from conftest import FFMPEG, ffmpeg, loudest_hertz, second_shown

import utils
from clips import media
from clips.reasons import Skip

# ---------------------------------------------------------------- sound and frames


def test_the_first_frame_and_six_seconds_of_sound_come_from_one_process(counting_video, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **more):
            started.append(arguments)
            super().__init__(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    clip = media.read_clip(counting_video)
    samples, frame = clip.samples, clip.frame.picture
    assert len(started) == 1
    assert (clip.frame.second, clip.seconds) == (0, pytest.approx(12, abs=0.05))
    assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
    assert second_shown(frame) == pytest.approx(0, abs=0.3)
    assert samples.shape == (utils.CLIP_SAMPLES,) and samples.dtype == np.int16
    for second in range(6):
        stretch = samples[second * 16_000 + 2000 : (second + 1) * 16_000 - 2000]
        assert loudest_hertz(stretch) == pytest.approx(200 + 100 * second, abs=2)


def test_later_frames_are_one_a_second_up_to_6_s(counting_video):
    frames = media.read_later_frames(counting_video)
    assert [frame.second for frame in frames] == [1, 2, 3, 4, 5]
    assert {frame.picture.shape for frame in frames} == {(240, 320, 3)} and frames[0].picture.dtype == np.uint8
    assert [second_shown(frame.picture) for frame in frames] == pytest.approx([1, 2, 3, 4, 5], abs=0.3)


def test_frames_are_rgb_and_of_any_size(tmp_path):
    ffmpeg(
        "-f", "lavfi", "-i", "color=0xC02010:s=322x182:d=2:r=5", "-f", "lavfi", "-i", "anullsrc", "-t", 2, tmp_path / "a.mp4"
    )
    frame = media.read_clip(tmp_path / "a.mp4").frame.picture
    assert frame.shape == (182, 322, 3)
    assert np.abs(frame.reshape(-1, 3).mean(axis=0) - (0xC0, 0x20, 0x10)).max() < 6
    assert [frame.picture.shape for frame in media.read_later_frames(tmp_path / "a.mp4")] == [(182, 322, 3)]


def test_a_clip_shorter_than_a_second_has_one_frame_and_its_own_sound(counting_video, tmp_path):
    ffmpeg("-i", counting_video, "-t", 0.8, tmp_path / "short.mp4")
    samples = media.read_clip(tmp_path / "short.mp4").samples
    assert len(samples) == pytest.approx(0.8 * utils.SAMPLE_RATE, abs=1200)
    assert len(media.read_later_frames(tmp_path / "short.mp4")) == 0


def test_files_that_are_not_clips(tmp_path, counting_video):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(counting_video.read_bytes()[:2000])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    ffmpeg("-i", counting_video, "-an", "-c", "copy", tmp_path / "mute.mp4")
    ffmpeg("-i", counting_video, "-vn", "-c", "copy", tmp_path / "blind.mp4")
    for name in ("text", "empty", "cut", "list", "blind", "absent"):
        with pytest.raises(Skip, match="unreadable"):
            media.read_clip(tmp_path / f"{name}.mp4")
    with pytest.raises(Skip, match="no-sound"):
        media.read_clip(tmp_path / "mute.mp4")


def test_a_file_that_takes_too_long_is_given_up(counting_video, monkeypatch):
    monkeypatch.setattr(media, "DECODING_SECONDS", 0.01)
    with pytest.raises(Skip, match="unreadable") as skipped:
        media.read_clip(counting_video)
    assert "ffmpeg did not finish within 0.01 s" in skipped.value.detail


# ---------------------------------------------------------------- formats, and files that name others

HERTZ = 700  # of the tone in `film`, and so in the files that others must not bring in
SOUNDS = """
    a.m4a a.mp3 a.ogg a.opus a.wav a.flac a.amr a.aif a.caf a.wma a.au a.w64 a.aac a.latm a.ac3 a.eac3 a.dts a.mp2 a.wv a.tta
    a.mka a.voc a.sox a.g722 a.rm
"""
VIDEOS = """
    a.mp4 a.mov a.m4v a.mkv a.webm a.avi a.ts a.m2ts a.mpg a.vob a.flv a.f4v a.3gp a.3g2 a.wmv a.ogv a.mxf a.dv a.nut a.wtv
"""
OF_PHONES = ("-ar", 8000, "-ac", 1, "-b:a", "12.2k")
OPTIONS = {  # where ffmpeg's encoder takes no other sound or picture
    **{"a.amr": OF_PHONES, "a.3gp": OF_PHONES, "a.3g2": OF_PHONES},
    **{"a.g722": ("-ar", 16_000), "a.flv": ("-ar", 44_100), "a.dv": ("-s", "720x576", "-ac", 2)},
}
# What opens other files, devices or the network, by ffmpeg's names.
OPENERS = "hls dash imf concat sdp rtsp rtp sap image2 vobsub mlv lavfi avisynth dvdvideo webm_dash_manifest"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """3 s of red, with a tone."""
    path = tmp_path_factory.mktemp("film") / "film.mov"
    picture, tone = "color=red:s=352x288:r=25:d=3,format=yuv420p", f"aevalsrc=0.3*sin(2*PI*{HERTZ}*t):s=48000:d=3"
    ffmpeg("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone, "-c:v", "libx264", "-c:a", "pcm_s16le", path)
    return path


@pytest.mark.parametrize("name", SOUNDS.split())
def test_recordings_of_all_common_formats(name, film, tmp_path):
    ffmpeg("-i", film, "-vn", "-strict", -2, *OPTIONS.get(name, ()), tmp_path / name)
    samples = media.read_sound(tmp_path / name, 6)
    assert loudest_hertz(samples) == pytest.approx(HERTZ, abs=3)
    assert len(samples) == pytest.approx(3 * utils.SAMPLE_RATE, abs=3000)


@pytest.mark.parametrize("name", VIDEOS.split())
def test_clips_of_all_common_formats(name, film, tmp_path):
    ffmpeg("-i", film, *OPTIONS.get(name, ()), tmp_path / name)
    clip = media.read_clip(tmp_path / name)
    assert loudest_hertz(clip.samples) == pytest.approx(HERTZ, abs=3)
    assert np.abs(clip.frame.picture.reshape(-1, 3).mean(axis=0) - (254, 0, 0)).max() < 8


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
PRESENTATION = """<?xml version="1.0"?>
<MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static" mediaPresentationDuration="PT3S">
<Period duration="PT3S"><AdaptationSet mimeType="video/mp4">
<Representation id="0" bandwidth="1000"><BaseURL>below/secret.mp4</BaseURL><SegmentBase/></Representation>
</AdaptationSet></Period></MPD>"""
ID = "urn:uuid:00000000-0000-0000-0000-00000000000{}"
ASSETS = f"""<?xml version="1.0"?>
<AssetMap><AssetList><Asset><Id>{ID.format(1)}</Id><ChunkList><Chunk><Path>below/secret.mxf</Path></Chunk></ChunkList></Asset>
</AssetList></AssetMap>"""
COMPOSITION = f"""<?xml version="1.0"?>
<CompositionPlaylist><Id>{ID.format(2)}</Id><ContentTitle>a</ContentTitle><EditRate>25 1</EditRate>
<SegmentList><Segment><SequenceList><MainAudioSequence><Id>{ID.format(3)}</Id><TrackId>{ID.format(4)}</TrackId><ResourceList>
<Resource><Id>{ID.format(5)}</Id><EditRate>48000 1</EditRate><IntrinsicDuration>144000</IntrinsicDuration>
<TrackFileId>{ID.format(1)}</TrackFileId></Resource>
</ResourceList></MainAudioSequence></SequenceList></Segment></SegmentList></CompositionPlaylist>"""
STREAM = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
SUBTITLES = "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n"
NAMING = {  # by the name of a file: its format, where ffmpeg would read the other file, and its content
    "path.m3u8": ("hls", PLAYLIST.format("below/secret.ts")),
    "whole path.m3u": ("hls", PLAYLIST.format("{folder}/below/secret.mp4")),
    "address.m3u8": ("hls", PLAYLIST.format("file://{folder}/below/secret.m4a")),
    "list.txt": ("concat", "ffconcat version 1.0\nfile below/secret.mp4\n"),
    "list.m4a": ("concat", "ffconcat version 1.0\nfile below/secret.mp4\n"),
    "presentation.mpd": ("dash", PRESENTATION),
    "presentation.mp4": ("dash", PRESENTATION),
    "composition.xml": ("imf", COMPOSITION),
    "composition.mp4": ("imf", COMPOSITION),
    "stream.sdp": (None, STREAM),
    "stream.m4a": (None, STREAM),
    "titles.idx": (None, SUBTITLES),
}


@pytest.fixture(scope="module")
def folder(film, tmp_path_factory):
    """A folder for the files of a stranger, with others that must stay unopened, below it and beside them."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "below").mkdir()
    for name in ("secret.mp4", "secret.ts", "secret.m4a"):
        ffmpeg("-i", film, folder / "below" / name)
    ffmpeg("-i", film, "-vn", "-c:a", "pcm_s24le", "-f", "mxf_opatom", folder / "below" / "secret.mxf")
    ffmpeg("-i", film, "-f", "mpeg", folder / "titles.sub")
    (folder / "ASSETMAP.xml").write_text(ASSETS)
    return folder


@pytest.mark.parametrize("name", NAMING)
def test_a_file_that_names_another_is_refused(name, folder, monkeypatch):
    format, content = NAMING[name]
    path = folder / name
    path.write_text(content.replace("{folder}", str(folder)))
    for read in (media.read_clip, lambda path: media.read_sound(path, 6)):
        with pytest.raises(Skip, match="unreadable") as skipped:
            read(path)
        assert skipped.value.detail == "it names other files, as playlists do, or is of a kind that is not read"
    if format:  # the file is not merely broken: with its format in the list, the other file is read
        monkeypatch.setattr(media, "FORMATS", f"{media.FORMATS} {format}")
        assert loudest_hertz(media.read_sound(path, 6)) == pytest.approx(HERTZ, abs=3)


def test_a_name_is_no_pattern_of_names(film, tmp_path, monkeypatch):
    path = tmp_path / "a%d.jpg"
    ffmpeg("-i", film, path)
    shutil.copy(tmp_path / "a1.jpg", path)
    assert media.read_later_frames(path) == []
    with pytest.raises(Skip, match="unreadable"):
        media.read_clip(path)
    monkeypatch.setattr(media, "FORMATS", f"{media.FORMATS} image2")
    assert len(media.read_later_frames(path)) == 2


def test_samples_in_another_file_are_not_read(film, tmp_path):
    """QuickTime may keep them there, and names that file by an alias, as early Macs did."""
    ffmpeg("-i", film, "-vn", "-c:a", "copy", tmp_path / "secret.mov")
    content = bytearray((tmp_path / "secret.mov").read_bytes())
    target = b"/a/secret.mov"
    alias = bytes(10 + 28 + 12 + 64 + 16) + struct.pack(">HH", 1, 1) + bytes(16)  # one folder up, one down
    alias += struct.pack(">hH", 2, len(target) + 1) + target + b"\0" + struct.pack(">hH", -1, 0) + bytes(40)
    alias = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    at = content.index(b"dref") + 12  # of the entry that says: in this file
    (length,) = struct.unpack_from(">I", content, at)
    content[at : at + length] = alias
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = content.index(kind) - 4
        struct.pack_into(">I", content, start, struct.unpack_from(">I", content, start)[0] + len(alias) - length)
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path = tmp_path / "a.mov"
    path.write_bytes(content)
    with pytest.raises(Skip, match="unreadable") as skipped:
        media.read_sound(path, 6)
    assert "it names other files" in skipped.value.detail
    (sound,), _ = media._run(path, 6, "-ar", "16000", "-f", "s16le", "pipe:1", before=("-enable_drefs", "1"))
    assert loudest_hertz(np.frombuffer(sound, "<i2")) == pytest.approx(HERTZ, abs=3)  # it would have been


def test_the_list_of_formats_holds_ffmpegs_names_and_none_that_names_files():
    listed = subprocess.run([FFMPEG, "-hide_banner", "-demuxers"], capture_output=True, text=True, check=True).stdout
    names = {name for names in re.findall(r"^ D\S* +(?:d +)?(\S+)", listed, re.MULTILINE) for name in names.split(",")}
    formats = media.FORMATS.split()
    assert len(formats) == len(set(formats)) and set(formats) <= names
    assert not set(formats) & set(OPENERS.split())
