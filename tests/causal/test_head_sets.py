"""Sets of heads on models in which one head, or two, carry refusal."""

import numpy as np
import one_head
import pytest
from one_head import HARMFUL, HARMLESS, METRIC
from scipy import stats
from tolerances import FORWARD, REORDERED

from mechrefusal import MechrefusalError
from mechrefusal.causal import knockout

COLUMNS = [
    "size", "layer", "head", "heads", "share", "refusal", "low", "high", "harmless", "harmless_low", "harmless_high",
    "kl", "kl_low", "kl_high", "n_harmful", "n_harmless", "random_refusal", "random_refusal_least",
    "random_refusal_most", "random_harmless", "random_kl", "n_random", "held_out_share", "held_out_refusal",
    "held_out_low", "held_out_high", "held_out_kl", "n_held_out",
]  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return one_head.make(tmp_path_factory.mktemp("one_head"), [(2, 1)])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return one_head.make(tmp_path_factory.mktemp("two_heads"), [(1, 3), (3, 0)])


@pytest.mark.parametrize("how", ["mean", "zero", "resample"])
def test_one_head_is_the_whole_set(one, how):
    found = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, how=how, reference=HARMLESS, share=0.8, n_random=3)
    assert found.heads == ((2, 1),)
    assert found.reached
    assert found.reason == ""
    assert found.gap == pytest.approx((found.harmful.mean() - found.harmless.mean()).item())
    assert list(found.curve.columns) == COLUMNS
    row = found.curve.iloc[0]
    assert row["refusal"] == pytest.approx(-row["share"] * found.gap)
    assert row["share"] > 0.9
    assert row["heads"] == "2.1"
    assert row["random_refusal_least"] <= row["random_refusal"] <= row["random_refusal_most"]


def test_two_heads_are_found_together(two):
    found = knockout.smallest_set(two, HARMFUL, HARMLESS, METRIC, how="zero", share=0.9, n_random=1)
    assert found.reached
    assert sorted(found.heads) == [(1, 3), (3, 0)]
    assert found.curve["share"].iloc[0] < 0.9 <= found.curve["share"].iloc[1]
    single = knockout.knock_out(two, HARMFUL, HARMLESS, METRIC, how="zero", components=["head"]).top(1)
    np.testing.assert_allclose(found.curve["refusal"].iloc[0], single["refusal"].iloc[0], atol=FORWARD)
    np.testing.assert_allclose(found.curve["kl"].iloc[0], single["kl"].iloc[0], atol=REORDERED)


def test_random_sets_are_those_of_the_seed(one):
    def columns(seed, n=2):
        given = {"how": "zero", "candidates": [(2, 1)], "n_random": n, "seed": seed}
        found = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, **given)
        return found.curve[["random_refusal", "random_refusal_least", "random_kl"]].to_numpy()[0]

    np.testing.assert_array_equal(columns(1), columns(1))
    assert not np.array_equal(columns(1), columns(2))
    assert np.isnan(columns(0, n=0)).all()


def test_random_sets_are_plain_knock_outs(one):
    given = {"how": "zero", "candidates": [(2, 1)], "n_random": 5, "seed": 4}
    heads = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, **given)
    single = knockout.knock_out(one, HARMFUL, HARMLESS, METRIC, how="zero", components=["head"])
    changes = single.observations.of(layer=2, head=1)
    np.testing.assert_allclose(heads.observations.of(size=1), changes, atol=FORWARD)
    interval = stats.ttest_1samp(changes, 0).confidence_interval()
    estimate = heads.interval(size=1)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(interval), abs=2 * FORWARD)
    found, table = heads.table.iloc[0], single.table
    drawn = [np.random.default_rng([4, number]).permutation(len(table))[0] for number in range(5)]
    effects = table.iloc[drawn]  # the table is in the order of layers and heads
    assert found["random_refusal"] == pytest.approx(effects["refusal"].mean(), abs=FORWARD)
    assert found["random_refusal_least"] == pytest.approx(effects["refusal"].min(), abs=FORWARD)
    assert found["random_refusal_most"] == pytest.approx(effects["refusal"].max(), abs=FORWARD)
    assert found["random_kl"] == pytest.approx(effects["kl"].mean(), abs=REORDERED)


