from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_directions import constant, from_activations

from mechrefusal import tables
from mechrefusal.geometry import drift as measures
from mechrefusal.models import Checkpoint
from mechrefusal.study import across

D_MODEL, N_LAYERS = 6, 3


def _carriers(winner: tuple[int, int] | None) -> pd.DataFrame:
    rows = [
        {"position": p, "layer": layer, "bypass": 0.0, "induce": 0.0, "kl": 0.0, "exact": True}
        for p in (-2, -1)
        for layer in range(N_LAYERS)
    ]
    table = pd.DataFrame(rows)
    table["admissible"] = [(r["position"], r["layer"]) == winner for r in rows]
    table["rejected_because"], table["exact"] = "", True
    table["winner"] = table["admissible"]
    return table


def _study():
    random = np.random.default_rng(0)
    base = random.normal(size=(2, N_LAYERS, D_MODEL))
    turned = base.copy()
    turned[1, 2] = 0
    turned[1, 2, 0], base[1, 2] = 1, np.eye(D_MODEL)[1]
    points = [
        Checkpoint("base", 0, Path(), "w0"),
        Checkpoint("sft", 5, Path(), "w1"),
        Checkpoint("r2d2", 5, Path(), "w2"),
    ]
    directions = {points[0].id: constant(base, weights="w0"), points[1].id: constant(turned, weights="w1")}
    directions[points[2].id] = constant(turned, weights="w2")
    carriers = {points[0].id: _carriers((-1, 2)), points[1].id: _carriers((-1, 2)), points[2].id: _carriers(None)}
    return points, directions, carriers


def drift(points, directions, carriers, **named):
    return across.drift(across.Pairs(points, **named), directions, carriers)


def test_drift_compares_anchors_of_an_arm_and_arms_at_a_step():
    table = drift(*_study())
    pairs = {(row.arm_a, row.arm_b) for row in table.itertuples()}
    assert pairs == {("base", "sft"), ("base", "r2d2"), ("sft", "r2d2")}
    found = table[(table["arm_a"] == "base") & (table["arm_b"] == "sft")].set_index(["measure", "layer"])
    # The winner at (-1, 2) was turned by a right angle; everything else stayed.
    assert abs(found.loc[("carrier_cosine", -1), "value"]) < 1e-12
    assert abs(found.loc[("direction_cosine", 2), "value"]) < 1e-12
    np.testing.assert_allclose(found.loc[("direction_cosine", 0), "value"], 1)
    np.testing.assert_allclose(found.loc[("principal_angle_max", -1), "value"], 90)
    np.testing.assert_allclose(found.loc[("principal_angle_max", 0), "value"], 0, atol=1e-5)
    np.testing.assert_allclose(found.loc[("carrier_cosine", -1), "floor"], 1)


def named(*ids):
    """Checkpoints by `arm-step`."""
    parts = [each.rsplit("-", 1) for each in ids]
    return [Checkpoint(arm, int(step), Path(), each) for (arm, step), each in zip(parts, ids, strict=True)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["base-0"], []),
        (["base-0", "warm-up-2"], ["base-0 warm-up-2"]),
        (["base-0", "sft-4"], ["base-0 sft-4"]),
        (
            ["base-0", "sft-4", "sft-8", "r2d2-4", "r2d2-8"],
            [
                "base-0 sft-4", "sft-4 sft-8", "base-0 sft-8", "base-0 r2d2-4", "r2d2-4 r2d2-8", "base-0 r2d2-8",
                "sft-4 r2d2-4", "sft-8 r2d2-8",
            ],
        ),
        (
            ["base-0", "warm-up-2", "sft-4", "sft-8", "r2d2-4", "r2d2-8"],
            [
                "base-0 warm-up-2", "warm-up-2 sft-4", "sft-4 sft-8", "warm-up-2 sft-8", "warm-up-2 r2d2-4",
                "r2d2-4 r2d2-8", "warm-up-2 r2d2-8", "sft-4 r2d2-4", "sft-8 r2d2-8",
            ],
        ),
        (["base-0", "warm-up-2", "sft-4"], ["base-0 warm-up-2", "warm-up-2 sft-4"]),
        # Steps that one arm alone has are compared with that arm's own.
        (
            ["base-0", "sft-4", "r2d2-8"],
            ["base-0 sft-4", "base-0 r2d2-8", "sft-4 r2d2-8"],
        ),
    ],
)  # fmt: skip
def test_what_is_compared_with_what(given, expected):
    """After a warm-up every arm starts from its end, and the base is compared with that end alone."""
    assert [f"{a.weights} {b.weights}" for a, b in across.Pairs(named(*given))] == expected


