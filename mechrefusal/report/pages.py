"""Writes the report: an index, pages about training, evaluation and each checkpoint, files that need nothing else."""

from pathlib import Path

from mechrefusal.files import whole_file
from mechrefusal.progress import track
from mechrefusal.report import checkpoint_page, embedding, evaluation_page, index_page, training_page
from mechrefusal.report.reading import read_run


def write(run_folder: Path | str, *, show_completions: bool = False) -> Path:
    """Write the report of a run from its tables; no model is loaded and nothing is fetched.

    Args:
        run_folder: holds `measurements/`, and `recipe.yaml` and `manifest.json` where there are any.
        show_completions: show completions to harmful requests whole; otherwise their first 60 characters.

    Returns:
        Path of `<run_folder>/report/index.html`; beside it stand `training.html`, `evaluation.html` where there was
        one, and each checkpoint's page, `<checkpoint id>.html`.

    Raises:
        MechrefusalError: the run was not measured, or a table cannot be read.
    """
    run = read_run(run_folder)
    folder = Path(run_folder) / "report"
    for checkpoint in track(run.checkpoints, "pages"):
        shown = checkpoint_page.context(run, checkpoint, show_completions=show_completions)
        _write(folder / f"{checkpoint.id}.html", embedding.page("checkpoint.html", circuits=True, **shown))
    _write(folder / "training.html", embedding.page("training.html", circuits=False, **training_page.context(run)))
    if run.evaluated:
        found = evaluation_page.context(run, show_completions=show_completions)
        _write(folder / "evaluation.html", embedding.page("evaluation.html", circuits=False, **found))
    return _write(folder / "index.html", embedding.page("index.html", circuits=False, **index_page.context(run)))


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
    return path
