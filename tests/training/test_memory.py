"""Memory kept between training steps: fewer pages are cleared, and all of it is given back."""

import resource
import sys

import psutil
import pytest
import torch

from mechrefusal.training import memory
from mechrefusal.training.memory import kept_memory

MIB = 1 << 20

on_glibc = pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def steps(n: int) -> int:
    """Page faults of `n` steps that each write and free 64 MiB."""
    before = faults()
    for _ in range(n):
        torch.ones(64 * MIB // 4)
    return faults() - before


@on_glibc
def test_what_is_freed_is_used_again_and_then_given_back():
    once = 64 * MIB // resource.getpagesize()
    before = psutil.Process().memory_info().rss
    with kept_memory():
        kept = steps(10)
        assert psutil.Process().memory_info().rss > before + 32 * MIB
    assert kept < 3 * once  # taken once, not at each of ten steps; huge pages need fewer still
    assert psutil.Process().memory_info().rss < before + 32 * MIB


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with kept_memory():
        assert steps(1) >= 0


def diverge():
    with kept_memory():
        steps(1)
        raise ValueError("diverged")


@on_glibc
def test_an_error_gives_it_back_too():
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match="diverged"):
        diverge()
    assert psutil.Process().memory_info().rss < before + 32 * MIB
