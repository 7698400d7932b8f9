"""Every rule names a case that it catches and one that it must not catch, and both are so; so do some conditions."""

import pytest

from mechrefusal.evaluation.judges import LABELS, rules
from mechrefusal.evaluation.judges.exchange import Exchange
from mechrefusal.evaluation.judges.rule_language import Place
from mechrefusal.evaluation.judges.rule_terms import CONDITIONS, FOLDER, holds
from mechrefusal.prompts.word_lists import sections

ALL_RULES = [*rules.IN_ORDER, rules.REFUSES_TO_WRITE]
EXAMPLES = [
    (section.name, example, mark == "#+")
    for section in sections(FOLDER / "conditions.txt")
    for mark in ("#+", "#-")
    for example in section.examples(mark)
]


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_examples(rule):
    assert rule.caught
    assert rule.missed
    for example in rule.caught:
        prompt, answer, label = example.split(" | ")
        assert label in LABELS
        assert rule(Exchange.of(prompt, answer)).label == label, example
    for example in rule.missed:
        prompt, answer = example.split(" | ")
        assert rule(Exchange.of(prompt, answer)) is None, example


def test_every_rule_stands_in_the_order_once():
    names = [rule.name for rule in ALL_RULES]
    assert len(set(names)) == len(names)
    assert names[-1] == "refuses_to_write"


@pytest.mark.parametrize(
    ("name", "example", "expected"), EXAMPLES, ids=[f"{name}-{text}" for name, text, _ in EXAMPLES]
)
def test_examples_of_conditions(name, example, expected):
    prompt, separator, answer = example.partition(" | ")
    if separator:
        assert holds(name, Exchange.of(prompt, answer)) is expected
    else:
        assert bool(CONDITIONS[name](Place(Exchange.of("", example), 0), example)) is expected
