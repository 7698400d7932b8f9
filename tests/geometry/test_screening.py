"""The screen keeps the winner, scores finalists exactly and says which it did not; the arithmetic of its race."""

import numpy as np
import pytest
import torch

from mechrefusal import MechrefusalError, geometry
from mechrefusal.geometry import carriers, screening
from mechrefusal.models import RefusalMetric, low_precision
from mechrefusal.prompts import builtin

METRIC = RefusalMetric((), (10, 11), (12, 13))
OPEN = {"kl_threshold": 1e9, "induce_threshold": -1e9}


@pytest.fixture(scope="module")
def asked():
    found = builtin()
    return found.direction.take(20), found.validation.take(30)


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def both(request, tiny_hooked, asked):
    """All candidates scored exactly, and screened, with thresholds open; with and without bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_precision, "multiplies_bfloat16", lambda device: request.param == "bfloat16")
        directions = geometry.difference_in_means(tiny_hooked, asked[0])
        exact = geometry.score(tiny_hooked, directions, asked[1], METRIC)
        found = geometry.screened(tiny_hooked, directions, asked[1], METRIC, **OPEN)
    return exact, found


def test_the_winner_is_the_same(both):
    exact, found = both
    winners = [carriers.select(scores, 4, 1e9, -1e9).winner for scores in (exact, found)]
    assert winners[0][["position", "layer"]].tolist() == winners[1][["position", "layer"]].tolist()
    assert winners[1]["bypass"] == pytest.approx(winners[0]["bypass"], abs=1e-5)


def test_exact_rows_are_exact_and_the_others_are_near(both):
    exact, found = both
    rough = ~found.table["exact"].to_numpy()
    assert rough.any()
    assert not rough.all()
    for name in ("bypass", "induce", "kl"):
        a, b = exact.table[name].to_numpy(), found.table[name].to_numpy()
        np.testing.assert_allclose(b[~rough], a[~rough], atol=1e-5)
        np.testing.assert_allclose(b[rough], a[rough], atol=0.3)
        assert np.abs(b[rough] - a[rough]).max() > 1e-5
        assert np.isnan(getattr(found, name)[rough]).all()
        np.testing.assert_allclose(getattr(found, name)[~rough], getattr(exact, name)[~rough], atol=1e-5)


def test_a_screened_row_never_wins():
    table = geometry.scoring.gathered(
        [{"position": -1, "layer": 1}, {"position": -1, "layer": 2}],
        [(np.full(3, -9.0), np.ones(3), np.zeros(3)), (np.full(3, -1.0), np.ones(3), np.zeros(3))],
        [False, True],
    )
    found = carriers.select(table, 10)
    assert found.winner["layer"] == 2
    assert found.table["admissible"].tolist() == [True, True]


def test_candidates_far_from_the_thresholds_are_not_scored_exactly(tiny_hooked, asked):
    directions = geometry.difference_in_means(tiny_hooked, asked[0])
    found = geometry.screened(tiny_hooked, directions, asked[1], METRIC, kl_threshold=1e9, induce_threshold=1e9)
    scored = found.table.dropna(subset=["bypass"])
    assert len(scored) > 0
    assert not scored["exact"].any()
    assert carriers.select(found, 4, 1e9, 1e9).winner is None


class TestRace:
    def race(self, *bypass, share=0.5, kl=0.0, induce=1.0):
        rough = [screening._Rough(np.array(b), np.full(4, induce), np.full(4, kl)) for b in bypass]
        return screening._Race(rough, share, share)

    def test_order(self):
        nothing = [np.nan] * 4
        assert self.race([1.0] * 4, nothing, [-1.0] * 4, [0.0] * 4).order() == [2, 3, 0]

    def test_pairs_are_compared_prompt_by_prompt(self):
        steep = np.array([-40.0, -10.0, 10.0, 40.0])
        race = self.race(steep, steep + 0.2, steep[::-1] + 0.2)
        assert not race.may_beat(1, 0)  # always 0.2 behind, more than rounding
        assert race.may_beat(2, 0)  # as far behind on average, but not prompt by prompt

    def test_by_hand(self):
        behind = np.array([0.0, 1.0, 2.0, 3.0])
        # Half of the prompts: 3 standard errors of the sample; all of them: 2 of a bootstrap.
        for share, errors in ((0.5, 3 * np.sqrt(0.5)), (1.0, 2.0)):
            bound = 1.5 - errors * behind.std(ddof=1) / np.sqrt(4) - screening.SCORE_SLACK
            assert not self.race([0.0] * 4, behind - bound + 1e-6, share=share).may_beat(1, 0)
            assert self.race([0.0] * 4, behind - bound - 1e-6, share=share).may_beat(1, 0)

    def test_thresholds_have_slack(self):
        assert self.race([0.0] * 4, kl=0.1 + screening.KL_SLACK / 2).may_be_admissible(0, 0.1, 0.0)
        assert not self.race([0.0] * 4, kl=0.1 + screening.KL_SLACK * 2).may_be_admissible(0, 0.1, 0.0)
        assert self.race([0.0] * 4, induce=-screening.SCORE_SLACK / 2).may_be_admissible(0, 0.1, 0.0)
        assert not self.race([0.0] * 4, induce=-screening.SCORE_SLACK * 2).may_be_admissible(0, 0.1, 0.0)


def test_few_prompts_keep_those_that_could_win_a_bootstrap():
    """With all prompts in the sample the order is known, but not what other prompts would say."""
    random = np.random.default_rng(0)
    rough = [screening._Rough(random.normal(mean, 1.0, 8), np.ones(8), np.zeros(8)) for mean in (0.0, 0.3, 6.0)]
    race = screening._Race(rough, 1.0, 1.0)
    assert race.may_beat(1, 0)
    assert not race.may_beat(2, 0)


def test_nothing_is_scored_twice_where_the_screen_would_be_exact(tiny_hooked, asked, monkeypatch):
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: False)
    directions, few = geometry.difference_in_means(tiny_hooked, asked[0]), asked[1].take(8)
    found = geometry.screened(tiny_hooked, directions, few, METRIC, **OPEN)
    exact = geometry.score(tiny_hooked, directions, few, METRIC)
    assert found.table["exact"].all()
    np.testing.assert_array_equal(found.bypass, exact.bypass)


def test_few_prompts_are_all_in_the_sample():
    assert screening._sample([str(i) for i in range(8)], 0.5) == [str(i) for i in range(8)]
    sample = screening._sample([str(i) for i in range(64)], 0.5)
    assert len(sample) == len(set(sample)) == 32
    assert sample[0] == "0"
    assert sample[-1] == "63"


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_is_a_share(tiny_hooked, asked, share):
    directions = geometry.difference_in_means(tiny_hooked, asked[0])
    with pytest.raises(MechrefusalError, match="share"):
        geometry.screened(tiny_hooked, directions, asked[1], METRIC, share=share)


def test_nan_directions_and_other_weights(tiny_hooked, asked):
    directions = geometry.difference_in_means(tiny_hooked, asked[0])
    directions.values[1, 2] = float("nan")
    found = geometry.screened(tiny_hooked, directions, asked[1], METRIC, **OPEN).table
    bad = (found["position"] == directions.positions[1]) & (found["layer"] == 2)
    assert found[bad][["bypass", "induce", "kl"]].isna().all(axis=None)
    assert found[bad]["exact"].all()
    other = geometry.Directions(**{**vars(directions), "weights": "f" * 16})
    with pytest.raises(MechrefusalError, match="ffff"):
        geometry.screened(tiny_hooked, other, asked[1], METRIC)
    assert torch.isnan(directions.values[1, 2]).all()
