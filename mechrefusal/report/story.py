"""What a run says, in a few sentences for one who has never seen it: the index and the terminal begin with them."""

from typing import Any

import pandas as pd
import yaml

from mechrefusal.report import carrier_findings, findings, gate, headline, wording
from mechrefusal.report.headline import Headline
from mechrefusal.report.order import SHARED
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun

_POWER_SHOWN = 3


def told(run: MeasuredRun) -> list[tuple[str, str]]:
    """(heading, sentences) in the order in which they are asked; plain text."""
    lines = {line.checkpoint.id: line for line in headline.headlines(run)}
    ends = [lines[checkpoint.id] for checkpoint in run.last_of_each_arm if _is_end(run, checkpoint)]
    parts = [
        ("What was trained", [_trained(run)]),
        ("Did it learn", [_learnt(line) for line in ends]),
        ("Where refusal sits", [_where(line) for line in ends]),
        ("Did it move", _moves(run)),
        ("What it cost", _costs(run, ends)),
        ("What cannot be told, and what would tell it", _open(run)),
    ]
    return [
        (words, " ".join(sentence for sentence in sentences if sentence))
        for words, sentences in parts
        if any(sentences)
    ]


def _is_end(run: MeasuredRun, checkpoint: MeasuredCheckpoint) -> bool:
    """Whether it is the last of an arm; of what arms share only where there is no arm."""
    has_arms = any(each.arm not in SHARED for each in run.last_of_each_arm)
    return not has_arms or checkpoint.arm not in SHARED


def _trained(run: MeasuredRun) -> str:
    n = len(run.checkpoints)
    measured = f"{n} checkpoint{' was' if n == 1 else 's were'} measured"
    arms = [arm for arm in dict.fromkeys(checkpoint.arm for checkpoint in run.checkpoints) if arm not in SHARED]
    if not run.has_trained:
        names = wording.listed([checkpoint.label for checkpoint in run.checkpoints][:8])
        return f"Nothing was trained here: {measured} that others trained ({names})."
    if not arms:
        return f"No arm was trained: {measured} of the base model."
    model = wording.plain(_recipe(run).get("model", "")) or "The base model"
    warm_up = (
        f"a warm-up of {run.warm_up} steps that both share, then " if run.warm_up is not None and len(arms) == 2 else ""
    )
    warm_up = warm_up or (f"a warm-up of {run.warm_up} steps, then " if run.warm_up is not None else "")
    last = max(checkpoint.step for checkpoint in run.checkpoints)
    ways = f"{len(arms)} ways ({wording.listed(arms)})" if len(arms) > 1 else f"one way ({arms[0]})"
    return f"{model} was trained through {warm_up}{ways}, to step {last}. {measured[:1].upper()}{measured[1:]}."


def _recipe(run: MeasuredRun) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(run.recipe or "{}")
    except yaml.YAMLError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _learnt(line: Headline) -> str:
    one = gate.of(line.checkpoint)
    where = line.checkpoint.label
    if one.passed is None:
        return f"At {where} this was not measured."
    if not one.passed:
        return (
            f"Not at {where}, which {one.words}. What follows of it describes a model that does not do what it is "
            "interpreted for."
        )
    parts = [f"{criterion.name} {wording.rate(criterion.value)} ({criterion.interval})" for criterion in one.criteria]
    return f"At {where} it did: {wording.listed(parts)}."


def _where(line: Headline) -> str:
    checkpoint, carrier = line.checkpoint, line.carrier
    if carrier is None:
        why = line.no_carrier.removeprefix("no admissible carrier: ")
        return f"At {checkpoint.label} no single direction qualifies: {wording.readable(why)}."
    depth = f" of {checkpoint.n_layers}" if checkpoint.n_layers else ""
    interval = (
        "no interval"
        if wording.is_missing(carrier.layer_low)
        else f"95% interval {carrier.layer_low} to {carrier.layer_high}"
    )
    said = f"At {checkpoint.label} one direction at the input of layer {carrier.layer}{depth} carries it ({interval})"
    return f"{said}{_shown_by_answers(line)}."


def _shown_by_answers(line: Headline) -> str:
    """What ablating the carrier does to answers, beside a random direction."""
    for found in carrier_findings.effects(line.checkpoint.tables["rates"]):
        cells = found["cells"]
        before, after, random = (cells.get(("harmful", name)) for name in ("none", "ablate", "ablate_random"))
        if before and after:
            beside = f", a random direction to {random['value']}" if random else ""
            spread = f" ({after['interval']}, n = {after['n']})"
            fall = f"from {before['value']} to {after['value']}{spread}{beside}"
            return f": ablating it takes refusals of harmful requests {fall}"
    return ", by its scores; answers under ablation were not measured"


