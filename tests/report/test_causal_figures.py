"""Figures of cause and attribution draw the numbers of the tables, and say why where there are none."""

import numpy as np
import pandas as pd
import pytest
from synthetic_causal import CARRIERS, HEADS, HOSTILE_TOKEN
from synthetic_geometry import BROKEN, LAYERS

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures, wording
from mechrefusal.report.figures.attribution import beyond_chance
from mechrefusal.report.figures.heads import top_heads


@pytest.fixture(scope="module")
def base(run):
    return run.checkpoints[0]


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def grid(table, value):
    return table.set_index(["layer", "head"])[value].unstack().to_numpy(float)


def compared(checkpoint, onto="refusal_logits"):
    table = checkpoint.tables["attribution_compared"]
    return table[table["onto"] == onto]


def test_attribution_difference_marks_what_passes_interval_and_floor(checkpoint):
    table = compared(checkpoint)
    heads = table[table["component"] == "head"]
    figure = figures.attribution_difference(table)
    np.testing.assert_array_equal(np.array(figure.data[0].z, dtype=float), grid(heads, "difference"))
    expected = {(row.head, row.layer) for row in heads.itertuples() if row.p < 0.05}
    [dots] = named(figure, "p < 0.05, adjusted for all")
    assert set(zip(dots.x, dots.y, strict=True)) == expected
    assert {(head, layer) for layer, head in CARRIERS} <= expected
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == f"logits; {len(expected)} of {HEADS * LAYERS} heads: p < 0.05, adjusted for all"


def test_a_component_is_marked_by_its_adjusted_p():
    table = pd.DataFrame({"difference": [1.0, 1.0, -1.0, 1.0], "p": [0.04, 0.05, 0.001, None]})
    assert list(beyond_chance(table)["beyond"]) == [True, False, True, False]


def test_top_components_are_the_largest_with_intervals_and_floors(checkpoint):
    table = compared(checkpoint)
    rows = table[table["component"] != "total"]
    rows = rows.loc[rows["difference"].abs().sort_values(ascending=False, kind="stable").index[:15]].iloc[::-1]
    figure = figures.top_components(table)
    floor, bars = figure.data
    np.testing.assert_array_equal(bars.x, rows["difference"])
    np.testing.assert_allclose(np.array(bars.x) + np.array(bars.error_x.array, dtype=float), rows["high"])
    np.testing.assert_allclose(np.array(bars.x) - np.array(bars.error_x.arrayminus, dtype=float), rows["low"])
    np.testing.assert_allclose(np.array(floor.base, dtype=float), -rows["floor"])
    np.testing.assert_allclose(np.array(floor.x, dtype=float), 2 * rows["floor"])
    assert figure.layout.yaxis.ticktext[-1] == "L19.H3"
    assert "MLP 18" in figure.layout.yaxis.ticktext


def test_token_segments_sum_to_what_a_head_reads(checkpoint):
    table = checkpoint.tables["token_sources"]
    figure = figures.token_segments(table)
    names = list(figure.layout.yaxis.ticktext)
    for kind, axis in (("harmful", "x"), ("harmless", "x2")):
        for layer, head in CARRIERS:
            own = table[(table["set"] == kind) & (table["by"] == "segment")]
            own = own[(own["layer"] == layer) & (own["head"] == head)]
            place = names.index(f"L{layer}.H{head}")
            drawn = [t.x[list(t.y).index(place)] for t in figure.data if (t.xaxis or "x") == axis]
            assert sum(drawn) == pytest.approx(own["value"].sum())
    assert {trace.name for trace in figure.data} == {"before", "instruction", "after", "opening"}


def test_logit_lens_has_both_sets_bands_and_their_gap(checkpoint):
    table = checkpoint.tables["logit_lens"]
    figure = figures.logit_lens(table)
    for kind in ("harmful", "harmless"):
        lines = named(figure, f"{kind} prompts")
        for line, quantity in zip(lines, ("refusal", "compliance", "score"), strict=True):
            own = table[(table["set"] == kind) & (table["quantity"] == quantity)]
            assert list(line.y) == list(own["value"])
            assert list(line.x) == list(range(LAYERS + 1))
    areas = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(areas) == 6
    [gap] = named(figure, "harmful − harmless")
    score = table[table["quantity"] == "score"].pivot(index="layer", columns="set", values="value")
    np.testing.assert_allclose(gap.y, score["harmful"] - score["harmless"])
    assert figure.layout.xaxis4.ticktext[-1] == "output"
    assert figure.layout.yaxis.range is None


