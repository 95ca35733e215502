"""The list of bugs that mutants.py plants fits the project as it is now."""

import re

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


def test_a_bug_that_no_test_notices_survives(tmp_path, monkeypatch, capsys):
    """Of three bugs in a project of one file, one is noticed, and one cannot be run."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        "import sys\nsys.path.insert(0, '.')\nimport sums\n\n\n"
        "def test_two():\n    assert sums.add(2, 2) == 4\n\n\ndef test_none():\n    assert sums.add(0, 0) == 0\n"
    )
    with (tmp_path / "tests" / "mutants.toml").open("w") as file:
        for name, new, test in (("minus", "a - b", "test_two"), ("times", "a * b", "test_none"), ("typo", "a +", "test_two")):
            file.write(f"[[mutant]]\nname = '{name}'\nfile = 'sums.py'\nold = 'a + b'\nnew = '{new}'\n")
            file.write(f"tests = ['tests/test_sums.py::{test}']\n")
    mutants.subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    command = [mutants.sys.executable, tmp_path / "tests" / "mutants.py"]
    mutants.shutil.copy(mutants.ROOT / "tests" / "mutants.py", tmp_path / "tests")
    done = mutants.subprocess.run([*map(str, command), "--jobs", "1"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 tests without a bug: pass") and lines[-3].startswith("1 of 3 caught in ")
    assert lines[-2:] == ["survivors: times", "mistakes in the list: typo"]
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return b + a\n")
    done = mutants.subprocess.run([*map(str, command), "minus"], capture_output=True, text=True)
    assert done.returncode == 1 and "minus: expected the text once in sums.py, found it 0 times: 'a + b'" in done.stderr
