"""Rule 5: a forward pass that starts at a layer ends as the whole one does."""

import pytest
import torch
from architectures import FAMILIES
from tolerances import FORWARD, REORDERED

from mechrefusal.causal.patching.resume import logits_from, skipping

TOKENS = torch.randint(3, 1024, (3, 18), generator=torch.Generator().manual_seed(0))


def block_inputs(model, tokens, **arguments):
    kept = []
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    hooks = [(name, lambda value, hook: kept.append(value.detach().clone())) for name in names]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits = model(tokens, **arguments)
    assert len(kept) == model.cfg.n_layers
    return kept, logits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_every_architecture(family, name):
    model, mask = family(name).hooked, torch.ones_like(TOKENS)
    inputs, whole = block_inputs(model, TOKENS)
    for layer, residual in enumerate(inputs):
        given = residual.clone()
        found = logits_from(model, layer, given, mask=mask, cache=None, keep=4)
        torch.testing.assert_close(found.log_softmax(-1), whole[:, -4:].log_softmax(-1), atol=2 * REORDERED, rtol=0)
        assert torch.equal(given, residual)
    assert torch.equal(block_inputs(model, TOKENS)[1], whole), "the model is as before"


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_left_padding(family, name):
    chosen = family(name)
    mask = torch.ones_like(TOKENS)
    mask[0, :7] = 0
    mask[2, :2] = 0
    inputs, _ = block_inputs(chosen.hooked, TOKENS, attention_mask=mask)
    with torch.no_grad():
        expected = [chosen.hf(row[mask[i].bool()][None]).logits[0, -1].log_softmax(-1) for i, row in enumerate(TOKENS)]
    for layer, residual in enumerate(inputs):
        found = logits_from(chosen.hooked, layer, residual, mask=mask, cache=None)[:, -1].log_softmax(-1)
        torch.testing.assert_close(found, torch.stack(expected), atol=2 * FORWARD, rtol=0)


def test_another_residual_changes_what_follows_it(tiny_hooked):
    inputs, whole = block_inputs(tiny_hooked, TOKENS)
    mask = torch.ones_like(TOKENS)
    other = inputs[2].roll(1, dims=0)
    found = logits_from(tiny_hooked, 2, other, mask=mask, cache=None, keep=18)
    torch.testing.assert_close(found.log_softmax(-1), whole.roll(1, dims=0).log_softmax(-1), atol=2 * REORDERED, rtol=0)


def test_blocks_work_again_after_an_exception(tiny_hooked):
    _, whole = block_inputs(tiny_hooked, TOKENS)
    with pytest.raises(KeyError), skipping(tiny_hooked, 3):
        raise KeyError
    assert torch.equal(block_inputs(tiny_hooked, TOKENS)[1], whole)


def test_skipped_blocks_are_not_run(tiny_hooked):
    ran = []
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
    hooks = [(name, lambda value, hook, name=name: ran.append(name)) for name in names]
    inputs, _ = block_inputs(tiny_hooked, TOKENS)
    with tiny_hooked.hooks(fwd_hooks=hooks):
        logits_from(tiny_hooked, 2, inputs[2], mask=torch.ones_like(TOKENS), cache=None)
    assert ran == names[2:]
