"""Processes forked from one in which everything is imported: importing takes longer than most of what they do."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

IMPORTED = ("mechrefusal.study.pipeline", "mechrefusal.training.arms")
"""All forks of a session come from one process, so that this must be what any of them needs."""


def start(function: Callable[..., None], *given: Any) -> BaseProcess:
    """A process that runs a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    process = context.Process(target=function, args=given)
    process.start()
    return process
