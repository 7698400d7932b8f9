"""Interventions as context managers, on a hooked transformer or a plain Hugging Face model.

    with causal.ablate(model, carrier), causal.add(model, other, layer=12):
        model.generate(...)

    with causal.intervened(model, [Ablation(direction), Addition(other, 12)]):   # the same
        model.generate(...)

A direction is a tensor, a `Direction` or a `Carrier`. Interventions act at run time through hooks, restore the model
whatever happens, and return new tensors, never edited ones. Where several act at one site, they do so in the order of
the list, and an outer context before an inner one.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor

from mechrefusal.causal.operations import Ablation, Addition, Chain, Clamp, Intervention, taken_out
from mechrefusal.causal.patch_operation import Patch
from mechrefusal.causal.reference import Reference
from mechrefusal.causal.weighted_ablation import WeightedAblation
from mechrefusal.forward.direction import Along, direction_of
from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.positions import Pass, Positions
from mechrefusal.forward.sites import Site, bridge_hooks
from mechrefusal.models.bridge_internals import backbone_name


def ablate(
    model,
    along: Along,
    *,
    dose: float = 1.0,
    positions: Positions | None = None,
    reference: Reference | str | None = None,
) -> AbstractContextManager[None]:
    """Take a direction, or a subspace (k × d_model), out of the residual stream while open; see `Ablation`.

    Args:
        reference: "harmless", "zero" (as published) or a `Reference`, as `taken_out` takes it; by default what a
            direction or carrier says itself, and zero for a tensor.

    Raises:
        MechrefusalError: a direction of other weights or another width, not finite, or zero; a reference of another
            model, or one that the direction does not know.
    """
    return intervened(model, taken_out(along, reference=reference, dose=dose, positions=positions))


def add(
    model,
    along: Along,
    *,
    layer: int | None = None,
    coefficient: float = 1.0,
    positions: Positions | None = None,
) -> AbstractContextManager[None]:
    """Add a direction at one layer, by default its own, while open; see `Addition`."""
    direction = direction_of(along)
    where = direction.require_layer() if layer is None else layer
    return intervened(model, Addition(direction.vector, where, coefficient, positions, direction.weights))


def clamp(
    model,
    along: Along,
    value: float,
    *,
    layers: Sequence[int] | None = None,
    sites: Sequence[Site] = ("resid_pre",),
    positions: Positions | None = None,
) -> AbstractContextManager[None]:
    """Hold the projection on a direction at `value` while open; see `Clamp`."""
    direction = direction_of(along)
    return intervened(model, Clamp(direction.vector, value, layers, sites, positions, direction.weights))


def patch(
    model,
    activation: Tensor,
    *,
    layer: int,
    site: Site = "resid_pre",
    positions: Positions | None = None,
    heads: Sequence[int] | None = None,
) -> AbstractContextManager[None]:
    """Put activations of another prompt, or another checkpoint, in at one place while open; see `Patch`."""
    return intervened(model, Patch(activation, layer, site, positions, heads))


@contextmanager
def intervened(
    model,
    intervention: Intervention | Sequence[Intervention] | None,
    *,
    after_prompt: Sequence[int] | None = None,
) -> Iterator[None]:
    """Every pass of a model under one intervention, or several in their order, while open.

    Args:
        model: a hooked transformer, or a causal model of Hugging Face (also one with PEFT adapters), whose `generate`
            runs under the intervention too. A plain model has no sites inside attention and MLP (z, mlp_post). Where
            its norms are LayerNorms the mean is taken out of what is written to its residual stream, as in the hooked
            transformer; that changes no probability.
        after_prompt: how many tokens each row of a pass holds after its prompt, where prompts are run together with
            their answers; None: a pass over more than one token ends with the prompt.

    Raises:
        MechrefusalError: what the interventions' `check` raises; a model without a residual stream that can be found;
            positions that stood in none of the passes (when it closes).
    """
    if intervention is None:
        yield
        return
    chain = _chain(intervention)
    hooked = hasattr(model, "hook_dict")
    place = model if hooked else HuggingFaceModel.of(model)
    chain.check(place)
    passing = Pass(after_prompt=None if after_prompt is None else torch.tensor(after_prompt))
    edits = chain.edits(place, passing)
    with ExitStack() as stack:
        if tells_tokens_apart(chain):
            # The module that hands tokens from block to block gets the cache and the attention mask.
            backbone = model.original_model.get_submodule(backbone_name(model)) if hooked else place.backbone
            stack.enter_context(passing.following(backbone, chain.positions))
        stack.enter_context(model.hooks(fwd_hooks=bridge_hooks(edits)) if hooked else place.edited(edits))
        yield


def tells_tokens_apart(intervention: Intervention | Sequence[Intervention]) -> bool:
    """Whether an intervention must know which token is which: it acts at some only, or sets them to a reference."""
    return any(map(_knows_tokens, _chain(intervention).flat))


def acts_at_some_positions(intervention: Intervention | Sequence[Intervention]) -> bool:
    """Whether an intervention acts at some positions of a prompt only."""
    return bool(_chain(intervention).positions)


def _chain(intervention: Intervention | Sequence[Intervention]) -> Chain:
    return Chain((intervention,) if isinstance(intervention, Intervention) else tuple(intervention))


def _knows_tokens(intervention: Ablation | Addition | Clamp | Patch | WeightedAblation) -> bool:
    to_reference = isinstance(intervention, Ablation) and intervention.reference is not None
    return to_reference or isinstance(intervention, Patch) or intervention.positions is not None
