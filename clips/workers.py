"""Processes that work in parallel: a pool on this machine, or the workers of a Dask cluster. What dies is done again.

Never imports TensorFlow, and nor do the processes.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading

import cv2
import threadpoolctl


def compute_in_one_thread() -> None:
    """Let OpenCV and the matrix products of this process take one thread: there are as many processes as processors."""
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def start_worker() -> None:
    """Set up a worker process: it computes in one thread, Ctrl-C is the main process's affair, and it never outlives that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    compute_in_one_thread()

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def start_pool(workers: int) -> concurrent.futures.Executor:
    """Start worker processes, new ones rather than forks, which would carry TensorFlow along."""
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)


def in_parallel(start, function, tasks, window: int):
    """Compute function(task) of each task in a pool's processes, at most `window` of them under way.

    Where processes die the pool is started anew, and what was under way is done again, bit by bit.

    Args:
        start: function that starts the pool, a concurrent.futures.Executor.
        tasks: lists.

    Yields:
        Each task and its result, as they end; None for a task, of one item, whose process died twice when it was alone.
    """
    tasks, under_way, pool = iter(tasks), {}, start()
    alone, died, broken = collections.deque(), 0, False  # tasks that killed a process, perhaps; how often the first of them

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
            if alone and not under_way:
                submit(alone[0])
            elif not alone and not broken:
                for task in itertools.islice(tasks, window - len(under_way)):
                    submit(task)
            if not under_way:
                return
            done, _ = concurrent.futures.wait(under_way, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                task, error = under_way.pop(future), future.exception()
                suspected = bool(alone) and task is alone[0]
                if error is None:
                    if suspected:
                        alone.popleft()
                        died = 0
                    yield task, future.result()
                elif isinstance(error, concurrent.futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":  # Dask's
                    broken, died = True, died + suspected
                    if not suspected:
                        alone.extend([item] for item in task)
                    elif died == 2:
                        yield alone.popleft(), None
                        died = 0
                else:
                    raise error
    finally:
        for future in under_way:
            future.cancel()
        pool.shutdown(wait=False)
