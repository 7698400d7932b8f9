"""The search of GCG over many cases in step: gradients, proposals, and the losses of all candidates together."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.attacks.budget import Budget
from mechrefusal.attacks.cases import AttackCase, whole_prompt
from mechrefusal.attacks.context import AttackContext, replaceable_tokens, suffix_text
from mechrefusal.attacks.proposals import draws, in_rounds, promising
from mechrefusal.attacks.screen import Screen, finalists
from mechrefusal.attacks.settings import GCGSettings
from mechrefusal.attacks.target_loss import Beginnings, mean_losses
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.tree import Branch, KeyValues
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.models.frozen import frozen

TokenIds = tuple[int, ...]


@dataclass
class _State:
    """One case under way: its best suffix, and what was found for that suffix."""

    case: AttackCase
    context: AttackContext
    generator: torch.Generator
    before: tuple[int, ...]  # places of the prompt before the suffix
    best: TokenIds
    loss: float = math.nan
    promising: list[Int[Tensor, " token"]] = field(default_factory=list)
    run: KeyValues = field(default_factory=KeyValues)  # keys and values of the suffix that the gradient was taken at,
    held: int = 0  # whose first so many tokens are those of the best suffix still
    tokens: int = 0
    dropped: int = 0
    history: list[tuple[float, TokenIds, int]] = field(default_factory=list)

    @property
    def is_stale(self) -> bool:
        """Whether the gradient at the best suffix is still to be taken."""
        return not self.promising

    def move(self, suffix: TokenIds, loss: float) -> None:
        changed = (old != new for old, new in zip(self.best, suffix, strict=True))
        self.held = min(self.held, next((place for place, is_new in enumerate(changed) if is_new), len(suffix)))
        self.best, self.loss, self.promising = suffix, loss, []

    def note(self) -> None:
        self.history.append((self.loss, self.best, self.tokens))


class Search:
    """GCG on several cases at once. The prompts before the suffixes are run when it is made."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cases: Sequence[AttackCase],
        settings: GCGSettings,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        contexts = [_context(model, tokenizer, case) for case in cases]
        self._started = time.perf_counter()
        self._embed = model.get_input_embeddings()
        self._replaceable = replaceable_tokens(tokenizer, self._embed.num_embeddings)
        self._forward, self._budget = TreeForward(model), Budget(model, at_most=settings.batch_size)
        self._screen = Screen.of(model, self._budget) if settings.screen else None
        names = [f"case '{case.id}'" for case in cases]
        self._before = Beginnings(self._forward, [context.before for context in contexts], self._budget, names=names)
        self._states = [
            _State(case, context, generator, places, case.suffix_ids, tokens=len(context.before))
            for case, context, generator, places in zip(cases, contexts, generators, self._before.places, strict=True)
        ]
        self._differentiate(step=0)
        for state in self._states:
            state.note()

    @classmethod
    @contextmanager
    def over(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cases: Sequence[AttackCase],
        settings: GCGSettings,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Self]:
        """A search over a model that is frozen meanwhile, and left as it was."""
        with frozen(model):
            yield cls(model, tokenizer, cases, settings, generators)

    def step(self, step: int) -> None:
        """One step of every case: its proposals in rounds, each from the best suffix so far."""
        self._differentiate(step)
        starts = [torch.tensor(state.best) for state in self._states]
        proposed = [in_rounds(self._candidates(state), self.settings.rounds) for state in self._states]
        for parts in zip(*proposed, strict=True):
            self._round([self._standing(*each) for each in zip(self._states, parts, starts, strict=True)], step)
        for state in self._states:
            state.note()

    def _round(self, candidates: Sequence[Int[Tensor, "candidate position"]], step: int) -> None:
        """Score the candidates of every case, and move to those that are better."""
        for state, proposals, losses in zip(self._states, candidates, self.losses(candidates), strict=True):
            scored = losses if self._screen is None else losses[~torch.isposinf(losses)]
            _require_finite(float(scored.sum()), state.case, step)
            self._choose(state, proposals, losses)

    def cases(self) -> list[AttackCase]:
        """The cases as they are now."""
        seconds = (time.perf_counter() - self._started) / len(self._states)
        return [self._case(state, seconds) for state in self._states]

    def losses(self, candidates: Sequence[Int[Tensor, "candidate position"]]) -> list[Float[Tensor, " candidate"]]:
        """Loss of each candidate of each case; with a screen, infinite for those that do not pass it.

        Gradients must have been taken: a candidate shares the keys and values of the suffix that the gradient was taken
        at up to the first token in which it or the best suffix differs from it, and is run from there.
        """
        bank = KeyValues.joined([self._before.bank, *(state.run for state in self._states)])
        branches: list[list[Branch]] = []
        offset = len(self._before.bank)
        for state, proposals in zip(self._states, candidates, strict=True):
            base, of_case = torch.tensor(state.best), []
            for ids, same in zip(proposals.tolist(), (proposals == base).tolist(), strict=True):
                first = min(same.index(False) if False in same else len(same) - 1, state.held)
                shared = (*state.before, *range(offset, offset + first))
                of_case.append(Branch.continuing((*ids[first:], *state.context.after), state.context.target, shared))
            branches.append(of_case)
            offset += len(state.run)
        if self._screen is None:
            return self._exact(branches, bank)
        chosen = self._finalists(branches, bank, self._screen)
        exact = self._exact([[of_case[i] for i in keep] for of_case, keep in zip(branches, chosen, strict=True)], bank)
        losses = [torch.full((len(of_case),), math.inf) for of_case in branches]
        for of_candidates, keep, values in zip(losses, chosen, exact, strict=True):
            of_candidates[keep] = values
        return losses

    def _exact(self, branches: Sequence[Sequence[Branch]], bank: KeyValues) -> list[Float[Tensor, " candidate"]]:
        """Loss of each branch of each case."""
        flat, targets = self._flat(branches)
        target_of = {id(branch): target for branch, target in zip(flat, targets, strict=True)}

        def one(batch: Sequence[Branch]) -> Tensor:
            logits = self._forward.run(batch, bank=bank, share=False).logits
            return mean_losses(logits, [target_of[id(branch)] for branch in batch]).cpu()

        with torch.no_grad():
            losses = torch.cat([*self._budget.run(flat, one, name=self._name), torch.empty(0)])
        return list(losses.split([len(of_case) for of_case in branches]))

    def _name(self, branch: Branch) -> str:
        """The case that a branch belongs to, by its context."""
        owner = (s for s in self._states if branch.context[: len(s.before)] == s.before)
        return f"case '{next(owner, self._states[0]).case.id}'"

    def _finalists(self, branches: Sequence[Sequence[Branch]], bank: KeyValues, screen: Screen) -> list[list[int]]:
        """Places of the candidates of each case that are to be scored exactly."""
        screened = screen.losses(*self._flat(branches), bank)
        return [finalists(losses) for losses in screened.split([len(of_case) for of_case in branches])]

    def _flat(self, branches: Sequence[Sequence[Branch]]) -> tuple[list[Branch], list[TokenIds]]:
        """The branches of all cases with their targets; their tokens are counted."""
        targets = []
        for state, of_case in zip(self._states, branches, strict=True):
            state.tokens += sum(len(branch.tokens) for branch in of_case)
            targets += [state.context.target] * len(of_case)
        return [branch for of_case in branches for branch in of_case], targets

    def _differentiate(self, step: int) -> None:
        """Take the gradients of the cases whose best suffix is new, with their losses, keys and values.

        The one-hot vectors enter through the embedding matrix E alone, so their gradient is that of the embeddings
        times E transposed (up to a constant where a model scales its embeddings), and no one-hot matrix is built.
        """
        stale = [state for state in self._states if state.is_stale]
        branches = [Branch.continuing((*s.best, *s.context.after), s.context.target, s.before) for s in stale]
        states = {id(branch): state for branch, state in zip(branches, stale, strict=True)}

        def one(batch: Sequence[Branch]) -> None:
            ids = torch.tensor([token for branch in batch for token in branch.tokens], device=self._forward.device)
            here = [states[id(branch)] for branch in batch]
            with torch.enable_grad():
                embeds = self._embed(ids).detach().requires_grad_()
                run = self._forward.run(batch, bank=self._before.bank, share=False, embeds=embeds, capture=True)
                losses = mean_losses(run.logits, [state.context.target for state in here])
                (gradient,) = torch.autograd.grad(losses.sum(), embeds)
            weight = self._embed.weight.detach()
            start = 0
            for state, loss, branch, places in zip(here, losses.tolist(), batch, run.places, strict=True):
                length = len(state.best)
                one_hot = gradient[start : start + length].to(weight.dtype) @ weight.T
                state.promising = promising(one_hot, state.best, self._replaceable, self.settings.top_k)
                state.run, state.held = run.bank.at(places[:length]), length
                state.loss = _require_finite(loss, state.case, step) if math.isnan(state.loss) else state.loss
                state.tokens += len(branch.tokens)
                start += len(branch.tokens)

        self._budget.run(branches, one, name=lambda branch: f"case '{states[id(branch)].case.id}'")

    def _candidates(self, state: _State) -> Int[Tensor, "candidate position"]:
        """Proposals that survive being text: `width` at most, and more are drawn where none of them does."""
        base = torch.tensor(state.best)
        for proposals in draws(state.promising, base, self.settings.width, generator=state.generator):
            survives = state.context.surviving(proposals)
            state.dropped += int((~survives).sum())
            if survives.any():
                return proposals[survives]
        return base[None][:0]

    def _standing(self, state: _State, proposals: Tensor, start: Tensor) -> Int[Tensor, "candidate position"]:
        """Proposals made of `start` as proposals of the best suffix: those that survive being text there, too."""
        best = torch.tensor(state.best)
        if torch.equal(best, start) or not len(proposals):
            return proposals
        moved = torch.where(proposals != start, proposals, best)
        survives = state.context.surviving(moved)
        state.dropped += int((~survives).sum())
        return moved[survives]

    def _choose(self, state: _State, candidates: Tensor, losses: Tensor) -> None:
        """Move to the best candidate that is better than the best so far."""
        for place in losses.argsort().tolist():
            if not losses[place] < state.loss:
                return
            winner = tuple(candidates[place].tolist())
            if state.context.holds(suffix_text(self.tokenizer, winner), winner):
                state.move(winner, float(losses[place]))
                return
            state.dropped += 1

    def _case(self, state: _State, seconds: float) -> AttackCase:
        texts = [suffix_text(self.tokenizer, ids) for _, ids, _ in state.history]
        history = [
            (loss, whole_prompt(state.case.behaviour, text), tokens)
            for (loss, _, tokens), text in zip(state.history, texts, strict=True)
        ]
        case = state.case.with_suffix(texts[-1], state.best)
        return case.after(history, dropped=state.dropped, seconds=seconds)


def _context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, case: AttackCase) -> AttackContext:
    context = AttackContext.of(
        tokenizer, id=case.id, behaviour=case.behaviour, suffix=case.suffix, target=case.target, model=model
    )
    if context.suffix != case.suffix_ids:
        raise MechrefusalError(
            f"the suffix of case '{case.id}' is {len(context.suffix)} tokens in its prompt, not the "
            f"{len(case.suffix_ids)} stored: it was made with another tokenizer or chat template; make it anew"
        )
    return context


def _require_finite(loss: float, case: AttackCase, step: int) -> float:
    if not math.isfinite(loss):
        raise MechrefusalError(
            f"gcg loss of case '{case.id}' is {loss} at step {step}: the model's weights or logits are not finite; "
            "use another checkpoint"
        )
    return loss