def test_drift_without_a_carrier_is_a_row_that_says_so():
    table = drift(*_study())
    row = table[(table["arm_b"] == "r2d2") & (table["measure"] == "carrier_cosine")].iloc[0]
    assert np.isnan(row["value"])
    assert row["reason"] == "no carrier at one of the two"


def test_without_noise_of_the_prompts_the_interval_is_a_point_and_the_floor_is_one():
    table = drift(*_study())
    found = table[(table["arm_b"] == "sft") & (table["measure"] == "direction_cosine")]
    assert list(found["layer"]) == [0, 1, 2]
    np.testing.assert_allclose(found["low"], found["value"], atol=1e-6)
    np.testing.assert_allclose(found["high"], found["value"], atol=1e-6)
    np.testing.assert_allclose(found["floor"], 1)
    # The critical value of a correlation with five degrees of freedom: six dimensions, and none lost to a mean.
    np.testing.assert_allclose(found["random"], 0.754, atol=1e-3)


def test_noise_gives_every_row_its_interval_and_its_floors():
    points, directions, carriers = _study()
    random = np.random.default_rng(1)
    for name, found in directions.items():
        noise = random.normal(size=(2, 64, *found.values.shape))
        directions[name] = from_activations(2 * found.values.numpy() + noise[0], noise[1])
    table = drift(points, directions, carriers)
    told = table[table["reason"] == ""]
    assert (told["low"] <= told["value"]).all()
    assert (told["value"] <= told["high"]).all()
    assert (told["high"] - told["low"] > 1e-3).all()
    row = told[(told["arm_b"] == "sft") & (told["measure"] == "direction_cosine") & (told["layer"] == 1)].iloc[0]
    expected = measures.compare(
        directions[points[0].id], directions[points[1].id], places=([(-1, 1)], [(-1, 1)]), measure="cosine"
    )
    assert (row["value"], row["low"], row["high"]) == (expected.value.value, expected.value.low, expected.value.high)
    assert (row["floor"], row["random"]) == (expected.floor, expected.random)
    assert 0.5 < row["floor"] < 0.999
    spans = told[told["measure"] == "principal_angle_mean"].set_index(["arm_a", "arm_b", "layer"])
    assert spans.loc[("base", "sft", 0), "n"] == 2
    assert spans.loc[("base", "sft", -1), "n"] == 1
    assert spans.loc[("base", "sft", 0), "random"] > spans.loc[("base", "sft", 0), "floor"] > 0


def test_directions_of_other_prompts_keep_their_value_and_say_why_there_is_no_interval():
    points, directions, carriers = _study()
    other = directions[points[1].id].values.numpy()
    directions[points[1].id] = constant(other, n=20)
    table = drift(points, directions, carriers)
    row = table[(table["arm_b"] == "sft") & (table["measure"] == "direction_cosine") & (table["layer"] == 0)].iloc[0]
    assert row["value"] == pytest.approx(1)
    assert np.isnan(row["low"])
    assert "different prompts" in row["reason"]


def test_templates_with_other_positions():
    points, directions, carriers = _study()
    directions[points[1].id] = directions[points[1].id].of_positions((-1,))
    table = drift(points, directions, carriers)
    rows = table[(table["arm_a"] == "base") & (table["arm_b"] == "sft")]
    assert list(rows["measure"]) == ["carrier_cosine", "direction_cosine"]
    assert rows["reason"].iloc[1] == "positions of the templates differ"


def test_what_cannot_be_compared_is_one_row_that_says_why():
    points, directions, carriers = _study()
    apart = {(points[0].id, points[1].id): "other architectures (llama and gpt2)"}
    table = drift(points, directions, carriers, why_apart=lambda a, b: apart.get((a.id, b.id), ""))
    rows = table[(table["arm_a"] == "base") & (table["arm_b"] == "sft") & (table["step_b"] == points[1].step)]
    assert list(rows["reason"]) == ["other architectures (llama and gpt2)"]
    assert rows["value"].isna().all()
    assert (table["reason"] == "").any()


def test_arms_without_a_base_or_a_common_step_are_compared_at_their_ends():
    points = [Checkpoint(arm, step, Path(), "") for arm, step in (("a", 1), ("a", 2), ("b", 10), ("b", 30), ("c", 2))]
    found = [(a.id, b.id) for a, b in across.Pairs(points)]
    assert found == [
        ("a-step-00001", "a-step-00002"),
        ("b-step-00010", "b-step-00030"),
        ("a-step-00002", "b-step-00030"),
        ("a-step-00002", "c-step-00002"),
        ("b-step-00030", "c-step-00002"),
    ]


