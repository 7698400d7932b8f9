"""The quick part of the calibrations: what docs/calibration.md says, in bounds that few runs allow."""

import numpy as np
import pytest

from calibration import depth, held_out, intervals, maps
from calibration.written import written

pytestmark = pytest.mark.slow


def test_verdicts_of_relocation():
    """Of 40 runs each: no move is hardly ever called one, and five layers of a sharp profile nearly always are."""
    table = depth.table(runs=40, numbers=(32,)).set_index(["profile", "true move"])
    for kind in depth.PROFILES:
        assert table.loc[(kind, 0), "moved"] <= 0.05 + 2 * 0.034
        assert table.loc[(kind, 5), "not moved"] <= 0.05 + 2 * 0.034
        assert table.loc[kind, "coverage"].mean() > 0.87
    assert table.loc[("sharp", 5), "moved"] >= 0.9
    assert table.loc[("noisy", 5), "moved"] >= 0.73
    assert table.loc[("flat", 5), "moved"] >= 0.3


def test_intervals():
    means = intervals.means(runs=150)
    skewed = means[means["values"] != "normal"]
    assert skewed["Hall"].mean() > skewed["Student"].mean()
    assert (means.loc[means["values"] == "normal", "Hall"] > 0.9).all()
    ratios = intervals.ratios(runs=150)
    assert ratios["linearised"].between(0.89, 1).all()
    assert not ratios["gap held"].between(0.89, 0.985).all()
    rates = intervals.paired_rates(runs=150)
    assert (rates["coverage"] > 0.9).all()
    assert (rates["width"] > 0).all()
    corrected = intervals.corrected_rates(runs=150)
    assert (corrected["corrected"] > 0.95 - 3 * 0.018).all()
    assert (corrected.loc[corrected["true rate"] == 0.05, "as counted"] < 0.9).all()


def test_maps():
    table = maps.table(runs=30)
    assert (table["maps of nothing with a mark"] <= 0.05 + 2 * 0.04).all()
    assert (table.loc[table["n"] == 32, "found of ten"] >= 9 - 0.5).all()
    assert (table["intervals that exclude 0"] > 5).all(), "what unadjusted intervals would mark"
    controls = maps.controls(runs=60)
    assert controls["maps of nothing with a mark"].mean() <= 0.05 + 2 * 0.01


def test_what_is_held_out_is_without_bias():
    share = held_out.table(held_out.share_of, [40], 24).iloc[0]
    assert share["own"] < -0.1
    assert abs(share["held out"]) < 0.03 + 2 * share["standard error"]
    carrier = held_out.table(held_out.carrier_of, [16], 24).iloc[0]
    assert carrier["own"] > 0.4
    assert abs(carrier["held out"]) < 0.1 + 2 * carrier["standard error"]


def test_a_section_is_a_markdown_table():
    text = written("About it.", maps.controls(runs=2))
    lines = text.splitlines()
    assert lines[0] == "About it."
    assert lines[2].startswith("| sd of log size | rotations |")
    assert len(lines) == 4 + 9
    assert np.isfinite(float(lines[4].split("|")[1]))
