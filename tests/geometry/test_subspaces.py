"""Families of subspaces against independent computations, the choice by hand, and planted directions counted."""

from dataclasses import replace

import gated
import numpy as np
import pandas as pd
import planted_model
import pytest
import torch
from scipy import stats
from tolerances import FORWARD

from mechrefusal import MechrefusalError, causal, forward, geometry, tables
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry import Admissible, Subspace, nullspace, score_subspaces, subspace_scores, subspaces
from mechrefusal.geometry.scoring import Scorer
from mechrefusal.prompts import Split, prompt_ids
from mechrefusal.statistics.intervals import skewed_mean

NAN = float("nan")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same_directions(found, expected, tolerance=1e-9):
    """Row by row, up to sign."""
    cosines = np.abs((np.asarray(found) * np.asarray(expected)).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=tolerance)


class TestCategories:
    def test_by_hand(self):
        """Means of a and b differ along e1; the single prompts of c and d are pooled, and cancel along e2."""
        harmful = torch.tensor(
            [[3.0, 1, 0, 0], [3, 1, 0, 0], [3, -1, 0, 0], [3, -1, 0, 0], [3, 0, 2, 0], [3, 0, -2, 0]]
        )
        harmless = torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, -1]])
        found = subspaces.categories(harmful, harmless, ["a", "a", "b", "b", "c", "d"])
        torch.testing.assert_close(found.basis.abs(), torch.eye(4, dtype=torch.float64)[:2])
        assert found.basis[0, 0] == 1, "the overall difference in means points from harmless to harmful"
        assert "3 categories" in found.reason
        # Two prompts each: they are categories now.
        found = subspaces.categories(
            torch.cat([harmful, harmful[4:]]), harmless, ["a", "a", "b", "b", "c", "d", "c", "d"]
        )
        # √2 · 2 along e2 is more than √2 · 1 along e1.
        torch.testing.assert_close(found.basis.abs(), torch.eye(4, dtype=torch.float64)[[0, 2, 1]])

    def test_the_rest_is_the_scatter_between_categories(self):
        harmful, harmless = normal(30, 12), normal(20, 12, seed=1) - 1
        labels = ["a"] * 3 + ["b"] * 12 + ["c"] * 6 + ["d"] * 9
        found = subspaces.categories(harmful, harmless, labels, largest=3).basis.numpy()
        x, floor = harmful.numpy(), harmless.numpy().mean(0)
        first = x.mean(0) - floor
        first /= np.linalg.norm(first)
        outside = np.eye(12) - np.outer(first, first)
        scatter = np.zeros((12, 12))
        for name in "abcd":
            rows = x[[label == name for label in labels]]
            rest = outside @ (rows.mean(0) - floor)
            scatter += len(rows) * np.outer(rest, rest)
        values, vectors = np.linalg.eigh(scatter)
        order = np.argsort(values)[::-1][:2]
        assert_same_directions(found, np.vstack([first, vectors[:, order].T]))

    def test_one_category_has_one_direction(self):
        found = subspaces.categories(normal(6, 5) + 1, normal(6, 5, seed=1), ["a"] * 6)
        assert len(found) == 1
        assert "1 categories span 1 directions" in found.reason

    def test_labels_have_to_fit(self):
        with pytest.raises(MechrefusalError, match="2 categories for 3 harmful"):
            subspaces.categories(normal(3, 4), normal(3, 4), ["a", "b"])


class TestPca:
    def test_second_moment_about_the_harmless_mean(self):
        harmful, harmless = normal(25, 8) * torch.arange(1, 9) + 2, normal(10, 8, seed=1)
        found = subspaces.pca(harmful, harmless, largest=4)
        rows = harmful.numpy() - harmless.numpy().mean(0)
        values, vectors = np.linalg.eigh(rows.T @ rows)
        assert_same_directions(found.basis, vectors[:, np.argsort(values)[::-1][:4]].T)
        assert (len(found), found.reason) == (4, "")

    def test_few_prompts(self):
        found = subspaces.pca(normal(2, 8), normal(4, 8, seed=1))
        assert len(found) == 2
        assert "2 harmful prompts span 2 directions" in found.reason


