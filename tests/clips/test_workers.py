import concurrent.futures
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import FOLDERS, ROOT, contents, die_of, run_preprocess, sound_rows, statuses, write_csv

import utils
from clips import extraction, fetch, workers


def test_workers_never_import_tensorflow(demo_clips):
    manner = fetch.Manner("{}", 0, None, None, None)
    work = extraction.Work(demo_clips / "videos", "hog", "dlib", manner)
    rows, _ = sound_rows(demo_clips / "avspeech_demo.csv", 1)
    with workers.start_pool(1) as pool:
        (extract,), busy = pool.submit(extraction.extract, rows, work).result()
        modules = pool.submit(eval, "set(__import__('sys').modules)").result()
    assert extract.line.clip == rows[0].clip and extract.embedding.shape == (128,)
    assert busy["decode"] > 0 and busy["detect"] > 0 and busy["embed"] > 0 and busy["fetch"] == 0
    assert "face_recognition" in modules and not {"tensorflow", "keras", "tf_keras", "librosa"} & modules


def test_no_more_than_the_window_is_under_way():
    taken = []

    class Pool:
        def submit(self, function, item):
            future = concurrent.futures.Future()
            future.set_result(function(item))
            return future

        def shutdown(self, wait):
            assert not wait

    def items():
        for i in range(20):
            taken.append(i)
            yield [i]

    results = workers.in_parallel(Pool, lambda items: items[0] ** 2, items(), window=3)
    first = next(results)
    assert len(taken) == 3
    assert sorted([first, *results]) == [([i], i * i) for i in range(20)]


def test_dead_processes_lose_nothing_but_what_kills_them(tmp_path):
    tasks = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)]
    function = functools.partial(die_of, deadly=(7,), folder=tmp_path)
    done = list(workers.in_parallel(functools.partial(workers.start_pool, 2), function, tasks, 3))
    results = {item: result and result[i] for task, result in done for i, item in enumerate(task)}
    assert results == {item: None if item == 7 else 2 * item for item in range(18)}
    assert sum(len(task) for task, _ in done) == 18
    assert (tmp_path / "seen-10").exists()


def test_errors_of_our_own_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(workers.in_parallel(functools.partial(concurrent.futures.ThreadPoolExecutor, 1), lambda _: 1 // 0, [[1]], 2))


def test_a_worker_killed_half_way_loses_nothing(demo_data, demo_clips, tmp_path):
    command = [sys.executable, ROOT / "preprocess.py", "--csv", demo_clips / "avspeech_demo.csv", "--data", tmp_path]
    command += ["--videos", demo_clips / "videos", "--face-model", "dlib"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for(lambda: len(list(tmp_path.glob("spectrograms/*"))) >= 5)
    children = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(children) == 2
    children[0].kill()
    assert process.communicate(timeout=120)[0].startswith("preprocess: 30 rows, 30 clips ready (0 of them before), 0 skipped")
    assert contents(tmp_path) == contents(demo_data)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def dask_cluster(tmp_path):
    """A real scheduler on loopback and two worker processes: its address, and the processes."""
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


def test_a_dask_cluster_does_the_same_and_survives_the_loss_of_a_worker(dask_cluster, demo_data, demo_clips, tmp_path):
    address, processes, _ = dask_cluster
    data = tmp_path / "data"
    command = [sys.executable, ROOT / "preprocess.py", "--csv", demo_clips / "avspeech_demo.csv", "--data", data]
    command += ["--videos", demo_clips / "videos", "--face-model", "dlib", "--scheduler", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(data.glob("spectrograms/*"))) >= 3)
    assert not [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    processes[0].kill()
    out, err = process.communicate(timeout=120)
    assert out.startswith("preprocess: 30 rows, 30 clips ready (0 of them before), 0 skipped"), err
    assert contents(data) == contents(demo_data)
    assert "Traceback" not in err


def test_the_loss_of_the_scheduler_is_told_in_a_line(dask_cluster, tmp_path):
    address, _, scheduler = dask_cluster
    path = write_csv(tmp_path / "a.csv", *((f"v{i}", 1, 4, 0.5, 0.5) for i in range(5)))
    command = [sys.executable, ROOT / "preprocess.py", "--csv", path, "--data", tmp_path / "data", "--scheduler", address]
    command += ["--face-model", "dlib", "--url-template", "http://127.0.0.1:11/{}.mp4", "--sleep", "20"]  # nobody there
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "data" / "manifest.csv").exists)  # the first one has failed, the others wait for their turn
    scheduler.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: --scheduler: expected the Dask scheduler at {address}")


def test_no_scheduler_is_told_in_a_line(demo_clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "SCHEDULER_SECONDS", 1)
    assert run_preprocess(demo_clips, tmp_path / "data", "--face-model", "dlib", "--scheduler", "tcp://127.0.0.1:9") == 1
    assert (
        "error: --scheduler: expected a Dask scheduler with workers at tcp://127.0.0.1:9"
        in capsys.readouterr().err.splitlines()[-1]
    )


def group_lives(process_group):
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_killed_at_twenty_random_moments_ends_as_an_undisturbed_one(demo_data, demo_clips, tmp_path):
    rows, aliases = [], {}  # every clip under several names, so that there is work for all the time
    (tmp_path / "videos").mkdir()
    for row in sound_rows(demo_clips / "avspeech_demo.csv")[0]:
        for i in range(5):
            clip = utils.clip_name(f"{row.video_id}-{i}", row.start, row.end)
            (tmp_path / "videos" / f"{clip}.mp4").symlink_to(demo_clips / "videos" / f"{row.clip}.mp4")
            rows.append((f"{row.video_id}-{i}", row.start, row.end, row.x, row.y))
            aliases[clip] = row.clip
    data = tmp_path / "data"
    command = [sys.executable, ROOT / "preprocess.py", "--csv", write_csv(tmp_path / "a.csv", *rows), "--data", data]
    command += ["--videos", tmp_path / "videos", "--face-model", "dlib"]
    moments, made = random.Random(0), []
    for i in range(20):
        made.append(len(list(data.glob("*/*"))))
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if i % 4 == 3:  # while it writes files, which begins after some seconds; the others mostly while it starts
            wait_for(lambda: len(list(data.glob("*/*"))) > made[-1])
        time.sleep(moments.uniform(0, 1 if i % 4 == 3 else 5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: not group_lives(process.pid), 10)  # noqa: B023, the workers end with their parent
    assert 0 < made[-1] < 3 * len(rows)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    undisturbed = contents(demo_data)
    assert contents(data) == {
        f"{folder}/{clip}.{ending}": undisturbed[f"{folder}/{source}.{ending}"]
        for clip, source in aliases.items()
        for folder, ending in FOLDERS.items()
    }
    assert set(statuses(data).values()) == {"ready"} and len(statuses(data)) == len(rows)
