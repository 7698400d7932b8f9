"""Carriers at a fraction of the passes: a rough score of every candidate, exact ones of those that could still win.

The screen runs a sample of the validation prompts, in bfloat16 where the machine multiplies it. What other prompts
would have said is drawn from what the sample said, thousands of times, and each time the carrier is chosen again:
candidates that are hardly ever chosen are not scored exactly.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechrefusal.causal.reference import HARMLESS
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.geometry.carriers import best_candidate, last_layer, select
from mechrefusal.geometry.directions import Contrast, Directions
from mechrefusal.geometry.scoring import (
    CarrierScores,
    Lists,
    Scorer,
    as_array,
    candidate_rows,
    exactly,
    gathered,
    same_weights,
    score,
)
from mechrefusal.progress import track

FEWEST = 8
"""Prompts of each side in the sample at least."""
RACES, RARELY = 4000, 0.005
"""Races that are drawn, and the share of them below which a candidate's wins are too rare for an exact score."""
SCORE_ROUNDING, KL_ROUNDING = 0.03, 0.02
"""What bfloat16 shifts a mean refusal score by (nats), and a mean KL (share of it): standard deviations over
candidates, as `benchmarks/carriers.py` prints them for SmolLM2."""

PILOTS = 3
"""Candidates that are scored exactly first, to learn which prompts' KL moves easily."""

Scores = tuple[Float[ndarray, " harmful"], Float[ndarray, " harmless"], Float[ndarray, " harmless"]]
"""bypass, induce and kl of one candidate, prompt by prompt."""


def screened(
    model,
    directions: Directions,
    validation: Contrast,
    metric: RefusalMetric,
    *,
    rows: Sequence[dict] | None = None,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layer_fraction: float = 0.2,
    share: float = 0.25,
    reference: str = HARMLESS,
    scorer: Scorer | None = None,
) -> CarrierScores:
    """Scores for `carriers.select` with the same thresholds, exact only where a candidate could win.

    The selection is drawn `RACES` times on resamples of the validation prompts, prompts outside the sample standing in
    for with prompts inside it. The candidate that wins most often is scored exactly (all prompts, float32), and so on
    until none that is not exact wins more than `RARELY`: such a candidate is not the carrier, nor that of more than a
    few of the bootstraps of `stability`. Where no candidate is admissible, `carriers.best_candidate` is exact too. All
    others keep estimates from the sample, with `exact` False.

    Args:
        rows: (position, layer) pairs, from `carriers.candidates`; by default all that `select` could admit.
        share: of the validation prompts that the screen runs, at least `FEWEST` of each side.
        reference: what a direction is ablated to, as in `score`.
        scorer: for the exact scores, where one of the same model, prompts and metric was made already.

    Raises:
        MechrefusalError: directions of other weights, no prompts, an unknown reference, or a share not in (0, 1].
    """
    if not 0 < share <= 1:
        raise MechrefusalError(f"share of a screen is {share:g}: give more than 0 and at most 1")
    same_weights(model, directions)
    wanted = candidate_rows(model, directions, rows)
    places = [_sample(len(texts), share) for texts in (validation.harmful, validation.harmless)]
    texts = [list(validation.harmful), list(validation.harmless)]
    sample = Lists(*([each[place] for place in kept] for each, kept in zip(texts, places, strict=True)))
    rough = Scorer(model, sample, metric, low_precision=True)
    if [len(kept) for kept in places] == [len(each) for each in texts] and not rough.low_precision:
        return score(model, directions, validation, metric, rows=wanted, reference=reference, scorer=scorer)
    screen = [exactly(rough, directions, row, reference) for row in track(wanted, "screening carriers")]
    exact = scorer or Scorer(model, validation, metric)
    pilots = {
        place: exactly(exact, directions, wanted[place], reference)
        for place in track(_pilots(screen, kl_threshold), "scoring pilots")
    }
    race = _Race(
        _Sample(rough, exact, places, [kl for _, _, kl in pilots.values()]),
        screen,
        [row["layer"] < last_layer(model.cfg.n_layers, prune_layer_fraction) for row in wanted],
        thresholds=(kl_threshold, induce_threshold),
    )
    del rough
    for place, scores in pilots.items():
        race.settle(place, scores)

    def chosen() -> int | None:
        """What would be chosen of the means so far, where it is not exact."""
        table = gathered(wanted, race.found, race.is_exact).table.drop(columns="exact")
        judged = select(table, model.cfg.n_layers, kl_threshold, induce_threshold, prune_layer_fraction).table
        best = best_candidate(judged)
        return None if best is None or race.is_exact[int(best.name)] else int(best.name)

    expected = int((race.open_wins() >= RARELY).sum())
    for place in track(race.finalists(chosen), "scoring finalists", total=expected):
        race.settle(place, exactly(exact, directions, wanted[place], reference))
    return gathered(wanted, race.found, race.is_exact)


