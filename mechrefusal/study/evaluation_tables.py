"""Tables of judged answers: verdicts, rates, differences between checkpoints, agreement of judges."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, agreement, any_refusal, metrics, paired
from mechrefusal.evaluation.metrics import NONE
from mechrefusal.evaluation.paired import BASE
from mechrefusal.evaluation.suites import Suite
from mechrefusal.evaluation.verdicts import is_of_harm
from mechrefusal.files import checkpoint_id
from mechrefusal.statistics import intervals, maps
from mechrefusal.study import table_rows

LENGTH = "max_new_tokens"
OWN = ["arm", "step", "suite", "attack", "intervention", "judge"]
"""What verdicts are of: an evaluation replaces those of its own keys, and keeps all others; a measurement replaces all
of a checkpoint's answers to the study's own suites."""


def keep(verdicts: pd.DataFrame, folder: Path, labels: pd.DataFrame | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take new verdicts into the tables `verdicts` and `rates` of a folder, and return both.

    What was answered is in them, whoever asked: measurements and evaluations. They are written whole, each by itself.

    Args:
        labels: people's, of some of the answers.
    """
    everything = merged(verdicts, folder)
    counted = rates(everything, labels)
    tables.write(everything, "verdicts", folder)
    tables.write(counted, "rates", folder)
    return everything, counted


