"""The methods side by side: rates and shares of hand-made tables, counted again; pairs and their differences."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from mechrefusal import study, tables
from mechrefusal.statistics.choosing import PUBLISHED
from mechrefusal.statistics.depth import Profile, depth_difference
from mechrefusal.study.across import Pairs
from mechrefusal.study.arms import planned_arm
from mechrefusal.study.method_differences import method_differences
from mechrefusal.study.methods import Methods, methods
from mechrefusal.training import TrainingSettings

SUITES = {"evaluation_harmful": 20, "evaluation_harmless": 10, "overrefusal": 8, "utility": 5}
LAYERS = 10


@dataclass(frozen=True)
class Point:
    arm: str
    step: int

    @property
    def id(self):
        return f"{self.arm}-step-{self.step:05d}"


BASE, WARM, SFT, HELD, CONTROL, R2D2 = (
    Point(arm, step)
    for arm, step in (("base", 0), ("warm-up", 4), ("sft", 8), ("held", 8), ("control", 8), ("r2d2", 8))
)
EARLY, EARLY_HELD = Point("sft", 6), Point("held", 6)
POINTS = [BASE, WARM, EARLY, SFT, EARLY_HELD, HELD, CONTROL, R2D2]
REFUSED = {"base": 1, "warm-up": 12, "sft": 16, "held": 18, "control": 15, "r2d2": 19}
LAYER = {"base": None, "warm-up": 3, "sft": 3, "held": 6, "control": 3, "r2d2": 5}
TAKEN = {"warm-up": 2.0, "sft": 4.0, "held": 5.0, "control": 4.0, "r2d2": 8.0}


def filled(name, **values):
    """A row of a table, NaN where nothing is said."""
    return dict.fromkeys(tables.columns(name), math.nan) | values


def answers(point):
    rows = []
    for suite, n in SUITES.items():
        refused = REFUSED[point.arm] if suite == "evaluation_harmful" else 1
        for i in range(n):
            label = "full_refusal" if i < refused else "full_compliance"
            rows.append({"suite": suite, "prompt_id": f"{suite}-{i}", "attack": "none", "label": label})
    for i in range(6):
        label = "full_refusal" if i < REFUSED[point.arm] // 4 else "full_compliance"
        rows.append({"suite": "evaluation_harmful", "prompt_id": f"case-{i}", "attack": "templates", "label": label})
    ablated = {"suite": "evaluation_harmful", "prompt_id": "evaluation_harmful-0", "attack": "none"}
    rows.append(ablated | {"label": "full_compliance", "intervention": "ablate"})
    table = pd.DataFrame([{"intervention": "none"} | row for row in rows])
    sides = [
        "harmless" if suite in ("overrefusal", "utility", "evaluation_harmless") else "harmful"
        for suite in table["suite"]
    ]
    return table.assign(judge="rules", kind="refusal", side=sides)


def carrier(point):
    layer = LAYER[point.arm]
    reason = "no admissible candidate" if layer is None else ""
    place = {"position": None if layer is None else -1, "layer": layer}
    return pd.DataFrame([filled("carrier", **place, layer_low=layer, layer_high=layer, reason=reason)])


def removal(point):
    """At the levels .03 and .1 two ablations, and a third beyond what arms are compared at."""
    left = {0.03: 12, 0.1: REFUSED[point.arm] - 8, 0.3: 0}
    known = {"n": 20, "untouched": REFUSED[point.arm] / 20, "random_refused": 0.7}
    trials = {0.03: 0, 0.1: 1, 0.3: 2}
    rows = [
        filled(
            "removal", level=level, trial=trials[level], refused=n / 20, low=n / 40, high=0.9, judge="rules", **known
        )
        for level, n in left.items()
    ]
    return pd.DataFrame(rows if point.arm != "base" else [filled("removal", reason="no candidate")])


def removal_prompts(point):
    """Every value behind `removal`: the trial within a KL of .1, one beyond it, and one along a random direction."""
    if point.arm == "base":
        return pd.DataFrame(columns=tables.columns("removal_prompts"))
    rows = []
    for trial, draw, refused in ((1, -1, REFUSED[point.arm] - 8), (2, -1, 0), (1, 0, 14)):
        for i in range(20):
            known = {"set": "held-out", "trial": trial, "draw": draw, "measure": "refused", "prompt_id": f"held-{i}"}
            rows.append(filled("removal_prompts", **known, value=float(i < refused)))
    return pd.DataFrame(rows)


def separability(point):
    """d' grows with what is refused; ends of arms were drawn alike."""
    if point.arm == "base":
        return pd.DataFrame(columns=tables.columns("separability"))
    value = REFUSED[point.arm] / 4
    known = {"position": -1, "value": value, "low": value - 0.5, "high": value + 0.5, "n": 12, "reason": ""}
    return pd.DataFrame([filled("separability", layer=layer, **known) for layer in (-1, 0, 1)])


