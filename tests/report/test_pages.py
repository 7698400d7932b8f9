"""The pages hold what the tables say, show no more of a completion than asked for, and let no data out of its place."""

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rendering import Page, content, pages
from synthetic import write_run
from synthetic_behaviour import HOSTILE, LONG_COMPLETION
from synthetic_carriers import NO_CARRIER

from mechrefusal import report, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import carrier_findings, embedding, evaluation_findings, headline, terminal, wording, writing
from mechrefusal.report.checkpoint_page import ROWS_A_GROUP, generation_groups
from mechrefusal.report.index_page import IndexPage
from mechrefusal.report.panels import Panel, Panels
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow

TRAINED = "r2d2-step-00050"
PAGES = (
    "index", "compare", "maps", "prompts", "training", "evaluation", "methods", "durability", "base-step-00000",
    TRAINED,
)  # fmt: skip
LINK = re.compile(r"#[\w=&.-]+|[\w-]+\.html(#[\w-]+)?|tables/[\w.-]+\.csv")


@pytest.fixture(scope="module")
def written(small_run) -> dict[str, Page]:
    return {name: Page(small_run / "report" / f"{name}.html") for name in PAGES}


def test_write_names_the_index_and_writes_pages_libraries_data_and_tables(small_run):
    folder = small_run / "report"
    assert {path.stem for path in folder.glob("*.html")} == set(PAGES)
    assert {path.name for path in (folder / "assets").iterdir()} == {
        *("plotly.js", "circuitsvis.js", "cytoscape.js", "report.js", "report.css")
    }
    assert {path.name for path in (folder / "data").iterdir()} == {"heads.js", "prompts.js", "circuits.js"}
    assert max(path.stat().st_size for path in folder.glob("*.html")) < 3e6
    assert (folder / "index.html").stat().st_size + (folder / "assets" / "plotly.js").stat().st_size < 6e6


def test_figures_offer_their_table(small_run, written):
    for page in written.values():
        offered = [attributes["href"] for tag, attributes in page.elements if attributes.get("class") == "csv"]
        assert len(offered) == len(set(offered)) == len(page.titles)
        for path in offered:
            assert len(pd.read_csv(small_run / "report" / path))
    shown = pd.read_csv(small_run / "report" / "tables" / f"{TRAINED}.layer_by_head-1.csv")
    table = tables.read("patching", small_run / "measurements" / TRAINED)
    own = table[(table["mode"] == "denoising") & (table["site"] == "z")]
    assert list(shown["effect"].dropna()) == pytest.approx(list(own["effect"].dropna()))


def test_nothing_is_loaded_but_the_files_beside_a_page(written):
    allowed = {"assets/plotly.js", "assets/report.js"}
    for page in written.values():
        for tag, attributes in page.elements:
            assert tag not in ("img", "iframe", "object", "embed", "base", "svg", "form")
            assert not any(name.startswith("on") for name in attributes)
            assert attributes.get("src", "assets/report.js") in allowed
            if tag == "link":
                assert attributes["href"] in ("data:,", "assets/report.css")
            if tag == "a":
                assert LINK.fullmatch(attributes["href"]), attributes["href"]
        assert not [text for attributes, text in page.scripts if "type" not in attributes and text.strip()]
        [policy] = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
        assert policy.startswith("default-src 'none'; script-src 'self' file:; style-src")


def test_data_blocks_are_json_that_cannot_end_a_script(written):
    for page in written.values():
        blocks = [text for attributes, text in page.scripts if attributes.get("type") == "application/json"]
        for text in blocks:
            assert not set("<>&\u2028\u2029") & set(text)
            json.loads(text)
    assert len(written[TRAINED].titles) > 30


def test_figures_of_heads_name_their_checkpoint(written):
    found = [
        json.loads(text)["layout"].get("meta")
        for attributes, text in written[TRAINED].scripts
        if "data-plot-json" in attributes
    ]
    heads = [meta for meta in found if meta and meta.get("heads")]
    assert len(heads) >= 6
    assert {meta["checkpoint"] for meta in heads} == {TRAINED}


