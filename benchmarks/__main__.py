"""Measure this project on this machine, most often beside the slides' way, or repeat an experiment of docs/results.md.

Commands, from the repository's root:

    preprocess    preprocess.py beside the slides' way
    pairing       the pairing of voices and faces in folders of a million files
    faces         how far apart the face features of one person and of several are
    speech        the voice detector on clips, and on sounds without a voice
    train         train.py beside the slides' way and the machine's limit
    devices       batch norm over two devices beside Keras's
    reading       the clips a second that reach the training step, from pickles and from a pack, near and far
    evaluate      evaluate.py beside the slides' way, and the search of a million faces beside bare matrix products
    decoder       the face decoder on unseen people, beside a plain linear decoder and the paper's pictures
    encoders      the paper's encoder from scratch and the pretrained one, on unseen speakers
    shared        what a shared run gives away, and whether its certainty is right
    split         one encoder on unseen speakers and on the slides' accidental split

    python -m benchmarks decoder --help
"""

import importlib
import sys

import utils

MODULES = {
    "preprocess": "preprocessing",
    "pairing": "pairing",
    "faces": "same_person",
    "speech": "speech",
    "train": "training",
    "devices": "devices",
    "reading": "reading",
    "evaluate": "evaluation",
    "decoder": "decoder",
    "encoders": "encoders",
    "shared": "shared_run",
    "split": "split",
}


@utils.reporting_errors
def main(argv=None) -> int:
    command, *arguments = argv or sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__.rstrip())
        return 0
    if command not in MODULES:
        raise utils.InputError(f"{command}: expected one of {', '.join(MODULES)}; python -m benchmarks --help explains them")
    module = importlib.import_module(f"benchmarks.{MODULES[command]}")  # after the command: TensorFlow takes seconds
    sys.argv[0] = f"python -m benchmarks {command}"  # for --help
    module.run(utils.parse_options(module.Options, module.__doc__, arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
