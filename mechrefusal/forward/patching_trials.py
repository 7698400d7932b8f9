"""Whether patching on token trees gives the numbers of the hooks: tried out once a model and site."""

from typing import Any

import torch

from mechrefusal.forward.hooked_patching import HookedPatching
from mechrefusal.forward.hooked_runner import HookedRunner
from mechrefusal.forward.metric_reader import MetricReader
from mechrefusal.forward.patches import MEMORY, PairRun, Patch, n_heads
from mechrefusal.forward.runner import PatchedPair
from mechrefusal.forward.sites import Site
from mechrefusal.forward.stream import StreamModules
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.forward.tree_patching import TreePatching
from mechrefusal.forward.unhooked import ALLOWED, FAILURES, failure
from mechrefusal.models.rounding import allowed
from mechrefusal.progress import tell_once

_KEY = "_mechrefusal_patching"


def patching_of_trees(
    model: Any, modules: StreamModules, forward: TreeForward, pair: PairRun, site: Site, *, memory: int
) -> PatchedPair:
    """The pair ready to be patched on token trees; through hooks, and a warning once, where that does not agree."""
    why_not = model.__dict__.setdefault(_KEY, {})
    if site not in why_not:
        why_not[site] = _why_not(model, modules, forward, site)
    if not why_not[site]:
        return TreePatching(model, modules, forward, pair, site, memory=memory)
    tell_once(model, f"{site} is patched through hooks, several times as slowly: {why_not[site]}")
    return HookedPatching(HookedRunner(model, why_not[site]), pair, site, memory=memory)


def _why_not(model: Any, modules: StreamModules, forward: TreeForward, site: Site) -> str:
    """Log-probabilities under patches at two layers of two heads, at all positions or at one, of ten random tokens."""
    token_ids = torch.randint(model.cfg.d_vocab, (17,), generator=torch.Generator().manual_seed(0)).tolist()
    source, target = tuple(token_ids[:10]), (*token_ids[:3], *token_ids[10:])
    pair = PairRun(source, target, 3, MetricReader(((),), (1,), lambda logits: logits[0][:, -1].log_softmax(-1)))
    heads = [0, n_heads(model, site) - 1] if n_heads(model, site) else [None]
    layers = sorted({model.cfg.n_layers // 2, model.cfg.n_layers - 1})
    patches = [
        Patch(layer, head, position)
        for layer in layers
        for head in heads
        for position in (5, 9, *([None] if heads[0] == 0 else []))
    ]

    def scores() -> torch.Tensor:
        return TreePatching(model, modules, forward, pair, site, memory=MEMORY).scores(patches)

    try:
        seen, allowance = scores(), allowed(modules.model, scores, ALLOWED)
    except FAILURES as error:
        return f"patching on trees fails ({failure(error)})"
    expected = HookedPatching(HookedRunner(model, ""), pair, site, memory=MEMORY).scores(patches)
    return "" if allowance.found(seen, expected).holds else "patching on trees gives other probabilities"
