"""What the tables of the geometry say, in sentences. Plain text: the page escapes it."""

from collections import Counter
from typing import Any

import pandas as pd

from mechrefusal.report import wording
from mechrefusal.report.figures import catalogue, forest
from mechrefusal.statistics.choosing import BEST, BEST_IS, CARRIER
from mechrefusal.study.table_rows import best_place

VERDICTS = {"moved": ("●", "moved"), "not moved": ("○", "rest"), "cannot tell": ("?", "unsure")}
"""A sign (colour alone says nothing to many readers) and a class of the style sheet for each verdict."""


def stability(row: dict[str, Any]) -> str:
    """How sure the carrier is, from its row of table `carrier`; empty where no bootstrap was made."""
    if wording.is_missing(row["n_bootstrap"]):
        return ""
    drawn = f"Over {wording.whole(row['n_bootstrap'])} bootstraps of the validation prompts"
    none = f"no candidate is admissible in {wording.percent(row['none_frequency'])}"
    low, high = (wording.whole(row[f"layer_{end}"]) for end in ("low", "high"))
    layers = (
        "no interval of the layer"
        if wording.is_missing(row["layer_low"])
        else f"the winning layer lies in {low} to {high} (95%)"
    )
    if wording.is_missing(row["layer"]):
        return f"{drawn}, {none}; where one is, {layers}."
    margin = (
        "no second candidate is admissible by exact scores"
        if wording.is_missing(row["margin"])
        else f"its bypass is {wording.number(row['margin'])} nats{wording.interval(row, 'margin')} "
        "below the runner-up's"
    )
    wins = wording.percent(row["win_frequency"])
    return f"{drawn}, this candidate wins {wins}, {none}, and {layers}. {margin[:1].upper()}{margin[1:]}.{_halves(row)}"


def _halves(row: dict[str, Any]) -> str:
    """What halves of the direction prompts choose."""
    halves = "halves of the direction prompts, among the likeliest candidates"
    if row["n_halves"] < 2:
        return f" Of two {halves}, {'neither has' if row['n_halves'] == 0 else 'only one has'} an admissible one."
    low, high = (wording.whole(row[f"layer_half_{end}"]) for end in ("low", "high"))
    return f" Two {halves}, choose layer {low if low == high else f'{low} and layer {high}'}."


def reference(row: dict[str, Any], carriers: pd.DataFrame, token: str = "") -> str:
    """Which candidate the later measures look at, where that is not the carrier itself."""
    if row["reference_kind"] == CARRIER:
        return ""
    if row["reference_kind"] != BEST or (place := best_place(row)) is None:
        return "There is no candidate to look at instead: later measures of a direction have no value here."
    candidate = carriers[(carriers["position"] == place[0]) & (carriers["layer"] == place[1])]
    why = wording.plain(candidate["rejected_because"].iloc[0]) if len(candidate) else ""
    where = f"layer {place[1]}, position {wording.whole(place[0])}" + (f" {wording.token(token)}" if token else "")
    rejected = f" (rejected: {why})" if why else ""
    looked = f"The later measures look at the best candidate instead ({BEST_IS}): {where}"
    return f"{looked}. It is NOT a carrier{rejected}."


def selection(directions: pd.DataFrame) -> str:
    """Of which prompts directions are means (table `directions`)."""
    if not len(directions):
        return ""
    row = directions.iloc[0]
    counts = f"{wording.whole(row['n_harmful'])} harmful and {wording.whole(row['n_harmless'])} harmless prompts"
    return f"Means over {counts}; selection of prompts: {wording.plain(row['selection']) or wording.MISSING}."


def baseline(carrier: pd.DataFrame) -> float | None:
    """Refusal score of harmful prompts without intervention (table `carrier`)."""
    return float(carrier["baseline_harmful"].iloc[0]) if len(carrier) else None


def intervened(rates: pd.DataFrame) -> pd.DataFrame:
    """Refusals without and with interventions (table `rates`); nothing where none was made."""
    rows = rates[(rates["metric"] == "any_refusal") & (rates["attack"] == "none")].sort_values("judge", kind="stable")
    return rows if (rows["intervention"] != "none").any() else rows.iloc[:0]


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of measures that were taken at several layers of a checkpoint."""
    return table[table["measure"].isin(forest.layered(table))]


def by_layer_of_pairs(drift: pd.DataFrame) -> pd.DataFrame:
    """Rows of table `drift` of measures that were taken at several layers."""
    layers = drift[drift["layer"] >= 0].groupby("measure")["layer"].nunique()
    return drift[drift["measure"].isin(layers[layers > 1].index)]


def over_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Rows without measures that stand on the checkpoints' pages alone, layer by layer."""
    known = table.loc[table["layer"].isna() | (table["layer"] == forest.NONE), "measure"]
    return table[~table["measure"].isin(set(forest.layered(table)) - set(known))]


