"""Dose-response of a planted refusal direction, the doses themselves, and the areas by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from tolerances import FORWARD, REORDERED
from transformers import LlamaForCausalLM

from mechrefusal import MechrefusalError, causal, forward, geometry, models, prompts, tables
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.forward.unhooked import Site
from mechrefusal.geometry import doses

N_LAYERS, LAYER, REFUSE, COMPLY, U = 4, 2, 500, 501, 2
METRIC = RefusalMetric((), (REFUSE,), (COMPLY,))
HARMFUL = ["Make a bomb now", "Steal one car", "Burn the home", "Sell a bomb"]
HARMLESS = ["Bake a cake", "Wash one car", "Paint the home", "Sell a chair", "Sing"]
COEFFICIENTS = (-2, -1, -0.5, 0.5, 1, 2)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Every embedding holds u, no layer writes it, and the refusal token reads it."""
    folder = models.tiny.make(tmp_path_factory.mktemp("dosed") / "model", n_layers=N_LAYERS, tied=False)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, U] = 0.2
        for block in model.model.layers:
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight[U] = 0
            for weight in (block.self_attn.q_proj.weight, block.self_attn.k_proj.weight, block.self_attn.v_proj.weight):
                weight[:, U] = 0
            for weight in (block.mlp.gate_proj.weight, block.mlp.up_proj.weight):
                weight[:, U] = 0
        model.lm_head.weight[[REFUSE, COMPLY]] = 0
        model.lm_head.weight[REFUSE, U] = 2
    model.save_pretrained(folder)
    return models.load_hooked(folder)


@pytest.fixture(scope="module")
def direction(planted):
    found = torch.zeros(planted.cfg.d_model)
    found[U] = 0.5
    return found


def placed(direction):
    return Direction(direction, layer=LAYER)


@pytest.fixture(scope="module")
def found(planted, direction):
    return geometry.dose_response(planted, placed(direction), HARMFUL, HARMLESS, METRIC, coefficients=COEFFICIENTS)


def curve(found, intervention, measure, column="value"):
    rows = found.table[(found.table["intervention"] == intervention) & (found.table["measure"] == measure)]
    assert rows["coefficient"].is_monotonic_increasing
    return rows.set_index("coefficient")[column]


def scores(model, texts):
    ids = prompts.prompt_ids(model.tokenizer, texts)
    return forward.refusal_scores(model, ids, METRIC)


class TestDoses:
    @pytest.mark.parametrize("dose", [-2.0, -0.5, 0.25, 1.0, 1.5])
    def test_dose_leaves_the_rest_of_the_component_at_every_layer(self, tiny_hooked, dose):
        """resid_pre of layer l holds 1 − dose of what was written to it so far, write by write."""
        generator = torch.Generator().manual_seed(0)
        along = torch.randn(tiny_hooked.cfg.d_model, generator=generator)
        unit = along / along.norm()
        seen: dict[tuple[int, Site], torch.Tensor] = {}
        sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")

        def look(layer, site):
            def keep(activation, hook):
                seen[layer, site] = activation @ unit

            return f"blocks.{layer}.hook_{site}", keep

        hooks = [look(layer, site) for layer in range(tiny_hooked.cfg.n_layers) for site in sites]
        # Hooks run in order: these see what is written before the dose is taken of it.
        with tiny_hooked.hooks(fwd_hooks=hooks), causal.ablate(tiny_hooked, along, dose=dose):
            tiny_hooked(torch.tensor([[1, 300, 301, 302]]))
        written = seen[0, "resid_pre"]
        for layer in range(1, tiny_hooked.cfg.n_layers):
            written = written + seen[layer - 1, "attn_out"] + seen[layer - 1, "mlp_out"]
            assert written.abs().max() > 1e-2
            assert torch.allclose(seen[layer, "resid_pre"], (1 - dose) * written, atol=REORDERED)

    def test_the_planted_component_is_scaled(self, planted, direction):
        ids = prompts.prompt_ids(planted.tokenizer, HARMFUL)
        for dose in (-1.0, 0.5, 2.0):
            with causal.ablate(planted, direction, dose=dose):
                left = geometry.activations.collect(planted, ids, [(-1, layer) for layer in range(N_LAYERS)])[..., U]
            assert left.numpy() == pytest.approx(0.2 * (1 - dose), abs=REORDERED)


