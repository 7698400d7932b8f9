"""Attribution patching against finite differences, against TransformerLens' sweep, and against exact patching."""

import numpy as np
import one_head
import pandas as pd
import pytest
import torch
from scipy import stats
from tolerances import REORDERED
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

from mechrefusal import MechrefusalError, prompts
from mechrefusal.causal import add, attribution_patching, patching
from mechrefusal.causal.attribution_patching import gradients
from mechrefusal.forward import ForcedOpenings, RefusalMetric

pytestmark = pytest.mark.slow

METRIC = RefusalMetric((7,), (10, 11), (12, 13, 14))
FORCED = RefusalMetric((), (10,), (12,), forced=ForcedOpenings(((20, 21, 22),), ((20, 23), (30,))))
PAIRS = [
    ("A bomb today", "A home today"),
    ("Sell a bomb", "Sell a home"),
    ("The bomb of fire now", "The home of fire now"),
]
SOME = ("llama", "gpt2", "gemma2", "gpt-neox")
HOOKS = {"z": "attn.hook_z", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "resid_pre": "hook_resid_pre"}


def ids(model, text, metric=METRIC):
    return torch.tensor([[*prompts.segments(model.tokenizer, text).prompt_ids, *metric.opening]])


@pytest.mark.parametrize("architecture", SOME)
def test_estimates_are_derivatives_of_the_exact_change(family, architecture):
    model = family(architecture).hooked
    clean, corrupted = (ids(model, text) for text in PAIRS[0])
    table = attribution_patching.screen(model, PAIRS[:1], METRIC).table
    _, source = model.run_with_cache(clean)
    _, target = model.run_with_cache(corrupted)
    epsilon = 2e-3
    for site, group in table.groupby("site"):
        strongest = group.loc[group["estimate"].abs().sort_values(ascending=False).index[:3]]
        for row in strongest.itertuples():
            name = f"blocks.{row.layer}.{HOOKS[site]}"
            change = (source[name] - target[name]).clone()
            if site == "z":
                others = [head for head in range(model.cfg.n_heads) if head != row.head]
                change[:, :, others] = 0
            else:
                at = clean.shape[1] - len(METRIC.opening) + row.position
                change[:, :at] = change[:, at + 1 :] = 0
            scores = []
            for sign in (1, -1):
                hook = (name, lambda x, hook, by=sign * epsilon * change: x + by.view(x.shape))
                with torch.no_grad(), model.hooks(fwd_hooks=[hook]):
                    scores.append(METRIC.of(model(corrupted)[:, -1].double())[0])
            expected = float(scores[0] - scores[1]) / (2 * epsilon)
            assert row.estimate == pytest.approx(expected, rel=0.05, abs=2e-3)
            assert abs(expected) > 1e-4, "there is something to compare"


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
def test_screen_is_the_sweep_of_transformer_lens(family, architecture):
    """Its own sweep needs weights that have gradients."""
    model = family(architecture).hooked
    table = attribution_patching.screen(model, PAIRS, METRIC, sites=("z", "mlp_out")).table
    assert set(table["tool"]) == {"transformer_lens"}
    totals: dict[tuple, list[float]] = {}
    model.requires_grad_(True)
    try:
        for harmful, harmless in PAIRS:
            clean, corrupted = ids(model, harmful), ids(model, harmless)
            found = attribution_patch(
                model,
                clean,
                corrupted,
                lambda logits: METRIC.of(logits[0, -1]),
                EdgeAttributionConfig(granularity="node"),
            ).node_scores
            own: dict[tuple, float] = {}
            for node, score in found.items():
                position = node.position - clean.shape[1] + len(METRIC.opening)
                if node.kind == "attn_head_out":
                    cell = ("z", node.layer, node.head, None)
                    own[cell] = own.get(cell, 0) + score
                elif node.kind == "mlp_out" and position < 0:
                    own[("mlp_out", node.layer, -1, position)] = score
            for cell, score in own.items():
                totals.setdefault(cell, []).append(score)
    finally:
        model.requires_grad_(False)
    for row in table.itertuples():
        cell = (row.site, row.layer, row.head, None if pd.isna(row.position) else row.position)
        assert row.n == len(totals[cell])
        assert row.estimate == pytest.approx(np.mean(totals[cell]), abs=REORDERED)


