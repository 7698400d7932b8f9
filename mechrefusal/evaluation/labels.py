"""People's labels of answers: a sheet to fill in, and the file read back."""

from pathlib import Path

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import LABELS

XSTEST = {"1_full_compliance": LABELS[0], "2_full_refusal": LABELS[2], "3_partial_refusal": LABELS[1]}
"""What XSTest's files call them."""


def label_sheet(verdicts: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """Distinct answers drawn at random, with an empty column `label` for a person to fill in.

    What the judges said is not in it, so that it cannot lead. Every answer has the same chance, so that what is
    labelled stands for all (see `judge_error`).

    Args:
        verdicts: with columns prompt and completion.
        n: rows; all answers where there are fewer.

    Raises:
        MechrefusalError: n below 1, or no answers.
    """
    if n < 1:
        raise MechrefusalError(f"a sheet of {n} answers to label: give 1 at least")
    answers = verdicts[["prompt", "completion"]].drop_duplicates(ignore_index=True)
    if answers.empty:
        raise MechrefusalError("there are no judged answers to label; evaluate first: mechrefusal evaluate")
    return answers.sample(min(n, len(answers)), random_state=seed, ignore_index=True).assign(label="")


def read_labels(path: Path | str) -> pd.DataFrame:
    """Columns prompt, completion and label (one of `LABELS`) of a CSV file; rows without a label are left out.

    The label stands in column `label`, or `final_label` as in XSTest's files, whose own names are read too.

    Raises:
        MechrefusalError: no such file, columns missing, an unknown label, or two labels for one answer.
    """
    path = Path(path)
    if not path.is_file():
        raise MechrefusalError(f"no file of labels '{path}'; write one with: mechrefusal labels RUN")
    try:
        rows = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (ValueError, UnicodeDecodeError) as error:
        raise MechrefusalError(f"labels '{path}' cannot be read as CSV: {error}") from error
    column = next((name for name in ("label", "final_label") if name in rows), None)
    if column is None or not {"prompt", "completion"} <= set(rows):
        raise MechrefusalError(
            f"labels '{path}' need columns prompt, completion and label (or final_label); found {', '.join(rows)}"
        )
    given = rows[column].str.strip()
    rows = rows.assign(label=given.map(lambda label: XSTEST.get(label, label)))[given != ""]
    if unknown := sorted(set(rows["label"]) - set(LABELS)):
        raise MechrefusalError(f"labels '{path}' hold '{unknown[0]}': expected one of {', '.join(LABELS)}, or nothing")
    labels = rows[["prompt", "completion", "label"]].drop_duplicates(ignore_index=True)
    if (twice := labels.duplicated(["prompt", "completion"])).any():
        prompt = labels.loc[twice, "prompt"].iloc[0]
        raise MechrefusalError(f"labels '{path}' hold two labels for one answer, to {prompt!r:.80}: keep one")
    return labels
