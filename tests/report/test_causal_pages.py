"""Sentences and sections about cause and attribution: what stands there, what absent tables leave, what is escaped."""

import shutil

import pytest
from rendering import pages
from synthetic_causal import HOSTILE_SITE, HOSTILE_TOKEN
from synthetic_geometry import BROKEN

from mechrefusal import tables
from mechrefusal.report import causal_findings, wording
from mechrefusal.report.checkpoint_page import CheckpointPage
from mechrefusal.report.index_page import IndexPage

pytestmark = pytest.mark.slow

NEW = (
    "attribution_compared",
    "token_sources",
    "logit_lens",
    "attribution_patching",
    "attribution_agreement",
    "knockout",
    "head_sets",
    "circuit_nodes",
    "circuit_edges",
    "faithfulness",
    "cross_patching",
)


def measured(small_run, name, checkpoint="r2d2-step-00050"):
    return tables.read(name, small_run / "measurements" / checkpoint)


def test_every_figure_is_on_the_page(page, index):
    found = page.titles
    for title in ("Residual stream", "Attention output", "MLP output"):
        assert found.count(title) == 2  # denoising and noising
    for title in (
        "How good the fast estimate of a patch is",
        "What each head writes on harmful more than on harmless prompts",
        "The 15 heads and MLPs that tell harmful from harmless prompts",
        "From which part of the prompt the top heads read refusal",
        "At which layer the model decides to refuse",
        "Refusal lost without each head or MLP, against what that costs",
        "How few heads refusal needs",
        "The circuit of refusal: heads, MLPs and the paths between them",
        "Is the circuit enough, and is it needed: score of harmful prompts",
        "Is the circuit enough, and is it needed: harmful − harmless score",
    ):
        assert title in found
    expected = ("Heads (what they read and carry), harmful prompts", "Layers, harmless prompts")
    for title in (*expected, "By patching (denoising)", "By knock-out"):
        assert title in index.titles


def test_patched_parts_share_one_scale_that_the_page_states(small_run, run, checkpoint, page):
    for table, of in ((checkpoint.tables["patching"], None), (measured(small_run, "patching"), page)):
        parts = table[table["site"].isin(["attn_out", "mlp_out", "z"])]
        limit = (parts["effect"] - parts["mode"].map({"denoising": 0.0, "noising": 1.0})).abs().max()
        if of is None:
            assert CheckpointPage(run, checkpoint).patching_limit == pytest.approx(limit)
        else:
            assert f"which saturates {wording.number(limit)} from no effect" in page.words


def test_chance_stands_beside_what_was_found(small_run, page):
    table = measured(small_run, "attribution_compared")
    own = table[(table["onto"] == "refusal_logits") & (table["component"] != "total")]
    assert f"{(own['p'] < 0.05).sum()} of {len(own)} components differ (p < 0.05, adjusted for all of them" in page.text
    assert causal_findings.chance(own.assign(p=float("nan"))) == ""
    assert causal_findings.chance(own.iloc[:0]) == ""


def test_agreement_is_a_table_with_intervals(page):
    assert "[0.88, 0.96]" in page.text
    assert HOSTILE_SITE in page.text


def test_tokens_are_text_and_the_largest_first(small_run, page):
    table = measured(small_run, "token_sources")
    found = {row["head"]: row["tokens"] for row in causal_findings.top_tokens(table)}
    own = table[(table["by"] == "token") & (table["set"] == "harmful") & (table["layer"] == 19)]
    order = own.loc[own["value"].abs().sort_values(ascending=False).index[:6]]
    assert [token["value"] for token in found["L19.H3"]] == [wording.number(v, 3, signed=True) for v in order["value"]]
    assert wording.token(HOSTILE_TOKEN) in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_the_smallest_set_is_a_sentence(page, base):
    assert (
        "Half of refusal is gone without 3 heads (L19.H3, L20.H4, L15.H1): 60% of the 8.00 nats between harmful and "
        "harmless prompts (5 random sets of that size: 2%, −4% to 6%); on 12 harmful prompts that the search did "
        "not see 48% of theirs. Cost: harmless prompts' score +0.30 nats [−0.10, 0.40], KL 0.030 [0.000, 0.090]."
        in page.text
    )
    assert f"Half of refusal was not reached: {BROKEN}. The best set found has 1 head (L11.H0)" in base.text