def test_logit_lens_leaves_a_far_first_layer_out_of_the_picture(checkpoint):
    table = checkpoint.tables["logit_lens"]
    far = table["layer"] == 0
    table = table.assign(**{name: table[name].where(~far, -140.0) for name in ("value", "low", "high")})
    figure = figures.logit_lens(table)
    assert figure.layout.yaxis.range[0] > -20
    assert -140.0 in figure.data[1].y


def test_logit_lens_of_one_set_has_no_gap(checkpoint):
    table = checkpoint.tables["logit_lens"]
    assert not named(figures.logit_lens(table[table["set"] == "harmful"]), "harmful − harmless")


def test_attribution_patching_puts_each_scored_cell_in_its_panel(checkpoint):
    table = checkpoint.tables["attribution_patching"]
    figure = figures.attribution_patching(table)
    sites = ("resid_pre", "attn_out", "mlp_out", "z")
    for scored in ("finalist", "random"):
        for site, trace in zip(sites, named(figure, scored), strict=True):
            own = table[(table["site"] == site) & (table["scored"] == scored)]
            assert list(trace.x) == list(own["estimate"])
            assert list(trace.y) == list(own["exact"])
            np.testing.assert_allclose(np.array(trace.y) + np.array(trace.error_y.array, dtype=float), own["high"])
    assert sum(len(t.x) for t in figure.data if t.mode == "markers") == (table["scored"] != "").sum()
    assert wording.for_plotly(wording.token(HOSTILE_TOKEN, 14)) in str(figure.data[1].text)
    assert HOSTILE_TOKEN[:5] not in str(figure.data[1].text)


def test_knockout_is_a_heatmap_with_dots_where_p_is_small(checkpoint):
    table = checkpoint.tables["knockout"]
    heads = table[table["component"] == "head"]
    figure = figures.knockout(table)
    np.testing.assert_array_equal(np.array(figure.data[0].z, dtype=float), grid(heads, "refusal"))
    clear = heads[heads["p"] < 0.05]
    [dots] = named(figure, "p < 0.05, adjusted for all")
    assert set(zip(dots.y, dots.x, strict=True)) == set(zip(clear["layer"], clear["head"], strict=True))
    assert "kl" in figure.data[0].text[19][3]
    mlps = table[table["component"] == "mlp"]
    bars = figures.knockout_mlps(table).data[0]
    assert list(bars.x) == list(mlps["refusal"])
    assert list(bars.y) == list(range(LAYERS))


def test_knockout_cost_has_every_component_and_names_the_clear_ones(checkpoint):
    table = checkpoint.tables["knockout"]
    figure = figures.knockout_cost(table)
    heads, mlps = figure.data
    known = table.dropna(subset=["refusal"])
    assert len(heads.x) + len(mlps.x) == len(known)
    assert min(heads.x) == 1e-5  # a KL of 0 has a place on the logarithmic axis
    own = known[known["component"] == "mlp"]
    np.testing.assert_array_equal(mlps.y, own["refusal"])
    np.testing.assert_array_equal(mlps.x, own["kl"].clip(lower=1e-5))
    texts = {annotation.text for annotation in figure.layout.annotations}
    assert {"L19.H3", "L20.H4", "MLP 18"} <= texts
    assert len(texts) <= 8


def test_head_set_draws_shares_of_the_gap(checkpoint):
    table = checkpoint.tables["head_sets"]
    figure = figures.head_set(table)
    share, harmless, kl = named(figure, "the set found")
    assert list(share.y) == list(table["share"])
    assert list(harmless.y) == list(table["harmless"])
    assert list(kl.y) == list(table["kl"])
    random = named(figure, "random sets")
    np.testing.assert_allclose(random[0].y, -table["random_refusal"] / table["gap"])
    unseen = named(figure, "the set on unseen prompts")
    np.testing.assert_allclose(unseen[0].y, table["held_out_share"])
    np.testing.assert_allclose(unseen[1].y, table["held_out_kl"])
    areas = [trace for trace in figure.data if trace.fill == "toself"]
    np.testing.assert_allclose(areas[0].y[:3], -table["random_refusal_least"] / table["gap"])
    np.testing.assert_allclose(areas[1].y[:3], -table["low"] / table["gap"])
    np.testing.assert_allclose(areas[1].y[3:][::-1], -table["high"] / table["gap"])
    assert list(figure.layout.xaxis3.ticktext) == ["1<br>L19.H3", "2<br>L20.H4", "3<br>L15.H1"]