def relative(losses: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Table `answer_losses`: means, and paired differences to the base."""
    rows = []
    base = {table["suite"].iloc[0]: table for table in losses if table["arm"].iloc[0] == BASE}
    for table in losses:
        known = table[["arm", "step", "suite"]].iloc[0].to_dict()
        change = intervals.mean(table["loss"].to_numpy() - base[known["suite"]]["loss"].to_numpy())
        interval = {"difference": change.value, "low": change.low, "high": change.high, "n": change.n}
        rows.append({**known, "loss": table["loss"].mean(), **interval})
    return tables.frame("answer_losses", rows)


def require_judges(judges: Sequence[Judge], suites: Sequence[Suite]) -> None:
    """Raise MechrefusalError where two judges have one name, or none of them judges any of these suites."""
    names = [judge.name for judge in judges]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise MechrefusalError(f"judge '{again[0]}' is given twice: give each one once")
    harmful = any((suite.table["side"] == "harmful").any() for suite in suites)
    if not harmful and all(is_of_harm(judge) for judge in judges):
        raise MechrefusalError("no judge judges these suites: judges of harm need harmful prompts")


def changed(folder: Path, weights: Mapping[str, str]) -> set[str]:
    """Ids of the checkpoints whose verdicts of earlier evaluations are of other weights than these."""
    before = tables.read("verdicts", folder)
    of_before = zip(_ids(before), before["weights"], strict=True)
    return {identity for identity, weight in of_before if weights.get(identity, weight) != weight}


def _ids(table: pd.DataFrame) -> list[str]:
    return [checkpoint_id(arm, int(step)) for arm, step in zip(table["arm"], table["step"], strict=True)]


def _keys(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The values of these columns, row by row."""
    return pd.Series(list(table[[*columns]].itertuples(index=False, name=None)), table.index, dtype=object)


def merged(verdicts: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """These verdicts, and those of before that they do not replace.

    Earlier ones do not stay where the checkpoint's weights have changed, nor where the suite's prompt of that id has:
    answers to two prompts of one id must not be paired.
    """
    before = tables.read("verdicts", folder)
    if before.empty:
        return tables.frame("verdicts", verdicts)
    ids, prompt = pd.Series(_ids(before), before.index), ["suite", "attack", "prompt_id"]
    weights = dict(zip(_ids(verdicts), verdicts["weights"], strict=True))
    texts = dict(zip(_keys(verdicts, prompt), verdicts["prompt"], strict=True))
    again = ids.isin(_ids(table_rows.of_study(verdicts))) & before["suite"].isin(table_rows.SIDES)
    replaced = again | _keys(before, OWN).isin(set(_keys(verdicts, OWN)))
    replaced |= ids.map(weights.get).fillna(before["weights"]) != before["weights"]
    replaced |= _keys(before, prompt).map(texts.get).fillna(before["prompt"]) != before["prompt"]
    parts = [part for part in (before[~replaced], verdicts) if len(part)]
    return tables.frame("verdicts", pd.concat(parts, ignore_index=True))


def united(name: str, table: pd.DataFrame, folder: Path, changed: Collection[str] = ()) -> pd.DataFrame:
    """The table with rows of earlier evaluations, of other suites (and checkpoints) than its own.

    Losses do not stay where the weights have changed: those of the checkpoint, or of the base, whose answers they are.
    """
    keys = ["suite", "arm", "step"] if name == "answer_losses" else ["set_a", "set_b"]
    before = tables.read(name, folder)
    if name == "answer_losses" and changed:
        base = checkpoint_id(BASE, 0) in changed
        before = before[[not base and identity not in changed for identity in _ids(before)]]
    earlier = before[~_keys(before, keys).isin(set(_keys(table, keys)))]
    return pd.concat([part for part in (earlier, table) if len(part)] or [table], ignore_index=True)


def rates(verdicts: pd.DataFrame, labels: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table `rates` of every checkpoint in `verdicts`; `labels`: people's, of some of the answers."""
    points = verdicts.groupby(["arm", "step"], sort=False)
    corrections = metrics.corrections_of(verdicts, labels)
    parts = [metrics.rates(rows, corrections).assign(arm=arm, step=step) for (arm, step), rows in points]
    return tables.frame("rates", pd.concat(parts, ignore_index=True))


def differences(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Between checkpoints on benchmarks, and at each one between an intervention and none, on the same prompts.

    Only answers of the same greatest length are compared. `p_adjusted` is adjusted for all rows of a judge, each
    outcome once.
    """
    by = ["suite", "side", "attack", "intervention", "judge", "metric", LENGTH]
    outcomes = metrics.outcomes(table_rows.of_benchmarks(verdicts))
    # An answer that was cut off earlier is another one. Runs of an earlier version do not say where.
    outcomes = outcomes.assign(**{LENGTH: outcomes[LENGTH].fillna(0)})
    # `compare` has a column `metric` of its own, the name of the value.
    renamed = outcomes.rename(columns={"metric": "outcome"})
    compared = paired.compare(renamed, value="value", by=["outcome" if name == "metric" else name for name in by])
    compared = compared[compared["n"] + compared["nulls"] > 0]  # else the two have no prompt in common
    parts = [compared.drop(columns=["metric", LENGTH]).rename(columns={"outcome": "metric"})]
    without, keys = outcomes[outcomes["intervention"] == NONE], ["arm", "step", *by]
    for (arm, step, *cell), intervened in outcomes[outcomes["intervention"] != NONE].groupby(keys, sort=False):
        place = dict(zip(by, cell, strict=True))
        plain = without[(without["arm"] == arm) & (without["step"] == step)]
        for name in by:
            plain = plain if name == "intervention" else plain[plain[name] == place[name]]
        both = plain.merge(intervened, on="prompt_id", suffixes=("_a", "_b"))
        change = paired.paired_difference(both["value_a"], both["value_b"], both["prompt_id"])
        alone = {"missing_a": len(intervened) - len(both), "missing_b": len(plain) - len(both)}
        ends = {"arm_a": arm, "step_a": step, "arm_b": arm, "step_b": step}
        row = {"pair": "intervention", **ends, **place, **vars(change), **alone}
        del row[LENGTH]
        parts.append(pd.DataFrame([row]))
    rows = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    rows["p_adjusted"] = float("nan")
    for _, of_judge in rows.groupby("judge", sort=False):
        # Full compliance is attack success, or answered, by another name: the same test is not counted twice.
        tests = of_judge.loc[of_judge["metric"] != "full_compliance", "mcnemar_p"].dropna()
        adjusted = dict(zip(tests, maps.holm(tests.to_numpy(float)), strict=True))
        rows.loc[of_judge.index, "p_adjusted"] = of_judge["mcnemar_p"].map(adjusted).astype(float)
    return tables.frame("suite_differences", rows)


def agreements(verdicts: pd.DataFrame) -> pd.DataFrame:
    """How far the judges of refusal agree, by suite, on answers that both judged."""
    rows = []
    of_refusal = verdicts[verdicts["kind"] == metrics.REFUSAL]
    # An answer that was made anew for the one judge is another one: the completion tells.
    keys = ["arm", "step", "prompt_id", "attack", "intervention", "completion"]
    for suite, part in of_refusal.groupby("suite", sort=False):
        labels = {judge: judged.set_index(keys)["label"] for judge, judged in part.groupby("judge", sort=True)}
        for first, second in combinations(labels, 2):
            both = pd.concat([labels[first], labels[second]], axis=1, join="inner", keys=["a", "b"])
            for question in ("label", "any_refusal"):
                pair = both
                if question == "any_refusal":
                    pair = both.map(lambda label: None if pd.isna(label) else any_refusal(label))
                both_say = vars(agreement(pair["a"], pair["b"]))
                counts = {name: both_say[name] for name in ("share", "kappa", "n", "nulls_a", "nulls_b")}
                rows.append({"suite": suite, "judge_a": first, "judge_b": second, "question": question, **counts})
    return tables.frame("judge_agreement", rows)
