"""Linear probes beside the difference in means: can two groups of prompts be told apart by a line?"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry import resampling
from mechrefusal.geometry.activations import collect
from mechrefusal.geometry.contrast import Contrast, Texts
from mechrefusal.geometry.contrast_activations import ContrastActivations
from mechrefusal.geometry.drift import cosine
from mechrefusal.progress import track

NAN = float("nan")
SHUFFLES = 3
REGULARISATION = 5.0
"""scikit-learn's C is this divided by d_model: the variance that a standardised prompt's logit has a priori."""

Activations = Float[np.ndarray, "prompt d_model"] | Float[Tensor, "prompt d_model"]


@dataclass(frozen=True)
class Probe:
    """How well a cross-validated linear probe tells two groups of prompts apart.

    `auc`: of all out-of-fold scores together, with its 95% interval over prompts. `mean_auc`: of projecting on the
    difference in means of the training folds instead. `shuffled_auc`: of the probe on shuffled labels, the mean of
    a few shuffles. `cosine`: between the probe's weights and the difference in means, both of all prompts.
    What is NaN is so because of `reason`.
    """

    auc: float
    low: float
    high: float
    mean_auc: float
    shuffled_auc: float
    cosine: float
    n_positive: int
    n_negative: int
    reason: str = ""


def linear_probe(
    positive: Activations,
    negative: Activations,
    *,
    folds: int = 5,
    twins: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Probe:
    """Cross-validated logistic regression on standardised activations.

    Scaling and weights are fitted on the training folds only; folds keep the share of the classes. Labels are shuffled
    within the test folds, so that every fold keeps its classes. The interval is that of the out-of-fold scores: it does
    not hold the noise of the training, and it has no width at an AUC of 1.

    Args:
        positive: activations of the prompts that the probe is to score high.
        negative: of the others.
        folds: at most; no more than the smaller class has prompts.
        twins: a name for every prompt, positive ones first; prompts of the same name are kept in the same fold. With
            twins of opposite labels in different folds, what the two have in common pulls the AUC below 1/2.

    Raises:
        MechrefusalError: activations that are not (prompt, d_model), or of two widths; fewer than two folds; names that
            are not one a prompt.
    """
    groups = [np.asarray(estimate, dtype=float) for estimate in (positive, negative)]
    if any(estimate.ndim != 2 for estimate in groups) or groups[0].shape[1] != groups[1].shape[1]:
        raise MechrefusalError(
            f"a probe needs two tables (prompt, d_model) of the same width, got {groups[0].shape} and {groups[1].shape}"
        )
    if folds < 2:
        raise MechrefusalError(f"cross-validation needs at least 2 folds, got {folds}")
    n_positive, n_negative = map(len, groups)
    if twins is not None and len(twins) != n_positive + n_negative:
        raise MechrefusalError(
            f"{n_positive + n_negative} prompts came with {len(twins)} names of twins; give one a prompt"
        )
    reason = resampling.too_few(n_positive, n_negative, ("positive", "negative"))
    x = np.concatenate(groups)
    if reason := reason or resampling.unusable(x):
        return _nothing(n_positive, n_negative, reason)
    labels = np.arange(len(x)) < n_positive
    random = np.random.default_rng(seed)
    blocks = resampling.blocks_of(range(len(x)) if twins is None else twins)
    fold = resampling.dealt(labels, blocks, min(folds, n_positive, n_negative), random)
    if any(len(np.unique(labels[fold != each])) < 2 for each in np.unique(fold)):
        return _nothing(n_positive, n_negative, "twins leave a fold with no prompt of one class to learn from")
    parts = [_Fold(x, np.flatnonzero(fold != each), np.flatnonzero(fold == each)) for each in np.unique(fold)]
    probed, projected = np.empty(len(x)), np.empty(len(x))
    for part in parts:
        probed[part.test], projected[part.test] = part.probed(labels), part.projected(labels)
    first = resampling.observed(n_positive, n_negative)
    auc = float(resampling.auc(probed, first)[0])
    together = None if twins is None else blocks
    draws = resampling.auc(probed, resampling.bootstrapped(n_positive, n_negative, random, blocks=together))
    estimate = resampling.estimate(auc, draws, min(n_positive, n_negative), bounds=(0, 1))
    angle = cosine(_weights(x, labels), groups[0].mean(axis=0) - groups[1].mean(axis=0))
    return Probe(
        auc=auc,
        low=estimate.low,
        high=estimate.high,
        mean_auc=float(resampling.auc(projected, first)[0]),
        shuffled_auc=float(np.mean([_shuffled_auc(parts, labels, random) for _ in range(SHUFFLES)])),
        cosine=angle,
        n_positive=n_positive,
        n_negative=n_negative,
        reason="" if np.isfinite(angle) else "the difference in means is zero and has no cosine",
    )


def probe_layers(
    positive: Float[Tensor, "n layer d_model"],
    negative: Float[Tensor, "m layer d_model"],
    target: str,
    position: int,
    *,
    layers: Sequence[int] | None = None,
    twins: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A linear probe at every layer: columns as in the table `linear_probes`.

    Args:
        target: what is told apart, for the table; `position`: where the activations were read.
        layers: numbers of the layers that were read; by default 0, 1, 2 and so on.
        twins: as for `linear_probe`.
    """
    numbers = range(positive.shape[1]) if layers is None else layers
    rows = []
    # Matrices this small gain nothing from threads, and on busy cores threads wait for each other most of the time.
    with threadpool_limits(1):
        for index, layer in track(list(enumerate(numbers)), f"probes: {target} at {position}"):
            probe = linear_probe(positive[:, index], negative[:, index], twins=twins, seed=seed)
            rows.append({"target": target, "position": position, "layer": layer, **asdict(probe)})
    return pd.DataFrame(rows)


