"""The texts that AutoDAN evolves, and how a generation makes the next one (2310.04451, genetic policies).

An *individual* is a text of sentences that holds the placeholder `{behaviour}` exactly once. Every operation here keeps
it so, and keeps the text readable: whole sentences are exchanged, and words are replaced only by words of the same
form and meaning. All randomness is the caller's generator.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.attacks.jailbreaks import PLACEHOLDER, stored
from mechrefusal.attacks.settings import AutoDANSettings

Generation = tuple[list[str], list[tuple[str, str]]]
"""Elites, and each new text with the parent that stands in for it where it cannot be used."""

MUTATED_WORDS = 10
"""Words that a mutation replaces at most, as in the official code."""

_WORD = re.compile(re.escape(PLACEHOLDER) + r"|[A-Za-z]+(?:['’][A-Za-z]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@cache
def seeds() -> tuple[str, ...]:
    """The texts that the first population is made of."""
    return tuple(row["text"] for row in stored("autodan_seeds.csv"))


@cache
def synonyms() -> Mapping[str, tuple[str, ...]]:
    """For each word that may be replaced, in lower case, the group of interchangeable words that it belongs to."""
    groups = [
        (row["word"].strip(), *(word.strip() for word in row["synonyms"].split(";")))
        for row in stored("autodan_synonyms.csv")
    ]
    return MappingProxyType({word: group for group in groups for word in group})


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case; the placeholder is none."""
    return [word.lower() for word in _WORD.findall(text) if word != PLACEHOLDER]


def first_texts(text: str, *, generator: torch.Generator) -> Iterator[str]:
    """Individuals for a first population, without end: `own`, the seeds, then seeds crossed and reworded."""
    yield text
    known = seeds()
    for place in _drawn(len(known), len(known), generator):
        yield known[place]
    while True:
        one, two = (known[place] for place in _drawn(len(known), 2, generator))
        yield mutated(crossed(one, two, points=1, generator=generator)[0], generator=generator)


def crossed(one: str, two: str, *, points: int, generator: torch.Generator) -> tuple[str, str]:
    """Multi-point crossover: both texts are cut at `points` borders at most, and each pair of pieces may change sides.

    Borders are counted from the sentence with the placeholder, so that each child gets one such sentence.
    """
    parents = [_SENTENCE_END.split(text) for text in (one, two)]
    holders = [next(i for i, part in enumerate(parent) if PLACEHOLDER in part) for parent in parents]
    ends = [len(parent) - holder for parent, holder in zip(parents, holders, strict=True)]
    borders = [
        border
        for border in range(-min(holders), min(ends) + 1)
        if -max(holders) < border < max(ends)  # elsewhere both would be cut at their very edge
    ]
    cuts = sorted(borders[place] for place in _drawn(len(borders), points, generator))
    children: tuple[list[str], list[str]] = ([], [])
    starts = [0, 0]
    for cut in [*cuts, None]:
        stops = [len(p) if cut is None else h + cut for p, h in zip(parents, holders, strict=True)]
        pieces = [parent[start:stop] for parent, start, stop in zip(parents, starts, stops, strict=True)]
        if _chance(0.5, generator):
            pieces.reverse()
        for child, piece in zip(children, pieces, strict=True):
            child += piece
        starts = stops
    return " ".join(children[0]), " ".join(children[1])


def mutated(text: str, *, generator: torch.Generator) -> str:
    """`text` with `MUTATED_WORDS` of its words at most replaced by any other word of their groups."""

    def other(word: str) -> str:
        group = [synonym for synonym in synonyms()[word] if synonym != word]
        return group[_drawn(len(group), 1, generator)[0]]

    return _reworded(text, other, share=1.0, at_most=MUTATED_WORDS, generator=generator)


def reworded(text: str, scores: Mapping[str, float], *, share: float, at_most: int, generator: torch.Generator) -> str:
    """`text` with words replaced by their groups' words, the better scored the likelier; a word may stay as it is.

    Args:
        scores: momentum of each word (`updated_scores`).
        share: probability that a word is up for replacement.
        at_most: words that are replaced.
    """

    def better(word: str) -> str:
        probabilities = word_probabilities(synonyms()[word], scores)
        return synonyms()[word][int(torch.multinomial(probabilities, 1, generator=generator))]

    return _reworded(text, better, share=share, at_most=at_most, generator=generator)


