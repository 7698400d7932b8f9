"""One checkpoint measured with a carrier: the recipe `tiny` finds none, so here every candidate is admitted."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tolerances import FORWARD, REORDERED

from mechrefusal import causal, forward, models, prompts, report, study, tables
from mechrefusal.evaluation import discovery
from mechrefusal.geometry import Directions, carriers
from mechrefusal.study import measurement, protocol
from mechrefusal.study.gate import gate
from mechrefusal.study.measurement import Measurement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    recipe = study.load_recipe("tiny")
    settings = dataclasses.replace(
        recipe.measuring, kl_threshold=1e9, induce_threshold=-1e9, prune_layer_fraction=0.0, n_contrast=0
    )
    recipe = dataclasses.replace(recipe, measuring=settings)
    checkpoint = models.Checkpoint.open(tiny, arm="sft", step=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "kept_by_score", lambda split, *_: split)
        # The tiny model answers in loops; counted as answers, they give a metric that tells its pairs apart.
        patch.setattr(discovery, "DEGENERATE", "no label")
        select, chosen = carriers.select, []
        patch.setattr(carriers, "select", lambda *given: chosen.append(select(*given)) or chosen[-1])
        run = study.Run.create(tmp_path_factory.mktemp("measured") / "run", recipe)
        run.record(checkpoint)
        protocol.measure(run, checkpoint, study.choose_prompts(recipe), [])
    kept = {name: tables.read(name, run.measurements(checkpoint)) for name in (*tables.PER_CHECKPOINT, "verdicts")}
    directions = Directions.load(run.directions(checkpoint), weights=checkpoint.weights)
    return checkpoint, recipe, SimpleNamespace(run=run, tables=kept, directions=directions, chosen=chosen[0].best)


def test_the_winner_has_the_lowest_bypass_and_is_told_in_full(measured):
    _, _, found = measured
    carriers, carrier = found.tables["carriers"], found.tables["carrier"].iloc[0]
    scored = carriers.dropna(subset=["bypass"])
    assert carrier["bypass"] == scored["bypass"].min()
    assert carrier["reason"] == ""
    assert carrier["n_admissible"] == len(scored)
    assert carriers.loc[carriers["winner"], ["position", "layer"]].to_numpy().tolist() == [
        [carrier["position"], carrier["layer"]]
    ]
    # Every contender is admissible here, so that either half chooses one of them.
    chosen = carriers[carriers["half_wins"] > 0]
    assert carriers["half_wins"].notna().sum() == min(5, scored["exact"].sum())
    assert chosen["half_wins"].sum() == carrier["n_halves"] == 2
    assert (chosen["layer"].min(), chosen["layer"].max()) == (carrier["layer_half_low"], carrier["layer_half_high"])
    # Layer 0 of a template's tokens is the same for every prompt: no direction, no score, and the reason is given.
    assert (carriers.loc[carriers["layer"] == 0, "rejected_because"] == "a score is NaN").all()


def test_what_is_kept_of_the_carrier_intervenes_as_the_chosen_one_does(measured):
    checkpoint, recipe, found = measured
    kept = Measurement(found.run, checkpoint, study.choose_prompts(recipe), []).carrier
    told = ("place", "kind", "reference", "row", "rejected_because")
    assert [getattr(kept, name) for name in told] == [getattr(found.chosen, name) for name in told]
    for name in ("bypass", "induce", "kl"):
        own, other = getattr(kept, name), getattr(found.chosen, name)
        assert own.value == other.value
        assert np.isfinite([own.low, own.high]).all()
        assert vars(own) == pytest.approx(vars(other)), "with its interval"
    model = models.load_hooked(checkpoint)
    plain = forward.unhooked_model(model)
    tokens = torch.tensor(prompts.prompt_ids(model.tokenizer, study.choose_prompts(recipe).harmful.texts[:1]))

    def logits(under):
        with torch.no_grad(), causal.intervened(plain, under):
            return plain(tokens).logits

    def under_each(carrier):
        control = causal.random_like(carrier, seed=0)
        return [logits(each) for each in (causal.taken_out(carrier), causal.put_in(carrier), causal.taken_out(control))]

    without = logits(None)
    for own, other in zip(under_each(kept), under_each(found.chosen), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
        assert (own - without).abs().max() > 10 * FORWARD
    torch.testing.assert_close(kept.direction.vector, found.chosen.direction.vector, rtol=0, atol=0)
    for side in ("harmless", "harmful"):
        own, other = (getattr(each.direction.means, side) for each in (kept, found.chosen))
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_interventions_are_answered_with_random_controls(measured):
    _, recipe, found = measured
    verdicts = found.tables["verdicts"]
    counts = verdicts.groupby(["intervention", "suite"]).size()
    n = recipe.measuring.n_intervened
    asked = {
        "ablate": ["harmful", "harmless"], "ablate_random": ["harmful"], "induce": ["harmless"],
        "induce_random": ["harmless"],
    }  # fmt: skip
    for name, sides in asked.items():
        assert counts[name].to_dict() == {f"evaluation_{side}": n for side in sides}
    assert {*asked, "none"} == set(verdicts["intervention"])
    assert set(verdicts["max_new_tokens"]) == {recipe.measuring.max_new_tokens}
    assert verdicts["n_tokens"].le(recipe.measuring.max_new_tokens).all()


def test_the_carrier_says_what_it_was_ablated_to_and_where_zero_is(measured):
    _, recipe, found = measured
    carrier = found.tables["carrier"].iloc[0]
    assert carrier["ablated_to"] == recipe.measuring.reference == "harmless"
    place = found.directions.row(int(carrier["position"])), int(carrier["layer"])
    assert carrier["zero_distance"] == pytest.approx(float(found.directions.zero_distance[place]), rel=1e-4)
    carriers = found.tables["carriers"].dropna(subset=["bypass"])
    of_winner = carriers[carriers["winner"]].iloc[0]
    for name in ("bypass_zero", "induce_zero", "kl_zero"):
        assert carrier[name] == pytest.approx(of_winner[name])
    assert abs(carrier["bypass_zero"] - carrier["bypass"]) > 1e-4, "the reference makes no difference here"


def test_the_gate_is_that_of_the_answers(measured):
    checkpoint, _, found = measured
    expected = gate(found.tables["verdicts"])
    assert len(expected) == 4
    table = found.tables["gate"]
    assert set(table["weights"]) == {checkpoint.weights}
    pd.testing.assert_frame_equal(table[list(expected)], expected)


def test_attribution_onto_the_carrier_adds_up(measured):
    _, _, found = measured
    table = found.tables["attribution"]
    for name in ("harmful", "harmless"):
        parts = table[(table["onto"] == "carrier") & (table["set"] == name)]
        total = parts.loc[parts["component"] == "total", "value"].item()
        assert parts.loc[parts["component"] != "total", "value"].sum() == pytest.approx(total, abs=FORWARD)


def test_tokens_are_projected_on_the_carrier_and_the_page_is_written(measured):
    checkpoint, _, found = measured
    assert np.isfinite(found.tables["tokens"]["value"]).all()
    page = report.write(found.run.folder).parent / f"{checkpoint.id}.html"
    text = page.read_text(encoding="utf-8")
    assert "No admissible carrier" not in text
    assert text.count('class="coloured"') >= 2  # the harmful and the harmless prompt


CAUSES = (
    "attribution", "attribution_compared", "token_sources", "logit_lens", "patching", "attribution_patching",
    "attribution_agreement", "knockout", "head_sets", "circuit_nodes", "circuit_edges", "faithfulness",
)  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_every_table_of_cause_and_attribution_is_filled(measured, name):
    checkpoint, _, found = measured
    notes = [note for note in found.tables["timings"]["note"] if note]
    assert notes == []
    table = found.tables[name]
    assert len(table) > 0
    assert list(table.columns) == list(tables.columns(name))
    assert set(table["weights"]) == {checkpoint.weights}
    filled = [column for column in table if not table[column].isna().all()]
    assert set(tables.columns(name)) - set(filled) <= ALL_NAN.get(name, set())


CONFIRMED = {"held_out", "held_out_low", "held_out_high", "p"}
"""Of a circuit whose pairs are too few to hold any out."""
ALL_NAN = {
    "circuit_nodes": {"estimate", *CONFIRMED},
    "circuit_edges": CONFIRMED,
    "attribution_agreement": {"low", "high"},
}
"""What a tiny run leaves empty: nodes are all patched exactly, and few cells give rank correlations no interval."""


def test_both_modes_and_all_sites_are_patched(measured):
    _, recipe, found = measured
    seen = found.tables["patching"].groupby(["mode", "site"]).size()
    sites = ("resid_pre", "attn_out", "mlp_out", "z")
    assert set(seen.index) == {(mode, site) for mode in recipe.causal.modes for site in sites}


def test_differences_are_those_of_the_means(measured):
    _, _, found = measured
    compared = found.tables["attribution_compared"]
    np.testing.assert_allclose(compared["difference"], compared["harmful"] - compared["harmless"], atol=REORDERED)
    assert set(compared["onto"]) == {"refusal_logits", "carrier"}


def test_it_is_said_what_ran_the_model(measured):
    _, _, found = measured
    opening = found.tables["openings"].iloc[0]
    assert (opening["runner"], opening["runner_because"]) == ("token trees", "")


def test_the_cost_of_removal_is_kept_prompt_by_prompt(measured):
    _, recipe, found = measured
    settings, chosen = recipe.durability.removal, study.choose_prompts(recipe)
    trials, rows, values = (found.tables[name] for name in ("removal_trials", "removal", "removal_prompts"))
    assert len(trials) == settings.n_trials + 2
    assert rows["level"].tolist() == list(settings.kl_levels)
    assert set(rows["along"]) == {f"difference in means (position {found.chosen.position}, layer {found.chosen.layer})"}
    of_search = values[values["set"] == "search"]
    harmful, harmless = (getattr(chosen.validation, side).ids[: settings.n_prompts] for side in ("harmful", "harmless"))
    for trial in trials.itertuples():
        own = of_search[of_search["trial"] == trial.trial].set_index("measure")
        assert own.loc["refused", "prompt_id"].tolist() == harmful
        assert own.loc["kl", "prompt_id"].tolist() == harmless
        assert own.loc["refused", "value"].mean() == trial.refused
        assert own.loc["kl", "value"].mean() == pytest.approx(trial.kl, rel=1e-12)
    held_out = values[(values["set"] == "held-out") & (values["draw"] == -1)]
    assert set(held_out["trial"]) == {0, *rows["trial"]}
    assert set(held_out["prompt_id"]) == {
        *chosen.harmful.ids[: settings.n_prompts], *chosen.harmless.ids[: settings.n_prompts]
    }  # fmt: skip
