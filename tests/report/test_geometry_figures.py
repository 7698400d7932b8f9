"""Figures of the refusal geometry draw the numbers of the tables, and say why where there are none."""

import numpy as np
import pandas as pd
import pytest
from synthetic_geometry import BROKEN, LAYERS

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures, wording


@pytest.fixture(scope="module")
def base(run):
    return run.checkpoints[0]


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_carriers_say_what_was_only_screened_and_how_often_each_wins(checkpoint):
    table = checkpoint.tables["carriers"]
    figure = figures.carriers(table)
    positions = sorted(table["position"].unique())
    for row in table.itertuples():
        text = figure.data[0].text[row.layer][positions.index(row.position)]
        assert ("only screened" in text) == (not row.exact)
        assert f"wins {row.win_frequency:.0%} of bootstraps" in text
        chosen = pd.notna(row.half_wins) and row.half_wins == 1
        assert ("chosen by 1 of 2 halves of the direction prompts" in text) == chosen == row.winner
    assert f"{(~table['exact'].astype(bool)).sum()} only screened" in figure.layout.title.subtitle.text


def test_the_reference_is_marked_and_called_no_carrier(base):
    row = base.tables["carrier"].iloc[0]
    place = int(row["reference_position"]), int(row["reference_layer"])
    figure = figures.carriers(base.tables["carriers"], reference=place)
    mark = named(figure, "no carrier: best candidate")
    positions = sorted(base.tables["carriers"]["position"].unique())
    assert (positions[mark.x[0]], mark.y[0]) == place


def test_carrier_wins_hold_all_bootstraps(checkpoint):
    table, carrier = checkpoint.tables["carriers"], checkpoint.tables["carrier"]
    bars = figures.carrier_wins(table, carrier).data[0]
    assert sum(bars.x) == pytest.approx(table["win_frequency"].sum() + carrier["none_frequency"].iloc[0])
    assert bars.x[0] == table.loc[table["winner"], "win_frequency"].iloc[0]
    assert list(bars.x[:-1]) == sorted(bars.x[:-1], reverse=True)
    alone = figures.carrier_wins(table).data[0]
    assert len(alone.x) == len(bars.x) - 1


def test_many_winners_are_summed_up(checkpoint):
    table = checkpoint.tables["carriers"].assign(win_frequency=1 / 150)
    bars = figures.carrier_wins(table).data[0]
    assert len(bars.x) == 9
    assert sum(bars.x) == pytest.approx(1.0)


def test_carrier_layers_have_the_bootstrap_interval(run):
    table = run.together("carrier")
    for trace in figures.carrier_layers(table, n_layers=LAYERS).data:
        if trace.mode != "lines+markers":
            continue
        own = table[table["arm"].isin(["base", trace.name])].sort_values("step").iloc[1:]
        np.testing.assert_allclose(
            np.array(trace.y[1:]) + np.array(trace.error_y.array[1:], dtype=float), own["layer_high"]
        )
        np.testing.assert_allclose(
            np.array(trace.y[1:]) - np.array(trace.error_y.arrayminus[1:], dtype=float), own["layer_low"]
        )


def test_subspaces_draw_intervals_and_what_is_not_admissible(checkpoint):
    table = checkpoint.tables["subspaces"]
    figure = figures.subspaces(table, baseline=4.2)
    for family, name in (("cone", "cone (learned)"), ("pca", "PCA"), ("random", "random")):
        own, trace = table[table["family"] == family].sort_values("k"), named(figure, name)
        np.testing.assert_array_equal(np.array(trace.y, dtype=float), own["bypass"])
        np.testing.assert_allclose(
            np.array(trace.y, dtype=float) + np.array(trace.error_y.array, dtype=float), own["bypass_high"]
        )
        open_points = [symbol.endswith("-open") for symbol in trace.marker.symbol]
        assert open_points == list(~own["admissible"].astype(bool))
    star, chosen = named(figure, "smallest that is enough"), table[table["smallest"].astype(bool)].iloc[0]
    assert (round(star.x[0]), star.y[0]) == (chosen["k"], chosen["bypass"])
    assert set(named(figure, "no intervention").y) == {4.2}
    assert "kl 0.12 &gt; 0.1 &lt;i&gt;" in named(figure, "cone (learned)").text[3]
    assert wording.for_plotly(BROKEN) in named(figure, "PCA").text[4]


