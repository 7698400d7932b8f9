"""What a set of edges does alone, and how faithful rankings of edges are (MIB: Mueller et al., 2504.13151).

In the run of a circuit every node reads what it reads in the target, and on top of that the changes of those senders
from which an edge of the circuit leads to it; the embedding's change is that to the source. No edges give the target's
metric, all edges the source's. Faithfulness is the share of that gap; CPR and CMD sum it up over sizes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mechrefusal.causal.circuits.paths import EMBEDDING, Edge, Node, PathPatching, logits_of

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges that a circuit has, as in MIB."""


@torch.no_grad()
def score_of(paths: PathPatching, edges: Sequence[Edge]) -> float:
    """Change of the metric, against the target as it is, in the run in which these edges alone carry changes, nats.

    Args:
        paths: one pair that is ready. Layers are run one after another, one row a head.
        edges: of `paths.edges_between`.
    """
    senders: dict[Node, list[Node]] = {}
    for sender, receiver in edges:
        senders.setdefault(receiver, []).append(sender)
    changes: dict[Node, Tensor] = {EMBEDDING: paths.changes([EMBEDDING])[EMBEDDING]}
    for layer in range(paths.model.cfg.n_layers):
        for component in ("head", "mlp"):
            here = sorted(node for node in senders if node.layer == layer and node.component == component)
            heard = {node: [changes[sender] for sender in senders[node] if sender in changes] for node in here}
            reached = [node for node in here if heard[node]]  # others write what they write in the target
            if reached:
                total = [torch.stack(heard[node]).sum(0) for node in reached]
                changes |= zip(reached, paths.written_by(reached, total), strict=True)
    last = logits_of(paths.model)
    heard_last = [changes[sender] for sender in senders.get(last, []) if sender in changes]
    return paths.into_logits(torch.stack(heard_last).sum(0)) if heard_last else 0.0


def ranked(scores: Mapping[Edge, float], size: float) -> list[Edge]:
    """The edges with the largest absolute scores, a share `size` of all, rounded, in a fixed order among equals."""
    order = sorted(scores, key=lambda edge: (-abs(scores[edge]), edge))
    return order[: round(size * len(order))]


def areas(faithfulness: Sequence[float], sizes: Sequence[float] = SIZES) -> tuple[float, float]:
    """CPR and CMD: the areas of f and of |1 − f| over the share of the edges, by trapezoids from the first size on.

    A perfect ranking that needs few edges has CPR near 1 (above, where a circuit does more than the model) and CMD
    near 0; 2504.13151, section 3.
    """
    f = np.asarray(faithfulness, dtype=float)
    return float(np.trapezoid(f, sizes)), float(np.trapezoid(np.abs(1 - f), sizes))
