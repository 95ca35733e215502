"""How long the pairing of voices and faces takes before the work starts, on real folders of empty files.

Makes the files, named as VoxCeleb2's, in a temporary folder; then pairs them, and starts a run up to its first task. Prints the
seconds, and the memory of the process.

    python -m benchmarks pairing --recordings 1200000
"""

import dataclasses
import resource
import sys
import tempfile
import time
from pathlib import Path

import utils
from clips import extraction, pairing, sources

VIDEOS, UTTERANCES = 24, 8  # of a person, and of a video
KINDS = {"voices": ("aac", ".m4a"), "faces": ("mp4", ".mp4")}


@dataclasses.dataclass(frozen=True)
class Options:
    recordings: int = utils.option("number of recordings, each with a face track", 100_000, metavar="N")

    def __post_init__(self):
        utils.check(self.recordings >= 1, f"--recordings: expected at least 1, found {self.recordings}")


def make_files(folder: Path, kind: str, suffix: str, n: int) -> None:
    for number in range(n):
        video, utterance = divmod(number, UTTERANCES)
        person, video = divmod(video, VIDEOS)
        place = folder / "dev" / kind / f"id{person:05}" / f"video-{video:05}"
        if utterance == 0:
            place.mkdir(parents=True)
        (place / f"{utterance:05}{suffix}").touch()


def megabytes() -> float:
    """Return the most memory that this process has used, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def run(options: Options) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary, name) for name in KINDS}
        for name, (kind, suffix) in KINDS.items():
            make_files(folders[name], kind, suffix, options.recordings)
        print(f"{options.recordings:,} recordings and as many face tracks; the process has {megabytes():.0f} MB", flush=True)
        started = time.perf_counter()
        found = pairing.pair(folders["voices"], folders["faces"])
        paired = time.perf_counter()
        settings = extraction.ExtractionSettings(Path(temporary), "hog", "dlib", None)
        source = sources.recordings_of(found, 1, Path(temporary, "data"), settings)
        task = next(source.tasks(lambda lines: None, lambda statuses, before=False: None))
        first = time.perf_counter()
        *_, summary = pairing.listed(found)
        print(f"paired in {paired - started:.1f} s, first task of {len(task)} clips after {first - started:.1f} s")
        print(f"--list takes {time.perf_counter() - first:.1f} s more: {summary}")
        print(f"the process has had {megabytes():.0f} MB at most")