def test_names_of_heads_open_their_card(written):
    links = [attributes for _, attributes in written[TRAINED].elements if attributes.get("class") == "head"]
    assert {"data-layer": "19", "data-head": "3", "data-checkpoint": TRAINED}.items() <= links[0].items()
    assert links[0]["href"] == f"#head=19.3&at={TRAINED}"
    assert embedding.with_heads("<b>L1.H2 and L11.H0x", 'a"b') == (
        '&lt;b&gt;<a class="head" data-checkpoint="a&#34;b" data-layer="1" data-head="2" '
        'href="#head=1.2&amp;at=a&#34;b">L1.H2</a> and L11.H0x'
    )


def test_one_file_holds_every_page(small_run, tmp_path):
    shutil.copytree(small_run / "measurements", tmp_path / "measurements")
    path = report.write(tmp_path, single_file=True)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    page = Page(path)
    templates = [attributes["data-page"] for tag, attributes in page.elements if tag == "template"]
    assert set(templates) == set(PAGES)
    stored = {attributes["data-script"] for attributes, _ in page.scripts if "data-script" in attributes}
    assert stored == {f"assets/{name}.js" for name in ("plotly", "circuitsvis", "cytoscape")}
    assert {attributes["data-name"] for attributes, _ in page.scripts if "data-name" in attributes} == {
        "heads",
        "prompts",
        "circuits",
    }
    executed = [text for attributes, text in page.scripts if "type" not in attributes]
    assert executed == [embedding.page_script()]
    csv = [attributes["href"] for _, attributes in page.elements if attributes.get("class") == "csv"]
    assert csv
    assert all(href.startswith("data:text/csv;base64,") for href in csv)
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert tag not in ("img", "iframe", "object", "svg")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_prompts_are_text(written, hostile):
    assert f": {wording.plain(hostile)}" in written[TRAINED].text


def test_the_index_tells_first(written, small_run):
    text = written["index"].words
    order = [text.index(f"{heading}.") for heading in ("What was trained", "Did it learn", "Where refusal sits")]
    assert order == sorted(order)
    assert order[-1] < text.index("What robustness costs") < text.index("Every checkpoint")
    row = tables.read("carrier", small_run / "measurements" / TRAINED).iloc[0]
    interval = f"95% interval {row['layer_low']} to {row['layer_high']}"
    assert f"at the input of layer {row['layer']} of 30 carries it ({interval})" in text
    rates = tables.read("rates", small_run / "measurements").query(
        "arm == 'r2d2' and suite == 'evaluation_harmful' and by == 'all'"
    )
    before = rates.query("metric == 'any_refusal' and intervention == 'none'")["value"].iloc[0]
    assert f"takes refusals of harmful requests from {before:.2f}" in text
    assert "to 0.08 (0.03–0.22, n = 32), a random direction to" in text


def test_no_page_has_internal_names(written):
    for name, page in written.items():
        visible = page.text if name != "methods" else page.text.split("What does each figure")[0]
        for word in ("carrier_layer", "direction_cosine", "resid_pre", "attn_out", "cannot tell:", "step-000"):
            assert word not in visible.replace(name, ""), (name, word)


def test_headline_numbers_stand_in_the_index(small_run, written):
    text = written["index"].text
    rates = tables.read("rates", small_run / "measurements")
    rates = rates[(rates["arm"] == "r2d2") & (rates["step"] == 50) & (rates["by"] == "all")]
    chosen = rates.query("metric == 'any_refusal' and suite == 'evaluation_harmful' and intervention == 'none'").iloc[0]
    assert f"{wording.rate(chosen['value'])} n={chosen['n']}" in text
    assert f"{wording.rate(chosen['low'])}–{wording.rate(chosen['high'])}" in text
    carrier = tables.read("carrier", small_run / "measurements" / TRAINED).iloc[0]
    assert wording.number(carrier["bypass"]) in text
    assert NO_CARRIER in text
    assert "judge: refusal-phrases" in text
    assert "L19.H3" in text
    assert HOSTILE[1] in text  # the recipe
    assert '"torch": "2.13.0"' in text
    assert "every arm starts at the base model, step 0" in text
    assert "warm-up" not in text


