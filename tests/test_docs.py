"""What README and documentation show is run: Python on the tiny model, command lines by the parser, recipes by theirs.

Blocks of a page are run in their order in one namespace, in a folder that holds a finished run of the recipe `tiny` as
`checkpoints/demo`. Blocks of other projects' code are marked `py` or `sh` in place of `python` and `console`.
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest

from mechrefusal import cli, study
from mechrefusal.cli import entry
from mechrefusal.cli.options import Command

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
SMALL = {
    "smollm2-135m-instruct": "tiny-random",
    "step=70": "step=12",
    "step-00070": "step-00012",
}
"""What stands in the text for the demo's model and steps, and what the tests have."""


def _blocks(page: Path, kind: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == kind]


def _pages_with(kind: str) -> list:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES if _blocks(page, kind)]


def _command_lines(page: Path) -> list[list[str]]:
    """Words of every line of a console block, comments left away, continued lines joined."""
    text = "\n".join(_blocks(page, "console")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages_with("python"))
def test_python_is_run_on_the_tiny_model(page, finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "checkpoints" / "demo")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page.stem}
    for number, code in enumerate(_blocks(page, "python"), start=1):
        for said, small in SMALL.items():
            code = code.replace(said, small)
        exec(compile(code, f"{page.name}, Python block {number}", "exec"), names)


def _that_does_nothing(command: Command) -> Command:
    """The command with its options, whose work is left out."""
    return replace(command, run=wraps(command.run)(lambda options: None))


@pytest.mark.parametrize("page", _pages_with("console"))
def test_command_lines_are_ones(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(entry, "COMMANDS", {name: _that_does_nothing(each) for name, each in entry.COMMANDS.items()})
    monkeypatch.chdir(tmp_path)
    for other in PAGES:
        for recipe in _blocks(other, "yaml"):
            if named := re.match(r"# (\S+\.yaml)\n", recipe):
                Path(named[1]).write_text(recipe, encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in _command_lines(page):
        if "-m" in words and words[words.index("-m") + 1] == "mechrefusal":
            words = words[words.index("-m") + 1 :]  # of torchrun and accelerate
        if words[0] == "mechrefusal":
            assert cli.main(words[1:]) == 0, (words, capsys.readouterr().err)
        elif words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "python":
            monkeypatch.setattr(sys, "argv", [words[1], "--help"])
            with pytest.raises(SystemExit):
                runpy.run_path(str(ROOT / words[1]), run_name="__main__")
            told = capsys.readouterr().out
            assert all(word in told for word in words if word.startswith("--")), words
        else:
            assert words[:2] == ["pip", "install"], words
    assert capsys.readouterr().err == ""


def test_recipes_are_ones(tmp_path):
    named = [code for page in PAGES for code in _blocks(page, "yaml")]
    assert named
    for recipe in named:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe, encoding="utf-8")
        assert study.load_recipe(path).name


@pytest.mark.parametrize("page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES])
def test_links_lead_somewhere(page):
    made = {"tables.md", *(f"api/{room}.md" for room in _hooks().ROOMS)}
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not link.startswith(("http:", "https:", "mailto:")) and link not in made:
            assert (page.parent / link).exists(), link


def test_every_table_and_room_has_its_page():
    hooks = _hooks()
    schema = hooks.table_schema()
    from mechrefusal import tables

    assert all(f"### {name}\n" in schema for name in tables.TABLES)
    for room in hooks.ROOMS:
        assert importlib.util.find_spec(f"mechrefusal.{room}") is not None
        assert f"::: mechrefusal.{room}\n" in hooks.api(room)


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_a_network(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r"<(?:script|img|link|iframe|source|video|audio)\b[^>]*", text)
        assert not [tag for tag in loads if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], page.name


def _hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
