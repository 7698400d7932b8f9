"""Checkpoints on benchmarks: answers, judges' verdicts, rates with intervals, and what changed between checkpoints.

In a notebook:

    import mechrefusal as mr
    suites = [mr.evaluation.read_suite("xstest=xstest_prompts.csv"), mr.evaluation.read_suite("builtin")]
    found = mr.study.evaluate("checkpoints/demo", suites, intervene=["ablate:best"])
    found.rates                                          # by suite, side, category, judge; n and 95% intervals
    found.differences                                    # between checkpoints, on the same prompts

It measures: nothing here changes or writes weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from mechrefusal import causal, prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, RefusalJudge
from mechrefusal.evaluation.answering import answers
from mechrefusal.evaluation.suites import Suite, require_distinct
from mechrefusal.models import Checkpoint, load_causal_lm
from mechrefusal.progress import console
from mechrefusal.study import chosen_direction, evaluation_tables, selection, tables
from mechrefusal.study.evaluation_tables import NONE
from mechrefusal.study.run import Run, fingerprint

FOLDER = "evaluations"


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave: tables `verdicts`, `suite_rates`, `suite_differences`, `answer_losses`,
    `judge_agreement` and `leaks` of the study (see `mechrefusal.study.tables`), and the checkpoints that could not be
    intervened on, with the reason.
    """

    verdicts: pd.DataFrame
    rates: pd.DataFrame
    differences: pd.DataFrame
    losses: pd.DataFrame
    agreement: pd.DataFrame
    leaks: pd.DataFrame
    skipped: tuple[str, ...] = ()


def evaluate(
    source: Run | Checkpoint | Path | str,
    suites: Sequence[Suite],
    *,
    judges: Sequence[Judge] = (),
    intervene: Sequence[str] = (),
    checkpoints: Sequence[str] = (),
    max_new_tokens: int = 128,
    out: Path | str | None = None,
    strict: bool = False,
    seed: int = 0,
) -> Evaluated:
    """Answer every suite at every checkpoint, judge the answers, and compare the checkpoints.

    Answers are greedy, and kept in `<out>/evaluations/` batch by batch: a killed evaluation continues, another judge
    does not ask again. Tables are kept in `<out>/measurements/`, where verdicts of other suites stay.

    Args:
        source: a run or its folder (all its checkpoints), one checkpoint of a run (RUN/sft/step-00050), any model.
        judges: by default the refusal judge. Judges of harm (`mechrefusal.evaluation.judges`) stand beside it.
        intervene: also answer under these, one after another: `ablate:carrier`, `ablate:best` (the best candidate where
            there is no carrier), `ablate:random`, `ablate:FILE`, and `add:DIRECTION:COEFFICIENT`, at the direction's
            layer. A checkpoint without such a direction is left out of that intervention, and named.
        checkpoints: ids of a run's checkpoints (`base-step-00000`, ...); none: all.
        max_new_tokens: longest answer.
        out: folder; by default that of the run. Without a run and without it nothing is kept.
        strict: refuse to evaluate on prompts that the run trained on or chose its directions by.

    Raises:
        MechrefusalError: no suite, a name twice, an unknown checkpoint or intervention, an empty checkpoint list; with
            `strict`, leaked prompts; a prompt that does not fit the context. Nothing is answered then.
    """
    require_distinct(list(suites))
    if max_new_tokens < 1:
        raise MechrefusalError(f"max_new_tokens is {max_new_tokens}; give 1 at least")
    run, chosen = _checkpoints(source, checkpoints)
    wanted = [NONE, *dict.fromkeys(intervene)]
    for spec in wanted[1:]:
        _parsed(spec)
    leaks = _leaks(run, suites, strict=strict)
    asked: list[Judge] = list(judges) or [RefusalJudge()]
    folder = Path(out) if out is not None else run.folder if run is not None else None
    with TemporaryDirectory() as nowhere:
        kept = folder if folder is not None else Path(nowhere)
        found, losses, skipped = _answered(run, chosen, suites, wanted, kept, max_new_tokens, seed)
        verdicts = evaluation_tables.judged(found, asked)
        verdicts = evaluation_tables.merged(
            verdicts, kept / "measurements", {point.id: point.weights for point in chosen}
        )
        return _kept(verdicts, losses, leaks, skipped, kept / "measurements")


