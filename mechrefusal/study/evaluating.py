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
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from mechrefusal import causal, prompts, tables
from mechrefusal.attacks import AutoDANSettings, GCGSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, answered, judged
from mechrefusal.evaluation.answering import answers
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.evaluation.paired import BASE
from mechrefusal.evaluation.suites import Suite, require_distinct
from mechrefusal.files import require_writable
from mechrefusal.models import Checkpoint, context_length, load_causal_lm, load_tokenizer
from mechrefusal.progress import console
from mechrefusal.prompts import ChatSettings
from mechrefusal.study import chosen_direction, evaluation_tables, labelling, own_suites, selection
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.judging import refusal_judge
from mechrefusal.study.named_interventions import NamedIntervention
from mechrefusal.study.recipe import AttackSettings
from mechrefusal.study.run import Run
from mechrefusal.study.stress import Stressed, stress
from mechrefusal.study.stress_twins import attacked

FOLDER = "evaluations"
ATTACKS = ("gcg", "autodan")
"""Attacks that can be made anew against a checkpoint."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave: tables `verdicts`, `rates`, `suite_differences`, `answer_losses`, `judge_agreement` and
    `leaks` of the study (see `mechrefusal.tables`), and the checkpoints that could not be intervened on, with the
    reason. `verdicts` and `rates` hold what was judged before too, the study's own suites among it.
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
    chat: ChatSettings | None = None,
) -> Evaluated:
    """Answer every suite at every checkpoint, judge the answers, and compare the checkpoints.

    Answers are greedy, and kept in `<out>/evaluations/` batch by batch: a killed evaluation continues, another judge
    does not ask again. Tables are kept in `<out>/measurements/`, where verdicts of other suites stay.

    Args:
        source: a run or its folder (all its checkpoints), one checkpoint of a run (RUN/sft/step-00050), any model.
        judges: by default the judge of refusal that the run measures by. Judges of harm may stand beside it.
        intervene: also answer under these, one after another: `ablate:carrier`, `ablate:best` (the best candidate where
            there is no carrier), `ablate:random`, `ablate:FILE`, and `add:DIRECTION:COEFFICIENT`, at the direction's
            layer; see `NamedIntervention`. A checkpoint without such a direction is left out of that intervention, and
            named.
        checkpoints: ids of a run's checkpoints (`base-step-00000`, ...); none: all.
        max_new_tokens: longest answer.
        out: folder; by default that of the run. Without a run and without it nothing is kept.
        strict: refuse to evaluate on prompts that the run trained on or chose its directions by.
        chat: how a model is asked that belongs to no run (`prompts.ChatSettings`): thinking or not, and for how long.

    Raises:
        MechrefusalError: no suite, a name of a suite or judge twice, a suite with the name of one that measurements
            ask, judges of harm without a harmful prompt, an unknown checkpoint or intervention, a run without
            checkpoints; with `strict`, leaked prompts; a prompt that does not fit the context. Nothing is answered
            then.
    """
    require_distinct(list(suites))
    if taken := [suite.name for suite in suites if suite.name in own_suites.SIDES]:
        raise MechrefusalError(f"suite '{taken[0]}' has the name of one that measurements ask: give it another name")
    if max_new_tokens < 1:
        raise MechrefusalError(f"max_new_tokens is {max_new_tokens}; give 1 at least")
    run, chosen = _checkpoints(source, checkpoints, chat)
    wanted = [NamedIntervention.parse(spec) for spec in dict.fromkeys(intervene)]
    asked: list[Judge] = list(judges) or [refusal_judge(run)]
    evaluation_tables.require_judges(asked, suites)
    leaks = _leaks(run, suites, strict=strict)
    folder = Path(out).expanduser() if out is not None else run.folder if run is not None else None
    if folder is not None:
        require_writable(folder / FOLDER, folder / "measurements", folder=True)
    labels = labelling.labels_in(folder) if folder is not None else None
    with TemporaryDirectory() as nowhere:
        kept = folder if folder is not None else Path(nowhere)
        found, losses, skipped = _answered(run, chosen, suites, wanted, kept, max_new_tokens, seed)
        tables_in = kept / "measurements"
        changed = evaluation_tables.changed(tables_in, {point.id: point.weights for point in chosen})
        verdicts, rates = evaluation_tables.keep(judged(found, asked), tables_in, labels)
        made = Evaluated(
            verdicts=verdicts,
            rates=rates,
            differences=evaluation_tables.differences(verdicts),
            losses=evaluation_tables.united("answer_losses", losses, tables_in, changed),
            agreement=evaluation_tables.agreements(verdicts),
            leaks=evaluation_tables.united("leaks", leaks, tables_in),
            skipped=skipped,
        )
        tables.write(made.differences, "suite_differences", tables_in)
        tables.write(made.losses, "answer_losses", tables_in)
        tables.write(made.agreement, "judge_agreement", tables_in)
        tables.write(made.leaks, "leaks", tables_in)
        return made


def stressed(
    source: Run | Checkpoint | Path | str,
    suites: Sequence[Suite],
    methods: Sequence[str],
    *,
    judges: Sequence[Judge] = (),
    checkpoints: Sequence[str] = (),
    n: int = 8,
    steps: int = 0,
    max_new_tokens: int = 128,
    out: Path | str | None = None,
    seed: int = 0,
    chat: ChatSettings | None = None,
) -> Stressed:
    """Attack harmful prompts of the suites anew against each checkpoint; success by step, and at all other checkpoints.

    Where a suite holds the harmless twin of a prompt (`builtin`), the suffix that was found is put behind the twin too.

    Args:
        source, judges, checkpoints, max_new_tokens, out, chat: as in `evaluate`; without a run `out` is needed.
        methods: gcg, autodan, with the settings of the run's recipe.
        n: harmful prompts attacked, evenly spaced over all suites; HarmBench's copyright rows are none.
        steps: of an attack; 0 for those of the recipe.

    Returns:
        `mechrefusal.study.stress.Stressed`; its tables are kept beside the others.

    Raises:
        MechrefusalError: no harmful prompt, an unknown method, and what `stress` raises.
    """
    run, chosen = _checkpoints(source, checkpoints, chat)
    asked, harmless = attacked(suites, n)
    attack = run.recipe.attack if run is not None else AttackSettings()
    known: dict[str, GCGSettings | AutoDANSettings] = dict(zip(ATTACKS, (attack.gcg, attack.autodan), strict=True))
    if unknown := [method for method in methods if method not in known]:
        raise MechrefusalError(f"unknown attack '{unknown[0]}': expected one of {', '.join(known)}")
    settings = {name: replace(known[name], steps=steps) if steps else known[name] for name in methods}
    if out is None and run is None:
        raise MechrefusalError(f"'{source}' belongs to no run: give a folder for cases and answers with out")
    folder = Path(out).expanduser() if out is not None else run.folder  # type: ignore[union-attr]
    require_writable(folder / "stress", folder / "measurements", folder=True)
    found = stress(
        run,
        chosen,
        asked,
        settings,
        judges,
        harmless=harmless,
        seed=seed,
        max_new_tokens=max_new_tokens,
        folder=folder / "stress",
    )
    found.write(folder / "measurements")
    return found


def _checkpoints(
    source: Run | Checkpoint | Path | str, ids: Sequence[str], chat: ChatSettings | None
) -> tuple[Run | None, list[Checkpoint]]:
    if isinstance(source, (Path, str)) and (Path(source).expanduser() / "recipe.yaml").is_file():
        source = Run.open(Path(source).expanduser())
    if not isinstance(source, Run):
        if ids:
            raise MechrefusalError(f"'{source}' is no run, so it has no checkpoint '{ids[0]}': leave checkpoints out")
        run, checkpoint = chosen_direction.located(source, chat=chat)
        return run, [checkpoint]
    run = source
    chosen_direction.require_no_settings(run, chat)
    there = {point.id: point for point in run.checkpoints()}
    if not there:
        raise MechrefusalError(f"run '{run.folder}' has no checkpoints yet; train it first: mechrefusal train")
    if unknown := [one for one in ids if one not in there]:
        raise MechrefusalError(f"run '{run.folder}' has no checkpoint '{unknown[0]}'; it has {', '.join(there)}")
    # In the order of the run, in which the base comes first: what the others are compared with is there before them.
    return run, [point for identity, point in there.items() if not ids or identity in ids]


def _answered(
    run: Run | None,
    checkpoints: Sequence[Checkpoint],
    suites: Sequence[Suite],
    interventions: Sequence[NamedIntervention],
    folder: Path,
    max_new_tokens: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    frames: list[pd.DataFrame] = []
    losses: list[pd.DataFrame] = []
    skipped: list[str] = []
    reference: dict[str, _Replies] = {}
    for checkpoint in checkpoints:  # all of them before the first is asked
        limit, what = context_length(checkpoint.path), f"the context of {checkpoint.id}"
        tokenizer = load_tokenizer(checkpoint)
        spare = prompts.answer_room(tokenizer, max_new_tokens)
        for suite in suites:
            prompts.require_room(tokenizer, suite.prompt_set(), limit=limit, spare=spare, what=what)
    for number, checkpoint in enumerate(checkpoints, start=1):
        console.print(f"evaluating {checkpoint.id} ({number} of {len(checkpoints)})", highlight=False, soft_wrap=True)
        possible: dict[str, causal.Intervention | None] = {NONE: None}
        for named in interventions:
            try:
                possible[named.spec] = named.at(run, checkpoint, seed=seed)
            except MechrefusalError as error:
                if len(checkpoints) == 1:
                    raise
                skipped.append(f"{named.spec} at {checkpoint.id}: {error}")
        model, tokenizer = load_causal_lm(checkpoint)
        for spec, under in possible.items():
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
                told = answered(
                    suite.questions(),
                    found["completion"],
                    found["token_ids"],
                    found["ended"],
                    intervention=spec,
                    max_new_tokens=max_new_tokens,
                )
                place = {"arm": checkpoint.arm, "step": checkpoint.step, "weights": checkpoint.weights}
                frames.append(told.assign(**place))
                if under is not None:
                    continue
                asked = prompts.prompt_ids(tokenizer, texts)
                if checkpoint.arm == BASE:
                    reference[suite.name] = _Replies(asked, found["token_ids"].tolist())
                if (known := reference.get(suite.name)) is None:
                    continue
                if known.prompts != asked:
                    skipped.append(f"loss of the base's answers at {checkpoint.id}: its prompts are other tokens")
                    continue
                of_suite = _losses(model, checkpoint, suite, known)
                losses += [of_suite] if len(of_suite) else []
        del model
    for line in skipped:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True)
    return pd.concat(frames, ignore_index=True), evaluation_tables.relative(losses), tuple(skipped)


def _told(under: causal.Intervention | None) -> Any:
    """What an answer hangs on of an intervention."""
    if under is None:
        return NONE
    vectors = torch.as_tensor(getattr(under, "directions", getattr(under, "direction", None)))
    others = [getattr(under, name, None) for name in ("dose", "layer", "coefficient")]
    told = [type(under).__name__, [f"{value:.6g}" for value in vectors.flatten().tolist()], others]
    if (reference := getattr(under, "reference", None)) is not None:
        rows = vectors.double().reshape(-1, vectors.shape[-1])
        targets = reference.means.double() @ rows.T
        told.append([reference.first_layer, reference.held, [f"{value:.6g}" for value in targets.flatten().tolist()]])
    return told


@dataclass(frozen=True)
class _Replies:
    """The base model's answers to a suite, as tokens: they mean the same only where the prompts' tokens do."""

    prompts: list[tuple[int, ...]]
    answers: list[list[int]]


def _losses(model, checkpoint: Checkpoint, suite: Suite, known: _Replies) -> pd.DataFrame:
    """Cross-entropy of the base model's answers to the harmless prompts, one row a prompt."""
    rows = [row for row, side in enumerate(suite.table["side"]) if side == "harmless" and known.answers[row]]
    with torch.no_grad():
        found = [_loss(model, known.prompts[row], known.answers[row]) for row in rows]
    place = {"arm": checkpoint.arm, "step": checkpoint.step, "suite": suite.name}
    return pd.DataFrame({**place, "prompt_id": suite.table["prompt_id"].iloc[rows].tolist(), "loss": found})