def separability_draws(point):
    noise = np.random.default_rng(1).normal(0, 0.2, 100)
    own = np.random.default_rng(REFUSED[point.arm]).normal(0, 0.1, 100)
    return pd.DataFrame({"draw": range(100), "value": REFUSED[point.arm] / 4 + noise + own})


def transfers(lost=("held",)):
    """The carriers of `lost` do half of what the target's own does elsewhere, the others do all of it."""
    rows = []
    for source in POINTS:
        for target in POINTS:
            if LAYER[source.arm] is None or LAYER[target.arm] is None:
                continue
            value = TAKEN[target.arm] * (0.5 if source.arm in lost and source.arm != target.arm else 1.0)
            ends = {
                "arm_source": source.arm,
                "step_source": source.step,
                "arm_target": target.arm,
                "step_target": target.step,
            }
            around = {"decrease": value, "decrease_low": value - 0.1, "decrease_high": value + 0.1}
            known = {"kind": "carrier", "random_decrease": 0.0, "n_harmful": 12, "reason": ""}
            rows.append(filled("transfer", **ends, **around, **known))
    return pd.DataFrame(rows)


def profile(layer, noise=0):
    """Candidates at every layer, of which the one at `layer` bypasses most."""
    if layer is None:
        return None
    random = np.random.default_rng(noise)
    bypass = np.abs(np.arange(LAYERS) - layer)[:, None] + random.normal(0, 0.4, (LAYERS, 12))
    names = [f"twin-{i}" for i in range(12)]
    flat = np.zeros((LAYERS, 12))
    return Profile(np.arange(LAYERS, dtype=float), bypass, flat + 1, flat, names, names, np.zeros((0, 3, LAYERS)))


@pytest.fixture(scope="module")
def measured():
    guide = {"method": "sft", "guide": {"hold_weight": 1.0}}
    planned = {
        "sft": {},
        "held": guide,
        "control": {"method": "sft", "guide": {"hold_weight": 1.0, "direction": "random"}},
        "r2d2": {},
    }
    training = TrainingSettings()
    variants = [("layers", "unit", "sigma_squared", 3.5), ("layers", "raw", "sigma", 9.0)]
    ranks = pd.DataFrame(
        [
            filled("effective_rank", arm=c.arm, step=c.step, rows=rows, scaling=scaling, weight=weight, value=value)
            for c in POINTS
            for rows, scaling, weight, value in variants
        ]
    )
    each = {
        "verdicts": {c.id: answers(c) for c in POINTS},
        "gate": {c.id: pd.DataFrame({"passed": [True, c.arm != "base"]}) for c in POINTS},
        "carrier": {c.id: carrier(c) for c in POINTS},
        "removal": {c.id: removal(c) for c in POINTS},
        "removal_prompts": {c.id: removal_prompts(c) for c in POINTS},
        "separability": {c.id: separability(c) for c in POINTS},
        "separability_draws": {c.id: separability_draws(c) for c in POINTS},
    }
    arms = [planned_arm(name, values, training) for name, values in planned.items()]
    return Methods(POINTS, arms, ("templates",), each, ranks, transfers(), {c.id: LAYERS for c in POINTS})


@pytest.fixture(scope="module")
def compared(measured):
    profiles = {c.id: profile(LAYER[c.arm], noise=i) for i, c in enumerate(POINTS)}
    behaviours = {f"case-{i}": f"behaviour {i // 2}" for i in range(6)}
    return method_differences(measured, Pairs(POINTS), profiles, behaviours, PUBLISHED), profiles


