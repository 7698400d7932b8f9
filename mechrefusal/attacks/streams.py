"""Random streams that depend on a seed and a name alone."""

import hashlib

import torch


def random_stream(seed: int, name: str) -> torch.Generator:
    """A generator of its own for `name`: the same for the same seed and name, whatever runs before it."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
