"""A language model that judges: opened from a folder or the Hugging Face hub, and run in batches of like length."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges.scoring import Scored, null
from mechrefusal.models import Placed, TokenBatch, fetch, hash_checkpoint, load_causal_lm
from mechrefusal.models.batches import exact_length, split_by_cost
from mechrefusal.models.library_output import quiet
from mechrefusal.models.model_files import ADAPTER_CONFIG, named_base
from mechrefusal.models.packaged import PACKAGED
from mechrefusal.models.placement import input_device
from mechrefusal.models.sources import TINY, from_hub, local_base
from mechrefusal.progress import bar

PROMPT_TOKENS = 16384
"""Prompt tokens of one batch at most, where a batch holds more than one prompt."""


class ModelOptions(Placed, total=False):
    """How the language model of a judge is loaded and run.

    Where it lies and in which numbers: fields of a `models.Placement`, dtype bfloat16 by default. batch_size: prompts
    in one forward pass at most, by default 16; scores do not depend on it.
    """

    batch_size: int


@dataclass(frozen=True, eq=False)
class JudgeModel:
    """A causal language model with its tokenizer; `id` names its weights in the name of the judge."""

    id: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int

    @classmethod
    def open(
        cls,
        source: Path | str,
        *,
        base: Path | str | None = None,
        chat: bool = False,
        **options: Unpack[ModelOptions],
    ) -> "JudgeModel":
        """Load a folder, a packaged model or a hub name; or a LoRA adapter together with its base model.

        Args:
            base: the base model of an adapter, where it isn't the one that the adapter names.
            chat: whether the judge needs a chat template.

        Raises:
            MechrefusalError: no such folder or hub model, no network, no permission, an architecture that is no causal
                language model, damaged weights, or no tokenizer.
        """
        below = None
        try:
            located = _locate(source)
            if (located.folder / ADAPTER_CONFIG).is_file():
                below = _locate(base or _base_of(located.folder))
            name = located.named(base=below.folder if below else None) + (f"+{below.named()}" if below else "")
            placed: Any = {"dtype": torch.bfloat16} | {k: v for k, v in options.items() if k != "batch_size"}
            loaded = load_causal_lm(
                located.folder,
                base=below.folder if below else None,
                merged=False,
                quantised=True,
                chat=chat,
                **placed,
            )
            return cls(name, *loaded, batch_size=options.get("batch_size", 16))
        except MechrefusalError as error:
            raise MechrefusalError(f"judge model '{source}' cannot be used: {error}") from error

    def clipped(self, text: str, limit: int, *, keep: Literal["first", "last"], special: bool) -> tuple[str, str]:
        """A text after a round trip through at most `limit` tokens, as published judges clip completions.

        Args:
            limit: tokens at most, the special ones that the tokenizer adds included.
            keep: which end of a longer text stays.
            special: whether special tokens, also those that the tokenizer added, stay in the text.

        Returns:
            The text, and a note for `because` where tokens were dropped ("" otherwise).
        """
        tokenizer = self.tokenizer
        n_tokens = len(tokenizer(text, verbose=False)["input_ids"])
        tokenizer.truncation_side = "right" if keep == "first" else "left"
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        note = f"; of the completion only the {keep} {limit} of {n_tokens} tokens" if n_tokens > limit else ""
        return tokenizer.decode(ids, skip_special_tokens=not special), note

    def judged(
        self,
        prompts: Sequence[Sequence[int]],
        read: Callable[[TokenBatch], Iterable[Scored]],
        *,
        new_tokens: int,
        description: str,
    ) -> list[Scored]:
        """What `read` makes of every prompt (token ids), in order; a prompt that the context cannot hold is a null."""
        context = exact_length(self.model.config.get_text_config())[0]
        rows: dict[int, Scored] = {}
        for row, prompt in enumerate(prompts):
            if len(prompt) + new_tokens > context:
                rows[row] = null(
                    f"the judge's prompt and answer take {len(prompt) + new_tokens} tokens, its context holds {context}"
                )
        fitting = sorted((row for row in range(len(prompts)) if row not in rows), key=lambda row: len(prompts[row]))
        parts = split_by_cost(
            ([1] * len(fitting), self.batch_size), ([len(prompts[row]) for row in fitting], PROMPT_TOKENS)
        )
        device = input_device(self.model)
        with bar(description, total=len(fitting)) as progress:
            for part in parts:
                chosen = [fitting[place] for place in part]
                batch = TokenBatch.of([prompts[row] for row in chosen], pad=self.tokenizer.pad_token_id, device=device)
                rows.update(zip(chosen, read(batch), strict=True))
                progress.advance(len(chosen))
        return [rows[row] for row in range(len(prompts))]


@dataclass(frozen=True)
class _Located:
    """A model's folder, what it's called, and the first digits of its commit where it came from the hub."""

    folder: Path
    name: str
    commit: str = ""

    def named(self, *, base: Path | None = None) -> str:
        """The name with what tells the model from others: its commit, or the hash of all that is loaded."""
        return f"{self.name}@{self.commit or hash_checkpoint(self.folder, base=base)[:8]}"


def _base_of(adapter: Path) -> Path | str:
    """The base model that an adapter names: a folder, also one beside it, or a hub name."""
    return local_base(adapter) or named_base(adapter)


def _locate(source: Path | str) -> _Located:
    folder, name = Path(source).expanduser(), str(source)
    if folder.is_dir():
        return _Located(folder, folder.resolve().name)
    if name.lower() in (*PACKAGED, TINY):
        return _Located(fetch(name), name.lower())
    with quiet():
        folder = from_hub(name)
    return _Located(folder, name, folder.name[:8])
