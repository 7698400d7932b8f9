"""The loss functions against float64 formulas, and the terms that carry them."""

import math

import pytest
import torch
from tolerances import REORDERED, ROUNDED

from mechrefusal import MechrefusalError
from mechrefusal.training.losses import UTILITY, Term, away, away_term, cross_entropy, with_changes


def numbers(seed: int = 0, spread: float = 3.0, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, 11, generator=generator), torch.randint(11, (n,), generator=generator)


def test_away_is_the_stated_formula():
    logits, labels = numbers()
    expected = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = row.double().softmax(-1)[label].item()
        expected.append(-math.log(1 - p) if math.log(p) >= -5 else 0.0)
    assert 0.0 in expected
    assert away(logits, labels).tolist() == pytest.approx(expected, rel=REORDERED)


def test_away_ignores_targets_below_the_floor():
    logits = torch.tensor([[4.0, 0.0], [-6.0, 0.0]], requires_grad=True)
    labels = torch.zeros(2, dtype=torch.long)
    likely, unlikely = (-math.log(1 - 1 / (1 + math.exp(-z))) for z in (4, -6))
    found = away(logits, labels)
    assert found.tolist() == pytest.approx([likely, 0.0], rel=REORDERED)
    assert away(logits, labels, floor=-10).tolist() == pytest.approx([likely, unlikely], rel=REORDERED)
    found.sum().backward()
    assert logits.grad[1].tolist() == [0.0, 0.0]
    assert logits.grad[0, 0] > 0


def test_away_stays_finite_and_pushes_where_the_target_is_certain():
    logits = torch.tensor([[200.0, 0.0, 1.0]], requires_grad=True)
    loss = away(logits, torch.zeros(1, dtype=torch.long)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(200 - math.log(1 + math.e), rel=ROUNDED)
    assert float(logits.grad[0, 0]) == pytest.approx(1.0)


def test_away_gradient_is_that_of_the_formula():
    logits, labels = numbers(spread=1.0)
    logits = logits.double().requires_grad_()
    p = logits.softmax(-1).gather(-1, labels[:, None])[:, 0]
    plain = -torch.where(p.log() >= -5, torch.log1p(-p), 0).sum()
    (wanted,) = torch.autograd.grad(plain, logits)
    single = logits.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(away(single, labels).sum(), single)
    torch.testing.assert_close(found, wanted.float(), atol=ROUNDED, rtol=100 * ROUNDED)


def test_cross_entropy_is_minus_log_p_in_float32():
    logits, labels = numbers()
    expected = [-row.double().log_softmax(-1)[label].item() for row, label in zip(logits, labels.tolist(), strict=True)]
    assert cross_entropy(logits, labels).tolist() == pytest.approx(expected, rel=REORDERED)
    assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32


def margin(logits, labels):
    return torch.relu(1 - logits.gather(1, labels[:, None])[:, 0])


def test_terms_are_replaced_by_name_or_added():
    def row(tokenizer, case):
        return (1,), (2,)

    own = [UTILITY, away_term(0.5, row, floor=-5.0)]
    changed = with_changes(own, {"away": margin, "margin": Term("margin", margin, 0.1, row)})
    assert [(term.name, term.weight) for term in changed] == [("utility", 1.0), ("away", 0.5), ("margin", 0.1)]
    assert changed[1].loss is margin
    assert changed[1].row is row
    assert with_changes(own, {}) == own
    with pytest.raises(MechrefusalError, match=r"loss 'margin' replaces no term of this arm \(utility, away\)"):
        with_changes(own, {"margin": margin})
    with pytest.raises(MechrefusalError, match="'a' calls itself 'b'"):
        with_changes(own, {"a": Term("b", margin)})
    with pytest.raises(MechrefusalError, match="'utility' is the one of the training rows"):
        with_changes(own, {"utility": Term("utility", margin, 1.0, row)})
