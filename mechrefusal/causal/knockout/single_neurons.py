"""Knock-out of single neurons: screened by a first-order estimate, the largest ones passes.

The estimate of a neuron's effect is gradient × (what stands in − activation) of the refusal score, summed over tokens:
attribution patching (Nanda, 2023) from the prompts as they are to the neuron replaced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.agreement import agreement_of
from mechrefusal.causal.components import Component, ComponentBatch
from mechrefusal.causal.knockout.passes import KnockOutPasses
from mechrefusal.causal.knockout.replacements import How
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Edit, RefusalMetric, flat
from mechrefusal.models import wanted_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed
from mechrefusal.statistics.observations import numbered


@dataclass(frozen=True)
class NeuronKnockOuts(Observed):
    """The neurons with the largest estimates, each knocked out.

    `table`: component ("neuron"), layer, neuron, how, estimate (nats), then refusal, low, high, ... as in `KnockOuts`,
    in the order of absolute estimates.

    `rank_correlation` (Spearman) and `error` (mean |estimate − refusal|, nats) compare the estimates with what was
    measured, over the rows of the table: they say how far the screen's order can be trusted among the neurons that it
    let through. `estimates`: of all neurons, NaN in layers that were not asked for. `observations`: change of refusal
    of every harmful prompt and neuron (axes layer, neuron), nats.
    """

    table: pd.DataFrame
    observations: Observations
    rank_correlation: float
    error: float
    estimates: Float[np.ndarray, "layer neuron"]
    harmful: Float[Tensor, " harmful"]
    harmless: Float[Tensor, " harmless"]


def neurons(
    model,
    harmful: Sequence[str],
    harmless: Sequence[str],
    metric: RefusalMetric,
    *,
    layers: Sequence[int] | None = None,
    top: int = 50,
    how: How = "mean",
    reference: Sequence[str] | None = None,
) -> NeuronKnockOuts:
    """Knock out the `top` neurons (activations between an MLP's matrices) with the largest estimated effects.

    Arguments as in `knock_out`; `how` is "mean" or "zero".

    Raises:
        MechrefusalError: as `knock_out`; or `top` is below one.
    """
    if how == "resample":
        raise MechrefusalError("neurons are knocked out by 'mean' or 'zero'; 'resample' is for heads and MLPs")
    if top < 1:
        raise MechrefusalError(f"top is {top}: give the number of neurons to measure, at least 1")
    chosen_layers = wanted_layers(model, layers, "knock out in")
    parts = [Component("neuron", layer) for layer in chosen_layers]
    passes = KnockOutPasses(model, harmful, harmless, metric, how=how, parts=parts, reference=reference)
    estimates = _estimates(model, passes, chosen_layers)
    order = np.argsort(-np.abs(np.nan_to_num(estimates)), axis=None, kind="stable")
    chosen = [place for place in order if np.isfinite(estimates.flat[place])][:top]
    rows, changes = [], []
    for place in track(chosen, f"neurons ({how})"):
        layer, neuron = (int(i) for i in np.unravel_index(place, estimates.shape))
        scores = passes.under([Component("neuron", layer, neuron)])
        changes.append(scores.harmful - passes.base.harmful)
        named = {"component": "neuron", "layer": layer, "neuron": neuron, "how": how}
        rows.append({**named, "estimate": float(estimates[layer, neuron]), **passes.effect(scores)})
    table = pd.DataFrame(rows)
    measured, estimated = table["refusal"].to_numpy(), table["estimate"].to_numpy()
    agreed = agreement_of(estimated, measured)
    rank = float(agreed["spearman"]) if len(table) > 2 else float("nan")  # of two it is 1 or −1 whatever they are
    values, cells = torch.stack(changes, dim=1).double().numpy(), table[["layer", "neuron"]]
    observations = Observations(values, cells, numbered(len(values)))
    error, base = float(agreed["error"]), passes.base
    return NeuronKnockOuts(table, observations, rank, error, estimates, base.harmful, base.harmless)


def _estimates(model, passes: KnockOutPasses, layers: Sequence[int]) -> Float[np.ndarray, "layer neuron"]:
    """First-order change of the mean refusal score of the harmful prompts, neuron by neuron."""
    prompts, replacements = passes.harmful, passes.replacements
    by_layer: dict[int, Tensor] = {}
    steps: dict[tuple[int, int], Tensor] = {}
    taken: dict[tuple[int, int], Tensor] = {}
    opened: list[ComponentBatch] = []

    def watch(layer: int, number: int) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            step = torch.zeros_like(activation, requires_grad=True)
            steps[layer, number], taken[layer, number] = step, activation.detach()
            return activation + step

        return edit

    def edits(batch: ComponentBatch) -> list[Edit]:
        opened.append(batch)
        return [(layer, "mlp_post", watch(layer, len(opened) - 1)) for layer in layers]

    with torch.enable_grad():
        for _, logits in prompts.logits(edits):
            keys = list(steps)
            slopes = torch.autograd.grad(passes.metric.of_runs(logits).sum(), [steps[key] for key in keys])
            for (layer, number), slope in zip(keys, slopes, strict=True):
                places, index = replacements.index(opened[number], prompts, 0)
                # What several runs share stands once in a tree.
                places, first = _once(places)
                change = (
                    replacements.values((layer, "mlp_post"), index[first])
                    - flat(model, "mlp_post", taken[layer, number])[places]
                )
                effect = (flat(model, "mlp_post", slope)[places] * change).double().sum(0) / passes.n_harmful
                by_layer[layer] = by_layer.get(layer, 0) + effect
            steps.clear()
            taken.clear()
    width = len(next(iter(by_layer.values())))
    estimates = np.full((model.cfg.n_layers, width), np.nan)
    for layer, effect in by_layer.items():
        estimates[layer] = effect.cpu().numpy()
    return estimates


def _once(places: Tensor) -> tuple[Tensor, Tensor]:
    """Each place once, and where it first stood."""
    listed = places.tolist()
    first = {place: row for row, place in reversed(list(enumerate(listed)))}
    distinct = sorted(first)
    return places.new_tensor(distinct), places.new_tensor([first[place] for place in distinct])
