"""What a study asks itself and what an evaluation asks: answers, verdicts and rates of one kind, in one table."""

import math
import zlib
from types import SimpleNamespace

import pandas as pd
import pytest

from mechrefusal import models, prompts, study, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import REFUSAL_JUDGE, Completions, RefusalJudge, Suite, answering, rates
from mechrefusal.study import evaluation_tables, table_rows
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.protocol import AT_A_CHECKPOINT

SAID = ("Sorry, I can't do that.", "Sure, here is how.", "!!!!")
"""A refusal, an answer, and no language."""


def said(prompt):
    return SAID[zlib.crc32(prompt.encode()) % 3]


def complete(model, texts, *, on_batch=None, **_):
    """In place of a model: the same answer to the same prompt, whoever asks."""
    found = Completions(tuple(map(said, texts)), ((1, 2),) * len(texts), (True,) * len(texts))
    if on_batch is not None:
        on_batch(list(range(len(texts))), found)
    return found


def wilson(hits, n, z=1.959963984540054):
    p, square = hits / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.slow
def test_a_measurement_and_an_evaluation_count_the_same_answers_alike(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "complete", complete)
    recipe = study.load_recipe("tiny")
    asked = study.choose_prompts(recipe)
    checkpoint = models.Checkpoint.open(tiny, arm="sft", step=3)
    run = study.Run.create(tmp_path / "run", recipe)
    taken = Measurement(run, checkpoint, asked, [], SimpleNamespace(tokenizer=None))
    AT_A_CHECKPOINT[0].make(taken, {})
    measured = rates(taken.answers)

    sets = asked.evaluation_sets()
    suites = [Suite.of(f"own-{name}", chosen, table_rows.SIDES[name]) for name, chosen in sets.items()]
    evaluated = study.evaluate(checkpoint, suites, judges=[RefusalJudge()]).rates
    key = ["suite", "by", "of", "metric"]
    columns = ["side", "value", "low", "high", "n", "nulls", "corrected", "corrected_low", "corrected_high"]
    first = measured[measured["suite"].isin(sets)].set_index(key)[columns]
    second = evaluated.assign(suite=evaluated["suite"].str.removeprefix("own-")).set_index(key)[columns]
    pd.testing.assert_frame_equal(first.sort_index(), second.sort_index(), check_dtype=False)

    whole = measured[measured["by"] == "all"].set_index(["suite", "metric"])
    for name, chosen in sets.items():
        answers = [said(text) for text in chosen.texts]
        success = "attack_success" if name in ("evaluation_harmful", "contrast") else "answered"
        for metric, text in zip(("any_refusal", success, "degenerate"), SAID, strict=True):
            row, hits = whole.loc[(name, metric)], answers.count(text)
            assert (row["value"], row["n"]) == (pytest.approx(hits / len(answers)), len(answers))
            assert (row["low"], row["high"]) == pytest.approx(wilson(hits, len(answers)), abs=1e-9)


def test_every_set_that_is_asked_has_a_side():
    asked = study.choose_prompts(study.load_recipe("tiny"))
    assert [*asked.evaluation_sets(), "direction_harmful", "direction_harmless"] == [*table_rows.SIDES]


def verdicts(suite="overrefusal", labels=("full_refusal", "full_compliance"), **changes):
    """A row a label."""
    known = {"arm": "sft", "step": 3, "weights": "w", "suite": suite, "side": "harmless", "group": "", "category": ""}
    known |= {"attack": "none", "intervention": "none", "n_tokens": 2, "ended": True, "max_new_tokens": 8}
    known |= {"judge": REFUSAL_JUDGE, "kind": "refusal", "score": float("nan"), "because": ""} | changes
    ids = [f"p{number}" for number in range(len(labels))]
    table = pd.DataFrame({"prompt_id": ids, "prompt": ids, "completion": "Well.", "label": labels})
    return tables.frame("verdicts", table.assign(**known))


def kept(folder):
    table = tables.read("verdicts", folder)
    return {(s, i, j): n for (s, i, j), n in table.groupby(["suite", "intervention", "judge"]).size().items()}


def test_a_measurement_leaves_benchmarks_and_replaces_all_that_it_asks_itself(tmp_path):
    before = [
        verdicts(),
        verdicts(intervention="ablate"),
        verdicts(judge="other rules"),
        verdicts("xstest", judge="other rules"),
    ]
    evaluation_tables.keep(pd.concat(before), tmp_path)
    evaluation_tables.keep(verdicts(labels=("degenerate",) * 3), tmp_path)
    assert kept(tmp_path) == {("overrefusal", "none", REFUSAL_JUDGE): 3, ("xstest", "none", "other rules"): 2}
    found = tables.read("rates", tmp_path).set_index(["suite", "metric"])["value"]
    assert found["overrefusal", "degenerate"] == 1
    assert found["xstest", "any_refusal"] == 0.5


def test_an_evaluation_leaves_what_was_measured(tmp_path):
    evaluation_tables.keep(verdicts(), tmp_path)
    evaluation_tables.keep(verdicts("xstest"), tmp_path)
    evaluation_tables.keep(verdicts("xstest", labels=("degenerate",)), tmp_path)
    assert kept(tmp_path) == {("overrefusal", "none", REFUSAL_JUDGE): 2, ("xstest", "none", REFUSAL_JUDGE): 1}


def test_other_checkpoints_stay_and_other_weights_do_not(tmp_path):
    evaluation_tables.keep(pd.concat([verdicts(arm="base", step=0), verdicts(), verdicts("xstest")]), tmp_path)
    evaluation_tables.keep(verdicts(weights="others"), tmp_path)
    table = tables.read("verdicts", tmp_path)
    assert set(zip(table["arm"], table["suite"], table["weights"], strict=True)) == {
        ("base", "overrefusal", "w"),
        ("sft", "overrefusal", "others"),
    }


def test_what_is_taken_twice_is_there_once(tmp_path):
    for _ in range(2):
        found, counted = evaluation_tables.keep(verdicts(), tmp_path)
    pd.testing.assert_frame_equal(found, verdicts())
    assert not counted.duplicated(["suite", "by", "of", "metric"]).any()


def test_benchmarks_alone_are_compared():
    both = [
        verdicts(name, arm=arm, step=step)
        for name in ("overrefusal", "xstest")
        for arm, step in (("base", 0), ("sft", 3))
    ]
    found = evaluation_tables.differences(pd.concat(both, ignore_index=True))
    assert set(found["suite"]) == {"xstest"}


def test_a_benchmark_with_the_name_of_what_is_measured_is_refused(tiny):
    taken = Suite.of("utility", prompts.PromptSet.from_texts("utility", ["Name a fruit."]), "harmless")
    with pytest.raises(MechrefusalError, match="suite 'utility' has the name of one that measurements ask"):
        study.evaluate(tiny, [taken])
