"""The leakage audit: no prompt may stand in two sets that must not know of each other, in whatever clothes."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import ceil
from typing import Literal

import pandas as pd

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.request_words import Words, content_words, words
from mechrefusal.prompts.splits import normalised

COLUMNS = ("set_a", "id_a", "set_b", "id_b", "text")
COUNT_COLUMNS = ("set_a", "n_a", "set_b", "n_b", "exact", "near", "contained", "leaking_a", "leaking_b")

NEAR = 0.9
"""Ours: share of content words that near duplicates have in common (Jaccard). Below ten content words that is all of
them, so that twins that differ in one word by design are none; from there on one more word is let pass, from nineteen
one other word. On AdvBench, HarmBench, XSTest and Alpaca every pair above it asks the same; at 0.85 the first ones do
not ("Why did ..." and "Why was it right to ...")."""

FEWEST = 2
"""Ours: a request with fewer content words than this is compared by all of its words ("What is it?" asks by its small
ones), and is not looked for in longer prompts."""

WITHIN = 4
"""Ours: content words that a prompt needs to count as contained in the middle of a sentence: "How do I kill someone" is
not the request of "How do I kill someone in a video game". One that stands as a sentence of its own needs fewer."""

NAMED = 3
"""Leaks that the error of a strict audit names."""

Kind = Literal["exact", "near", "contained"]
KINDS: tuple[Kind, ...] = ("exact", "near", "contained")


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    leaks: as `leaks` gives them. counts: one row a pair of sets, also where nothing leaks: rows of `leaks` by kind, and
    how many different prompts of either set are in them.
    """

    leaks: pd.DataFrame
    counts: pd.DataFrame

    @property
    def is_clean(self) -> bool:
        """Whether nothing leaks."""
        return self.leaks.empty


def leakage(sets: Mapping[str, PromptSet]) -> pd.DataFrame:
    """Prompts that stand in two of `sets`; an empty table means that none does. `leaks` also finds near duplicates.

    Texts are compared as `normalised` leaves them (case, white space and outer punctuation do not count). Columns:
    `set_a`, `id_a`, `set_b`, `id_b` (in the order of `sets`) and `text`, as it stands in the first set. A text that
    stands several times in both sets has as many rows as it has copies in the fuller one: each copy is named.
    """
    texts = _Texts(sets)
    rows = [row for text in range(len(texts)) for row in texts.rows(text, text, "exact", 1.0)]
    return _frame(texts, rows)[list(COLUMNS)]


def leaks(sets: Mapping[str, PromptSet], *, near: float = NEAR) -> pd.DataFrame:
    """Prompts of one set that another set holds too: exactly, in nearly the same words, or inside a longer prompt.

    exact: equal as `normalised` leaves them; similarity 1.
    near: the content words (`request_words.content_words`) of both have a share of at least `near` in common;
    similarity is that share. "How do I kill a Python process?" and "Explain how to kill Python processes" are near
    duplicates; requests that differ in a content word are not, unless they are long.
    contained: the words of one stand in a row in the other, as a sentence of their own (`FEWEST` content words) or
    anywhere (`WITHIN` content words): a behaviour with an attack's suffix, in a template, after its context;
    similarity is its share of the longer one's words. What two prompts have in common beside their ends is not found:
    audit the behaviours of attack cases, too.

    Words are compared, not meanings: a paraphrase in other words is no leak here. Content words are told in English;
    in other languages nearly every word counts as one.

    Args:
        near: see `NEAR`.

    Returns:
        The columns of table `leaks`, `text` and `text_b` as they stand in the two sets; sorted by the order of `sets`
        and, within two sets, by kind and place. Each pair of prompts has one row, of the first kind that fits. Copies
        of one text in one set are paired off as in `leakage`. Prompts within one set are not compared.

    Raises:
        MechrefusalError: `near` is not above 0 and at most 1.
    """
    if not 0 < near <= 1:
        raise MechrefusalError(f"near is {near}: give a share above 0 and at most 1")
    listed = _Texts(sets)
    rows = [row for text in range(len(listed)) for row in listed.rows(text, text, "exact", 1.0)]
    content, spelled = [content_words(text) for text in listed.texts], [words(text) for text in listed.texts]
    compared = [
        few if len(few) >= FEWEST else frozenset(full.words) for few, full in zip(content, spelled, strict=True)
    ]
    close = dict(_near(compared, near))
    for (first, second), similarity in close.items():
        rows += listed.rows(first, second, "near", similarity)
    for short, long in _contained(spelled, content):
        if (min(short, long), max(short, long)) not in close:
            similarity = len(spelled[short].words) / len(spelled[long].words)
            rows += listed.rows(short, long, "contained", similarity)
    return _frame(listed, rows)


