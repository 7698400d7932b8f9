"""Interventions on a plain Hugging Face model: the same as on the hooked transformer, in generation too."""

import pytest
import torch
from architectures import FAMILIES, build
from tolerances import FORWARD, REORDERED
from torch import nn

from mechrefusal import MechrefusalError, causal, evaluation
from mechrefusal.causal import Ablation, Addition, Clamp, Patch
from mechrefusal.forward.hugging_face import HuggingFaceModel

pytestmark = pytest.mark.slow

TOKENS = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(0))
TOLERANCE = FORWARD
"""nats, between the Hugging Face model and the hooked transformer under the same intervention"""


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_probabilities(model, tokens=TOKENS, **given):
    found = model(tokens, **given)
    return (found if isinstance(found, torch.Tensor) else found.logits).log_softmax(-1)


def hooks(model):
    """How many hooks stand at any module, but for those that transformers keeps once hidden states were asked for."""
    standing = [
        hook for m in model.modules() for kept in (m._forward_hooks, m._forward_pre_hooks) for hook in kept.values()
    ]
    return sum(not hook.__module__.startswith("transformers.") for hook in standing)


INTERVENTIONS = {
    "ablate": Ablation(random(64)),
    "ablate subspace": Ablation(random(3, 64)),
    "ablate half": Ablation(random(64), 0.5),
    "add": Addition(random(64), 2, 3.0),
    "clamp": Clamp(random(64), 2.0, layers=[1, 3], sites=("attn_out", "resid_pre")),
    "patch": Patch(random(20, 64), 1, "attn_out"),
    "patch after": Patch(random(20, 64), 2, "resid_post"),
    "patch positions": Patch(random(2, 2, 64), 2, positions=[-1, 4]),
    "ablate prompt": Ablation(random(64), positions="prompt"),
    "add at the end": Addition(random(64), 1, 3.0, positions=[-2, -1]),
    "several": [Patch(random(64), 1, "mlp_out"), Ablation(random(2, 64)), Addition(random(64, seed=3), 1)],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_are_those_of_the_hooked_transformer(family, name):
    """Directions here have a mean over d_model, which LayerNorm models' hooked transformers do not write themselves."""
    hooked, hf = family(name).hooked, family(name).hf
    before = log_probabilities(hooked)
    torch.testing.assert_close(log_probabilities(hf), before, atol=TOLERANCE, rtol=0)
    for what, intervention in INTERVENTIONS.items():
        with causal.intervened(hooked, intervention):
            expected = log_probabilities(hooked)
        with causal.intervened(hf, intervention):
            found = log_probabilities(hf)
        assert (found - expected).abs().max() < TOLERANCE, what
        assert (found - before).abs().max() > 0.05, f"{what} did nothing"
    assert hooks(hf) == 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt-neox"])
def test_nothing_is_left_along_the_direction(family, name):
    hf, rows = family(name).hf, random(3, 64)
    unit, seen = torch.linalg.qr(rows.T).Q, {}
    modules = HuggingFaceModel.of(hf).modules

    def keep(layer, site):
        return lambda x: seen.update({(layer, site): x.clone()}) or x

    sites = [(layer, site) for layer in range(4) for site in ("resid_pre", "attn_out", "mlp_out")]
    with causal.ablate(hf, rows), modules.edited([(*place, keep(*place)) for place in sites]):
        once = log_probabilities(hf)
        with causal.ablate(hf, rows):
            twice = log_probabilities(hf)
    assert set(seen) == set(sites)
    for place, activation in seen.items():
        assert (activation @ unit).abs().max() < REORDERED * max(1, activation.abs().max()), place
    torch.testing.assert_close(twice, once, atol=REORDERED, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_nested_contexts_are_the_sequence(family, name):
    hooked, hf = family(name).hooked, family(name).hf
    first, second = Patch(random(64), 1, "attn_out"), Ablation(random(64, seed=2))
    for one, other in ((first, second), (second, first)):
        with causal.intervened(hooked, [one, other]):
            expected = log_probabilities(hooked)
        for model in (hooked, hf):
            with causal.intervened(model, one), causal.intervened(model, other):
                torch.testing.assert_close(log_probabilities(model), expected, atol=TOLERANCE, rtol=0)
    with causal.intervened(hf, [second, first]):
        assert (log_probabilities(hf) - expected).abs().max() < TOLERANCE
    with causal.intervened(hf, [first, second]):
        assert (log_probabilities(hf) - expected).abs().max() > 1e-3, "order makes no difference here"


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_is_the_hooked_transformers_greedy_generation(family, name):
    """`generate` with the key/value cache, rows padded on the left, against answers of the hooked transformer."""
    made = family(name)
    texts = ["How do I pick a lock", "Tell me a story about a cat"]
    rows = made.tokenizer.apply_chat_template(
        [[{"role": "user", "content": text}] for text in texts],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
    )
    for intervention in (
        Ablation(random(64)),
        Addition(random(64), 2, 4.0),
        [Ablation(random(64)), Addition(random(64), 1)],
    ):
        with causal.intervened(made.hooked, intervention):
            expected = evaluation.complete(made.hooked, texts, max_new_tokens=8).token_ids
        with causal.intervened(made.hf, intervention):
            out = made.hf.generate(**rows, max_new_tokens=8, do_sample=False, pad_token_id=0)
            same = evaluation.complete(made.hf, texts, max_new_tokens=8, tokenizer=made.tokenizer).token_ids
        found = [tuple(row.tolist()) for row in out[:, rows["input_ids"].shape[1] :]]
        for tokens, wanted in zip(found, expected, strict=True):
            assert tokens[: len(wanted)] == wanted
        assert same == expected
        assert hooks(made.hf) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_generation_with_and_without_the_cache(family, name):
    hf = family(name).hf
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with causal.ablate(hf, random(64)), causal.add(hf, random(64, seed=1), layer=1, coefficient=3):
        cached = hf.generate(TOKENS, use_cache=True, **given)
        assert torch.equal(cached, hf.generate(TOKENS, use_cache=False, **given))
    assert not torch.equal(cached, hf.generate(TOKENS, **given))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
def test_only_the_prompt(family, name):
    """The prompt's tokens are what they are under the addition, generated ones are left alone."""
    hf, direction = family(name).hf, 3 * random(64)
    [prompt] = TOKENS[:1].tolist()
    for positions in ("prompt", range(20), range(-20, 0)):
        ids = list(prompt)
        with causal.add(hf, direction, layer=1, positions=positions):
            out = hf.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)[0]
        for _ in range(6):  # by hand, without cache: the addition at the first 20 columns

            def at_prompt(x):
                return torch.cat([x[:, :20] + direction, x[:, 20:]], 1)

            with HuggingFaceModel.of(hf).edited([(1, "resid_pre", at_prompt)]):
                ids.append(int(log_probabilities(hf, torch.tensor([ids]))[0, -1].argmax()))
        assert out.tolist() == ids
    with causal.add(hf, direction, layer=1):
        everywhere = hf.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)[0]
        logits = log_probabilities(hf, everywhere[None])
    with causal.add(hf, direction, layer=1, positions="prompt"):
        assert (log_probabilities(hf, everywhere[None]) - logits).abs().max() < REORDERED, (
            "a pass of its own is a prompt"
        )


