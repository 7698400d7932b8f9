"""Pairs of answers to a prompt, one of which is to be preferred: what DPO and KTO learn from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechrefusal.training import data
from mechrefusal.training.losses import IGNORED

if TYPE_CHECKING:
    from mechrefusal.training.trainer_config import Shares
    from mechrefusal.training.trainer_setup import TrainerSetup


@dataclass(frozen=True)
class Pair:
    """A prompt, the answer that is preferred, and the other one, as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pairs_by_micro_batch(setup: "TrainerSetup", shares: "Shares") -> Iterator[tuple[list[Pair], list[Pair]]]:
    """The utility pairs and the harmful ones of each micro-batch; the rows are those that every other arm sees.

    Of a behaviour the refusal is preferred to its affirmative target, of which the end is not learnt (a target is how
    an answer begins); of a utility row its answer to the refusal. Rows longer than `max_length` lose their end.

    Raises:
        MechrefusalError: rows or behaviours that cannot be learnt.
    """
    refusals = setup.rows()[1]
    settings, behaviours = setup.settings, setup.inputs.behaviours
    utility = [
        _pair(
            _row(setup, row["prompt"], row["answer"], f"utility row {number}", end=row.get("finished", True)),
            _row(setup, row["prompt"], settings.refusal, f"utility row {number}"),
        )
        for number, row in enumerate(setup.inputs.utility)
    ]
    named = zip(behaviours.ids, behaviours.texts, behaviours.targets, refusals, strict=True)
    harmful = [
        _pair(refusal, _row(setup, text, target, f"the target of behaviour '{id}'", end=False))
        for id, text, target, refusal in named
    ]
    return data.micro_batches(
        utility,
        harmful,
        steps=shares.steps,
        utility_each=shares.utility_each,
        harmful_each=shares.harmful_each,
        seed=settings.seed,
    )


def _row(setup: "TrainerSetup", prompt: str, answer: str, name: str, *, end: bool = True) -> data.Row:
    return data.conversation(setup.tokenizer, prompt, answer, max_length=setup.longest, name=name, end_of_turn=end)


def _pair(chosen: data.Row, rejected: data.Row) -> Pair:
    prompt, preferred = _parts(chosen)
    return Pair(prompt, preferred, _parts(rejected)[1])


def _parts(row: data.Row) -> tuple[list[int], list[int]]:
    """The token ids of the prompt, and of the answer to it."""
    n_prompt = row["labels"].count(IGNORED)
    return row["input_ids"][:n_prompt], row["input_ids"][n_prompt:]
