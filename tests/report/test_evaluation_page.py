"""The evaluation page holds what its tables say, says what is absent, shortens answers, and is linked where it is."""

import json
import random

import pandas as pd
import pytest
from synthetic import HOSTILE
from synthetic_evaluation import HARM_JUDGE, JUDGE, SECRET, evaluation_tables
from test_pages import Page

from mechrefusal import report, tables
from mechrefusal.report import embedding, evaluation_findings, evaluation_page, stress_findings, wording
from mechrefusal.report.reading import BEHAVIOUR, EVALUATION, read_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn_once")]

CHECKPOINTS = (("base", 0), ("sft", 50), ("r2d2", 50), ("r2d2", 100))


def write_tables(folder, made):
    """A run of these tables and nothing else."""
    place = folder / "measurements"
    place.mkdir(parents=True)
    for name, rows in made.items():
        tables.write(pd.DataFrame(rows), name, place)
    return folder


@pytest.fixture(scope="module")
def made():
    return {name: pd.DataFrame(rows) for name, rows in evaluation_tables(CHECKPOINTS, hostile=HOSTILE).items()}


@pytest.fixture(scope="module")
def evaluated(made, tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("evaluated") / "run", made)


def written(folder, *, show_completions=False):
    """The evaluation page of a run, without plotly's megabytes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embedding, "plotly_script", lambda: "")
        found = evaluation_page.context(read_run(folder), show_completions=show_completions)
        path = folder / f"evaluation-{random.random()}.html"
        path.write_text(embedding.page("evaluation.html", circuits=False, **found), encoding="utf-8")
    return Page(path)


@pytest.fixture(scope="module")
def shown(evaluated):
    return written(evaluated)


def titles(page):
    return [a["aria-label"] for tag, a in page.elements if tag == "div" and "aria-label" in a]


def test_every_section_is_filled(shown):
    assert "absent or empty" not in shown.text
    assert "Not drawn" not in shown.text
    drawn = titles(shown)
    for title in (
        "Success against over-refusal on xstest",
        "Success against utility on alpaca",
        "Share refused: xstest, harmless prompts",
        "Attack success: harmbench, harmful prompts, by group",
        "Change of attack success: harmbench, harmful prompts",
        "What interventions change: share refused: xstest, harmful prompts",
        "How much less likely training made the base model's own answers: alpaca",
        "How success of attacks grows with their steps",
        "Where gcg attacks made against one checkpoint succeed",
        "What becomes of gcg attacks: refused for the request, or for the suffix",
    ):
        assert title in drawn, title
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert tag not in ("img", "svg", "i", "b-")
    data = [text for attributes, text in shown.scripts if "data-plot" in attributes]
    assert len(data) == len(drawn)
    for text in data:
        json.loads(text)


def test_control_and_differences_of_attacks_are_the_tables(shown, made, evaluated):
    [group] = stress_findings.control(made["stress_control"])
    assert [(row["arm"], row["step"]) for row in group["rows"]] == [
        ("base", "0"),
        ("r2d2", "50"),
        ("r2d2", "100"),
        ("sft", "50"),
    ]
    own = made["stress_control"]
    for row in group["rows"]:
        at = own[(own["arm"] == row["arm"]) & (own["step"] == int(row["step"]))]
        assert [cell["value"] for cell in row["cells"]] == [
            wording.rate(at[(at["suffix"] == suffix) & (at["metric"] == metric)]["value"].iloc[0])
            for suffix, metric in (
                ("none", "answered"),
                ("attacked", "answered"),
                ("none", "refused"),
                ("attacked", "refused"),
                ("attacked", "attack_success"),
                ("attacked", "robust"),
                ("attacked", "refuses_suffix"),
            )
        ]
        assert (row["n"], row["nulls"]) == ("24", "0")
    [group] = stress_findings.differences(made["stress_differences"])
    kinds = [row["kind"] for row in group["rows"]]
    assert kinds == ["last of two arms"] * 6 + ["since the base"] * 9 + ["since the anchor before"] * 3
    assert sum(row["is_clear"] for row in group["rows"]) == int(
        ((made["stress_differences"]["low"] > 0) | (made["stress_differences"]["high"] < 0)).sum()
    )
    text = shown.text[shown.text.index("Which checkpoint is more robust?") :]
    row = group["rows"][0]
    for said in (row["from"], row["to"], row["means"], row["difference"], row["interval"], "1 / 7", row["p"]):
        assert said in text
    html = embedding.page("evaluation.html", circuits=False, **shown_context(evaluated))
    for row in group["rows"]:
        bold = f"<b>{row['difference']}</b>" if row["is_clear"] else f">{row['difference']}"
        assert f'{bold} <span class="detail">{row["interval"]}</span>' in html


def shown_context(folder):
    return evaluation_page.context(read_run(folder), show_completions=False)


def test_headline_is_the_table_one_judge_at_a_time(made):
    judges = evaluation_findings.headline(made["rates"])
    assert [(j["judge"], j["kind"]) for j in judges] == [(JUDGE, "refusal"), (HARM_JUDGE, "harm")]
    by_name = {(part["suite"], part["side"]): part for part in judges[0]["suites"]}
    assert list(by_name) == [
        ("harmbench", "harmful"),
        ("xstest", "harmful"),
        ("xstest", "harmless"),
        ("alpaca", "harmless"),
    ]
    part = by_name["xstest", "harmless"]
    assert part["metrics"] == ["any refusal", "full refusal", "partial refusal", "answered", "degenerate"]
    assert by_name["alpaca", "harmless"]["metrics"] == ["any refusal", "answered", "degenerate"]
    assert judges[1]["suites"][0]["metrics"] == ["attack success", "score"]
    own = made["rates"]
    own = own[(own["suite"] == "xstest") & (own["side"] == "harmless") & (own["by"] == "all")]
    rows = {(row["arm"], row["step"], row["intervention"]): row for row in part["rows"]}
    assert len(rows) == 2 * len(CHECKPOINTS) - 1
    for r in own[own["metric"] == "answered"].itertuples():
        row = rows[r.arm, str(r.step), "" if r.intervention == "none" else r.intervention]
        assert row["cells"][3]["value"] == wording.rate(r.value)
        assert row["cells"][3]["interval"] == f"{wording.rate(r.low)}–{wording.rate(r.high)}"
        assert row["n"] == str(r.n)
    nulls = {row["nulls"] for row in judges[1]["suites"][1]["rows"]}
    assert nulls == {"1"}
    assert [row["arm"] for row in part["rows"]] == ["base", "r2d2", "r2d2", "r2d2", "r2d2", "sft", "sft"]


def test_answers_are_shortened_unless_asked(evaluated, shown):
    answers = shown.text[shown.text.index("Answers to harmful requests are shortened") :]
    harmful = answers[: answers.index("alpaca:")]
    assert "(shortened where harmful)" in harmful
    xstest = harmful[harmful.index("xstest:") :]
    assert SECRET not in harmful[: harmful.index("xstest:")]
    assert SECRET in answers[answers.index("alpaca:") :]  # harmless answers are whole
    assert " · harmful" in xstest
    whole = written(evaluated, show_completions=True)
    assert SECRET in whole.text[whole.text.index("harmbench: 12 of") :].split("xstest:")[0]


def test_samples_are_those_on_which_judges_disagree(made):
    groups = {g["suite"]: g for g in evaluation_findings.samples(made["verdicts"], show_completions=False)}
    keys = ["arm", "step", "prompt_id", "attack", "intervention"]
    for suite in ("harmbench", "xstest"):
        own = made["verdicts"][made["verdicts"]["suite"] == suite]
        answers = own.pivot(index=keys, columns="judge", values="label").dropna()
        complied = answers[JUDGE] == "full_compliance"
        assert groups[suite]["disputed"] == int((complied != (answers[HARM_JUDGE] == "harmful")).sum()) > 12
        assert len(groups[suite]["rows"]) == 12
        assert all(len(row["verdicts"]) == 2 for row in groups[suite]["rows"])
    alpaca = groups["alpaca"]
    assert alpaca["disputed"] == 0
    labels = [row["verdicts"][0]["label"] for row in alpaca["rows"]]
    found = made["verdicts"][made["verdicts"]["suite"] == "alpaca"]["label"].value_counts()
    assert {wording.metric_name(label): min(4, n) for label, n in found.items()} == {
        label: labels.count(label) for label in set(labels)
    }


@pytest.mark.parametrize(
    ("given", "disputed"),
    [
        ([("refusal", "full_refusal"), ("refusal", "partial_refusal")], True),
        ([("refusal", "full_refusal"), ("harm", "harmless")], False),
        ([("refusal", "full_compliance"), ("harm", "harmless")], True),
        ([("refusal", "full_refusal"), ("harm", "harmful")], True),
        ([("refusal", "full_refusal"), ("harm", None)], False),
        ([("refusal", "degenerate")], False),
    ],
)
def test_disagreement(given, disputed):
    assert evaluation_findings.disagree(given) is disputed


def test_leaks_are_counted_and_shortened(shown, made):
    groups = evaluation_findings.leaks(made["leaks"])
    assert [(g["set_b"], g["kind"], g["n"], len(g["rows"])) for g in groups] == [
        ("training <b>", "exact", len(HOSTILE), 5),
        ("direction", "near", len(HOSTILE), 5),
    ]
    assert max(len(row["text"]) for g in groups for row in g["rows"]) <= evaluation_findings.LONGEST_LEAK + 1
    assert "5 of 8 (shortened)" in shown.text


@pytest.mark.parametrize("name", [*BEHAVIOUR, *EVALUATION])
def test_any_table_may_be_absent_or_alone(tmp_path, made, name):
    rest = {other: rows for other, rows in made.items() if other != name}
    text = written(write_tables(tmp_path / "rest", rest)).text
    if name == "judge_agreement":
        assert "Judges were not compared: table judge_agreement" in text
    else:
        assert f"table {name} is absent or empty" in text
    alone = write_tables(tmp_path / "alone", {name: made[name]})
    assert read_run(alone).evaluated
    text = written(alone).text
    assert "mechrefusal evaluate RUN --suite xstest=PATH" in text
    written(write_tables(tmp_path / "empty", {name: made[name].iloc[:0]}))
    report.summary(alone)


def test_no_leak_is_not_the_same_as_not_looked_for(tmp_path, made):
    folder = write_tables(tmp_path / "run", {"verdicts": made["verdicts"], "leaks": made["leaks"].iloc[:0]})
    assert "No prompt of the suites was found among those" in written(folder).text
    (folder / "measurements" / "leaks.parquet").unlink()
    assert "Leaks were not looked for" in written(folder).text


def test_one_judge_needs_no_agreement(tmp_path, made):
    own = made["rates"][made["rates"]["judge"] == JUDGE]
    assert "One judge has judged" in written(write_tables(tmp_path / "run", {"rates": own})).text


@pytest.mark.parametrize("columns", ["numbers", "texts", "both"])
def test_values_may_be_missing(tmp_path, made, columns):
    numbers, texts = columns in ("numbers", "both"), columns in ("texts", "both")
    changed = {}
    for name, table in made.items():
        table, dtypes = table.copy(), dict(tables.describe(name)[["column", "dtype"]].itertuples(index=False))
        for place, column in enumerate(table):
            if dtypes[column] in ("int64", "bool"):
                continue  # it has a value in every row
            of_numbers = pd.api.types.is_numeric_dtype(table[column])
            if numbers if of_numbers else texts:
                table[column] = table[column].where([row % 3 != place % 3 for row in range(len(table))])
        changed[name] = table
    text = written(write_tables(tmp_path / "run", changed)).text
    assert "Headline" in text
    report.summary(tmp_path / "run")


@pytest.mark.parametrize("hostile", [*HOSTILE, "x" * 10_000])
def test_any_text_is_text(tmp_path, made, hostile):
    keep = {"kind", "side", "by", "metric", "pair"}
    changed = {
        name: table.assign(
            **{c: hostile for c in table if c not in keep and not pd.api.types.is_numeric_dtype(table[c])}
        ).head(60)
        for name, table in made.items()
    }
    page = written(write_tables(tmp_path / "run", changed))
    for tag, attributes in page.elements:
        assert tag not in ("img", "svg", "i")
        assert not [name for name in attributes if name.startswith("on")]
        assert not attributes.get("href", "").startswith("javascript")
    assert len([a for tag, a in page.elements if tag == "script" and "type" not in a]) == 2
    assert wording.shortened(hostile) in page.text
    assert len(page.text) < 300_000


def test_nullable_tables_are_read_like_any_other(tmp_path, made):
    page = written(write_tables(tmp_path / "run", {name: table.convert_dtypes() for name, table in made.items()}))
    assert "Not drawn" not in page.text


@pytest.mark.usefixtures("no_bundles")
def test_pages_link_to_it_only_where_it_is(tmp_path, made):
    folder = write_tables(tmp_path / "run", {"rates": made["rates"]})
    (folder / "measurements" / "base-step-00000").mkdir()
    link = ("a", {"href": "evaluation.html"})
    report.write(folder)
    pages = [folder / "report" / f"{name}.html" for name in ("index", "training", "base-step-00000")]
    assert all(link in Page(page).elements for page in pages)
    assert ("a", {"href": "base-step-00000.html"}) in Page(folder / "report" / "evaluation.html").elements
    (folder / "measurements" / "rates.parquet").unlink()
    (folder / "report" / "evaluation.html").unlink()
    report.write(folder)
    assert all(link not in Page(page).elements for page in pages)
    assert not (folder / "report" / "evaluation.html").exists()


@pytest.mark.slow
def test_a_large_evaluation_is_a_page_below_eight_megabytes(tmp_path):
    """Seven checkpoints and more than 450 prompts a suite: suites of 26 to 36 prompts, sixteen times over."""
    points = [("base", 0)] + [(arm, step) for arm in ("sft", "r2d2") for step in (50, 100, 250)]
    folder = write_tables(tmp_path / "run", evaluation_tables(points, hostile=HOSTILE, times=16))
    assert len(read_run(folder).across["verdicts"]) > 7 * 450
    found = evaluation_page.context(read_run(folder), show_completions=True)
    assert len(embedding.page("evaluation.html", circuits=False, **found).encode()) < 8e6
