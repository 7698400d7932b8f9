"""What rounding alone may change where a model is computed in 16 bits: estimated on the pass at hand, not assumed.

In float32 two ways of computing the same differ by so little that fixed allowances tell a fault from rounding. In
bfloat16 a number is rounded to one part in 256 after every step, and what that does to log-probabilities depends on
the model's depth, its weights and the text. So the pass is run again with each module's output moved by a step of its
last digit at random, and the change is the scale of the allowance.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROUNDINGS, MARGIN = 0.9, 2.0
"""Roundings in both of two passes that are compared, over those that a trial draws, as the root of the ratio of their
variances; and by how much the spread of a row varies from draw to draw, as its differences come from few directions.
A Llama block rounds 18 times (projections, norms, rotations, scores, their softmax, z, the activation, its product, two
sums), of which a trial draws the 9 of modules with weights; the folded weights of the hooked transformer, 7 matrices a
block, are rounded once more. A rounding has the variance of a number spread evenly over one step, 1/12 of its square;
a trial moves every second number by a whole step, which is 1/2: (18 + 18 + 7) / (9 · 6) = 0.80, whose root is 0.9."""
N_TRIALS = 3


class Found(NamedTuple):
    """The difference that comes nearest to what is allowed, or goes furthest beyond it."""

    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is allowed; a difference that is not finite never is."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class Allowance:
    """Differences that are allowed, for all rows alike or for each: their root mean square over the last axis, and the
    largest along it."""

    spread: float | Float[Tensor, "*rows"]
    largest: float | Float[Tensor, "*rows"]

    def __getitem__(self, rows: Any) -> "Allowance":
        """That of some rows."""
        return Allowance(*(each if isinstance(each, float) else each[rows] for each in (self.spread, self.largest)))

    def found(self, seen: Float[Tensor, "*rows entry"], expected: Float[Tensor, "*rows entry"]) -> Found:
        """The worst of the differences between two tensors, against what is allowed."""
        difference = (seen.float() - expected.float()).abs()
        worst = Found(0.0, 1.0)
        taken = ((difference.square().mean(-1).sqrt(), self.spread), (difference.amax(-1), self.largest))
        for found, limit in taken:
            limits = torch.as_tensor(limit, device=found.device).expand_as(found).clamp(min=1e-30)
            at = (found / limits).nan_to_num(torch.inf).argmax()
            each = Found(found.flatten()[at].item(), limits.flatten()[at].item())
            if not each.difference / each.allowed <= worst.difference / worst.allowed:
                worst = each
        return worst


def is_exact(model: nn.Module) -> bool:
    """Whether a model is computed in float32 or better."""
    return half_step(model) < 2**-20


def half_step(model: nn.Module) -> float:
    """The largest share by which one rounding changes a number of this model: 2⁻⁸ in bfloat16, 2⁻²⁴ in float32."""
    weight = getattr(model, "original_model", model).get_input_embeddings().weight  # type: ignore[operator]
    return torch.finfo(weight.dtype).eps / 2


def rounded_at_most(model: nn.Module, squares: Tensor) -> float:
    """What rounding each number of a sum does to the sum, at most: six standard deviations.

    A rounding changes a number by a share that is spread evenly up to `half_step`, and 0.74 of that on average over
    numbers of all sizes: a standard deviation of 0.43 of it.

    Args:
        squares: of each sum, the sum of the squares of its parts.
    """
    return 6 * 0.43 * half_step(model) * squares.sqrt().max().item()


@torch.no_grad()
def allowed(model: nn.Module, run: Callable[[], Float[Tensor, "*rows entry"]], exact: Allowance) -> Allowance:
    """What two ways of computing `run()` may differ by: `exact` in float32, else what roundings are found to do.

    Args:
        model: what `run` passes through, a Hugging Face model or a hooked transformer.
        run: gives log-probabilities, or scores of their scale; each row is allowed what its own trials show.
    """
    if is_exact(model):
        return exact
    inner = getattr(model, "original_model", model)
    expected = run().float()
    differences = []
    for seed in range(N_TRIALS):
        with _jittered(inner, seed):
            differences.append((run().float() - expected).abs())
    changed = ROUNDINGS * MARGIN * torch.stack(differences)
    spread, largest = changed.square().mean(-1).mean(0).sqrt(), changed.amax(-1).amax(0)
    return Allowance(spread.clamp(min=exact.spread), largest.clamp(min=exact.largest))


@contextmanager
def _jittered(model: nn.Module, seed: int) -> Iterator[None]:
    """While open, every second number that modules with weights of 16 bits return is moved by a step of its last digit.

    What is drawn is spread evenly over two steps, up and down, and rounded.
    """
    generator, step = torch.Generator().manual_seed(seed), 2 * half_step(model)

    def jitter(_: nn.Module, inputs: tuple, output: object) -> object:
        if not isinstance(output, Tensor) or output.dtype == torch.float32 or not output.is_floating_point():
            return None
        noise = (2 * torch.rand(output.shape, generator=generator) - 1).to(output.device)
        return (output.float() * (1 + step * noise)).to(output.dtype)

    handles = [
        module.register_forward_hook(jitter)
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_in_float32(head: nn.Module) -> None:
    """Let an output matrix in float32 take what comes in 16 bits.

    Logits of 16 to 32 in bfloat16 are multiples of an eighth, which is more than most effects: they are computed in
    float32 wherever a hooked transformer is measured.
    """
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