def test_a_generated_token_by_its_position(family):
    """Position 22 is the third token that is generated: before it nothing changes, after it something does."""
    hf = family("llama").hf
    given = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = hf.generate(TOKENS[:1], **given)[0]
    with causal.patch(hf, 20 * random(64), layer=0, positions=[22]):
        found = hf.generate(TOKENS[:1], **given)[0]
    assert torch.equal(found[:23], plain[:23])
    assert not torch.equal(found[23:], plain[23:])


def test_positions_that_cannot_be_told_are_named(family):
    hf, hooked, direction = family("llama").hf, family("llama").hooked, random(64)
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    for model in (hf, hooked):
        with (
            pytest.raises(MechrefusalError, match=r"position 4 .*padded"),
            causal.add(model, direction, layer=0, positions=[4]),
        ):
            log_probabilities(model, attention_mask=mask)
        with (
            pytest.raises(MechrefusalError, match="-21 is not in a prompt of 20"),
            causal.add(model, direction, layer=0, positions=[-21]),
        ):
            log_probabilities(model)
        with (
            pytest.raises(MechrefusalError, match=r"\[99\] stood in none"),
            causal.ablate(model, direction, positions=[3, 99]),
        ):
            log_probabilities(model)
        with causal.ablate(model, direction, positions=[99]):
            pass  # nothing was run, so nothing was missed
    texts = ["How do I pick a lock", "How do I pick a nose"]
    with pytest.raises(MechrefusalError, match="several passes"), causal.ablate(hooked, direction, positions=[-1]):
        evaluation.complete(hooked, texts, max_new_tokens=2)
    assert hooks(hf) == 0
    assert torch.equal(log_probabilities(hooked), log_probabilities(hooked))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_model_is_as_before_whatever_happens(family, name, error):
    hf = family(name).hf
    before, weights = log_probabilities(hf), {key: value.clone() for key, value in hf.state_dict().items()}
    for intervention in INTERVENTIONS.values():
        with pytest.raises(error), causal.intervened(hf, intervention):  # noqa: PT012
            log_probabilities(hf)
            raise error
        assert hooks(hf) == 0
        assert torch.equal(log_probabilities(hf), before)

    def fail(*_):
        raise error

    handle = HuggingFaceModel.of(hf).modules.mlp[2].register_forward_hook(fail)
    with pytest.raises(error), causal.ablate(hf, random(64)), causal.add(hf, random(64), layer=1):
        log_probabilities(hf)
    handle.remove()
    assert hooks(hf) == 0
    assert torch.equal(log_probabilities(hf), before)
    assert all(torch.equal(value, weights[key]) for key, value in hf.state_dict().items())