def test_a_cone_tells_what_its_directions_do(checkpoint):
    table = checkpoint.tables["subspaces"]
    texts = named(figures.subspaces(table), "cone (learned)").text
    assert "drawn from the cone" not in texts[0]
    assert "mean of 8 directions drawn from the cone" in texts[1]
    assert f"worst bypass {wording.number(table.set_index(['family', 'k'])['bypass_worst']['cone', 2], 3)}" in texts[1]
    assert "admissible by themselves 75%" in texts[1]
    floor = figures.subspaces(pd.concat([table, table[table["family"] == "cone"].assign(family="random_cone")]))
    assert named(floor, "cone of r and random").line.color == named(floor, "random").line.color


def test_smallest_k_over_steps(run):
    figure = figures.smallest_k(run.together("subspaces"))
    assert [list(trace.y) for trace in figure.data] == [[None, 2.0, 2.0, 2.0]] * 2
    assert "cone" in figure.data[0].text[1]


def test_estimates_have_dot_interval_floor_and_random(checkpoint):
    table = checkpoint.tables["overlap"]
    figure = figures.estimates(table, title="Overlap")
    dots = [trace for trace in figure.data if trace.error_x.array is not None]
    assert [dot.x[0] for dot in dots] == list(table["value"])
    np.testing.assert_allclose([dot.x[0] + dot.error_x.array[0] for dot in dots], table["high"])
    np.testing.assert_allclose([dot.x[0] - dot.error_x.arrayminus[0] for dot in dots], table["low"])
    floors = [trace for trace in figure.data if trace.name == "shuffled labels (95%)"]
    assert [(min(f.x), max(f.x)) for f in floors] == list(zip(table["floor_low"], table["floor_high"], strict=True))
    assert [t.x[0] for t in figure.data if t.name == "random direction"] == list(table["random"])
    assert [trace.name for trace in figure.data if trace.showlegend] == [
        "shuffled labels (95%)",
        "random direction",
        "value (95% interval)",
    ]


def test_estimates_leave_out_what_has_no_value(base):
    figure = figures.estimates(base.tables["overlap"])
    assert len([trace for trace in figure.data if trace.error_x.array is not None]) == 3
    nothing = base.tables["overlap"].assign(value=float("nan"), reason=BROKEN)
    with pytest.raises(MechrefusalError, match="too few prompts & none refused"):
        figures.estimates(nothing)


def test_coupling_by_layer(checkpoint):
    table = checkpoint.tables["coupling"]
    own = table[table["measure"] == "cosine"].dropna(subset=["value"])
    figure = figures.estimates_by_layer(table, measure="cosine")
    line = named(figure, "value (95% interval)")
    assert (list(line.x), list(line.y)) == (list(own["layer"]), list(own["value"]))
    floor = named(figure, "shuffled labels (95%)")
    assert (min(floor.y), max(floor.y)) == (-0.12, 0.12)
    assert set(named(figure, "random direction").y) == {0.01}
    assert len([t for t in figures.estimates(table).data if t.error_x.array is not None]) == 2


def test_estimates_over_steps(run):
    table = run.together("overlap")
    figure = figures.estimates_over_steps(table, measure="projection_auc")
    own = table[(table["measure"] == "projection_auc") & table["arm"].isin(["base", "sft"])]
    assert list(named(figure, "sft").y) == list(own["value"])
    dashed = [trace for trace in figure.data if trace.line.dash == "dash"]
    assert [list(trace.y) for trace in dashed] == [[0.5] * 4] * 2
    assert len([trace for trace in figure.data if trace.fill == "toself"]) == 2
    utility = run.together("utility_coupling")
    measure = "refusal_harmful and loss_harmless"
    drawn = figures.estimates_over_steps(utility, measure=measure, intervention="induce")
    own = utility[
        (utility["measure"] == measure) & (utility["intervention"] == "induce") & utility["arm"].isin(["base", "r2d2"])
    ]
    assert list(named(drawn, "r2d2").y) == list(own["value"])
    with pytest.raises(MechrefusalError, match="filter the table"):
        figures.estimates_over_steps(utility, measure=measure)


