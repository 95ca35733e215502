"""Turn videos of people talking into training data: spectrograms, faces and face features. Or photos into faces.

The material is one of

    --csv       rows `YouTube id, start s, end s, x, y`, as AVSpeech has them; (x, y) is the centre of the speaker's face at the
                start, as a fraction of width and height, and may be missing. The clip of a row is
                <videos>/<id>_<start>-<end>.mp4 if that file exists; otherwise it is fetched with yt-dlp.
    --folder    videos of any format, in a folder for each person, or each named for a person
    --voices    recordings, and with --faces photos or videos of their speakers, paired by person and by the path below, as
                VoxCeleb has them
    --faces     photos of people, for the face decoder

Writes for each clip, under --data,

    spectrograms/<clip>.pkl   float16 (598, 257, 2), the input of the voice encoder
    embeddings/<clip>.pkl     float32 (4096,), the face feature of VGG-Face, or (128,) with --face-model dlib
    faces/<clip>.jpg          the face, 224 x 224 pixels
    portraits/<clip>.jpg      the head with hair and neck, at most 320 pixels, for the face decoder
    landmarks/<clip>.pkl      float32 (68, 2), in pixels of the portrait
    prints/<clip>.pkl         float16 (1760,), by which evaluate.py finds copies of a clip

and one line per clip to manifest.csv, with the status `ready` or the reason why the clip was skipped. A second run processes
missing clips only, among them clips skipped for a temporary reason, such as a broken connection or a rate limit.

    python preprocess.py --csv avspeech_train.csv
    python preprocess.py --folder my-videos --data data/mine
    python preprocess.py --voices wav --faces unzippedFaces --names vox1_meta.csv --data data/vox1
    python preprocess.py --faces photos --data data/photos     # of photos: all but the spectrograms
    python preprocess.py pack                                  # for training on very many clips
"""

import dataclasses
import math
import re
import sys
import urllib.parse
from pathlib import Path

import utils
from clips.reasons import REASONS
from utils import FEATURE_SIZE, InputError, check, option

PACK_DOC = """Pack the clips of a data folder into a few large files, which train.py reads faster, above all on a network disk.

Reads the spectrograms and face features under --data, and writes them once more to <data>/pack/: 0.63 MB a clip. The files of
the clips stay, and all scripts go on to read them; train.py takes its training clips from the pack, with the same result to the
bit. Run the command again when clips were added. A run that was killed is continued.

    python preprocess.py pack
"""

AVSPEECH = "https://looking-to-listen.github.io/avspeech/download.html"