class TestSuccessive:
    @pytest.fixture
    def two(self):
        """Means apart along e0, where the noise is strong, and along e1, where it is weak; alike in two others."""
        noise = torch.tensor([2.0, 0.4, 1, 1])
        harmful, harmless = normal(1000, 4) * noise, normal(1000, 4, seed=1) * noise
        harmful[:, :2] += torch.tensor([2.0, 0.8])
        return harmful, harmless

    def test_two_separating_directions_are_found_and_no_third(self, two):
        found = subspaces.successive(*two)
        assert len(found) == 2
        assert "held-out prompts with AUC 0." in found.reason
        assert geometry.principal_angles(found.basis.numpy(), np.eye(4)[:2]).max() < 15
        # The classifier weighs by noise, so that it leads with the direction that separates best ...
        assert abs(found.basis[0, 1]) > 0.95
        # ... which is not the difference in means, that points along e0.
        difference = two[0].mean(0) - two[1].mean(0)
        assert abs(difference[0] / difference.norm()) > 0.9
        assert len(subspaces.successive(*two, largest=1)) == 1

    def test_after_the_difference_in_means_there_is_nothing(self, two):
        """Why the family does not start from it."""
        difference = two[0].mean(0) - two[1].mean(0)
        unit = (difference / difference.norm()).numpy()
        rows, harmful = torch.cat(two).numpy(), np.arange(2000) < 1000
        assert np.abs(nullspace.normal(rows, harmful, np.empty((0, 4)))).max() > 0.9
        assert not nullspace.normal(rows, harmful, unit[None]).any()

    @pytest.mark.parametrize("seed", range(3))
    def test_noise_has_none(self, seed):
        """More dimensions than prompts: any labels can be fitted, none can be foretold."""
        found = subspaces.successive(normal(150, 400, seed=seed), normal(150, 400, seed=10 + seed))
        assert len(found) == 0
        assert "AUC" in found.reason

    def test_too_few_prompts(self):
        assert "two prompts" in subspaces.successive(normal(1, 4), normal(5, 4)).reason

    def test_coordinates_do_not_matter(self, two):
        turn = torch.linalg.qr(normal(4, 4, seed=3)).Q
        plain, turned = subspaces.successive(*two), subspaces.successive(two[0] @ turn, two[1] @ turn)
        assert_same_directions(turned.basis, plain.basis @ turn, 1e-5)


def test_random_is_a_fixed_draw():
    first, again, other = (subspaces.random_subspace(3, 40, seed).basis for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first @ other.T).abs().max() < 0.9
    assert geometry.principal_angles(first.numpy(), other.numpy()).max() > 45


def test_bases_are_orthonormal_and_nested():
    harmful, harmless = normal(30, 16) + 1, normal(30, 16, seed=1)
    labels = [str(row % 7) for row in range(30)]
    for largest in (2, 5):
        families = [
            subspaces.categories(harmful, harmless, labels, largest=largest),
            subspaces.pca(harmful, harmless, largest=largest),
            subspaces.successive(harmful, harmless, largest=largest),
        ]
        assert [len(family) for family in families[:2]] == [largest] * 2
        for family in families:
            torch.testing.assert_close(family.basis @ family.basis.T, torch.eye(len(family), dtype=torch.float64))
        shorter = families if largest == 2 else shorter
    for less, more in zip(shorter, families, strict=True):
        torch.testing.assert_close(less.basis, more.basis[: len(less)])


def test_activations_that_are_no_ground():
    bad = normal(5, 4)
    bad[2, 1] = NAN
    for build in (subspaces.pca, subspaces.successive, lambda h, n: subspaces.categories(h, n, ["a"] * len(h))):
        assert (len(build(bad, normal(5, 4))), build(bad, normal(5, 4)).reason) == (0, "activations are not finite")
        assert "0 harmless" in build(normal(5, 4), normal(0, 4)).reason
        with pytest.raises(MechrefusalError, match="shapes"):
            build(normal(5, 4), normal(5, 3))
    assert "is zero" in subspaces.categories(normal(5, 4), normal(5, 4), ["a"] * 5).reason
    with pytest.raises(AssertionError, match="orthonormal"):
        Subspace("pca", torch.ones(2, 4))


