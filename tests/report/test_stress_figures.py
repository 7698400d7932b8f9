"""Figures of stress tests draw the numbers of their tables, and escape every name."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic import HOSTILE

from mechrefusal import report, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import figures, wording
from mechrefusal.statistics import intervals

POINTS = [("base", 0), ("sft", 50), ("sft", 100), ("r2d2", 50), ("r2d2", 100)]
STEPS = {"gcg": (0, 1, 3, 6, 16, 40, 100, 250), "autodan": (0, 1, 2)}
JUDGES = ("harm_1", "refusal_1")
N = 20


def rate(rng, *, nulls: int = 0) -> dict:
    n = N - nulls
    return {**vars(intervals.rate(int(rng.integers(0, n + 1)) if n else 0, n)), "nulls": nulls}


@pytest.fixture
def curve() -> pd.DataFrame:
    """Five checkpoints, two methods; one point without a verdict."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "arm": arm,
            "step": step,
            "method": method,
            "attack_step": attack_step,
            "judge": judge,
            **rate(rng, nulls=N if (arm, step, attack_step, judge) == ("sft", 100, 1, "harm_1") else 2),
            "loss": 3 - 0.01 * attack_step,
            "forward_tokens": 15_000.0 * (1 + attack_step),
        }
        for judge in JUDGES
        for arm, step in POINTS
        for method, steps in STEPS.items()
        for attack_step in steps
    ]
    return tables.frame("stress", rows)


@pytest.fixture
def transfer() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    sources = [("none", -1, "none"), *((arm, step, method) for method in STEPS for arm, step in POINTS)]
    rows = [
        {
            "arm_source": source,
            "step_source": from_step,
            "arm_target": target,
            "step_target": at_step,
            "method": method,
            "judge": judge,
            **rate(rng, nulls=int(judge == "harm_1")),
        }
        for judge in JUDGES
        for target, at_step in POINTS
        for source, from_step, method in sources
    ]
    return tables.frame("stress_transfer", rows)


SHARES = ("robust", "refuses_suffix", "attack_success")


@pytest.fixture
def control() -> pd.DataFrame:
    """Five checkpoints, two judges of success, one of twins; 1 to 5 of 20 cases have a degenerate twin."""
    rows = []
    for judge in JUDGES:
        for place, (arm, step) in enumerate(POINTS):
            counts = dict(zip(SHARES, (9 - place, 3, 7), strict=True))
            known = {"arm": arm, "step": step, "method": "gcg", "twin_judge": "refusal_1", "nulls": 0}
            rows += [
                {**known, "suffix": "attacked", "metric": name, "judge": judge, **vars(intervals.rate(count, N))}
                for name, count in counts.items()
            ]
            if judge == "refusal_1":
                rows += [
                    {**known, "suffix": suffix, "metric": metric, "judge": judge, **vars(intervals.rate(count, N))}
                    for suffix, refused in (("none", 1), ("attacked", 5))
                    for metric, count in (("refused", refused), ("answered", N - refused))
                ]
    return tables.frame("stress_control", rows)


def lines(figure):
    """The lines of checkpoints, without bands: {(panel, name): trace}."""
    return {(trace.xaxis, trace.name): trace for trace in figure.data if trace.name}


