"""Greedy answers of a model to plain instructions, under whatever interventions are active."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mechrefusal import prompts
from mechrefusal.forward import continuations, end_tokens
from mechrefusal.models import TokenBatch
from mechrefusal.progress import bar

PADDED_TOKENS = 4096
"""Prompt tokens of one batch at most: a single long prompt must not pad sixty short ones to its length."""


@dataclass(frozen=True)
class Completions:
    """Completions in the order of the prompts: their text, and their token ids without the end token.

    A thought ("<think> ... </think>") is part of a completion. Where the prompt opens it, the text begins with the
    opening mark, so that it can be told from the answer wherever the text is read.

    ended: whether the model ended its turn itself, before its tokens were spent.
    """

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice) -> "Completions":
        return Completions(self.texts[rows], self.token_ids[rows], self.ended[rows])


def complete(
    model,
    texts: Sequence[str],
    *,
    suffixes: Sequence[str] | None = None,
    openings: Sequence[Sequence[int]] | None = None,
    max_new_tokens: int = 64,
    chunk: int = 64,
    tokenizer=None,
    description: str = "generating",
    on_batch: Callable[[list[int], Completions], None] | None = None,
) -> Completions:
    """Answer every instruction greedily, to the end of the assistant's turn as the chat template writes it.

    A hooked transformer's answers come from its unhooked model (`forward.continuations`) unless hooks stand at it.

    Args:
        model: a hooked transformer, or a Hugging Face model together with its `tokenizer`.
        suffixes: an adversarial suffix for each instruction ("" for none).
        openings: token ids that each answer begins with, given and not chosen by the model. They are part of the
            completion, and `max_new_tokens` are those after them. A model that thinks answers without a thought.
        max_new_tokens: tokens at most in one answer; a thought before it may take the tokenizer's `max_thought_tokens`
            beside them (`prompts.ChatSettings`).
        chunk: prompts in one batch.
        on_batch: called with the rows and the completions of every finished batch.

    Raises:
        MechrefusalError: a chat template that does not say where an answer ends.
    """
    if not texts:
        return Completions((), ())
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    attacks = suffixes if suffixes is not None else [""] * len(texts)
    parts = [prompts.segments(tokenizer, text, attack=attack) for text, attack in zip(texts, attacks, strict=True)]
    given = [tuple(opening) for opening in openings] if openings is not None else [()] * len(parts)
    ids = [part.prompt_ids + opening for part, opening in zip(parts, given, strict=True)]
    # The end of the template comes in one pass, so that interventions can tell its tokens from the instruction's.
    tail = max(len(part.after) + len(opening) for part, opening in zip(parts, given, strict=True))
    device = str(getattr(getattr(model, "cfg", None), "device", None) or next(model.parameters()).device)
    end, thoughts = end_tokens(model, tokenizer), prompts.thought_marks(tokenizer)
    answers: dict[int, tuple[str, tuple[int, ...], bool]] = {}
    with bar(description, total=len(ids)) as progress:
        for rows in _batches([len(prompt) for prompt in ids], chunk):
            batch = TokenBatch.of(
                [ids[row] for row in rows], pad=tokenizer.pad_token_id, device=device, keep=max(8, tail)
            )
            may_think = thoughts if openings is None else None
            batch_answers = continuations(model, batch, max_new_tokens=max_new_tokens, end=end, thoughts=may_think)
            tokens = [given[row] + each.tokens for row, each in zip(rows, batch_answers, strict=True)]
            finished = [
                (thoughts.opened + text, of_row, each.ended)
                for text, of_row, each in zip(prompts.texts_of(tokenizer, tokens), tokens, batch_answers, strict=True)
            ]
            answers.update(zip(rows, finished, strict=True))
            if on_batch is not None:
                on_batch(rows, Completions(*zip(*finished, strict=True)))
            progress.advance(len(rows))
    return Completions(*zip(*(answers[row] for row in range(len(ids))), strict=True))


def _batches(lengths: Sequence[int], chunk: int) -> Iterator[list[int]]:
    """Rows in batches of like length: at most `chunk`, and at most `PADDED_TOKENS` with their padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == chunk or (len(batch) + 1) * lengths[row] > PADDED_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def generate(model, texts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
    """Greedy answers of a hooked transformer to instructions, as text."""
    return list(complete(model, list(texts), max_new_tokens=max_new_tokens).texts)
