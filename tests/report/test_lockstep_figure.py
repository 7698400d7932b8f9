"""The figure of lockstep patching holds rates, sides and depth; its section stands where there is a table."""

import dataclasses

import pytest
from rendering import content

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures
from mechrefusal.report.durability_page import DurabilityPage

NAN = float("nan")
ENDS = {"arm_source": "sft", "step_source": 70, "arm_target": "warm-up", "step_target": 60}
BACK = {"arm_source": "warm-up", "step_source": 60, "arm_target": "sft", "step_target": 70}
RATES = {"harmful": [0.1, 0.3, 0.8], "harmless": [0.0, 0.0, 0.1]}


def rows(ends, *, apart=False):
    found = []
    for name, rates in RATES.items():
        for layer, rate in zip((0, 4, 9), rates, strict=True):
            row = ends | {"set": name, "judge": "rules", "layer": layer, "refused": rate, "n": 16, "degenerate": 0.05}
            row |= {"low": max(0, rate - 0.1), "high": rate + 0.1, "source_refused": 0.9, "target_refused": 0.1}
            turned = name == "harmful"
            row |= {"control": 0.2 if turned else NAN, "control_least": 0.1 if turned else NAN}
            row |= {"control_most": 0.3 if turned else NAN, "control_degenerate": 0.4 if turned else NAN}
            found.append(row | {"n_draws": 2 * turned, "reason": ""})
    if apart:
        nothing = (
            dict.fromkeys(tables.columns("lockstep")) | ends | {"layer": -1, "n": 0, "n_draws": 0, "set": "harmful"}
        )
        return [nothing | {"reason": "not compared: other sizes"}]
    return found


def depth(ends, value=9.0, reason=""):
    known = ends | {"set": "harmful", "depth": value, "depth_low": value - 5, "depth_high": value, "n_layers": 10}
    return known | {"gap": 0.8, "gap_low": 0.5, "gap_high": 0.9, "missing": 0.0, "n": 16, "reason": reason}


@pytest.fixture(scope="module")
def table():
    return tables.frame("lockstep", rows(ENDS))


def test_lines_are_the_rates_and_marks_are_the_sides_and_the_depth(table):
    figure = figures.lockstep(table, tables.frame("lockstep_depth", [depth(BACK, 3.0), depth(ENDS)]))
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines["harmful prompts"].y) == RATES["harmful"]
    assert list(lines["harmless prompts"].y) == RATES["harmless"]
    assert list(lines["harmful: change turned at random"].y) == [0.2] * 3
    assert "harmless: change turned at random" not in lines
    shapes = [(shape.type, shape.x0, shape.x1, shape.y0) for shape in figure.layout.shapes]
    assert {y for kind, _, _, y in shapes if kind == "line"} >= {0.9, 0.1}
    assert ("line", 9.0, 9.0, 0) in shapes
    assert [(x0, x1) for kind, x0, x1, _ in shapes if kind == "rect"] == [(3.6, 9.4)]
    assert "changes sides at layer 9 [4, 9]" in figure.layout.title.subtitle.text
    assert figure.layout.title.text == "Stream of sft 70 put into warm-up 60"


def test_two_that_refuse_alike_have_no_mark(table):
    alike = tables.frame("lockstep_depth", [depth(ENDS, NAN, "the two sides differ by +0.00 [-0.2, +0.2]")])
    figure = figures.lockstep(table, alike)
    assert not [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert "no depth" in figure.layout.title.subtitle.text
    with pytest.raises(MechrefusalError, match="several pairs"):
        figures.lockstep(tables.frame("lockstep", rows(ENDS) + rows(BACK)))
    with pytest.raises(MechrefusalError, match="other sizes"):
        figures.lockstep(tables.frame("lockstep", rows(ENDS, apart=True)))


def test_the_section_has_a_figure_a_direction_and_says_what_has_no_value(run):
    other = BACK | {"arm_source": "r2d2"}
    found = tables.frame("lockstep", rows(ENDS) + rows(BACK) + rows(other, apart=True))
    deep = tables.frame("lockstep_depth", [depth(ENDS), depth(BACK, 4.0)])
    empty = {name: tables.frame(name, []) for name in set(tables.DURABILITY) & set(tables.ACROSS)}
    bare = dataclasses.replace(run, checkpoints=(), across={**run.across, **empty})
    page = DurabilityPage(dataclasses.replace(bare, across={**bare.across, "lockstep": found, "lockstep_depth": deep}))
    shown = content(page)
    assert [panel.figure for panel in page.panels.drawn] == ["lockstep", "lockstep"]
    assert "From which layer on does one checkpoint make another behave as it does?" in shown.words
    assert "not compared: other sizes" in shown.words
    assert "sft 70warm-up 60harmful9.0 [4.00, 9.00]" in shown.words
    assert "From which layer" not in content(DurabilityPage(bare)).words
