"""Patching as an intervention: activations of the caller's put in at one layer and site."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.positions import Pass, Positions, check_positions, required
from mechrefusal.forward.sites import Edit, Site
from mechrefusal.forward.token_classes import Layout
from mechrefusal.models import require_layers

Passing = Pass | Layout | None
"""What tells an intervention of the pass under way; some need to know nothing."""
STREAM_SITES: tuple[Site, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")
SITES: tuple[Site, ...] = (*STREAM_SITES, "z", "mlp_post")


@dataclass(frozen=True)
class Patch:
    """Activations of the caller's put in at one layer and site, from another prompt or another checkpoint.

    `activation` has the shape of the site, d_model (resid_pre, resid_post, attn_out, mlp_out), head × d_head (z)
    or d_mlp (mlp_post), and before it, where tokens or rows differ, [token] or [row, token]: as many tokens as
    `positions`, or without these as the pass. With `heads` (z only) those heads are replaced, and `activation` holds
    only them.
    """

    activation: Tensor
    layer: int
    site: Site = "resid_pre"
    positions: Positions | None = None
    heads: Sequence[int] | None = None

    @property
    def first_layer(self) -> int:
        """Layers below it are what they are without the intervention."""
        return self.layer

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a layer, site, head or position that is none, or a shape that does not fit."""
        require_layers(model, [self.layer])
        require_one_site(self.site, SITES)
        if self.site not in STREAM_SITES and not hasattr(model, "hook_dict"):
            raise MechrefusalError(
                f"site '{self.site}' can be patched on the hooked transformer only (models.load_hooked); a plain "
                f"Hugging Face model takes {', '.join(STREAM_SITES)}"
            )
        check_positions(self.positions)
        if self.heads is not None and self.site != "z":
            raise MechrefusalError(f"heads are patched at site 'z', not at '{self.site}'; leave heads out")
        if self.heads is not None and (not self.heads or not all(0 <= h < model.cfg.n_heads for h in self.heads)):
            raise MechrefusalError(f"heads are {list(self.heads)}; this model has heads 0 to {model.cfg.n_heads - 1}")
        shape, place = tuple(self.activation.shape), self._site_shape(model)
        extra = len(shape) - len(place)
        if shape[max(extra, 0) :] != place or not 0 <= extra <= 2:
            raise MechrefusalError(
                f"activation to patch has shape {shape}; {self.site} of this model is {place}, with [token] or "
                "[row, token] before it"
            )
        if not torch.isfinite(self.activation).all():
            raise MechrefusalError("activation to patch holds NaN or infinity; take it from a pass that is finite")
        n = len(self.positions) if self.positions is not None and self.positions != "prompt" else None
        if extra and n is not None and shape[extra - 1] not in (1, n):
            raise MechrefusalError(
                f"activation to patch has {shape[extra - 1]} tokens for {n} positions; give one each"
            )

    def edits(self, model, passing: Passing = None) -> list[Edit]:
        """What is done, site by site."""
        place = self._site_shape(model)
        extra = self.activation.ndim - len(place)
        patched = self.activation[(None,) * (2 - extra)]  # row, token, then the site's own
        heads = None if self.heads is None else list(self.heads)
        if extra == 0 and self.positions is None:
            return [(self.layer, self.site, lambda activation: _replaced(activation, patched, heads))]
        following, positions = required(passing), self.positions

        def put_in(activation: Tensor) -> Tensor:
            n_rows, n_tokens = activation.shape[:2]
            if len(patched) not in (1, n_rows):
                raise MechrefusalError(f"activation to patch has {len(patched)} rows, the pass {n_rows}; give one each")
            if positions is None or (positions == "prompt" and extra):
                if following.n_past > 0 and n_tokens == 1:
                    return activation  # a generated token
                if following.n_past > 0 or patched.shape[1] != n_tokens:
                    raise MechrefusalError(
                        f"activation to patch has {patched.shape[1]} tokens, the pass {n_tokens} after "
                        f"{following.n_past}; say with positions where they belong"
                    )
                return _replaced(activation, patched, heads)
            columns = following.columns(positions, n_tokens)
            if not columns:
                return activation
            edited, chosen = activation.clone(), list(columns.values())
            rows = list(columns) if patched.shape[1] > 1 else [0]
            edited[:, chosen] = _replaced(activation[:, chosen], patched[:, rows], heads)
            return edited

        return [(self.layer, self.site, put_in)]

    def _site_shape(self, model) -> tuple[int, ...]:
        if self.site == "z":
            return (model.cfg.n_heads if self.heads is None else len(self.heads), model.cfg.d_head)
        return (model.cfg.d_mlp if self.site == "mlp_post" else model.cfg.d_model,)


def _replaced(activation: Tensor, replacement: Tensor, heads: list[int] | None) -> Tensor:
    """A new tensor of the activation's shape: later layers may write in place, and must not write to `given`."""
    edited = activation.clone()
    if heads is None:
        edited[:] = replacement.to(activation)
    else:
        edited[:, :, heads] = replacement.to(activation)
    return edited


def require_one_site(site: str, known: Sequence[Site]) -> None:
    """Raise `MechrefusalError` for a site that an intervention cannot act at."""
    if site not in known:
        raise MechrefusalError(f"unknown site '{site}'; give one of {', '.join(known)}")
