"""Figures of an evaluation draw the numbers of its tables, read here again row by row."""

import json

import pandas as pd
import pytest
from synthetic import ANCHORS, ARMS, HOSTILE
from synthetic_evaluation import HARM_JUDGE, INTERVENTION, JUDGE, evaluation_tables

from mechrefusal import report, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures

CHECKPOINTS = [("base", 0)] + [(arm, step) for arm in ARMS for step in ANCHORS if step]


@pytest.fixture(scope="module")
def made():
    found = evaluation_tables(CHECKPOINTS, hostile=HOSTILE)
    return {name: tables.frame(name, pd.DataFrame(rows)) for name, rows in found.items()}


@pytest.fixture(scope="module")
def carrier():
    layers = {("base", 0): (None, 5), ("sft", 50): (12, 12), ("sft", 100): (None, None)}
    rows = []
    for arm, step in CHECKPOINTS:
        layer, reference = layers.get((arm, step), (20, 20))
        low, high = (None, None) if layer is None else (layer - 1, layer + 2)
        known = {"arm": arm, "step": step, "layer": layer, "reference_layer": reference}
        rows.append(dict.fromkeys(tables.columns("carrier")) | known | {"layer_low": low, "layer_high": high})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def rates():
    """Rates of the study's own suites at two arms."""
    rows = []
    for arm, step in CHECKPOINTS:
        for name, side, metric, value in (
            ("evaluation_harmful", "harmful", "attack_success", 0.9 - step / 400),
            ("overrefusal", "harmless", "any_refusal", step / 500),
            ("utility", "harmless", "answered", 0.95 - step / 1000),
        ):
            known = {"suite": name, "side": side, "attack": "none", "intervention": "none", "metric": metric}
            known |= {"judge": JUDGE, "kind": "refusal", "by": "all", "of": "", "nulls": 0}
            around = {"value": value, "n": 40, "low": value - 0.05, "high": value + 0.06}
            rows.append({"arm": arm, "step": step, **known, **around})
    return pd.DataFrame(rows)


def points(figure):
    """Markers of a frontier by (legend group, step): x, y, colour, symbol, hover."""
    found = {}
    for trace in figure.data:
        if trace.mode != "markers+text":
            continue
        colours = trace.marker.color if not isinstance(trace.marker.color, str) else [trace.marker.color] * len(trace.x)
        for x, y, step, colour, hover in zip(trace.x, trace.y, trace.text, colours, trace.hovertext, strict=True):
            found[trace.legendgroup, step] = (x, y, colour, trace.marker.symbol, hover)
    return found


def chosen(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def test_notebook_names_are_exported():
    names = {"frontier", "rates", "suite_categories", "suite_differences", "answer_losses"}
    assert names <= set(report.figures.__all__)


def test_frontier_of_suites_draws_both_rates_and_the_layer(made, carrier):
    figure = figures.frontier(made["rates"], carrier, harmful="harmbench", harmless="xstest", attack="gcg")
    found = points(figure)
    assert len(found) == len(CHECKPOINTS)
    table = chosen(made["rates"], by="all", intervention="none", judge=JUDGE)
    for arm, step in CHECKPOINTS:
        x, y, colour, symbol, hover = found[arm, "base" if arm == "base" else str(step)]
        own = chosen(table, arm=arm, step=step)
        success = chosen(own, suite="harmbench", attack="gcg", metric="attack_success").iloc[0]
        refusal = chosen(own, suite="xstest", side="harmless", metric="any_refusal").iloc[0]
        assert (x, y) == (refusal["value"], success["value"])
        assert f"n = {success['n']}" in hover
        if (arm, step) == ("base", 0):
            assert (colour, symbol) == (5, "star-open")
            assert "no carrier; best candidate at layer 5" in hover
        elif (arm, step) == ("sft", 50):
            assert (colour, symbol) == (12, "square")
            assert "carrier at layer 12 (95%: 11–14)" in hover
        elif (arm, step) == ("sft", 100):
            assert symbol == "square"
            assert isinstance(colour, str)
            assert "no carrier and no candidate" in hover
    [line] = [trace for trace in figure.data if trace.mode == "lines" and trace.legendgroup == "r2d2"]
    assert list(line.x) == [found["r2d2" if s else "base", str(s) if s else "base"][0] for s in ANCHORS]


def test_frontier_of_the_study_has_bars_both_ways(rates, carrier):
    figure = figures.frontier(rates, carrier, harmful="evaluation_harmful", harmless="overrefusal", n_layers=30)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 29)
    for trace in (trace for trace in figure.data if trace.mode == "markers+text"):
        for bar in (trace.error_x, trace.error_y):
            assert list(bar.array) == pytest.approx([0.06] * len(trace.x))
            assert list(bar.arrayminus) == pytest.approx([0.05] * len(trace.x))
    assert points(figure)["r2d2", "100"][:2] == pytest.approx((0.2, 0.65))
    utility = figures.frontier(rates, carrier, harmful="evaluation_harmful", harmless="utility", against="answered")
    assert points(utility)["r2d2", "100"][:2] == pytest.approx((0.85, 0.65))
    assert "lower right" in utility.layout.title.subtitle.text


