"""What the tables of cause and attribution say, in sentences and small tables. Plain text: the page escapes it."""

from typing import Any

import pandas as pd

from mechrefusal.files import checkpoint_id
from mechrefusal.report import wording
from mechrefusal.report.figures import style
from mechrefusal.report.figures.attribution import beyond_chance
from mechrefusal.report.figures.cross_patches import PAIR, clear_of_control, head_sites, of_set, pair_name

TOKENS_A_HEAD, HEADS_A_PAIR = 6, 5
_KINDS = {"head": "Heads", "mlp": "MLPs", "embed": "embedding", "bias": "biases"}


def pairs(table: pd.DataFrame) -> str:
    """How many pairs were patched, and where they came from; empty where that is not known."""
    if table.empty:
        return ""
    row = table.iloc[0]
    pairs_are = "pair of equal token length is" if row["n_patched"] == 1 else "pairs of equal token length are"
    patched = f"{int(row['n_patched'])} {pairs_are} patched"
    if row["origin"] == "found":
        return f"{patched}, of {int(row['n'])} that were found among the direction and validation prompts."
    left_out = f"; {int(row['n_left_out'])} more have unequal lengths under this tokenizer" if row["n_left_out"] else ""
    return f"{patched}, of {int(row['n'])}{left_out}."


def chance(table: pd.DataFrame) -> str:
    """How many components of table `attribution_compared` (one `onto`) differ; empty where that was not tested."""
    rows = table[table["component"] != "total"]
    if not rows["p"].notna().any():
        return ""
    n_beyond = int(beyond_chance(rows)["beyond"].sum())
    return (
        f"{n_beyond} of {len(rows)} components differ (p < 0.05, adjusted for all of them: were harmful and harmless "
        "prompts the same, one report in twenty would name any)."
    )


def sums(rows: pd.DataFrame) -> str:
    """Sum of each kind of component (table `attribution`), and the total that they should add up to."""
    values = rows.groupby("component", sort=False)["value"].sum(min_count=1)
    parts = values.drop("total", errors="ignore")
    shown = [f"{_KINDS.get(str(name), name)} {wording.number(value, 3, signed=True)}" for name, value in parts.items()]
    if wording.is_missing(values.get("total")):
        return ", ".join(shown)
    both = [wording.number(value, 3, signed=True) for value in (parts.sum(), values["total"])]
    return f"{', '.join(shown)}; the sum of these is {both[0]}, the measured total {both[1]}."


def top_tokens(table: pd.DataFrame, kind: str = "harmful") -> list[dict[str, Any]]:
    """The source tokens of each top head with the largest absolute contribution (table `token_sources`)."""
    rows = table[(table["by"] == "token") & (table["set"] == kind)].dropna(subset=["value"])
    by_head = []
    for (layer, head), of_head in rows.groupby(["layer", "head"], sort=False):
        order = of_head["value"].abs().sort_values(ascending=False, kind="stable").index[:TOKENS_A_HEAD]
        tokens = [
            {
                "token": wording.token(row["name"]),
                "value": wording.number(row["value"], 3, signed=True),
                "detail": f"{wording.interval(row).strip() or 'no interval'}, "
                f"attention {wording.number(row['weight'])}, n = {wording.whole(row['n'])}",
            }
            for _, row in of_head.loc[order].iterrows()
        ]
        by_head.append({"head": wording.head_name(layer, head), "tokens": tokens})
    return by_head


def knock_outs(table: pd.DataFrame) -> str:
    """The component without which refusal falls furthest, if its p (adjusted for all) is below 0.05; empty for none."""
    rows = table.dropna(subset=["refusal"])
    if not len(rows):
        return ""
    row = rows.loc[rows["refusal"].idxmin()]
    if row["refusal"] >= 0:
        return "No single head or MLP lowers refusal when it is knocked out."
    name = wording.head_name(row["layer"], row["head"]) if row["component"] == "head" else f"MLP {int(row['layer'])}"
    fall = f"{wording.number(row['refusal'], signed=True)} nats{wording.interval(row)}"
    cost = f"KL {wording.number(row['kl'], 3)} nats on harmless prompts"
    if style.is_clear(rows).loc[row.name]:
        return f"Refusal falls furthest without {name}: {fall}, at {cost}."
    chance = "not tested" if wording.is_missing(row["p"]) else f"p {wording.number(row['p'])}, adjusted for all"
    return f"No head or MLP stands out: refusal falls furthest without {name}, {fall} ({chance}), at {cost}."


def head_set(table: pd.DataFrame) -> str:
    """Whether half of refusal is gone without a few heads, which, and at what cost (table `head_sets`)."""
    if not len(table):
        return ""
    last = table.loc[table["size"].idxmax()]
    why = wording.plain(last["reason"])
    if last["size"] == 0:
        return f"Half of refusal was not reached: {why or 'the table gives no reason'}."
    rows = table.sort_values("size")
    heads = ", ".join(wording.head_name(row.layer, row.head) for row in rows.itertuples())
    n = f"{len(rows)} {'head' if len(rows) == 1 else 'heads'}"
    gap = f"{wording.number(last['gap'])} nats between harmful and harmless prompts"
    gone = f"{wording.percent(last['share'])} of the {gap}"
    cost = (
        f"harmless prompts' score {wording.number(last['harmless'], signed=True)} nats"
        f"{wording.interval(last, 'harmless')}, KL {wording.number(last['kl'], 3)}{wording.interval(last, 'kl', 3)}"
    )
    random = _random(last) + _unseen(last)
    if last["reached"]:
        return f"Half of refusal is gone without {n} ({heads}): {gone}{random}. Cost: {cost}."
    far = f"The best set found has {n} ({heads}): {gone}{random}, at {cost}"
    return f"Half of refusal was not reached: {why or 'the table gives no reason'}. {far}."


