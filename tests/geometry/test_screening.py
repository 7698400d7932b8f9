"""The screen keeps the winner, scores finalists exactly and says which it did not; the arithmetic of its race."""

from dataclasses import replace
from types import SimpleNamespace

import architectures
import numpy as np
import pytest
import torch
from scipy import stats
from tolerances import REORDERED

from mechrefusal import MechrefusalError, geometry, models
from mechrefusal.forward import RefusalMetric, low_precision
from mechrefusal.geometry import Admissible, carriers, screening
from mechrefusal.prompts import builtin

pytestmark = pytest.mark.slow

METRIC = RefusalMetric((), (10, 11), (12, 13))
OPEN, NEVER = Admissible(kl=1e9, induce=-1e9), Admissible(kl=1e9, induce=1e9)


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
        exact = geometry.score(tiny_hooked, directions, asked[1], METRIC, reference="zero")
        found = geometry.screened(tiny_hooked, directions, asked[1], METRIC, OPEN, reference="zero")
    return exact, found


def test_the_winner_is_the_same(both):
    exact, found = both
    winners = [carriers.select(scores, 4, OPEN).winner for scores in (exact, found)]
    assert winners[0].place == winners[1].place
    assert winners[1].bypass.value == pytest.approx(winners[0].bypass.value, abs=REORDERED)


def test_exact_rows_are_exact_and_the_others_are_near(both):
    exact, found = both
    rough = ~found.table["exact"].to_numpy()
    assert rough.any()
    assert not rough.all()
    for name in ("bypass", "induce", "kl"):
        a, b = exact.table[name].to_numpy(), found.table[name].to_numpy()
        np.testing.assert_allclose(b[~rough], a[~rough], atol=REORDERED)
        np.testing.assert_allclose(b[rough], a[rough], atol=0.3)
        assert np.abs(b[rough] - a[rough]).max() > 1e-5
        assert np.isnan(getattr(found, name)[rough]).all()
        np.testing.assert_allclose(getattr(found, name)[~rough], getattr(exact, name)[~rough], atol=REORDERED)


def test_a_screened_row_never_wins():
    table = geometry.CarrierScores.gathered(
        [(-1, 1), (-1, 2)],
        [(np.full(3, -9.0), np.ones(3), np.zeros(3)), (np.full(3, -1.0), np.ones(3), np.zeros(3))],
        [False, True],
    )
    found = carriers.select(table, 10)
    assert found.winner.layer == 2
    assert found.table["admissible"].tolist() == [True, True]


def test_candidates_far_from_the_thresholds_are_not_scored_exactly(tiny_hooked, asked):
    directions = geometry.difference_in_means(tiny_hooked, asked[0])
    found = geometry.screened(tiny_hooked, directions, asked[1], METRIC, NEVER)
    scored = found.table.dropna(subset=["bypass"])
    assert len(scored) > 8
    assert scored["exact"].sum() < len(scored) / 2
    chosen = carriers.select(found, 4, NEVER)
    assert chosen.winner is None
    assert chosen.best.row == scored[scored["layer"] < 3]["bypass"].idxmin(), "the lowest of all, and it is exact"
    assert found.table["exact"][chosen.best.row]


def scorer(harmful, harmless, *, low_precision=False):
    """What the race asks of a scorer: scores without intervention."""
    base = SimpleNamespace(harmful=torch.tensor(harmful), harmless=torch.tensor(harmless))
    return SimpleNamespace(base=base, low_precision=low_precision)


class Trial:
    """Scores of 40 made-up candidates on 24 prompts a side: a prompt's own level, a candidate's effect, noise."""

    def __init__(self, seed, n_candidates=40, n=24, k=8):
        random = np.random.default_rng(seed)
        levels = random.normal(0, 2, (2, n))
        easily = random.gamma(4, 0.25, n)
        effects = random.normal(0, 1, (2, n_candidates, 1))
        self.bypass = levels[0] + effects[0] + random.normal(0, 0.5, (n_candidates, n))
        self.induce = levels[1] + effects[1] + random.normal(0, 0.2, (n_candidates, n))
        self.kl = random.lognormal(-2, 0.8, (n_candidates, 1)) * easily * random.lognormal(0, 0.2, (n_candidates, n))
        self.places = np.unique(np.linspace(0, n - 1, k).round().astype(int))
        self.levels = levels
        self.rule = Admissible(kl=float(np.quantile(self.kl.mean(1), 0.4)), induce=float(levels[1].mean()))
        exact = [scorer(levels[0], levels[1]), scorer(levels[0][self.places], levels[1][self.places])]
        self.screen = [tuple(v[self.places] for v in self.of(place)) for place in range(n_candidates)]
        pilots = screening._pilots(self.screen, self.rule.kl)
        self.sample = screening._Sample(exact[1], exact[0], [self.places] * 2, [self.kl[p] for p in pilots])
        self.race = screening._Race(self.sample, self.screen, [True] * n_candidates, admissible=self.rule)
        for place in self.race.finalists(lambda: None):
            self.race.settle(place, self.of(place))

    def of(self, place):
        return self.bypass[place], self.induce[place], self.kl[place]

    def scores(self, found, exact):
        return geometry.CarrierScores.gathered([(-1, place) for place in range(len(found))], found, exact)