def test_the_smallest_set_without_a_set(small_run):
    table = measured(small_run, "head_sets")
    nothing = table.iloc[:1].assign(size=0, layer=float("nan"), head=float("nan"), reached=False, reason="no gap")
    assert causal_findings.head_set(nothing) == "Half of refusal was not reached: no gap."
    assert "the table gives no reason" in causal_findings.head_set(nothing.assign(reason=""))
    assert causal_findings.head_set(table.iloc[:0]) == ""
    assert "random sets" not in causal_findings.head_set(table.assign(random_refusal=float("nan")))
    assert causal_findings.head_set(table.convert_dtypes()) == causal_findings.head_set(table)


def test_the_circuit_is_a_sentence(small_run, page, base):
    table = measured(small_run, "faithfulness")
    row = table[(table["of"] == "harmful") & table["is_circuit"].astype(bool)].iloc[0]
    kept, lost = (f"{row[name]:.0%} [{row[f'{name}_low']:.0%}, {row[f'{name}_high']:.0%}]" for name in ("kept", "lost"))
    nodes = measured(small_run, "circuit_nodes")
    told = int((nodes["p"].astype(float) < 0.05).sum())
    assert 0 < told < 5
    confirmed = f"of which {told} differ from nothing on 8 held-out pairs (p < 0.05, adjusted for all)"
    shares = f"Alone it keeps {kept} of the refusal score; without it {lost} are lost".replace("-", "−")
    said = f"The circuit has 4 heads and 1 MLP, {confirmed}. {shares}"
    assert said in page.text
    assert "(measured on held-out pairs)" in page.text
    assert f"There is no circuit: {BROKEN}." in base.text
    few = causal_findings.circuit(nodes.assign(p=float("nan"), n_held_out=4), table.iloc[:0])
    assert "1 MLP; 4 held-out pairs are too few to tell which of them differ from nothing; its" in few
    assert "held-out" not in causal_findings.circuit(nodes.assign(p=float("nan"), n_held_out=0), table.iloc[:0])
    assert causal_findings.circuit(nodes, table.iloc[:0]).endswith("its faithfulness was not measured.")
    assert "no faithfulness: no gap" in causal_findings.circuit(nodes, table.assign(kept=float("nan"), reason="no gap"))
    assert causal_findings.circuit(nodes.iloc[:0], table) == ""


def test_the_knock_out_that_costs_most_is_named(small_run, page):
    table = measured(small_run, "knockout")
    row = table.loc[table["refusal"].idxmin()]
    assert f"Refusal falls furthest without L19.H3: {wording.number(row['refusal'], signed=True)} nats" in page.text
    for p, said in ((0.4, "(p 0.40, adjusted for all)"), (float("nan"), "(not tested)")):
        found = causal_findings.knock_outs(table.assign(p=p))
        assert found.startswith("No head or MLP stands out: refusal falls furthest without L19.H3")
        assert said in found
    assert "No single head or MLP lowers refusal" in causal_findings.knock_outs(table.assign(refusal=0.1))
    assert causal_findings.knock_outs(table.assign(refusal=None)) == ""


