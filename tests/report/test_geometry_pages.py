"""Sentences and sections about the refusal geometry: what stands there, what absent tables leave, what is escaped."""

import dataclasses
import shutil

import pandas as pd
import pytest
from rendering import pages
from synthetic_geometry import BROKEN

from mechrefusal import tables
from mechrefusal.report import embedding, findings
from mechrefusal.report.checkpoint_page import CheckpointPage
from mechrefusal.report.index_page import IndexPage
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow

NEW = (
    "subspaces",
    "overlap",
    "coupling",
    "linear_probes",
    "doses",
    "utility_coupling",
    "candidate_scores",
    "transfer",
    "relocation",
)


def carrier(small_run, name):
    return tables.read("carrier", small_run / "measurements" / name).iloc[0]


def test_a_carrier_is_said_with_its_certainty(small_run, page):
    row = carrier(small_run, "r2d2-step-00050")
    assert f"this candidate wins {row['win_frequency']:.0%}, no candidate is admissible in 2%" in page.text
    assert f"the winning layer lies in {row['layer_low']:.0f} to {row['layer_high']:.0f} (95%)" in page.text
    assert "Its bypass is 0.42 nats [0.05, 0.90] below the runner-up's" in page.text
    assert "NOT a carrier" not in page.text
    low, high = (f"layer {row[f'layer_half_{end}']:.0f}" for end in ("low", "high"))
    among = "halves of the direction prompts, among the likeliest candidates"
    assert f"Two {among}, choose {low} and {high}." in page.text
    told = findings.stability({**row.to_dict(), "layer_half_low": row["layer_half_high"]})
    assert told.endswith(f"choose {high}.")
    for n, which in ((0, "neither has"), (1, "only one has")):
        assert findings.stability({**row.to_dict(), "n_halves": n}).endswith(
            f"Of two {among}, {which} an admissible one."
        )


def test_the_opening_has_its_held_out_auc(small_run, page, base):
    known = tables.read("openings", small_run / "measurements" / "r2d2-step-00050").iloc[0]
    assert f"AUC, held out{known['auc_held_out']:.3f}: of what one half of those completions chooses" in page.text
    assert "AUC, held out–: of what one half" in base.text


def test_without_a_carrier_the_reference_is_named_and_is_not_one(small_run, base):
    row = carrier(small_run, "base-step-00000")
    where = f"layer {row['reference_layer']:.0f}, position −{-row['reference_position']:.0f}"
    rule = "the lowest bypass among those with an admissible KL, or among all where none has one"
    assert f"the best candidate instead ({rule}): {where}" in base.text
    assert "It is NOT a carrier (rejected: " in base.text
    assert "no candidate is admissible in 97%; where one is, the winning layer lies in 4 to 9 (95%)" in base.text


def test_findings_without_a_second_candidate_or_a_reference(small_run):
    row = carrier(small_run, "r2d2-step-00050").to_dict()
    said = findings.stability({**row, "margin": None, "layer_low": None})
    assert "No second candidate is admissible by exact scores." in said
    assert "no interval of the layer" in said
    empty = pd.DataFrame(columns=list(tables.columns("carriers")))
    assert "no candidate to look at" in findings.reference({**row, "reference_kind": "none"}, empty)
    assert findings.reference({**row, "reference_kind": "carrier"}, empty) == ""
    assert findings.stability({**row, "n_bootstrap": float("nan")}) == ""


def test_the_smallest_subspace_is_a_sentence(small_run, page, base):
    table = tables.read("subspaces", small_run / "measurements" / "r2d2-step-00050")
    row = table[table["smallest"].astype(bool)].iloc[0]
    assert f"2 directions are enough (cone (learned)): {row['share_of_best']:.0%} of the best" in page.text
    assert "No subspace is enough: no subspace is admissible" in base.text
    one = findings.smallest_subspace(table.assign(smallest=table["k"] == 1))
    assert one.startswith("One direction is enough (categories of harm)")


def test_utility_coupling_has_interval_and_control(page):
    assert "ablate, refusal harmful and loss harmless: 0.1" in page.text
    assert "; a random direction 0.020; n = 32." in page.text


def test_reasons_are_listed_and_escaped(page, base, index):
    assert f"the cosine of the directions: {BROKEN}" in base.text
    assert f"refused: {BROKEN} (30 rows)" in base.text
    assert f"cosine: {BROKEN}" in page.text
    assert f"no value ({BROKEN})" in page.text
    assert BROKEN in index.text
    for found in (page, base, index):
        assert not [tag for tag, _ in found.elements if tag in ("img", "i")]


def test_relocations_have_one_line_a_pair_and_reasons_by_measure(run_folder):
    table = tables.read("relocation", run_folder / "measurements")
    pairs = findings.relocations(table)
    assert len(pairs) == len(table[table["measure"] == "overall"])
    by_pair = {pair["pair"]: pair for pair in pairs}
    assert by_pair["sft 50 → sft 100"]["verdict"] == "not moved"
    moved = by_pair["r2d2 50 → r2d2 100"]
    assert (moved["verdict"], moved["sign"], moved["kind"]) == ("moved", "●", "moved")
    assert [m["measure"] for m in moved["measures"]] == ["the depth of the carrier", "the cosine of the directions"]
    assert [m["name"] for m in moved["measures"]] == ["carrier_layer", "direction_cosine"]
    assert moved["measures"][1]["interval"] == "[0.600, 0.800]"
    alone = findings.relocations(table[table["measure"] != "overall"].assign(verdict="<b>odd</b>"))
    assert {pair["verdict"] for pair in alone} == {"not judged"}
    assert alone[0]["measures"][0]["kind"] == "unsure"


