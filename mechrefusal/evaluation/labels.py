"""People's labels of answers: a sheet to fill in, and the file read back."""

import csv
import hashlib
from pathlib import Path

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import LABELS

XSTEST = {"1_full_compliance": LABELS[0], "2_full_refusal": LABELS[2], "3_partial_refusal": LABELS[1]}
"""What XSTest's files call them."""
TEXTS = ("prompt", "completion")


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula."""


def answer_ids(table: pd.DataFrame) -> list[str]:
    """An id of the answer in every row, the same for the same prompt and completion.

    Args:
        table: with columns prompt and completion.
    """
    texts = zip(table["prompt"].astype(str), table["completion"].astype(str), strict=True)
    return [hashlib.sha256("\0".join(pair).encode()).hexdigest()[:16] for pair in texts]


def label_sheet(verdicts: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """Distinct answers drawn at random: columns answer (its id), prompt, completion, and label, empty, to be filled in.

    What the judges said is not in it, so that it cannot lead. Every distinct answer has the same chance.

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
        raise MechrefusalError(
            "there are no judged answers to label; measure or evaluate first: mechrefusal measure, evaluate"
        )
    answers.insert(0, "answer", answer_ids(answers))
    return answers.sample(min(n, len(answers)), random_state=seed, ignore_index=True).assign(label="")


def write_sheet(sheet: pd.DataFrame, path: Path) -> None:
    """Write a sheet as CSV that spreadsheets open as it is: with a byte order mark, and no cell that is a formula.

    The id says which answer a row is, so that what a spreadsheet makes of the texts does no harm.
    """
    shown = sheet.assign(
        **{name: ["'" + text if text.startswith(_FORMULA) else text for text in sheet[name]] for name in TEXTS}
    )
    shown.to_csv(path, index=False, encoding="utf-8-sig", quoting=csv.QUOTE_ALL)


def read_labels(path: Path | str) -> pd.DataFrame:
    """Columns answer and label (one of `LABELS`) of a CSV file; rows without a label are left out.

    The label stands in column `label`, or `final_label` as in XSTest's files, whose own names are read too; the answer
    is told by its id in column `answer`, or where there is none by prompt and completion.

    Raises:
        MechrefusalError: no such file, columns missing, an unknown label, or two labels for one answer.
    """
    path = Path(path)
    if not path.is_file():
        raise MechrefusalError(f"no file of labels '{path}'; write one with: mechrefusal labels RUN")
    try:
        rows = pd.read_csv(path, keep_default_na=False, dtype=str, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:
        raise MechrefusalError(f"labels '{path}' cannot be read as CSV: {error}") from error
    column = next((name for name in ("label", "final_label") if name in rows), None)
    if column is None or not ("answer" in rows or set(TEXTS) <= set(rows)):
        raise MechrefusalError(
            f"labels '{path}' need columns answer (or prompt and completion) and label (or final_label); found "
            f"{', '.join(rows)}"
        )
    written = rows[column].str.strip()
    answer = rows["answer"].str.strip() if "answer" in rows else answer_ids(rows)
    labels = pd.DataFrame({"answer": answer, "label": written.map(lambda label: XSTEST.get(label, label))})[
        written != ""
    ]
    if unknown := sorted(set(labels["label"]) - set(LABELS)):
        raise MechrefusalError(f"labels '{path}' hold '{unknown[0]}': expected one of {', '.join(LABELS)}, or nothing")
    labels = labels.drop_duplicates(ignore_index=True)
    if (twice := labels["answer"].duplicated()).any():
        answer_id = labels.loc[twice, "answer"].iloc[0]
        raise MechrefusalError(f"labels '{path}' hold two labels for one answer ({answer_id}): keep one")
    return labels
