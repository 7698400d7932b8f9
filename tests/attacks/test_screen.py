"""The screen of GCG: near enough to choose by, and exact in what it reports."""

from dataclasses import replace

import pytest
import torch
from tolerances import FORWARD

from mechrefusal import prompts
from mechrefusal.attacks import GCGSettings, gcg, screen
from mechrefusal.attacks.budget import Budget
from mechrefusal.attacks.target_loss import target_losses
from mechrefusal.forward import low_precision
from mechrefusal.forward.tree import Branch, KeyValues

SETTINGS = GCGSettings(steps=3, width=48, top_k=32, suffix_length=6, screen=True)


@pytest.fixture
def screened(monkeypatch):
    """A machine that multiplies bfloat16, whatever this one is."""
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: True)


def cases_of(tokenizer, settings: GCGSettings = SETTINGS):
    return gcg.start_all(tokenizer, prompts.builtin().pool.harmful.with_targets()[:3], settings, source="abc")


def optimised(tiny_hf, settings: GCGSettings = SETTINGS):
    model, tokenizer = tiny_hf
    cases = cases_of(tokenizer, settings)
    streams = [gcg.random_stream(0, case.id) for case in cases]
    return gcg.optimise_all(model, tokenizer, cases, settings, generators=streams)


def test_losses_that_are_reported_are_exact(tiny_hf, screened):
    model, tokenizer = tiny_hf
    found = optimised(tiny_hf)
    parts = [
        prompts.segments(tokenizer, c.behaviour, attack=c.suffix, target=c.target, end_of_turn=False) for c in found
    ]
    plain = target_losses(model, [p.prompt_ids for p in parts], [p.target for p in parts]).tolist()
    assert [case.loss for case in found] == pytest.approx(plain, abs=FORWARD)
    assert all(case.loss < case.history[0] for case in found)
    assert model.dtype == torch.float32


def test_only_finalists_are_run_exactly(tiny_hf, screened):
    exact, rough = optimised(tiny_hf, replace(SETTINGS, screen=False)), optimised(tiny_hf)
    for a, b in zip(exact, rough, strict=True):
        assert b.forward_tokens < 1.35 * a.forward_tokens  # all in bfloat16, then max(4, 48 / 16) of 48 once more
        assert b.loss < a.history[0]


def test_the_screen_is_near_the_exact_losses(tiny_hf, screened):
    model, tokenizer = tiny_hf
    target = tuple(tokenizer("Sure, here is how").input_ids)
    branches = [Branch.continuing(tuple(tokenizer(text).input_ids), target) for text in ("one two", "a few more words")]
    found = screen.Screen.of(model, Budget(model)).losses(branches, [target] * 2, KeyValues())
    plain = target_losses(model, [branch.tokens[: branch.keep[0] + 1] for branch in branches], [target] * 2)
    torch.testing.assert_close(found, plain, atol=0.05, rtol=0)
    assert not torch.equal(found, plain)


def test_finalists_are_the_best():
    losses = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 0.5])
    assert screen.finalists(losses) == [1, 2, 3, 5]
    assert screen.finalists(losses[:3]) == [0, 1, 2]
    assert len(screen.finalists(torch.rand(512))) == 32
    assert screen.finalists(torch.empty(0)) == []


def test_where_it_saves_nothing_there_is_no_screen(tiny_hf, monkeypatch):
    model, _ = tiny_hf
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: False)
    assert screen.Screen.of(model, Budget(model)) is None
    assert optimised(tiny_hf) == optimised(tiny_hf, replace(SETTINGS, screen=False))
