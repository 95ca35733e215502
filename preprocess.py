"""Turn the rows of an AVSpeech csv into training data: clips -> spectrograms, faces and face features. Or photos -> faces.

Reads a csv without header whose rows are `YouTube id, start s, end s, x, y`; (x, y) is the centre of the speaker's face at the
start, as a fraction of width and height. A row's clip is <videos>/<id>_<start>-<end>.mp4 where that exists; otherwise it is
fetched with yt-dlp. Writes, under --data, for each clip

    spectrograms/<clip>.pkl   float16 (598, 257, 2), the voice encoder's input
    embeddings/<clip>.pkl     float32 (4096,), the VGG-Face feature, or (128,) with --face-model dlib
    faces/<clip>.jpg          the face, 224 x 224 pixels
    portraits/<clip>.jpg      the head and what is around it, 320 pixels at most, for the face decoder
    landmarks/<clip>.pkl      float32 (68, 2), in the portrait's pixels

and a line per row tried to manifest.csv: status is `ready` or the reason why not; the README lists them. A second run does
what is missing and what may pass now (a broken connection, a rate limit), and leaves the rest as it is.

    python preprocess.py --csv avspeech_train.csv
    python preprocess.py --faces photos --data data/photos     all but the spectrograms, of a photo of each person, or a folder
"""

import dataclasses
import math
import os
import re
from pathlib import Path

import utils
from clips.reasons import REASONS
from utils import FEATURE_SIZE, InputError, check, option


@dataclasses.dataclass(frozen=True)
class Options:
    csv: Path | None = option("csv with AVSpeech's five columns", None)
    faces: Path | None = option(
        "instead: folder of photos, one of each person, or a folder of each person's, for train.py --model decoder",
        None,
        metavar="FOLDER",
    )
    data: Path = option("folder to write to", utils.DATA)
    videos: Path | None = option(
        "folder of the clips, cut to start and end; those missing are fetched (default: <data>/videos)", None
    )
    limit: int | None = option("look at the first LIMIT rows, or photos, only", None, metavar="LIMIT")
    shard: str = option("take the I-th of N parts of the videos only, for N machines without a cluster", "1/1", metavar="I/N")
    retry: tuple[str, ...] = option(
        "try again also the clips with these reasons in manifest.csv", (), nargs="+", choices=tuple(REASONS), metavar="REASON"
    )
    detector: str = option(
        "face detector: hog, or cnn for the clips where hog sees no face, which takes some hundred times as long on a CPU",
        "hog",
        choices=("hog", "cnn"),
    )
    face_model: str = option(
        "network of the face feature: vggface is the paper's (580 MB of weights, downloaded once), dlib needs no download",
        "vggface",
        choices=tuple(FEATURE_SIZE),
    )
    workers: int = option("worker processes that fetch, decode and look for faces", os.cpu_count())
    scheduler: str | None = option(
        "address of a Dask scheduler, such as tcp://host:8786, whose workers do that instead", None, metavar="ADDRESS"
    )
    url_template: str = option("address of a video; {} stands for its id", "https://www.youtube.com/watch?v={}")
    sleep: float = option("mean time in s from one video to the next while fetching, for all workers of a machine", 15.0)
    rate: str | None = option("fetch at most so many bytes a second on average, such as 500K", None, metavar="RATE")
    cookies: Path | None = option("file of cookies for yt-dlp, in Netscape's format", None)
    proxy: str | None = option("address of a proxy for yt-dlp", None, metavar="ADDRESS")

    def __post_init__(self):
        found = "both" if self.csv else "neither"
        check((self.csv is None) != (self.faces is None), f"--csv: expected either --csv or --faces, found {found}")
        check(self.limit is None or self.limit >= 1, f"--limit: expected at least 1, found {self.limit}")
        shard = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        check(
            shard and 1 <= int(shard[1]) <= int(shard[2]),
            f"--shard: expected I/N, such as 3/8, I from 1 to N, found {self.shard}",
        )
        check(self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")
        check("{}" in self.url_template, f"--url-template: expected {{}} in it, found {self.url_template}")
        check(0 <= self.sleep < math.inf, f"--sleep: expected 0 s or more, found {self.sleep}")
        rate = self.bytes_per_second()
        check(rate is None or rate > 0, f"--rate: expected bytes a second, such as 500K or 2M, found {self.rate}")

    def shards(self) -> tuple[int, int]:
        """Return --shard as numbers, I and N."""
        return tuple(map(int, self.shard.split("/")))

    def bytes_per_second(self) -> float | None:
        """Return --rate as a number; 0 if it is none."""
        if self.rate is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", self.rate)
        return float(found[1]) * 1024 ** "KMG".find(found[2] or " ") * 1024 if found else 0


def load_networks(face_model: str, sound: bool):
    """Import TensorFlow and build what preprocessing computes with, as far as it is needed.

    Args:
        face_model: "vggface" or "dlib", whose features the workers make.
        sound: whether there are spectrograms to make.

    Returns:
        preprocessing.Networks.
    """
    from clips.preprocessing import Networks

    spectrogram = embed = None
    if sound:
        import model

        def spectrogram(waveforms):
            return model.spectrogram(waveforms).numpy()

    if face_model == "vggface":
        from faces import vggface

        embed = vggface.face_embedder()
    return Networks(spectrogram, embed)


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    for path, what in ((options.csv, "AVSpeech's csv"), (options.cookies, "a file of cookies")):
        if path and not path.is_file():
            raise InputError(f"{path}: expected {what}, found no such file; the README says where to get it")

    from clips.preprocessing import preprocess  # after the options, for --help to answer at once

    return preprocess(options, load_networks)


if __name__ == "__main__":
    raise SystemExit(main())
