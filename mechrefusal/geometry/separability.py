"""Separability: how far apart harmful and harmless prompts lie along the difference of their means, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry import folds, resampling
from mechrefusal.geometry.activations import stream
from mechrefusal.geometry.contrast import Contrast, labels
from mechrefusal.statistics import Estimate

ALL_LAYERS = -1
"""What stands for the mean over layers in a column `layer`."""
NAN = float("nan")


@dataclass(frozen=True)
class Separability:
    """d' of harmful against harmless prompts: the difference of their mean projections over the standard deviation
    within a class (the root of the mean of both variances).

    A prompt is projected on the difference in means of all other prompts (less its twin), of length one, from the
    middle between the two means, so that no prompt is told by a direction that it had a part in: without any difference
    between the classes d' is 0 on average, in whatever width. Bootstraps draw prompts (twins together), fit the
    direction anew and leave out every copy of a prompt. The same prompts are in the same draw for every model, so that
    two models are compared on the same draws (`difference`).

    Fields:
        values: d' by layer; NaN where activations are the same for every prompt, as at the input of the first layer.
        auc: chance that a harmful prompt projects further than a harmless one, by layer.
        draws: d' of every bootstrap, [draw, layer].
        position: where activations were read, from the end of the prompt.
        n: prompts that are drawn as one.
        reason: why nothing could be measured, "" where it was.
    """

    values: Float[np.ndarray, " layer"]
    auc: Float[np.ndarray, " layer"]
    draws: Float[np.ndarray, "draw layer"]
    position: int
    n: int
    reason: str = ""

    @classmethod
    def of(cls, model, contrast: Contrast, *, position: int = -1, seed: int = 0) -> "Separability":
        """Measure a hooked transformer at the input of every layer. Memory: prompts × n_layers × d_model, float32.

        Raises:
            MechrefusalError: a position that is not in every prompt.
        """
        texts = [*contrast.harmful, *contrast.harmless]
        n_harmful = len(contrast.harmful)
        if reason := resampling.too_few(n_harmful, len(texts) - n_harmful, ("harmful", "harmless")):
            nothing = np.full(model.cfg.n_layers, NAN)
            return cls(nothing, nothing, np.full((1, model.cfg.n_layers), NAN), position, 0, reason)
        ids = prompts.prompt_ids(model.tokenizer, texts)
        parts = [part[:, 0].double().numpy() for part in stream(model, ids, positions=[position])]
        activations = np.concatenate(parts).transpose(1, 0, 2)
        blocks = resampling.blocks_of([*chain(*labels(contrast))])
        return cls.of_activations(activations, n_harmful, blocks=blocks, position=position, seed=seed)

    @classmethod
    def of_activations(
        cls,
        activations: Float[np.ndarray, "layer prompt d_model"],
        n_harmful: int,
        *,
        blocks: Int[np.ndarray, " prompt"] | None = None,
        position: int = -1,
        n_draws: int = resampling.DRAWS,
        seed: int = 0,
    ) -> "Separability":
        """Measure activations, those of the harmful prompts first.

        Args:
            blocks: a number for every prompt, which twins share; by default every prompt has its own.
        """
        n_layers, n_prompts = activations.shape[:2]
        blocks = np.arange(n_prompts) if blocks is None else blocks
        is_first = np.arange(n_prompts) < n_harmful
        n_blocks = int(blocks.max()) + 1
        drawn = resampling.times_drawn(blocks, np.random.default_rng(seed), n_draws).astype(float)
        values, auc, draws = np.full(n_layers, NAN), np.full(n_layers, NAN), np.full((n_draws, n_layers), NAN)
        observed = resampling.observed(n_harmful, n_prompts - n_harmful)
        for layer, each in enumerate(activations):
            if resampling.unusable(each):
                continue
            centred = each - each.mean(axis=0)
            gram = centred @ centred.T
            projected = _projected(gram, is_first, blocks, np.ones((1, n_prompts)))
            values[layer] = _d_prime(projected, is_first, np.ones((1, n_prompts)))[0]
            auc[layer] = resampling.auc(projected[0], observed)[0]
            draws[:, layer] = _d_prime(_projected(gram, is_first, blocks, drawn), is_first, drawn)
        reason = "" if np.isfinite(values).any() else "activations are the same for every prompt, or not finite"
        return cls(values, auc, draws, position, n_blocks, reason)

    @property
    def mean_draws(self) -> Float[np.ndarray, " draw"]:
        """The mean over layers, of every bootstrap."""
        return _mean_over_layers(self.draws)

    @property
    def mean(self) -> Estimate:
        """The mean over layers with its 95% interval."""
        return folds.interval(float(_mean_over_layers(self.values[None])[0]), self.mean_draws, max(self.n, 2))

    @property
    def table(self) -> pd.DataFrame:
        """Rows of the table `separability`: every layer, and the mean over layers."""
        return pd.DataFrame(self._rows())

    @property
    def drawn(self) -> pd.DataFrame:
        """Rows of the table `separability_draws`."""
        return pd.DataFrame({"draw": np.arange(len(self.draws)), "value": self.mean_draws})

    def _rows(self) -> Iterator[dict]:
        known = {"position": self.position, "n": self.n}
        auc = float(np.nanmean(self.auc)) if np.isfinite(self.auc).any() else NAN
        yield {"layer": ALL_LAYERS, **self.mean.columns("value", ""), "auc": auc, **known, "reason": self.reason}
        for layer, value in enumerate(self.values):
            estimate = folds.interval(float(value), self.draws[:, layer], max(self.n, 2))
            why = self.reason or ("" if np.isfinite(value) else "activations are the same for every prompt")
            yield {
                "layer": layer, **estimate.columns("value", ""), "auc": float(self.auc[layer]), **known, "reason": why,
            }  # fmt: skip


def difference(
    a: float, b: float, draws_a: Float[np.ndarray, " draw"], draws_b: Float[np.ndarray, " draw"], n: int
) -> Estimate:
    """Second minus first of two models on the same prompts, with the 95% interval of the same draws at both.

    Raises:
        MechrefusalError: another number of draws at either, which were then not the same.
    """
    if len(draws_a) != len(draws_b):
        raise MechrefusalError(
            f"{len(draws_a)} draws cannot be set beside {len(draws_b)}: measure both models with the same prompts"
        )
    return folds.interval(b - a, draws_b - draws_a, n)


def _projected(
    gram: Float[np.ndarray, "prompt prompt"],
    is_first: Bool[np.ndarray, " prompt"],
    blocks: Int[np.ndarray, " prompt"],
    drawn: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, "draw prompt"]:
    """(x − (m₁ + m₂)/2) · (m₁ − m₂)/‖m₁ − m₂‖ of each prompt, with m the means of the prompts of other blocks.

    Means are mixes of the prompts, so that inner products of prompts are all that it takes; what a prompt's own block
    adds to each sum is taken off again.

    Args:
        drawn: how often each prompt is in each draw.
    """
    same = (blocks[:, None] == blocks[None]).astype(float)
    within = gram * same
    of_class = [drawn * is_first, drawn * ~is_first]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = [each.sum(axis=1, keepdims=True) - each @ same for each in of_class]
        whole, own = [each @ gram for each in of_class], [each @ within for each in of_class]

        def inner(i: int, j: int) -> Float[np.ndarray, "draw prompt"]:
            """The inner product of two means, for each prompt whose block is left out."""
            total = (of_class[i] * whole[j]).sum(axis=1, keepdims=True)
            taken = (of_class[i] * whole[j]) @ same + (of_class[j] * whole[i]) @ same - (of_class[i] * own[j]) @ same
            return (total - taken) / (left[i] * left[j])

        first, second, between = inner(0, 0), inner(1, 1), inner(0, 1)
        length = np.sqrt(np.maximum(first - 2 * between + second, 0))
        along = (whole[0] - own[0]) / left[0] - (whole[1] - own[1]) / left[1]
        return (along - (first - second) / 2) / np.where(length > 0, length, np.nan)


def _d_prime(
    projected: Float[np.ndarray, "draw prompt"],
    is_first: Bool[np.ndarray, " prompt"],
    drawn: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " draw"]:
    """d' of every draw; NaN where a class has fewer than two prompts, or does not vary."""
    means, variances = [], []
    with np.errstate(divide="ignore", invalid="ignore"):
        for each in (drawn * is_first, drawn * ~is_first):
            n, counted = each.sum(axis=1), np.where(each > 0, projected, 0)
            means.append((each * counted).sum(axis=1) / n)
            variances.append((each * (counted - means[-1][:, None]) ** 2).sum(axis=1) / (n - 1))
        spread = np.sqrt((variances[0] + variances[1]) / 2)
        return (means[0] - means[1]) / np.where(spread > 0, spread, np.nan)


def _mean_over_layers(values: Float[np.ndarray, "draw layer"]) -> Float[np.ndarray, " draw"]:
    """NaN where no layer has a value."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
