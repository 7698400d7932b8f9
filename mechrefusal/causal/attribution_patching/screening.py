"""Every patch estimated, the finalists and some others patched exactly, and how far the two agree."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.agreement import agreement_of
from mechrefusal.causal.attribution_patching.gradients import STEPS, TOOLS, Method, Tool, estimates, shares
from mechrefusal.causal.attribution_patching.pairs import (
    CELL,
    PreparedPairs,
    averaged,
    largest,
    position_of,
    prepare_pairs,
)
from mechrefusal.causal.patching.pair_runs import LeftOut, Mode, Pairs
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.metric_reader import Metric
from mechrefusal.forward.patches import Site, require_site
from mechrefusal.models import wanted_layers
from mechrefusal.progress import track
from mechrefusal.statistics import Observations, Observed
from mechrefusal.statistics.observations import keys_of

SITES: tuple[Site, ...] = ("z", "attn_out", "mlp_out", "resid_pre")
"""Sites of the screen: heads at all positions at once, the others by position, as in `patching`."""


@dataclass(frozen=True)
class Screen(Observed):
    """Estimates from gradients.

    `table`: site, layer, head (−1 where there is none), position (counted from the end; missing: all at once), token,
    estimate (of the change of the metric against the unpatched run, nats), low, high (95% t interval over pairs), n
    (pairs), effect (the estimate as a share of the gap between harmful and harmless, positive where the site carries
    refusal), mode, method ("eap", "eap-ig"), tool (that gave gradients: "transformer_lens", "token trees", "hooks").

    `observations`: the estimate of every pair (its id); axes site, layer, head, position. `clean`, `corrupted`: metric
    of each pair, nats. `reason`: why effects are NaN. `seconds`: of the whole screen.
    """

    table: pd.DataFrame
    observations: Observations
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    reason: str
    seconds: float
    left_out: LeftOut


@dataclass(frozen=True)
class Screened(Screen):
    """Estimates, exact effects of some of them, and how well the two agree.

    `table`: as `Screen.table` with estimate_low and estimate_high in place of low and high, then scored ("finalist",
    "random", or "" where not), exact (nats, NaN where not scored), low, high (of exact), error (exact − estimate).

    `agreement`, one row for each site and for all ("all") by what was scored ("finalist", "random", "both"): n,
    spearman (rank correlation of estimate and exact), low, high (95%, Bonett and Wright 2000; NaN below 5 cells and
    where it is ±1), sign (share of cells with the same sign), error (mean absolute, nats), relative_error
    (Σ|exact − estimate| / Σ|exact|). Finalists alone say little of the rank correlation, as one of the two chose them.

    `exact`: observations of the cells that were patched exactly. `seconds`, `seconds_exact`: of the screen, and of the
    exact patches; `n_exact` patches a pair were exact.
    """

    agreement: pd.DataFrame
    exact: Observations
    seconds_exact: float
    n_exact: int


def screen(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    sites: Sequence[Site] = SITES,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
    method: Method = "eap",
    steps: int = STEPS,
    tool: Tool | None = None,
) -> Screen:
    """Estimate the effect of every patch of `sites`, over the pairs of equal length.

    Args:
        model: a hooked transformer, under whatever hooks the caller has open.
        pairs, metric, mode: as in `patching`. A metric that is a function must be differentiable.
        sites: of "z", "attn_out", "mlp_out", "resid_pre".
        layers: all by default.
        method: "eap" takes the gradient in the run that is patched: first order. "eap-ig" takes its mean over `steps`
            runs with the embedding k / steps of the way from that prompt to the other (2403.17806): it costs `steps`
            times as much, and sees through what is saturated at one end.
        steps: runs of "eap-ig"; published: 5.
        tool: "transformer_lens", "token trees" or "hooks"; by default the first of them that works. "eap-ig" has no
            "transformer_lens".

    Raises:
        MechrefusalError: no usable pairs, an unknown site, mode, method, tool or layer, no steps, a site that the
            architecture lacks, a metric without a gradient.
    """
    return _screen(model, pairs, metric, sites, layers, mode, method, steps, tool)[1]


def screened(
    model,
    pairs: Pairs,
    metric: Metric,
    *,
    finalists: int = 20,
    others: int = 20,
    sites: Sequence[Site] = SITES,
    layers: Sequence[int] | None = None,
    mode: Mode = "denoising",
    method: Method = "eap",
    steps: int = STEPS,
    tool: Tool | None = None,
    seed: int = 0,
) -> Screened:
    """Screen by attribution patching, then patch exactly the `finalists` of each site, and `others` drawn at random.

    Args:
        finalists: cells with the largest absolute estimates of each site (all of them where it has no more).
        others: cells of each site drawn from the rest with `seed`, for a correlation that is not one of extremes.

    The other arguments, and the errors, are those of `screen`.

    Raises:
        MechrefusalError: as `screen`; or `finalists` is below 1, `others` or `seed` below 0.
    """
    if finalists < 1 or others < 0 or seed < 0:
        raise MechrefusalError(f"finalists is {finalists}, others {others} and seed {seed}: give at least 1, 0 and 0")
    runs, estimated = _screen(model, pairs, metric, sites, layers, mode, method, steps, tool)
    table = estimated.table.rename(columns={"low": "estimate_low", "high": "estimate_high"})
    table["scored"] = _chosen(table, finalists, others, seed)
    start = time.perf_counter()
    exact, observations = _exact(runs, table[table["scored"] != ""])
    seconds_exact = time.perf_counter() - start
    table = table.merge(exact[[*CELL, "exact", "low", "high"]], on=CELL, how="left")
    table["error"] = table["exact"] - table["estimate"]
    return Screened(
        **(vars(estimated) | {"table": table}),
        agreement=agreement(table),
        exact=observations,
        seconds_exact=seconds_exact,
        n_exact=len(exact),
    )


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of the columns estimate and exact of a table of `screened`; see `Screened`."""
    rows = []
    scored = table[table["scored"] != ""]
    for site in ["all", *dict.fromkeys(scored["site"])]:
        here = scored if site == "all" else scored[scored["site"] == site]
        for which in ("finalist", "random", "both"):
            part = here if which == "both" else here[here["scored"] == which]
            estimate, exact = part["estimate"].to_numpy(float), part["exact"].to_numpy(float)
            rows.append({"site": site, "scored": which, **agreement_of(estimate, exact)})
    return pd.DataFrame(rows)


