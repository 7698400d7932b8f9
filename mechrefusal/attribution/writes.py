"""What every head, MLP and embedding writes to the residual stream at one position of each prompt.

Prompts are cut after that position, and of each activation one position a prompt is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Activations, Asked, Edit, Place, Site, batches, flat, require_context, runner_of
from mechrefusal.progress import track

LAYERED: tuple[Site, ...] = ("resid_pre", "z", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Writes:
    """Parts of the residual stream at one position of each prompt, float64.

    Fields:
        embed: the stream below layer 0, without `pos_embed` (zero where the model has none of its own).
        z, attn_out, mlp_out, resid_pre: sites of the hooked transformer, of every layer.
        final, normed: the stream after the last layer, before and after the final norm.
        logits: of the tokens asked for; `log_total` is log Σ exp over the vocabulary.
    """

    embed: Float[Tensor, "prompt d_model"]
    pos_embed: Float[Tensor, "prompt d_model"]
    z: Float[Tensor, "prompt layer head d_head"]
    attn_out: Float[Tensor, "prompt layer d_model"]
    mlp_out: Float[Tensor, "prompt layer d_model"]
    resid_pre: Float[Tensor, "prompt layer d_model"]
    final: Float[Tensor, "prompt d_model"]
    normed: Float[Tensor, "prompt d_model"]
    logits: Float[Tensor, "prompt token"]
    log_total: Float[Tensor, " prompt"]

    @classmethod
    @torch.no_grad()
    def take(cls, model, token_ids: Sequence[Sequence[int]], *, position: int = -1, tokens: Sequence[int] = ()) -> Self:
        """Run prompts (token ids) and keep what is written at `position` of each, and the logits of `tokens` there.

        Raises:
            MechrefusalError: a prompt without that position or longer than the context; activations not finite.
        """
        requests = [Asked(_cut(model, ids, position, number)) for number, ids in enumerate(token_ids)]
        require_context(model, requests)
        groups = [batch for _, batch in batches(runner_of(model, sites=("z",)), requests)]
        parts = []
        for batch in track(groups, "attribution") if len(groups) > 1 else groups:
            ends = torch.stack([places[-1] for places in batch.places])
            kept = Activations()
            logits = torch.cat(list(batch.run(_keeping_ends(model, ends, kept)).logits))
            parts.append(_part(cls, model, kept, logits, tokens))
        written = cls(**{field.name: torch.cat([getattr(p, field.name) for p in parts]) for field in fields(cls)})
        written._require_finite()
        return written

    def _require_finite(self) -> None:
        for layer in range(self.z.shape[1]):
            for name in ("resid_pre", "z", "attn_out", "mlp_out"):
                if not getattr(self, name)[:, layer].isfinite().all():
                    raise MechrefusalError(
                        f"{name} of layer {layer} holds NaN or infinity; a weight at or before it is not finite: "
                        "load the checkpoint again, or use an earlier one"
                    )
        if not (self.normed.isfinite().all() and self.log_total.isfinite().all()):
            raise MechrefusalError(
                "the logits hold NaN or infinity while every layer is finite; the final norm or the unembedding is "
                "not finite: load the checkpoint again, or use an earlier one"
            )


def prompt_segments(model, texts: Sequence[str]) -> list[prompts.Segments]:
    """Each text in the model's chat template.

    Raises:
        MechrefusalError: no texts, or one string where a list of them is meant.
    """
    if isinstance(texts, str):
        raise MechrefusalError(f"attribution takes a list of texts, not the text {texts[:40]!r}: put it into a list")
    if len(texts) == 0:
        raise MechrefusalError("attribution needs at least one prompt; the list of texts is empty")
    return [prompts.segments(model.tokenizer, text) for text in texts]


def token_ids_of(model, text: str, opening: tuple[int, ...] = ()) -> Int[Tensor, "1 position"]:
    """The instruction in the model's chat template, followed by `opening`."""
    ids = [*prompts.segments(model.tokenizer, text).prompt_ids, *opening]
    return torch.tensor([ids], device=model.cfg.device)


def _cut(model, ids: Sequence[int], position: int, number: int) -> tuple[int, ...]:
    """The prompt up to `position`: what comes after cannot reach it."""
    n = len(ids)
    if not -n <= position < n:
        raise MechrefusalError(
            f"position {position} does not lie in prompt {number}, which has {n} tokens; use {-n} to {n - 1}"
        )
    return tuple(ids)[: position % n + 1]


def _keeping_ends(model, ends: Int[Tensor, " prompt"], into: Activations) -> list[Edit]:
    """Edits that keep what stands at these flat places, in float64."""
    n_layers = model.cfg.n_layers
    places: list[Place] = [(layer, site) for layer in range(n_layers) for site in LAYERED]
    places += [(n_layers - 1, "resid_post"), (0, "ln_final")]
    if _has_positions(model):
        places.append((0, "embed"))

    def keep(place: Place):
        def through(activation: Tensor) -> Tensor:
            taken = flat(model, place[1], activation.detach())[ends.to(activation.device)]
            into[place] = taken.to(ends.device).double()
            return activation

        return through

    return [(*place, keep(place)) for place in places]


def _has_positions(model) -> bool:
    """Whether positions are embedded and added to the stream (not rotated into queries and keys)."""
    return "pos_embed.hook_out" in model.hook_dict


def _part(cls: type[Writes], model, kept: Activations, logits: Tensor, tokens: Sequence[int]) -> Writes:
    n_layers = model.cfg.n_layers
    layered = {site: torch.stack([kept[layer, site] for layer in range(n_layers)], dim=1) for site in LAYERED}
    start = layered["resid_pre"][:, 0]
    embed = kept[0, "embed"] if _has_positions(model) else start
    logits = logits.double()
    return cls(
        embed=embed,
        pos_embed=start - embed,
        final=kept[n_layers - 1, "resid_post"],
        normed=kept[0, "ln_final"],
        logits=logits[:, list(tokens)],
        log_total=logits.logsumexp(-1),
        **layered,
    )
