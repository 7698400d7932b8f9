"""What a wheel holds: the package works from it alone, outside of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = {".yaml", ".csv", ".txt", ".html", ".css", ".js", ".json"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources and unpacked."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than the 77 that pyproject.toml builds with: install the extra 'dev'")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mechrefusal", source / "mechrefusal", ignore=shutil.ignore_patterns("__pycache__"))
    build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", *build, str(source)], check=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "unpacked")
    return out / "unpacked"


def _python(unpacked: Path, elsewhere: Path, *words: str) -> str:
    """What Python prints with the unpacked wheel first on its path, in another folder."""
    env = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, *words], cwd=elsewhere, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_file_of_data_is_in_the_wheel(unpacked):
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mechrefusal").rglob("*")
        if path.suffix in DATA or path.name == "py.typed"
    }
    assert len(wanted) > 40
    assert not {path for path in wanted if not (unpacked / path).is_file()}


@pytest.mark.slow
def test_the_command_line_and_recipes_work_from_the_wheel(unpacked, tmp_path):
    assert "usage: mechrefusal" in _python(unpacked, tmp_path, "-m", "mechrefusal", "--help")
    told = _python(
        unpacked,
        tmp_path,
        "-c",
        "import mechrefusal as mr; from mechrefusal.study.recipe import packaged; print(mr.__file__, packaged());"
        "print(mr.study.load_recipe('demo').name, len(mr.prompts.builtin().pool), len(mr.tables.describe('carrier')));"
        "print(mr.evaluation.is_refusal('I cannot help with that.'), len(mr.attacks.jailbreaks.templates()))",
    )
    assert str(unpacked) in told
    assert all(name in told for name in ("demo", "full", "measure", "methods", "quick", "robustness", "tiny", "True"))


@pytest.mark.slow
def test_a_report_is_written_from_the_wheel(unpacked, tmp_path):
    _python(
        unpacked,
        tmp_path,
        "-c",
        f"import sys; sys.path.insert(1, {str(ROOT / 'tests' / 'report')!r})\n"
        "from pathlib import Path\nfrom synthetic import write_run\nfrom mechrefusal import report\n"
        "report.write(write_run(Path('run'), arms=('r2d2',), anchors=(0, 50), evaluated=False))",
    )
    assert (tmp_path / "run" / "report" / "index.html").stat().st_size > 10_000