def word_probabilities(group: Sequence[str], scores: Mapping[str, float]) -> Float[Tensor, " word"]:
    """Softmax of the words' scores in units of their standard deviation, which no scale of the losses changes.

    A word without a score counts as the mean of those with one; without any difference all are equally likely.
    """
    known = [scores[word] for word in group if word in scores]
    mean = sum(known) / max(1, len(known))
    values = torch.tensor([scores.get(word, mean) for word in group], dtype=torch.float64)
    spread = values.std(correction=0)
    return torch.softmax((values - mean) / spread, 0) if spread > 1e-12 else torch.full_like(values, 1 / len(group))


def updated_scores(
    scores: Mapping[str, float], texts: Sequence[str], losses: Sequence[float], *, momentum: float
) -> dict[str, float]:
    """The momentum of each word that has synonyms: its mean negative loss over the texts that hold it.

    A word that had a score gets `momentum` x old + (1 - `momentum`) x mean; one that no text holds keeps its own.
    """
    losses_of: dict[str, list[float]] = defaultdict(list)
    for text, loss in zip(texts, losses, strict=True):
        for word in dict.fromkeys(words(text)):
            if word in synonyms():
                losses_of[word].append(-loss)
    means = {word: sum(values) / len(values) for word, values in losses_of.items()}
    mixed = {w: momentum * scores[w] + (1 - momentum) * mean if w in scores else mean for w, mean in means.items()}
    return {**scores, **mixed}


def roulette(losses: Sequence[float]) -> Float[Tensor, " individual"]:
    """Probability of each individual to become a parent: the softmax of the negative losses."""
    return torch.softmax(-torch.tensor(losses, dtype=torch.float64), 0)


def paragraph_level(
    population: Sequence[str], losses: Mapping[str, float], settings: AutoDANSettings, *, generator: torch.Generator
) -> Generation:
    """A generation by roulette, crossover of every two parents, and mutation."""
    elites, _ = _elites(population, losses, settings)
    wheel = roulette([losses[text] for text in population])
    size = settings.population - len(elites)
    parents = [population[i] for i in torch.multinomial(wheel, size, replacement=True, generator=generator).tolist()]
    children: list[str] = []
    for place in range(0, size, 2):
        pair = (parents[place], parents[place + 1] if place + 1 < size else parents[0])
        if _chance(settings.crossover, generator):
            pair = crossed(*pair, points=settings.crossover_points, generator=generator)
        children += pair
    children = [_perhaps_mutated(text, settings, generator) for text in children[:size]]
    return elites, list(zip(children, parents, strict=True))


def sentence_level(
    population: Sequence[str],
    losses: Mapping[str, float],
    scores: Mapping[str, float],
    settings: AutoDANSettings,
    *,
    generator: torch.Generator,
) -> Generation:
    """A generation in which all but the elites are reworded by the words' momentum, and mutated."""
    elites, parents = _elites(population, losses, settings)
    share, at_most = settings.crossover, settings.replacements
    children = [reworded(text, scores, share=share, at_most=at_most, generator=generator) for text in parents]
    children = [_perhaps_mutated(text, settings, generator) for text in children]
    return elites, list(zip(children, parents, strict=True))


def _chance(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return bool(torch.rand((), generator=generator) < probability)


def _reworded(
    text: str, choose: Callable[[str], str], *, share: float, at_most: int, generator: torch.Generator
) -> str:
    places = [match for match in _WORD.finditer(text) if match[0].lower() in synonyms()]
    considered = torch.rand(len(places), generator=generator) < share
    order = [places[i] for i in _drawn(len(places), len(places), generator) if considered[i]]
    for match in sorted(order[:at_most], key=lambda match: match.start(), reverse=True):
        word = choose(match[0].lower())
        word = word.capitalize() if match[0][0].isupper() else word
        text = text[: match.start()] + word + text[match.end() :]
    return text


def _drawn(n: int, k: int, generator: torch.Generator) -> list[int]:
    """`k` of `n` numbers at most, none twice, in random order."""
    return torch.randperm(n, generator=generator)[:k].tolist()


def _elites(
    population: Sequence[str], losses: Mapping[str, float], settings: AutoDANSettings
) -> tuple[list[str], list[str]]:
    """The best texts, each once, and everything else in order of loss."""
    others = sorted(population, key=losses.__getitem__)
    elites = list(dict.fromkeys(others))[: settings.elites]
    for text in elites:
        others.remove(text)
    return elites, others


def _perhaps_mutated(text: str, settings: AutoDANSettings, generator: torch.Generator) -> str:
    return mutated(text, generator=generator) if _chance(settings.mutation, generator) else text