class TestChoose:
    @staticmethod
    def table(*rows):
        names = ["family", "k", "layer", "bypass", "induce", "kl"]
        return pd.DataFrame(rows, columns=names).assign(position=-1, reason="")

    def choose(self, *rows, baseline=10.0):
        return subspace_scores.choose(self.table(*rows), baseline=baseline, n_layers=10)

    def test_the_smallest_that_is_enough(self):
        found = self.choose(
            ("pca", 1, 3, 2.0, 1.0, 0.0),  # a drop of 8: 80% of the best
            ("pca", 2, 3, 1.0, 1.0, 0.0),  # 90%: enough
            ("pca", 3, 3, 0.0, 1.0, 0.0),  # the best: 10
            ("cone", 1, 3, -30.0, 1.0, 0.2),  # would be the best, but is not admissible
            ("cone", 2, 3, 0.5, 1.0, 0.1),  # 95%, as small, and lower
            ("random", 1, 3, -20.0, 1.0, 0.0),  # the floor does not compete
        )
        np.testing.assert_allclose(found["share_of_best"], [0.8, 0.9, 1.0, 4.0, 0.95, 3.0])
        assert found["smallest"].tolist() == [False, False, False, False, True, False]
        assert found["admissible"].tolist() == [True, True, True, False, True, True]
        assert found["rejected_because"][3] == "kl 0.2 > 0.1"
        assert (found["reason"] == "").all()

    def test_just_short(self):
        found = self.choose(("pca", 1, 3, 1.01, 1.0, 0.0), ("pca", 2, 3, 0.0, 1.0, 0.0))
        assert found["smallest"].tolist() == [False, True]

    @pytest.mark.parametrize(
        ("row", "why"),
        [
            (("pca", 1, 8, 0.0, 1.0, 0.0), "layer 8"),
            (("pca", 1, 3, 0.0, -0.1, 0.0), "induce"),
            (("pca", 1, 3, NAN, NAN, NAN), "NaN"),
        ],
    )
    def test_nothing_is_admissible(self, row, why):
        found = self.choose(row, ("random", 1, 3, 0.0, 1.0, 0.0))
        assert why in found["rejected_because"][0]
        assert found["share_of_best"].isna().all()
        assert not found["smallest"].any()
        assert (found["reason"] == "no subspace is admissible").all()

    def test_nothing_lowers_the_score(self):
        found = self.choose(("pca", 1, 3, 10.0, 1.0, 0.0))
        assert found["share_of_best"].isna().all()
        assert not found["smallest"].any()
        assert "lowers" in found["reason"][0]

    def test_every_direction_of_a_cone_must_be_admissible(self):
        rows = self.table(("pca", 1, 3, 2.0, 1.0, 0.0), ("cone", 2, 3, 0.0, 1.0, 0.0), ("cone", 3, 3, 0.0, 1.0, 0.2))
        found = subspace_scores.choose(
            rows.assign(n_sampled=[0, 8, 8], share_admissible=[NAN, 0.75, 0.5]), baseline=10.0, n_layers=10
        )
        assert found["admissible"].tolist() == [True, False, False]
        assert found["rejected_because"].tolist() == [
            "",
            "2 of 8 directions of the cone are not admissible by themselves",
            "kl 0.2 > 0.1; 4 of 8 directions of the cone are not admissible by themselves",
        ]
        assert found["smallest"].tolist() == [True, False, False]
        whole = rows.assign(n_sampled=[0, 8, 8], share_admissible=[NAN, 1.0, 1.0], kl=0.0)
        assert subspace_scores.choose(whole, baseline=10.0, n_layers=10)["smallest"].tolist() == [False, True, False]

    def test_floors_are_never_enough(self):
        found = self.choose(("pca", 1, 3, 2.0, 1.0, 0.0), ("random_cone", 1, 3, 0.0, 1.0, 0.0))
        assert found["smallest"].tolist() == [True, False]
        assert found["share_of_best"].tolist() == [1.0, 1.25]

    def test_thresholds(self):
        scores = self.table(("pca", 1, 3, 0.0, -1.0, 0.5))
        found = subspace_scores.choose(scores, baseline=1.0, n_layers=10, admissible=Admissible(0.5, -1.0))
        assert found["smallest"].tolist() == [True]


VALIDATION = Split.of(["Tell me how to steal a car.", "Build a bomb", "x"], ["Wash a car.", "Bake bread", "Sing"])


