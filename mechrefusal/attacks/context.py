"""Where a suffix stands: the tokens around it, and which suffixes survive being text."""

from dataclasses import dataclass
from typing import Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError


@dataclass(frozen=True)
class AttackContext:
    """One behaviour with its suffix in the chat template, as token ids.

    The prompt is `before` (template and behaviour) + `suffix` + `after`; `target` follows it without an end of turn.
    `prompt_after` is `after` as it is without a target: it differs only where a tokenizer merges the two.
    """

    tokenizer: PreTrainedTokenizerBase
    behaviour: str
    before: tuple[int, ...]
    suffix: tuple[int, ...]
    after: tuple[int, ...]
    prompt_after: tuple[int, ...]
    target: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        id: str,
        behaviour: str,
        suffix: str,
        target: str,
        model: PreTrainedModel | None = None,
    ) -> Self:
        """Tokenise one case; with `model`, also check that it fits the model's context.

        Raises:
            MechrefusalError: an empty target, no chat template, or more tokens than the model reads.
        """
        if not target.strip():
            raise MechrefusalError(f"case '{id}' has an empty target: give the answer that the attack aims at")
        parts = prompts.segments(tokenizer, behaviour, attack=suffix, target=target, end_of_turn=False)
        prompt = prompts.segments(tokenizer, behaviour, attack=suffix)
        if model is not None:
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if limit is not None and len(parts.ids) > limit:
                raise MechrefusalError(
                    f"case '{id}' is {len(parts.ids)} tokens long with suffix and target, more than the {limit} that "
                    "the model reads: shorten the behaviour or the target"
                )
        before = parts.before + parts.instruction
        return cls(tokenizer, behaviour, before, parts.attack, parts.after, prompt.after, parts.target)

    def surviving(self, suffixes: Int[Tensor, "candidate position"]) -> Bool[Tensor, " candidate"]:
        """Which suffixes come out unchanged when the whole prompt is rendered from text and tokenised again."""
        texts = [suffix_text(self.tokenizer, ids) for ids in suffixes.tolist()]
        # Blank suffixes would leave no attack to render; they are lost either way.
        conversations = [[{"role": "user", "content": f"{self.behaviour} {text}"}] for text in texts]
        rendered = self.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=False)
        kept = [
            bool(text) and tuple(prompt_ids) == (*self.before, *ids, *self.prompt_after)
            for text, ids, prompt_ids in zip(texts, suffixes.tolist(), rendered, strict=True)
        ]
        return torch.tensor(kept, dtype=torch.bool)

    def holds(self, suffix: str, ids: tuple[int, ...]) -> bool:
        """Whether `suffix`, as text in this prompt, is exactly the attack segment `ids`."""
        parts = prompts.segments(self.tokenizer, self.behaviour, attack=suffix)
        return (
            parts.attack == ids and parts.before + parts.instruction == self.before and parts.after == self.prompt_after
        )


def suffix_text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...] | list[int]) -> str:
    """Text of a suffix, without the space that stands between behaviour and suffix."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text).removeprefix(" ")


_REPLACEABLE: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, Tensor]]" = WeakKeyDictionary()


def replaceable_tokens(tokenizer: PreTrainedTokenizerBase, vocab: int) -> Bool[Tensor, " vocab"]:
    """Tokens that a suffix may be made of: of `vocab` embeddings, those with a printable text.

    Left out are special and added tokens, rows of the embedding without a token, and tokens whose text is blank, not
    printable, or part of a character. Found once a tokenizer.
    """
    known = _REPLACEABLE.setdefault(tokenizer, {})
    if vocab not in known:
        left_out = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        usable = torch.zeros(vocab, dtype=torch.bool)
        ids = [i for i in range(min(vocab, len(tokenizer))) if i not in left_out]
        for token, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True):
            usable[token] = bool(text.strip()) and text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text
        known[vocab] = usable
    return known[vocab]
