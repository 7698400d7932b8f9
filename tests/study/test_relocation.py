"""Verdicts on pairs of checkpoints whose carriers, directions and transfers are put in by hand."""

from pathlib import Path

import numpy as np
import pytest
from planted_directions import pair

from mechrefusal.geometry import drift
from mechrefusal.models import Checkpoint
from mechrefusal.study import tables
from mechrefusal.study.relocation import relocation

NAN = float("nan")
BASE, SFT = Checkpoint("base", 0, Path(), "w0"), Checkpoint("sft", 5, Path(), "w1")
N_LAYERS = 30


def carrier(layers=None, *, reference=0, **changes):
    """Table `carrier` of one row; `layers`: the interval of the carrier's layer, None where there is no carrier."""
    row = dict.fromkeys(tables.columns("carrier"), NAN) | {"reason": "", "token": "", "reference_layer": reference}
    if layers is None:
        row |= {"reason": "none of 4 candidates is admissible"}
    else:
        # The planted directions have one layer, at which every carrier here stands.
        row |= {"position": -1, "layer": 0, "layer_low": layers[0], "layer_high": layers[1]}
    return tables.frame("carrier", [row | changes])


def transferred(target, bypass, *, half=0.2, baseline=5.0, random=4.8, kind="carrier"):
    return dict.fromkeys(tables.columns("transfer"), NAN) | {
        "arm_source": "base", "step_source": 0, "arm_target": target.arm, "step_target": target.step, "kind": kind,
        "bypass": bypass, "bypass_low": bypass - half, "bypass_high": bypass + half, "baseline_harmful": baseline,
        "random_bypass": random, "reason": "",
    }  # fmt: skip


HELD = [transferred(BASE, 0.0), transferred(SFT, 0.5)]
LOST = [transferred(BASE, 0.0), transferred(SFT, 4.0)]


def decide(first, second, transfers=HELD, *, seed=0, length=5.0, **planted):
    """Rows of the table by measure, for base and sft."""
    both = dict(zip((BASE.id, SFT.id), pair(seed, length=length, **planted), strict=True))
    table = relocation(
        [BASE, SFT], both, {BASE.id: first, SFT.id: second}, tables.frame("transfer", transfers), N_LAYERS
    )
    assert list(table.columns) == list(tables.columns("relocation"))
    assert set(table[["arm_a", "step_a", "arm_b", "step_b"]].itertuples(index=False, name=None)) == {
        ("base", 0, "sft", 5)
    }
    assert (table["reason"] != "").all()
    return table.set_index("measure")


def test_nothing_moved():
    found = decide(carrier((8, 10)), carrier((9, 10)))
    assert list(found.index) == [
        "carrier_layer", "carrier_cosine", "direction_cosine", "principal_angle", "transfer", "overall",
    ]  # fmt: skip
    assert set(found["verdict"]) == {"not moved"}
    assert found.loc["overall", "reason"] == "carrier_layer, direction_cosine, transfer did not move"


def test_values_and_floors():
    found = decide(carrier((8, 10), layer=0), carrier((9, 13), layer=0), degrees=30, length=3.0)
    row = found.loc["carrier_layer"]
    assert (row["value"], row["low"], row["high"], row["floor"]) == (0, -1, 5, 4)
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
    # Lowered by 4.5 ± 0.2 at sft, by 5 ± 0.2 at home, and by 0.2 with a random direction.
    np.testing.assert_allclose(row[["value", "low", "high"]].astype(float), [0.9, 4.3 / 5.2, 4.7 / 4.8])
    assert row["floor"] == pytest.approx(0.04)
    assert "by 4.50 [4.30, 4.70] nats at sft-step-00005, by 5.00 [4.80, 5.20] at base-step-00000" in row["reason"]


@pytest.mark.parametrize(
    ("second", "transfers", "planted", "by"),
    [
        (carrier((2, 4)), HELD, {}, "carrier_layer"),
        (carrier((9, 10)), LOST, {}, "transfer"),
        (carrier((9, 10)), HELD, {"degrees": 60}, "direction_cosine"),
    ],
)
def test_any_of_three_moves_it(second, transfers, planted, by):
    found = decide(carrier((8, 10)), second, transfers, **planted)
    deciding = found.loc[["carrier_layer", "transfer", "direction_cosine"], "verdict"]
    assert deciding.drop(by).eq("not moved").all()
    assert deciding[by] == found.loc["overall", "verdict"] == "moved"
    assert found.loc["overall", "reason"].startswith(f"{by} moved: ")


