"""Pages in Debian's Chromium, watched: they ask for nothing outside of their folder and complain of nothing."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
READY = "document.documentElement.dataset.ready === 'true'"


@contextmanager
def chromium() -> Iterator:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


def until(page, expression: str, argument=None, *, seconds: float = 25) -> None:
    """Wait until an expression is true. (Playwright's own polls with `eval`, which the policy of a page forbids.)"""
    end = time.monotonic() + seconds
    while not _now(page, expression, argument):
        assert time.monotonic() < end, f"still not true after {seconds} s: {expression}"
        page.wait_for_timeout(25)


def _now(page, expression: str, argument) -> bool:
    """Whether it is true now; it is not while the page goes somewhere else."""
    try:
        return bool(page.evaluate(expression, argument))
    except Exception as error:
        if "context was destroyed" not in str(error):
            raise
        return False


def _is_complaint(message) -> bool:
    """Whether a message of the console is one. Advice to circuitsvis on how fast a canvas is read is none."""
    return message.type in ("error", "warning") and "willReadFrequently" not in message.text


@contextmanager
def opened(browser, path: Path, fragment: str = "", *, width: int = 1280, theme: str = "light", ready: str = READY):
    """A page; at the end it must have asked for nothing outside of its folder, complained of nothing, run no data."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    inside = (path.parent.as_uri() + "/", "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(inside) else faults.append(f"request {r.url}"))
    page.on("requestfailed", lambda r: faults.append(f"failed {r.url}"))
    page.on("console", lambda m: faults.append(f"{m.type}: {m.text}") if _is_complaint(m) else None)
    page.on("pageerror", lambda e: faults.append(f"error {e}"))
    page.on("dialog", lambda d: (faults.append(f"dialog {d.message}"), d.dismiss()))
    page.goto(f"{path.as_uri()}{fragment}")
    until(page, ready)
    yield page
    page.wait_for_timeout(50)
    context.close()
    assert not faults, "\n".join(faults)
