"""The transfer matrix of a run whose carriers and directions are put in by hand."""

import dataclasses
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from blank_rows import blank
from planted_directions import from_activations
from tolerances import FORWARD, REORDERED

from mechrefusal import study, tables
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.forward.token_classes import TokenClasses
from mechrefusal.geometry import CarrierScores, transfer
from mechrefusal.geometry.contrast import dealt
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import builtin
from mechrefusal.study import transfers

pytestmark = pytest.mark.slow

NAN = float("nan")
METRIC = RefusalMetric((), (10, 11), (12, 13))
POSITION, LAYER = -2, 1
HALF = ["decrease_half_low", "decrease_half_high"]


@pytest.fixture
def made(request, tmp_path, tiny_hooked, monkeypatch):
    """A run of a base alone with a carrier, its checkpoints, and what is asked; `loads` grows with every target run."""
    recipe = study.load_recipe("tiny")
    measuring = dataclasses.replace(recipe.measuring, reference=getattr(request, "param", "harmless"))
    run = study.Run.create(tmp_path / "run", dataclasses.replace(recipe, measuring=measuring))
    base = Checkpoint("base", 0, tmp_path, "w0")
    random = np.random.default_rng(0)
    activations = random.normal(size=(2, 8, 2, tiny_hooked.cfg.n_layers, tiny_hooked.cfg.d_model)).astype("float32")
    instruction = torch.tensor(random.normal(size=(2, *activations.shape[3:])), dtype=torch.float32)
    directions = dataclasses.replace(
        from_activations(*activations, weights="w0"), instruction=instruction, classes=TokenClasses(2, 2)
    )
    directions.save(run.directions(base))
    carrier = blank("carrier") | {"arm": "base", "weights": "w0"}
    carrier |= {"reference_kind": "carrier", "reference_position": POSITION, "reference_layer": LAYER}
    opening = blank("openings") | {"token_ids": METRIC.as_json()}
    for name, row in (("carrier", carrier), ("openings", opening)):
        tables.write(tables.frame(name, [row]), name, run.measurements(base))
    loads = []
    monkeypatch.setattr(transfers, "load_hooked", lambda target: loads.append(target.id) or tiny_hooked)
    return SimpleNamespace(
        run=run, base=base, directions=directions, loads=loads, asked=SimpleNamespace(validation=builtin().validation)
    )


def matrix(made):
    return transfers.transfers(made.run, [made.base], made.asked)


@pytest.mark.parametrize("made", ["harmless", "zero"], indirect=True)
def test_halves_are_those_of_the_saved_directions(made, tiny_hooked):
    """And what all of it is ablated to is the recipe's reference."""
    row = matrix(made).iloc[0]
    validation = made.asked.validation.take(made.run.recipe.geometry.n_transferred)
    halves = made.directions.halves[:, made.directions.row(POSITION), LAYER].float()
    alone = {str(number): Direction(half, POSITION, LAYER) for number, half in enumerate(halves)}
    harmless = made.run.recipe.measuring.reference == "harmless"
    expected, other = (
        transfer(tiny_hooked, alone, validation, METRIC, target_directions=own)["decrease"]
        for own in ((made.directions, None) if harmless else (None, made.directions))
    )
    assert np.abs(expected - other).min() > 1e-3, "the reference makes no difference here"
    assert expected.max() - expected.min() > 0.01
    np.testing.assert_allclose(row[HALF].astype(float), sorted(expected), atol=FORWARD)


