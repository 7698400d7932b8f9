"""Readers of the public benchmarks, from the files as their authors publish them."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import sources
from mechrefusal.prompts.given_targets import Targets, with_given_targets
from mechrefusal.prompts.prompt_set import COLUMNS, PromptSet
from mechrefusal.prompts.sources import Row

XSTEST_LABELS = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")


@dataclass(frozen=True)
class _Benchmark:
    """`required` columns, what a row becomes, and the columns that this uses up; the others keep their own names."""

    required: tuple[str, ...]
    record: Callable[[Row], dict[str, Any]]
    used: tuple[str, ...] = ()


def read(name: str, source: str | Path, *, targets: Targets | None = None) -> PromptSet:
    """The benchmark `name` from a file, or from a data set of the hub (`owner/name`, `owner/name:config:split`).

    Names (case and punctuation do not count): harmbench, strongreject, xstest, xstestcompletions, advbench,
    jailbreakbench, maliciousinstruct, alpaca. Ids come from the source where it has them, otherwise they are
    `<name>-0001`, by row; an id that occurs again gets `-2`, `-3`, with a warning. Rows without text are left out,
    counted in `dropped` and warned of. A value that a file calls missing (an empty field, null, NaN, NaT) is missing;
    the word "None" or "nan" is a word. A prompt given as a conversation of one turn of the user is that turn's text;
    any other list or object in place of a text is an error. In columns that keep their own names it stays, as JSON.

    `targets`: a file with the openings of a complying answer by id or by text (see `with_given_targets`; HarmBench's
    adversarial training files have one by BehaviorID), or such a mapping. The set then has the columns `targets` (list
    of str, without blank ones) and `target` (the first of them). Where a published file lacks a behaviour, read the
    JSON, add what is missing and give the mapping.

    Columns beyond id, text and category. HarmBench: `behavior`, `context`, `functional_category` (standard, contextual
    or copyright; None in files without it), `tags`; the text of a row with a context is the context, a rule and the
    behaviour. AdvBench and JailbreakBench: `target`. XSTest: `type`, `label` (safe or unsafe), and of the completions
    `completion` and `final_label`. Other columns keep their names, in lower case.

    Raises:
        MechrefusalError: an unknown name, a source that cannot be read, a missing column, a value that the
            benchmark does not have, no prompt at all, or a behaviour without a target although targets were asked for.
    """
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    if key not in BENCHMARKS:
        raise MechrefusalError(f"unknown benchmark '{name}': expected one of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[key]
    rows = sources.load(source, one_a_line=key == "maliciousinstruct")
    if not rows.rows:
        raise MechrefusalError(f"{rows.where} has no rows: give a file that holds prompts")
    rows.require(*benchmark.required)
    records, dropped, again = _records(key, benchmark, rows)
    if not records:
        raise MechrefusalError(
            f"{rows.where} has no prompt in its {dropped} rows: fill the column '{benchmark.required[0]}'"
        )
    if repeated := [identity for identity, n in again.items() if n > 1]:
        warnings.warn(
            f"{rows.where}: the id '{repeated[0]}' occurs {again[repeated[0]]} times, in all {len(repeated)} ids more "
            "than once; later rows got '-2', '-3' behind it",
            stacklevel=2,
        )
    if dropped:
        warnings.warn(f"{rows.where}: {dropped} rows without text were left out", stacklevel=2)
    columns = list(dict.fromkeys([*COLUMNS, *(column for record in records for column in record)]))
    chosen = PromptSet(key, pd.DataFrame(records, columns=columns, dtype=object), dropped)
    return chosen if targets is None else with_given_targets(chosen, targets)


def _records(key: str, benchmark: _Benchmark, rows: sources.Rows) -> tuple[list[dict[str, Any]], int, dict[str, int]]:
    """What the rows became, how many had no text, and how often each id stood there."""
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    times: dict[str, int] = {}
    dropped = rows.blank
    for number, row in rows.rows:
        try:
            record = benchmark.record(row)
            published = record.get("id", "").strip() or row.get("id", "").strip()
        except MechrefusalError:
            raise
        except ValueError as error:
            raise MechrefusalError(f"{rows.where}, row {number}: {error}") from error
        if not record["text"].strip():
            dropped += 1
            continue
        first_id = published or f"{key}-{number:04d}"
        times[first_id] = times.get(first_id, 0) + 1
        identity, again = first_id, 1
        while identity in seen:
            again += 1
            identity = f"{first_id}-{again}"
        seen.add(identity)
        used = {"", "id", "text", *record, *(column.lower() for column in (*benchmark.required, *benchmark.used))}
        extra = {column: row.text_or_json(column) for column in row if column not in used}
        records.append({**record, "id": identity, **extra})
    return records, dropped, times


def _harmbench(row: Row) -> dict[str, Any]:
    behaviour, context = row["behavior"], row.get("contextstring", "")
    # As HarmBench asks it: context, a line of three dashes and behaviour, in one message of the user.
    with_context = f"{context}\n\n---\n\n{behaviour}" if context.strip() and behaviour.strip() else behaviour
    return {
        "id": row.get("behaviorid", ""),
        "text": with_context,
        "category": row.get("semanticcategory", "") or row.get("category", ""),
        "functional_category": row.get("functionalcategory", "") or None,
        "tags": row.text_or_json("tags"),
        "behavior": behaviour,
        "context": context if context.strip() else None,
    }


def _columns(text: str, category: str = "", **others: str) -> Callable[[Row], dict[str, Any]]:
    """Reads the text, the category and others from columns of these names; None where another one is empty."""

    def record(row: Row) -> dict[str, Any]:
        extra = {name: row.get(column, "") or None for name, column in others.items()}
        return {"text": row[text], "category": row.get(category, "") if category else "", **extra}

    return record


def _jailbreakbench(row: Row) -> dict[str, Any]:
    # `Behavior` is the short name of the goal here, not a request, and must not pass for HarmBench's column.
    return {**_columns("goal", "category", target="target")(row), "behavior_name": row.text_or_json("behavior")}


def _xstest(row: Row) -> dict[str, Any]:
    kind, label = row["type"].strip(), row.get("label", "").strip().lower()
    if not (kind or label) and row["prompt"].strip():
        raise ValueError("neither type nor label says whether the prompt is safe: fill one of the two")
    label = label or ("unsafe" if kind.startswith("contrast_") else "safe")
    if label not in ("safe", "unsafe"):
        raise ValueError(f"label '{label}' is neither safe nor unsafe: mend the file")
    return {"text": row["prompt"], "category": kind, "type": kind, "label": label}


def _xstest_completion(row: Row) -> dict[str, Any]:
    final = row.get("final_label", "").strip() or None
    if final is not None and final not in XSTEST_LABELS:
        raise ValueError(f"final_label '{final}' is unknown: expected one of {', '.join(XSTEST_LABELS)}")
    return {**_xstest(row), "completion": row["completion"], "final_label": final}


def _alpaca(row: Row) -> dict[str, Any]:
    instruction, input_text = row["instruction"], row.get("input", "")
    with_input = f"{instruction}\n\n{input_text}" if instruction.strip() and input_text.strip() else instruction
    return {"text": with_input, "category": ""}


BENCHMARKS: dict[str, _Benchmark] = {
    "harmbench": _Benchmark(
        ("Behavior",),
        _harmbench,
        used=("BehaviorID", "ContextString", "SemanticCategory", "FunctionalCategory"),
    ),
    "strongreject": _Benchmark(("forbidden_prompt",), _columns("forbidden_prompt", "category")),
    "xstest": _Benchmark(("prompt", "type"), _xstest),
    "xstestcompletions": _Benchmark(("prompt", "type", "completion"), _xstest_completion),
    "advbench": _Benchmark(("goal", "target"), _columns("goal", target="target")),
    "jailbreakbench": _Benchmark(("Goal",), _jailbreakbench, used=("Behavior",)),
    "maliciousinstruct": _Benchmark(("prompt",), _columns("prompt")),
    "alpaca": _Benchmark(("instruction",), _alpaca),
}
