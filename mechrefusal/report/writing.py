"""Writes the report: pages, the libraries and data that they share, and the tables that figures show."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mechrefusal.files import whole_file
from mechrefusal.progress import track
from mechrefusal.report import embedding, graph
from mechrefusal.report.checkpoint_page import CheckpointPage
from mechrefusal.report.compare_page import ComparePage
from mechrefusal.report.durability_page import DurabilityPage
from mechrefusal.report.evaluation_page import EvaluationPage
from mechrefusal.report.index_page import IndexPage
from mechrefusal.report.maps_page import MapsPage, heads_data
from mechrefusal.report.panels import Panel
from mechrefusal.report.prompts_page import PromptsPage, prompts_data
from mechrefusal.report.reading import MeasuredRun, read_run
from mechrefusal.report.sections import Page
from mechrefusal.report.training_page import MethodsPage, TrainingPage

SINGLE = "report.html"
SCRIPT = "assets/report.js"
"""The one script of a page; it loads the libraries when they are first needed."""
LINKS = (
    ("index", "Overview"), ("compare", "Compare"), ("maps", "Maps"), ("prompts", "Prompts"), ("training", "Training"),
    ("durability", "Durability"), ("evaluation", "Evaluation"), ("methods", "Methods"),
)  # fmt: skip
_CSV = re.compile(r'href="(tables/[^"]+)"')


def write(run_folder: Path | str, *, show_completions: bool = False, single_file: bool = False) -> Path:
    """Write the report of a run from its tables; no model is loaded and nothing is fetched.

    Args:
        run_folder: holds `measurements/`, and `recipe.yaml` and `manifest.json` where there are any.
        show_completions: show completions to harmful requests whole; otherwise their first 60 characters.
        single_file: one file that can be mailed, with all pages and libraries in it.

    Returns:
        Path of `<run_folder>/report/index.html`, or of `report.html` there. Beside the index stand a page for each
        checkpoint, `<checkpoint id>.html`, pages to compare, for maps, prompts, methods, training and, where there was
        one, durability and the evaluation; `assets/` (libraries), `data/` (what several pages use) and `tables/` (what
        figures show).

    Raises:
        MechrefusalError: the run was not measured, or a table cannot be read.
    """
    run = read_run(run_folder)
    folder = Path(run_folder) / "report"
    data = _data(run, show_completions=show_completions)
    pages = [
        (page, content_of(page)) for page in track(list(pages_of(run, show_completions=show_completions)), "pages")
    ]
    drawn = [panel for page, _ in pages for panel in page.panels.drawn]
    methods = MethodsPage(run, drawn=drawn)
    pages.append((methods, content_of(methods)))
    drawn += methods.panels.drawn
    if single_file:
        return _whole(folder / SINGLE, _single(run, pages, data, drawn))
    shared = {
        **embedding.libraries(),
        SCRIPT: embedding.page_script(),
        "assets/report.css": embedding.page_style(),
    }
    for path, text in shared.items():
        _whole(folder / path, text)
    for name, value in data.items():
        _whole(folder / "data" / f"{name}.js", f"mechrefusal.data({json.dumps(name)}, {value});\n")
    for panel in drawn:
        _whole(folder / panel.csv, _csv(panel))
    kept = {folder / panel.csv for panel in drawn}
    for stale in set((folder / "tables").glob("*.csv")) - kept:
        stale.unlink()
    for page, content in pages:
        shown = _document(run, page.id, content, scripts=[SCRIPT], policy=embedding.policy())
        _whole(folder / f"{page.id}.html", shown)
    return folder / "index.html"


def pages_of(run: MeasuredRun, *, show_completions: bool = False) -> Iterator[Page]:
    """The pages of a report but the methods, which tell of the figures of all the others."""
    yield IndexPage(run)
    for checkpoint in run.checkpoints:
        yield CheckpointPage(run, checkpoint, show_completions=show_completions)
    yield from (ComparePage(run), MapsPage(run), PromptsPage(run, show_completions=show_completions), TrainingPage(run))
    if run.has_durability:
        yield DurabilityPage(run, show_completions=show_completions)
    if run.evaluated:
        yield EvaluationPage(run, show_completions=show_completions)


def content_of(page: Page) -> Markup:
    """The main part of a page as HTML."""
    template = embedding.environment().get_template(f"{page.name}.html")
    return Markup(template.render(page=page, run=page.run))


def _data(run: MeasuredRun, *, show_completions: bool) -> dict[str, Markup]:
    """What several pages use, as JSON."""
    values = {
        "heads": heads_data(run),
        "prompts": prompts_data(run, show_completions=show_completions),
        "circuits": _circuits(run),
    }
    return {name: embedding.json_for_html(value) for name, value in values.items()}


def _circuits(run: MeasuredRun) -> dict[str, Any]:
    """The circuit of every checkpoint that has one, as a graph."""
    return {c.id: graph.of_checkpoint(c.tables) for c in run.checkpoints if c.tables["circuit_nodes"]["kept"].any()}


def _document(run: MeasuredRun, page: str, content: Markup, **given: Any) -> str:
    shown = {"scripts": (), "stored": {}, "data": {}, "inline": None, "style": None, **given}
    absent = {name for name, there in (("durability", run.has_durability), ("evaluation", run.evaluated)) if not there}
    links = [(name, words) for name, words in LINKS if name not in absent]
    template = embedding.environment().get_template("base.html")
    return template.render(run=run, page_id=page, content=content, links=links, **shown)


def _single(run: MeasuredRun, pages: list[tuple[Page, Markup]], data: dict[str, Markup], drawn: list[Panel]) -> str:
    """One file: pages in templates, libraries as text that is run when it is needed."""
    csv = {panel.csv: f"data:text/csv;base64,{base64.b64encode(_csv(panel).encode()).decode()}" for panel in drawn}
    template = Markup('<template data-page="{}"><main class="inner" id="main" tabindex="-1">{}</main></template>')
    parts = [template.format(page.id, content) for page, content in pages]
    # No data holds these links: quotes are escaped in it.
    content = Markup(_CSV.sub(lambda link: f'href="{csv.get(link[1], link[1])}"', "\n".join(parts)))
    stored, script = embedding.libraries(), embedding.page_script()
    given = {
        "stored": {path: Markup(text) for path, text in stored.items()},
        "data": data,
        "inline": Markup(script),
        "style": Markup(embedding.page_style()),
        "policy": embedding.policy([*stored.values(), script]),
    }
    return _document(run, "index", content, **given)


def _csv(panel: Panel) -> str:
    assert panel.rows is not None
    return panel.rows.to_csv(index=False, lineterminator="\n")


def _whole(path: Path, text: str) -> Path:
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
    return path
