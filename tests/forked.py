"""Processes forked from one in which everything is imported: importing takes longer than most of what they do."""

import gc
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from mechrefusal.workers import local

IMPORTED = (*local.IMPORTED, "mechrefusal.training.fine_tuning")
"""All forks of a session come from one process, so that this must be what any of them needs."""


def start(function: Callable[..., None], *given: Any) -> BaseProcess:
    """A process that runs a function of a module, and ends with the tests if it hangs."""
    process = local._context().Process(target=_run, args=(function, *given), daemon=True)
    process.start()
    return process


def _run(function: Callable[..., None], *given: Any) -> None:
    gc.freeze()  # what is imported stays
    function(*given)
