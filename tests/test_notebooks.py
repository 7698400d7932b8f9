"""The notebooks run from top to bottom, on the tiny model."""

import json
import shutil
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def run():
    """`run(name, parameters)`: cells of a notebook with outputs, run from its top in an empty namespace.

    In one kernel, which imports the libraries once for all of them.
    """
    nbformat = pytest.importorskip("nbformat", reason="the extra 'dev' is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra 'dev' is not installed")
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=600, kernel_name="python3")

    def cells(name: str, parameters: str) -> list:
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = parameters
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        client.nb = notebook
        client.execute(cwd=str(NOTEBOOKS), cleanup_kc=False)
        return notebook.cells[1:]

    yield cells
    client._cleanup_kernel()


@pytest.mark.slow
def test_first_look_runs_on_the_tiny_model(run, tmp_path, finished_run):
    shutil.copytree(finished_run, tmp_path / "run")  # what is there is not trained and measured again
    cells = run(
        "01_first_look.ipynb",
        f"recipe_name, given_recipe, folder, step = 'tiny', 'tiny', {str(tmp_path / 'run')!r}, 12",
    )
    shown = json.dumps([cell.get("outputs", []) for cell in cells])
    assert "application/vnd.plotly.v1+json" in shown
    assert "CircuitsVis" in shown
    assert "unpkg.com" not in shown
    assert (tmp_path / "run" / "report" / "index.html").is_file()


@pytest.mark.slow
def test_attacks_and_training_run_on_the_tiny_model(run, tmp_path):
    given = f"source, folder, n, steps = 'tiny-random', {str(tmp_path)!r}, 2, 4"
    cells = run("02_attacks_and_training.ipynb", given)
    shown = [json.dumps(cell.get("outputs", [])) for cell in cells]
    assert sum("application/vnd.plotly.v1+json" in outputs for outputs in shown) == 3
    assert all(method in shown[3] for method in ("gcg", "autodan", "templates"))
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"gcg.parquet", "autodan.parquet", "templates.parquet"}
    assert {path.name for path in (tmp_path / "r2d2").glob("step-*")} == {"step-00002", "step-00004"}


@pytest.mark.slow
def test_geometry_runs_on_the_tiny_model(run, tmp_path):
    cells = run("03_geometry.ipynb", f"source, folder, n, every = 'tiny-random', {str(tmp_path)!r}, 6, 1")
    shown = [json.dumps(cell.get("outputs", [])) for cell in cells]
    assert sum("application/vnd.plotly.v1+json" in outputs for outputs in shown) == 1
    for name in ("rejected_because", "cost_per_refusal", "ablate_refusal_on_refusal", "shuffled_auc", "variance_share"):
        assert any(name in outputs for outputs in shown), name


@pytest.mark.slow
def test_cause_and_attribution_run_on_the_tiny_model(run):
    given = "source, base, n, n_pairs = 'tiny-random', 'tiny-random', 4, 2"
    cells = run("04_cause_and_attribution.ipynb", given)
    shown = [json.dumps(cell.get("outputs", [])) for cell in cells]
    assert sum(outputs.count("application/vnd.plotly.v1+json") for outputs in shown) == 5
    for name in ("spearman", "difference", "segment", "random_refusal", "random_kept", "control"):
        assert any(name in outputs for outputs in shown), name


def test_notebooks_are_committed_without_outputs():
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), path.name


@pytest.mark.slow
def test_benchmarks_and_judges_run_on_the_tiny_model(run, tmp_path):
    given = f"source, out, suites, n = 'tiny-random', {str(tmp_path)!r}, ['builtin-xstest', 'builtin'], 4"
    cells = run("05_benchmarks_and_judges.ipynb", given)
    shown = [json.dumps(cell.get("outputs", [])) for cell in cells]
    for name in ("partial_refusal", "mcnemar_p", "Cohen's kappa", "answers are labelled", "leaking_a"):
        assert any(name in outputs for outputs in shown), name
    assert (tmp_path / "measurements" / "rates.parquet").is_file()
