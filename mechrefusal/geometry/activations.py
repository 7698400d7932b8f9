"""The residual stream at chosen places, prompt by prompt: streamed, so that memory does not grow with the prompts."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal import Intervention
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Asked, Batch, Edit, batches, flat, require_context, runner_of
from mechrefusal.models import require_layers

CHUNK = 32
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
    """Yield resid_pre of the prompts in order, `chunk` at a time, at `positions` and `layers` (all by default).

    Only the wanted positions are kept, in float32 on the CPU. Layers above the wanted ones are not run.

    Args:
        token_ids: prompts up to the start of the answer.
        under: an intervention that the passes are taken under.
        spans: (start, stop) of some tokens of each prompt; the sum over them then stands after the positions.

    Raises:
        MechrefusalError: a position that is not in every prompt, a layer that the model lacks, or a prompt that is
            longer than the context.
    """
    shortest = min(map(len, token_ids), default=0)
    if not positions or not all(-shortest <= position < 0 for position in positions):
        raise MechrefusalError(
            f"positions {list(positions)} do not lie in every prompt; count from the end, -1 to -{shortest} "
            "(the shortest)"
        )
    chosen = list(range(model.cfg.n_layers) if layers is None else layers)
    require_layers(model, chosen)
    if under is not None:
        under.check(model)
    requests = [Asked(tuple(ids), kept=(0,)) for ids in token_ids]
    require_context(model, requests)
    runner = runner_of(model)
    for numbers, batch in batches(runner, requests, at_most=chunk):
        by_layer: dict[int, Tensor] = {}
        spans_here = None if spans is None else [spans[number] for number in numbers]
        keep = _keeper(model, batch, positions, spans_here, by_layer)
        edits: list[Edit] = [] if under is None else under.edits(model, batch.layout)
        edits += [(layer, "resid_pre", keep(layer)) for layer in dict.fromkeys(chosen)]
        batch.run(edits, layers=range(max(chosen)))
        yield torch.stack([by_layer[layer] for layer in chosen], dim=2)


def _keeper(
    model, batch: Batch, positions: Sequence[int], spans: Sequence[tuple[int, int]] | None, into: dict[int, Tensor]
) -> Callable[[int], Callable[[Tensor], Tensor]]:
    """Makes edits that keep the wanted places of a layer, [prompt, position, d_model], and hand everything on."""
    rows = torch.stack([places[list(positions)] for places in batch.places])

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def through(activation: Tensor) -> Tensor:
            stream = flat(model, "resid_pre", activation)
            taken = stream[rows.to(stream.device)].float()
            if spans is not None:
                inside = [places[start:stop] for places, (start, stop) in zip(batch.places, spans, strict=True)]
                sums = torch.stack([stream[places.to(stream.device)].float().sum(0) for places in inside])
                taken = torch.cat([taken, sums[:, None]], dim=1)
            into[layer] = taken.cpu()
            return activation

        return through

    return keep


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
    return torch.cat([part[:, rows, columns] for part in taken])
