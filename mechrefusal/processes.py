"""Jobs in processes of their own, several at once, each with its share of this process's threads.

On a CPU the operations of a small model are too short for two threads to share well: two processes of one thread each
end sooner than one process of two threads does one thing after the other.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import connection as connections
from typing import Any

from mechrefusal import progress
from mechrefusal.errors import MechrefusalError

IMPORTED = ("mechrefusal.study.pipeline",)
"""What the processes of jobs find imported already, where they can be forked from one that has."""
LOADING = "load"
"""Stage of which there is one at a time: while a model is loaded it is there several times over."""
WHILE_LOADING = 4.0
"""Bytes in memory at most while a hooked transformer is loaded, for each byte of its weights."""
BESIDE = 1 << 30
"""Bytes that a process takes besides: libraries, activations."""

Around = Callable[[str], AbstractContextManager[None]]
"""What a job enters around each of its stages, by the stage's name."""


@dataclass(frozen=True)
class Job:
    """A call of `work(*given, around)` in a process of its own; `around` is to be entered around each stage.

    `work` is a function of a module, and `given` and what it returns can be pickled. It takes `n_stages` stages.
    """

    name: str
    work: Callable[..., Any]
    given: tuple
    n_stages: int = 1


def prepare() -> None:
    """Begin, in the background, what jobs' processes need: the imports, once for all of them. Elsewhere than on Linux
    and macOS, where a process imports everything itself, nothing."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
        forkserver.ensure_running()


def n_threads() -> int:
    """Threads that torch will have, without importing it."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdigit() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def how_many(n_jobs: int, *, weights: int) -> int:
    """Processes to run jobs in that each load a model of `weights` bytes: one a thread, as many as jobs, and as many
    as fit into half of the memory that is free now. One where there is an accelerator, which they would share."""
    import psutil
    import torch

    if torch.accelerator.is_available():
        return 1
    fitting = int(psutil.virtual_memory().available / 2 / (WHILE_LOADING * weights + BESIDE))
    return max(1, min(n_jobs, torch.get_num_threads(), fitting))


def run(jobs: Sequence[Job], *, at_once: int, description: str) -> Iterator[tuple[str, Any]]:
    """Run jobs, `at_once` of them at a time; (name, what it returned) of each as it ends.

    Threads are shared evenly, from each stage on anew: what runs alone at the end has all of them. When a job fails, no
    other is begun, those that run are waited for, and its error is raised. When the iteration is broken off, or this
    process dies, theirs end.

    Raises:
        MechrefusalError: what a job raised, or its process was killed.
        RuntimeError: a job failed otherwise; with its traceback.
    """
    import torch

    prepare()
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    n_threads = torch.get_num_threads()
    share, loading = context.Value("i", max(1, n_threads // at_once)), context.Lock()
    waiting = deque(jobs)
    running: dict[Any, tuple[Job, Any]] = {}
    failed: Exception | None = None
    with progress.bar(description, total=sum(job.n_stages for job in jobs)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.popleft()
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(job, theirs, share, loading), name=job.name)
                    process.start()
                    theirs.close()  # so that its end is noticed
                    running[ours] = job, process
                share.value = max(1, n_threads // len(running))
                for ready in connections.wait(list(running)):
                    job, process = running[ready]
                    kind, what = _received(ready, job, process)
                    if kind == "stage":
                        bar.advance(description=f"{job.name}: {what}")
                        continue
                    del running[ready]
                    process.join()
                    if kind == "done":
                        yield job.name, what
                    else:
                        failed = failed or what
                        waiting.clear()
        finally:
            for _, process in running.values():
                process.terminate()
                process.join()
    if failed is not None:
        raise failed


def _received(ready: Any, job: Job, process: Any) -> tuple[str, Any]:
    try:
        return ready.recv()
    except EOFError:
        process.join()
        return "failed", MechrefusalError(
            f"the process of '{job.name}' ended with status {process.exitcode}, killed perhaps for want of memory; "
            "what is finished is kept, go on with --processes 1"
        )


def _work(job: Job, told: Any, share: Any, loading: Any) -> None:
    """In the process of a job."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    progress.be_silent()

    @contextmanager
    def around(stage: str) -> Iterator[None]:
        torch.set_num_threads(share.value)
        with loading if stage == LOADING else nullcontext():
            yield
        told.send(("stage", stage))

    try:
        told.send(("done", job.work(*job.given, around)))
    except (MechrefusalError, OSError) as error:
        told.send(("failed", error))
    except Exception:
        told.send(("failed", RuntimeError(f"'{job.name}' failed:\n{traceback.format_exc()}")))


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        connections.wait([first.sentinel])
        os._exit(1)
