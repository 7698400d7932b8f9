"""Figures and sections of durability's rates draw the numbers of their tables, read here again row by row."""

import pandas as pd
import pytest
from synthetic_durability_rates import CHECKPOINTS, N, durability_rates

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import durability_findings, figures
from mechrefusal.report.durability_page import DurabilityPage
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun
from mechrefusal.report.writing import content_of

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def made():
    return durability_rates(hostile=HOSTILE)


def lines(figure):
    """Lines by (panel, name): their x and y."""
    return {
        (trace.xaxis or "x", trace.name): (list(trace.x), list(trace.y), list(trace.text), trace)
        for trace in figure.data
        if trace.name
    }


def titles(figure):
    return [note.text for note in figure.layout.annotations]


def test_examples_are_a_line_a_checkpoint_and_a_panel_a_material(made):
    table = made["harmful_fine_tuning"]
    figure = figures.harmful_fine_tuning(table)
    drawn = lines(figure)
    assert len(drawn) == 2 * len(CHECKPOINTS)
    assert "control" in titles(figure)[1]
    assert list(figure.layout.xaxis.ticktext) == ["0", "10", "50", "500"]
    for panel, material in (("x", "harmful"), ("x2", "harmless")):
        for arm, step in CHECKPOINTS:
            x, y, hovers, _ = drawn[panel, f"{arm} {step}"]
            assert x == [0, 1, 2], "500 examples have no rate"
            for n, value, hover in zip((0, 10, 50), y, hovers, strict=True):
                rows = table[(table["arm"] == arm) & (table["step"] == step) & (table["n_examples"] == n)]
                rows = rows[rows["material"].isin(["none", material])]
                rows = rows[(rows["side"] == "harmful") & (rows["measure"] == "refused")]
                assert value == pytest.approx(rows["value"].mean())
                assert f"n = {N} prompts" in hover
                assert ("2 draws" in hover) == (n > 0)
    band = next(trace for trace in figure.data if trace.fill == "toself")
    of_base = table[(table["arm"] == "base") & (table["measure"] == "refused") & (table["side"] == "harmful")]
    shown = of_base[of_base["material"].isin(["none", "harmful"]) & (of_base["n_examples"] < 500)]
    assert min(band.y) == pytest.approx(shown["low"].min())
    assert max(band.y) == pytest.approx(shown["high"].max())


def test_lengths_and_openings_have_a_panel_each(made):
    figure = figures.answer_length(made["answer_length"])
    assert titles(figure) == ["Harmful prompts", "Harmless prompts"]
    table = made["answer_length"]
    for panel, side in (("x", "harmful"), ("x2", "harmless")):
        rows = table[(table["arm"] == "sft") & (table["side"] == side) & (table["measure"] == "refused")]
        assert lines(figure)[panel, "sft 50"][1] == pytest.approx(rows["value"].tolist())
    figure = figures.prefilled(made["prefilled"])
    assert len(titles(figure)) == 4
    table, drawn = made["prefilled"], lines(figure)
    for panel, (opening, side) in zip(
        ("x", "x2", "x3", "x4"),
        (("affirmative", "harmful"), ("neutral", "harmful"), ("affirmative", "harmless"), ("neutral", "harmless")),
        strict=True,
    ):
        rows = table[(table["arm"] == "r2d2") & (table["step"] == 100) & (table["side"] == side)]
        rows = rows[rows["opening"].isin(["none", opening])].dropna(subset=["value"])
        expected = rows.groupby("n_tokens")["value"].mean().tolist()
        assert drawn[panel, "r2d2 100"][1] == pytest.approx(expected)
        assert len(expected) == 3


def test_places_add_up_to_the_share_that_refuses(made):
    figure = figures.refusal_places(made["refusal_places"])
    drawn = lines(figure)
    assert len(drawn) == len(CHECKPOINTS)
    for arm, step in CHECKPOINTS:
        x, y, _, trace = drawn["x", f"{arm} {step}"]
        late = 7 + step // 10
        assert x == sorted({0, 7, late, 64})
        assert y[0] == 5 / N, "five of twenty refuse with the first token"
        assert y[x.index(late)] == y[-1] == 15 / N
        assert trace.line.shape == "hv"


def test_what_cannot_be_drawn_says_why(made):
    for name in ("harmful_fine_tuning", "answer_length", "prefilled"):
        missing = made[name].assign(value=float("nan"), reason="the model cannot be trained")
        with pytest.raises(MechrefusalError, match="the model cannot be trained"):
            getattr(figures, name)(missing)
    with pytest.raises(MechrefusalError, match="where answers refuse"):
        figures.refusal_places(
            made["refusal_places"].assign(token=pd.array([None] * len(made["refusal_places"]), "Int64"))
        )


