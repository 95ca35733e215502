"""Rebuild the clips of the paper's project page, which docs/results.md is about: each a still picture and 6 s of sound.

The authors publish faces and voices of AVSpeech clips in the public repository of their page. Clone it first (1 GB on disk):

    git clone --depth 1 https://github.com/speech2face/speech2face.github.io data/authors-page
    python data/get_page_clips.py --page data/authors-page

Writes <out>/clips/<clip>.mp4 (H.264 and AAC) and <out>/avspeech_page.csv, in AVSpeech's five columns. The clips show real
people: use them for research, and do not publish them.
"""

import concurrent.futures
import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clips import workers
from utils import CLIP_SECONDS, InputError, check, option, parse_options, replacing, reporting_errors

MATERIAL = Path("figures/avspeech_res")  # in the clone: Wav/<clip>.wav and Face_ori/<clip>.jpg
FRAMES_PER_SECOND = 5
FACE_CENTRE = 0.5, 0.5  # a fraction of width and height: the pictures are face crops

# The page has 968 clips, and the results use 688 of them; no video has clips in both groups. One bit for each clip, in order
# of their names, is set for the clips in use.
N_PAGE_CLIPS = 968
IN_USE = int(
    "c5d6fdbbb5e9e7e5abff7638fb8f9fdfd3e3febf7ff99323de603afdfdffdfc4bd778c9ffb7bfb2bb5f69dfeb7fff7ffdaff7c7dbf8ff7b77f13fb0fca4"
    "fcf3bfdfcf1ae7bedf687bbdff8ba7c871d77dbefdeff03be7ff33c87f4ddfa2e7effbfdf6fad8f6dffabdfeeaeebeeffa7bfbbc5e33f0f7bfb76e9",
    16,
)


@dataclasses.dataclass(frozen=True)
class Options:
    page: Path = option("clone of the authors' page repository", metavar="FOLDER")
    out: Path = option("folder to write to", Path("data/page"), metavar="FOLDER")
    all: bool = option("rebuild all clips of the page, also those that the results leave out", False)
    workers: int | None = option(
        "clips that are encoded at the same time; lower it to keep cores free (default: the processors that this process may "
        "use)",
        None,
        metavar="N",
    )

    def __post_init__(self):
        check(self.workers is None or self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")


def find_clips(page: Path, every: bool) -> list[str]:
    """Return the names of the clips to rebuild, sorted.

    Args:
        page: the clone.
        every: whether all clips of the page are wanted, and not only those that the results use.

    Raises:
        InputError: if the folder is no clone of the page, or holds another number of clips.
    """
    sounds, faces = (
        {path.stem for path in (page / MATERIAL / folder).glob(f"*{suffix}")}
        for folder, suffix in (("Wav", ".wav"), ("Face_ori", ".jpg"))
    )
    clips = sorted(sounds & faces)
    advice = "clone https://github.com/speech2face/speech2face.github.io"
    if not clips:
        raise InputError(f"{page / MATERIAL}: expected Wav/*.wav and Face_ori/*.jpg of the same names, found none; {advice}")
    if every:
        return clips
    if len(clips) != N_PAGE_CLIPS:
        raise InputError(f"{page / MATERIAL}: expected {N_PAGE_CLIPS} clips, found {len(clips)}; {advice} anew, or pass --all")
    return [clip for clip, bit in zip(clips, f"{IN_USE:0{N_PAGE_CLIPS}b}") if bit == "1"]


def row_of(clip: str) -> tuple[str, float, float, float, float]:
    """Return a clip's row in AVSpeech's columns: id, start s, end s, and the face's centre."""
    video, _, times = clip.rpartition("_")
    start, _, end = times.partition("-")
    try:
        return video, float(start), float(end), *FACE_CENTRE
    except ValueError:
        raise InputError(f"{clip}: expected a clip named <id>_<start>-<end>, found another name; rename or delete it") from None


def make_clip(page: Path, clip: str, clips: Path) -> None:
    """Make <clips>/<clip>.mp4 from a clip's picture and its sound. Raises InputError if ffmpeg cannot read them."""
    picture, sound = page / MATERIAL / "Face_ori" / f"{clip}.jpg", page / MATERIAL / "Wav" / f"{clip}.wav"
    with replacing(clips / f"{clip}.mp4") as path:
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y"),
            # Of these formats alone, which name no other files.
            *("-protocol_whitelist", "file", "-f", "jpeg_pipe", "-framerate", str(FRAMES_PER_SECOND)),
            *("-i", f"file:{picture.absolute()}", "-protocol_whitelist", "file", "-f", "wav", "-i", f"file:{sound.absolute()}"),
            *("-t", str(CLIP_SECONDS)),
            *("-vf", f"loop={FRAMES_PER_SECOND * CLIP_SECONDS - 1}:1"),
            *("-c:v", "libx264", "-tune", "stillimage", "-crf", "16", "-pix_fmt", "yuv420p", "-threads", "1"),
            *("-c:a", "aac", "-b:a", "96k"),
            path,
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(
                f"{picture}: expected a picture, and {sound.name} a sound, but ffmpeg failed ({reason}); clone anew"
            )


@reporting_errors
def main(argv=None) -> int:
    options = parse_options(Options, __doc__, argv)
    names = find_clips(options.page, options.all)
    rows = [row_of(name) for name in names]
    clips = options.out / "clips"
    with concurrent.futures.ThreadPoolExecutor(options.workers or workers.n_processors()) as pool:
        jobs = [pool.submit(make_clip, options.page, name, clips) for name in names]
        try:
            for job in tqdm(concurrent.futures.as_completed(jobs), "get_page_clips", len(jobs), unit="clip", disable=None):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    table = options.out / "avspeech_page.csv"
    with replacing(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"get_page_clips: {len(names)} clips in {clips}, listed in {table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
