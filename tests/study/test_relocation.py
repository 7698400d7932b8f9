"""Verdicts on pairs of checkpoints whose carriers, directions and transfers are put in by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from blank_rows import blank
from planted_directions import pair

from mechrefusal import tables
from mechrefusal.geometry import drift
from mechrefusal.models import Checkpoint
from mechrefusal.statistics.depth import Profile, depth_difference
from mechrefusal.study import move_verdicts
from mechrefusal.study.across import Pairs
from mechrefusal.study.relocation import OF_ACTIVATIONS, Measured, relocation

NAN = float("nan")
BASE, SFT = Checkpoint("base", 0, Path(), "w0"), Checkpoint("sft", 5, Path(), "w1")
N_LAYERS, N = 30, 40
OPEN = "; no number of prompts decides it as things stand"


def carrier(layers=None, *, reference=0, **changes):
    """Table `carrier` of one row; `layers`: the interval of the carrier's layer, None where there is no carrier."""
    row = blank("carrier") | {"reference_position": -1, "reference_layer": reference}
    if layers is None:
        row |= {"reason": "none of 4 candidates is admissible"}
    else:
        # The planted directions have one layer, at which every carrier here stands.
        row |= {"position": -1, "layer": 0, "layer_low": layers[0], "layer_high": layers[1]}
        row |= {"n_harmful": N, "n_harmless": N + 8}
    return tables.frame("carrier", [row | changes])


def transferred(source, target, decrease, *, half=0.2, random=0.2, kind="carrier", halves=(NAN, NAN)):
    """A row of `transfer`: ablation lowers the score by `decrease` ± `half`, from half the prompts by `halves`."""
    return blank("transfer") | {
        "arm_source": source.arm, "step_source": source.step, "arm_target": target.arm, "step_target": target.step,
        "kind": kind, "decrease": decrease, "decrease_low": decrease - half, "decrease_high": decrease + half,
        "random_decrease": random, "decrease_half_low": halves[0], "decrease_half_high": halves[1],
        "n_harmful": N,
    }  # fmt: skip


def carried(away, own=None, home=None):
    """Rows of the table: base's carrier at sft, sft's own there, base's own at base."""
    rows = ((BASE, SFT, away), (SFT, SFT, own or {"decrease": 5.0}), (BASE, BASE, home or {"decrease": 5.0}))
    return [transferred(source, target, **given) for source, target, given in rows]


HELD = carried({"decrease": 4.5})
LOST = carried({"decrease": 1.0})


def profile(row):
    """Candidates of which one half of the prompts prefers the lower layer of the carrier's interval, the other the
    upper one; None without an interval."""
    if row[["layer_low", "layer_high"]].isna().any():
        return None
    depths = np.arange(24.0)
    bypass = np.full((24, N), 5.0)
    bypass[int(row["layer_low"]), ::2] = bypass[int(row["layer_high"]), 1::2] = 0.0
    units = list(range(N))
    return Profile(depths, bypass, np.ones((24, N)), np.zeros((24, N)), units, units, np.zeros((0, 3, 24)))


def decide(first, second, transfers=HELD, *, seed=0, length=5.0, **planted):
    """Rows of the table by measure, for base and sft."""
    both = dict(zip((BASE.id, SFT.id), pair(seed, length=length, **planted), strict=True))
    carriers = {BASE.id: first, SFT.id: second}
    profiles = {name: profile(table.iloc[0]) for name, table in carriers.items()}
    layers = dict.fromkeys(carriers, N_LAYERS)
    measured = Measured(both, carriers, tables.frame("transfer", transfers), layers, profiles)
    table = relocation(Pairs([BASE, SFT]), measured)
    assert list(table.columns) == list(tables.columns("relocation"))
    assert set(table[["arm_a", "step_a", "arm_b", "step_b"]].itertuples(index=False, name=None)) == {
        ("base", 0, "sft", 5)
    }
    assert (table["reason"] != "").all()
    told = table["verdict"] != "cannot tell"
    assert table.loc[told, "n_to_decide"].isna().all()
    for row in table[~told].to_dict("records"):
        needed = NAN if pd.isna(row["n_to_decide"]) else row["n_to_decide"]
        assert row["reason"].endswith(f"; {move_verdicts.what_decides(needed)}")
    return table.set_index("measure")


