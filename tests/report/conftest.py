"""A made-up measured run, written once a session, and its report."""

import hashlib
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import write_run

from mechrefusal import report
from mechrefusal.files import whole_file
from mechrefusal.report import embedding, panels
from mechrefusal.report.reading import read_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """Two arms, four anchors (seven checkpoints with the shared base)."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def run(run_folder):
    """The tables of that run."""
    return read_run(run_folder)


@pytest.fixture(scope="session")
def checkpoint(run):
    """One of its trained checkpoints."""
    return next(c for c in run.checkpoints if c.id == "r2d2-step-00100")


@pytest.fixture(scope="session")
def draw_once(shared):
    """`Panels.add` that draws no figure a second time: same function, same arguments, same panel.

    Drawing is nine tenths of the time of a report, and reports of nearly the same tables have nearly the same figures.
    """
    draw, drawn, folder = panels.Panels.add, {}, shared / "drawn"
    folder.mkdir(exist_ok=True)

    def add(self, build, *, title=""):
        given = build
        if isinstance(build, partial):  # a figure that takes results is not what its module calls by that name
            given = (build.func.__module__, build.func.__qualname__, build.args, build.keywords)
        key = hashlib.sha256(pickle.dumps((given, title))).hexdigest()
        if key not in drawn:
            if not (path := folder / key).is_file():
                with whole_file(path) as draft:
                    draft.write_bytes(pickle.dumps(draw(panels.Panels(), build, title=title)))
            drawn[key] = pickle.loads(path.read_bytes())
        if drawn[key].data is None:
            return drawn[key]
        self.made += 1
        return replace(drawn[key], identifier=f"plot-{self.made}")

    return add


@pytest.fixture(scope="session")
def small_run(shared, draw_once) -> Path:
    """The base and one trained checkpoint, with its report: made by the first worker that needs it."""
    with FileLock(shared / "small_run.lock"):
        if not (shared / "small_run" / "report").is_dir():
            folder = write_run(shared / "small_run", arms=("r2d2",), anchors=(0, 50))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(panels.Panels, "add", draw_once)
                report.write(folder)
    return shared / "small_run"


@pytest.fixture(scope="module")
def page(small_run):
    """The page of its trained checkpoint."""
    return _page(small_run, "r2d2-step-00050")


@pytest.fixture(scope="module")
def base(small_run):
    """The page of its base."""
    return _page(small_run, "base-step-00000")


@pytest.fixture(scope="module")
def index(small_run):
    """Its first page."""
    return _page(small_run, "index")


def _page(folder: Path, name: str):
    from test_pages import Page

    return Page(folder / "report" / f"{name}.html")


@pytest.fixture
def drawn_once(monkeypatch, draw_once):
    """Reports draw no figure that was drawn before."""
    monkeypatch.setattr(panels.Panels, "add", draw_once)


@pytest.fixture
def no_bundles(monkeypatch, drawn_once):
    """Pages without the six megabytes of plotly and circuitsvis, whose figures are not drawn twice."""
    for name in ("plotly_script", "circuits_script"):
        monkeypatch.setattr(embedding, name, lambda: "")
