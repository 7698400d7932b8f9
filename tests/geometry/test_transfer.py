"""A direction at another checkpoint: the numbers are those of plain interventions there."""

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from tolerances import COMPOUND, FORWARD, REORDERED

from mechrefusal import MechrefusalError, causal, forward, geometry, tables
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry.transfers import CONTROL_SEED, transfer
from mechrefusal.prompts import builtin, prompt_ids

METRIC = RefusalMetric((), (10, 11), (12, 13))


@pytest.fixture(scope="module")
def validation():
    return builtin().validation.take(6)


def mean(model, texts, context):
    with context:
        return forward.refusal_scores(model, prompt_ids(model.tokenizer, texts), METRIC).numpy()


def test_rows_are_plain_interventions(tiny_hooked, validation):
    random = torch.Generator().manual_seed(0)
    given = {
        f"at {layer}": Direction(torch.randn(tiny_hooked.cfg.d_model, generator=random), -1, layer) for layer in (0, 2)
    }
    found = transfer(tiny_hooked, given, validation, METRIC).set_index("source")
    for name, one in given.items():
        row, control = found.loc[name], causal.random_like(one.vector, seed=CONTROL_SEED)
        ablated = mean(tiny_hooked, validation.harmful, causal.ablate(tiny_hooked, one.vector))
        induced = mean(tiny_hooked, validation.harmless, causal.add(tiny_hooked, one.vector, layer=one.layer))
        assert row["bypass"] == pytest.approx(ablated.mean(), abs=FORWARD)
        assert row["induce"] == pytest.approx(induced.mean(), abs=FORWARD)
        half = 2.5706 * ablated.std(ddof=1) / np.sqrt(6)  # t with 5 degrees of freedom
        assert row["bypass_high"] - row["bypass_low"] == pytest.approx(2 * half, rel=COMPOUND)
        random_induce = mean(tiny_hooked, validation.harmless, causal.add(tiny_hooked, control, layer=one.layer))
        assert row["random_induce"] == pytest.approx(random_induce.mean(), abs=FORWARD)
        random_bypass = mean(tiny_hooked, validation.harmful, causal.ablate(tiny_hooked, control))
        assert row["random_bypass"] == pytest.approx(random_bypass.mean(), abs=0.05)
        assert (row["position"], row["layer"], row["n_harmful"], row["reason"]) == (-1, one.layer, 6, "")
    assert abs(found["bypass"] - found["baseline_harmful"]).min() > 1e-3


def test_what_an_intervention_changes_is_taken_prompt_by_prompt(tiny_hooked, validation):
    one = Direction(torch.randn(tiny_hooked.cfg.d_model, generator=torch.Generator().manual_seed(1)), -1, 1)
    row = transfer(tiny_hooked, {"x": one}, validation, METRIC).iloc[0]
    harmful, harmless = (mean(tiny_hooked, side, nullcontext()) for side in (validation.harmful, validation.harmless))
    ablated = mean(tiny_hooked, validation.harmful, causal.ablate(tiny_hooked, one.vector))
    induced = mean(tiny_hooked, validation.harmless, causal.add(tiny_hooked, one.vector, layer=1))
    for name, changes in (("decrease", harmful - ablated), ("rise", induced - harmless)):
        half = 2.5706 * changes.std(ddof=1) / np.sqrt(6)
        expected = [changes.mean(), changes.mean() - half, changes.mean() + half]
        got = row[[name, f"{name}_low", f"{name}_high"]].astype(float)
        np.testing.assert_allclose(got, expected, atol=FORWARD)
    assert row["random_decrease"] == pytest.approx(row["baseline_harmful"] - row["random_bypass"])


HALF = ["decrease_half_low", "decrease_half_high"]


def planted(model, seed):
    """A direction and two of its halves, which have little to do with each other; halves are float64."""
    rows = torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(rows[0], -1, 1), rows[1:].double()


def test_halves_lower_what_their_directions_do_by_themselves(tiny_hooked, validation):
    made = {seed: planted(tiny_hooked, seed) for seed in range(4)}
    given, halves = ({seed: both[part] for seed, both in made.items()} for part in (0, 1))
    together = transfer(tiny_hooked, given, validation, METRIC, halves=halves).set_index("source")
    first, second = (
        transfer(tiny_hooked, {seed: Direction(both[half].float(), -1, 1) for seed, both in halves.items()},
                 validation, METRIC).set_index("source")["decrease"]
        for half in (0, 1)
    )  # fmt: skip
    assert set(np.sign(first - second)) == {-1, 1}, "either half is the lesser somewhere"
    assert abs(first - second).min() > 0.01
    np.testing.assert_allclose(together[HALF[0]], np.minimum(first, second), atol=FORWARD)
    np.testing.assert_allclose(together[HALF[1]], np.maximum(first, second), atol=FORWARD)


