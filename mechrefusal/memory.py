"""Memory: what is free, and what becomes of freed memory.

It is kept for the next training step, or given back to the system, where the C library can be told so.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt` (malloc.h)."""
KEPT, USUAL = 1 << 30, 32 << 20
"""Bytes: blocks below this size come from memory that the process keeps. Usual: what glibc's own adaptation ends at."""
NEVER = -1
"""Threshold at which nothing is trimmed."""
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
"""Files below `/sys/fs/cgroup` that say what a container may take, has, and has of which kind, and how the latter are
named: version 2, version 1."""


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine, or the container that this runs in, has left.

    Files that the system keeps in memory count as free: it gives their place to whoever asks.
    """
    import psutil

    free = psutil.virtual_memory().available
    for limit, used, kinds, prefix in CGROUPS:
        try:
            taken = int((cgroup / used).read_text()) - _of_files(cgroup / kinds, prefix)
            free = min(free, max(0, int((cgroup / limit).read_text()) - taken))
        except (OSError, ValueError):  # not there, or no limit ("max")
            continue
    return free


def _of_files(kinds: Path, prefix: str) -> int:
    if not kinds.is_file():
        return 0
    counted = dict(line.split()[:2] for line in kinds.read_text().splitlines() if len(line.split()) > 1)
    return sum(int(counted.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory while open, and give it back at the end.

    Gradients and activations are allocated anew at every step. By default glibc takes large blocks from the system and
    returns them at once, and the system clears every page each time. Elsewhere than on glibc this does nothing.
    """
    library = _glibc()
    if library is None:
        yield
        return
    if not library.mallopt(MMAP_THRESHOLD, KEPT):  # older versions take no more than the usual
        library.mallopt(MMAP_THRESHOLD, USUAL)
    library.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, USUAL)
        library.mallopt(TRIM_THRESHOLD, USUAL)
        given_back()


def given_back() -> None:
    """Give memory that is free in the heap back to the system. Elsewhere than on glibc this does nothing.

    A hooked transformer that was loaded leaves as much behind as its weights take: copies of them, between blocks that
    are still in use.
    """
    gc.collect()
    trim()


def trim() -> None:
    """What `given_back` does, of what is known to be free: nothing is collected."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return (
        library if all(hasattr(library, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version")) else None
    )
