"""Activation patching on harmful/harmless pairs: which site, copied from one run into the other, moves refusal.

Clean is the harmful prompt, corrupted the harmless one; the two have equal token length. Every patch is exact. Up to
the first difference both runs are the same, so that their positions are never patched (their effect is exactly zero).

How patches are run is the runner's (`forward`): rows that join a pass at the layer in which they are patched, or hooks.
What circuits and the other ways of patching share with it is in `pair_runs`.
"""

from mechrefusal.causal.patching.exact import Patching, attention_output, heads, mlp_output, residual
from mechrefusal.causal.patching.pair_runs import SMALLEST_GAP
from mechrefusal.forward.patches import MEMORY

__all__ = [
    "MEMORY",
    "SMALLEST_GAP",
    "Patching",
    "attention_output",
    "heads",
    "mlp_output",
    "residual",
]
