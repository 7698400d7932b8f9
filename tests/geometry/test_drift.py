"""Measures of drift against values worked out by hand, and verdicts on planted turns under planted noise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from planted_directions import from_activations, pair

from mechrefusal import MechrefusalError
from mechrefusal.geometry import cosine, drift, effective_rank, folds, principal_angles

pytestmark = pytest.mark.slow


def rotation(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 0], [5, 0], 1),
        ([1, 0], [-2, 0], -1),
        ([1, 0], [0, 3], 0),
        ([1, 0], [1, 1], 1 / np.sqrt(2)),
        ([1, 2, 2], [2, 1, -2], 0),
        ([3, 4], [4, 3], 24 / 25),
    ],
)
def test_cosine(a, b, expected):
    assert cosine(np.array(a), np.array(b)) == pytest.approx(expected)


def test_cosine_of_nothing():
    assert np.isnan(cosine(np.zeros(3), np.ones(3)))


@pytest.mark.parametrize("degrees", [0, 1e-3, 12.5, 45, 89.9, 90])
def test_angle_between_two_lines(degrees):
    theta = np.radians(degrees)
    found = principal_angles(np.array([[2.0, 0.0]]), np.array([[np.cos(theta), np.sin(theta)]]) * -7)
    np.testing.assert_allclose(found, [degrees], atol=1e-6)


def test_planes_in_space():
    floor = np.array([[1.0, 0, 0], [0, 1, 0]])
    # Two planes in space share a line; the other angle is that between their normals.
    tilted = np.array([[1.0, 0, 0], [0, np.cos(np.pi / 6), np.sin(np.pi / 6)]])
    np.testing.assert_allclose(principal_angles(floor, tilted), [0, 30], atol=1e-6)
    line = np.array([[0.0, 1, 1]])
    np.testing.assert_allclose(principal_angles(floor, line), [45], atol=1e-6)
    np.testing.assert_allclose(principal_angles(line, floor), [45], atol=1e-6)


def test_angles_are_those_that_were_put_in_and_ascend():
    angles = np.radians([5, 40, 80])
    a = np.eye(8)[:3]
    b = np.cos(angles)[:, None] * a + np.sin(angles)[:, None] * np.eye(8)[3:6]
    turn, mix = rotation(8), np.random.default_rng(1).normal(size=(3, 3))
    np.testing.assert_allclose(principal_angles(a @ turn, mix @ b @ turn), [5, 40, 80], atol=1e-5)


def test_rows_of_very_unequal_length_span_the_same():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 10))
    expected = principal_angles(a, b)
    np.testing.assert_allclose(principal_angles(a * [[1e-9], [1], [1e9]], b), expected, atol=1e-5)
    np.testing.assert_allclose(principal_angles(np.vstack([a, np.zeros((2, 10))]), b), expected, atol=1e-6)


def test_dependent_rows_count_once():
    a = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    b = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0]])
    doubled = np.vstack([a, a.sum(0), a])
    np.testing.assert_allclose(principal_angles(doubled, b), [0, 90], atol=1e-5)


def test_nothing_to_compare():
    assert principal_angles(np.zeros((2, 3)), np.eye(3)).shape == (0,)
    assert principal_angles(np.empty((0, 3)), np.eye(3)).shape == (0,)


def entropy_rank(mass):
    share = np.array(mass, float) / np.sum(mass)
    return np.exp(-sum(p * np.log(p) for p in share if p > 0))


SCALES = [4.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("scaling", "weight", "expected"),
    [
        ("raw", "sigma", entropy_rank(SCALES)),
        ("raw", "sigma_squared", entropy_rank([16, 4, 1, 0.25])),
        ("unit", "sigma", 4.0),
        ("unit", "sigma_squared", 4.0),
    ],
)
def test_effective_rank_of_a_diagonal(scaling, weight, expected):
    rows = np.hstack([np.diag(SCALES), np.zeros((4, 3))])
    assert effective_rank(rows, scaling=scaling, weight=weight) == pytest.approx(expected)
    turned = rotation(4) @ rows @ rotation(7) if scaling == "raw" else rows @ rotation(7)
    assert effective_rank(turned, scaling=scaling, weight=weight) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("weight", "expected"),
    # Two unit rows at 60 degrees: the singular values are sqrt(1 + cos) and sqrt(1 − cos).
    [("sigma", entropy_rank([np.sqrt(1.5), np.sqrt(0.5)])), ("sigma_squared", entropy_rank([1.5, 0.5]))],
)
def test_effective_rank_of_two_rows_at_an_angle(weight, expected):
    rows = np.array([[7.0, 0, 0], [0.01 * 0.5, 0.01 * np.sqrt(3) / 2, 0]])
    assert effective_rank(rows, scaling="unit", weight=weight) == pytest.approx(expected)


@pytest.mark.parametrize("scaling", ["raw", "unit"])
@pytest.mark.parametrize("weight", ["sigma", "sigma_squared"])
def test_effective_rank_of_copies_and_of_nothing(scaling, weight):
    copies = np.outer([1, 1, 1, 1], np.random.default_rng(0).normal(size=9))
    assert effective_rank(copies, scaling=scaling, weight=weight) == pytest.approx(1, abs=1e-4)
    assert np.isnan(effective_rank(np.zeros((3, 5)), scaling=scaling, weight=weight))
    assert np.isnan(effective_rank(np.empty((0, 5)), scaling=scaling, weight=weight))


@pytest.mark.parametrize(("scaling", "weight"), [("rows", "sigma"), ("raw", "sigma^2")])
def test_unknown_variant_is_not_taken_for_another(scaling, weight):
    with pytest.raises((ValueError, KeyError)):
        effective_rank(np.eye(3), scaling=scaling, weight=weight)


def places(directions, layer=0):
    return [(position, layer) for position in directions.positions]


def verdicts(n_seeds, *, measure="cosine", **options):
    found = []
    for seed in range(n_seeds):
        a, b = pair(seed, **options)
        found.append(drift.verdict(drift.turn(a, b, places=(places(a), places(b)), measure=measure))[0])
    return Counter(found)


SPAN = {"measure": "principal_angle_mean", "n_positions": 3, "length": 3.0}


@pytest.mark.parametrize("length", [1.2, (0.8, 3.0)])
@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_noise_of_the_prompts_is_not_called_a_move(length, shared):
    assert verdicts(40, length=length, shared=shared)["moved"] <= 2


def test_the_same_direction_seen_clearly_has_not_moved():
    assert verdicts(20, length=5.0) == {"not moved": 20}
    assert verdicts(4, **SPAN)["not moved"] >= 3


@pytest.mark.parametrize("degrees", [45, 90])
def test_a_turned_direction_has_moved(degrees):
    assert verdicts(20, length=3.0, degrees=degrees)["moved"] >= 19
    assert verdicts(3, **SPAN, degrees=degrees) == {"moved": 3}


def test_a_tiny_turn_is_no_move_however_sure_it_is():
    a, b = pair(0, length=30.0, degrees=8, n=512)
    found = drift.turn(a, b, places=(places(a), places(b)), measure="cosine")
    assert found.excess.low > 0, "the prompts do not explain it"
    assert drift.verdict(found)[0] == "not moved"


TWINS = {"length": 4.0, "topic": 5.0}
"""What twins share is by far the most of what sets prompts apart."""


def test_halves_of_twins_differ_as_other_twins_would():
    """Halves that part twins cancel the topics with the wrong sign: drawn by class the floor is −0.35 here."""
    floors, fresh = [], []
    for seed in range(20):
        a, b = pair(seed, **TWINS)
        floors.append(drift.compare(a, b, places=(places(a), places(b)), measure="cosine").floor)
        random = np.random.default_rng([seed, 2])
        halves = []
        for _ in range(2):
            topics, own = TWINS["topic"] * random.normal(size=(32, 48)), random.normal(size=(2, 32, 48))
            halves.append((topics + own[0]).mean(0) - (topics + own[1]).mean(0) + TWINS["length"] * np.eye(48)[0])
        fresh.append(cosine(*halves))
    assert np.mean(fresh) > 0.7
    assert abs(np.mean(floors) - np.mean(fresh)) < 0.04
    assert np.abs(np.array(floors) - np.mean(fresh)).max() < 0.15


def test_twins_at_rest_and_turned():
    still = verdicts(20, **TWINS)
    assert still["moved"] <= 1
    assert still["not moved"] >= 15
    assert verdicts(20, **TWINS, degrees=60)["moved"] >= 19


def test_one_draw_of_the_folds_serves_twins():
    counts = np.ones((2, 16), dtype=int)
    counts[0, 3] = 0  # a fold with a harmless prompt only
    for draw in (folds.bootstrap, folds.halves):
        one, other = draw(counts, 50, seed=0, paired=True)
        assert (one == other).all()
        apart = draw(counts, 50, seed=0)
        assert (apart[0] != apart[1]).any()
        assert not apart[0][:, 3].any()
    assert (folds.bootstrap(counts, 50, seed=0, paired=True).sum(2) == 16).all()
    assert (folds.halves(counts, 50, seed=0, paired=True).sum(2) == 8).all()


def test_twins_against_prompts_that_are_none_have_no_interval():
    a, b = pair(0, length=5.0)
    found = drift.compare(a, replace(b, paired=True), places=(places(a), places(b)), measure="cosine")
    assert "different prompts" in found.reason


@pytest.mark.parametrize("length", [0.0, (0.0, 5.0)])
def test_noise_alone_says_nothing(length):
    found = verdicts(40, length=length)
    assert found["cannot tell"] >= 39
    a, b = pair(0, length=length)
    why = drift.verdict(drift.turn(a, b, places=(places(a), places(b)), measure="cosine"))[1]
    assert "halves of the prompts at the first checkpoint agree no better than random directions" in why


def test_the_corrected_cosine_is_the_true_one():
    """On all prompts it is pulled up by the noise that both share, or down by the noise that they do not."""
    for shared in (0.0, 1.0):
        pairs = [pair(seed, length=1.5, degrees=40, shared=shared, n=128) for seed in range(30)]
        turns = [drift.turn(a, b, places=(places(a), places(b)), measure="cosine") for a, b in pairs]
        whole = [drift.compare(a, b, places=(places(a), places(b)), measure="cosine").value.value for a, b in pairs]
        true = np.cos(np.radians(40))
        assert abs(np.mean([found.corrected.value for found in turns]) - true) < 0.03
        assert abs(np.mean(whole) - true) > 0.05
        inside = [found.corrected.low <= true <= found.corrected.high for found in turns]
        assert np.mean(inside) >= 0.85


def test_halves_against_a_computation_fold_by_fold():
    a, b = pair(3, degrees=30, n=40)  # folds of unequal numbers: 40 = 2 * 16 + 8
    x, y = places(a), places(b)
    found = drift.turn(a, b, places=(x, y), measure="cosine")

    def direction(of, chosen):
        sums, counts = of.sums[:, :, 0, 0].double().numpy(), of.counts.numpy()
        means = [sums[c][chosen[c]].sum(0) / counts[c][chosen[c]].sum() for c in (0, 1)]
        return means[0] - means[1]

    rows = []
    for first in folds.halves(a.counts.numpy(), folds.N_SPLITS, seed=0).swapaxes(0, 1):
        assert (first.sum(1) == 8).all()
        a1, a2, b1, b2 = (direction(of, chosen) for of in (a, b) for chosen in (first, ~first))
        rows.append([cosine(a1, a2), cosine(b1, b2), (cosine(a1, b2) + cosine(b1, a2)) / 2])
    within_a, within_b, cross = np.mean(rows, axis=0)
    expected = np.sqrt(within_a * within_b)
    got = [*(each.value for each in found.within), found.cross.value, found.expected]
    np.testing.assert_allclose(got, [within_a, within_b, cross, expected], rtol=1e-9)
    np.testing.assert_allclose(found.excess.value, expected - cross, rtol=1e-9)
    np.testing.assert_allclose(found.corrected.value, cross / expected, rtol=1e-9)
    compared = drift.compare(a, b, places=(x, y), measure="cosine")
    np.testing.assert_allclose(compared.floor, (within_a + within_b) / 2, rtol=1e-9)
    np.testing.assert_allclose(compared.value.value, cosine(a.values[0, 0].numpy(), b.values[0, 0].numpy()))


@pytest.mark.parametrize(("measure", "summary"), [("principal_angle_mean", np.mean), ("principal_angle_max", np.max)])
@pytest.mark.parametrize("shapes", [(3, 5, 20), (4, 4, 6), (5, 2, 3)])
def test_angles_in_one_go_are_those_of_scipy(measure, summary, shapes):
    """Also where the spans fill more than half of the space, or are more directions than it has dimensions."""
    m, n, d_model = shapes
    random = np.random.default_rng(0)
    a, b = random.normal(size=(m, 4, d_model)), random.normal(size=(n, 4, d_model))
    u, v = random.normal(size=(2, 7, 4))
    got = folds.measured(measure, a, b, u, v, chunk=3)
    expected = [
        summary(principal_angles(np.tensordot(x, a, (0, 1)), np.tensordot(y, b, (0, 1))))
        for x, y in zip(u, v, strict=True)
    ]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("together", [True, False])
def test_fewer_numbers_with_the_same_inner_products(together):
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 40))
    x, y = folds.compressed(a, b, together=together)
    assert x.shape[-1] == (24 if together else 8)
    for p, q in ((a, x), (b, y)):
        np.testing.assert_allclose(np.einsum("pfd,pgd->pfg", q, q), np.einsum("pfd,pgd->pfg", p, p))
    np.testing.assert_allclose(np.einsum("pfd,pgd->pfg", x, y), np.einsum("pfd,pgd->pfg", a, b))
    if together:
        np.testing.assert_allclose(np.einsum("pfd,qgd->pqfg", x, y), np.einsum("pfd,qgd->pqfg", a, b))


def test_random_floor():
    random = np.random.default_rng(1)
    for d_model in (3, 50):
        x, y = random.normal(size=(2, 20000, d_model))
        cosines = np.abs((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))
        assert folds.random_floor("cosine", d_model) == pytest.approx(np.quantile(cosines, 0.95), abs=0.01)
    drawn = [principal_angles(*random.normal(size=(2, 3, 30))).mean() for _ in range(2000)]
    floor = folds.random_floor("principal_angle_mean", 30, 3, 3)
    assert floor == pytest.approx(np.quantile(drawn, 0.05), abs=1.5)
    assert folds.random_floor("principal_angle_mean", 30, 3, 3, seed=0) == floor


def test_the_interval_covers_what_other_prompts_would_give():
    """The spread of the cosine over samples of prompts is what the bootstrap over folds of one sample says."""
    intervals, values = [], []
    for seed in range(60):
        found = drift.compare(*pair(seed, length=3.0, degrees=30), places=([(-1, 0)], [(-1, 0)]), measure="cosine")
        intervals.append((found.value.low, found.value.high))
        values.append(found.value.value)
    centre = np.mean(values)
    assert np.mean([low <= centre <= high for low, high in intervals]) >= 0.88
    assert 2 < np.mean([high - low for low, high in intervals]) / np.std(values) < 6  # 95% of a normal is 3.9


def test_an_interval_by_hand():
    draws = np.arange(101.0)
    found = folds.interval(10, draws, 5)
    wider = 2.7764451 / 1.9599640 * np.sqrt(5 / 4)
    np.testing.assert_allclose([found.low, found.high], [10 - 47.5 * wider, 10 + 47.5 * wider], rtol=1e-6)
    assert (folds.interval(10, draws, 5, bounds=(0, 20)).low, found.n) == (0, 5)
    draws[:6] = np.nan
    assert np.isnan(folds.interval(10, draws, 5).low)


def test_equal_checkpoints_have_not_moved():
    a, _ = pair(0, length=4.0)
    found = drift.compare(a, a, places=(places(a), places(a)), measure="cosine")
    np.testing.assert_allclose([found.value.value, found.value.low, found.value.high], 1)
    assert found.floor < 0.97, "halves of the prompts differ all the same"
    same = drift.turn(a, a, places=(places(a), places(a)), measure="cosine")
    np.testing.assert_allclose([same.excess.value, same.excess.low, same.excess.high], 0, atol=1e-12)


@pytest.mark.parametrize(("n", "enough"), [(3, False), (4, True)])
def test_fewer_than_four_filled_folds_say_nothing(n, enough):
    a, b = pair(0, n=n, length=20.0)
    compared = drift.compare(a, b, places=(places(a), places(a)), measure="cosine")
    assert np.isfinite(compared.value.value)
    assert np.isfinite([compared.value.low, compared.floor]).all() == enough
    found = drift.turn(a, b, places=(places(a), places(a)), measure="cosine")
    assert (found.reason == "") == enough
    if not enough:
        assert drift.verdict(found) == (
            "cannot tell",
            "too few prompts for an interval: 3 filled folds of a class, 4 are needed",
        )


def test_directions_of_other_prompts_have_no_interval():
    a, _ = pair(0, length=5.0)
    _, b = pair(0, length=5.0, n=48)
    compared = drift.compare(a, b, places=(places(a), places(b)), measure="cosine")
    assert np.isfinite([compared.value.value, compared.floor]).all()
    assert np.isnan(compared.value.low)
    assert "different prompts" in compared.reason
    found = drift.turn(a, b, places=(places(a), places(b)), measure="cosine")
    assert drift.verdict(found) == ("cannot tell", compared.reason)


def test_rounding_error_is_no_direction():
    """As at layer 0 of a chat template, where every prompt has the same activation."""
    random = np.random.default_rng(0)
    alike = np.tile(random.normal(size=(1, 2, 1, 48)), (64, 1, 1, 1))
    noise = 1e-8 * random.normal(size=alike.shape)
    noise[:, 1] += np.eye(48)[0]  # the second position has one
    flat = from_activations(alike + noise, alike)
    for measure in ("cosine", "principal_angle_mean"):
        found = drift.compare(flat, flat, places=([(-2, 0)], [(-2, 0)]), measure=measure)
        assert np.isnan(found.value.value)
        assert "alike" in found.reason
    both = drift.compare(flat, flat, places=(places(flat), places(flat)), measure="principal_angle_max")
    assert both.value.value == pytest.approx(0, abs=1e-5)
    assert both.random == folds.random_floor("principal_angle_max", 48, 1, 1)


def test_cosines_of_unequally_many_places():
    a, b = pair(0, n_positions=2)
    with pytest.raises(MechrefusalError, match="2 and 1 places"):
        drift.compare(a, b, places=(places(a), places(b)[:1]), measure="cosine")
