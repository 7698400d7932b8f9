"""The work of stress tests: attack cases made anew against each checkpoint, and what checkpoints answer to them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mechrefusal.attacks import AttackCase, AutoDANSettings, GCGSettings, make_cases
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.answering import answers
from mechrefusal.evaluation.suites import COPYRIGHT
from mechrefusal.models import Checkpoint, load_causal_lm, load_tokenizer
from mechrefusal.progress import say
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

    def attack(self, models: ModelCache, checkpoint: Checkpoint) -> dict[tuple[str, str], tuple[AttackCase, ...]]:
        """The cases of every method against one checkpoint; those on disk are not made again."""
        model, tokenizer = models.of(checkpoint)
        cases: dict[tuple[str, str], tuple[AttackCase, ...]] = {}
        for method, settings in self.methods.items():
            path = self.folder / f"{method}-{checkpoint.weights}.parquet"
            try:
                made = make_cases(
                    model, tokenizer, self.behaviours, settings, seed=self.seed, source=checkpoint.weights, path=path
                )
            except MechrefusalError as error:
                raise MechrefusalError(f"attack '{method}' on {checkpoint.id}: {error}") from error
            cases[checkpoint.id, method] = tuple(made)
        return cases

    def answer(
        self,
        models: ModelCache,
        target: Checkpoint,
        texts: Sequence[str],
        *,
        source: Checkpoint | None = None,
        method: str = NONE,
        of_twins: bool = False,
    ) -> Replies:
        """Answers of the target to the prompts of a source's cases, each prompt once; those on disk are not given anew.

        Without a source the prompts are the behaviours themselves. With `of_twins` they are harmless twins, without a
        suffix or (where the source is the target) with those of its cases.
        """
        model, tokenizer = models.of(target)
        unique = list(dict.fromkeys(texts))
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

    def answer_twins(self, models: ModelCache, target: Checkpoint, cases: Mapping[str, Sequence[AttackCase]]) -> dict:
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


def answered(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Answers:
    """Attack each checkpoint and ask it its own cases, by step; then ask all of them the others' final ones."""
    suffix = max((each.suffix_length for each in plan.methods.values() if isinstance(each, GCGSettings)), default=0)
    attacked = [plan.behaviours]
    if plan.twins and suffix:
        attacked.append(PromptSet.from_texts(plan.twins.name, list(plan.twins.prompts.values())))
        say(f"{len(plan.twins)} of {len(plan.behaviours)} behaviours have a harmless twin to put the suffix behind")
    for checkpoint in checkpoints:
        for each in attacked:
            plan.require_room(checkpoint, load_tokenizer(checkpoint), each, suffix=suffix)
    models, collected = ModelCache(), Answers()
    for number, target in enumerate(checkpoints, start=1):
        say(f"attacking {target.id} ({number} of {len(checkpoints)})")
        collected.cases.update(plan.attack(models, target))
        collected.replies[target.id, NONE, NONE] = plan.answer(models, target, plan.behaviours.texts)
        for method, settings in plan.methods.items():
            cases = collected.cases[target.id, method]
            texts = [case.history_prompts[step] for step in curve_steps(settings.steps) for case in cases]
            replies = plan.answer(models, target, texts, source=target, method=method)
            collected.replies[target.id, target.id, method] = replies
        own_cases = {method: collected.cases[target.id, method] for method in plan.methods}
        collected.twins.update(plan.answer_twins(models, target, own_cases))
    for number, target in enumerate(reversed(checkpoints), start=1):  # the last one is loaded still
        others = [source for source in checkpoints if source is not target]
        if others:
            say(f"replaying the others' cases at {target.id} ({number} of {len(checkpoints)})")
        for source in others:
            for method in plan.methods:
                texts = [case.prompt for case in collected.cases[source.id, method]]
                replies = plan.answer(models, target, texts, source=source, method=method)
                collected.replies[target.id, source.id, method] = replies
    return collected


def _described(target: Checkpoint, source: Checkpoint | None, method: str, *, of_twins: bool) -> str:
    if of_twins:
        return f"{target.id}: harmless twins" + ("" if source is None else f", {method} suffixes")
    return f"{target.id}: no attack" if source is None else f"{target.id}: {method} on {source.id}"
