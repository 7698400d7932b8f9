from dataclasses import replace

import numpy as np
import pytest

from mechrefusal.statistics.depth import (
    Profile,
    depth_difference,
    depth_needed,
    depth_verdict,
    same_depth,
)

N = 24


def profile(bypass, *, kl=None, induce=None, shifts=None, units=None):
    bypass = np.asarray(bypass, float)
    n_candidates, n = bypass.shape
    return Profile(
        np.arange(n_candidates, dtype=float),
        bypass,
        np.ones_like(bypass) if induce is None else np.asarray(induce, float),
        np.zeros_like(bypass) if kl is None else np.asarray(kl, float),
        units or list(range(n)),
        units or list(range(n)),
        np.zeros((0, 3, n_candidates)) if shifts is None else np.asarray(shifts, float),
    )


def at(layer, n=N, *, n_candidates=12):
    """All prompts agree that this candidate is the best."""
    bypass = np.ones((n_candidates, n))
    bypass[layer] = 0
    return profile(bypass)


def torn(first, second, n=N, *, n_candidates=12):
    """One half of the prompts prefers one candidate, the other half another."""
    bypass = np.ones((n_candidates, n))
    bypass[first, ::2] = bypass[second, 1::2] = 0
    return profile(bypass)


def test_by_a_plain_loop():
    random = np.random.default_rng(3)
    sides = [
        profile(random.normal(size=(6, N)), induce=random.normal(-0.2, 1, (6, N)), kl=random.exponential(0.11, (6, N)))
        for _ in range(2)
    ]
    found = depth_difference(*sides, n_draws=300, seed=7)
    again = np.random.default_rng(7)
    times = again.multinomial(N, np.full(N, 1 / N), size=300)
    draws = np.full((300, 2), np.nan)
    for number, drawn in enumerate(times):
        for side, each in enumerate(sides):
            best = np.inf
            for layer in range(6):
                kl, induce, bypass = ((row[layer] * drawn).sum() / N for row in (each.kl, each.induce, each.bypass))
                if kl <= 0.1 and induce >= 0 and bypass < best:
                    best, draws[number, side] = bypass, layer
    assert found.missing == tuple(np.isnan(draws).mean(axis=0))
    assert 0 < max(found.missing) < 0.5
    assert found.value == pytest.approx(np.nanmean(draws[:, 1] - draws[:, 0]))
    assert found.n == N


def test_prompts_that_agree_leave_no_doubt():
    found = depth_difference(at(3), at(9))
    assert (found.value, found.low, found.high, found.variance) == (6, 6, 6, (0, 0))
    assert depth_verdict(found, n_layers=30)[0] == "moved"
    assert depth_verdict(depth_difference(at(3), at(5)), n_layers=30)[0] == "not moved", "the tolerance comes first"
    assert depth_verdict(depth_difference(at(3), at(5)), n_layers=12)[0] == "moved"


def test_the_tolerance_is_a_tenth_of_the_layers():
    assert (same_depth(30), same_depth(4)) == (3, 1)
    assert depth_verdict(depth_difference(at(3), at(6)), n_layers=30)[0] == "not moved"
    assert depth_verdict(depth_difference(at(3), at(4)), n_layers=4)[0] == "not moved"
    assert depth_verdict(depth_difference(at(3), at(5)), n_layers=4)[0] == "moved"


def test_noise_that_both_share_is_no_difference():
    """The prompts are torn between 2 and 9, in the same way at both: the depth is open, the difference is not."""
    found = depth_difference(torn(2, 9), torn(2, 9))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    other = replace(torn(2, 9), harmful=list(range(N, 2 * N)), harmless=list(range(N, 2 * N)))
    apart = depth_difference(torn(2, 9), other)
    assert apart.high - apart.low > 4, "asked other prompts, the two are not paired"
    assert apart.n == 2 * N