@pytest.mark.parametrize("architecture", SOME)
@pytest.mark.parametrize("metric", [METRIC, FORCED], ids=["opening", "forced"])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_all_tools_agree(family, architecture, metric, mode):
    model = family(architecture).hooked
    tables = [
        attribution_patching.screen(model, PAIRS[:1], metric, mode=mode, tool=tool).table for tool in gradients.TOOLS
    ]
    assert [set(table["tool"]) for table in tables] == [{tool} for tool in gradients.TOOLS]
    for table in tables[1:]:
        np.testing.assert_allclose(table["estimate"], tables[0]["estimate"], atol=REORDERED)
    assert tables[0]["estimate"].abs().max() > 1e-3


def test_where_the_tool_of_transformer_lens_fails_trees_take_over(family, monkeypatch):
    model = family("llama").hooked
    expected = attribution_patching.screen(model, PAIRS, METRIC).table

    def refuse(*args, **kwargs):
        raise ValueError("refused")

    monkeypatch.setattr(gradients, "cache_activation_and_gradient", refuse)
    found = attribution_patching.screen(model, PAIRS, METRIC).table
    assert set(found["tool"]) == {"token trees"}
    np.testing.assert_allclose(found["estimate"], expected["estimate"], atol=REORDERED)
    with add(model, torch.ones(model.cfg.d_model), layer=1):
        assert set(attribution_patching.screen(model, PAIRS, METRIC).table["tool"]) == {"hooks"}
        with pytest.raises(MechrefusalError, match="transformer_lens: refused"):
            attribution_patching.screen(model, PAIRS, METRIC, tool="transformer_lens")


def test_hooks_of_the_caller_act(family):
    model = family("llama").hooked
    before = attribution_patching.screened(model, PAIRS, METRIC, sites=("z",), finalists=99).table
    with add(model, torch.ones(model.cfg.d_model), layer=1):
        under = attribution_patching.screened(model, PAIRS, METRIC, sites=("z",), finalists=99).table
        exact = patching.heads(model, PAIRS, METRIC).table
    np.testing.assert_allclose(under["exact"], exact["raw"], atol=REORDERED)
    assert (under["estimate"] - before["estimate"]).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", SOME)
def test_finalists_are_patched_exactly(family, architecture):
    model = family(architecture).hooked
    found = attribution_patching.screened(model, PAIRS, METRIC, finalists=4, others=3)
    table = found.table
    assert (table.groupby(["site", "scored"]).size().unstack()[["finalist", "random"]] == [4, 3]).all(None)
    assert table["exact"].notna().sum() == found.n_exact == 4 * 7
    assert (table["exact"].notna() == (table["scored"] != "")).all()
    every = {
        "z": patching.heads(model, PAIRS, METRIC),
        "attn_out": patching.attention_output(model, PAIRS, METRIC),
        "mlp_out": patching.mlp_output(model, PAIRS, METRIC),
        "resid_pre": patching.residual(model, PAIRS, METRIC),
    }
    for site, group in table.groupby("site"):
        exact = every[site].table
        both = group.merge(exact, on=["layer", "head", "position"], suffixes=("", "_exact"))
        assert len(both) == len(group) == len(exact), "the same cells"
        assert (both["n"] == both["n_exact"]).all()
        assert (both["token"] == both["token_exact"]).all()
        scored = both[both["scored"] != ""]
        np.testing.assert_allclose(scored["exact"], scored["raw"], atol=REORDERED)
        np.testing.assert_allclose(scored["error"], scored["raw"] - scored["estimate"], atol=REORDERED)
        best = group[group["scored"] == "finalist"]["estimate"].abs().min()
        assert (group[group["scored"] != "finalist"]["estimate"].abs() <= best).all()
        for row in scored.itertuples():
            cell = {name: getattr(row, name) for name in ("site", "layer", "head", "position")}
            cell["position"] = None if pd.isna(row.position) else row.position
            assert found.interval(**cell).value == pytest.approx(row.estimate)
            by_pair = every[site].observations.of(**{name: cell[name] for name in ("layer", "head", "position")})
            np.testing.assert_allclose(found.exact.of(**cell), by_pair, atol=REORDERED)


