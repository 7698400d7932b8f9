"""The notebooks run from top to bottom, on the tiny model; what is committed of them is clean."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
SETTLED = """\
import gc, mechrefusal.study.pipeline, mechrefusal.training.fine_tuning
gc.collect()
gc.freeze()
del gc, mechrefusal
"""
"""Before each notebook: collections, which each loading of a model asks for, need not look through what is imported."""


@pytest.fixture(scope="module")
def nbformat():
    return pytest.importorskip("nbformat", reason="the extra 'dev' is not installed")


@pytest.fixture(scope="module")
def run(nbformat):
    """`run(name, parameters)`: what each code cell of a notebook shows, as JSON, run from its top in a new namespace.

    In one kernel, which imports the libraries once for all of them.
    """
    nbclient = pytest.importorskip("nbclient", reason="the extra 'dev' is not installed")
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=600, kernel_name="python3")

    def shown(name: str, parameters: str) -> list[str]:
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = parameters
        notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n{SETTLED}"))
        client.nb = notebook
        client.execute(cwd=str(NOTEBOOKS), cleanup_kc=False)
        return [json.dumps(cell.outputs) for cell in notebook.cells[1:] if cell.cell_type == "code"]

    yield shown
    client._cleanup_kernel()


@pytest.fixture(scope="module")
def a_run(finished_run, tmp_path_factory) -> Path:
    """A copy of the finished run, for notebooks that read one."""
    return Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("notebooks") / "run"))


def _n_figures(shown: list[str]) -> int:
    return sum(outputs.count('"application/vnd.plotly.v1+json"') for outputs in shown)


@pytest.mark.slow
def test_first_look(run, a_run):
    shown = run("01_first_look.ipynb", f"recipe_name, folder, step = 'tiny', {str(a_run)!r}, 12")
    assert _n_figures(shown) == 2
    assert any("CircuitsVis" in outputs for outputs in shown)
    assert not any("unpkg.com" in outputs for outputs in shown)
    assert (a_run / "report" / "index.html").is_file()


@pytest.mark.slow
def test_training_and_watching_an_arm(run, tmp_path):
    shown = run(
        "02_training_and_watching_an_arm.ipynb",
        f"source, folder, n, steps = 'tiny-random', {str(tmp_path)!r}, 2, 4",
    )
    assert _n_figures(shown) == 4
    assert all(any(method in outputs for outputs in shown) for method in ("gcg", "autodan", "templates"))
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"gcg.parquet", "autodan.parquet", "templates.parquet"}
    for arm in ("r2d2", "hinge"):
        assert {path.name for path in (tmp_path / arm).glob("step-*")} == {"step-00002", "step-00004"}


@pytest.mark.slow
def test_geometry(run, tmp_path):
    shown = run("03_geometry.ipynb", f"source, folder, n, every = 'tiny-random', {str(tmp_path)!r}, 6, 1")
    assert _n_figures(shown) == 3
    for name in ("rejected_because", "cost_per_refusal", "ablate_refusal_on_refusal", "shuffled_auc", "variance_share"):
        assert any(name in outputs for outputs in shown), name


@pytest.mark.slow
def test_cause_and_attribution(run):
    shown = run("04_cause_and_attribution.ipynb", "source, base, n, n_pairs = 'tiny-random', 'tiny-random', 4, 2")
    assert _n_figures(shown) == 5
    for name in ("spearman", "difference", "segment", "random_refusal", "random_kept", "control"):
        assert any(name in outputs for outputs in shown), name


@pytest.mark.slow
def test_benchmarks_and_judges(run, tmp_path):
    shown = run(
        "05_benchmarks_and_judges.ipynb",
        f"source, out, suites, n = 'tiny-random', {str(tmp_path)!r}, ['builtin-xstest', 'builtin'], 4",
    )
    for name in ("partial_refusal", "mcnemar_p", "Cohen's kappa", "answers are labelled", "leaking_a"):
        assert any(name in outputs for outputs in shown), name
    assert (tmp_path / "measurements" / "rates.parquet").is_file()


@pytest.mark.slow
def test_ablation_playground(run, a_run):
    pytest.importorskip("ipywidgets", reason="the extra 'dev' is not installed")
    shown = run("06_ablation_playground.ipynb", f"source, checkpoint, n = {str(a_run)!r}, 'sft-step-00012', 2")
    assert _n_figures(shown) == 2
    assert "application/vnd.jupyter.widget-view+json" in shown[-1]


@pytest.mark.slow
def test_your_own_model_and_prompts(run, a_run, tmp_path):
    parameters = f"'{a_run}/sft/step-00012', 'tiny-random', {str(tmp_path / 'given')!r}, 'tiny', 2"
    shown = run("07_your_own_model_and_prompts.ipynb", f"model_name, base, folder, recipe, n = {parameters}")
    assert _n_figures(shown) == 1
    assert any("declined: " in outputs for outputs in shown)
    assert (tmp_path / "given" / "report" / "index.html").is_file()


@pytest.mark.slow
def test_comparing_arms_and_checkpoints(run, a_run):
    parameters = f"{str(a_run)!r}, 'sft-step-00012', 'r2d2-step-00012', 3"
    shown = run("08_comparing_arms_and_checkpoints.ipynb", f"folder, first, second, n = {parameters}")
    assert _n_figures(shown) == 6
    assert any("target_score" in outputs for outputs in shown)
    assert any("separability" in outputs for outputs in shown)
    assert any("control_degenerate" in outputs for outputs in shown)


@pytest.mark.slow
def test_how_deep_refusal_goes(run, a_run):
    shown = run("09_how_deep_refusal_goes.ipynb", f"folder, name, n = {str(a_run)!r}, 'sft-step-00012', 1")
    assert _n_figures(shown) == 3
    assert all(
        any(column in outputs for outputs in shown)
        for column in ("random_refused", "change", "n_compared", "loss_last")
    )


def test_what_is_committed_is_clean(nbformat):
    spec = importlib.util.spec_from_file_location("clean_notebooks", ROOT / "scripts" / "clean_notebooks.py")
    cleaning = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cleaning)
    found = {
        path.name: list(cleaning.troubles(nbformat.read(path, as_version=4))) for path in NOTEBOOKS.glob("*.ipynb")
    }
    assert len(found) == 9
    assert not any(found.values()), found


def test_cleaning_takes_out_what_it_names(nbformat):
    spec = importlib.util.spec_from_file_location("clean_notebooks", ROOT / "scripts" / "clean_notebooks.py")
    cleaning = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cleaning)
    new = nbformat.v4
    figure = {"application/vnd.plotly.v1+json": {"data": []}, "image/png": "aGVsbG8=", "text/plain": "Figure({})"}
    cell = new.new_code_cell("1", execution_count=3, metadata={"execution": {"iopub.status": "x"}})
    cell.outputs = [
        new.new_output("stream", name="stderr", text="a bar"),
        new.new_output("stream", name="stdout", text="wrote /home/someone/run.txt"),
        new.new_output(
            "display_data", data={"text/html": cleaning.PRINTED + '">half done</pre>', "text/plain": "half"}
        ),
        new.new_output("execute_result", data={"text/html": "<p>" + "x" * 200_000}, execution_count=3),
        new.new_output("display_data", data=figure),
    ]
    notebook = new.new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11"}})
    assert len(list(cleaning.troubles(notebook))) == 6
    cleaned = cleaning.clean(notebook)
    assert list(cleaning.troubles(cleaned)) == []
    assert [output.output_type for output in cleaned.cells[0].outputs] == ["stream", "execute_result", "display_data"]
    assert set(cleaned.cells[0].outputs[2].data) == {"application/vnd.plotly.v1+json", "image/png"}
