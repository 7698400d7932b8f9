"""The viewer in a browser, on pages of made-up data: all that a reader can do, and that data stays text."""

import json
import xml.etree.ElementTree as ElementTree

import browsing
import pytest
import viewer_fixture
from browsing import until
from viewer_fixture import CHECKPOINTS, HOSTILE, LAST

from mechrefusal.report import graph

pytestmark = pytest.mark.slow

DRAWN = "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
GROUND = "getComputedStyle(document.documentElement).backgroundColor"
WHITE, DARK = "rgb(255, 255, 255)", "rgb(20, 23, 27)"


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return viewer_fixture.write(tmp_path_factory.mktemp("viewer") / "report")


@pytest.fixture
def visit(browser, report):
    """Opens a page of made-up data."""
    return lambda name, fragment="", **how: browsing.opened(browser, report / f"{name}.html", fragment, **how)


def fragment_of(page):
    page.wait_for_timeout(60)
    return page.evaluate("decodeURIComponent(location.hash)")


def test_figures_are_drawn_when_they_come_into_view_and_all_before_printing(visit):
    with visit("index") as page:
        page.wait_for_selector("#fig-line-0 .main-svg")
        assert page.evaluate("document.querySelectorAll('#fig-hidden-1 .main-svg').length") == 0
        page.locator("#more summary").click()
        page.wait_for_selector("#fig-hidden-1 .main-svg")
        assert fragment_of(page).split("&")[-1].removeprefix("#") == "open=more"
    with visit("index", theme="dark") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        until(page, DRAWN)
        assert page.evaluate(f"[document.querySelector('#more').open, {GROUND}]") == [True, WHITE]
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(f"[document.querySelector('#more').open, {GROUND}]") == [False, DARK]
        assert fragment_of(page) == ""


@pytest.mark.parametrize("width", [1400, 800])
@pytest.mark.parametrize("name", ["index", "maps", LAST, "prompts", "compare", "report"])
def test_no_page_scrolls_sideways(visit, name, width):
    with visit(name, width=width) as page:
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_button_turns_the_page_and_its_figures_dark_and_is_remembered(visit):
    with visit("index") as page:
        page.wait_for_selector("#fig-line-0 .main-svg")
        stroke = "getComputedStyle(document.querySelector('#fig-line-0 .scatterlayer path.js-line')).stroke"
        assert page.evaluate(f"[{GROUND}, {stroke}]") == [WHITE, "rgb(59, 59, 59)"]
        page.get_by_role("button", name="Dark colours").click()
        until(page, f"{stroke} === 'rgb(210, 210, 210)'")
        assert page.evaluate(GROUND) == DARK
        page.reload()
        until(page, browsing.READY)
        assert page.evaluate(GROUND) == DARK


def test_a_figure_offers_its_table_and_svg(visit):
    with visit("index") as page:
        assert page.locator("#fig-line-0 a.csv").get_attribute("href") == "tables/line.csv"
        with page.expect_download() as saved:
            page.locator("#fig-line-0 button.svg").click()
        assert saved.value.suggested_filename == "fig-line-0.svg"
        image = ElementTree.parse(saved.value.path()).getroot()
        assert image.tag == "{http://www.w3.org/2000/svg}svg"
        words = "".join(image.itertext())
        assert "Line 0" in words
        assert "nats; n = 16 prompts" in words


def test_a_definition_opens_by_pointer_and_keyboard(visit):
    with visit("index") as page:
        about, definition = page.locator("#fig-line-0 .about"), page.locator("#fig-line-0 .definition")
        assert not definition.is_visible()
        about.hover()
        assert definition.is_visible()
        page.mouse.move(0, 0)
        about.focus()
        page.keyboard.press("Enter")
        assert definition.is_visible()
        assert about.get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert about.get_attribute("aria-expanded") == "false"


SHOWN = """JSON.stringify([...document.querySelectorAll('#maps-r2d2 .plot')].map(plot => plot.data &&
    [plot.data[0].z[4][1], plot.data[0].zmin, plot.data[0].zmax]))"""
PAINTED = """[...document.querySelectorAll('#head-card canvas')].every(canvas =>
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value))"""


