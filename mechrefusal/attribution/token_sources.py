"""Which source tokens a head reads refusal from: its attention-weighted values, read out source by source.

A head writes z W_O with z = Σ over sources of pattern · v. Read out linearly, that is one number a source, and they
sum to the head's contribution. Value biases are part of v, or folded into the attention's output bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from mechrefusal.attribution.direct import TOLERANCE, Attribution, HeadReadout, of_writes
from mechrefusal.attribution.readouts import Readout
from mechrefusal.attribution.writes import Writes, prompt_segments
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.rounding import rounded_at_most
from mechrefusal.progress import track

COLUMNS = ["prompt", "layer", "head", "source", "token", "segment", "weight", "value"]


@dataclass(frozen=True)
class Sources:
    """What heads read from each source token, prompt by prompt.

    `table`: prompt (its place in the list), layer, head, source (position), token, segment (before, instruction,
    attack, after; `opening` for the metric's), weight (attention), value (contribution to the read-out). Over the
    sources of a prompt the values sum to the head's contribution.
    """

    table: pd.DataFrame

    @property
    def by_token(self) -> pd.DataFrame:
        """layer, head, token, value, n, low, high, weight: mean over the prompts that hold the token (n of them).

        A prompt counts once, with the sum over the places at which the token stands; `weight` is the mean attention.
        """
        return self._averaged("token")

    @property
    def by_segment(self) -> pd.DataFrame:
        """layer, head, segment, value, n, low, high, weight: sums over each segment, averaged over the prompts.

        Where every prompt has the same segments, a head's values sum to its mean contribution.
        """
        return self._averaged("segment")

    def _averaged(self, name: str) -> pd.DataFrame:
        keys = ["layer", "head", name]
        summed = self.table.groupby([*keys, "prompt"], sort=False, observed=True)[["value", "weight"]].sum()
        groups = summed.groupby(keys, sort=False, observed=True)
        value, n = groups["value"].mean(), groups["value"].count()
        # `intervals.mean` of every group at once: all heads and tokens are many.
        half = stats.t.ppf(0.975, n - 1) * groups["value"].std() / np.sqrt(n)
        columns = {"value": value, "n": n, "low": value - half, "high": value + half, "weight": groups["weight"].mean()}
        return pd.DataFrame(columns).reset_index()


@torch.no_grad()
def sources(
    model, texts: Sequence[str], readout: Readout, *, heads: Sequence[tuple[int, int]] | None = None
) -> Sources:
    """Contribution of every source token, through each of `heads`, to `readout`.

    Args:
        texts, readout: as in `attribute`, and so are errors.
        heads: (layer, head) pairs; by default all that have written, which gives heads × tokens rows a prompt.

    Raises:
        MechrefusalError: a head that the model lacks, or one at a layer that the read-out does not see; values that
            do not sum to what the head writes (an attention that is no weighted sum of values).
    """
    readout.check(model)
    wanted = _by_layer(model, readout, heads)
    vector = readout.vector(model)
    readers = {layer: HeadReadout.of(model, layer, vector) for layer in wanted}
    frames = []
    for number, segments in enumerate(track(prompt_segments(model, texts), "sources")):
        ids = (*segments.prompt_ids, *readout.opening)
        kept: dict[str, dict[int, Tensor]] = {"weight": {}, "value": {}}
        hooks = []
        for layer, reader in readers.items():
            hooks.append((f"blocks.{layer}.attn.hook_v", partial(_keep_values, kept, reader)))
            hooks.append((f"blocks.{layer}.attn.hook_pattern", partial(_keep_pattern, kept, layer)))
        with model.hooks(fwd_hooks=hooks):  # with hooks open, the hooked transformer itself runs
            written = Writes.take(model, [ids], position=readout.position, tokens=readout.tokens)
        direct, final = of_writes(model, written, readout), readout.scales(model, written)
        labels = (*segments.labels, *("opening" for _ in readout.opening))
        strings = [model.tokenizer.decode([token]) for token in ids]
        weights, values, pairs = [], [], []
        for layer, chosen in wanted.items():
            weight = kept["weight"][layer]
            by_number = kept["value"][layer]  # of z, whose numbers are rounded one by one
            scale = (readers[layer].scales(model, written) * final).to(weight.device)
            value = weight * by_number.sum(2).T * scale
            _require_sums(value, direct, layer, _rounded(model, weight, by_number, scale))
            weights.append(weight[chosen].cpu())
            values.append(value[chosen].cpu())
            pairs += [(layer, head) for head in chosen]
        if pairs:
            frames.append(_rows(number, pairs, strings, labels, torch.cat(weights).numpy(), torch.cat(values).numpy()))
    return Sources(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS))


def _rows(
    prompt: int,
    pairs: list[tuple[int, int]],
    strings: list[str],
    labels: tuple[str, ...],
    weights: np.ndarray,
    values: np.ndarray,
) -> pd.DataFrame:
    """One row a head and source, from weights and values [head, source]."""
    k, n = weights.shape
    layer, head = np.repeat(np.array(pairs), n, axis=0).T
    columns = (prompt, layer, head, np.tile(np.arange(n), k), strings[:n] * k, labels[:n] * k)
    return pd.DataFrame(dict(zip(COLUMNS, (*columns, weights.ravel(), values.ravel()), strict=True)))


def _keep_values(kept: dict, reader: HeadReadout, v: Tensor, hook) -> None:
    """Every head's read-out of the values at every source: [source, head, d_head]."""
    n_heads, d_head = reader.weights.shape
    shared = v[0].detach().double().reshape(v.shape[1], -1, d_head)
    each = shared.repeat_interleave(n_heads // shared.shape[1], dim=1)
    kept["value"][reader.layer] = each * reader.weights.to(each.device)


def _keep_pattern(kept: dict, layer: int, pattern: Float[Tensor, "1 head query source"], hook) -> None:
    kept["weight"][layer] = pattern[0, :, -1].detach().double()


def _by_layer(model, readout: Readout, heads: Sequence[tuple[int, int]] | None) -> dict[int, list[int]]:
    n_layers, n_heads = readout.n_layers(model), model.cfg.n_heads
    chosen = heads if heads is not None else [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    by_layer: dict[int, list[int]] = {}
    for layer, head in dict.fromkeys((int(layer), int(head)) for layer, head in chosen):
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < n_heads):
            raise MechrefusalError(
                f"head ({layer}, {head}) is not in this model; it has layers 0 to {model.cfg.n_layers - 1} of "
                f"{n_heads} heads"
            )
        if layer >= n_layers:
            raise MechrefusalError(
                f"head ({layer}, {head}) writes after what is read (resid_pre of layer {n_layers}); ask for heads of "
                "lower layers"
            )
        by_layer.setdefault(layer, []).append(head)
    return by_layer


def _rounded(
    model,
    weight: Float[Tensor, "head source"],
    value: Float[Tensor, "source head d_head"],
    scale: Float[Tensor, " prompt"],
) -> float:
    """What rounding the pattern and z does to what is read of a head, at most."""
    z = torch.einsum("hs,shd->hd", weight, value)
    squares = z.square().sum(1) + (weight * value.sum(2).T).square().sum(1)
    return rounded_at_most(model, squares[:, None] * scale**2)


def _require_sums(value: Float[Tensor, "head source"], direct: Attribution, layer: int, rounding: float) -> None:
    written = torch.stack([direct.of("head", layer, head)[0] for head in range(len(value))])
    gap = (value.sum(1).cpu() - written).abs().max().item()
    scale = max(1.0, written.abs().max().item(), value.abs().max().item())
    if not gap <= TOLERANCE * scale + rounding:
        raise MechrefusalError(
            f"the source tokens of layer {layer} miss what its heads write by {gap:.2g}; this attention is not a "
            "weighted sum of its values, so no sources are given"
        )
