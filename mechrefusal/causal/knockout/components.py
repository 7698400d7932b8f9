"""Knock-out of heads, MLPs and attention layers, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.components import Component, Kind
from mechrefusal.causal.knockout.passes import KnockOutPasses
from mechrefusal.causal.knockout.replacements import How
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.models import wanted_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed
from mechrefusal.statistics.observations import numbered

KINDS: tuple[Kind, ...] = ("head", "mlp", "attention")


@dataclass(frozen=True)
class KnockOuts(Observed):
    """What knocking components out does, one row a component.

    `table`: component ("head", "mlp", "attention"), layer, head (−1 where there is none), how, refusal (mean change of
    the refusal score of the harmful prompts, nats; negative: the component carried refusal), low, high (95% t interval
    over prompts, paired), harmless, harmless_low, harmless_high (the same for the harmless prompts), kl, kl_low,
    kl_high (KL(base ‖ knocked out) of the next token of the harmless prompts, nats), n_harmful, n_harmless, p (that no
    component of this table changes refusal, adjusted for all of them: `statistics.maps.sign_flip_p`).

    `observations`: change of refusal, of every harmful prompt and component, nats. `harmful`, `harmless`: refusal score
    of every prompt with nothing replaced, nats.
    """

    table: pd.DataFrame
    observations: Observations
    harmful: Float[Tensor, " harmful"]
    harmless: Float[Tensor, " harmless"]

    def top(self, k: int) -> pd.DataFrame:
        """The `k` rows with the largest absolute change of refusal, largest first."""
        order = self.table["refusal"].abs().sort_values(ascending=False, kind="stable").index[:k]
        return self.table.loc[order].reset_index(drop=True)


def knock_out(
    model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    metric: RefusalMetric,
    *,
    how: How = "mean",
    components: Sequence[Kind] = ("head", "mlp"),
    layers: Sequence[int] | None = None,
    reference: Sequence[str] | None = None,
    draws: int = 4,
    seed: int = 0,
) -> KnockOuts:
    """Knock out every head, MLP and (if asked) attention layer, one at a time, at all tokens.

    Args:
        model: a hooked transformer, under whatever hooks the caller has open.
        harmful, harmless: instructions.
        how: "mean", "zero" or "resample"; see `mechrefusal.causal.knockout.replacements`.
        components: of "head", "mlp", "attention".
        layers: all by default.
        reference: instructions whose mean or whose activations stand in; by default harmful and harmless together, so
            that what tells them apart is what is lost.
        draws: with "resample", other prompts for each prompt; scores and KL are averaged over them.
        seed: of these draws.

    Raises:
        MechrefusalError: a set is empty, a name is unknown, a layer is not in the model, or (with "resample") a prompt
            has no other one to take activations from.
    """
    parts = _components(model, components, layers)
    passes = KnockOutPasses(
        model, harmful, harmless, metric, how=how, parts=parts, reference=reference, draws=draws, seed=seed
    )
    rows, changes = [], []
    for part in track(parts, f"knock-out ({how})"):
        scores = passes.under([part])
        changes.append(scores.harmful - passes.base.harmful)
        place = {"component": part.kind, "layer": part.layer, "head": part.index, "how": how}
        rows.append({**place, **passes.effect(scores)})
    table = pd.DataFrame(rows)
    values, cells = torch.stack(changes, dim=1).double().numpy(), table[["component", "layer", "head"]]
    observations = Observations(values, cells, numbered(len(harmful)))
    return KnockOuts(table.assign(p=observations.p()), observations, passes.base.harmful, passes.base.harmless)


def _components(model, kinds: Sequence[Kind], layers: Sequence[int] | None) -> list[Component]:
    if not kinds:
        raise MechrefusalError(f"no kind of component to knock out; give some of {', '.join(KINDS)}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise MechrefusalError(f"unknown component '{unknown[0]}' of a knock-out; expected {', '.join(KINDS)}")
    return [
        Component(kind, layer, index)
        for layer in wanted_layers(model, layers, "knock out in")
        for kind in dict.fromkeys(kinds)
        for index in (range(model.cfg.n_heads) if kind == "head" else [-1])
    ]
