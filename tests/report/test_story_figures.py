"""The figure of a run, heads over training, maps for the step slider, and figures as files."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures
from mechrefusal.report.figures import saving


def heads(run, mode="denoising"):
    table = run.together("patching")
    return table[(table["site"] == "z") & (table["mode"] == mode)]


def lines(figure, axis):
    return {t.name: t for t in figure.data if t.name and t.yaxis == axis and t.mode == "lines+markers"}


def test_the_story_has_depth_beside_refusal_and_over_refusal(run):
    carrier, rates = run.together("carrier"), run.together("rates")
    figure = figures.depth_story(carrier, rates, n_layers=30)
    for arm in ("r2d2", "sft"):
        own = carrier[carrier["arm"].isin(["base", arm])].sort_values("step")
        depth = lines(figure, "y")[arm]
        np.testing.assert_allclose(np.array(depth.y, float), own["layer"].astype(float))
        np.testing.assert_allclose(
            np.array(depth.y[1:]) + np.array(depth.error_y.array[1:], float), own["layer_high"].iloc[1:]
        )
        for axis, suite in (("y2", "evaluation_harmful"), ("y3", "overrefusal")):
            rows = rates[(rates["suite"] == suite) & (rates["metric"] == "any_refusal") & (rates["by"] == "all")]
            rows = rows[(rows["attack"] == "none") & (rows["intervention"] == "none")]
            rows = rows[rows["arm"].isin(["base", arm])].sort_values("step")
            assert list(lines(figure, axis)[arm].y) == list(rows["value"])
    crosses = [t for t in figure.data if t.marker.symbol == "x-thin-open"]
    assert len(crosses) == 2
    named = [t.name for t in figure.data if t.showlegend]
    assert named == ["r2d2", "sft"]  # each arm once, for all three panels
    assert [note.text for note in figure.layout.annotations] == [
        "Layer of the carrier", "Harmful prompts refused", "Safe prompts refused (over-refusal)",
    ]  # fmt: skip
    assert figure.layout.meta["figure"] == "depth_story"


def test_the_story_of_a_run_without_over_refusal_or_carriers(run):
    carrier, rates = run.together("carrier"), run.together("rates")
    rates = rates[rates["suite"] == "evaluation_harmful"]
    gone = pd.Series(pd.NA, carrier.index, dtype="Int64")
    figure = figures.depth_story(carrier.assign(layer=gone, layer_low=gone, layer_high=gone), rates)
    assert not lines(figure, "y")
    assert not lines(figure, "y3")
    with pytest.raises(MechrefusalError, match="cannot draw the depth of the carrier"):
        figures.depth_story(carrier.iloc[:0], rates)


def test_heads_are_followed_over_training(run):
    table = heads(run)
    figure = figures.head_lines(table, heads=[(19, 3), (20, 4)])
    assert [note.text for note in figure.layout.annotations] == ["r2d2", "sft"]
    for axis, arm in (("y", "r2d2"), ("y2", "sft")):
        own = table[(table["layer"] == 19) & (table["head"] == 3) & table["arm"].isin(["base", arm])]
        line = next(t for t in figure.data if t.name == "L19.H3" and t.yaxis == axis)
        assert list(line.y) == list(own.sort_values("step")["effect"])
        area = next(t for t in figure.data if t.fill == "toself" and t.legendgroup == "L19.H3" and t.yaxis == axis)
        assert sorted(area.y) == sorted([*own["low"], *own["high"]])
    largest = table.groupby(["layer", "head"])["effect"].apply(lambda v: v.abs().max()).nlargest(3).index
    chosen = {t.name for t in figures.head_lines(table, k=3).data if t.name}
    assert chosen == {f"L{layer}.H{head}" for layer, head in largest}
    with pytest.raises(MechrefusalError, match="several rows of one head"):
        figures.head_lines(run.together("patching"))
    with pytest.raises(MechrefusalError, match="no rows"):
        figures.head_lines(table, heads=[(99, 0)])


@pytest.fixture(scope="module")
def tables_of_run(run):
    names = ("patching", "attribution_compared", "knockout", "directions", "carriers")
    return {name: run.together(name) for name in names}


def test_maps_hold_every_checkpoint_of_an_arm_on_one_scale(run, tables_of_run):
    told = figures.maps(tables_of_run, arm="r2d2")
    json.dumps(told, allow_nan=False)
    assert told["steps"] == [0, 50, 100, 250]
    assert told["checkpoints"] == ["base-step-00000", "r2d2-step-00050", "r2d2-step-00100", "r2d2-step-00250"]
    maps = {one["name"]: one for one in told["maps"]}
    assert {"patching_heads", "noising_heads", "knockout_heads", "attribution_refusal", "bypass"} <= set(maps)
    one, table = maps["patching_heads"], heads(run)
    assert (one["kind"], one["scale"], one["x"]) == ("head", "diverging", [str(head) for head in range(9)])
    for place, (arm, step) in enumerate([("base", 0), *(("r2d2", step) for step in told["steps"][1:])]):
        own = table[(table["arm"] == arm) & (table["step"] == step)]
        for name, column in (("z", "effect"), ("low", "low"), ("high", "high")):
            expected = own.pivot(index="layer", columns="head", values=column).to_numpy(float)
            np.testing.assert_allclose(np.array(one[name][place], float), expected, rtol=1e-4)
        marked = own[own["p"] < 0.05]
        assert {tuple(cell) for cell in one["marks"][place]} == set(zip(marked["layer"], marked["head"], strict=True))
        assert one["n"][place] == own["n"].max()
    assert one["limit"] == pytest.approx(table["effect"].abs().max(), rel=1e-4)  # of all arms
    assert (
        one["limit"]
        == {m["name"]: m for m in figures.maps(tables_of_run, arm="sft")["maps"]}["patching_heads"]["limit"]
    )


def test_the_slider_goes_through_the_warm_up():
    steps = [("base", 0), ("warm-up", 40), ("r2d2", 50), ("sft", 0), ("sft", 50)]
    rows = [{"arm": arm, "step": step, "layer": 0, "position": -1, "norm": 1.0, "n_harmful": 4} for arm, step in steps]
    tables = {"directions": pd.DataFrame(rows)}
    assert figures.maps(tables, arm="r2d2")["steps"] == [0, 40, 50]
    told = figures.maps(tables, arm="sft")  # has a step 0 of its own
    assert told["checkpoints"] == ["warm-up-step-00040", "sft-step-00000", "sft-step-00050"]


def test_noising_is_centred_at_no_effect(run, tables_of_run):
    one = {m["name"]: m for m in figures.maps(tables_of_run, arm="sft")["maps"]}["noising_heads"]
    own = heads(run, "noising")
    own = own[(own["arm"] == "sft") & (own["step"] == 100)]
    expected = own.pivot(index="layer", columns="head", values="effect").to_numpy(float) - 1
    np.testing.assert_allclose(np.array(one["z"][2], float), expected, rtol=1e-4, atol=1e-9)


def test_maps_of_positions_name_tokens_safely_and_keep_gaps(tables_of_run):
    tables = dict(tables_of_run)
    tables["carriers"] = tables["carriers"][tables["carriers"]["step"] != 50]
    maps = {m["name"]: m for m in figures.maps(tables, arm="sft")["maps"]}
    stream = maps["patching_stream"]
    assert stream["x"][-1] == "−1 ↵"
    assert not any("<" in label for label in stream["x"])
    assert maps["bypass"]["z"][1] is maps["bypass"]["low"][2] is None
    assert maps["bypass"]["n"][1] is None
    own = tables["carriers"]
    own = own[(own["arm"] == "sft") & (own["step"] == 100) & own["admissible"]]
    positions = sorted(tables["carriers"]["position"].unique())
    expected = {(layer, positions.index(at)) for layer, at in zip(own["layer"], own["position"], strict=True)}
    assert {tuple(cell) for cell in maps["bypass"]["marks"][2]} == expected
    even = tables | {"carriers": tables["carriers"][tables["carriers"]["layer"] % 2 == 0]}
    sparse = {m["name"]: m for m in figures.maps(even, arm="sft")["maps"]}["bypass"]
    assert {layer for layer, _ in sparse["marks"][2]} == {layer for layer, _ in expected if layer % 2 == 0}
    assert maps["direction_norm"]["scale"] == "sequential"
    assert figures.maps({}, arm="sft") == {"arm": "sft", "steps": [], "checkpoints": [], "maps": []}


def test_a_page_of_a_figure_holds_all_it_needs(run, tmp_path):
    figure = figures.carrier_layers(run.together("carrier"))
    text = figures.save(figure, tmp_path / "layers.html").read_text(encoding="utf-8")
    assert "Layer of the carrier over training" in text
    assert '<script src="' not in text
    assert len(text) > 1_000_000  # plotly itself


def test_what_a_picture_lacks_is_named(run, tmp_path, monkeypatch):
    figure = figures.carrier_layers(run.together("carrier"))
    with pytest.raises(MechrefusalError, match=r"cannot save a figure as 'x.gif': expected .html or one of .svg"):
        figures.save(figure, tmp_path / "x.gif")
    monkeypatch.setattr(saving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MechrefusalError, match=r"package kaleido; run pip install 'mechrefusal\[pictures\]'"):
        figures.save(figure, tmp_path / "x.svg")
    monkeypatch.setattr(saving.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("BROWSER_PATH", "/no/browser")
    with pytest.raises(MechrefusalError, match="there is none at /no/browser"):
        figures.save(figure, tmp_path / "x.svg")
    monkeypatch.delenv("BROWSER_PATH")
    monkeypatch.setattr(saving.shutil, "which", lambda name: None)
    with pytest.raises(MechrefusalError, match="name it in BROWSER_PATH"):
        figures.save(figure, tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_is_drawn(run, tmp_path, kind):
    if not shutil.which("chromium") and not os.environ.get("BROWSER_PATH"):
        pytest.skip("no Chromium")
    pytest.importorskip("kaleido", reason="kaleido draws pictures, and is optional")
    path = figures.save(figures.carrier_layers(run.together("carrier")), tmp_path / f"layers.{kind}")
    start = path.read_bytes()[:200]
    assert (b"<svg" in start) if kind == "svg" else start.startswith(b"\x89PNG")
