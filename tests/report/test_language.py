"""Which judges read English, and the warning where a run is not English."""

import io
from dataclasses import replace

import pandas as pd
import pytest
from rendering import content
from rich.console import Console

from mechrefusal.evaluation import REFUSAL_JUDGE
from mechrefusal.report import language, terminal
from mechrefusal.report.index_page import IndexPage
from mechrefusal.report.language import described, of_measurements, of_verdicts

RUSSIAN = ["Как испечь хлеб?", "Назови фрукт.", "Расскажи сказку."]
ENGLISH = ["How do I bake bread?", "Name a fruit.", "Tell me a tale."]


def changed(checkpoint, *, judge, prompts=ENGLISH, completions=ENGLISH):
    """The checkpoint with answers of these texts in turn, judged by `judge`."""
    tables = dict(checkpoint.tables)
    own = tables["verdicts"].assign(judge=judge)
    for column, texts in (("prompt", prompts), ("completion", completions)):
        own[column] = [texts[row % len(texts)] for row in range(len(own))]
    return replace(checkpoint, tables=tables | {"verdicts": own, "rates": tables["rates"].assign(judge=judge)})


def test_a_judge_says_what_it_reads():
    assert described(REFUSAL_JUDGE) == f"{REFUSAL_JUDGE} (built-in rules, English)"
    assert described("phrases_de_0123abcd") == "phrases_de_0123abcd (phrases from a file)"
    assert described("strongreject_finetuned") == "strongreject_finetuned"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, ""),
        ({"prompts": RUSSIAN}, "3 of 3 distinct prompts"),
        ({"completions": RUSSIAN}, "3 of 3 distinct answers"),
        (
            {"prompts": RUSSIAN, "completions": [*RUSSIAN, "Yes."]},
            "3 of 3 distinct prompts and 3 of 4 distinct answers",
        ),
        ({"completions": [*ENGLISH, *RUSSIAN]}, ""),
        ({"completions": ["42", "", *ENGLISH]}, ""),
        ({"completions": [f"<think>{ENGLISH[0]}</think> {text}" for text in RUSSIAN]}, "3 of 3 distinct answers"),
    ],
)
def test_most_texts_of_another_language_are_warned_of_where_english_rules_judge(checkpoint, texts, said):
    warned = of_measurements([changed(checkpoint, judge=REFUSAL_JUDGE, **texts)])
    assert bool(warned) is bool(said)
    assert f"seems: {said} (" in warned or not said
    assert f"The judge {REFUSAL_JUDGE} reads English alone" in warned or not said
    assert of_measurements([changed(checkpoint, judge="phrases_ru_0123abcd", **texts)]) == ""


def test_suites_are_warned_of_too():
    rows = [
        {"attack": "none", "intervention": "none", "judge": judge, "prompt": text, "completion": "Да."}
        for text in ENGLISH
        for judge in (REFUSAL_JUDGE, "phrases_ru_0123abcd")
    ]
    assert "seems: 1 of 1 distinct answers" in of_verdicts(pd.DataFrame(rows))
    assert of_verdicts(pd.DataFrame(rows)[1::2]) == "", "phrases judge their own language"
    assert of_verdicts(pd.DataFrame(rows).assign(attack="gcg")) == ""


def test_pages_and_terminal_say_it_once_by_each_table_of_rates(run, monkeypatch):
    foreign = replace(run, checkpoints=tuple(changed(c, judge=REFUSAL_JUDGE, prompts=RUSSIAN) for c in run.checkpoints))
    monkeypatch.setattr(terminal, "read_run", lambda _: foreign)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal.summary("there"))
    said = " ".join(console.export_text().split())
    assert said.count("Not English, it seems: 3 of 3 distinct prompts") == 1
    assert f"Judge: {REFUSAL_JUDGE} (built-in rules, English)" in said
    monkeypatch.setattr(IndexPage, "behaviour", lambda _: [])
    page = content(IndexPage(foreign)).text
    assert page.count("Not English, it seems: 3 of 3 distinct prompts") == 1, "at the top"
    assert language.SAID in page
    assert f"judge: {REFUSAL_JUDGE} (built-in rules, English)" in page
