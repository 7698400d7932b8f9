"""The language of the refusal rules: conditions on an answer and its prompt, and rules that are lists of cases.

`conditions.txt` and `rules.txt` hold sections as word lists do, with a comment and examples. A condition is written as
a Python expression of names, of which only these forms are known:

- a word list, which finds something in a sentence, or a condition that stands above;
- a term of `rule_terms.py`: texts (`later`, `prompt`), a type of prompts (`TASK`), a flag or a number;
- `and`, `or`, `not`, whole numbers and what is reckoned and compared with them;
- `X in texts`: X holds in one of the texts, and is what it finds in the first; `texts[:2]`: the first two;
- `joined(texts)` as one text, `words(texts)`, `count(texts)`, `distinct(texts)`, `those(X, texts)` in which X holds;
- `after(X)`, `ahead_of(X)`, `up_to(X)`: the text behind, before, and up to the end of what X finds.

Its lines are alternatives; one that begins with spaces goes on from the one before. What a condition finds is its
value, as in Python: `TASK and off_limits` is the phrase that `off_limits` finds.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges.exchange import Exchange
from mechrefusal.evaluation.judges.judge import LABELS, Verdict
from mechrefusal.prompts.word_lists import Section, sections

NEXT, NOTHING = "next", "nothing"
"""What a case says in place of a verdict: go on with the next sentence, or end the rule."""


@dataclass(frozen=True)
class Place:
    """Where in an exchange a condition is asked: the sentence at `index`, and the phrase that a rule goes by."""

    exchange: Exchange
    index: int
    phrase: "re.Match[str] | str | None" = None


Meaning = Callable[[Place, str], Any]
"""What a condition finds at a place and in a text, mostly the sentence there."""

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Mult: operator.mul, ast.Eq: operator.eq, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Lt: operator.lt, ast.LtE: operator.le,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "joined": lambda texts: [" ".join(texts)],
    "words": lambda texts: [word for text in texts for word in text.split()],
    "count": len,
    "distinct": set,
    "after": lambda match: [match.string[match.end() :]] if match else [],
    "ahead_of": lambda match: [match.string[: match.start()]] if match else [],
    "up_to": lambda match: [match.string[: match.end()]] if match else [],
}


def shown(value: Any) -> str:
    """A phrase as it is quoted."""
    return repr((value if isinstance(value, str) else value.group()).strip())


def texts_of(value: Any) -> Sequence[str]:
    """Texts; a phrase that was found is one, nothing found is none."""
    if isinstance(value, (str, re.Match)):
        return [value if isinstance(value, str) else value.group()]
    return value or ()


def meaning(expression: str, names: Mapping[str, Meaning], where: str) -> Meaning:
    """The function that an expression stands for: what it finds at a place and in a text.

    Raises:
        MechrefusalError: it is no expression, holds a name that is not known, or an unknown form.
    """
    try:
        return _meaning(ast.parse(expression.strip(), mode="eval").body, names)
    except (SyntaxError, KeyError, TypeError) as error:
        reason = f"no list, condition or term is called {error}" if isinstance(error, KeyError) else str(error)
        raise MechrefusalError(f"{where}: {expression.strip()!r:.80} cannot be read ({reason}); mend it") from error


def _meaning(node: ast.expr, names: Mapping[str, Meaning]) -> Meaning:
    match node:
        case ast.Name(id=name):
            return names[name]
        case ast.Constant(value=int(number)):
            return lambda place, text: number
        case ast.BoolOp(op=joint, values=nodes):
            parts, until = [_meaning(each, names) for each in nodes], isinstance(joint, ast.Or)
            return lambda place, text: _first(parts, place, text, until=until)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _meaning(operand, names)
            return lambda place, text: not inner(place, text)
        case ast.Compare(left=left, ops=[ast.In()], comparators=[right]):
            condition_on, among = _meaning(left, names), _meaning(right, names)
            return lambda place, text: next(
                (value for each in texts_of(among(place, text)) if (value := condition_on(place, each))), None
            )
        case ast.Compare(left=left, ops=[sign], comparators=[right]) | ast.BinOp(left=left, op=sign, right=right):
            first, combine, second = _meaning(left, names), _OPERATORS[type(sign)], _meaning(right, names)
            return lambda place, text: combine(first(place, text), second(place, text))
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper)):
            whole, part = _meaning(value, names), slice(*(each and ast.literal_eval(each) for each in (lower, upper)))
            return lambda place, text: whole(place, text)[part]
        case ast.Call(func=ast.Name(id="those"), args=[condition, texts]):
            holds, scope = _meaning(condition, names), _meaning(texts, names)
            return lambda place, text: [each for each in scope(place, text) if holds(place, each)]
        case ast.Call(func=ast.Name(id=function), args=[argument]):
            apply, argument_of = _FUNCTIONS[function], _meaning(argument, names)
            return lambda place, text: apply(argument_of(place, text))
    raise TypeError(f"the language has no such form: {ast.unparse(node)}")


def _first(parts: Sequence[Meaning], place: Place, text: str, *, until: bool) -> Any:
    """The first value that is true, or false, as `until` says; else the last."""
    value = None
    for part in parts:
        value = part(place, text)
        if bool(value) is until:
            break
    return value


def conditions(path: Path, known: Mapping[str, Meaning]) -> dict[str, Meaning]:
    """All that is known and the conditions of a file, by their names.

    Raises:
        MechrefusalError: the file is not in form, a name is taken, or what `meaning` raises.
    """
    names = dict(known)
    for section in sections(path):
        if section.name in names:
            raise MechrefusalError(f"{section.where}: the name '{section.name}' is taken; give another")
        names[section.name] = meaning(" or ".join(f"({line})" for _, line in _lines(section)), names, section.where)
    return names


def _lines(section: Section) -> list[tuple[str, str]]:
    """The lines of a section, those that begin with spaces joined to the ones before."""
    lines: list[tuple[str, str]] = []
    for where, line in section.lines:
        if line.startswith(" ") and lines:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]} {line.strip()}")
        else:
            lines.append((where, line))
    return lines


EACH: dict[str, Callable[[Exchange], range]] = {
    "first": lambda exchange: range(exchange.start, exchange.start + 1),
    "first_two": lambda exchange: range(len(exchange.first(2))),
    "opening": lambda exchange: range(len(exchange.opening)),
    "after_opening": lambda exchange: range(len(exchange.opening), len(exchange.sentences)),
}
"""Sentences that a rule looks at in turn, by their numbers; all but "first" with the greetings before them."""


@dataclass(frozen=True)
class Case:
    """A condition and what is said where it holds: `NEXT`, `NOTHING`, or a label and why."""

    condition: Meaning
    label: Meaning
    because: str


@dataclass(frozen=True)
class Rule:
    """Cases that are tried in order, at the first sentence after greetings or at each of several.

    where: what has to hold for the rule to say anything. each: which sentences are looked at in turn (`EACH`). by: the
    phrase that has to stand in a sentence.
    """

    name: str
    caught: tuple[str, ...]
    missed: tuple[str, ...]
    where: Meaning
    each: Callable[[Exchange], range]
    by: Meaning
    cases: tuple[Case, ...]

    def __call__(self, exchange: Exchange) -> Verdict | None:
        """The verdict; None where the rule has nothing to say."""
        start = Place(exchange, exchange.start)
        if not self.where(start, exchange.sentences[exchange.start]):
            return None
        for index in self.each(exchange):
            sentence = exchange.sentences[index]
            phrase = self.by(Place(exchange, index), sentence)
            outcome = self._outcome(Place(exchange, index, phrase), sentence) if phrase else NEXT
            if outcome != NEXT:
                return outcome if isinstance(outcome, Verdict) else None
        return None

    def _outcome(self, place: Place, sentence: str) -> Verdict | str:
        for case in self.cases:
            if finding := case.condition(place, sentence):
                label = case.label(place, sentence)
                if label in (NEXT, NOTHING):
                    return label
                because = case.because
                for name, value in (("{phrase}", place.phrase), ("{found}", finding)):
                    if name in because:
                        because = because.replace(name, shown(value))
                return Verdict(label, because)
        return NEXT


_CASE = re.compile(r"(?P<condition>.+) -> (?P<label>\w+)(?: if (?P<if>.+) else (?P<else>\w+))?(?:: (?P<because>.+))?")


def rules(path: Path, names: Mapping[str, Meaning]) -> Iterator[Rule]:
    """The rules of a file, in its order.

    Raises:
        MechrefusalError: the file is not in form, a line is no case, or what `meaning` raises.
    """
    for section in sections(path):
        where_holds = by = names["otherwise"]
        each, cases = EACH["first"], []
        for where, line in _lines(section):
            key, _, rest = line.partition(" ")
            if key == "where":
                where_holds = meaning(rest, names, where)
            elif key == "by":
                by = meaning(rest, names, where)
            elif key == "each" and rest.removeprefix("of ") in EACH:
                each = EACH[rest.removeprefix("of ")]
            elif written := _CASE.fullmatch(line):
                holds = meaning(written["condition"], names, where)
                cases.append(Case(holds, _label(written, names, where), written["because"] or ""))
            else:
                raise MechrefusalError(f"{where}: {line!r:.60} is no case; write one as 'condition -> label: reason'")
        caught, missed = section.examples("#+"), section.examples("#-")
        yield Rule(section.name, caught, missed, where_holds, each, by, tuple(cases))


def _label(written: re.Match[str], names: Mapping[str, Meaning], where: str) -> Meaning:
    label, otherwise = written["label"], written["else"]
    if unknown := {label, otherwise or label} - {*LABELS, NEXT, NOTHING}:
        raise MechrefusalError(f"{where}: '{min(unknown)}' is no label; give one of {', '.join(LABELS)}, next, nothing")
    if otherwise is None:
        return lambda place, text: label
    condition = meaning(written["if"], names, where)
    return lambda place, text: label if condition(place, text) else otherwise