def test_a_head_set_of_size_zero_has_no_figure(checkpoint):
    table = checkpoint.tables["head_sets"].iloc[:1].assign(size=0)
    with pytest.raises(MechrefusalError, match="no rows"):
        figures.head_set(table)


def test_circuit_places_nodes_and_paths(checkpoint):
    nodes, edges = checkpoint.tables["circuit_nodes"], checkpoint.tables["circuit_edges"]
    figure = figures.circuit(nodes, edges)
    kept = nodes[nodes["kept"].astype(bool)]
    heads, mlps = named(figure, "head")[0], named(figure, "MLP")[0]
    own = kept[kept["component"] == "head"]
    assert list(zip(heads.x, heads.y, strict=True)) == list(zip(own["head"], own["layer"], strict=True))
    assert list(heads.marker.color) == list(own["effect"])
    assert set(mlps.x) == {HEADS - 1 + 1.5}
    assert list(mlps.text) == [f"MLP {layer}" for layer in kept.loc[kept["component"] == "mlp", "layer"]]
    [outside] = named(figure, "outside the circuit")
    assert len(outside.x) == len(nodes) - len(kept)
    drawn = edges[edges["kept"].astype(bool)].sort_values("effect", key=abs, kind="stable")
    lines = [t for t in figure.data if t.mode == "lines" and t.x[0] is not None]
    assert len(lines) == len(drawn)
    widths = [line.line.width for line in lines]
    assert widths == sorted(widths)
    assert widths[-1] == pytest.approx(5.8)
    for line, effect in zip(lines, drawn["effect"], strict=True):
        assert line.name == ("path that carries refusal" if effect >= 0 else "path against it")
    places = {"embedding": (4.0, -2.2), "logits": (4.0, LAYERS + 1.2)}
    places |= {row.node: (row.head, row.layer) for row in own.itertuples()}
    for line, row in zip(lines, drawn.itertuples(), strict=True):
        if row.sender in places and row.receiver in places:
            assert (line.x[0], line.y[0]) == pytest.approx(places[row.sender])
            assert (line.x[-1], line.y[-1]) == pytest.approx(places[row.receiver])
    unconfirmed = list(drawn["p"].astype(float) >= 0.05)
    assert {True, False} == set(unconfirmed)
    assert [line.line.dash == "dot" for line in lines] == unconfirmed
    pale = [colour == "#b0b0b0" for colour in heads.marker.line.color]
    assert pale == list(own["p"].astype(float) >= 0.05)
    assert "on 8 held-out pairs" in heads.hovertext[0]
    [middles] = named(figure, "paths")
    for text, row in zip(middles.text, drawn.itertuples(), strict=True):
        assert f"<b>{row.sender} → {row.receiver}</b>" in text
        assert wording.number(row.effect, 3, signed=True) in text


def test_a_circuit_without_paths_or_without_nodes(checkpoint, base):
    nodes, edges = checkpoint.tables["circuit_nodes"], checkpoint.tables["circuit_edges"]
    figure = figures.circuit(nodes, edges.iloc[:0])
    assert not named(figure, "paths")
    assert "0 paths" in figure.layout.title.subtitle.text
    with pytest.raises(MechrefusalError, match="too few prompts & none refused"):
        figures.circuit(base.tables["circuit_nodes"], base.tables["circuit_edges"])
    with pytest.raises(MechrefusalError, match="nothing is above the threshold"):
        figures.circuit(nodes.assign(kept=False, reason="nothing is above the threshold"), edges)