def test_a_slider_moves_all_maps_of_an_arm_in_one_colour_range(visit):
    maps = viewer_fixture.maps_of("r2d2")["maps"]
    with visit("maps") as page:
        until(page, "document.querySelectorAll('#maps-r2d2 .main-svg').length >= 2")
        slider = page.get_by_role("slider", name="Optimiser step of r2d2")
        assert slider.get_attribute("aria-valuetext") == f"step 60, {LAST}"
        slider.focus()
        page.keyboard.press("ArrowLeft")
        until(page, "document.querySelector('#maps-r2d2 .step').textContent.startsWith('step 40')")
        wanted = json.dumps([[each["z"][2][4][1], -1.2, 1.2] for each in maps], separators=(",", ":"))
        until(page, f"{SHOWN} === '{wanted}'")
        assert fragment_of(page) == "#step=40&arm=r2d2"
        assert page.evaluate("document.querySelector('#maps-sft .step').textContent").startswith("step 40")
        page.keyboard.press("ArrowLeft")  # to step 20, which the other arm does not have
        assert page.evaluate("document.querySelector('#maps-sft .step').textContent").startswith("step 40")
    with visit("maps", "#step=0") as page:
        wanted = json.dumps([[each["z"][0][4][1], -1.2, 1.2] for each in maps], separators=(",", ":"))
        until(page, f"{SHOWN} === '{wanted}'")
        assert page.evaluate("document.querySelector('#maps-r2d2 .plot').data[0].zmid") == 0
        tokens = page.evaluate(
            "[...document.querySelectorAll('#maps-r2d2 figure:last-of-type .xtick')].map(t => t.textContent)"
        )
        assert "<b>bold</b>" in tokens


def test_a_page_follows_an_address_that_is_typed(visit):
    with visit("maps", "#step=40") as page:
        page.evaluate("location.hash = '#step=20&arm=r2d2'")
        until(page, "document.querySelector('#maps-r2d2 .step')?.textContent.startsWith('step 20')")


def test_a_head_of_a_map_opens_its_card(visit):
    with visit("maps", "#step=40") as page:
        plot = page.locator("#map-r2d2-patching_heads .plot")
        plot.locator(".main-svg").first.wait_for()
        _click_cell(page, plot, column=2, row=3, columns=6, rows=12)
        page.wait_for_selector("#head-card")
        assert page.locator("#head-name").inner_text() == "L3.H2"
        assert fragment_of(page) == "#step=40&head=3.2&at=r2d2-step-00040"
        page.keyboard.press("Escape")
        page.locator("#maps-r2d2").get_by_label("card of").select_option("4.1")
        page.wait_for_selector("#head-card")
        assert page.locator("#head-name").inner_text() == "L4.H1"
    with visit("index") as page:
        plot = page.locator("#fig-heads-1 .plot")
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        _click_cell(page, plot, column=5, row=0, columns=6, rows=12)
        page.wait_for_selector("#head-card")
        assert page.locator("#head-name").inner_text() == "L0.H5"


def _click_cell(page, plot, *, column, row, columns, rows):
    box = plot.locator(".plot .bglayer rect, .draglayer .nsewdrag").first.bounding_box()
    x = box["x"] + box["width"] * (column + 0.5) / columns
    y = box["y"] + box["height"] * (1 - (row + 0.5) / rows)
    page.mouse.move(x, y)
    page.mouse.click(x, y)


def test_the_card_of_a_head_says_what_was_measured(visit):
    values = viewer_fixture.heads()["values"]
    with visit("index") as page:
        page.locator("#story a.head").click()
        page.wait_for_selector("#head-card canvas")
        rows = page.locator("#head-card table.values tr").all_inner_texts()
        value, low, high, _ = values[LAST]["patching"][3 * viewer_fixture.HEADS + 2]
        assert f"{value:.3f}" in rows[0]
        assert f"[{low:.3f}, {high:.3f}]" in rows[0]
        assert page.locator("#head-card .spark").count() == 3
        assert page.locator("#head-card .spark >> nth=0").locator("circle").count() == len(CHECKPOINTS)
        sources = page.locator("#head-card .sources li").all_inner_texts()
        assert sources[0].startswith("<img src=x onerror=alert(7)>")
        assert page.locator("#head-card img").count() == 0
        until(page, PAINTED)
        page.get_by_role("button", name="Head before").click()
        until(page, "document.querySelector('#head-name').textContent === 'L3.H1'")
        assert page.locator("#head-card .reason").count() == 2
        page.keyboard.press("Escape")
        assert page.locator("#head-card").count() == 0
        assert fragment_of(page) in ("", "#story")
        assert page.evaluate("document.activeElement.className") == "head"