def test_linear_probes(checkpoint):
    table = checkpoint.tables["linear_probes"]
    figure = figures.linear_probes(table, target="harmful", position=-6)
    own = table[(table["target"] == "harmful") & (table["position"] == -6)]
    for name, column in (
        ("probe (95% interval)", "auc"),
        ("difference in means", "mean_auc"),
        ("shuffled labels", "shuffled_auc"),
    ):
        assert list(named(figure, name).y) == list(own[column])
    area = next(trace for trace in figure.data if trace.fill == "toself")
    assert list(area.y[:LAYERS]) == list(own["high"])
    single = figures.linear_probes(table, target="overrefused", position=-1)
    assert named(single, "probe (95% interval)").error_y.array is not None


def test_probes_without_a_value_say_why(base):
    with pytest.raises(MechrefusalError, match="too few prompts & none refused"):
        figures.linear_probes(base.tables["linear_probes"], target="refused")


def test_doses_are_small_multiples_with_dashed_controls(checkpoint):
    table = checkpoint.tables["doses"]
    for name in ("ablate", "induce"):
        figure = figures.doses(table, intervention=name)
        solid = [trace for trace in figure.data if trace.name == "the direction"]
        dashed = [trace for trace in figure.data if trace.name == "random direction"]
        assert len(solid) == len(dashed) == 5
        assert {trace.line.dash for trace in dashed} == {"dash"}
        measures = list(dict.fromkeys(table["measure"]))
        for kind, traces in ((name, solid), (f"{name}_random", dashed)):
            for measure, trace in zip(measures, traces, strict=True):
                own = table[(table["intervention"] == kind) & (table["measure"] == measure)].sort_values("coefficient")
                assert list(trace.x) == list(own["coefficient"])
                assert list(trace.y) == list(own["value"])
        assert {figure.layout[f"yaxis{n}"].title.text for n in ("", 3, 4)} == {"nats", "share", "nats a token"}


def test_transfer_is_source_by_target(run):
    table = run.across["transfer"]
    figure = figures.transfer(table)
    z = np.array(figure.data[0].z, dtype=float)
    labels = [label.rstrip("*") for label in figure.layout.yaxis.ticktext]
    assert labels == list(figure.layout.xaxis.ticktext)
    assert figure.layout.yaxis.ticktext[0] == "base 0*"
    for row in table.itertuples():
        at = labels.index(f"{row.arm_source} {row.step_source}"), labels.index(f"{row.arm_target} {row.step_target}")
        own = (row.arm_source, row.step_source) == (row.arm_target, row.step_target)
        assert own == pd.notna(row.decrease_held_out)
        np.testing.assert_equal(z[at], row.decrease_held_out if own else row.baseline_harmful - row.bypass)
        text = figure.data[0].text[at[0]][at[1]]
        said = f"prompts that did not choose it lose {wording.number(row.decrease_held_out)}"
        assert (said in text) == own
        assert "n = 32" in text
        assert "random 4.00" in text
        half = f"halves of the direction prompts take away {wording.number(row.decrease_half_low)} and "
        assert (half + wording.number(row.decrease_half_high) in text) == pd.notna(row.decrease_half_low)
        if pd.isna(row.bypass):
            assert wording.for_plotly(BROKEN) in text
            assert "halves" not in text
    dots = set(zip(figure.data[1].x, figure.data[1].y, strict=True))
    lucky = (table["decrease"] - table["decrease_held_out"]).fillna(0)
    half, low = table["decrease_half_low"] - lucky, table["decrease_held_out_low"].fillna(table["decrease_low"])
    clear = (low > table["random_decrease"]) & ((half > table["random_decrease"]) | half.isna())
    assert 0 < clear.sum() < len(table)
    noisy = figures.transfer(table.assign(decrease_half_low=table["random_decrease"] - 0.1))
    assert len(noisy.data) == 1, "a half that does no more than a random direction"
    unknown = figures.transfer(table.assign(decrease_half_low=float("nan")))
    assert len(unknown.data[1].x) == (low > table["random_decrease"]).sum()
    assert len(dots) == clear.sum()
    # The prompts' own differences decide, whatever the scores' interval.
    none = {"decrease_low": table["random_decrease"], "decrease_held_out_low": float("nan")}
    assert len(figures.transfer(table.assign(**none)).data) == 1
    wide = figures.transfer(table.assign(bypass_low=-99.0, bypass_high=99.0))
    assert set(zip(wide.data[1].x, wide.data[1].y, strict=True)) == dots
    induce = np.array(figures.transfer(table, effect="induce").data[0].z, dtype=float)
    own = table[(table["arm_source"] == "sft") & (table["step_source"] == 50) & (table["step_target"] == 100)]
    at = labels.index("sft 50"), labels.index("r2d2 100")
    assert induce[at] == own.loc[own["arm_target"] == "r2d2", "induce"].iloc[0]
    with pytest.raises(MechrefusalError, match="unknown effect"):
        figures.transfer(table, effect="kl")


