"""Attention of one run with parts of another's in their place, as patches at z, q, k, v and pattern need it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.forward.joined_rows import Rows, RowsRunning
from mechrefusal.forward.sites import Site
from mechrefusal.forward.tree import KeyValues, Tree
from mechrefusal.forward.tree_attention import Running

_PROJECTED: dict[str, tuple[int, ...]] = {"q": (0,), "k": (1,), "v": (2,), "pattern": (0, 1)}
"""Which of queries, keys and values come from the source; a pattern is made of queries and keys."""


@dataclass
class UnpatchedRun:
    """One prompt as it is: activations a layer, over the packed tokens of the prompt and the runs after it."""

    bank: KeyValues
    logits: Float[Tensor, "kept vocab"]
    stream: list[Float[Tensor, "token d_model"]] = field(default_factory=list)  # before each block, and after the last
    written: list[Float[Tensor, "token d_model"]] = field(default_factory=list)  # attn_out or mlp_out
    queries: list[Float[Tensor, "token head d_head"]] = field(default_factory=list)
    z: list[Float[Tensor, "token head d_head"]] = field(default_factory=list)


class Recording(Running):
    """A run that keeps queries, and what heads give, layer by layer."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree, KeyValues(), {})
        self.queries: list[Tensor] = []
        self.z: list[Tensor] = []

    def projected(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Running`."""
        self.queries.append(query)
        return query, key, value

    def attended(self, layer: int, z: Tensor) -> None:
        """See `Running`."""
        self.z.append(z)


class OtherProjections(RowsRunning):
    """Attention with queries, keys or values of the source: of every token of a row, or of the row's first."""

    def __init__(
        self, rows: Rows, site: Site, source: UnpatchedRun, bank: KeyValues, positions: Sequence[int | None]
    ) -> None:
        super().__init__(rows, bank)
        self.site, self.source = site, source
        self.z: dict[int, Tensor] = {}
        bounds = zip(rows.offsets, rows.offsets[1:], positions, strict=False)
        changed = [token for a, b, position in bounds for token in range(a, b if position is None else a + 1)]
        self.changed = torch.tensor(changed, device=rows.device)

    def projected(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Running`."""
        parts = [query, key, value]
        others = (self.source.queries[layer], self.source.bank.keys[layer], self.source.bank.values[layer])
        for which in _PROJECTED[self.site]:
            parts[which] = parts[which].clone()
            changed, base = (each.to(query.device) for each in (self.changed, self.rows.base))
            parts[which][changed] = others[which][base[changed]]
        return parts[0], parts[1], parts[2]

    def attended(self, layer: int, z: Tensor) -> None:
        """See `Running`."""
        self.z[layer] = z


class OtherHeads(RowsRunning):
    """In place of attention its result in the unpatched run, but for one group of heads a row."""

    def __init__(
        self, rows: Rows, bank: KeyValues, heads: Tensor, base: list[Tensor], others: dict[int, Tensor]
    ) -> None:
        super().__init__(rows, bank)
        self.heads, self.base, self.others = heads, base, others

    def given(self, layer: int) -> Tensor:
        """See `Running`."""
        base = self.base[layer]
        heads, rows = (each.to(base.device) for each in (self.heads, self.rows.base))
        return torch.where(heads[..., None], self.others[layer], base[rows])
