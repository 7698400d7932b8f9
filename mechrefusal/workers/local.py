"""Workers in processes of this machine, which share its threads, its memory and its GPUs.

On a CPU the operations of a small model are too short for two threads to share well: two processes of one thread each
end sooner than one process of two threads does one thing after the other.

They are forked from a process that has imported everything, which takes 0.1 s. submitit's local executor starts an
interpreter for each worker, which imports for 6 s of a core, and its jobs share no threads that fall free and no lock
for loading. So jobs in queues are submitit's, and these processes are started here.
"""

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from multiprocessing import connection as connections
from pathlib import Path
from typing import Any

from mechrefusal import devices, progress
from mechrefusal.leases import Owner
from mechrefusal.memory import free_memory, given_back
from mechrefusal.workers.board import Board
from mechrefusal.workers.executors import Executor
from mechrefusal.workers.work import LOADING
from mechrefusal.workers.worker import take_all

IMPORTED = ("mechrefusal.study.pipeline",)
"""What workers find imported already, where they are forked from a process that has."""
FORKED = sys.platform.startswith("linux")
"""Whether they are; elsewhere each imports everything itself."""
BESIDE = 1 << 30
"""Bytes that a process takes besides: libraries, activations."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def prepare() -> None:
    """Begin, in the background, what workers need: the imports, once for all of them."""
    import torch

    if FORKED and (torch.get_num_threads() > 1 or devices.has_gpu()):
        from multiprocessing import forkserver

        _context()  # which says what to import
        forkserver.ensure_running()


def _context() -> Any:
    context = multiprocessing.get_context("forkserver" if FORKED else "spawn")
    if FORKED:
        context.set_forkserver_preload(list(IMPORTED))
    return context


def how_many(n_units: int, *, bytes_each: int) -> int:
    """Workers that are likely to be faster than fewer, for units that each take `bytes_each` of memory.

    One a GPU, where there are some; else one a thread, as many as fit into half of the memory that is free now.
    """
    import torch

    if devices.has_gpu():
        return max(1, min(n_units, len(devices.gpus())))
    fitting = int(free_memory() / 2 / (bytes_each + BESIDE))
    return max(1, min(n_units, torch.get_num_threads(), fitting))


class Local(Executor):
    """`n` processes. They end with this one, however it does."""

    def __init__(self, board: Board, n: int) -> None:
        import torch

        self.board, self.n, self._n_threads = board, n, torch.get_num_threads()
        self._context = _context()
        self._share = self._context.Value("i", max(1, self._n_threads // n))
        # A lock of the file system: it ends with the process that holds it.
        handle, self._loading = tempfile.mkstemp(prefix="mechrefusal-", suffix=".lock")
        os.close(handle)
        self._devices = _dealt(n)
        devices.give_back()  # this process may have trained
        self._running: dict[int, Any] = {}
        self._ended: dict[int, str] = {}

    def start(self, n: int) -> None:
        """Start processes, each in a place of its own, which has GPUs of its own where there are some."""
        for place in [each for each in range(self.n) if each not in self._running][:n]:
            to_do = self.board.work, self.board.retries, self.board.before
            arguments = (*to_do, self._share, self._loading, self._devices[place])
            process = self._context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self._running[place] = process

    def alive(self) -> int:
        """Processes that run. Threads are shared evenly: what runs alone at the end has all of them."""
        for place, process in list(self._running.items()):
            if not process.is_alive():
                process.join()
                self._ended[process.pid] = _ending(process.exitcode)
                del self._running[place]
        self._share.value = max(1, self._n_threads // max(1, len(self._running)))
        return len(self._running)

    def owns(self, owner: Owner) -> bool:
        """Whether it is one of the processes."""
        return owner.machine == Owner.me().machine and owner.process in {p.pid for p in self._running.values()}

    def ended(self, owner: Owner) -> str:
        """How the process has ended."""
        self.alive()
        return self._ended.get(owner.process, "") if owner.machine == Owner.me().machine else ""

    def last_words(self) -> str:
        """How the last process ended."""
        return next(reversed(self._ended.values()), "")

    def wait(self) -> None:
        """Until a process has ended, but not for long."""
        connections.wait([process.sentinel for process in self._running.values()], timeout=0.5)

    def stop(self) -> None:
        """End the processes."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.join()
        Path(self._loading).unlink(missing_ok=True)


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "it was killed, perhaps for want of memory: give fewer --workers"
    return (
        f"it ended with status {status}; a script that measures with several workers guards its start "
        '(if __name__ == "__main__"), and one worker needs none'
    )


def _dealt(n: int) -> list[str | None]:
    """The GPUs that each of `n` workers sees, all of them dealt evenly; None where there is none to deal."""
    if not devices.has_gpu():
        return [None] * n
    stated = os.environ.get(VISIBLE)
    there = stated.split(",") if stated else [str(number) for number in range(len(devices.gpus()))]
    if len(there) < n:
        return [there[place % len(there)] for place in range(n)]
    ends = [place * len(there) // n for place in range(n + 1)]
    return [",".join(there[first:last]) for first, last in pairwise(ends)]


def _work(work, retries: int, before: dict[str, int], share: Any, loading: str, visible: str | None) -> None:
    """In the process of a worker."""
    if visible is not None:
        os.environ[VISIBLE] = visible  # CUDA looks at it when it is first used
    import torch
    from filelock import FileLock

    gc.freeze()  # what is imported stays: collections after each stage need not look through it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    progress.be_silent()

    @contextmanager
    def around(stage: str) -> Iterator[None]:
        torch.set_num_threads(share.value)
        with FileLock(loading) if stage == LOADING else nullcontext():
            yield
        given_back()

    take_all(Board(work, retries=retries, before=before), around)


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        connections.wait([first.sentinel])
        os._exit(1)
