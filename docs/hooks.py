"""Pages that are made when the documentation is built: the schema of every table, and a page of API a room."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUBPAGES = {
    "attacks": ("gcg", "autodan", "jailbreaks"),
    "causal": ("patching", "knockout", "attribution_patching", "cross_patching"),
    "geometry": ("carriers", "stability", "subspaces", "cones", "drift"),
    "report": ("figures", "circuits"),
    "statistics": ("intervals",),
}
"""Modules that a room shows beside its own names."""
ROOMS = (
    "prompts", "models", "forward", "attacks", "training", "causal", "geometry", "attribution", "evaluation",
    "durability", "statistics", "tables", "study", "report", "playground",
)  # fmt: skip


def on_files(files, config):
    """Add the made pages."""
    from mkdocs.structure.files import File

    made = {"tables.md": table_schema(), **{f"api/{room}.md": api(room) for room in ROOMS}}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def table_schema() -> str:
    """Every table with its columns, from the files that also check what is written."""
    sys.path.insert(0, str(ROOT))
    from mechrefusal import tables

    lines = [
        "# The tables",
        "",
        "Every number that a study gives stands in a table: parquet, typed, each column with its meaning. This page is "
        "made from `mechrefusal/tables/columns/*.yaml`, the files that are also asked when a table is written or read; "
        'in Python, `mr.tables.describe("carrier")` gives the same.',
        "",
        "Tables of one checkpoint lie in `<run>/measurements/<checkpoint>/` and, joined over checkpoints, in "
        "`<run>/measurements/`; the others only there. `int?` and `bool?` may have no value; a float without one is "
        "NaN; a text without one is empty.",
        "",
    ]
    for heading, names in (("Of one checkpoint", tables.PER_CHECKPOINT), ("Of a run", tables.ACROSS)):
        lines += [f"## {heading}", ""]
        for name in names:
            table = tables.TABLES[name]
            lines += [f"### {name}", "", table.rows.strip(), "", "| column | kind | meaning |", "| --- | --- | --- |"]
            for column in table.columns:
                meaning = column.meaning + (f" (one of {', '.join(column.allowed)})" if column.allowed else "")
                lines.append(f"| `{column.name}` | {column.kind} | {_cell(meaning)} |")
            lines.append("")
    return "\n".join(lines)


def api(room: str) -> str:
    """A room's page: what its package says of itself, then its public names."""
    parts = [f"# {room}", "", f"::: mechrefusal.{room}", ""]
    for name in SUBPAGES.get(room, ()):
        if _public_docstring(ROOT / "mechrefusal" / room, name):
            parts += [
                f"## {room}.{name}",
                "",
                f"::: mechrefusal.{room}.{name}",
                "    options:",
                "      heading_level: 3",
                "",
            ]
    return "\n".join(parts)


def _public_docstring(folder: Path, name: str) -> str | None:
    """What a module or package says of itself; None where there is none of that name."""
    for path in (folder / f"{name}.py", folder / name / "__init__.py"):
        if path.is_file():
            return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
