"""Patches: one activation of one prompt's run copied into that of another, and what a pair of prompts needs for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.metric_reader import MetricReader
from mechrefusal.forward.sites import Site, hook_name

HEAD_SITES: tuple[Site, ...] = ("z", "pattern", "q", "k", "v")
"""Sites with an activation for each head."""
MEMORY = 1 << 30
"""Bytes of activations and logits in one pass, where the caller says nothing else."""


@dataclass(frozen=True)
class Patch:
    """One activation that is copied: at `layer`, of one head (None: a site without heads), at one position (None: all).

    Positions count from the prompt's beginning.
    """

    layer: int
    head: int | None
    position: int | None


@dataclass(frozen=True)
class PairRun:
    """One pair of prompts of equal length (token ids): activations of `source` are copied into the run of `target`.

    `first` is the first position at which the two differ; `reader` says what is run after them and read.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    first: int
    reader: MetricReader

    def patches(self, model, site: Site, layers: Sequence[int], *, by_position: bool) -> list[Patch]:
        """Every patch of `site` that can have an effect."""
        n = n_heads(model, site)
        heads = range(n) if n else [None]
        positions = range(self.first, len(self.target)) if by_position else [None]
        return [Patch(layer, head, position) for layer in layers for head in heads for position in positions]

    @property
    def ends(self) -> list[int]:
        """Length of the prompt with each run after it."""
        return [len(self.target) + len(tokens) for tokens in self.reader.runs]

    def padded(self, prompt: tuple[int, ...]) -> Int[Tensor, "run token"]:
        """`prompt` with every run after it, in rows padded on the right: nothing that is read comes after that."""
        width = max(self.ends)
        rows = [[*prompt, *tokens] for tokens in self.reader.runs]
        return torch.tensor([[*row, *[prompt[-1]] * (width - len(row))] for row in rows])

    def read(self, by_run: Iterable[Float[Tensor, "row token vocab"]]) -> list[Float[Tensor, "row place vocab"]]:
        """Of the logits of padded rows, run by run, those that the metric reads."""
        return [part[:, end - n : end] for part, end, n in zip(by_run, self.ends, self.reader.kept, strict=True)]


def n_heads(model, site: Site) -> int:
    """Heads at a site: query heads, or those of keys and values where these are grouped; 0 where a site has none."""
    if site not in HEAD_SITES:
        return 0
    grouped = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    return grouped if site in ("k", "v") else model.cfg.n_heads


def require_site(model, site: Site) -> None:
    """Raise `MechrefusalError` where the architecture lacks `site`."""
    known = model.hook_dict
    names = {
        layer: f"blocks.{layer}.hook_resid_mid" if site == "resid_mid" else hook_name(layer, site)
        for layer in range(model.cfg.n_layers)
    }
    missing = [layer for layer, name in names.items() if name not in known]
    if site == "resid_mid" and getattr(model.cfg, "parallel_attn_mlp", False):
        missing = list(names)
    if missing:
        why = "its attention and MLP read the same residual stream" if site == "resid_mid" else "it has no such hook"
        raise MechrefusalError(
            f"this architecture ({getattr(model.cfg, 'architecture', None) or type(model.original_model).__name__}) "
            f"lacks the site '{site}' in layers {missing}: {why}; patch another site"
        )


def activation_bytes(model) -> tuple[int, int]:
    """About how many bytes a token takes in a pass, and (keys and values) each token that it reads."""
    cfg = model.cfg
    width = torch.empty((), dtype=getattr(cfg, "dtype", torch.float32)).element_size()
    kv = 2 * n_heads(model, "k") * cfg.d_head
    return width * (
        6 * cfg.d_model + 3 * (cfg.d_mlp or 4 * cfg.d_model) + 2 * cfg.n_heads * cfg.d_head + kv
    ), width * kv


def logit_bytes(model, reader: MetricReader) -> int:
    """Bytes of the logits of one row: as they are, and in float32 with what a metric makes of them."""
    return 3 * 4 * model.cfg.d_vocab * sum(reader.kept)


def require_memory(memory: int | None) -> int:
    """The bytes to use; raise `MechrefusalError` for none."""
    if memory is None:
        return MEMORY
    if isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
        raise MechrefusalError(f"memory of patching is {memory!r}: give a positive number of bytes, or None")
    return memory
