"""What taking a direction out and putting it in does on validation prompts: bypass, induce and KL, prompt by prompt.

The scores are those of Arditi et al. (2406.11717, section 2.3 and appendix C), with one choice that they do not name:
the reference, what "out" is (see `causal.Reference`), which is a part of the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal import Intervention, Passes, put_in, taken_out
from mechrefusal.causal.divergence import kl_of_probabilities, probabilities
from mechrefusal.causal.reference import HARMLESS, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction, ReferenceName, require_weights
from mechrefusal.geometry.activations import Place
from mechrefusal.geometry.carriers import SCORES, candidates
from mechrefusal.geometry.directions import Contrast, Directions, Texts
from mechrefusal.models import is_direction
from mechrefusal.progress import track
from mechrefusal.statistics.choosing import PUBLISHED


@dataclass(frozen=True)
class Rounding:
    """What a lower precision shifts means by, root mean square over `n` candidates that were scored both ways.

    score: mean refusal scores, nats; kl: the logarithm of a mean KL.
    """

    score: float
    kl: float
    n: int


@dataclass(frozen=True)
class CarrierScores:
    """Scores of candidate directions on validation prompts.

    `table`: position, layer, bypass, induce, kl (means over prompts) and `exact`, False where a screen put the
    candidate out of the running: its scores are then those of the screen. The arrays hold the scores of every prompt,
    NaN in rows that are not exact or could not be scored; row i belongs to row i of the table.

    `directions`: whose candidates they are, and `reference`: what these were ablated to; None where the scores were
    read back from a table. `rounding`: what a screen allowed for that ran in a lower precision; None for any other.
    """

    table: pd.DataFrame
    bypass: Float[np.ndarray, "candidate harmful"]
    induce: Float[np.ndarray, "candidate harmless"]
    kl: Float[np.ndarray, "candidate harmless"]
    directions: Directions | None = None
    reference: ReferenceName | None = None
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        assert len(self.table) == len(self.bypass) == len(self.induce) == len(self.kl)

    def long(self, harmful: Sequence[str], harmless: Sequence[str]) -> pd.DataFrame:
        """One row a candidate, measure and prompt (`position, layer, measure, prompt_id, value`), exact ones only."""
        parts = []
        for measure, values, ids in (
            ("bypass", self.bypass, harmful),
            ("induce", self.induce, harmless),
            ("kl", self.kl, harmless),
        ):
            kept = np.flatnonzero(np.isfinite(values).all(axis=1))
            parts.append(
                pd.DataFrame(
                    {
                        "position": self.table["position"].to_numpy()[kept].repeat(len(ids)),
                        "layer": self.table["layer"].to_numpy()[kept].repeat(len(ids)),
                        "measure": measure,
                        "prompt_id": np.tile(np.array(ids, dtype=object), len(kept)),
                        "value": values[kept].ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    @classmethod
    def of_long(cls, rows: pd.DataFrame, harmful: Sequence[str], harmless: Sequence[str]) -> "CarrierScores":
        """What `long` told, of these prompts in this order; NaN for prompts that it does not tell of."""
        found = {
            measure: rows[rows["measure"] == measure]
            .pivot(index=["position", "layer"], columns="prompt_id", values="value")
            .reindex(columns=list(ids))
            for measure, ids in (("bypass", harmful), ("induce", harmless), ("kl", harmless))
        }
        places = found["bypass"].index
        arrays = [each.reindex(places).to_numpy(float) for each in found.values()]
        means = {name: each.mean(axis=1) for name, each in zip(found, arrays, strict=True)}
        table = places.to_frame(index=False).astype("int64").assign(**means, exact=True)
        return cls(table, *arrays)


@dataclass(frozen=True)
class Lists:
    """A `Contrast` of plain texts."""

    harmful: Texts
    harmless: Texts


@dataclass(frozen=True)
class Scored:
    """One direction on every prompt: refusal scores on the harmful ones, refusal scores and KL on the harmless ones."""

    harmful: Float[Tensor, " harmful"]
    harmless: Float[Tensor, " harmless"]
    kl: Float[Tensor, " harmless"]


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
        self._both = Passes(model, harmful + harmless, metric.runs, low_precision=low_precision)
        self._harmful = Passes(model, harmful, metric.runs, low_precision=low_precision)
        self._harmless = Passes(model, harmless, metric.runs, low_precision=low_precision)
        self.low_precision = self._both.low_precision
        scores, following = self._read(self._both, None)
        self._p = probabilities(following[self.n_harmful :])
        self.base = Scored(scores[: self.n_harmful], scores[self.n_harmful :], torch.zeros(self.n_harmless))

    def under(self, intervention: Intervention | None) -> Scored:
        """Under any intervention, on all prompts."""
        scores, following = self._read(self._both, intervention)
        kl = self._kl(following[self.n_harmful :])
        return Scored(scores[: self.n_harmful], scores[self.n_harmful :], kl)

    def on_harmful(self, intervention: Intervention) -> Float[Tensor, " harmful"]:
        """Refusal scores of the harmful prompts alone under any intervention."""
        return self._read(self._harmful, intervention)[0]

    def on_harmless(self, intervention: Intervention) -> Float[Tensor, " harmless"]:
        """Refusal scores of the harmless prompts alone under any intervention."""
        return self._read(self._harmless, intervention)[0]

    def _read(self, passes: Passes, intervention: Intervention | None) -> tuple[Tensor, Tensor]:
        """Scores, and the logits of the next token."""
        found = [(self.metric.of_runs(part), part[0][:, 0]) for part in passes.by_group(intervention)]
        return torch.cat([scores for scores, _ in found]), torch.cat([following for _, following in found])

    def _kl(self, logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
        return kl_of_probabilities(self._p, probabilities(logits))


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
    wanted = places_of(model, directions, places)
    scorer = scorer or Scorer(model, validation, metric)
    found = [exactly(scorer, directions.at(*place, reference=to)) for place in track(wanted, "scoring carriers")]
    return gathered(wanted, found, [True] * len(wanted), directions=directions, reference=to)


def kl_divergence(
    base: Float[Tensor, "prompt vocab"], other: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, " prompt"]:
    """KL(base ‖ other) in nats of log-probabilities, as `causal.divergence` takes it, in float64.

    Log-probabilities have to be float64 from the logits on: what a float32 log-softmax rounded away does not come back.
    """
    return kl_of_probabilities(base.double().exp(), other.double().exp())


def exactly(scorer: Scorer, direction: Direction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bypass, induce and kl of every prompt, float64; NaN where the direction is zero or not finite."""
    if not is_direction(direction.vector):
        return tuple(np.full(n, np.nan) for n in (scorer.n_harmful, scorer.n_harmless, scorer.n_harmless))  # type: ignore[return-value]
    ablated = scorer.under(taken_out(direction))
    induced = scorer.on_harmless(put_in(direction))
    return as_array(ablated.harmful), as_array(induced), as_array(ablated.kl)


