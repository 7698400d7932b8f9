"""People's labels of a run's answers: a sheet to fill in, and rates corrected by what it says of the judges.

In a notebook:

    import mechrefusal as mr
    mr.study.label("checkpoints/demo", n=60)             # writes checkpoints/demo/labels.csv: fill in the column label
    labelled = mr.study.label("checkpoints/demo")        # reads it
    labelled.agreement, labelled.rates                   # judges against people; rates, raw beside corrected
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import agreement, any_refusal, correcting, metrics
from mechrefusal.evaluation.labels import answer_ids, label_sheet, read_labels, write_sheet
from mechrefusal.files import require_writable, whole_file
from mechrefusal.study import evaluation_tables
from mechrefusal.study.run import Run

FILE = "labels.csv"


@dataclass(frozen=True)
class Labelled:
    """A sheet of labels and what it says.

    Fields:
        path: the sheet's file.
        n, n_labelled: answers in it, and those of this run's with a label. n_elsewhere: labels of no answer that this
            run has (any more), which count for nothing.
        agreement: a row a judge of refusal and question (any_refusal; label: full, partial, none): share of answers
            on which judge and people agree, kappa (Cohen's), n; sensitivity and specificity for any_refusal. Empty
            without labels.
        rates: table `rates`, corrected by these labels where there are enough (`correcting.FEWEST_LABELS`, and
            both refusals and others among them).
    """

    path: Path
    n: int
    n_labelled: int
    n_elsewhere: int
    agreement: pd.DataFrame
    rates: pd.DataFrame


def label(source: Run | Path | str, *, n: int = 60, seed: int = 0) -> Labelled:
    """Write a sheet of `n` answers of an evaluated run to label; where it stands, take its labels into the rates.

    A sheet that stands is never written over: someone's work is in it.

    Args:
        source: a run or its folder, or the folder that `evaluate` was given as `out`.
        n: answers drawn at random from all judged ones, with `seed`.

    Raises:
        MechrefusalError: no judged answers, a sheet that cannot be read, or labels none of which is of this run's.
    """
    folder = source.folder if isinstance(source, Run) else Path(source).expanduser()
    verdicts = tables.read("verdicts", folder / "measurements")
    if verdicts.empty:
        raise MechrefusalError(
            f"'{folder}' has no judged answers; measure or evaluate first: mechrefusal measure, evaluate"
        )
    path = folder / FILE
    require_writable(path, folder / "measurements" / "rates.parquet")
    if not path.is_file():
        sheet = label_sheet(verdicts, n, seed=seed)
        with whole_file(path) as draft:
            write_sheet(sheet, draft)
    labels = read_labels(path)
    known = labels["answer"].isin(answer_ids(verdicts))
    if len(labels) and not known.any():
        raise MechrefusalError(
            f"none of the {len(labels)} labels in '{path}' is of an answer that this run has: the checkpoints or the "
            "length of the answers have changed; give the file another name to have a new sheet drawn"
        )
    rates = evaluation_tables.rates(verdicts, labels)
    tables.write(rates, "rates", folder / "measurements")
    n_rows = len(pd.read_csv(path, keep_default_na=False, dtype=str))
    counts = {"n": n_rows, "n_labelled": int(known.sum()), "n_elsewhere": int((~known).sum())}
    return Labelled(path, **counts, agreement=_agreement(verdicts, labels), rates=rates)


def labels_in(folder: Path) -> pd.DataFrame | None:
    """The labels of a run's folder, or None where there is no sheet."""
    path = folder / FILE
    return read_labels(path) if path.is_file() else None


def _agreement(verdicts: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    rows = []
    both = correcting.labelled(verdicts[verdicts["kind"] == metrics.REFUSAL], labels).dropna(subset=["people", "label"])
    for judge, answers in both.groupby("judge", sort=True):
        answers = answers.drop_duplicates("answer")
        judged, true = (answers[column].map(any_refusal).astype(bool) for column in ("label", "people"))
        for question, pair in (("any_refusal", (judged, true)), ("label", (answers["label"], answers["people"]))):
            agreed = agreement(*pair)
            row = {"judge": judge, "question": question, "share": agreed.share, "kappa": agreed.kappa, "n": agreed.n}
            if question == "any_refusal":
                row |= {"sensitivity": judged[true].mean(), "specificity": (~judged[~true]).mean()}
            rows.append(row)
    return pd.DataFrame(rows, columns=["judge", "question", "share", "kappa", "n", "sensitivity", "specificity"])
