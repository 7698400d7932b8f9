"""How far two judges, or a judge and people, agree about the same completions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import LABELS, refuses


def any_refusal(label: str) -> bool:
    """Whether a label is a full or a partial refusal.

    Raises:
        MechrefusalError: not one of `LABELS`.
    """
    if label not in LABELS:
        raise MechrefusalError(f"no judge's label: {label!r}; the labels are {', '.join(LABELS)}")
    return refuses(label)


@dataclass(frozen=True)
class Agreement:
    """What `agreement` counts.

    confusion: counts, one row a label of `a`, one column a label of `b`. share: rows on which both agree, of n. kappa:
    Cohen's kappa (Cohen 1960), agreement beyond chance; NaN where there are no rows, or where both say the
    same one label throughout. n: rows that both label. nulls_a, nulls_b: rows without a label of `a`, or of `b`; they
    are in no other number.
    """

    confusion: pd.DataFrame
    share: float
    kappa: float
    n: int
    nulls_a: int
    nulls_b: int


def agreement(a: Sequence[object] | pd.Series, b: Sequence[object] | pd.Series) -> Agreement:
    """Compare two columns of labels, row by row in their order (an index is not aligned).

    Any labels will do, such as `LABELS` or the booleans of `any_refusal`.

    Raises:
        MechrefusalError: columns of different lengths.
    """
    first, second = (pd.Series(list(column), dtype=object) for column in (a, b))
    if len(first) != len(second):
        raise MechrefusalError(f"two columns of labels to compare have {len(first)} and {len(second)} rows")
    missing = first.isna(), second.isna()
    both = ~missing[0] & ~missing[1]
    first, second = first[both], second[both]
    seen = sorted({*first, *second}, key=_order)
    confusion = pd.crosstab(pd.Categorical(first, seen), pd.Categorical(second, seen), dropna=False)
    confusion = confusion.rename_axis(index="a", columns="b").astype(int)
    n = len(first)
    codes = {label: code for code, label in enumerate(seen)}
    ours, theirs = ([codes[label] for label in column] for column in (first, second))
    return Agreement(
        confusion=confusion,
        share=float(np.mean(np.equal(ours, theirs))) if n else float("nan"),
        kappa=float(cohen_kappa_score(ours, theirs)) if len(seen) > 1 else float("nan"),
        n=n,
        nulls_a=int(missing[0].sum()),
        nulls_b=int(missing[1].sum()),
    )


def _order(label: object) -> tuple[int, str]:
    """Judges' labels in their own order, others by name."""
    return (LABELS.index(label) if label in LABELS else len(LABELS), str(label))
