"""A warm-up that all arms share: it comes after the base, is a line of its own, and is where every arm starts."""

import numpy as np
import pandas as pd
import pytest
from rendering import pages
from synthetic import write_run

from mechrefusal.report import figures, order
from mechrefusal.report.figures import style
from mechrefusal.report.index_page import IndexPage
from mechrefusal.report.reading import read_run
from mechrefusal.report.training_page import TrainingPage
from mechrefusal.training import WARM_UP

pytestmark = pytest.mark.slow

ORDER = [("base", 0), ("warm-up", 40), ("r2d2", 50), ("r2d2", 100), ("sft", 50), ("sft", 100)]


@pytest.fixture(scope="module")
def warmed_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "warmed", anchors=(0, 50, 100), warm_up=40)


@pytest.fixture(scope="module")
def warmed(warmed_folder):
    return read_run(warmed_folder)


def steps(table, arm):
    return [(row.arm, row.step) for row in style.with_base(table, arm).itertuples()]


def test_the_name_is_that_of_training():
    assert order.WARM_UP == WARM_UP


def test_base_then_warm_up_then_arms(warmed):
    assert [(c.arm, c.step) for c in warmed.checkpoints] == ORDER
    assert warmed.warm_up == 40
    assert [c.id for c in warmed.last_of_each_arm] == ["warm-up-step-00040", "r2d2-step-00100", "sft-step-00100"]
    mixed = [ORDER[place] for place in (3, 5, 1, 0, 4, 2)]
    assert sorted(mixed, key=order.checkpoint_order) == ORDER


def test_arms_start_at_the_end_of_the_warm_up(warmed):
    table = warmed.together("gate")
    table = table[table["criterion"] == "harmful refused"]
    assert style.arms(table) == ["warm-up", "r2d2", "sft"]
    assert steps(table, "warm-up") == [("base", 0), ("warm-up", 40)]
    assert steps(table, "sft") == [("warm-up", 40), ("sft", 50), ("sft", 100)]
    unwarmed = table[table["arm"] != "warm-up"]
    assert steps(unwarmed, "sft") == [("base", 0), ("sft", 50), ("sft", 100)]
    assert style.arms(unwarmed[unwarmed["arm"] == "base"]) == ["base"]


def test_only_the_last_step_of_the_warm_up_starts_an_arm_and_only_where_it_has_none_itself(warmed):
    table = pd.DataFrame({"arm": ["warm-up", "warm-up", "sft", "sft"], "step": [0, 40, 50, 100]})
    assert steps(table, "sft") == [("warm-up", 40), ("sft", 50), ("sft", 100)]
    own = pd.concat([table, pd.DataFrame({"arm": ["sft"], "step": [40]})])
    assert steps(own, "sft") == [("sft", 40), ("sft", 50), ("sft", 100)]


def test_the_warm_up_has_a_look_of_its_own():
    known = ["warm-up", "r2d2", "sft", "other"]
    looks = {style.arm_style(arm, known) for arm in ("base", *known)}
    assert len(looks) == len({colour for colour, _ in looks}) == 5
    assert style.arm_style("other", known) == style.arm_style("other", known[1:])


def test_a_rate_has_a_line_for_the_warm_up(warmed):
    table = warmed.together("rates")
    figure = figures.rates(table[table["intervention"] == "none"])
    lines = [trace for trace in figure.data if trace.name]
    assert [(line.name, len(line.x)) for line in lines] == [("warm-up", 2), ("r2d2", 3), ("sft", 3)]
    assert len({lines[0].y[-1], lines[1].y[0], lines[2].y[0]}) == 1
    assert "warm-up 40" in lines[1].text[0]


def test_drift_is_since_the_warm_up(warmed):
    figure = figures.drift(warmed.across["drift"], measure="direction_cosine")
    assert [trace.name for trace in figure.data] == [
        "warm-up: since the base",
        "r2d2: since the anchor before",
        "r2d2: since the warm-up",
        "sft: since the anchor before",
        "sft: since the warm-up",
        "sft and r2d2, same step",
        "split-half floor",
        "random directions",
    ]
    assert "warm-up 40 → r2d2 50" in figure.data[1].text[0]
    assert figure.data[2].text == ("<b>warm-up 40 → r2d2 100</b>" + figure.data[2].text[0].split("</b>")[1],)


