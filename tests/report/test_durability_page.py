"""The cost of removal and the spectrum of the update: figures and sections hold the numbers of their tables."""

import dataclasses

import numpy as np
import pytest
from synthetic_durability import LEVELS, NOWHERE, RANKS

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures, wording, writing
from mechrefusal.report.durability_page import DurabilityPage
from mechrefusal.report.writing import content_of

PAIR = {"arm_b": "r2d2", "step_b": 100}


def of_pair(run, name):
    table = run.across[name]
    return table[(table["arm_b"] == PAIR["arm_b"]) & (table["step_b"] == PAIR["step_b"])]


def traces(figure):
    """Lines with a name by their axis and name."""
    found = {}
    for trace in figure.data:
        if trace.name and trace.mode != "none":
            found.setdefault((trace.yaxis or "y", trace.name, trace.mode), trace)
    return found


def test_every_trial_is_a_point_and_the_unbeaten_are_a_line(run):
    table = run.together("removal_trials")
    figure = figures.removal_curves(table)
    drawn = traces(figure)
    for checkpoint in run.checkpoints:
        own = checkpoint.tables["removal_trials"]
        name = f"{checkpoint.arm} {checkpoint.step}"
        line, points = drawn["y", name, "lines+markers"], drawn["y", name, "markers"]
        front = own[own["unbeaten"]].sort_values("kl")
        assert list(line.x) == np.maximum(front["kl"], 1e-4).tolist()
        assert list(line.y) == front["refused"].tolist()
        assert line.line.shape == "hv"
        assert sorted(points.y) == sorted(own.loc[~own["unbeaten"], "refused"])
        assert "trial 0 (untouched)" in line.text[0]
        assert "attention" not in line.text[0]
        assert f"KL {front['kl'].iloc[1]:.3f}" in line.text[1]
    assert figure.layout.xaxis.type == "log"


def test_the_fewest_refusals_are_a_panel_a_checkpoint(run):
    table = run.together("removal")
    figure = figures.removal(table)
    known = [c for c in run.checkpoints if c.tables["removal"]["refused"].notna().any()]
    assert 0 < len(known) < len(run.checkpoints)
    assert [note.text for note in figure.layout.annotations] == [f"{c.arm} {c.step}" for c in known]
    for panel, checkpoint in enumerate(known):
        own = checkpoint.tables["removal"]
        axis = "y" if panel == 0 else f"y{panel + 1}"
        of_axis = {trace.name: trace for trace in figure.data if (trace.yaxis or "y") == axis and trace.name}
        assert list(of_axis["held-out prompts"].y) == own["refused"].tolist()
        bars = of_axis["held-out prompts"].error_y
        assert np.add(of_axis["held-out prompts"].y, bars.array) == pytest.approx(own["high"].to_numpy())
        assert list(of_axis["prompts of the search"].y) == own["search_refused"].tolist()
        assert list(of_axis["random directions"].y) == own["random_refused"].tolist()
        assert list(of_axis["no ablation"].y) == own["untouched"].tolist()
    assert list(figure.layout.xaxis.ticktext) == ["0.01", "0.10", "0.30"]
    with pytest.raises(MechrefusalError, match="no candidate direction was scored"):
        figures.removal(table[table["arm"] == "base"])


def test_ranks_are_a_line_a_matrix_beside_chance(run):
    table = of_pair(run, "update_spectrum")
    figure = figures.update_ranks(table)
    drawn = traces(figure)
    for matrix, own in table[table["layer"].notna()].groupby("matrix"):
        assert list(drawn["y", matrix, "lines+markers"].y) == own["effective_rank"].tolist()
    assert sum(trace.line.dash == "dash" and set(trace.y) == {460.0} for trace in figure.data) == 2
    assert not any("embed" in trace.name for trace in figure.data if trace.name)
    assert "base 0 → r2d2 100" in figure.layout.title.text
    last = run.across["update_spectrum"].iloc[-1:]
    with pytest.raises(MechrefusalError, match="not compared: other architectures"):
        figures.update_ranks(last)


