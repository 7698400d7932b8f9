"""Answers of checkpoints to suites, and losses of the base's answers: the units of an evaluation, a checkpoint each.

Both are kept on disk, each with a stamp of what it hangs on: whoever takes a unit goes on with what is left of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch

from mechrefusal import causal, prompts
from mechrefusal.evaluation import answered
from mechrefusal.evaluation.answering import answers
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.evaluation.paired import BASE
from mechrefusal.evaluation.suites import Suite
from mechrefusal.files import whole_file
from mechrefusal.models import Checkpoint, load_causal_lm, load_tokenizer
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.checkpoints import require_room
from mechrefusal.workers import Around

FOLDER = "evaluations"
LOSSES = "losses"
Interventions = Mapping[str, causal.Intervention | None]
"""Interventions at a checkpoint by what they are called; None under `NONE`."""


@dataclass(frozen=True)
class Asking:
    """Suites at checkpoints.

    Fields:
        folder: answers are kept in `evaluations` below it.
        under: what each checkpoint answers under, by its id.
        losses: whether the losses of the base's answers are what is left, or the answers.
    """

    folder: Path
    checkpoints: Sequence[Checkpoint]
    suites: Sequence[Suite]
    under: Mapping[str, Interventions]
    max_new_tokens: int
    losses: bool = False
    _found: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What is done."""
        return "evaluate losses" if self.losses else "evaluate"

    def require_room(self) -> None:
        """Raise MechrefusalError where a prompt leaves no room for an answer at some checkpoint."""
        for checkpoint in self.checkpoints:
            tokenizer, what = load_tokenizer(checkpoint), f"the context of {checkpoint.id}"
            for suite in self.suites:
                n = self.max_new_tokens
                require_room(checkpoint.path, tokenizer, suite.prompt_set(), max_new_tokens=n, what=what)

    def of_losses(self) -> "Asking":
        """The losses of the same, which the base's answers come before."""
        return replace(self, losses=True)

    # Where things lie, and what they hang on.

    @cached_property
    def _by_id(self) -> dict[str, Checkpoint]:
        return {checkpoint.id: checkpoint for checkpoint in self.checkpoints}

    @cached_property
    def _suites(self) -> dict[str, Suite]:
        return {suite.name: suite for suite in self.suites}

    @cached_property
    def _base(self) -> Checkpoint | None:
        return next((checkpoint for checkpoint in self.checkpoints if checkpoint.arm == BASE), None)

    @cached_property
    def _stamps(self) -> dict[tuple[str, str, str], str]:
        """Stamp of the answers of (checkpoint, suite, intervention)."""
        return {
            (checkpoint.id, suite.name, spec): fingerprint(
                [checkpoint.computed, *_asked(suite), self.max_new_tokens, _numbers_of(intervention)]
            )
            for checkpoint in self.checkpoints
            for suite in self.suites
            for spec, intervention in self.under[checkpoint.id].items()
        }

    def _path(self, unit: str, suite: str, spec: str) -> Path:
        return self.folder / FOLDER / unit / f"{suite}-{fingerprint(spec)}.parquet"

    def _losses_path(self, unit: str, suite: str) -> Path:
        return self.folder / FOLDER / unit / f"{suite}-{LOSSES}.parquet"

    def _losses_stamp(self, unit: str, suite: str) -> str:
        assert self._base is not None
        return fingerprint([self._by_id[unit].computed, self._stamps[self._base.id, suite, NONE]])

    def _is_there(self, path: Path, stamp: str) -> bool:
        """Whether the file is there with this stamp; one that was is not read again."""
        if self._found.get(path) != stamp and path.is_file():
            found = set(pq.read_table(path, columns=["stamp"]).column("stamp").to_pylist())
            if found == {stamp}:
                self._found[path] = stamp
        return self._found.get(path) == stamp

    @cached_property
    def other_tokens(self) -> list[tuple[str, str]]:
        """(checkpoint, suite) whose prompts are other tokens than the base's: its answers mean something else there."""
        if self._base is None:
            return []
        texts = {name: suite.table["prompt"].tolist() for name, suite in self._suites.items()}
        tokenizers = {checkpoint.id: load_tokenizer(checkpoint) for checkpoint in self.checkpoints}
        ids = {(unit, name): prompts.prompt_ids(tokenizers[unit], texts[name]) for unit in tokenizers for name in texts}
        return [(unit, name) for unit, name in ids if ids[unit, name] != ids[self._base.id, name]]

    # The work.

    def left(self) -> dict[str, list[str]]:
        """Answers, or losses, that are not on disk."""
        if self.losses:
            return {unit: [f"{name}, {LOSSES}" for name in self._losses_left(unit)] for unit in self._by_id}
        left: dict[str, list[str]] = {unit: [] for unit in self._by_id}
        for (unit, suite, spec), stamp in self._stamps.items():
            if not self._is_there(self._path(unit, suite, spec), stamp):
                left[unit].append(suite if spec == NONE else f"{suite}, {spec}")
        return left

    def _losses_left(self, unit: str) -> list[str]:
        """Suites whose losses can be taken, and are not on disk."""
        if self._base is None:
            return []
        return [
            name
            for name, suite in self._suites.items()
            if (suite.table["side"] == "harmless").any()
            and (unit, name) not in self.other_tokens
            and self._is_there(self._path(self._base.id, name, NONE), self._stamps[self._base.id, name, NONE])
            and not self._is_there(self._losses_path(unit, name), self._losses_stamp(unit, name))
        ]

    def take(self, unit: str, around: Around) -> None:
        """Answer all suites under all interventions, and take those losses that can be taken by then."""
        checkpoint = self._by_id[unit]
        model, tokenizer = load_causal_lm(checkpoint)
        for spec, intervention in self.under[unit].items() if not self.losses else ():
            for suite in self.suites:
                what = suite.name if spec == NONE else f"{suite.name}, {spec}"
                with around(what), causal.intervened(model, intervention):
                    self._answers(unit, suite, spec, model, tokenizer)
        for name in self._losses_left(unit):
            with around(f"{name}, {LOSSES}"):
                self._take_losses(unit, self._suites[name], model, tokenizer)

    def _answers(self, unit: str, suite: Suite, spec: str, model=None, tokenizer=None) -> pd.DataFrame:
        """Without a model those that are on disk."""
        return answers(
            model,
            suite.table["prompt"].tolist(),
            self._path(unit, suite.name, spec),
            stamp=self._stamps[unit, suite.name, spec],
            tokenizer=tokenizer,
            max_new_tokens=self.max_new_tokens,
            description=f"{unit}: {suite.name}" + ("" if spec == NONE else f", {spec}"),
        )

    def _take_losses(self, unit: str, suite: Suite, model, tokenizer) -> None:
        """Cross-entropy of the base model's answers to the harmless prompts of a suite, one row a prompt."""
        assert self._base is not None
        ids, texts = _asked(suite)
        replies = self._answers(self._base.id, suite, NONE)["token_ids"].tolist()
        asked = prompts.prompt_ids(tokenizer, texts)
        rows = [row for row, side in enumerate(suite.table["side"]) if side == "harmless" and replies[row]]
        with torch.no_grad():
            losses = [_loss(model, asked[row], replies[row]) for row in rows]
        # A row of no prompt carries the stamp where no answer has tokens.
        table = pd.DataFrame({"prompt_id": ["", *(ids[row] for row in rows)], "loss": [float("nan"), *losses]})
        with whole_file(self._losses_path(unit, suite.name)) as draft:
            table.assign(stamp=self._losses_stamp(unit, suite.name)).to_parquet(draft, index=False)

    # What it gave.

    def completions(self) -> pd.DataFrame:
        """All answers, which are on disk (rows for `judged`)."""
        frames = []
        for unit, checkpoint in self._by_id.items():
            owner = {"arm": checkpoint.arm, "step": checkpoint.step, "weights": checkpoint.weights}
            for spec in self.under[unit]:
                for suite in self.suites:
                    replies = self._answers(unit, suite, spec)
                    columns = (replies[name] for name in ("completion", "token_ids", "ended"))
                    how: dict[str, Any] = {"intervention": spec, "max_new_tokens": self.max_new_tokens}
                    frames.append(answered(suite.questions(), *columns, **how).assign(**owner))
        return pd.concat(frames, ignore_index=True)

    def losses_of_base(self) -> list[pd.DataFrame]:
        """Losses of the base's answers, a table a checkpoint and suite."""
        found = []
        for unit, checkpoint in self._by_id.items():
            for name in self._suites:
                path = self._losses_path(unit, name)
                if self._base is not None and self._is_there(path, self._losses_stamp(unit, name)):
                    table = pd.read_parquet(path, columns=["prompt_id", "loss"]).iloc[1:]
                    place = {"arm": checkpoint.arm, "step": checkpoint.step, "suite": name}
                    if len(table):
                        found.append(table.reset_index(drop=True).assign(**place))
        return found


def _asked(suite: Suite) -> tuple[list[str], list[str]]:
    """Ids and texts."""
    return suite.table["prompt_id"].tolist(), suite.table["prompt"].tolist()


def _loss(model, prompt: Sequence[int], reply: Sequence[int]) -> float:
    ids = torch.tensor([[*prompt, *reply]], device=model.device)
    logits = model(ids, logits_to_keep=len(reply) + 1, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :]))


def _numbers_of(under: causal.Intervention | None) -> Any:
    """What an answer hangs on of an intervention."""
    if under is None:
        return NONE
    vectors = torch.as_tensor(getattr(under, "directions", getattr(under, "direction", None)))
    others = [getattr(under, name, None) for name in ("dose", "layer", "coefficient")]
    numbers = [type(under).__name__, [f"{value:.6g}" for value in vectors.flatten().tolist()], others]
    if (reference := getattr(under, "reference", None)) is not None:
        rows = vectors.double().reshape(-1, vectors.shape[-1])
        targets = reference.means.double() @ rows.T
        numbers.append(
            [reference.first_layer, reference.has_mean, [f"{value:.6g}" for value in targets.flatten().tolist()]]
        )
    return numbers
