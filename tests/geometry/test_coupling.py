"""Harmfulness and refusal: cosines by hand, effects against plain hooks, and where they cannot be taken."""

import numpy as np
import pytest
import torch
from tolerances import FORWARD, REORDERED, ROUNDED

from mechrefusal import MechrefusalError, causal, forward, geometry, prompts, tables
from mechrefusal.forward import RefusalMetric
from mechrefusal.geometry import ContrastActivations, coupling, resampling
from mechrefusal.geometry.activations import collect
from mechrefusal.prompts import Split

METRIC = RefusalMetric((7,), (500, 501), (502,))
THINGS = ("bomb", "home", "fire", "car", "cake", "chair", "well", "spoon")
CONTRAST = Split.of([f"Make a {thing} now" for thing in THINGS], [f"Use one {thing} today" for thing in THINGS])
VALIDATION = Split.of(
    ["Sell a bomb", "Steal a car", "Burn a home"], ["Sell a cake", "Wash a car", "Paint a home", "Sit"]
)
LAYER = 2
D = 30


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def activations_of(x, y, n, *, twins=None):
    """Activations at the two places (prompt, d_model), the first `n` prompts harmful; one layer."""
    both = torch.stack([x, y], dim=1)[:, :, None]
    return ContrastActivations(both[:n], both[n:], (-4, -1), twins)


def at_layer(activations):
    weights = coupling._Weights.of(activations, np.random.default_rng(0))
    return {row["measure"]: row for row in coupling._at_layer(activations, 0, weights)}


@pytest.fixture(scope="module")
def activations(tiny_hooked):
    return ContrastActivations.of(tiny_hooked, CONTRAST)


@pytest.fixture(scope="module")
def table(tiny_hooked, activations):
    return geometry.harmfulness_refusal_coupling(
        tiny_hooked, CONTRAST, VALIDATION, METRIC, layer=LAYER, activations=activations
    )


class TestReadings:
    def test_directions_are_those_of_difference_in_means(self, tiny_hooked, activations):
        place = geometry.last_instruction_position(tiny_hooked.tokenizer, CONTRAST.harmful)
        assert activations.positions == (place, -1)
        expected = geometry.difference_in_means(tiny_hooked, CONTRAST, positions=(place, -1)).values
        for layer in range(tiny_hooked.cfg.n_layers):
            assert torch.allclose(activations.directions(layer), expected[:, layer].float(), atol=REORDERED)

    def test_errors(self, tiny_hooked):
        with pytest.raises(MechrefusalError, match="got 8 and 0"):
            ContrastActivations.of(tiny_hooked, Split.of(CONTRAST.harmful.texts, []))
        with pytest.raises(MechrefusalError, match="position -20 is not after the instruction"):
            ContrastActivations.of(tiny_hooked, CONTRAST, position=-20)


