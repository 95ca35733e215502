"""The list of bugs that mutants.py plants fits the project as it is now."""

import re
import subprocess
import sys

import mutants
import pytest

ALL = mutants.read_mutants()


def test_every_bug_can_still_be_planted():
    assert [problem for mutant in ALL if (problem := mutant.problem())] == []
    assert [mutant.name for mutant in ALL if mutant.old == mutant.new] == []
    assert len(ALL) >= 45 and len({mutant.name for mutant in ALL}) == len(ALL)


@pytest.mark.parametrize("test", sorted({test for mutant in ALL for test in mutant.tests}))
def test_every_test_that_should_notice_a_bug_exists(test):
    file, _, name = test.partition("::")
    text = (mutants.ROOT / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"^def {name.partition('[')[0]}\(", text, re.M)


def test_mutants_are_chosen_by_number_range_and_name():
    names = [mutant.name for mutant in ALL]
    assert mutants.numbers_of(ALL, []) == [*range(1, len(ALL) + 1)]
    assert mutants.numbers_of(ALL, ["7", "2-4", names[10], "3"]) == [2, 3, 4, 7, 11]
    with pytest.raises(ValueError, match=rf"expected a number from 1 to {len(ALL)}, a range, or a name of --list, found '0'"):
        mutants.numbers_of(ALL, ["0"])


SUMS = "def add(a, b):\n    return a + b\n"
TESTS = """
import sys
sys.path.insert(0, ".")
import sums

def test_two():
    assert sums.add(2, 2) == 4

def test_three():
    assert sums.add(1, 2) == 3
"""


def run_mutants(project, *arguments):
    command = [sys.executable, project / "tests" / "mutants.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def test_survivors_and_mistakes_are_named(tmp_path):
    """In a project of one file: a bug that is noticed, one that is not, one that keeps the tests from running."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "tests" / "test_sums.py").write_text(TESTS)
    script = (mutants.ROOT / "tests" / "mutants.py").read_text()
    script = re.sub("^SLOW_PACKAGES = .*", 'SLOW_PACKAGES = ("pytest",)', script, flags=re.MULTILINE)
    (tmp_path / "tests" / "mutants.py").write_text(script)
    bugs = (("product", "a * b", "test_three"), ("square", "a * b", "test_two"), ("typo", "a +", "test_two"))
    with (tmp_path / "tests" / "mutants.toml").open("w") as file:
        for name, new, test in bugs:
            print("[[mutant]]", f"name = '{name}'", "file = 'sums.py'", "old = 'a + b'", f"new = '{new}'", sep="\n", file=file)
            print(f"tests = ['tests/test_sums.py::{test}']", file=file)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = run_mutants(tmp_path, "--jobs", 1)
    assert done.returncode == 1, done.stderr
    lines = [re.sub(r" +[\d.]+ (s|min)\b", "", line) for line in done.stdout.splitlines()]
    assert lines == [
        "2 tests without a bug: pass,",
        "  1 caught  product",
        "  2 SURVIVED  square",
        "  3 MISTAKE, exit code 4  typo",
        "1 of 3 caught in",
        "survivors: square",
        "mistakes in the list: typo",
    ]
    (tmp_path / "sums.py").write_text(SUMS.replace("a + b", "b + a"))
    done = run_mutants(tmp_path, "product")
    assert done.returncode == 1 and done.stderr == "product: expected the text once in sums.py, found it 0 times: 'a + b'\n"
