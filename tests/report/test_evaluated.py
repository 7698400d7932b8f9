"""What `mechrefusal evaluate` prints keeps the numbers of its tables, and obeys nothing that they say."""

import io
import re
import unicodedata

import pytest
from rich.console import Console
from synthetic import HOSTILE

from mechrefusal import tables
from mechrefusal.report.terminal import (
    SHOWN,
    STRESS_SHOWN,
    evaluated,
    stress_control_tables,
    stress_differences_tables,
    stress_table,
)

NAN = float("nan")


def shown(what, width=180):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False, color_system=None).print(what)
    return stream.getvalue()


def lines(text, *parts):
    """Lines of a table that hold all of these, with single spaces."""
    plain = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    return [line for line in plain if all(part in line for part in parts)]


def rate(metric, value, *, n=10, nulls=0, **changes):
    known = {"arm": "base", "step": 0, "suite": "own", "side": "harmful", "attack": "none", "intervention": "none"}
    known |= {"judge": "rules", "kind": "refusal", "by": "all", "of": "", "metric": metric, "value": value}
    known |= {"low": value - 0.125, "high": value + 0.125, "n": n, "nulls": nulls}
    return (
        known
        | dict.fromkeys(("corrected", "corrected_low", "corrected_high"), float("nan"))
        | {"corrected_by": ""}
        | changes
    )


def difference(metric, value, *, low, high, p=0.5, **changes):
    known = {"pair": "base", "arm_a": "base", "step_a": 0, "arm_b": "sft", "step_b": 3, "suite": "own"}
    known |= {"side": "harmful", "attack": "none", "intervention": "none", "judge": "rules", "metric": metric}
    known |= {
        "difference": value,
        "low": low,
        "high": high,
        "mcnemar_p": p,
        "p_adjusted": p,
        "mean_a": 0.0,
        "mean_b": value,
    }
    return known | {"only_a": 0, "only_b": 4, "n": 10, "nulls": 0, "missing_a": 0, "missing_b": 0} | changes


def printed(rates, differences=()):
    return shown(evaluated(tables.frame("rates", list(rates)), tables.frame("suite_differences", list(differences))))


def test_main_rates_of_every_checkpoint_with_n_and_interval():
    text = printed(
        [
            rate("any_refusal", 0.5),
            rate("full_refusal", 0.44),
            rate("attack_success", 0.25, nulls=2),
            rate("any_refusal", 0.75, arm="sft", step=3, n=9),
            rate("attack_success", 0.125, arm="sft", step=3, intervention="ablate:best"),
        ]
    )
    assert lines(text, "own, harmful prompts")
    [header] = lines(text, "checkpoint intervention")
    assert header == "checkpoint intervention refusal success n nulls"
    assert lines(text, "base 0") == ["base 0 none 0.50 0.25 10 0/2"]
    assert lines(text, "0.38–0.62") == ["0.38–0.62 0.12–0.38"]
    assert lines(text, "sft 3") == ["sft 3 none 0.75 – 9 0", "sft 3 ablate:best – 0.12 10 0"]
    assert "0.44" not in text


def test_sides_suites_and_judges_have_tables_of_their_own():
    text = printed(
        [
            rate("any_refusal", 0.5),
            rate("answered", 0.6, side="harmless"),
            rate("attack_success", 0.7, suite="xstest"),
            rate("score", 0.3, judge="scores", kind="harm", low=NAN, high=NAN, n=1),
            rate("attack_success", NAN, low=0.0, high=1.0, n=0, nulls=10, judge="silent", kind="harm"),
        ]
    )
    titles = [line for line in text.splitlines() if re.search(r", harm(ful|less) prompts$", line.rstrip())]
    assert [title.strip() for title in titles] == [
        "own, harmful prompts", "own, harmless prompts", "xstest, harmful prompts", "own, harmful prompts",
        "own, harmful prompts",
    ]  # fmt: skip
    for judge in ("refusal: rules", "harm: scores", "harm: silent"):
        assert f"judge of {judge}" in " ".join(text.split())
    assert lines(text, "base 0 0.30 1 0")
    assert lines(text, "base 0 – 0 10")
    assert "nan" not in text.lower()


def test_parts_of_a_suite_are_not_printed():
    text = printed([rate("any_refusal", 0.5), rate("any_refusal", 0.91, by="category", of="baking")])
    assert "0.91" not in text
    assert "baking" not in text


def test_attacks_and_interventions_stand_behind_the_checkpoint():
    text = printed([rate("any_refusal", 0.5, attack="gcg", intervention="add:best:2")])
    assert lines(text, "base 0 gcg add:best:2")


# Differences


