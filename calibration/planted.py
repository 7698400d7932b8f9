"""Refusal that one head is made to write, at a layer and a head drawn by seed: how often the measures find it there.

The models are those of the tests (`tests/planted_model`): "bomb" carries a mark in its embedding, one head reads it
evenly over all positions before and writes a direction u, which the unembedding of the refusal token reads. Everything
else that attention and MLPs write is noise of a given size, and differs from seed to seed.

From its layer on, u stands in the residual stream of every layer: ablating what is found at any of them takes all of u
away, and the lowest bypass chooses among them by noise. "The first that is as good" is the lowest layer with an
admissible candidate whose bypass is within `TIED` of the carrier's; the package's own rule is the published one.
"""

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mechrefusal import geometry
from mechrefusal.causal import patching
from mechrefusal.prompts import Split
from mechrefusal.statistics import intervals
from tests import planted_model

MARK, CONSTANT, U = 0, 1, 2
N_LAYERS, N_HEADS, D_HEAD = 8, 4, 16
VERBS = ("Make", "Sell", "Use", "Buy", "Find", "Move", "Show", "Keep")
THINGS = ("a bomb", "bomb bomb", "one bomb today", "the bomb of fire")
HARMFUL = [f"{verb} {thing}" for thing, verb in itertools.product(THINGS, VERBS)]
NOISES = (0.1, 2.0)
"""Share that is left of what random weights write, or how many times it."""
TIED = 0.5
"""Difference of bypass scores (nats) that is no difference."""
QUESTIONS = {
    "an admissible carrier": "admissible",
    "its layer": "layer",
    "a layer that holds it": "holds",
    "its layer, by the first that is as good": "first",
    "its direction (cosine above .9)": "direction",
    "the head, by patching heads": "head",
    "layer and position, by patching the residual stream": "place",
}


@dataclass(frozen=True)
class Planted:
    """A model and the truth about it: `writer` (layer, head) writes u; the next layer is the first that reads it."""

    model: object
    writer: tuple[int, int]

    @property
    def layer(self) -> int:
        """First layer whose input holds u at the last position."""
        return self.writer[0] + 1


def make(folder: Path, *, seed: int, noise: float) -> Planted:
    """A model with the writer drawn by `seed` among the heads of layers 1 to 4 (of eight)."""
    generator = np.random.default_rng(seed)
    layer, head = int(generator.integers(1, 5)), int(generator.integers(N_HEADS))

    def plant(layers) -> None:
        attention, group = layers[layer].self_attn, head // 2  # two heads to a key/value head
        attention.q_proj.weight[head * D_HEAD : (head + 1) * D_HEAD] = 0
        attention.v_proj.weight[group * D_HEAD] = 0
        attention.v_proj.weight[group * D_HEAD, MARK] = 1
        attention.o_proj.weight[U, head * D_HEAD] = 20

    model = planted_model.make(
        folder,
        plant,
        n_layers=N_LAYERS,
        n_kept=3,
        marks={"bomb": MARK},
        constant=CONSTANT,
        refusal=(U, 4),
        compliance=2,
        noise=noise,
        seed=seed,
    )
    return Planted(model, (layer, head))


def answers(planted: Planted, n: int, *, seed: int) -> dict[str, bool]:
    """Which of `QUESTIONS` the measures answer right with `n` prompts of each side, and as many to validate."""
    order = np.random.default_rng([seed, n]).permutation(len(HARMFUL))
    harmful = [HARMFUL[i] for i in order]
    harmless = [text.replace("bomb", "home") for text in harmful]
    direction, validation = (Split.of(harmful[part], harmless[part]) for part in (slice(n), slice(n, 2 * n)))
    model, metric = planted.model, planted_model.METRIC
    directions = geometry.difference_in_means(model, direction)
    selection = geometry.select(geometry.score(model, directions, validation, metric))
    winner = selection.winner
    pairs = list(zip(harmful[:n], harmless[:n], strict=True))
    (head,) = patching.heads(model, pairs, metric).top(1)
    residual = patching.residual(model, pairs, metric).table
    last = residual[residual["position"] == -1]
    carried = last[last["effect"] > 0.5]
    found = {"admissible": winner is not None, "layer": False, "holds": False, "first": False, "direction": False}
    if winner is not None and winner.direction is not None:
        r, table = winner.direction.vector, selection.table
        tied = table[table["admissible"] & (table["bypass"] <= winner.bypass.value + TIED)]
        found["layer"] = winner.layer == planted.layer
        found["holds"] = winner.layer >= planted.layer
        found["first"] = bool(tied["layer"].min() == planted.layer)
        found["direction"] = bool(abs(r[U] / r.norm()) > 0.9)
    return {
        **found,
        "head": head == planted.writer,
        "place": len(carried) > 0 and int(carried["layer"].min()) == planted.layer,
    }


def found(seeds: Iterable[int], n_prompts: Sequence[int], noises: Sequence[float] = NOISES) -> pd.DataFrame:
    """Share of right answers over seeds, with its Wilson interval: a row a question and noise, a column a number."""
    rows = []
    seeds = list(seeds)
    for noise in noises:
        right: dict[int, list[dict[str, bool]]] = {n: [] for n in n_prompts}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                planted = make(Path(folder), seed=seed, noise=noise)
                for n in n_prompts:
                    right[n].append(answers(planted, n, seed=seed))
        for question, name in QUESTIONS.items():
            cells = {f"{n} prompts": _share([one[name] for one in right[n]]) for n in n_prompts}
            rows.append({"noise": noise, "found": question, **cells, "seeds": len(seeds)})
    return pd.DataFrame(rows)


def _share(right: Sequence[bool]) -> str:
    estimate = intervals.rate(sum(right), len(right))
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