def test_categories_and_prompts_of_directions_are_in_no_headline(small_run):
    """In the made-up run those alone have 7 prompts."""
    run = read_run(small_run)
    assert 7 in set(run.together("rates")["n"])
    for line in headline.headlines(run):
        rates = [rate for group in (*line.refusals.values(), *line.attacks.values()) for rate in group]
        assert rates
        assert 7 not in {rate["n"] for rate in rates}
    rows = evaluation_findings.of_checkpoint(run.checkpoints[1].tables["rates"]).rows
    assert {"60", "120", "24", "32"} <= {row[-2].text for row in rows}
    assert "7" not in {row[-2].text for row in rows}


def test_no_admissible_carrier_is_shown_as_a_result(written):
    base = written["base-step-00000"].words
    assert base.count(NO_CARRIER[1:]) >= 3
    assert "0 of 150 scored candidates are admissible). This is a result of the checkpoint." in base


def test_a_reason_that_does_not_name_the_lack_is_given_one(small_run):
    table = read_run(small_run).checkpoints[0].tables["carrier"].assign(reason="only 3 harmful prompts are refused")
    assert carrier_findings.no_carrier(table) == "no admissible carrier: only 3 harmful prompts are refused"


def test_completions_to_harmful_requests_are_shortened(small_run, written):
    for name in (TRAINED, "base-step-00000"):
        text = written[name].text
        assert LONG_COMPLETION[:60] + "…" in text
        assert "secret ending" not in text[text.index("What did it answer?\n") :].split("harmless prompts ·")[0]
        assert "--show_completions" in text
    data = json.loads(
        (small_run / "report" / "data" / "prompts.js").read_text()[len('mechrefusal.data("prompts", ') : -3]
    )
    for row in data["rows"]:
        shown = {answer["completion"] for answer in row["by"].values()}
        if row["side"] == "harmful":
            assert max(map(len, shown), default=0) <= wording.SHORT_COMPLETION + 1
    assert "secret ending" in str([row["by"] for row in data["rows"] if row["side"] == "harmless"])


def test_shortening_goes_by_set_and_attack(small_run):
    table = read_run(small_run).checkpoints[0].tables["verdicts"]
    table = table.assign(completion=LONG_COMPLETION)
    for show, whole in ((False, {"evaluation_harmless", "overrefusal", "utility"}), (True, set(table["suite"]))):
        groups = generation_groups(table, show_completions=show)
        shown = {(g["suite"], g["attack"]) for g in groups if g["rows"][0]["completion"] == LONG_COMPLETION}
        assert {name for name, _ in shown} == whole
        assert show == (("evaluation_harmful", "gcg") in shown)
    assert {len(g["rows"]) for g in groups if g["suite"] == "utility"} == {ROWS_A_GROUP}


def test_show_completions(small_run):
    [page] = pages(small_run, "base-step-00000", show_completions=True)
    assert "secret ending" in page.text[page.text.index("What did it answer?\n") :].split("harmless prompts ·")[0]


ABSENT = {
    "training": "No training was logged",
    "drift": "There is one checkpoint, and nothing to compare it with",
    "openings": "No refusal opening was discovered",
    "carriers": "Candidates were not scored",
    "gate": "Gate: not measured",
    "tokens": "Projections of tokens were not taken",
}


@pytest.fixture(scope="module")
def one_checkpoint(small_run):
    """Everything that there is of one checkpoint."""
    run = read_run(small_run)
    return dataclasses.replace(run, checkpoints=tuple(c for c in run.checkpoints if c.id == TRAINED))


TOGETHER = 8
"""Sets of tables that are absent together: each table is in one, and beside most of the others."""


@pytest.mark.parametrize("absent", [[*tables.PER_CHECKPOINT, *tables.ACROSS][n::TOGETHER] for n in range(TOGETHER)])
def test_any_table_may_be_absent(one_checkpoint, monkeypatch, absent):
    """Figures of what is there are not drawn: they would be the same."""
    draw = Panels.add

    def draw_what_changed(self, figure, drawing, **named):
        frames = [value for value in (*drawing.args, *drawing.keywords.values()) if isinstance(value, pd.DataFrame)]
        return (
            draw(self, figure, drawing, **named)
            if not all(map(len, frames))
            else Panel(figure, "as it was", reason="-")
        )

    monkeypatch.setattr(Panels, "add", draw_what_changed)
    empty = {name: tables.frame(name, []) for name in absent}
    [checkpoint] = one_checkpoint.checkpoints
    own = {name: empty.get(name, table) for name, table in checkpoint.tables.items()}
    across = {name: empty.get(name, table) for name, table in one_checkpoint.across.items()}
    run = dataclasses.replace(one_checkpoint, checkpoints=(dataclasses.replace(checkpoint, tables=own),), across=across)
    found = " ".join(content(page).words for page in writing.pages_of(run) if page.id != "evaluation")
    for name in absent:
        assert ABSENT.get(name, "") in found
    terminal.summary_of(run)


