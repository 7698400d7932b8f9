"""Memory that is free: the machine's, or the container's if that is less."""

from types import SimpleNamespace

import psutil
import pytest

from mechrefusal.memory import free_memory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000),
        ({"memory.max": "max", "memory.current": "300"}, 1000),
        ({"memory.max": "700", "memory.current": "300"}, 400),
        ({"memory.max": "700", "memory.current": "800"}, 0),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"}, 1000),
        ({"memory/memory.limit_in_bytes": "500", "memory/memory.usage_in_bytes": "50"}, 450),
        # Files in memory are given up for whoever asks.
        (
            {
                "memory.max": "700",
                "memory.current": "600",
                "memory.stat": "anon 90\nfile 510\nshmem 10\ninactive_file 200\nactive_file 300",
            },
            600,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "500",
                "memory/memory.usage_in_bytes": "400",
                "memory/memory.stat": "active_file 1\ntotal_inactive_file 100\ntotal_active_file 50",
            },
            250,
        ),
    ],
)
def test_free_memory_is_that_of_the_container(monkeypatch, tmp_path, files, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert free_memory(tmp_path) == expected