def linear_probes(
    model,
    contrast: Contrast,
    *,
    refused: Sequence[bool] | None = None,
    safe: Texts | None = None,
    safe_refused: Sequence[bool] | None = None,
    position: int = -1,
    layer: int | None = None,
    activations: ContrastActivations | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Linear probes of one model, in the columns of the table `linear_probes`.

    Targets: `harmful` (harmful against harmless prompts) and, with `refused`, `refused` (of the harmful prompts, those
    refused against those answered), both at every layer, at the last instruction token and at `position`, where
    harmfulness and refusal are encoded (2507.11878, section 2); and, with `safe`, `overrefused` (of safe prompts,
    those refused against those answered) at `position` and `layer`, or at every layer where None.

    Args:
        refused: whether the model refused each harmful prompt; `safe_refused`: each safe one.
        activations: activations of the same contrast, where they were taken already.

    Raises:
        MechrefusalError: flags that are not one a prompt.
    """
    if activations is None:
        activations = ContrastActivations.of(model, contrast, position=position)
    harmful, harmless = activations.harmful, activations.harmless
    tables = [
        probe_layers(harmful[:, i], harmless[:, i], "harmful", where, twins=activations.twins, seed=seed)
        for i, where in enumerate(activations.positions)
    ]
    if refused is not None:
        flags = as_flags(refused, len(harmful), "harmful")
        tables += [
            probe_layers(harmful[:, i][flags], harmful[:, i][~flags], "refused", where, seed=seed)
            for i, where in enumerate(activations.positions)
        ]
    if safe is not None:
        flags = as_flags(safe_refused if safe_refused is not None else (), len(safe), "safe")
        layers = range(model.cfg.n_layers) if layer is None else [layer]
        ids = prompts.prompt_ids(model.tokenizer, safe)
        here = collect(model, ids, [(position, each) for each in layers])
        tables.append(probe_layers(here[flags], here[~flags], "overrefused", position, layers=layers, seed=seed))
    return pd.concat(tables, ignore_index=True)


def as_flags(flags: Sequence[bool], n: int, name: str) -> Bool[np.ndarray, " prompt"]:
    """One boolean a prompt.

    Raises:
        MechrefusalError: another number of them, or one that is neither true nor false.
    """
    checked = np.array([flag in (True, False) and bool(flag) for flag in flags], dtype=bool)
    if len(checked) != n or not all(flag in (True, False) for flag in flags):
        raise MechrefusalError(
            f"{n} {name} prompts came with {len(checked)} flags of refusal; give one True or False a prompt"
        )
    return checked


class _Fold:
    """One split, with the prompts turned into the span of the training ones."""

    def __init__(self, x: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
        self.x, self.train, self.test = x, train, test
        self._turn = _Turn(x[train])
        self._fitted, self._tested = self._turn(x[train]), self._turn(x[test])

    def probed(self, labels: np.ndarray) -> np.ndarray:
        return _fit(self._fitted, labels[self.train], self.x.shape[1]).decision_function(self._tested)

    def projected(self, labels: np.ndarray) -> np.ndarray:
        """Projection on the training difference in means, from the middle between them: comparable across folds."""
        x, labels = self.x[self.train], labels[self.train]
        first, second = x[labels].mean(axis=0), x[~labels].mean(axis=0)
        return (self.x[self.test] - (first + second) / 2) @ (first - second)


class _Turn:
    """Standardise as on the training prompts, then turn into the span of those.

    A ridge solution lies in that span and a rotation leaves the penalty as it is, so the fit is the same with as many
    features as there are prompts.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.scaler = StandardScaler().fit(x)
        self.basis = np.linalg.qr(self.scaler.transform(x).T)[0]

    def __call__(self, x: np.ndarray) -> Float[np.ndarray, "prompt feature"]:
        return self.scaler.transform(x) @ self.basis


def _fit(features: np.ndarray, labels: np.ndarray, d_model: int) -> LogisticRegression:
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return LogisticRegression(C=REGULARISATION / d_model, max_iter=200, tol=1e-3).fit(features, labels)


def _shuffled_auc(parts: list[_Fold], labels: np.ndarray, random: np.random.Generator) -> float:
    dealt = labels.copy()
    for part in parts:
        dealt[part.test] = random.permutation(labels[part.test])
    scores = np.empty(len(labels))
    for part in parts:
        scores[part.test] = part.probed(dealt)
    return float(resampling.auc_by_ranks(scores[dealt], scores[~dealt]))


def _weights(x: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, " d_model"]:
    """Weights of the probe fitted on every prompt, per unit of the activations."""
    turn = _Turn(x)
    return (_fit(turn(x), labels, x.shape[1]).coef_[0] @ turn.basis.T) / turn.scaler.scale_


def _nothing(n_positive: int, n_negative: int, reason: str) -> Probe:
    return Probe(NAN, NAN, NAN, NAN, NAN, NAN, n_positive, n_negative, reason)