def test_no_carrier_is_named_and_settles_nothing():
    found = decide(carrier(None), carrier((8, 10)), [transferred(t, 0.0, kind="best candidate") for t in (BASE, SFT)])
    for measure in ("carrier_layer", "carrier_cosine"):
        assert found.loc[measure, "verdict"] == "cannot tell"
        assert found.loc[measure, "reason"] == "no carrier at base-step-00000: none of 4 candidates is admissible"
    assert found.loc["transfer", "reason"] == "no carrier at base-step-00000 to transfer"
    assert found.loc["direction_cosine", "verdict"] == "not moved"
    assert found.loc["overall", "verdict"] == "cannot tell"
    assert "carrier_layer: no carrier at base-step-00000" in found.loc["overall", "reason"]


def test_without_a_carrier_a_turned_direction_has_moved_all_the_same():
    found = decide(carrier(None), carrier(None), [], degrees=80)
    assert found.loc["overall", "verdict"] == "moved"


def test_a_transfer_that_was_not_taken_leaves_the_rest_to_decide():
    found = decide(carrier((8, 10)), carrier((9, 10)), [])
    assert found.loc["transfer", "reason"] == "the carrier of base-step-00000 was not applied at base-step-00000"
    assert found.loc["overall", "verdict"] == "not moved"


def test_one_unclear_measure_makes_it_unclear():
    found = decide(carrier((2, 10)), carrier((9, 10)))
    assert found.loc["carrier_layer", "verdict"] == "cannot tell"
    assert found.loc["overall", "verdict"] == "cannot tell"
    assert found.loc["overall", "reason"].startswith("carrier_layer: layers 2 to 10 and 9 to 10 overlap")


@pytest.mark.parametrize(
    ("home", "away", "expected"),
    [
        ({"bypass": 0.0}, {"bypass": 1.0}, "not moved"),
        ({"bypass": 0.0}, {"bypass": 1.5}, "cannot tell"),  # 70%
        ({"bypass": 0.0}, {"bypass": 3.0}, "moved"),  # 40%
        ({"bypass": 0.0, "half": 2.0}, {"bypass": 3.0, "half": 1.5}, "cannot tell"),  # 40%, but intervals overlap
        ({"bypass": 0.0}, {"bypass": 0.0, "half": 6.0}, "cannot tell"),  # at sft as large, but anything
        ({"bypass": 0.0}, {"bypass": 1.0, "random": 0.9}, "cannot tell"),  # a random direction does it too
        ({"bypass": 4.7}, {"bypass": 4.7}, "cannot tell"),  # nothing to carry over
        ({"bypass": 0.0}, {"bypass": 6.0}, "moved"),  # it refuses the more
        ({"bypass": 0.0, "random": NAN}, {"bypass": 0.2, "random": NAN}, "not moved"),
        ({"bypass": 0.0}, {"bypass": NAN}, "cannot tell"),
    ],
)
def test_transfer(home, away, expected):
    rows = [transferred(BASE, **home), transferred(SFT, **away)]
    assert decide(carrier((8, 10)), carrier((9, 10)), rows).loc["transfer", "verdict"] == expected


def test_without_a_reference_layer_the_cosine_is_the_mean_over_layers():
    found = decide(carrier(None, reference=NAN), carrier(None, reference=NAN))
    assert found.loc["direction_cosine", "reason"].startswith("mean over layers, as there is no reference layer: ")
    assert found.loc["direction_cosine", "verdict"] == "not moved"
    assert found.loc["principal_angle", "reason"] == "no reference layer to take the span at"


def test_a_carrier_without_an_interval():
    found = decide(carrier((NAN, NAN)), carrier((9, 10)))
    assert found.loc["carrier_layer", "reason"] == "no interval of the carrier's layer at one of the two"
    assert found.loc["overall", "verdict"] == "cannot tell"


def test_the_same_place_under_noise_is_hardly_ever_called_moved():
    """Carriers and transfers alike; directions with no more than the noise of the prompts between them."""
    found = [
        decide(carrier((8, 10)), carrier((9, 10)), seed=seed, length=1.5).loc["overall", "verdict"]
        for seed in range(15)
    ]
    assert found.count("moved") <= 1
    assert "cannot tell" in found