@dataclasses.dataclass(frozen=True)
class Options:
    csv: Path | None = option(
        "csv file of clips, with AVSpeech's five columns, or the first three of them", None, "material", metavar="FILE"
    )
    folder: Path | None = option(
        "folder of videos of people talking: a subfolder for each person, or videos named for the person, <person>.mp4, or "
        "<person>_<number>.mp4 where there are several",
        None,
        "material",
        metavar="FOLDER",
    )
    voices: Path | None = option(
        "folder of recordings, with the faces of their speakers in the folder --faces: a subfolder for each person in both; a "
        "recording gets the faces with its own path below the person, or else those of the same folder, or else of the person; "
        "of several, the features of 5 are averaged",
        None,
        "material",
        metavar="FOLDER",
    )
    faces: Path | None = option(
        "with --voices: folder of photos or videos of the speakers; alone: folder of photos, to train a decoder. A subfolder "
        "for each person, or photos named for the person, <person>.jpg, or <person>_<number>.jpg where there are several",
        None,
        "material",
        metavar="FOLDER",
    )
    names: Path | None = option(
        "csv that gives people their other names, such as vox1_meta.csv, where --voices and --faces name them differently",
        None,
        "material",
        metavar="FILE",
    )
    windows: int = option(
        "clips of 6 s to take from each file of --folder or --voices, spread over it; raise the number for long files",
        1,
        "material",
        metavar="N",
    )
    list: bool = option(
        "only say what would become of each file of --folder or --voices, and why; nothing is written",
        False,
        "material",
    )
    videos: Path | None = option(
        "folder of the clips, cut to start and end; missing clips are fetched into this folder (default: <data>/videos)",
        None,
        "material",
        metavar="FOLDER",
    )
    data: Path = option(
        "folder to write to; each folder holds features of one --face-model", utils.DATA, "material", metavar="FOLDER"
    )
    any_length: bool = option(
        "also accept clips that are not as long as their rows; use this if the clips were cut to another length on purpose, "
        "each from the start of its row",
        False,
        "material",
    )
    limit: int | None = option(
        "process only the first N rows, recordings or photos, to try the program out", None, "material", metavar="N"
    )
    face_model: str = option(
        "network of the face features: vggface is the paper's, and its weights, 580 MB, are downloaded once; dlib is faster "
        "and needs no download",
        "vggface",
        "extraction",
        choices=tuple(FEATURE_SIZE),
    )
    speaker: str = option(
        "whose face is taken where no csv says it: staying is the largest face that is seen through the clip, in a frame a "
        "second; largest and middle go by the first frame with a face, and are faster",
        "staying",
        "extraction",
        choices=("staying", "largest", "middle"),
    )
    detector: str = option(
        "face detector: cnn examines the clips in which hog finds no speaker once more, and takes about a hundred times as "
        "long on a CPU; use cnn if many clips are skipped as no-face",
        "hog",
        "extraction",
        choices=("hog", "cnn"),
    )
    retry: tuple[str, ...] = option(
        "also try clips again that an earlier run skipped for one of these reasons, for instance age-gated once you pass "
        f"--cookies; temporary reasons are always tried again; reasons: {', '.join(REASONS)}",
        (),
        "extraction",
        nargs="+",
        choices=tuple(REASONS),
        metavar="REASON",
    )
    sleep: float = option(
        "mean time between the starts of two downloads on this machine, one download per video; raise the value if clips are "
        "skipped as rate-limited",
        15.0,
        "fetching",
        metavar="SECONDS",
    )
    rate: str | None = option(
        "mean download rate in bytes a second, at most, such as 500K; limit the rate to leave others bandwidth",
        None,
        "fetching",
        metavar="RATE",
    )
    cookies: Path | None = option(
        "cookies of a browser for yt-dlp, in Netscape's format; needed after bot-check, and for videos that require a login",
        None,
        "fetching",
        metavar="FILE",
    )
    proxy: str | None = option(
        "address of an HTTP proxy, such as http://host:8080, for yt-dlp and ffmpeg; needed for videos that are blocked in your "
        "country",
        None,
        "fetching",
        metavar="ADDRESS",
    )
    url_template: str = option(
        "address of a video, with {} in place of the id; change the address to fetch from another site",
        "https://www.youtube.com/watch?v={}",
        "fetching",
        metavar="ADDRESS",
    )
    workers: int | None = option(
        "number of processes that fetch clips and detect faces; lower the number if memory runs out (default: the processors "
        "that this process may use)",
        None,
        "work",
        metavar="N",
    )
    scheduler: str | None = option(
        "address of a Dask scheduler, such as tcp://host:8786, whose workers replace the processes on this machine",
        None,
        "work",
        metavar="ADDRESS",
    )
    shard: str = option(
        "process only the I-th of N parts of the videos; with N machines and no cluster, start part 1/N to N/N on one each",
        "1/1",
        "work",
        metavar="I/N",
    )

    def __post_init__(self):
        given = [f"--{name}" for name in ("csv", "folder", "voices", "faces") if getattr(self, name)]
        check(
            len(given) == 1 or given == ["--voices", "--faces"],
            f"--csv: expected --csv, --folder, --faces, or --voices and --faces, found {' and '.join(given) or 'none'}",
        )
        check(given != ["--voices"], "--voices: expected --faces with it, found none")
        needed = {
            "videos": ["--csv"],
            "any_length": ["--csv"],
            "windows": ["--folder", "--voices"],
            "list": ["--folder", "--voices"],
            "names": ["--voices"],
        }
        for name, materials in needed.items():
            fits = given[0] in materials or getattr(self, name) == getattr(Options, name)
            check(fits, f"--{name.replace('_', '-')}: expected {' or '.join(materials)} with it, found {given[0]}")
        check(self.windows >= 1, f"--windows: expected at least 1, found {self.windows}")
        check(self.limit is None or self.limit >= 1, f"--limit: expected at least 1, found {self.limit}")
        shard = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        check(
            shard and 1 <= int(shard[1]) <= int(shard[2]),
            f"--shard: expected I/N, such as 3/8, I from 1 to N, found {self.shard}",
        )
        check(self.workers is None or self.workers >= 1, f"--workers: expected at least 1, found {self.workers}")
        check("{}" in self.url_template, f"--url-template: expected {{}} in the address, found {self.url_template}")
        check(
            is_address(self.url_template, "http", "https"),
            f"--url-template: expected an address that begins with http:// or https://, found {self.url_template}",
        )
        check(
            self.proxy is None or is_address(self.proxy if "://" in self.proxy else f"http://{self.proxy}", "http"),
            "--proxy: expected the address of an HTTP proxy, such as http://host:8080, for ffmpeg knows no other kind, "
            f"found {self.proxy}",
        )
        check(0 <= self.sleep < math.inf, f"--sleep: expected 0 s or more, found {self.sleep}")
        rate = self.bytes_per_second()
        check(rate is None or rate > 0, f"--rate: expected bytes a second, such as 500K or 2M, found {self.rate}")

    def shard_numbers(self) -> tuple[int, int]:
        """Return --shard as numbers, I and N."""
        return tuple(map(int, self.shard.split("/")))

    def bytes_per_second(self) -> float | None:
        """Return --rate as a number; 0 if it is not one."""
        if self.rate is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", self.rate)
        return float(found[1]) * 1024 ** "KMG".find(found[2] or " ") * 1024 if found else 0


