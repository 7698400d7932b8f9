"""Data and scripts inside HTML files: nothing in a prompt can end a script, and nothing is loaded from elsewhere."""

import base64
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import language, viewer, wording

_HERE = Path(__file__).parent
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_HEAD = re.compile(r"\bL(\d+)\.H(\d+)\b")


def json_for_html(value: Any) -> Markup:
    """JSON that may stand in a script element: `<`, `>`, `&`, U+2028 and U+2029 are escaped. NaN is an error."""
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def escaped_json(text: str) -> Markup:
    """Ready JSON with the characters escaped that could end a script element (they only occur inside its strings)."""
    for character, replacement in _ESCAPES.items():
        text = text.replace(character, replacement)
    return Markup(text)


def script_text(source: str) -> str:
    """JavaScript that may stand in a classic script element, meaning the same.

    Inside string literals `<\\/script` equals `</script`. The pointer to a source map is dropped: a browser's tools
    would ask for the file.
    """
    lines = [line for line in source.replace("\r\n", "\n").split("\n") if not line.startswith("//# sourceMappingURL=")]
    text = "\n".join(lines)
    return re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE).replace("<!--", "<\\!--")


@cache
def plotly_script() -> str:
    """plotly's bundle, about 4.8 MB."""
    return script_text(get_plotlyjs())


@cache
def circuits_script() -> str:
    """circuitsvis' bundle, about 1.3 MB. It is found without importing circuitsvis, whose Python side imports torch."""
    package = importlib.util.find_spec("circuitsvis")
    path = Path(package.origin or "").parent / "dist" / "cdn" / "iife.js" if package else None
    if path is None or not path.is_file():
        raise MechrefusalError(
            f"the bundle of circuitsvis is missing ({path or 'package not installed'}); run 'pip install circuitsvis'"
        )
    return script_text(path.read_text(encoding="utf-8"))


@cache
def libraries() -> dict[str, str]:
    """Libraries that pages load when they first need them, by the path that they stand at beside a page."""
    return {
        "assets/plotly.js": plotly_script(),
        "assets/circuitsvis.js": circuits_script(),
        "assets/cytoscape.js": script_text(viewer.cytoscape_script()),
    }


@cache
def page_script() -> str:
    """The report's own script, which brings a page to life."""
    return script_text(viewer.script())


@cache
def page_style() -> str:
    """The report's style sheet."""
    return viewer.style() + (_HERE / "templates" / "pages.css").read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Jinja with autoescape on and undefined names as errors."""
    shared = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared.filters.update(
        {name: getattr(wording, name) for name in ("number", "rate", "whole", "percent", "token", "plain", "set_name")},
        sentence=wording.sentence,
        judge_name=language.described,
        with_heads=with_heads,
    )
    return shared


def rendered(text: str, **context: Any) -> Markup:
    """Words of this package with placeholders; what stands for these is escaped."""
    return Markup(environment().from_string(text).render(**context)) if "{" in text else Markup(text)


def with_heads(text: str, checkpoint: str) -> Markup:
    """Escaped text in which the name of a head, `L12.H3`, opens its card."""
    link = (
        '<a class="head" data-checkpoint="{0}" data-layer="{1}" data-head="{2}" href="#head={1}.{2}&amp;at={0}">'
        "L{1}.H{2}</a>"
    )
    at = str(escape(checkpoint))
    return Markup(_HEAD.sub(lambda name: link.format(at, *name.groups()), str(escape(wording.plain(text)))))


def policy(inline: Sequence[str] | None = None) -> str:
    """A Content-Security-Policy under which a page loads nothing but the files beside it, and no data runs.

    Args:
        inline: the scripts of a page that holds all it needs; they alone run, by hash.
    """
    sources = "'self' file:"
    if inline is not None:
        digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline]
        sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    styles = "style-src 'self' file: 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; script-src {sources}; {styles}; base-uri 'none'; form-action 'none'"


def frame(body: Markup, *scripts: str) -> str:
    """A document with one element and the scripts that it needs, for a notebook."""
    return (
        environment()
        .get_template("frame.html")
        .render(body=body, scripts=[Markup(script) for script in scripts], policy=policy(scripts))
    )
