"""Memory kept between training steps, and given back at the end."""

import sys

import psutil
import pytest
import torch

from mechrefusal import memory
from mechrefusal.memory import given_back, kept_memory

MIB = 1 << 20

pytestmark = pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")


def resident() -> int:
    return psutil.Process().memory_info().rss


def step() -> None:
    """Write and free 24 MiB, in one block."""
    torch.ones(24 * MIB // 4)


def test_what_is_freed_is_kept_and_then_given_back():
    with kept_memory():
        step()
        kept = resident()
    # What others keep in the heap may be given back too.
    assert resident() < kept - 12 * MIB


def test_holes_between_what_is_used_are_given_back():
    blocks = [torch.ones(MIB // 4 // 4) for _ in range(400)]  # 100 MiB, small enough to come from the heap
    full = resident()
    del blocks[::2]
    given_back()
    assert resident() < full - 40 * MIB
    assert len(blocks) == 200


def diverge(seen):
    with kept_memory():
        step()
        seen.append(resident())
        raise ValueError("diverged")


def test_an_error_goes_through_and_gives_it_back():
    seen = []
    with pytest.raises(ValueError, match="diverged"):
        diverge(seen)
    assert resident() < seen[0] - 12 * MIB


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._glibc() is None
    with kept_memory():
        step()
    given_back()
