"""Exact patches of the residual stream, of attention, MLPs and heads, and their effects averaged over pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.patching.pair_runs import (
    SMALLEST_GAP,
    LeftOut,
    Mode,
    Pairs,
    cells,
    oriented,
    require_mode,
    rows_of,
    unpatched_scores,
    usable_pairs,
)
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Metric, MetricReader, runner_of
from mechrefusal.forward.patches import Site, require_memory, require_site
from mechrefusal.models import require_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.observations import keys_of

_CELL = ("layer", "head", "position")


@dataclass(frozen=True)
class Patching(Observed):
    """Effects of patching, averaged over pairs.

    `table`: site, mode, layer, head, position, token, raw, effect, n, low, high, p. `raw` is the change of the metric
    in nats against the unpatched run. `effect` is (m − m_corrupted) / (m_clean − m_corrupted) with numerator and
    denominator averaged first over the pairs that have the position, as the ratio of a single pair has no bound;
    `low`, `high` are its 95% interval over pairs, of a linearised ratio (`intervals.ratio`). `p`: that no
    patch of this table changes the metric, adjusted for all that every pair has (`statistics.maps.sign_flip_p`), NaN
    for others. `observations`: raw, of every pair (its id) and cell (layer, head, position). `clean`, `corrupted`: the
    metric of every pair, nats. `reason`: why effects are NaN, empty where none is. `left_out`: (id, tokens of the
    harmful prompt, tokens of the harmless one) of each pair that was not patched, as the two differ in length.
    """

    table: pd.DataFrame
    observations: Observations
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    reason: str = ""
    left_out: LeftOut = ()

    @property
    def by_pair(self) -> pd.DataFrame:
        """Table `patching_pairs`: site, mode, layer, head, position, pair, raw."""
        rows = self.observations.table.rename(columns={"value": "raw"})
        first = self.table.iloc[0]
        return rows.assign(site=first["site"], mode=first["mode"])[["site", "mode", *_CELL, "pair", "raw"]]

    def top(self, k: int) -> list[tuple[int, int]]:
        """The `k` (layer, head) with the largest absolute effect on refusal, largest first."""
        heads = self.table[self.table["head"] >= 0]
        order = heads.loc[heads["raw"].abs().sort_values(ascending=False, kind="stable").index]
        chosen = order.drop_duplicates(["layer", "head"])[:k]
        return [(int(row.layer), int(row.head)) for row in chosen.itertuples()]


def residual(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    site: Literal["pre", "mid", "post"] = "pre",
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
    memory: int | None = None,
) -> Patching:
    """Patch the residual stream at one layer and one position at a time, over the prompt's positions.

    From "mid" (between attention and MLP) to "post" a block acts on single positions: their effects are the same.

    Args:
        model: a hooked transformer.
        pairs: a `PairSet`, or (harmful, harmless) texts; pairs of unequal token length under the model's tokenizer are
            left out.
        metric: a `RefusalMetric`, or a function from the last position's logits [row, vocab] to one score a row.
        site: before the block, between its attention and its MLP, or after it.
        layers: all by default.
        mode: "denoising" copies clean activations into the corrupted run, "noising" the other way round.
        memory: about how many bytes of activations and logits to hold in one pass (never less than one patched
            prompt's); `MEMORY` (1 GiB) by default. It changes the speed and no number.

    Returns:
        `Patching` with site resid_pre, resid_mid or resid_post; head is −1.

    Raises:
        MechrefusalError: no pair of equal token length, or one with the same tokens on both sides; an unknown site,
            mode or layer; a site that the architecture lacks; a metric that is no function of the logits.
    """
    _require_one_of("site of the residual stream", site, ("pre", "mid", "post"))
    sites: dict[str, Site] = {"pre": "resid_pre", "mid": "resid_mid", "post": "resid_post"}
    return _patch(model, pairs, metric, sites[site], by_position=True, layers=layers, mode=mode, memory=memory)


def attention_output(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
    memory: int | None = None,
) -> Patching:
    """Patch what attention writes, at one layer and one position at a time (site attn_out). Else as `residual`."""
    return _patch(model, pairs, metric, "attn_out", by_position=True, layers=layers, mode=mode, memory=memory)


def mlp_output(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
    memory: int | None = None,
) -> Patching:
    """Patch what the MLP writes, at one layer and one position at a time (site mlp_out). Else as `residual`."""
    return _patch(model, pairs, metric, "mlp_out", by_position=True, layers=layers, mode=mode, memory=memory)


def heads(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    site: Literal["z", "pattern", "q", "k", "v"] = "z",
    by_position: bool = False,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
    memory: int | None = None,
) -> Patching:
    """Patch one head at a time: its output z, its pattern, or its queries, keys or values.

    Args:
        site: "k" and "v" are those of key/value heads, which several query heads share where they are grouped.
        by_position: one position at a time (of a pattern: of the token that attends) in place of all at once.

    The other arguments, and the errors, are those of `residual`.

    Returns:
        `Patching` with site z, pattern, q, k or v; position is missing (all at once) without
        `by_position`.
    """
    _require_one_of("site of heads", site, ("z", "pattern", "q", "k", "v"))
    return _patch(model, pairs, metric, site, by_position=by_position, layers=layers, mode=mode, memory=memory)


def _require_one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise MechrefusalError(f"unknown {what} '{value}'; use {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")


def _patch(
    model,
    pairs: Pairs,
    metric: Metric,
    site: Site,
    *,
    by_position: bool,
    layers: Sequence[int] | None,
    mode: Mode,
    memory: int | None,
) -> Patching:
    require_mode(mode)
    chosen_layers = sorted(set(range(model.cfg.n_layers) if layers is None else layers))
    require_layers(model, chosen_layers)
    require_site(model, site)
    reader, budget = MetricReader.of(metric), require_memory(memory)
    usable, left_out = usable_pairs(model, pairs)
    rows: list[dict] = []
    clean, corrupted = [], []
    for number, pair in enumerate(track(list(usable), f"patching {site}")):
        run, tokens = oriented(model, pair, reader, mode)
        patches = run.patches(model, site, chosen_layers, by_position=by_position)
        ready = runner_of(model).patching(run, site, memory=budget)
        source, target = unpatched_scores(ready, reader, check=number == 0)
        clean.append(source if mode == "denoising" else target)
        corrupted.append(target if mode == "denoising" else source)
        raw = (ready.scores(patches) - target).tolist()
        rows += [{"pair": number, **row} for row in rows_of(patches, raw, tokens, run.first)]
    table, reason = _averaged(rows, site, mode, clean, corrupted)
    by_pair = pd.DataFrame(rows)[["pair", *_CELL, "raw"]]
    by_pair["pair"] = [usable[number].id for number in by_pair["pair"]]
    observations = Observations.of_rows(by_pair, list(_CELL), unit="pair", value="raw")
    p = dict(zip(keys_of(observations.cells), observations.p(), strict=True))
    table["p"] = [p[key] for key in keys_of(table[list(_CELL)])]
    return Patching(table, observations, torch.stack(clean), torch.stack(corrupted), reason, left_out)


def _averaged(
    rows: Sequence[dict], site: str, mode: Mode, clean: list[Tensor], corrupted: list[Tensor]
) -> tuple[pd.DataFrame, str]:
    gaps = (torch.stack(clean) - torch.stack(corrupted)).cpu().numpy()
    # Patching into the clean run starts at effect 1 and takes away.
    start = 0.0 if mode == "denoising" else 1.0
    averaged, undefined, smallest = [], 0, float("inf")
    for cell in sorted(cells(rows, _CELL), key=lambda cell: cell.key):
        gap = gaps[[row["pair"] for row in cell.rows]]
        effect = intervals.ratio([row["raw"] for row in cell.rows], gap)
        if not abs(total := float(gap.mean())) >= SMALLEST_GAP:
            undefined, smallest = undefined + 1, total
            effect = intervals.mean([])
        averaged.append(
            {
                "site": site,
                "mode": mode,
                **dict(zip(_CELL, cell.key, strict=True)),
                "token": cell.token,
                "raw": cell.estimate.value,
                "effect": start + effect.value,
                "n": cell.estimate.n,
                "low": start + effect.low,
                "high": start + effect.high,
            }
        )
    reason = (
        f"{undefined} of {len(averaged)} effects are NaN: over their pairs clean and corrupted metric differ by "
        f"{smallest:.3g} nats, less than {SMALLEST_GAP}, and an effect is a share of that difference"
    )
    return pd.DataFrame(averaged).astype({"position": "Int64"}), reason if undefined else ""
