"""The pages hold what the tables say, show no more of a completion than asked for, and let no data out of its place."""

import ast
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from synthetic import write_run
from synthetic_behaviour import HOSTILE, LONG_COMPLETION
from synthetic_carriers import NO_CARRIER

from mechrefusal import report, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import embedding, headline, wording
from mechrefusal.report.checkpoint_page import ROWS_A_GROUP
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Elements of a page, its visible text, and the text of every script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.text, self.inside = "", None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.text += data
        elif self.inside[0] == "script":
            self.scripts.append((self.inside[1], data))


@pytest.fixture(scope="module")
def page(small_run) -> Page:
    return Page(small_run / "report" / "r2d2-step-00050.html")


@pytest.fixture(scope="module")
def base(small_run) -> Page:
    return Page(small_run / "report" / "base-step-00000.html")


@pytest.fixture(scope="module")
def index(small_run) -> Page:
    return Page(small_run / "report" / "index.html")


@pytest.mark.usefixtures("drawn_once")
def test_write_returns_the_index_and_writes_one_page_a_checkpoint(small_run):
    assert report.write(small_run) == small_run / "report" / "index.html"
    written = {path.name for path in (small_run / "report").iterdir()}
    named = {f"{c.id}.html" for c in read_run(small_run).checkpoints}
    assert written == {"index.html", "training.html", "evaluation.html", *named}
    assert len(written) == 5
    assert max(path.stat().st_size for path in (small_run / "report").iterdir()) < 8e6


@pytest.fixture(scope="module")
def training(small_run) -> Page:
    return Page(small_run / "report" / "training.html")


def test_scripts_are_the_bundles_once_and_the_pages_own(page, index, training):
    executed = [text for attributes, text in page.scripts if "type" not in attributes]
    assert executed == [embedding.plotly_script(), embedding.circuits_script(), embedding.page_script()]
    for found in (index, training):
        assert [text for attributes, text in found.scripts if "type" not in attributes] == [executed[0], executed[2]]


def test_nothing_is_loaded(page, index, training):
    for found in (page, index, training):
        for tag, attributes in found.elements:
            assert tag not in ("img", "iframe", "object", "embed", "base", "svg", "form")
            assert "src" not in attributes
            assert not any(name.startswith("on") for name in attributes)
            if tag == "link":
                assert attributes["href"] == "data:,"
            if tag == "a":
                assert re.fullmatch(r"#\w+|[\w-]+\.html", attributes["href"])


def test_data_blocks_are_json_that_cannot_end_a_script(page):
    blocks = [(attributes, text) for attributes, text in page.scripts if attributes.get("type") == "application/json"]
    assert len(blocks) > 15
    for _, text in blocks:
        assert not set("<>&\u2028\u2029") & set(text)
        json.loads(text)
    assert {attributes["data-circuit"] for attributes, _ in blocks if "data-circuit" in attributes} == {
        "AttentionHeads",
        "ColoredTokens",
    }


@pytest.mark.parametrize("hostile", HOSTILE)
def test_prompts_are_text(page, hostile):
    assert f": {wording.plain(hostile)}" in page.text


def test_headline_numbers_stand_in_the_index(small_run, index):
    rates = tables.read("rates", small_run / "measurements")
    rates = rates[(rates["arm"] == "r2d2") & (rates["step"] == 50) & (rates["by"] == "all")]
    chosen = rates[
        (rates["metric"] == "any_refusal")
        & (rates["suite"] == "evaluation_harmful")
        & (rates["intervention"] == "none")
    ].iloc[0]
    assert wording.rate(chosen["value"]) in index.text
    assert f"{wording.rate(chosen['low'])}–{wording.rate(chosen['high'])}" in index.text
    carrier = tables.read("carrier", small_run / "measurements" / "r2d2-step-00050").iloc[0]
    assert wording.number(carrier["bypass"]) in index.text
    assert NO_CARRIER in index.text
    assert "judge: refusal-phrases" in index.text
    assert "L19.H3" in index.text
    assert HOSTILE[1] in index.text  # the recipe
    assert '"torch": "2.13.0"' in index.text
    assert "every arm starts at the base model, step 0" in index.text
    assert "warm-up" not in index.text


def test_categories_and_prompts_of_directions_are_in_no_headline(small_run, page):
    """In the made-up run those alone have 7 prompts."""
    run = read_run(small_run)
    assert 7 in set(run.together("rates")["n"])
    for line in headline.headlines(run):
        rates = [rate for found in (line.refusals, line.attacks) for group in found.values() for rate in group]
        assert rates
        assert 7 not in {rate.n for rate in rates}
    before = page.text[: page.text.index("Each rate is the share")]
    section = before[before.rindex("Rates") :]
    assert "any refusal" in section
    assert "\n0.60\n" in section
    assert "\n0.43\n" not in section


def test_no_admissible_carrier_is_shown_as_a_result(base):
    assert base.text.count(NO_CARRIER[1:]) >= 3
    assert "No intervention was made" in base.text
    assert "0 of 150 scored candidates are admissible" in base.text


