"""From conversations to token rows: what TRL trains on, and the rows of the adversarial terms.

Every row is made with `prompts.segments`, so that training, attack and evaluation see the same context.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.attacks import AttackCase
from mechrefusal.attacks.gcg import random_stream
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.forward import positions
from mechrefusal.training.losses import IGNORED

Row = dict[str, list[int]]
TokenIds = tuple[int, ...]


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


def schedule(rows: Sequence[Row], n: int, *, seed: int, name: str) -> Iterator[Row]:
    """The first `n` rows of endless passes over `rows`, each pass in a new random order: the same for the same seed."""
    generator = random_stream(seed, name)
    order: list[int] = []
    for _ in range(n):
        if not order:
            order = torch.randperm(len(rows), generator=generator).tolist()
        yield rows[order.pop(0)]


def dataset(
    utility: Sequence[Row], harmful: Sequence[Row], *, steps: int, utility_each: int, harmful_each: int, seed: int
) -> Dataset:
    """Rows in the order in which a sequential sampler feeds them: per micro-batch `utility_each`, then `harmful_each`.

    The order of the utility rows depends on the seed alone, so that arms with different `harmful_each` share it.

    Args:
        steps: number of micro-batches.
    """
    streams = [(schedule(utility, steps * utility_each, seed=seed, name="utility"), utility_each)]
    if harmful_each:
        streams.append((schedule(harmful, steps * harmful_each, seed=seed, name="harmful"), harmful_each))
    rows = [next(stream) for _ in range(steps) for stream, each in streams for _ in range(each)]
    return Dataset.from_dict({key: [row[key] for row in rows] for key in ("input_ids", "labels")})


@dataclass(frozen=True)
class Continuations:
    """Prompts, padded on the left, and what is predicted after them, padded on the right.

    Row r of `labels` (-100 where padded) follows the prompt `prompt_of[r]`; several rows may follow the same prompt.
    """

    prompts: Int[Tensor, "prompt column"]
    mask: Int[Tensor, "prompt column"]
    labels: Int[Tensor, "row token"]
    prompt_of: Int[Tensor, " row"]

    @classmethod
    def of(cls, rows: Sequence[tuple[TokenIds, TokenIds]], *, pad: int, device: torch.device) -> "Continuations":
        """Batch pairs of (prompt ids, continuation ids); equal prompts are kept once."""
        unique = list(dict.fromkeys(prompt for prompt, _ in rows))
        columns, width = max(map(len, unique)), max(len(continuation) for _, continuation in rows)
        ids = torch.full((len(unique), columns), pad)
        mask = torch.zeros_like(ids)
        labels = torch.full((len(rows), width), IGNORED)
        for row, tokens in enumerate(unique):
            ids[row, columns - len(tokens) :] = torch.tensor(tokens)
            mask[row, columns - len(tokens) :] = 1
        for row, (_, continuation) in enumerate(rows):
            labels[row, : len(continuation)] = torch.tensor(continuation)
        prompt_of = torch.tensor([unique.index(prompt) for prompt, _ in rows])
        return cls(*(tensor.to(device) for tensor in (ids, mask, labels, prompt_of)))

    def logits(self, model: Callable[..., Any], *, share_prompts: bool) -> Float[Tensor, "row token vocab"]:
        """Logits that predict `labels`, with gradients.

        Args:
            share_prompts: run each prompt once and let its rows continue from the cache, where the model keeps one
                (gradient checkpointing has none). The logits are the same.
        """
        # The last token of a continuation is predicted, never read.
        read = self.labels[:, :-1].clamp(min=0)
        mask = torch.cat([self.mask[self.prompt_of], torch.ones_like(read)], dim=1)
        if not share_prompts:
            ids = torch.cat([self.prompts[self.prompt_of], read], dim=1)
            keep = self.labels.shape[1]
            return model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=keep
            ).logits
        first = model(
            input_ids=self.prompts,
            attention_mask=self.mask,
            position_ids=positions(self.mask),
            use_cache=True,
            logits_to_keep=1,
        )
        if read.shape[1] == 0:
            return first.logits[self.prompt_of]
        cache = first.past_key_values
        cache.batch_select_indices(self.prompt_of)
        following = positions(mask)[:, -read.shape[1] :]
        rest = model(
            input_ids=read, attention_mask=mask, position_ids=following, past_key_values=cache, use_cache=True
        ).logits
        return torch.cat([first.logits[self.prompt_of], rest], dim=1)


def away_row(tokenizer: PreTrainedTokenizerBase, case: AttackCase) -> tuple[TokenIds, TokenIds]:
    """Behaviour + suffix, and the affirmative target without an end of turn."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=case.target, end_of_turn=False)
    return parts.prompt_ids, parts.target


def toward_row(tokenizer: PreTrainedTokenizerBase, case: AttackCase, refusal: str) -> tuple[TokenIds, TokenIds]:
    """Behaviour + suffix, and the refusal with its end of turn."""
    parts = prompts.segments(tokenizer, case.behaviour, attack=case.suffix, target=refusal)
    return parts.prompt_ids, parts.target