def test_nothing_moved():
    found = decide(carrier((8, 10)), carrier((9, 10)))
    assert list(found.index) == [
        "carrier_layer", "carrier_cosine", "direction_cosine", "principal_angle", "transfer", "overall",
    ]  # fmt: skip
    assert set(found["verdict"]) == {"not moved"}
    reason = found.loc["overall", "reason"]
    assert reason.startswith(
        "carrier_layer did not move: carriers at layer 0 (base-step-00000) and 0 (sft-step-00005); over bootstraps +0."
    )
    assert "; transfer did not move: at sft" in reason
    beside = "carrier_cosine did not move, direction_cosine did not move, principal_angle did not move"
    assert reason.endswith(f" (beside: {beside})")


def test_values_and_floors():
    first, second = carrier((8, 10), layer=0), carrier((9, 13), layer=0)
    found = decide(first, second, degrees=30, length=3.0)
    row = found.loc["carrier_layer"]
    between = depth_difference(*(profile(table.iloc[0]) for table in (first, second)))
    assert (row["value"], row["low"], row["high"], row["floor"]) == (between.value, between.low, between.high, 3)
    assert between.low < 2 < between.high
    expected = drift.turn(*pair(0, length=3.0, degrees=30), places=([(-1, 0)], [(-1, 0)]), measure="cosine")
    for measure in ("carrier_cosine", "direction_cosine"):
        row = found.loc[measure]
        assert (row["value"], row["low"], row["high"]) == (
            expected.cross.value,
            expected.cross.low,
            expected.cross.high,
        )
        assert row["floor"] == expected.expected
    row = found.loc["transfer"]
    # At sft lowered by 4.5 ± 0.2, by its own carrier by 5 ± 0.2, and by 0.2 with a random direction.
    np.testing.assert_allclose(row[["value", "low", "high"]].astype(float), [0.9, 4.3 / 5.2, 4.7 / 4.8])
    assert row["floor"] == pytest.approx(0.04)
    assert row["reason"] == (
        "at sft-step-00005, ablating the carrier of base-step-00000 lowers the refusal score by 4.50 [4.30, 4.70] "
        "nats, its own by 5.00 [4.80, 5.20] (the noise of the direction prompts is not in it), all of its own on the "
        "prompts that chose it"
    )


STILL, DEEPER, WIDE = carrier((9, 10)), carrier((2, 4)), carrier((2, 10))
UNCLEAR = carried({"decrease": 3.5})


@pytest.mark.parametrize(
    ("second", "transfers", "expected"),
    [
        (STILL, HELD, "not moved"),
        (STILL, UNCLEAR, "not moved"),
        (STILL, [], "not moved"),
        (STILL, LOST, "cannot tell"),  # they contradict each other
        (DEEPER, HELD, "cannot tell"),  # likewise
        (DEEPER, UNCLEAR, "moved"),
        (DEEPER, [], "moved"),
        (DEEPER, LOST, "moved"),
        (WIDE, LOST, "moved"),
        (WIDE, HELD, "cannot tell"),
        (WIDE, UNCLEAR, "cannot tell"),
    ],
)
@pytest.mark.parametrize("degrees", [0, 60])
def test_depth_and_transfer_decide(second, transfers, expected, degrees):
    """However the direction turned: that is shown beside, and decides nothing."""
    found = decide(carrier((8, 10)), second, transfers, degrees=degrees)
    reason = found.loc["overall", "reason"]
    assert found.loc["overall", "verdict"] == expected
    said = set(found.loc[["carrier_layer", "transfer"], "verdict"])
    assert reason.startswith("these two contradict each other: ") == ({"moved", "not moved"} == said)
    assert f"direction_cosine {'moved' if degrees else 'did not move'}" in reason.split("(beside: ")[1]


def test_no_carrier_is_named_and_settles_nothing():
    found = decide(carrier(None), carrier((8, 10)), carried({"decrease": 5.0, "kind": "best candidate"}))
    for measure in ("carrier_layer", "carrier_cosine"):
        assert found.loc[measure, "verdict"] == "cannot tell"
        assert found.loc[measure, "reason"] == (
            f"no carrier at base-step-00000: none of 4 candidates is admissible{OPEN}"
        )
    assert found.loc["transfer", "reason"] == f"no carrier at base-step-00000 to transfer{OPEN}"
    assert found.loc["direction_cosine", "verdict"] == "not moved"
    assert found.loc["overall", "verdict"] == "cannot tell"
    assert "carrier_layer cannot tell: no carrier at base-step-00000" in found.loc["overall", "reason"]


