"""The viewer's sources: checked by TypeScript's compiler where npm packages are there, and vendored as they say."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mechrefusal.report import viewer

FOLDER = Path(viewer.__file__).parent
LONGEST = 300


def _run(*command):
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def node():
    return shutil.which("node") or pytest.skip("node is not installed")


def test_every_source_is_in_the_script_and_short():
    own = {path.name for path in FOLDER.glob("*.js")} - {"cytoscape.min.js"}
    assert own == set(viewer.SOURCES)
    for name in (*viewer.SOURCES, "report.css"):
        assert len((FOLDER / name).read_text(encoding="utf-8").splitlines()) <= LONGEST, name


def test_the_script_may_stand_in_a_page():
    text = viewer.script()
    assert "</script" not in text
    assert "<!--" not in text
    assert "innerHTML" not in text
    assert "eval(" not in text


def test_the_script_is_javascript(node, tmp_path):
    path = tmp_path / "report.js"
    path.write_text(viewer.script(), encoding="utf-8")
    ran = _run(node, "--check", str(path))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_types_and_form(node):
    if not (FOLDER / "node_modules" / "typescript").is_dir():
        pytest.skip(f"npm packages are not there: run 'npm ci' in {FOLDER}")
    for tool, arguments in {"typescript/bin/tsc": ["--project", "."], "prettier/bin/prettier.cjs": _FORM}.items():
        ran = _run(node, f"node_modules/{tool}", *arguments)
        assert ran.returncode == 0, ran.stdout + ran.stderr


_FORM = ["--check", "--print-width", "120", *viewer.SOURCES]


def test_cytoscape_is_what_its_note_says():
    note = (FOLDER / "vendored.md").read_text(encoding="utf-8")
    version = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))["dependencies"]["cytoscape"]
    digest = hashlib.sha256((FOLDER / "cytoscape.min.js").read_bytes()).hexdigest()
    assert f"| version | {version} |" in note
    assert f"| sha256 of the file | {digest} |" in note
    assert f'"{version}"' in viewer.cytoscape_script()
    assert "Permission is hereby granted" in (FOLDER / "cytoscape.LICENSE").read_text(encoding="utf-8")
    locked = json.loads((FOLDER / "package-lock.json").read_text(encoding="utf-8"))
    assert locked["packages"]["node_modules/cytoscape"]["version"] == version
    assert all(re.fullmatch(r"[\d.]+", p["version"]) for name, p in locked["packages"].items() if name)
