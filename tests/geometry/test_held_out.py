"""The chosen candidate on prompts that did not choose it: against plain loops, and where the true effects are known."""

import numpy as np
import pandas as pd
import pytest

from mechrefusal import prompts
from mechrefusal.geometry import carriers
from mechrefusal.geometry.carrier_scores import CarrierScores
from mechrefusal.geometry.contrast import dealt, labels
from mechrefusal.geometry.held_out import Choice, ChosenCandidate, own_bypass

N_LAYERS = 20


def scored(bypass, induce, kl):
    n = len(bypass)
    columns = {"position": -1, "layer": range(n), "bypass": bypass.mean(1), "induce": induce.mean(1), "kl": kl.mean(1)}
    return CarrierScores(pd.DataFrame(columns).assign(exact=True), bypass, induce, kl)


def close(seed, n, *, n_candidates=12, kl=0.06):
    """Candidates that differ by less than few prompts tell: scores, scores without intervention, true decreases."""
    random = np.random.default_rng([seed, n])
    truth = random.permutation(6 - 1.5 * np.linspace(0, 1, n_candidates))
    before = 8 + random.normal(size=n)
    decrease = truth[:, None] + 2 * random.normal(size=n) + 2 * random.normal(size=(n_candidates, n))
    beside = random.normal([[2.0]] * n_candidates, 1, (n_candidates, n))
    return scored(before - decrease, beside, random.normal(kl, 0.05, (n_candidates, n))), before, truth


def plainly(scores, harmful, harmless):
    """Row chosen by these prompts, by `carriers`."""
    table = scores.table.assign(
        bypass=scores.bypass[:, harmful].mean(1),
        induce=scores.induce[:, harmless].mean(1),
        kl=scores.kl[:, harmless].mean(1),
    )
    return carriers.select(table, N_LAYERS).best.row


@pytest.mark.parametrize("kl", [0.06, 0.1, 0.2, 0.5], ids=["carriers", "few", "hardly any", "none"])
@pytest.mark.parametrize("n_folds", [16, 3])
def test_every_fold_is_left_out_of_the_choice(kl, n_folds):
    scores, _, _ = close(1, 20, kl=kl)
    folds = np.arange(20) % n_folds, np.arange(20)[::-1] % n_folds
    choice = Choice(scores, folds, N_LAYERS)
    found = choice.held_out()
    assert found.whole == plainly(scores, slice(None), slice(None))
    expected = [plainly(scores, folds[0] != fold, folds[1] != fold) for fold in folds[0]]
    assert found.rows.tolist() == expected
    np.testing.assert_array_equal(found.bypass, scores.bypass[expected, range(20)])
    if kl < 0.1:
        assert len(set(expected)) > 1, "the folds agree"


def test_draws_choose_by_repeated_prompts():
    scores, _, _ = close(2, 10)
    folds = np.arange(10) % 4
    times = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=(2, 5))
    drawn = Choice(scores, (folds, folds), N_LAYERS).drawn(*times.astype(float))
    for draw in range(5):
        for prompt in range(10):
            here = folds != folds[prompt]
            row = plainly(scores, *(np.repeat(np.flatnonzero(here), each[draw][here]) for each in times))
            assert drawn[prompt, draw] == scores.bypass[row, prompt]


def test_without_a_choice():
    scores, before, _ = close(0, 6)
    choice = Choice(scores, ([0] * 6, [0] * 6), N_LAYERS)  # nobody is left to choose
    assert np.isnan(choice.held_out().bypass).all()
    assert (choice.held_out().rows == -1).all()
    nothing = scored(scores.bypass * np.nan, scores.induce, scores.kl)
    found = Choice(nothing, (range(6), range(6)), N_LAYERS)
    assert found.held_out().whole == -1
    labels = list(range(6))
    value = ChosenCandidate(found, (labels, labels), labels).decrease(before, before)
    assert np.isnan([value.value, value.low, value.high]).all()