def test_without_a_carrier_a_turned_direction_is_only_mentioned():
    found = decide(carrier(None), carrier(None), [], degrees=80)
    assert found.loc["direction_cosine", "verdict"] == "moved"
    assert found.loc["overall", "verdict"] == "cannot tell"
    assert "direction_cosine moved" in found.loc["overall", "reason"]


def test_a_transfer_that_was_not_taken_leaves_the_rest_to_decide():
    found = decide(carrier((8, 10)), carrier((9, 10)), [])
    assert found.loc["transfer", "reason"] == (
        f"the carrier of base-step-00000 was not applied at sft-step-00005{OPEN}"
    )
    assert found.loc["overall", "verdict"] == "not moved"


def test_one_unclear_measure_makes_it_unclear():
    found = decide(carrier((2, 10)), carrier((9, 10)))
    assert found.loc["carrier_layer", "verdict"] == "cannot tell"
    assert found.loc["overall", "verdict"] == "cannot tell"
    assert found.loc["overall", "reason"].startswith("carrier_layer cannot tell: carriers at layer 0 (base-step-00000)")


@pytest.mark.parametrize(
    ("away", "own", "home", "expected"),
    [
        ({"decrease": 4.0}, {}, {}, "not moved"),
        ({"decrease": 3.5}, {}, {}, "cannot tell"),  # 70%
        ({"decrease": 2.0}, {}, {}, "moved"),  # 40%
        ({"decrease": 2.0, "half": 1.5}, {"half": 2.0}, {}, "cannot tell"),  # 40%, but intervals overlap
        ({"decrease": 5.0, "half": 6.0}, {}, {}, "cannot tell"),  # as large, but anything
        ({"decrease": 4.0, "random": 4.1}, {"random": 4.1}, {}, "cannot tell"),  # a random direction does it too
        ({"decrease": 0.3}, {"decrease": 0.3}, {}, "cannot tell"),  # sft's own does nothing
        ({"decrease": 2.0}, {"half": 5.5}, {}, "cannot tell"),
        ({"decrease": -1.0}, {}, {}, "moved"),  # it refuses the more
        ({"decrease": 4.8, "random": NAN}, {"random": NAN}, {}, "not moved"),
        ({"decrease": NAN}, {}, {}, "cannot tell"),
        ({"decrease": 4.0}, {"decrease": NAN}, {}, "cannot tell"),
        ({"decrease": 4.5}, {"kind": "best candidate"}, {}, "cannot tell"),
        ({"decrease": 1.0}, {}, {"decrease": 0.1}, "cannot tell"),  # it does nothing at base either
        ({"decrease": 1.0}, {}, {"decrease": NAN}, "moved"),
        # A weaker refusal, and another metric's scale: all the refusal that there is at sft is taken away.
        ({"decrease": 1.4}, {"decrease": 1.5}, {"decrease": 9.0}, "not moved"),
        ({"decrease": 45.0}, {"decrease": 50.0}, {"decrease": 5.0}, "not moved"),
        # And as much in nats as at base is little beside what sft's own takes away.
        ({"decrease": 5.0}, {"decrease": 20.0}, {"decrease": 5.0}, "moved"),
    ],
)
def test_transfer(away, own, home, expected):
    rows = carried(away, {"decrease": 5.0} | own, {"decrease": 5.0} | home)
    assert decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer", "verdict"] == expected