def test_hostile_names_in_a_circuit_are_text(checkpoint):
    nodes, edges = checkpoint.tables["circuit_nodes"], checkpoint.tables["circuit_edges"]
    edges = edges.assign(sender=edges["sender"].replace("head 19.3", HOSTILE_TOKEN), kept=True)
    nodes = nodes.assign(node=nodes["node"].replace("head 19.3", HOSTILE_TOKEN), reason=BROKEN)
    drawn = figures.circuit(nodes, edges).to_json()
    assert "&lt;img" in drawn
    assert "<img" not in drawn


def test_faithfulness_has_shares_random_range_and_the_circuit(checkpoint):
    table = checkpoint.tables["faithfulness"]
    own = table[table["of"] == "difference"].sort_values("size")
    figure = figures.faithfulness(table, of="difference")
    for side in ("kept", "lost"):
        assert list(named(figure, side)[0].y) == list(own[side])
    areas = [trace for trace in figure.data if trace.fill == "toself"]
    for area, (low, high) in zip(
        areas,
        [
            ("random_kept_least", "random_kept_most"),
            ("kept_low", "kept_high"),
            ("random_lost_least", "random_lost_most"),
            ("lost_low", "lost_high"),
        ],
        strict=True,
    ):
        assert list(area.y[: len(own)]) == list(own[high])
        assert list(area.y[len(own) :])[::-1] == list(own[low])
    stars = named(figure, "the circuit")
    chosen = own[own["is_circuit"].astype(bool)].iloc[0]
    assert [star.y[0] for star in stars] == [chosen["kept"], chosen["lost"]]
    assert figure.layout.xaxis.ticktext[stars[0].x[0]] == str(chosen["size"])
    assert "measured on held-out pairs" in figure.layout.title.subtitle.text


def crossed(run, source="r2d2", target="base", prompts="harmful"):
    table = run.across["cross_patching"]
    return table[(table["arm_source"] == source) & (table["arm_target"] == target) & (table["set"] == prompts)]


def test_cross_patching_draws_one_set_of_prompts(run):
    harmful, harmless = crossed(run), crossed(run, prompts="harmless")
    both = pd.concat([harmful, harmless], ignore_index=True)
    for draw in (figures.cross_patching, figures.cross_patching_layers):
        assert draw(both) == draw(harmful)
        assert draw(both, prompts="harmless") != draw(harmful)
        assert "n = 8 harmless prompts" in draw(both, prompts="harmless").layout.title.subtitle.text
        with pytest.raises(MechrefusalError, match="no rows"):
            draw(harmful, prompts="harmless")


def test_cross_patching_has_one_panel_a_pair(run):
    table = crossed(run)
    figure = figures.cross_patching(table)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [m.name for m in maps] == ["r2d2 50 → base 0", "r2d2 100 → base 0", "r2d2 250 → base 0"]
    for trace, (_, own) in zip(maps, table[table["site"] == "z"].groupby("step_source"), strict=True):
        np.testing.assert_array_equal(np.array(trace.z, dtype=float), grid(own, "raw"))
    dots = named(figure, "p < 0.05, adjusted for all")
    own = table[(table["site"] == "z") & (table["step_source"] == 50)]
    clear = own[own["p"] < 0.05]
    assert set(zip(dots[0].y, dots[0].x, strict=True)) == set(zip(clear["layer"], clear["head"], strict=True))
    assert "control +0.010" in maps[0].text[3][3]
    assert wording.for_plotly(BROKEN) in maps[0].text[2][2]
    effect = figures.cross_patching(table, value="effect")
    assert np.isnan(np.array(effect.data[0].z, dtype=float)[2][2])


def test_cross_patching_without_a_control_has_no_dots(run):
    figure = figures.cross_patching(crossed(run).assign(control=float("nan"), p=float("nan")))
    assert not named(figure, "p < 0.05, adjusted for all")


def test_cross_patching_layers_has_one_line_a_pair_and_site(run):
    table = crossed(run)
    figure = figures.cross_patching_layers(table)
    for site, line in zip(("resid_pre", "attn_out", "mlp_out"), named(figure, "r2d2 100 → base 0"), strict=True):
        own = table[(table["site"] == site) & (table["step_source"] == 100)]
        assert list(line.y) == list(own["raw"])
    assert len(named(figure, "control")) == 9
    assert len([trace for trace in figure.data if trace.fill == "toself"]) == 9
    assert not named(figures.cross_patching_layers(table, value="effect"), "control")


