"""All paths between heads, MLPs, embedding and logits, estimated from gradients and averaged over pairs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.attribution_patching.gradients import STEPS, Method, Tool, shares
from mechrefusal.causal.attribution_patching.pairs import prepare_pairs
from mechrefusal.causal.circuits.discovery import EDGES
from mechrefusal.causal.circuits.edge_gradients import edge_estimates
from mechrefusal.causal.circuits.effects import by_effect, effect_of
from mechrefusal.causal.circuits.paths import Edge, Node, edges_between, every_node
from mechrefusal.causal.patching.pair_runs import LeftOut, Mode, Pairs
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.metric_reader import Metric
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed


@dataclass(frozen=True)
class EdgeScores(Observed):
    """Estimates of paths.

    `table`: sender ("embedding", or a node such as "head 2.1", "mlp 3"), receiver (a node or "logits"), raw (estimated
    change of the metric where the receiver alone reads what the sender writes in the other prompt, nats; the sign is
    that of the exact paths in `Circuit.edges`), effect (as a share of the gap between harmful and harmless, positive
    where the path carries refusal), low, high (95% t interval of the effect over pairs), n, method, steps (1 for
    "eap"), tool (what gave the gradients). Largest absolute effect first.

    `observations`: raw, of every pair (its id) and path (sender, receiver).

    `clean`, `corrupted`: metric of each pair, nats. `reason`: why effects are NaN. `seconds`: of all of it.
    """

    table: pd.DataFrame
    observations: Observations
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    reason: str
    seconds: float
    left_out: LeftOut = ()

    def top(self, k: int) -> pd.DataFrame:
        """The `k` paths with the largest absolute effect."""
        return self.table.head(k)


def attribute_edges(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    method: Method = "eap-ig",
    steps: int = STEPS,
    nodes: Sequence[Node] | None = None,
    mode: Mode = "denoising",
    tool: Tool | None = None,
) -> EdgeScores:
    """Edge attribution patching: estimate every path between `nodes`, the embedding and the logits from gradients.

    A head receives through one input, which its queries, keys and values read together, as in `circuit`; its gradient
    is taken with regard to the residual stream before the norm. A pair costs 2 passes, one for each head of a layer,
    and for each gradient a pass forward and back and the attention of every layer back once a head; the number of
    paths costs next to nothing.

    Args:
        model: a hooked transformer, under whatever hooks the caller has open.
        pairs, mode: as in `patching`: "denoising" estimates what clean changes do in the corrupted run.
        metric: a `RefusalMetric`, or a differentiable function of the last position's logits.
        method: "eap" (2310.10348): gradients in the run that is patched. "eap-ig" (2403.17806): their mean over
            `steps` runs with the embedding k / steps of the way from that prompt to the other, k = 1 … steps.
        steps: of "eap-ig"; published: 5.
        nodes: heads and MLPs; all of the model by default.
        tool: "token trees" or "hooks"; by default the first that works.

    Raises:
        MechrefusalError: no usable pairs, an unknown mode, method or tool, a node that the model lacks, no steps, a
            metric without a gradient.
    """
    points = shares(method, steps)
    if tool not in (None, "token trees", "hooks"):
        raise MechrefusalError(f"unknown tool '{tool}' of edge attribution; use 'token trees' or 'hooks', or None")
    known = every_node(model)
    if nodes is not None and (unknown := [str(node) for node in nodes if node not in known]):
        raise MechrefusalError(f"this model has no '{unknown[0]}' as a node of a circuit; give heads and MLPs it has")
    start = time.perf_counter()
    runs = prepare_pairs(model, pairs, metric, mode)
    edges: list[Edge] = edges_between(model, known if nodes is None else dict.fromkeys(nodes))
    raw, tools = np.empty((len(runs.runs), len(edges))), set()
    for number, run in enumerate(track(list(runs.runs), "edge attribution")):
        scores, used = edge_estimates(model, run, metric, edges, method=method, steps=steps, tool=tool)
        raw[number] = scores.numpy()
        tools.add(used)
    names = pd.DataFrame([(str(sender), str(receiver)) for sender, receiver in edges], columns=["sender", "receiver"])
    effects = pd.DataFrame([effect_of(values, runs) for values in raw.T])
    table = pd.concat([names, effects], axis=1)[list(EDGES)]
    table = table.loc[by_effect(table)].reset_index(drop=True)
    table = table.assign(method=method, steps=len(points), tool="/".join(sorted(tools)))
    seconds = time.perf_counter() - start
    seen = runs.observations(raw, names)
    return EdgeScores(table, seen, runs.clean, runs.corrupted, runs.reason, seconds, runs.left_out)
