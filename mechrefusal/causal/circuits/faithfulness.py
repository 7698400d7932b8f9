"""Faithfulness of a circuit (Wang et al., 2211.00593, section 4): what it does alone, and what is missing without it.

Everything outside the circuit is mean-ablated (`knockout.replacements` says what the mean is), or the circuit alone is.
Both are shares of m_full − m_ablated, the metric with nothing ablated less that with every head and MLP ablated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrefusal.causal.circuits.paths import Node
from mechrefusal.causal.knockout.passes import KnockOutPasses
from mechrefusal.causal.patching.pair_runs import SMALLEST_GAP
from mechrefusal.causal.prompt_scores import PromptScores
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.progress import bar
from mechrefusal.statistics import Estimate, Observations, Observed, intervals
from mechrefusal.statistics.observations import numbered

COLUMNS = (
    "of", "size", "heads", "mlps", "node", "is_circuit", "kept", "kept_low", "kept_high", "lost", "lost_low",
    "lost_high", "random_kept", "random_kept_least", "random_kept_most", "random_lost", "random_lost_least",
    "random_lost_most", "n_random", "full", "ablated", "n", "reason",
)  # fmt: skip
METRICS = ("harmful", "difference")
"""The score of the harmful prompts, or how much higher it is than that of their harmless ones."""
SHARES = ("kept", "lost")
Values = Mapping[str, Float[np.ndarray, " pair"]]
"""One of each of `METRICS`, nats."""


@dataclass(frozen=True)
class Faithfulness(Observed):
    """What sets of nodes do, pair by pair.

    Fields:
        sets: nodes of each set, of different sizes. n_circuit: size of the one that is the circuit.
        observations: axes of ("harmful", "difference"), size and share; nats. kept: what the set has with everything
            else ablated, beyond what is left with everything ablated. lost: what is missing with the set ablated.
        random: the same for random sets of as many heads and MLPs, axis `draw` first.
        full, ablated: the metric of every pair with nothing and with everything ablated, nats.
    """

    sets: tuple[tuple[Node, ...], ...]
    n_circuit: int
    observations: Observations
    random: Observations
    full: Values
    ablated: Values

    @classmethod
    def unmeasured(cls) -> "Faithfulness":
        """Of no set, where there is no gap to have a share of."""
        nothing = Observations(np.empty((0, 0)), pd.DataFrame(columns=["of", "size", "share"]), (), "pair")
        return cls((), 0, nothing, nothing, {}, {})

    @cached_property
    def table(self) -> pd.DataFrame:
        """Two rows a set, in the columns of table `faithfulness` (see `Circuit`)."""
        rows = [self._row(of, number) for number in range(len(self.sets)) for of in METRICS]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _row(self, of: str, number: int) -> dict:
        chosen = self.sets[number]
        n_cells = len(self.observations.cells)
        n_random = len(self.random.cells) // max(n_cells, 1)
        row = {
            "of": of,
            "size": len(chosen),
            "heads": sum(node.component == "head" for node in chosen),
            "mlps": sum(node.component == "mlp" for node in chosen),
            "node": str(chosen[-1]) if chosen else "",
            "is_circuit": len(chosen) == self.n_circuit,
            "n_random": n_random,
            "full": float(self.full[of].mean()),
            "ablated": float(self.ablated[of].mean()),
            "n": len(self.full[of]),
            "reason": self._reason(of),
        }
        for name in SHARES:
            cell = (number * len(METRICS) + METRICS.index(of)) * len(SHARES) + SHARES.index(name)
            row |= self._share(of, self.observations.values[:, cell]).columns(name)
            draws = self.random.values[:, cell::n_cells].T
            shares = np.array([self._share(of, values).value for values in draws] or [np.nan])
            row |= {
                f"random_{name}": float(shares.mean()),
                f"random_{name}_least": float(shares.min()),
                f"random_{name}_most": float(shares.max()),
            }
        return row

    def _estimate(self, cell: pd.Series, values: Float[np.ndarray, " pair"], confidence: float) -> Estimate:
        """A share of m_full − m_ablated with its interval over pairs, of a linearised ratio; NaN without a gap."""
        return self._share(cell["of"], values, confidence)

    def _share(self, of: str, part: Float[np.ndarray, " pair"], confidence: float = 0.95) -> Estimate:
        if self._reason(of):
            return intervals.mean([])
        return intervals.ratio(part, self.full[of] - self.ablated[of], confidence=confidence)

    def _reason(self, of: str) -> str:
        total = float((self.full[of] - self.ablated[of]).mean())
        if abs(total) >= SMALLEST_GAP:
            return ""
        return (
            f"the metric ({of}) differs by {total:.3g} nats between nothing and everything ablated, less than "
            f"{SMALLEST_GAP}: there is nothing to have a share of"
        )


class FaithfulnessPasses:
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
        self._passes = KnockOutPasses(model, harmful, harmless, metric, how="mean", parts=parts, reference=reference)
        self.full, self.ablated = _values(self._passes.base), self._without(self.nodes)

    def measure(
        self, sets: Sequence[Sequence[Node]], circuit: Sequence[Node] = (), *, n_random: int = 0, seed: int = 0
    ) -> Faithfulness:
        """Faithfulness of these sets of nodes, of which `circuit` is one; see `Circuit.faithfulness`."""
        changes: list[Float[np.ndarray, " pair"]] = []
        random: list[list[Float[np.ndarray, " pair"]]] = [[] for _ in range(n_random)]
        with bar("faithfulness", len(sets) * (1 + n_random)) as progress:
            for chosen in sets:
                changes += self._changes(chosen)
                progress.advance()
                for draw, other in enumerate(self._random(chosen, n_random, seed)):
                    random[draw] += self._changes(other)
                    progress.advance()
        cells = pd.DataFrame(
            [(of, len(chosen), share) for chosen in sets for of in METRICS for share in SHARES],
            columns=["of", "size", "share"],
        )
        observations = Observations(np.stack(changes, axis=1), cells, numbered(len(changes[0])), "pair")
        empty = Observations(
            np.empty((len(observations.units), 0)), cells.iloc[:0].assign(draw=0), observations.units, "pair"
        )
        by_draw = [Observations(np.stack(each, axis=1), cells, observations.units, "pair") for each in random]
        others = Observations.joined(by_draw, "draw", range(n_random)) if by_draw else empty
        return Faithfulness(tuple(map(tuple, sets)), len(circuit), observations, others, self.full, self.ablated)

    def _changes(self, chosen: Sequence[Node]) -> list[Float[np.ndarray, " pair"]]:
        """Changes by the set alone and without it, in the order of the cells."""
        inside = set(chosen)
        alone = self._without([node for node in self.nodes if node not in inside])
        without = self._without(chosen)
        return [part for of in METRICS for part in (alone[of] - self.ablated[of], self.full[of] - without[of])]

    def _without(self, nodes: Sequence[Node]) -> Values:
        return _values(self._passes.under([node.part for node in nodes]) if nodes else self._passes.base)

    def _random(self, chosen: Sequence[Node], n_random: int, seed: int) -> Iterator[list[Node]]:
        """Sets of as many heads and as many MLPs as `chosen`, as an MLP does more than a head."""
        for number in range(n_random):
            generator = np.random.default_rng([seed, number, len(chosen)])
            nodes: list[Node] = []
            for component in ("head", "mlp"):
                pool = sorted(node for node in self.nodes if node.component == component)
                k = sum(node.component == component for node in chosen)
                nodes += [pool[i] for i in generator.choice(len(pool), k, replace=False)] if k else []
            yield nodes


def _values(scores: PromptScores) -> Values:
    """In float64; the difference is taken in the precision of the scores."""
    both = {"harmful": scores.harmful, "difference": scores.harmful - scores.harmless}
    return {of: values.double().numpy() for of, values in both.items()}


def require_metric(metric) -> RefusalMetric:
    """The metric; raise `MechrefusalError` where it is a function, which knock-outs cannot read."""
    if not isinstance(metric, RefusalMetric):
        raise MechrefusalError(
            f"the metric of a circuit is {metric!r}: give a RefusalMetric, whose openings are run after each prompt"
        )
    return metric