def _screen(
    model,
    pairs: Pairs,
    metric: Metric,
    sites: Sequence[Site],
    layers: Sequence[int] | None,
    mode: Mode,
    method: Method,
    steps: int,
    tool: Tool | None,
) -> tuple[PreparedPairs, Screen]:
    """The screen, and its pairs, which are ready to be patched exactly."""
    shares(method, steps)
    if tool is not None and tool not in TOOLS:
        raise MechrefusalError(f"unknown tool '{tool}' of attribution patching; use {', '.join(TOOLS)}, or None")
    sites = list(dict.fromkeys(sites))
    if not sites:
        raise MechrefusalError(f"no site to screen; give some of {', '.join(SITES)}")
    if unknown := [site for site in sites if site not in SITES]:
        raise MechrefusalError(f"unknown site '{unknown[0]}' of attribution patching; use {', '.join(SITES)}")
    layers = sorted(wanted_layers(model, layers, "screen"))
    for site in sites:
        require_site(model, site)
    start = time.perf_counter()
    runs = prepare_pairs(model, pairs, metric, mode)
    rows, used = [], set()
    for number, run in enumerate(track(list(runs.runs), "attribution patching")):
        by_site, by = estimates(runs.model, run, metric, sites, method=method, steps=steps, tool=tool)
        used.add(by)
        for site in sites:
            patches = run.patches(runs.model, site, layers, by_position=site != "z")
            raw = []
            for patch in patches:
                values = by_site[site][patch.layer]
                values = values if patch.head is None else values[:, patch.head]
                raw.append(float((values if patch.position is None else values[patch.position]).sum()))
            rows += runs.rows(number, site, patches, raw)
    table, observations = averaged(runs, rows, "estimate")
    table["effect"] = table["estimate"] * runs.scale
    table["mode"], table["method"] = runs.mode, method
    table["tool"] = "/".join(sorted(used))
    seconds = time.perf_counter() - start
    return runs, Screen(table, observations, runs.clean, runs.corrupted, runs.reason, seconds, runs.left_out)


def _chosen(table: pd.DataFrame, finalists: int, others: int, seed: int) -> pd.Series:
    chosen = pd.Series("", index=table.index, dtype=object)
    generator = np.random.default_rng(seed)
    for _, group in table.groupby("site", sort=False):
        best = largest(group["estimate"], finalists)
        chosen[best] = "finalist"
        rest = group.index.difference(best)
        chosen[generator.choice(rest, min(others, len(rest)), replace=False)] = "random"
    return chosen


def _exact(runs: PreparedPairs, cells: pd.DataFrame) -> tuple[pd.DataFrame, Observations]:
    """Exact effects of these cells, nats."""
    rows = []
    for number, run in enumerate(track(list(runs.runs), "exact patching of the finalists")):
        for site, group in cells.groupby("site", sort=False):
            keys = set(keys_of(group[["layer", "head", "position"]]))
            layers = sorted(set(group["layer"]))
            every = run.patches(runs.model, site, layers, by_position=site != "z")
            n = len(run.target)
            patches = [p for p in every if (p.layer, -1 if p.head is None else p.head, position_of(p, n)) in keys]
            patched = runs.rows(number, site, patches, runs.exact(number, site, patches))
            # Where a pair does not differ yet its effect is zero, and counts.
            shared = runs.rows(number, site, every, [0.0] * len(every))
            rows += [row for row in patched if not row["shared"]]
            rows += [r for r in shared if r["shared"] and (r["layer"], r["head"], r["position"]) in keys]
    return averaged(runs, rows, "exact")
