"""Machines as they come: few processors granted, no home, drives without locks, terminals of few letters, full disks."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, lines_of

import utils
from clips import records, workers


def run_python(code, **environment):
    """Run code in a process of its own. Returns stdout and stderr, bytes."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_workers_are_as_many_as_the_processors_granted():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from clips import workers; "
    out, _ = run_python(code + "print(workers.n_processors())")
    assert out == b"1\n"
    assert 1 <= workers.n_processors() <= len(os.sched_getaffinity(0))


def test_the_voice_detector_reports_to_nobody(tmp_path):
    """Some releases of onnxruntime keep what they report in the home folder until it is sent."""
    code = "from clips import speech; print(len(speech.probabilities(speech.np.zeros(5120, 'float32'))))"
    out, _ = run_python(code, HOME=str(tmp_path))
    assert out == b"10\n" and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_the_letters_gets_escapes(encoding):
    code = """
import utils
@utils.reporting_errors
def main(argv=None):
    print("Zoë, मीरा")
    raise utils.InputError("名: expected a name")
assert main() == 1
"""
    out, err = run_python(code, PYTHONIOENCODING=encoding)
    shown = "Zoë" if encoding == "latin-1" else "Zo\\xeb"
    assert out.decode(encoding) == f"{shown}, \\u092e\\u0940\\u0930\\u093e\n"
    assert err.decode(encoding) == "error: \\u540d: expected a name\n"


def test_an_error_is_one_line_whatever_the_name(capsys):
    @utils.reporting_errors
    def main(argv=None):
        raise utils.InputError(f"{os.fsdecode(b'a' + bytes([255]) + b'.wav')}: expected a\nrecording")

    assert main() == 1
    assert capsys.readouterr().err == "error: a\\udcff.wav: expected a\\nrecording\n"


def test_only_the_reader_of_stdout_ends_a_run_without_a_word():
    code = """
import os, utils
@utils.reporting_errors
def main(argv=None):
    read, write = os.pipe()
    os.close(read)
    os.write(write, b"to a process that has died")
print(main())
"""
    assert run_python(code) == (b"1\n", b"error: [Errno 32] Broken pipe\n")


def test_caches_move_where_the_home_cannot_be_written_to(tmp_path):
    (tmp_path / "home").write_text("a file where the home should be")
    code = """
import os, utils
@utils.reporting_errors
def main(argv=None):
    import librosa
    print(os.path.isdir(os.environ["NUMBA_CACHE_DIR"]), os.path.isdir(os.environ["MPLCONFIGDIR"]))
    print(os.environ["XDG_CACHE_HOME"])
    return 0
main()
"""
    clean = {name: "" for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    out, _ = run_python(code, HOME=str(tmp_path / "home" / "none"), **clean)
    made, folder = out.decode().splitlines()
    assert made == "True True" and not os.path.exists(folder)  # deleted at the end
    out, _ = run_python("import utils, os; utils.reporting_errors(lambda argv: 0)(); print('NUMBA_CACHE_DIR' in os.environ)")
    assert out == b"False\n"


def test_a_manifest_on_a_drive_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    lines = [records.Line(f"a_{number}", "no-face", "x" * 200) for number in range(200)]
    threads = [threading.Thread(target=records.append_lines, args=(tmp_path, [line])) for line in lines]
    records.append_lines(tmp_path, [records.Line("first_1", "no-face")])
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines_of(tmp_path)) == 201
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        records.append_lines(tmp_path, lines)


def test_two_processes_may_write_the_same_file(tmp_path):
    """Each writes under a name of its own."""
    path = tmp_path / "a.txt"
    with utils.replacing(path) as one:
        one.write_text("one")
        with utils.replacing(path) as two:
            assert one != two
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a.txt"]


def test_unfinished_files_of_killed_processes_are_deleted_after_a_day(tmp_path):
    for name, age in ((".part-1-a", 2), (".part-2-b", 0), ("c", 2)):
        (tmp_path / name).write_text("x")
        at = time.time() - age * 86_400
        os.utime(tmp_path / name, (at, at))
    utils.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".part-2-b", "c"]
    utils.remove_leftovers(tmp_path / "none")


def test_a_full_disk_is_reported_with_the_file(tmp_path, capsys):
    @utils.reporting_errors
    def main(argv=None):
        with utils.replacing(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert main() == 1
    assert f"{tmp_path / 'a.txt'}" in capsys.readouterr().err
