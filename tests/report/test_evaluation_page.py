"""The evaluation page holds what its tables say, says what is absent, shortens answers, and is linked where it is."""

import json

import pandas as pd
import pytest
from rendering import Page
from synthetic import HOSTILE
from synthetic_evaluation import HARM_JUDGE, JUDGE, SECRET, evaluation_tables

from mechrefusal import report, tables
from mechrefusal.report import evaluation_findings, stress_findings, wording, writing
from mechrefusal.report.evaluation_page import EvaluationPage
from mechrefusal.report.reading import BEHAVIOUR, EVALUATION, read_run

pytestmark = pytest.mark.slow

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
    """The evaluation page of a run."""
    page = EvaluationPage(read_run(folder), show_completions=show_completions)
    return Page(str(writing.content_of(page)))


@pytest.fixture(scope="module")
def shown(evaluated):
    return written(evaluated)


def test_every_section_is_filled(shown):
    assert "mechrefusal evaluate RUN" not in shown.text
    assert "Not drawn" not in shown.text
    drawn = shown.titles
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
    data = [text for attributes, text in shown.scripts if "data-plot-json" in attributes]
    assert len(data) == len(drawn)
    for text in data:
        json.loads(text)


def test_control_and_differences_of_attacks_are_the_tables(shown, made):
    [control] = stress_findings.control(tables.frame("stress_control", made["stress_control"]))
    rows = control.grid().rows
    assert [row[0].text for row in rows] == ["base 0", "r2d2 50", "r2d2 100", "sft 50"]
    own = made["stress_control"]
    for row in rows:
        arm, step = row[0].text.split()
        at = own[(own["arm"] == arm) & (own["step"] == int(step))]
        assert [cell.text for cell in row[1:8]] == [
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
        assert [cell.text for cell in row[8:]] == ["24", "0"]
    differences = made["stress_differences"]
    [compared] = stress_findings.differences(tables.frame("stress_differences", differences))
    rows = compared.grid().rows
    kinds = [row[0].text for row in rows]
    assert kinds == ["last of two arms"] * 6 + ["since the base"] * 9 + ["since the anchor before"] * 3
    clear = int(((differences["low"] > 0) | (differences["high"] < 0)).sum())
    assert sum(row[6].is_strong for row in rows) == clear > 0
    text = shown.text[shown.text.index("Which checkpoint is more robust?") :]
    for cell in rows[0]:
        assert cell.text in text
        assert cell.detail in text


def test_headline_is_the_table_one_judge_at_a_time(made):
    table = tables.frame("rates", made["rates"])
    found = evaluation_findings.suite_rates(table)
    assert list(dict.fromkeys((one.judge, one.kind) for one in found)) == [(JUDGE, "refusal"), (HARM_JUDGE, "harm")]
    by_name = {(one.suite, one.side): one for one in found if one.judge == JUDGE}
    assert list(by_name) == [
        ("harmbench", "harmful"),
        ("xstest", "harmful"),
        ("xstest", "harmless"),
        ("alpaca", "harmless"),
    ]
    one = by_name["xstest", "harmless"]
    names = ["any refusal", "full refusal", "partial refusal", "answered", "degenerate"]
    assert [words for words in one.columns.values() if words in names] == names
    shown = [words for words in by_name["alpaca", "harmless"].columns.values() if words in names]
    assert shown == ["any refusal", "answered", "degenerate"]
    assert list(next(one for one in found if one.judge == HARM_JUDGE).columns.values())[-4:-2] == [
        "attack success",
        "score",
    ]
    own = table[(table["suite"] == "xstest") & (table["side"] == "harmless") & (table["by"] == "all")]
    own = own[own["judge"] == JUDGE]
    place = [head.words for head in one.grid.heads].index("answered")
    rows = {(row[0].text, row[1].text): row[place] for row in one.grid.rows}
    assert len(rows) == 2 * len(CHECKPOINTS) - 1
    for r in own[own["metric"] == "answered"].itertuples():
        cell = rows[f"{r.arm} {r.step}", r.intervention]
        assert cell.text == wording.rate(r.value)
        assert cell.detail == f"{wording.rate(r.low)}–{wording.rate(r.high)}"
    arms = [row[0].text.split()[0] for row in one.grid.rows]
    assert arms == ["base", "r2d2", "r2d2", "r2d2", "r2d2", "sft", "sft"]


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
    counts = evaluation_findings.leak_counts(made["leaks"])
    assert list(counts[["set_b", "kind", "n"]].itertuples(index=False, name=None)) == [
        ("training <b>", "exact", len(HOSTILE)),
        ("direction", "near", len(HOSTILE)),
    ]
    assert len(evaluation_findings.leak_samples(made["leaks"])) == 2 * evaluation_findings.LEAKS_SHOWN
    assert "The first few of each, shortened" in shown.text
    assert max(len(text) for text in made["leaks"]["text"]) <= 160 or "…" in shown.text


SAID = {
    "verdicts": "No answer was judged",
    "rates": "No suite was evaluated",
    "suite_differences": "Checkpoints were not compared",
    "answer_losses": "The base model's answers were not scored",
    "judge_agreement": "Judges were not compared",
    "leaks": "Leaks were not looked for",
    "stress": "No attack was made anew",
    "stress_transfer": "Whether attacks transfer was not measured",
    "stress_control": "Suffixes were not put behind harmless twins",
    "stress_differences": "Attacked checkpoints were not compared",
}


@pytest.mark.parametrize("name", [*BEHAVIOUR, *EVALUATION])
def test_any_table_may_be_absent_or_alone(tmp_path, made, name):
    rest = {other: rows for other, rows in made.items() if other != name}
    assert SAID[name] in written(write_tables(tmp_path / "rest", rest)).text
    alone = write_tables(tmp_path / "alone", {name: made[name]})
    assert read_run(alone).evaluated
    text = written(alone).text
    assert "mechrefusal evaluate RUN --suite xstest=PATH" in text
    assert SAID[name] not in text
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
    assert "How often does each checkpoint refuse" in text
    report.summary(tmp_path / "run")


@pytest.mark.parametrize("hostile", [*HOSTILE, "$run.folder", "{metric}", "x" * 10_000])
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
    assert not [a for tag, a in page.elements if tag == "script" and "type" not in a]
    assert wording.shortened(hostile) in page.text
    assert len(page.text) < 300_000


def test_nullable_tables_are_read_like_any_other(tmp_path, made):
    page = written(write_tables(tmp_path / "run", {name: table.convert_dtypes() for name, table in made.items()}))
    assert "Not drawn" not in page.text


def test_pages_link_to_it_only_where_it_is(tmp_path, made):
    folder = write_tables(tmp_path / "run", {"rates": made["rates"]})
    (folder / "measurements" / "base-step-00000").mkdir()

    def links(name):
        found = Page(folder / "report" / f"{name}.html").elements
        return [attributes["href"] for tag, attributes in found if tag == "a"]

    names = ("index", "training", "base-step-00000")
    report.write(folder)
    assert all("evaluation.html" in links(name) for name in names)
    assert "base-step-00000.html" in links("evaluation")
    (folder / "measurements" / "rates.parquet").unlink()
    (folder / "report" / "evaluation.html").unlink()
    report.write(folder)
    assert not any("evaluation.html" in links(name) for name in names)
    assert not (folder / "report" / "evaluation.html").exists()


def test_a_large_evaluation_is_a_page_below_three_megabytes(tmp_path):
    """Seven checkpoints and more than 450 prompts a suite: suites of 26 to 36 prompts, sixteen times over."""
    points = [("base", 0)] + [(arm, step) for arm in ("sft", "r2d2") for step in (50, 100, 250)]
    folder = write_tables(tmp_path / "run", evaluation_tables(points, hostile=HOSTILE, times=16))
    assert len(read_run(folder).across["verdicts"]) > 7 * 450
    page = EvaluationPage(read_run(folder), show_completions=True)
    assert len(str(writing.content_of(page)).encode()) < 3e6