def test_what_cannot_be_told_keeps_its_reason_and_what_would_decide(run_folder):
    table = tables.read("relocation", run_folder / "measurements")
    assert not findings.says_what_decides(table)
    unsure = [pair for pair in findings.relocations(table) if pair["verdict"] == "cannot tell"]
    assert unsure
    assert {(pair["reason"], pair["to_decide"]) for pair in unsure} == {(BROKEN, "–")}
    needed = table.assign(n_to_decide=[1200.0 if measure == "carrier_layer" else None for measure in table["measure"]])
    assert findings.says_what_decides(needed)
    measures = findings.relocations(needed)[0]["measures"]
    assert [m["to_decide"] for m in measures] == ["1\u202f200", "–"]
    silent = findings.relocations(table.assign(reason="", verdict="cannot tell"))
    assert {pair["reason"] for pair in silent} == {"no reason given"}


def test_the_column_of_prompts_that_would_decide_is_there_only_where_it_is_known(run_folder, run):
    table = tables.read("relocation", run_folder / "measurements")
    for n, there in ((None, False), (340.0, True)):
        own = table if n is None else table.assign(n_to_decide=n)
        own.loc[own["measure"] == "direction_cosine", "n_to_decide"] = float("nan")
        page = IndexPage(dataclasses.replace(run, across={**run.across, "relocation": own}))
        template = embedding.environment().get_template("relocation.html")
        text = template.render(page=page, run=run, findings=findings)
        assert ("prompts that would decide" in text) is there
        assert ("340 prompts would decide" in text) is there
        assert ('title="across 0.71' in text) is there
        assert "<img" not in text


def test_the_index_shows_verdicts_and_certainty(small_run, index):
    assert "? cannot tell" in index.text
    row = carrier(small_run, "r2d2-step-00050")
    assert f"{row['layer_low']:.0f}–{row['layer_high']:.0f} (95%)" in index.text
    assert "wins 71%" in index.text
    titles = index.titles
    for title in (
        "Refusal that a checkpoint's carrier takes away at another",
        "Refusal of harmless prompts that a checkpoint's carrier causes at another",
        "Directions that refusal takes, over training",
        "Projection auc, over training",
        "Induce carrier: refusal harmful and loss harmless, over training",
    ):
        assert title in titles
    assert "Cosine of the two directions, over training" not in titles  # by layer: on the checkpoints' pages


def test_every_new_figure_is_on_the_page(page):
    titles = page.titles
    for title in (
        "How often each candidate is chosen when prompts are drawn again",
        "How many directions refusal takes",
        "What more and more of an intervention does: ablate carrier",
        "What more and more of an intervention does: induce carrier",
        "Over-refusal overlap",
        "Harmfulness and refusal",
        "Cosine of the two directions, by layer",
        "Can a linear probe tell: Harmful or harmless",
        "Can a linear probe tell: Harmful: refused or answered",
        "Can a linear probe tell: Safe: refused or answered",
    ):
        assert title in titles


def test_a_run_without_these_tables_has_a_report(tmp_path, small_run):
    folder = tmp_path / "run"
    shutil.copytree(small_run / "measurements", folder / "measurements")
    for name in NEW:
        for path in folder.rglob(f"{name}.parquet"):
            path.unlink()
    nothing = {name: {"zero_distance": float("nan")} for name in ("carrier", "directions")}
    nothing["carrier"] |= {"n_bootstrap": None, "layer": None}
    nothing["carriers"] = {"win_frequency": float("nan")}
    for name, values in nothing.items():
        for place in (folder / "measurements").glob("*-step-*"):
            tables.write(tables.read(name, place).assign(**values), name, place)
    index, page = pages(folder, "index", "r2d2-step-00050")
    assert "Whether refusal moved was not judged." in index.text
    assert "Transfer was not measured" in index.text
    assert "Subspaces, utility coupling, overlap and coupling were not measured" in index.text
    assert "Drift was not measured" not in index.text
    for said in (
        *("Subspaces were not scored", "Overlap was not measured", "Coupling was not measured"),
        *("Linear probes were not trained", "Doses were not measured", "Utility coupling was not measured"),
    ):
        assert said in page.text
    assert "Over 1000 bootstraps" not in page.text
    assert "wins 71%" not in index.text
    assert "Where zero lies was not measured" in index.text
    assert "Candidate directions: refusal left on harmful prompts when ablated (bypass)" in page.titles
    assert "How often each candidate is chosen when prompts are drawn again" not in page.titles


def test_an_instead_without_a_place_is_none(small_run):
    run = read_run(small_run)
    checkpoint = run.checkpoints[0]
    table = checkpoint.tables["carrier"]

    def instead(changed):
        own = dataclasses.replace(checkpoint, tables={**checkpoint.tables, "carrier": changed})
        return CheckpointPage(dataclasses.replace(run, checkpoints=(own,)), own).instead

    assert instead(table) is not None
    assert instead(table.assign(reference_kind="none")) is None
    assert instead(table.iloc[:0]) is None
