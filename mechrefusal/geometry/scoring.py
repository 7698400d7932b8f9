"""What taking a direction out and putting it in does on validation prompts: bypass, induce and KL, prompt by prompt.

The scores are those of Arditi et al. (2406.11717, section 2.3 and appendix C), with one choice that they do not name:
the reference, what "out" is (see `causal.Reference`), which is a part of the scores.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal import Intervention, Passes, put_in, taken_out
from mechrefusal.causal.divergence import kl_of_probabilities, probabilities
from mechrefusal.causal.prompt_scores import PromptScores
from mechrefusal.causal.reference import HARMLESS, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction, require_weights
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.carrier_scores import CarrierScores
from mechrefusal.geometry.carriers import candidates
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.geometry.directions import Directions
from mechrefusal.models import is_direction
from mechrefusal.progress import track
from mechrefusal.statistics.choosing import PUBLISHED


class Scorer:
    """Validation prompts, ready to be scored under one intervention after another.

    Args:
        model: a hooked transformer.
        validation: harmful and harmless prompts.
        low_precision: in bfloat16 where that is faster.
    """

    def __init__(self, model, validation: Contrast, metric: RefusalMetric, *, low_precision: bool = False) -> None:
        self.metric = metric
        harmful, harmless = (
            prompts.prompt_ids(model.tokenizer, texts) for texts in (validation.harmful, validation.harmless)
        )
        if not harmful or not harmless:
            raise MechrefusalError(
                "carriers need harmful and harmless validation prompts; one of the two sets is empty"
            )
        self.n_harmful, self.n_harmless = len(harmful), len(harmless)
        self._both, self._harmful, self._harmless = (
            Passes(model, ids, metric.runs, low_precision=low_precision)
            for ids in (harmful + harmless, harmful, harmless)
        )
        self.low_precision = self._both.low_precision
        scores, following = self._read(self._both, None)
        self._p = probabilities(following[self.n_harmful :])
        self.base = PromptScores.of(scores, torch.zeros(self.n_harmless))

    def under(self, intervention: Intervention | None) -> PromptScores:
        """Scores of all prompts under an intervention, or under none."""
        scores, following = self._read(self._both, intervention)
        return PromptScores.of(scores, kl_of_probabilities(self._p, probabilities(following[self.n_harmful :])))

    def on_harmful(self, intervention: Intervention) -> Float[Tensor, " harmful"]:
        """Refusal scores of the harmful prompts alone under any intervention."""
        return self._read(self._harmful, intervention)[0]

    def on_harmless(self, intervention: Intervention) -> Float[Tensor, " harmless"]:
        """Refusal scores of the harmless prompts alone under any intervention."""
        return self._read(self._harmless, intervention)[0]

    def _read(self, passes: Passes, intervention: Intervention | None) -> tuple[Tensor, Tensor]:
        """Scores, and the logits of the next token."""
        parts = [(self.metric.of_runs(part), part[0][:, 0]) for part in passes.by_group(intervention)]
        scores, following = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(following)


def score(
    model,
    directions: Directions,
    validation: Contrast,
    metric: RefusalMetric,
    *,
    places: Sequence[Place] | None = None,
    reference: str = HARMLESS,
    scorer: Scorer | None = None,
) -> CarrierScores:
    """Score candidate directions on validation prompts.

    bypass: refusal score of the harmful prompts with the direction ablated. induce: refusal score of the harmless
    prompts with it put in. kl: KL(base ‖ ablated) of the next-token distribution of the harmless prompts, nats. All are
    means over prompts.

    Reference "harmless" ablates to the mean of the harmless direction prompts and puts in the mean of the harmful ones,
    at block inputs from the candidate's layer on (affine concept editing, 2411.09003). Reference "zero" ablates to zero
    at every layer and site, and adds +1 · r at the candidate's layer, as Arditi et al. publish.

    Args:
        model: a hooked transformer, of the weights that the directions are from.
        places: (position, layer) to score, from `carriers.candidates`; by default all that `select` could admit.
        reference: "harmless" or "zero".
        scorer: of the same model, prompts and metric, where one was made already.

    Returns:
        One row a candidate. One that cannot be scored (a direction that is zero or not finite, as at layer 0 where
        the template's tokens are all alike) has NaN in all three.

    Raises:
        MechrefusalError: directions of other weights, no prompts, or an unknown reference.
    """
    require_weights(model, directions.weights, "directions")
    to = require_reference(reference)
    scored = places_of(model, directions, places)
    scorer = scorer or Scorer(model, validation, metric)
    scores = [scores_of(scorer, directions.at(*place, reference=to)) for place in track(scored, "scoring carriers")]
    return replace(CarrierScores.gathered(scored, scores), directions=directions, reference=to)


def kl_divergence(
    base: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, " prompt"]:
    """KL(base ‖ other) in nats of log-probabilities, as `causal.divergence` takes it, in float64.

    Log-probabilities have to be float64 from the logits on: what a float32 log-softmax rounded away does not come back.
    """
    return kl_of_probabilities(base.double().exp(), other.double().exp())


def scores_of(scorer: Scorer, direction: Direction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bypass, induce and kl of every prompt, float64; NaN where the direction is zero or not finite."""
    if not is_direction(direction.vector):
        return tuple(np.full(n, np.nan) for n in (scorer.n_harmful, scorer.n_harmless, scorer.n_harmless))  # type: ignore[return-value]
    ablated = scorer.under(taken_out(direction))
    induced = scorer.on_harmless(put_in(direction))
    return as_array(ablated.harmful), as_array(induced), as_array(ablated.kl)


def places_of(model, directions: Directions, places: Sequence[Place] | None) -> list[Place]:
    """`places`, or where there are none all that `carriers.select` could admit by its defaults."""
    return list(candidates(directions, layers=PUBLISHED.layers(model.cfg.n_layers)) if places is None else places)


def as_array(values: Tensor) -> np.ndarray:
    """The values as a float64 array on the CPU."""
    return values.double().cpu().numpy()