def test_matrices_have_it_after_the_base(warmed):
    labels = [f"{arm} {step}" for arm, step in ORDER]
    moved = figures.transfer(warmed.across["transfer"])
    assert list(moved.layout.xaxis.ticktext) == labels
    assert [label.rstrip("*") for label in moved.layout.yaxis.ticktext] == labels
    patched = warmed.together("patching")
    heads = patched[(patched["site"] == "z") & (patched["mode"] == "denoising")]
    assert list(figures.shared_heads(heads).layout.xaxis.ticktext) == labels
    replayed = figures.stress_matrix(warmed.across["stress_transfer"])
    assert list(replayed.layout.xaxis.ticktext) == labels
    groups = list(IndexPage(warmed).crossed())
    assert [summary.split(",")[0] for summary, _ in groups] == ["warm-up and sft", "warm-up and r2d2"]


def test_the_frontier_goes_through_it(warmed):
    figure = figures.frontier(
        warmed.together("rates"), warmed.together("carrier"), harmful="evaluation_harmful", harmless="overrefusal"
    )
    shown = [text for trace in figure.data if trace.text for text in trace.text]
    assert {"base", "warm-up", "50", "100"} == set(shown)
    marker = next(trace.marker for trace in figure.data if trace.text == ("warm-up",))
    assert marker.symbol == "triangle-down"
    lines = {trace.legendgroup: trace for trace in figure.data if trace.mode == "lines"}
    assert {arm: len(trace.x) for arm, trace in lines.items()} == {"warm-up": 2, "r2d2": 3, "sft": 3}
    assert lines["warm-up"].x[-1] == lines["sft"].x[0]


def test_suites_and_differences_know_it(warmed):
    rates = figures.rates(warmed.across["rates"], suite="xstest", side="harmless")
    assert "warm-up" in {trace.name for trace in rates.data}
    categories = figures.suite_categories(warmed.across["rates"], suite="xstest", side="harmless")
    assert list(categories.layout.xaxis.ticktext)[:2] == ["base 0", "warm-up 40"]
    changed = figures.suite_differences(warmed.across["suite_differences"], suite="harmbench")
    assert [trace.name for trace in changed.data] == ["warm-up", "r2d2", "sft"]
    assert changed.layout.yaxis.ticktext[0] == "base 0 → warm-up 40"


def test_training_has_it_as_its_own_part(warmed):
    arms = TrainingPage(warmed).arms
    assert arms == ["warm-up", "r2d2", "sft"]
    assert list(figures.step_costs(warmed.across["training"])["arm"]) == arms
    loss = figures.losses(warmed.across["training"], terms=("loss",))
    drawn = [trace for trace in loss.data if trace.showlegend is not False]
    assert [trace.name for trace in drawn] == arms
    assert max(drawn[0].x) <= 40 < min(drawn[1].x)
    asked = figures.probes(warmed.across["probes"])
    np.testing.assert_array_equal([len(trace.x) for trace in asked.data], [2, 3, 3])


def test_pages_say_where_arms_start(tmp_path):
    folder = write_run(tmp_path / "run", arms=("r2d2",), anchors=(0, 50), warm_up=40, evaluated=False)
    index, page, training = pages(folder, "index", "warm-up-step-00040", "training")
    assert "was trained through a warm-up of 40 steps, then one way (r2d2), to step 50" in index.text
    assert "all arms share a warm-up of 40 steps from the base model, step 0" in index.text
    assert "every arm starts at the base model" not in index.text
    assert "the end of the warm-up, where its arm starts (open)" in index.words
    assert "through the warm-up that all arms share (triangle)" in index.text
    assert "The end of the warm-up: all arms go on from here." in page.text
    assert "all arms share the warm-up up to step 40" in training.text