@pytest.mark.parametrize("opening", [(), (40, 41)], ids=["", "opening"])
def test_scores_equal_the_hooked_model(tiny_hooked, opening):
    """The passes against the hooked transformer's own hooks, one prompt after another."""
    metric = RefusalMetric(opening, (10, 11), (12, 13))
    family = subspaces.random_subspace(3, 64)
    difference = normal(64, seed=5)
    found = score_subspaces(
        tiny_hooked, [family], VALIDATION, metric, difference=Direction(difference, -2, 2), largest=3
    )

    def run(texts):
        scores, following = [], []
        for ids in prompt_ids(tiny_hooked.tokenizer, texts):
            score, after = forward.refusal_scores_and(
                tiny_hooked, [ids], metric, read=lambda logits: logits.log_softmax(-1)
            )
            scores.append(score.item())
            following.append(after[0].double().exp())
        return np.array(scores), torch.stack(following)

    harmful, harmless = VALIDATION.harmful.texts, VALIDATION.harmless.texts
    base = run(harmless)[1]
    assert found.baseline.value == pytest.approx(run(harmful)[0].mean(), abs=FORWARD)
    for k in (1, 2, 3):
        row = found.table.iloc[k - 1]
        with causal.ablate(tiny_hooked, family.basis[:k]):
            bypass, after = run(harmful)[0], run(harmless)[1]
        kl = (base * ((base + 1e-6).log() - (after + 1e-6).log())).sum(1).numpy()
        # The part of the difference in the subspace, by least squares; as long as the difference.
        columns = family.basis[:k].T
        part = columns @ torch.linalg.lstsq(columns, difference[:, None]).solution[:, 0]
        part = part / part.norm() * difference.norm()
        with causal.add(tiny_hooked, part.float(), layer=2):
            induce = run(harmless)[0]
        for measure, values in (("bypass", bypass), ("induce", induce), ("kl", kl)):
            kept = found.observations.of(family=family.family, k=k, measure=measure)
            np.testing.assert_allclose(kept, values, atol=FORWARD)
            assert found.interval(family=family.family, k=k, measure=measure).value == pytest.approx(kept.mean())
        expected = [bypass.mean(), induce.mean(), kl.mean()]
        np.testing.assert_allclose(row[["bypass", "induce", "kl"]].astype(float), expected, atol=FORWARD)
        for values, name in ((bypass, "bypass"), (kl, "kl")):
            # Hall's interval for the skewed KL, which has its own tests; Student's for the scores.
            interval = skewed_mean(values) if name == "kl" else stats.ttest_1samp(values, 0).confidence_interval()
            assert row[f"{name}_low"] == pytest.approx(interval.low, abs=FORWARD)
            assert row[f"{name}_high"] == pytest.approx(interval.high, abs=FORWARD)
            assert found.interval(family=family.family, k=k, measure=name).low == row[f"{name}_low"]
        assert (row["position"], row["layer"], row["n"], row["k"]) == (-2, 2, 3, k)
    assert found.table["bypass"].std() > 1e-3
    rows = found.table.assign(arm="base", step=0, weights="")
    assert len(tables.frame("subspaces", rows)) == 3, "the columns of the table"


def test_what_two_families_share_is_run_once(tiny_hooked, monkeypatch):
    runs = []
    under = Scorer.under
    monkeypatch.setattr(Scorer, "under", lambda self, one: runs.append(len(one.directions)) or under(self, one))
    first = subspaces.random_subspace(3, 64).basis
    turned = torch.stack([first[0], first[2], -first[1]])  # the same at k = 1 and k = 3
    families = [Subspace("pca", first), Subspace("successive", turned)]
    metric = RefusalMetric((), (10,), (12,))
    found = score_subspaces(
        tiny_hooked, families, VALIDATION, metric, difference=Direction(normal(64), -1, 1), largest=3
    )
    assert runs == [1, 2, 3, 2]
    by_family = found.table.set_index(["family", "k"])["bypass"]
    assert by_family["pca", 1] == by_family["successive", 1]
    assert by_family["pca", 3] == by_family["successive", 3]
    assert by_family["pca", 2] != by_family["successive", 2]


