"""Figures of training draw the numbers of its tables, counted here again row by row."""

import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from synthetic import HOSTILE
from synthetic_training import OWN_TERM, POOL, UNLOGGED

from mechrefusal import report
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures
from mechrefusal.report.reading import read_run

FIGURES = {
    "loss_term": ("terms", lambda table: figures.loss_term(table, term="utility")),
    "logged": ("training", figures.logged),
    "attack_loss": ("training", figures.attack_loss),
    "attack_exchange": ("refreshes", figures.attack_exchange),
    "pool_age": ("refreshes", figures.pool_age),
    "cases_refreshed": ("refreshes", figures.cases_refreshed),
    "probes": ("probes", figures.probes),
    "step_time": ("training", figures.step_time),
}


@pytest.fixture(scope="module")
def across(run_folder):
    return read_run(run_folder).across


def named(figure):
    """Traces of the legend by their name."""
    return {trace.name: trace for trace in figure.data if trace.name and trace.showlegend is not False}


def centred_mean(values, window):
    """Mean of the known values in a window of that many steps around each (the later half is the shorter one)."""
    found = []
    for i in range(len(values)):
        near = values[max(0, i - window // 2) : i + (window - 1) // 2 + 1]
        known = [v for v in near if v == v]
        found.append(sum(known) / len(known) if known else None)
    return found


def test_notebook_names_are_exported():
    assert set(FIGURES) | {"losses", "step_costs"} <= set(report.figures.__all__)


def test_a_loss_term_is_drawn_as_logged_and_as_a_running_mean(across):
    figure = figures.loss_term(across["terms"], term="away")
    rows = across["terms"][across["terms"]["term"] == "away"]
    assert list(named(figure)) == ["r2d2"]
    thin, thick = figure.data
    assert list(thin.y) == list(rows["value"])
    window = len(rows) // 20
    assert list(thick.y) == pytest.approx(centred_mean(list(rows["value"]), window))
    assert figure.layout.title.subtitle.text == f"nats a token; weight 0.5; thick: mean of {window} steps"
    assert figure.layout.title.text == "Away loss (affirmative target)"


def test_a_term_of_the_users_own_has_gaps_and_an_escaped_name(across):
    figure = figures.loss_term(across["terms"], term=OWN_TERM)
    values = across["terms"].loc[across["terms"]["term"] == OWN_TERM, "value"]
    assert [v for v in figure.data[0].y if v is not None] == list(values.dropna())
    assert None in figure.data[0].y
    assert figure.layout.title.text == "Loss term margin&lt;b&gt;"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_are_escaped_wherever_they_stand(across, hostile):
    terms = across["terms"].assign(term=hostile, arm=hostile)
    probes = across["probes"].assign(judge=hostile, arm=hostile, metric="any_refusal", set=hostile)
    training, refreshes = (across[name].assign(arm=hostile) for name in ("training", "refreshes"))
    drawn = [
        figures.loss_term(terms, term=hostile),
        figures.probes(probes, set=hostile),
        figures.attack_loss(training),
        figures.attack_exchange(refreshes),
        figures.cases_refreshed(refreshes),
        figures.step_time(training),
    ]
    for figure in drawn:
        text = json.loads(figure.to_json())
        assert not _tags(text) - {"b", "br", "extra"}


def _tags(value) -> set[str]:
    """Names of the tags in all strings of a figure."""
    if isinstance(value, dict):
        return set().union(*(_tags(v) for name, v in value.items() if name != "template"), set())
    if isinstance(value, list):
        return set().union(*map(_tags, value), set())
    parts = value.split("<")[1:] if isinstance(value, str) else []
    return {part.lstrip("/").split(">")[0].split(" ")[0] for part in parts}


def test_attack_loss_is_drawn_before_and_after_with_the_gap_between(across):
    figure, rows = figures.attack_loss(across["training"]), across["training"]
    rows = rows[rows["arm"] == "r2d2"]
    window = len(rows) // 20
    lines = named(figure)
    assert list(lines) == ["r2d2: before refresh", "r2d2: after refresh"]
    for name, column in (("before", "attack_loss_before"), ("after", "attack_loss_after")):
        expected = centred_mean(list(rows[column]), window)
        assert list(lines[f"r2d2: {name} refresh"].y) == pytest.approx(expected)
    area = next(trace for trace in figure.data if trace.fill == "toself")
    known = rows[rows["attack_loss_after"].notna()]
    assert list(area.x) == [*known["step"], *reversed(list(known["step"]))]


def test_exchange_follows_each_case_between_its_refreshes(across):
    table = across["refreshes"]
    gained, taken, last = defaultdict(list), defaultdict(list), {}
    for r in table.itertuples():
        gained[r.step].append(r.loss_before - r.loss_after)
        if r.case in last and r.age == last[r.case][1] + 1:
            taken[r.step].append(r.loss_before - last[r.case][0])
        last[r.case] = (r.loss_after, r.age)
    figure = figures.attack_exchange(table)
    steps = sorted(gained)
    thin = [trace for trace in figure.data if trace.showlegend is False]
    assert list(thin[0].y) == pytest.approx([np.nanmean(gained[s]) for s in steps])
    wanted = [np.nanmean(taken[s]) if np.isfinite(taken[s]).any() else None for s in steps]
    assert list(thin[1].y) == pytest.approx(wanted)
    again = sum(np.isfinite(v).sum() for v in taken.values())
    refreshed = sum(np.isfinite(v).sum() for v in gained.values())
    assert f"{refreshed} refreshes, {again} of a case refreshed before" in figure.layout.title.subtitle.text
    resets = sum(r.age == 1 for r in table.itertuples()) - table["case"].nunique()
    assert resets > 0
    lost = 2 * table["loss_after"].isna().sum()  # the refresh itself, and the next of its case
    assert len(table) - POOL - resets - lost <= again <= len(table) - POOL - resets


def test_a_case_that_was_never_refreshed_again_has_no_rise(across):
    first = across["refreshes"].drop_duplicates("case")
    figure = figures.attack_exchange(first)
    assert "no case was refreshed again" in figure.layout.title.subtitle.text
    assert list(named(figure)) == ["r2d2: GCG gained"]


def test_pool_age_shows_the_youngest_of_every_step(across):
    table = across["refreshes"]
    figure = figures.pool_age(table)
    ages = {step: list(rows["age"]) for step, rows in table.groupby("step")}
    steps = sorted(ages)
    area, line = figure.data
    assert list(area.y) == [max(ages[s]) for s in steps] + [min(ages[s]) for s in reversed(steps)]
    means = [sum(ages[s]) / len(ages[s]) for s in steps]
    assert list(line.y) == pytest.approx(centred_mean(means, len(steps) // 20))


def test_cases_are_counted_once(across):
    table = across["refreshes"]
    figure, seen, counted = figures.cases_refreshed(table), set(), []
    for _, rows in table.groupby("step"):
        seen |= set(rows["case"])
        counted.append(len(seen))
    assert list(figure.data[0].y) == counted
    assert counted[-1] == POOL
    assert figure.layout.title.subtitle.text == f"cases; at the end: r2d2 {POOL}"


@pytest.mark.parametrize("under_base", [True, False])
def test_probes_start_at_the_base_once(across, under_base):
    table = across["probes"]
    if under_base:
        table = table.assign(arm=table["arm"].where(table["step"] > 0, "base")).drop_duplicates(["arm", "step", "set"])
    figure = figures.probes(table, set="harmful")
    assert list(named(figure)) == ["r2d2", "sft"]
    for arm, trace in named(figure).items():
        rows = table[(table["set"] == "harmful") & table["arm"].isin([arm, "base"])].sort_values("step")
        assert list(trace.y) == list(rows["value"])
        np.testing.assert_allclose(np.array(trace.y) - trace.error_y.arrayminus, rows["low"], atol=1e-12)
        np.testing.assert_allclose(np.array(trace.y) + trace.error_y.array, rows["high"], atol=1e-12)
    assert figure.layout.title.subtitle.text == "share of probes; judge: refusal-phrases; n = 16 probes"
    assert list(named(figures.probes(table, set="attacked"))) == ["r2d2"]


def test_base_rows_beside_an_arms_own_step_0_are_not_drawn_twice(across):
    table = across["probes"]
    doubled = pd.concat([table[(table["arm"] == "sft") & (table["step"] == 0)].assign(arm="base"), table])
    assert figures.probes(doubled).data[0].y == figures.probes(table).data[0].y


def test_step_costs_add_up(across):
    table = across["training"]
    costs = figures.step_costs(table).set_index("arm")
    for arm in ("r2d2", "sft"):
        rows = table[(table["arm"] == arm) & (table["step"] != UNLOGGED)]
        whole = rows["seconds"].sum()
        for part in ("forward", "backward", "optimizer"):
            assert costs.loc[arm, part] == pytest.approx(rows[f"seconds_{part}"].sum() / whole)
        assert costs.loc[arm, "other"] == pytest.approx(0.2 * len(rows) / whole)
        assert costs.loc[arm, ["refresh", "forward", "backward", "optimizer", "other"]].sum() == pytest.approx(1)
        assert costs.loc[arm, "seconds_a_step"] == pytest.approx(np.median(rows["seconds"]))
        assert (costs.loc[arm, "steps"], costs.loc[arm, "steps_timed"]) == (len(rows) + 1, len(rows))
        assert costs.loc[arm, "peak_mib"] == rows["peak_mib"].max()
    attacked = across["refreshes"]
    assert costs.loc["r2d2", "attack_tokens"] == attacked["forward_tokens"].sum()
    timed = table[(table["arm"] == "r2d2") & (table["step"] != UNLOGGED)]
    rate = attacked.loc[attacked["step"] != UNLOGGED, "forward_tokens"].sum() / timed["seconds_refresh"].sum()
    assert costs.loc["r2d2", "tokens_a_second"] == pytest.approx(rate)
    assert costs.loc["sft", ["refresh", "attack_tokens", "tokens_a_second"]].isna().all()


def test_step_time_stacks_the_shares(across):
    figure, costs = figures.step_time(across["training"]), figures.step_costs(across["training"])
    assert [trace.name for trace in figure.data] == ["refresh", "forward", "backward", "optimizer", "other"]
    assert figure.layout.barmode == "stack"
    np.testing.assert_allclose(sum(np.array(trace.x) for trace in figure.data), 1)
    assert list(figure.data[0].x) == [costs["refresh"][0], 0.0]
    assert figure.layout.yaxis.ticktext[0].startswith("r2d2<br>9.")


def test_parts_that_exceed_the_step_are_still_shares(across):
    table = across["training"].assign(seconds=0.1)
    costs = figures.step_costs(table)
    assert costs[["refresh", "forward", "backward", "optimizer", "other"]].sum(axis=1).tolist() == pytest.approx([1, 1])
    assert costs["other"].tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_table_and_missing_values_are_errors(across, name):
    source, draw = FIGURES[name]
    table = across[source]
    with pytest.raises(MechrefusalError, match="cannot draw"):
        draw(table.iloc[:0])
    if name == "cases_refreshed":
        return  # it counts texts, which are never missing
    texts = ["arm", "step", "term", "set", "metric", "judge"]
    with pytest.raises(MechrefusalError, match="cannot draw"):
        draw(table.assign(**{c: float("nan") for c in table if c not in texts}))


@pytest.mark.parametrize("name", FIGURES)
def test_one_step_can_be_seen(across, name):
    source, draw = FIGURES[name]
    table = across[source]
    last = table["step"].max()
    figure = draw(table[(table["step"] == last) & (table["arm"] == "r2d2")])
    for trace in named(figure).values():
        assert trace.type == "bar" or "markers" in trace.mode


def test_logged_has_units(across):
    rate = figures.logged(across["training"], value="learning_rate")
    rows = across["training"][across["training"]["arm"] == "r2d2"]
    assert [v for v in rate.data[0].y if v is not None] == list(rows["learning_rate"].dropna())
    assert rate.layout.title.subtitle.text == "learning rate"  # nothing to smooth
    assert figures.logged(across["training"], value="peak_mib").layout.yaxis.title.text == "MiB"
    with pytest.raises(MechrefusalError, match="no column 'nothing'"):
        figures.logged(across["training"], value="nothing")
