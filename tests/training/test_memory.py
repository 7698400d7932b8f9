"""Memory kept between training steps, and given back at the end."""

import sys

import psutil
import pytest
import torch

from mechrefusal.training import memory
from mechrefusal.training.memory import kept_memory

MIB = 1 << 20

pytestmark = pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")


def resident() -> int:
    return psutil.Process().memory_info().rss


def step() -> None:
    """Write and free 24 MiB, in one block."""
    torch.ones(24 * MIB // 4)


def test_what_is_freed_is_kept_and_then_given_back():
    before = resident()
    with kept_memory():
        step()
        assert resident() > before + 12 * MIB
    assert resident() < before + 12 * MIB


def diverge():
    with kept_memory():
        step()
        raise ValueError("diverged")


def test_an_error_gives_it_back_too():
    before = resident()
    with pytest.raises(ValueError, match="diverged"):
        diverge()
    assert resident() < before + 12 * MIB


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._glibc() is None
    with kept_memory():
        step()