def circuit(nodes: pd.DataFrame, faithfulness: pd.DataFrame) -> str:
    """How large the circuit is and how faithful; or why there is none. Empty where it was not looked for."""
    if not len(nodes):
        return ""
    kept = nodes[nodes["kept"]]
    reasons = sorted({wording.plain(reason) for reason in nodes["reason"]} - {""})
    if not len(kept):
        return f"There is no circuit: {'; '.join(reasons) or 'the table gives no reason'}."
    heads = int((kept["component"] == "head").sum())
    mlps = len(kept) - heads
    sentence = f"The circuit has {heads} head{'' if heads == 1 else 's'} and {mlps} MLP{'' if mlps == 1 else 's'}"
    sentence += _confirmed(kept)
    of_circuit = faithfulness[faithfulness["is_circuit"] & (faithfulness["of"] == "harmful")]
    if not len(of_circuit):
        return f"{sentence}; its faithfulness was not measured."
    row = of_circuit.iloc[0]
    if wording.is_missing(row["kept"]):
        return f"{sentence}; it has no faithfulness: {wording.plain(row['reason']) or 'the table gives no reason'}."
    shares = [
        f"{wording.percent(row[name])} [{wording.percent(row[f'{name}_low'])}, {wording.percent(row[f'{name}_high'])}]"
        for name in ("kept", "lost")
    ]
    on = wording.plain(row["measured_on"])
    where = f" (measured on {on})" if on else ""
    return f"{sentence}. Alone it keeps {shares[0]} of the refusal score; without it {shares[1]} are lost{where}."


def _confirmed(kept: pd.DataFrame) -> str:
    """How many nodes pairs that did not choose them tell from nothing; empty where none were held out."""
    n = kept["n_held_out"].max()
    if n == 0:
        return ""
    if kept["p"].isna().all():
        return f"; {n} held-out pairs are too few to tell which of them differ from nothing"
    return f", of which {int(style.is_clear(kept).sum())} differ from nothing on {n} held-out pairs ({style.CLEAR})"


def crossed_heads(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The heads of each source that move the target's refusal of harmful prompts most, one entry a pair.

    From table `cross_patching`. Beside each what it does on harmless prompts, where that was measured.
    """
    everything, table = table, of_set(table, "harmful")
    sites = head_sites(table)
    if not sites:
        return []
    rows = clear_of_control(table[table["site"] == sites[0]])
    rows = rows.dropna(subset=["raw"])
    other = of_set(everything, "harmless")
    harmless = other[other["site"] == sites[0]].set_index([*PAIR, "layer", "head"])["raw"]
    by_pair = []
    for _, of_pair in rows.groupby(PAIR, sort=False):
        order = of_pair["raw"].abs().sort_values(ascending=False, kind="stable").index[:HEADS_A_PAIR]
        heads = [
            {
                "name": wording.head_name(row["layer"], row["head"]),
                "raw": wording.number(row["raw"], signed=True),
                "detail": f"{wording.interval(row).strip() or 'no interval'}, control "
                f"{wording.number(row['control'], signed=True)}{_on_harmless(row, harmless)}",
                "is_clear": bool(row["clear"]),
            }
            for _, row in of_pair.loc[order].iterrows()
        ]
        clear = int(of_pair["clear"].sum())
        target = checkpoint_id(str(of_pair["arm_target"].iloc[0]), int(of_pair["step_target"].iloc[0]))
        named = {"pair": wording.plain(pair_name(of_pair.iloc[0])), "target": target}
        by_pair.append({**named, "heads": heads, "n_clear": clear, "n": len(of_pair)})
    return by_pair


def _on_harmless(row: pd.Series, known: pd.Series) -> str:
    value = known.get(tuple(row[[*PAIR, "layer", "head"]]))
    return "" if value is None or wording.is_missing(value) else f", harmless {wording.number(value, signed=True)}"


def _unseen(row: pd.Series) -> str:
    """What the set takes away on prompts that the search did not see."""
    if wording.is_missing(row["held_out_share"]):
        return ""
    n = wording.whole(row["n_held_out"])
    return f"; on {n} harmful prompts that the search did not see {wording.percent(row['held_out_share'])} of theirs"


def _random(row: pd.Series) -> str:
    """What random sets of that size take away, as shares of the gap."""
    names = ("random_refusal", "random_refusal_most", "random_refusal_least")
    if wording.is_missing(row["random_refusal"]):
        return ""
    mean, least, most = (wording.percent(-row[name] / row["gap"]) for name in names)
    return f" ({wording.whole(row['n_random'])} random sets of that size: {mean}, {least} to {most})"
