"""What writes refusal on harmful prompts and not on harmless ones: differences of contributions, with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from mechrefusal.attribution.direct import Attribution, attribute
from mechrefusal.attribution.readouts import Readout
from mechrefusal.errors import MechrefusalError
from mechrefusal.statistics import intervals
from mechrefusal.statistics.maps import sign_flip_p, two_sample_p

DRAWS = 500
"""Random labellings of the prompts from which the floor is taken."""


def compare(
    model, harmful: Sequence[str], harmless: Sequence[str], readout: Readout, *, paired: bool = False
) -> pd.DataFrame:
    """Contribution of every component to `readout` on harmful and on harmless prompts, and their difference.

    Args:
        harmful, harmless: instructions; with `paired`, text i of one is the twin of text i of the other.
        readout: as in `attribute`, and so are errors.

    Returns:
        As `difference` gives it.
    """
    if paired and len(harmful) != len(harmless):
        raise MechrefusalError(
            f"paired prompts need as many harmful as harmless texts, not {len(harmful)} and {len(harmless)}"
        )
    return difference(*(attribute(model, texts, readout) for texts in (harmful, harmless)), paired=paired)


def difference(harmful: Attribution, harmless: Attribution, *, paired: bool = False) -> pd.DataFrame:
    """One row a component, and a last one `total`.

    Returns:
        component, layer, head, harmful, harmless (means), difference, low, high (95%: Welch's t interval, or Student's
        over pairs with `paired`), floor, n_harmful, n_harmless, p. `floor` is the 95th percentile of |difference| where
        the prompts' labels are drawn at random (within each pair with `paired`): what chance gives one component. p:
        that no component differs, adjusted for all of them (`statistics.maps`; the total is not one of them). All but
        the means are NaN where there are too few prompts.
    """
    assert harmful.components == harmless.components, "attributions of one model and read-out"
    one, other = (
        np.hstack([one_side.values.numpy(), one_side.total.numpy()[:, None]]) for one_side in (harmful, harmless)
    )
    bounds, floor = (
        (_paired(one - other), _sign_floor(one - other)) if paired else (_welch(one, other), _floor(one, other))
    )
    parts = one[:, :-1], other[:, :-1]
    p = sign_flip_p(parts[0] - parts[1]) if paired else two_sample_p(*parts)
    names = [*harmful.components, harmful.components[0]._replace(component="total", layer=-1, head=-1)]
    return pd.DataFrame(names).assign(
        harmful=one.mean(0),
        harmless=other.mean(0),
        difference=one.mean(0) - other.mean(0),
        low=bounds[0],
        high=bounds[1],
        floor=floor,
        n_harmful=len(one),
        n_harmless=len(other),
        p=[*p, float("nan")],
    )


def _welch(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the difference of two independent means, column by column (Welch, 1947)."""
    gap = one.mean(0) - other.mean(0)
    if min(len(one), len(other)) < 2:
        return np.full_like(gap, np.nan), np.full_like(gap, np.nan)
    parts = [rows.var(0, ddof=1) / len(rows) for rows in (one, other)]
    weights = [part**2 / (len(rows) - 1) for part, rows in zip(parts, (one, other), strict=True)]
    spread = parts[0] + parts[1]
    freedom = np.divide(spread**2, sum(weights), out=np.ones_like(gap), where=spread > 0)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(spread)
    return gap - half, gap + half


def _paired(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    estimates = [intervals.mean(column) for column in gaps.T]
    return np.array([one.low for one in estimates]), np.array([one.high for one in estimates])


def _floor(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    rows = np.vstack([one, other])
    if min(len(one), len(other)) < 2:
        return np.full(rows.shape[1], np.nan)
    labels = np.random.default_rng(0).permuted(np.tile(np.arange(len(rows)) < len(one), (DRAWS, 1)), axis=1)
    weights = np.where(labels, 1 / len(one), -1 / len(other))
    return np.quantile(np.abs(weights @ rows), 0.95, axis=0)


def _sign_floor(gaps: np.ndarray) -> np.ndarray:
    if len(gaps) < 2:
        return np.full(gaps.shape[1], np.nan)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(DRAWS, len(gaps)))
    return np.quantile(np.abs(signs @ gaps) / len(gaps), 0.95, axis=0)
