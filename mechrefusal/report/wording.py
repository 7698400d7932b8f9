"""How values are written for a reader: numbers, rates, tokens and shortened completions. Plain text, never markup."""

import html
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

MISSING = "–"
SHORT_COMPLETION = 60
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍", "\u2028": "␤", "\u2029": "␤"}

SET_NAMES = {
    "evaluation_harmful": "harmful prompts",
    "evaluation_harmless": "harmless prompts",
    "overrefusal": "safe prompts that look unsafe",
    "contrast": "unsafe contrast prompts",
    "utility": "benign instructions",
    "validation_harmful": "harmful prompts of the validation split",
    "validation_harmless": "harmless prompts of the validation split",
    "direction_harmful": "harmful prompts of the direction split",
    "direction_harmless": "harmless prompts of the direction split",
}


NAMES = {
    "carrier_layer": "the depth of the carrier",
    "carrier_cosine": "the cosine of the carriers",
    "direction_cosine": "the cosine of the directions",
    "principal_angle": "the angle between the spans of directions",
    "principal_angle_mean": "the mean principal angle, in degrees",
    "principal_angle_max": "the largest principal angle, in degrees",
    "transfer": "the effect of the earlier carrier",
}
"""What measures of a move are called on a page."""
_PLAIN = (
    (re.compile(r"\bkl(?: [\d.e-]+)? > ([\d.]+)"), r"ablating it changes harmless prompts too much (KL above \1)"),
    (
        re.compile(r"\binduce(?: [\d.e-]+)? < (-?[\d.]+)"),
        r"putting it in does not make the model refuse (score below \1)",
    ),
    (re.compile(r"\blayer(?: \d+)? is not below (\d+)"), r"it lies too late (from layer \1 on)"),
    (re.compile(r"cannot tell:"), "cannot be told:"),
)
"""Why a candidate is no carrier, and what a verdict begins with, in words."""
_NAMES = re.compile(rf"\b({'|'.join(NAMES)})\b(?! (?:of|to|at)\b)")
_ID = re.compile(r"\b(?P<arm>[\w][\w-]*?)-step-(?P<step>\d+)\b")


def is_missing(value: Any) -> bool:
    """True for None, NaN and pandas' NA: what stands where a table has no value."""
    return bool(pd.isna(value))


def is_true(value: Any) -> bool:
    """True where a flag of a table is set; a missing one is not."""
    return not is_missing(value) and bool(value)


def number(value: Any, digits: int = 2, *, signed: bool = False) -> str:
    """A float with `digits` decimals, a dash for a missing one."""
    if is_missing(value):
        return MISSING
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 0.5 * 10**-digits):
        text = f"{value:+.1e}" if signed else f"{value:.1e}"
    else:
        text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−")


def rate(value: Any) -> str:
    """A rate with two decimals (0.004 is 0.00: its n says how fine it can be)."""
    return MISSING if is_missing(value) else f"{float(value):.2f}".replace("-", "−")


def rate_interval(low: Any, high: Any) -> str:
    """`0.60–0.82`, or words that say there is none."""
    return "no interval" if is_missing(low) or is_missing(high) else f"{rate(low)}–{rate(high)}"


def interval(row: Mapping[str, Any] | pd.Series, name: str = "", digits: int = 2) -> str:
    """` [low, high]` of a row, or of what it has called `name`; empty where there is none."""
    low, high = (row[f"{name}_{end}" if name else end] for end in ("low", "high"))
    return "" if is_missing(low) or is_missing(high) else f" [{number(low, digits)}, {number(high, digits)}]"


def interval_of(row: Mapping[str, Any], name: str) -> str:
    """`−4.31 [−5.00, −3.60]`, a value of a row with its interval; empty where there is none."""
    return "" if is_missing(row[name]) else f"{number(row[name])}{interval(row, name)}"


def ends(low: Any, high: Any, digits: int = 2) -> str:
    """`[0.60, 0.82]`, or words that say there is none."""
    known = not is_missing(low) and not is_missing(high)
    return f"[{number(low, digits)}, {number(high, digits)}]" if known else "no interval"


