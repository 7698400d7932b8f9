"""Stages that ask a checkpoint: its answers, its refusal metric, its answers under interventions, and their rates."""

import json

import pandas as pd

from mechrefusal import causal
from mechrefusal.evaluation import Completions, Discovered, discover_refusal, metrics
from mechrefusal.evaluation.answering import answers
from mechrefusal.forward import rd_score, rd_tokens, refusal_scores_and, runner_of, unhooked_model
from mechrefusal.prompts import prompt_ids
from mechrefusal.study.caching import Content, Written, fingerprint
from mechrefusal.study.gate import gate
from mechrefusal.study.measurement import DIRECTION_SUITES, INTERVENTIONS, Measurement
from mechrefusal.study.stages import Results
from mechrefusal.study.table_rows import carrier_place

CONTROL_SEED = 0


def answer(subject: Measurement) -> Results:
    """Answer every suite and the attack cases in one go."""
    path = subject.run.answers(subject.checkpoint, metrics.NONE)
    yield path, _answer(subject, subject.model, metrics.NONE, "answers")


def refusal_metric(subject: Measurement) -> Results:
    """Find what tells refusals from answers (table `openings`), and score prompts by it (table `scores`)."""
    rows = subject.answers[subject.answers["suite"].isin(DIRECTION_SUITES)]
    metric = discover_refusal(
        subject.model,
        subject.prompts.direction,
        completions=Completions(tuple(rows["completion"]), tuple(rows["token_ids"]), tuple(rows["ended"])),
        fallback=subject.recipe.training.refusal,
        judge=subject.judge,
    )
    tokenizer, runner = subject.model.tokenizer, runner_of(subject.model)
    row = {
        "opening": tokenizer.decode(list(metric.opening)) if metric.opening else "",
        "token_ids": metric.as_json(),
        "runner": runner.name,
        "runner_because": runner.why,
    }
    for name in ("refusal_tokens", "compliance_tokens"):
        decoded = [tokenizer.decode([token]) for token in getattr(metric, name)]
        row[name] = json.dumps(decoded, ensure_ascii=False)
    same = ("kind", "coverage", "auc", "auc_held_out", "offset", "n_refused", "n_answered", "note")
    yield "openings", [row | {name: getattr(metric, name) for name in same}]
    yield "scores", _scores(subject, metric)


def _scores(subject: Measurement, metric: Discovered) -> pd.DataFrame:
    tokenizer = subject.model.tokenizer
    sets = {
        f"{name}_{side}": getattr(getattr(subject.prompts, name), side)
        for name in ("direction", "validation")
        for side in ("harmful", "harmless")
    }
    answered = metrics.plain(subject.answers)
    keys = zip(answered["suite"], answered["prompt_id"], strict=True)
    refused = dict(zip(keys, metrics.refused(answered).tolist(), strict=True))
    hand_picked = rd_tokens(tokenizer)
    texts = [text for prompts in sets.values() for text in prompts.texts]
    score, rd = refusal_scores_and(
        subject.model, prompt_ids(tokenizer, texts), metric, read=lambda logits: rd_score(logits, hand_picked)
    )
    rows = [(name, prompt_id) for name, prompts in sets.items() for prompt_id in prompts.ids]
    table = pd.DataFrame(rows, columns=["set", "prompt_id"])
    # A prompt that was not answered (validation) was not judged either.
    table["refused"] = pd.array([refused.get(row) for row in rows], dtype="boolean")
    return table.assign(score=score.tolist(), rd_score=rd.tolist())


def intervene(subject: Measurement) -> Results:
    """Answers with the carrier ablated and put in, and with a random direction of the same norm instead.

    All are held at every generated token. Harmless prompts are answered under the ablation too: they should stay
    answered. A random direction is ablated to its own part of the same means.
    """
    paths = {name: subject.run.answers(subject.checkpoint, name) for name in INTERVENTIONS}
    if subject.carrier is None:
        yield from ((path, None) for path in paths.values())
        return
    control = causal.random_like(subject.carrier, seed=CONTROL_SEED)
    interventions: dict[str, causal.Intervention] = {
        "ablate": causal.taken_out(subject.carrier),
        "ablate_random": causal.taken_out(control),
        "induce": causal.put_in(subject.carrier),
        "induce_random": causal.put_in(control),
    }
    unhooked = unhooked_model(subject.model)
    for name, path in paths.items():
        with causal.intervened(unhooked, interventions[name]):
            written = _answer(subject, unhooked, name, name)
        yield path, written


def rates(subject: Measurement) -> Results:
    """All judged answers (table `verdicts`), and whether the checkpoint passes the gate (`gate`)."""
    frames = [subject.answers]
    if carrier_place(subject.read("carrier").iloc[0]) is not None:
        frames += [subject.answers_under(name) for name in INTERVENTIONS]
    verdicts = pd.concat(frames, ignore_index=True).drop(columns="token_ids")
    yield "verdicts", verdicts
    yield "gate", gate(verdicts)


def _answer(subject: Measurement, model, intervention: str, description: str) -> Content:
    answers(
        model,
        subject.questions(intervention)["prompt"].tolist(),
        subject.run.answers(subject.checkpoint, intervention),
        stamp=fingerprint(subject.inputs),
        tokenizer=subject.model.tokenizer,
        max_new_tokens=subject.settings.max_new_tokens,
        description=f"{subject.checkpoint.id}: {description}",
    )
    return Written()