def test_a_reason_that_does_not_name_the_lack_is_given_one(small_run):
    checkpoint = read_run(small_run).checkpoints[0]
    table = checkpoint.tables["carrier"].assign(reason="only 3 harmful prompts are refused")
    checkpoint = dataclasses.replace(checkpoint, tables={**checkpoint.tables, "carrier": table})
    assert headline.headline(checkpoint).no_carrier == "no admissible carrier: only 3 harmful prompts are refused"


def test_completions_to_harmful_requests_are_shortened(page, base):
    for found in (page, base):
        assert LONG_COMPLETION[:60] + "…" in found.text
        harmful = found.text[found.text.index("Generations") :].split("harmless prompts ·")[0]
        assert "secret ending" not in harmful
        assert "--show-completions" in found.text


def test_shortening_goes_by_set_and_attack(small_run):
    from mechrefusal.report.checkpoint_page import generation_groups

    table = read_run(small_run).checkpoints[0].tables["verdicts"]
    table = table.assign(completion=LONG_COMPLETION)
    for show, whole in ((False, {"evaluation_harmless", "overrefusal", "utility"}), (True, set(table["suite"]))):
        groups = generation_groups(table, show_completions=show)
        shown = {(g["suite"], g["attack"]) for g in groups if g["rows"][0]["completion"] == LONG_COMPLETION}
        assert {name for name, _ in shown} == whole
        assert show == (("evaluation_harmful", "gcg") in shown)
    assert {len(g["rows"]) for g in groups if g["suite"] == "utility"} == {ROWS_A_GROUP}


@pytest.mark.usefixtures("no_bundles")
def test_show_completions(tmp_path):
    folder = write_run(tmp_path / "run", arms=(), anchors=(0,), evaluated=False)
    report.write(folder, show_completions=True)
    text = Page(folder / "report" / "base-step-00000.html").text
    harmful = text[text.index("Generations") :].split("harmless prompts ·")[0]
    assert "secret ending" in harmful


@pytest.mark.usefixtures("no_bundles")
@pytest.mark.parametrize("name", [*tables.PER_CHECKPOINT, *tables.ACROSS])
def test_any_table_may_be_absent(tmp_path, small_run, name):
    checkpoint = "r2d2-step-00050"
    shutil.copytree(small_run / "measurements" / checkpoint, tmp_path / "measurements" / checkpoint)
    for across in tables.ACROSS:
        shutil.copy(small_run / "measurements" / f"{across}.parquet", tmp_path / "measurements")
    [gone] = tmp_path.rglob(f"{name}.parquet")
    gone.unlink()
    pages = Page(report.write(tmp_path)), Page(tmp_path / "report" / f"{checkpoint}.html")
    absent = {
        "training": "No training was logged",
        "drift": "There is one checkpoint, and nothing to compare it with",
        "attention": "Attention patterns were not",
    }
    if name in absent:
        assert any(absent[name] in page.text for page in pages)
    report.summary(tmp_path)


@pytest.mark.usefixtures("no_bundles")
def test_an_empty_table_is_like_an_absent_one(tmp_path):
    place = tmp_path / "measurements" / "sft-step-00050"
    for name in tables.PER_CHECKPOINT:
        tables.write(pd.DataFrame(columns=list(tables.columns(name))), name, place)
    for name in tables.ACROSS:
        tables.write(pd.DataFrame(columns=list(tables.columns(name))), name, place.parent)
    assert "Rates were not measured" in Page(report.write(tmp_path)).text
    assert "No table of this checkpoint has rows" in Page(tmp_path / "report" / "sft-step-00050.html").text


@pytest.mark.usefixtures("no_bundles")
def test_a_run_with_no_table_at_all_says_so(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    text = Page(report.write(tmp_path)).text
    assert "Rates were not measured" in text
    assert "no recipe.yaml" in text
    page = Page(tmp_path / "report" / "base-step-00000.html").text
    for table in ("rates", "openings", "carriers", "attribution", "patching", "verdicts", "timings"):
        assert f"table {table} is absent or empty" in page or table == "verdicts"


def test_a_run_that_was_not_measured_is_an_error(tmp_path):
    with pytest.raises(MechrefusalError, match="run 'mechrefusal measure'"):
        report.write(tmp_path)


def test_writing_twice_gives_the_same_bytes(small_run):
    pages = {path: path.read_bytes() for path in (small_run / "report").iterdir()}
    report.write(small_run)
    assert pages == {path: path.read_bytes() for path in (small_run / "report").iterdir()}


def test_script_text_keeps_the_meaning_and_cannot_end_the_element():
    source = 'x="<script></script>";y="</SCRIPT>";z="<!--";\n//# sourceMappingURL=x.map\n'
    made = embedding.script_text(source)
    assert made == 'x="<script><\\/script>";y="<\\/SCRIPT>";z="<\\!--";\n'


def test_the_report_reads_tables_only():
    rooms = ("report", "errors", "files", "progress", "statistics", "study")
    for path in Path(report.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        imported |= {name.name for n in nodes if isinstance(n, ast.Import) for name in n.names}
        assert not {name for name in imported if name.split(".")[0] in ("torch", "transformers", "circuitsvis")}, path
        own = {name.split(".")[1] for name in imported if name.startswith("mechrefusal.")}
        assert own <= set(rooms), path
