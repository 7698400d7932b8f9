"""Attention and coloured tokens carry the table's numbers, and no token can become markup."""

import html
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic import HOSTILE

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import circuits, embedding
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(small_run):
    return read_run(small_run).checkpoints[1].tables


def test_attention_holds_every_weight(measured):
    table = measured["attention"]
    table = table[table["prompt_id"] == "pair-0"]
    drawn = circuits.attention(table)
    assert drawn.properties["attentionHeadNames"] == ["L19.H3", "L23.H7", "L20.H4", "L11.H0"]
    pattern = np.array(drawn.properties["attention"][1])
    own = table[(table["layer"] == 23) & (table["head"] == 7)]
    np.testing.assert_allclose(pattern[own["destination"], own["source"]], own["weight"], atol=1e-4)
    assert not np.triu(pattern, 1).any()
    off_first = table[(table["source"] > 0) & (table["destination"] > 0)]["weight"].max()
    assert drawn.properties["maxValue"] == pytest.approx(off_first, abs=1e-4)


def test_attention_refuses_what_it_cannot_place(measured):
    with pytest.raises(MechrefusalError, match="2 prompts: name one"):
        circuits.attention(measured["attention"])
    with pytest.raises(MechrefusalError, match="no attention of prompt 'x'"):
        circuits.attention(measured["attention"], prompt_id="x")
    with pytest.raises(MechrefusalError, match="token strings were given"):
        circuits.attention(measured["attention"], ["a"], prompt_id="pair-0")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)

    def handle_comment(self, data):
        self.found.append("comment")

    def handle_entityref(self, name):
        self.found.append(name)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "<img src=x onerror=alert(1)>", "&lt;", "a<b", "</div", "<!--", "<?x", "<", "&"]
)
def test_a_token_is_never_markup(text):
    tags = Tags()
    tags.convert_charrefs = False
    tags.feed(circuits.as_markup_free(text))
    tags.close()
    assert tags.found == []
    visible = circuits.as_markup_free(text).replace("\u2060", "")
    assert visible.startswith(text[:7].replace("\x1b", "\\u001b"))


def test_coloured_tokens(measured):
    drawn = circuits.coloured_tokens(measured["tokens"], prompt_id="pair-0")
    rows = measured["tokens"]
    rows = rows[rows["prompt_id"] == "pair-0"]
    assert drawn.properties["values"][5] is None  # a NaN
    assert drawn.properties["maxValue"] == -drawn.properties["minValue"] == 40.0
    np.testing.assert_allclose(drawn.properties["values"][6:], rows["value"].to_numpy()[6:], atol=1e-4)


def test_jupyter_shows_a_frame_that_needs_nothing_else(measured):
    shown = circuits.coloured_tokens(measured["tokens"], prompt_id="pair-0")._repr_html_()
    assert shown.startswith("<iframe sandbox=")
    document = html.unescape(shown.split('srcdoc="')[1].rsplit('"', 1)[0])
    assert embedding.circuits_script() in document
    assert "unpkg" not in document
    assert "<script>alert" not in document.replace(embedding.circuits_script(), "")


def test_fragment_is_data_beside_an_element(measured):
    fragment = str(circuits.coloured_tokens(measured["tokens"], prompt_id="pair-1").fragment("here"))
    assert fragment.startswith('<div class="circuit" id="here"></div>')
    data = fragment.split(">", 3)[3].rsplit("</script>", 1)[0]
    assert json.loads(data)["tokens"][7] == circuits.as_markup_free(HOSTILE[1])
    assert fragment.count("</script>") == 1
