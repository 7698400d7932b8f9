"""Passes of training under an intervention: which one, measured on which weights, and for which rows."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from mechrefusal.attacks import random_stream
from mechrefusal.causal import Intervention, intervened
from mechrefusal.causal.interventions import acts_at_some_positions, tells_tokens_apart
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.sites import Place
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_forward import TreeForward, TreeOutput
from mechrefusal.training.measured import Measured, State


@dataclass(frozen=True)
class Under:
    """What the rows of a term are run under.

    Fields:
        name: in errors.
        intervention: what is done, given what was measured; None: nothing.
        measured: what is measured on the weights; None: nothing, so that `intervention` is given an empty mapping.
        probability: with which each row, drawn by itself, is run under the intervention; the others are run without.
    """

    name: str
    intervention: Callable[[State], "Intervention | Sequence[Intervention] | None"]
    measured: Measured | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise MechrefusalError(f"'{self.name}' has probability {self.probability}: give a number from 0 to 1")

    def chosen(self, n: int, term: str, *, seed: int, step: int, part: int) -> list[bool]:
        """Which of `n` rows of a term are run under it: the same for the same seed, step and part of the step."""
        if self.probability in (0.0, 1.0):
            return [bool(self.probability)] * n
        stream = random_stream(seed, f"under {self.name}: {term} {step} {part}")
        return (torch.rand(n, generator=stream) < self.probability).tolist()

    def run(
        self,
        forward: TreeForward,
        branches: Sequence[Branch],
        state: State,
        *,
        reads: Collection[Place],
        n_prompt: Sequence[int],
        cases: Sequence[int],
    ) -> TreeOutput:
        """The pass over rows under the intervention: as a token tree, unless it tells tokens apart.

        Args:
            n_prompt: of each branch, the tokens of its prompt.
            cases: of each branch, which case of the step it is of; empty where rows are not of cases.
        """
        interventions = self.intervention(state)
        if interventions is None or not tells_tokens_apart(interventions):
            with intervened(forward.model, interventions):
                return forward.run(branches, reads=reads)
        if acts_at_some_positions(interventions):
            raise MechrefusalError(
                f"'{self.name}' acts at some positions of a prompt, which rows with answers do not end with: leave out "
                "positions, so that it acts at every token"
            )
        longest = max(len(branch.tokens) for branch in branches)
        after_prompt = [longest - n for n in n_prompt]
        with intervened(forward.model, interventions, after_prompt=after_prompt):
            return forward.plainly().run(branches, reads=reads)