def gathered(
    places: Sequence[Place],
    found: Sequence[tuple],
    exact: Sequence[bool],
    *,
    directions: Directions | None = None,
    reference: ReferenceName | None = None,
    rounding: Rounding | None = None,
) -> CarrierScores:
    """Per-prompt scores of `exactly`, place by place, as `CarrierScores`. Arrays keep the exact rows only."""
    table = pd.DataFrame(
        {
            "position": pd.Series([position for position, _ in places], dtype="int64"),
            "layer": pd.Series([layer for _, layer in places], dtype="int64"),
            **{
                name: pd.Series([values[measure].mean() for values in found], dtype="float64")
                for measure, name in enumerate(SCORES)
            },
            "exact": pd.Series(list(exact), dtype=bool),
        }
    )
    widest = [max((len(values[measure]) for values in found), default=0) for measure in range(3)]
    arrays = [np.full((len(places), width), np.nan) for width in widest]
    for number, values in enumerate(found):
        if exact[number]:
            for array, one in zip(arrays, values, strict=True):
                array[number] = one if np.isfinite(one).all() else np.nan
    return CarrierScores(table, arrays[0], arrays[1], arrays[2], directions, reference, rounding)


def places_of(model, directions: Directions, places: Sequence[Place] | None) -> list[Place]:
    """`places`, or where there are none all that `carriers.select` could admit by its defaults."""
    return list(candidates(directions, layers=PUBLISHED.layers(model.cfg.n_layers)) if places is None else places)


def as_array(values: Tensor) -> np.ndarray:
    """Float64 on the CPU."""
    return values.double().cpu().numpy()