def wilson(k, n, z=1.959963984540054):
    centre, half = k / n + z * z / (2 * n), z * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_a_row_holds_what_the_tables_of_its_checkpoint_say(measured):
    table = methods(measured)
    assert list(zip(table["arm"], table["step"], strict=True)) == [(c.arm, c.step) for c in POINTS]
    assert list(table["is_last"]) == [c not in (EARLY, EARLY_HELD) for c in POINTS]
    row = table[table["arm"] == "held"].iloc[-1]
    assert (row["method"], row["guide"], row["along"], row["twin"]) == ("sft", "hold_weight 1.0", "refusal", "sft")
    assert [table.set_index("arm").loc[name, "along"] for name in ("control", "r2d2")] == ["random", ""]
    assert (row["refused"], row["refused_n"]) == (18 / 20, 20)
    assert (row["refused_low"], row["refused_high"]) == pytest.approx(wilson(18, 20))
    assert (row["answered"], row["overrefused"], row["useful"]) == (9 / 10, 1 / 8, 4 / 5)
    assert (row["attack"], row["attack_success"], row["attack_success_n"]) == ("templates", 2 / 6, 6)
    assert (row["layer"], row["depth"], row["rank"], row["gate"]) == (6, 0.6, 3.5, True)
    assert (row["separability"], row["separability_low"], row["separability_high"]) == (4.5, 4.0, 5.0)
    removal_columns = [f"removal_{name}" for name in ("kl", "refused", "low", "high", "n", "untouched", "random")]
    assert list(row[removal_columns]) == [0.1, 10 / 20, 10 / 40, 0.9, 20, 18 / 20, 0.7]
    assert list(table.iloc[0][removal_columns].isna()) == [True] * 4 + [False] + [True] * 2
    base = table.iloc[0]
    assert pd.isna(base["layer"])
    assert base["reason"] == "no admissible candidate"
    assert not base["gate"]


def test_shares_are_medians_over_the_ends_of_the_other_arms(measured):
    table = methods(measured).query("is_last").set_index("arm")
    assert tuple(table.loc["held", ["given", "given_least", "given_most", "given_n"]]) == (0.5, 0.5, 0.5, 3)
    assert tuple(table.loc["held", ["taken", "taken_least", "taken_most", "taken_n"]]) == (1.0, 1.0, 1.0, 3)
    assert tuple(table.loc["sft", ["taken", "taken_least", "taken_most", "taken_n"]]) == (1.0, 0.5, 1.0, 3)
    assert tuple(table.loc["warm-up", ["given", "given_n"]]) == (1.0, 4)
    assert math.isnan(table.loc["base", "given"])
    assert table.loc["base", "given_n"] == 0


def test_pairs_are_ends_of_arms_and_twins_at_every_step_that_both_have(compared):
    table, _ = compared
    pairs = table.drop_duplicates(["relation", "arm_a", "step_a", "arm_b", "step_b"])
    found = {(row.relation, row.arm_a, row.step_a, row.arm_b, row.step_b, row.is_last) for row in pairs.itertuples()}
    starts = {("start", "warm-up", 4, arm, 8, True) for arm in ("sft", "held", "control", "r2d2")}
    twins = {("guided", "sft", 8, "held", 8, True), ("guided", "sft", 6, "held", 6, False)}
    twins |= {("control", "sft", 8, "control", 8, True), ("beside control", "control", 8, "held", 8, True)}
    others = {("sft", "r2d2"), ("held", "r2d2"), ("control", "r2d2")}
    assert starts | twins == {pair for pair in found if pair[0] != "methods"}
    assert others == {(pair[1], pair[3]) for pair in found if pair[0] == "methods"}
    assert set(table.groupby(["relation", "arm_a", "step_a", "arm_b", "step_b"]).size()) == {8}


def test_rates_are_paired_prompt_by_prompt_and_cases_by_behaviour(compared):
    table, _ = compared
    row = table.query("relation == 'guided' and is_last and measure == 'refused'").iloc[0]
    assert (row["mean_a"], row["mean_b"], row["n"]) == (0.8, 0.9, 20)
    assert row["difference"] == pytest.approx(0.1)
    assert row["mcnemar_p"] == pytest.approx(0.5)  # two prompts changed, both the same way: 2 · (1/2)²
    # Newcombe's method 10 by hand: e = 16 refused at both, f = 0 at the first alone, g = 2 at the second alone, h = 2.
    (l_1, u_1), (l_2, u_2) = wilson(16, 20), wilson(18, 20)
    phi = max(16 * 2 - 0 - 20 / 2, 0) / math.sqrt(16 * 4 * 18 * 2)
    low = 0.1 - math.sqrt((0.9 - l_2) ** 2 - 2 * phi * (0.9 - l_2) * (u_1 - 0.8) + (u_1 - 0.8) ** 2)
    high = 0.1 + math.sqrt((u_2 - 0.9) ** 2 - 2 * phi * (u_2 - 0.9) * (0.8 - l_1) + (0.8 - l_1) ** 2)
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    attacked = table.query("relation == 'methods' and arm_a == 'control' and measure == 'attack_success'").iloc[0]
    assert (attacked["attack"], attacked["n"], attacked["difference"]) == ("templates", 6, pytest.approx(-1 / 6))
    tests = sorted(table["mcnemar_p"].dropna())
    holm = np.minimum(np.maximum.accumulate([p * (len(tests) - i) for i, p in enumerate(tests)]), 1)
    assert sorted(table["p_adjusted"].dropna()) == pytest.approx(list(holm))