def test_scales_and_directions_draw_both_sides(run):
    table = of_pair(run, "update_refusals")
    scales = traces(figures.update_scales(table))
    for side in ("harmful", "harmless"):
        own = table[(table["kept"] == "scaled") & (table["side"] == side)].sort_values("scale")
        line = scales["y", f"{side} prompts", "lines+markers"]
        assert (list(line.x), list(line.y)) == (own["scale"].tolist(), own["refused"].tolist())
    figure = figures.update_directions(table)
    harmful = table[table["side"] == "harmful"]
    of_axis = {trace.name: trace for trace in figure.data if (trace.yaxis or "y") == "y" and trace.name}
    assert set(of_axis) == {"top", "all but top", "random", "all but random"}
    for kept in ("top", "all but top"):
        assert list(of_axis[kept].y) == harmful.loc[harmful["kept"] == kept, "refused"].tolist()
    drawn = harmful[harmful["kept"] == "random"].groupby("k")["refused"]
    assert list(of_axis["random"].y) == pytest.approx(drawn.mean().tolist())
    assert np.add(of_axis["random"].y, of_axis["random"].error_y.array) == pytest.approx(drawn.max().to_numpy())
    assert list(figure.layout.xaxis.ticktext) == list(map(str, RANKS))
    trained = harmful[(harmful["kept"] == "scaled") & (harmful["scale"] == 1)]["refused"].item()
    assert [shape.y0 for shape in figure.layout.shapes if shape.yref == "y"] == [trained]


def test_the_page_tells_both_and_why_something_has_no_value(run):
    page = DurabilityPage(run)
    sections = {section.id: section for section in page.sections}
    removal, update = sections["removal"], sections["update"]
    assert [panel.figure for panel in removal.panels] == ["removal_curves", "removal"]
    assert all(panel.data is not None for panel in removal.panels)
    rows = run.together("removal")
    grid = removal.blocks[0].grid
    assert len(grid.rows) == len(rows)
    held_out = [head.words for head in grid.heads].index("refused")
    place = int(np.flatnonzero(rows["refused"].notna())[0])
    assert grid.rows[place][held_out].text == wording.rate(rows["refused"].iloc[place])
    assert len(LEVELS) * sum(rows.groupby(["arm", "step"])["refused"].count() > 0) == rows["refused"].notna().sum()
    n_pairs = len(run.across["update_spectrum"].dropna(subset=["effective_rank"]).drop_duplicates(["arm_b", "step_b"]))
    drawn = [panel for panel in update.blocks[0].panels if panel.data is not None]
    assert [panel.figure for panel in drawn].count("update_ranks") == n_pairs
    assert [panel.figure for panel in drawn].count("update_directions") == n_pairs
    shown = content_of(page)
    assert "no candidate direction was scored, so there is none to ablate" in shown
    assert "not compared: other architectures (llama and gpt2) &lt;b&gt;" in shown
    assert NOWHERE not in shown


def test_the_page_is_there_only_where_something_was_measured(run):
    nothing = {name: tables.frame(name, []) for name in tables.DURABILITY}
    bare = dataclasses.replace(
        run,
        across={**run.across, **{name: nothing[name] for name in nothing if name in run.across}},
        checkpoints=tuple(
            dataclasses.replace(c, tables={**c.tables, **{n: nothing[n] for n in nothing if n in c.tables}})
            for c in run.checkpoints
        ),
    )
    assert run.has_durability
    assert not bare.has_durability
    assert DurabilityPage(bare).sections == []
    assert [page.id for page in writing.pages_of(run)].count("durability") == 1
    assert "durability" not in [page.id for page in writing.pages_of(bare)]
    links = [writing._document(each, "index", "", policy="") for each in (run, bare)]
    assert ["durability.html" in text for text in links] == [True, False]
