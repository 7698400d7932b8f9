"""The browser side of the report: its script, its style sheet, and the library that draws graphs.

The script is written as classic scripts, one concern a file, which share one scope: `script()` joins them in the order
of `SOURCES` and closes them off. Nothing of it is fetched or built: `package.json` is there for its checks alone.
"""

from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
SOURCES = (
    "base.js", "address.js", "theme.js", "plots.js", "maps.js", "sparklines.js", "heads.js", "tokens.js", "prompts.js",
    "pairs.js", "graph.js", "graph_faithfulness.js", "graph_exports.js", "graph_controls.js", "graph_about.js",
    "graph_panel.js", "single_file.js", "start.js",
)  # fmt: skip
"""Files of the script, in their order: each uses what stands before it."""


@cache
def script() -> str:
    """The report's own script: one classic script that leaves one name, `mechrefusal`, in the page."""
    parts = (f"// {name}\n{(_HERE / name).read_text(encoding='utf-8')}" for name in SOURCES)
    return f'(() => {{\n"use strict";\n{"".join(parts)}}})();\n'


@cache
def style() -> str:
    """The report's style sheet."""
    return (_HERE / "report.css").read_text(encoding="utf-8")


@cache
def cytoscape_script() -> str:
    """The bundle of cytoscape 3.35.0 (`vendored.md` says where it is from), about 0.45 MB."""
    return (_HERE / "cytoscape.min.js").read_text(encoding="utf-8")
