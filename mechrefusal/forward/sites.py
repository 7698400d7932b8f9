"""One vocabulary of places in a transformer, and what TransformerLens calls them.

Names are those of TransformerLens: resid_pre, resid_mid and resid_post are the residual stream before a block, between
its attention and its MLP and after it; attn_out and mlp_out what these two add to it; z, q, k, v and pattern belong to
attention, head by head; mlp_post holds the neurons. embed and ln_final belong to no layer and stand at layer 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Site = Literal[
    "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
    "z", "q", "k", "v", "pattern", "mlp_post", "ln_final",
]  # fmt: skip
Place = tuple[int, Site]
"""Layer and site."""
Edit = tuple[int, Site, Callable[[Tensor], Tensor]]
"""What to do with an activation: layer, site, and the function that returns the new one."""

_HOOKS: dict[str, str] = {
    "embed": "embed.hook_out",
    "ln_final": "ln_final.hook_out",
    **{name: f"blocks.{{}}.attn.hook_{name}" for name in ("z", "q", "k", "v", "pattern")},
    "mlp_post": "blocks.{}.mlp.hook_post",
}


def hook_name(layer: int, site: Site) -> str:
    """TransformerLens' name of the hook point at which an edit of `site` acts.

    From resid_mid to resid_post a block acts on single positions, so that a patch of one position is the same at both.
    TransformerLens' `hook_resid_mid` is the input of the MLP's norm, and an edit there does not reach the residual
    stream: resid_mid is patched at resid_post.
    """
    name = "resid_post" if site == "resid_mid" else site
    return _HOOKS.get(name, f"blocks.{{}}.hook_{name}").format(layer)


def bridge_hooks(edits: Sequence[Edit]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Edits as TransformerLens' `fwd_hooks`."""
    return [(hook_name(layer, site), _as_hook(edit)) for layer, site, edit in edits]


def _as_hook(edit: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda activation, hook: edit(activation)


def widened(activation: Tensor) -> Tensor:
    """An activation of 16 bits in float32, for what is computed on it: projections round too coarsely there."""
    return activation.float() if activation.dtype.itemsize < torch.float32.itemsize else activation


def flat(model, site: Site, activation: Tensor) -> Tensor:
    """An activation token by token, its rows one after another: [token, head, d_head] at z, [token, d] elsewhere.

    At z some architectures hold the heads side by side, others on an axis of their own.
    """
    width = (model.cfg.n_heads, model.cfg.d_head) if site == "z" else activation.shape[2:]
    return activation.reshape(-1, *width)


class Activations(Mapping[str | Place, Tensor]):
    """Activations of one pass by place, read like TransformerLens' `ActivationCache`.

    `cache["blocks.3.hook_resid_pre"]`, `cache["resid_pre", 3]` and `cache[3, "resid_pre"]` are the same tensor, flat:
    [token, ...] in the order of a batch's flat places.
    """

    def __init__(self) -> None:
        self._kept: dict[Place, Tensor] = {}

    def __setitem__(self, place: Place, activation: Tensor) -> None:
        self._kept[place] = activation

    def __getitem__(self, name) -> Tensor:
        if isinstance(name, str):
            places = [place for place in self._kept if hook_name(*place) == name]
            if not places:
                raise KeyError(f"{name}; kept are {', '.join(map(str, self))}")
            return self._kept[places[0]]
        layer, site = name if isinstance(name[0], int) else reversed(name)
        return self._kept[layer, site]

    def __iter__(self):
        return (hook_name(*place) for place in self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def keeping(model, places, into: Activations) -> list[Edit]:
    """Edits that keep what passes at `places`, and leave it as it is."""

    def keep(place: Place) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            into[place] = flat(model, place[1], activation)
            return activation

        return edit

    return [(*place, keep(place)) for place in places]