@dataclasses.dataclass(frozen=True)
class PackOptions:
    data: Path = option("folder that preprocess.py wrote", utils.DATA, metavar="FOLDER")
    readers: int | None = option(
        "clips read at the same time; raise it on a network disk (default: 16 for each processor that this process may use)",
        None,
        metavar="N",
    )

    def __post_init__(self):
        check(self.readers is None or self.readers >= 1, f"--readers: expected at least 1, found {self.readers}")


def is_address(text: str, *schemes: str) -> bool:
    """Tell whether a text is an address of one of the schemes, with a host and no impossible port."""
    try:
        parts = urllib.parse.urlsplit(text)
        known = text.startswith(tuple(f"{scheme}://" for scheme in schemes)) and not re.search(r"\s", text)
        return known and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def load_networks(face_model: str, sound: bool):
    """Import TensorFlow and build the computations of the main process, as far as they are needed.

    Args:
        face_model: "vggface", or "dlib", whose features the workers compute.
        sound: whether spectrograms are needed.

    Returns:
        preprocessing.Networks.
    """
    from clips.preprocessing import Networks

    spectrogram = embed = None
    if sound:
        import model  # here, so that TensorFlow starts while the workers do

        def spectrogram(waveforms):
            return model.spectrogram(waveforms).numpy()

    if face_model == "vggface":
        from faces import vggface

        embed = vggface.face_embedder()
    return Networks(spectrogram, embed)


def check_paths(options: Options) -> None:
    """Raise InputError if a path is missing, or is a file instead of a folder or the reverse."""
    for path, expected, next_step in (
        (options.csv, "AVSpeech's csv", f"download it from {AVSPEECH}"),
        (options.cookies, "a file of cookies", "export the cookies of your browser as cookies.txt"),
    ):
        if path and not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise InputError(f"{path}: expected {expected}, found {found}; {next_step}")
    for option_name, path in (("--data", options.data), ("--videos", options.videos)):
        if path and path.exists() and not path.is_dir():
            raise InputError(f"{path}: expected a folder, found a file; pass another {option_name}")
    if options.csv and options.videos and not options.videos.exists():
        print(f"preprocess: no folder {options.videos} yet, all clips are fetched into this folder", file=sys.stderr)


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv, commands={"pack": (PackOptions, PACK_DOC)})
    if isinstance(options, Options):
        check_paths(options)

    from clips import fetch, packs, pairing, sources, workers  # after the options, so that --help answers at once
    from clips.extraction import ExtractionSettings
    from clips.preprocessing import preprocess

    if isinstance(options, PackOptions):
        return packs.pack(options.data, options.readers)
    cookies = options.cookies and fetch.read_cookies(options.cookies)
    fetching = fetch.FetchSettings(options.url_template, options.sleep, options.bytes_per_second(), cookies, options.proxy)
    videos = (options.videos or options.data / "videos").absolute()  # absolute, because the name of a clip may begin with "-"
    settings = ExtractionSettings(videos, options.detector, options.face_model, fetching, options.any_length, options.speaker)
    rest = options.data, settings, options.retry, options.limit, options.shard_numbers()
    if options.csv:
        source = sources.rows_of(options.csv, *rest)
    elif options.folder or options.voices:
        found = (
            pairing.find_videos(options.folder)
            if options.folder
            else pairing.pair(options.voices, options.faces, options.names)
        )
        if options.list:
            for line in pairing.listed(found, options.limit):
                print(line)
            for note in found.notes:
                print(f"preprocess: {note}", file=sys.stderr)
            return 0
        source = sources.recordings_of(found, options.windows, *rest)
    else:
        source = sources.photos_of(options.faces, *rest)
    return preprocess(
        source, options.data, settings, load_networks, options.workers or workers.n_processors(), options.scheduler
    )


if __name__ == "__main__":
    raise SystemExit(main())