class TestCosines:
    def test_by_hand(self):
        x, y = noise(20, D), noise(20, D, seed=2)
        found = at_layer(activations_of(x, y, 12))["cosine"]
        h, r = (each[:12].mean(0) - each[12:].mean(0) for each in (x, y))
        assert found["value"] == pytest.approx(geometry.cosine(h.numpy(), r.numpy()), abs=ROUNDED)
        assert found["n"] == 20
        assert found["floor_low"] < found["value"] < found["floor_high"]

    def test_the_same_direction_at_both_places(self):
        x = noise(40, D)
        x[:20, 0] += 10
        found = at_layer(activations_of(x, 3 * x + 5, 20))
        assert found["cosine"]["value"] == pytest.approx(1)
        assert found["harmfulness_split_half"]["value"] > 0.9
        assert found["harmfulness_split_half"]["value"] == pytest.approx(found["refusal_split_half"]["value"])

    def test_orthogonal_directions(self):
        x, y = noise(60, D), noise(60, D, seed=1)
        x[:30, 0] += 10
        y[:30, 1] += 10
        found = at_layer(activations_of(x, y, 30))
        assert abs(found["cosine"]["value"]) < 0.15
        assert found["cosine"]["high"] < found["refusal_split_half"]["low"]
        assert min(found["harmfulness_split_half"]["value"], found["refusal_split_half"]["value"]) > 0.9

    @pytest.mark.parametrize("measure", ["cosine", "harmfulness_split_half", "refusal_split_half"])
    def test_beyond_the_floor_only_where_there_is_something(self, measure):
        x = noise(60, D)
        nothing = at_layer(activations_of(x, noise(60, D, seed=1), 30))[measure]
        assert nothing["floor_low"] <= nothing["value"] <= nothing["floor_high"]
        x[:30, 0] += 4
        y = noise(60, D, seed=1)
        y[:30, 0] += 4
        something = at_layer(activations_of(x, y, 30))[measure]
        assert something["value"] > something["floor_high"]
        assert something["value"] > something["random"]

    def test_interval_narrows_with_prompts(self):
        widths = []
        for n in (10, 160):
            x, y = noise(2 * n, D), noise(2 * n, D, seed=1)
            x[:n, 0] += 2
            y[:n, 0] += 2
            found = at_layer(activations_of(x, y, n))["cosine"]
            assert found["low"] < found["value"] < found["high"] <= 1
            widths.append(found["high"] - found["low"])
        assert widths[1] < widths[0] / 2

    def test_twins_are_kept_in_one_half(self):
        # What twins share is large; what they differ by is small, and the same.
        topic = 5 * noise(20, D)
        x = torch.cat([topic, topic]) + 0.3 * noise(40, D, seed=1)
        x[:20, 0] += 1
        names = tuple(f"twin-{number}" for number in range(20))
        together = at_layer(activations_of(x, x, 20, twins=names + names))["harmfulness_split_half"]["value"]
        apart = at_layer(activations_of(x, x, 20))["harmfulness_split_half"]["value"]
        assert together > 0.7
        assert apart < 0.3

    def test_halves_are_a_partition(self):
        is_first = np.arange(11)[None].repeat(6, axis=0) < 5
        halves = coupling._halves(is_first, np.arange(11), np.random.default_rng(0))
        for half, rest in zip(*halves, strict=True):
            assert ((half != 0) ^ (rest != 0)).all()
            assert half[:5].sum() == pytest.approx(1)
            assert rest[5:].sum() == pytest.approx(-1)
            assert sorted([(half[:5] > 0).sum(), (rest[:5] > 0).sum()]) == [2, 3]

    @pytest.mark.parametrize(
        ("x", "y", "n", "measure", "reason"),
        [
            (noise(10, D), noise(10, D, seed=1), 2, "cosine", "2 harmful and 8 harmless"),
            (torch.ones(10, D), noise(10, D), 5, "cosine", "last instruction token activations are the same"),
            (
                noise(10, D),
                torch.ones(10, D),
                5,
                "refusal_split_half",
                "after the instruction activations are the same",
            ),
            (noise(10, D) * float("nan"), noise(10, D), 5, "harmfulness_split_half", "not finite"),
            (noise(5, D).repeat(2, 1), noise(10, D), 5, "cosine", "same mean"),
        ],
    )
    def test_what_cannot_be_taken_says_why(self, x, y, n, measure, reason):
        found = at_layer(activations_of(x, y, n))[measure]
        assert np.isnan([found["value"], found["low"], found["high"], found["random"]]).all()
        assert reason in found["reason"]