def _loss(model, prompt: Sequence[int], reply: Sequence[int]) -> float:
    ids = torch.tensor([[*prompt, *reply]], device=model.device)
    logits = model(ids, logits_to_keep=len(reply) + 1, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :]))


def _leaks(run: Run | None, suites: Sequence[Suite], *, strict: bool) -> pd.DataFrame:
    """What the suites share with what the run trained on and chose its directions by (table `leaks`)."""
    if run is None:
        return tables.frame("leaks", [])
    used = selection.asked(run.recipe).used()
    found = prompts.leaks({**used, **{suite.name: suite.prompt_set() for suite in suites}})
    leaks = tables.frame("leaks", found[found["set_a"].isin(used) & ~found["set_b"].isin(used)].reset_index(drop=True))
    if len(leaks):
        first = [
            f"{row.id_b} of {row.set_b} ({row.kind}: {row.id_a} of {row.set_a})" for row in leaks.head(3).itertuples()
        ]
        shown = "; ".join(first)
        n_leaked = len(leaks[["set_b", "id_b"]].drop_duplicates())
        said = f"{n_leaked} prompts of the suites are among those that '{run.folder}' used, such as {shown}"
        if strict:
            raise MechrefusalError(f"{said}; take them out of the suite, or evaluate without strict")
        console.print(f"{said}; they are in table 'leaks'", highlight=False, soft_wrap=True)
    return leaks