def test_harmful_and_harmless_attention_stand_side_by_side(visit):
    captions = "#head-card .attentions figcaption"
    with visit("index", f"#head=3.2&at={LAST}", width=1400) as page:
        until(page, PAINTED)
        assert page.locator(captions).all_inner_texts() == ["harmful prompt pair-0", "harmless prompt pair-1"]
        boxes = "[...document.querySelectorAll('.attentions figure')].map(f => f.getBoundingClientRect().toJSON())"
        left, right = page.evaluate(boxes)  # at once: the card slides in
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]
        assert page.locator("#head-card .reason").count() == 0
        page.get_by_role("button", name="Next head").click()
        until(page, "document.querySelector('#head-name').textContent === 'L3.H3'")
        assert page.locator(captions).all_inner_texts() == ["harmful prompt pair-0", "harmless prompt pair-0"]
        page.locator("#head-card select").nth(1).select_option(label="harmful prompt pair-1 and harmless prompt pair-1")
        until(page, PAINTED)
        assert page.locator(captions).all_inner_texts() == ["harmful prompt pair-1", "harmless prompt pair-1"]
        page.get_by_role("button", name="Next head").click()
        until(page, "document.querySelector('#head-name').textContent === 'L3.H4'")
        assert page.locator(captions).all_inner_texts() == ["harmful prompt pair-0"]
        words = "The tables hold its attention on harmful prompts only: that on harmless prompts was not kept."
        assert words in page.locator("#head-card .reason").all_inner_texts()


def test_a_link_shows_the_head_that_was_seen(visit):
    with visit("index", f"#head=3.2&at={CHECKPOINTS[1]}") as page:
        page.wait_for_selector("#head-card table")
        assert page.locator("#head-card header select").input_value() == CHECKPOINTS[1]
        page.locator("#head-card header select").select_option(CHECKPOINTS[2])
        assert fragment_of(page) == f"#head=3.2&at={CHECKPOINTS[2]}"


def test_prompts_are_text_and_can_be_searched(visit):
    rows = viewer_fixture.prompts()["rows"]
    left, right = f"{CHECKPOINTS[0]}|none", f"{LAST}|none"
    with visit("prompts") as page:
        page.wait_for_selector("table.prompts tbody tr")
        shown = page.evaluate("[...document.querySelectorAll('.prompts .prompt .text')].map(t => t.textContent)")
        assert shown[: len(HOSTILE)] == list(HOSTILE)
        assert page.evaluate("document.querySelectorAll('#prompts-browser :is(img, script, b, svg)').length") == 0
        assert page.evaluate("document.querySelector('.prompts .text[dir=auto]').dir") == "auto"
        assert page.locator(".prompts tbody tr").count() == 50
        assert page.locator(".pager").inner_text().split("page ")[1].startswith("1 of 3")
        tokens = page.locator(".tokens span").all_text_contents()
        assert "".join(tokens).replace("↵\n", "\n") == "".join(viewer_fixture.TOKENS)
        page.get_by_label("verdict flips", exact=True).check()
        flips = [row for row in rows if row["by"][left]["label"] != row["by"][right]["label"]]
        until(page, f"document.querySelector('.count').textContent.startsWith('{len(flips)} of 120')")
        page.get_by_role("searchbox").fill("number 1")
        fitting = [row for row in flips if "number 1" in row["prompt"]]
        until(page, f"document.querySelectorAll('.prompts tbody tr').length === {len(fitting)}")
        page.get_by_label("Set").select_option("benign_set")
        fitting = [row for row in fitting if row["suite"] == "benign_set"]
        until(page, f"document.querySelectorAll('.prompts tbody tr').length === {len(fitting)}")
        seen = f"left={left}&right={right}&flips=1&text=number 1&suite=benign_set"
        assert fragment_of(page) == f"#{seen}"
    with visit("prompts", f"#left={left}&right={LAST}%7Cablated&rows=1") as page:
        page.wait_for_selector("table.prompts tbody tr")
        wanted = [f"{row['id']} · {row['suite'].replace('_', ' ')}" for row in rows[50:100]]
        assert page.locator(".prompts .id").all_inner_texts() == wanted
        page.get_by_label("Verdict", exact=True).select_option("refusal")
        judged = [(row["by"][left]["label"], row["by"][f"{LAST}|ablated"]["label"]) for row in rows]
        fitting = sum("refusal" in labels for labels in judged)
        until(page, f"document.querySelector('.count').textContent.startsWith('{fitting} of 120')")


