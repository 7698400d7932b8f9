"""SmolLM2 end to end: a step of a warm-up and one of R2D2, every checkpoint measured, the report written."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mechrefusal import report, study, tables
from mechrefusal.study import units


@pytest.mark.slow
def test_smollm2_from_a_warm_up_to_the_report(smollm2, tmp_path, monkeypatch):
    demo = study.load_recipe("demo")
    r2d2 = {**demo.arms["r2d2"], "cases_per_step": 1}
    r2d2["gcg"] = {**r2d2["gcg"], "width": 4}
    recipe = dataclasses.replace(
        demo,
        name="few steps",
        arms={"r2d2": r2d2},
        model=str(smollm2),
        prompts=dataclasses.replace(demo.prompts, n_conversations=4),
        training=dataclasses.replace(
            demo.training,
            warmup_steps=0, warm_up=1, warm_up_utility_per_step=2, warm_up_harmful_per_step=2,
            steps=2, anchors=(0, 2), utility_per_step=2, harmful_per_step=2, n_probe=2, probe_tokens=2, n_behaviours=2,
        ),
        attack=dataclasses.replace(demo.attack, n_cases=0),
        measuring=dataclasses.replace(
            demo.measuring,
            n_evaluation=3, n_overrefusal=2, n_utility=0, n_direction=4, n_validation=4, n_intervened=2,
            n_attributed=1, n_pairs=1, max_new_tokens=6, layer_step=15, n_positions=1,
        ),
        geometry=dataclasses.replace(
            demo.geometry, layer_step=12, largest_subspace=1, cone_steps=1, n_dosed=2, n_transferred=2
        ),
        causal=dataclasses.replace(
            demo.causal,
            n_finalists=2, n_knocked_out=2, layer_step=15, n_candidates=2, largest_set=1, n_nodes=4, n_edges=4,
            n_random=1, n_crossed=0,
        ),
    )  # fmt: skip
    run = study.Run.create(tmp_path / "run", recipe)
    points = study.train(run)
    assert [point.id for point in points] == ["base-step-00000", "warm-up-step-00001", "r2d2-step-00002"]
    assert len({point.weights for point in points}) == 3
    measure = units.measure_checkpoint
    few = dataclasses.replace(
        recipe,
        causal=dataclasses.replace(demo.causal, layer_step=15),
        measuring=dataclasses.replace(recipe.measuring, layer_step=30),
    )

    def measured(run, checkpoint, asked, cases, **around):
        """Patching, knock-outs and the circuit at the last checkpoint alone: at each they take a minute."""
        wanted = run.recipe if checkpoint.id == points[2].id else few
        measure(dataclasses.replace(run, recipe=wanted), checkpoint, asked, cases, **around)

    monkeypatch.setattr(units, "measure_checkpoint", measured)
    study.measure(run)
    # SmolLM2 answers nearly everything before training: no carrier is a result, with its reason.
    base = tables.read("carrier", run.measurements(points[0])).iloc[0]
    assert pd.isna(base["layer"])
    assert "a carrier needs" in base["reason"]
    attribution = tables.read("attribution", run.measurements(points[1]))
    parts = attribution[(attribution["set"] == "harmful") & (attribution["onto"] == "refusal_logits")]
    total = parts.loc[parts["component"] == "total", "value"].item()
    assert parts.loc[parts["component"] != "total", "value"].sum() == pytest.approx(total, abs=1e-3)
    assert len(parts[parts["component"] == "head"]) == 30 * 9
    patched = tables.read("patching", run.measurements(points[2]))
    assert np.isfinite(patched["raw"]).all()
    assert len(tables.read("knockout", run.measurements(points[2]))) > 0
    assert len(tables.read("circuit_nodes", run.measurements(points[2]))) > 0
    assert tables.read("knockout", run.measurements(points[0])).empty
    page = report.write(run.folder)
    assert page.is_file()
    assert (page.parent / "r2d2-step-00002.html").is_file()