class TestCurves:
    def test_adding_refusal_refuses_by_degrees(self, found):
        for measure in ("refusal_harmful", "refusal_harmless"):
            rising = curve(found, "induce", measure)
            assert (np.diff(rising) > 0.05).all()
        share = curve(found, "induce", "refused_harmless")
        assert share[-2] == 0
        assert share[2] == 1

    def test_ablating_refusal_answers_by_degrees(self, found):
        falling = curve(found, "ablate", "refusal_harmful")
        assert (np.diff(falling) < -0.05).all()
        assert falling[1] == pytest.approx(0, abs=FORWARD), "nothing is left for the refusal token to read"

    def test_random_directions_do_little(self, found):
        for name in ("ablate", "induce"):
            planted, control = (curve(found, each, "refusal_harmful") for each in (name, f"{name}_random"))
            assert control.index.tolist() == [-2, -0.5, 0, 0.5, 2], "every other one, both ends and 0"
            assert np.abs(control - control[0]).max() < 0.5 * np.abs(planted - planted[0]).max()

    def test_coefficient_0_is_no_intervention(self, planted, found):
        expected = {
            "refusal_harmful": scores(planted, HARMFUL).mean().item(),
            "refusal_harmless": scores(planted, HARMLESS).mean().item(),
            "kl_harmless": 0,
        }
        for name in ("ablate", "induce", "ablate_random", "induce_random"):
            for measure, value in expected.items():
                assert curve(found, name, measure)[0] == pytest.approx(value, abs=FORWARD)
            assert curve(found, name, "loss_harmless")[0] == curve(found, "ablate", "loss_harmless")[0]

    @pytest.mark.parametrize("coefficient", [-2, 0.5, 1])
    def test_values_against_plain_hooks(self, planted, direction, found, coefficient):
        with causal.add(planted, direction, layer=LAYER, coefficient=coefficient):
            harmful, harmless = scores(planted, HARMFUL), scores(planted, HARMLESS)
        assert curve(found, "induce", "refusal_harmful")[coefficient] == pytest.approx(
            harmful.mean().item(), abs=FORWARD
        )
        assert curve(found, "induce", "refusal_harmless")[coefficient] == pytest.approx(
            harmless.mean().item(), abs=FORWARD
        )
        assert curve(found, "induce", "refused_harmless")[coefficient] == (harmless > 0).double().mean().item()
        with causal.ablate(planted, direction, dose=coefficient):
            harmful = scores(planted, HARMFUL)
        assert curve(found, "ablate", "refusal_harmful")[coefficient] == pytest.approx(
            harmful.mean().item(), abs=FORWARD
        )

    def test_every_value_is_kept(self, planted, direction, found):
        with causal.add(planted, direction, layer=LAYER, coefficient=0.5):
            harmful, harmless = (scores(planted, texts).double().numpy() for texts in (HARMFUL, HARMLESS))
        named = {"intervention": "induce", "coefficient": 0.5}
        for measure, expected in (("refusal_harmful", harmful), ("refusal_harmless", harmless)):
            np.testing.assert_allclose(found.observations.of(measure=measure, **named), expected, atol=FORWARD)
            interval, estimate = (
                stats.ttest_1samp(expected, 0).confidence_interval(),
                found.interval(measure=measure, **named),
            )
            assert (estimate.low, estimate.high) == pytest.approx(tuple(interval), abs=2 * FORWARD)
        refused = found.observations.of(measure="refused_harmless", **named)
        assert refused.tolist() == (harmless > 0).tolist()
        wilson = stats.binomtest(int(refused.sum()), len(refused)).proportion_ci(method="wilson")
        share = found.interval(measure="refused_harmless", **named)
        assert (share.low, share.high) == pytest.approx((wilson.low, wilson.high))
        for row in found.table.itertuples():
            estimate = found.interval(intervention=row.intervention, coefficient=row.coefficient, measure=row.measure)
            assert (estimate.value, estimate.low, estimate.high, estimate.n) == (row.value, row.low, row.high, row.n)

    def test_loss_and_kl_against_plain_hooks(self, planted, direction):
        text, answer = "Bake a cake", [300, 301, 302]
        found = geometry.dose_response(
            planted, placed(direction), HARMFUL, [text], METRIC, answers=[answer], coefficients=[1]
        )
        (ids,) = prompts.prompt_ids(planted.tokenizer, [text])
        whole = torch.tensor([[*ids, *answer]])
        plain = planted(whole).log_softmax(-1)[0, len(ids) - 1 : -1]
        with causal.add(planted, direction, layer=LAYER):
            changed = planted(whole).log_softmax(-1)[0, len(ids) - 1 : -1]
        for coefficient, likely in ((0, plain), (1, changed)):
            expected = -likely[torch.arange(3), torch.tensor(answer)].mean().item()
            assert curve(found, "induce", "loss_harmless")[coefficient] == pytest.approx(expected, abs=FORWARD)
        expected = (plain[0].exp() * (plain[0] - changed[0])).sum().item()
        assert expected > 1e-3
        assert curve(found, "induce", "kl_harmless")[1] == pytest.approx(expected, rel=0.05)

    def test_own_answers_are_greedy(self, planted, direction, found):
        ids = prompts.prompt_ids(planted.tokenizer, HARMLESS)
        answers = doses._own_answers(planted, ids)
        assert len(answers) == len(HARMLESS)
        for prompt, answer in zip(ids, answers, strict=True):
            assert 0 < len(answer) <= doses.ANSWER_TOKENS
            likeliest = planted(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 :].argmax(-1).tolist()
            assert likeliest[:-1] == answer
            assert len(answer) == doses.ANSWER_TOKENS or likeliest[-1] == planted.tokenizer.eos_token_id
        again = geometry.dose_response(
            planted, placed(direction), HARMFUL, HARMLESS, METRIC, coefficients=COEFFICIENTS, answers=answers
        )
        pd.testing.assert_frame_equal(again.table, found.table)
        pd.testing.assert_frame_equal(again.area, found.area)

    def test_columns_and_counts(self, found):
        assert list(found.table) == list(tables.columns("doses")[3:])
        assert list(found.area) == list(tables.columns("utility_coupling")[3:])
        assert len(found.table) == (7 + 7 + 5 + 5) * 5
        n = found.table.groupby("measure")["n"].unique().map(list).to_dict()
        assert n == {measure: [4 if measure == "refusal_harmful" else 5] for measure in doses.MEASURES}
        inside = found.table[["low", "value", "high"]].to_numpy(float)
        assert (inside[:, 0] <= inside[:, 1]).all()
        assert (inside[:, 1] <= inside[:, 2]).all()