def test_a_prompt_and_its_twin_are_drawn_together():
    """Harmless prompts rule candidate 0 out just where their twins prefer it: only pairs make that a choice."""
    bypass, induce = np.ones((2, N)), np.ones((2, N))
    bypass[0, ::2], induce[0, ::2] = -3, -4
    together = profile(bypass, induce=induce)
    parted = replace(together, harmless=[f"other {i}" for i in range(N)])
    one, other = (depth_difference(each, at(1, n_candidates=2)) for each in (together, parted))
    assert one.n == N
    assert other.n == 2 * N
    assert one.variance[0] < other.variance[0]


def test_other_direction_prompts_are_a_noise_of_their_own():
    """Candidate 9 is the best by .5; directions of other prompts shift candidate 2 by ±.8, so that it wins in one of
    two draws."""
    bypass = np.ones((12, N))
    bypass[9], bypass[2] = 0.0, 0.5
    shifts = np.zeros((1, 3, 12))
    shifts[0, 0, 2] = 0.8
    noisy = profile(bypass, shifts=shifts)
    found = depth_difference(at(9), noisy)
    assert found.value == pytest.approx(-3.5, abs=0.3)
    assert found.variance[0] == pytest.approx(0, abs=0.1)
    assert found.variance[1] == pytest.approx(3.5**2, rel=0.01)
    assert depth_verdict(found, n_layers=30)[0] == "cannot tell"
    both = depth_difference(noisy, noisy)
    assert (both.value, both.variance) == (0, (0, 0)), "the same at both checkpoints, it is no difference"


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("share", "expected"), [(0.5, "moved"), (0.75, "cannot tell")])
def test_where_there_hardly_is_a_candidate(share, expected, side):
    """Harmless prompts refuse by 1 or by −1: of about half of the draws, or of most, none is admissible."""
    bypass = np.ones((12, N))
    bypass[9] = 0
    induce = np.ones((12, N))
    induce[:, : int(share * N)] = -0.999 if share == 0.5 else -1
    sides = [at(2), profile(bypass, induce=induce)]
    found = depth_difference(*(sides if side == 0 else sides[::-1]))
    decided, reason = depth_verdict(found, n_layers=30)
    assert decided == expected
    assert ("no admissible candidate in" in reason) == (expected == "cannot tell")
    if expected == "cannot tell":
        assert np.isnan(depth_needed(found, n_layers=30))


def test_nothing_to_choose_from():
    empty = profile(np.ones((0, N)))
    found = depth_difference(at(3), empty)
    assert found.missing == (0, 1)
    assert depth_verdict(found, n_layers=30) == (
        "cannot tell",
        "no interval of the depths' difference from 24 prompts",
    )
    few = depth_difference(at(3, 3), at(9, 3))
    assert np.isnan(few.low)
    assert np.isnan(depth_needed(few, n_layers=30))


def test_the_same_seed_gives_the_same_numbers():
    sides = torn(2, 9), torn(4, 5)
    assert depth_difference(*sides) == depth_difference(*sides)
    assert depth_difference(*sides) != depth_difference(*sides, seed=1)


def test_how_many_prompts_would_decide():
    """The rule itself decides at that number, were the error to fall as 1/√n, and not at fewer."""
    random = np.random.default_rng(0)
    asked = 0
    for _ in range(40):
        centre, spread = random.uniform(0, 8), random.uniform(0.5, 6)
        whole = depth_difference(at(3), at(5))
        now = replace(
            whole,
            value=centre, low=centre - 1.2 * spread, high=centre + 1.2 * spread, low_90=centre - spread,
            high_90=centre + spread,
        )  # fmt: skip
        needed = depth_needed(now, n_layers=30)
        if depth_verdict(now, n_layers=30)[0] != "cannot tell":
            assert needed == N
            continue
        asked += 1
        for n, decides in ((needed, True), (needed - 1, False)):
            scale = np.sqrt(N / n)
            ends = {
                name: centre + scale * (getattr(now, name) - centre) for name in ("low", "high", "low_90", "high_90")
            }
            assert (depth_verdict(replace(now, **ends), n_layers=30)[0] != "cannot tell") == decides, (n, needed)
    assert asked > 10
