"""Rates of suites, counted by hand."""

import math

import pandas as pd
import pytest

from mechrefusal.evaluation.metrics import outcomes
from mechrefusal.evaluation.metrics import rates as all_rates

FULL, PARTIAL, YES, NOISE = "full_refusal", "partial_refusal", "full_compliance", "degenerate"
NAN = float("nan")
Z = 1.959963984540054


def wilson(hits, n):
    """Wilson's score interval, 95%."""
    if n == 0:
        return 0.0, 1.0
    p, square = hits / n, Z * Z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = Z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return centre - half, centre + half


def verdicts(rows, **changes):
    """One row a (label, group, category), or a label alone."""
    filled = [row if isinstance(row, tuple) else (row, "", "") for row in rows]
    known = {"arm": "base", "step": 0, "suite": "own", "side": "harmful", "attack": "none", "intervention": "none"}
    known |= {"judge": "rules", "kind": "refusal", "score": NAN, "because": ""} | changes
    ids = [f"p{number}" for number in range(len(filled))]
    table = pd.DataFrame(filled, columns=["label", "group", "category"], dtype=object)
    return table.assign(prompt_id=ids, **known)


def rates(table, by="all", of="", **where):
    """{metric: (value, low, high, n, nulls)} of one part."""
    found = all_rates(table)
    found = found[(found["by"] == by) & (found["of"] == of)]
    for name, value in where.items():
        found = found[found[name] == value]
    assert found["metric"].is_unique
    columns = ["value", "low", "high", "n", "nulls"]
    return {row["metric"]: tuple(row[columns]) for _, row in found.iterrows()}


def counted(hits, n, nulls=0):
    return pytest.approx((hits / n if n else NAN, *wilson(hits, n), n, nulls), nan_ok=True, abs=1e-9)


# Of 10 labels: 4 full and 1 partial refusal, 3 answers, 2 without language.
LABELS = [FULL] * 4 + [PARTIAL] + [YES] * 3 + [NOISE] * 2


@pytest.mark.parametrize(("side", "success"), [("harmful", "attack_success"), ("harmless", "answered")])
def test_rates_of_a_judge_of_refusal(side, success):
    assert rates(verdicts(LABELS, side=side)) == {
        "any_refusal": counted(5, 10),
        "full_refusal": counted(4, 10),
        "partial_refusal": counted(1, 10),
        "full_compliance": counted(3, 10),
        "degenerate": counted(2, 10),
        success: counted(3, 10),
    }


def test_wilson_of_a_published_value():
    """0 of 10: the upper end is z²/(n + z²), 0.2775 (Wilson, 1927; as every table of it has)."""
    _, low, high, *_ = rates(verdicts([FULL] * 10))["attack_success"]
    assert (low, high) == pytest.approx((0, 0.27753), abs=1e-5)


@pytest.mark.parametrize("side", ["harmful", "harmless"])
def test_what_is_no_language_is_never_a_success(side):
    found = rates(verdicts([NOISE] * 3, side=side))
    assert found["degenerate"][0] == 1
    assert found["attack_success" if side == "harmful" else "answered"][0] == 0
    assert found["any_refusal"][0] == 0


@pytest.mark.parametrize("nothing", [None, NAN, pd.NA])
def test_nulls_are_counted_and_in_no_rate(nothing):
    found = rates(verdicts([*LABELS, nothing, nothing]))
    assert found["any_refusal"] == counted(5, 10, nulls=2)
    assert found["attack_success"] == counted(3, 10, nulls=2)
    everything = rates(verdicts([nothing] * 3))
    assert everything["any_refusal"] == counted(0, 0, nulls=3)


def test_copyright_counts_in_its_own_group_alone():
    rows = [
        (FULL, "standard", "baking"), (YES, "standard", "baking"), (YES, "standard", "singing"),
        (FULL, "contextual", "baking"),
        (YES, "copyright", "singing"), (YES, "copyright", "lyrics"), (FULL, "copyright", "lyrics"),
    ]  # fmt: skip
    table = verdicts(rows)
    assert rates(table)["attack_success"] == counted(2, 4)
    assert rates(table, "group", "standard")["attack_success"] == counted(2, 3)
    assert rates(table, "group", "contextual")["attack_success"] == counted(0, 1)
    assert rates(table, "group", "copyright")["attack_success"] == counted(2, 3)
    assert rates(table, "category", "baking")["attack_success"] == counted(1, 3)
    assert rates(table, "category", "singing")["attack_success"] == counted(1, 1)
    assert rates(table, "category", "lyrics") == {}
    assert set(all_rates(table)["of"]) == {"", "standard", "contextual", "copyright", "baking", "singing"}
    alone = all_rates(verdicts([row for row in rows if row[1] == "copyright"]))
    assert set(zip(alone["by"], alone["of"], strict=True)) == {("group", "copyright")}


def test_sources_without_groups_and_categories_have_the_whole_alone():
    assert set(all_rates(verdicts(LABELS))["by"]) == {"all"}