def test_a_pair_of_checkpoints_is_chosen(visit):
    shown = "[...document.querySelectorAll('section[data-pair]')].filter(s => !s.hidden).map(s => s.dataset.pair)"
    with visit("compare") as page:
        assert page.evaluate(shown) == [f"{CHECKPOINTS[2]}|{CHECKPOINTS[3]}"]
        page.get_by_label("Compare").select_option(CHECKPOINTS[0])
        assert page.evaluate(shown) == [f"{CHECKPOINTS[0]}|{CHECKPOINTS[3]}"]
        page.get_by_label("with").select_option(CHECKPOINTS[1])
        assert page.evaluate(shown) == [f"{CHECKPOINTS[0]}|{CHECKPOINTS[1]}"]
        page.wait_for_selector("section:not([hidden]) .main-svg")
        address = fragment_of(page)
    with visit("compare", address) as page:
        assert page.evaluate(shown) == [f"{CHECKPOINTS[0]}|{CHECKPOINTS[1]}"]


def test_the_circuit_can_be_pruned_pinned_grouped_and_saved(visit):
    whole = viewer_fixture.circuit()
    strongest = whole["nodes"][1]
    with visit(LAST) as page:
        area = page.locator("#circuit .canvas")
        page.wait_for_selector("#circuit canvas")
        n, edges = len(whole["nodes"]) - 2, whole["edges"]
        assert area.get_attribute("data-shown") == f"{n} {len(edges)}"
        assert page.locator("#none .reason").inner_text().startswith("There is no circuit to draw: ")
        saved = {ending: _saved(page, ending) for ending in ("json", "graphml", "csv")}
        assert json.loads(saved["json"]) == graph.circuit_tracer(whole, LAST)
        assert _edges_of(saved["graphml"]) == _edges_of(graph.graphml(whole, LAST))
        assert saved["csv"] == graph.edge_list(whole, LAST)

        page.get_by_label("Heads and MLPs shown").fill("2")
        kept = {"embedding", "logits", *(node["id"] for node in whole["nodes"][1:3])}
        inside = [e for e in edges if {e["source"], e["target"]} <= kept]
        assert area.get_attribute("data-shown") == f"2 {len(inside)}"
        size = next(row for row in whole["sizes"] if row["n_nodes"] == 2)
        assert f"{size['faithfulness']:.0%}" in page.locator(".graph-faith").first.inner_text()

        page.get_by_label("Look at").select_option(strongest["id"])
        side = page.locator("#circuit .graph-side").inner_text()
        assert side.startswith(strongest["label"])
        assert all(role in side for role in strongest["roles"])
        into = sorted((e for e in inside if e["target"] == strongest["id"]), key=lambda e: -abs(e["effect"]))
        if into:
            assert f"{into[0]['effect']:+.3f}".replace("-", "−") in side
        page.get_by_label("Look at").select_option(whole["nodes"][2]["id"])
        page.get_by_label("Name of the group").fill("the two")
        page.get_by_role("button", name="group pinned").click()
        assert area.get_attribute("data-shown").startswith("1 ")
        address = fragment_of(page)
        assert address == f"#size=2&groups=the two:{strongest['id']},{whole['nodes'][2]['id']}"
        assert json.loads(_saved(page, "json"))["qParams"]["supernodes"][0][0] == "the two"
    with visit(LAST, address) as page:
        page.wait_for_selector("#circuit canvas")
        assert page.locator("#circuit .canvas").get_attribute("data-shown").startswith("1 ")
        page.get_by_role("button", name="reset").click()
        assert page.locator("#circuit .canvas").get_attribute("data-shown") == f"{n} {len(edges)}"
        assert fragment_of(page) == ""


