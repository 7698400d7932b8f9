"""A made-up measured run, written once a session, and its report."""

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

from rendering import Page
from synthetic import write_run

from mechrefusal import report
from mechrefusal.files import whole_file
from mechrefusal.report import panels
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
    add, drawn, folder = panels.Panels.add, {}, shared / "drawn"
    folder.mkdir(exist_ok=True)

    def add_once(self, name, draw, *, title="", rows=None, heads_of=""):
        # a figure that takes results is not what its module calls by that name
        what = (draw.func.__module__, draw.func.__qualname__, draw.args, draw.keywords, title, heads_of)
        key = hashlib.sha256(pickle.dumps(what)).hexdigest()
        if key not in drawn:
            if not (path := folder / key).is_file():
                with whole_file(path) as draft:
                    draft.write_bytes(pickle.dumps(add(panels.Panels(""), name, draw, title=title, heads_of=heads_of)))
            drawn[key] = pickle.loads(path.read_bytes())
        if drawn[key].data is None:
            return drawn[key]
        self.counted[name] += 1
        identifier = f"{name}-{self.counted[name]}"
        csv = f"tables/{self.page}.{identifier}.csv"
        self.drawn.append(replace(drawn[key], identifier=f"fig-{identifier}", rows=rows, csv=csv))
        return self.drawn[-1]

    return add_once


@pytest.fixture(scope="session", autouse=True)
def drawn_once(draw_once):
    """Reports draw no figure that was drawn before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels.Panels, "add", draw_once)
        yield


@pytest.fixture(scope="session")
def small_run(shared, drawn_once) -> Path:
    """The base and one trained checkpoint, with its report: made by the first worker that needs it."""
    with FileLock(shared / "small_run.lock"):
        if not (shared / "small_run" / "report").is_dir():
            report.write(write_run(shared / "small_run", arms=("r2d2",), anchors=(0, 50)))
    return shared / "small_run"


@pytest.fixture(scope="session")
def page(small_run):
    """The page of its trained checkpoint."""
    return Page(small_run / "report" / "r2d2-step-00050.html")


@pytest.fixture(scope="session")
def base(small_run):
    """The page of its base."""
    return Page(small_run / "report" / "base-step-00000.html")


@pytest.fixture(scope="session")
def index(small_run):
    """Its first page."""
    return Page(small_run / "report" / "index.html")
