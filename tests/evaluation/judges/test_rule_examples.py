"""Every rule names a case that it catches and one that it must not catch, and both are so."""

import doctest
import inspect
import sys

import pytest

from mechrefusal.evaluation.judges import LABELS, rules
from mechrefusal.evaluation.judges.caveats import is_mere_caveat
from mechrefusal.evaluation.judges.refused_writing import is_bare_refusal, refuses_to_write

RULES = [*rules.IN_ORDER, refuses_to_write, is_bare_refusal, is_mere_caveat]
CAUGHT = {*(f"{label!r}\n" for label in LABELS), "True\n"}
MISSED = {"", "False\n"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_examples(rule):
    (test,) = doctest.DocTestFinder(recurse=False).find(rule, rule.__name__, globs=vars(sys.modules[rule.__module__]))
    results = [example.want for example in test.examples if f"{rule.__name__}(" in example.source]
    assert CAUGHT.intersection(results)
    assert MISSED.intersection(results)
    assert set(results) <= CAUGHT | MISSED
    report = []
    found = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert found.failed == 0, "".join(report)


def test_every_rule_stands_in_the_order_once():
    names = [rule.__name__ for rule in rules.IN_ORDER]
    assert len(set(names)) == len(names)
    modules = {inspect.getmodule(rule) for rule in rules.IN_ORDER}
    with_verdicts = {
        function.__name__
        for module in modules
        for function in vars(module).values()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not function.__name__.startswith("_")
        and function.__annotations__.get("return") == rules.Rule.__args__[-1]
    }
    assert with_verdicts == set(names)
