"""What the word lists of the refusal rules find, and that the rules use each list, term and condition."""

import ast
import keyword
import re
from pathlib import Path

import pytest

from mechrefusal.evaluation.judges import rules
from mechrefusal.evaluation.judges.prompt_types import PromptType
from mechrefusal.evaluation.judges.rule_terms import TERMS
from mechrefusal.evaluation.judges.word_lists import FOLDER, WORDS


@pytest.mark.parametrize("name", WORDS.lists)
def test_every_list_finds_its_examples(name):
    each = WORDS.lists[name]
    assert each.found_in
    for text in each.found_in:
        assert each.pattern.search(text), text
    for text in each.not_found_in:
        assert not each.pattern.search(text), text
    assert name.isidentifier()
    assert not keyword.iskeyword(name)


JUDGES = Path(rules.__file__).parent


def used_in_python() -> set[str]:
    """Read from the source: `WORDS.declines` is a use of list `declines`."""
    return {
        node.attr
        for path in JUDGES.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "WORDS"
    } - {"lists"}


def written(pattern: str, *paths: Path) -> set[str]:
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return {name for line in lines if not line.startswith("#") for name in re.findall(pattern, line)}


def test_the_rules_use_every_list_and_no_other():
    in_rules = written(r"[a-z]\w*", JUDGES / "conditions.txt", JUDGES / "rules.txt")
    types = {kind.value for kind in PromptType} - {"task", "unknown"}
    parts = written(r"\{([a-z]\w*)\}", *FOLDER.glob("*.txt"))
    assert used_in_python() <= set(WORDS.lists)
    assert set(WORDS.lists) <= used_in_python() | in_rules | types | parts


def test_the_rules_use_every_term_and_condition():
    lines = written(r"^[^\[].*", JUDGES / "conditions.txt", JUDGES / "rules.txt")
    used = {name for line in lines for name in re.findall(r"[A-Za-z]\w*", line)}
    held = {
        node.args[0].value
        for path in JUDGES.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "holds" and isinstance(node.args[0], ast.Constant)
    }
    named = written(r"^\[(\w+)", JUDGES / "conditions.txt")
    assert named | (set(TERMS) - set(WORDS.lists)) <= used | held | {"RISKS", "WRITING"}