def audit(sets: Mapping[str, PromptSet], *, strict: bool = False) -> Audit:
    """Compare each of `sets` with each other one, as `leaks` does, and count.

    Raises:
        MechrefusalError: with `strict`, something leaks; the first leaks are named.
    """
    all_leaks = leaks(sets)
    if strict and len(all_leaks):
        named = all_leaks[:NAMED].itertuples()
        first = [f"{row.id_a} of {row.set_a} and {row.id_b} of {row.set_b} ({row.kind})" for row in named]
        more = f", and {len(all_leaks) - NAMED} more" if len(all_leaks) > NAMED else ""
        raise MechrefusalError(
            f"{len(all_leaks)} leaks between prompt sets: {'; '.join(first)}{more}: "
            "leave them out of one of the two (mechrefusal.prompts.leak_audit lists all)"
        )
    pairs = dict(iter(all_leaks.groupby(["set_a", "set_b"], sort=False)))
    rows = []
    for set_a, set_b in combinations(sets, 2):
        part = pairs.get((set_a, set_b), all_leaks[:0])
        counted = {kind: int((part["kind"] == kind).sum()) for kind in KINDS}
        leaking = part["id_a"].nunique(), part["id_b"].nunique()
        rows.append((set_a, len(sets[set_a]), set_b, len(sets[set_b]), *counted.values(), *leaking))
    return Audit(all_leaks, pd.DataFrame(rows, columns=list(COUNT_COLUMNS)))


_Row = tuple[int, int, int, int, int, float]
"""Numbers of the two sets, kind, rows in the two sets, similarity: in this order they sort."""


class _Texts:
    """The different texts of all sets, each with the places where it stands."""

    def __init__(self, sets: Mapping[str, PromptSet]) -> None:
        self.sets = dict(sets)
        self.texts: list[str] = []
        self.places: list[dict[int, list[int]]] = []
        numbers: dict[str, int] = {}
        for number, prompts in enumerate(sets.values()):
            for row, text in enumerate(prompts.texts):
                key = normalised(text)
                if key not in numbers:
                    numbers[key] = len(self.texts)
                    self.texts.append(text)
                    self.places.append({})
                self.places[numbers[key]].setdefault(number, []).append(row)

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, text_a: int, text_b: int, kind: Kind, similarity: float) -> Iterator[_Row]:
        """One row for each place of one text beside a place of the other in another set."""
        for a, rows_a in self.places[text_a].items():
            for b, rows_b in self.places[text_b].items():
                if a == b or (text_a == text_b and a > b):
                    continue
                first, second = (rows_a, rows_b) if a < b else (rows_b, rows_a)
                for copy in range(max(len(first), len(second))):
                    places = first[copy if copy < len(first) else 0], second[copy if copy < len(second) else 0]
                    yield min(a, b), max(a, b), KINDS.index(kind), *places, similarity


def _frame(listed: _Texts, rows: list[_Row]) -> pd.DataFrame:
    names, sets = list(listed.sets), list(listed.sets.values())
    ids, texts = [prompts.ids for prompts in sets], [prompts.texts for prompts in sets]
    table = [
        (names[a], ids[a][i], names[b], ids[b][j], KINDS[kind], similarity, texts[a][i], texts[b][j])
        for a, b, kind, i, j, similarity in sorted(rows)
    ]
    return pd.DataFrame(table, columns=list(tables.columns("leaks")), dtype=object).astype({"similarity": float})


def _near(content: Sequence[frozenset[str]], share: float) -> Iterator[tuple[tuple[int, int], float]]:
    """Pairs with a Jaccard similarity of at least `share`, exactly.

    Two such sets have one of their rarest |x| - ⌈share·|x|⌉ + 1 words in common (Bayardo, Ma and Srikant, WWW 2007).
    """
    frequency = Counter(word for of_text in content for word in of_text)
    holders: dict[str, list[int]] = defaultdict(list)
    for number, of_text in enumerate(content):
        rarest = sorted(of_text, key=lambda word: (frequency[word], word))
        rarest = rarest[: len(of_text) - ceil(share * len(of_text) - 1e-9) + 1]
        for other in sorted({other for word in rarest for other in holders[word]}):
            if min(len(of_text), len(content[other])) < share * max(len(of_text), len(content[other])) - 1e-9:
                continue
            common = len(of_text & content[other])
            similarity = common / (len(of_text) + len(content[other]) - common)
            if similarity >= share:
                yield (other, number), similarity
        for word in rarest:
            holders[word].append(number)


def _contained(texts: Sequence[Words], content: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """(shorter, longer) where the words of one stand in a row in the other, as `leaks` says."""
    joined = [f" {' '.join(text.words)} " for text in texts]
    holders: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        for pair in dict.fromkeys(pairwise(text.words)):
            holders[pair].append(number)
    for short, text in enumerate(texts):
        if len(text.words) < 2 or len(content[short]) < FEWEST:
            continue
        for long in min((holders[pair] for pair in pairwise(text.words)), key=len):
            if len(texts[long].words) > len(text.words) and (
                joined[short] in joined[long]
                if len(content[short]) >= WITHIN
                else _own_sentence(joined[short], joined[long], len(text.words), texts[long].breaks)
            ):
                yield short, long


def _own_sentence(short: str, long: str, length: int, breaks: Sequence[bool]) -> bool:
    """Whether `short`, of `length` words, stands in `long` between two breaks."""
    begin, word, counted = long.find(short), 0, 0
    while begin >= 0:
        word, counted = word + long.count(" ", counted, begin), begin
        if breaks[word] and breaks[word + length]:
            return True
        begin = long.find(short, begin + 1)
    return False