def test_drift_has_intervals_and_two_floors(run):
    table = run.across["drift"]
    figure = figures.drift(table, measure="carrier_cosine")
    own = table[
        (table["measure"] == "carrier_cosine") & (table["arm_a"] == "sft") & (table["arm_b"] == "sft")
    ].sort_values("step_b")
    line = named(figure, "sft: since the anchor before")
    known = [i for i, value in enumerate(line.y) if value is not None]
    np.testing.assert_allclose([line.y[i] + line.error_y.array[i] for i in known], own["high"])
    assert set(named(figure, "random directions").y) == {0.05}
    mean = named(figures.drift(table, measure="direction_cosine"), "sft: since the anchor before")
    assert mean.error_y.array is None
    old = table.assign(low=float("nan"), high=float("nan"), random=float("nan"))
    names = [trace.name for trace in figures.drift(old, measure="carrier_cosine").data]
    assert "random directions" not in names
    assert names


def test_separability_is_a_line_a_checkpoint_with_a_band_where_there_is_one(run, checkpoint):
    table = checkpoint.tables["separability"]
    band, line = figures.separability(table).data
    drawn = table[table["layer"] > 0]
    assert list(line.x) == list(drawn["layer"])
    assert list(line.y) == pytest.approx(list(drawn["value"]))
    assert max(band.y) == pytest.approx(drawn["high"].max())
    several = figures.separability(run.together("separability")).data
    assert len(several) == len(run.checkpoints)
    assert {trace.mode for trace in several} == {"lines+markers"}


DRAWN = {
    "separability": lambda t: figures.separability(t),
    "carriers": lambda t: figures.carrier_wins(t),
    "subspaces": lambda t: figures.subspaces(t),
    "overlap": lambda t: figures.estimates(t),
    "coupling": lambda t: figures.estimates_by_layer(t, measure="cosine"),
    "linear_probes": lambda t: figures.linear_probes(t, target="harmful", position=-1),
    "doses": lambda t: figures.doses(t),
    "utility_coupling": lambda t: figures.estimates_over_steps(
        t, measure="refusal_harmful and loss_harmless", intervention="induce"
    ),
    "transfer": lambda t: figures.transfer(t),
}


@pytest.mark.parametrize("name", DRAWN)
def test_empty_and_missing_tables(run, checkpoint, name):
    table = run.across[name] if name in tables.ACROSS else checkpoint.tables[name]
    with pytest.raises(MechrefusalError, match="cannot draw"):
        DRAWN[name](table.iloc[:0])
    values = {"carriers": "win_frequency", "subspaces": "bypass", "linear_probes": "auc", "transfer": "bypass"}
    value = values.get(name, "value")
    with pytest.raises(MechrefusalError, match="cannot draw"):
        DRAWN[name](table.assign(**{value: float("nan")}))
    with pytest.raises(MechrefusalError, match="cannot draw"):
        DRAWN[name](table.assign(**{value: None}))


def test_smallest_k_of_nothing(run):
    table = run.together("subspaces")
    for empty in (table.iloc[:0], table.assign(smallest=False)):
        with pytest.raises(MechrefusalError, match="smallest subspace"):
            figures.smallest_k(empty)
