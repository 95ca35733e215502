"""Measure this project, most often against the ways of the slides, in one run on one machine.

    python tests/benchmark.py {preprocess,train,evaluate,decoder} --help

tells of each what it prints.
"""

import argparse

import benchmark_decoder
import benchmark_evaluate
import benchmark_preprocess
import benchmark_train

BENCHMARKS = {
    "preprocess": benchmark_preprocess,
    "train": benchmark_train,
    "evaluate": benchmark_evaluate,
    "decoder": benchmark_decoder,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, benchmark in BENCHMARKS.items():
        about = {"help": benchmark.run.__doc__, "description": benchmark.__doc__}
        command = commands.add_parser(name, **about, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(call=benchmark.run)
        benchmark.add_options(command)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