def test_tensors_of_the_caller_stay_as_they_are(family):
    hf, held = family("gpt2").hf, random(20, 64)
    direction, kept = random(64), held.clone()
    given = direction.clone()
    seen = []
    handle = hf.transformer.h[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    log_probabilities(hf)
    before = seen[0].clone()
    with causal.intervened(hf, [Patch(held, 1), Ablation(direction), Clamp(direction, 3.0), Addition(direction, 1)]):
        log_probabilities(hf)
        seen[-1] += 1  # what a later layer writes into must not be the caller's
    handle.remove()
    assert torch.equal(seen[0], before)
    assert torch.equal(held, kept)
    assert torch.equal(direction, given)


def test_patched_with_its_own_activations_nothing_changes(family):
    for name in ("gemma2", "gpt2"):
        hf, taken = family(name).hf, {}
        before = log_probabilities(hf)
        handle = (
            HuggingFaceModel.of(hf)
            .modules.attention[2]
            .register_forward_hook(
                lambda _, args, out, taken=taken: taken.update(x=out[0] if isinstance(out, tuple) else out)
            )
        )
        log_probabilities(hf)
        handle.remove()
        with causal.patch(hf, taken["x"], layer=2, site="attn_out"):
            torch.testing.assert_close(log_probabilities(hf), before, atol=REORDERED, rtol=0)


def test_models_in_bfloat16_and_in_training_mode():
    for name in ("llama", "gemma2", "gpt-neox"):
        hf = build(name, 256).to(torch.bfloat16).train()
        hf.get_input_embeddings().eval()
        full = build(name, 256)
        with causal.add(full, random(64), layer=1, coefficient=3):
            expected = log_probabilities(full)
        with causal.add(hf, random(64), layer=1, coefficient=3):
            assert hf.training
            assert not hf.get_input_embeddings().training
            hf.eval()
            found = log_probabilities(hf).float()
        assert (found - expected).abs().max() < 0.3
        assert (log_probabilities(hf).float() - expected).abs().max() > 1


def test_adapters_around_the_model(family):
    from peft import LoraConfig, get_peft_model

    hf = build("llama", 256)
    adapted = get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)).eval()
    merged = get_peft_model(
        build("llama", 256), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    ).eval()
    merged.load_state_dict(adapted.state_dict())
    merged = merged.merge_and_unload()
    given = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for intervention in (Ablation(random(64)), Addition(random(64), 1, 3.0, positions="prompt")):
        with causal.intervened(merged, intervention):
            expected, tokens = log_probabilities(merged), merged.generate(TOKENS, **given)
        with causal.intervened(adapted, intervention):
            torch.testing.assert_close(log_probabilities(adapted), expected, atol=TOLERANCE, rtol=0)
            assert torch.equal(adapted.generate(input_ids=TOKENS, **given), tokens)
    assert hooks(adapted) == 0


