"""The nodes and the edges of a circuit, found by exact patches, and the circuit held against the whole model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.attribution_patching.gradients import estimates
from mechrefusal.causal.attribution_patching.pairs import Runs, largest, ready
from mechrefusal.causal.circuit.faithfulness import COLUMNS, Faithfulness, require_metric
from mechrefusal.causal.circuit.paths import Edge, Node, PathPatching, edges_between
from mechrefusal.causal.patching.pair_runs import Mode, Pairs
from mechrefusal.causal.patching.sites import Patch, Site
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import RefusalMetric
from mechrefusal.progress import track
from mechrefusal.statistics import intervals

NODES = ("node", "component", "layer", "head", "raw", "effect", "low", "high", "n", "estimate", "kept")
EDGES = ("sender", "receiver", "raw", "effect", "low", "high", "n", "kept")
_PARTS: tuple[tuple[str, Site], ...] = (("head", "head_z"), ("mlp", "mlp_out"))


@dataclass(frozen=True)
class Circuit:
    """A circuit and what it was chosen from.

    `nodes`: node (its name in `edges`), component ("head", "mlp"), layer, head (−1 for an MLP), raw (change of the
    metric by patching it at all positions, nats), effect (as a share of the gap between harmful and harmless, positive
    where it carries refusal), low, high (95% interval over pairs, of a linearised ratio), n, estimate (first order,
    nats; NaN without a screen), kept (true). Largest effect first.

    `components`: the same for every head and MLP, with those that were not kept, or not patched exactly (NaN).

    `edges`: sender ("embedding" or a node), receiver (a node or "logits"), raw, effect, low, high, n as in `nodes`, by
    path patching; kept (among the largest `n_edges`). Every path between kept nodes has a row, largest effect first.

    `faithfulness`, two rows a size (of "harmful": the score of harmful prompts; of "difference": how much higher it is
    than that of the harmless ones, of which nothing is left when everything is ablated; where the means themselves
    refuse, only this one tells what the circuit does): of, size, heads, mlps, node (the last in), is_circuit (this set
    is `nodes`; other sizes are the first nodes in order of effect), kept (share of the metric that the set recovers
    when everything else is mean-ablated), lost (share that is lost when the set alone is), each with low and high (95%
    interval over prompts, of a linearised ratio), random_kept, random_lost and their least and most (over `n_random`
    sets of as many heads and MLPs), n_random, full, ablated (mean metric with nothing and with everything ablated,
    nats), n, reason (why shares are NaN).

    `measured_on`: what `faithfulness` was measured on: "held-out pairs", "the same pairs", or how many of those that
    were given as held out chose the circuit as well. `reason`: why there are no nodes, or effects are NaN; else empty.
    `counts`: prompts patched and passes run, for nodes and for edges, over all pairs. `seconds`: of nodes, edges and
    faithfulness.
    """

    nodes: pd.DataFrame
    components: pd.DataFrame
    edges: pd.DataFrame
    faithfulness: pd.DataFrame
    measured_on: str
    reason: str
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: tuple[tuple[str, int, int], ...] = field(default=())


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
        held_out: pairs to measure faithfulness on. By default every second pair is held out from the choice, where
            there are at least 4, else faithfulness is measured on the pairs that chose the circuit.
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
    components = _components(chosen_by, metric, finalists)
    order_of_effect = largest(components["effect"], len(components))
    kept = [i for i in order_of_effect if abs(components.loc[i, "effect"]) >= threshold][:n_nodes]
    components.loc[kept, "kept"] = True
    nodes = [_node(components.loc[i]) for i in kept]
    reason = chosen_by.reason
    if not nodes and not reason:
        most = components["effect"].abs().max()
        reason = f"no head or MLP has an effect of {threshold} or more (the largest is {most:.3g}); lower the threshold"
    rest = components.index.difference(kept, sort=False)
    order = [*nodes, *(_node(components.loc[i]) for i in by_effect(components.loc[rest]))]
    seconds, start = {"nodes": time.perf_counter() - start}, time.perf_counter()
    edges, counts = _edges(chosen_by, nodes, n_edges)
    seconds["edges"], start = time.perf_counter() - start, time.perf_counter()
    faithfulness = pd.DataFrame(columns=COLUMNS)
    if not chosen_by.reason:
        ready_made = Faithfulness(
            model,
            [pair.harmful for pair in measured],
            [pair.harmless for pair in measured],
            metric,
            nodes=order,
            reference=[text for pair in chosen_by.pairs for text in (pair.harmful, pair.harmless)],
        )
        sizes = [0, *(2**k for k in range(len(order)) if 2**k < len(order)), len(order)]
        faithfulness = ready_made.curve(sizes, nodes, n_random=n_random, seed=seed)
    seconds["faithfulness"] = time.perf_counter() - start
    n_exact = int(components["raw"].notna().sum())
    return Circuit(
        nodes=components.loc[kept].reset_index(drop=True),
        components=components,
        edges=edges,
        faithfulness=faithfulness,
        measured_on=measured_on,
        reason=reason,
        clean=chosen_by.clean,
        corrupted=chosen_by.corrupted,
        counts={"pairs": len(chosen_by.runs), "node_prompts": n_exact * len(chosen_by.runs), **counts},
        seconds=seconds,
        left_out=chosen_by.left_out,
    )


def _split(
    model, pairs: Pairs, metric: RefusalMetric, mode: Mode, held_out: Pairs | None
) -> tuple[Runs, Sequence[prompts.Pair], str]:
    """Pairs that choose the circuit, those that measure it, and what these are."""
    if held_out is not None:
        chosen, measured = (ready(model, each, metric, mode) for each in (pairs, held_out))
        texts = {(pair.harmful, pair.harmless) for pair in chosen.pairs}
        again = sum((pair.harmful, pair.harmless) in texts for pair in measured.pairs)
        told = f"{len(measured.pairs)} pairs, {again} of which chose the circuit" if again else "held-out pairs"
        return chosen, measured.pairs, told
    every = ready(model, pairs, metric, mode)
    if len(every.pairs) < 4:
        return every, every.pairs, "the same pairs"
    return every.part(slice(None, None, 2)), every.pairs[1::2], "held-out pairs"


def _components(runs: Runs, metric: RefusalMetric, finalists: int | None) -> pd.DataFrame:
    """Every head and MLP with its effect; see `Circuit.components`."""
    cfg = runs.model.cfg
    table = pd.DataFrame(
        [("head", layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        + [("mlp", layer, -1) for layer in range(cfg.n_layers)],
        columns=["component", "layer", "head"],
    )
    table.insert(0, "node", [str(_node(row)) for _, row in table.iterrows()])
    table["estimate"] = np.nan if finalists is None else _estimated(runs, metric, table)
    wanted = table.index if finalists is None else largest(table["estimate"], finalists)
    raw = np.full((len(runs.runs), len(table)), np.nan)
    for number in track(range(len(runs.runs)), "patching heads and MLPs"):
        for component, site in _PARTS:
            at = [i for i in wanted if table.loc[i, "component"] == component]
            raw[number, at] = runs.exact(number, site, [_patch(table.loc[i]) for i in at])
    made = pd.DataFrame([effect_of(raw[:, i], runs) for i in range(len(table))])
    table = pd.concat([table, made], axis=1)
    table["kept"] = False
    return table[list(NODES)]


def _estimated(runs: Runs, metric: RefusalMetric, table: pd.DataFrame) -> np.ndarray:
    total = np.zeros(len(table))
    for run in track(list(runs.runs), "attribution patching"):
        found, _ = estimates(runs.model, run, metric, [site for _, site in _PARTS])
        for i, row in enumerate(table.itertuples()):
            one = found[dict(_PARTS)[row.component]][row.layer]
            total[i] += float((one[:, row.head] if row.component == "head" else one).sum())
    return total / len(runs.runs)


def _edges(runs: Runs, nodes: Sequence[Node], n_edges: int | None) -> tuple[pd.DataFrame, dict[str, int]]:
    edges: list[Edge] = edges_between(runs.model, nodes) if nodes else []
    raw, counts = [], {"edge_prompts": 0, "edge_passes": 0}
    for run in track(list(runs.runs) if edges else [], "path patching", total=len(runs.runs) if edges else 0):
        paths = PathPatching(runs.model, run)
        raw.append(paths.effects(edges).double().numpy())
        counts["edge_prompts"] += paths.n_rows
        counts["edge_passes"] += paths.n_passes
    made = [
        {"sender": str(sender), "receiver": str(receiver), **effect_of(np.array([row[i] for row in raw]), runs)}
        for i, (sender, receiver) in enumerate(edges)
    ]
    table = pd.DataFrame(made, columns=[name for name in EDGES if name != "kept"])
    table = table.loc[by_effect(table)].reset_index(drop=True)
    table["kept"] = np.arange(len(table)) < (len(table) if n_edges is None else n_edges)
    return table, counts


def effect_of(raw: np.ndarray, runs: Runs) -> dict[str, float | int]:
    """Mean change over pairs, and its share of the gap, positive where it carries refusal."""
    sign = 1 if runs.mode == "denoising" else -1
    gaps = sign * (runs.clean - runs.corrupted).double().numpy()
    effect = intervals.ratio(raw, gaps) if not runs.reason else intervals.mean([])
    known = not np.isnan(raw).any()
    return {
        "raw": float(raw.mean()),
        "effect": effect.value,
        "low": effect.low,
        "high": effect.high,
        "n": len(raw) if known else 0,
    }


def by_effect(table: pd.DataFrame) -> list[int]:
    """Labels in order of absolute effect; where there is none, in order of the estimate."""
    known = list(largest(table["effect"], len(table)))
    others = table[table["effect"].isna()]
    by_estimate = list(largest(others["estimate"], len(others))) if "estimate" in table else []
    return [*known, *by_estimate, *others.index.difference(by_estimate, sort=False)]


def _node(row) -> Node:
    return Node(int(row["layer"]), row["component"], int(row["head"]))


def _patch(row) -> Patch:
    return Patch(int(row["layer"]), int(row["head"]) if row["component"] == "head" else None, None)


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