def test_the_length_of_halves_does_not_matter(tiny_hooked, validation):
    one, both = planted(tiny_hooked, 0)
    halves = {"as it is": both, "scaled": both * torch.tensor([[0.01], [-50.0]])}
    rows = transfer(tiny_hooked, dict.fromkeys(halves, one), validation, METRIC, halves=halves)
    np.testing.assert_allclose(rows[HALF].iloc[0].astype(float), rows[HALF].iloc[1].astype(float), atol=FORWARD)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, 1e-200, 1e200, None])
@pytest.mark.parametrize("which", [0, 1])
def test_without_both_halves_the_rest_of_the_row_stands(tiny_hooked, validation, bad, which):
    one, both = planted(tiny_hooked, 0)
    halves = {"whole": both}
    if bad is not None:
        halves["part"] = both.clone()
        halves["part"][which] = bad
    given = {"whole": one, "part": one}
    rows = transfer(tiny_hooked, given, validation, METRIC, halves=halves).drop(columns="source")
    assert rows.loc[0, HALF].notna().all()
    assert rows.loc[1, HALF].isna().all()
    pd.testing.assert_series_equal(
        rows.loc[0].drop(HALF), rows.loc[1].drop(HALF), check_names=False, check_exact=False, rtol=REORDERED
    )


def test_halves_of_another_width(tiny_hooked, validation):
    one, both = planted(tiny_hooked, 0)
    for halves in (both[:1], both[:, :7]):
        with pytest.raises(MechrefusalError, match=r"halves of direction 'x' have shape .*give two directions"):
            transfer(tiny_hooked, {"x": one}, validation, METRIC, halves={"x": halves})


def test_columns_are_those_of_the_table(tiny_hooked, validation):
    given = {"x": Direction(torch.ones(tiny_hooked.cfg.d_model), -1, 1), "0": Direction(torch.zeros(64), -1, 1)}
    rows = transfer(tiny_hooked, given, validation, METRIC).drop(columns="source")
    ours = {"arm_source": "sft", "step_source": 2, "arm_target": "sft", "step_target": 4, "kind": "carrier"}
    assert len(tables.frame("transfer", rows.assign(**ours))) == 2
    assert rows[["decrease", "decrease_low", "rise", "rise_high", "random_decrease", *HALF]].iloc[1].isna().all()


def test_a_direction_that_is_none(tiny_hooked, validation):
    given = {"zero": Direction(torch.zeros(tiny_hooked.cfg.d_model), -1, 1)}
    row = transfer(tiny_hooked, given, validation, METRIC).iloc[0]
    assert np.isnan([row["bypass"], row["induce"], row["kl"], row["random_bypass"]]).all()
    assert "zero" in row["reason"]
    assert np.isfinite(row["baseline_harmful"])


def test_nothing_to_transfer(tiny_hooked, validation):
    assert len(transfer(tiny_hooked, {}, validation, METRIC)) == 0


@pytest.mark.parametrize(("width", "layer"), [(7, 0), (64, 99)])
def test_another_architecture(tiny_hooked, validation, width, layer):
    with pytest.raises(MechrefusalError, match="one architecture"):
        transfer(tiny_hooked, {"x": Direction(torch.ones(width), -1, layer)}, validation, METRIC)


def test_scores_by_prompt_are_told_one_by_one(tiny_hooked, validation):
    directions = geometry.difference_in_means(tiny_hooked, validation)
    scores = geometry.score(tiny_hooked, directions, validation, METRIC, places=[(-1, 1), (-1, 2)])
    long = scores.long(validation.harmful.ids, validation.harmless.ids)
    assert len(long) == 2 * 3 * 6
    means = long.groupby(["layer", "measure"])["value"].mean()
    for row in scores.table.itertuples():
        assert means[(row.layer, "kl")] == pytest.approx(row.kl)
        assert means[(row.layer, "bypass")] == pytest.approx(row.bypass)
    first = long[(long["layer"] == 1) & (long["measure"] == "bypass")]
    assert first["prompt_id"].tolist() == validation.harmful.ids
