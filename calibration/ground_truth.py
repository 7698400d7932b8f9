"""Circuits and carriers that are known, and what the package's measures make of them.

    python -m calibration.ground_truth            # about ten minutes on one core
    python -m calibration.ground_truth --quick    # at most half a minute

First, programs compiled by tracr (`compile_tracr`), whose circuit is known exactly: how well plain edge attribution
(EAP), EAP-IG and exact path patching rank its edges and nodes (AUROC), and how faithful the circuits are that they
choose (MIB, 2504.13151). Then a carrier that is planted at a known layer: how often it is found there (`planted`). The
output ends with a table in markdown.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from torch import Tensor

from calibration import planted
from calibration.compiled import Compiled, load
from mechrefusal.causal.attribution_patching.gradients import Method, estimates
from mechrefusal.causal.circuits.edge_gradients import edge_estimates
from mechrefusal.causal.circuits.edge_sets import SIZES, areas, ranked, score_of
from mechrefusal.causal.circuits.paths import Edge, Node, PathPatching, edges_between, every_node
from mechrefusal.forward import Metric, MetricReader, PairRun, Patch, Site, runner_of
from mechrefusal.models.batches import common_length

QUICK = ("frac_prevs", "hist", "detect_pattern", "count_less_freq")
ALL = (*QUICK, "pair_balance", "reverse", "shuffle_dyck")
EXACT = 1e-2
"""Largest difference from tracr's own answers at which a loaded program counts as the same."""


@dataclass(frozen=True)
class Case:
    """Two inputs with different answers, and the metric: how far the answer is the clean one rather than the other."""

    run: PairRun
    metric: Metric


def cases(program: Compiled, n: int, seed: int) -> list[Case]:
    """`n` pairs of inputs drawn at random, of those whose answers differ."""
    generator = random.Random(seed)
    texts = [
        "".join(text) for text in itertools.product(program.about["vocabulary"], repeat=program.about["length"] - 1)
    ]
    found: list[Case] = []
    for _ in range(1000 * n):
        clean, corrupted = generator.sample(texts, 2)
        metric = metric_of(program, program.answer(clean), program.answer(corrupted))
        if metric is not None:
            source, target = program.token_ids(clean), program.token_ids(corrupted)
            run = PairRun(source, target, common_length([source, target]), MetricReader.of(metric))
            found.append(Case(run, metric))
        if len(found) == n:
            return found
    raise RuntimeError(f"{program.name}: fewer than {n} pairs of inputs with different answers")


def metric_of(program: Compiled, clean: Tensor, corrupted: Tensor) -> Metric | None:
    """The clean answer's logit less the corrupted one's, or the number, signed so that clean is more; None if equal."""
    if program.categorical:
        a, b = int(clean.argmax()), int(corrupted.argmax())
        return None if a == b else lambda logits: logits[:, a] - logits[:, b]
    difference = float(clean[0] - corrupted[0])
    sign = 1.0 if difference > 0 else -1.0
    return None if abs(difference) < 0.05 else lambda logits: sign * (logits[:, 0] - logits[:, 1])


@dataclass(frozen=True)
class Scores:
    """Mean change of the metric over the cases by edge and by node, exact or estimated, and the seconds it took."""

    edges: Mapping[Edge, float]
    nodes: Mapping[Node, float]
    seconds: float


def exact_scores(program: Compiled, given: Sequence[Case], edges: Sequence[Edge], nodes: Sequence[Node]) -> Scores:
    """By path patching and by patching nodes."""
    start = time.perf_counter()
    by_edge = np.mean([PathPatching(program.model, case.run).effects(edges).double().numpy() for case in given], axis=0)
    by_node = np.mean([_patched(program, case, nodes) for case in given], axis=0)
    return _named(edges, by_edge, nodes, by_node, start)


def _patched(program: Compiled, case: Case, nodes: Sequence[Node]) -> np.ndarray:
    found = np.zeros(len(nodes))
    parts: tuple[tuple[str, Site], ...] = (("head", "z"), ("mlp", "mlp_out"))
    for component, site in parts:
        here = [i for i, node in enumerate(nodes) if node.component == component]
        ready = runner_of(program.model).patching(case.run, site)
        target = case.run.reader.score(ready.unpatched())[1]
        patches = [Patch(nodes[i].layer, nodes[i].head if component == "head" else None, None) for i in here]
        found[here] = (ready.scores(patches) - target).double().numpy()
    return found


def gradient_scores(
    program: Compiled, given: Sequence[Case], edges: Sequence[Edge], nodes: Sequence[Node], method: Method, steps: int
) -> Scores:
    """By gradients: `method` as in `circuit.attribute_edges`."""
    start = time.perf_counter()
    by_edge = np.zeros(len(edges))
    by_node = np.zeros(len(nodes))
    sites: tuple[Site, ...] = ("z", "mlp_out")
    for case in given:
        found, _ = edge_estimates(program.model, case.run, case.metric, edges, method=method, steps=steps)
        by_edge += found.numpy() / len(given)
        by_site, _ = estimates(program.model, case.run, case.metric, sites, method=method, steps=steps)
        for i, node in enumerate(nodes):
            head = node.component == "head"
            values = by_site["z" if head else "mlp_out"][node.layer]
            by_node[i] += float((values[:, node.head] if head else values).sum()) / len(given)
    return _named(edges, by_edge, nodes, by_node, start)


