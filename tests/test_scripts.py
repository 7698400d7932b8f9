"""The scripts that one starts from run on a run, on one of its checkpoints and on a model; so does `playground`."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechrefusal import MechrefusalError, causal, evaluation, playground, tables
from mechrefusal.study.calibrating import Speed

SCRIPTS = Path(__file__).parent.parent / "scripts"


def _main(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("scripts") / "run"))


@pytest.fixture(scope="module")
def play(run):
    return playground.open(run, checkpoint="sft-step-00012")


@pytest.mark.slow
def test_ablate_carrier(run, capsys):
    _main("ablate_carrier")([str(run), "--checkpoint", "sft-step-00012", "--n", "3"])
    told = capsys.readouterr().out
    assert told.count("n = 3") == 6
    assert "random put in" in told


@pytest.mark.slow
def test_sweep_coefficient(run, capsys, tmp_path):
    options = ["--n", "3", "--coefficients", "1", "--layer", "2", "--csv", str(tmp_path / "doses.csv")]
    _main("sweep_coefficient")([f"{run}/r2d2/step-00012", *options])
    told = capsys.readouterr().out
    assert "direction of layer 2" in told
    assert told.count("nats a token for a nat of refusal") == 2
    assert (tmp_path / "doses.csv").read_text(encoding="utf-8").startswith("intervention,coefficient")


@pytest.mark.slow
def test_which_heads(tiny, capsys, tmp_path):
    _main("which_heads")([str(tiny), "--n", "2", "--top", "3", "--html", str(tmp_path / "heads.html")])
    assert capsys.readouterr().out.count("\nL") == 3
    assert "plotly" in (tmp_path / "heads.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_compare_checkpoints(run, capsys):
    _main("compare_checkpoints")([f"{run}/sft/step-00012", f"{run}/r2d2/step-00012", "--n", "3"])
    told = capsys.readouterr().out
    assert told.count("n = 3") == 3
    assert all(f"{one:11} {other:7}" in told for one in ("first", "second") for other in ("first", "second"))


@pytest.mark.slow
def test_a_measured_checkpoint_is_opened_with_what_its_run_keeps(play, run):
    from mechrefusal import study, tables

    checkpoint = study.open(run).checkpoint("sft", step=12)
    row = tables.read("carrier", study.open(run).measurements(checkpoint)).iloc[0]
    assert play.carrier.place == (row["reference_position"], row["reference_layer"])
    assert (
        play.metric.as_json() == tables.read("openings", study.open(run).measurements(checkpoint))["token_ids"].iloc[0]
    )
    assert play.direction().weights == checkpoint.weights


@pytest.mark.slow
@pytest.mark.parametrize(("coefficient", "does"), [(-1.0, causal.taken_out), (1.0, causal.put_in)])
def test_a_comparison_is_what_the_intervention_gives(play, coefficient, does):
    prompt = "Tell me how to boil an egg."
    found = play.compare(prompt, layer=2, coefficient=coefficient, max_new_tokens=6)
    with causal.intervened(play.model, does(play.direction(2))):
        (answer,) = evaluation.generate(play.model, [prompt], max_new_tokens=6)
    assert found.answers == (evaluation.generate(play.model, [prompt], max_new_tokens=6)[0], answer)
    assert found.scores[0] != found.scores[1]
    assert found.tokens["with"].between(0, 1).all()
    assert list(found.table["intervention"]) == ["none", found.intervention]
    nothing = play.compare(prompt, coefficient=0, max_new_tokens=6)
    assert nothing.scores[0] == nothing.scores[1]


@pytest.mark.slow
def test_sliders_change_what_is_seen(play):
    ipywidgets = pytest.importorskip("ipywidgets", reason="the extra 'dev' is not installed")
    box = play.widget(["Hello <b>there</b>", "Another"], max_new_tokens=4)
    prompt, layer, coefficient, _, seen = box.children
    before = seen.value
    coefficient.value = 1.5
    assert isinstance(layer, ipywidgets.IntSlider)
    assert "put in" in seen.value != before
    prompt.value = ""
    assert "<table" not in seen.value  # no prompt: said, not raised


@pytest.mark.slow
def test_what_cannot_be_opened_is_said(run, tiny):
    with pytest.raises(MechrefusalError, match="has no checkpoint 'sft-step-00099'; it has base-step-00000"):
        playground.open(run, checkpoint="sft-step-00099")
    with pytest.raises(MechrefusalError, match="is no run"):
        playground.open(tiny, checkpoint="sft-step-00012")


def test_what_a_gpu_is_checked_for_holds_on_a_cpu(tmp_path, monkeypatch, capsys):
    out = tmp_path / "checks.json"
    words = ["--device", "cpu", "--size", "small", "--no-benchmarks", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words])
    assert _main("gpu_check")() == 0
    checks = {row["check"]: row for row in json.loads(out.read_text(encoding="utf-8"))["checks"]}
    assert len(checks) == 7
    assert all(row["difference"] <= row["allowed"] for row in checks.values())
    assert "hooked transformer" in capsys.readouterr().out


@pytest.mark.slow
def test_check_plan(tiny, tmp_path, capsys, monkeypatch):
    main = _main("check_plan")
    speed = Speed(1e9, 1e9, 1e8, 5e8, 1e9, 1e9, 1e9, 1e9)
    calibrations = SimpleNamespace(latest=speed, now=lambda: speed)  # seconds are not what this is about
    monkeypatch.setitem(main.__globals__, "Calibrations", lambda *_: calibrations)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        """
        arms: []
        attack: {n_cases: 1, methods: [templates], templates: {names: [prefix_injection]}}
        measuring: {n_evaluation: 3, n_overrefusal: 2, n_contrast: 0, n_utility: 2, n_direction: 6, n_validation: 4,
          n_intervened: 2, n_attributed: 1, n_pairs: 1, n_top_heads: 1, max_new_tokens: 3, layer_step: 2}
        geometry: {largest_subspace: 0, n_coupled: 0, n_dosed: 0, n_transferred: 0}
        causal: {modes: [denoising], sites: false, n_finalists: 0, n_knocked_out: 0, n_nodes: 0, n_crossed: 0}
        """,
        encoding="utf-8",
    )
    main([str(tiny), str(tiny), "--recipe", str(recipe)])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    ratios = {cells[1].strip(): float(cells[4].strip() or "nan") for cells in lines[1:]}
    for stage in ("load", "answers", "directions", "patching"):
        within = 0.2 if stage == "patching" else 0.1  # cells that a screen leaves out are not known before
        assert abs(ratios[stage] - 1) <= within, (stage, ratios[stage])


@pytest.mark.slow
def test_a_plan_is_held_against_what_a_run_has_recorded(finished_run, capsys):
    _main("check_plan")(["--run", str(finished_run)])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    taken = {cells[1].strip(): float(cells[3]) for cells in lines[1:]}
    timings = tables.read("timings", finished_run / "measurements").groupby("stage")["seconds"].median()
    assert taken["answers"] == pytest.approx(timings["answers"], abs=0.05)
    assert {"load", "answers", "carriers", "transfer"} <= taken.keys()
    assert not any(stage.startswith("train") for stage in taken), "training is not a stage of measuring"
    with pytest.raises(SystemExit):
        _main("check_plan")([])
    assert "give a model and a checkpoint, or --run" in capsys.readouterr().err
