"""Jobs in processes of their own, several at once, each with its share of this process's threads.

On a CPU the operations of a small model are too short for two threads to share well: two processes of one thread each
end sooner than one process of two threads does one thing after the other.
"""

import errno
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import connection as connections
from pathlib import Path
from typing import Any

from mechrefusal import progress
from mechrefusal.errors import MechrefusalError, without_secrets
from mechrefusal.files import is_disk_trouble
from mechrefusal.memory import free_memory, given_back

IMPORTED = ("mechrefusal.study.pipeline",)
"""What the processes of jobs find imported already, where they are forked from one that has."""
FORKED = sys.platform.startswith("linux")
"""Whether they are; elsewhere each imports everything itself."""
LOADING = "load"
"""Stage of which there is one at a time: while a model is loaded it is there several times over."""
BESIDE = 1 << 30
"""Bytes that a process takes besides: libraries, activations."""

Around = Callable[[str], AbstractContextManager[None]]
"""What a job enters around each of its stages, by the stage's name."""


def alone(_: str) -> AbstractContextManager[None]:
    """Around the stages of what runs in this process: nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Job:
    """A call of `work(*arguments, around)` in a process of its own; `around` is to be entered around each stage.

    `work` is a function of a module, and `arguments` and what it returns can be pickled. It takes `n_stages` stages.
    """

    name: str
    work: Callable[..., Any]
    arguments: tuple
    n_stages: int = 1


def prepare() -> None:
    """Begin, in the background, what jobs' processes need: the imports, once for all of them."""
    if FORKED and _likely():
        from multiprocessing import forkserver

        _context()  # which says what to import
        forkserver.ensure_running()


def _likely() -> bool:
    import torch

    from mechrefusal.devices import has_gpu

    return torch.get_num_threads() > 1 and not has_gpu()


def _context() -> Any:
    context = multiprocessing.get_context("forkserver" if FORKED else "spawn")
    if FORKED:
        context.set_forkserver_preload(list(IMPORTED))
    return context


def how_many(n_jobs: int, *, bytes_each: int) -> int:
    """Processes to run jobs in that each take `bytes_each` of memory: one a thread, as many as jobs, and as many as
    fit into half of the memory that is free now. One where there is a GPU, which they would share."""
    import torch

    if not _likely():
        return 1
    fitting = int(free_memory() / 2 / (bytes_each + BESIDE))
    return max(1, min(n_jobs, torch.get_num_threads(), fitting))


def run(jobs: Sequence[Job], *, at_once: int, description: str) -> Generator[tuple[str, Any]]:
    """Run jobs, `at_once` of them at a time; (name, what it returned) of each as it ends.

    Threads are shared evenly, from each stage on anew: what runs alone at the end has all of them. When a job fails, no
    other is begun, those that run are waited for, and its error is raised. When the iteration is closed
    (`contextlib.closing`), or this process dies, theirs end.

    Raises:
        MechrefusalError: a job raised one, or its process was killed.
        OSError: a job met one, or could not write a safetensors file.
        RuntimeError: a job failed otherwise; with its traceback.
    """
    import torch

    context, n_threads = _context(), torch.get_num_threads()
    share = context.Value("i", max(1, n_threads // at_once))
    # A lock of the file system: it ends with the process that holds it.
    handle, loading = tempfile.mkstemp(prefix="mechrefusal-", suffix=".lock")
    os.close(handle)
    waiting = deque(jobs)
    running: dict[Any, tuple[Job, Any]] = {}
    failed: Exception | None = None
    with progress.bar(description, total=sum(job.n_stages for job in jobs)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.popleft()
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(job, theirs, share, loading), daemon=True)
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
            for _, process in running.values():
                process.join()
            Path(loading).unlink(missing_ok=True)
    if failed is not None:
        raise failed


def _received(ready: Any, job: Job, process: Any) -> tuple[str, Any]:
    """What a job's process says: a stage that ended, ("done", result) or ("failed", error)."""
    try:
        kind, what = ready.recv()
    except (EOFError, OSError):
        process.join()
        if process.exitcode == -signal.SIGKILL:
            why = "was killed, perhaps for want of memory; what is finished is kept, go on with --processes 1"
        else:
            why = (
                f"ended with status {process.exitcode} before it could say why; a script that measures in several "
                'processes guards its start (if __name__ == "__main__"), and --processes 1 needs none'
            )
        return "failed", MechrefusalError(f"the process of '{job.name}' {why}")
    if kind == "disk":
        return "failed", OSError(*what)
    errors = {"input": MechrefusalError, "error": RuntimeError}
    return ("failed", errors[kind](what)) if kind in errors else (kind, what)


def _work(job: Job, pipe: Any, share: Any, loading: str) -> None:
    """In the process of a job."""
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
        pipe.send(("stage", stage))

    try:
        pipe.send(("done", job.work(*job.arguments, around)))
    except MechrefusalError as error:
        pipe.send(("input", str(error)))
    except Exception as error:
        if is_disk_trouble(error):
            number, reason = getattr(error, "errno", errno.EIO), getattr(error, "strerror", None) or str(error)
            pipe.send(("disk", (number, reason, getattr(error, "filename", None))))
        else:
            pipe.send(("error", without_secrets(f"'{job.name}' failed:\n{traceback.format_exc()}")))


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        connections.wait([first.sentinel])
        os._exit(1)