def smallest_subspace(table: pd.DataFrame) -> str:
    """How many directions are enough, from table `subspaces` of one checkpoint."""
    if not len(table):
        return ""
    chosen = table[table["smallest"]]
    if not len(chosen):
        why = "; ".join(reason for reason, _ in reasons(table, "share_of_best")) or "the table gives no reason"
        return f"No subspace is enough: {why}."
    row = chosen.iloc[0]
    k, family = int(row["k"]), catalogue.words("family").get(str(row["family"]), wording.plain(row["family"]))
    directions = "One direction is" if k == 1 else f"{k} directions are"
    drop = f"{wording.percent(row['share_of_best'])} of the best admissible drop"
    bypass = (
        f"bypass {wording.number(row['bypass'])}{wording.interval(row, 'bypass')}, kl {wording.number(row['kl'], 3)}"
    )
    return f"{directions} enough ({family}): {drop}, {bypass}."


def utility_couplings(table: pd.DataFrame) -> list[str]:
    """One sentence a row of table `utility_coupling`: the area, its interval, and what a random direction has."""
    sentences = []
    for _, row in table.iterrows():
        name = f"{wording.plain(row['intervention'])}, {wording.plain(wording.metric_name(str(row['measure'])))}"
        if wording.is_missing(row["value"]):
            sentences.append(f"{name}: no value ({wording.plain(row['reason']) or 'the table gives no reason'}).")
            continue
        random = "" if wording.is_missing(row["random"]) else f"; a random direction {wording.number(row['random'], 3)}"
        n = wording.whole(row["n"])
        sentences.append(f"{name}: {wording.number(row['value'], 3)}{wording.interval(row, '', 3)}{random}; n = {n}.")
    return sentences


def relocations(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One entry a pair of checkpoints of table `relocation`: the overall verdict, and what each measure says.

    `a`, `b`: (arm, step) of either; `to_decide`: how many prompts would decide what cannot be told, a dash where that
    is not known.
    """
    pairs = []
    keys = ["arm_a", "step_a", "arm_b", "step_b"]
    for (arm_a, step_a, arm_b, step_b), rows in table.groupby(keys, sort=False):
        overall = rows[rows["measure"] == "overall"]
        first = overall.iloc[0] if len(overall) else pd.Series({"verdict": "", "reason": "", "n_to_decide": None})
        measures = [_measured(row) for _, row in rows[rows["measure"] != "overall"].iterrows()]
        ends = {"a": (wording.plain(arm_a), int(step_a)), "b": (wording.plain(arm_b), int(step_b))}
        pair = f"{ends['a'][0]} {step_a} → {ends['b'][0]} {step_b}"
        pairs.append({"pair": pair, **ends, **_verdict(first), "measures": measures})
    return pairs


def says_what_decides(table: pd.DataFrame) -> bool:
    """Whether table `relocation` says of anything how many prompts would decide it."""
    return bool(table["n_to_decide"].notna().any())


def reasons(table: pd.DataFrame, value: str = "value") -> list[tuple[str, int]]:
    """Why values are missing, and how often."""
    missing = table[table[value].isna()]
    return Counter(wording.plain(reason) or "no reason given" for reason in missing["reason"]).most_common()


def _measured(row: pd.Series) -> dict[str, Any]:
    digits = 1 if row["measure"] == "carrier_layer" else 3
    return {
        "name": row["measure"],
        "measure": wording.readable(row["measure"]),
        "value": wording.number(row["value"], digits),
        "interval": wording.interval(row, "", digits).strip(),
        "floor": wording.number(row["floor"], digits),
        **_verdict(row),
    }


def _verdict(row: pd.Series) -> dict[str, Any]:
    verdict = wording.plain(row["verdict"]) or "not judged"
    sign, kind = VERDICTS.get(verdict, ("–", "unsure"))
    number = wording.grouped(row["n_to_decide"])
    reason = wording.readable(row["reason"]) or ("no reason given" if verdict == "cannot tell" else "")
    to_decide = {"to_decide": number, "n_to_decide": row["n_to_decide"]}
    return {"verdict": verdict, "sign": sign, "kind": kind, "reason": reason, **to_decide}