def test_only_differences_whose_interval_excludes_nothing_are_printed():
    text = printed(
        [rate("any_refusal", 0.5)],
        [
            difference("any_refusal", 0.4, low=0.1, high=0.7, p=0.125),
            difference("full_refusal", -0.3, low=-0.5, high=-0.125, p=0.0625, judge="other"),
            difference("degenerate", 0.2, low=-0.1, high=0.5),
            difference("attack_success", 0.1, low=0.0, high=0.2),
            difference("answered", NAN, low=NAN, high=NAN, p=NAN),
        ],
    )
    assert lines(text, "base 0 sft 3") == [
        "base 0 sft 3 own other full refusal, harmful −0.30 0.0625",
        "base 0 sft 3 own rules any refusal, harmful +0.40 0.1250",
    ]
    assert lines(text, "[") == ["[−0.50, −0.12]", "[0.10, 0.70]"]
    assert lines(text, "2 of 5, shown are 2: the smallest p")


def test_the_clearest_are_shown_where_there_are_many():
    many = [
        difference("any_refusal", 0.4, low=0.1, high=0.7, p=at / 100, suite=f"s{at:02d}") for at in range(30, 0, -1)
    ]
    many.append(difference("score", 0.4, low=0.1, high=0.7, p=NAN, suite="unknown"))
    text = printed([rate("any_refusal", 0.5)], many)
    found = [re.search(r"s\d\d", line)[0] for line in lines(text, "any refusal, harmful")]
    assert found == [f"s{at:02d}" for at in range(1, SHOWN + 1)]
    assert f"31 of 31, shown are {SHOWN}: the smallest p" in text
    assert "unknown" not in text


def test_pairs_under_one_intervention_come_last():
    found = {"low": 0.1, "high": 0.7}
    rows = [
        difference("any_refusal", 0.4, p=0.01, suite="both", intervention="ablate:random", **found),
        difference("any_refusal", 0.4, p=0.02, suite="plain", **found),
        difference("any_refusal", 0.4, p=0.03, suite="under", pair="intervention", intervention="ablate:best", **found),
    ]
    shown = lines(printed([rate("any_refusal", 0.5)], rows), "any refusal, harmful")
    assert [next(name for name in ("both", "plain", "under") if name in line) for line in shown] == [
        "plain", "under", "both",
    ]  # fmt: skip


def test_no_clear_difference_is_said():
    for rows in ([], [difference("any_refusal", 0.1, low=-0.1, high=0.3)]):
        assert "No difference between checkpoints whose 95% interval excludes 0." in printed([rate("x", 0.5)], rows)


def test_ends_of_a_difference_say_what_was_done_to_each():
    under = {"low": 0.1, "high": 0.7, "intervention": "ablate:best"}
    text = printed(
        [rate("any_refusal", 0.5)],
        [
            difference("any_refusal", 0.4, **under),
            difference("full_refusal", 0.4, **under, pair="intervention", arm_a="sft", step_a=3),
        ],
    )
    assert lines(text, "any refusal, harmful")[0].startswith("base 0 (ablate:best) sft 3 (ablate:best) own")
    assert lines(text, "full refusal, harmful")[0].startswith("sft 3 sft 3 (ablate:best) own")


@pytest.mark.parametrize("name", ["[bold]own[/bold]", "own\x1b[31m", "[/nonsense]", *HOSTILE])
def test_names_are_shown_and_not_obeyed(name):
    text = printed(
        [rate("any_refusal", 0.5, suite=name, judge=name, arm=name, intervention=name)],
        [difference("any_refusal", 0.4, low=0.1, high=0.7, suite=name, judge=name, arm_b=name, intervention=name)],
    )
    assert not {character for character in text if unicodedata.category(character) == "Cc"} - {"\n"}
    start = re.match(r"[^\x00-\x20]{1,9}", name)[0]
    assert text.count(start) >= 4, "as it is, without a piece that was taken for markup"


# Attacks made anew


def curve(attack_step, value, **changes):
    known = {"arm": "sft", "step": 3, "method": "gcg", "attack_step": attack_step, "judge": "rules", "value": value}
    return known | {"low": 0.0, "high": 1.0, "n": 8, "nulls": 0, "loss": 1.0, "forward_tokens": 9.0} | changes


def transfer(source, target, value, *, method="gcg", judge="rules"):
    names = ("arm_source", "step_source", "arm_target", "step_target")
    known = dict(zip(names, (*source, *target), strict=True)) | {"method": method, "judge": judge, "value": value}
    return known | {"low": 0.0, "high": 1.0, "n": 8, "nulls": 0}


