"""The residual stream at chosen places, prompt by prompt: streamed, so that memory does not grow with the prompts."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal import Intervention, intervened
from mechrefusal.causal.interventions import tail_of
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.token_classes import FAR, TreeLayout
from mechrefusal.forward.tree import Bank, Branch, Tree
from mechrefusal.forward.tree_forward import TreeForward, shares
from mechrefusal.forward.unhooked import Edit, Twin, twin
from mechrefusal.models import TokenBatch, head_cache, last_logits, require_layers
from mechrefusal.models.batches import common_length

CHUNK = 16
"""Prompts in one pass."""

Place = tuple[int, int]
"""(position, layer): the position counts from the end of the prompt, −1 is its last token."""


@torch.no_grad()
def stream(
    model,
    token_ids: Sequence[Sequence[int]],
    *,
    positions: Sequence[int],
    layers: Sequence[int] | None = None,
    chunk: int = CHUNK,
    under: Intervention | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Float[Tensor, "prompt position layer d_model"]]:
    """resid_pre of `chunk` prompts after another, in their order, at `positions` and `layers` (all by default).

    Only the wanted positions are kept, in float32 on the CPU. Layers above the wanted ones are not run where the model
    has a twin.

    Args:
        token_ids: prompts up to the start of the answer.
        under: an intervention that the passes are taken under.
        spans: (start, stop) of some tokens of each prompt; the sum over them then stands after the positions.

    Raises:
        MechrefusalError: a position that is not in every prompt, or a layer that the model lacks.
    """
    shortest = min(map(len, token_ids), default=0)
    if not positions or not all(-shortest <= position < 0 for position in positions):
        raise MechrefusalError(
            f"positions {list(positions)} do not lie in every prompt; count from the end, -1 to -{shortest} "
            "(the shortest)"
        )
    wanted = list(range(model.cfg.n_layers) if layers is None else layers)
    require_layers(model, wanted)
    if under is not None:
        under.check(model)
    found = twin(model)
    if found is not None and shares(found.model):
        parts = _of_twin(model, found, under, token_ids, positions, wanted, chunk, spans)
    else:
        parts = _hooked(model, under, token_ids, positions, wanted, chunk, spans)
    for part in parts:
        yield torch.stack([part[layer] for layer in wanted], dim=2)


def _of_twin(
    model,
    found: Twin,
    under: Intervention | None,
    token_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    layers: Sequence[int],
    chunk: int,
    spans: Sequence[tuple[int, int]] | None,
) -> Iterator[dict[int, Float[Tensor, "prompt position d_model"]]]:
    """Layer by layer, from token trees that go no higher than they must."""
    forward, last = TreeForward(found.model), max(layers)
    head = _head(token_ids, before=max(-min(positions), tail_of(under)))
    if spans is not None:
        head = head[: min(start for start, _ in spans)]
    bank = Bank()

    def edits(layout: TreeLayout) -> list[Edit]:
        return [] if under is None else under.edits(model, layout)

    if head:
        layout = TreeLayout.of([tuple(range(len(head)))], [len(head) + FAR])
        with found.edited(edits(layout)):
            bank = forward.run([Branch(head, ())], capture=True).bank
    context = tuple(range(len(head)))
    for start in range(0, len(token_ids), chunk):
        part = token_ids[start : start + chunk]
        rest = [tuple(ids[len(head) :]) for ids in part]
        branches = [Branch(tokens, (len(tokens) - 1,), context) for tokens in rest]
        places = Tree.of(branches, bank_size=len(bank)).places
        rows = torch.tensor([[own[position] for position in positions] for own in places])
        within = _within(places, spans[start : start + chunk], len(head)) if spans is not None else None
        layout = TreeLayout.of(places, list(map(len, part)), before=len(head))
        kept: dict[int, Tensor] = {}

        def keep(
            activation: Tensor,
            layer: int,
            rows: Tensor = rows,
            within: Tensor | None = within,
            kept: dict[int, Tensor] = kept,
        ) -> Tensor:
            taken = activation[0, rows.to(activation.device)].float()
            if within is not None:
                sums = within.to(activation.device) @ activation[0].float()
                taken = torch.cat([taken, sums[:, None]], dim=1)
            kept[layer] = taken.cpu()
            if layer == last:
                raise _ReachedError
            return activation

        keeping: list[Edit] = [(layer, "resid_pre", partial(keep, layer=layer)) for layer in dict.fromkeys(layers)]
        with found.edited([*edits(layout), *keeping]), suppress(_ReachedError):
            forward.run(branches, bank=bank)
        yield kept


def _within(
    places: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], before: int
) -> Float[Tensor, "prompt token"]:
    """1 where a packed token lies in the span of a prompt."""
    found = torch.zeros(len(places), 1 + max(place for own in places for place in own))
    for row, (own, (start, stop)) in enumerate(zip(places, spans, strict=True)):
        found[row, list(own[start - before : stop - before])] = 1
    return found


def _head(token_ids: Sequence[Sequence[int]], *, before: int) -> tuple[int, ...]:
    """What all prompts begin with, up to `before` tokens from the end of the shortest."""
    return tuple(token_ids[0][: min(common_length(token_ids), min(map(len, token_ids)) - before)])


class _ReachedError(Exception):
    """The highest wanted layer has been reached."""


def _hooked(
    model,
    under: Intervention | None,
    token_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    layers: Sequence[int],
    chunk: int,
    spans: Sequence[tuple[int, int]] | None,
) -> Iterator[dict[int, Float[Tensor, "prompt position d_model"]]]:
    """The same through the hooks of the hooked transformer."""
    spare = max(-min(positions), tail_of(under))
    if spans is not None:
        spare = max(spare, min(map(len, token_ids)) - min(start for start, _ in spans))
    pad, device = model.tokenizer.pad_token_id, str(model.cfg.device)
    batch = TokenBatch.of(token_ids, pad=pad, device=device, keep=spare)
    columns = torch.zeros(batch.rest.shape)
    for row, (start, stop) in enumerate(spans or ()):
        end = batch.rest.shape[1] - len(token_ids[row])
        columns[row, end + start : end + stop] = 1
    hooked: dict[int, Tensor] = {}
    there = columns[:0]

    def keep(activation: Tensor, hook, layer: int) -> None:
        taken = activation[:, list(positions)].float()
        if spans is not None:
            inside = there.to(activation.device)[..., None] > 0
            # Padding may hold anything, NaN too.
            taken = torch.cat([taken, activation.float().where(inside, 0.0).sum(1, keepdim=True)], dim=1)
        hooked[layer] = taken.cpu()

    hooks = [(f"blocks.{layer}.hook_resid_pre", partial(keep, layer=layer)) for layer in dict.fromkeys(layers)]
    with intervened(model, under):
        cache = head_cache(model, batch)
    for start, part in enumerate(batch.chunks(chunk)):
        there = columns[start * chunk : (start + 1) * chunk]
        with intervened(model, under), model.hooks(fwd_hooks=hooks):
            last_logits(model, part, cache=cache, chunk=chunk)
        yield hooked


@torch.no_grad()
def collect(
    model,
    token_ids: Sequence[Sequence[int]],
    places: Sequence[Place],
    *,
    under: Intervention | None = None,
) -> Float[Tensor, "prompt place d_model"]:
    """resid_pre of every prompt at a few places, float32 on the CPU. Memory: prompts × places × d_model."""
    positions = sorted({position for position, _ in places})
    layers = sorted({layer for _, layer in places})
    rows, columns = [positions.index(p) for p, _ in places], [layers.index(layer) for _, layer in places]
    taken = stream(model, token_ids, positions=positions, layers=layers, under=under)
    return torch.cat([found[:, rows, columns] for found in taken])
