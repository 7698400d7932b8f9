"""Say what in the notebooks should not be committed; run them anew and leave that out.

    python scripts/clean_notebooks.py                          # says what is wrong, status 1 where anything is
    python scripts/clean_notebooks.py --clean                  # takes it out
    python scripts/clean_notebooks.py --execute [06 07 ...]    # runs them (all, or those that begin so), then cleans

What is taken out: paths of this machine, times of execution, progress bars and warnings, numbers of runs, and the
inlined libraries of an interactive view (its cell says so in their place; a kernel draws it). Pictures of plotly are
kept twice, interactive and as PNG, so that they show where no JavaScript runs; that needs kaleido and a Chromium. A
notebook stays below a megabyte.
"""

import argparse
import base64
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import plotly.graph_objects as go
import plotly.io as pio
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"
LARGEST = 1_000_000
"""Bytes of a notebook."""
INLINED = 100_000
"""Characters of HTML above which a view carries its libraries."""
PRINTED = '<pre style="white-space:pre;overflow-x:auto'
"""How rich begins what it prints while something is under way."""
NO_KERNEL = "An interactive view: run this cell to see it."
PATH = re.compile(r"(?:/(?:home|root|work|tmp|Users|private|mnt|var|opt|usr)/[^\s\"'<>)\\]*)")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


def troubles(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What should not be committed, as sentences."""
    if (size := len(nbformat.writes(notebook))) > LARGEST:
        yield f"it takes {size} bytes, more than {LARGEST}"
    extra = set(notebook.metadata) - {"kernelspec", "language_info"}
    if extra or set(notebook.metadata.get("language_info", {})) - {"name"}:
        yield f"its metadata name more than the kernel: {sorted(extra) or 'the version of Python'}"
    if len(notebook.cells) > 25:
        yield f"it has {len(notebook.cells)} cells, more than 25"
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        where = f"cell {number}"
        if re.search(r"^\s*(?:def|class) ", cell.source, re.MULTILINE):
            yield f"{where} defines a helper: it belongs into the package"
        if re.search(r"^\s*from mechrefusal\.\w+\.|^\s*import mechrefusal\.", cell.source, re.MULTILINE):
            yield f"{where} imports from inside a room"
        if set(cell.metadata) - {"tags"} or cell.execution_count is not None:
            yield f"{where} says when it was run"
        for output in cell.outputs:
            if output.output_type in ("stream", "error") and output.get("name") != "stdout":
                yield f"{where} holds a warning, a progress bar or an error"
            text = f"{output.get('text', '')} {output.get('data', '')}"
            yield from (f"{where} holds the path {found}" for found in PATH.findall(_without_pictures(text)))
            yield from (f"{where} holds the time {found}" for found in TIME.findall(text))
            data = output.get("data", {})
            if data.get("text/html", "").startswith(PRINTED):
                yield f"{where} holds a progress bar"
            if len(data.get("text/html", "")) > INLINED:
                yield f"{where} holds the libraries of an interactive view"
            if any("plotly" in kind for kind in data) and "image/png" not in data:
                yield f"{where} holds a figure without a picture: install kaleido and a Chromium, and execute again"


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without any of that, as far as it can be taken out."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [kept for output in cell.outputs if (kept := _cleaned(output)) is not None]
    return notebook


def execute(path: Path, *, folder: Path | None = None) -> nbformat.NotebookNode:
    """The notebook, run from its top in a kernel of its own, with a picture of every figure."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    NotebookClient(notebook, timeout=3600, kernel_name="python3").execute(cwd=str(folder or path.parent))
    outputs = [
        output.data for cell in notebook.cells for output in cell.get("outputs", []) if PLOTLY in output.get("data", {})
    ]
    with TemporaryDirectory() as draft:  # one browser draws all
        files = [Path(draft) / f"{number}.png" for number in range(len(outputs))]
        figures = [go.Figure({part: data[PLOTLY][part] for part in ("data", "layout")}) for data in outputs]
        if figures:
            pio.write_images(figures, files, width=900, scale=1)
        for data, file in zip(outputs, files, strict=True):
            data["image/png"] = base64.b64encode(file.read_bytes()).decode()
    return notebook


def _cleaned(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """One output; None where nothing of it stays."""
    if output.output_type == "stream":
        if output.name != "stdout":
            return None
        output.text = PATH.sub("…", output.text)
        return output
    if output.output_type not in ("execute_result", "display_data"):
        return None
    if output.output_type == "execute_result":
        output.execution_count = None
    output.metadata = {}
    data = output.data
    if data.get("text/html", "").startswith(PRINTED):
        return None
    if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
        output.data = {"text/plain": NO_KERNEL}  # the state of widgets is not kept
    elif len(data.get("text/html", "")) > INLINED:
        output.data = {"text/plain": NO_KERNEL}
    else:
        output.data = {
            kind: PATH.sub("…", value) if kind in ("text/plain", "text/html") else value for kind, value in data.items()
        }
        if "image/png" in data:  # what it says beside its picture is the figure's whole JSON once more
            output.data.pop("text/plain", None)
            output.data.pop("text/html", None)
    return output


def _without_pictures(text: str) -> str:
    """Base64 may spell anything."""
    return re.sub(r"[A-Za-z0-9+/=\n\\]{200,}", "", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, clean or execute. Returns 1 where something is left that should not be committed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; default: all")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--execute", action="store_true")
    options = parser.parse_args(arguments)
    left = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        if options.names and not path.name.startswith(tuple(options.names)):
            continue
        notebook = execute(path) if options.execute else nbformat.read(path, as_version=4)
        if options.execute or options.clean:
            nbformat.write(clean(notebook), path)
        for trouble in troubles(notebook):
            print(f"{path.name}: {trouble}")
            left += 1
    return min(left, 1)


if __name__ == "__main__":
    sys.exit(main())
