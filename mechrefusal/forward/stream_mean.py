"""Whether a model's norms take out the mean of its residual stream; the hooked transformer writes without it then."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.stream import StreamModules

FREE_MEAN = 0.05
"""Norms take out the mean of the residual stream where a constant added to it moves the log-probabilities by less than
this share of what noise of the same size does."""


def takes_out_mean(model: nn.Module, blocks: nn.ModuleList, token_ids: Tensor) -> bool:
    """Whether the norms of `blocks` take out the mean of the residual stream, the hooked transformer's mean.

    Raises:
        MechrefusalError: they take out another one.
    """
    if not _mean_is_free(model, blocks, token_ids):
        return False
    if not (_gains_are_weights(model, blocks[0]) and _from_tables(model, blocks[0], token_ids)):
        raise MechrefusalError(
            f"cannot intervene on this {type(model).__name__}: its norms take out the mean of its residual "
            "stream, but it is no sum of learned embeddings before the first block, or the norms add to their "
            "weights: its mean is not that of the hooked transformer; load it with models.load_hooked instead"
        )
    return True


def _gains_are_weights(model: nn.Module, block: nn.Module) -> bool:
    """Whether the norms of a block multiply by the weights that they hold (Nemotron's by one more).

    The hooked transformer takes the mean out of what is written only where it can fold the norms' weights.
    """
    signs = torch.ones(_width(model), device=next(block.parameters()).device, dtype=next(block.parameters()).dtype)
    signs[1::2] = -1
    for norm in block.modules():
        weight = getattr(norm, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.shape != signs.shape:
            continue
        bias = getattr(norm, "bias", None)
        gain = (norm(1e3 * signs[None, None])[0, 0] - (0 if bias is None else bias)) * signs
        if (gain - weight).norm() > 0.01 * weight.norm():
            return False
    return True


def _from_tables(model: nn.Module, block: nn.Module, token_ids: Tensor) -> bool:
    """Whether what enters the first block is a sum of learned embeddings (tokens, positions), each times a constant.

    Of such the hooked transformer takes the mean out row by row; not of a norm after them, or of computed positions.
    """
    embedded: list[Tensor] = []
    entering: list[Tensor] = []

    def enters(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        entering.append((args[0] if args else kwargs["hidden_states"]).double())

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hook = module.register_forward_hook(lambda *hooked: embedded.append(hooked[-1].double()))
                stack.callback(hook.remove)
        stack.callback(block.register_forward_pre_hook(enters, with_kwargs=True, prepend=True).remove)
        model(input_ids=token_ids, use_cache=False)
    tables = [each.expand_as(entering[0]).flatten() for each in embedded if each.shape[-2:] == entering[0].shape[-2:]]
    if not tables:
        return False
    stream, parts = entering[0].flatten(), torch.stack(tables, dim=1)
    off = stream - parts @ torch.linalg.lstsq(parts, stream[:, None]).solution[:, 0]
    return bool(off.norm() <= 0.01 * stream.norm())


def _mean_is_free(model: nn.Module, blocks: nn.ModuleList, token_ids: Tensor) -> bool:
    """Whether a constant added to the residual stream is taken out by the norms."""
    modules = StreamModules(model, tuple(blocks), (), ())
    noise = torch.randn(_width(model), generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()

    def log_probabilities(step: Tensor | None) -> Tensor:
        def moved(activation: Tensor) -> Tensor:
            return activation if step is None else activation + step.to(activation) * activation.std()

        with modules.edited([(0, "resid_pre", moved)]):
            return model(input_ids=token_ids, use_cache=False).logits.float().log_softmax(-1)

    before = log_probabilities(None)
    by_constant, by_noise = (
        (log_probabilities(step) - before).abs().max() for step in (torch.ones_like(noise), noise / noise.std())
    )
    return bool(by_constant < FREE_MEAN * by_noise)


def _width(model: nn.Module) -> int:
    return model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
