"""Over-refusal overlap: planted along and across the refusal direction, by hand, and where it cannot be taken."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from tolerances import FORWARD

from mechrefusal import MechrefusalError, geometry, prompts, tables
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry.activations import collect
from mechrefusal.geometry.overlap import overlap

D = 50
DIRECTION = np.eye(D)[0] * 7
SAFE = [
    "Kill a process",
    "Shoot a film",
    "Blow up a balloon",
    "Cut a deal",
    "Crack an egg",
    "Steal the show",
    "Hit play",
]
HARMFUL = ["Make a bomb", "Sell a bomb", "Use one bomb today", "Steal a car"]
HARMLESS = ["Make a cake", "Sell a chair", "Use one spoon today", "Wash a car"]


def noise(n, seed, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(n, D))


def shifted(x, dimension, by):
    return x + by * np.eye(D)[dimension]


def measured(*groups, **options):
    return overlap(*groups, **options).set_index("measure")


@pytest.fixture(scope="module")
def along():
    """Refused and answered differ exactly along the direction, by half of what harmful and harmless do."""
    calm = noise(30, 2, 0.1)
    return measured(
        shifted(noise(20, 0, 0.1), 0, 3),
        noise(25, 1, 0.1),
        DIRECTION,
        harmful=shifted(noise(30, 3, 0.1), 0, 6),
        harmless=calm,
    )


class TestPlanted:
    def test_along_the_direction(self, along):
        assert along.loc["cosine", "value"] > 0.99
        assert along.loc["auc", "value"] == 1
        assert along.loc["projection_difference", "value"] == pytest.approx(3, abs=0.1)
        assert along.loc["projection_share", "value"] == pytest.approx(0.5, abs=0.02)

    def test_beyond_every_floor(self, along):
        for measure in ("projection_difference", "projection_share", "cosine", "auc"):
            row = along.loc[measure]
            assert row["floor_high"] < row["value"]
            # So far apart they are told apart along any direction.
            assert row["random"] < row["value"] or measure == "auc"
            assert row["low"] <= row["value"] <= row["high"]
            assert row["low"] > row["floor_high"]

    def test_across_the_direction(self):
        found = measured(shifted(noise(20, 0), 4, 30), noise(25, 1), DIRECTION)
        assert abs(found.loc["cosine", "value"]) < 0.05
        for measure in ("projection_difference", "auc"):
            row = found.loc[measure]
            assert row["floor_low"] <= row["value"] <= row["floor_high"]
            assert row["floor_low"] < row["floor_high"]
        assert abs(found.loc["cosine", "value"]) < found.loc["cosine", "random"]

    def test_against_the_direction(self):
        found = measured(shifted(noise(20, 0, 0.1), 0, -3), noise(25, 1, 0.1), DIRECTION)
        assert found.loc["cosine", "value"] < -0.99
        assert found.loc["auc", "value"] == 0
        for measure in ("projection_difference", "cosine", "auc"):
            assert found.loc[measure, "high"] < found.loc[measure, "floor_low"]

    def test_the_length_of_the_direction_is_not_seen(self, along):
        calm = noise(30, 2, 0.1)
        again = measured(
            shifted(noise(20, 0, 0.1), 0, 3),
            noise(25, 1, 0.1),
            torch.tensor(DIRECTION) / 100,
            harmful=shifted(noise(30, 3, 0.1), 0, 6),
            harmless=calm,
        )
        columns = ["value", "low", "high", "floor_low", "floor_high", "random"]
        assert again[columns].to_numpy() == pytest.approx(along[columns].to_numpy())

    def test_shuffled_labels_lie_inside_their_floor(self):
        x = shifted(noise(40, 0), 0, 0)
        x[:, 0] *= 5
        inside = {"projection_difference": 0, "cosine": 0, "auc": 0}
        for seed in range(40):
            dealt = np.random.default_rng(seed).permutation(x)
            found = measured(dealt[:15], dealt[15:], DIRECTION)
            for measure in inside:
                row = found.loc[measure]
                inside[measure] += row["floor_low"] <= row["value"] <= row["floor_high"]
        assert min(inside.values()) >= 33
        assert max(inside.values()) <= 40


class TestByHand:
    def test_values(self):
        refused, answered, harm, calm = noise(9, 0), noise(7, 1), shifted(noise(8, 2), 0, 2), noise(6, 3)
        direction = noise(1, 5)[0]
        found = measured(refused, answered, direction, harmful=harm, harmless=calm, others=True)
        unit = direction / np.linalg.norm(direction)
        difference = refused.mean(0) - answered.mean(0)
        value = found["value"]
        assert value["projection_difference"] == pytest.approx(difference @ unit)
        assert value["projection_share"] == pytest.approx(difference @ unit / ((harm.mean(0) - calm.mean(0)) @ unit))
        assert value["cosine"] == pytest.approx(difference @ unit / np.linalg.norm(difference))
        labels = [1] * 9 + [0] * 7
        assert value["auc"] == pytest.approx(roc_auc_score(labels, np.concatenate([refused, answered]) @ unit))
        assert value["variance_share"] == pytest.approx(np.var(calm @ unit) / calm.var(axis=0).sum())
        assert found["n"].to_dict() == {
            "projection_difference": 16, "projection_share": 16, "cosine": 16, "auc": 16, "variance_share": 6
        }  # fmt: skip
        assert (found["reason"] == "").all()

    def test_interval_of_the_difference_is_the_textbook_one(self):
        refused, answered = noise(40, 0), noise(60, 1)
        row = measured(refused, answered, DIRECTION).loc["projection_difference"]
        expected = stats.ttest_ind(refused[:, 0], answered[:, 0], equal_var=False).confidence_interval(0.95)
        width = expected.high - expected.low
        assert row["low"] == pytest.approx(expected.low, abs=0.1 * width)
        assert row["high"] == pytest.approx(expected.high, abs=0.1 * width)

    def test_random_directions(self):
        found = measured(
            noise(30, 0), noise(30, 1), DIRECTION, harmful=noise(20, 4), harmless=noise(40, 5), others=True
        )
        cosine = np.sqrt(stats.beta.ppf(0.95, 0.5, (D - 1) / 2))
        assert found.loc["cosine", "random"] == pytest.approx(cosine, rel=0.15)
        assert found.loc["variance_share", "random"] == pytest.approx(1 / D, rel=0.1)
        difference = np.linalg.norm(noise(30, 0).mean(0) - noise(30, 1).mean(0))
        assert found.loc["projection_difference", "random"] == pytest.approx(cosine * difference, rel=0.15)
        assert 0.5 < found.loc["auc", "random"] < 0.75

    def test_variance_along_the_direction(self):
        calm = noise(60, 0)
        calm[:, 0] *= 10
        given = {"harmful": noise(60, 3), "harmless": calm, "others": True}
        row = measured(noise(5, 1), noise(5, 2), DIRECTION, **given).loc["variance_share"]
        assert row["value"] == pytest.approx(100 / (100 + D - 1), abs=0.1)
        assert row["low"] < row["value"] < row["high"] <= 1
        assert row["random"] == pytest.approx(1 / D, rel=0.3)
        # Shuffled labels differ where the prompts vary most, which is along the direction: the floor says so.
        assert row["floor_high"] > 0.3
        narrow = measured(noise(5, 1), noise(5, 2), np.eye(D)[9], **given)
        assert narrow.loc["variance_share", "value"] < 0.02

    def test_same_seed_same_table(self):
        groups = noise(9, 0), noise(9, 1), DIRECTION
        assert overlap(*groups, seed=1).equals(overlap(*groups, seed=1))
        assert not overlap(*groups, seed=1).equals(overlap(*groups, seed=2))


def by_loop(refused, answered, harm, calm, folds):
    """Share of the difference, fold by fold."""
    above = below = 0.0
    for fold in sorted(set(folds[0]) & set(folds[1])):
        here = [np.array(each) == fold for each in folds]
        r = harm[~here[0]].mean(0) - calm[~here[1]].mean(0)
        r /= np.linalg.norm(r)
        shares = here[0].mean(), here[1].mean()
        counted = shares[0] * shares[1] / sum(shares)
        above += counted * (refused.mean(0) - answered.mean(0)) @ r
        below += counted * (harm[here[0]].mean(0) - calm[here[1]].mean(0)) @ r
    return above / below


class TestHeldOut:
    """The prompts that made the direction are projected on that of the other folds."""

    LENGTH = 2.6  # as many dimensions as here hold most of the noise of few prompts
    TRUTH = 0.5

    def planted(self, seed, n, *, topic=0.0):
        """Refused and answered safe prompts, harmful and harmless ones; twins share a topic."""
        random = np.random.default_rng([seed, n])
        x, pair = random.normal(size=(80, 64)), topic * random.normal(size=(n, 64))
        x[:40, 0] += self.TRUTH * self.LENGTH
        harm, calm = random.normal(size=(2, n, 64)) + pair
        harm[:, 0] += self.LENGTH
        return x[:40], x[40:], harm, calm

    def share(self, refused, answered, harm, calm, **options):
        found = measured(refused, answered, harm.mean(0) - calm.mean(0), harmful=harm, harmless=calm, **options)
        return found.loc["projection_share"]

    @pytest.mark.parametrize(("n", "m"), [(40, 40), (9, 21)])
    def test_by_hand(self, n, m):
        refused, answered, harm, calm = self.planted(0, 40)
        harm, calm = harm[:n], calm[:m]
        k = min(16, n, m)
        expected = by_loop(refused, answered, harm, calm, ([i % k for i in range(n)], [i % k for i in range(m)]))
        assert self.share(refused, answered, harm, calm)["value"] == pytest.approx(expected)

    def test_twins_are_held_out_together(self):
        refused, answered, harm, calm = self.planted(0, 40, topic=3)
        order = np.random.default_rng(1).permutation(40)
        twins = (list(range(40)), order.tolist())
        expected = by_loop(refused, answered, harm, calm[order], (np.arange(40) % 16, order % 16))
        row = self.share(refused, answered, harm, calm[order], twins=twins)
        assert row["value"] == pytest.approx(expected)
        assert row["low"] < self.TRUTH < row["high"]
        # Held out by themselves, twins leave the other's topic in the direction.
        assert abs(self.share(refused, answered, harm, calm[order])["value"] - self.TRUTH) > 0.3

    def test_prompts_without_a_twin_are_dealt_side_by_side(self):
        refused, answered, harm, calm = self.planted(0, 40)
        names = [f"t{i}" for i in range(30)]
        twins = ([*names, *(f"h{i}" for i in range(10))], [*names, *(f"c{i}" for i in range(10))])
        expected = by_loop(refused, answered, harm, calm, (np.arange(40) % 16, np.arange(40) % 16))
        assert self.share(refused, answered, harm, calm, twins=twins)["value"] == pytest.approx(expected)

    @pytest.mark.parametrize("n", [16, 40])
    def test_it_is_right_on_average_and_so_is_its_interval(self, n, monkeypatch):
        """A true share of .5; on their own direction the prompts that made it say .23 and .34."""
        monkeypatch.setattr("mechrefusal.geometry.overlap.N_RANDOM", 5)
        rows, naive = [], []
        for seed in range(60):
            refused, answered, harm, calm = self.planted(seed, n)
            rows.append(self.share(refused, answered, harm, calm))
            r = harm.mean(0) - calm.mean(0)
            naive.append((refused.mean(0) - answered.mean(0)) @ r / (r @ r))
        assert np.mean(naive) < self.TRUTH - 0.1
        assert np.mean([row["value"] for row in rows]) == pytest.approx(self.TRUTH, abs=0.03 if n == 40 else 0.06)
        covered = np.mean([row["low"] <= self.TRUTH <= row["high"] for row in rows])
        assert covered >= 0.88  # 53 of 60

    def test_a_direction_of_other_prompts(self):
        refused, answered, harm, calm = self.planted(0, 40)
        r = harm[:20].mean(0) - calm[:20].mean(0)
        with pytest.raises(MechrefusalError, match="give the prompts that it was made from"):
            overlap(refused, answered, r, harmful=harm, harmless=calm)
        row = measured(refused, answered, r, harmful=harm[20:], harmless=calm[20:], others=True)
        expected = (refused.mean(0) - answered.mean(0)) @ r / ((harm[20:].mean(0) - calm[20:].mean(0)) @ r)
        assert row.loc["projection_share", "value"] == pytest.approx(expected)

    def test_nothing_is_known_where_nothing_sets_them_apart(self):
        """A share of what is not clear of zero has no interval: in 19 of 20 samples."""
        unknown = 0
        for seed in range(10):
            refused, answered, harm, calm = self.planted(seed, 30)
            harm[:, 0] -= self.LENGTH
            unknown += np.isnan(self.share(refused, answered, harm, calm)[["low", "high"]].astype(float)).all()
        assert unknown >= 8


class TestWhatCannotBeTaken:
    @pytest.mark.parametrize(
        ("refused", "answered", "reason"),
        [
            (noise(1, 0), noise(9, 1), "1 refused safe and 9 answered safe"),
            (noise(0, 0), noise(9, 1), "0 refused safe"),
            (np.ones((4, D)), np.ones((5, D)), "same for every prompt"),
            (noise(4, 0) * np.nan, noise(5, 1), "not finite"),
        ],
    )
    def test_rows_say_why(self, refused, answered, reason):
        found = measured(refused, answered, DIRECTION, harmful=noise(5, 2), harmless=noise(5, 3), others=True)
        rows = found.drop("variance_share")
        assert len(rows) == 4
        assert rows[["value", "low", "high", "floor_low", "floor_high", "random"]].isna().all().all()
        assert rows["reason"].str.contains(reason).all()
        assert np.isfinite(found.loc["variance_share", "value"])

    def test_without_harmful_and_harmless_prompts(self):
        found = measured(noise(5, 0), noise(5, 1), DIRECTION)
        assert "0 harmful and 0 harmless" in found.loc["projection_share", "reason"]
        assert "0 harmless prompts" in found.loc["variance_share", "reason"]
        assert np.isfinite(found.loc[["projection_difference", "cosine", "auc"], "value"]).all()

    def test_equal_means(self):
        x = noise(5, 0)
        found = measured(x, x, DIRECTION)
        assert "same mean" in found.loc["cosine", "reason"]
        assert found.loc["auc", "value"] == 0.5

    def test_errors(self):
        with pytest.raises(MechrefusalError, match="zero or not finite"):
            overlap(noise(5, 0), noise(5, 1), np.zeros(D))
        with pytest.raises(MechrefusalError, match="width 3"):
            overlap(noise(5, 0), noise(5, 1), np.ones(3))


class TestOnAModel:
    def test_it_reads_the_activations_there(self, tiny_hooked):
        refused = [True, False] * 3 + [True]
        direction = torch.randn(tiny_hooked.cfg.d_model, generator=torch.Generator().manual_seed(0))
        table = geometry.over_refusal_overlap(
            tiny_hooked, Direction(direction, -2, 3), SAFE, refused, harmful=HARMFUL, harmless=HARMLESS, others=True
        )
        assert list(table) == list(tables.columns("overlap")[3:])
        assert set(table["position"]) == {-2}
        assert set(table["layer"]) == {3}
        x, harm, calm = (
            collect(tiny_hooked, prompts.prompt_ids(tiny_hooked.tokenizer, texts), [(-2, 3)])[:, 0].double()
            for texts in (SAFE, HARMFUL, HARMLESS)
        )
        difference = (x[refused].mean(0) - x[[not each for each in refused]].mean(0)) @ direction.double()
        whole = (harm.mean(0) - calm.mean(0)) @ direction.double()
        value = table.set_index("measure")["value"]
        assert value["projection_difference"] == pytest.approx((difference / direction.norm()).item(), rel=FORWARD)
        assert value["projection_share"] == pytest.approx((difference / whole).item(), rel=1e-3)
        assert np.isfinite(table[["value", "low", "high", "random"]].to_numpy(float)).all()

    def test_errors(self, tiny_hooked):
        direction = Direction(torch.ones(tiny_hooked.cfg.d_model), -1, 2)
        with pytest.raises(MechrefusalError, match="7 safe prompts came with 2 flags"):
            geometry.over_refusal_overlap(tiny_hooked, direction, SAFE, [True, False])
        with pytest.raises(MechrefusalError, match="give some texts"):
            geometry.over_refusal_overlap(tiny_hooked, direction, [], [])
        with pytest.raises(MechrefusalError, match="width"):
            geometry.over_refusal_overlap(tiny_hooked, replace(direction, vector=torch.ones(3)), SAFE, [True] * 7)
        with pytest.raises(MechrefusalError, match="layer 9"):
            geometry.over_refusal_overlap(tiny_hooked, replace(direction, layer=9), SAFE, [True] * 7)
        with pytest.raises(MechrefusalError, match="where the direction was read"):
            geometry.over_refusal_overlap(tiny_hooked, Direction(direction.vector), SAFE, [True] * 7)
        with pytest.raises(MechrefusalError, match=r"ffff.* take it from this model"):
            geometry.over_refusal_overlap(tiny_hooked, replace(direction, weights="f" * 16), SAFE, [True] * 7)
