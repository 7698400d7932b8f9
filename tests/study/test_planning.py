"""What a run could have told, from its own tables."""

import numpy as np
import pandas as pd
import pytest

from mechrefusal import MechrefusalError, cli, study, tables
from mechrefusal.statistics import power as planning
from mechrefusal.statistics.depth import depth_difference
from mechrefusal.study.depths import profile, twins


@pytest.fixture(scope="module")
def run(finished_run):
    return study.open(finished_run)


@pytest.mark.slow
def test_every_question_of_a_run_has_a_row(run):
    table = study.power(run.folder)
    assert list(table.columns) == list(tables.columns("power"))
    kept = tables.read("power", run.measurements())
    assert len(kept) == len(table), "the measurement keeps what the command says"
    rates = table[table["question"] == "difference of refusal rates"]
    assert (rates["n"] > 0).all()
    assert (rates["could_tell"] > 0).all()
    for row in rates.itertuples():
        share = float(row.reason.split("%")[0]) / 100
        needed = planning.prompts_for_rates(0.1, max(share, 0.1))
        assert row.n_needed == pytest.approx(needed, rel=0.2), "the share is rounded in the reason"
    heads = table[table["question"] == "effect of a patched head"]
    assert (heads["unit"] == "pairs").all()
    assert (table["question"] == "move of the carrier").sum() >= 3


@pytest.mark.slow
def test_more_power_and_smaller_sizes_ask_for_more(run):
    usual, more = study.power(run.folder), study.power(run.folder, rate=0.05, power=0.95, head=0.25)
    for question in ("difference of refusal rates", "effect of a patched head"):
        one, other = (t.loc[t["question"] == question, "n_needed"] for t in (usual, more))
        known = one.notna() & other.notna()
        assert (other[known] > one[known]).all()


@pytest.mark.slow
def test_several_seeds(run):
    table = study.power([run.folder, run.folder])
    seeds = table[table["unit"] == "seeds"]
    assert len(seeds)
    assert (seeds["n"] == 2).all()
    assert seeds["could_tell"].isna().all(), "two equal runs have no noise to plan with"
    assert table["of"].str.startswith(f"{run.folder.name}: ").sum() == len(table) - len(seeds)


@pytest.mark.parametrize("recipe", ["demo", "full", "methods", "robustness", "tiny"])
def test_a_recipe_is_planned_on_assumptions_that_are_named(recipe):
    table = study.power(recipe, layers=6)
    assert table["reason"].str.startswith("assumed: ").all()
    moves = table[table["question"] == "move of the carrier"].set_index("of")
    order = [f"two checkpoints, {name} profile" for name in ("sharp", "noisy", "flat")]
    assert moves.loc[order, "could_tell"].is_monotonic_increasing
    assert moves.loc[order, "n_needed"].is_monotonic_increasing


@pytest.mark.slow
def test_the_command(run, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # or narrow columns break the words
    assert cli.main(["power", str(run.folder), "--rate", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "difference of refusal rates" in shown
    assert "0.20" in shown
    assert cli.main(["power", "demo"]) == 0
    assert "assumed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": 1.5}, "rate is 1.5"),
        ({"layers": 0}, "layers is 0"),
        ({"power": 0.3}, "power is 0.3"),
    ],
)
def test_sizes_that_are_none_are_named(given, said):
    with pytest.raises(MechrefusalError, match=said):
        study.power("demo", **given)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MechrefusalError, match="nowhere"):
        study.power(tmp_path / "nowhere")
    with pytest.raises(MechrefusalError, match="name one"):
        study.power([])
    study.Run.create(tmp_path / "new", study.load_recipe("tiny"))
    with pytest.raises(MechrefusalError, match="has no measurements"):
        study.power(tmp_path / "new")


@pytest.mark.slow
def test_profiles_of_a_run_pair_prompts_and_twins(run):
    """Twins share a unit, so that the draws of `depth_difference` are of twins."""
    validation = study.choose_prompts(run.recipe).validation
    units = twins(validation.harmful, validation.harmless)
    known = [c for c in run.checkpoints() if len(tables.read("candidate_scores", run.measurements(c)))]
    assert set(units.values()) == {i.rsplit("-", 1)[0] for i in validation.harmful.ids}
    for checkpoint in known:
        scores = tables.read("candidate_scores", run.measurements(checkpoint))
        found = profile(scores, tables.read("half_scores", run.measurements(checkpoint)), units)
        assert found.bypass.shape == (len(found.depths), len(found.harmful))
        assert (np.diff(found.depths) >= 0).all()
        first = scores[(scores["measure"] == "kl") & (scores["layer"] == found.depths[0])]
        first = first[first["position"] == first["position"].min()]
        np.testing.assert_allclose(np.sort(found.kl[0]), np.sort(first["value"].to_numpy()))
        assert depth_difference(found, found).value in (0, pytest.approx(np.nan, nan_ok=True))
    assert profile(tables.read("candidate_scores", run.folder), tables.read("half_scores", run.folder), units) is None


def test_prompts_of_two_files_that_number_theirs_alike_are_no_twins():
    rows = [
        {"layer": 0, "position": -1, "measure": measure, "prompt_id": number, "value": 1.0}
        for measure in ("bypass", "induce", "kl")
        for number in ("1", "2")
    ]
    found = profile(pd.DataFrame(rows), pd.DataFrame(), {})
    assert not set(found.harmful) & set(found.harmless)
    assert len(set(found.harmful)) == len(set(found.harmless)) == 2