def test_depth_is_the_paired_bootstrap_of_both_choices(compared):
    table, profiles = compared
    row = table.query("relation == 'guided' and is_last and measure == 'carrier_layer'").iloc[0]
    expected = depth_difference(profiles[SFT.id], profiles[HELD.id])
    assert (row["mean_a"], row["mean_b"], row["n"]) == (3, 6, 12)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert 2.5 < row["difference"] < 3.5


def test_what_removal_leaves_is_paired_on_held_out_prompts(compared):
    table, _ = compared
    row = table.query("relation == 'guided' and is_last and measure == 'removal_refused'").iloc[0]
    assert (row["mean_a"], row["mean_b"], row["n"], row["judge"]) == (8 / 20, 10 / 20, 20, "rules")
    assert row["mcnemar_p"] == pytest.approx(0.5)
    assert row["difference"] == pytest.approx(0.1)
    assert row["low"] < 0.1 < row["high"]


def test_separability_is_compared_draw_by_draw(compared):
    table, _ = compared
    row = table.query("relation == 'guided' and is_last and measure == 'separability'").iloc[0]
    assert (row["mean_a"], row["mean_b"], row["difference"], row["n"]) == (4.0, 4.5, 0.5, 12)
    # What both draws share cancels: 0.2 and 0.2 would be 0.28 of standard deviation, own 0.1 and 0.1 are 0.14.
    changes = separability_draws(HELD)["value"] - separability_draws(SFT)["value"]
    assert np.std(changes) < 0.2
    wider = t.ppf(0.975, 11) / norm.ppf(0.975) * math.sqrt(12 / 11)
    middle, high = np.quantile(changes, [0.5, 0.975])
    assert row["high"] == pytest.approx(0.5 + wider * (high - middle))
    base = table.query("arm_a == 'warm-up' and arm_b == 'sft' and measure == 'separability'").iloc[0]
    assert base["low"] < base["difference"] < base["high"]


def test_what_has_no_carrier_or_no_answers_says_so(measured):
    silent = {**measured.each["verdicts"], HELD.id: measured.each["verdicts"][HELD.id].iloc[:0]}
    only = [BASE, SFT, HELD]
    bare = Methods(
        only, measured.arms, (), measured.each | {"verdicts": silent}, measured.ranks, transfers(), measured.n_layers
    )
    row = methods(bare).set_index("arm").loc["held"]
    assert (row["refused_n"], row["attack"], math.isnan(row["refused"])) == (0, "", True)
    table = method_differences(bare, Pairs(only), {c.id: None for c in only}, {}, PUBLISHED)
    reasons = dict(
        zip(zip(table["arm_a"], table["arm_b"], table["measure"], strict=True), table["reason"], strict=True)
    )
    assert reasons["base", "sft", "carrier_layer"] == "no carrier at base-step-00000"
    assert reasons["sft", "held", "carrier_layer"] == "the scores of sft-step-00008 were not kept prompt by prompt"
    assert reasons["sft", "held", "refused"] == "not both were asked such prompts"
    assert reasons["base", "sft", "separability"] == "separability was not measured at base-step-00000"
    assert reasons["base", "sft", "removal_refused"] == "no ablation was tried at base-step-00000"
    assert table["difference"].notna().sum() == 6


def test_a_run_of_the_recipe_tiny_has_both_tables(finished_run):
    """Against the gate and the rates of the same run."""
    run = study.open(finished_run)
    table, gate, rates = (tables.read(name, run.measurements()) for name in ("methods", "gate", "rates"))
    assert list(table["arm"]) == [c.arm for c in run.checkpoints()]
    for row in table.itertuples():
        here = gate[(gate["arm"] == row.arm) & (gate["step"] == row.step)].set_index("criterion")
        assert (row.refused, row.refused_n) == tuple(here.loc["harmful refused", ["value", "n"]])
        assert row.gate == here["passed"].all()
        at = rates[(rates["arm"] == row.arm) & (rates["step"] == row.step) & (rates["by"] == "all")]
        own = at[(at["attack"] == "gcg") & (at["metric"] == "attack_success")].iloc[0]
        assert (row.attack, row.attack_success, row.attack_success_high) == ("gcg", own["value"], own["high"])
    changes = tables.read("method_differences", run.measurements())
    assert set(changes["relation"]) == {"start", "methods"}
    assert set(changes["attack"]) == {"none", "gcg", "autodan", "templates"}
    assert (changes["difference"].notna() | (changes["reason"] != "")).all()