@pytest.mark.parametrize(
    ("away", "halves", "expected"),
    [
        (2.0, (4.1, 4.9), "moved"),
        (2.0, (2.1, 4.9), "moved"),
        (2.0, (2.0, 4.9), "cannot tell"),
        (2.0, (1.0, 4.9), "cannot tell"),  # half the prompts take as much of the effect away as the move does
        (2.0, (-1.0, 1.0), "cannot tell"),
        (-1.0, (-0.5, 4.9), "moved"),
        (3.5, (4.1, 4.9), "cannot tell"),  # 70%, clear of halves though it is
        (4.5, (4.8, 4.9), "not moved"),  # halves say nothing against it
        (4.5, (1.0, 4.9), "not moved"),
        (2.0, (NAN, NAN), "moved"),
    ],
)
def test_a_move_is_more_than_halves_of_the_direction_prompts_differ(away, halves, expected):
    rows = carried({"decrease": away}, {"decrease": 5.0, "halves": halves})
    found = decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer"]
    assert found["verdict"] == expected
    known = halves[0] == halves[0]
    said = f"its own by 5.00 [4.80, 5.20], its own from halves of the direction prompts by {halves[0]:.2f} and "
    assert (f"{said}{halves[1]:.2f}" in found["reason"]) == known
    assert ("(the noise of the direction prompts is not in it)" in found["reason"]) == (not known)
    as_much = expected == "cannot tell" and away < 2.5
    assert (": but the noise of the direction prompts does as much" in found["reason"]) == as_much
    if as_much:
        assert found["reason"].endswith(f"does as much{OPEN}"), "the intervals are over other prompts"


def test_its_own_effect_is_that_on_prompts_that_did_not_choose_it():
    """On those that did it is 3 nats more, and the others' share of it a third less."""
    lucky, held_out = (
        (5.0, 4.0),
        {"decrease_held_out": 2.0, "decrease_held_out_low": 1.5, "decrease_held_out_high": 2.5},
    )
    rows = carried({"decrease": 1.9}, {"decrease": 5.0, "halves": lucky}, {"decrease": 5.0})
    before = decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer"]
    assert before["verdict"] == "moved"
    assert "all of its own on the prompts that chose it" in before["reason"]
    rows[1] |= held_out
    found = decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer"]
    assert found["verdict"] == "not moved"
    assert found["value"] == pytest.approx(1.9 / 2)
    assert (
        "its own by 2.00 [1.50, 2.50], its own from halves of the direction prompts by 2.00 and 1.00" in found["reason"]
    )
    assert "that chose it" not in found["reason"]
    # At a the same: what is left of its effect there is not clear of zero.
    home = {"decrease_held_out": 0.1, "decrease_held_out_low": -0.5, "decrease_held_out_high": 0.7}
    rows = carried({"decrease": 0.5}, {"decrease": 5.0, "halves": lucky}, {"decrease": 5.0})
    assert decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer", "verdict"] == "moved"
    rows[2] |= home
    assert decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer", "verdict"] == "cannot tell"


def test_halves_of_the_other_rows_decide_nothing():
    """Those of base's carrier are not what sft's own effect would be under other prompts."""
    wild = {"halves": (-9.0, 9.0)}
    rows = carried({"decrease": 2.0} | wild, {"decrease": 5.0, "halves": (4.5, 5.1)}, {"decrease": 5.0} | wild)
    assert decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer", "verdict"] == "moved"


def test_the_transfer_says_why_it_cannot_tell():
    def reason(*rows):
        return decide(carrier((8, 10)), carrier((9, 10)), carried(*rows)).loc["transfer", "reason"]

    assert reason({"decrease": 5.0}, {"decrease": 5.0, "kind": "best candidate"}) == (
        f"no carrier at sft-step-00005 to compare with{OPEN}"
    )
    assert reason({"decrease": 5.0}, {"decrease": 0.1}).endswith(
        f"its own is not clear of zero and of a random direction{OPEN}"
    )
    either = reason({"decrease": 1.0}, None, {"decrease": 0.1})
    assert either.endswith(f"of a random direction at base-step-00000 either{OPEN}")


def test_it_needs_only_the_rows_at_the_second_checkpoint():
    assert decide(carrier((8, 10)), carrier((9, 10)), LOST[:2]).loc["transfer", "verdict"] == "moved"
    found = decide(carrier((8, 10)), carrier((9, 10)), LOST[:1]).loc["transfer"]
    assert found["reason"] == f"the carrier of sft-step-00005 was not applied at sft-step-00005{OPEN}"


def test_without_a_reference_layer_the_cosine_is_the_mean_over_layers():
    found = decide(carrier(None, reference=NAN), carrier(None, reference=NAN))
    assert found.loc["direction_cosine", "reason"].startswith("mean over layers, as there is no reference layer: ")
    assert found.loc["direction_cosine", "verdict"] == "not moved"
    assert found.loc["principal_angle", "reason"] == f"no reference layer to take the span at{OPEN}"


