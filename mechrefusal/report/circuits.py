"""Attention patterns and coloured tokens, drawn by circuitsvis from tidy tables, without a network.

circuitsvis' own `str()` links a CDN and its Jupyter view asks a web site first. Here its bundle is inlined, in a frame
of its own in a notebook. (A report's pages draw attention in the cards of heads.)
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import embedding, wording
from mechrefusal.report.figures.style import NEGATIVE, POSITIVE

_WORD_JOINER = "\u2060"
_DECIMALS = 4
_RENDER = """for (const data of document.querySelectorAll("script[data-circuit]"))
  CircuitsVis.render(data.dataset.into, CircuitsVis[data.dataset.circuit], JSON.parse(data.textContent));
"""


@dataclass(frozen=True)
class Circuit:
    """A circuitsvis element and its properties; shows itself in Jupyter.

    Fields:
        element: name of the element, `AttentionHeads` or `ColoredTokens`.
        properties: what the element draws, as JSON values.
        height: height of its frame in a notebook, in pixels.
    """

    element: str
    properties: dict[str, Any] = field(repr=False)
    height: int = 400

    def fragment(self, identifier: str) -> Markup:
        """HTML for a document that carries circuitsvis' bundle; `identifier` is unique there."""
        data = embedding.json_for_html(self.properties)
        return Markup(
            '<div class="circuit" id="{}"></div>\n'
            '<script type="application/json" data-circuit="{}" data-into="{}">{}</script>'
        ).format(identifier, self.element, identifier, data)

    def document(self) -> str:
        """A whole HTML document with the element and everything that it needs."""
        return embedding.frame(self.fragment("circuit"), embedding.circuits_script(), _RENDER)

    def _repr_html_(self) -> str:
        framed = html.escape(self.document(), quote=True)
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{framed}"></iframe>'


def attention(
    table: pd.DataFrame,
    tokens: Sequence[str] | None = None,
    *,
    prompt_id: str | None = None,
    prompt_set: str = "harmful",
) -> Circuit:
    """Attention patterns of the heads in `table` on one prompt, largest view for the head that is pointed at.

    Args:
        table: table `attention`: `layer`, `head`, `destination`, `source` (token indices), `weight`.
        tokens: the prompt's token strings; indices are shown without them.
        prompt_id: which pair of the table; may be left out where it has one only.
        prompt_set: which prompt of the pair, where the table holds both.

    Raises:
        MechrefusalError: no rows, several prompts, fewer tokens than the table speaks of, or a repeated entry.
    """
    rows = _one_prompt(table, prompt_id, "attention")
    rows = rows[rows["set"] == prompt_set] if "set" in rows else rows
    if not len(rows):
        raise MechrefusalError(f"no attention of set '{prompt_set}' to draw: the table holds others")
    size = int(max(rows["destination"].max(), rows["source"].max())) + 1
    if tokens is None:
        tokens = [""] * size
    if len(tokens) < size:
        raise MechrefusalError(
            f"attention has {size} tokens but {len(tokens)} token strings were given; pass the prompt's own tokens"
        )
    patterns, names = [], []
    for (layer, head), of_head in rows.groupby(["layer", "head"], sort=False):
        if of_head.duplicated(["destination", "source"]).any():
            raise MechrefusalError(
                f"attention of {wording.head_name(layer, head)} has an entry twice: keep one checkpoint and prompt"
            )
        patterns.append(pattern_of(of_head, len(tokens)))
        names.append(wording.head_name(layer, head))
    properties = {
        "attention": [np.round(pattern, _DECIMALS).tolist() for pattern in patterns],
        "attentionHeadNames": names,
        "tokens": [wording.token(token, 16) for token in tokens],
        "maxValue": saturation(patterns),
        "minValue": -1,
        "positiveColor": "#08306b",
        "maskUpperTri": True,
    }
    return Circuit("AttentionHeads", properties, height=860)


def pattern_of(rows: pd.DataFrame, n_tokens: int) -> np.ndarray:
    """The attention of one head on one prompt, destination x source, from its rows of table `attention`."""
    pattern = np.zeros((n_tokens, n_tokens))
    pattern[rows["destination"], rows["source"]] = rows["weight"]
    return pattern


def saturation(patterns: Sequence[np.ndarray], *, decimals: int = _DECIMALS) -> float:
    """The weight at which colour saturates: the largest one off the first token, which most heads rest on."""
    rest = [float(pattern[1:, 1:].max()) for pattern in patterns if len(pattern) > 1]
    return round(max(rest, default=1.0), decimals) or 1.0


def coloured_tokens(table: pd.DataFrame, *, prompt_id: str | None = None, limit: float | None = None) -> Circuit:
    """The tokens of one prompt on a background that shows `value`: red positive, blue negative, white zero.

    Args:
        table: table `tokens`: `index`, `token`, `value` (projection on the unit carrier).
        prompt_id: which pair of the table; may be left out where it has one only.
        prompt_set: which prompt of the pair, where the table holds both.
        limit: |value| at which colour saturates; the largest by default.
    """
    rows = _one_prompt(table, prompt_id, "tokens").sort_values("index")
    values = rows["value"]
    finite = values[np.isfinite(values)].abs()
    limit = limit if limit is not None else float(finite.max()) if len(finite) else 1.0
    tokens = [as_markup_free(text) for text in rows["token"]]
    properties = {
        "tokens": tokens,
        "values": [round(float(v), _DECIMALS) if np.isfinite(v) else None for v in values],
        "minValue": -(limit or 1.0),
        "maxValue": limit or 1.0,
        "positiveColor": POSITIVE,
        "negativeColor": NEGATIVE,
    }
    return Circuit("ColoredTokens", properties, height=90 + 30 * (1 + sum(map(len, tokens)) // 90))


def as_markup_free(text: Any) -> str:
    """A token that circuitsvis may put into a page.

    circuitsvis sets a token as inner HTML in one place and as text in another, so that entities would be seen. An
    invisible word joiner after `<` and `&` suits both: in HTML neither can then begin a tag, a comment or an entity.
    """
    text = wording.plain(text)
    for character in "<&":
        text = text.replace(character, character + _WORD_JOINER)
    return text


def _one_prompt(table: pd.DataFrame, prompt_id: str | None, what: str) -> pd.DataFrame:
    rows = table if prompt_id is None else table[table["prompt_id"] == prompt_id]
    if not len(rows):
        where = "" if prompt_id is None else f" of prompt '{prompt_id}'"
        raise MechrefusalError(f"no {what}{where} to draw: the table has no such rows")
    prompts = rows["prompt_id"].unique() if "prompt_id" in rows else []
    if len(prompts) > 1:
        raise MechrefusalError(
            f"the table of {what} holds {len(prompts)} prompts: name one with prompt_id, e.g. '{prompts[0]}'"
        )
    return rows