def corrected(row: Mapping[str, Any]) -> str:
    """`0.85 (0.74–0.93)`: a rate with the judge's known error corrected; empty where it is not known."""
    if is_missing(row.get("corrected")):
        return ""
    return f"{rate(row['corrected'])} ({rate(row['corrected_low'])}–{rate(row['corrected_high'])})"


def correction_sources(table: pd.DataFrame) -> list[str]:
    """What the errors of judges were measured on that the table's rates are corrected for."""
    return sorted({plain(source) for source in table["corrected_by"]} - {""})


def percent(value: Any) -> str:
    """A share as a whole percentage, `38%`."""
    return MISSING if is_missing(value) else f"{float(value):.0%}".replace("-", "−")


def whole(value: Any) -> str:
    """A whole number, a dash for a missing one."""
    return MISSING if is_missing(value) else f"{round(float(value))}".replace("-", "−")


def grouped(value: Any) -> str:
    """A large whole number in groups of three digits, `12 345 678` (narrow no-break spaces)."""
    return MISSING if is_missing(value) else f"{round(float(value)):,}".replace(",", "\u202f").replace("-", "−")


def seconds(value: Any) -> str:
    """A duration: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if is_missing(value):
        return MISSING
    value = float(value)
    if value < 10:
        return f"{value:.1f} s"
    total = round(value)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def token(text: Any, limit: int = 24) -> str:
    """A visible token: line breaks and controls as signs, outer spaces as `␣`, at most `limit` characters."""
    if is_missing(text):
        return MISSING
    text = str(text)
    seen = "".join(
        _SIGNS[c] if c in _SIGNS else f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") else c
        for c in text
    )
    stripped = seen.strip(" ")
    before = len(seen) - len(seen.lstrip(" "))
    if not stripped:
        return "␣" * len(seen)
    seen = "␣" * before + stripped + "␣" * (len(seen) - before - len(stripped))
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"


def plain(text: Any) -> str:
    """Any text without control characters except line breaks and tabs (a terminal or a page must not obey it)."""
    if is_missing(text):
        return ""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else f"\\u{ord(c):04x}" for c in str(text)
    )


def for_plotly(text: Any) -> str:
    """Text for a plotly label: plotly reads a small HTML dialect in every label, so that data has to be escaped."""
    return html.escape(plain(text), quote=False).replace("\n", " ")


def shortened(text: Any, limit: int = SHORT_COMPLETION) -> str:
    """The first `limit` characters, followed by an ellipsis where something was cut."""
    text = plain(text)
    return text if len(text) <= limit else text[:limit] + "…"


def is_harmful(side: Any, attack: Any) -> bool:
    """True where a completion answers a harmful request, and is shown shortened unless asked for."""
    return str(side) != "harmless" or str(attack) != "none"


def counts(values: Any, noun: str = "prompts") -> str:
    """`n = 32 prompts`, `n = 1 prompt`, or `n = 28 to 32 prompts` where the sizes differ, or an empty string."""
    sizes = sorted({int(v) for v in values if not is_missing(v)})
    if not sizes:
        return ""
    if len(sizes) == 1:
        return f"n = {sizes[0]} {noun.removesuffix('s') if sizes[0] == 1 else noun}"
    return f"n = {sizes[0]} to {sizes[-1]} {noun}"


def set_name(name: str) -> str:
    """A prompt set in words; an unknown one keeps its name."""
    return SET_NAMES.get(name, name.replace("_", " "))


def metric_name(name: str) -> str:
    """A metric in words."""
    return name.replace("_", " ")


def readable(text: Any) -> str:
    """A reason that a table gives, without the names of columns, measures and folders in it."""
    words = _NAMES.sub(lambda name: NAMES[name[0]], plain(text))
    for pattern, plainer in _PLAIN:
        words = pattern.sub(plainer, words)
    return _ID.sub(lambda name: f"{name['arm']}, step {int(name['step'])}", words).replace("_", " ")


def sentence(text: str) -> str:
    """With a capital letter in front and a full stop at the end."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text[-1:] in ('.', '?', '!') else '.'}" if text else ""


def listed(parts: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def head_name(layer: Any, head: Any) -> str:
    """`L12.H3`, as TransformerLens writes it."""
    return f"L{int(layer)}.H{int(head)}"