def _moves(run: MeasuredRun) -> list[str]:
    """From where each arm starts to its end, and between the ends of two arms."""
    pairs = findings.relocations(run.across["relocation"])
    last = {(c.arm, c.step) for c in run.last_of_each_arm}
    ends = [pair for pair in pairs if pair["b"] in last and (pair["a"] in last or pair["a"][0] in SHARED)]
    chosen = {
        (pair["a"] if pair["a"] in last and pair["a"][0] not in SHARED else None, pair["b"]): pair for pair in ends
    }
    chosen = {key: pair for key, pair in chosen.items() if key[1][0] not in SHARED} or chosen
    return [_move(pair) for pair in chosen.values()]


def _move(pair: dict[str, Any]) -> str:
    verdict = {"moved": "it moved", "not moved": "it did not move", "cannot tell": "it cannot be told whether it moved"}
    depth = next((one for one in pair["measures"] if one["name"] == "carrier_layer" and one["interval"]), None)
    by = f" (depth of the carrier {depth['value']} layers {depth['interval']})" if depth else ""
    (arm_a, step_a), (arm_b, step_b) = pair["a"], pair["b"]
    said = verdict.get(pair["verdict"], "it was not judged")
    return f"From {arm_a}, step {step_a} to {arm_b}, step {step_b} {said}{by}."


def _costs(run: MeasuredRun, ends: list[Headline]) -> list[str]:
    said = []
    for line in ends:
        parts = []
        if rates := line.refusals["overrefusal"]:
            parts.append(
                f"refuses {wording.rate(rates[0].value)} ({rates[0].interval}) of safe requests that look unsafe"
            )
        if utility := _utility(line.checkpoint):
            parts.append(f"answers {utility} of plain instructions")
        if attacked := [
            (headline.attack_label(key), rates[0]) for key, rates in line.attacks.items() if key[1] != "none" and rates
        ]:
            name, rate = max(attacked, key=lambda found: -1 if wording.is_missing(found[1].value) else found[1].value)
            parts.append(f"gives in to {wording.rate(rate.value)} ({rate.interval}) of the attacks {name}")
        said += [f"{line.checkpoint.label} {wording.listed(parts)}."] if parts else []
    seconds = run.across["stages"]["seconds"].sum()
    return said + ([f"The run took {wording.seconds(seconds)}."] if said and seconds else [])


def _utility(checkpoint: MeasuredCheckpoint) -> str:
    rates = checkpoint.tables["rates"]
    own = rates[(rates["suite"] == "utility") & (rates["metric"] == "answered") & (rates["by"] == "all")]
    own = own[(own["intervention"] == "none") & (own["attack"] == "none")]
    row = own.iloc[0] if len(own) else None
    return "" if row is None else f"{wording.rate(row['value'])} ({wording.rate_interval(row['low'], row['high'])})"


def _open(run: MeasuredRun) -> list[str]:
    """What the run leaves open: moves that cannot be told, and the smallest effects that it could have seen."""
    pairs = findings.relocations(run.across["relocation"])
    unsure = [pair for pair in pairs if pair["verdict"] == "cannot tell"]
    said = []
    if unsure:
        decided = [pair for pair in unsure if pair["to_decide"] != wording.MISSING]
        said.append(f"Of {len(pairs)} pairs of checkpoints {len(unsure)} cannot be told to have moved or not.")
        if decided:
            least = min(decided, key=lambda pair: float(pair["n_to_decide"]))
            said.append(
                f"About {least['to_decide']} prompts of each side would decide the nearest of them ({least['pair']})."
            )
        if without := [pair for pair in unsure if "no carrier at" in pair["reason"]]:
            said.append(f"{len(without)} of them have an end without a carrier, which no number of prompts settles.")
    power = run.across["power"]
    short = power[power["n"].notna() & power["could_tell"].notna() & (power["could_tell"] > power["wanted"])]
    for _, row in short.drop_duplicates("question").head(_POWER_SHOWN).iterrows():
        said.append(_could_tell(row))
    return said


def _could_tell(row: pd.Series) -> str:
    needed = wording.MISSING if wording.is_missing(row["n_needed"]) else wording.grouped(row["n_needed"])
    more = f"; {needed} {row['unit']} would tell {wording.number(row['wanted'])}" if needed != wording.MISSING else ""
    return (
        f"A {wording.readable(row['question'])} below {wording.number(row['could_tell'])} would have been missed with "
        f"{wording.whole(row['n'])} {row['unit']}{more}."
    )
