"""Which runner a model has, and why; said once."""

import logging
from typing import Any

from mechrefusal.forward.hooked_runner import HookedRunner
from mechrefusal.forward.runner import Runner
from mechrefusal.forward.tree_forward import why_not_shared
from mechrefusal.forward.tree_runner import TreeRunner
from mechrefusal.forward.unhooked import CALLERS_HOOKS, unhooked
from mechrefusal.progress import tell_once


def runner_of(model: Any, *, low_precision: bool = False, sites: tuple = ()) -> Runner:
    """The fastest runner that gives the numbers of a hooked transformer.

    Token trees on its unhooked model, where that has been shown to agree with it; else its own hooks, and a warning
    says why, once a model and reason. While hooks of the caller stand at the hooked transformer, these are obeyed.

    Args:
        low_precision: weights in bfloat16 where that is faster, for screens.
        sites: that must be editable, beside those of the residual stream.
    """
    modules, why = unhooked(model)
    if modules is not None:
        lacking = [site for site in sites if not modules.has(site)]
        why = f"the unhooked model lacks site {', '.join(lacking)}" if lacking else why_not_shared(modules.model)
        if not why:
            return TreeRunner(model, modules, low_precision=low_precision)
        why = why if lacking else f"the unhooked model runs no token trees: {why}"
    level = logging.INFO if why == CALLERS_HOOKS else logging.WARNING
    name = type(model.original_model).__name__
    tell_once(model, f"{name} is run through hooks, about three times as slowly: {why}", level=level)
    return HookedRunner(model, why)