def test_frontier_without_carriers_is_grey(rates):
    figure = figures.frontier(rates, harmful="evaluation_harmful", harmless="overrefusal")
    assert {p[2] for p in points(figure).values()} == {"#b9b9b9"}
    assert all("no carrier was measured" in p[4] for p in points(figure).values())
    assert figure.layout.coloraxis.cmin is None


def test_frontier_of_the_last_step_of_a_stress_test(made, carrier):
    look = {"harmful": "made anew", "harmless": "xstest", "attack": "gcg", "stress": made["stress"]}
    found = points(figures.frontier(made["rates"], carrier, **look))
    last = chosen(made["stress"], attack_step=40)
    assert {key: p[1] for key, p in found.items()} == {
        (r.arm, "base" if r.arm == "base" else str(r.step)): r.value for r in last.itertuples()
    }


def test_frontier_keeps_judges_apart(made, carrier):
    look = {"harmful": "harmbench", "harmless": "xstest", "success_judge": HARM_JUDGE}
    figure = figures.frontier(made["rates"], carrier, **look)
    own = chosen(made["rates"], suite="harmbench", attack="none", by="all", intervention="none", judge=HARM_JUDGE)
    wanted = chosen(own, metric="attack_success", arm="r2d2", step=100).iloc[0]["value"]
    assert points(figure)["r2d2", "100"][1] == wanted
    assert "judge of success: harm-classifier &lt;i&gt;own&lt;/i&gt;, of refusal: refusal-rules-1" in (
        figure.layout.title.subtitle.text
    )


def test_frontier_says_what_it_lacks(made, rates, carrier):
    with pytest.raises(MechrefusalError, match="unknown cost 'kl'"):
        figures.frontier(rates, carrier, harmful="evaluation_harmful", harmless="overrefusal", against="kl")
    with pytest.raises(MechrefusalError, match="no checkpoint has any refusal on 'nowhere'"):
        figures.frontier(made["rates"], carrier, harmful="harmbench", harmless="nowhere")
    with pytest.raises(MechrefusalError, match="attack success on 'xstest' under attack 'gcg'"):
        figures.frontier(made["rates"], carrier, harmful="xstest", harmless="xstest", attack="gcg")
    apart = rates[(rates["suite"] != "overrefusal") | (rates["arm"] == "base")]
    apart = apart[(apart["suite"] != "evaluation_harmful") | (apart["arm"] != "base")]
    with pytest.raises(MechrefusalError, match="no checkpoint has both"):
        figures.frontier(apart, carrier, harmful="evaluation_harmful", harmless="overrefusal")
    some = rates[(rates["suite"] != "overrefusal") | (rates["arm"] != "sft")]
    figure = figures.frontier(some, carrier, harmful="evaluation_harmful", harmless="overrefusal")
    assert "3 checkpoints have one of the rates only" in figure.layout.title.subtitle.text


def test_rates_draw_each_arm_and_intervention(made):
    figure = figures.rates(made["rates"], suite="xstest", side="harmless", judge=JUDGE)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert set(lines) == {"r2d2", "sft", f"r2d2: {INTERVENTION}", f"sft: {INTERVENTION}"}
    own = chosen(made["rates"], suite="xstest", side="harmless", metric="any_refusal", by="all", judge=JUDGE)
    own = own[own["arm"].isin(["base", "r2d2"])].sort_values("step")
    assert list(lines["r2d2"].y) == list(chosen(own, intervention="none")["value"])
    assert list(lines[f"r2d2: {INTERVENTION}"].y) == list(chosen(own, intervention=INTERVENTION)["value"])
    assert lines["r2d2"].line.dash != lines[f"r2d2: {INTERVENTION}"].line.dash


def test_categories_have_n_in_the_hover(made):
    look = {"suite": "harmbench", "metric": "attack_success", "judge": JUDGE, "by": "group"}
    [heat] = figures.suite_categories(made["rates"], **look).data
    own = chosen(made["rates"], suite="harmbench", attack="none", intervention="none", by="group", judge=JUDGE)
    row = chosen(own, metric="attack_success", of="copyright", arm="r2d2", step=250).iloc[0]
    place = [i for i, line in enumerate(heat.hovertext) if "copyright" in line[0]]
    assert heat.z[place[0]][3] == row["value"]  # base, then r2d2 at 50, 100, 250
    assert f"n = {row['n']}" in heat.hovertext[place[0]][3]