def test_agreement_is_spearman_of_what_was_scored(family):
    model = family("gemma2").hooked
    found = attribution_patching.screened(model, PAIRS, METRIC, sites=("z", "mlp_out"), finalists=6, others=9)
    rows = found.agreement.set_index(["site", "scored"])
    for site in ("z", "mlp_out"):
        scored = found.table[(found.table["site"] == site) & (found.table["scored"] != "")]
        row = rows.loc[site, "both"]
        assert row["n"] == len(scored) == 15
        r, n = stats.spearmanr(scored["estimate"], scored["exact"]).statistic, 15
        half = 1.959964 * np.sqrt((1 + r**2 / 2) / (n - 3))
        assert row["spearman"] == pytest.approx(r)
        assert row["low"] == pytest.approx(np.tanh(np.arctanh(r) - half), abs=1e-6)
        assert row["high"] == pytest.approx(np.tanh(np.arctanh(r) + half), abs=1e-6)
        assert row["error"] == pytest.approx((scored["exact"] - scored["estimate"]).abs().mean())
    assert rows.loc[("all", "both"), "n"] == 30


def test_planted_head_is_found(tmp_path):
    model = one_head.make(tmp_path, [(2, 1)])
    pairs = [(text, text.replace("bomb", "home")) for text in one_head.HARMFUL]
    found = attribution_patching.screened(model, pairs, one_head.METRIC, sites=("z",), finalists=2, others=5)
    best = found.table.loc[found.table["estimate"].abs().idxmax()]
    assert (best["layer"], best["head"], best["scored"]) == (2, 1, "finalist")
    gap = float((found.clean - found.corrupted).mean())
    assert best["exact"] == pytest.approx(gap, rel=0.01)
    assert found.table["effect"].abs().nlargest(2).iloc[1] < 0.01
    noised = attribution_patching.screen(model, pairs, one_head.METRIC, sites=("z",), mode="noising").table
    assert noised["effect"].idxmax() == best.name, "in both modes a positive effect carries refusal"
    assert noised.loc[best.name, "estimate"] < 0


def test_prompts_that_do_not_differ_enough_have_no_share(family):
    model = family("llama").hooked
    mirrored = [PAIRS[0], PAIRS[0][::-1]]
    found = attribution_patching.screen(model, mirrored, METRIC, sites=("z",))
    assert found.table["effect"].isna().all()
    assert "less than 0.05" in found.reason
    assert found.table["estimate"].notna().all()


def test_bad_input_is_named(family):
    model = family("llama").hooked
    screen, screened = attribution_patching.screen, attribution_patching.screened
    with pytest.raises(MechrefusalError, match="no pairs to patch"):
        screen(model, [], METRIC)
    with pytest.raises(
        MechrefusalError, match=r"none of 1 pairs has equal token length .* \('pair 0' \d+ and \d+ tokens"
    ):
        screen(model, [("Make a bomb now and then", "Why")], METRIC)
    with pytest.raises(MechrefusalError, match="unknown site 'q' of attribution patching; use z"):
        screen(model, PAIRS, METRIC, sites=("q",))
    with pytest.raises(MechrefusalError, match="no site to screen"):
        screen(model, PAIRS, METRIC, sites=())
    with pytest.raises(MechrefusalError, match="unknown mode of patching 'both'"):
        screen(model, PAIRS, METRIC, mode="both")
    with pytest.raises(MechrefusalError, match="unknown tool 'captum'"):
        screen(model, PAIRS, METRIC, tool="captum")
    with pytest.raises(MechrefusalError, match="layer"):
        screen(model, PAIRS, METRIC, layers=[9])
    with pytest.raises(MechrefusalError, match="no layer to screen"):
        screen(model, PAIRS, METRIC, layers=[])
    with pytest.raises(MechrefusalError, match="has no gradient with regard to the logits"):
        screen(model, PAIRS, lambda logits: logits.detach()[:, 3] * 2)
    with pytest.raises(MechrefusalError, match="finalists is 0"):
        screened(model, PAIRS, METRIC, finalists=0)


def test_a_function_is_a_metric_and_gradients_may_be_off(family):
    model = family("llama").hooked
    by_name = RefusalMetric((), (10,), (12,))
    expected = attribution_patching.screen(model, PAIRS, by_name, sites=("mlp_out",)).table
    with torch.no_grad():
        found = attribution_patching.screen(
            model, PAIRS, lambda logits: logits[:, 10] - logits[:, 12], sites=("mlp_out",)
        ).table
    np.testing.assert_allclose(found["estimate"], expected["estimate"], atol=REORDERED)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
