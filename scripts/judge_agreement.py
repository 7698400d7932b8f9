"""How far a judge of refusal, by default the rules, agrees with people, on a file of labelled answers.

    python scripts/judge_agreement.py answers.csv [...] [--resamples 2000] [--errors 20] [--by type]
    python scripts/judge_agreement.py other.json --columns prompt completion tone \\
        --labels complied=full_compliance rejected=full_refusal --half held-out
    python scripts/judge_agreement.py antworten.csv --judge phrases=de.txt

A file is CSV, JSON (a list of objects) or JSONL. Columns: prompt, completion, and final_label as XSTest's files name
them (1_full_compliance, 2_full_refusal, 3_partial_refusal), or label with the judge's own names; `--columns` and
`--labels` say how a file names them otherwise. `--prompts` is a CSV (number, text) of the prompts, where the file has
their numbers. `--half` takes the development half or the held-out one: prompts are split by a hash, so that all answers
to a prompt are in one half; errors are to be read on the development half alone. Rows without a label, or with one that
`--labels` does not name, are counted and left out.

It prints the share of rows on which both say refusal (full or partial) or both say compliance, the share on which the
three classes agree and Cohen's kappa of both, each with a 95% percentile bootstrap interval over prompts, then the
confusion matrix, the sensitivity and specificity for any refusal, and of `--errors` rows what decided. A degenerate
answer is none of people's three classes, so it counts as a disagreement; for "any refusal" it is no refusal.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from mechrefusal.evaluation.judge_agreement import agreement, any_refusal
from mechrefusal.evaluation.judge_error import counts_of
from mechrefusal.evaluation.judge_names import measuring_judge
from mechrefusal.evaluation.judges import LABELS
from mechrefusal.evaluation.labels import XSTEST
from mechrefusal.statistics import intervals

MEASURES = ("any refusal", "kappa of any refusal", "three classes", "kappa")


COLUMNS = ("prompt", "completion", "final_label")
HALVES = ("development", "held-out")


def half_of(prompt: str) -> str:
    """The half that a prompt belongs to, by the parity of its SHA-256."""
    return HALVES[int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 2]


def read(path: Path, columns: list[str], labels: dict[str, str], prompts: Path | None) -> pd.DataFrame:
    """Prompts and completions of a file, with people's label as one of `LABELS`, or none."""
    if path.suffix in (".json", ".jsonl"):
        rows = pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False)
    else:
        rows = pd.read_csv(path, keep_default_na=False)
    prompt, completion, label = columns
    if label not in rows and label == COLUMNS[2]:
        label = "label"
    missing = [name for name in (prompt, completion, label) if name not in rows]
    if missing:
        raise SystemExit(f"{path}: no column {', '.join(missing)} among {list(rows)}; name others with --columns")
    asked = rows[prompt].astype(str)
    if prompts is not None:
        numbered = pd.read_csv(prompts, dtype=str, keep_default_na=False)
        texts = dict(zip(numbered.iloc[:, 0], numbered.iloc[:, 1], strict=True))
        if unknown := sorted(set(asked) - set(texts)):
            raise SystemExit(f"{prompts}: no text for prompt {unknown[0]} of {path}")
        asked = asked.map(texts)
    given = rows[label].astype(str).map(labels)
    return rows.assign(prompt=asked, completion=rows[completion].astype(str), people=given)


def named(pairs: list[str] | None) -> dict[str, str]:
    """What the labels of a file mean: `--labels`, or XSTest's names and the judge's own."""
    if pairs is None:
        return {**XSTEST, **{label: label for label in LABELS}}
    split = [pair.rpartition("=") for pair in pairs]
    if wrong := [pair for pair, (name, _, label) in zip(pairs, split, strict=True) if not name or label not in LABELS]:
        raise SystemExit(f"--labels {wrong[0]}: give NAME=LABEL with a label of {', '.join(LABELS)}")
    return {name: label for name, _, label in split}


def kappa(people: np.ndarray, judged: np.ndarray) -> float:
    """Cohen's kappa of two columns of codes below len(LABELS); NaN where chance agreement is full."""
    table = np.bincount(people * len(LABELS) + judged, minlength=len(LABELS) ** 2).reshape(len(LABELS), -1) / len(
        people
    )
    chance = float(table.sum(1) @ table.sum(0))
    return (float(np.trace(table)) - chance) / (1 - chance) if chance < 1 else float("nan")


def measures(people: np.ndarray, judged: np.ndarray) -> tuple[float, float, float, float]:
    """Agreement and kappa on any refusal and on three classes, of two columns of codes."""
    refused = np.array([any_refusal(label) for label in LABELS])
    return (
        float(np.mean(refused[people] == refused[judged])),
        kappa(refused[people].astype(int), refused[judged].astype(int)),
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
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0) if drawn else np.full((2, len(MEASURES)), np.nan)
    print(f"\n{name}: {len(rows)} rows, {len(members)} prompts")
    for what, value, a, b in zip(MEASURES, measures(people, judged), low, high, strict=True):
        print(f"  {what:20} {value:.3f} [{a:.3f}, {b:.3f}]")


def main() -> None:
    """Judge every file and print how far judge and people agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--errors", type=int, default=0, help="disagreements to print")
    parser.add_argument("--judge", default="refusal", help="refusal (the rules) or phrases=FILE")
    parser.add_argument("--by", help="a column whose values are also measured one by one")
    parser.add_argument("--columns", nargs=3, default=COLUMNS, metavar=("PROMPT", "COMPLETION", "LABEL"))
    parser.add_argument("--labels", nargs="+", metavar="NAME=LABEL", help="what the labels of the file mean")
    parser.add_argument("--prompts", type=Path, help="a CSV (number, text) of the prompts that the files number")
    parser.add_argument("--half", choices=HALVES, help="half of the prompts alone, by their hash")
    given = parser.parse_args()
    labels, judge = named(given.labels), measuring_judge(given.judge)
    for path in given.files:
        rows = read(path, list(given.columns), labels, given.prompts)
        if given.half:
            rows = rows[rows["prompt"].map(half_of) == given.half]
        labelled = rows[rows["people"].notna()]
        if labelled.empty:
            raise SystemExit(f"{path}: no row has a label; known are {', '.join(labels)}")
        verdicts = judge.judge(labelled["prompt"].tolist(), labelled["completion"].tolist())
        labelled = labelled.assign(judged=verdicts["label"].to_numpy(), because=verdicts["because"].to_numpy())
        show(f"{path.name}, {judge.name}", labelled, given.resamples)
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
                print(f"  {what} for any refusal: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], {hits} of {n}")
        if given.by:
            for value, part in labelled.groupby(given.by):
                show(f"{given.by} {value}", part, given.resamples)
        for _, row in labelled[labelled["people"] != labelled["judged"]].head(given.errors).iterrows():
            print(f"- people {row['people']}, judge {row['judged']} ({row['because']})\n  {row['prompt']}")


if __name__ == "__main__":
    main()
