"""A report in a browser: everything draws at any width, leads where it says, and no data runs."""

import html
import re

import browsing
import pytest
from browsing import until

from mechrefusal import report
from mechrefusal.report import circuits
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow

PAGE = "r2d2-step-00050"
DRAW = """() => { document.querySelectorAll('details').forEach(d => d.open = true); return mechrefusal.drawAll(); }"""
SETTLED = """width => document.documentElement.scrollWidth <= width && [...document.querySelectorAll('.plot')]
    .filter(plot => plot.checkVisibility())
    .every(plot => Math.abs(plot.querySelector('.main-svg').clientWidth - plot.clientWidth) <= 2)"""
"""Whether figures have taken the width of a resized window, which they do one after the other."""


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def visit(browser, small_run):
    """Opens a page of the report of the made-up run."""
    folder = small_run / "report"
    return lambda name, fragment="", **how: browsing.opened(browser, folder / f"{name}.html", fragment, **how)


@pytest.mark.parametrize(
    ("name", "least"), [("index", 10), ("training", 5), ("evaluation", 5), ("maps", 3), (PAGE, 20)]
)
def test_every_figure_draws_and_follows_the_window(visit, name, least):
    with visit(name, width=1400) as page:
        page.evaluate(DRAW)
        assert page.evaluate("document.querySelectorAll('.plot').length") >= least
        until(page, SETTLED, 1400)
        draws_at(page, 1400)
        page.set_viewport_size({"width": 800, "height": 900})
        until(page, SETTLED, 800)
        draws_at(page, 800)


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
            .map(([text]) => p.dataset.plot + ': ' + text)})"""
    assert page.evaluate(outside) == []
    unnamed = """[...document.querySelectorAll('.plot')].filter(p => p.checkVisibility()).filter(p => {
        const wanted = p.layout.xaxis && p.layout.xaxis.ticktext ? p.layout.xaxis.tickvals.length : 0;
        const ticks = [...p.querySelectorAll('.xaxislayer-above .xtick text')];
        return ticks.filter(t => t.style.opacity !== '0' && t.style.display !== 'none').length < wanted;
        }).map(p => p.dataset.plot)"""
    assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("name", ["base-step-00000", "compare", "methods", "prompts"])
def test_the_other_pages_open(visit, name):
    with visit(name, width=800, theme="dark") as page:
        page.evaluate(DRAW)
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
        assert page.locator("h1").count() == 1


def test_every_link_leads_somewhere(small_run):
    folder = small_run / "report"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}
    ids = {name: set(re.findall(r' id="([^"]+)"', text)) for name, text in texts.items()}
    for name, text in texts.items():
        for href in map(html.unescape, re.findall(r' href="([^"]+)"', text)):
            file, _, fragment = href.partition("#")
            section = fragment.split("&")[0]
            if file.endswith(".html") or not file:
                assert "=" in section or not section or section in ids[file or name], (name, href)
            elif not file.startswith(("http", "data:")):
                assert (folder / file).is_file(), (name, href)


def test_a_head_of_the_page_opens_its_card(visit):
    with visit(PAGE) as page:
        page.locator("main a.head").first.click()
        page.wait_for_selector("#head-card table.values tr")
        page.evaluate(f"mechrefusal.openHead('19.3', '{PAGE}')")
        page.wait_for_selector("#head-card canvas")
        assert page.locator("#head-card .sources li").first.is_visible()
        assert page.locator("#head-card :is(img, script)").count() == 0


def test_the_circuit_is_drawn(visit):
    with visit(PAGE, "#circuit") as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.locator("div.graph").scroll_into_view_if_needed()
        page.wait_for_selector("div.graph canvas")
        assert page.locator("div.graph .canvas").get_attribute("data-shown").split()[0] == "5"


def test_the_circuit_is_a_graph_on_the_screen_and_a_figure_on_paper(visit):
    with visit(PAGE, "#circuit") as page:
        graph, figure = page.locator("div.graph"), page.locator("#fig-circuit-1")
        graph.locator("canvas").first.wait_for()
        assert not figure.is_visible()
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        figure.locator(".main-svg").first.wait_for()
        assert not graph.is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        graph.wait_for()
        figure.wait_for(state="hidden")


def test_hover_shows_hostile_tokens_as_text(visit):
    with visit(PAGE) as page:
        page.evaluate(DRAW)
        labels = page.evaluate("[...document.querySelectorAll('.plot .xtick text')].map(t => t.textContent)")
        assert any("<script>alert" in label for label in labels)
        assert page.locator(".plot :is(img, script)").count() == 0


def test_prompts_of_the_report_are_text(visit):
    with visit("prompts") as page:
        page.wait_for_selector("table.prompts tbody tr")
        page.get_by_role("searchbox").fill("<script>")
        until(page, "document.querySelectorAll('table.prompts tbody tr').length > 0")
        assert "<script>alert(1)</script>" in page.locator("table.prompts").inner_text()
        assert page.locator("#prompts-browser :is(img, script, svg)").count() == 0


def test_one_file_holds_the_whole_report(browser, small_run, tmp_path):
    (tmp_path / "measurements").symlink_to(small_run / "measurements")
    path = report.write(tmp_path, single_file=True)
    with browsing.opened(browser, path) as page:
        page.wait_for_selector(".plot .main-svg")
        page.locator("main a.head").first.click()
        page.wait_for_selector("#head-card table.values tr")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Prompts").first.click()
        page.wait_for_selector("table.prompts tbody tr")
        page.get_by_role("link", name="Maps").first.click()
        page.wait_for_selector("section.maps .main-svg")


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
    with browsing.opened(browser, notebook, ready="document.querySelectorAll('iframe').length === 2") as page:
        page.wait_for_timeout(500)
        frames_of_page = page.frames[1:]
        assert len(frames_of_page) == 2
        frames_of_page[0].wait_for_selector("canvas")
        assert frames_of_page[0].evaluate("document.querySelectorAll('canvas').length") == 5
        frames_of_page[1].wait_for_selector(".colored-tokens")
        assert "<script>alert(1)</script>" in frames_of_page[1].evaluate(
            "document.querySelector('.colored-tokens').innerText"
        ).replace("\u2060", "")