def _checkpoints(source: Run | Checkpoint | Path | str, ids: Sequence[str]) -> tuple[Run | None, list[Checkpoint]]:
    if isinstance(source, (Path, str)) and (Path(source).expanduser() / "recipe.yaml").is_file():
        source = Run.open(Path(source).expanduser())
    if not isinstance(source, Run):
        if ids:
            raise MechrefusalError(f"'{source}' is no run, so it has no checkpoint '{ids[0]}': leave checkpoints out")
        run, checkpoint = chosen_direction.located(source)
        return run, [checkpoint]
    run = source
    there = {point.id: point for point in run.checkpoints()}
    if not there:
        raise MechrefusalError(f"run '{run.folder}' has no checkpoints yet; train it first: mechrefusal train")
    if unknown := [one for one in ids if one not in there]:
        raise MechrefusalError(f"run '{run.folder}' has no checkpoint '{unknown[0]}'; it has {', '.join(there)}")
    return run, [there[one] for one in ids] if ids else list(there.values())


def _parsed(spec: str) -> tuple[str, str, float]:
    """Kind, direction and coefficient of `ablate:DIRECTION` or `add:DIRECTION:COEFFICIENT`."""
    kind, _, rest = spec.partition(":")
    direction, _, coefficient = rest.rpartition(":") if kind == "add" else (rest, "", "1")
    try:
        value = float(coefficient)
    except ValueError:
        value = float("nan")
    if kind not in ("ablate", "add") or not direction or value != value or abs(value) == float("inf"):
        raise MechrefusalError(
            f"unknown intervention '{spec}': give ablate:DIRECTION or add:DIRECTION:COEFFICIENT, with carrier, best, "
            "random or a safetensors file as direction (ablate:carrier, add:best:1)"
        )
    return kind, direction, value


def _intervention(run: Run | None, checkpoint: Checkpoint, spec: str, seed: int) -> causal.Intervention | None:
    if spec == NONE:
        return None
    kind, direction, value = _parsed(spec)
    if direction == "random":
        found = chosen_direction.random(run, checkpoint, seed=seed, added=kind == "add")
    elif direction in chosen_direction.NAMES:
        found = chosen_direction.of_run(run, checkpoint, best=direction == "best")
    else:
        found = chosen_direction.of_file(Path(direction).expanduser(), checkpoint, layer=None, position=None)
    if kind == "ablate":
        return causal.Ablation(found.direction)
    if found.layer is None or found.direction.ndim != 1:
        raise MechrefusalError(f"the {found.name} cannot be added: nothing says at which layer, or it is a subspace")
    return causal.Addition(found.direction, found.layer, value)


