"""The gate stands first: whether it is passed, by how much it is missed, and how sure that is."""

import pandas as pd
from rendering import pages
from synthetic import write_run
from synthetic_behaviour import HOSTILE
from test_terminal import shown

from mechrefusal import tables
from mechrefusal.report import gate, wording
from mechrefusal.report.reading import MeasuredCheckpoint, read_run

NAN = float("nan")


def row(criterion="harmful refused", value=0.68, low=0.58, high=0.76, n=100, threshold=0.8):
    passed = value >= threshold
    return {"criterion": criterion, "value": value, "low": low, "high": high, "n": n, "threshold": threshold} | {
        "passed": passed,
        "judge": "rules",
    }


def of(*rows, arm="sft", step=250):
    table = pd.DataFrame(rows, columns=[*tables.columns("gate")])
    table = table.assign(arm=arm, step=step, weights="")
    return gate.of(MeasuredCheckpoint(f"{arm}-step-{step:05d}", arm, step, {"gate": table}))


def test_a_miss_says_by_how_much_and_of_how_many():
    found = of(row(), row("harmless answered", 0.97, 0.92, 0.99, threshold=0.9))
    assert found.words == "missed: harmful refused by 0.12 (0.68 where 0.80 is needed, n = 100)"
    assert found.named("harmful refused").state == "missed by 0.12"
    assert found.named("harmless answered").state == "passed"
    assert (found.passed, found.word) == (False, "missed")


def test_an_interval_that_holds_the_threshold_is_unsure():
    near = of(row(value=0.75, low=0.62, high=0.85))
    assert near.named("harmful refused").state == "missed by 0.05, unsure"
    assert "within its interval" in near.words
    above = of(row(value=0.82, low=0.7, high=0.9))
    assert (above.word, above.named("harmful refused").state) == ("passed", "passed, unsure")
    assert of(row(value=0.82, low=0.8, high=0.9)).named("harmful refused").state == "passed"
    assert of(row(value=0.797, low=0.7, high=0.9)).named("harmful refused").state == "missed by 0.003, unsure"
    open_end = of(row(low=NAN, high=NAN)).named("harmful refused")
    assert (open_end.state, open_end.interval) == ("missed by 0.12", "no interval")


def test_what_has_no_value_is_not_passed():
    found = of(row(value=NAN, low=NAN, high=NAN, n=0))
    assert found.words == "missed: harmful refused has no value"
    assert found.named("harmful refused").state == "no value"
    assert found.named("utility answered") is None
    nothing = of()
    assert (nothing.passed, nothing.words) == (None, "not measured")


def test_the_summary_counts_by_checkpoint():
    gates = [of(row(), arm="sft"), of(row(value=0.9), arm="r2d2"), of(arm="other", step=3)]
    assert gate.summary(gates) == "Gate passed at r2d2 250; missed at sft 250; not measured at other 3."
    assert gate.summary([]) == ""
    several = [of(row()), of(row(threshold=0.7))]
    assert gate.names(several) == [("harmful refused", "≥ 0.80 or ≥ 0.70")]


def test_the_grid_has_every_checkpoint_and_criterion(run):
    gates = [gate.of(checkpoint) for checkpoint in run.checkpoints]
    grid = gate.grid(gates)
    assert [row[0].text for row in grid.rows] == [f"{c.arm} {c.step}" for c in run.checkpoints]
    assert [head.words for head in grid.heads[2:4]] == ["harmful refused ≥ 0.80", "harmless answered ≥ 0.90"]
    [missed] = [row for row in grid.rows if row[0].text == "sft 250"]
    value = gates[-1].criteria[0].value
    assert (missed[1].text, missed[1].is_strong) == ("missed", True)
    assert missed[2].text == f"{value:.2f} n=60"
    assert f"missed by {0.8 - value:.2f}" in missed[2].detail
    assert "corrected" in missed[2].detail
    assert not gate.grid([of()])


def test_the_terminal_has_it_first(run_folder):
    text = shown(run_folder)
    assert "Gate passed at r2d2 250; missed at sft 250." in text
    value = tables.read("gate", run_folder / "measurements" / "sft-step-00250")["value"].iloc[0]
    assert f"missed by {wording.rate(0.8 - value)}" in text
    assert text.index("Did it learn.") < text.index("\nGate") < text.index("\nBehaviour")


def test_the_index_has_it_first_and_escapes_it(tmp_path):
    folder = write_run(tmp_path / "run", arms=(), anchors=(0,), evaluated=False)
    place = folder / "measurements" / "base-step-00000"
    table = tables.read("gate", place)
    names = [HOSTILE[0], HOSTILE[2], *table["criterion"].iloc[2:]]
    tables.write(table.assign(criterion=names, judge=HOSTILE[3]), "gate", place)
    index, page = pages(folder, "index", "base-step-00000")
    title, first = (
        index.text.index("where refusal lives, and how"),
        index.text.index("base did not by step 0: it missed: "),
    )
    assert title < first < index.text.index("1 checkpoint; judge") < index.text.index("Gate missed at base 0.")
    value = table["value"].iloc[0]
    missed = f"{HOSTILE[0]} by {0.8 - value:.2f} ({value:.2f} where 0.80 is needed, n = 60)"
    assert f"it missed: {missed}." in index.text
    assert HOSTILE[2] in index.text
    assert f"Judge: {HOSTILE[3]}" in index.text
    assert not [tag for tag, _ in index.elements if tag == "img"]
    assert f"Gate: missed: {missed}." in page.text
    assert "What follows describes a model that does not do what it is interpreted for." in page.text
    assert HOSTILE[0] in shown(folder)


def test_a_run_without_a_gate_says_so(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    index, page = pages(tmp_path, "index", "base-step-00000")
    assert "At base, step 0 this was not measured." in index.text
    assert "Gate: not measured" in page.text
    assert "The gate was not measured" in shown(tmp_path)
    assert read_run(tmp_path).checkpoints