def test_given_arms_are_compared_with_the_base_whatever_the_warm_up():
    points = named("base-0", "warm-up-2", "sft-4", "theirs-1", "theirs-2")
    found = [f"{a.arm}-{a.step} {b.arm}-{b.step}" for a, b in across.Pairs(points, given=("theirs",))]
    assert found == [
        "base-0 warm-up-2",
        "warm-up-2 sft-4",
        "base-0 theirs-1",
        "theirs-1 theirs-2",
        "base-0 theirs-2",
        "sft-4 theirs-2",
    ]


def test_effective_rank_names_every_variant():
    points, directions, carriers = _study()
    table = across.effective_ranks(points, directions, carriers)
    assert len(table) == len(points) * 3 * 2 * 2
    one = table[(table["arm"] == "sft") & (table["rows"] == "admissible")]
    np.testing.assert_allclose(one["value"].astype(float), 1)  # a single admissible row has rank one
    none = table[(table["arm"] == "r2d2") & (table["rows"] == "admissible")]
    assert none["value"].isna().all()
    assert set(none["reason"]) == {"no admissible candidate"}


def _noisy_study(length=2.0, n=64):
    points, directions, carriers = _study()
    random = np.random.default_rng(1)
    for name, found in directions.items():
        noise = random.normal(size=(2, n, *found.values.shape))
        directions[name] = from_activations(length * found.values.numpy() + noise[0], noise[1])
    return points, directions, carriers


def test_effective_rank_has_an_interval_over_the_prompts():
    points, directions, carriers = _noisy_study()
    table = across.effective_ranks(points, directions, carriers)
    assert list(table.columns) == list(tables.columns("effective_rank"))
    spread = table[table["rows"] != "admissible"]
    assert (spread["low"] < spread["value"]).all()
    assert (spread["value"] < spread["high"]).all()
    assert spread["low"].min() >= 1
    one = table[(table["rows"] == "admissible") & (table["arm"] == "sft")]
    np.testing.assert_allclose(one[["value", "low", "high"]].astype(float), 1)
    none = table[(table["rows"] == "admissible") & (table["arm"] == "r2d2")]
    assert none[["value", "low", "high"]].isna().all(axis=None)
    few = across.effective_ranks(*_noisy_study(n=3))
    assert few["low"].isna().all()
    assert few.loc[few["rows"] == "layers", "reason"].str.startswith("too few prompts for an interval: 3 ").all()


def test_the_interval_of_an_effective_rank_covers_what_other_prompts_would_give():
    point = [Checkpoint("base", 0, Path(), "")]
    truth = 3 * np.eye(2 * N_LAYERS, D_MODEL).reshape(2, N_LAYERS, D_MODEL)
    values, intervals = [], []
    for seed in range(25):
        noise = np.random.default_rng(seed).normal(size=(2, 64, *truth.shape))
        found = from_activations(truth + noise[0], noise[1])
        table = across.effective_ranks(point, {point[0].id: found}, {point[0].id: _carriers(None)})
        row = table[(table["rows"] == "layers") & (table["scaling"] == "raw") & (table["weight"] == "sigma")].iloc[0]
        values.append(row["value"])
        intervals.append((row["low"], row["high"]))
    assert np.mean([low <= np.mean(values) <= high for low, high in intervals]) >= 0.8


def test_effective_rank_draws_twins_together():
    """Topics that twins share cancel in every draw, so they widen no interval."""
    point = [Checkpoint("base", 0, Path(), "")]
    random = np.random.default_rng(0)
    noise, topics = (
        0.1 * random.normal(size=(2, 64, 2, N_LAYERS, D_MODEL)),
        random.normal(size=(64, 2, N_LAYERS, D_MODEL)),
    )
    truth = np.eye(2 * N_LAYERS, D_MODEL).reshape(2, N_LAYERS, D_MODEL)
    widths = []
    for shared in (0, 20):
        found = from_activations(truth + shared * topics + noise[0], shared * topics + noise[1], paired=True)
        table = across.effective_ranks(point, {point[0].id: found}, {point[0].id: _carriers(None)})
        widths.append(table.loc[table["rows"] == "layers", ["low", "high"]].astype(float).diff(axis=1)["high"])
    np.testing.assert_allclose(widths[1], widths[0], rtol=1e-3)


def test_candidates_that_a_screen_put_out_are_not_admissible():
    points, directions, carriers = _study()
    rough = carriers[points[0].id]
    rough.loc[(rough["position"] == -2) & (rough["layer"] == 0), ["admissible", "exact"]] = [True, False]
    ranks = across.effective_ranks(points, directions, carriers)
    assert ranks.loc[(ranks["arm"] == "base") & (ranks["rows"] == "admissible"), "n_rows"].eq(1).all()
    turned = drift(points, directions, carriers)
    span = turned[(turned["arm_b"] == "sft") & (turned["layer"] == -1) & (turned["measure"] == "principal_angle_max")]
    assert span["n"].tolist() == [1]
    assert span["value"].iloc[0] == pytest.approx(90)