def _answered(
    run: Run | None,
    checkpoints: Sequence[Checkpoint],
    suites: Sequence[Suite],
    interventions: Sequence[str],
    folder: Path,
    max_new_tokens: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    frames: list[pd.DataFrame] = []
    losses: list[pd.DataFrame] = []
    skipped: list[str] = []
    reference: dict[str, list[list[int]]] = {}
    for number, checkpoint in enumerate(checkpoints, start=1):
        console.print(f"evaluating {checkpoint.id} ({number} of {len(checkpoints)})", highlight=False, soft_wrap=True)
        model, tokenizer = load_causal_lm(checkpoint)
        for spec in interventions:
            try:
                under = _intervention(run, checkpoint, spec, seed)
            except MechrefusalError as error:
                if len(checkpoints) == 1:
                    raise
                skipped.append(f"{spec} at {checkpoint.id}: {error}")
                continue
            for suite in suites:
                path = folder / FOLDER / checkpoint.id / f"{suite.name}-{fingerprint(spec)}.parquet"
                texts = suite.table["prompt"].tolist()
                stamp = fingerprint(
                    [checkpoint.weights, suite.table["prompt_id"].tolist(), texts, max_new_tokens, _told(under)]
                )
                with causal.intervened(model, under):
                    found = answers(
                        model,
                        texts,
                        path,
                        stamp=stamp,
                        tokenizer=tokenizer,
                        max_new_tokens=max_new_tokens,
                        description=f"{checkpoint.id}: {suite.name}" + ("" if under is None else f", {spec}"),
                    )
                frames.append(_rows(checkpoint, suite, spec, found))
                if under is None and checkpoint.arm == "base":
                    reference[suite.name] = found["token_ids"].tolist()
                if under is None and suite.name in reference and (suite.table["side"] == "harmless").any():
                    losses.append(_losses(model, tokenizer, checkpoint, suite, reference[suite.name]))
        del model
    if skipped:
        for line in skipped:
            console.print(f"left out: {line}", highlight=False, soft_wrap=True)
    return pd.concat(frames, ignore_index=True), evaluation_tables.relative(losses), tuple(skipped)


def _told(under: causal.Intervention | None) -> Any:
    """What an answer hangs on of an intervention."""
    if under is None:
        return NONE
    vectors = torch.as_tensor(getattr(under, "directions", getattr(under, "direction", None)))
    others = [getattr(under, name, None) for name in ("dose", "layer", "coefficient")]
    return [type(under).__name__, [f"{value:.6g}" for value in vectors.flatten().tolist()], others]


def _rows(checkpoint: Checkpoint, suite: Suite, spec: str, found: pd.DataFrame) -> pd.DataFrame:
    known = suite.table[["side", "group", "category", "prompt_id", "prompt", "behaviour"]].reset_index(drop=True)
    return known.assign(
        arm=checkpoint.arm,
        step=checkpoint.step,
        weights=checkpoint.weights,
        suite=suite.name,
        attack=NONE,
        intervention=spec,
        completion=found["completion"].tolist(),
        n_tokens=[len(ids) for ids in found["token_ids"]],
        ended=found["ended"].tolist(),
    )


def _losses(model, tokenizer, checkpoint: Checkpoint, suite: Suite, replies: list[list[int]]) -> pd.DataFrame:
    """Cross-entropy of the base model's answers to the harmless prompts, one row a prompt."""
    rows = [row for row, side in enumerate(suite.table["side"]) if side == "harmless" and replies[row]]
    ids = prompts.prompt_ids(tokenizer, [suite.table["prompt"].iloc[row] for row in rows])
    with torch.no_grad():
        found = [_loss(model, one, replies[row]) for one, row in zip(ids, rows, strict=True)]
    known = {"arm": checkpoint.arm, "step": checkpoint.step, "suite": suite.name}
    return pd.DataFrame({**known, "prompt_id": suite.table["prompt_id"].iloc[rows].tolist(), "loss": found})


def _loss(model, prompt: Sequence[int], reply: Sequence[int]) -> float:
    ids = torch.tensor([[*prompt, *reply]], device=model.device)
    logits = model(ids, logits_to_keep=len(reply) + 1, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :]))


def _leaks(run: Run | None, suites: Sequence[Suite], *, strict: bool) -> pd.DataFrame:
    """What the suites share with what the run trained on and chose its directions by (table `leaks`)."""
    if run is None:
        return tables.frame("leaks", [])
    used = selection.asked(run.recipe).used()
    rows = []
    for suite in suites:
        found = prompts.leaks({**used, suite.name: suite.prompt_set()})
        rows.append(found[(found["set_a"] == suite.name) | (found["set_b"] == suite.name)])
    leaks = tables.frame("leaks", pd.concat(rows, ignore_index=True))
    if len(leaks):
        first = [
            f"{row.id_b} of {row.set_b} ({row.kind}: {row.id_a} of {row.set_a})" for row in leaks.head(3).itertuples()
        ]
        shown = "; ".join(first)
        said = f"{len(leaks)} prompts of the suites are among those that '{run.folder}' used, such as {shown}"
        if strict:
            raise MechrefusalError(f"{said}; take them out of the suite, or evaluate without strict")
        console.print(f"{said}; they are in table 'leaks'", highlight=False, soft_wrap=True)
    return leaks


def _kept(
    verdicts: pd.DataFrame, losses: pd.DataFrame, leaks: pd.DataFrame, skipped: tuple[str, ...], folder: Path
) -> Evaluated:
    found = Evaluated(
        verdicts=verdicts,
        rates=evaluation_tables.rates(verdicts),
        differences=evaluation_tables.differences(verdicts),
        losses=evaluation_tables.united("answer_losses", losses, folder),
        agreement=evaluation_tables.agreements(verdicts),
        leaks=evaluation_tables.united("leaks", leaks, folder),
        skipped=skipped,
    )
    for name, table in {
        "verdicts": found.verdicts,
        "suite_rates": found.rates,
        "suite_differences": found.differences,
        "answer_losses": found.losses,
        "judge_agreement": found.agreement,
        "leaks": found.leaks,
    }.items():
        tables.write(table, name, folder)
    return found