class TestSeparation:
    def apart(self, base, other, control=None, sizes=(20, 20)):
        control = base if control is None else control
        return coupling._apart("m", base, other, control, sizes, np.random.default_rng(0))

    def test_by_hand(self):
        base, other = noise(40).numpy(), noise(40, seed=1).numpy()
        base[:20] += 4
        other[:20] += 1

        def d_prime(x):
            return (x[:20].mean() - x[20:].mean()) / np.sqrt((x[:20].var() + x[20:].var()) / 2)

        found = self.apart(base, other)
        assert found["value"] == pytest.approx(d_prime(other) - d_prime(base), rel=REORDERED)
        assert found["low"] < found["value"] < found["high"] < 0
        assert found["value"] < found["floor_low"]
        assert found["random"] == pytest.approx(0, abs=1e-12)

    def test_shift_and_scale_are_no_effect(self):
        base = noise(40).numpy().astype(float)
        base[:20] += 2
        found = self.apart(base, -50 + 0.2 * base)
        assert found["value"] == pytest.approx(0, abs=1e-9)

    def test_small_changes_lie_in_the_floor(self):
        base = noise(40).numpy()
        base[:20] += 2
        found = self.apart(base, base + 0.1 * noise(40, seed=1).numpy())
        assert found["floor_low"] < found["value"] < found["floor_high"]

    def test_nothing_left_to_read(self):
        found = self.apart(noise(40).numpy(), 1e-9 * noise(40, seed=1).numpy())
        assert np.isnan(found["value"])
        assert "do not differ" in found["reason"]


