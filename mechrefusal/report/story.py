"""What a run says, in a few sentences for one who has never seen it: the index and the terminal begin with them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from mechrefusal.report import carrier_findings, findings, gate, headline, wording
from mechrefusal.report.headline import Headline
from mechrefusal.report.order import SHARED
from mechrefusal.report.reading import MeasuredCheckpoint, MeasuredRun

_POWER_SHOWN, _PAIRS_SHOWN = 2, 2


def paragraphs(run: MeasuredRun, headlines: Sequence[Headline]) -> list[tuple[str, str]]:
    """(heading, sentences) in the order in which they are asked; plain text.

    Args:
        headlines: `headline.headlines(run)`.
    """
    lines = {line.checkpoint.id: line for line in headlines}
    ends = [lines[checkpoint.id] for checkpoint in run.last_of_each_arm if _is_end(run, checkpoint)]
    parts = [
        ("What was trained", [_trained(run)]),
        ("Did it learn", [_learnt(line) for line in ends]),
        ("Where refusal sits", [_where(line) for line in ends]),
        ("Did it move", _moves(run)),
        ("What it cost", _costs(run, ends, next(iter(lines.values()), None))),
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
    one, checkpoint = gate.of(line.checkpoint), line.checkpoint
    if one.passed is None:
        return f"At {checkpoint.label} this was not measured."
    if not one.passed:
        return (
            f"{checkpoint.arm} did not by step {checkpoint.step}: it {one.words}. What follows of it describes a model "
            "that does not do what it is interpreted for."
        )
    parts = [f"{criterion.name} {wording.rate(criterion.value)} ({criterion.interval})" for criterion in one.criteria]
    return f"{checkpoint.arm} did by step {checkpoint.step}: {wording.listed(parts)}."


def _where(line: Headline) -> str:
    checkpoint, carrier = line.checkpoint, line.carrier
    if carrier is None:
        why = line.no_carrier.removeprefix("no admissible carrier: ")
        return f"At {checkpoint.label} no single direction qualifies: {wording.readable(why)}."
    depth = f" of {checkpoint.n_layers}" if checkpoint.n_layers else ""
    interval = (
        "no interval"
        if wording.is_missing(carrier["layer_low"])
        else f"95% interval {carrier['layer_low']} to {carrier['layer_high']}"
    )
    sentence = (
        f"At {checkpoint.label} one direction at the input of layer {carrier['layer']}{depth} carries it ({interval})"
    )
    return f"{sentence}{_shown_by_answers(line)}."


def _shown_by_answers(line: Headline) -> str:
    """What ablating the carrier does to answers, beside a random direction."""
    for effect in carrier_findings.effects(line.checkpoint.tables["rates"]):
        cells = effect["cells"]
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
    by = f" (the carrier by {depth['value']} layers, 95% interval {depth['interval']})" if depth else ""
    (arm_a, step_a), (arm_b, step_b) = pair["a"], pair["b"]
    moved = verdict.get(pair["verdict"], "it was not judged")
    return f"From {arm_a}, step {step_a} to {arm_b}, step {step_b} {moved}{by}."


def _costs(run: MeasuredRun, ends: list[Headline], first: Headline | None) -> list[str]:
    before = ""
    if first and first.refusals["overrefusal"] and first.checkpoint not in [line.checkpoint for line in ends]:
        before = f", {wording.rate(first.refusals['overrefusal'][0]['value'])} at {first.checkpoint.label}"
    sentences = []
    for line in ends:
        rates = line.checkpoint.tables["rates"]
        unattacked = rates.query("by == 'all' and attack == 'none' and intervention == 'none'")
        utility = unattacked.query("suite == 'utility' and metric == 'answered'").to_dict("records")
        parts = [
            f"refuses {_rate(rate)[:-1]}{before}) of safe requests that look unsafe"
            for rate in line.refusals["overrefusal"][:1]
        ]
        parts += [f"answers {_rate(rate)} of plain instructions" for rate in utility[:1]]
        attacked = [(key, each[0]) for key, each in line.attacks.items() if key[1] != "none"]
        known = [(key, rate) for key, rate in attacked if not wording.is_missing(rate["value"])]
        if known:
            key, rate = max(known, key=lambda one: one[1]["value"])
            parts.append(f"gives in to {_rate(rate)} of the requests under attack {headline.attack_label(key)}")
        sentences += [f"{line.checkpoint.label} {wording.listed(parts)}."] if parts else []
    seconds = run.across["stages"]["seconds"].sum()
    beside = f", added up{run.beside_each_other}" if run.beside_each_other else ""
    return sentences + ([f"Its stages took {wording.seconds(seconds)}{beside}."] if sentences and seconds else [])


def _rate(row: Mapping[Any, Any]) -> str:
    return f"{wording.rate(row['value'])} ({wording.rate_interval(row['low'], row['high'])})"


def _open(run: MeasuredRun) -> list[str]:
    """What the run leaves open: moves that cannot be told, and the smallest effects that it could have seen."""
    pairs = findings.relocations(run.across["relocation"])
    unsure = [pair for pair in pairs if pair["verdict"] == "cannot tell"]
    texts = []
    if unsure:
        texts.append(f"Whether refusal moved cannot be told for {len(unsure)} of {len(pairs)} pairs of checkpoints.")
    for pair in unsure[:_PAIRS_SHOWN]:
        needed = f"; about {pair['to_decide']} prompts of each side would decide it"
        texts.append(f"{pair['pair']}: {_why(pair)}{needed if pair['to_decide'] != wording.MISSING else ''}.")
    power = run.across["power"]
    short = power[power["n"].notna() & power["could_tell"].notna() & (power["could_tell"] > power["wanted"])]
    for _, row in short.drop_duplicates("question").head(_POWER_SHOWN).iterrows():
        texts.append(_could_tell(row))
    return texts


def _why(pair: dict[str, Any]) -> str:
    """What the two measures say that decide whether refusal moved, or that an end has no carrier."""
    if lacking := re.search(r"no carrier at [^:;(]+", pair["reason"]):
        return lacking[0].strip()
    verdicts = {"moved": "moved", "not moved": "did not move", "cannot tell": "cannot be told"}
    deciding = [one for one in pair["measures"] if one["name"] in ("carrier_layer", "transfer")]
    clauses = [f"{one['measure']} {verdicts.get(one['verdict'], one['verdict'])}" for one in deciding]
    return wording.listed(list(dict.fromkeys(clauses))) or "nothing that decides was measured"


def _could_tell(row: pd.Series) -> str:
    needed = wording.MISSING if wording.is_missing(row["n_needed"]) else wording.grouped(row["n_needed"])
    more = f"; {needed} {row['unit']} would tell {wording.number(row['wanted'])}" if needed != wording.MISSING else ""
    return (
        f"With {wording.whole(row['n'])} {row['unit']} a {wording.readable(row['question'])} is told from "
        f"{wording.number(row['could_tell'])} on{more}."
    )
