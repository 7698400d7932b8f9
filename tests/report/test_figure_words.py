"""The words of figures: every figure has an entry, its hover is filled from a row, its meta says what it shows."""

import ast
import inspect
from pathlib import Path

import pandas as pd
import pytest

from mechrefusal import report, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures
from mechrefusal.report.figures import catalogue

NO_FIGURES = {"CARRIER_SCORES", "describe", "maps", "save", "step_costs"}


def test_every_figure_has_its_words_and_every_entry_is_a_figure():
    described = figures.describe()
    assert set(described["figure"]) == set(report.figures.__all__) - NO_FIGURES
    for row in described.itertuples():
        assert row.definition.endswith("."), row.figure
        assert len(row.definition) > 60, row.figure
        assert "/#" in row.docs, row.figure
        assert len(row.title) < 90, row.figure
        for name in row.table.split(", "):
            assert name in tables.TABLES or row.figure == "trajectory", row.figure


def test_every_figure_that_is_drawn_is_in_the_catalogue():
    drawers = ("Canvas", "layer_map", "arms_over_steps", "_over_steps")
    drawn = set()
    for path in Path(inspect.getfile(figures)).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
        named = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id in drawers]
        drawn |= {name.value for name in named if isinstance(name, ast.Constant)}
    assert drawn == set(figures.describe()["figure"])


def test_a_hover_is_filled_from_its_row():
    row = {"name": "<b>", "value": 0.12345, "low": -1.0, "high": float("nan"), "p": None, "n": 3, "nulls": 0}
    lines = [
        "<b>{name}</b>",
        "{value:+3}{low..value}{low..high}",
        "{?p {p:3}?}",
        "n = {n:whole}{?, {nulls:count} nulls?}",
    ]
    assert catalogue.hover(row, lines) == "<b>&lt;b&gt;</b><br>+0.123 [−1.000, 0.123]<br>n = 3"
    assert catalogue.hover({**row, "nulls": 2}, lines).endswith("n = 3, 2 nulls")
    assert catalogue.hover({"share": 0.5, "of": None}, ["{share:percent} {missing:2}", "{of}"]) == "50% –"


def test_names_are_made_of_several_columns():
    head = {"layer": 12, "head": 3, "component": "head", "arm": "<i>", "step": 50}
    assert catalogue.hover(head, ["{@head} {@component} {@checkpoint}"]) == "L12.H3 L12.H3 &lt;i&gt; 50"
    place = {"layer": 4, "head": -1, "position": -2, "token": "<x>"}
    assert catalogue.hover(place, ["{@head}"]) == "layer 4, position −2 &lt;x&gt;"
    pair = {"arm_a": "base", "step_a": 0, "arm_b": "sft", "step_b": 18}
    assert catalogue.hover(pair, ["{@pair}"]) == "base 0 → sft 18"


def test_columns_of_hovers_are_columns_of_the_tables():
    """A column that is renamed would be a dash in every hover: what no table has, a figure must add."""
    added = {"at_x"}
    for path in Path(inspect.getfile(figures)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg:
                added.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                added.add(node.value)
            elif isinstance(node, ast.JoinedStr):  # f"random{end}", f"side_{end}"
                stem = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
                added |= {stem + end for end in ("", "low", "high", "_least", "_most", "x", "y", "_x", "_y")}
    for name in figures.describe()["figure"]:
        entry = catalogue.entry(name)
        known = added | {
            column for table in entry.table.split(", ") if table in tables.TABLES for column in tables.columns(table)
        }
        for line in entry.hover:
            for field, _ in catalogue._FIELD.findall(line):
                for column in [] if field.startswith("@") else field.split(".."):
                    assert column in known or column.rsplit("_", 1)[0] in known, f"{name}: {column}"


def test_a_figure_says_what_it_shows(run, checkpoint):
    figure = figures.carrier_layers(run.together("carrier"), n_layers=30)
    told = figure.layout.meta
    assert told["figure"] == "carrier_layers"
    assert told["unit"] == "layer"
    assert told["docs"] == catalogue.entry("carrier_layers").docs
    assert "95% bootstrap interval" in told["definition"]
    heads = checkpoint.tables["patching"]
    heads = heads[(heads["site"] == "z") & (heads["mode"] == "denoising")]
    drawn = figures.layer_by_head(heads, value="raw")
    assert drawn.layout.title.text == "Change of the refusal score, by attention head"
    assert drawn.layout.title.subtitle.text.startswith("nats; n = ")
    assert drawn.layout.meta["unit"] == "nats"
    row = heads[(heads["layer"] == 19) & (heads["head"] == 3)].iloc[0]
    text = drawn.data[0].text[19][3]
    assert f"Change of the refusal score {row['raw']:+.3f}<br>" in text  # the interval is that of the effect
    assert f"effect {row['effect']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text


def test_unknown_figures_are_named():
    with pytest.raises(MechrefusalError, match="unknown figure 'nothing'"):
        catalogue.entry("nothing")


def test_results_that_hold_their_table_are_drawn(run):
    class Result:
        table = run.together("carrier")

    assert figures.carrier_layers(Result()) == figures.carrier_layers(Result.table)


def test_figures_can_be_read_on_any_background(run):
    layout = figures.carrier_layers(run.together("carrier")).layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    for page in (1.0, 0.006):  # relative luminance of a white page, and of a dark one
        channels = [int(layout.font.color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [((c + 0.055) / 1.055) ** 2.4 for c in channels]
        grey = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert (max(page, grey) + 0.05) / (min(page, grey) + 0.05) > 4


def test_ordered_words_know_their_order():
    assert catalogue.ordered(["other", "z", "resid_pre"], "site") == ["resid_pre", "z", "other"]
    assert catalogue.word("site", "z") == "Heads (what they read and carry)"
    assert catalogue.word("site", "a_new_site") == "a new site"
    assert pd.Series(catalogue.words("measure")).notna().all()
