"""Template jailbreaks: fixed texts of our own, each with a place for the behaviour.

The kinds are those of the literature (competing objectives and distraction, 2307.02483; hand-written templates as
HarmBench's baseline, 2402.04249). The texts are short, generic and without any operational detail: what they measure is
whether a refusal survives another framing. Nothing is optimised, so the cost of a case is one forward pass.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal import prompts
from mechrefusal.attacks.cases import AttackCase
from mechrefusal.attacks.context import AttackContext
from mechrefusal.attacks.target_loss import target_losses
from mechrefusal.errors import MechrefusalError
from mechrefusal.models.frozen import frozen
from mechrefusal.prompts.sources import csv_rows

PLACEHOLDER = "{behaviour}"
"""Where a behaviour goes. It is replaced, never formatted: other braces, in texts and behaviours, are only braces."""


@dataclass(frozen=True)
class Template:
    """A text around a behaviour.

    Raises:
        MechrefusalError: no name, or not exactly one place for the behaviour.
    """

    name: str
    category: str
    text: str

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise MechrefusalError(f"a jailbreak template has no name ('{self.text[:40]}'): give it one")
        if (n_places := self.text.count(PLACEHOLDER)) != 1:
            raise MechrefusalError(
                f"jailbreak template '{self.name}' holds '{PLACEHOLDER}' {n_places} times: it must hold it once"
            )

    def fill(self, behaviour: str) -> str:
        """The text with `behaviour`, letter for letter, in its place."""
        return filled(self.text, behaviour)


def templates() -> list[Template]:
    """The templates that come with the package."""
    return list(_own())


def apply(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    behaviours: prompts.PromptSet,
    *,
    source: str,
    templates: Sequence[Template] | None = None,
    seed: int = 0,
) -> list[AttackCase]:
    """Every behaviour in every template, behaviour by behaviour, with the loss of its target measured.

    The model is left as it was. A case's id is "<behaviour's id>/<template's name>"; its `forward_tokens` are those of
    its prompt and target without the last, whatever it shares with others; its `seconds` are an equal share.

    Args:
        behaviours: with `PromptSet.with_targets`, where one has no target.
        source: hash of the weights that the losses belong to.
        templates: those of the package by default.
        seed: not read, as nothing is drawn; it is there so that all attacks are called alike.

    Raises:
        MechrefusalError: a name occurs twice among the templates; a target is empty, a prompt with its target is longer
            than the model reads, or a chat template is missing (each before the first forward pass, naming the case);
            a loss is not finite.
    """
    chosen = list(_own() if templates is None else templates)
    names = [template.name for template in chosen]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise MechrefusalError(f"two jailbreak templates are called '{repeated[0]}': names must be unique")
    started = time.perf_counter()
    asked = behaviours.with_targets()
    attempts = [
        (f"{id}/{template.name}", behaviour, target, template.fill(behaviour))
        for id, behaviour, target in zip(asked.ids, asked.texts, asked.targets, strict=True)
        for template in chosen
    ]
    contexts = [
        AttackContext.of(tokenizer, id=id, behaviour=prompt, suffix="", target=target, model=model)
        for id, _, target, prompt in attempts
    ]
    before = [context.before + context.after for context in contexts]
    targets = [context.target for context in contexts]
    with frozen(model):
        losses = target_losses(model, before, targets).tolist()
    seconds = (time.perf_counter() - started) / max(1, len(attempts))
    cases = []
    for (id, behaviour, target, prompt), read, answer, loss in zip(attempts, before, targets, losses, strict=True):
        if not math.isfinite(loss):
            raise MechrefusalError(
                f"the loss of case '{id}' is {loss}: the model's weights or logits are not finite; "
                "use another checkpoint"
            )
        tokens = len(read) + len(answer) - 1
        cases.append(
            AttackCase(
                id,
                behaviour,
                target,
                prompt=prompt,
                loss=loss,
                method="templates",
                source=source,
                age=1,
                forward_tokens=tokens,
                seconds=seconds,
                history=(loss,),
                history_prompts=(prompt,),
                history_tokens=(tokens,),
            )
        )
    return cases


def filled(text: str, behaviour: str) -> str:
    """`text` with `behaviour`, letter for letter, in place of its one placeholder."""
    assert text.count(PLACEHOLDER) == 1, text
    return text.replace(PLACEHOLDER, behaviour)


@cache
def stored(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a CSV file that lies beside this module. Do not change them: they are read once."""
    text = (files("mechrefusal.attacks") / name).read_text(encoding="utf-8").replace("\r\n", "\n")
    return tuple(row for _, row in csv_rows(text, name).rows)


@cache
def _own() -> tuple[Template, ...]:
    return tuple(Template(row["name"], row["category"], row["text"]) for row in stored("jailbreaks.csv"))
