"""Processes that work in parallel: a pool on this machine, or the workers of a Dask cluster. Lost tasks are repeated.

Never imports TensorFlow, and neither do the processes.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading

import cv2
import joblib
import threadpoolctl

STALL_SECONDS = 5  # without a result, after which a dead process counts as the cause


def n_processors() -> int:
    """Return how many processors this process may use, by its affinity (taskset, Slurm) and the quota of its container."""
    return joblib.cpu_count()


def compute_in_one_thread() -> None:
    """Limit OpenCV and matrix products of this process to one thread: there are as many processes as processors."""
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def start_worker() -> None:
    """Set up a worker process: one thread; Ctrl-C is left to the main process; the worker ends when the main process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    compute_in_one_thread()

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def start_pool(workers: int) -> concurrent.futures.Executor:
    """Start worker processes; they are spawned, because forks would inherit TensorFlow."""
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)


def _has_dead_process(pool) -> bool:
    """Tell whether a process of a pool has died without the pool noticing.

    ProcessPoolExecutor does not notice when a process dies while sending a result: it waits for the rest of that result.
    """
    processes = list((getattr(pool, "_processes", None) or {}).values())
    return not all(process.is_alive() for process in processes)


def _stop(pool) -> None:
    """End the processes of a pool at once; all tasks under way raise BrokenProcessPool."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool._result_queue._writer.close()  # the last end open for writing: whoever waits for the rest of a result stops waiting


def in_parallel(start, function, tasks, window: int):
    """Compute function(task) for each task in the processes of a pool.

    If a process dies, the pool is restarted. The tasks under way are then repeated item by item, one at a time, which
    separates the item that kills processes from the others. If the caller stops early, the processes are ended.

    Args:
        start: function that starts the pool, a concurrent.futures.Executor.
        tasks: lists of items.
        window: the most tasks submitted at a time.

    Yields:
        Each task and its result, in the order of completion. The result is None for a task of one item whose process died
        twice while it ran alone.
    """
    tasks, under_way, pool = iter(tasks), {}, start()
    suspects, n_deaths, broken = collections.deque(), 0, False  # tasks to run alone; how often the first one's process died

    def submit(task):
        try:
            future = pool.submit(function, task)
        except concurrent.futures.BrokenExecutor as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
        under_way[future] = task

    try:
        while True:
            if broken and not under_way:
                pool, broken = start(), False
            if suspects and not under_way:
                submit(suspects[0])
            elif not suspects and not broken:
                for task in itertools.islice(tasks, window - len(under_way)):
                    submit(task)
            if not under_way:
                return
            done, _ = concurrent.futures.wait(under_way, STALL_SECONDS, concurrent.futures.FIRST_COMPLETED)
            if not done and _has_dead_process(pool):
                _stop(pool)
            for future in done:
                task, error = under_way.pop(future), future.exception()
                ran_alone = bool(suspects) and task is suspects[0]
                if error is None:
                    if ran_alone:
                        suspects.popleft()
                        n_deaths = 0
                    yield task, future.result()
                elif isinstance(error, concurrent.futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":  # Dask's
                    broken, n_deaths = True, n_deaths + ran_alone
                    if not ran_alone:
                        suspects.extend([item] for item in task)
                    elif n_deaths == 2:
                        yield suspects.popleft(), None
                        n_deaths = 0
                else:
                    raise error
    finally:
        if under_way and isinstance(pool, concurrent.futures.ProcessPoolExecutor):
            _stop(pool)
        else:
            for future in under_way:
                future.cancel()
        pool.shutdown(wait=False)
