"""Whether patching on a twin gives the numbers of the hooked transformer's hooks: tried out once a model and site."""

from collections.abc import Sequence
from functools import partial

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from mechrefusal.causal.patching.hooked import swap
from mechrefusal.causal.patching.metric import Reading
from mechrefusal.causal.patching.sites import MEMORY, PairRun, Patch, Site, hook_name, n_heads
from mechrefusal.causal.patching.tree import TreePatching
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.forward.unhooked import Twin, agree, twin

_KEY = "_mechrefusal_patching"


def tree_patching(model, pair: PairRun, site: Site, *, memory: int) -> TreePatching | None:
    """Patching on the twin of a hooked transformer; None where it has none that agrees, or hooks of the caller."""
    found = twin(model)
    if found is None:
        return None
    forward = TreeForward(found.model)
    if not forward.shares:
        return None
    known = model.__dict__.setdefault(_KEY, {})
    if site not in known:
        known[site] = _agrees(model, found, forward, site)
    return TreePatching(model, found, forward, pair, site, memory=memory) if known[site] else None


def _agrees(model, found: Twin, forward: TreeForward, site: Site) -> bool:
    """Log-probabilities under patches at two layers of two heads, at all positions or at one, of ten random tokens."""
    drawn = torch.randint(model.cfg.d_vocab, (17,), generator=torch.Generator().manual_seed(0)).tolist()
    source, target = tuple(drawn[:10]), (*drawn[:3], *drawn[10:])
    pair = PairRun(source, target, 3, Reading(((),), (1,), lambda logits: logits[0][:, -1].log_softmax(-1)))
    heads = [0, n_heads(model, site) - 1] if n_heads(model, site) else [None]
    layers = sorted({model.cfg.n_layers // 2, model.cfg.n_layers - 1})
    patches = [
        Patch(layer, head, at)
        for layer in layers
        for head in heads
        for at in (5, 9, *([None] if heads[0] == 0 else []))
    ]
    try:
        seen = TreePatching(model, found, forward, pair, site, memory=MEMORY).scores(patches)
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError, IndexError) as error:
        if should_reduce_batch_size(error):
            raise  # that memory has run out says nothing about the model
        return False
    return agree(seen, _by_hooks(model, pair, site, patches))


@torch.no_grad()
def _by_hooks(model, pair: PairRun, site: Site, patches: Sequence[Patch]) -> Tensor:
    """The same by a plain pass of the hooked transformer, one row a patch."""
    tokens = torch.tensor([pair.source, *[pair.target] * len(patches)], device=model.cfg.device)
    kept: dict[str, Tensor] = {}
    layers = {patch.layer for patch in patches}
    names = [f"blocks.{layer}.{hook_name(site)}" for layer in layers]

    def keep(activation: Tensor, hook, name: str) -> None:
        kept[name] = activation

    with model.hooks(fwd_hooks=[(name, partial(keep, name=name)) for name in names]):
        model(tokens[:1])
    hooks = []
    for layer, name in zip(layers, names, strict=True):
        rows = [(row, patch) for row, patch in enumerate(patches) if patch.layer == layer]
        hooks.append(swap(model, site, rows, kept[name]))
    with model.hooks(fwd_hooks=hooks):
        return pair.reading.score([model(tokens[1:], return_type="logits").float()])
