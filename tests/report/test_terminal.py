"""The summary fits a terminal, keeps the numbers, and obeys nothing that a table says."""

import io

import pytest
from rich.console import Console
from synthetic import HOSTILE, write_run

from mechrefusal import report
from mechrefusal.report import wording
from mechrefusal.study import tables


def shown(folder, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False, color_system=None).print(report.summary(folder))
    return stream.getvalue()


def test_summary_has_every_checkpoint_and_fits(run_folder):
    text = shown(run_folder)
    assert max(map(len, text.splitlines())) <= 100
    for name in ("base 0", "sft 50", "r2d2 250", "gcg", "n=24", "0.10 n=60", "L19.H3", "bypass", "layer"):
        assert name in text
    assert "no admissible carrier: induce < 0" in text
    assert "\x1b" not in text


def test_summary_has_one_table_of_suites_a_judge(run_folder):
    text = shown(run_folder)
    assert text.count("Suites") == 2
    rates = tables.read("suite_rates", run_folder / "measurements")
    own = rates[(rates["suite"] == "xstest") & (rates["side"] == "harmless") & (rates["by"] == "all")]
    own = own[(own["arm"] == "r2d2") & (own["step"] == 250) & (own["intervention"] == "none")].set_index("metric")
    cells = [wording.rate(own.loc["any_refusal", name]) for name in ("value", "low", "high")]
    assert f"{cells[0]} {cells[1]}–{cells[2]}" in text
    assert "ablate:best" not in text
    assert "Judge of harm:" in text


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


def test_summary_of_an_empty_run(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    assert "carriers were not measured" in shown(tmp_path)
