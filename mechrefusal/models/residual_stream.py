"""What may be asked of a hooked transformer's residual stream: checks that every measurement of it shares."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mechrefusal.errors import MechrefusalError


def require_layers(model, layers: Sequence[int]) -> None:
    """Raise `MechrefusalError` if one of `layers` is not in the model."""
    if outside := [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]:
        named = f"layer {outside[0]} is" if len(outside) == 1 else f"layers {outside} are"
        raise MechrefusalError(f"{named} not in this model; it has layers 0 to {model.cfg.n_layers - 1}")


def wanted_layers(model, layers: Sequence[int] | None, doing: str) -> list[int]:
    """These layers, each once; all where None.

    Raises:
        MechrefusalError: one is not in the model, or there is none to do anything at ("patch", "knock out in").
    """
    wanted = list(dict.fromkeys(range(model.cfg.n_layers) if layers is None else layers))
    require_layers(model, wanted)
    if not wanted:
        raise MechrefusalError(f"no layer to {doing}; give some layers, or None for all")
    return wanted


def is_direction(direction: Tensor) -> bool:
    """Whether it points anywhere: finite and not zero."""
    return bool(torch.isfinite(direction).all() and direction.norm() > 0)


def require_direction(model, direction: Tensor) -> None:
    """Raise `MechrefusalError` for a direction of another width, one that is not finite, or zero."""
    if direction.ndim != 1 or len(direction) != model.cfg.d_model:
        raise MechrefusalError(
            f"direction has shape {tuple(direction.shape)}, the residual stream here has width {model.cfg.d_model}; "
            "use a direction of the same model"
        )
    if not is_direction(direction):
        raise MechrefusalError("direction is zero or not finite; it points nowhere and cannot be used")