def test_its_own_direction_is_measured_on_prompts_that_did_not_choose_it(made):
    """Two candidates of which either half of the prompts favours one: what is measured is the other half's choice."""
    validation, wanted = made.asked.validation, made.run.recipe.geometry.n_transferred
    kept = {"harmful": validation.harmful.ids[:10], "harmless": validation.harmless.ids[:10]}
    random = np.random.default_rng(0)
    bypass = random.normal(size=(3, 10))
    bypass[0] -= bypass[0].mean() - bypass.mean(1).min() + 1e-3  # the carrier of the run, by a hair
    table = pd.DataFrame({"position": [POSITION, POSITION, -1], "layer": [LAYER, 2, 2]})
    scores = CarrierScores(
        table.assign(bypass=bypass.mean(1), induce=1.0, kl=0.0, exact=True), bypass, np.ones((3, 10)), np.zeros((3, 10))
    )
    rows = scores.long(kept["harmful"], kept["harmless"]).assign(arm="base", step=0, weights="w0")
    tables.write(tables.frame("candidate_scores", rows), "candidate_scores", made.run.measurements(made.base))
    row = matrix(made).iloc[0]
    folds, _ = dealt(validation)
    by_id = dict(zip(validation.harmful.ids, folds[0], strict=True))
    mine = np.array([by_id[name] for name in kept["harmful"]])
    after = [bypass[bypass[:, mine != fold].mean(1).argmin(), place] for place, fold in enumerate(mine)]
    assert len({bypass[:, mine != fold].mean(1).argmin() for fold in mine}) > 1
    expected = row["baseline_harmful"] - np.mean(after[:wanted])
    assert row["decrease_held_out"] == pytest.approx(expected, abs=FORWARD)
    assert row["decrease_held_out_low"] < expected < row["decrease_held_out_high"]
    assert row["decrease"] == pytest.approx(row["baseline_harmful"] - row["bypass"])
    # Scores that chose another place say nothing of this one.
    rows["layer"] = 3 - rows["layer"]
    tables.write(tables.frame("candidate_scores", rows), "candidate_scores", made.run.measurements(made.base))
    assert np.isnan(matrix(made).iloc[0]["decrease_held_out"])


def test_a_target_is_run_again_where_halves_changed(made):
    first = matrix(made)
    np.testing.assert_array_equal(matrix(made)[HALF], first[HALF])
    assert made.loads == ["base-step-00000"]
    swapped = made.directions.sums.clone()
    # The same direction of all prompts, dealt to other folds.
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    dataclasses.replace(made.directions, sums=swapped).save(made.run.directions(made.base))
    again = matrix(made)
    assert made.loads == ["base-step-00000"] * 2
    assert again["decrease"].iloc[0] == pytest.approx(first["decrease"].iloc[0], abs=REORDERED)
    assert not np.allclose(again[HALF], first[HALF], atol=1e-3)


def test_a_half_without_prompts_leaves_the_row(made):
    one = made.directions
    odd = torch.arange(one.counts.shape[1]) % 2 == 1
    counts, sums = one.counts.clone(), one.sums.clone()
    counts[:, odd], sums[:, odd] = 0, 0
    dataclasses.replace(one, counts=counts, sums=sums).save(made.run.directions(made.base))
    row = matrix(made).iloc[0]
    assert row[HALF].isna().all()
    assert np.isfinite(row["decrease"])


def test_targets_in_any_order_give_the_same_rows(made):
    """Two targets by workers, the second of which ends first, and one of them again where the other was done."""
    other = Checkpoint("sft", 6, made.base.path, "w1")
    dataclasses.replace(made.directions, weights="w1").save(made.run.directions(other))
    for name in ("carrier", "openings"):
        tables.write(tables.read(name, made.run.measurements(made.base)), name, made.run.measurements(other))
    both, asked = [made.base, other], study.choose_prompts(made.run.recipe)
    expected = transfers.transfers(made.run, both, asked)
    assert len(expected) == 4
    inputs = transfers.inputs_of_targets(made.run, both, asked, version=1)

    def forget(*targets):
        made.run.update({"finished": {f"transfer of {target.id}": None for target in targets}})

    def take(*targets):
        for target in targets:
            given = pickle.loads(pickle.dumps((made.run, target.id, both, asked, inputs[target.id])))
            transfers.take_target(*given)

    forget(made.base, other)
    take(other, made.base, other)
    pd.testing.assert_frame_equal(transfers.transfers(made.run, both, asked), expected)
    kept = [tables.read("transfer", made.run.measurements(target)) for target in both]
    pd.testing.assert_frame_equal(pd.concat(kept, ignore_index=True), expected)
    forget(other)
    take(made.base, other)
    pd.testing.assert_frame_equal(transfers.transfers(made.run, both, asked), expected)
    assert made.loads == [made.base.id, other.id, other.id, made.base.id, other.id]