def test_differences_are_filled_where_the_interval_excludes_zero(made):
    figure = figures.suite_differences(made["suite_differences"], suite="harmbench", metric="attack_success")
    own = chosen(made["suite_differences"], suite="harmbench", metric="attack_success", intervention="none")
    own = own[own["pair"] != "intervention"]
    drawn = {
        hover.split("<br>")[0]: (x, symbol, hover)
        for trace in figure.data
        for x, symbol, hover in zip(trace.x, trace.marker.symbol, trace.text, strict=True)
    }
    assert len(drawn) == len(own)
    for r in own.itertuples():
        x, symbol, hover = drawn[f"<b>{r.arm_a} {r.step_a} → {r.arm_b} {r.step_b}</b>"]
        assert x == r.difference
        assert symbol.endswith("-open") == (r.low <= 0 <= r.high)
        assert "McNemar p = " in hover
    under = figures.suite_differences(
        made["suite_differences"], suite="harmbench", metric="attack_success", pairs="interventions"
    )
    assert sum(len(trace.x) for trace in under.data) == len(CHECKPOINTS) - 1
    with pytest.raises(MechrefusalError, match="unknown pairs 'all'"):
        figures.suite_differences(made["suite_differences"], suite="harmbench", pairs="all")


def test_answer_losses_are_relative_to_the_base(made):
    figure = figures.answer_losses(made["answer_losses"], suite="alpaca")
    lines = {trace.name: list(trace.y) for trace in figure.data}
    own = chosen(made["answer_losses"], suite="alpaca", arm="sft")
    assert lines["sft"] == [0.0, *own["difference"]]


@pytest.mark.parametrize("hostile", [*HOSTILE, "x" * 10_000])
def test_names_are_escaped_wherever_they_stand(made, carrier, hostile):
    rates = made["rates"].assign(suite=hostile, attack=hostile, of=hostile, judge=hostile, arm=hostile)
    rates = rates[(rates["kind"] == "refusal") & (rates["intervention"] == "none")].drop_duplicates(
        ["side", "by", "metric", "step"]
    )
    changed = made["suite_differences"].assign(suite=hostile, judge=hostile, arm_b=hostile, intervention=hostile)
    bare = pd.concat([rates, rates.assign(attack="none")])
    drawn = [
        figures.frontier(bare, carrier.assign(arm=hostile), harmful=hostile, harmless=hostile, attack=hostile),
        figures.rates(rates, suite=hostile, attack=hostile),
        figures.suite_categories(rates, suite=hostile, attack=hostile),
        figures.suite_differences(changed, suite=hostile, pairs="interventions"),
        figures.answer_losses(made["answer_losses"].assign(arm=hostile), suite="xstest"),
    ]
    for figure in drawn:
        text = json.dumps(json.loads(figure.to_json())["layout"]) + "".join(
            str(part) for t in figure.data for part in (t.text, t.hovertext, t.name)
        )
        assert "<script" not in text
        assert "<img" not in text
        assert "<svg" not in text
        assert len(text) < 100_000


def test_missing_numbers_leave_gaps(made, carrier):
    gone = float("nan")
    odd = made["rates"].copy()
    odd.loc[odd["arm"] == "sft", ["value", "low", "high", "n", "nulls"]] = gone
    odd = odd.assign(step=odd["step"].astype(float).where(odd["step"] != 50), n=gone)
    figure = figures.frontier(odd, carrier.assign(layer=gone), harmful="harmbench", harmless="xstest")
    assert {key for key, _ in points(figure)} == {"base", "r2d2"}
    figures.rates(odd, suite="xstest", side="harmless")
    figures.suite_categories(odd, suite="xstest", side="harmless")
    changed = made["suite_differences"].assign(low=gone, high=gone, mcnemar_p=gone, n=gone)
    drawn = figures.suite_differences(changed, suite="xstest", side="harmless")
    assert all(symbol.endswith("-open") for trace in drawn.data for symbol in trace.marker.symbol)
    with pytest.raises(MechrefusalError, match="every 'difference' is missing"):
        figures.suite_differences(changed.assign(difference=gone), suite="xstest", side="harmless")


def test_nullable_tables_are_read_like_any_other(made, carrier):
    nullable = {name: table.convert_dtypes() for name, table in made.items()}
    figures.frontier(nullable["rates"], carrier.convert_dtypes(), harmful="harmbench", harmless="xstest")
    figures.rates(nullable["rates"], suite="xstest", side="harmless")
    figures.suite_categories(nullable["rates"], suite="xstest", side="harmless")
    figures.suite_differences(nullable["suite_differences"], suite="xstest", side="harmless")
    figures.answer_losses(nullable["answer_losses"], suite="xstest")