def _pilots(screen: Sequence[Scores], kl_threshold: float) -> list[int]:
    """Candidates whose KL is nearest the threshold, by its logarithm: finalists, if any are."""
    means = np.array([kl.mean() for _, _, kl in screen])
    eligible = np.flatnonzero(np.isfinite(means) & (means > 0))
    distance = np.abs(np.log(means[eligible] / kl_threshold)) if kl_threshold > 0 else means[eligible]
    return [int(place) for place in eligible[np.argsort(distance, kind="stable")[:PILOTS]]]


class _Sample:
    """Prompts drawn with replacement, `RACES` times, and what they would have scored by the scores of a sample.

    A drawn prompt that is not in the sample is stood in for by one of it, the same for all candidates, drawn anew in
    each race (the approximate Bayesian bootstrap, Rubin and Schenker 1986, which allows for what the sample itself
    owes to chance). What is known of every prompt corrects it: the refusal score without intervention by its
    difference, the KL of the pilots by its ratio.
    """

    def __init__(self, rough: Scorer, exact: Scorer, places: Sequence[ndarray], pilots: Sequence[ndarray]) -> None:
        random = np.random.default_rng(0)
        self.rounded = rough.low_precision
        bases = [(as_array(exact.base.harmful), as_array(rough.base.harmful))]
        bases += [(as_array(exact.base.harmless), as_array(rough.base.harmless))]
        self._drawn = [_draw(len(base), kept, random) for (base, _), kept in zip(bases, places, strict=True)]
        self._bases = bases
        moved = np.mean([kl / kl.mean() for kl in pilots], axis=0) if pilots else np.ones(len(bases[1][0]))
        self._easily = 0.9 * moved + 0.1  # a prompt that hardly moves must not weigh without bound
        self._kept = places[1]

    def expected(self, scores: Scores) -> Scores:
        """Scores of the sample such that their mean estimates that of all prompts."""
        bypass, induce, kl = scores
        shifts = [base.mean() - part.mean() for base, part in self._bases]
        return bypass + shifts[0], induce + shifts[1], kl * self._easily.mean() / self._easily[self._kept].mean()

    def races(self, bypass: ndarray, induce: ndarray, kl: ndarray) -> list[Float[ndarray, "race candidate"]]:
        """Means of every race, from scores (candidate, prompt of the sample)."""
        means = []
        for values, (base, part), (drawn, donors) in zip((bypass, induce), self._bases, self._drawn, strict=True):
            weights = _weights(donors, len(part))
            means.append(weights @ values.T + (base[drawn].mean(axis=1) - weights @ part)[:, None])
        drawn, donors = self._drawn[1]
        ratio = kl / self._easily[self._kept]
        means.append(_weights(donors, kl.shape[1], self._easily[drawn]) @ ratio.T)
        return means

    def settled(self, scores: Scores) -> list[Float[ndarray, " race"]]:
        """Means of every race, from scores of all prompts."""
        sides = (self._drawn[0], self._drawn[1], self._drawn[1])
        return [values[drawn].mean(axis=1) for values, (drawn, _) in zip(scores, sides, strict=True)]


