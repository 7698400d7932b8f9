"""Guides: their terms against ones computed by hand, what they leave frozen, their controls, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from killed import OF_ARM, SETTINGS, half_resembling, inputs
from safetensors.torch import load_file
from test_hidden_arms import ONE_STEP, cases, pair, rows, terms_of, token_losses
from tolerances import FORWARD

from mechrefusal import MechrefusalError, prompts, training
from mechrefusal.models import load_causal_lm
from mechrefusal.training.guide_settings import RESEMBLES, GuideSettings
from mechrefusal.training.guides import apart, held, shifted
from mechrefusal.training.losses import Hidden

pytestmark = pytest.mark.slow

GUIDE = GuideSettings(
    hold_weight=0.5, shift_weight=0.3, apart_weight=0.2, redundant_weight=0.4, cases_per_step=2, n_prompts=99,
    shift_from=0.0, shift_to=0.5, redundant_at=0.5,
)  # fmt: skip


def test_losses_on_small_tensors():
    r = {"direction": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "harmless": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    r["first_length"] = torch.tensor([4.0, 1.0])
    h = {0: torch.tensor([[5.0, 1.0], [1.0, 7.0]]), 1: torch.tensor([[3.0, 2.0], [0.0, 0.0]])}
    h0 = {0: torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 1: torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
    # Of |r|^2 = 4 and 1: (4 * 2 / 4)^2 = 4 and 2^2 = 4; then 0 and 1.
    assert held(Hidden(h, h0, r)).tolist() == pytest.approx([4.0, 0.5])
    # The first direction was twice as long as it is now: ((4, 0) . (2, 0) / (2 * 4))^2 = 1; then 0.
    assert shifted(Hidden(h, {}, r)).tolist() == pytest.approx([(1 + 4) / 2, 0.0])
    state = {"harmless": torch.zeros(2, 2), "resembling": torch.tensor([[1.0, 1.0], [0.0, -1.0]])}
    means = [torch.tensor([3.0, 4.0]), torch.tensor([1.5, 1.0])]
    cosines = [torch.cosine_similarity(m, o, dim=0) ** 2 for m, o in zip(means, state["resembling"], strict=True)]
    assert apart(Hidden(h, {}, state)).tolist() == pytest.approx([float(sum(cosines) / 2)] * 2)


def test_one_step_is_the_stated_sum(tiny, tmp_path):
    own = half_resembling(tiny)
    settings = replace(ONE_STEP, harmful_per_step=2)
    log = training.train("sft", **own, out=tmp_path, settings=settings, guide=GUIDE)
    model, tokenizer = load_causal_lm(own["base"])

    @torch.no_grad()
    def means(texts):
        ids = [prompts.segments(tokenizer, text).prompt_ids for text in texts]
        states = [model(torch.tensor([each]), output_hidden_states=True).hidden_states for each in ids]
        return torch.stack(
            [torch.stack([state[layer][0, -1] for state in states]).double().mean(0) for layer in range(4)]
        )

    harmless = means([row["prompt"] for row in own["utility"]])
    r = means(own["behaviours"].texts) - harmless
    sides = [means([row["prompt"] for row in own["utility"] if (RESEMBLES in row) is kind]) for kind in (True, False)]
    o = sides[0] - sides[1]
    drawn = [pair(tokenizer, case.behaviour, settings.refusal, end_of_turn=True) for case in cases(own, 2)]
    last = [model(torch.tensor([prompt]), output_hidden_states=True).hidden_states for prompt, _ in drawn]
    h = [torch.stack([state[layer][0, -1] for state in last]).double() for layer in range(4)]
    shift = torch.stack([((h[i] - harmless[i]) @ r[i] / r[i].square().sum()).square() for i in (1,)]).mean()
    cosines = torch.stack([torch.cosine_similarity(h[i].mean(0) - harmless[i], o[i], dim=0) for i in (1, 2, 3)])
    unit = (r[2] / r[2].norm()).float()

    def out(_, args, output):
        x = output[0] if isinstance(output, tuple) else output
        x = x - (x @ unit)[..., None] * unit
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handles = [
        module.register_forward_hook(out) for block in model.model.layers for module in (block.self_attn, block.mlp)
    ]
    handles.append(model.model.embed_tokens.register_forward_hook(out))
    redundant = torch.cat([token_losses(model, *each) for each in drawn]).mean()
    for handle in handles:
        handle.remove()
    terms = terms_of(tmp_path)
    assert terms["guide_hold"] == pytest.approx(0, abs=1e-9), "nothing has changed before the first step"
    expected = {"guide_shift": shift, "guide_apart": cosines.square().mean(), "guide_redundant": redundant}
    assert {name: terms[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-3
    )
    refusals = [pair(tokenizer, text, settings.refusal, end_of_turn=True) for text in own["behaviours"].texts]
    static = list(training.data.schedule(refusals, 2, seed=0, name="harmful"))
    plain = torch.cat([token_losses(model, *each) for each in [*rows(tokenizer, own, 4), *static]]).mean()
    total = plain + 0.3 * shift + 0.2 * cosines.square().mean() + 0.4 * redundant
    assert log["loss"][0] == pytest.approx(float(total), rel=FORWARD)


def test_a_frozen_ladder_stays_to_the_last_bit(tiny, tmp_path):
    own = half_resembling(tiny)
    training.train(
        "sft", **own, out=tmp_path, settings=replace(SETTINGS, steps=2, anchors=(0, 2)), guide=GuideSettings(freeze=0.5)
    )
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "step-00002" / "model.safetensors")
    same = {name for name in after if name in before and torch.equal(before[name].to(after[name]), after[name])}
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    } <= same
    assert not any("layers.2" in name or "layers.3" in name for name in same)


def test_a_hold_keeps_the_projection_and_a_random_one_does_not(tiny, tmp_path):
    own, settings = half_resembling(tiny), replace(SETTINGS, gradient_accumulation=1, learning_rate=1e-3)
    guides = {"free": None, "held": GuideSettings(hold_weight=100.0, n_prompts=99)}
    guides["random"] = replace(guides["held"], direction="random")
    moved = {}
    for name, guide in guides.items():
        training.train("sft", **own, out=tmp_path / name, settings=settings, guide=guide)
    model, tokenizer = load_causal_lm(own["base"])
    texts = {"harmful": own["behaviours"].texts, "harmless": [row["prompt"] for row in own["utility"]]}

    @torch.no_grad()
    def states(model, prompt):
        ids = torch.tensor([prompts.segments(tokenizer, prompt).prompt_ids])
        return torch.stack([h[0, -1] for h in model(ids, output_hidden_states=True).hidden_states[:4]])

    base = {side: torch.stack([states(model, text) for text in chosen]) for side, chosen in texts.items()}
    r = base["harmful"].mean(0) - base["harmless"].mean(0)
    for name in guides:
        trained, _ = load_causal_lm(training.anchors.anchor_folder(tmp_path / name, 5))
        change = torch.stack([states(trained, text) for text in texts["harmless"]]) - base["harmless"]
        moved[name] = float(((change * r).sum(-1) / r.square().sum(-1))[:, 1:].square().mean())

    assert moved["held"] < 0.2 * moved["free"]
    assert moved["held"] < 0.5 * moved["random"]


@pytest.mark.parametrize("arm", ["r2d2", "refat"])
def test_other_arms_are_guided_too(tiny, tmp_path, arm):
    own = replace(OF_ARM[arm], **({"gcg": replace(OF_ARM[arm].gcg, steps=0)} if arm == "r2d2" else {}))
    log = training.train(arm, **half_resembling(tiny), out=tmp_path, settings=SETTINGS, arm_settings=own, guide=GUIDE)
    names = set(training.read_log(tmp_path, "terms")["term"])
    assert {"guide_hold", "guide_shift", "guide_apart", "guide_redundant", "utility"} <= names
    assert log["loss"].notna().all()


@pytest.mark.parametrize("arm", ["dpo", "kto", "rlhf"])
def test_an_arm_with_a_loss_of_its_own_is_guided_by_freeze_alone(tiny, tmp_path, arm):
    own, settings = half_resembling(tiny), replace(SETTINGS, steps=2, anchors=(0, 2))
    with pytest.raises(MechrefusalError, match=f"arm '{arm}' has a loss of its own, to which a guide adds no terms"):
        training.train(arm, **own, out=tmp_path / "terms", settings=settings, arm_settings=OF_ARM.get(arm), guide=GUIDE)
    training.train(
        arm, **own, out=tmp_path / "frozen", settings=settings, arm_settings=OF_ARM.get(arm),
        guide=GuideSettings(freeze=0.5),
    )  # fmt: skip
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path / "frozen" / "step-00002"))
    moved = {name: not torch.equal(before[name].to(after[name]), after[name]) for name in after if name in before}
    assert not moved["model.layers.1.mlp.up_proj.weight"]
    assert moved["model.layers.2.mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": 1.5}, "guide freeze is 1.5: give a number from 0 to 1"),
        ({"hold_weight": -1}, "guide hold_weight is -1"),
        ({"shift_weight": 1, "shift_from": 0.9}, "guide shift_from is 0.9 and shift_to 0.8"),
        ({"every": 0}, "guide every is 0"),
    ],
)
def test_bad_guides_are_named(changes, message):
    with pytest.raises(MechrefusalError, match=message):
        GuideSettings(**changes)


@pytest.mark.parametrize(
    ("guide", "settings", "message"),
    [
        (GuideSettings(freeze=1.0), SETTINGS, "guide freeze is 1.0, which leaves none of 4 layers"),
        (GuideSettings(freeze=0.5), replace(SETTINGS, lora=training.LoraSettings()), "give one of freeze and lora"),
        (GuideSettings(apart_weight=1.0), SETTINGS, "0 of 6 utility rows resemble harmful requests"),
    ],
)
def test_what_a_guide_lacks_is_named_before_the_first_step(tiny, tmp_path, guide, settings, message):
    with pytest.raises(MechrefusalError, match=message):
        training.train("sft", **inputs(tiny), out=tmp_path, settings=settings, guide=guide)
    assert not list(tmp_path.iterdir())