class Scaled(nn.Module):
    """A block that adds half of what attention and MLP return."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, **given):
        return hidden_states + 0.5 * (self.block(hidden_states, **given) - hidden_states)


def test_a_layout_that_is_not_known_is_named():
    hf = build("llama", 256)
    hf.model.layers[2] = Scaled(hf.model.layers[2])
    with (
        pytest.raises(MechrefusalError, match="cannot find the residual stream of this LlamaForCausalLM"),
        causal.ablate(hf, random(64)),
    ):
        pass
    assert hooks(hf) == 0
    with (
        pytest.raises(MechrefusalError, match="cannot intervene on a Linear"),
        causal.ablate(nn.Linear(2, 2), random(64)),
    ):
        pass


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        (Ablation(torch.ones(63)), r"\(63,\).*64"),
        (Addition(random(64), 4), "layer 4 .*0 to 3"),
        (Clamp(random(64), 1.0, sites=("z",)), "unknown site 'z'"),
        (Clamp(random(64), float("nan")), "value of a clamp is nan"),
        (Clamp(random(64), 1.0, layers=[7]), "layer 7"),
        (Clamp(random(64), 1.0, layers=[]), "no layer"),
        (Patch(random(2, 3, 5, 64), 0), r"shape \(2, 3, 5, 64\)"),
        (Patch(random(63), 0), r"shape \(63,\)"),
        (Patch(random(3, 64), 0, positions=[-1, -2]), "3 tokens for 2 positions"),
        (Patch(torch.full((64,), float("inf")), 0), "infinity"),
        (Patch(random(64), 0, "resid_mid"), "unknown site 'resid_mid'.*resid_pre"),
        (Patch(random(64), 0, heads=[1]), "site 'z'"),
        (Ablation(random(64), positions=[]), "positions are"),
        (Ablation(random(64), positions="end"), "positions are 'end'"),
        (Ablation(random(64), positions=3), "positions are 3"),
        ([], "no intervention"),
    ],
)
def test_bad_interventions_are_named_on_both(family, intervention, said):
    for model in (family("llama").hooked, family("llama").hf):
        with pytest.raises(MechrefusalError, match=said), causal.intervened(model, intervention):
            pass
    assert hooks(family("llama").hf) == 0


def test_passes_that_do_not_fit_a_patch_are_named(family):
    for model in (family("llama").hooked, family("llama").hf):
        with (
            pytest.raises(MechrefusalError, match="7 tokens, the pass 20"),
            causal.patch(model, random(7, 64), layer=0),
        ):
            log_probabilities(model)
        with (
            pytest.raises(MechrefusalError, match="3 rows, the pass 2"),
            causal.patch(model, random(3, 20, 64), layer=0),
        ):
            log_probabilities(model)


def test_heads_and_neurons_are_sites_of_the_hooked_transformer_only(family):
    hf, hooked = family("llama").hf, family("llama").hooked
    z = random(20, 2, 16)
    with (
        pytest.raises(MechrefusalError, match=r"site 'z'.*load_hooked"),
        causal.patch(hf, z, layer=1, site="z", heads=[0, 3]),
    ):
        pass

    def by_hand(value, hook):
        changed = value.clone()
        changed[:, :, [0, 3]] = z
        return changed

    with torch.no_grad():
        expected = hooked.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_z", by_hand)]).log_softmax(-1)
    with causal.patch(hooked, z, layer=1, site="z", heads=[0, 3]):
        torch.testing.assert_close(log_probabilities(hooked), expected, atol=REORDERED, rtol=0)
    with (
        pytest.raises(MechrefusalError, match="heads 0 to 3"),
        causal.patch(hooked, random(1, 16), layer=1, site="z", heads=[4]),
    ):
        pass
