"""Checkpoints on benchmarks: answers, judges' verdicts, rates with intervals, and what changed between checkpoints.

In a notebook:

    import mechrefusal as mr
    suites = [mr.evaluation.read_suite("xstest=xstest_prompts.csv"), mr.evaluation.read_suite("builtin")]
    evaluated = mr.study.evaluate("checkpoints/demo", suites, intervene=["ablate:best"])
    evaluated.rates                                      # by suite, side, category, judge; n and 95% intervals
    evaluated.differences                                # between checkpoints, on the same prompts

It measures: nothing here changes or writes weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from mechrefusal import causal, prompts, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, answered, judged
from mechrefusal.evaluation.answering import answers
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.evaluation.paired import BASE
from mechrefusal.evaluation.suites import Suite, require_distinct
from mechrefusal.files import require_writable
from mechrefusal.models import Checkpoint, Placed, load_causal_lm, load_tokenizer
from mechrefusal.progress import say
from mechrefusal.prompts import ChatSettings
from mechrefusal.study import evaluation_tables, labelling
from mechrefusal.study.caching import fingerprint
from mechrefusal.study.checkpoints import Source, checkpoints_of, refusal_judge, require_room
from mechrefusal.study.interventions import NamedIntervention
from mechrefusal.study.run import Run
from mechrefusal.study.selection import choose_prompts
from mechrefusal.study.table_rows import SIDES

FOLDER = "evaluations"


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
    source: Source,
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
    placed: Placed | None = None,
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
        placed: where models lie and in which numbers, fields of a `models.Placement`; by default
            as the run's recipe says.

    Raises:
        MechrefusalError: no suite, a name of a suite or judge twice, a suite with the name of one that measurements
            ask, judges of harm without a harmful prompt, an unknown checkpoint or intervention, a run without
            checkpoints; with `strict`, leaked prompts; a prompt that does not fit the context. Nothing is answered
            then.
    """
    require_distinct(list(suites))
    if taken := [suite.name for suite in suites if suite.name in SIDES]:
        raise MechrefusalError(f"suite '{taken[0]}' has the name of one that measurements ask: give it another name")
    if max_new_tokens < 1:
        raise MechrefusalError(f"max_new_tokens is {max_new_tokens}; give 1 at least")
    run, chosen = checkpoints_of(source, checkpoints, chat, placed)
    interventions = [NamedIntervention.parse(spec) for spec in dict.fromkeys(intervene)]
    judges = list(judges) or [refusal_judge(run)]
    evaluation_tables.require_judges(judges, suites)
    leaks = _leaks(run, suites, strict=strict)
    folder = Path(out).expanduser() if out is not None else run.folder if run is not None else None
    if folder is not None:
        require_writable(folder / FOLDER, folder / "measurements", folder=True)
    labels = labelling.labels_in(folder) if folder is not None else None
    with TemporaryDirectory() as nowhere:
        root = folder if folder is not None else Path(nowhere)
        asking = _Asking(run, suites, root / FOLDER, max_new_tokens)
        completions = asking.ask(chosen, interventions, seed=seed)
        tables_in = root / "measurements"
        changed = evaluation_tables.changed(tables_in, {point.id: point.weights for point in chosen})
        verdicts, rates = evaluation_tables.keep(judged(completions, judges), tables_in, labels)
        losses = evaluation_tables.relative(asking.losses)
        evaluated = Evaluated(
            verdicts=verdicts,
            rates=rates,
            differences=evaluation_tables.differences(verdicts),
            losses=evaluation_tables.united("answer_losses", losses, tables_in, changed),
            agreement=evaluation_tables.agreements(verdicts),
            leaks=evaluation_tables.united("leaks", leaks, tables_in),
            skipped=tuple(asking.skipped),
        )
        tables.write(evaluated.differences, "suite_differences", tables_in)
        tables.write(evaluated.losses, "answer_losses", tables_in)
        tables.write(evaluated.agreement, "judge_agreement", tables_in)
        tables.write(evaluated.leaks, "leaks", tables_in)
        return evaluated


@dataclass(frozen=True)
class _Replies:
    """The base model's answers to a suite, as tokens: they mean the same only where the prompts' tokens do."""

    prompts: list[tuple[int, ...]]
    answers: list[list[int]]


