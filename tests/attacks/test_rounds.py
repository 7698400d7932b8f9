"""GCG in rounds against a plain computation: what is chosen and what it costs; one round is the published step."""

from dataclasses import replace

import pytest
import torch
from architectures import build
from test_gcg import SETTINGS, context_of, first, optimised, plain_loss, plain_losses, replaced_once, several

from mechrefusal import prompts
from mechrefusal.attacks import AttackCase, gcg
from mechrefusal.attacks.proposals import in_rounds
from mechrefusal.attacks.search import Search
from mechrefusal.forward import low_precision
from mechrefusal.forward.tree_forward import TreeForward, shares

pytestmark = pytest.mark.slow

ROUNDS = replace(SETTINGS, rounds=4, steps=3)


def searched(hf, cases: list[AttackCase], settings=ROUNDS) -> list[AttackCase]:
    model, tokenizer = hf
    streams = [gcg.random_stream(0, case.id) for case in cases]
    return gcg.optimise_all(model, tokenizer, cases, settings, generators=streams)


@pytest.fixture
def proposed(monkeypatch) -> list[torch.Tensor]:
    """The proposals of each step, case after case, that survive in the suffix which they were made of."""
    seen: list[torch.Tensor] = []
    candidates = Search._candidates

    def noting(self, state):
        seen.append(candidates(self, state))
        return seen[-1]

    monkeypatch.setattr(Search, "_candidates", noting)
    return seen


def plainly(model, tokenizer, case: AttackCase, proposals: torch.Tensor, rounds: int):
    """One step in rounds, every suffix as text in a pass of its own: the best suffix, its loss, tokens, those lost."""
    context, start = context_of(tokenizer, case), torch.tensor(case.suffix_ids)
    best, loss = case.suffix_ids, case.loss
    sizes = [len(proposals) * (k + 1) // rounds - len(proposals) * k // rounds for k in range(rounds)]
    tokens, lost = 0, 0
    for part in reversed(proposals.split(sizes)):
        tried = []
        for row in part:
            place = int((row != start).nonzero())
            ids = (*best[:place], int(row[place]), *best[place + 1 :])
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False).removeprefix(" ")
            if text and prompts.segments(tokenizer, case.behaviour, attack=text).attack == ids:
                tried.append(ids)
                tokens += len(ids) - place + len(context.after) + len(context.target) - 1
            else:
                lost += 1
        if tried:
            losses = plain_losses(model, context, torch.tensor(tried))
            if losses.min() < loss:
                best, loss = tried[int(losses.argmin())], float(losses.min())
    return best, loss, tokens, lost


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mistral, window 8"])
@pytest.mark.parametrize("rounds", [2, 5, 99])
def test_a_step_is_that_of_a_plain_computation(family, name, rounds, proposed):
    name, _, window = name.partition(", ")
    tokenizer = family(name).tokenizer
    model = build(name, len(tokenizer), sliding_window=8) if window else family(name).hf
    case = gcg.optimise(
        model, tokenizer, first(tokenizer), replace(SETTINGS, steps=0), generator=gcg.random_stream(0, "a")
    )
    settings = replace(SETTINGS, steps=1, rounds=rounds)
    for step in range(3):
        found = gcg.optimise(model, tokenizer, case, settings, generator=gcg.random_stream(step, "a"))
        best, loss, tokens, lost = plainly(model, tokenizer, case, proposed[-1], rounds)
        assert found.suffix_ids == best
        assert found.loss == pytest.approx(loss, abs=1e-4)
        assert found.history_tokens[-1] - found.history_tokens[0] == tokens
        assert found.dropped - case.dropped >= lost
        case = found
    assert case.loss < plain_loss(model, tokenizer, first(tokenizer))


def test_a_step_replaces_several_tokens(tiny_hf):
    start = several(tiny_hf[1])
    step = searched(tiny_hf, start, replace(ROUNDS, steps=1))
    changed = [sum(map(int.__ne__, a.suffix_ids, b.suffix_ids)) for a, b in zip(start, step, strict=True)]
    assert 1 < max(changed) <= ROUNDS.rounds
    once = searched(tiny_hf, start, replace(ROUNDS, steps=1, rounds=1))
    assert all(sum(map(int.__ne__, a.suffix_ids, b.suffix_ids)) <= 1 for a, b in zip(start, once, strict=True))


def test_the_tokens_that_are_counted_are_those_that_are_run(tiny_hf, monkeypatch):
    assert shares(tiny_hf[0])  # tried out before
    run, seen = TreeForward.run, []

    def noting(self, branches, **named):
        output = run(self, branches, **named)
        seen.append(output.tokens)
        return output

    monkeypatch.setattr(TreeForward, "run", noting)
    [case] = searched(tiny_hf, [first(tiny_hf[1])], replace(ROUNDS, steps=5))
    assert len(set(case.history)) > 2
    assert case.forward_tokens == sum(seen)