def test_the_same_place_under_noise_is_hardly_ever_called_moved():
    """Carriers and transfers alike; directions with no more than the noise of the prompts between them."""
    found = [decide(carrier((8, 10)), carrier((9, 10)), seed=seed, length=1.5) for seed in range(15)]
    assert {each.loc["overall", "verdict"] for each in found} == {"not moved"}
    turned = [each.loc["direction_cosine", "verdict"] for each in found]
    assert turned.count("moved") <= 1
    assert "cannot tell" in turned


def moved_transfer(away, own):
    return decide(carrier((8, 10)), carrier((9, 10)), carried(away, own)).loc["transfer"]


@pytest.mark.parametrize(
    ("away", "own", "expected"),
    [
        # Lowered by 2 and by 5 on its own, 3.5 towards each other, 3 apart.
        ({"decrease": 2.0, "half": 1.5}, {"half": 2.0}, N * (3.5 / 3) ** 2),
        # As large as 4.8, but from 6 below; 0.2 is what a random direction does.
        ({"decrease": 4.8, "half": 6.0}, {}, N * (6.0 / 4.6) ** 2),
        # Between the two: more prompts place it better, and it stays between them.
        ({"decrease": 3.5}, {}, NAN),
        # Its own is not clear of a random direction.
        ({"decrease": 2.0}, {"half": 5.5}, N * (5.5 / 4.8) ** 2),
        ({"decrease": 2.0}, {"decrease": 0.1}, NAN),
    ],
)
def test_how_many_prompts_would_decide_the_transfer(away, own, expected):
    found = moved_transfer(away, {"decrease": 5.0} | own)
    assert found["verdict"] == "cannot tell"
    assert pd.isna(expected) if pd.isna(found["n_to_decide"]) else found["n_to_decide"] == np.ceil(expected)


def test_the_least_of_what_would_decide_the_whole():
    wide = carrier((2, 10))
    lost = carried({"decrease": 2.0, "half": 1.5}, {"decrease": 5.0, "half": 2.0})
    found = decide(carrier((8, 10)), wide, lost)
    asked = found.loc[["carrier_layer", "transfer"], "n_to_decide"]
    assert asked.notna().all()
    assert found.loc["overall", "n_to_decide"] == asked.min()
    # A carrier that holds elsewhere leaves the whole to the layer.
    found = decide(carrier((8, 10)), wide, carried({"decrease": 4.8, "half": 6.0}))
    assert found.loc["transfer", "n_to_decide"] < found.loc["carrier_layer", "n_to_decide"]
    assert found.loc["overall", "n_to_decide"] == found.loc["carrier_layer", "n_to_decide"]
    contradicting = decide(carrier((8, 10)), carrier((2, 4)), HELD)
    assert pd.isna(contradicting.loc["overall", "n_to_decide"])


def test_of_models_of_another_kind_only_the_depth_is_compared_as_a_share_of_the_layers():
    both = dict(zip((BASE.id, SFT.id), pair(0, length=5.0), strict=True))
    carriers = {BASE.id: carrier((8, 8), layer=8), SFT.id: carrier((8, 8), layer=8)}
    profiles = {name: profile(table.iloc[0]) for name, table in carriers.items()}
    nothing = tables.frame("transfer", [])
    for deep, verdict in ((N_LAYERS, "not moved"), (4 * N_LAYERS, "moved")):
        layers = {BASE.id: N_LAYERS, SFT.id: deep}
        pairs = Pairs([BASE, SFT], why_apart=lambda a, b: "other architectures (llama and gpt2)")
        found = relocation(pairs, Measured(both, carriers, nothing, layers, profiles)).set_index("measure")
        # Layer 8 of four times as many is layer 2 of the former's.
        assert found.loc["carrier_layer", "value"] == pytest.approx(8 * N_LAYERS / deep - 8)
        assert found.loc["carrier_layer", "verdict"] == found.loc["overall", "verdict"] == verdict
        for measure in OF_ACTIVATIONS:
            assert found.loc[measure, "verdict"] == "cannot tell"
            assert found.loc[measure, "reason"].startswith("not compared: other architectures (llama and gpt2)")
    assert f"of {N_LAYERS} and {deep} layers" in found.loc["carrier_layer", "reason"]
