"""AutoDAN-HGA, the hierarchical genetic algorithm of Liu et al. (arXiv 2310.04451): readable prompts that evolve.

A population of texts around the behaviour evolves towards a low cross-entropy of the target. `sentence_steps`
generations reword them by synonyms, each word scored by the momentum of the losses of the texts that hold it; then one
generation selects parents by roulette and crosses them sentence by sentence; and so on. Elites enter every generation
unchanged. Many cases evolve in step, and none influences another.

Deviations from the paper and its code:

- No language model takes part. The paper's diversifies the first population from one hand-written prompt and mutates
  texts; here the population is made from own seed texts by crossover and synonyms, and a mutation replaces words by
  synonyms, which is the code's own fallback. Synonyms are a small own list of words of one form each, not WordNet, so
  only listed words are scored and replaced, and all of them are kept (the paper keeps the best 30 words).
- A generation of crossover follows `sentence_steps` generations of rewording, as in the paper; in the code it precedes
  one fewer. The elite share is the code's 5%, not the paper's 10%.
- Words are drawn by a softmax of their scores in units of their standard deviation (the code: by the score above the
  group's lowest); a synonym without a score counts as average (the code: as the worst or, half of the time, as a loss
  of zero). Replaced words are drawn from the whole text (the code takes the first five).
- Crossover counts sentences from the one with the behaviour, and cuts at ends of sentences only (the code also at
  commas), so that no child loses the behaviour or has it twice. Elites are different texts.
- All steps are taken: the code stops when an answer holds no refusal phrase, which is the evaluation's to judge.
- The best text of all generations is kept besides the population, and no text is run twice for a case.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.attacks.autodan_texts import first_texts, paragraph_level, seeds, sentence_level, updated_scores
from mechrefusal.attacks.budget import Budget
from mechrefusal.attacks.cases import AttackCase
from mechrefusal.attacks.context import AttackContext
from mechrefusal.attacks.jailbreaks import PLACEHOLDER, filled
from mechrefusal.attacks.settings import AutoDANSettings
from mechrefusal.attacks.target_loss import target_losses
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.frozen import frozen

__all__ = ["AutoDANSettings", "optimise", "optimise_all", "start", "start_all"]

TokenIds = tuple[int, ...]


def start(
    tokenizer: PreTrainedTokenizerBase,
    *,
    id: str,
    behaviour: str,
    target: str,
    settings: AutoDANSettings,
    source: str = "",
) -> AttackCase:
    """A case with the first seed as its prompt, not measured yet (`settings` are those of `optimise`).

    Raises:
        MechrefusalError: empty behaviour or target, or no chat template.
    """
    if not behaviour.strip():
        raise MechrefusalError(f"case '{id}' has an empty behaviour: give the text of a request")
    prompt = filled(seeds()[0], behaviour)
    AttackContext.of(tokenizer, id=id, behaviour=prompt, suffix="", target=target)
    return AttackCase(id, behaviour, target, prompt=prompt, method="autodan", source=source)


def start_all(
    tokenizer: PreTrainedTokenizerBase, behaviours: prompts.PromptSet, settings: AutoDANSettings, *, source: str
) -> list[AttackCase]:
    """`start` for every behaviour of a set (with `PromptSet.with_targets`, where one has no target)."""
    asked = behaviours.with_targets()
    return [
        start(tokenizer, id=id, behaviour=text, target=target, settings=settings, source=source)
        for id, text, target in zip(asked.ids, asked.texts, asked.targets, strict=True)
    ]


def optimise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    case: AttackCase,
    settings: AutoDANSettings,
    *,
    generator: torch.Generator,
) -> AttackCase:
    """`optimise_all` for one case."""
    return optimise_all(model, tokenizer, [case], settings, generators=[generator])[0]


def optimise_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[AttackCase],
    settings: AutoDANSettings,
    *,
    generators: Sequence[torch.Generator],
    on_step: Callable[[Sequence[AttackCase]], None] | None = None,
) -> list[AttackCase]:
    """Improve the prompt of every case by `settings.steps` generations against `model` as it is now.

    A case's prompt takes part in its first population, so a case that is optimised again never gets worse. The model's
    training state and `requires_grad` flags are as before afterwards, and no global random state is touched. The
    result of a case is that of optimising it alone, up to the rounding of batched products.

    In the results, `forward_tokens` counts prompt and target without its last token of each text that was run, and
    `dropped` the texts that were discarded because they were too long for the model, blank or without the behaviour.

    Args:
        generators: one a case, the only source of randomness, on the CPU.
        on_step: called after each step with the cases as they are then.

    Raises:
        MechrefusalError: an empty target, no chat template, a case of another method, no initial text that fits the
            model's context, or a loss that is not finite; all but the last before the first forward pass.
    """
    if not cases:
        return []
    started = time.perf_counter()
    limit = _limit(model)
    states = [
        _State.first(tokenizer, case, settings, generator, limit)
        for case, generator in zip(cases, generators, strict=True)
    ]

    def found() -> list[AttackCase]:
        seconds = (time.perf_counter() - started) / len(states)
        return [state.result(seconds) for state in states]

    with frozen(model):
        budget = Budget(model, at_most=settings.batch_size)
        _measure(model, states, budget, step=0)
        for step in range(1, settings.steps + 1):
            for state in states:
                state.evolve(step)
            _measure(model, states, budget, step)
            if on_step is not None:
                on_step(found())
    return found()


def require_fitting(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, case: AttackCase, settings: AutoDANSettings
) -> None:
    """Raise a MechrefusalError where no initial text of the case fits the model's context."""
    _State.first(tokenizer, case, replace(settings, population=2), torch.Generator().manual_seed(0), _limit(model))


