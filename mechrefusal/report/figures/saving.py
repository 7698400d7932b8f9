"""Figures as files: pictures by plotly's own exporter, and pages that hold all they need."""

import importlib.util
import os
import shutil
from pathlib import Path

import plotly.graph_objects as go

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file

PICTURES = (".svg", ".png", ".pdf", ".jpg", ".webp")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def save(
    figure: go.Figure,
    path: Path | str,
    *,
    width: int = 900,
    height: int | None = None,
    scale: float = 2.0,
    background: str | None = None,
) -> Path:
    """Write a figure as a picture (`.svg`, `.png`, `.pdf`, `.jpg`, `.webp`) or as a page (`.html`).

    A page holds plotly's library and loads nothing. A picture is drawn by plotly's own exporter, which takes the
    package kaleido (`pip install 'mechrefusal[pictures]'`) and Chrome or Chromium: the environment variable
    BROWSER_PATH, or what is on the path.

    Args:
        width, height: pixels; the height is the figure's own by default.
        scale: pixels of a picture to each of these.
        background: a colour; transparent by default.

    Raises:
        MechrefusalError: another ending, or kaleido or a browser is missing.
    """
    path = Path(path)
    kind = path.suffix.lower()
    shown = go.Figure(figure)
    if background is not None:
        shown.update_layout(paper_bgcolor=background)
    if kind == ".html":
        page = shown.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
        with whole_file(path) as draft:
            draft.write_text(page, encoding="utf-8")
        return path
    if kind not in PICTURES:
        raise MechrefusalError(f"cannot save a figure as '{path.name}': expected .html or one of {', '.join(PICTURES)}")
    if importlib.util.find_spec("kaleido") is None:
        raise MechrefusalError(
            f"cannot save '{path.name}': pictures take the package kaleido; run pip install 'mechrefusal[pictures]', "
            "or save as .html"
        )
    browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None or not Path(browser).is_file():
        raise MechrefusalError(
            f"cannot save '{path.name}': kaleido takes Chrome or Chromium, and there is none"
            f"{f' at {browser}' if browser else ''}; install one, or name it in BROWSER_PATH"
        )
    os.environ["BROWSER_PATH"] = browser
    size = {"width": width, "height": height or shown.layout.height or 400, "scale": scale}
    with whole_file(path) as draft:
        draft.write_bytes(shown.to_image(format=kind[1:], **size))
    return path
