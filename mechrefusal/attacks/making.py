"""The case bank: cases of any method for a set of behaviours, with what they cost, kept as they are made."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal import tables
from mechrefusal.attacks import autodan, gcg, jailbreaks
from mechrefusal.attacks.cases import AttackCase, from_arrow, read_arrow, to_arrow
from mechrefusal.attacks.context import AttackContext
from mechrefusal.attacks.settings import AutoDANSettings, GCGSettings
from mechrefusal.attacks.streams import random_stream
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.progress import bar
from mechrefusal.prompts import PromptSet

METHODS = ("gcg", "autodan", "templates")

MADE_WITH = b"mechrefusal.attack"

AT_ONCE = 8
"""Behaviours that are attacked in step; after each such group its cases are on disk."""


@dataclass(frozen=True)
class TemplateSettings:
    """Which template jailbreaks to try; empty: all of them. Every behaviour gives one case a template."""

    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = [template.name for template in jailbreaks.templates()]
        if unknown := [name for name in self.names if name not in known]:
            raise MechrefusalError(f"unknown jailbreak templates {unknown}: choose from {', '.join(known)}")


AttackMethod = GCGSettings | AutoDANSettings | TemplateSettings
"""The settings of a method say which one it is."""


def method_of(settings: AttackMethod) -> str:
    """Name of the method that `settings` are for."""
    kinds = {GCGSettings: "gcg", AutoDANSettings: "autodan", TemplateSettings: "templates"}
    return kinds[type(settings)]


def make_cases(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    behaviours: PromptSet,
    settings: AttackMethod,
    *,
    seed: int,
    source: str,
    path: Path | str | None = None,
    at_once: int = AT_ONCE,
) -> list[AttackCase]:
    """Attack every behaviour of a set with the method that `settings` are for, in order.

    Each behaviour has its own random stream, from `seed` and its id: its case does not depend on the others.

    Args:
        source: hash of the weights of `model`, kept in every case.
        path: parquet file that the cases are kept in as they are made; what stands in it already, made with the same
            settings, is not made again.
        at_once: behaviours attacked in step.

    Raises:
        MechrefusalError: an empty target, a prompt longer than the model's context or another unusable case, before
            the first step; a file of other settings at `path`; weights that are not finite.
    """
    behaviours = behaviours.with_targets()
    made_with = {
        "settings": asdict(settings),
        "method": method_of(settings),
        "seed": seed,
        "source": source,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    done = _kept(path, made_with, behaviours) if path is not None else []
    finished = {_behaviour_id(case) for case in done}
    left = behaviours[[place for place, id in enumerate(behaviours.ids) if id not in finished]]
    if len(left):
        for new in _attacked(model, tokenizer, left, settings, seed=seed, source=source, at_once=at_once):
            done += new
            if path is not None:
                _keep(done, path, made_with)
    order = {id: place for place, id in enumerate(behaviours.ids)}
    return sorted(done, key=lambda case: order[_behaviour_id(case)])


def _behaviour_id(case: AttackCase) -> str:
    """Id of the behaviour: template cases add the template's name to it."""
    return case.id.rpartition("/")[0] if case.method == "templates" else case.id


def _attacked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    behaviours: PromptSet,
    settings: AttackMethod,
    *,
    seed: int,
    source: str,
    at_once: int,
) -> Iterator[list[AttackCase]]:
    """The cases, group by group. What is wrong with any behaviour is said before the first is attacked."""
    description = f"{method_of(settings)} on {behaviours.name}"
    if isinstance(settings, TemplateSettings):
        yield jailbreaks.apply(tokenizer, model, behaviours, source=source, templates=_templates(settings))
        return
    method: Any = gcg if isinstance(settings, GCGSettings) else autodan
    cases: list[AttackCase] = method.start_all(tokenizer, behaviours, settings, source=source)
    for case in cases:
        AttackContext.of(
            tokenizer, id=case.id, behaviour=case.behaviour, suffix=case.suffix, target=case.target, model=model
        )
        if isinstance(settings, AutoDANSettings):
            autodan.require_fitting(model, tokenizer, case, settings)
    with bar(description, settings.steps * len(cases)) as progress:
        for start in range(0, len(cases), at_once):
            part = cases[start : start + at_once]
            generators = [random_stream(seed, case.id) for case in part]

            def on_step(now: Sequence[AttackCase]) -> None:
                mean = sum(case.loss for case in now) / len(now)
                progress.advance(len(now), description=f"{description}  loss {mean:.3f}")

            yield method.optimise_all(model, tokenizer, part, settings, generators=generators, on_step=on_step)


def _templates(settings: TemplateSettings) -> list[jailbreaks.Template]:
    return [template for template in jailbreaks.templates() if not settings.names or template.name in settings.names]


def _keep(cases: Sequence[AttackCase], path: Path | str, made_with: dict) -> None:
    table = to_arrow(cases).replace_schema_metadata({MADE_WITH: json.dumps(made_with, sort_keys=True)})
    with whole_file(path) as draft:
        pq.write_table(table, draft)


def _kept(path: Path | str, made_with: dict, behaviours: PromptSet) -> list[AttackCase]:
    """Cases of these behaviours that stand at `path` already."""
    if not Path(path).exists():
        return []
    table = read_arrow(path)
    try:
        known = dict(json.loads((table.schema.metadata or {}).get(MADE_WITH, b"{}")))
    except (ValueError, TypeError) as error:
        raise MechrefusalError(f"'{path}' does not say what its cases were made with: make them again") from error
    wanted = json.loads(json.dumps(made_with))
    if known != wanted:
        differing = sorted(key for key in {*known, *wanted} if known.get(key) != wanted.get(key))
        raise MechrefusalError(
            f"'{path}' holds attack cases that were made with another {', '.join(differing)}: give another file, or "
            "delete this one"
        )
    asked_of = dict(zip(behaviours.ids, zip(behaviours.texts, behaviours.targets, strict=True), strict=True))
    cases = from_arrow(table, path, source=made_with["source"])
    foreign = [case for case in cases if asked_of.get(_behaviour_id(case)) != (case.behaviour, case.target)]
    if foreign:
        raise MechrefusalError(
            f"'{path}' holds the case '{foreign[0].id}' of another behaviour or target: give another file, or delete "
            "this one"
        )
    return cases


def cost_table(cases: Sequence[AttackCase]) -> pd.DataFrame:
    """Table `cases`: what cases gained and cost."""
    rows = [
        {
            "source": case.source,
            "method": case.method,
            "case": case.id,
            "behaviour": case.behaviour,
            "prompt": case.prompt,
            "loss_first": case.history[0] if case.history else float("nan"),
            "loss": case.loss,
            "steps": case.steps,
            "forward_tokens": case.forward_tokens,
            "dropped": case.dropped,
            "seconds": case.seconds,
        }
        for case in cases
    ]
    return tables.frame("cases", rows)
