"""How far the refusal rules agree with people, on a file of labelled answers.

    python scripts/judge_agreement.py answers.csv [...] [--resamples 2000] [--errors 20] [--by type]

Columns: prompt, completion, and final_label as XSTest's files name them (1_full_compliance, 2_full_refusal,
3_partial_refusal), or label with the judge's own names. Rows without a label are counted and left out. It prints the
share of rows on which both say refusal (full or partial) or both say compliance, the share on which the three classes
agree and Cohen's kappa of these, each with a 95% percentile bootstrap interval over prompts, then the confusion matrix,
the sensitivity and specificity for any refusal, and of `--errors` rows what decided. A degenerate answer is none of
people's three classes, so it counts as a disagreement; for "any refusal" it is no refusal.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from mechrefusal.evaluation import RefusalJudge
from mechrefusal.evaluation.agreement import agreement, any_refusal
from mechrefusal.evaluation.judge_error import counts_of
from mechrefusal.evaluation.judges import LABELS
from mechrefusal.statistics import intervals

MEASURES = ("any refusal", "three classes", "kappa")
XSTEST = {"1_full_compliance": LABELS[0], "2_full_refusal": LABELS[2], "3_partial_refusal": LABELS[1]}


def read(path: Path) -> pd.DataFrame:
    """Prompts and completions of a file, with people's label as one of `LABELS`, or none."""
    rows = pd.read_csv(path, keep_default_na=False)
    column = next((name for name in ("final_label", "label") if name in rows), None)
    missing = [name for name in ("prompt", "completion") if name not in rows]
    if column is None or missing:
        raise SystemExit(f"{path}: columns prompt, completion and final_label (or label) are needed, got {list(rows)}")
    given = rows[column].map(lambda label: XSTEST.get(label, label if label in LABELS else None))
    return rows.assign(people=given)


def kappa(people: np.ndarray, judged: np.ndarray) -> float:
    """Cohen's kappa of two columns of codes below len(LABELS); NaN where chance agreement is full."""
    table = np.bincount(people * len(LABELS) + judged, minlength=len(LABELS) ** 2).reshape(len(LABELS), -1) / len(
        people
    )
    chance = float(table.sum(1) @ table.sum(0))
    return (float(np.trace(table)) - chance) / (1 - chance) if chance < 1 else float("nan")


def measures(people: np.ndarray, judged: np.ndarray) -> tuple[float, float, float]:
    """Agreement on any refusal, on three classes, and kappa, of two columns of codes."""
    refused = np.array([any_refusal(label) for label in LABELS])
    return (
        float(np.mean(refused[people] == refused[judged])),
        float(np.mean(people == judged)),
        kappa(people, judged),
    )


def show(name: str, rows: pd.DataFrame, resamples: int) -> None:
    """Print the measures of labelled and judged rows."""
    codes = {label: code for code, label in enumerate(LABELS)}
    people, judged = (rows[column].map(codes).to_numpy() for column in ("people", "judged"))
    _, groups = np.unique(rows["prompt"], return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        picked = np.concatenate([members[group] for group in rng.integers(len(members), size=len(members))])
        drawn.append(measures(people[picked], judged[picked]))
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0) if drawn else np.full((2, 3), np.nan)
    print(f"\n{name}: {len(rows)} rows, {len(members)} prompts")
    for what, value, a, b in zip(MEASURES, measures(people, judged), low, high, strict=True):
        print(f"  {what:14} {value:.3f} [{a:.3f}, {b:.3f}]")


def main() -> None:
    """Judge every file and print how far judge and people agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--errors", type=int, default=0, help="disagreements to print")
    parser.add_argument("--by", help="a column whose values are also measured one by one")
    given = parser.parse_args()
    for path in given.files:
        rows = read(path)
        labelled = rows[rows["people"].notna()]
        if labelled.empty:
            raise SystemExit(f"{path}: no row has a label; known are {', '.join([*XSTEST, *LABELS])}")
        verdicts = RefusalJudge().judge(labelled["prompt"].tolist(), labelled["completion"].tolist())
        labelled = labelled.assign(judged=verdicts["label"].to_numpy(), because=verdicts["because"].to_numpy())
        show(f"{path.name}, {RefusalJudge.name}", labelled, given.resamples)
        print(f"  rows without a label, left out: {len(rows) - len(labelled)}")
        print(agreement(labelled["people"], labelled["judged"]).confusion.rename_axis(index="people", columns="judge"))
        true, said = (labelled[column].map(any_refusal) for column in ("people", "judged"))
        if true.any() and not true.all():
            counts = counts_of(said, true)
            for what, hits, n in (
                ("sensitivity", counts.true_positives, counts.positives),
                ("specificity", counts.true_negatives, counts.negatives),
            ):
                found = intervals.rate(hits, n)
                print(f"  {what} for any refusal: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n {n}")
        if given.by:
            for value, part in labelled.groupby(given.by):
                show(f"{given.by} {value}", part, given.resamples)
        for _, row in labelled[labelled["people"] != labelled["judged"]].head(given.errors).iterrows():
            print(f"- people {row['people']}, judge {row['judged']} ({row['because']})\n  {row['prompt']}")


if __name__ == "__main__":
    main()
