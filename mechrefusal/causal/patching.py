"""Activation patching on harmful/harmless pairs: which site, copied from one run into the other, moves refusal.

Clean is the harmful prompt, corrupted the harmless one. The two have equal token length and share their first tokens;
up to the first difference both runs are the same, so those positions are computed once and never patched (their effect
is exactly zero). A patch at layer l leaves the layers below alone, so each pass starts at l.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from mechrefusal import intervals, prompts
from mechrefusal.causal.resume import blocks_return_tuple, logits_from
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import RefusalMetric, TokenBatch, head_cache, last_logits, require_layers
from mechrefusal.models.forward import expanded
from mechrefusal.progress import track

Mode = Literal["denoising", "noising"]
ALL_POSITIONS = 0
"""Value of `position` where every position was patched at once; a single one counts from the end and is negative."""

SMALLEST_GAP = 0.05
"""Mean m_clean − m_corrupted (nats) below which an effect has no meaning and is NaN; `raw` remains."""


@dataclass(frozen=True)
class Patching:
    """Effects of patching, averaged over pairs.

    `table`: site, mode, layer, head, position, token, raw, effect, n, low, high. `raw` is the change of the metric in
    nats against the unpatched run. `effect` is (m − m_corrupted) / (m_clean − m_corrupted) with numerator and
    denominator averaged first over the pairs that have the position, as the ratio of a single pair has no bound;
    `low`, `high` are its 95% t interval over pairs with that denominator held. `clean`, `corrupted`: the metric of
    every pair, nats.
    """

    table: pd.DataFrame
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]

    def top(self, k: int) -> list[tuple[int, int]]:
        """The `k` (layer, head) with the largest absolute effect on refusal, largest first."""
        heads = self.table[self.table["head"] >= 0]
        order = heads["raw"].abs().sort_values(ascending=False, kind="stable").index[:k]
        return [(int(row.layer), int(row.head)) for row in heads.loc[order].itertuples()]


@dataclass(frozen=True)
class _Run:
    """One pair: the shared head's cache, and both runs' activations from the first difference on."""

    cache: DynamicCache | None
    mask: Tensor
    resid_pre: Float[Tensor, "two layer position d_model"]
    z: Float[Tensor, "two layer position head d_head"]
    metric: Float[Tensor, " two"]
    prompt_length: int
    head_length: int
    tokens: tuple[str, ...]


def residual(
    model,
    pairs: prompts.PairSet,
    metric: RefusalMetric,
    *,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
) -> Patching:
    """Patch resid_pre at one layer and one position at a time, over the prompt's positions.

    Args:
        pairs: those of unequal token length under the model's tokenizer are left out.
        layers: all by default.
        mode: "denoising" copies clean activations into the corrupted run, "noising" the other way round.
    """
    return _patch(model, pairs, metric, "resid_pre", _residual_rows, layers=layers, mode=mode)


def heads(
    model,
    pairs: prompts.PairSet,
    metric: RefusalMetric,
    *,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
) -> Patching:
    """Patch the output z of one head at a time, at all positions. Arguments as in `residual`."""
    return _patch(model, pairs, metric, "head_z", _head_rows, layers=layers, mode=mode)


def _patch(
    model,
    pairs: prompts.PairSet,
    metric: RefusalMetric,
    site: str,
    rows_of: Callable,
    *,
    layers: Sequence[int] | None,
    mode: Mode,
) -> Patching:
    if mode not in ("denoising", "noising"):
        raise MechrefusalError(f"unknown mode '{mode}' of patching; use 'denoising' or 'noising'")
    usable = pairs.equal_length(model.tokenizer)
    if len(usable) == 0:
        raise MechrefusalError(
            f"none of {len(pairs)} pairs has equal token length under this tokenizer; give other pairs"
        )
    wanted = list(range(model.cfg.n_layers) if layers is None else layers)
    require_layers(model, wanted)
    blocks_return_tuple(model)  # found out now: later, hooks are open
    found, clean, corrupted = [], [], []
    for number, pair in enumerate(track(list(usable), f"patching {site}")):
        run = _run(model, pair, metric)
        clean.append(run.metric[0])
        corrupted.append(run.metric[1])
        for layer in wanted:
            for row in rows_of(model, run, metric, layer, mode):
                found.append({"pair": number, "layer": layer, **row})
    return Patching(
        _averaged(pd.DataFrame(found), site, mode, clean, corrupted), torch.stack(clean), torch.stack(corrupted)
    )


def _run(model, pair: prompts.Pair, metric: RefusalMetric) -> _Run:
    segments = [prompts.segments(model.tokenizer, text) for text in (pair.harmful, pair.harmless)]
    both = [[*found.prompt_ids, *metric.opening] for found in segments]
    first = next((i for i, (a, b) in enumerate(zip(*both, strict=True)) if a != b), None)
    if first is None:
        raise MechrefusalError(f"pair '{pair.id}' has the same tokens on both sides; there is nothing to patch")
    batch = TokenBatch.of(
        both, pad=model.tokenizer.pad_token_id, device=str(model.cfg.device), keep=len(both[0]) - first
    )
    resid: dict[int, Tensor] = {}
    z: dict[int, Tensor] = {}

    def keep(activation: Tensor, hook, store: dict, layer: int) -> None:
        store[layer] = activation.detach()

    hooks = []
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.hook_resid_pre", partial(keep, store=resid, layer=layer)))
        hooks.append((f"blocks.{layer}.attn.hook_z", partial(keep, store=z, layer=layer)))
    cache = head_cache(model, batch)
    with model.hooks(fwd_hooks=hooks):
        scores = metric.of(last_logits(model, batch, cache=cache)[:, -1])
    d_head = model.cfg.d_head
    return _Run(
        cache=cache,
        mask=batch.full_mask()[:1],
        resid_pre=torch.stack([resid[layer] for layer in range(model.cfg.n_layers)], dim=1),
        z=torch.stack([z[layer].unflatten(-1, (-1, d_head)) if z[layer].ndim == 3 else z[layer] for layer in z], dim=1),
        metric=scores,
        prompt_length=len(both[0]) - len(metric.opening),
        head_length=len(batch.head),
        tokens=tuple(model.tokenizer.decode([token]) for token in both[0]),
    )


def _residual_rows(model, run: _Run, metric: RefusalMetric, layer: int, mode: Mode) -> list[dict]:
    source, target = (0, 1) if mode == "denoising" else (1, 0)
    columns = range(run.prompt_length - run.head_length)
    residuals = run.resid_pre[target, layer][None].repeat(len(columns), 1, 1)
    for row, column in enumerate(columns):
        residuals[row, column] = run.resid_pre[source, layer, column]
    scores = _scores(model, run, metric, layer, residuals)
    # Before the first difference both runs are the same: exactly zero, and part of the mean over pairs.
    shared = [
        {"head": -1, "position": column - run.prompt_length, "token": run.tokens[column], "raw": 0.0, "shared": True}
        for column in range(run.head_length)
    ]
    return shared + [
        {
            "head": -1,
            "position": run.head_length + column - run.prompt_length,
            "token": run.tokens[run.head_length + column],
            "raw": (score - run.metric[target]).item(),
            "shared": False,
        }
        for column, score in zip(columns, scores, strict=True)
    ]


def _head_rows(model, run: _Run, metric: RefusalMetric, layer: int, mode: Mode) -> list[dict]:
    source, target = (0, 1) if mode == "denoising" else (1, 0)
    n_heads = run.z.shape[3]

    def swap(activation: Tensor, hook) -> Tensor:
        shape = activation.shape
        patched = activation.reshape(*shape[:2], n_heads, -1).clone()
        for head in range(n_heads):
            patched[head, :, head] = run.z[source, layer, :, head]
        return patched.reshape(shape)

    residuals = run.resid_pre[target, layer][None].repeat(n_heads, 1, 1)
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", swap)]):
        scores = _scores(model, run, metric, layer, residuals)
    return [
        {
            "head": head,
            "position": ALL_POSITIONS,
            "token": "all",
            "raw": (score - run.metric[target]).item(),
            "shared": False,
        }
        for head, score in enumerate(scores)
    ]


def _scores(model, run: _Run, metric: RefusalMetric, layer: int, residuals: Tensor) -> Float[Tensor, " row"]:
    n = len(residuals)
    mask = run.mask.expand(n, -1)
    return metric.of(logits_from(model, layer, residuals, mask=mask, cache=expanded(run.cache, n))[:, -1])


def _averaged(found: pd.DataFrame, site: str, mode: Mode, clean: list[Tensor], corrupted: list[Tensor]) -> pd.DataFrame:
    gaps = (torch.stack(clean) - torch.stack(corrupted)).cpu().numpy()
    # Patching into the clean run starts at effect 1 and takes away.
    start = 0.0 if mode == "denoising" else 1.0
    rows = []
    for (layer, head, position), group in found.groupby(["layer", "head", "position"], sort=True):
        if group["shared"].all():
            continue  # no pair differs there yet
        estimate = intervals.mean(group["raw"].to_numpy())
        total = float(gaps[group["pair"].to_numpy()].mean())
        scale = 1 / total if abs(total) >= SMALLEST_GAP else float("nan")
        low, high = sorted(start + bound * scale for bound in (estimate.low, estimate.high))
        rows.append(
            {
                "site": site,
                "mode": mode,
                "layer": layer,
                "head": head,
                "position": position,
                "token": group["token"].iloc[0] if group["token"].nunique() == 1 else "·",
                "raw": estimate.value,
                "effect": start + estimate.value * scale,
                "n": estimate.n,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)