def test_a_pair_that_could_not_be_patched_says_why(run):
    table = crossed(run)
    nothing = dict.fromkeys(table.columns) | {"set": "harmful"}
    nothing |= {"arm_source": "sft", "step_source": 50, "arm_target": "base", "step_target": 0, "site": ""}
    nothing |= {"layer": -1, "head": -1, "n": 0, "reason": BROKEN}
    failed = tables.frame("cross_patching", [nothing])
    with pytest.raises(MechrefusalError, match="too few prompts & none refused"):
        figures.cross_patching_layers(failed)
    with pytest.raises(MechrefusalError, match="no rows"):
        figures.cross_patching(failed)
    both = figures.cross_patching_layers(pd.concat([table, failed], ignore_index=True))
    assert len(both.data) == len(figures.cross_patching_layers(table).data)


def test_shared_heads_counts_what_two_checkpoints_have_in_common(run):
    table = run.together("knockout")
    table = table[table["component"] == "head"]
    figure = figures.shared_heads(table, value="refusal", k=10)
    tops = {
        key: set(zip(own["layer"], own["head"], strict=True))
        for key, own in (
            (key, rows.loc[rows["refusal"].abs().sort_values(ascending=False, kind="stable").index[:10]])
            for key, rows in table.groupby(["arm", "step"])
        )
    }
    labels = list(figure.layout.xaxis.ticktext)
    counts = figure.data[0].z
    for (arm, step), own in tops.items():
        for (other, at), theirs in tops.items():
            i, j = labels.index(f"{arm} {step}"), labels.index(f"{other} {at}")
            assert counts[i][j] == len(own & theirs)
    assert labels[0] == "base 0"
    assert "0.4 expected of chance among 270 heads" in figure.layout.title.subtitle.text
    assert "L19.H3" in figure.data[0].hovertext[0][1]


def test_a_checkpoint_without_enough_heads_is_left_out(run):
    table = run.together("knockout")
    table = table[table["component"] == "head"]
    table.loc[table["arm"] == "base", "refusal"] = float("nan")
    assert ("base", 0) not in top_heads(table, "refusal", 10)
    with pytest.raises(MechrefusalError, match="it takes two"):
        figures.shared_heads(table[table["arm"] == "base"], value="refusal")
    with pytest.raises(MechrefusalError, match="no column 'nothing'"):
        figures.shared_heads(table, value="nothing")


DRAWN = {
    "attribution_compared": ("difference", lambda t: figures.attribution_difference(t[t["onto"] == "carrier"])),
    "token_sources": ("value", figures.token_segments),
    "logit_lens": ("value", figures.logit_lens),
    "attribution_patching": ("exact", figures.attribution_patching),
    "knockout": ("refusal", figures.knockout_cost),
    "head_sets": ("share", figures.head_set),
    "circuit_nodes": ("effect", lambda t: figures.circuit(t, pd.DataFrame(columns=tables.columns("circuit_edges")))),
    "faithfulness": ("kept", figures.faithfulness),
    "cross_patching": ("raw", figures.cross_patching),
}


@pytest.mark.parametrize("name", DRAWN)
def test_empty_missing_and_nullable_tables(run, checkpoint, name):
    value, draw = DRAWN[name]
    table = run.across[name] if name in tables.ACROSS else checkpoint.tables[name]
    with pytest.raises(MechrefusalError, match="cannot draw"):
        draw(table.iloc[:0])
    for nothing in (float("nan"), None, pd.NA):
        with pytest.raises(MechrefusalError, match="cannot draw"):
            draw(table.assign(**{value: nothing}))
    nullable, plain = draw(table.convert_dtypes()), draw(table)
    assert [trace.name for trace in nullable.data] == [trace.name for trace in plain.data]
    assert nullable.layout.title == plain.layout.title


@pytest.mark.parametrize("name", DRAWN)
def test_missing_intervals_do_not_stop_a_figure(run, checkpoint, name):
    draw = DRAWN[name][1]
    table = run.across[name] if name in tables.ACROSS else checkpoint.tables[name]
    ends = [column for column in table if column.endswith(("low", "high", "floor", "most", "least", "control"))]
    assert ends
    figure = draw(table.assign(**dict.fromkeys(ends, float("nan"))))
    assert not [trace for trace in figure.data if trace.type == "scatter" and trace.fill == "toself"]
