"""What the chosen candidate does to prompts that did not choose it.

A candidate that is chosen for its low bypass is one that prompts favoured by chance too: on the prompts that chose it,
it looks better than it is (the winner's curse), the more so the fewer prompts there are and the more alike candidates
are.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechrefusal.geometry import resampling
from mechrefusal.geometry.carrier_scores import CarrierScores
from mechrefusal.geometry.carriers import exact_candidates
from mechrefusal.geometry.contrast import Contrast, dealt, labels
from mechrefusal.statistics.choosing import PUBLISHED, Admissible, lowest
from mechrefusal.statistics.intervals import Estimate

DRAWS = 400
"""Bootstraps of a choice: each chooses once a fold."""


@dataclass(frozen=True)
class HeldOut:
    """`bypass`: score of every harmful prompt with the candidate ablated that the prompts of the other folds choose.

    `rows`: row of that candidate in the scores, by harmful prompt, and `whole`: of the one that all prompts choose; −1
    where nothing can be chosen.
    """

    bypass: Float[np.ndarray, " harmful"]
    rows: Int[np.ndarray, " harmful"]
    whole: int


class Choice:
    """Choosing again and again among the exact candidates, by other prompts each time; it runs no model.

    What is chosen is the carrier, or where there is none the best candidate (`carriers.Selection.best`).

    Args:
        scores: by prompt, from `score` or `screened`.
        folds: of every harmful and of every harmless prompt (see `directions.dealt`): twins share one, as what they
            have in common would choose for them.
        n_layers: layers of the model.
    """

    def __init__(
        self,
        scores: CarrierScores,
        folds: tuple[Sequence[int], Sequence[int]],
        n_layers: int,
        admissible: Admissible = PUBLISHED,
    ) -> None:
        self.harmful, self.harmless = (np.asarray(each, dtype=int) for each in folds)
        assert (len(self.harmful), len(self.harmless)) == (scores.bypass.shape[1], scores.induce.shape[1])
        self.rows, self.candidates = exact_candidates(scores, n_layers, admissible)

    def held_out(self) -> HeldOut:
        """Choose without each fold of the prompts, and look at the fold.

        The mean over prompts is without bias for what a choice by the prompts of all folds but one does to others: with
        16 folds that is hardly less than what the choice by all of them does.
        """
        every = np.ones((1, len(self.harmful))), np.ones((1, len(self.harmless)))
        places = self._by_others(*every)[:, 0]
        whole = int(self._chosen(*every)[0])
        if whole < 0:
            return HeldOut(np.full(len(places), np.nan), np.full(len(places), -1), -1)
        bypass = np.where(places >= 0, self.candidates.bypass[places, np.arange(len(places))], np.nan)
        return HeldOut(bypass, np.where(places >= 0, self.rows[places], -1), int(self.rows[whole]))

    def drawn(
        self, harmful: Float[np.ndarray, "draw harmful"], harmless: Float[np.ndarray, "draw harmless"]
    ) -> Float[np.ndarray, "harmful draw"]:
        """`HeldOut.bypass` of every prompt where prompts count as often as the draws say; NaN where nothing is chosen.

        A prompt and its copies are in one fold, so that a prompt never helps to choose for itself.
        """
        places = self._by_others(harmful, harmless)
        if not len(self.rows):
            return np.full(places.shape, np.nan)
        return np.where(places >= 0, self.candidates.bypass[places, np.arange(len(places))[:, None]], np.nan)

    def _by_others(self, harmful: ndarray, harmless: ndarray) -> Int[np.ndarray, "harmful draw"]:
        """Place among `self.rows` of what the prompts outside a prompt's fold choose, −1 where there is none."""
        places = np.full((len(self.harmful), len(harmful)), -1)
        for fold in np.unique(self.harmful):
            others = harmful * (self.harmful != fold), harmless * (self.harmless != fold)
            places[self.harmful == fold] = self._chosen(*others)
        return places

    def _chosen(self, harmful: ndarray, harmless: ndarray) -> Int[np.ndarray, " draw"]:
        return lowest(self.candidates.ranked(harmful, harmless, or_best=True))


def own_bypass(
    scores: CarrierScores, contrast: Contrast, n_layers: int, admissible: Admissible = PUBLISHED
) -> Estimate:
    """Mean score of harmful prompts with the carrier ablated, each prompt's by the carrier that other prompts choose.

    What `carriers.select` reports is the lowest mean of many, on the prompts that made it the lowest. The 95% interval
    is that of `ChosenCandidate.decrease`; NaN where nothing can be chosen.

    Args:
        scores: by prompt, of `contrast`, the validation prompts.
    """
    folds, _ = dealt(contrast)
    choice = Choice(scores, (folds[0], folds[1]), n_layers, admissible)
    whole = choice.held_out().whole
    n = scores.bypass.shape[1]
    if whole < 0:
        return Estimate(np.nan, np.nan, np.nan, n)
    names = labels(contrast)
    decrease = ChosenCandidate(choice, names, names[0]).decrease(np.zeros(n), scores.bypass[whole])
    return Estimate(-decrease.value, -decrease.high, -decrease.low, n)


@dataclass(frozen=True)
class ChosenCandidate:
    """A candidate that some of the prompts chose that it is now measured on.

    `choosers`: a label of every harmful and every harmless prompt that chose it, those of `choice`; `measured_on`: of
    every harmful prompt that it is measured on. A prompt has one label in both, twins the same.
    """

    choice: Choice
    choosers: tuple[Sequence[Hashable], Sequence[Hashable]]
    measured_on: Sequence[Hashable]

    def decrease(
        self, before: Float[np.ndarray, " measured_on"], ablated: Float[np.ndarray, " measured_on"], *, seed: int = 0
    ) -> Estimate:
        """How far ablating what other prompts choose lowers the mean score of the prompts measured on, nats.

        Prompts that chose are measured with what the prompts outside their fold choose; the others, which chose
        nothing, with the candidate itself. The 95% interval is a bootstrap over prompts (twins together) that chooses
        again in every draw; it errs on the wide side: a t interval over the prompts leaves out that the choice varies.

        Args:
            before: scores without intervention; ablated: with the candidate ablated.
        """
        place = {label: row for row, label in enumerate(self.choosers[0])}
        rows = np.array([place.get(label, -1) for label in self.measured_on])
        chose = np.flatnonzero(rows >= 0)
        after = np.array(ablated, dtype=float)
        after[chose] = self.choice.held_out().bypass[rows[chose]]
        blocks = resampling.blocks_of([*self.choosers[0], *self.choosers[1], *self.measured_on])
        n = int(blocks.max()) + 1
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)[:, blocks].astype(float)
        ends = np.cumsum([len(each) for each in self.choosers])
        after_by_draw = np.repeat(np.array(ablated, dtype=float)[:, None], DRAWS, axis=1)
        after_by_draw[chose] = self.choice.drawn(times[:, : ends[0]], times[:, ends[0] : ends[1]])[rows[chose]]
        weights = times[:, ends[1] :].T
        with np.errstate(divide="ignore", invalid="ignore"):
            changes = np.where(weights > 0, weights * (np.asarray(before)[:, None] - after_by_draw), 0)
            draws = changes.sum(axis=0) / weights.sum(axis=0)
        return resampling.estimate(float(np.mean(before - after)), draws, len(self.measured_on))