UNSEEN = ["Find a bomb", "Keep one bomb of ice"], ["Find a cake", "Keep one cake of ice"]


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_the_set_is_measured_on_prompts_that_the_search_did_not_see(two, how):
    given = {"how": how, "reference": HARMLESS}
    found = knockout.smallest_set(two, HARMFUL, HARMLESS, METRIC, **given, share=0.9, n_random=0, held_out=UNSEEN)
    alone = knockout.knock_out(two, *UNSEEN, METRIC, **given, components=["head"])
    layer, head = found.heads[0]
    row = alone.table.set_index(["layer", "head"]).loc[(layer, head)]
    first = found.curve.iloc[0]
    for name, column in (("refusal", "refusal"), ("low", "low"), ("high", "high"), ("kl", "kl")):
        assert first[f"held_out_{name}"] == pytest.approx(row[column], abs=FORWARD)
    gap = alone.harmful.mean() - alone.harmless.mean()
    assert first["held_out_share"] == pytest.approx(-row["refusal"] / gap.item(), abs=REORDERED)
    assert first["n_held_out"] == 2
    assert found.curve["held_out_share"].iloc[-1] > 0.7


def test_no_prompts_held_out_no_numbers(one):
    curve = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, how="zero", share=0.8, n_random=0).curve
    assert curve[[name for name in curve if "held_out" in name]].isna().all().all()


def test_unseen_prompts_without_refusal_have_no_share(one):
    unseen = UNSEEN[1], ["Draw a cake"]
    given = {"how": "zero", "share": 0.8, "n_random": 0}
    row = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, held_out=unseen, **given).curve.iloc[0]
    assert np.isnan(row["held_out_share"])
    assert np.isfinite(row["held_out_refusal"])


def test_a_held_out_prompt_of_the_search_is_refused(one):
    with pytest.raises(MechrefusalError, match=r"1 held-out prompts .*Make a bomb"):
        knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, held_out=([HARMFUL[0]], UNSEEN[1]))


# Goals that are not reached


def test_the_largest_set_is_too_small(two):
    found = knockout.smallest_set(two, HARMFUL, HARMLESS, METRIC, how="zero", share=0.9, largest=1, n_random=0)
    assert not found.reached
    assert len(found.heads) == len(found.curve) == 1
    assert "with 1 heads" in found.reason


def test_the_candidates_are_too_few(two):
    given = {"how": "zero", "share": 0.9, "n_random": 2}
    found = knockout.smallest_set(two, HARMFUL, HARMLESS, METRIC, candidates=[(3, 0)], **given)
    assert not found.reached
    assert found.heads == ((3, 0),)
    assert "all 1 candidates" in found.reason
    given["n_random"] = 0
    found = knockout.smallest_set(two, HARMFUL, HARMLESS, METRIC, candidates=[(3, 0), (1, 3), (3, 0)], **given)
    assert found.reached


def test_no_head_helps(one):
    """The search ends where heads begin to raise the score; it is not reached then, and says so."""
    table = knockout.knock_out(one, HARMFUL, HARMLESS, METRIC, how="zero", components=["head"], layers=[4]).table
    rising = [(4, int(head)) for head in table["head"][table["refusal"] > 1e-3]]
    assert rising
    given = {"how": "zero", "share": 50.0, "candidates": [*rising[:2], (2, 1)], "n_random": 0}
    found = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, **given)
    assert not found.reached
    assert found.heads[0] == (2, 1)
    assert (found.curve["refusal"].diff().dropna() < FORWARD).all()
    found = knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, **{**given, "candidates": rising[:1]})
    assert not found.reached
    assert found.heads == ()
    assert "no further head" in found.reason


def test_no_refusal_to_take_away(one):
    found = knockout.smallest_set(one, HARMLESS, HARMLESS, METRIC, how="zero")
    assert not found.reached
    assert found.heads == ()
    assert "no refusal" in found.reason
    assert len(found.curve) == 0
    assert list(found.curve.columns) == COLUMNS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"candidates": []}, "no candidate"),
        ({"candidates": [(2, 4)]}, "head 4 .*0 to 3"),
        ({"candidates": [(2, -1)]}, "head -1 .*0 to 3"),
        ({"candidates": [(5, 0)]}, "layer 5 .*0 to 4"),
        ({"share": 0.0}, "share is 0"),
        ({"share": float("nan")}, "share is nan"),
        ({"largest": 0}, "largest is 0"),
        ({"n_random": -1}, "n_random -1"),
        ({"how": "median"}, "'median'"),
        ({"reference": []}, "no reference prompts"),
    ],
)
def test_bad_input_is_refused_by_name(one, given, said):
    with pytest.raises(MechrefusalError, match=said):
        knockout.smallest_set(one, HARMFUL, HARMLESS, METRIC, **given)