def test_one_round_is_the_default_and_losses_never_rise(tiny_hf):
    cases = several(tiny_hf[1])
    assert searched(tiny_hf, cases, SETTINGS) == searched(tiny_hf, cases, replace(SETTINGS, rounds=1))
    for case in searched(tiny_hf, cases):
        assert list(case.history) == sorted(case.history, reverse=True)
        assert case.loss == pytest.approx(float(plain_loss(*tiny_hf, case)), abs=1e-4)
        for loss, prompt in zip(case.history, case.history_prompts, strict=True):
            assert loss == pytest.approx(float(plain_loss(*tiny_hf, case, prompt)), abs=1e-4)


def test_the_same_seed_gives_the_same_suffix_whatever_the_company(tiny_hf):
    cases = several(tiny_hf[1])
    together = searched(tiny_hf, cases)
    assert together == searched(tiny_hf, cases)
    for case, found in zip(cases, together, strict=True):
        alone = optimised(tiny_hf, ROUNDS, stream=case.id, case=case)
        assert found.suffix_ids == alone.suffix_ids
        assert (found.history_tokens, found.dropped) == (alone.history_tokens, alone.dropped)
    assert together[0].suffix_ids != optimised(tiny_hf, ROUNDS, stream="other", case=cases[0]).suffix_ids


def test_proposals_that_a_later_suffix_does_not_keep_as_text_are_dropped(tiny_hf):
    """Two letters that survive each for itself, and become one token beside each other."""
    model, tokenizer = tiny_hf
    case, vocab = first(tokenizer), tokenizer.get_vocab()
    start, context = torch.tensor(case.suffix_ids), context_of(tokenizer, case)
    pairs = [(vocab[w[0]], vocab[w[1]]) for w in sorted(vocab) if len(w) == 2 and w.isalpha() and {*w} <= vocab.keys()]
    for one, other in pairs:
        rows = start.repeat(3, 1)
        rows[0, 2], rows[1, 3], rows[2, 2], rows[2, 3] = one, other, one, other
        if context.surviving(rows).tolist() == [True, True, False]:
            break
    else:
        raise AssertionError("no such pair")
    proposals = torch.stack([rows[0], start])
    proposals[1, 2] = next(i for i in range(300, 900) if context.surviving(with_token(rows[1], 2, i)[None]))
    with Search.over(model, tokenizer, [case], SETTINGS, [gcg.random_stream(0, "a")]) as search:
        [state] = search._states
        assert torch.equal(search._standing(state, proposals, start), proposals)
        state.move(tuple(rows[1].tolist()), 0.0)
        expected = with_token(rows[1], 2, int(proposals[1, 2]))[None]
        assert state.dropped == 0
        assert torch.equal(search._standing(state, proposals, start), expected)
        assert state.dropped == 1


def with_token(suffix: torch.Tensor, place: int, token: int) -> torch.Tensor:
    """The suffix with one token replaced."""
    changed = suffix.clone()
    changed[place] = token
    return changed


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_losses_hold_after_a_move_to_any_suffix(family, name):
    """In whatever order positions are replaced: only the tokens that are still the same are shared."""
    model, tokenizer = family(name).hf, family(name).tokenizer
    case = first(tokenizer)
    context = context_of(tokenizer, case)
    with Search.over(model, tokenizer, [case], SETTINGS, [gcg.random_stream(0, "a")]) as search:
        [state] = search._states
        for place, token in ((4, 310), (1, 320), (3, 330)):
            state.move((*state.best[:place], token, *state.best[place + 1 :]), 0.0)
            candidates = replaced_once(replace(case, suffix_ids=state.best))
            [found] = search.losses([candidates])
            torch.testing.assert_close(found, plain_losses(model, context, candidates), atol=1e-4, rtol=0)


def test_with_a_screen_losses_are_exact(tiny_hf, monkeypatch):
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: True)
    cases = several(tiny_hf[1])
    for case in searched(tiny_hf, cases, replace(ROUNDS, screen=True)):
        assert case.loss == pytest.approx(float(plain_loss(*tiny_hf, case)), abs=1e-4)
        assert case.loss < case.history[0]


def test_rounds_go_from_the_last_proposals_to_the_first_and_leave_none_out():
    rows = torch.arange(22).reshape(11, 2)
    for n in (1, 2, 3, 11, 40):
        parts = in_rounds(rows, n)
        assert len(parts) == n
        assert torch.equal(torch.cat(parts[::-1]), rows)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [len(part) for part in in_rounds(rows[:0], 3)] == [0, 0, 0]