class _Race:
    """The scores so far, and how often each candidate wins in races drawn from them.

    `found`: scores of every candidate, of all prompts where `is_exact`, else of the sample.
    """

    def __init__(
        self, sample: _Sample, screen: Sequence[Scores], runs: Sequence[bool], *, thresholds: tuple[float, float]
    ) -> None:
        self._sample, self._runs, self._thresholds = sample, np.array(runs, dtype=bool), thresholds
        self.found = [sample.expected(scores) for scores in screen]
        self.is_exact = [bool(np.isnan(bypass).any()) for bypass, _, _ in screen]  # NaN is as exact as it gets
        stacked = [np.array([scores[measure] for scores in screen]) for measure in range(3)]
        self._means = sample.races(*stacked) if screen else [np.empty((RACES, 0))] * 3
        if sample.rounded:
            bypass, induce, kl = self._means
            noise = np.random.default_rng(1).standard_normal((3, *kl.shape))
            bypass, induce = bypass + SCORE_ROUNDING * noise[0], induce + SCORE_ROUNDING * noise[1]
            self._means = [bypass, induce, kl * (1 + KL_ROUNDING * noise[2])]

    def settle(self, place: int, scores: Scores) -> None:
        """Replace the estimates of a candidate by its scores on all prompts."""
        self.found[place], self.is_exact[place] = scores, True
        for means, values in zip(self._means, self._sample.settled(scores), strict=True):
            means[:, place] = values

    def open_wins(self) -> Float[ndarray, " candidate"]:
        """Share of races that each candidate wins; 0 for those that are exact."""
        bypass, induce, kl = self._means
        admissible = (kl <= self._thresholds[0]) & (induce >= self._thresholds[1]) & self._runs
        ranked = np.where(admissible, bypass, np.inf)
        wins = np.zeros(len(self.found))
        if ranked.shape[1]:
            np.add.at(wins, ranked.argmin(axis=1)[np.isfinite(ranked).any(axis=1)], 1 / RACES)
        wins[self.is_exact] = 0
        return wins

    def finalists(self, chosen: Callable[[], int | None]) -> Iterator[int]:
        """Candidates to settle; each must be settled before the next is asked for."""
        while True:
            wins = self.open_wins()
            place = int(wins.argmax()) if wins.size and wins.max() >= RARELY else chosen()
            if place is None:
                return
            yield place


def _draw(n: int, sample: ndarray, random: np.random.Generator) -> tuple[ndarray, ndarray]:
    """For every race n of n prompts with replacement, and the place in the sample of what stands in for each."""
    k = len(sample)
    drawn = random.integers(n, size=(RACES, n))
    pool = random.integers(k, size=(RACES, k))
    stands_for = np.take_along_axis(pool, random.integers(k, size=(RACES, n)), axis=1)
    stands_for[:, sample] = np.arange(k)
    return drawn, np.take_along_axis(stands_for, drawn, axis=1)


def _weights(donors: Int[ndarray, "race prompt"], k: int, each: ndarray | float = 1.0) -> Float[ndarray, "race k"]:
    """How much each prompt of the sample counts in the mean of a race."""
    weights = np.zeros((len(donors), k))
    np.add.at(weights, (np.arange(len(donors))[:, None], donors), each / donors.shape[1])
    return weights


def _sample(n: int, share: float) -> Int[ndarray, " sample"]:
    """Places spread evenly over the prompts, as sets come in blocks of categories."""
    kept = min(n, max(FEWEST, int(np.ceil(share * n))))
    return np.unique(np.linspace(0, n - 1, kept).round().astype(int)) if n else np.empty(0, dtype=int)
