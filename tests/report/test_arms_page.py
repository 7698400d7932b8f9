"""The page of the arms and its short form hold what tables `methods`, `method_differences` and `drift` say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from rendering import content
from synthetic_behaviour import HOSTILE
from synthetic_methods import methods_tables

from mechrefusal import tables
from mechrefusal.report import arm_findings, figures, frontiers, wording, writing
from mechrefusal.report.arms_page import ArmsPage

GUIDED = {"sft_held": "sft", "sft_random": "sft"}
IDS = [("base", 0), ("sft", 50), ("sft", 250), ("r2d2", 250), ("sft_held", 250), ("sft_random", 250)]


@pytest.fixture(scope="module")
def guided_run(run):
    """The made-up run with two arms more, which only these tables know."""
    found = methods_tables(np.random.default_rng(3), IDS, GUIDED)
    made = {name: tables.frame(name, pd.DataFrame(rows)) for name, rows in found.items()}
    return dataclasses.replace(run, across={**run.across, **made})


@pytest.fixture(scope="module")
def page(guided_run):
    return ArmsPage(guided_run)


def test_there_is_a_page_where_there_are_several_arms(run):
    one = dataclasses.replace(run, across={**run.across, "methods": run.across["methods"].query("arm != 'sft'")})
    for shown, there in ((run, True), (one, False)):
        assert shown.has_several_arms == there
        bare = dataclasses.replace(shown, checkpoints=shown.checkpoints[:1])
        assert ("arms" in [page.id for page in writing.pages_of(bare)]) == there
        assert bool(arm_findings.in_short(shown)) == there


def test_one_row_an_arm_at_its_end_and_where_it_starts(guided_run):
    methods = guided_run.across["methods"]
    grid = arm_findings.grid(methods)
    assert [row[0].text for row in grid.rows] == ["base 0", "r2d2 250", "sft 250", "sft_held 250", "sft_random 250"]
    assert [row[1].text for row in grid.rows] == ["missed", *["passed"] * 4]
    assert "random directions (control)" in grid.rows[4][0].detail
    assert "control" not in grid.rows[3][0].detail
    row = methods[(methods["arm"] == "sft") & methods["is_last"]].iloc[0]
    heads = [head.words for head in grid.heads]
    cells = dict(zip(heads, grid.rows[2], strict=True))
    assert cells["harmful refused"].text == f"{wording.rate(row['refused'])} n=60"
    assert cells["harmful refused"].detail == wording.rate_interval(row["refused_low"], row["refused_high"])
    assert cells["attack succeeds: gcg"].text == f"{wording.rate(row['attack_success'])} n=12"
    assert (cells["carrier"].text, cells["carrier"].detail) == ("layer 12 of 30", "11–14")
    assert (cells["its carrier elsewhere"].text, cells["theirs here"].detail) == ("0.84", "0.50–0.97; 2 arms")
    assert (cells["d′"].text, cells["d′"].detail) == ("3.1", "[2.8, 3.5]")
    assert cells["left by removal"].text == "0.30 n=24"
    assert cells["left by removal"].detail == "0.20–0.42; KL ≤ 0.10; untouched 0.90; random 0.80"
    assert "left by removal" not in [head.words for head in arm_findings.grid(methods, short=True).heads]
    assert "no admissible carrier" in dict(zip(heads, grid.rows[0], strict=True))["carrier"].text


def test_the_warm_up_stands_for_the_base_where_there_is_one(guided_run):
    methods = guided_run.across["methods"]
    warm = methods.query("arm == 'sft' and is_last").assign(arm="warm-up", step=60)
    shown = arm_findings.ends(pd.concat([methods, warm], ignore_index=True))
    assert list(shown["arm"]) == ["warm-up", "r2d2", "sft", "sft_held", "sft_random"]


def test_what_guides_change_names_the_control(guided_run):
    grid = arm_findings.guides(guided_run.across["method_differences"])
    assert len(grid.rows) == 16
    assert {row[0].text for row in grid.rows} == {"sft → sft_held", "sft → sft_random"}
    assert {row[1].text for row in grid.rows if "random" in row[0].text} == {"with a random guide (control)"}
    assert {row[2].text for row in grid.rows} >= {"Attack succeeds: gcg", "Depth of the carrier"}
    [short, guides] = arm_findings.in_short(guided_run)
    assert [len(short[2].rows), len(guides[2].rows)] == [5, 16]


def test_differences_are_drawn_with_their_intervals_and_filled_where_they_exclude_zero(guided_run):
    table = guided_run.across["method_differences"]
    figure = figures.method_differences(table, relations=("guided", "control"))
    rows = table[table["relation"].isin(["guided", "control"])]
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert sorted(x for trace in points for x in trace.x) == pytest.approx(sorted(rows["difference"]))
    drawn = {round(x, 9): symbol for trace in points for x, symbol in zip(trace.x, trace.marker.symbol, strict=True)}
    for row in rows.itertuples():
        clear = row.low > 0 or row.high < 0
        assert drawn[round(row.difference, 9)].endswith("-open") != clear
    ticks = [axis.ticktext for axis in figure.select_yaxes() if axis.ticktext]
    assert ("sft 250 → sft_held 250", "sft 250 → sft_random 250 (random control)") in [tuple(names) for names in ticks]
    titles = [note.text for note in figure.layout.annotations]
    assert titles[0] == "Harmful prompts refused"
    assert "Attack succeeds, gcg" in titles
    assert titles[-2:] == ["Depth of the carrier", "Separability (d′, the mean over layers)"]


def test_angles_are_a_matrix_with_a_dot_beyond_the_noise(guided_run):
    ends = ArmsPage(guided_run).between_ends("drift")
    assert set(ends["arm_a"]) | set(ends["arm_b"]) == {"sft", "r2d2"}
    figure = figures.carrier_angles(ends)
    [row] = ends[(ends["measure"] == "carrier_cosine")].to_dict("records")
    [heat] = [trace for trace in figure.data if trace.type == "heatmap"]
    cells = np.array(heat.z, float)
    assert cells[0, 1] == cells[1, 0] == row["value"]
    assert np.isnan(cells[0, 0])
    assert row["high"] < row["floor"]
    assert heat.text[0][1] == f"{row['value']:.2f} ●"
    assert "beyond the noise" in figure.layout.title.subtitle.text
    closer = figures.carrier_angles(ends.assign(floor=0.0))
    assert closer.data[0].text[0][1] == f"{row['value']:.2f}"
    assert "beyond the noise" not in closer.layout.title.subtitle.text
    angles = figures.carrier_angles(ends, measure="principal_angle_mean")
    assert angles.layout.coloraxis.cmax == 90


def test_twins_are_joined_in_the_frontier(guided_run):
    rates = guided_run.together("rates")
    asked = {"harmful": "evaluation_harmful", "harmless": "overrefusal", "attack": "none"}
    figure = figures.frontier(rates, twins=[("sft", "r2d2"), ("sft", "nothing")], **asked)
    [line] = [trace for trace in figure.data if trace.line.dash == "dot"]
    ends = rates[(rates["step"] == 250) & (rates["by"] == "all") & (rates["intervention"] == "none")]
    ends = ends[(ends["attack"] == "none") & (ends["judge"] == ends["judge"].min())]
    cost = ends[(ends["suite"] == "overrefusal") & (ends["metric"] == "any_refusal")].set_index("arm")["value"]
    assert list(line.x) == pytest.approx([cost["sft"], cost["r2d2"]])
    assert frontiers.twins(guided_run.across["method_differences"]) == [("sft", "sft_held"), ("sft", "sft_random")]


@pytest.mark.slow
def test_the_page_shows_all_of_it(page):
    shown = content(page)
    for heading in ("What does a guide change?", "Which methods differ?", "Does the carrier of one method work"):
        assert heading in shown.words
    assert "method_differences" in {panel.figure for panel in page.panels.drawn}
    assert HOSTILE[1] in shown.text
    assert not [attributes for attributes, _ in shown.scripts if "data-plot-json" not in attributes]
    assert not [panel.reason for panel in page.panels.drawn if panel.reason]


@pytest.mark.slow
def test_it_links_to_the_page_of_durability_where_that_is(guided_run):
    bare = dataclasses.replace(
        guided_run,
        across={
            name: table.iloc[:0] if name in tables.DURABILITY else table for name, table in guided_run.across.items()
        },
        checkpoints=tuple(
            dataclasses.replace(
                each,
                tables={name: t.iloc[:0] if name in tables.DURABILITY else t for name, t in each.tables.items()},
            )
            for each in guided_run.checkpoints
        ),
    )
    for shown, there in ((guided_run, True), (bare, False)):
        found = content(ArmsPage(shown))
        links = [attributes.get("href") for _, attributes in found.elements]
        assert ("durability.html" in links, "Left by removal" in found.words) == (there, there)
