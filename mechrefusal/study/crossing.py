"""Activations of one checkpoint put into another: which site of the trained model makes the base refuse, and back."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.causal.cross_patching import both_directions
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.memory import free_memory, given_back
from mechrefusal.models import Checkpoint, bytes_to_hook, load_hooked
from mechrefusal.study.across import Pairs
from mechrefusal.study.pairwise import by_pair
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts

STAGE = "cross patching"
"""Its units are a pair of checkpoints each."""
KEPT = 2
"""Hooked transformers that stay in memory between pairs, where there is room for one more while it is loaded."""


def crossing(
    run: Run, pairs: Pairs, prompts: StudyPrompts, n_layers: Mapping[str, int], *, version: int = 1
) -> pd.DataFrame:
    """Table `cross_patching`: where arms start and the last checkpoint of each, and these with each other, both ways.

    They start from the base, or from the end of a warm-up; without either, at their own first checkpoint.

    On harmful and on as many harmless validation prompts.
    Each pair is kept by itself. Both are scored by the metric of the later checkpoint, the one that refuses; pairs that
    cannot be patched have a row that says why. `version`: of the stage.
    """
    settings = run.recipe.causal
    chosen = prompts.validation.take(settings.n_crossed)
    sets = {"harmful": chosen.harmful.texts, "harmless": chosen.harmless.texts}
    load = _loader([checkpoint for pair in pairs.ends() for checkpoint in pair])

    def crossed() -> Iterator[_Crossing]:
        for first, second in pairs.ends():
            metric = RefusalMetric.from_json(tables.read("openings", run.measurements(second))["token_ids"].iloc[0])
            layers = range(0, n_layers[first.id], settings.layer_step)
            yield _Crossing(first, second, metric, layers, settings.n_rotations, pairs.why_apart(first, second))

    shared = {"version": version, "prompts": sets}
    rows = partial(_Crossing.tables, sets=sets, load=load)
    found = by_pair(run, STAGE, ("cross_patching",), crossed(), rows, doing="patch between", shared=shared)
    del load, rows
    given_back()
    return found["cross_patching"]


def _loader(checkpoints: list[Checkpoint]) -> Callable[[Checkpoint], Any]:
    """What loads a hooked transformer: anew each time, or once for several pairs where memory allows to keep some."""
    needed = (KEPT + 1) * max(map(bytes_to_hook, checkpoints), default=0)
    return lru_cache(maxsize=KEPT)(load_hooked) if needed < free_memory() else load_hooked


@dataclass(frozen=True)
class _Crossing:
    """Two checkpoints whose activations are put into each other; `apart`: why they cannot be, if so."""

    first: Checkpoint
    second: Checkpoint
    metric: RefusalMetric
    layers: range
    n_rotations: int
    apart: str

    @property
    def name(self) -> str:
        return f"{self.first.id} and {self.second.id}"

    @property
    def inputs(self) -> dict[str, Any]:
        """All but the prompts that the numbers hang on."""
        return {
            "weights": [self.first.weights, self.second.weights],
            "metric": self.metric.as_json(),
            "layers": list(self.layers),
            "n_rotations": self.n_rotations,
            "apart": self.apart,
        }

    def tables(self, sets: Mapping[str, list[str]], load: Callable[[Checkpoint], Any]) -> dict[str, pd.DataFrame]:
        """The rows of either set of prompts."""
        parts = [self.rows(texts, load).assign(set=name) for name, texts in sets.items()]
        return {"cross_patching": pd.concat(parts, ignore_index=True)}

    def rows(self, texts: list[str], load: Callable[[Checkpoint], Any]) -> pd.DataFrame:
        """Rows of table `cross_patching`, less the set of prompts, both ways."""
        by_id = {self.first.id: self.first, self.second.id: self.second}
        try:
            if self.apart:
                raise MechrefusalError(f"not compared: {self.apart}")
            loaders = {name: partial(load, checkpoint) for name, checkpoint in by_id.items()}
            rows = both_directions(loaders, texts, self.metric, layers=self.layers, draws=self.n_rotations).table
        except MechrefusalError as error:
            nothing = dict.fromkeys(tables.columns("cross_patching")) | {"layer": -1, "head": -1, "n": 0}
            nothing |= {"reason": str(error)}
            ways = ((self.first.id, self.second.id), (self.second.id, self.first.id))
            rows = pd.DataFrame([{**nothing, "source": source, "target": target} for source, target in ways])
        for side in ("source", "target"):
            rows[f"arm_{side}"] = [by_id[name].arm for name in rows[side]]
            rows[f"step_{side}"] = [by_id[name].step for name in rows[side]]
        return rows.drop(columns=["source", "target"])