def test_a_node_that_is_pointed_at_lists_its_paths(visit):
    whole = viewer_fixture.circuit()
    node = whole["nodes"][1]
    with visit(LAST) as page:
        page.wait_for_selector("#circuit canvas")
        at = page.evaluate(
            f"document.querySelector('.graph').graph.cy.getElementById('{node['id']}').renderedPosition()"
        )
        box = page.locator("#circuit .canvas").bounding_box()
        page.mouse.move(box["x"] + at["x"], box["y"] + at["y"])
        until(page, f"document.querySelector('.graph-side h3')?.textContent === '{node['label']}'")
        page.mouse.down()
        page.mouse.up()
        until(page, "location.hash.includes('pins=')")
        page.locator(".graph-side h3 a.head").click()
        page.wait_for_selector("#head-card")
        assert page.locator("#head-name").inner_text() == node["label"]


def _saved(page, ending):
    with page.expect_download() as saved:
        page.locator("#circuit").get_by_role("button", name=ending, exact=True).click()
    assert saved.value.suggested_filename == f"{LAST}.{ending}"
    return saved.value.path().read_text(encoding="utf-8")


def _edges_of(graphml):
    """Edges with their effects, and nodes with their roles: whatever the keys are called."""
    space = "{http://graphml.graphdrawing.org/xmlns}"
    root = ElementTree.fromstring(graphml.encode())
    named = {key.get("id"): key.get("attr.name") for key in root.iter(f"{space}key")}
    values = lambda item: {named[d.get("key")]: d.text for d in item.iter(f"{space}data")}  # noqa: E731
    nodes = {node.get("id"): values(node).get("roles") or "" for node in root.iter(f"{space}node")}
    edges = {(e.get("source"), e.get("target")): float(values(e)["effect"]) for e in root.iter(f"{space}edge")}
    return nodes, edges


def test_one_file_holds_all_pages(visit):
    with visit("report") as page:
        page.wait_for_selector("#fig-line-0 .main-svg")
        page.locator("#story a.head").click()
        page.wait_for_selector("#head-card canvas")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="the circuit").click()
        page.wait_for_selector("#circuit canvas")
        assert fragment_of(page).startswith(f"#{LAST}/circuit")
        assert page.evaluate("document.body.dataset.page") == LAST
        page.get_by_role("link", name="Prompts").click()
        page.wait_for_selector("table.prompts")
        page.go_back()
        page.wait_for_selector("#circuit canvas")
    with visit("report", "#maps/&step=20&arm=r2d2") as page:
        page.wait_for_selector("#maps-r2d2 .main-svg")
        assert page.locator("#maps-r2d2 .step").inner_text().startswith("step 20")


def test_a_page_is_ready_within_two_seconds(visit):
    """The best of three tries: other work on the machine counts too."""
    for name in ("index", "report"):
        took = []
        for _ in range(3):
            with visit(name) as page:
                took.append(page.evaluate("performance.getEntriesByName('mechrefusal-ready')[0].startTime"))
            if took[-1] < 2000:
                break
        assert min(took) < 2000


def test_sections_are_kept_in_the_address(visit):
    with visit("index") as page:
        page.locator("nav a", has_text="Rest").click()
        assert fragment_of(page) == "#rest"
        page.locator("#more summary").click()
        assert fragment_of(page) == "#rest&open=more"
        page.wait_for_selector("#fig-hidden-1 .main-svg")
    with visit("index", "#rest&open=more") as page:
        page.wait_for_selector("#fig-hidden-1 .main-svg")
        assert page.evaluate("scrollY") > 100
