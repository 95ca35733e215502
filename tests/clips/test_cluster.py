import json
import subprocess
import sys
import zipfile

import psutil
import pytest
from conftest import ROOT, contents, run_preprocess, wait_for, write_csv

from clips import cluster


def test_the_zip_holds_all_that_workers_import(tmp_path):
    """The modules are imported from the zip, in a folder that holds nothing else."""
    path = cluster.pack(tmp_path)
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    assert names[0] == "utils.py" and {"clips/__init__.py", "clips/extraction.py", "clips/fetch.py"} < set(names)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from clips import extraction; print(extraction.__file__)"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(path))


@pytest.fixture
def dask_cluster(tmp_path):
    """A real scheduler on this machine and two worker processes, in a folder of their own: the address, and the processes."""
    logs = open(tmp_path / "dask.log", "wb")  # noqa: SIM115
    port_file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "--scheduler-file", port_file], stdout=logs, stderr=logs, cwd=tmp_path)
    wait_for(port_file.exists)
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", port_file, "--nthreads", "1"]
    worker += ["--no-dashboard", "--no-nanny", "--local-directory", tmp_path]
    processes = [subprocess.Popen(worker, stdout=logs, stderr=logs, cwd=tmp_path) for _ in range(2)]
    yield json.loads(port_file.read_text())["address"], processes, scheduler
    for process in (*processes, scheduler):
        process.kill()
        process.wait()
    logs.close()


def test_a_dask_cluster_gives_the_same_and_survives_the_loss_of_a_worker(dask_cluster, demo_data, demo_clips, tmp_path):
    address, processes, _ = dask_cluster
    data = tmp_path / "data"
    command = [sys.executable, ROOT / "preprocess.py", "--folder", demo_clips / "videos", "--data", data]
    command += ["--face-model", "dlib", "--scheduler", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(data.glob("spectrograms/*"))) >= 3, seconds=180)
    assert not [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    processes[0].kill()
    out, err = process.communicate(timeout=300)
    assert out.startswith("preprocess: 30 recordings, 30 clips ready (0 of them before), 0 skipped"), err
    assert contents(data) == contents(demo_data)
    assert "Traceback" not in err and f" of the workers at {address}\n" in err


def test_the_loss_of_the_scheduler_is_reported_in_one_line(dask_cluster, tmp_path):
    address, _, scheduler = dask_cluster
    path = write_csv(tmp_path / "a.csv", *((f"v{i}", 1, 4, 0.5, 0.5) for i in range(5)))
    command = [sys.executable, ROOT / "preprocess.py", "--csv", path, "--data", tmp_path / "data", "--scheduler", address]
    command += ["--face-model", "dlib", "--url-template", "http://127.0.0.1:11/{}.mp4", "--sleep", "20"]  # no server there
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(
        (tmp_path / "data" / "manifest.csv").exists, seconds=180
    )  # the first clip has failed, the others wait for their turn
    scheduler.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: --scheduler: expected the Dask scheduler at {address}")


def test_a_missing_scheduler_is_reported_in_one_line(demo_clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "SCHEDULER_SECONDS", 1)
    assert run_preprocess(demo_clips, tmp_path / "data", "--face-model", "dlib", "--scheduler", "tcp://127.0.0.1:9") == 1
    assert (
        "error: --scheduler: expected a Dask scheduler with workers at tcp://127.0.0.1:9"
        in capsys.readouterr().err.splitlines()[-1]
    )
