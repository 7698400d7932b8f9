"""KL between next-token distributions, where float32 would be visibly wrong."""

import numpy as np
import torch
from scipy.special import softmax

from mechrefusal import geometry
from mechrefusal.causal.divergence import EPSILON, kl_of_probabilities, probabilities


def nearly_alike():
    """float32 logits of 50,000 tokens, and the same after an intervention that hardly does anything."""
    random = np.random.default_rng(0)
    base = (3 * random.normal(size=(6, 50_000)) + 20).astype(np.float32)
    return base, base + (1e-5 * random.normal(size=base.shape)).astype(np.float32)


def by_numpy(base, other):
    p, q = (softmax(each.astype(np.float64), axis=-1) for each in (base, other))
    return (p * (np.log(p + EPSILON) - np.log(q + EPSILON))).sum(-1)


def test_small_divergences_are_those_of_float64():
    base, other = nearly_alike()
    expected = by_numpy(base, other)
    p, q = (probabilities(torch.tensor(each)) for each in (base, other))
    assert p.dtype == q.dtype == torch.float64
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(kl_of_probabilities(p, q), expected, rtol=1e-6, atol=1e-14)
    rounded = [torch.tensor(each).log_softmax(-1).double().exp() for each in (base, other)]
    off = np.abs(kl_of_probabilities(*rounded).numpy() - expected)
    assert off.max() > 3 * np.abs(expected).max(), "a float32 softmax would be as good here"


def test_log_probabilities_give_the_same():
    base, other = nearly_alike()
    found = geometry.kl_divergence(*(torch.tensor(each).double().log_softmax(-1) for each in (base, other)))
    np.testing.assert_allclose(found, by_numpy(base, other), rtol=1e-6, atol=1e-14)
