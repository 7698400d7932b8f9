"""What every head, MLP and embedding writes to the residual stream at one position of each prompt.

Prompts are cut after that position and run as a token tree on the hooked transformer's twin (`forward.tree_forward`);
of each activation one position a prompt is kept. Where there is no twin, or hooks of the caller stand at the hooked
transformer, it runs one prompt after another itself, under those hooks.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.tree import Branch, Tree
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.forward.unhooked import Edit, Site, Twin, bridge_hook, bridge_hooks, twin
from mechrefusal.models.batches import split_by_cost
from mechrefusal.progress import track

TOKENS_AT_ONCE = 4096
"""Tokens of one pass."""


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
        cut = [_cut(model, ids, position, number) for number, ids in enumerate(token_ids)]
        found = twin(model)
        found = found if found is not None and found.has("z") else None
        most = TOKENS_AT_ONCE if found is not None else 0  # the hooked transformer itself runs one by one
        groups = [[cut[i] for i in part] for part in split_by_cost(([len(ids) for ids in cut], most))]
        parts = []
        for group in track(groups, "attribution") if len(groups) > 1 else groups:
            kept = _tree_pass(model, found, group) if found is not None else _plain_pass(model, group[0])
            parts.append(_part(cls, model, kept, tokens))
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
    limit = getattr(model.original_model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and n > limit:
        raise MechrefusalError(f"prompt {number} has {n} tokens, more than the model's context of {limit}; shorten it")
    return tuple(ids)[: position % n + 1]


Kept = dict[str, dict[int, Tensor]]
"""Activations [prompt, ...] by site and layer; what belongs to no layer stands at 0."""


def _tree_pass(model, found: Twin, group: list[tuple[int, ...]]) -> Kept:
    forward = TreeForward(found.model)
    branches = [Branch(ids, (len(ids) - 1,)) for ids in group]
    ends = [len(ids) - 1 for ids in group]
    if forward.shares:
        rows, columns = [0] * len(group), [places[-1] for places in Tree.of(branches).places]
    else:
        rows, columns = list(range(len(group))), ends
    kept: Kept = {}
    keep = _keeper(model, kept, (rows, columns))
    norm = found.model.get_submodule(model.ln_final.name)

    def normed(_, args: tuple, output: Tensor) -> None:
        keep("final", 0)(args[0])
        keep("normed", 0)(output)

    with ExitStack() as stack:
        stack.callback(norm.register_forward_hook(normed).remove)
        if _has_positions(model):
            embedding = found.model.get_input_embeddings()
            stack.callback(embedding.register_forward_hook(lambda *given: keep("embed", 0)(given[-1])).remove)
        stack.enter_context(found.edited(_sites(model, keep)))
        kept["logits"] = {0: forward.run(branches).logits}
    return kept


def _plain_pass(model, ids: tuple[int, ...]) -> Kept:
    kept: Kept = {}
    keep = _keeper(model, kept, ([0], [len(ids) - 1]))
    hooks = bridge_hooks(_sites(model, keep))
    hooks += [(f"ln_final.hook_{at}", bridge_hook(keep(name, 0))) for at, name in (("in", "final"), ("out", "normed"))]
    if _has_positions(model):
        hooks.append(("embed.hook_out", bridge_hook(keep("embed", 0))))
    with model.hooks(fwd_hooks=hooks):
        kept["logits"] = {0: model(torch.tensor([ids], device=model.cfg.device), return_type="logits")[:, -1]}
    return kept


def _keeper(model, kept: Kept, at: tuple[list[int], list[int]]) -> Callable[[str, int], Callable[[Tensor], Tensor]]:
    """Makes functions that keep one position a prompt of an activation, and hand it through."""

    def keep(name: str, layer: int) -> Callable[[Tensor], Tensor]:
        def through(activation: Tensor) -> Tensor:
            chosen = activation.detach()[at]
            if name == "z":
                chosen = chosen.reshape(len(chosen), -1, model.cfg.d_head)
            kept.setdefault(name, {})[layer] = chosen
            return activation

        return through

    return keep


def _sites(model, keep: Callable[[str, int], Callable[[Tensor], Tensor]]) -> list[Edit]:
    sites: tuple[Site, ...] = ("resid_pre", "z", "attn_out", "mlp_out")
    return [(layer, site, keep(site, layer)) for layer in range(model.cfg.n_layers) for site in sites]


def _has_positions(model) -> bool:
    """Whether positions are embedded and added to the stream (not rotated into queries and keys)."""
    return "pos_embed.hook_out" in model.hook_dict


def _part(cls: type[Writes], model, kept: Kept, tokens: Sequence[int]) -> Writes:
    layered = {
        name: torch.stack([kept[name][layer].double() for layer in range(model.cfg.n_layers)], dim=1)
        for name in ("z", "attn_out", "mlp_out", "resid_pre")
    }
    single = {name: kept[name][0].double() for name in ("final", "normed")}
    start = layered["resid_pre"][:, 0]
    embed = kept["embed"][0].double() if "embed" in kept else start
    logits = kept["logits"][0].double()
    return cls(
        embed=embed,
        pos_embed=start - embed,
        logits=logits[:, list(tokens)],
        log_total=logits.logsumexp(-1),
        **layered,
        **single,
    )
