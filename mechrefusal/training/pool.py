"""The persistent pool of attack cases that R2D2 draws from, attacks anew and trains on."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.attacks import AttackCase, GCGSettings, gcg
from mechrefusal.attacks.cases import from_arrow, read_arrow, to_arrow
from mechrefusal.attacks.context import AttackContext
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file

STATE = b"mechrefusal.pool"

Draw = tuple[int, int]
"""Place of a case in the pool, and the seed of its own random stream for this update."""


class CasePool:
    """Attack cases and the random state that draws from them.

    Every draw gives each case a seed of its own, so that cases share no random draws and the result does not depend on
    which process updates which case.
    """

    def __init__(self, cases: Sequence[AttackCase], *, generator: torch.Generator) -> None:
        self.cases, self.generator = list(cases), generator

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        behaviours: prompts.PromptSet,
        settings: GCGSettings,
        *,
        seed: int,
        source: str,
    ) -> Self:
        """A new pool: every behaviour with the initial suffix.

        Raises:
            MechrefusalError: a behaviour that cannot be attacked.
        """
        generator = gcg.random_stream(seed, "pool")
        torch.randperm(len(behaviours), generator=generator)  # as published figures were drawn
        return cls(gcg.start_all(tokenizer, behaviours, settings, source=source), generator=generator)

    def __len__(self) -> int:
        return len(self.cases)

    def require_fitting(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, refusal: str, suffix_length: int
    ) -> None:
        """Raise a MechrefusalError for the first case that cannot be trained on with these settings.

        It is longer than the model's context with its target or with `refusal`, or its suffix has another length than
        the one that a reset would give it.
        """
        for case in self.cases:
            for answer in (case.target, refusal):
                AttackContext.of(
                    tokenizer, id=case.id, behaviour=case.behaviour, suffix=case.suffix, target=answer, model=model
                )
            if len(case.suffix_ids) != suffix_length:
                raise MechrefusalError(
                    f"the suffix of case '{case.id}' has {len(case.suffix_ids)} tokens, gcg suffix_length is "
                    f"{suffix_length}: make the pool with the settings of the training"
                )

    def draw(self, n: int) -> list[Draw]:
        """`n` different cases (all, where there are fewer), each with a new seed."""
        places = torch.randperm(len(self.cases), generator=self.generator)[:n].tolist()
        seeds = torch.randint(2**62, (len(places),), generator=self.generator).tolist()
        return list(zip(places, seeds, strict=True))

    def updated(
        self, draws: Sequence[Draw], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: GCGSettings
    ) -> list[AttackCase]:
        """The drawn cases after `settings.steps` GCG steps against `model` as it is now. The pool is not changed."""
        return gcg.optimise_all(
            model,
            tokenizer,
            [self.cases[place] for place, _ in draws],
            settings,
            generators=[torch.Generator().manual_seed(seed) for _, seed in draws],
        )

    def reset(self, fraction: float, tokenizer: PreTrainedTokenizerBase, settings: GCGSettings) -> list[int]:
        """Give a random `fraction` of the cases the initial suffix again; return their places."""
        n = round(fraction * len(self.cases))
        places = torch.randperm(len(self.cases), generator=self.generator)[:n].tolist()
        for place in places:
            old = self.cases[place]
            self.cases[place] = gcg.start(
                tokenizer, id=old.id, behaviour=old.behaviour, target=old.target, settings=settings, source=old.source
            )
        return places

    def save(self, path: Path | str) -> Path:
        """Write cases and random state to one parquet file, whole or not at all. `load` continues where it stood."""
        state = base64.b64encode(bytes(self.generator.get_state().tolist())).decode()
        table = to_arrow(self.cases)
        with whole_file(path) as draft:
            pq.write_table(table.replace_schema_metadata({STATE: json.dumps({"generator": state})}), draft)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str, *, source: str | None) -> Self:
        """Read what `save` wrote.

        Raises:
            MechrefusalError: no such file, no pool in it, or a pool of another `source`.
        """
        table = read_arrow(path)
        try:
            state = json.loads((table.schema.metadata or {})[STATE])["generator"]
            generator = torch.Generator()
            generator.set_state(torch.tensor(list(base64.b64decode(state)), dtype=torch.uint8))
        except (KeyError, ValueError, RuntimeError) as error:
            raise MechrefusalError(
                f"'{path}' holds no random state of a pool: give the pool.parquet of an r2d2 arm, or train it anew"
            ) from error
        return cls(from_arrow(table, path, source=source), generator=generator)
