"""Token ids and the rows of the embedding: every id that a text may hold has a row."""

import functools
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.progress import console


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, *, folder: Path) -> None:
    """Compare a tokenizer's ids with the `rows` of the model's embedding.

    A pad token without a row is replaced by the end token, which is as good: padding is masked. An added token that
    neither begins nor ends a text nor stands in the chat template may lie beyond (Gemma 3's image token does): see
    `guard_rows`.

    Raises:
        MechrefusalError: another token has no row.
    """
    beyond = _beyond(tokenizer, rows)
    if not beyond:
        return
    added = set(tokenizer.get_added_vocab())
    templates = tokenizer.chat_template or ""
    template = "\n".join(templates.values()) if isinstance(templates, dict) else templates
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    if tokenizer.eos_token is None:  # nothing to pad with instead
        ends.add(tokenizer.pad_token)
    wrong = [token for token in beyond if token not in added or token in ends or token in template]
    if wrong:
        shown = ", ".join(f"'{token}' (id {beyond[token]})" for token in wrong[:3]) + (", …" if len(wrong) > 3 else "")
        raise MechrefusalError(
            f"{len(wrong)} tokens of the tokenizer in '{folder}' have no row in the model's embedding of {rows} rows: "
            f"{shown}; put the tokenizer there that was saved with the model, or resize the embedding "
            "(resize_token_embeddings) and train the new rows"
        )
    if tokenizer.pad_token in beyond:
        _say_once(
            f"the pad token '{tokenizer.pad_token}' (id {beyond[tokenizer.pad_token]}) of '{folder}' has no row in the "
            f"embedding of {rows} rows; rows of a batch are padded with '{tokenizer.eos_token}' instead"
        )
        tokenizer.pad_token = tokenizer.eos_token


def guard_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, folder: Path) -> None:
    """Where tokens have no row in the embedding, have the model refuse texts that hold one, by the token's name."""
    embedding = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    names = {place: token for token, place in _beyond(tokenizer, rows).items()}
    if not names:
        return

    def refuse(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if (highest := int(inputs[0].max())) >= rows:
            raise MechrefusalError(
                f"a text holds the token '{names.get(highest, '?')}' (id {highest}), for which the model in '{folder}' "
                f"has no embedding (it has {rows} rows); take it out of the text"
            )

    embedding.register_forward_pre_hook(refuse)


def _beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    return {token: place for token, place in tokenizer.get_vocab().items() if place >= rows}


@functools.lru_cache(maxsize=256)
def _say_once(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
