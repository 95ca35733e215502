import concurrent.futures
import functools
import multiprocessing.connection
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import FOLDERS, ROOT, contents, die_of, statuses, valid_rows, wait_for, write_csv

import utils
from clips import extraction, fetch, workers


def test_workers_never_import_tensorflow(demo_clips):
    fetching = fetch.FetchSettings("{}", 0, None, None, None)
    settings = extraction.ExtractionSettings(demo_clips / "videos", "hog", "dlib", fetching)
    rows, _ = valid_rows(demo_clips / "avspeech_demo.csv", 1)
    with workers.start_pool(1) as pool:
        (extract,), seconds = pool.submit(extraction.extract_clips, rows, settings).result()
        modules = pool.submit(eval, "set(__import__('sys').modules)").result()
    assert extract.line.clip == rows[0].clip and extract.embedding.shape == (128,)
    assert seconds["decode"] > 0 and seconds["detect"] > 0 and seconds["embed"] > 0 and seconds["fetch"] == 0
    assert "face_recognition" in modules and not {"tensorflow", "keras", "tf_keras", "librosa"} & modules


def test_importing_what_workers_need_imports_nothing_slow():
    slow = ("tensorflow", "keras", "librosa", "yt_dlp", "face_recognition", "distributed")
    code = f"import sys; from clips import extraction; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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


def test_only_the_items_that_kill_their_process_are_lost(tmp_path):
    tasks = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)]
    function = functools.partial(die_of, deadly=(7,), folder=tmp_path)
    done = list(workers.in_parallel(functools.partial(workers.start_pool, 2), function, tasks, 3))
    results = {item: result and result[i] for task, result in done for i, item in enumerate(task)}
    assert results == {item: None if item == 7 else 2 * item for item in range(18)}
    assert sum(len(task) for task, _ in done) == 18
    assert (tmp_path / "seen-10").exists()


def send_half_and_die(items, marker):
    """Return 600 kB; the first time, die after a tenth of the result of item 2 has been sent."""
    if items == [2] and not marker.exists():
        marker.touch()

        def send(self, content):
            os.write(self.fileno(), bytes(content[:60_000]))
            os.kill(os.getpid(), signal.SIGKILL)

        multiprocessing.connection.Connection._send = send
    return bytes(600_000)


def test_a_process_that_dies_while_sending_its_result_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "STALL_SECONDS", 1)
    function = functools.partial(send_half_and_die, marker=tmp_path / "died")
    done = list(workers.in_parallel(functools.partial(workers.start_pool, 2), function, ([i] for i in range(8)), 4))
    assert sorted(task for task, _ in done) == [[i] for i in range(8)] and (tmp_path / "died").exists()
    assert all(result == bytes(600_000) for _, result in done)


def quick_then_long(items):
    time.sleep(600 if items[0] else 0)
    return items[0]


def test_processes_end_when_the_caller_stops_early():
    """Without waiting for what they are doing, and without errors in the pool's threads."""
    pools, errors = [], []

    def start():
        pools.append(workers.start_pool(2))
        return pools[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda *error: errors.append(error))
        results = workers.in_parallel(start, quick_then_long, [[0], [1], [2], [3]], 4)
        assert next(results) == ([0], 0)
        processes, manager = list(pools[0]._processes.values()), pools[0]._executor_manager_thread
        results.close()
        for process in processes:
            process.join(10)
        manager.join(10)
        assert not manager.is_alive()
        assert len(processes) == 2 and not any(process.is_alive() for process in processes)
    assert errors == []


def test_our_own_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        list(workers.in_parallel(functools.partial(concurrent.futures.ThreadPoolExecutor, 1), lambda _: 1 // 0, [[1]], 2))


def test_a_killed_worker_loses_nothing(demo_data, demo_clips, tmp_path):
    command = [sys.executable, ROOT / "preprocess.py", "--csv", demo_clips / "avspeech_demo.csv", "--data", tmp_path]
    command += ["--videos", demo_clips / "videos", "--face-model", "dlib"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for(lambda: len(list(tmp_path.glob("spectrograms/*"))) >= 5)
    children = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(children) == 2
    children[0].kill()
    assert process.communicate(timeout=120)[0].startswith("preprocess: 30 rows, 30 clips ready (0 of them before), 0 skipped")
    assert contents(tmp_path) == contents(demo_data)


def group_lives(process_group):
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_killed_at_twenty_random_moments_ends_like_an_undisturbed_one(demo_data, demo_clips, tmp_path):
    rows, aliases = [], {}  # every clip under several names, so that there is enough work
    (tmp_path / "videos").mkdir()
    for row in valid_rows(demo_clips / "avspeech_demo.csv")[0]:
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
        if i % 4 == 3:  # while files are written; the other times, mostly during the start
            wait_for(lambda: len(list(data.glob("*/*"))) > made[-1])
        time.sleep(moments.uniform(0, 1 if i % 4 == 3 else 4))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: not group_lives(process.pid), 10)  # noqa: B023, the workers end with the main process
    assert 0 < made[-1] < 5 * len(rows)  # at work, not done
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900)
    undisturbed = contents(demo_data)
    assert contents(data) == {
        f"{folder}/{clip}.{ending}": undisturbed[f"{folder}/{source}.{ending}"]
        for clip, source in aliases.items()
        for folder, ending in FOLDERS.items()
    }
    assert set(statuses(data).values()) == {"ready"} and len(statuses(data)) == len(rows)
