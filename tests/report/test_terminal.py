"""The summary fits a terminal, keeps the numbers, and obeys nothing that a table says."""

import io
import json

import pytest
from rich.console import Console
from synthetic import HOSTILE, write_run

from mechrefusal import report, tables
from mechrefusal.report import wording
from mechrefusal.report.reading import read_run


def shown(folder, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False, color_system=None).print(report.summary(folder))
    return stream.getvalue()


def test_summary_has_every_checkpoint_and_fits(run_folder):
    text = shown(run_folder)
    assert max(map(len, text.splitlines())) <= 100
    for name in (
        "base 0",
        "sft 50",
        "r2d2 250",
        "gcg",
        "n=24",
        "0.10 n=60",
        "L19.H3",
        "bypass",
        "layer",
        "What was trained.",
    ):
        assert name in text
    assert "no admissible" in text
    assert "(88)" in text
    assert "\x1b" not in text


def test_summary_has_one_table_a_judge_suite_and_side(run_folder):
    text = shown(run_folder)
    assert [text.count(f"{name} prompts") for name in ("harmbench, harmful", "xstest, harmless")] == [2, 1]
    rates = tables.read("rates", run_folder / "measurements")
    own = rates[(rates["suite"] == "xstest") & (rates["side"] == "harmless") & (rates["by"] == "all")]
    own = own[(own["arm"] == "r2d2") & (own["step"] == 250) & (own["intervention"] == "none")].set_index("metric")
    cells = [wording.rate(own.loc["any_refusal", name]) for name in ("value", "low", "high")]
    lines = text[text.index("xstest, harmless prompts") :].splitlines()
    place = next(number for number, line in enumerate(lines) if "r2d2 250" in line)
    assert lines[place].split()[2] == cells[0]
    assert lines[place + 1].split()[0] == f"{cells[1]}–{cells[2]}"
    assert "ablate:best" not in text
    assert "judge of harm:" in " ".join(text.split())


@pytest.mark.parametrize("hostile", ["[/nothing] [bold]x[/bold]", HOSTILE[7]])
def test_markup_and_control_characters_are_text(tmp_path, hostile):
    folder = write_run(tmp_path / "run", arms=(), anchors=(0,))
    place = folder / "measurements" / "base-step-00000"
    table = tables.read("carrier", place)
    tables.write(table.assign(reason=hostile), "carrier", place)
    text = shown(folder, 120)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]" in text


def test_carriers_have_zero_beside_them(run_folder):
    text = shown(run_folder)
    row = tables.read("carrier", run_folder / "measurements" / "r2d2-step-00250").iloc[0]
    line = next(line for line in text[text.index("\nCarrier") :].splitlines() if "r2d2 250" in line)
    cells = [wording.number(row["bypass_zero"]), wording.number(row["kl_zero"], 3)]
    assert " ".join([*cells, "yes" if row["admissible_zero"] else "no"]) in " ".join(line.split())
    assert "Ablated to: harmless mean." in text


def test_summary_ends_with_wall_times(run_folder):
    text = shown(run_folder)
    last = text[text.index("\nWall time") :]
    assert "Suites" not in last
    stages = tables.read("stages", run_folder / "measurements").set_index("stage")["seconds"]
    line = next(line for line in last.splitlines() if "train r2d2" in line)
    took = stages["train r2d2"]
    assert line.split()[2:] == [*wording.seconds(took).split(), wording.percent(took / stages.sum())]
    run = read_run(run_folder)
    timings = run.together("timings")
    seconds = timings[timings["stage"] == "patching"]["seconds"].sum()
    line = next(line for line in last[last.index("of the measurements") :].splitlines() if "patching" in line)
    assert wording.seconds(seconds) in line
    assert f"All checkpoints ({len(run.checkpoints)})" in last
    assert HOSTILE[0] in last


def test_times_of_checkpoints_that_were_measured_at_once_are_said_to_be_added_up(tmp_path):
    """They overlap: their sum is not how long the run took."""
    folder = write_run(tmp_path / "run", arms=("sft",), anchors=(0, 250))
    total = wording.seconds(tables.read("stages", folder / "measurements")["seconds"].sum())
    text = " ".join(shown(folder).split())
    assert f"Its stages took {total}. " in text
    (folder / "manifest.json").write_text(json.dumps({"at_once": {"a": 1, "b": 2}}), encoding="utf-8")
    text = " ".join(shown(folder).split())
    assert f"Its stages took {total}, added up; up to 2 checkpoints were measured at once." in text
    assert f"Stages of the run, added up {total}; up to 2 checkpoints were measured at once." in text


def test_steps_that_were_skipped_are_counted(tmp_path):
    folder = write_run(tmp_path / "run", arms=(), anchors=(0,))
    place = folder / "measurements" / "base-step-00000"
    table = tables.read("timings", place)
    notes = ["[bold]too few[/bold]" if stage == "patching" else "" for stage in table["stage"]]
    seconds = [float("nan") if stage == "carriers" else 1.0 for stage in table["stage"]]
    tables.write(table.assign(note=notes, seconds=seconds), "timings", place)
    (folder / "measurements" / "stages.parquet").unlink()
    lines = shown(folder).splitlines()
    assert next(line.split()[-1] for line in lines if "patching " in line and "1.0 s" in line) == "1"
    assert next(line.split()[1:] for line in lines if line.strip().startswith("carriers ")) == ["–"] * 5
    assert not [line for line in lines if line.startswith("Stages of the run")]


def test_summary_of_an_empty_run(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    assert "carriers were not measured" in shown(tmp_path)