def texts_of(value) -> list[str]:
    """All strings of a figure but its template's."""
    if isinstance(value, dict):
        return [text for name, each in value.items() if name != "template" for text in texts_of(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts_of(each)]
    return [value] if isinstance(value, str) else []


def tags(figure) -> set[str]:
    found = json.loads(figure.to_json())
    return {part.lstrip("/").split(">")[0].split(" ")[0] for text in texts_of(found) for part in text.split("<")[1:]}


def test_notebook_names_are_exported():
    assert {"stress_curves", "stress_matrix", "stress_shares"} <= set(report.figures.__all__)


@pytest.mark.parametrize("judge", JUDGES)
def test_every_point_of_the_curve_is_drawn(curve, judge):
    figure = figures.stress_curves(curve, judge=judge)
    drawn = lines(figure)
    assert len(drawn) == len(POINTS) * 2
    assert [note.text for note in figure.layout.annotations] == ["gcg", "autodan"]
    for axis, method in (("x", "gcg"), ("x2", "autodan")):
        for arm, step in POINTS:
            rows = curve[
                (curve["judge"] == judge)
                & (curve["method"] == method)
                & (curve["arm"] == arm)
                & (curve["step"] == step)
            ]
            trace = drawn[axis, f"{arm} {step}"]
            assert [float("nan") if y is None else y for y in trace.y] == pytest.approx(
                list(rows["value"]), nan_ok=True
            )
            steps = STEPS[method]
            assert list(trace.x) == pytest.approx(np.log2(1 + np.array(steps)) if method == "gcg" else steps)
            for text, row in zip(trace.text, rows.itertuples(), strict=True):
                assert f"{arm} {step}, attack step {row.attack_step}" in text
                assert f"success {wording.rate(row.value)}" in text
                assert f"target loss {row.loss:.3f} nats a token" in text
                assert f"{wording.grouped(row.forward_tokens)} tokens run forward a case" in text
                assert f"n = {row.n} cases, {row.nulls} without a verdict" in text
    assert list(figure.layout.xaxis.ticktext) == [str(step) for step in STEPS["gcg"]]
    assert figure.layout.xaxis.title.text == "attack step, logarithmic"
    assert figure.layout.xaxis2.title.text == "attack step"
    assert f"judge: {judge}" in figure.layout.title.subtitle.text


def test_bands_are_the_intervals_and_leave_out_what_has_no_value(curve):
    figure = figures.stress_curves(curve)  # the first judge by name: harm_1
    bands = [trace for trace in figure.data if not trace.name]
    assert len(bands) == len(POINTS) * 2
    assert {trace.legendgroup for trace in bands} == {f"{arm} {step}" for arm, step in POINTS}
    for trace in bands:
        arm, step = trace.legendgroup.split()
        method = "autodan" if trace.xaxis == "x2" else "gcg"
        own = curve[(curve["judge"] == "harm_1") & (curve["method"] == method) & curve["value"].notna()]
        own = own[(own["arm"] == arm) & (own["step"] == int(step))]
        assert list(trace.y) == pytest.approx([*own["high"], *reversed(list(own["low"]))])


def test_each_checkpoint_has_one_look_and_one_entry_in_the_legend(curve):
    figure = figures.stress_curves(curve)
    looks = {}
    for (_, name), trace in lines(figure).items():
        looks.setdefault(name, set()).add((trace.line.color, trace.line.dash, trace.opacity))
    assert all(len(each) == 1 for each in looks.values())
    assert len({look for each in looks.values() for look in each}) == len(POINTS)
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["base 0", "r2d2 50", "r2d2 100", "sft 50", "sft 100"]


def test_an_attack_of_no_steps_has_a_bar_for_a_band(curve):
    rows = curve[(curve["attack_step"] == 0) & (curve["method"] == "gcg") & (curve["judge"] == "refusal_1")]
    figure = figures.stress_curves(rows)
    assert len(figure.data) == len(POINTS)
    for trace in figure.data:
        arm, step = trace.name.split()
        row = rows[(rows["arm"] == arm) & (rows["step"] == int(step))].iloc[0]
        assert trace.error_y.array[0] == pytest.approx(row["high"] - row["value"])
        assert trace.error_y.arrayminus[0] == pytest.approx(row["value"] - row["low"])


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("judge", JUDGES)
def test_the_matrix_is_source_by_target(transfer, method, judge):
    figure = figures.stress_matrix(transfer, method=method, judge=judge)
    heat = figure.data[0]
    sources, targets = list(figure.layout.yaxis.ticktext), list(figure.layout.xaxis.ticktext)
    assert sources == ["no attack", "base 0", "r2d2 50", "r2d2 100", "sft 50", "sft 100"]
    assert targets == sources[1:]
    rows = transfer[(transfer["judge"] == judge) & transfer["method"].isin([method, "none"])]
    assert len(rows) == len(sources) * len(targets)
    for row in rows.itertuples():
        source = "no attack" if row.step_source == -1 else f"{row.arm_source} {row.step_source}"
        at = sources.index(source), targets.index(f"{row.arm_target} {row.step_target}")
        assert heat.z[at[0]][at[1]] == row.value
        assert heat.text[at[0]][at[1]] == f"{wording.rate(row.value)}<br>n {row.n}"
        hover = heat.hovertext[at[0]][at[1]]
        assert f"n = {row.n} cases{', 1 without a verdict' if judge == 'harm_1' else ''}" in hover
        assert ("its own cases" in hover) == (source == targets[at[1]])
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.title.text == f"Where {method} attacks made against one checkpoint succeed"


def test_what_was_not_replayed_and_what_has_no_verdict(transfer):
    rows = transfer[(transfer["judge"] == "refusal_1") & (transfer["method"] == "gcg")]
    rows = rows[~((rows["arm_source"] == "base") & (rows["arm_target"] == "sft"))]
    gone = (rows["arm_source"] == "sft") & (rows["arm_target"] == "base") & (rows["step_source"] == 50)
    rows = rows.assign(value=rows["value"].where(~gone), n=rows["n"].where(~gone, 0), nulls=np.where(gone, N, 0))
    heat = figures.stress_matrix(rows).data[0]
    assert heat.hovertext[0][3] == "not measured"
    assert heat.text[0][3] == ""
    assert heat.text[3][0] == "–<br>n 0"
    assert f"n = 0 cases, {N} without a verdict" in heat.hovertext[3][0]
    assert np.isnan([heat.z[0][3], heat.z[3][0]]).all()


@pytest.mark.parametrize("judge", JUDGES)
def test_shares_of_every_checkpoint_are_stacked_to_one(control, judge):
    figure = figures.stress_shares(control, judge=judge)
    assert list(figure.layout.yaxis.ticktext) == ["base 0", "r2d2 50", "r2d2 100", "sft 50", "sft 100"]
    assert [bar.name.split(":")[0] for bar in figure.data] == [
        "robust",
        "refuses the suffix",
        "attack succeeds",
        "fails, the twin's answer is degenerate",
    ]
    assert figure.layout.barmode == "stack"
    order = [0, 3, 4, 1, 2]
    for bar, metric in zip(figure.data, SHARES, strict=False):
        for x, text, place in zip(bar.x, bar.hovertext, order, strict=True):
            arm, step = POINTS[place]
            row = control[(control["arm"] == arm) & (control["step"] == step) & (control["metric"] == metric)]
            row = row[row["judge"] == judge].iloc[0]
            assert x == pytest.approx(row["value"])
            assert f"[{row['low']:.3f}, {row['high']:.3f}]" in text
            assert f"n = {N} cases" in text
            assert "twins refused without → with the suffix: 0.05 → 0.25" in text
    for values in zip(*(bar.x for bar in figure.data), strict=True):
        assert sum(values) == pytest.approx(1)
    assert f"judge: {judge}" in figure.layout.title.subtitle.text
    assert "n = 20 cases with a harmless twin" in figure.layout.title.subtitle.text
    assert figure.layout.title.text == "What becomes of gcg attacks: refused for the request, or for the suffix"


def test_a_checkpoint_without_a_verdict_has_no_bar(control):
    gone = (control["arm"] == "sft") & (control["step"] == 50)
    rows = control.assign(value=control["value"].where(~gone), n=control["n"].where(~gone, 0))
    for bar in figures.stress_shares(rows).data:
        assert bar.x[3] is None
        assert all(x is not None for place, x in enumerate(bar.x) if place != 3)
    whole = control[control["arm"] == "base"]
    whole = whole.assign(value=whole["value"].where(whole["metric"] != "robust", 0.5))
    assert len(figures.stress_shares(whole).data) == 3, "nothing is left over"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_are_escaped_wherever_they_stand(curve, transfer, control, hostile):
    names = {"method": hostile, "judge": hostile}
    attacked = transfer[transfer["arm_source"] != "none"].drop_duplicates(
        ["arm_source", "step_source", "arm_target", "step_target"]
    )
    drawn = [
        figures.stress_curves(curve.assign(arm=hostile, **names)),
        figures.stress_matrix(attacked.assign(arm_source=hostile, arm_target=hostile, **names)),
        figures.stress_shares(control.iloc[:7].assign(arm=hostile, twin_judge=hostile, **names)),
    ]
    for figure in drawn:
        assert tags(figure) <= {"b", "br"}


def test_empty_missing_and_nullable_tables(curve, transfer, control):
    for draw, table in (
        (figures.stress_curves, curve),
        (figures.stress_matrix, transfer),
        (figures.stress_shares, control),
    ):
        for undrawable in (table.iloc[:0], table.assign(value=float("nan")), table.assign(value=None)):
            with pytest.raises(MechrefusalError, match="cannot draw"):
                draw(undrawable)
        with pytest.raises(MechrefusalError, match="cannot draw"):
            draw(table, judge="nobody")
        nullable = table.convert_dtypes()
        assert json.loads(draw(nullable).to_json())["data"] == json.loads(draw(table).to_json())["data"]
    with pytest.raises(MechrefusalError, match="cannot draw the transfer of 'nothing' cases"):
        figures.stress_matrix(transfer[transfer["method"] != "none"], method="nothing")