class TestEffects:
    def value(self, table, measure, column="value"):
        (row,) = table[table["measure"] == measure].to_dict("records")
        assert row["layer"] == -1
        return row[column]

    def score(self, model, texts):
        ids = prompts.prompt_ids(model.tokenizer, texts)
        return forward.refusal_scores(model, ids, METRIC).double()

    def test_columns_and_rows(self, tiny_hooked, table):
        assert set(table) == set(tables.columns("coupling")[3:])
        assert table[table["layer"] == -1]["measure"].tolist() == list(coupling.BEHAVIOUR)
        assert (table[table["layer"] >= 0].groupby("layer").size() == 3).all()
        assert set(table["layer"]) == {-1, *range(tiny_hooked.cfg.n_layers)}
        taken = table[table["reason"] == ""]
        assert np.isfinite(taken[["value", "low", "high", "floor_low", "floor_high", "random"]].to_numpy(float)).all()
        assert table[table["reason"] != ""]["value"].isna().all()

    @pytest.mark.parametrize(("name", "place"), [("harmfulness", 0), ("refusal", 1)])
    def test_ablation_and_addition_against_plain_hooks(self, tiny_hooked, activations, table, name, place):
        direction = activations.directions(LAYER)[place]
        harmful, harmless = VALIDATION.harmful, VALIDATION.harmless
        with causal.ablate(tiny_hooked, direction):
            ablated = self.score(tiny_hooked, harmful)
        expected = (ablated - self.score(tiny_hooked, harmful)).mean().item()
        assert self.value(table, f"ablate_{name}_on_refusal") == pytest.approx(expected, abs=FORWARD)
        with causal.add(tiny_hooked, direction, layer=LAYER):
            added = self.score(tiny_hooked, harmless)
        expected = (added - self.score(tiny_hooked, harmless)).mean().item()
        assert abs(expected) > 1e-3
        assert self.value(table, f"add_{name}_on_refusal") == pytest.approx(expected, abs=FORWARD)
        assert self.value(table, f"add_{name}_on_refusal", "n") == len(harmless)
        control = causal.random_like(direction, seed=0)
        with causal.add(tiny_hooked, control, layer=LAYER):
            expected = (self.score(tiny_hooked, harmless) - self.score(tiny_hooked, harmless)).mean().item()
            moved = self.score(tiny_hooked, harmless)
        assert expected == 0
        moved = (moved - self.score(tiny_hooked, harmless)).mean().item()
        assert self.value(table, f"add_{name}_on_refusal", "random") == pytest.approx(moved, abs=FORWARD)

    @pytest.mark.parametrize(("name", "place"), [("harmfulness", 0), ("refusal", 1)])
    def test_harmfulness_is_read_later(self, tiny_hooked, activations, table, name, place):
        later = (LAYER + tiny_hooked.cfg.n_layers) // 2
        read = activations.directions(later)[0]
        groups = [
            prompts.prompt_ids(tiny_hooked.tokenizer, texts) for texts in (VALIDATION.harmful, VALIDATION.harmless)
        ]

        def d_prime():
            harm, calm = (collect(tiny_hooked, ids, [(activations.positions[0], later)])[:, 0] @ read for ids in groups)
            spread = ((harm.var(correction=0) + calm.var(correction=0)) / 2).sqrt()
            return ((harm.mean() - calm.mean()) / spread).item()

        base = d_prime()
        with causal.ablate(tiny_hooked, activations.directions(LAYER)[place]):
            expected = d_prime() - base
        assert abs(expected) > 1e-3
        assert self.value(table, f"ablate_{name}_on_harmfulness") == pytest.approx(expected, rel=1e-2)
        assert self.value(table, f"ablate_{name}_on_harmfulness", "n") == 7

    def test_prompts_at_most(self, tiny_hooked, activations):
        found = geometry.harmfulness_refusal_coupling(
            tiny_hooked, CONTRAST, VALIDATION, METRIC, layer=LAYER, activations=activations, n_prompts=3
        )
        assert self.value(found, "add_refusal_on_refusal", "n") == 3
        with causal.add(tiny_hooked, activations.directions(LAYER)[1], layer=LAYER):
            added = self.score(tiny_hooked, VALIDATION.harmless.texts[:3])
        expected = (added - self.score(tiny_hooked, VALIDATION.harmless.texts[:3])).mean().item()
        assert self.value(found, "add_refusal_on_refusal") == pytest.approx(expected, abs=FORWARD)

    def test_same_seed_same_table(self, tiny_hooked, activations, table):
        again = geometry.harmfulness_refusal_coupling(
            tiny_hooked, CONTRAST, VALIDATION, METRIC, layer=LAYER, activations=activations
        )
        assert again.equals(table)

    def test_no_validation_prompts(self, tiny_hooked, activations):
        found = geometry.harmfulness_refusal_coupling(
            tiny_hooked, CONTRAST, Split.of([], VALIDATION.harmless.texts), METRIC, layer=LAYER, activations=activations
        ).set_index("measure")
        assert "0 harmful validation prompts" in found.loc["ablate_refusal_on_refusal", "reason"]
        assert "0 harmful validation" in found.loc["ablate_refusal_on_harmfulness", "reason"]
        assert np.isfinite(found.loc["add_refusal_on_refusal", "value"])

    def test_a_layer_without_a_refusal_direction(self, tiny_hooked, activations):
        found = geometry.harmfulness_refusal_coupling(
            tiny_hooked, CONTRAST, VALIDATION, METRIC, layer=0, activations=activations
        )
        rows = found[found["layer"] == -1]
        assert rows["measure"].tolist() == list(coupling.BEHAVIOUR)
        assert rows["value"].isna().all()
        assert rows["reason"].str.contains("refusal direction of layer 0 is zero").all()

    def test_a_layer_that_is_not_there(self, tiny_hooked, activations):
        with pytest.raises(MechrefusalError, match="layer 9"):
            geometry.harmfulness_refusal_coupling(
                tiny_hooked, CONTRAST, VALIDATION, METRIC, layer=9, activations=activations
            )


def test_effect_floor_is_that_of_random_signs():
    changes = np.stack([np.full(30, 2.0), noise(30).numpy().astype(float)])
    found = coupling._effect("m", changes, 0, 1, "harmful", np.random.default_rng(0))
    assert found["value"] == 2
    assert found["random"] == pytest.approx(changes[1].mean())
    half = 1.96 * 2 / np.sqrt(30)
    assert found["floor_high"] == pytest.approx(half, rel=0.15)
    assert found["floor_low"] == pytest.approx(-half, rel=0.15)
    nothing = coupling._effect("m", changes, 1, 0, "harmful", np.random.default_rng(0))
    assert nothing["floor_low"] < nothing["value"] < nothing["floor_high"]
    gap = coupling._effect("m", changes * np.nan, 0, 1, "harmful", np.random.default_rng(0))
    assert "not finite" in gap["reason"]


def test_constant_is_told_from_small():
    small = 1e-3 * noise(6, D).numpy()
    assert not resampling.constant(small)
    assert resampling.constant(1 + 1e-8 * small)
