"""Tables of an evaluation: judged answers, rates, differences between checkpoints, agreement of judges."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from mechrefusal import intervals
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, agreement, any_refusal, metrics, paired
from mechrefusal.study import tables

NONE = "none"
OWN = ["arm", "step", "suite", "attack", "intervention", "judge"]
"""What verdicts are of: an evaluation replaces those of its own keys, and keeps all others."""


def relative(losses: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Table `answer_losses`: means, and paired differences to the base."""
    rows = []
    base = {str(one["suite"].iloc[0]): one for one in losses if one["arm"].iloc[0] == "base"} if losses else {}
    for one in losses:
        first = one.iloc[0]
        change = one["loss"].to_numpy() - base[str(first["suite"])]["loss"].to_numpy()
        found = intervals.mean(change)
        known = {"arm": first["arm"], "step": first["step"], "suite": first["suite"], "loss": one["loss"].mean()}
        rows.append({**known, "difference": found.value, "low": found.low, "high": found.high, "n": found.n})
    return tables.frame("answer_losses", rows)


def judged(found: pd.DataFrame, judges: Sequence[Judge]) -> pd.DataFrame:
    """One row an answer and judge. A judge of harm is asked about harmful prompts alone, by the bare request."""
    parts = []
    for judge in judges:
        harm = getattr(judge, "kind", metrics.REFUSAL) == metrics.HARM
        own = found[found["side"] == "harmful"] if harm else found
        if own.empty:
            continue
        verdicts = judge.judge(own["behaviour" if harm else "prompt"].tolist(), own["completion"].tolist())
        known = own.drop(columns="behaviour").reset_index(drop=True)
        scores = verdicts["score"] if "score" in verdicts else float("nan")
        kind = metrics.HARM if harm else metrics.REFUSAL
        told = {"judge": judge.name, "kind": kind, "label": verdicts["label"].to_numpy()}
        parts.append(known.assign(**told, score=scores, because=verdicts["because"].to_numpy()))
    if not parts:
        raise MechrefusalError("no judge judges these suites: judges of harm need harmful prompts")
    return tables.frame("verdicts", pd.concat(parts, ignore_index=True))


def merged(verdicts: pd.DataFrame, folder: Path, weights: Mapping[str, str]) -> pd.DataFrame:
    """These verdicts, and those of earlier evaluations that they do not replace and whose weights still stand."""
    before = tables.read("verdicts", folder)
    if before.empty:
        return verdicts
    now = set(verdicts[OWN].itertuples(index=False, name=None))
    stands = [
        key not in now and weights.get(identity, weight) == weight
        for key, identity, weight in zip(
            before[OWN].itertuples(index=False, name=None),
            [f"{arm}-step-{int(step):05d}" for arm, step in zip(before["arm"], before["step"], strict=True)],
            before["weights"],
            strict=True,
        )
    ]
    return pd.concat([part for part in (before[stands], verdicts) if len(part)], ignore_index=True)


def united(name: str, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The table with rows of earlier evaluations, of other suites (and checkpoints) than its own."""
    keys = ["suite", "arm", "step"] if name == "answer_losses" else ["set_a", "set_b"]
    before = tables.read(name, folder)
    now = set(table[keys].itertuples(index=False, name=None))
    kept = before[[key not in now for key in before[keys].itertuples(index=False, name=None)]]
    return pd.concat([part for part in (kept, table) if len(part)] or [table], ignore_index=True)


def rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Table `suite_rates` of every checkpoint in `verdicts`."""
    points = verdicts.groupby(["arm", "step"], sort=False)
    parts = [metrics.suite_rates(own).assign(arm=arm, step=step) for (arm, step), own in points]
    return tables.frame("suite_rates", pd.concat(parts, ignore_index=True))


def differences(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Between checkpoints, and at each one between an intervention and none, on the same prompts."""
    by = ["suite", "side", "attack", "intervention", "judge", "metric"]
    outcomes = metrics.outcomes(verdicts)
    # `compare` has a column `metric` of its own, the name of the value.
    renamed = outcomes.rename(columns={"metric": "outcome"})
    compared = paired.compare(renamed, value="value", by=["outcome" if name == "metric" else name for name in by])
    parts = [compared.drop(columns="metric").rename(columns={"outcome": "metric"})]
    none = outcomes[outcomes["intervention"] == NONE]
    for (arm, step, *cell), own in outcomes[outcomes["intervention"] != NONE].groupby(["arm", "step", *by], sort=False):
        place = dict(zip(by, cell, strict=True))
        other = none[(none["arm"] == arm) & (none["step"] == step)]
        for name in by:
            other = other if name == "intervention" else other[other[name] == place[name]]
        both = other.merge(own, on="prompt_id", suffixes=("_a", "_b"))
        found = paired.paired_difference(both["value_a"], both["value_b"], both["prompt_id"])
        alone = {"missing_a": len(own) - len(both), "missing_b": len(other) - len(both)}
        ends = {"arm_a": arm, "step_a": step, "arm_b": arm, "step_b": step}
        parts.append(pd.DataFrame([{"pair": "intervention", **ends, **place, **vars(found), **alone}]))
    rows = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return tables.frame("suite_differences", rows)


def agreements(verdicts: pd.DataFrame) -> pd.DataFrame:
    """How far the judges of refusal agree, by suite, on answers that both judged."""
    rows = []
    own = verdicts[verdicts["kind"] == metrics.REFUSAL]
    keys = ["arm", "step", "prompt_id", "attack", "intervention"]
    for suite, part in own.groupby("suite", sort=False):
        labels = part.pivot(index=keys, columns="judge", values="label")
        for one, other in combinations(labels.columns, 2):
            for question in ("label", "any_refusal"):
                pair = labels[[one, other]]
                if question == "any_refusal":
                    pair = pair.map(lambda label: None if pd.isna(label) else any_refusal(label))
                found = agreement(pair[one], pair[other])
                told = {name: getattr(found, name) for name in ("share", "kappa", "n", "nulls_a", "nulls_b")}
                rows.append({"suite": suite, "judge_a": one, "judge_b": other, "question": question, **told})
    return tables.frame("judge_agreement", rows)
