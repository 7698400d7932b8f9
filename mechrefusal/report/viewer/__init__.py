"""A stand-in for the browser side of the report: its script, its style sheet, and the library that draws graphs."""

from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent


@cache
def script() -> str:
    """The report's own script."""
    return (_HERE / "report.js").read_text(encoding="utf-8")


@cache
def style() -> str:
    """The report's style sheet."""
    return (_HERE / "report.css").read_text(encoding="utf-8")


@cache
def cytoscape_script() -> str:
    """The bundle of cytoscape."""
    return "// cytoscape\n"
