"""A language model that says what it is told: each token is followed by one other."""

from types import SimpleNamespace

import torch
from transformers import DynamicCache, LlamaConfig


class Chain(torch.nn.Module):
    """After token t comes `follows[t]`, whatever stood before; after all others `otherwise`."""

    def __init__(self, follows: dict[int, int], *, vocab: int, otherwise: int = 0, eos: int | None = None) -> None:
        super().__init__()
        table = torch.full((vocab,), otherwise)
        for token, following in follows.items():
            table[token] = following
        self.config = LlamaConfig(vocab_size=vocab)
        self.generation_config = SimpleNamespace(eos_token_id=eos)
        self.head = torch.nn.Embedding.from_pretrained(torch.nn.functional.one_hot(table, vocab).float())

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids, logits_to_keep=0, past_key_values=None, **_):
        logits = self.head(input_ids[:, -logits_to_keep:].contiguous())
        return SimpleNamespace(logits=logits, past_key_values=past_key_values or DynamicCache())


def saying(tokens: list[int], *, after: int) -> dict[int, int]:
    """`follows` of a chain that says these different tokens after token `after`."""
    assert len({after, *tokens}) == len(tokens) + 1
    return dict(zip([after, *tokens], tokens, strict=False))