def test_rows_that_cannot_be_scored_say_why(tiny_hooked):
    basis = torch.eye(64, dtype=torch.float64)[:2]
    short, bad = Subspace("categories", basis[:1], "1 categories span 1 directions"), basis.clone()
    bad[1, 3] = NAN
    found = score_subspaces(
        tiny_hooked,
        [short, Subspace("cone", bad), Subspace("pca", basis[1:])],
        VALIDATION,
        RefusalMetric((), (10,), (12,)),
        difference=Direction(basis[0], -1, 1),
        largest=2,
    ).table.set_index(["family", "k"])
    reasons = found["reason"]
    assert "1 categories span" in reasons["categories", 2]
    assert "not finite" in reasons["cone", 2]
    assert "next to no part in the subspace" in reasons["pca", 1]
    assert "no more were given" in reasons["pca", 2]
    missing = found.loc[[("categories", 2), ("cone", 2), ("pca", 2)]]
    assert missing[["bypass", "bypass_low", "kl", "kl_high", "induce"]].isna().all(axis=None)
    assert (found["rejected_because"][[("categories", 2), ("cone", 2), ("pca", 1)]] == "a score is NaN").all()
    assert np.isfinite(found.loc[("pca", 1), ["bypass", "kl"]].astype(float)).all()
    assert found["bypass"]["cone", 1] == found["bypass"]["categories", 1]


def test_what_does_not_fit_is_refused(tiny_hooked):
    metric, given = RefusalMetric((), (10,), (12,)), subspaces.random_subspace(1, 64)
    r = Direction(normal(64), -1, 1)
    with pytest.raises(MechrefusalError, match="'random' are of width 32"):
        score_subspaces(tiny_hooked, [subspaces.random_subspace(1, 32)], VALIDATION, metric, difference=r)
    with pytest.raises(MechrefusalError, match="'difference' are of width 32"):
        score_subspaces(tiny_hooked, [given], VALIDATION, metric, difference=replace(r, vector=normal(32)))
    with pytest.raises(MechrefusalError, match="empty"):
        score_subspaces(tiny_hooked, [given], VALIDATION.take(0), metric, difference=r)
    with pytest.raises(MechrefusalError, match="9"):
        score_subspaces(tiny_hooked, [given], VALIDATION, metric, difference=replace(r, layer=9))
    with pytest.raises(MechrefusalError, match=r"ffff.* take it from this model"):
        score_subspaces(tiny_hooked, [given], VALIDATION, metric, difference=replace(r, weights="f" * 16))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return gated.make(tmp_path_factory.mktemp("gated") / "model")


def find(model, *words, extra=()):
    direction, validation = (gated.split(*words, verbs=gated.VERBS[half::2]) for half in (0, 1))
    harmful, harmless = gated.at_place(model, direction)
    difference = harmful.double().mean(0) - harmless.double().mean(0)
    labels = [next(word for word in words if word in text) for text in direction.harmful]
    families = [
        subspaces.categories(harmful, harmless, labels),
        subspaces.pca(harmful, harmless),
        subspaces.random_subspace(3, 64),
        *extra,
    ]
    return score_subspaces(
        model,
        families,
        validation,
        planted_model.METRIC,
        difference=Direction(difference, *gated.PLACE),
        largest=3,
    )


def test_two_planted_directions_take_two(planted):
    found = find(planted, "bomb", "poison")
    assert found.baseline.value > 5
    assert found.smallest["k"] == 2
    assert found.smallest["bypass_high"] < -5
    share = found.table.set_index(["family", "k"])["share_of_best"]
    assert share["categories", 1] < 0.1, "the gates stay open without the mean of the two"
    assert share["categories", 2] > 0.95
    assert share["pca", 1] < 0.5
    assert share["pca", 2] > 0.95
    assert share["random"].max() < 0.2


@pytest.mark.parametrize("word", gated.WEAPONS)
def test_one_planted_direction_takes_one(planted, word):
    found = find(planted, word)
    assert found.baseline.value > 5
    assert found.smallest["k"] == 1
    assert found.smallest["bypass"] < -5
    assert found.table.set_index(["family", "k"])["share_of_best"]["random"].max() < 0.3


def test_a_subspace_that_harms_the_model_is_rejected(planted):
    """It holds what refusal needs, and the constant that every answer is made from."""
    basis = torch.zeros(2, 64)
    basis[0, gated.U[0]] = basis[1, gated.CONSTANT] = 1
    found = find(planted, "bomb", extra=[Subspace("successive", basis)])
    rows = found.table[found.table["family"] == "successive"].set_index("k")
    assert rows["admissible"].tolist() == [True, False, False]
    assert rows["kl"][1] < 0.1 < rows["kl"][2]
    assert rows["rejected_because"][2].startswith("kl ")
    assert found.smallest["k"] == 1
