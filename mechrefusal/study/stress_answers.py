"""The work of stress tests: attack cases made anew against each checkpoint, and what checkpoints answer to them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mechrefusal.attacks import AttackCase, AutoDANSettings, GCGSettings, make_cases, read_cases
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.answering import answers
from mechrefusal.evaluation.suites import COPYRIGHT
from mechrefusal.models import Checkpoint, load_causal_lm
from mechrefusal.prompts import PromptSet
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.checkpoints import require_room
from mechrefusal.study.stress_twins import Twins

NONE, NO_STEP = "none", -1
"""Arm, method and step of the behaviours as they are, without an attack."""
POINTS = 8
"""Attacks of more steps than these are judged at about so many of them."""

Search = GCGSettings | AutoDANSettings
"""Settings of an attack that is made in steps."""
Replies = dict[str, str]
"""Completion of each prompt."""


def curve_steps(n_steps: int) -> tuple[int, ...]:
    """The steps of an attack of `n_steps` that are judged: all of a few, else 0 and steps spaced by their logarithm."""
    if n_steps <= POINTS:
        return tuple(range(n_steps + 1))
    spaced = np.geomspace(1, n_steps, POINTS - 1).round().astype(int)
    return (0, *(int(step) for step in np.unique(spaced)))


@dataclass
class ModelCache:
    """The model of the checkpoint that was asked for last. Callers let go of it before they ask for another."""

    id: str = ""
    loaded: tuple = field(default=(None, None), repr=False)

    def of(self, checkpoint: Checkpoint) -> tuple:
        """Model and tokenizer; the model before is dropped first."""
        if self.id != checkpoint.id:
            self.id, self.loaded = "", (None, None)
            self.loaded = load_causal_lm(checkpoint)
            self.id = checkpoint.id
        return self.loaded


@dataclass(frozen=True)
class Answers:
    """The cases of each (source, method), and the answers of each (target, source, method); ids of checkpoints.

    `twins`: answers of each (checkpoint, method) to harmless twins with the suffixes of its own cases, and with method
    `NONE` to the twins alone.
    """

    cases: dict[tuple[str, str], tuple[AttackCase, ...]] = field(default_factory=dict)
    replies: dict[tuple[str, str, str], Replies] = field(default_factory=dict)
    twins: dict[tuple[str, str], Replies] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is asked of every checkpoint."""

    behaviours: PromptSet
    methods: dict[str, Search]
    seed: int
    max_new_tokens: int
    folder: Path
    twins: Twins = field(default_factory=Twins)

    def __post_init__(self) -> None:
        if not len(self.behaviours):
            raise MechrefusalError(f"prompt set '{self.behaviours.name}' is empty: give behaviours to attack with")
        if not self.methods:
            raise MechrefusalError("no method to attack with: give settings by name, such as {'gcg': GCGSettings()}")
        for name, settings in self.methods.items():
            if not re.fullmatch(r"\w[\w.-]*", name) or name == NONE:
                raise MechrefusalError(
                    f"method name '{name}' is not made of letters, digits, dots, dashes, or is '{NONE}': rename it"
                )
            if not isinstance(settings, Search):
                raise MechrefusalError(
                    f"method '{name}' is a {type(settings).__name__}, which makes no steps: give GCGSettings or "
                    "AutoDANSettings"
                )
        if self.max_new_tokens < 1:
            raise MechrefusalError(f"max_new_tokens is {self.max_new_tokens}; give 1 at least")
        groups = [self.behaviours.table.get(column) for column in ("functional_category", "group")]
        if n := sum(int((group == COPYRIGHT).sum()) for group in groups if group is not None):
            raise MechrefusalError(
                f"{n} of '{self.behaviours.name}' are HarmBench's copyright behaviours, which the judges here cannot "
                "judge: leave them out"
            )

    @property
    def requests(self) -> list[str]:
        """What judges are shown: the requests, without a context."""
        return self.behaviours.table.get("behavior", self.behaviours.table["text"]).tolist()

    def require_room(self, checkpoint: Checkpoint, tokenizer, prompts: PromptSet, *, suffix: int = 0) -> None:
        """Raise MechrefusalError where a prompt with a suffix of so many tokens leaves no room for an answer."""
        what, n = f"the context of {checkpoint.id}", self.max_new_tokens
        require_room(checkpoint.path, tokenizer, prompts, max_new_tokens=n, suffix=suffix, what=what)

    def path(self, method: str, checkpoint: Checkpoint) -> Path:
        """The file of the cases of a method against a checkpoint."""
        return self.folder / f"{method}-{checkpoint.weights}.parquet"

    def attack(self, models: ModelCache, checkpoint: Checkpoint) -> None:
        """Make the cases of every method against one checkpoint; those on disk are not made again."""
        model, tokenizer = models.of(checkpoint)
        for method, settings in self.methods.items():
            how: dict[str, Any] = {"seed": self.seed, "source": checkpoint.weights}
            try:
                make_cases(model, tokenizer, self.behaviours, settings, path=self.path(method, checkpoint), **how)
            except MechrefusalError as error:
                raise MechrefusalError(f"attack '{method}' on {checkpoint.id}: {error}") from error

    def cases(self, checkpoint: Checkpoint) -> dict[str, tuple[AttackCase, ...]]:
        """The cases of every method against a checkpoint, which are on disk, in the order of the behaviours."""
        order = {id: place for place, id in enumerate(self.behaviours.ids)}
        found = {name: read_cases(self.path(name, checkpoint), source=checkpoint.weights) for name in self.methods}
        return {name: tuple(sorted(cases, key=lambda case: order[case.id])) for name, cases in found.items()}

    def answer(
        self,
        models: ModelCache | None,
        target: Checkpoint,
        texts: Sequence[str],
        *,
        source: Checkpoint | None = None,
        method: str = NONE,
        of_twins: bool = False,
    ) -> Replies:
        """Answers of the target to the prompts of a source's cases, each prompt once; those on disk are not given anew.

        Without a source the prompts are the behaviours themselves. With `of_twins` they are harmless twins, without a
        suffix or (where the source is the target) with those of its cases. Without models all of it is on disk.
        """
        model, tokenizer = (None, None) if models is None else models.of(target)
        unique = list(dict.fromkeys(texts))
        if tokenizer is not None:
            self.require_room(target, tokenizer, PromptSet.from_texts(method, unique))
        name = "twins" if of_twins else NONE if source is None else source.id
        path = self.folder / "answers" / target.id / ("" if source is None else method) / f"{name}.parquet"
        inputs: list[Any] = [target.computed, unique, self.max_new_tokens]
        if source is not None:
            inputs += [source.computed, method, asdict(self.methods[method]), self.seed]
        replies = answers(
            model,
            unique,
            path,
            stamp=fingerprint(inputs),
            tokenizer=tokenizer,
            max_new_tokens=self.max_new_tokens,
            description=_described(target, source, method, of_twins=of_twins),
        )
        return dict(zip(unique, replies["completion"], strict=True))

    def answer_twins(
        self, models: ModelCache | None, target: Checkpoint, cases: Mapping[str, Sequence[AttackCase]]
    ) -> dict:
        """Answers to the harmless twins, alone (`NONE`) and with the suffix of each method's cases, by (id, method)."""
        with_suffix = {method: self.twins.with_suffixes(attacked) for method, attacked in cases.items()}
        alone = [self.twins.prompts[place] for place in sorted(set().union(*with_suffix.values()))]
        if not alone:
            return {}
        replies = {(target.id, NONE): self.answer(models, target, alone, of_twins=True)}
        for method, texts in with_suffix.items():
            if texts:
                replies[target.id, method] = self.answer(
                    models, target, list(texts.values()), source=target, method=method, of_twins=True
                )
        return replies


def _described(target: Checkpoint, source: Checkpoint | None, method: str, *, of_twins: bool) -> str:
    if of_twins:
        return f"{target.id}: harmless twins" + ("" if source is None else f", {method} suffixes")
    return f"{target.id}: no attack" if source is None else f"{target.id}: {method} on {source.id}"
