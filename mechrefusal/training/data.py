"""From conversations to token rows: what TRL trains on, and the rows of the adversarial terms.

Every row is made with `prompts.segments`, so that training, attack and evaluation see the same context.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.attacks import AttackCase, random_stream
from mechrefusal.errors import MechrefusalError
from mechrefusal.training.losses import IGNORED, TokenIds

Row = dict[str, list[int]]
T = TypeVar("T")
U = TypeVar("U")


def conversation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    max_length: int,
    name: str,
    end_of_turn: bool = True,
) -> Row:
    """One conversation as `input_ids` and `labels` (-100 on the prompt); the answer is learnt.

    With `end_of_turn` its end is learnt too; an answer that was cut short must go without.

    Raises:
        MechrefusalError: an empty answer, or a prompt that fills `max_length` tokens alone.
    """
    if not answer.strip():
        raise MechrefusalError(f"{name} has an empty answer: give the text to learn, or leave the row out")
    parts = prompts.segments(tokenizer, prompt, target=answer, end_of_turn=end_of_turn)
    n_prompt = len(parts.prompt_ids)
    if n_prompt >= max_length:
        raise MechrefusalError(
            f"{name} has a prompt of {n_prompt} tokens, which leaves no room for an answer in max_length {max_length}: "
            "shorten it, leave it out, or raise max_length"
        )
    ids = list(parts.ids[:max_length])
    return {"input_ids": ids, "labels": [IGNORED] * n_prompt + ids[n_prompt:]}


def schedule(rows: Sequence[T], n: int, *, seed: int, name: str) -> Iterator[T]:
    """The first `n` rows of endless passes over `rows`, each pass in a new random order: the same for the same seed."""
    generator = random_stream(seed, name)
    order: list[int] = []
    for _ in range(n):
        if not order:
            order = torch.randperm(len(rows), generator=generator).tolist()
        yield rows[order.pop(0)]


def micro_batches(
    utility: Sequence[T], harmful: Sequence[U], *, steps: int, utility_each: int, harmful_each: int, seed: int
) -> Iterator[tuple[list[T], list[U]]]:
    """The utility rows and the harmful ones of each micro-batch, in order.

    The order of the utility rows depends on the seed alone, so that arms with different `harmful_each` share it.

    Args:
        steps: number of micro-batches.
    """
    calm = schedule(utility, steps * utility_each, seed=seed, name="utility")
    harm = schedule(harmful, steps * harmful_each, seed=seed, name="harmful")
    for _ in range(steps):
        yield [next(calm) for _ in range(utility_each)], [next(harm) for _ in range(harmful_each)]


def dataset(
    utility: Sequence[Row], harmful: Sequence[Row], *, steps: int, utility_each: int, harmful_each: int, seed: int
) -> Dataset:
    """Rows in the order in which a sequential sampler feeds them: per micro-batch `utility_each`, then `harmful_each`.

    Args:
        steps: number of micro-batches.
    """
    batches = micro_batches(
        utility, harmful, steps=steps, utility_each=utility_each, harmful_each=harmful_each, seed=seed
    )
    rows = [row for calm, harm in batches for row in (*calm, *harm)]
    return Dataset.from_dict({key: [row[key] for row in rows] for key in ("input_ids", "labels")})


def away_row(tokenizer: PreTrainedTokenizerBase, case: AttackCase) -> tuple[TokenIds, TokenIds]:
    """Behaviour + suffix, and the affirmative target without an end of turn."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=case.target, end_of_turn=False)
    return parts.prompt_ids, parts.target


def toward_row(tokenizer: PreTrainedTokenizerBase, case: AttackCase, refusal: str) -> tuple[TokenIds, TokenIds]:
    """Behaviour + suffix, and the refusal with its end of turn."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=refusal)
    return parts.prompt_ids, parts.target
