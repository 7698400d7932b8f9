"""How far apart two float32 computations of the same number may lie, and where each bound comes from.

Kernels (plain, AVX2, AVX-512), the number of threads, the rows of a batch and the path through a model change the order
in which float32 terms are summed, never the terms. Each operation rounds by half of `EPS` of the size of its terms: a
chain of n operations is off by about √n · EPS / 2 of that size, and by n · EPS / 2 at worst. The bounds below are for
numbers of order 1 (up to about 8): as `atol` they stand as they are, for larger numbers they are multiplied by the
size, as `rtol` they are relative to it. "Seen" is the largest difference that met the bound in the tests of tiny models
under plain and AVX2 kernels and MKL's COMPATIBLE branch; threads change nothing that small models do.

A bound in a test that is none of these is of another kind: float64 arithmetic, sampling, finite differences, bfloat16.
Bit-equality is for runs with the same kernels, threads and rows: of the same process, or of its child.
"""

EPS = 2.0**-23
"""Distance of float32 numbers at 1: 1.2e-7."""

ROUNDED = 8 * EPS
"""A few operations on the same numbers in the same order: 1e-6. Seen: 1.2e-7."""

REORDERED = 80 * EPS
"""The same forward pass with its sums in another order, as other rows in the batch cause: 1e-5. A tiny model's logits
come of some 40 operations in sequence over sums of 64 to 128 terms, which is √(40 · 128) · EPS / 2 = 36 EPS. Seen: 2e-6
for numbers of order 1, 5e-6 for logits of size 7."""

FORWARD = 10 * REORDERED
"""A number of one forward pass by two ways through the model (hooks or trees or Hugging Face, weights folded or not, a
score summed over several tokens, difference of two scores): 1e-4, as its terms may be of size 10. Seen:
7e-6, for logits of size 15."""

COMPOUND = 10 * FORWARD
"""Several such numbers in one (totals over all components, bounds of intervals, quotients by a gap of 0.1 to 1), or a
pass through a model of 30 layers: 1e-3. Seen: 1.1e-5, for scores of size 54; real models not counted."""
