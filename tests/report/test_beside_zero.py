"""What the carrier was ablated to, what zero does instead, where zero lies, and what answers show."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from rendering import pages
from synthetic import write_run
from synthetic_behaviour import HOSTILE
from synthetic_carriers import zero_distance

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import carrier_findings, figures, headline, wording
from mechrefusal.report.checkpoint_page import CheckpointPage
from mechrefusal.report.index_page import IndexPage
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow

NAN = float("nan")


def carrier_row(checkpoint, **changed):
    return checkpoint.tables["carrier"].assign(**changed)


def test_the_headline_has_zero_beside_the_carrier(run, checkpoint):
    line, row = headline.headline(checkpoint), checkpoint.tables["carrier"].iloc[0]
    assert line.ablated_to == "harmless mean"
    assert line.zero.of == "carrier"
    assert (line.zero.bypass, line.zero.kl) == (row["bypass_zero"], row["kl_zero"])
    assert line.zero.answer == ("yes" if row["admissible_zero"] else "no")
    base = headline.headline(run.checkpoints[0])
    assert base.carrier is None
    assert base.zero.of == "best candidate"


def test_what_was_not_scored_under_zero_is_not_told(checkpoint):
    gone = dict.fromkeys(("bypass_zero", "induce_zero", "kl_zero", "admissible_zero", "n_admissible_zero"), NAN)
    table = tables.frame("carrier", carrier_row(checkpoint, zero_distance=NAN, **gone))
    found = carrier_findings.zero(table)
    assert carrier_findings.ablated_to(table.iloc[:0]) == "–"
    assert (found.scored, found.admissible, found.answer) == (False, None, "–")
    assert carrier_findings.beside_zero(table.iloc[0].to_dict(), found).endswith("(affine concept editing).")
    assert carrier_findings.distance(found.distance) == ""
    assert carrier_findings.zero(table.assign(reference_kind="none")) is None
    assert carrier_findings.zero(table.iloc[:0]) is None


def test_sentences_name_the_reference_and_the_scores_under_zero(checkpoint):
    table = carrier_row(checkpoint, bypass_zero=-1.25, induce_zero=0.5, kl_zero=0.52, admissible_zero=False)
    said = carrier_findings.beside_zero(table.iloc[0].to_dict(), carrier_findings.zero(table))
    assert said.startswith("Ablated to the mean of harmless prompts, induced to that of harmful ones")
    assert "it has bypass −1.25, induce 0.50, kl 0.520; it would not be admissible; " in said
    some = table.assign(n_admissible_zero=NAN, admissible_zero=True)
    said = carrier_findings.beside_zero(some.iloc[0].to_dict(), carrier_findings.zero(some))
    assert said.endswith("it would be admissible.")
    zero = table.assign(ablated_to="zero")
    said = carrier_findings.beside_zero(zero.iloc[0].to_dict(), carrier_findings.zero(zero))
    assert said == "Ablated to zero, and added, as Arditi et al. publish."
    best = table.assign(reference_kind="best candidate")
    assert "the best candidate has bypass" in carrier_findings.beside_zero(
        best.iloc[0].to_dict(), carrier_findings.zero(best)
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.01, "at the harmless mean: the two ablations agree"),
        (0.99, "at the harmful mean: ablating to zero leaves the whole difference"),
        (0.42, "between the means, 0.42 of the way from the harmless to the harmful one"),
        (-1.3, "on the other side of the harmless mean, 1.30 times as far from it as the harmful mean"),
        (2.4, "beyond the harmful mean, 2.40 times as far from the harmless mean as that"),
    ],
)
def test_how_far_zero_lies_is_said_in_words(value, words):
    assert words in carrier_findings.distance(value)
    assert carrier_findings.distance(value, of="best candidate").startswith("Along the best candidate zero lies")


def test_zero_is_drawn_by_layer_at_the_carriers_position(run):
    directions, carrier = run.together("directions"), run.together("carrier")
    figure = figures.zero_distances(directions, carrier)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert list(lines) == ["base 0", *(f"{arm} {step}" for arm in ("r2d2", "sft") for step in (50, 100, 250))]
    row = carrier[(carrier["arm"] == "r2d2") & (carrier["step"] == 250)].iloc[0]
    own = directions[(directions["arm"] == "r2d2") & (directions["step"] == 250)]
    own = own[(own["position"] == row["position"]) & own["zero_distance"].notna()].sort_values("layer")
    np.testing.assert_allclose(lines["r2d2 250"].y, own["zero_distance"])
    assert list(lines["r2d2 250"].x) == list(own["layer"])
    stars = {trace.legendgroup: trace for trace in figure.data if trace.mode == "markers"}
    assert (stars["r2d2 250"].x[0], stars["r2d2 250"].marker.symbol) == (row["layer"], "star")
    assert "base 0" not in stars  # its best candidate is at layer 0, where zero has no place
    elsewhere = figures.zero_distances(directions, carrier.assign(reference_layer=5))
    stars = {trace.legendgroup: trace for trace in elsewhere.data if trace.mode == "markers"}
    assert (stars["base 0"].x[0], stars["base 0"].marker.symbol) == (5, "star-open")
    assert sorted(shape.y0 for shape in figure.layout.shapes) == [0, 1]
    assert {note.text for note in figure.layout.annotations} == {"harmless mean", "harmful mean"}
    low, high = figure.layout.yaxis.range
    assert low < 0 < 1 < high < 90
    assert "7 values out of the picture" in figure.layout.title.subtitle.text


def test_without_a_carrier_the_last_position_is_drawn(checkpoint):
    table = checkpoint.tables["directions"]
    figure = figures.zero_distances(table)
    own = table[(table["position"] == -1) & table["zero_distance"].notna()].sort_values("layer")
    assert len(figure.data) == 1
    np.testing.assert_allclose(figure.data[0].y, own["zero_distance"])
    assert own["zero_distance"].iloc[5] == pytest.approx(zero_distance(-1, 6, 0.9 * 0.8))
    hostile = table.assign(arm="<b>arm</b>", token="<img src=x>")
    drawn = figures.zero_distances(hostile).data[0]
    assert drawn.name == "&lt;b&gt;arm&lt;/b&gt; 100"
    assert "&lt;img" in drawn.text[0]
    with pytest.raises(MechrefusalError, match="every 'zero_distance' is missing"):
        figures.zero_distances(table.assign(zero_distance=NAN))
    with pytest.raises(MechrefusalError, match="zero"):
        figures.zero_distances(table.drop(columns="zero_distance"))


def test_candidates_say_what_zero_does(run, checkpoint):
    table = checkpoint.tables["carriers"]
    row = table[table["winner"]].iloc[0]
    texts = str(figures.carriers(table).data[0].text)
    assert f"to zero: bypass {wording.number(row['bypass_zero'], 3)}" in texts
    gone = dict.fromkeys(("bypass_zero", "induce_zero", "kl_zero", "admissible_zero"), NAN)
    assert "to zero" not in str(figures.carriers(table.assign(**gone)).data[0].text)
    page = page_of(run, checkpoint)
    maps = [panel for panel in carriers_of(page) if panel.title.endswith("to zero")]
    assert [panel.title for panel in maps] == ["Bypass, to zero", "Divergence, to zero"]
    n = int(table["admissible_zero"].sum())
    assert f"150 candidates, {n} admissible" in maps[0].subtitle
    assert "to zero:" not in carriers_of(page)[0].data  # the maps have it
    one = table.assign(bypass_zero=table["bypass_zero"].where(table["winner"]))
    one = page_of(run, dataclasses.replace(checkpoint, tables={**checkpoint.tables, "carriers": one}))
    assert not [panel for panel in carriers_of(one) if panel.title.endswith("to zero")]
    assert "to zero:" in carriers_of(one)[0].data


def page_of(run, checkpoint):
    return CheckpointPage(dataclasses.replace(run, checkpoints=(checkpoint,)), checkpoint)


def carriers_of(page):
    """The maps of the candidates, in the order of the page."""
    assert page.sections
    return [panel for panel in page.panels.drawn if panel.figure == "carriers"]


def test_answers_are_told_with_their_random_control(checkpoint):
    [found] = carrier_findings.effects(checkpoint.tables["rates"])
    words = carrier_findings.effect_words(found)
    assert words.startswith("Answers refused, of harmful prompts: 0.72 (")
    assert "0.08 (0.03–0.22, n = 32) with the carrier ablated (25% degenerate)" in words
    assert "with a random direction ablated; of harmless prompts: 0.02 (0.00–0.09, n = 60) without" in words
    order = [words.index(part) for part in ("carrier induced", "random direction induced", "0.02 (0.00–0.14")]
    assert order == sorted(order)
    assert "added" not in words


def test_effects_name_their_judge(checkpoint):
    rates = checkpoint.tables["rates"]
    [found] = carrier_findings.effects(rates)
    assert "(judge refusal-phrases)" in carrier_findings.effect_words(found, judged=True)
    assert carrier_findings.effects(rates[rates["intervention"] == "none"]) == []
    assert carrier_findings.effects(rates.iloc[:0]) == []


def test_bars_have_the_new_names_in_order(checkpoint):
    figure = figures.interventions(checkpoint.tables["rates"])
    assert list(figure.layout.xaxis.ticktext) == [
        *("none", "ablate carrier", "ablate random"),
        *("none", "ablate carrier", "induce carrier", "induce random"),
    ]


def test_the_index_has_one_row_a_checkpoint_that_was_intervened_on(run):
    grid = carrier_findings.effects_grid(run)
    assert [row[0].text for row in grid.rows] == [f"{c.arm} {c.step}" for c in run.checkpoints if c.step]
    kinds = [head.words.split()[0] for head in grid.heads]
    assert (kinds.count("harmful"), kinds.count("harmless")) == (3, 4)
    assert [words.split(":")[0] for words in IndexPage(run).zero_words] == ["r2d2, step 250", "sft, step 250"]


def test_pages_escape_what_the_tables_name(tmp_path):
    folder = write_run(tmp_path / "run", arms=("r2d2",), anchors=(0, 50), evaluated=False)
    place = folder / "measurements" / "r2d2-step-00050"
    rates = tables.read("rates", place.parent)
    tables.write(pd.concat([rates, rates.assign(judge=HOSTILE[0])]), "rates", place.parent)
    index, page = pages(folder, "index", "r2d2-step-00050")
    row = tables.read("carrier", place).iloc[0]
    assert f"{wording.number(row['bypass_zero'])}{wording.number(row['kl_zero'], 3)}" in "".join(index.text.split())
    assert f"judge: {HOSTILE[0]}, refusal-phrases" in index.text
    assert f"Answers refused (judge {HOSTILE[0]})" in page.text
    assert carrier_findings.distance(row["zero_distance"]) in page.text
    for found in (index, page):
        assert not [tag for tag, _ in found.elements if tag == "img"]
        assert "Where zero lies along the refusal direction" in found.titles
    assert read_run(folder).warm_up is None