def test_the_index_names_the_heads_that_make_the_other_refuse(small_run, index):
    table = measured(small_run, "cross_patching", "")
    own = table[(table["arm_source"] == "r2d2") & (table["site"] == "z")]
    harmless = own[(own["set"] == "harmless") & (own["layer"] == 19) & (own["head"] == 3)]
    own = own[own["set"] == "harmful"]
    pairs = {pair["pair"]: pair for pair in causal_findings.crossed_heads(table)}
    assert list(pairs) == ["base 0 → r2d2 50", "r2d2 50 → base 0"]
    found = pairs["r2d2 50 → base 0"]
    assert found["heads"][0]["name"] == "L19.H3"
    assert found["heads"][0]["raw"] == wording.number(own["raw"].max(), signed=True)
    assert found["heads"][0]["is_clear"]
    assert found["heads"][0]["detail"].endswith(f"harmless {wording.number(harmless['raw'].iloc[0], signed=True)}")
    alone = causal_findings.crossed_heads(table[table["set"] == "harmful"])
    assert [pair["n_clear"] for pair in alone] == [pair["n_clear"] for pair in pairs.values()]
    assert "harmless" not in alone[0]["heads"][0]["detail"]
    assert found["n_clear"] == (own["p"] < 0.05).sum()
    assert f"{found['n_clear']} of 270" in index.text
    assert "L19.H3 ●" in index.text.replace("\n", " ")
    assert BROKEN in index.text  # effects without a value
    assert not [tag for tag, _ in index.elements if tag in ("img", "i")]


def test_a_run_of_three_groups_its_pairs_by_arms(run):
    page = IndexPage(run)
    crossed = list(page.crossed())
    assert [summary for summary, _ in crossed] == [
        "base and sft, both ways (6 pairs)",
        "base and r2d2, both ways (6 pairs)",
    ]
    assert all(panel.data is not None for _, drawn in crossed for panel in drawn)
    assert len(page.shared_heads()) == 2


def test_a_pair_that_could_not_be_patched_says_why(tmp_path, small_run):
    folder = tmp_path / "run"
    shutil.copytree(small_run / "measurements", folder / "measurements")
    table = tables.read("cross_patching", folder / "measurements").drop_duplicates(["arm_source"])
    numbers = [name for name in table if name.startswith(("raw", "low", "high", "effect", "control"))]
    table = table.assign(site="", layer=-1, head=-1, n=0, reason=BROKEN, **dict.fromkeys(numbers, float("nan")))
    tables.write(table, "cross_patching", folder / "measurements")
    [index] = pages(folder, "index")
    assert "Not drawn: cannot draw patches of layers across checkpoints" in index.text
    assert f"{BROKEN} (2 rows)" in index.text


def test_a_run_without_these_measures_has_a_report(tmp_path, small_run):
    folder = tmp_path / "old"
    shutil.copytree(small_run / "measurements", folder / "measurements")
    for name in NEW:
        for path in folder.rglob(f"{name}.parquet"):
            path.unlink()
    for place in (folder / "measurements").glob("*-step-*"):
        old = tables.read("patching", place)
        tables.write(old[old["site"].isin(["resid_pre", "z"]) & (old["mode"] == "denoising")], "patching", place)
    index, page = pages(folder, "index", "r2d2-step-00050")
    assert "Activations were not patched across checkpoints" in index.text
    for said in (
        *("Source tokens were not taken", "The logit lens was not taken", "Estimates were not made"),
        *("Nothing was knocked out", "No set of heads was looked for", "No circuit was looked for"),
    ):
        assert said in page.text
    assert page.titles.count("Residual stream") == 1
    assert "Attention output" not in page.titles
    assert "What each head writes on harmful more than on harmless prompts" not in page.titles
    assert "By patching (denoising)" in index.titles
    assert "By knock-out" not in index.titles


def test_numbers_that_are_all_missing_leave_reasons(tmp_path, small_run):
    folder = tmp_path / "run"
    place = folder / "measurements" / "r2d2-step-00050"
    shutil.copytree(small_run / "measurements" / "r2d2-step-00050", place)
    keys = {"layer", "head", "position", "size", "step", "kept", "is_circuit", "reached"}
    for name in (*set(NEW) - {"cross_patching"}, "patching", "attribution"):
        table = tables.read(name, place)
        numbers = [c for c in table.select_dtypes("float64").columns if c not in keys]
        numbers += [c for c in ("kept",) if name == "faithfulness"]
        tables.write(table.assign(**dict.fromkeys(numbers, float("nan"))), name, place)
    [page] = pages(folder, "r2d2-step-00050")
    for what in ("the circuit", "the logit lens", "the knock-out of heads", "the smallest set of heads"):
        assert f"cannot draw {what}: every" in page.text
