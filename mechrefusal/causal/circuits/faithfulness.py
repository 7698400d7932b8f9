"""Faithfulness of a circuit (Wang et al., 2211.00593, section 4): what it does alone, and what is missing without it.

Everything outside the circuit is mean-ablated (`knockout.replacements` says what the mean is), or the circuit alone is.
Both are shares of m_full − m_ablated, the metric with nothing ablated less that with every head and MLP ablated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.circuits.paths import Node
from mechrefusal.causal.knockout.readings import Measured
from mechrefusal.causal.patching.pair_runs import SMALLEST_GAP
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.progress import bar
from mechrefusal.statistics import intervals

COLUMNS = (
    "of", "size", "heads", "mlps", "node", "is_circuit", "kept", "kept_low", "kept_high", "lost", "lost_low",
    "lost_high", "random_kept", "random_kept_least", "random_kept_most", "random_lost", "random_lost_least",
    "random_lost_most", "n_random", "full", "ablated", "n", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """Refusal scores of every pair, nats."""

    harmful: Float[Tensor, " pair"]
    harmless: Float[Tensor, " pair"]

    def of(self, what: str) -> Float[Tensor, " pair"]:
        """Of the harmful prompts ("harmful"), or how much higher they are than their harmless ones ("difference")."""
        return (self.harmful if what == "harmful" else self.harmful - self.harmless).double()


class Faithfulness:
    """Pairs on which circuits are measured.

    Args:
        harmful, harmless: instructions, in pairs.
        nodes: every head and MLP of the model, in order of effect.
        reference: instructions whose mean activations stand in for what is ablated.
    """

    def __init__(
        self,
        model,
        harmful: Sequence[str],
        harmless: Sequence[str],
        metric: RefusalMetric,
        *,
        nodes: Sequence[Node],
        reference: Sequence[str],
    ) -> None:
        self.nodes = list(nodes)
        parts = [node.part for node in nodes]
        self._measured = Measured(model, harmful, harmless, metric, how="mean", parts=parts, reference=reference)
        self.full = self._without([])
        self.ablated = self._without(self.nodes)

    def keeping(self, nodes: Sequence[Node]) -> Scores:
        """Scores with everything but `nodes` ablated."""
        kept = set(nodes)
        return self._without([node for node in self.nodes if node not in kept])

    def without(self, nodes: Sequence[Node]) -> Scores:
        """Scores with `nodes` ablated."""
        return self._without(nodes)

    def shares(self, nodes: Sequence[Node], of: str) -> dict[str, float]:
        """kept and lost with their intervals, for one set of nodes; NaN where there is nothing to share."""
        return self._shares(self.keeping(nodes), self.without(nodes), of)

    def curve(self, sizes: Sequence[int], circuit: Sequence[Node], *, n_random: int, seed: int) -> pd.DataFrame:
        """Rows of `circuit.Circuit.faithfulness`: the first nodes in order of effect, and `circuit` itself."""
        sets = [self.nodes[:size] for size in sizes if size != len(circuit)]
        sets = sorted([*sets, list(circuit)], key=len)
        rows = []
        with bar("faithfulness", len(sets) * (1 + n_random)) as progress:
            for chosen in sets:
                own = self.keeping(chosen), self.without(chosen)
                progress.advance()
                drawn = []
                for other in self._random(chosen, n_random, seed):
                    drawn.append((self.keeping(other), self.without(other)))
                    progress.advance()
                for of in ("harmful", "difference"):
                    rows.append(self._row(of, chosen, own, drawn, len(circuit)))
        return pd.DataFrame(rows, columns=COLUMNS)

    def _row(
        self,
        of: str,
        chosen: Sequence[Node],
        own: tuple[Scores, Scores],
        drawn: Sequence[tuple[Scores, Scores]],
        n: int,
    ) -> dict:
        others = [self._shares(*scores, of) for scores in drawn]
        row = {
            "of": of,
            "size": len(chosen),
            "heads": sum(node.component == "head" for node in chosen),
            "mlps": sum(node.component == "mlp" for node in chosen),
            "node": str(chosen[-1]) if chosen else "",
            "is_circuit": len(chosen) == n,
            **self._shares(*own, of),
            "n_random": len(drawn),
            "full": float(self.full.of(of).mean()),
            "ablated": float(self.ablated.of(of).mean()),
            "n": len(self.full.harmful),
            "reason": self._reason(of),
        }
        for name in ("kept", "lost"):
            values = np.array([other[name] for other in others] or [np.nan])
            row |= {
                f"random_{name}": float(values.mean()),
                f"random_{name}_least": float(values.min()),
                f"random_{name}_most": float(values.max()),
            }
        return row

    def _shares(self, kept: Scores, without: Scores, of: str) -> dict[str, float]:
        full, ablated = self.full.of(of), self.ablated.of(of)
        total, missing = (full - ablated).double().numpy(), self._reason(of)
        found: dict[str, float] = {}
        for name, part in (("kept", kept.of(of) - ablated), ("lost", full - without.of(of))):
            estimate = intervals.mean([]) if missing else intervals.ratio(part.double().numpy(), total)
            found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return found

    def _reason(self, of: str) -> str:
        total = float((self.full.of(of) - self.ablated.of(of)).mean())
        if abs(total) >= SMALLEST_GAP:
            return ""
        return (
            f"the metric ({of}) differs by {total:.3g} nats between nothing and everything ablated, less than "
            f"{SMALLEST_GAP}: there is nothing to have a share of"
        )

    def _without(self, nodes: Sequence[Node]) -> Scores:
        base = self._measured.base
        found = self._measured.under([node.part for node in nodes]) if nodes else base
        return Scores(found.harmful, found.harmless)

    def _random(self, chosen: Sequence[Node], n_random: int, seed: int) -> Iterator[list[Node]]:
        """Sets of as many heads and as many MLPs as `chosen`, as an MLP does more than a head."""
        for number in range(n_random):
            generator = np.random.default_rng([seed, number, len(chosen)])
            drawn: list[Node] = []
            for component in ("head", "mlp"):
                pool = sorted(node for node in self.nodes if node.component == component)
                k = sum(node.component == component for node in chosen)
                drawn += [pool[i] for i in generator.choice(len(pool), k, replace=False)] if k else []
            yield drawn


def require_metric(metric) -> RefusalMetric:
    """The metric; raise `MechrefusalError` where it is a function, which knock-outs cannot read."""
    if not isinstance(metric, RefusalMetric):
        raise MechrefusalError(
            f"the metric of a circuit is {metric!r}: give a RefusalMetric, whose openings are run after each prompt"
        )
    return metric
