"""Data and scripts inside an HTML file: nothing in a prompt can end a script, and nothing is loaded from elsewhere."""

import base64
import hashlib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mechrefusal.errors import MechrefusalError
from mechrefusal.report import language, wording

_HERE = Path(__file__).parent
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def json_for_html(value: Any) -> Markup:
    """JSON that may stand in a script element: `<`, `>`, `&`, U+2028 and U+2029 are escaped. NaN is an error."""
    return escaped_json(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def escaped_json(text: str) -> Markup:
    """Ready JSON with the characters escaped that could end a script element (they only occur inside its strings)."""
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
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
    found = importlib.util.find_spec("circuitsvis")
    path = Path(found.origin or "").parent / "dist" / "cdn" / "iife.js" if found else None
    if path is None or not path.is_file():
        raise MechrefusalError(
            f"the bundle of circuitsvis is missing ({path or 'package not installed'}); run 'pip install circuitsvis'"
        )
    return script_text(path.read_text(encoding="utf-8"))


@cache
def page_script() -> str:
    """The report's own script: draws every figure and circuit from the JSON beside it."""
    return script_text((_HERE / "templates" / "page.js").read_text(encoding="utf-8"))


@cache
def page_style() -> str:
    """The report's style sheet."""
    return (_HERE / "templates" / "style.css").read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Jinja with autoescape on and undefined names as errors."""
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=wording.number,
        rate=wording.rate,
        whole=wording.whole,
        grouped=wording.grouped,
        percent=wording.percent,
        seconds=wording.seconds,
        token=wording.token,
        plain=wording.plain,
        set_name=wording.set_name,
        judge_name=language.described,
    )
    return made


def content_security_policy(scripts: list[str]) -> str:
    """A policy under which a page loads nothing and runs these scripts only (by hash): no prompt can run or fetch."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    shown = "style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; script-src {hashes}; {shown}; base-uri 'none'; form-action 'none'"


def page(template: str, *, circuits: bool, plots: bool = True, **context: Any) -> str:
    """Render a template with the scripts it needs, each once, and the policy that allows them."""
    scripts = [plotly_script()] if plots else []
    scripts += [circuits_script()] if circuits else []
    scripts.append(page_script())
    marked = [Markup(text) for text in scripts]
    style = Markup(page_style())
    return (
        environment()
        .get_template(template)
        .render(scripts=marked, style=style, policy=content_security_policy(scripts), **context)
    )