def test_an_empty_table_is_like_an_absent_one(tmp_path):
    place = tmp_path / "measurements" / "sft-step-00050"
    for name in tables.PER_CHECKPOINT:
        tables.write(pd.DataFrame(columns=list(tables.columns(name))), name, place)
    for name in tables.ACROSS:
        tables.write(pd.DataFrame(columns=list(tables.columns(name))), name, place.parent)
    index, page = pages(tmp_path, "index", "sft-step-00050")
    assert "Rates were not measured" in index.text
    assert "No table of this checkpoint has rows" in page.text
    index_path = report.write(tmp_path)
    assert {path.name for path in index_path.parent.glob("*.html")} == {
        *(
            "index.html",
            "sft-step-00050.html",
            "compare.html",
            "maps.html",
            "prompts.html",
            "training.html",
            "methods.html",
        )
    }


def test_a_run_with_no_table_at_all_says_so(tmp_path):
    (tmp_path / "measurements" / "base-step-00000").mkdir(parents=True)
    index, page, maps = pages(tmp_path, "index", "base-step-00000", "maps")
    assert "Rates were not measured" in index.text
    assert "no recipe.yaml" in index.text
    for said in (
        "Rates were not measured",
        "No refusal opening was discovered",
        "Candidates were not scored",
        "Attribution was not measured",
        "Patching was not measured",
        "Nothing was generated",
        "Wall times were not recorded",
    ):
        assert said in page.text
    assert "No map was measured" in maps.text


def test_a_run_that_was_not_measured_is_an_error(tmp_path):
    with pytest.raises(MechrefusalError, match="run 'mechrefusal measure'"):
        report.write(tmp_path)


def test_writing_twice_gives_the_same_bytes_and_leaves_no_table_of_before(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "small_run")
    folder = tmp_path / "small_run" / "report"
    (folder / "tables" / "index.old-1.csv").write_text("a\n")
    report.write(tmp_path / "small_run")
    for path in (small_run / "report").rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(small_run / "report")).read_bytes(), path
    assert not (folder / "tables" / "index.old-1.csv").exists()


def test_script_text_keeps_the_meaning_and_cannot_end_the_element():
    source = 'x="<script></script>";y="</SCRIPT>";z="<!--";\n//# sourceMappingURL=x.map\n'
    made = embedding.script_text(source)
    assert made == 'x="<script><\\/script>";y="<\\/SCRIPT>";z="<\\!--";\n'


def test_a_run_whose_recipe_cannot_be_read_has_a_story(small_run):
    run = dataclasses.replace(read_run(small_run), recipe="a: [", manifest="{")
    assert "The base model was trained through one way (r2d2), to step 50." in content(IndexPage(run)).words


def test_the_report_reads_tables_only():
    rooms = ("report", "errors", "files", "progress", "prompts", "statistics", "study")
    for path in Path(report.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        imported |= {name.name for n in nodes if isinstance(n, ast.Import) for name in n.names}
        assert not {name for name in imported if name.split(".")[0] in ("torch", "transformers", "circuitsvis")}, path
        own = {name.split(".")[1] for name in imported if name.startswith("mechrefusal.")}
        assert own <= set(rooms), path


def test_one_checkpoint_only(tmp_path):
    folder = write_run(tmp_path / "run", arms=(), anchors=(0,), evaluated=False)
    index, compare = pages(folder, "index", "compare")
    assert "There is one checkpoint, and nothing to compare it with" in index.text
    assert "There is one checkpoint, and nothing to compare it with" in compare.text
    assert "smallest subspace that is enough" in index.text  # the reason why that trajectory is not drawn