def test_prompts_that_chose_nothing_keep_their_own_score():
    scores, before, _ = close(3, 8)
    choice = Choice(scores, (range(8), range(8)), N_LAYERS)
    labels, asked = [f"a{i}" for i in range(8)], ["a3", "x", "a5"]
    ablated = np.array([-1.0, -2.0, -3.0])
    own = ChosenCandidate(choice, (labels, [f"b{i}" for i in range(8)]), asked)
    after = choice.held_out().bypass
    expected = np.mean([before[3] - after[3], before[0] + 2, before[5] - after[5]])
    assert own.decrease(before[[3, 0, 5]], ablated).value == pytest.approx(expected)


@pytest.mark.parametrize(("n", "curse"), [(16, 0.45), (32, 0.3), (128, 0.1)])
def test_the_winners_curse_is_gone(n, curse):
    """On the prompts that chose it a candidate seems to lower the score by more than it does; held out it does not."""
    selected, held_out, covered = [], [], []
    labels = list(range(n))
    for seed in range(400 if n < 100 else 150):
        scores, before, truth = close(seed, n)
        folds = np.arange(n) % 16
        choice = Choice(scores, (folds, folds), N_LAYERS)
        winner = choice.held_out()
        selected.append((before - scores.bypass[winner.whole]).mean() - truth[winner.whole])
        held_out.append((before - winner.bypass).mean() - truth[winner.whole])
        if seed < 40:
            names = [("h", i) for i in labels], [("n", i) for i in labels]
            found = ChosenCandidate(choice, names, names[0]).decrease(before, scores.bypass[winner.whole])
            assert found.value - truth[winner.whole] == pytest.approx(held_out[-1])
            covered.append(found.low <= truth[winner.whole] <= found.high)
    assert np.mean(selected) > curse
    assert abs(np.mean(held_out)) < 0.1
    assert np.mean(covered) > 0.9


def test_scores_told_one_by_one_are_read_back():
    scores, _, _ = close(4, 5)
    ids = [f"a{i}" for i in range(5)], [f"b{i}" for i in range(5)]
    order = [3, 0, 4, 1, 2]
    back = CarrierScores.of_long(scores.long(*ids), [ids[0][i] for i in order], [*(ids[1][i] for i in order), "new"])
    np.testing.assert_array_equal(back.bypass[back.table["layer"].argsort()], scores.bypass[:, order])
    np.testing.assert_array_equal(back.kl[:, :5], scores.kl[:, order])
    assert np.isnan(back.induce[:, 5]).all()
    assert back.table["exact"].all()


def contrast(n):
    """n prompts of a side, every second with a twin on the other."""

    def side(word):
        table = pd.DataFrame(
            {"id": [f"{word}{i}" for i in range(n)], "text": [f"{word} {i}" for i in range(n)], "category": ""}
        )
        return prompts.PromptSet(word, table.assign(twin=[f"t{i}" if i % 2 else None for i in range(n)]))

    return prompts.Split(side("bad"), side("good"))


def test_the_carriers_own_score_is_that_of_each_prompt_under_the_choice_of_others():
    scores, _, _ = close(3, 20, kl=0.02)
    both = contrast(20)
    folds, together = dealt(both)
    assert together
    found = own_bypass(scores, both, N_LAYERS)
    assert found.value == pytest.approx(Choice(scores, (folds[0], folds[1]), N_LAYERS).held_out().bypass.mean())
    assert found.low < found.value < found.high
    assert found.n == 20


def test_the_lowest_of_many_equal_candidates_is_no_lower_on_prompts_that_did_not_choose_it():
    found, chosen, covered = [], [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        own = scored(random.normal(size=(12, 16)), np.ones((12, 16)), np.zeros((12, 16)))
        estimate = own_bypass(own, contrast(16), 2 * N_LAYERS)
        found.append(estimate.value)
        chosen.append(own.bypass.mean(1).min())
        covered.append(estimate.low <= 0 <= estimate.high)
    error = np.std(found) / np.sqrt(60)
    assert np.mean(chosen) < -0.3, "what the carrier's bypass says"
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(covered) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 60)


def test_where_nothing_can_be_chosen_there_is_no_score_of_its_own():
    scores, _, _ = close(1, 8)
    nowhere = own_bypass(scores, contrast(8), n_layers=0)
    assert np.isnan([nowhere.value, nowhere.low, nowhere.high]).all()


def test_twins_share_a_label_and_other_prompts_do_not():
    first, second = labels(contrast(4))
    assert first[1] == second[1] == "t1"
    assert len({*first, *second}) == 6
