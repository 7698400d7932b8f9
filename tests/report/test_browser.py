"""In a browser: everything draws, nothing is asked from a network, no data runs. Needs playwright and chromium."""

import shutil
from contextlib import contextmanager

import pytest

from mechrefusal.report import circuits
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PAGE = "r2d2-step-00050"
SETTLED = """width => document.documentElement.scrollWidth <= width && [...document.querySelectorAll('.plot')]
    .filter(plot => plot.checkVisibility())
    .every(plot => Math.abs(plot.querySelector('.main-svg').clientWidth - plot.clientWidth) <= 2)"""
"""Whether figures have taken the width of a resized window, which they do one after the other."""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@contextmanager
def watched(browser, path, width=1280):
    """Open a page; at the end it must have asked for nothing, complained of nothing and run nothing of the data."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith(("file:", "data:", "blob:", "about:")) else faults.append(f"request {r.url}")
        ),
    )
    page.on("console", lambda m: faults.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: faults.append(f"error {e}"))

    def dismissed(dialog):
        faults.append(f"dialog {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismissed)
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.plot:not(.js-plotly-plot)').length === 0")
    page.wait_for_timeout(500)
    yield page
    context.close()
    assert faults == []


@pytest.mark.parametrize(("first", "then"), [(1280, 800), (400, 600)])
@pytest.mark.parametrize("name", ["index", "training", "evaluation", "base-step-00000", PAGE])
def test_pages_draw_without_a_network(browser, small_run, name, first, then):
    """Opened on a wide and on a narrow screen, and resized to another width: a page takes seconds to draw."""
    with watched(browser, small_run / "report" / f"{name}.html", first) as page:
        assert (
            page.evaluate("document.querySelectorAll('.plot').length")
            == page.evaluate("document.querySelectorAll('.plot .main-svg:first-child').length")
            > 5
        )
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.wait_for_function(SETTLED, arg=first)
        draws_at(page, first)
        page.set_viewport_size({"width": then, "height": 900})
        page.wait_for_function(SETTLED, arg=then)
        draws_at(page, then)


def draws_at(page, width):
    """Nothing is clipped, stands outside of its figure or scrolls sideways, and every named tick has its name."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = "[...document.querySelectorAll('.panel h3')].filter(t => t.scrollWidth > t.clientWidth + 1).length"
    assert page.evaluate(clipped) == 0
    outside = """[...document.querySelectorAll('.plot')].filter(p => p.checkVisibility()).flatMap(p => {
        const box = p.getBoundingClientRect();
        return [...p.querySelectorAll('.xtitle, .ytitle, .legendtext, .cbtitle, .xtick text, .ytick text')]
            .map(t => [t.textContent, t.getBoundingClientRect()])
            .filter(([, b]) => b.width)
            .filter(([, b]) => b.left < box.left - 2 || b.right > box.right + 2 || b.bottom > box.bottom + 2)
            .map(([text]) => p.id + ': ' + text)})"""
    assert page.evaluate(outside) == []
    unnamed = """[...document.querySelectorAll('.plot')].filter(p => p.checkVisibility()).filter(p => {
        const wanted = p.layout.xaxis && p.layout.xaxis.ticktext ? p.layout.xaxis.tickvals.length : 0;
        const ticks = [...p.querySelectorAll('.xaxislayer-above .xtick text')];
        return ticks.filter(t => t.style.opacity !== '0' && t.style.display !== 'none').length < wanted;
        }).map(p => p.id)"""
    assert page.evaluate(unnamed) == []


@pytest.fixture(scope="module")
def opened(browser, small_run):
    """The page of a checkpoint, opened once for what is looked at and clicked."""
    with watched(browser, small_run / "report" / f"{PAGE}.html") as page:
        yield page


def test_circuits_draw(opened):
    page = opened
    assert page.evaluate("document.querySelectorAll('.attention .circuit canvas').length") == 2 * 5
    painted = """[...document.querySelectorAll('.attention .circuit canvas')].every(c =>
        c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v !== 0))"""
    assert page.evaluate(painted)
    tokens = page.evaluate(
        "[...document.querySelectorAll('.colored-tokens')].map(d => d.innerText.replaceAll('\\u2060', ''))"
    )
    assert len(tokens) == 2
    assert "<script>alert(1)</script>" in tokens[0].replace("\xa0", " ")
    assert "&lt;b&gt;" in tokens[0].replace("\xa0", " ")
    assert page.evaluate("document.querySelectorAll('.circuit img, .circuit script, .circuit svg').length") == 0
    page.hover(".colored-tokens span span >> nth=6")
    page.wait_for_timeout(300)


def test_hover_shows_hostile_tokens_as_text(opened):
    page = opened
    page.locator("#patching .plot").first.scroll_into_view_if_needed()
    box = page.locator("#patching .plot").first.locator(".heatmaplayer image").bounding_box()
    column, n_columns = 8, 16
    page.mouse.move(box["x"] + box["width"] * (column + 0.5) / n_columns, box["y"] + box["height"] * 0.5)
    page.wait_for_selector("#patching .hoverlayer .hovertext")
    text = page.evaluate("document.querySelector('#patching .hoverlayer').textContent")
    assert "−8 <script>alert" in text
    assert "effect" in text


def test_details_open_and_figures_take_their_width(opened):
    page = opened
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(1500)
    fits = """[...document.querySelectorAll('details .plot')].every(
        p => Math.abs(p.querySelector('.main-svg').clientWidth - p.clientWidth) < 3)"""
    assert page.evaluate("document.querySelectorAll('details .plot').length") == 10
    assert page.evaluate(fits)


def test_evaluation_opens_and_says_what_a_point_is(browser, small_run):
    with watched(browser, small_run / "report" / "evaluation.html") as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.wait_for_timeout(2000)
        fits = """[...document.querySelectorAll('.plot')].every(
            p => Math.abs(p.querySelector('.main-svg').clientWidth - p.clientWidth) < 3)"""
        assert page.evaluate(fits)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.evaluate("window.scrollTo(0, document.querySelector('#frontier .plot').offsetTop - 120)")
        page.wait_for_timeout(300)
        box = page.locator("#frontier .plot .scatterlayer .point >> nth=0").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#frontier .hoverlayer .hovertext")
        text = page.evaluate("document.querySelector('#frontier .hoverlayer').textContent")
        assert "attack success" in text
        assert "layer" in text
        answers = page.evaluate("document.querySelector('#answers').innerText")
        assert "<script>alert(1)</script>" in answers


def test_jupyter_frames_draw(browser, small_run, tmp_path):
    measured = read_run(small_run).checkpoints[1].tables
    frames = [
        circuits.attention(measured["attention"], prompt_id="pair-0"),
        circuits.coloured_tokens(measured["tokens"], prompt_id="pair-0"),
    ]
    notebook = tmp_path / "notebook.html"
    notebook.write_text(
        "<!doctype html><meta charset=utf-8>" + "".join(f._repr_html_() for f in frames), encoding="utf-8"
    )
    with watched(browser, notebook) as page:
        found = page.frames[1:]
        assert len(found) == 2
        assert found[0].evaluate("document.querySelectorAll('canvas').length") == 5
        assert "<script>alert(1)</script>" in found[1].evaluate(
            "document.querySelector('.colored-tokens').innerText"
        ).replace("\u2060", "")
