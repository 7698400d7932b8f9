"""What the index shows of heads across checkpoints: patches from one into another, and which top heads they share."""

from functools import partial
from typing import Any

import pandas as pd

from mechrefusal.report import causal_findings, figures, findings, wording
from mechrefusal.report.figures.catalogue import words
from mechrefusal.report.figures.cross_patches import PAIR, head_sites, of_set
from mechrefusal.report.order import arm_order
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import MeasuredRun

TOP = 10
SETS = ("harmful", "harmless")


def context(run: MeasuredRun, panels: Panels) -> dict[str, Any]:
    """Everything that the template `crossing.html` needs."""
    table = run.across["cross_patching"]
    return {
        "crossed": _crossed(table, panels),
        "crossed_heads": causal_findings.crossed_heads(table),
        "crossed_reasons": findings.reasons(table, "effect"),
        "shared": _shared(run, panels),
        "shared_top": TOP,
    }


def _crossed(table: pd.DataFrame, panels: Panels) -> list[dict[str, Any]]:
    """One group two arms, both ways; all heads have one scale, whatever the pair."""
    sites = head_sites(table)
    most = table.loc[table["head"] >= 0, "raw"].abs().max()
    limit = None if wording.is_missing(most) or most == 0 else float(most)
    groups = []
    between = [
        tuple(sorted(ends, key=arm_order))
        for ends in table[["arm_source", "arm_target"]].itertuples(index=False, name=None)
    ]
    for one, other in dict.fromkeys(between):
        rows = table[[ends == (one, other) for ends in between]]
        n_pairs, drawn = rows[list(PAIR)].drop_duplicates().shape[0], []
        for prompts in SETS:
            asked = of_set(rows, prompts)
            for site in sites:
                own = asked[asked["site"] == site]
                if len(own):
                    title = f"{words('site').get(site, 'Heads')}, {prompts} prompts"
                    draw = partial(figures.cross_patching, own, prompts=prompts, site=site, title=title, limit=limit)
                    drawn.append(panels.add(draw, title=title))
            if (asked["head"] < 0).any():
                title = f"Layers, {prompts} prompts"
                draw = partial(figures.cross_patching_layers, asked, prompts=prompts, title=title)
                drawn.append(panels.add(draw, title=title))
        groups.append({"arms": f"{wording.plain(one)} and {wording.plain(other)}", "n_pairs": n_pairs, "panels": drawn})
    return groups


def _shared(run: MeasuredRun, panels: Panels) -> list[Panel]:
    """Heads that several checkpoints share, among those whose heads are the same ones."""
    drawn = []
    for checkpoints in run.kinds:
        of = f", {checkpoints[0].label} and like it" if len(run.kinds) > 1 else ""
        patched, knocked = (run.together(name, among=checkpoints) for name in ("patching", "knockout"))
        patched = patched[(patched["site"] == "z") & (patched["mode"] == "denoising")]
        knocked = knocked[knocked["component"] == "head"]
        for table, value, title in (
            (patched, "raw", f"By patching (denoising){of}"),
            (knocked, "refusal", f"By knock-out{of}"),
        ):
            if len(table[["arm", "step"]].drop_duplicates()) > 1:
                draw = partial(figures.shared_heads, table, value=value, k=TOP, title=title)
                drawn.append(panels.add(draw, title=title))
    return drawn
