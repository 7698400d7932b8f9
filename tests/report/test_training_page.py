"""The training page holds what its tables say, says what is absent, and stands between links to the index."""

import pandas as pd
import pytest
from synthetic import HOSTILE, write_run
from synthetic_training import OWN_TERM
from test_pages import Page

from mechrefusal import tables
from mechrefusal.report import embedding, index_page, training_page, wording
from mechrefusal.report.reading import read_run
from mechrefusal.report.training_page import CASES_A_GROUP, case_groups

TRAINING = ("training", "terms", "refreshes", "probes", "cases")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_bundles")]


def pages_of(folder):
    """The index and the training page of a run: those of checkpoints and of an evaluation take most of the time."""
    run, pages = read_run(folder), []
    for name, page in (("index", index_page), ("training", training_page)):
        path = folder / f"{name}.html"
        path.write_text(embedding.page(f"{name}.html", circuits=False, **page.context(run)), encoding="utf-8")
        pages.append(Page(path))
    return pages


@pytest.fixture(scope="module")
def written(run_folder, tmp_path_factory):
    """The index and the training page of the run with two arms."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedding, "plotly_script", lambda: "")
        folder = tmp_path_factory.mktemp("training")
        (folder / "measurements").symlink_to(run_folder / "measurements")
        return pages_of(folder)


def test_index_and_training_page_link_to_each_other(written):
    index, page = written
    assert ("a", {"href": "training.html"}) in index.elements
    assert ("a", {"href": "index.html"}) in page.elements
    titles = [attributes["aria-label"] for _, attributes in index.elements if "aria-label" in attributes]
    assert [title for title in titles if title.endswith("loss")] == ["Total loss"]
    assert "Share refused: attacked probes during training" in titles


def test_every_figure_is_drawn(written):
    _, page = written
    titles = [a["aria-label"] for tag, a in page.elements if tag == "div" and "aria-label" in a]
    assert titles == [
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
    assert "absent or empty" not in page.text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_cases_are_text_and_shortened(written, hostile):
    _, page = written
    assert wording.shortened(f"Behaviour: {hostile}") in page.text
    assert wording.shortened(f"Attacked: {hostile} " + "! " * 40) in page.text
    assert "end of the suffix" not in page.text
    assert "gcg <i>own</i>" in page.text
    assert not {tag for tag, _ in page.elements} & {"i", "img", "svg"}
    assert len([a for tag, a in page.elements if tag == "script" and "type" not in a]) == 2


def test_case_groups_are_means_of_the_table(run_folder):
    table = tables.read("cases", run_folder / "measurements")
    groups = case_groups(table)
    assert [(g["source"], g["method"], g["n"]) for g in groups] == [
        ("base-step-00000", "gcg", len(HOSTILE)),
        ("sha256:cdcdcdcdcdcdcdcdc…", "gcg <i>own</i>", len(HOSTILE)),
    ]
    rows = [r for r in table.itertuples() if r.method == "gcg"]
    known = [r.loss for r in rows if r.loss == r.loss]
    assert groups[0]["loss"] == pytest.approx(sum(known) / len(known))
    assert len(known) == len(rows) - 1
    assert groups[0]["forward_tokens"] == pytest.approx(sum(r.forward_tokens for r in rows) / len(rows))
    assert groups[0]["dropped"] == sum(r.dropped for r in rows)
    assert pd.isna(groups[0]["seconds"])
    many = case_groups(pd.concat([table] * 20))
    assert [(g["n"], len(g["rows"])) for g in many] == [(20 * len(HOSTILE), CASES_A_GROUP)] * 2


def test_totals_stand_in_the_table(written, run_folder):
    _, page = written
    training = tables.read("training", run_folder / "measurements")
    own = training[training["arm"] == "r2d2"]
    assert wording.grouped(own["attack_tokens"].sum()) in page.text
    assert wording.seconds(own["seconds"].sum()) in page.text
    assert f"{wording.grouped(own['peak_mib'].max())} MiB" in page.text


def test_empty_tables_are_named(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    index, page = (page.text for page in pages_of(tmp_path))
    for name in ("training", "refreshes", "probes", "cases"):
        assert f"table {name} is absent or empty" in page
    assert "table training is absent or empty" in index
    assert "table probes is absent or empty" in index
    assert "only an adversarial arm has them" in page


def test_a_run_of_sft_alone(tmp_path):
    page = pages_of(write_run(tmp_path / "run", arms=("sft",), anchors=(0, 50), evaluated=False))[1].text
    assert "No refreshed case was recorded: table refreshes is absent or empty" in page
    assert "Not drawn: cannot draw the attack loss before a refresh: every 'attack_loss_before' is missing" in page
    assert page.count("Not drawn") == 1


def test_a_run_of_one_step(tmp_path):
    page = pages_of(write_run(tmp_path / "run", arms=("r2d2",), anchors=(0, 1), evaluated=False))[1]
    reasons = page.text.count("Not drawn")
    assert reasons == 0
    assert "no case was refreshed again" in page.text


def test_a_run_says_what_was_not_recorded(tmp_path):
    """Its `training` has the losses and `seconds` only."""
    folder = write_run(tmp_path / "run", arms=("sft", "r2d2"), anchors=(0, 50), evaluated=False)
    for name in ("terms", "refreshes", "probes", "cases"):
        (folder / "measurements" / f"{name}.parquet").unlink()
    old = tables.read("training", folder / "measurements")
    kept = ("arm", "step", "loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after", "seconds")
    tables.write(old.assign(**{c: float("nan") for c in old if c not in kept}), "training", folder / "measurements")
    page = pages_of(folder)[1]
    titles = [a["aria-label"] for tag, a in page.elements if tag == "div" and "aria-label" in a]
    assert titles == [
        "Total loss",
        "Utility loss",
        "Away loss (affirmative target)",
        "Toward loss (refusal)",
        "What a refresh gains on the attack cases that training draws",
        "Wall time of a step",
    ]
    assert "no row of table 'training' has 'seconds' and one of seconds_refresh" in page.text
    assert "every 'grad_norm' is missing" in page.text
    assert "table terms is absent or empty" in page.text


def test_nullable_tables_are_written_like_any_other(tmp_path):
    folder = write_run(tmp_path / "run", arms=("sft", "r2d2"), anchors=(0, 50), evaluated=False)
    place = folder / "measurements"
    for name in TRAINING:
        tables.write(tables.read(name, place).convert_dtypes(), name, place)
    assert read_run(folder).across["training"]["attack_tokens"].dtype.name == "float64"
    assert "Not drawn" not in pages_of(folder)[1].text
