"""What the browser is given: maps, heads, prompts and pairs of checkpoints hold the tables' numbers."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rendering import content
from synthetic_behaviour import LONG_COMPLETION

from mechrefusal import tables
from mechrefusal.report import embedding, headline, story, wording
from mechrefusal.report.compare_page import ComparePage
from mechrefusal.report.figures.catalogue import slider_maps
from mechrefusal.report.maps_page import MapsPage, heads_data
from mechrefusal.report.prompts_page import prompts_data
from mechrefusal.report.reading import read_run

pytestmark = pytest.mark.slow

TRAINED = "r2d2-step-00050"


@pytest.fixture(scope="module")
def small(small_run):
    return read_run(small_run)


@pytest.fixture(scope="module")
def heads(small):
    return heads_data(small)


def test_every_map_of_a_head_is_a_column_of_its_card(heads):
    assert list(heads["columns"]) == [entry.name for entry in slider_maps() if entry.kind == "head"]
    assert (heads["n_layers"], heads["n_heads"]) == (30, 9)
    assert [one["id"] for one in heads["checkpoints"]] == ["base-step-00000", TRAINED]


@pytest.mark.parametrize(
    ("name", "table", "query", "value", "change"),
    [
        ("patching_heads", "patching", "site == 'z' and mode == 'denoising'", "effect", lambda v: v),
        ("noising_heads", "patching", "site == 'z' and mode == 'noising'", "effect", lambda v: v - 1),
        ("knockout_kl", "knockout", "component == 'head'", "kl", lambda v: v),
        (
            "attribution_refusal",
            "attribution_compared",
            "component == 'head' and onto == 'refusal_logits'",
            "difference",
            lambda v: v,
        ),
    ],
)
def test_values_of_heads_are_those_of_the_table(heads, small_run, name, table, query, value, change):
    own = tables.read(table, small_run / "measurements" / TRAINED).query(query)
    column = heads["values"][TRAINED][name]
    assert len(column) == 30 * 9
    known = own.dropna(subset=[value])
    assert sum(entry is not None for entry in column) == len(known)
    low, high = ("kl_low", "kl_high") if value == "kl" else ("low", "high")
    for row in known.itertuples():
        shown = column[row.layer * 9 + row.head]
        assert shown[0] == pytest.approx(change(getattr(row, value)), abs=1e-4)
        ends = sorted(change(getattr(row, end)) for end in (low, high))
        assert [np.nan if end is None else end for end in shown[1:3]] == pytest.approx(ends, abs=1e-4, nan_ok=True)


def test_attention_and_sources_of_heads(heads, small_run):
    table = tables.read("attention", small_run / "measurements" / TRAINED)
    own = table[(table["layer"] == 19) & (table["head"] == 3) & (table["prompt_id"] == "pair-0")]
    shown = heads["attention"][TRAINED]["19.3"][0]
    pattern = np.array(shown["pattern"])
    np.testing.assert_allclose(pattern[own["destination"], own["source"]], own["weight"], atol=1e-3)
    assert (shown["prompt_id"], shown["set"]) == ("pair-0", "harmful")
    assert len(shown["tokens"]) == len(pattern)
    sources = heads["sources"][TRAINED]["19.3"]
    sizes = [abs(value) for _, value in sources]
    assert sizes == sorted(sizes, reverse=True)
    embedding.json_for_html(heads)  # there is no NaN in it


def test_attention_says_which_prompt_of_a_pair_it_is_of(small):
    checkpoint = next(one for one in small.checkpoints if one.id == TRAINED)
    attention, tokens = (checkpoint.tables[name].query("prompt_id == 'pair-0'") for name in ("attention", "tokens"))
    sides = ("harmless", "harmful")
    measured = {
        "attention": pd.concat([attention.assign(set=side) for side in sides]),
        "tokens": pd.concat([tokens.assign(set=side, token=side) for side in sides]),
    }
    both = replace(checkpoint, tables={**checkpoint.tables, **measured})
    shown = heads_data(replace(small, checkpoints=(both,)))["attention"][TRAINED]["19.3"]
    assert [(one["prompt_id"], one["set"], one["tokens"][0]) for one in shown] == [
        ("pair-0", side, side) for side in sides
    ]


def test_maps_go_from_where_an_arm_starts_and_share_one_range(run):
    page = MapsPage(run)
    limits = {one["name"]: one["limit"] for one in page.arms[0][1]["maps"]}
    assert [arm for arm, _ in page.arms] == ["r2d2", "sft"]
    for arm, maps in page.arms:
        assert maps["steps"] == [0, 50, 100, 250]
        assert maps["checkpoints"][0] == "base-step-00000"
        assert {one["name"]: one["limit"] for one in maps["maps"]} == limits
        for one in maps["maps"]:
            for z in (z for z in one["z"] if z is not None):
                assert (len(z), len(z[0])) == (len(one["y"]), len(one["x"]))
        table = next(c for c in run.checkpoints if c.id == maps["checkpoints"][2]).tables["patching"]
        row = table.query("site == 'z' and mode == 'denoising' and layer == 19 and head == 3").iloc[0]
        [patching] = [one for one in maps["maps"] if one["name"] == "patching_heads"]
        assert patching["z"][2][19][3] == pytest.approx(row["effect"], abs=1e-4)
        assert arm in maps["checkpoints"][1]
    most = max(c.tables["knockout"]["refusal"].abs().max() for c in run.checkpoints)
    assert limits["knockout_heads"] == pytest.approx(most, abs=1e-4)
    [first] = [text for attributes, text in content(page).scripts if attributes.get("data-maps-json") == "r2d2"]
    assert json.loads(first)["arm"] == "r2d2"


def test_prompts_hold_every_answer_shortened(small):
    data = prompts_data(small)
    verdicts = small.across["verdicts"]
    answered = verdicts.drop_duplicates(["suite", "attack", "prompt_id"])
    rows = [row for row in data["rows"] if row["by"]]
    assert len(rows) == len(answered)
    assert data["checkpoints"] == ["base-step-00000", TRAINED]
    assert data["interventions"][0] == "none"
    own = verdicts.query("suite == 'evaluation_harmful' and attack == 'none' and prompt_id == 'evaluation_harmful-1'")
    row = next(row for row in rows if row["id"] == "evaluation_harmful-1" and "," not in row["suite"])
    for verdict in own.itertuples():
        answer = row["by"][f"{verdict.arm}-step-{verdict.step:05d}|{verdict.intervention}"]
        assert answer["completion"] == wording.shortened(verdict.completion)
        assert answer["label"] == ("" if wording.is_missing(verdict.label) else verdict.label.replace("_", " "))
    whole = prompts_data(small, show_completions=True)
    assert LONG_COMPLETION in str(whole["rows"][0]["by"]) or LONG_COMPLETION in str(whole["rows"][1]["by"])
    tokens = [row for row in data["rows"] if row["tokens"]]
    assert {row["side"] for row in tokens} == {"harmful", "harmless"}


def test_pairs_are_compared_on_the_prompts_that_both_answered(run):
    page = ComparePage(run)
    n = len(run.checkpoints)
    assert len(page.pairs) == n * (n - 1) // 2
    a, b, grid, _ = page.pairs[0]
    rows = {row[0].text: row for row in grid.rows}
    own = [
        c.tables["verdicts"].query("suite == 'evaluation_harmful' and attack == 'none' and intervention == 'none'")
        for c in (a, b)
    ]
    refused = [each.dropna(subset=["label"]).set_index("prompt_id")["label"] == "full_refusal" for each in own]
    shared = refused[0].index.intersection(refused[1].index)
    means = [each[shared].mean() for each in refused]
    row = rows["any refusal, harmful prompts"]
    assert [cell.text for cell in row[1:3]] == [wording.rate(mean) for mean in means]
    assert row[3].text == wording.number(means[1] - means[0], signed=True)
    assert row[4].text.startswith(f"{len(shared)} prompts, paired")
    assert rows["carrier: layer"][4].text == "no carrier at base, step 0"


def test_a_pair_that_stands_the_other_way_round_changes_its_sign(run):
    table = run.across["suite_differences"]
    row = table[
        (table["pair"] == "last") & (table["metric"] == "any_refusal") & (table["intervention"] == "none")
    ].iloc[0]
    ends = {(row["arm_a"], row["step_a"]), (row["arm_b"], row["step_b"])}
    [(a, _, grid, _)] = [pair for pair in ComparePage(run).pairs if {(c.arm, c.step) for c in pair[:2]} == ends]
    sign = 1 if (a.arm, a.step) == (row["arm_a"], row["step_a"]) else -1
    known = [one for one in grid.rows if row["suite"] in one[0].text and "any refusal" in one[0].text]
    assert wording.number(sign * row["difference"], signed=True) in {one[3].text for one in known}


def test_the_story_is_told_of_every_arm(run):
    told = dict(story.paragraphs(run, headline.headlines(run)))
    assert list(told)[:3] == ["What was trained", "Did it learn", "Where refusal sits"]
    assert told["What was trained"].startswith("The base model was trained through 2 ways (r2d2 and sft), to step 250.")
    assert "r2d2 did by step 250" in told["Did it learn"]
    assert "sft did not by step 250: it missed: harmful refused by" in told["Did it learn"]
    for arm in ("r2d2", "sft"):
        row = next(c for c in run.checkpoints if c.id == f"{arm}-step-00250").tables["carrier"].iloc[0]
        said = f"At {arm}, step 250 one direction at the input of layer {row['layer']} of 30 carries it"
        assert f"{said} (95% interval {row['layer_low']} to {row['layer_high']})" in told["Where refusal sits"]
    assert "cannot be told" in told["What cannot be told, and what would tell it"]


def test_reasons_are_put_into_plain_words():
    said = wording.readable(
        "carrier_layer cannot tell: no carrier at base-step-00000: kl 0.3 > 0.1 (12), induce < 0 (3)"
    )
    assert said == (
        "the depth of the carrier cannot be told: no carrier at base, step 0: ablating it changes harmless prompts too "
        "much (KL above 0.1) (12), putting it in does not make the model refuse (score below 0) (3)"
    )
