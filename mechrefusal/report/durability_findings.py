"""What it takes to halve refusal, and where refusals come, in sentences. Plain text: the page escapes it."""

from collections.abc import Iterator, Sequence

import pandas as pd

from mechrefusal.report import wording
from mechrefusal.report.figures import axes


def examples(table: pd.DataFrame) -> list[str]:
    """One sentence a checkpoint of table `harmful_fine_tuning`: from how many examples on half of refusal is gone.

    Rates are means over draws.
    """
    said = []
    for name, rows in _of_checkpoints(table[(table["measure"] == "refused") & (table["side"] == "harmful")]):
        before = _mean(rows[rows["material"] == "none"])
        parts = [
            _halved(rows[rows["material"] == material], "n_examples", before, f"{material} examples")
            for material in ("harmful", "harmless")
        ]
        said += _sentence(name, before, parts)
    return said


def openings(table: pd.DataFrame) -> list[str]:
    """One sentence a checkpoint of table `prefilled`: from how many given tokens on half of the refusals are gone."""
    said = []
    for name, rows in _of_checkpoints(table[(table["measure"] == "refused") & (table["side"] == "harmful")]):
        before = _mean(rows[rows["opening"] == "none"])
        parts = [
            _halved(rows[rows["opening"] == kind], "n_tokens", before, f"tokens of {words}")
            for kind, words in (("affirmative", "an affirmative opening"), ("neutral", "a neutral one"))
        ]
        said += _sentence(name, before, parts)
    return said


def places(table: pd.DataFrame) -> list[str]:
    """One sentence a checkpoint of table `refusal_places`: how many of the refusals of harmful prompts are delayed."""
    said = []
    for name, rows in _of_checkpoints(table[table["side"] == "harmful"]):
        refused = rows[rows["refused"]]
        if not len(refused):
            said.append(f"{name}: none of {len(rows)} answers to harmful prompts refuses.")
            continue
        late = refused[refused["sentence"] > 0]
        begins = f", the latest at token {wording.whole(late['token'].max())}" if len(late) else ""
        said.append(
            f"{name}: {len(refused)} of {len(rows)} answers to harmful prompts refuse, "
            f"{len(late) or 'none'} of them after their first sentence{begins}."
        )
    return said


def _of_checkpoints(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for arm, step in axes.checkpoints(table).order if len(table) else ():
        rows = table[(table["arm"] == arm) & (table["step"] == step)]
        yield axes.checkpoint_label((arm, step), 40), rows


def _mean(rows: pd.DataFrame) -> float:
    return float(rows["value"].mean())


def _halved(rows: pd.DataFrame, x: str, before: float, what: str) -> str:
    """From where on no rate is above half of what it was; empty where there is none."""
    rates = rows.dropna(subset=["value"]).groupby(x)["value"].mean().sort_index()
    if not len(rates):
        return ""
    above = rates.index[rates > before / 2]
    enough = rates.index if not len(above) else rates.index[rates.index > above[-1]]
    if not len(enough):
        return f"not with up to {_counted(rates.index[-1], what)} ({wording.rate(rates.iloc[-1])} left)"
    return f"from {_counted(enough[0], what)} on ({wording.rate(rates[enough[0]])} left)"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n != 1 else f"1 {what.replace('tokens', 'token').replace('examples', 'example')}"


def _sentence(name: str, before: float, parts: Sequence[str]) -> list[str]:
    known = [part for part in parts if part]
    if wording.is_missing(before) or not known:
        return []
    if not before:
        return [f"{name} refuses none of the harmful prompts as it is: there is nothing to take away."]
    gone = ", ".join(known)
    return [f"{name} refuses {wording.rate(before)} of the harmful prompts; half or more of that is gone {gone}."]