class TestAreas:
    @pytest.mark.parametrize("name", ["ablate", "induce"])
    def test_by_hand_from_the_table(self, found, name):
        def areas(which):
            curves = [curve(found, which, measure) for measure in ("refusal_harmful", "loss_harmless")]
            return [integrate.trapezoid(np.abs(each - each[0]), each.index) for each in curves]

        rows = found.area[found.area["intervention"] == name].set_index("measure")
        moved, cost = areas(name)
        assert rows.loc["area_between", "value"] == pytest.approx(moved - cost, rel=1e-5)
        assert rows.loc["cost_per_refusal", "value"] == pytest.approx(cost / moved, rel=1e-5)
        moved, cost = areas(f"{name}_random")
        assert rows.loc["area_between", "random"] == pytest.approx(moved - cost, rel=1e-5)
        assert rows.loc["cost_per_refusal", "random"] == pytest.approx(cost / moved, rel=1e-5)
        assert (rows["low"] <= rows["value"]).all()
        assert (rows["value"] <= rows["high"]).all()
        assert (rows["low"] < rows["high"]).all()
        assert set(rows["n"]) == {9}

    def measured(self, moved, cost, doses_=(-1.0, 0.0, 1.0)):
        curves = {"refusal_harmful": np.array(moved, float), "loss_harmless": np.array(cost, float)}
        rows = doses._areas("induce", doses_, curves, doses_, curves, np.random.default_rng(0))
        return pd.DataFrame(rows).set_index("measure")

    def test_a_known_pair_of_curves(self):
        # Refusal −4, 0, 4 and loss +1, 0, +1: areas 4 and 1, whatever prompts are drawn.
        found = self.measured([[-3] * 4, [1] * 4, [5] * 4], [[3] * 4, [2] * 4, [3] * 4])
        for measure, value in (("area_between", 3), ("cost_per_refusal", 0.25)):
            assert found.loc[measure, ["value", "low", "high", "random"]].tolist() == pytest.approx([value] * 4)

    def test_interval_holds_the_noise_of_the_prompts(self):
        spread = np.random.default_rng(0).normal(size=(1, 40))
        found = self.measured(np.vstack([0 * spread - 4, 0 * spread, 4 + spread]), np.ones((3, 40)))
        row = found.loc["area_between"]
        half = 2.02 * spread.std(ddof=1) / np.sqrt(40) / 2
        assert row["high"] - row["value"] == pytest.approx(half, rel=0.2)
        assert row["value"] - row["low"] == pytest.approx(half, rel=0.2)
        assert found.loc["cost_per_refusal", "value"] == 0

    def test_nothing_is_moved(self):
        found = self.measured(np.ones((3, 4)), [[3] * 4, [2] * 4, [3] * 4])
        assert found.loc["area_between", "value"] == -1
        assert np.isnan(found.loc["cost_per_refusal", "value"])
        assert "does not move the refusal score" in found.loc["cost_per_refusal", "reason"]

    @pytest.mark.parametrize(
        ("moved", "cost", "reason"),
        [
            (np.ones((3, 4)), np.empty((3, 0)), "with nothing"),
            (np.ones((3, 4)) * np.nan, np.ones((3, 4)), "not finite"),
        ],
    )
    def test_what_cannot_be_taken_says_why(self, moved, cost, reason):
        found = self.measured(moved, cost)
        assert found[["value", "low", "high", "random"]].isna().all().all()
        assert found["reason"].str.contains(reason).all()

    def test_one_prompt_has_no_interval(self, planted, direction):
        found = geometry.dose_response(planted, placed(direction), HARMFUL[:1], HARMLESS[:1], METRIC, coefficients=[1])
        assert np.isfinite(found.area["value"]).all()
        assert found.area[["low", "high"]].isna().all().all()
        assert np.isfinite(found.table["value"]).all()

    def test_empty_answers(self, planted, direction):
        answers = [[], [300], [], [301, 302], []]
        asked = (planted, placed(direction), HARMFUL, HARMLESS, METRIC)
        found = geometry.dose_response(*asked, answers=answers, coefficients=[1])
        assert set(found.table[found.table["measure"] == "loss_harmless"]["n"]) == {2}
        losses = found.observations.where(intervention="induce", coefficient=1, measure="loss_harmless").values[:, 0]
        assert np.flatnonzero(np.isfinite(losses)).tolist() == [4 + 1, 4 + 3], "the prompts that have an answer"
        found = geometry.dose_response(*asked, answers=[[]] * 5, coefficients=[1])
        assert found.table[found.table["measure"] == "loss_harmless"]["value"].isna().all()
        assert found.area["reason"].str.contains("with nothing").all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"harmful": []}, "got 0 and 5"),
        ({"harmless": []}, "got 4 and 0"),
        ({"direction": Direction(torch.zeros(64), layer=LAYER)}, "zero or not finite"),
        ({"direction": Direction(torch.ones(3), layer=LAYER)}, "width 64"),
        ({"direction": Direction(torch.ones(64), layer=4)}, "layer 4"),
        ({"direction": Direction(torch.ones(64))}, "nothing says at which layer"),
        ({"coefficients": [0]}, "besides 0"),
        ({"coefficients": [1, float("inf")]}, "finite"),
        ({"answers": [[300]]}, "5 harmless prompts came with 1 answers"),
    ],
)
def test_errors(planted, direction, change, named):
    arguments = {"direction": placed(direction), "harmful": HARMFUL, "harmless": HARMLESS, "metric": METRIC}
    with pytest.raises(MechrefusalError, match=named):
        geometry.dose_response(planted, **(arguments | change))