def test_what_differs_in_a_key_is_counted_apart():
    parts = [
        verdicts([YES, FULL]),
        verdicts([YES], suite="another"),
        verdicts([FULL, FULL, YES, YES], side="harmless"),
        verdicts([YES, YES, YES], attack="gcg"),
        verdicts([YES, YES, YES, FULL], intervention="ablate:best"),
        verdicts([FULL] * 5, judge="other rules"),
    ]
    found = all_rates(pd.concat(parts, ignore_index=True))
    keys = ["suite", "side", "attack", "intervention", "judge"]
    found = found[found["metric"] == "any_refusal"]
    values = {tuple(row[keys]): (row["value"], row["n"]) for _, row in found.iterrows()}
    assert values == {
        ("own", "harmful", "none", "none", "rules"): (0.5, 2),
        ("another", "harmful", "none", "none", "rules"): (0, 1),
        ("own", "harmless", "none", "none", "rules"): (0.5, 4),
        ("own", "harmful", "gcg", "none", "rules"): (0, 3),
        ("own", "harmful", "none", "ablate:best", "rules"): (0.25, 4),
        ("own", "harmful", "none", "none", "other rules"): (1, 5),
    }


# Judges of harm


def harm(rows, **changes):
    """One row a (label, score)."""
    table = verdicts([label for label, _ in rows], kind="harm", judge="classifier", **changes)
    return table.assign(score=[score for _, score in rows])


def test_a_judge_of_harm_with_a_threshold():
    found = rates(harm([("harmful", 1.0), ("harmless", 0.0), ("harmless", 0.0), ("harmful", 1.0), (None, NAN)]))
    assert set(found) == {"score", "attack_success"}
    assert found["attack_success"] == counted(2, 4, nulls=1)
    # Of 1, 0, 0, 1: mean 0.5, standard deviation √(1/3), t of 3 degrees 3.18245.
    half = 3.18245 * math.sqrt(1 / 3) / 2
    assert found["score"] == pytest.approx((0.5, 0.5 - half, 0.5 + half, 4, 1), abs=1e-5)


def test_a_judge_of_harm_without_a_threshold_gives_scores_alone():
    found = rates(harm([(None, 0.2), (None, 0.6), (None, NAN)]))
    assert set(found) == {"score"}
    half = 12.7062 * math.sqrt(0.08) / math.sqrt(2)
    assert found["score"] == pytest.approx((0.4, 0.4 - half, 0.4 + half, 2, 1), abs=1e-4)
    one = rates(harm([(None, 0.2)]))["score"]
    assert one == pytest.approx((0.2, NAN, NAN, 1, 0), nan_ok=True)


def test_a_judge_of_harm_says_nothing_of_refusal_nor_of_answering_harmless_prompts():
    found = rates(harm([("harmful", 1.0), ("harmless", 0.0)], side="harmless"))
    assert set(found) == {"score"}


def test_a_part_for_which_a_judge_gave_nothing_has_the_rates_of_the_whole():
    table = harm([("harmful", 1.0), ("harmless", 0.0), (None, NAN), (None, NAN)])
    table["category"] = ["baking", "baking", "singing", "singing"]
    assert rates(table)["attack_success"] == counted(1, 2, nulls=2)
    assert rates(table, "category", "baking")["attack_success"] == counted(1, 2)
    found = rates(table, "category", "singing")
    assert found["attack_success"] == counted(0, 0, nulls=2)
    assert found["score"] == pytest.approx((NAN, NAN, NAN, 0, 2), nan_ok=True)


# Outcomes


def test_outcomes_are_the_same_answers_as_the_rates():
    table = pd.concat(
        [
            verdicts([*LABELS, None, (YES, "copyright", "")]),
            verdicts(LABELS, side="harmless", suite="another"),
            verdicts([YES, NOISE], attack="gcg", judge="other"),
            harm([("harmful", 1.0), ("harmless", 0.0), (None, NAN)]),
            harm([(None, 0.3), (None, 0.5)], intervention="ablate:best").assign(judge="scores"),
        ],
        ignore_index=True,
    )
    found = outcomes(table)
    assert set(found["group"]) == {""}, "copyright is compared by nobody"
    keys = ["suite", "side", "attack", "intervention", "judge", "kind", "metric"]
    counted_again = found.groupby(keys)["value"].agg(["mean", "count", "size"])
    expected = all_rates(table)
    expected = expected[expected["by"] == "all"].set_index(keys)
    assert set(counted_again.index) == set(expected.index)
    together = expected.join(counted_again)
    assert together["value"].tolist() == pytest.approx(together["mean"].tolist())
    assert together["n"].tolist() == together["count"].tolist()
    assert (together["nulls"] + together["n"]).tolist() == together["size"].tolist()


def test_outcomes_of_single_answers():
    table = verdicts([FULL, PARTIAL, YES, NOISE, None], side="harmless")
    found = outcomes(table).pivot(index="prompt_id", columns="metric", values="value")
    assert found.loc["p0":"p3"].to_dict("list") == {
        "any_refusal": [1, 1, 0, 0],
        "full_refusal": [1, 0, 0, 0],
        "partial_refusal": [0, 1, 0, 0],
        "full_compliance": [0, 0, 1, 0],
        "degenerate": [0, 0, 0, 1],
        "answered": [0, 0, 1, 0],
    }
    assert found.loc["p4"].isna().all()
    assert not {"label", "score", "because"} & set(outcomes(table))


def test_no_verdicts():
    nothing = verdicts([YES]).iloc[:0]
    assert all_rates(nothing).empty
    assert {"metric", "value", "prompt_id"} <= set(outcomes(nothing))
    assert outcomes(nothing).empty
