"""Figures draw the numbers of the tables, at the right place and centred where they mean nothing."""

import numpy as np
import pandas as pd
import pytest
from synthetic import HEADS
from synthetic_carriers import LAYERS, NO_CARRIER

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures, wording


def heads(checkpoint, mode="denoising"):
    table = checkpoint.tables["patching"]
    return table[(table["site"] == "z") & (table["mode"] == mode)]


def test_layer_by_head_puts_every_value_at_its_place(checkpoint):
    table = heads(checkpoint)
    figure = figures.layer_by_head(table)
    z = np.array(figure.data[0].z, dtype=float)
    assert z.shape == (LAYERS, HEADS)
    expected = table.set_index(["layer", "head"])["effect"].unstack().to_numpy()
    np.testing.assert_array_equal(z, expected)
    assert "L19.H3" in figure.data[0].text[19][3]
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax == -np.nanmax(np.abs(expected))


def test_noising_is_centred_at_one(checkpoint):
    figure = figures.layer_by_head(heads(checkpoint, "noising"), centre=1.0)
    assert figure.layout.coloraxis.cmin + figure.layout.coloraxis.cmax == pytest.approx(2.0)


def test_several_checkpoints_become_panels(run):
    table = run.together("attribution")
    table = table[(table["onto"] == "carrier") & (table["set"] == "harmful") & (table["component"] == "head")]
    figure = figures.layer_by_head(table)
    assert len(figure.data) == 7
    assert {a.text for a in figure.layout.annotations} >= {"base, step 0", "sft, step 250"}


def test_unfiltered_tables_are_refused(checkpoint):
    with pytest.raises(MechrefusalError, match=r"several rows for layer 0, head 0: filter"):
        figures.layer_by_head(checkpoint.tables["patching"])
    with pytest.raises(MechrefusalError, match="no rows"):
        figures.layer_by_head(checkpoint.tables["patching"].iloc[:0])


def test_layer_by_position_names_tokens_safely(checkpoint):
    table = checkpoint.tables["patching"]
    figure = figures.layer_by_position(table[(table["mode"] == "denoising") & (table["site"] == "resid_pre")])
    ticks = figure.layout.xaxis.ticktext
    assert ticks[-1] == "−1 ↵"
    assert ticks[-2] == "−2 assistant"
    assert not any("<" in tick for tick in ticks)
    assert any("&lt;script&gt;" in tick for tick in ticks)


def test_carriers_mark_the_winner_and_say_why_others_lost(checkpoint):
    table = checkpoint.tables["carriers"]
    figure = figures.carriers(table, score="bypass")
    marks = {trace.name: trace for trace in figure.data[1:]}
    winner = table[table["winner"]].iloc[0]
    positions = sorted(table["position"].unique())
    assert (positions[marks["carrier"].x[0]], marks["carrier"].y[0]) == (winner["position"], winner["layer"])
    assert len(marks["admissible"].x) == table["admissible"].sum() - 1
    assert "induce &lt; 0" in str(figure.data[0].text)
    kl = figures.carriers(table, score="kl")
    at = table[(table["layer"] == 4) & (table["position"] == -5)]["kl"].iloc[0]
    assert kl.data[0].z[4][0] == pytest.approx(np.log10(max(at, 1e-4)))


def test_rates_start_every_arm_at_the_base(run):
    table = run.together("rates")
    figure = figures.rates(table[table["intervention"] == "none"])
    wanted = table[
        (table["metric"] == "any_refusal")
        & (table["by"] == "all")
        & (table["suite"] == "evaluation_harmful")
        & (table["intervention"] == "none")
        & (table["attack"] == "none")
    ]
    assert [trace.name for trace in figure.data] == [None, "r2d2", None, "sft"]
    for area, line in zip(figure.data[::2], figure.data[1::2], strict=True):
        own = wanted[wanted["arm"].isin(["base", line.name])].sort_values("step")
        assert list(line.y) == list(own["value"])
        assert sorted(area.y) == sorted([*own["low"], *own["high"]])
        assert len(line.x) == 4


def test_carrier_layers_show_what_is_missing(run):
    figure = figures.carrier_layers(run.together("carrier"), n_layers=LAYERS)
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x-thin-open"]
    assert len(crosses) == 2
    assert wording.for_plotly(NO_CARRIER) in crosses[0].text[0]
    assert figure.layout.yaxis.ticktext[0] == "none"


def test_drift_separates_anchors_before_and_arms(run):
    figure = figures.drift(run.across["drift"], measure="direction_cosine")
    names = [trace.name for trace in figure.data]
    assert names == [
        "r2d2: since the anchor before",
        "r2d2: since the base",
        "sft: since the anchor before",
        "sft: since the base",
        "sft and r2d2, same step",
        "split-half floor",
        "random directions",
    ]
    table = run.across["drift"]
    rows = table[
        (table["measure"] == "direction_cosine")
        & (table["arm_a"] == "sft")
        & (table["arm_b"] == "sft")
        & (table["step_b"] == 100)
    ]
    assert figure.data[2].y[1] == pytest.approx(rows["value"].mean())
    spans = figures.drift(table, measure="principal_angle_mean")
    own = table[
        (table["measure"] == "principal_angle_mean")
        & (table["layer"] == -1)
        & (table["arm_a"] == "sft")
        & (table["arm_b"] == "sft")
    ]
    shown = next(trace for trace in spans.data if trace.name == "sft: since the anchor before")
    assert [v for v in shown.y if v is not None] == list(own.sort_values("step_b")["value"])


def test_drift_without_values_says_why(run):
    table = run.across["drift"]
    table = table[(table["arm_a"] == "base") & (table["measure"] == "carrier_cosine")]
    with pytest.raises(MechrefusalError, match="no carrier at one of the two"):
        figures.drift(table, measure="carrier_cosine")


def test_remaining_figures_draw_their_numbers(run, checkpoint):
    ranks = figures.effective_rank(run.across["effective_rank"], rows="layers")
    assert len(ranks.data) == 8
    loss = figures.losses(run.across["training"], terms=("attack_loss_before", "attack_loss_after"))
    assert [trace.name for trace in loss.data if trace.showlegend is not False] == [
        "r2d2: attack loss before",
        "r2d2: attack loss after",
    ]
    bars = figures.interventions(checkpoint.tables["rates"])
    assert [len(trace.y) for trace in bars.data] == [3, 4]
    mlps = checkpoint.tables["attribution"]
    mlps = mlps[(mlps["onto"] == "carrier") & (mlps["set"] == "harmful")]
    assert list(figures.mlps(mlps).data[0].y) == list(range(LAYERS))
    assert len(figures.durations(run.across["stages"]).data[0].y) == 5
    assert len(figures.scores(checkpoint.tables["scores"]).data) == 2
    layers = figures.drift_by_layer(run.across["drift"], measure="direction_cosine")
    assert np.array(layers.data[0].z).shape == (LAYERS, 11)
    assert (
        figures.layer_by_position(
            checkpoint.tables["directions"], value="norm", centre=None
        ).layout.coloraxis.colorscale[0][1]
        == "#00224e"
    )


def test_a_nullable_table_is_read_like_any_other(checkpoint):
    table = checkpoint.tables["carriers"].convert_dtypes()
    table.loc[table.index[0], ["bypass", "rejected_because"]] = pd.NA
    assert len(figures.carriers(table).data) == 3


def test_schema_of_the_made_up_run(checkpoint):
    for name in tables.PER_CHECKPOINT:
        assert len(checkpoint.tables[name]), name
