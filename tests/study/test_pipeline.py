"""The recipe `tiny` end to end: same recipe, same tables, also when the run was killed on the way."""

import dataclasses
import json
import shutil
import time
from itertools import pairwise

import forked
import pandas as pd
import pytest
import torch
from tolerances import COMPOUND, FORWARD

from mechrefusal import causal, models, study, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry import Directions
from mechrefusal.study import caching, protocol
from mechrefusal.study.protocol import AT_A_CHECKPOINT
from mechrefusal.study.stages import LAST, Stage, prompts_asked

WALL_TIMES = {"timings", "stages"}
OF_EVALUATIONS = {
    "suite_differences", "answer_losses", "judge_agreement", "leaks", "stress", "stress_transfer", "stress_control",
    "stress_differences",
}  # fmt: skip
"""Tables that `mechrefusal evaluate` writes: training and measuring leave them empty."""
OF_NO_RUN = {"plan"}
"""Those that are shown and kept in no run."""

OF_ENDS = ("transfer", "cross patching", "spectrum of the update", "lockstep patching")
"""Stages over all checkpoints that keep each pair by itself."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finished_run):
    return study.open(shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "whole"))


def _tables(run, name):
    table = tables.read(name, run.measurements())
    return table.drop(columns=[c for c in table if c.startswith("seconds") or c == "peak_mib"])


MAY_BE_EMPTY = {
    "carriers", "candidate_scores", "half_scores", "doses", "circuit_edges", "faithfulness", "removal_trials",
    "removal_prompts",
}  # fmt: skip
"""Others then say why: `carrier`, `utility_coupling`, `circuit_nodes`, `removal`."""


def test_every_table_is_there_for_every_checkpoint(finished):
    points = finished.checkpoints()
    assert [point.id for point in points] == [
        "base-step-00000",
        *(f"{arm}-step-{step:05d}" for arm in ("sft", "r2d2") for step in (6, 12)),
    ]
    for point in points:
        for name in tables.PER_CHECKPOINT:
            table = tables.read(name, finished.measurements(point))
            if name in MAY_BE_EMPTY and table.empty:
                continue
            assert set(table["weights"]) == {point.weights}, (point.id, name)
    assert set(tables.ACROSS) >= OF_EVALUATIONS
    for name in tables.ACROSS:
        if name in OF_EVALUATIONS | OF_NO_RUN:
            assert tables.read(name, finished.measurements()).empty, name
        elif name != "transfer":  # no checkpoint has a direction to carry elsewhere, which `relocation` says
            assert len(tables.read(name, finished.measurements())) > 0, name
    crossed = tables.read("cross_patching", finished.measurements())
    assert (crossed.groupby(["arm_source", "arm_target"])["set"].nunique() == 2).all()
    assert (crossed["raw"].notna() | (crossed["reason"] != "")).all()
    relocation = tables.read("relocation", finished.measurements())
    assert set(relocation["verdict"]) <= {"moved", "not moved", "cannot tell"}
    assert (relocation["reason"] != "").all()
    subspaces = tables.read("subspaces", finished.measurements())
    assert (subspaces.loc[subspaces["bypass"].isna(), "reason"] != "").all()


def test_a_checkpoint_without_carrier_says_why(finished):
    carrier = tables.read("carrier", finished.measurements())
    assert len(carrier) == 5
    for row in carrier.itertuples():
        assert pd.isna(row.layer) == bool(row.reason), row


def test_training_changed_the_weights_and_kept_matched_arms(finished):
    log = tables.read("training", finished.measurements())
    assert log.groupby("arm")["step"].apply(list).to_dict() == {"sft": list(range(1, 13)), "r2d2": list(range(1, 13))}
    sft, r2d2 = (log[log["arm"] == arm].sort_values("step") for arm in ("sft", "r2d2"))
    assert sft[["away", "toward"]].isna().all().all()
    assert r2d2[["away", "toward", "attack_loss_before", "attack_loss_after"]].notna().all().all()
    # The same utility rows from the same weights: the first utility losses agree.
    assert sft["utility"].iloc[0] == pytest.approx(r2d2["utility"].iloc[0], rel=FORWARD)


def test_both_arms_train_on_the_same_behaviours(finished):
    from mechrefusal.attacks import read_cases

    expected = study.choose_prompts(finished.recipe).behaviours.take(finished.recipe.training.n_behaviours)
    pool = read_cases(finished.folder / "r2d2" / "pool.parquet", source=None)
    assert sorted(case.behaviour for case in pool) == sorted(expected.texts)


def test_attack_cases_belong_to_the_base_model(finished):
    base = finished.checkpoint("base", step=0)
    assert {case.source for case in study.cases(finished)} == {base.weights}


def test_directions_of_another_checkpoint_are_refused(finished):
    base, other = finished.checkpoint("base", step=0), finished.checkpoint("sft", step=6)
    with pytest.raises(MechrefusalError, match="belong to weights"):
        Directions.load(finished.directions(base), weights=other.weights)


def test_measuring_again_does_nothing(finished, monkeypatch):
    monkeypatch.setattr("mechrefusal.study.units.measure_checkpoint", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr("mechrefusal.training.train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("mechrefusal.study.evaluation_tables.keep", lambda *_: pytest.fail("verdicts taken again"))
    hashed, file_hash = [], caching.file_hash
    monkeypatch.setattr(caching, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    study.train(finished)
    study.measure(finished)
    of_checkpoints = [path for path in hashed if path.parent.parent == finished.measurements()]
    assert len(of_checkpoints) == len(set(of_checkpoints)) > 0, "a file is hashed more than once"


def measure(folder):
    study.measure(study.open(folder))


def test_a_killed_run_resumed_ends_in_the_same_tables(finished, tmp_path):
    """Measured by a process that is killed; the rest, and what compares checkpoints, by two at once."""
    run = study.open(shutil.copytree(finished.folder, tmp_path / "killed"))
    again = {"sft-step-00006", "r2d2-step-00006", "r2d2-step-00012"}
    manifest = run.manifest
    for name in again:
        shutil.rmtree(run.folder / "measurements" / name)
    for unit in list(manifest["finished"]):
        if unit in OF_ENDS or any(name in unit for name in again):
            manifest["finished"].pop(unit)
    (run.folder / "manifest.json").write_text(json.dumps(manifest))

    def measured():
        return {name for name in again if run.finished(LAST, name)}

    process = forked.start(measure, run.folder)
    try:
        _wait_for(process, measured)
    finally:
        process.kill()
        process.join()
    alone = measured()
    assert 0 < len(alone) < len(again) - 1, "too little is left for two processes"
    study.measure(run, workers=2)
    # Two processes share the threads: where there are several, each process sums in another order, and tables hold
    # quotients of sums.
    _same_tables(run, finished, within=COMPOUND if torch.get_num_threads() > 1 else 0.0)
    assert _stamps(run) == _stamps(finished)
    assert run.manifest["at_once"] == finished.manifest["at_once"] | dict.fromkeys(again - alone, 2)
    assert not list(run.folder.rglob(".*")), "drafts of the killed process are left"


def test_every_file_is_a_table_of_its_schema(finished):
    files = list(finished.measurements().rglob("*.parquet"))
    assert {path.stem for path in files} == set(tables.TABLES) - OF_EVALUATIONS - OF_NO_RUN
    for path in files:
        told = dict(tables.describe(path.stem)[["column", "dtype"]].itertuples(index=False))
        assert {name: str(dtype) for name, dtype in pd.read_parquet(path).dtypes.items()} == told, path


def test_a_measurement_has_as_many_stages_as_it_says(finished):
    timings = tables.read("timings", finished.measurements())
    for _, own in timings.groupby(["arm", "step"]):
        assert own["stage"].tolist() == ["load", *(stage.name for stage in AT_A_CHECKPOINT)]


def _stamps(run):
    """Of all units but those whose inputs are numbers that were measured: of these, the tables are compared."""
    finished = run.manifest["finished"]
    measured = [unit for unit in finished if unit.startswith(("transfer of ", "tables of "))]
    return {unit: entry["stamp"] for unit, entry in finished.items() if unit not in measured}


def _left(run, checkpoint):
    asked = prompts_asked(study.choose_prompts(run.recipe), study.cases(run))
    return [stage.name for stage in protocol.remaining(run, checkpoint, asked).stages]


RANKED = {"attribution_agreement": ["spearman", "low", "high", "sign"]}
"""Columns of ranks and signs: where sums are in another order, cells that are equal but for rounding change places."""


def _same_tables(run, finished, within=0.0):
    close = {"rtol": 1e-5, "atol": within or 1e-8}
    for name in {*tables.PER_CHECKPOINT, *tables.ACROSS} - WALL_TIMES:
        found, expected = _tables(run, name), _tables(finished, name)
        if within and name in RANKED:
            # Of 5 to 20 cells, two that change places change a rank correlation by less than this.
            pd.testing.assert_frame_equal(found[RANKED[name]], expected[RANKED[name]], obj=name, rtol=0, atol=0.2)
            found, expected = found.drop(columns=RANKED[name]), expected.drop(columns=RANKED[name])
        pd.testing.assert_frame_equal(found, expected, obj=name, **close)


class Killed(BaseException):
    """As a kill that no handler sees."""


def test_killed_in_every_stage_of_a_checkpoint_it_ends_in_the_same_tables(finished, tmp_path, monkeypatch):
    """Killed when a stage has done its work and nothing of it is kept, and when its files stand without a stamp."""
    run = study.open(shutil.copytree(finished.folder, tmp_path / "run"))
    checkpoint = run.checkpoint("r2d2", step=12)
    for folder in (run.measurements(checkpoint), run.answers(checkpoint, "none").parent):
        shutil.rmtree(folder)
    run.update({"finished": {f"{stage.name} of {checkpoint.id}": None for stage in AT_A_CHECKPOINT}})
    taken, make, update = [], Stage.make, study.Run.update
    model = models.load_hooked(checkpoint)
    monkeypatch.setattr(protocol, "load_hooked", lambda _: model)  # once for all, which takes most of the time
    for number, stage in enumerate(AT_A_CHECKPOINT):

        def killed(self, subject, inputs, last=stage.name):
            taken.append(self.name)
            made = make(self, subject, inputs)
            if self.name == last:
                raise Killed
            return made

        def unstamped(self, changes, last=f"{stage.name} of {checkpoint.id}"):
            if changes.get("finished", {}).get(last):
                raise Killed
            update(self, changes)

        for owner, name, killing in ((Stage, "make", killed), (study.Run, "update", unstamped)):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, killing)
                with pytest.raises(Killed):
                    study.measure(run)
            assert _left(run, checkpoint) == [each.name for each in AT_A_CHECKPOINT[number:]]
    names = [stage.name for stage in AT_A_CHECKPOINT]
    again = [name for pair in pairwise(names) for name in pair]  # the one without a stamp, and the next
    assert taken == [names[0], *again], "what was finished was taken again"
    study.measure(run)
    _same_tables(run, finished)
    assert _stamps(run) == _stamps(finished)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_or_missing_file_is_made_again(finished, tmp_path, damage):
    run = study.open(shutil.copytree(finished.folder, tmp_path / "run"))
    checkpoint = run.checkpoint("sft", step=6)
    damage(run.measurements(checkpoint) / "overlap.parquet")
    damage(run.locked_directions(checkpoint))
    damage(run.answers(checkpoint, "none"))
    damage(run.measurements() / "drift.parquet")
    damage(run.folder / "cases" / "gcg-base.parquet")
    assert _left(run, checkpoint) == ["answers", "directions", "over-refusal overlap"]
    study.measure(run)
    _same_tables(run, finished)
    own, other = (Directions.load(each.locked_directions(checkpoint), weights=None) for each in (run, finished))
    torch.testing.assert_close(own.sums, other.sums)


def test_changed_settings_measure_anew_what_hangs_on_them(finished, tmp_path):
    recipe = finished.recipe
    recipe = dataclasses.replace(
        recipe,
        causal=dataclasses.replace(recipe.causal, n_nodes=2),
        geometry=dataclasses.replace(recipe.geometry, n_coupled=0),
    )
    run = study.Run(shutil.copytree(finished.folder, tmp_path / "run"), recipe)
    before = _stamps(run)
    study.measure(run)
    after = _stamps(run)
    anew = {unit for unit in after if before[unit] != after[unit]}
    ids = [checkpoint.id for checkpoint in run.checkpoints()]
    stages = ("harmfulness and refusal", "circuit")
    assert anew == {f"{name} of {each}" for name in stages for each in ids}
    for name in ("coupling", "linear_probes"):
        assert not (run.measurements() / f"{name}.parquet").exists(), "what is not measured any more stands there still"
    nodes = tables.read("circuit_nodes", run.measurements()).groupby(["arm", "step"])["kept"].sum()
    assert nodes.max() <= 2
    for name in {"carrier", "patching", "verdicts", "rates", "relocation", "transfer"}:
        pd.testing.assert_frame_equal(_tables(run, name), _tables(finished, name), obj=name)


def test_a_full_disk_stops_a_stage_and_leaves_nothing_of_it(finished, tmp_path, monkeypatch):
    run = study.open(shutil.copytree(finished.folder, tmp_path / "run"))
    checkpoint = run.checkpoint("sft", step=6)
    path = run.measurements(checkpoint) / "knockout_prompts.parquet"
    path.unlink()
    write = caching.write

    def full(where, content):
        if where == path:
            raise OSError(28, "No space left on device", str(where))
        return write(where, content)

    with monkeypatch.context() as patch:
        patch.setattr(caching, "write", full)
        with pytest.raises(OSError, match="No space left"):
            study.measure(run)
    assert not path.exists()
    assert run.finished("knock-out", checkpoint.id) is None
    assert not list(run.folder.rglob(".*")), "drafts are left"
    study.measure(run)
    _same_tables(run, finished)


def test_a_checkpoint_that_fails_is_reported_when_the_others_are_finished(finished, tmp_path, monkeypatch):
    run = study.open(shutil.copytree(finished.folder, tmp_path / "run"))
    first, second = run.checkpoint("sft", step=6), run.checkpoint("r2d2", step=6)
    for checkpoint in (first, second):
        run.update({"finished": {f"{LAST} of {checkpoint.id}": None}})
    make, tried = Stage.make, []

    def failing(self, subject, inputs):
        if self.name == LAST and subject.checkpoint.id == first.id:
            tried.append(first.id)
            raise ValueError("an odd rate")
        return make(self, subject, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "make", failing)
        said = rf"^{first.id} failed in stage '{LAST}': ValueError: an odd rate \(log: .*/{first.id}.3.log\)$"
        with pytest.raises(RuntimeError, match=said):
            study.measure(run)
    assert len(tried) == 3
    assert run.finished(LAST, second.id) is not None
    study.measure(run)
    _same_tables(run, finished)
    assert not (run.folder / "workers").exists()


def test_a_diverged_checkpoint_is_named_before_it_is_measured(finished, tmp_path):
    from safetensors.torch import load_file, save_file

    source = finished.checkpoint("sft", step=6)
    folder = tmp_path / "nan"
    model, tokenizer = models.load_causal_lm(source)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MechrefusalError, match=f"weight '{name}' .* holds NaN"):
        models.load_hooked(folder)


def test_the_design_sketch_reads_as_written(finished):
    from mechrefusal import evaluation, geometry, prompts

    run = study.open(finished.folder)
    model = models.load_hooked(run.checkpoint("r2d2", step=12))
    asked = prompts.builtin()
    contrast = asked.direction.take(6)
    metric = evaluation.discover_refusal(model, contrast, max_new_tokens=6)
    directions = geometry.difference_in_means(model, contrast)
    scores = geometry.score(model, directions, asked.validation.take(3), metric)
    selection = geometry.select(scores)
    assert selection.table["admissible"].dtype == bool
    with causal.ablate(model, selection.best, reference="harmless"):
        assert len(evaluation.generate(model, asked.evaluation.harmful[:2], max_new_tokens=3)) == 2
    assert len(causal.patching.heads(model, asked.pairs[:1], metric).top(4)) == 4


def _wait_for(process, reached, seconds=240):
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.is_alive(), f"the run ended by itself with status {process.exitcode}"
        assert time.monotonic() < deadline, "the run did not get that far in time"
        time.sleep(0.05)
