"""Pairs of prompts that are patched: made ready, patched one after another, averaged. What every patching shares."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import MetricReader, PairRun, Patch, PatchedPair
from mechrefusal.models.batches import common_length
from mechrefusal.statistics import intervals

Mode = Literal["denoising", "noising"]
Pairs = prompts.PairSet | Sequence[tuple[str, str]]
LeftOut = tuple[tuple[str, int, int], ...]
"""(id, tokens of the harmful prompt, tokens of the harmless one) of each pair of unequal length."""

SMALLEST_GAP = 0.05
"""Mean m_clean − m_corrupted (nats) below which an effect has no meaning and is NaN; `raw` remains."""


@dataclass(frozen=True)
class Cell:
    """One patch over several pairs: the rows of the pairs that have it, and their mean (nats) with its interval."""

    key: tuple
    rows: Sequence[dict]
    estimate: intervals.Estimate

    @property
    def token(self) -> str:
        """The token that stands there in all pairs, or a dot."""
        tokens = {row["token"] for row in self.rows}
        return tokens.pop() if len(tokens) == 1 else "·"


def require_mode(mode: str) -> None:
    """Raise `MechrefusalError` for a mode that is none."""
    if mode not in ("denoising", "noising"):
        raise MechrefusalError(f"unknown mode of patching '{mode}'; use 'denoising' or 'noising'")


def usable_pairs(model, pairs: Pairs) -> tuple[prompts.PairSet, LeftOut]:
    """Pairs whose prompts have the same token length, and those that were left out.

    Raises:
        MechrefusalError: no pairs, something that is no pair, or none of equal length.
    """
    all_pairs = _pair_set(pairs)
    if len(all_pairs) == 0:
        raise MechrefusalError(
            "no pairs to patch, none of equal token length; give at least one harmful prompt with a harmless one"
        )
    usable = all_pairs.equal_length(model.tokenizer)
    left_out = tuple((pair.id, a, b) for pair, a, b in usable.left_out)
    if len(usable) == 0:
        raise MechrefusalError(
            f"none of {len(all_pairs)} pairs has equal token length under this tokenizer{_lengths(left_out)}; give "
            "other pairs"
        )
    return usable, left_out


def oriented(model, pair: prompts.Pair, reader: MetricReader, mode: Mode) -> tuple[PairRun, tuple[str, ...]]:
    """The pair in the direction that is patched, and the tokens of the harmful prompt as text."""
    clean, corrupted = (
        tuple(prompts.segments(model.tokenizer, text).prompt_ids) for text in (pair.harmful, pair.harmless)
    )
    first = common_length([clean, corrupted])
    if first == len(clean):
        raise MechrefusalError(f"pair '{pair.id}' has the same tokens on both sides; there is nothing to patch")
    source, target = (clean, corrupted) if mode == "denoising" else (corrupted, clean)
    return PairRun(source, target, first, reader), tuple(model.tokenizer.decode([token]) for token in clean)


def unpatched_scores(
    ready: PatchedPair, reader: MetricReader, *, check: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The metric of source and target as they are; `check` also tries the metric out (see `MetricReader.check`)."""
    unpatched = ready.unpatched()
    if check:
        reader.check(unpatched)
    source, target = reader.score(unpatched)
    return source, target


def rows_of(patches: Sequence[Patch], raw: Sequence[float], tokens: Sequence[str], first: int) -> list[dict]:
    """Rows of one pair: layer, head, position, token, raw, and whether the two runs are the same there (`shared`).

    A position counts from the end and is negative; it is None where all were patched at once.
    """
    rows = []
    for patch, value in zip(patches, raw, strict=True):
        place, head = patch.position, -1 if patch.head is None else patch.head
        position, token = (None, "all") if place is None else (place - len(tokens), tokens[place])
        rows.append({"layer": patch.layer, "head": head, "position": position, "token": token, "raw": value})
    # Before the first difference both runs are the same: exactly zero, and part of the mean over pairs.
    by_position = any(patch.position is not None for patch in patches)
    same = [(position - len(tokens), tokens[position]) for position in range(first)] if by_position else []
    places = dict.fromkeys((row["layer"], row["head"]) for row in rows)
    shared = [
        {"layer": layer, "head": head, "position": position, "token": token, "raw": 0.0, "shared": True}
        for layer, head in places
        for position, token in same
    ]
    return [*shared, *({**row, "shared": False} for row in rows)]


def cells(rows: Iterable[dict], key: Sequence[str]) -> Iterator[Cell]:
    """Rows of all pairs (with `pair`) by `key`, but for cells before the first difference of every pair: zero."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in key), []).append(row)
    for values, group in groups.items():
        if not all(row["shared"] for row in group):
            yield Cell(values, group, intervals.mean([row["raw"] for row in group]))


def _pair_set(pairs: Pairs) -> prompts.PairSet:
    if isinstance(pairs, prompts.PairSet):
        return pairs
    as_pairs = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, prompts.Pair):
            as_pairs.append(pair)
            continue
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise MechrefusalError(f"pair {number} is {pair!r}; give a PairSet, or a list of (harmful, harmless) texts")
        as_pairs.append(prompts.Pair(f"pair {number}", "", *pair))
    return prompts.PairSet(tuple(as_pairs))


def _lengths(left_out: Sequence[tuple[str, int, int]]) -> str:
    named = ", ".join(f"'{name}' {a} and {b}" for name, a, b in left_out[:3])
    return f" ({named}{', …' if len(left_out) > 3 else ''} tokens)" if named else ""