@pytest.fixture(scope="module")
def trials():
    return [Trial(seed) for seed in range(12)]


def test_races_find_the_winner_and_leave_most_candidates_out(trials):
    for trial in trials:
        everything = trial.scores([trial.of(place) for place in range(40)], [True] * 40)
        expected = carriers.select(everything, 100, trial.rule).winner
        found = carriers.select(trial.scores(trial.race.scores, trial.race.is_exact), 100, trial.rule).winner
        assert (None if found is None else found.place) == (None if expected is None else expected.place)
    assert np.mean([sum(trial.race.is_exact) for trial in trials]) < 16


def test_candidates_left_out_win_few_bootstraps(trials):
    lost = []
    for trial in trials:
        everything = trial.scores([trial.of(place) for place in range(40)], [True] * 40)
        table = geometry.stability.bootstrap(everything, 100, trial.rule).table
        lost.append(table["win_frequency"].to_numpy()[~np.array(trial.race.is_exact)].sum())
    assert np.mean(lost) < 0.03
    assert max(lost) < 0.15


def test_estimates_correct_the_sample_by_what_is_known_of_every_prompt(trials):
    trial = trials[0]
    rough = np.array([[values[trial.places].mean() for values in trial.of(place)] for place in range(40)])
    estimates = np.array([[values.mean() for values in trial.sample.expected(s)] for s in trial.screen])
    truth = np.array([[values.mean() for values in trial.of(place)] for place in range(40)])
    assert (np.abs(estimates - truth).mean(0) < np.abs(rough - truth).mean(0)).all()
    shift = trial.levels[0].mean() - trial.levels[0][trial.places].mean()
    np.testing.assert_allclose(estimates[:, 0], rough[:, 0] + shift)


def test_a_sample_of_everything_races_as_the_scores_do():
    """Then nothing is stood in for, so drawn races are bootstraps of the scores themselves."""
    trial = Trial(0, n=10, k=10)
    means = trial.sample.races(trial.bypass, trial.induce, trial.kl)
    for place in (0, 7):
        for found, settled in zip(means, trial.sample.settled(trial.of(place)), strict=True):
            np.testing.assert_allclose(found[:, place], settled, atol=1e-12)


def test_races_spread_as_much_as_what_is_not_known():
    """Race by race, what the sample says lies about as far from the truth as it varies."""
    errors = []
    for seed in range(12):
        trial = Trial(100 + seed, n_candidates=20)
        means = trial.sample.races(*(np.array([s[m] for s in trial.screen]) for m in range(3)))
        for place in range(20):
            for drawn, settled in zip(means, trial.sample.settled(trial.of(place)), strict=True):
                off = drawn[:, place] - settled
                errors.append(off.mean() / off.std())
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.3


def test_layers_out_of_the_running_are_not_scored(trials):
    trial = trials[0]
    race = screening._Race(trial.sample, trial.screen, [False] * 40, admissible=trial.rule)
    assert list(race.finalists(lambda: None)) == []


def test_nothing_is_scored_twice_where_the_screen_would_be_exact(tiny_hooked, asked, monkeypatch):
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: False)
    directions, few = geometry.difference_in_means(tiny_hooked, asked[0]), asked[1].take(8)
    found = geometry.screened(tiny_hooked, directions, few, METRIC, OPEN)
    exact = geometry.score(tiny_hooked, directions, few, METRIC)
    assert found.table["exact"].all()
    np.testing.assert_array_equal(found.bypass, exact.bypass)


