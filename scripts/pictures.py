"""Make the two pictures of the README from a finished run: the first screen of its report, and the figure of its story.

    python scripts/pictures.py checkpoints/demo            # docs/demo.png and docs/story.png
    python scripts/pictures.py checkpoints/demo --out .

The report is written where the run has none. It takes the extras `dev` (playwright) and `pictures` (kaleido), and a
Chromium: the environment variable BROWSER_PATH, or what is on the path.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

import mechrefusal as mr

SCREEN = {"width": 1400, "height": 1000}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both pictures and name them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a measured run")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    options = parser.parse_args(arguments)
    run = mr.study.open(options.run)
    index = run.folder / "report" / "index.html"
    if not index.is_file():
        mr.report.write(run.folder)
    print(screenshot(index, options.out / "demo.png"))
    carrier, rates = (mr.tables.read(name, run.measurements()) for name in ("carrier", "rates"))
    story = mr.report.figures.depth_story(carrier, rates)
    print(mr.report.figures.save(story, options.out / "story.png", background="white"))


def screenshot(page: Path, path: Path) -> Path:
    """The first screen of a page, as light as it is printed, once its figures are drawn."""
    chromium = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("pictures need a Chromium: install one, or say where it is with BROWSER_PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport=SCREEN, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        shown.wait_for_timeout(4000)
        shown.screenshot(path=path)
        browser.close()
    return path


if __name__ == "__main__":
    main()
