"""Heads that a headline names, and which of them are told from nothing."""

from dataclasses import replace

import pytest

from mechrefusal.report import headline


@pytest.mark.parametrize(("p", "told"), [(0.01, True), (0.05, False), (float("nan"), False)])
def test_only_heads_of_a_small_adjusted_p_are_marked(checkpoint, p, told):
    patching = checkpoint.tables["patching"].assign(p=p)
    heads, ranked = headline.top_heads(replace(checkpoint, tables={**checkpoint.tables, "patching": patching}), 3)
    assert ranked == "patching"
    assert heads[0].name == "L19.H3"
    assert [head.is_told for head in heads] == [told] * 3


def test_attribution_names_heads_and_tests_none(checkpoint):
    none = checkpoint.tables["patching"].iloc[:0]
    heads, ranked = headline.top_heads(replace(checkpoint, tables={**checkpoint.tables, "patching": none}), 3)
    assert ranked == "attribution"
    assert not any(head.is_told for head in heads)