@pytest.mark.parametrize(("name", "some", "few"), [("llama", 0.6, 0.3), ("gpt-neox", 0.9, 0.1)])
def test_rounding_is_estimated_on_the_model_at_hand_and_the_winner_is_the_exact_one(
    tmp_path, asked, monkeypatch, name, some, few
):
    folder = models.tiny.make(tmp_path / "made")
    hf = architectures.build(name, len(models.load_tokenizer(folder)))
    hf.save_pretrained(folder)
    hooked = models.load_hooked(folder)
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: True)
    directions = geometry.difference_in_means(hooked, asked[0])
    exact = geometry.score(hooked, directions, asked[1], METRIC)
    rule = Admissible(kl=float(exact.table["kl"].quantile(some)), induce=float(exact.table["induce"].quantile(few)))
    found = geometry.screened(hooked, directions, asked[1], METRIC, rule)
    winners = [geometry.select(scores, admissible=rule).winner for scores in (exact, found)]
    assert winners[0] is not None
    assert winners[0].place == winners[1].place
    assert not found.table["exact"].all()
    assert exact.rounding is None
    # What bfloat16 does to every candidate of the whole set, the shift without intervention taken off.
    rough = geometry.Scorer(hooked, asked[1], METRIC, low_precision=True)
    assert rough.low_precision
    whole = geometry.Scorer(hooked, asked[1], METRIC)
    base = (rough.base.harmful - whole.base.harmful).mean().item()
    places = exact.table[exact.table["layer"] > 0][["position", "layer"]].itertuples(index=True, name=None)
    shifts = []
    for row, *place in places:
        bypass, _, kl = geometry.scoring.scores_of(rough, directions.at(*place, reference="harmless"))
        shifts.append([bypass.mean() - exact.bypass[row].mean() - base, np.log(kl.mean() / exact.kl[row].mean())])
    score, divergence = np.sqrt(np.mean(np.square(shifts), axis=0))
    assert found.rounding.n == screening.PILOTS
    assert 0 < found.rounding.score < 10 * score
    assert score < 10 * found.rounding.score
    assert 0 < found.rounding.kl < 10 * divergence


def test_rounding_by_hand():
    rough = scorer([1.1, 2.1], [0.3, 0.3])
    exact = scorer([1.0, 9.0, 2.0], [0.0, 0.0, 9.0])
    screen = [(np.array([0.4, 0.4]), np.array([1.2, 1.2]), np.array([0.2, 0.2]))] * 2
    pilots = {1: (np.array([0.0, 9.0, 0.0]), np.array([1.0, 1.0, 9.0]), np.array([0.1, 0.1, 9.0]))}
    found = screening._rounding(rough, exact, [np.array([0, 2]), np.array([0, 1])], screen, pilots)
    # The refusal scores are shifted by 0.4 where 0.1 is everybody's, and by 0.2 where 0.3 is.
    assert found.score == pytest.approx(np.sqrt((0.3**2 + 0.1**2) / 2))
    assert found.kl == pytest.approx(np.log(2))
    assert found.n == 1


def test_races_allow_for_rounding(trials):
    trial = trials[0]
    plain, rounded = (
        screening._Race(trial.sample, trial.screen, [True] * 40, admissible=trial.rule, rounding=rounding)
        for rounding in (None, geometry.carrier_scores.Rounding(5.0, 0.0, 3))
    )
    assert (rounded.open_wins() > 0).sum() > 2 * (plain.open_wins() > 0).sum()
    np.testing.assert_array_equal(plain._means[2], rounded._means[2])
    off = rounded._means[0] - plain._means[0]
    assert np.median(np.abs(off)) == pytest.approx(5 * stats.t.ppf(0.75, 6), rel=0.02)


def test_few_prompts_are_all_in_the_sample():
    assert screening._sample(8, 0.25).tolist() == list(range(8))
    sample = screening._sample(64, 0.25)
    assert len(sample) == len(set(sample)) == 16
    assert sample[0] == 0
    assert sample[-1] == 63
    assert len(screening._sample(0, 0.25)) == 0


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_is_a_share(tiny_hooked, asked, share):
    directions = geometry.difference_in_means(tiny_hooked, asked[0])
    with pytest.raises(MechrefusalError, match="share"):
        geometry.screened(tiny_hooked, directions, asked[1], METRIC, share=share)


def test_nan_directions_and_other_weights(tiny_hooked, asked):
    directions = geometry.difference_in_means(tiny_hooked, asked[0])
    directions.values[1, 2] = float("nan")
    found = geometry.screened(tiny_hooked, directions, asked[1], METRIC, OPEN).table
    bad = (found["position"] == directions.positions[1]) & (found["layer"] == 2)
    assert found[bad][["bypass", "induce", "kl"]].isna().all(axis=None)
    assert found[bad]["exact"].all()
    other = replace(directions, weights="f" * 16)
    with pytest.raises(MechrefusalError, match="ffff"):
        geometry.screened(tiny_hooked, other, asked[1], METRIC)
    assert torch.isnan(directions.values[1, 2]).all()
