"""Cost of removal: kernels, the search and its front, and a planted model whose refusal is one write of one layer."""

import dataclasses

import numpy as np
import planted_refusal
import pytest
import torch
from planted_model import REFUSE
from planted_refusal import HELD_OUT, SEARCH
from tolerances import FORWARD

from mechrefusal import causal, durability, models
from mechrefusal.causal import WeightedAblation
from mechrefusal.durability import removal_search
from mechrefusal.durability.removal import CONFIRMED, DRAWN, EVERYWHERE, STEPPED, UNTOUCHED
from mechrefusal.durability.removal_search import Kernel, Search, Weights, unbeaten
from mechrefusal.durability.settings import RemovalSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry.contrast import Lists
from mechrefusal.prompts import prompt_ids
from mechrefusal.statistics import intervals

SETTINGS = RemovalSettings(n_prompts=6, n_trials=10, kl_levels=(0.0, 0.05, 50.0), n_random=2, max_new_tokens=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planted") / "model"


@pytest.fixture(scope="module")
def planted(folder):
    return planted_refusal.make(folder)


@pytest.fixture(scope="module")
def judge(planted):
    return planted_refusal.OpeningJudge(planted.tokenizer)


@pytest.fixture(scope="module")
def cost(planted, judge):
    along = Direction(planted_refusal.direction(), weights=planted.weights)
    return durability.cost_of_removal(planted, along, SEARCH, HELD_OUT, judge, SETTINGS)


def test_a_kernel_falls_from_its_peak_and_ends():
    assert Kernel(1.0, 2.0, 0.5, 2.0).weights(6) == (0.5, 0.75, 1.0, 0.75, 0.5, 0.0)
    assert Kernel(1.2, 0.5, 0.0, 1.0).weights(3) == pytest.approx((0.6, 0.6, 0.0))
    everywhere = Weights.everywhere(5)
    assert everywhere.attention.weights(5) == everywhere.mlp.weights(5) == (1.0,) * 5


def test_points_reach_both_ends_of_every_range():
    low, high = (Weights.at(np.full(8, value), 9) for value in (0.0, 1.0))
    assert low.attention == low.mlp == Kernel(0.0, 0.0, 0.0, 1.0)
    assert high.attention == Kernel(removal_search.LARGEST, 8.0, removal_search.LARGEST, 8.0)
    assert [*high.columns][::4] == ["attention_peak", "mlp_peak"]
    assert list(high.columns.values()) == [1.5, 8.0, 1.5, 8.0] * 2


def test_the_search_is_the_same_for_a_seed_and_stays_within_its_ranges():
    first, second, other = (Search(24, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.first(), second.first())
    assert not np.array_equal(first.first(), other.first())
    drawn = np.array(first.first())
    assert drawn.shape == (12, 8)
    # A Latin hypercube: one of every twelfth of each range.
    assert all(sorted((column * 12).astype(int)) == list(range(12)) for column in drawn.T)
    near = [np.full(8, 0.02), np.full(8, 0.9)]
    steps = np.array([first.step_from(near) for _ in range(40)])
    assert np.array_equal(steps, [second.step_from(near) for _ in range(40)])
    assert ((steps >= 0) & (steps <= 1)).all()
    for start, of_start in zip(near, (steps[::2], steps[1::2]), strict=True):
        changed = of_start != start
        assert changed.any(axis=1).all()
        assert 0.3 < changed.mean() < 0.8


def test_the_front_is_what_no_other_trial_beats():
    random = np.random.default_rng(0)
    refusals, kl = random.integers(0, 5, 60) / 4, random.integers(0, 9, 60) / 8
    front = unbeaten(refusals, kl)
    for trial in range(60):
        others = [n for n in range(60) if (refusals[n], kl[n]) != (refusals[trial], kl[trial])]
        beaten = any(refusals[n] <= refusals[trial] and kl[n] <= kl[trial] for n in others)
        earlier = any((refusals[n], kl[n]) == (refusals[trial], kl[trial]) for n in range(trial))
        assert front[trial] == (not beaten and not earlier)
    assert unbeaten(np.array([0.0, 1.0]), np.array([np.nan, 0.0])).tolist() == [False, True]


def test_a_weighted_ablation_is_the_change_of_the_output_matrices(tiny, tiny_hooked):
    """W − w · r̂r̂ᵀW of o_proj and down_proj of a Hugging Face model, as p-e-w/heretic writes it."""
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    attention, mlp = (0.3, 0.0, 1.2, 0.7), (0.0, 0.9, 1.0, -0.4)
    tokens = torch.randint(3, 1024, (2, 12), generator=torch.Generator().manual_seed(0))
    changed, _ = models.load_causal_lm(tiny)
    unit = vector / vector.norm()
    with torch.no_grad():
        for layer, block in enumerate(changed.model.layers):
            for weights, weight in ((block.self_attn.o_proj.weight, attention), (block.mlp.down_proj.weight, mlp)):
                weights -= weight[layer] * torch.outer(unit, unit @ weights)
        expected = changed(tokens).logits.log_softmax(-1)
        plain, _ = models.load_causal_lm(tiny)
        before = plain(tokens).logits.log_softmax(-1)
        for model in (plain, tiny_hooked):
            with causal.intervened(model, WeightedAblation(vector, attention, mlp)):
                seen = model(tokens)
            logits = seen.logits if hasattr(seen, "logits") else seen
            torch.testing.assert_close(logits.log_softmax(-1), expected, atol=FORWARD, rtol=0)
    assert (before - expected).abs().max() > 100 * FORWARD
    assert WeightedAblation(vector, (0.0, 0.0, 1.0, 0.0), (0.0,) * 4).first_layer == 2


def test_weights_that_do_not_fit_are_named(tiny_hooked):
    vector = torch.ones(64)
    with pytest.raises(MechrefusalError, match="give 4 finite ones"):
        WeightedAblation(vector, (1.0,), (1.0,) * 4).check(tiny_hooked)
    with pytest.raises(MechrefusalError, match="weights of MLP outputs"):
        WeightedAblation(vector, (1.0,) * 4, (1.0, float("nan"), 1.0, 1.0)).check(tiny_hooked)


def test_trials_are_what_hooks_by_hand_give(planted, folder, cost):
    """Refusals and KL of two trials from the next token's logits, with the weights read back off the table."""
    hf, tokenizer = models.load_causal_lm(folder)
    nothing = [(0.0,) * planted_refusal.N_LAYERS] * 2
    base = by_hand(hf, prompt_ids(tokenizer, SEARCH.harmless), *nothing).softmax(-1)
    assert list(cost.table["kind"]) == [UNTOUCHED, EVERYWHERE] + [DRAWN] * 5 + [STEPPED] * 5
    for place in (1, len(cost.table) - 1):
        row = cost.table.iloc[place]
        weights = [
            Kernel(*(row[f"{part}_{name}"] for name in ("peak", "position", "least", "distance"))).weights(4)
            for part in ("attention", "mlp")
        ]
        harmful, harmless = (by_hand(hf, prompt_ids(tokenizer, each), *weights) for each in vars(SEARCH).values())
        assert row["refused"] == float((harmful.argmax(-1) == REFUSE).double().mean())
        now = harmless.softmax(-1)
        kl = (base * ((base + 1e-6).log() - (now + 1e-6).log())).sum(-1)
        assert row["kl"] == pytest.approx(float(kl.mean()), abs=FORWARD)
        values = cost.observations.of(set="search", trial=place, draw=-1, measure="kl")
        assert values == pytest.approx(kl.numpy(), abs=FORWARD)


def by_hand(hf, prompts, attention, mlp):
    """Logits of the next token with the direction's part taken out of what each layer writes, by these weights."""
    unit = planted_refusal.direction() / planted_refusal.direction().norm()

    def less(weight):
        def hook(_, __, out):
            written = out[0] if isinstance(out, tuple) else out
            written = written - weight * (written @ unit)[..., None] * unit
            return (written, *out[1:]) if isinstance(out, tuple) else written

        return hook

    handles = []
    for layer, block in enumerate(hf.model.layers):
        handles.append(block.self_attn.register_forward_hook(less(attention[layer])))
        handles.append(block.mlp.register_forward_hook(less(mlp[layer])))
    try:
        with torch.no_grad():
            return torch.stack([hf(torch.tensor([ids])).logits[0, -1].double() for ids in prompts])
    finally:
        for handle in handles:
            handle.remove()


def test_refusal_that_is_one_write_is_removed_along_it_and_along_no_random_direction(cost):
    last = cost.confirmed.iloc[-1].to_dict()
    assert (last["search_refused"], last["refused"], last["untouched"], last["change"]) == (0, 0, 1, -1)
    assert (last["n"], last["n_random"], last["reason"]) == (6, 2, "")
    assert last["random_least"] == last["random_refused"] == last["random_most"] == 1
    assert last["change_low"] < -0.4 < 0 < 1 + last["change_high"]


def test_what_is_never_refused_costs_nothing_to_remove(planted, judge):
    answered = Lists(SEARCH.harmless, HELD_OUT.harmless)
    settings = dataclasses.replace(SETTINGS, n_trials=1, kl_levels=(0.0, 1.0))
    cost = durability.cost_of_removal(planted, planted_refusal.direction(), answered, answered, judge, settings)
    for row in cost.confirmed.to_dict("records"):
        assert (row["kind"], row["trial"], row["refused"], row["kl"], row["change"]) == (UNTOUCHED, 0, 0, 0, 0)
        assert row["reason"] == "no trial within this KL has fewer refusals than no ablation"
        assert (row["n_random"], np.isnan(row["random_refused"])) == (0, True)


def test_what_is_chosen_at_a_level_is_the_fewest_within_it(cost):
    trials = cost.table
    for row in cost.confirmed.itertuples():
        within = trials[trials["kl"] <= row.level]
        assert row.search_refused == within["refused"].min()
        assert row.search_kl == within.loc[within["refused"] == row.search_refused, "kl"].min()
        assert row.search_kl == trials.loc[row.trial, "kl"]
    assert np.array_equal(trials["unbeaten"], unbeaten(trials["refused"].to_numpy(), trials["kl"].to_numpy()))


def test_every_value_is_kept_and_gives_the_table(cost):
    wilson = intervals.rate(0, 6)
    last = cost.confirmed.iloc[-1]
    assert cost.interval(set=CONFIRMED, trial=last["trial"], draw=-1, measure="refused") == wilson
    assert (last["low"], last["high"]) == (wilson.low, wilson.high)
    kl = cost.interval(set=CONFIRMED, trial=last["trial"], draw=-1, measure="kl")
    assert (kl.value, kl.low, kl.high) == (last["kl"], last["kl_low"], last["kl_high"])
    controls = [cost.interval(set=CONFIRMED, trial=last["trial"], draw=draw, measure="kl").value for draw in (0, 1)]
    assert last["random_kl"] == pytest.approx(np.mean(controls))


def test_the_same_seed_gives_the_same_trials_and_leaves_the_model(planted, judge, cost):
    before = {name: weights.clone() for name, weights in planted.named_parameters()}
    settings = dataclasses.replace(SETTINGS, n_trials=4, kl_levels=(50.0,), n_random=0)
    first, second = (
        durability.cost_of_removal(planted, planted_refusal.direction(), SEARCH, HELD_OUT, judge, settings)
        for _ in range(2)
    )
    assert first.table.equals(second.table)
    assert first.confirmed.equals(second.confirmed)
    assert not first.table.iloc[2:].equals(cost.table.iloc[2:6])
    assert all(torch.equal(weights, before[name]) for name, weights in planted.named_parameters())
    assert not any(module._forward_hooks for module in planted.original_model.modules())


def test_what_cannot_be_searched_is_named(planted, judge):
    with pytest.raises(MechrefusalError, match="needs harmful and harmless prompts, got 0 and 6"):
        durability.cost_of_removal(
            planted, planted_refusal.direction(), Lists([], SEARCH.harmless), HELD_OUT, judge, SETTINGS
        )
    with pytest.raises(MechrefusalError, match="is a subspace"):
        durability.cost_of_removal(planted, torch.eye(64)[:2], SEARCH, HELD_OUT, judge, SETTINGS)
    other = Direction(planted_refusal.direction(), weights="other")
    with pytest.raises(MechrefusalError, match="of weights other"):
        durability.cost_of_removal(planted, other, SEARCH, HELD_OUT, judge, SETTINGS)
    with pytest.raises(MechrefusalError, match=r"removal.n_trials is 0: give 1 or more"):
        RemovalSettings(n_trials=0)
    with pytest.raises(MechrefusalError, match=r"removal.kl_levels are \[-1.0\]"):
        RemovalSettings(kl_levels=(-1.0,))
