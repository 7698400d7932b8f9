"""A carrier is looked for only where the refusal metric can be relied on: by its AUC on held-out prompts."""

from types import SimpleNamespace

import pytest

from mechrefusal.evaluation import Discovered
from mechrefusal.prompts import Split
from mechrefusal.study.carrier_choice import why_not_scored

NAN = float("nan")


@pytest.mark.parametrize(
    ("auc", "held_out", "relied_on"),
    [
        (1.0, 0.95, True),
        (1.0, 0.85, False),  # it fits the prompts that it was discovered on
        (0.85, 0.95, True),
        (0.95, NAN, True),  # too few prompts to hold any out
        (0.85, NAN, False),
        (NAN, NAN, True),  # nothing discovered: the counts decide
    ],
)
def test_the_gate_goes_by_the_held_out_auc(auc, held_out, relied_on):
    metric = Discovered((), (1,), (2,), auc=auc, auc_held_out=held_out, note="why")
    enough = Split.of(["a", "b", "c"], ["d", "e", "f"])
    measured = SimpleNamespace(
        kept_direction=enough, kept_validation=enough, metric=metric, settings=SimpleNamespace(fewest_kept=3)
    )
    reason = why_not_scored(measured)
    assert reason == ("" if relied_on else "the refusal metric cannot be relied on: why")
