"""An attack case: one behaviour, the suffix that was found for it, and what finding it cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file


@dataclass(frozen=True)
class AttackCase:
    """A behaviour under attack, and what finding the attack cost.

    `prompt` is the whole turn of the user. An attack that only adds a suffix keeps it in `suffix` and, as tokens, in
    `suffix_ids`, and `prompt` is the behaviour, a space and the suffix; others leave both empty.

    `loss` is the cross-entropy of `target` (nats a token, NaN where it was never measured). `source` is the hash of the
    weights that the case was made against. `steps`, `forward_tokens`, `dropped` (candidates that did not survive
    decoding and encoding) and `seconds` add up over all calls, and `age` counts the calls. `history` belongs to the
    last call: the best loss at its start and after each of its steps, never rising; `history_prompts` and
    `history_tokens` are the prompt and the tokens run forward in this call by then. Tokens that cases share when they
    are attacked together count for each, so that the cost of a case does not depend on its company.
    """

    id: str
    behaviour: str
    target: str
    suffix: str = ""
    suffix_ids: tuple[int, ...] = ()
    prompt: str = ""
    loss: float = float("nan")
    method: str = "gcg"
    source: str = ""
    steps: int = 0
    age: int = 0
    forward_tokens: int = 0
    dropped: int = 0
    seconds: float = field(default=0.0, compare=False)
    history: tuple[float, ...] = ()
    history_prompts: tuple[str, ...] = ()
    history_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt:
            object.__setattr__(self, "prompt", whole_prompt(self.behaviour, self.suffix))

    def with_suffix(self, suffix: str, suffix_ids: tuple[int, ...], **changes: Any) -> "AttackCase":
        """The same case with another suffix."""
        return replace(
            self, suffix=suffix, suffix_ids=suffix_ids, prompt=whole_prompt(self.behaviour, suffix), **changes
        )

    def after(
        self, history: Sequence[tuple[float, str, int]], *, dropped: int, seconds: float, **changes: Any
    ) -> "AttackCase":
        """The case after one more call of its attack.

        Args:
            history: (best loss, its prompt, tokens run in this call) at the start and after each step.
            dropped, seconds: of this call.
            changes: other fields.
        """
        losses, prompts, tokens = zip(*history, strict=True)
        return replace(
            self,
            prompt=prompts[-1],
            loss=losses[-1],
            steps=self.steps + len(history) - 1,
            age=self.age + 1,
            forward_tokens=self.forward_tokens + tokens[-1],
            dropped=self.dropped + dropped,
            seconds=self.seconds + seconds,
            history=losses,
            history_prompts=prompts,
            history_tokens=tokens,
            **changes,
        )


def whole_prompt(behaviour: str, suffix: str) -> str:
    """The user's turn: the behaviour and, after a space, the suffix."""
    return f"{behaviour} {suffix}" if suffix else behaviour


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_LISTS = {each.name: get_args(each.type)[0] for each in fields(AttackCase) if get_args(each.type)}
"""The fields that are tuples, and the type of what they hold."""
SCHEMA = pa.schema(
    [
        (each.name, pa.list_(_ARROW[_LISTS[each.name]]) if each.name in _LISTS else _ARROW[each.type])  # type: ignore
        for each in fields(AttackCase)
    ]
)


def write_cases(cases: Sequence[AttackCase], path: Path | str) -> Path:
    """Write `cases` to a parquet file, whole or not at all."""
    with whole_file(path) as draft:
        pq.write_table(to_arrow(cases), draft)
    return Path(path)


def read_cases(path: Path | str, *, source: str | None) -> list[AttackCase]:
    """Read the cases of a parquet file.

    Args:
        source: hash of the weights that the cases must have been made against; None accepts any.

    Raises:
        MechrefusalError: no such file, not a table of cases, or a case of other weights.
    """
    return from_arrow(read_arrow(path), path, source=source)


def to_arrow(cases: Sequence[AttackCase]) -> pa.Table:
    """The cases as an arrow table of schema `SCHEMA`."""
    columns = {name: [getattr(case, name) for case in cases] for name in SCHEMA.names}
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def read_arrow(path: Path | str) -> pa.Table:
    """The table in a parquet file of cases, schema metadata included."""
    path = Path(path)
    if not path.is_file():
        raise MechrefusalError(f"no attack cases at '{path}': make them first, or give the path of a cases file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        raise MechrefusalError(f"attack cases '{path}' cannot be read ({message}): make them again") from error
    if missing := [name for name in SCHEMA.names if name not in table.schema.names]:
        raise MechrefusalError(f"'{path}' is not a table of attack cases: columns {missing} are missing")
    return table


def from_arrow(table: pa.Table, path: Path | str, *, source: str | None) -> list[AttackCase]:
    """Cases of an arrow table that was read from `path` (named in errors)."""
    try:
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
        cases = [AttackCase(**{**row, **{name: tuple(row[name]) for name in _LISTS}}) for row in rows]
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise MechrefusalError(
            f"'{path}' is not a table of attack cases: a column holds values of another type "
            f"({' '.join(str(error).split())[:120]}); make the cases again"
        ) from error
    foreign = [case for case in cases if source is not None and case.source != source]
    if foreign:
        raise MechrefusalError(
            f"{len(foreign)} of {len(cases)} attack cases in '{path}' were made against weights "
            f"'{foreign[0].source}', not '{source}' (first: '{foreign[0].id}'): make them anew against these weights, "
            "or replay them on purpose with source=None"
        )
    return cases