@dataclass
class _Asking:
    """Suites under way at the checkpoints of a run.

    Fields:
        run: None for a model of no run.
        folder: where answers are kept.
        losses: of the base model's answers, a table a checkpoint and suite.
        skipped: what was left out, with the reason.
        base: the base model's answers to each suite, where it was asked.
    """

    run: Run | None
    suites: Sequence[Suite]
    folder: Path
    max_new_tokens: int
    losses: list[pd.DataFrame] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    base: dict[str, _Replies] = field(default_factory=dict)

    def ask(
        self, checkpoints: Sequence[Checkpoint], interventions: Sequence[NamedIntervention], *, seed: int
    ) -> pd.DataFrame:
        """Answers of every checkpoint to every suite, without and under the interventions (rows for `judged`)."""
        for checkpoint in checkpoints:  # all of them before the first is asked
            tokenizer, what = load_tokenizer(checkpoint), f"the context of {checkpoint.id}"
            for suite in self.suites:
                n = self.max_new_tokens
                require_room(checkpoint.path, tokenizer, suite.prompt_set(), max_new_tokens=n, what=what)
        frames: list[pd.DataFrame] = []
        for number, checkpoint in enumerate(checkpoints, start=1):
            line = f"evaluating {checkpoint.id} ({number} of {len(checkpoints)})"
            say(line)
            possible: dict[str, causal.Intervention | None] = {NONE: None}
            for named in interventions:
                try:
                    possible[named.spec] = named.at(self.run, checkpoint, seed=seed)
                except MechrefusalError as error:
                    if len(checkpoints) == 1:
                        raise
                    self.skipped.append(f"{named.spec} at {checkpoint.id}: {error}")
            frames += self._answers_of(checkpoint, possible)
        for line in self.skipped:
            say(f"left out: {line}")
        return pd.concat(frames, ignore_index=True)

    def _answers_of(self, checkpoint: Checkpoint, under: dict[str, causal.Intervention | None]) -> list[pd.DataFrame]:
        """The same of one checkpoint, under these interventions."""
        model, tokenizer = load_causal_lm(checkpoint)
        owner = {"arm": checkpoint.arm, "step": checkpoint.step, "weights": checkpoint.weights}
        frames = []
        for spec, intervention in under.items():
            for suite in self.suites:
                texts, ids = suite.table["prompt"].tolist(), suite.table["prompt_id"].tolist()
                inputs = [checkpoint.computed, ids, texts, self.max_new_tokens, _numbers_of(intervention)]
                with causal.intervened(model, intervention):
                    replies = answers(
                        model,
                        texts,
                        self.folder / checkpoint.id / f"{suite.name}-{fingerprint(spec)}.parquet",
                        stamp=fingerprint(inputs),
                        tokenizer=tokenizer,
                        max_new_tokens=self.max_new_tokens,
                        description=f"{checkpoint.id}: {suite.name}" + ("" if intervention is None else f", {spec}"),
                    )
                columns = (replies[name] for name in ("completion", "token_ids", "ended"))
                rows = answered(suite.questions(), *columns, intervention=spec, max_new_tokens=self.max_new_tokens)
                frames.append(rows.assign(**owner))
                if intervention is None:
                    prompt_ids = prompts.prompt_ids(tokenizer, texts)
                    self._take_loss(model, checkpoint, suite, _Replies(prompt_ids, replies["token_ids"].tolist()))
        return frames

    def _take_loss(self, model, checkpoint: Checkpoint, suite: Suite, replies: _Replies) -> None:
        """Cross-entropy of the base model's answers to the harmless prompts of a suite, one row a prompt."""
        if checkpoint.arm == BASE:
            self.base[suite.name] = replies
        if (base := self.base.get(suite.name)) is None:
            return
        if base.prompts != replies.prompts:
            self.skipped.append(f"loss of the base's answers at {checkpoint.id}: its prompts are other tokens")
            return
        rows = [row for row, side in enumerate(suite.table["side"]) if side == "harmless" and base.answers[row]]
        if rows:
            with torch.no_grad():
                losses = [_loss(model, base.prompts[row], base.answers[row]) for row in rows]
            place = {"arm": checkpoint.arm, "step": checkpoint.step, "suite": suite.name}
            ids = suite.table["prompt_id"].iloc[rows].tolist()
            self.losses.append(pd.DataFrame({**place, "prompt_id": ids, "loss": losses}))


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


def _leaks(run: Run | None, suites: Sequence[Suite], *, strict: bool) -> pd.DataFrame:
    """What the suites share with what the run trained on and chose its directions by (table `leaks`)."""
    if run is None:
        return tables.frame("leaks", [])
    used = choose_prompts(run.recipe).used()
    leaks = prompts.leaks({**used, **{suite.name: suite.prompt_set() for suite in suites}})
    leaks = leaks[leaks["set_a"].isin(used) & ~leaks["set_b"].isin(used)].reset_index(drop=True)
    if len(leaks):
        rows = leaks.head(3).itertuples()
        shown = "; ".join(f"{row.id_b} of {row.set_b} ({row.kind}: {row.id_a} of {row.set_a})" for row in rows)
        n_leaked = len(leaks[["set_b", "id_b"]].drop_duplicates())
        line = f"{n_leaked} prompts of the suites are among those that '{run.folder}' used, such as {shown}"
        if strict:
            raise MechrefusalError(f"{line}; take them out of the suite, or evaluate without strict")
        say(f"{line}; they are in table 'leaks'")
    return tables.frame("leaks", leaks)
