"""Rates corrected for a judge's error, against calculations of their own and simulated coverage."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judge_error import JudgeCounts, corrected_rate, counts_of


def test_the_correction_undoes_the_judge():
    """Of 1,000 answers 300 refuse; a judge with Se 0.9 and Sp 0.8 calls 0.9 * 300 + 0.2 * 700 = 410 refusals."""
    found = corrected_rate(410, 1000, JudgeCounts(90, 100, 80, 100))
    assert found.value == pytest.approx(0.3)
    assert found.low < 0.3 < found.high
    assert found.n == 1000


def test_the_interval_by_hand():
    z = NormalDist().inv_cdf(0.975)
    n, p = 200 + z * z, (50 + z * z / 2) / (200 + z * z)
    se, sp = 46 / 52, 77 / 82
    r = (p + sp - 1) / (se + sp - 1)
    v_se, v_sp = se * (1 - se) / 52, sp * (1 - sp) / 82
    half = z * math.sqrt(p * (1 - p) / n + r * r * v_se + (1 - r) ** 2 * v_sp) / (se + sp - 1)
    shift = 2 * z * z * (r * v_se - (1 - r) * v_sp)
    found = corrected_rate(50, 200, JudgeCounts(45, 50, 76, 80))
    assert (found.low, found.high) == pytest.approx((r + shift - half, r + shift + half))


def test_with_endless_labels_of_a_perfect_judge_it_is_the_score_like_interval():
    z = NormalDist().inv_cdf(0.975)
    n, p = 100 + z * z, (30 + z * z / 2) / (100 + z * z)
    found = corrected_rate(30, 100, JudgeCounts(10**8, 10**8, 10**8, 10**8))
    assert found.value == pytest.approx(0.3)
    assert found.high == pytest.approx(p + z * math.sqrt(p * (1 - p) / n), abs=1e-6)


def test_it_agrees_with_a_parametric_bootstrap():
    rng = np.random.default_rng(0)
    judge = JudgeCounts(180, 200, 170, 200)
    draws = 20_000
    p, se, sp = (rng.binomial(size, share, draws) / size for size, share in ((400, 0.45), (200, 0.9), (200, 0.85)))
    low, high = np.quantile((p + sp - 1) / (se + sp - 1), [0.025, 0.975])
    found = corrected_rate(180, 400, judge)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
@pytest.mark.parametrize(("se", "sp", "labels"), [(0.95, 0.97, 100), (0.8, 0.9, 60)])
def test_the_interval_covers_the_true_rate(rate, se, sp, labels):
    rng = np.random.default_rng(1)
    times, n = 500, 150
    apparent = rng.binomial(n, rate * se + (1 - rate) * (1 - sp), times)
    hits, rests = rng.binomial(labels, se, times), rng.binomial(labels, sp, times)
    covered = [
        found.low <= rate <= found.high
        for found in (
            corrected_rate(int(a), n, JudgeCounts(int(h), labels, int(r), labels))
            for a, h, r in zip(apparent, hits, rests, strict=True)
        )
    ]
    assert np.mean(covered) > 0.93


def test_estimates_stay_between_0_and_1():
    judge = JudgeCounts(95, 100, 90, 100)
    low, high = corrected_rate(0, 50, judge), corrected_rate(50, 50, judge)
    assert low.value == low.low == 0.0
    assert high.value == high.high == 1.0
    none = corrected_rate(0, 0, judge)
    assert math.isnan(none.value)
    assert (none.low, none.high, none.n) == (0.0, 1.0, 0)


@pytest.mark.parametrize("degenerate", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_answers_of_a_third_kind_are_neither_and_their_noise_counts(rate, degenerate):
    """Of the sound answers a share is refused; a judge with Se .9 and Sp .85 never calls a degenerate one either."""
    random = np.random.default_rng(3)
    sound, se, sp = 1 - degenerate, 0.9, 0.85
    refused = sound * (rate * se + (1 - rate) * (1 - sp))
    covered = {"refused": [], "answered": []}
    for _ in range(500):
        a, b, c = (int(each) for each in random.multinomial(60, [refused, sound - refused, degenerate]))
        judge = JudgeCounts(int(random.binomial(80, se)), 80, int(random.binomial(80, sp)), 80)
        for name, count, seen, true in (
            ("refused", a, judge, sound * rate),
            ("answered", b, judge.of_negatives, sound * (1 - rate)),
        ):
            found = corrected_rate(count, 60, seen, neither=c)
            covered[name].append(found.low - 1e-12 <= true <= found.high + 1e-12)
    for name, each in covered.items():
        assert np.mean(each) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 500), name


def test_refused_answered_and_degenerate_sum_to_one():
    judge = JudgeCounts(45, 50, 76, 80)
    refused, answered = (
        corrected_rate(30, 100, judge, neither=20),
        corrected_rate(50, 100, judge.of_negatives, neither=20),
    )
    assert refused.value + answered.value == pytest.approx(0.8)
    both = corrected_rate(30, 100, judge), corrected_rate(70, 100, judge.of_negatives)
    assert both[0].low == pytest.approx(1 - both[1].high)


def test_degenerate_answers_alone_leave_room_for_what_was_not_seen():
    found = corrected_rate(0, 20, JudgeCounts(9, 10, 9, 10), neither=20)
    assert found.value == 0
    assert 0.05 < found.high < 0.4


def test_labels_so_few_that_the_judge_may_be_no_better_than_chance_say_nothing():
    found = corrected_rate(5, 20, JudgeCounts(1, 1, 6, 19))  # smoothed: 2/3 + 7/21 - 1 = 0
    assert (found.low, found.high) == (0, 1)


def test_counts_of_a_judge_and_people():
    judged, labelled = [True, True, False, False, True], [True, False, False, True, True]
    assert counts_of(judged, labelled) == JudgeCounts(2, 3, 1, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: JudgeCounts(3, 2, 1, 2),
        lambda: JudgeCounts(0, 0, 1, 2),
        lambda: corrected_rate(5, 4, JudgeCounts(9, 10, 9, 10)),
        lambda: corrected_rate(3, 4, JudgeCounts(9, 10, 9, 10), neither=2),
        lambda: corrected_rate(2, 4, JudgeCounts(5, 10, 5, 10)),
        lambda: counts_of([True], [True, False]),
    ],
)
def test_what_cannot_be_estimated_is_an_error(wrong):
    with pytest.raises(MechrefusalError):
        wrong()
