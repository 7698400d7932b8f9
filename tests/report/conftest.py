"""A made-up measured run, written once a session, and its report."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import write_run

from mechrefusal import report
from mechrefusal.report import embedding
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
def small_run(tmp_path_factory) -> Path:
    """The base and one trained checkpoint, with its report."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "small", arms=("r2d2",), anchors=(0, 50))
    report.write(folder)
    return folder


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
def no_bundles(monkeypatch):
    """Pages without the six megabytes of plotly and circuitsvis."""
    for name in ("plotly_script", "circuits_script"):
        monkeypatch.setattr(embedding, name, lambda: "")
