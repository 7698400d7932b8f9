"""GCG, greedy coordinate gradient (Zou et al., arXiv 2307.15043, algorithm 1): suffixes found by the gradient.

Each step takes the gradient of the target's cross-entropy with respect to the one-hot suffix, proposes `width`
suffixes that each replace one token by one of the `top_k` most promising at its position, and keeps the best.

Many cases are optimised at once, in step; none influences another. A step runs no token twice: the prompt before the
suffix is run once a call, and a candidate only from the token that it replaces (`attacks.search`).

Deviations from the paper, each a fault of published implementations (HarmBench's among them) that is not repeated:
the best suffix so far competes with the proposals, so it is never lost; candidates must come out of decoding and
encoding *inside their prompt* unchanged; the suffix has no BOS and the context is that of training and evaluation;
random draws come from a generator that the caller owns; within a step no candidate is proposed twice. Two more are
settings, and off by default: `screen` and `rounds` (see `GCGSettings`).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.attacks.cases import AttackCase
from mechrefusal.attacks.context import AttackContext, suffix_text
from mechrefusal.attacks.proposals import propose
from mechrefusal.attacks.search import Search
from mechrefusal.attacks.settings import GCGSettings
from mechrefusal.attacks.streams import random_stream
from mechrefusal.errors import MechrefusalError

__all__ = ["GCGSettings", "optimise", "optimise_all", "propose", "random_stream", "start", "start_all"]


def start(
    tokenizer: PreTrainedTokenizerBase,
    *,
    id: str,
    behaviour: str,
    target: str,
    settings: GCGSettings,
    source: str = "",
) -> AttackCase:
    """A case with the initial suffix, not measured yet.

    Raises:
        MechrefusalError: empty behaviour or target, no chat template, or an initial text that cannot become exactly
            `settings.suffix_length` tokens in this prompt.
    """
    lengths: set[int] = set()
    for suffix in _initial_suffixes(settings):
        context = AttackContext.of(tokenizer, id=id, behaviour=behaviour, suffix=suffix, target=target)
        lengths.add(len(context.suffix))
        if len(context.suffix) == settings.suffix_length:
            text = suffix_text(tokenizer, context.suffix)
            if context.holds(text, context.suffix):
                return AttackCase(id, behaviour, target, text, context.suffix, source=source)
    raise MechrefusalError(
        f"gcg initial '{settings.initial[:40]}' cannot be made exactly {settings.suffix_length} tokens long in the "
        f"prompt of '{id}' (lengths found: {sorted(lengths)}): give another initial text or suffix_length"
    )


def _initial_suffixes(settings: GCGSettings) -> Iterator[str]:
    """Texts that may be `suffix_length` tokens: one word a token first, as most tokenizers have it, then any number.

    The last word also comes without its space, for tokenizers that make a token of each space.
    """
    words = settings.initial.split()
    longest = settings.suffix_length
    for n in (longest, *range(1, longest)):
        cycled = [words[i % len(words)] for i in range(n)]
        yield " ".join(cycled)
        if n > 1:
            yield " ".join(cycled[:-1]) + cycled[-1]


def optimise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    case: AttackCase,
    settings: GCGSettings,
    *,
    generator: torch.Generator,
) -> AttackCase:
    """`optimise_all` for one case."""
    return optimise_all(model, tokenizer, [case], settings, generators=[generator])[0]


def optimise_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[AttackCase],
    settings: GCGSettings,
    *,
    generators: Sequence[torch.Generator],
    on_step: Callable[[Sequence[AttackCase]], None] | None = None,
) -> list[AttackCase]:
    """Improve the suffix of every case by `settings.steps` steps against `model` as it is now.

    The model's training state, gradients and `requires_grad` flags are as before afterwards, and no global random
    state is touched. The result of a case is that of optimising it alone, up to the rounding of batched products.

    Args:
        generators: one a case, the only source of randomness, on the CPU (so that a GPU draws the same candidates).
        on_step: called after each step with the cases as they are then.

    Raises:
        MechrefusalError: an empty target, a prompt longer than the model's context, no chat template, a suffix that
            does not survive its prompt, or a loss that is not finite; all but the last before the first step.
    """
    if not cases:
        return []
    with Search.over(model, tokenizer, cases, settings, generators) as search:
        for step in range(1, settings.steps + 1):
            search.step(step)
            if on_step is not None:
                on_step(search.cases())
        return search.cases()


def start_all(
    tokenizer: PreTrainedTokenizerBase, behaviours: prompts.PromptSet, settings: GCGSettings, *, source: str
) -> list[AttackCase]:
    """`start` for every behaviour of a set (with `PromptSet.with_targets`, where one has no target)."""
    asked = behaviours.with_targets()
    return [
        start(tokenizer, id=id, behaviour=text, target=target, settings=settings, source=source)
        for id, text, target in zip(asked.ids, asked.texts, asked.targets, strict=True)
    ]
