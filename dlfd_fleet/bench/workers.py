"""Worker processes of a bench: none outlives the process that started it, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.progress import Advance


@contextmanager
def worker_processes(count: int, threads: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Run fresh Python processes in this block; what is left to do when an error or a signal ends it is dropped.

    Parameters
    ----------
    threads
        Torch's, of each process; torch's own choice when omitted.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (threads,))
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def gather(
    pool: ProcessPoolExecutor, seed: int, tasks: Mapping[str, tuple[Any, ...]], advance: Advance
) -> Iterator[str]:
    """Do tasks, each a function and its arguments, and yield what failed of a seed and why."""
    futures = {pool.submit(*task): name for name, task in tasks.items()}
    for future in as_completed(futures):
        error = future.exception()
        advance()
        if error is not None:
            said = str(error) if isinstance(error, FleetError) else f"{type(error).__name__}: {error}"
            yield f"{futures[future]}, seed {seed}: {said}"


def _begin(threads: int | None) -> None:
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
