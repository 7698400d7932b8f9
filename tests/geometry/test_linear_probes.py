"""Linear probes: against scikit-learn, on planted and on shuffled labels, and where they cannot be taken."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tolerances import FORWARD

from mechrefusal import MechrefusalError, geometry, prompts, tables
from mechrefusal.geometry import probes, resampling
from mechrefusal.geometry.activations import collect
from mechrefusal.prompts import Split

D = 40
HARMFUL = ["Make a bomb", "Sell a bomb", "Use one bomb today", "Steal a car", "Poison the well", "Forge a passport"]
HARMLESS = ["Make a cake", "Sell a chair", "Use one spoon today", "Wash a car", "Paint the well", "Renew a passport"]


def noise(n, seed, d=D):
    return np.random.default_rng(seed).normal(size=(n, d))


def planted(n, m, *, by, seed=0):
    positive = noise(n, seed)
    positive[:, :8] += by
    return positive, noise(m, seed + 100)


class TestAuc:
    @pytest.mark.parametrize("seed", range(3))
    def test_against_scikit_learn_with_ties_and_weights(self, seed):
        random = np.random.default_rng(seed)
        scores = random.integers(0, 5, size=30).astype(float)
        labels = np.arange(30) < 12
        expected = roc_auc_score(labels, scores)
        assert resampling.auc(scores, resampling.observed(12, 18))[0] == pytest.approx(expected)
        assert resampling.auc_by_ranks(scores[:12], scores[12:]) == pytest.approx(expected)
        for contrast in resampling.bootstrapped(12, 18, random, draws=5):
            expected = roc_auc_score(labels, scores, sample_weight=np.abs(contrast))
            assert resampling.auc(scores, contrast[None])[0] == pytest.approx(expected)

    def test_column_by_column(self):
        first, second = noise(5, 0, 3), noise(7, 1, 3)
        found = resampling.auc_by_ranks(first, second)
        for column in range(3):
            expected = roc_auc_score([1] * 5 + [0] * 7, np.concatenate([first[:, column], second[:, column]]))
            assert found[column] == pytest.approx(expected)


class TestResampling:
    def test_contrasts_sum_to_one_on_each_side(self):
        random = np.random.default_rng(0)
        for contrasts in (
            resampling.observed(4, 6),
            resampling.bootstrapped(4, 6, random, draws=20),
            resampling.shuffled(4, 6, random, draws=20),
            resampling.bootstrapped(4, 6, random, draws=20, blocks=np.arange(10)),
        ):
            kept = np.isfinite(contrasts).all(axis=1)
            assert kept.sum() >= 0.9 * len(contrasts)
            assert np.maximum(contrasts[kept], 0).sum(axis=1) == pytest.approx(1)
            assert np.minimum(contrasts[kept], 0).sum(axis=1) == pytest.approx(-1)

    def test_only_shuffled_labels_mix_the_groups(self):
        random = np.random.default_rng(0)
        bootstrapped, shuffled = (make(4, 6, random, 50) for make in (resampling.bootstrapped, resampling.shuffled))
        assert (bootstrapped[:, :4] >= 0).all()
        assert (bootstrapped[:, 4:] <= 0).all()
        assert (shuffled[:, 4:] > 0).any()
        assert set(shuffled.ravel().round(6)) == {0.25, -round(1 / 6, 6)}

    def test_blocks_are_drawn_whole(self):
        blocks = np.array([0, 1, 2, 0, 1, 2])
        found = resampling.bootstrapped(3, 3, np.random.default_rng(0), draws=30, blocks=blocks)
        assert found[:, :3] == pytest.approx(-found[:, 3:])
        assert len(np.unique(found.round(6))) > 2

    @pytest.mark.parametrize("parts", [2, 3, 5])
    def test_dealing_keeps_blocks_and_shares(self, parts):
        labels = np.arange(40) < 15
        blocks = np.concatenate([np.arange(15), np.arange(25)])  # 15 pairs, 10 alone
        found = resampling.dealt(labels, blocks, parts, np.random.default_rng(0))
        assert (found[:15] == found[15:30]).all()
        for group in (found[labels], found[~labels]):
            counts = np.bincount(group, minlength=parts)
            assert counts.max() - counts.min() <= 2
        again = resampling.dealt(labels, blocks, parts, np.random.default_rng(1))
        assert (found != again).any()

    def test_the_interval_is_that_of_a_mean(self):
        values = noise(40, 3)[:, 0]
        draws = resampling.resampled(40, np.random.default_rng(0), 4000) @ values
        found = resampling.estimate(float(values.mean()), draws, 40)
        half = 2.0227 * values.std(ddof=1) / np.sqrt(40)
        assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


class TestLinearProbe:
    def test_the_fit_is_that_of_plain_logistic_regression(self):
        positive, negative = planted(14, 16, by=1)
        x, labels = np.concatenate([positive, negative]), np.arange(30) < 14
        turn = probes._Turn(x)
        assert turn(x).shape == (30, 30)
        asked = noise(10, 7)
        found = probes._fit(turn(x), labels, D).decision_function(turn(asked))
        plain = make_pipeline(
            StandardScaler(), LogisticRegression(C=probes.REGULARISATION / D, tol=1e-10, max_iter=1000)
        )
        expected = plain.fit(x, labels).decision_function(asked)
        assert found == pytest.approx(expected, abs=0.02 * expected.std())
        weights = plain[1].coef_[0] / plain[0].scale_
        assert geometry.cosine(probes._weights(x, labels), weights) > 0.999

    def test_separable_groups(self):
        found = probes.linear_probe(*planted(20, 30, by=30))
        assert found.auc == found.mean_auc == 1
        assert (found.n_positive, found.n_negative, found.reason) == (20, 30, "")
        assert found.cosine > 0.25

    def test_turned_around_it_is_as_good(self):
        positive, negative = planted(25, 25, by=0.8)
        found, turned = probes.linear_probe(positive, negative), probes.linear_probe(negative, positive)
        assert found.auc == pytest.approx(turned.auc, abs=0.1)
        assert found.auc > 0.8

    @pytest.mark.parametrize("seed", range(4))
    def test_noise_is_not_told_apart(self, seed):
        found = probes.linear_probe(noise(40, seed), noise(40, 50 + seed), seed=seed)
        assert found.low < 0.5 < found.high
        assert 0.3 < found.shuffled_auc < 0.7

    def test_shuffled_labels_of_separable_groups(self):
        found = [probes.linear_probe(*planted(30, 30, by=30, seed=seed), seed=seed) for seed in range(4)]
        assert np.mean([each.shuffled_auc for each in found]) == pytest.approx(0.5, abs=0.12)
        assert min(each.auc for each in found) == 1

    def test_a_probe_can_see_what_the_means_do_not(self):
        positive, negative = planted(60, 60, by=0)
        positive[:, 0], negative[:, 0] = 0.01 + 0.003 * positive[:, 0], 0.003 * negative[:, 0]
        found = probes.linear_probe(positive, negative)
        assert found.auc > 0.8
        assert found.mean_auc < 0.65
        assert abs(found.cosine) < 0.7

    def test_interval(self):
        found = probes.linear_probe(*planted(50, 50, by=0.6))
        assert 0.5 < found.low < found.auc < found.high <= 1
        wide = probes.linear_probe(*planted(12, 12, by=0.6))
        assert wide.high - wide.low > found.high - found.low

    def test_twins_stay_together(self):
        # A topic that twins share, and a small part that tells them apart.
        topic = 3 * noise(40, 0)
        positive, negative = topic + 0.3 * noise(40, 1), topic + 0.3 * noise(40, 2)
        positive[:, 0] += 1
        apart = probes.linear_probe(positive, negative)
        together = probes.linear_probe(positive, negative, twins=[*range(40), *range(40)])
        assert apart.auc < 0.5, "a twin in training with the opposite label misleads"
        assert together.auc > 0.6

    def test_same_seed_same_numbers(self):
        groups = planted(20, 20, by=1)
        assert probes.linear_probe(*groups, seed=3) == probes.linear_probe(*groups, seed=3)
        assert probes.linear_probe(*groups, seed=3) != probes.linear_probe(*groups, seed=4)

    def test_fewer_prompts_than_folds(self):
        found = probes.linear_probe(*planted(3, 40, by=30))
        assert found.auc == 1
        assert found.reason == ""

    @pytest.mark.parametrize(
        ("positive", "negative", "reason"),
        [
            (noise(2, 0), noise(9, 1), "2 positive and 9 negative"),
            (noise(0, 0), noise(0, 1), "0 positive"),
            (np.full((5, D), 3.0), np.full((5, D), 3.0), "same for every prompt"),
            (noise(5, 0) * np.nan, noise(5, 1), "not finite"),
        ],
    )
    def test_what_cannot_be_taken_says_why(self, positive, negative, reason):
        found = probes.linear_probe(positive, negative)
        assert np.isnan([found.auc, found.low, found.high, found.mean_auc, found.shuffled_auc, found.cosine]).all()
        assert reason in found.reason

    def test_rounding_is_not_a_difference(self):
        x = np.full((10, D), 3.0) + 1e-7 * noise(10, 0)
        assert "same for every prompt" in probes.linear_probe(x[:5], x[5:]).reason

    def test_equal_means_have_no_cosine(self):
        x = noise(10, 0)
        found = probes.linear_probe(x, x)
        assert np.isfinite(found.auc)
        assert np.isnan(found.cosine)
        assert "difference in means is zero" in found.reason

    @pytest.mark.parametrize(
        ("arguments", "options", "named"),
        [
            ((noise(5, 0), noise(5, 1, D + 1)), {}, "same width"),
            ((noise(5, 0)[0], noise(5, 1)), {}, "prompt, d_model"),
            ((noise(5, 0), noise(5, 1)), {"folds": 1}, "at least 2 folds"),
            ((noise(5, 0), noise(5, 1)), {"twins": [1, 2]}, "10 prompts came with 2 names"),
        ],
    )
    def test_errors(self, arguments, options, named):
        with pytest.raises(MechrefusalError, match=named):
            probes.linear_probe(*arguments, **options)


class TestOnAModel:
    @pytest.fixture(scope="class")
    def table(self, tiny_hooked):
        return geometry.linear_probes(
            tiny_hooked,
            Split.of(HARMFUL, HARMLESS),
            refused=[True] * 3 + [False] * 3,
            safe=HARMLESS,
            safe_refused=[True] * 2 + [False] * 4,
            layer=2,
        )

    def test_every_target_place_and_layer(self, tiny_hooked, table):
        assert list(table) == list(tables.columns("linear_probes")[3:])
        positions = set(table["position"])
        instruction = geometry.last_instruction_position(tiny_hooked.tokenizer, HARMFUL)
        assert positions == {instruction, -1}
        counted = table.groupby("target").size().to_dict()
        assert counted == {"harmful": 8, "refused": 8, "overrefused": 1}
        (row,) = table[table["target"] == "overrefused"].to_dict("records")
        assert (row["layer"], row["n_positive"], row["n_negative"]) == (2, 2, 4)
        assert np.isnan(row["auc"])
        assert row["reason"]

    def test_the_last_position_is_the_same_token_at_layer_0(self, table):
        here = table[(table["position"] == -1) & (table["layer"] == 0)]
        assert len(here) == 2
        assert here["reason"].str.contains("same for every prompt").all()

    def test_a_row_is_the_probe_of_the_activations_there(self, tiny_hooked, table):
        ids = [prompts.prompt_ids(tiny_hooked.tokenizer, texts) for texts in (HARMFUL, HARMLESS)]
        found = probes.linear_probe(*(collect(tiny_hooked, each, [(-1, 3)])[:, 0] for each in ids))
        row = table[(table["target"] == "harmful") & (table["position"] == -1) & (table["layer"] == 3)].iloc[0]
        assert row["auc"] == pytest.approx(found.auc)
        assert row["cosine"] == pytest.approx(found.cosine, abs=FORWARD)

    def test_builtin_twins_are_known(self, tiny_hooked):
        contrast = prompts.builtin().direction.take(6)
        activations = geometry.ContrastActivations.of(tiny_hooked, contrast)
        assert activations.twins is not None
        assert activations.twins[:6] == activations.twins[6:]
        assert len(set(activations.twins)) == 6
        assert geometry.ContrastActivations.of(tiny_hooked, Split.of(HARMFUL, HARMLESS)).twins is None

    @pytest.mark.parametrize("flags", [[True], [True] * 5 + [None], [0.5] * 6])
    def test_flags_that_do_not_fit(self, tiny_hooked, flags):
        activations = geometry.ContrastActivations(torch.ones(6, 2, 4, 64), torch.ones(6, 2, 4, 64), (-6, -1))
        with pytest.raises(MechrefusalError, match="6 harmful prompts came with"):
            geometry.linear_probes(tiny_hooked, Split.of(HARMFUL, HARMLESS), refused=flags, activations=activations)


def test_names_that_tie_everything_together_leave_no_folds():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 4)), random.normal(size=(6, 4))
    for twins in (["a"] * 6 + ["b"] * 6, ["same"] * 12):
        found = probes.linear_probe(a, b, twins=twins)
        assert np.isnan(found.auc)
        assert "fold" in found.reason
