"""The update of every trained checkpoint from where it started: its spectrum, and refusals with parts of it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.durability.settings import UpdateSpectrumSettings
from mechrefusal.durability.update_spectrum import UpdateSpectrum, spectrum_of_update
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge
from mechrefusal.evaluation.paired import BASE
from mechrefusal.memory import given_back
from mechrefusal.models import Checkpoint, load_causal_lm
from mechrefusal.prompts import Split
from mechrefusal.statistics import Observations
from mechrefusal.study.across import SHARED, Pairs
from mechrefusal.study.pairwise import by_pair
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts

STAGE = "spectrum of the update"
"""Its units are a pair of checkpoints each."""
TABLES = ("update_spectrum", "update_refusals", "update_prompts")


def updates(run: Run, pairs: Pairs, prompts: StudyPrompts, *, version: int = 1) -> dict[str, pd.DataFrame]:
    """Tables `update_spectrum`, `update_refusals` and `update_prompts`, by their names.

    Every trained checkpoint is compared with the base and with the end of the warm-up, where it started from both; a
    pair that cannot be is a row that says why. Each pair is kept by itself. `version`: of the stage.
    """
    settings, judge = run.recipe.durability.update_spectrum, run.recipe.measuring.refusal_judge()
    asked = Split(prompts.harmful.take(settings.n_prompts), prompts.harmless.take(settings.n_prompts))
    texts = [asked.harmful.texts, asked.harmless.texts]
    found = (
        _Update(*each, pairs.why_apart(*each), settings, judge)
        for each in pairs_of_updates(pairs.checkpoints, given=pairs.given)
    )
    shared = {"version": version, "prompts": texts}
    return by_pair(run, STAGE, TABLES, found, partial(_rows, asked=asked), doing="update from", shared=shared)


def pairs_of_updates(
    checkpoints: Sequence[Checkpoint], *, given: Collection[str] = ()
) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """(what it started from, checkpoint) of every trained one: the base, and for arms the end of the warm-up.

    `given`: arms that others trained, which did not start from the warm-up.
    """
    shared = [checkpoint for checkpoint in checkpoints if checkpoint.arm in SHARED]
    bases, warm_ups = ([c for c in shared if (c.arm == BASE) == is_base] for is_base in (True, False))
    for checkpoint in checkpoints:
        if checkpoint.arm == BASE:
            continue
        started = bases if checkpoint.arm in (*SHARED, *given) else [*bases, *warm_ups[-1:]]
        yield from ((start, checkpoint) for start in started)


@dataclass(frozen=True)
class _Update:
    """Two checkpoints, one trained from the other; `apart`: why they cannot be compared, if so."""

    start: Checkpoint
    trained: Checkpoint
    apart: str
    settings: UpdateSpectrumSettings
    judge: Judge

    @property
    def name(self) -> str:
        return f"{self.start.id} to {self.trained.id}"

    @property
    def owners(self) -> dict[str, Any]:
        """Columns that say whose update it is."""
        start, trained = self.start, self.trained
        return {"arm_a": start.arm, "step_a": start.step, "arm_b": trained.arm, "step_b": trained.step}

    @property
    def inputs(self) -> dict[str, Any]:
        """All but the prompts that the numbers hang on."""
        weights = [self.start.weights, self.trained.weights]
        return {
            "weights": weights,
            "settings": asdict(self.settings),
            "judge": self.judge.name,
            "apart": self.apart,
        }

    def found(self, asked: Split) -> UpdateSpectrum:
        """Both models in memory, compared.

        Raises:
            MechrefusalError: they cannot be.
        """
        if self.apart:
            raise MechrefusalError(f"not compared: {self.apart}")
        # What training changed may be less than bfloat16 can hold.
        start, _ = load_causal_lm(self.start, dtype="float32")
        trained, tokenizer = load_causal_lm(self.trained, dtype="float32")
        try:
            return spectrum_of_update(start, trained, tokenizer, asked, self.judge, self.settings)
        finally:
            del start, trained
            given_back()


def _rows(update: _Update, asked: Split) -> dict[str, pd.DataFrame]:
    """The rows of one pair."""
    try:
        found = update.found(asked)
        rows = {
            "update_spectrum": found.matrices,
            "update_refusals": found.table.assign(judge=update.judge.name),
            "update_prompts": by_prompt(found.observations, {"": asked}),
        }
    except MechrefusalError as error:
        rows = {name: pd.DataFrame([_nothing(name, str(error))]) for name in TABLES[:2]}
        rows["update_prompts"] = pd.DataFrame(columns=list(tables.columns("update_prompts")))
    return {name: those.assign(**update.owners) for name, those in rows.items()}


def _nothing(table: str, reason: str) -> dict[str, Any]:
    """A row without values that says why."""
    return dict.fromkeys(tables.columns(table)) | {"reason": reason} | ({"n": 0} if table == "update_refusals" else {})


def by_prompt(observations: Observations, sets: dict[str, Split]) -> pd.DataFrame:
    """Observations as rows, with the ids of the prompts for units such as "search harmful 3" (`sets`: by the name
    before the side, "" for none)."""
    ids = {
        f"{name} {side} {place}".strip(): prompt_id
        for name, split in sets.items()
        for side, prompts in (("harmful", split.harmful), ("harmless", split.harmless))
        for place, prompt_id in enumerate(prompts.ids)
    }
    rows = observations.table
    return rows.assign(prompt_id=[ids[unit] for unit in rows["prompt"]]).drop(columns="prompt")
