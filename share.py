"""Make a trained run small and free of personal data, so that it can be passed on: with its face decoder, in one folder.

Reads the run checkpoints/<run>/ of train.py and the run of a face decoder (python train.py decoder). Writes to the folder --out

    options.json       the options that decide on the network, without paths
    clips.json         hashes of the names of the clips that the run was trained and validated on, so that leaks are still told
    split.csv          the split of a run with --split, its names as hashes
    centre.pkl         the mean face feature
    weights.npz        the best weights, 16 bits a number
    likely.npz         what faces a voice makes likely
    certainty.npz      what tells how sure a prediction is
    measured.json      the figures of evaluate.py, if it was run
    decoder/           the same of the face decoder, whose components of pictures have 8 bits a number

Whoever receives the folder needs nothing else: no data, no packages of the speaker networks, no download.

    python share.py --run base --decoder decoder --out my-weights
    python hear.py me.m4a --run ./my-weights
"""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import utils
from utils import InputError, option

MEASURED = "measured.json"
COPIED = (utils.CENTRE, utils.LIKELY, utils.CERTAINTY, MEASURED)  # files that hold nothing of single people
# Options that are paths, or of one machine.
PERSONAL = ("run", "data", "split", "names", "decoder", "resume", "readers", "save_minutes")


@dataclasses.dataclass(frozen=True)
class Options:
    out: Path = option("folder to write; it must not exist yet", metavar="FOLDER")
    run: str = option("run of train.py: a name, for checkpoints/<name>, or a path", utils.VOICE_RUN, metavar="RUN")
    decoder: str = option("run of train.py decoder, for the same face features", utils.DECODER_RUN, metavar="RUN")


def share(folder: Path, out: Path, model: str) -> None:
    """Write what using a run takes to a new folder.

    Args:
        folder: of the run.
        out: the new folder.
        model: "voice" or "decoder".

    Raises:
        InputError: if the run is missing or broken.
    """
    from clips import splits
    from training import compact, runs

    run = runs.read_run(folder, model)
    network = (runs.load_encoder if model == "voice" else runs.load_decoder)(folder, run)
    options = json.loads((folder / utils.OPTIONS).read_text(encoding="utf-8"))
    utils.write_json(out / utils.OPTIONS, {name: value for name, value in options.items() if name not in PERSONAL})
    clips = json.loads((folder / utils.CLIPS).read_text(encoding="utf-8"))
    hashed = {part: sorted(names if run["hashed"] else map(utils.hashed, names)) for part, names in run["clips"].items()}
    runs.write_clips(out, {**clips, **hashed}, splits.without_names(run["split"]), hashed=True)
    for name in COPIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
    if (folder / utils.METRICS).exists():
        metrics = json.loads((folder / utils.METRICS).read_text(encoding="utf-8"))
        utils.write_json(out / MEASURED, {name: figures for name, figures in metrics.items() if name != "leaks"})
    compact.save(network, out / utils.COMPACT_WEIGHTS)


@utils.reporting_errors
def main(argv=None) -> int:
    options = utils.parse_options(Options, __doc__, argv)
    folders = {model: utils.existing_run(getattr(options, name)) for name, model in (("run", "voice"), ("decoder", "decoder"))}
    if options.out.exists():
        raise InputError(f"{options.out}: expected a new folder, found one that exists; name another --out")
    from training import runs  # after the options, so that --help answers at once

    runs.check_feature_size(
        folders["decoder"], runs.read_run(folders["decoder"], "decoder"), runs.read_run(folders["voice"])["feature_size"]
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=utils.UNFINISHED, dir=options.out.parent) as temporary:
        made = Path(temporary, options.out.name)
        share(folders["voice"], made, "voice")
        share(folders["decoder"], made / utils.DECODER_RUN, "decoder")
        made.rename(options.out)
    for path in sorted(options.out.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
