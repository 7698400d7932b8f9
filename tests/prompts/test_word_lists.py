"""Word lists: the form of the files, and what becomes of them."""

import re
from pathlib import Path

import pytest

from mechrefusal import MechrefusalError
from mechrefusal.prompts.word_lists import WordLists


def lists_of(tmp_path: Path, text: str) -> WordLists:
    path = tmp_path / "greetings.txt"
    path.write_text(text, encoding="utf-8")
    return WordLists(path)


GREETINGS = """# Greetings, and to whom.

# People.
#+ dear sir
[person]
sir|madam
# With a title.
(?:dr|prof) \\w+

# A greeting.
#+ " dear dr bell"
#- goodbye
[greeting, whole words, any case]
(?:dear|hello) {person}
hi

# Marks of a list.
#+ a|b
[mark]
\\||[|(]

# A farewell.
#+ bye
[parting, whole text]
bye|see you

# How it begins.
#+ sir, hello
[begins, at the start]
{person}|hello
"""


def test_a_file_becomes_patterns(tmp_path):
    found = lists_of(tmp_path, GREETINGS)
    assert list(found.lists) == ["person", "greeting", "mark", "parting", "begins"]
    assert found.parting.pattern == r"^(?:bye|see you)\Z"
    assert found.begins.pattern == r"^(?:(?:sir|madam|(?:dr|prof) \w+)|hello)"
    assert found.person.pattern == r"(?:sir|madam|(?:dr|prof) \w+)"
    assert found.person.flags & re.IGNORECASE == 0
    assert found.greeting.pattern == r"\b(?:(?:dear|hello) (?:sir|madam|(?:dr|prof) \w+)|hi)\b"
    assert found.greeting.flags & re.IGNORECASE
    assert found.mark.pattern == r"(?:\||[|(])"
    assert found.lists["greeting"].found_in == (" dear dr bell",)
    assert found.lists["greeting"].not_found_in == ("goodbye",)


def test_a_list_that_is_not_there_is_no_attribute(tmp_path):
    with pytest.raises(AttributeError, match="no word list 'farewell'"):
        _ = lists_of(tmp_path, GREETINGS).farewell


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "line 1: 'hello' stands in no list"),
        ("# One.\n[a]\nx\n\n# Two.\n[a]\ny\n", "line 6: the name 'a' is taken above"),
        ("# One.\n[lists]\nx\n", "line 2: the name 'lists' is taken above"),
        ("[a]\nx\n", "line 1: list 'a' has no comment"),
        ("# A file.\n\n[a]\nx\n", "line 3: list 'a' has no comment"),
        ("#+ x\n[a]\nx\n", "line 2: list 'a' has no comment"),
        ("# One.\n[a, whole word]\nx\n", "line 2: unknown option 'whole word'"),
        ("# One.\n[a]\n\n# Two.\n[b]\nx\n", "line 2: list 'a' is empty"),
        ("# One.\n[a]\n# Nothing.\n", "line 2: list 'a' is empty"),
        ("# One.\n[a]\nx|y\nz|x\n", "line 4: 'x' is in list 'a' twice"),
        ("# One.\n[a]\nx||y\n", "line 3: an alternative is empty"),
        ("# One.\n[a]\nx|y \n", "line 3: an alternative is empty, or a space"),
        ("# One.\n[a]\nx{b}\n\n# Two.\n[b]\ny\n", "line 3: no list 'b' stands above"),
        ("# One.\n[a]\nx{a}\n", "line 3: no list 'a' stands above"),
        ("# One.\n[a]\nx\n(y\n", "line 2: list 'a' is no regular expression"),
        ("# One.\n[a]\nx**\n", "line 2: list 'a' is no regular expression"),
    ],
)
def test_what_is_not_in_form_is_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(MechrefusalError, match=rf"^greetings\.txt, {re.escape(message)}"):
        lists_of(tmp_path, text)