def _named(edges, by_edge, nodes, by_node, start: float) -> Scores:
    seconds = time.perf_counter() - start
    return Scores(
        dict(zip(edges, by_edge.tolist(), strict=True)), dict(zip(nodes, by_node.tolist(), strict=True)), seconds
    )


class Faithfulness:
    """(m_C − m_corrupt) / (m_full − m_corrupt) of circuits, means over the cases above and below the line."""

    def __init__(self, program: Compiled, given: Sequence[Case]) -> None:
        self._paths = [PathPatching(program.model, case.run) for case in given]
        self._known: dict[frozenset[Edge], float] = {}
        self.full = self._total(edges_between(program.model, every_node(program.model)))

    def of(self, circuit: Sequence[Edge]) -> float:
        """Of one circuit."""
        return self._total(circuit) / self.full

    def _total(self, circuit: Sequence[Edge]) -> float:
        key = frozenset(circuit)
        if key not in self._known:
            self._known[key] = sum(score_of(one, circuit) for one in self._paths)
        return self._known[key]


METHODS: dict[str, Callable[..., Scores]] = {
    "EAP": partial(gradient_scores, method="eap", steps=1),
    "EAP-IG, 5 steps": partial(gradient_scores, method="eap-ig", steps=5),
    "EAP-IG, 50 steps": partial(gradient_scores, method="eap-ig", steps=50),
    "exact": exact_scores,
}


def compared(program: Compiled, n: int, seed: int, methods: Sequence[str]) -> Iterator[dict]:
    """One row a method: AUROC of edges and nodes, faithfulness by size, CPR and CMD, seconds."""
    given, measured = cases(program, n, seed), Faithfulness(program, cases(program, n, seed + 1))
    nodes = every_node(program.model)
    edges = edges_between(program.model, nodes)
    for name in methods:
        scores = METHODS[name](program, given, edges, nodes)
        shares = [measured.of(ranked(scores.edges, size)) for size in SIZES]
        cpr, cmd = areas(shares)
        yield {
            "program": program.name,
            "method": name,
            "edges": f"{len(program.edges)} of {len(edges)}",
            "AUROC edges": auroc(scores.edges, program.edges),
            "AUROC nodes": auroc(scores.nodes, program.nodes),
            **{f"f {100 * size:g}%": share for size, share in zip(SIZES, shares, strict=True)},
            "CPR": cpr,
            "CMD": cmd,
            "f true circuit": measured.of(sorted(program.edges)),
            "seconds": scores.seconds,
        }


def auroc(scores: Mapping, true: frozenset) -> float:
    """Probability that a true one has a larger absolute score than another (half if equal); NaN where all are true."""
    labels = [one in true for one in scores]
    if all(labels) or not any(labels):
        return float("nan")
    # Rounding of what should be 0 is no rank.
    values = np.abs(list(scores.values()))
    return float(roc_auc_score(labels, np.where(values > 1e-6 * max(values.max(), 1e-12), values, 0)))


def circuits(names: Sequence[str], n: int, seed: int, methods: Sequence[str] = tuple(METHODS)) -> pd.DataFrame:
    """Rows of `compared` of all these programs.

    Raises:
        RuntimeError: a program does not answer as tracr's own model does.
    """
    rows: list[dict] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            program = load(name, Path(folder))
            if (error := program.largest_error()) > EXACT:
                raise RuntimeError(f"{name} is {error:.2g} off tracr's own answers")
            rows += compared(program, n, seed, methods)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table for docs; numbers to two places."""
    cells = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    lines = [list(table.columns), ["---"] * len(table.columns), *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str]) -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.quick:
        methods = [name for name in METHODS if "50" not in name]
        table = circuits(QUICK, 4, asked.seed, methods)
        carriers = planted.found(seeds=range(1), n_prompts=(4,), noises=planted.NOISES[:1])
    else:
        table = circuits(ALL, 8, asked.seed)
        carriers = planted.found(seeds=range(6), n_prompts=(2, 4, 16))
    print("Circuits of compiled programs\n\n" + markdown(table))
    print("\nCarriers planted at a known layer: share found, and its 95% interval\n\n" + markdown(carriers))
    short = table.drop(columns=[name for name in table.columns if name.startswith("f ") and name.endswith("%")])
    means = short.drop(columns=["program", "edges"]).groupby("method", sort=False).mean().reset_index()
    print(f"\nMeans over {table['program'].nunique()} programs (NaN left out)\n\n" + markdown(means))


if __name__ == "__main__":
    main(sys.argv[1:])