def of(name, *cells):
    """Rows of one checkpoint: (values of the keys, share)."""
    keys = {"harmful_fine_tuning": ("material", "n_examples"), "prefilled": ("opening", "n_tokens")}[name]
    same = {"arm": "sft", "step": 50, "side": "harmful", "measure": "refused", "draw": 0}
    return pd.DataFrame([same | dict(zip(keys, key, strict=True)) | {"value": value} for key, value in cells])


def test_sentences_say_from_where_on_half_of_the_refusals_are_gone():
    none, nan = (("none", 0), 0.8), float("nan")
    harmful = [(("harmful", n), value) for n, value in ((10, 0.3), (25, 0.5), (50, 0.4), (100, 0.1), (200, nan))]
    harmless = [(("harmless", n), value) for n, value in ((10, 0.8), (25, 0.8), (50, 0.7), (100, 0.5))]
    table = of("harmful_fine_tuning", none, *harmful, *harmless)
    assert durability_findings.examples(table) == [
        "sft 50 refuses 0.80 of the harmful prompts; half or more of that is gone from 50 harmful examples on "
        "(0.40 left), not with up to 100 harmless examples (0.50 left)."
    ]
    two = pd.concat([table, of("harmful_fine_tuning", (("harmful", 10), 0.1), (("harmful", 25), 0.1))])
    assert "from 10 harmful examples on (0.20 left)" in durability_findings.examples(two)[0], "the mean of two draws"
    zero = of("harmful_fine_tuning", (("none", 0), 0.0), *harmful)
    assert durability_findings.examples(zero) == [
        "sft 50 refuses none of the harmful prompts as it is: there is nothing to take away."
    ]
    table = of("prefilled", none, (("affirmative", 1), 0.1), (("neutral", 1), 0.7))
    assert durability_findings.openings(table) == [
        "sft 50 refuses 0.80 of the harmful prompts; half or more of that is gone from 1 token of an affirmative "
        "opening on (0.10 left), not with up to 1 token of a neutral one (0.70 left)."
    ]
    assert durability_findings.openings(of("prefilled", none)) == []


def test_sentences_count_delayed_refusals(made):
    assert durability_findings.places(made["refusal_places"])[-1] == (
        "sft 50: 15 of 20 answers to harmful prompts refuse, 10 of them after their first sentence, "
        "the latest at token 12."
    )
    none = made["refusal_places"].assign(refused=False)
    assert durability_findings.places(none)[0] == "base 0: none of 20 answers to harmful prompts refuses."


def run_of(tmp_path, made):
    points = []
    for arm, step in CHECKPOINTS[1:3]:
        own = {name: t[(t["arm"] == arm) & (t["step"] == step)].reset_index(drop=True) for name, t in made.items()}
        empty = {name: tables.frame(name, []) for name in tables.PER_CHECKPOINT}
        points.append(MeasuredCheckpoint(f"{arm}-step-{step:05d}", arm, step, empty | own))
    across = {name: tables.frame(name, []) for name in tables.ACROSS}
    return MeasuredRun(tmp_path, tuple(points), across, None, None)


def test_the_page_has_a_section_for_each_that_was_measured(made, tmp_path):
    run = run_of(tmp_path, made)
    assert run.has_durability
    page = DurabilityPage(run)
    sections = {section.id: section for section in page.sections}
    assert list(sections) == ["harmful-fine-tuning", "answer-length", "prefilled"]
    assert [panel.figure for section in sections.values() for panel in section.panels] == [
        "harmful_fine_tuning", "answer_length", "refusal_places", "prefilled",
    ]  # fmt: skip
    assert [len(section.says) for section in sections.values()] == [2, 2, 2]
    assert all(panel.data is not None for section in sections.values() for panel in section.panels)
    grids = [block.grid for section in sections.values() for block in section.blocks if block.grid]
    assert [len(grid.rows) + grid.left_out for grid in grids] == [
        len(made[name]) // 2 for name in ("harmful_fine_tuning", "fine_tunings", "answer_length", "prefilled")
    ]
    html = str(content_of(page))
    assert HOSTILE not in html
    assert "too few &lt;script&gt;" in html
    assert "ab" * 8 in html
    only = run_of(tmp_path, {"prefilled": made["prefilled"]})
    assert [section.id for section in DurabilityPage(only).sections] == ["prefilled"]
    assert not run_of(tmp_path, {}).has_durability
