"""What a run was begun with: versions of packages, and the machine."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mechrefusal.devices import gpu_name

REPORTED_PACKAGES = ("mechrefusal", "torch", "transformers", "trl", "transformer-lens", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Python's, and those of the packages that numbers hang on."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """System, threads and GPU."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu_name(),
    }