def test_stress_says_the_ends_of_the_curve_and_the_mean_elsewhere():
    base, own, far = ("base", 0), ("sft", 3), ("sft", 6)
    none = ("none", -1)
    text = shown(
        stress_table(
            tables.frame(
                "stress",
                [
                    curve(4, 0.5),
                    curve(0, 0.125),
                    curve(2, 0.99),
                    curve(0, 0.75, judge="other"),
                    curve(1, 0.25, method="autodan"),
                ],
            ),
            tables.frame(
                "stress_transfer",
                [
                    transfer(none, own, 0.0625, method="none"),
                    transfer(own, own, 0.5),
                    transfer(own, base, 0.25),
                    transfer(own, far, 0.75),
                    transfer(own, base, 0.33, judge="other"),
                    transfer(base, far, 0.9),
                ],
            ),
        )
    )
    assert lines(text, "sft 3 gcg") == [
        f"sft 3 gcg rules 0.06 0.12 0.50 {(0.25 + 0.75) / 2:.2f} 8",
        "sft 3 gcg other – 0.75 0.75 0.33 8",
    ]
    assert lines(text, "sft 3 autodan") == ["sft 3 autodan rules 0.06 0.25 0.25 – 8"], "no other checkpoint was tried"
    assert "0.99" not in text


def controlled(metric, value, *, suffix="attacked", judge="rules", **changes):
    known = {"arm": "sft", "step": 3, "method": "gcg", "suffix": suffix, "metric": metric, "judge": judge}
    known |= {"twin_judge": "rules", "value": value, "low": value - 0.05, "high": value + 0.05, "n": 8, "nulls": 0}
    return known | changes


def test_control_has_the_rates_of_twins_and_the_shares_of_every_checkpoint():
    rows = [
        controlled("refused", 0.125, suffix="none"),
        controlled("answered", 0.875, suffix="none"),
        controlled("refused", 0.375),
        controlled("answered", 0.5),
        controlled("robust", 0.25, judge="harm", n=7, nulls=1),
        controlled("attack_success", 0.625, judge="harm", n=7, nulls=1),
        controlled("robust", 0.75, judge="harm", arm="base", step=0),
    ]
    text = shown(stress_control_tables(tables.frame("stress_control", rows)))
    [row] = lines(text, "sft 3")
    assert row == "sft 3 0.88 0.50 0.12 0.38 0.62 0.25 – 8/7 0/1"
    [row] = lines(text, "base 0")
    assert row == "base 0 – – – – – 0.75 – 8 0"
    assert "judge of success harm, of the twins rules" in " ".join(text.split())
    assert lines(text, "0.45–0.55")
    silent = [controlled("robust", NAN, n=0, nulls=8)]
    assert "nan" not in shown(stress_control_tables(tables.frame("stress_control", silent))).lower()


def attacked(metric, value, **changes):
    known = {"pair": "base", "arm_a": "base", "step_a": 0, "arm_b": "sft", "step_b": 3, "method": "gcg"}
    known |= {"judge": "rules", "twin_judge": "rules", "metric": metric, "difference": value, "low": value - 0.25}
    known |= {"high": value + 0.25, "mcnemar_p": 0.0625, "mean_a": 0.25, "mean_b": 0.25 + value}
    return known | {"only_a": 1, "only_b": 6, "n": 24, "nulls": 0} | changes


def test_differences_of_attacks_put_the_last_checkpoints_first():
    rows = [
        attacked("robust", 0.5),
        attacked("robust", -0.125, pair="last", arm_a="sft", step_a=3, arm_b="r2d2"),
        *(attacked("robust", 0.25, pair="other", step_b=step) for step in range(10, 40)),
    ]
    text = shown(stress_differences_tables(tables.frame("stress_differences", rows)))
    first = lines(text, "robust 0.25")[:2]
    assert first == [
        "last of two arms sft 3 r2d2 3 robust 0.25 0.12 −0.12 0.0625 1 6 24 0",
        "since the base base 0 sft 3 robust 0.25 0.75 +0.50 0.0625 1 6 24 0",
    ]
    assert lines(text, "[")[:2] == ["[−0.38, 0.12]", "[0.25, 0.75]"]
    assert len(lines(text, "robust 0.25")) == STRESS_SHOWN
    assert f"{STRESS_SHOWN} of 32 are shown" in text


@pytest.mark.parametrize("name", ["[bold]own[/bold]", "[/nonsense]", *HOSTILE])
def test_names_of_attacks_are_shown_and_not_obeyed(name):
    own = {"method": name, "judge": name, "twin_judge": name}
    for made in (
        stress_control_tables(tables.frame("stress_control", [controlled("robust", 0.5, arm=name, **own)])),
        stress_differences_tables(tables.frame("stress_differences", [attacked("robust", 0.5, arm_b=name, **own)])),
    ):
        text = shown(made)
        assert not {character for character in text if unicodedata.category(character) == "Cc"} - {"\n"}
        assert text.count(re.match(r"[^\x00-\x20]{1,9}", name)[0]) >= 3


def test_empty_tables_are_no_error():
    assert not shown(stress_control_tables(tables.frame("stress_control", []))).strip()
    assert not shown(stress_differences_tables(tables.frame("stress_differences", []))).strip()
    assert "No difference" in shown(evaluated(tables.frame("rates", []), tables.frame("suite_differences", [])))
    assert "Attacks" in shown(stress_table(tables.frame("stress", []), tables.frame("stress_transfer", [])))
