"""Plant bugs, one at a time, each in a copy of the project, and name those that no test notices.

mutants.toml lists the bugs. Each has a name, a file, the text `old` in that file, which must occur there exactly once, the text
`new` in its place, and the tests that must fail then.

    python tests/mutants.py                                 all of them, 10 to 25 minutes on 2 cores
    python tests/mutants.py --list
    python tests/mutants.py 3 12-20 "fc1 without ReLU"      some, by number or name

First the tests are run without a bug: a test that always fails would notice everything. Ends with code 1 if a bug survives.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".toml")
MOST_SECONDS = 900  # s that a run of tests may take; tests that hang have noticed the bug
# Most tests need these packages, which take seconds to import: tests run in forks of a process that has imported them.
SLOW_PACKAGES = ("tensorflow", "keras", "pytest", "hypothesis", "cv2", "scipy.stats", "matplotlib.figure", "h5py", "pandas")
PASSED, FAILED = 0, 1  # exit codes of pytest; by all others it tells a mistake in the list


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug, as mutants.toml has it."""

    name: str
    file: str  # path below the project's folder
    old: str
    new: str
    tests: list[str]  # arguments of pytest, such as tests/test_model.py::test_width_scales_the_channels

    def problem(self) -> str:
        """Return why the bug cannot be planted in the project as it is now; "" if it can."""
        path = ROOT / self.file
        n = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        return "" if n == 1 else f"{self.name}: expected the text once in {self.file}, found it {n} times: {self.old!r}"

    def plant(self, tree: Path) -> None:
        """Plant the bug in a copy of the project."""
        text = (tree / self.file).read_text(encoding="utf-8")
        (tree / self.file).write_text(text.replace(self.old, self.new), encoding="utf-8")


def read_mutants() -> list[Mutant]:
    """Read the list of bugs."""
    return [Mutant(**values) for values in tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]]


def numbers_of(mutants: list[Mutant], wanted: list[str]) -> list[int]:
    """Return the numbers, from 1, of the mutants that are wanted by number, range or name; all if none is wanted.

    Raises:
        ValueError: if there is no such mutant.
    """
    known = {str(number): number for number in range(1, len(mutants) + 1)}
    known |= {mutant.name: number for number, mutant in enumerate(mutants, 1)}
    found = set() if wanted else {*known.values()}
    for word in wanted:
        first, _, last = (word, "", word) if word in known else word.partition("-")
        if first not in known or last not in known:
            raise ValueError(f"expected a number from 1 to {len(mutants)}, a range, or a name of --list, found {word!r}")
        found |= {*range(known[first], known[last] + 1)}
    return sorted(found)


def copy_project(tree: Path) -> None:
    """Copy the project as it is now, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def import_slow_packages() -> None:
    """Import SLOW_PACKAGES, without TensorFlow's lines on stderr."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        for package in SLOW_PACKAGES:
            importlib.import_module(package)
    finally:
        os.dup2(stderr, 2)


def start_tests(tree: Path, tests: list[str]) -> int:
    """Start tests in a copy of the project, which they print to `<tree>.log`. Returns the process, a fork of this one."""
    if process := os.fork():
        return process
    code = -1
    try:
        os.setsid()
        os.chdir(tree)
        log = os.open(f"{tree}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.modules["__main__"] = types.ModuleType("__main__")  # otherwise worker processes of the tests import this script
        sys.path.remove(str(ROOT / "tests"))
        code = int(sys.modules["pytest"].main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_tests(tasks, n_jobs: int):
    """Run tests in copies of the project, several at a time.

    Args:
        tasks: pairs of a mutant, or None for no bug, and its tests.
        n_jobs: runs at a time.

    Yields:
        The mutant, the exit code of pytest, None for tests that hung, the duration, s, and what was printed.
    """
    tasks, running = iter(tasks), {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(lambda: [kill(process) for process in running])
        while True:
            while len(running) < n_jobs and (task := next(tasks, None)):
                mutant, tests = task
                tree = Path(tempfile.mkdtemp(dir=folder))
                copy_project(tree)
                if mutant:
                    mutant.plant(tree)
                running[start_tests(tree, tests)] = mutant, tree, time.monotonic()
            if not running:
                return
            time.sleep(0.1)
            for process, (mutant, tree, started) in list(running.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                seconds = time.monotonic() - started
                if ended or seconds > MOST_SECONDS:
                    del running[process]
                    kill(process)
                    shutil.rmtree(tree)
                    log = Path(f"{tree}.log").read_text(encoding="utf-8", errors="replace")
                    yield mutant, os.waitstatus_to_exitcode(status) if ended else None, seconds, log


def kill(process: int) -> None:
    """End a run of tests and the processes that it has left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mutants", nargs="*", metavar="NUMBER|NAME", help="mutants to plant (default: all)")
    parser.add_argument("--list", action="store_true", help="print the list and exit")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at a time (default: 2)")
    options = parser.parse_args(argv)
    mutants = read_mutants()
    try:
        numbers = numbers_of(mutants, options.mutants)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print(*(f"{number:3} {mutants[number - 1].name} ({mutants[number - 1].file})" for number in numbers), sep="\n")
        return 0
    planted = [mutants[number - 1] for number in numbers]
    if problems := [problem for mutant in planted if (problem := mutant.problem())]:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    import_slow_packages()
    started, survivors, mistakes = time.monotonic(), [], []
    all_tests = list(dict.fromkeys(test for mutant in planted for test in mutant.tests))
    for _, code, seconds, log in run_tests([(None, all_tests)], 1):
        print(f"{len(all_tests)} tests without a bug: {'pass' if code == PASSED else 'FAIL'}, {seconds:.0f} s", flush=True)
        if code != PASSED:
            print(log, file=sys.stderr)
            return 1
    for mutant, code, seconds, log in run_tests([(mutant, mutant.tests) for mutant in planted], options.jobs):
        outcome = {PASSED: "SURVIVED", FAILED: "caught", None: "caught, the tests hang"}.get(code, f"MISTAKE, exit code {code}")
        print(f"{mutants.index(mutant) + 1:3} {outcome:8} {seconds:4.0f} s  {mutant.name}", flush=True)
        if code == PASSED:
            survivors.append(mutant.name)
        elif outcome.startswith("MISTAKE"):
            mistakes.append(mutant.name)
            print(log[-2000:], file=sys.stderr)
    n_caught, minutes = len(planted) - len(survivors) - len(mistakes), (time.monotonic() - started) / 60
    print(f"{n_caught} of {len(planted)} caught in {minutes:.0f} min")
    for what, names in (("survivors", survivors), ("mistakes in the list", mistakes)):
        if names:
            print(f"{what}: {'; '.join(names)}")
    return int(n_caught < len(planted))


if __name__ == "__main__":
    raise SystemExit(main())
