"""The language in which conditions and rules are written: what expressions say, and what is not in form."""

import re

import pytest

from mechrefusal import MechrefusalError
from mechrefusal.evaluation.judges.exchange import Exchange
from mechrefusal.evaluation.judges.rule_language import Place, conditions, meaning, rules
from mechrefusal.evaluation.judges.rule_terms import CONDITIONS, TERMS

EXCHANGE = Exchange.of("How do I bake bread?", "Hello! I cannot help. Take flour. Mix it. Bake it, but slowly.")
HERE = Place(EXCHANGE, 1)


def said(expression: str, place: Place = HERE):
    return meaning(expression, CONDITIONS, "here")(place, place.exchange.sentences[place.index])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("TASK", True),
        ("FACT or not TASK", False),
        ("count(sentences)", 5),
        ("count(later) == 3 and count(words(sentences[1:2])) < 4", True),
        ("2 * count(before) + 1", 1),
        ("joined(later[:2])", ["take flour. mix it."]),
        ("joined(all_before)", ["hello!"]),
        ("those(but, sentences)", ["bake it, but slowly."]),
        ("distinct(sentences[1:2])", {"i cannot help."}),
        ("after(but in sentences)", [" slowly."]),
        ("ahead_of(but in sentences)", ["bake it, "]),
        ("up_to(but in sentences)", ["bake it, but"]),
        ("after(but)", []),
        ("but in after(but in sentences)", None),
        ("is_first and not is_later", True),
    ],
)
def test_what_an_expression_says(expression, value):
    assert said(expression) == value


def test_a_condition_says_what_it_finds():
    assert said("TASK and declines").group() == "i cannot help"
    assert said("FACT or declines").group() == "i cannot help"
    assert said("but in sentences").string == "bake it, but slowly."
    assert said("TASK and declines and not but") is True


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("nonsense_word", "no list, condition or term is called 'nonsense_word'"),
        ("declines and", "invalid syntax"),
        ("declines if TASK else but", "the language has no such form: declines if TASK else but"),
        ("sentence.upper()", "the language has no such form"),
        ("open('x')", "the language has no such form|no list, condition or term is called 'open'"),
        ("__import__(but)", "no list, condition or term is called '__import__'"),
    ],
)
def test_what_cannot_be_read_is_named(expression, reason):
    with pytest.raises(MechrefusalError, match=rf"^here: .*(?:{reason})"):
        said(expression)


def rules_of(tmp_path, text):
    path = tmp_path / "some.txt"
    path.write_text(text, encoding="utf-8")
    return list(rules(path, CONDITIONS))


RULE = """# A rule.
#+ How do I bake bread? | I cannot help. | full_refusal
#- How do I bake bread? | Take flour.
[some_rule]
where TASK
each of opening
by declines
is_later and but in later
  and TASK -> next
has_list -> nothing
otherwise -> partial_refusal if later[2:] else full_refusal: says {phrase}
"""


def test_a_rule_is_tried_case_by_case(tmp_path):
    (rule,) = rules_of(tmp_path, RULE)
    assert (rule.name, len(rule.cases)) == ("some_rule", 3)
    assert rule(Exchange.of("What is bread?", "I cannot help.")) is None
    assert rule(Exchange.of("How do I bake bread?", "Take flour.")) is None
    short = rule(Exchange.of("How do I bake bread?", "I cannot help."))
    assert short.label == "full_refusal"
    long = rule(Exchange.of("How do I bake bread?", "I cannot help. Take flour. Mix it. Bake it."))
    assert long == ("partial_refusal", short.because)
    listed = "I cannot help.\n1. Take flour.\n2. Mix it.\n3. Bake it."
    assert rule(Exchange.of("How do I bake bread?", listed)) is None
    passed = "Well, so far. I cannot help. Take flour, but slowly. I cannot help."
    assert rule(Exchange.of("How do I bake bread?", passed)) is None  # the second is beyond the opening


def test_every_case_quotes_what_was_found(tmp_path):
    text = "# A rule.\n[some_rule]\nby declines\nbut in later -> full_refusal: says {phrase} and {found}\n"
    (rule,) = rules_of(tmp_path, text)
    found = rule(Exchange.of("How do I bake bread?", "I cannot help. Take flour, but slowly."))
    assert found.because == "says 'i cannot help' and 'but'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# One.\n[a]\nTASK\n", "line 3: 'TASK' is no case"),
        ("# One.\n[a]\neach of sentences\nTASK -> next\n", "line 3: 'each of sentences' is no case"),
        ("# One.\n[a]\nwhere TUSK\nTASK -> next\n", "line 3: 'TUSK' cannot be read"),
        ("# One.\n[a]\nTASK -> full_refusal if TUSK else next: no\n", "line 3: 'TUSK' cannot be read"),
        ("# One.\n[a]\nTASK -> refusal: no\n", "line 3: 'refusal' is no label"),
        ("[a]\nTASK -> next\n", "line 1: list 'a' has no comment"),
    ],
)
def test_rules_that_are_not_in_form_are_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(MechrefusalError, match=rf"^some\.txt, {re.escape(message)}"):
        rules_of(tmp_path, text)


def test_conditions_stand_below_what_they_ask(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("# One.\n[a]\nTASK\n\n# Two.\n[b]\na and not DATA\n  and not FACT\nWRITING\n", encoding="utf-8")
    known = conditions(path, TERMS)
    assert known["b"](HERE, "") is True
    path.write_text("# Two.\n[b]\na\n\n# One.\n[a]\nTASK\n", encoding="utf-8")
    with pytest.raises(MechrefusalError, match=r"line 2: .* is called 'a'"):
        conditions(path, TERMS)
    path.write_text("# Again.\n[declines]\nTASK\n", encoding="utf-8")
    with pytest.raises(MechrefusalError, match="line 2: the name 'declines' is taken"):
        conditions(path, TERMS)