def _limit(model: PreTrainedModel) -> float:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


@dataclass
class _State:
    """One case under way: its population, what is known of every text that was run, and the best of them."""

    tokenizer: PreTrainedTokenizerBase
    case: AttackCase
    settings: AutoDANSettings
    generator: torch.Generator
    limit: float
    population: list[str] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, tuple[TokenIds, TokenIds]] = field(default_factory=dict)  # prompt and target, not run yet
    scores: dict[str, float] = field(default_factory=dict)  # momentum of each word
    best: str = ""
    loss: float = math.inf
    tokens: int = 0
    dropped: int = 0
    history: list[tuple[float, str, int]] = field(default_factory=list)

    @classmethod
    def first(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        case: AttackCase,
        settings: AutoDANSettings,
        generator: torch.Generator,
        limit: float,
    ) -> "_State":
        """The case with its first population: different texts, fewer than asked for where they are too long."""
        AttackContext.of(tokenizer, id=case.id, behaviour=case.prompt, suffix="", target=case.target)
        state = cls(tokenizer, case, settings, generator, limit)
        texts = first_texts(_individual(case), generator=generator)
        for text in islice(texts, len(seeds()) + 4 * settings.population):
            if text not in state.waiting and state.admits(text):
                state.population.append(text)
            if len(state.population) == settings.population:
                break
        if not state.population:
            raise MechrefusalError(
                f"no initial prompt of case '{case.id}' fits the {limit:.0f} tokens that the model reads, with the "
                "target: shorten the behaviour or the target"
            )
        return state

    def admits(self, text: str) -> bool:
        """Whether `text` can be an individual. One that was not run yet is noted for the next measurement."""
        if text in self.losses or text in self.waiting:
            return True
        if text.count(PLACEHOLDER) == 1:
            prompt = filled(text, self.case.behaviour)
            parts = prompts.segments(self.tokenizer, prompt, target=self.case.target, end_of_turn=False)
            if len(parts.ids) <= self.limit:
                self.waiting[text] = (parts.prompt_ids, parts.target)
                return True
        self.dropped += 1
        return False

    def evolve(self, step: int) -> None:
        """Move on to the next generation, whose new texts are to be measured."""
        if step % (self.settings.sentence_steps + 1) == 0:
            elites, offspring = paragraph_level(self.population, self.losses, self.settings, generator=self.generator)
        else:
            losses = [self.losses[text] for text in self.population]
            self.scores = updated_scores(self.scores, self.population, losses, momentum=self.settings.momentum)
            elites, offspring = sentence_level(
                self.population, self.losses, self.scores, self.settings, generator=self.generator
            )
        self.population = elites + [text if self.admits(text) else parent for text, parent in offspring]

    def note(self) -> None:
        """Remember the best text of all generations, and what has been spent."""
        assert all(text.count(PLACEHOLDER) == 1 for text in self.population)
        leader = min(self.population, key=self.losses.__getitem__)
        if self.losses[leader] < self.loss:
            self.best, self.loss = leader, self.losses[leader]
        self.history.append((self.loss, self.best, self.tokens))

    def result(self, seconds: float) -> AttackCase:
        history = [(loss, filled(text, self.case.behaviour), tokens) for loss, text, tokens in self.history]
        return self.case.after(history, dropped=self.dropped, seconds=seconds)


def _individual(case: AttackCase) -> str:
    """The prompt of a case with the placeholder in place of the behaviour."""
    if case.method != "autodan":
        raise MechrefusalError(f"case '{case.id}' was made by '{case.method}': begin it with autodan.start")
    for quote in ('"', ""):  # seeds quote the behaviour, which tells it from the same words elsewhere
        text = case.prompt.replace(f"{quote}{case.behaviour}{quote}", f"{quote}{PLACEHOLDER}{quote}", 1)
        if text.count(PLACEHOLDER) == 1 and filled(text, case.behaviour) == case.prompt:
            return text
    raise MechrefusalError(
        f"the prompt of case '{case.id}' does not hold its behaviour: begin it anew with autodan.start"
    )


def _measure(model: PreTrainedModel, states: Sequence[_State], budget: Budget, step: int) -> None:
    """Run the waiting texts of all cases together, and note what was found."""
    waiting = [(state, text, *ids) for state in states for text, ids in state.waiting.items()]
    read, targets = [prompt for *_, prompt, _ in waiting], [target for *_, target in waiting]
    losses = target_losses(model, read, targets, budget=budget).tolist()
    for (state, text, prompt, target), loss in zip(waiting, losses, strict=True):
        if not math.isfinite(loss):
            raise MechrefusalError(
                f"autodan loss of case '{state.case.id}' is {loss} at step {step}: the model's weights or logits are "
                "not finite; use another checkpoint"
            )
        state.losses[text] = loss
        state.tokens += len(prompt) + len(target) - 1
    for state in states:
        state.waiting.clear()
        state.note()
