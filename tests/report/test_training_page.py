"""The training page holds what its tables say, says what is absent, and stands between links to the index."""

import dataclasses

import pandas as pd
import pytest
from rendering import pages
from synthetic import HOSTILE, write_run
from synthetic_training import OWN_TERM

from mechrefusal import tables
from mechrefusal.report import wording
from mechrefusal.report.reading import read_run
from mechrefusal.report.training_page import CASES_A_GROUP, MethodsPage, TrainingPage, case_groups

TRAINING = ("training", "terms", "refreshes", "probes", "cases")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(run_folder):
    """The index and the training page of the run with two arms."""
    return pages(run_folder, "index", "training")


def test_index_and_training_page_link_to_each_other(written):
    index, page = written
    assert ("a", {"href": "training.html"}) in index.elements
    assert ("a", {"href": "index.html"}) in page.elements
    assert [title for title in index.titles if title.endswith("loss")] == ["Total loss"]
    assert "Share refused: attacked probes during training" in index.titles


def test_every_figure_is_drawn(written):
    _, page = written
    assert page.titles == [
        "Total loss",
        "Utility loss",
        "Away loss (affirmative target)",
        "Toward loss (refusal)",
        f"Loss term {OWN_TERM}",
        "What a refresh gains on the attack cases that training draws",
        "What the attack gains and what training takes back",
        "Age of the attack cases that are renewed",
        "Attack cases renewed at least once",
        "Share refused: harmful probes during training",
        "Share refused: attacked probes during training",
        "Share refused: harmless probes during training",
        "Where the time of a training step goes",
        "Wall time of a step",
        "Gradient norm",
        "Learning rate",
    ]
    assert "Not drawn" not in page.text
    for what in ("training", "attack loss"):
        assert f"No {what} was logged" not in page.text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_cases_are_text_and_shortened(written, hostile):
    _, page = written
    assert wording.shortened(f"Behaviour: {hostile}") in page.text
    assert wording.shortened(f"Attacked: {hostile} " + "! " * 40) in page.text
    assert "end of the suffix" not in page.text
    assert "gcg <i>own</i>" in page.text
    assert not {tag for tag, _ in page.elements} & {"i", "img", "svg"}


def test_case_groups_are_means_of_the_table(run_folder, run):
    table = tables.read("cases", run_folder / "measurements")
    groups = case_groups(table)
    assert list(groups["method"]) == ["gcg", "gcg <i>own</i>"]
    assert list(groups["n"]) == [len(HOSTILE)] * 2
    rows = [r for r in table.itertuples() if r.method == "gcg"]
    known = [r.loss for r in rows if r.loss == r.loss]
    first = groups.iloc[0]
    assert first["loss"] == pytest.approx(sum(known) / len(known))
    assert len(known) == len(rows) - 1
    assert first["forward_tokens"] == pytest.approx(sum(r.forward_tokens for r in rows) / len(rows))
    assert first["dropped"] == sum(r.dropped for r in rows)
    assert pd.isna(first["seconds"])
    many = dataclasses.replace(run, across={**run.across, "cases": pd.concat([table] * 20)})
    assert [(n, len(shown)) for _, _, n, shown in TrainingPage(many).cases] == [(20 * len(HOSTILE), CASES_A_GROUP)] * 2


def test_methods_say_what_each_arm_is(run):
    described = dict(MethodsPage(run, drawn=[]).described)
    assert list(described) == ["base", "r2d2", "sft"]
    assert described["base"][0] == "Measured at step 0."
    assert "torch 2.13.0" in " ".join(described["base"])
    assert described["r2d2"][0] == "Measured at step 50, 100 and 250."
    assert "Trained from the base model" in described["r2d2"][1]
    assert "utility × " in " ".join(described["r2d2"])
    recipe = "arms: {r2d2: {gcg: {steps: 3}}, sft: {method: refat, probability: 0.2}}"
    told = dict(MethodsPage(dataclasses.replace(run, recipe=recipe), drawn=[]).described)
    assert told["r2d2"][-1] == "Settings of its own: gcg (steps 3)."
    assert told["sft"][-2:] == ["Its method: refat.", "Settings of its own: probability 0.2."]


def test_totals_stand_in_the_table(written, run_folder):
    _, page = written
    training = tables.read("training", run_folder / "measurements")
    own = training[training["arm"] == "r2d2"]
    assert wording.grouped(own["attack_tokens"].sum()) in page.text
    assert wording.seconds(own["seconds"].sum()) in page.text
    assert wording.grouped(own["peak_mib"].max()) in page.text


def test_empty_tables_are_named(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    index, page = (page.text for page in pages(tmp_path, "index", "training"))
    for said in (
        "No training was logged",
        "No refreshed case was recorded",
        "No probes were asked",
        "No attack case was made",
    ):
        assert said in page
    assert "No training was logged" in index
    assert "No probes were asked during training" in index
    assert "only an adversarial arm has them" in page


def test_a_run_of_sft_alone(tmp_path):
    [page] = pages(write_run(tmp_path / "run", arms=("sft",), anchors=(0, 50), evaluated=False), "training")
    assert "No refreshed case was recorded; only an adversarial arm has them" in page.text
    assert "Not drawn: cannot draw the attack loss before a refresh: every 'attack_loss_before' is missing" in page.text
    assert page.text.count("Not drawn") == 1


def test_a_run_of_one_step(tmp_path):
    [page] = pages(write_run(tmp_path / "run", arms=("r2d2",), anchors=(0, 1), evaluated=False), "training")
    assert "Not drawn" not in page.text
    assert "no case was refreshed again" in page.text


def test_a_run_says_what_was_not_recorded(tmp_path):
    """Its `training` has the losses and `seconds` only."""
    folder = write_run(tmp_path / "run", arms=("sft", "r2d2"), anchors=(0, 50), evaluated=False)
    for name in ("terms", "refreshes", "probes", "cases"):
        (folder / "measurements" / f"{name}.parquet").unlink()
    old = tables.read("training", folder / "measurements")
    kept = ("arm", "step", "loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after", "seconds")
    tables.write(old.assign(**{c: float("nan") for c in old if c not in kept}), "training", folder / "measurements")
    [page] = pages(folder, "training")
    assert page.titles == [
        "Total loss",
        "Utility loss",
        "Away loss (affirmative target)",
        "Toward loss (refusal)",
        "What a refresh gains on the attack cases that training draws",
        "Wall time of a step",
    ]
    assert "no row of table 'training' has 'seconds' and one of seconds_refresh" in page.text
    assert "every 'grad_norm' is missing" in page.text
    assert "The terms of the loss were not recorded one by one" in page.text


def test_nullable_tables_are_written_like_any_other(tmp_path):
    folder = write_run(tmp_path / "run", arms=("sft", "r2d2"), anchors=(0, 50), evaluated=False)
    place = folder / "measurements"
    for name in TRAINING:
        tables.write(tables.read(name, place).convert_dtypes(), name, place)
    assert read_run(folder).across["training"]["attack_tokens"].dtype.name == "float64"
    assert "Not drawn" not in pages(folder, "training")[0].text
