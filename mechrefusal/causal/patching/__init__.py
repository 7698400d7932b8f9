"""Activation patching on harmful/harmless pairs: which site, copied from one run into the other, moves refusal.

Clean is the harmful prompt, corrupted the harmless one; the two have equal token length. Every patch is exact. Up to
the first difference both runs are the same, so that their positions are never patched (their effect is exactly zero).

Patches are run on the twin of the hooked transformer (`tree`, with `rows`), where that gives its numbers (`twin`), else
through its hooks (`hooked`). What circuits and the other ways of patching share with it is in `metric`, `sites` and
`pair_runs`.
"""

from mechrefusal.causal.patching.exact import Patching, attention_output, heads, mlp_output, residual
from mechrefusal.causal.patching.pair_runs import ALL_POSITIONS, SMALLEST_GAP
from mechrefusal.causal.patching.sites import MEMORY

__all__ = [
    "ALL_POSITIONS",
    "MEMORY",
    "SMALLEST_GAP",
    "Patching",
    "attention_output",
    "heads",
    "mlp_output",
    "residual",
]
