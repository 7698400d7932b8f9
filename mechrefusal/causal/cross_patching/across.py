"""Activations of one checkpoint put into another: one at a time, layers together, in both directions."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechrefusal import prompts
from mechrefusal.causal.cross_patching.activations import (
    DEFAULT_SITES,
    MEMORY,
    CrossSite,
    SourceActivations,
    architecture,
    keep_activations,
    require_same,
    split_by_memory,
)
from mechrefusal.causal.cross_patching.passes import Patch, Patched, Positions
from mechrefusal.causal.cross_patching.results import BothDirections, CrossPatching
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.metric_reader import Metric
from mechrefusal.models import wanted_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations
from mechrefusal.statistics.observations import numbered

POSITIONS = ("all", "last")
HEAD_SITES = ("z", "result")


@torch.no_grad()
def patch_across(
    source,
    target,
    texts: Sequence[str] | None = None,
    metric: Metric | None = None,
    *,
    sites: Sequence[CrossSite] | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions = "all",
    draws: int = 1,
    seed: int = 0,
    memory: int = MEMORY,
) -> CrossPatching:
    """Put activations of `source` into `target`, one layer (or one head of it) at a time.

    Costs one pass of the target from the patched layer on for each row, and one more for each draw of the control:
    with 30 layers of 9 heads, the default sites and one draw 720 passes of half of the model on average. Beginnings in
    common of prompts and runs are run once a pass. Memory: what `keep_activations` keeps, and the target's own residual
    stream.

    Args:
        source: a hooked transformer, or what `keep_activations` gave; a hooked one is run over as many prompts at a
            time as `memory` (bytes) allows.
        target: a hooked transformer, under whatever hooks the caller has open.
        texts, metric: as for `keep_activations`. One metric scores both: the one discovered on the checkpoint that
            refuses, as the other's refusals are too few to tell their opening by. With `SourceActivations` their own,
            or the same again.
        sites: by default resid_pre, attn_out, mlp_out and z (of `SourceActivations` those that they have).
        layers: all by default (of `SourceActivations` theirs).
        positions: "all" replaces every token of the prompt and of what the metric runs after it; "last" those from
            the prompt's last token on.
        draws: random rotations of the control; 0 for none. One is one sample of the floor, enough for that of a kind of
            site (from its control over all layers); whether a single site does more than a rotation (p) needs three.
        seed: of these.

    Returns:
        `CrossPatching`, whose `table` has one row a site, layer and head (−1 where there is none):

        - raw: mean change of the target's score, nats; low, high: its 95% t interval over prompts, paired.
        - effect, effect_low, effect_high: `CrossPatching.effect`.
        - control, control_low, control_high: as raw, of the mean over draws; the interval is over prompts and says
          nothing of other rotations. control_size: root mean square over draws of the mean change, nats: what one
          disturbance of this size does, up or down. NaN with 0 draws.
        - source_score, target_score: means, nats; n prompts; reason: why something is NaN, else empty.
        - p: that the change is one more of its own controls, on these prompts and on others, adjusted for all rows of
          the site (see `statistics.maps`). NaN with fewer than three draws.

    Raises:
        MechrefusalError: source and target of other architectures, or with other tokens for a prompt; what
            `keep_activations` raises; texts, metric, sites or layers that `SourceActivations` were not taken with;
            unknown positions.
    """
    if positions not in POSITIONS:
        raise MechrefusalError(f"unknown positions '{positions}'; use 'all' or 'last'")
    _require_count("draws", draws)
    _require_count("seed", seed)
    parts = _taken_parts(source, target, texts, metric, sites, layers, memory)
    plans = (
        (
            taken,
            {
                (site, layer, head): (Patch(site, layer, head),)
                for site in chosen
                for layer in patched_layers
                for head in (range(target.cfg.n_heads) if site in HEAD_SITES else [-1])
            },
        )
        for taken, chosen, patched_layers in parts
    )
    return _patched(target, plans, ["site", "layer", "head"], positions=positions, draws=draws, seed=seed)


@torch.no_grad()
def cumulative(
    source,
    target,
    texts: Sequence[str] | None = None,
    metric: Metric | None = None,
    *,
    memory: int = MEMORY,
) -> CrossPatching:
    """Put what attention and MLP of the first, or of the last, k layers of `source` write into `target`, all at once.

    At every token. With all layers what is left of the target is its embedding, final norm and unembedding: what is
    missing to effect 1 lies there. (The first k layers and the source's embedding together are resid_pre of layer k.)

    Arguments and errors are those of `patch_across`; `SourceActivations` need attn_out and mlp_out of all layers.

    Returns:
        `CrossPatching`: order ("first" or "last"), k (1 to n_layers), and the columns of `patch_across` from raw on but
        for the control.
    """
    sites: tuple[CrossSite, ...] = ("attn_out", "mlp_out")
    n_layers = target.cfg.n_layers
    together = {
        (order, k): tuple(Patch(site, layer) for layer in layers for site in sites)
        for order in ("first", "last")
        for k in range(1, n_layers + 1)
        for layers in (range(k) if order == "first" else range(n_layers - k, n_layers),)
    }
    parts = _taken_parts(source, target, texts, metric, sites, range(n_layers), memory)
    return _patched(target, ((taken, together) for taken, _, _ in parts), ["order", "k"])


def both_directions(
    checkpoints: Mapping[str, Any],
    texts: Sequence[str],
    metric: Metric,
    *,
    sites: Sequence[CrossSite] = DEFAULT_SITES,
    layers: Sequence[int] | None = None,
    memory: int = MEMORY,
    **options: Any,
) -> BothDirections:
    """`patch_across` from the first checkpoint into the second, and from the second into the first.

    Args:
        checkpoints: two by name: hooked transformers, or functions that load one. With functions one checkpoint is in
            memory at a time (the first is loaded twice), and the activations of both.
        options: `positions`, `draws`, `seed` of `patch_across`.

    Raises:
        MechrefusalError: not two checkpoints; what `patch_across` raises.
    """
    if len(checkpoints) != 2:
        raise MechrefusalError(f"both directions are between two checkpoints; {len(checkpoints)} were given")
    (first, first_model), (second, second_model) = checkpoints.items()
    options |= {"memory": memory}

    def taken_from(model) -> SourceActivations:
        return keep_activations(model, texts, metric, sites=sites, layers=layers, memory=memory)

    from_first = _with(first_model, taken_from)
    into_second, from_second = _with(
        second_model, lambda model: (patch_across(from_first, model, **options), taken_from(model))
    )
    into_first = _with(first_model, lambda model: patch_across(from_second, model, **options))
    return BothDirections({(first, second): into_second, (second, first): into_first})


def _patched(
    target,
    plans: Iterable[tuple[SourceActivations, Mapping[tuple, Sequence[Patch]]]],
    axes: list[str],
    *,
    positions: Positions = "all",
    draws: int | None = None,
    seed: int = 0,
) -> CrossPatching:
    """What is done at once makes a cell of the result, named by its key on `axes`.

    Args:
        plans: parts of the prompts one after another, each with the same cells.
        draws: rotations of the control; None where none is meant.
    """
    cells = pd.DataFrame()
    changes, controls, sources, targets = [], [], [], []
    for taken, plan in plans:
        patched = Patched(target, taken, positions)
        change = np.full((len(taken.texts), len(plan)), np.nan)
        control = np.full((len(taken.texts), draws or 0, len(plan)), np.nan)
        for cell, patches in enumerate(track(list(plan.values()), "patching across checkpoints")):
            if taken.writers is None and any(patch.site == "result" for patch in patches):
                continue
            change[:, cell] = patched.change(*patches).numpy()
            for draw in range(draws or 0):
                turned = (replace(patch, rotation=(seed, draw)) for patch in patches)
                control[:, draw, cell] = patched.change(*turned).numpy()
        cells = pd.DataFrame(list(plan), columns=axes)
        changes.append(change)
        controls.append(control.reshape(len(control), -1))
        sources.append(taken.scores)
        targets.append(patched.unpatched)
    source, unpatched = (torch.cat(scores).double().numpy() for scores in (sources, targets))
    units = numbered(len(source))
    of_controls = None
    if draws is not None:
        by_draw = cells.loc[np.tile(cells.index, draws)].reset_index(drop=True)
        by_draw.insert(0, "draw", np.repeat(np.arange(draws), len(cells)))
        of_controls = Observations(np.concatenate(controls), by_draw, units)
    return CrossPatching(Observations(np.concatenate(changes), cells, units), of_controls, source, unpatched)


def _taken_parts(
    source,
    target,
    texts: Sequence[str] | None,
    metric: Metric | None,
    sites: Sequence[CrossSite] | None,
    layers: Iterable[int] | None,
    memory: int,
) -> Iterable[tuple[SourceActivations, Sequence[CrossSite], Sequence[int]]]:
    """What was taken, in one part or (from a model) as many as memory needs; the sites and the layers to patch."""
    chosen_layers = None if layers is None else sorted(wanted_layers(target, list(layers), "patch"))
    if isinstance(source, SourceActivations):
        _require_taken_with(source, texts, metric, sites, chosen_layers)
        require_same(source.architecture, dict(zip(source.texts, source.ids, strict=True)), target)
        yield source, source.sites if sites is None else tuple(dict.fromkeys(sites)), chosen_layers or source.layers
        return
    if texts is None or metric is None:
        raise MechrefusalError(
            "patching from a model needs texts and a metric; only a SourceActivations source has its own"
        )
    chosen = DEFAULT_SITES if sites is None else sites
    parts = split_by_memory(source, texts, metric, chosen, chosen_layers, memory)
    require_same(
        architecture(source), dict(zip(texts, prompts.prompt_ids(source.tokenizer, texts), strict=True)), target
    )
    for part in parts:
        taken = keep_activations(source, part, metric, sites=chosen, layers=chosen_layers, memory=sys.maxsize)
        yield taken, taken.sites, taken.layers


def _require_taken_with(
    taken: SourceActivations,
    texts: Sequence[str] | None,
    metric: Metric | None,
    sites: Sequence[CrossSite] | None,
    layers: Sequence[int] | None,
) -> None:
    if texts is not None and tuple(texts) != taken.texts:
        raise MechrefusalError(
            f"the source's activations were taken on {len(taken.texts)} other texts; leave texts out, or take them anew"
        )
    if metric is not None and metric != taken.metric:
        raise MechrefusalError(
            "the source's activations were taken with another metric; leave it out, or take them anew"
        )
    lacking: list[str] = [site for site in sites or () if site not in taken.sites]
    lacking += [f"layer {layer}" for layer in layers or () if layer not in taken.layers]
    if lacking:
        raise MechrefusalError(f"the source's activations were taken without {lacking[0]}; take them anew with it")


def _require_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MechrefusalError(f"{name} of patching across checkpoints is {value!r}: give a whole number, 0 or more")


def _with(checkpoint, work: Callable[[Any], Any]) -> Any:
    """`work` done with a hooked transformer, which a function may load."""
    if hasattr(checkpoint, "hook_dict"):
        return work(checkpoint)
    return work(checkpoint())
