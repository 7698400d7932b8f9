"""The nodes and the edges of a circuit, found by exact patches, and the circuit held against the whole model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.attribution_patching.gradients import estimates
from mechrefusal.causal.attribution_patching.pairs import PreparedPairs, largest, prepare_pairs
from mechrefusal.causal.circuits.effects import by_effect, effect_of, with_held_out
from mechrefusal.causal.circuits.faithfulness import Faithfulness, FaithfulnessPasses, require_metric
from mechrefusal.causal.circuits.paths import Edge, Node, PathPatching, edges_between
from mechrefusal.causal.patching.pair_runs import LeftOut, Mode, Pairs
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.patches import Patch, Site
from mechrefusal.progress import track
from mechrefusal.statistics import Estimate, Observations, Observed

NODES = ("node", "component", "layer", "head", "raw", "effect", "low", "high", "n", "estimate", "kept")
EDGES = ("sender", "receiver", "raw", "effect", "low", "high", "n")
UNSEEN = "held-out pairs"
_PARTS: tuple[tuple[str, Site], ...] = (("head", "z"), ("mlp", "mlp_out"))


@dataclass(frozen=True)
class Circuit(Observed):
    """A circuit and what it was chosen from.

    `nodes`: node (its name in `edges`), component ("head", "mlp"), layer, head (−1 for an MLP), raw (change of the
    metric by patching it at all positions, nats), effect (as a share of the gap between harmful and harmless, positive
    where it carries refusal), low, high (95% interval over pairs, of a linearised ratio), n, estimate (first order,
    nats; NaN without a screen), kept (true); held_out, held_out_low, held_out_high, n_held_out (effect on pairs that
    did not choose the node), p (of that, adjusted for all nodes; NaN with fewer than six such pairs). Largest effect
    first.

    `components`: the same for every head and MLP, with those that were not kept, or not patched exactly (NaN).

    `edges`: sender ("embedding" or a node), receiver (a node or "logits"), raw, effect, low, high, n as in `nodes`, by
    path patching; kept (among the largest `n_edges`), and as in `nodes` what held-out pairs say of those. Every path
    between kept nodes has a row, largest effect first.

    `observations`, `edge_observations`: raw of every pair that chose the circuit (its id), of every head and MLP (axis
    node) and path (sender, receiver); NaN where it was not patched.

    `faithfulness`, whose table has two rows a size (of "harmful": the score of harmful prompts; of "difference": how
    much higher it is than that of the harmless ones, of which nothing is left when everything is ablated; where the
    means themselves refuse, only this one tells what the circuit does): of, size, heads, mlps, node (the last in),
    is_circuit (this set is `nodes`; other sizes are the first nodes in order of effect), kept (share of the metric that
    the set recovers when everything else is mean-ablated), lost (share that is lost when the set alone is), each with
    low and high (95% interval over prompts, of a linearised ratio), random_kept, random_lost and their least and most
    (over `n_random` sets of as many heads and MLPs), n_random, full, ablated (mean metric with nothing and with
    everything ablated, nats), n, reason (why shares are NaN).

    `measured_on`: what `faithfulness` was measured on: "held-out pairs", "the same pairs", or how many of those that
    were given as held out chose the circuit as well. `reason`: why there are no nodes, or effects are NaN; else empty.
    `counts`: prompts patched and passes run, for nodes and for edges, over all pairs. `seconds`: of nodes, edges and
    faithfulness.
    """

    nodes: pd.DataFrame
    components: pd.DataFrame
    edges: pd.DataFrame
    observations: Observations
    edge_observations: Observations
    faithfulness: Faithfulness
    measured_on: str
    reason: str
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: LeftOut = ()

    @property
    def table(self) -> pd.DataFrame:
        """`nodes`."""
        return self.nodes

    def interval(self, *, confidence: float = 0.95, **axes) -> Estimate:
        """Mean change of the metric by a node (`node="head 2.1"`), or by a path (sender and receiver), nats."""
        observations = self.observations if "node" in axes else self.edge_observations
        return observations.interval(confidence=confidence, **axes)

    def top(self, k: int) -> pd.DataFrame:
        """The `k` nodes with the largest absolute effects."""
        return self.nodes.head(k)


def circuit(
    model,
    pairs: Pairs,
    metric: RefusalMetric,
    *,
    threshold: float = 0.02,
    n_nodes: int | None = 20,
    n_edges: int | None = 40,
    held_out: Pairs | None = None,
    mode: Mode = "denoising",
    finalists: int | None = None,
    n_random: int = 5,
    seed: int = 0,
) -> Circuit:
    """Find the circuit over pairs of equal length, and measure it.

    Args:
        model: a hooked transformer, under whatever hooks the caller has open.
        pairs, mode: as in `patching`.
        threshold: least absolute effect of a node, as a share of the gap.
        n_nodes, n_edges: at most so many, those with the largest absolute effects; None for all.
        held_out: pairs to measure faithfulness on, and once more what was kept. By default every second pair is held
            out from the choice, where there are at least 4, else faithfulness is measured on the pairs that chose the
            circuit.
        finalists: patch exactly only so many heads and MLPs, those with the largest first-order estimates; all by
            default.
        n_random: random sets of each size, drawn with `seed`.

    Raises:
        MechrefusalError: no usable pairs, a metric that is a function, an unknown mode, or a number out of range.
    """
    require_metric(metric)
    _check(threshold, n_nodes, n_edges, finalists, n_random, seed)
    start = time.perf_counter()
    chosen_by, measured, measured_on = _split(model, pairs, metric, mode, held_out)
    unseen = measured if measured_on == UNSEEN else None
    components, observations = _components(chosen_by, metric, finalists)
    order_of_effect = largest(components["effect"], len(components))
    strongest = [i for i in order_of_effect if abs(components.loc[i, "effect"]) >= threshold][:n_nodes]
    components.loc[strongest, "kept"] = True
    again = None if unseen is None else _patched(unseen, components.loc[strongest], "patching what was kept")
    components = with_held_out(components, strongest, again, measured)
    nodes = [_node(components.loc[i]) for i in strongest]
    reason = chosen_by.reason
    if not nodes and not reason:
        most = components["effect"].abs().max()
        reason = f"no head or MLP has an effect of {threshold} or more (the largest is {most:.3g}); lower the threshold"
    rest = components.index.difference(strongest, sort=False)
    order = [*nodes, *(_node(components.loc[i]) for i in by_effect(components.loc[rest]))]
    seconds, start = {"nodes": time.perf_counter() - start}, time.perf_counter()
    edges, edge_observations, counts = _edges(chosen_by, nodes, n_edges, unseen)
    seconds["edges"], start = time.perf_counter() - start, time.perf_counter()
    faithfulness = Faithfulness.unmeasured()
    if not chosen_by.reason:
        passes = FaithfulnessPasses(
            model,
            [pair.harmful for pair in measured.pairs],
            [pair.harmless for pair in measured.pairs],
            metric,
            nodes=order,
            reference=[text for pair in chosen_by.pairs for text in (pair.harmful, pair.harmless)],
        )
        sizes = {0, *(2**k for k in range(len(order)) if 2**k < len(order)), len(order)} - {len(nodes)}
        sets = sorted([nodes, *(order[:size] for size in sorted(sizes))], key=len)
        faithfulness = passes.measure(sets, nodes, n_random=n_random, seed=seed)
    seconds["faithfulness"] = time.perf_counter() - start
    n_exact = int(components["raw"].notna().sum())
    return Circuit(
        nodes=components.loc[strongest].reset_index(drop=True),
        components=components,
        edges=edges,
        observations=observations,
        edge_observations=edge_observations,
        faithfulness=faithfulness,
        measured_on=measured_on,
        reason=reason,
        clean=chosen_by.clean,
        corrupted=chosen_by.corrupted,
        counts={
            "pairs": len(chosen_by.runs),
            "node_prompts": n_exact * len(chosen_by.runs) + (len(strongest) * len(unseen.runs) if unseen else 0),
            **counts,
        },
        seconds=seconds,
        left_out=chosen_by.left_out,
    )


def _split(
    model, pairs: Pairs, metric: RefusalMetric, mode: Mode, held_out: Pairs | None
) -> tuple[PreparedPairs, PreparedPairs, str]:
    """Pairs that choose the circuit, those that measure it, and what these are."""
    if held_out is not None:
        chosen, measured = (prepare_pairs(model, each, metric, mode) for each in (pairs, held_out))
        texts = {(pair.harmful, pair.harmless) for pair in chosen.pairs}
        again = sum((pair.harmful, pair.harmless) in texts for pair in measured.pairs)
        return chosen, measured, f"{len(measured.pairs)} pairs, {again} of which chose the circuit" if again else UNSEEN
    every = prepare_pairs(model, pairs, metric, mode)
    if len(every.pairs) < 4:
        return every, every, "the same pairs"
    return every.part(slice(None, None, 2)), every.part(slice(1, None, 2)), UNSEEN


def _components(runs: PreparedPairs, metric: RefusalMetric, finalists: int | None) -> tuple[pd.DataFrame, Observations]:
    """Every head and MLP with its effect; see `Circuit.components`, and `Circuit.observations`."""
    cfg = runs.model.cfg
    table = pd.DataFrame(
        [("head", layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        + [("mlp", layer, -1) for layer in range(cfg.n_layers)],
        columns=["component", "layer", "head"],
    )
    table.insert(0, "node", [str(_node(row)) for _, row in table.iterrows()])
    table["estimate"] = np.nan if finalists is None else _estimated(runs, metric, table)
    measured = table.index if finalists is None else table.index[largest(table["estimate"], finalists)]
    raw = np.full((len(runs.runs), len(table)), np.nan)
    raw[:, measured] = _patched(runs, table.loc[measured], "patching heads and MLPs")
    effects = pd.DataFrame([effect_of(raw[:, i], runs) for i in range(len(table))])
    table = pd.concat([table, effects], axis=1).assign(kept=False)
    return table[list(NODES)], runs.observations(raw, table[["node"]])


def _patched(runs: PreparedPairs, rows: pd.DataFrame, description: str) -> Float[np.ndarray, "pair row"]:
    """Exact change of the metric of every pair by each head and MLP of `rows`, nats."""
    raw = np.full((len(runs.runs), len(rows)), np.nan)
    for number in track(
        range(len(runs.runs)) if len(rows) else [], description, total=len(runs.runs) if len(rows) else 0
    ):
        for component, site in _PARTS:
            columns = np.flatnonzero(rows["component"] == component)
            nodes = [_node(rows.iloc[i]) for i in columns]
            patches = [Patch(node.layer, node.head if component == "head" else None, None) for node in nodes]
            raw[number, columns] = runs.exact(number, site, patches)
    return raw


def _estimated(runs: PreparedPairs, metric: RefusalMetric, table: pd.DataFrame) -> np.ndarray:
    total = np.zeros(len(table))
    for run in track(list(runs.runs), "attribution patching"):
        by_site, _ = estimates(runs.model, run, metric, [site for _, site in _PARTS])
        for i, row in enumerate(table.itertuples()):
            estimate = by_site[dict(_PARTS)[row.component]][row.layer]
            total[i] += float((estimate[:, row.head] if row.component == "head" else estimate).sum())
    return total / len(runs.runs)


def _edges(
    runs: PreparedPairs, nodes: Sequence[Node], n_edges: int | None, unseen: PreparedPairs | None
) -> tuple[pd.DataFrame, Observations, dict[str, int]]:
    """All paths between `nodes`; those that are kept also on pairs that did not choose them."""
    edges: list[Edge] = edges_between(runs.model, nodes) if nodes else []
    counts = {"edge_prompts": 0, "edge_passes": 0}
    raw = _paths(runs, edges, counts, "path patching")
    names = pd.DataFrame([(str(sender), str(receiver)) for sender, receiver in edges], columns=["sender", "receiver"])
    effects = [effect_of(raw[:, i], runs) for i in range(len(edges))]
    table = pd.concat([names, pd.DataFrame(effects, columns=list(EDGES[2:]))], axis=1)
    order = by_effect(table)
    table = table.loc[order].reset_index(drop=True)
    n_kept = len(table) if n_edges is None else min(n_edges, len(table))
    table["kept"] = np.arange(len(table)) < n_kept
    again = None
    if unseen is not None:
        again = _paths(unseen, [edges[i] for i in order[:n_kept]], counts, "path patching what was kept")
    table = with_held_out(table, range(n_kept), again, unseen or runs)
    return table, runs.observations(raw, names), counts


def _paths(
    runs: PreparedPairs, edges: Sequence[Edge], counts: dict[str, int], description: str
) -> Float[np.ndarray, "pair edge"]:
    """Exact change of the metric of every pair by each path, nats; adds to `counts`."""
    raw = []
    for run in track(list(runs.runs) if edges else [], description, total=len(runs.runs) if edges else 0):
        paths = PathPatching(runs.model, run)
        raw.append(paths.effects(edges).double().numpy())
        counts["edge_prompts"] += paths.n_rows
        counts["edge_passes"] += paths.n_passes
    return np.array(raw).reshape(len(runs.runs), len(edges))


def _node(row) -> Node:
    return Node(int(row["layer"]), row["component"], int(row["head"]))


def _check(
    threshold: float,
    n_nodes: int | None,
    n_edges: int | None,
    finalists: int | None,
    n_random: int,
    seed: int,
) -> None:
    if not 0 <= threshold < float("inf"):
        raise MechrefusalError(f"threshold is {threshold}: give the least share of the gap, 0 or more (0.02: 2%)")
    for name, value in (("n_nodes", n_nodes), ("n_edges", n_edges), ("finalists", finalists)):
        if value is not None and value < 1:
            raise MechrefusalError(f"{name} is {value}: give at least 1, or None for all")
    if n_random < 0 or seed < 0:
        raise MechrefusalError(f"n_random is {n_random} and seed {seed}: give at least 0")
