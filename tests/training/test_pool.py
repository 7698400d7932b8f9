"""The pool: its draws, its resets, and that it continues where it was saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechrefusal import MechrefusalError, prompts
from mechrefusal.attacks import GCGSettings, write_cases
from mechrefusal.training import CasePool

SETTINGS = GCGSettings(steps=1, width=8, top_k=16, suffix_length=5)


@pytest.fixture(scope="module")
def behaviours() -> prompts.PromptSet:
    return prompts.builtin().pool.harmful.with_targets()[:6]


def pool_of(tokenizer, behaviours, seed: int = 0) -> CasePool:
    return CasePool.of(tokenizer, behaviours, SETTINGS, seed=seed, source="abc")


def test_a_new_pool_holds_every_behaviour_with_the_initial_suffix(tiny_hf, behaviours):
    pool = pool_of(tiny_hf[1], behaviours)
    assert [case.id for case in pool.cases] == behaviours.ids
    assert {len(case.suffix_ids) for case in pool.cases} == {5}


def test_draws_are_different_cases_with_seeds_of_their_own(tiny_hf, behaviours):
    pool = pool_of(tiny_hf[1], behaviours)
    draws = [pool.draw(4) for _ in range(20)]
    assert all(len({place for place, _ in draw}) == 4 for draw in draws)
    seeds = [seed for draw in draws for _, seed in draw]
    assert len(set(seeds)) == 80
    assert {place for draw in draws for place, _ in draw} == set(range(6))
    assert len(pool.draw(99)) == 6


def test_an_update_leaves_the_pool_alone_and_depends_on_its_seed(tiny_hf, behaviours):
    model, tokenizer = tiny_hf
    pool = pool_of(tokenizer, behaviours)
    before, state = list(pool.cases), pool.generator.get_state()
    settings = replace(SETTINGS, steps=3)
    a, b, c = (pool.updated([(2, seed)], model, tokenizer, settings)[0] for seed in (7, 7, 8))
    assert a == b
    assert a.suffix_ids != c.suffix_ids
    assert pool.cases == before
    assert torch.equal(pool.generator.get_state(), state)


def test_a_reset_gives_a_share_the_initial_suffix(tiny_hf, behaviours):
    model, tokenizer = tiny_hf
    pool = pool_of(tokenizer, behaviours)
    fresh = list(pool.cases)
    draws = pool.draw(6)
    for (place, _), case in zip(draws, pool.updated(draws, model, tokenizer, SETTINGS), strict=True):
        pool.cases[place] = case
    changed = list(pool.cases)
    places = pool.reset(0.5, tokenizer, SETTINGS)
    assert len(set(places)) == 3
    for place, case in enumerate(pool.cases):
        expected = fresh[place] if place in places else changed[place]
        assert (case.id, case.suffix_ids, case.steps) == (expected.id, expected.suffix_ids, expected.steps)


def test_a_saved_pool_goes_on_as_if_it_had_not_stopped(tiny_hf, behaviours, tmp_path: Path):
    model, tokenizer = tiny_hf
    pool = pool_of(tokenizer, behaviours)
    draw = pool.draw(1)[0]
    pool.cases[draw[0]] = pool.updated([draw], model, tokenizer, SETTINGS)[0]
    again = CasePool.load(pool.save(tmp_path / "pool.parquet"), source="abc")
    assert [(case.suffix_ids, case.history) for case in again.cases] == [(c.suffix_ids, c.history) for c in pool.cases]
    assert [again.draw(3) for _ in range(5)] == [pool.draw(3) for _ in range(5)]
    assert again.reset(0.5, tokenizer, SETTINGS) == pool.reset(0.5, tokenizer, SETTINGS)


def test_what_is_no_pool_is_named(tiny_hf, behaviours, tmp_path: Path):
    pool = pool_of(tiny_hf[1], behaviours)
    with pytest.raises(MechrefusalError, match="weights 'abc', not 'other'"):
        CasePool.load(pool.save(tmp_path / "pool.parquet"), source="other")
    with pytest.raises(MechrefusalError, match="holds no random state"):
        CasePool.load(write_cases(pool.cases, tmp_path / "cases.parquet"), source=None)
