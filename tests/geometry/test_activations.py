"""Streamed activations against the Hugging Face model's hidden states, one prompt at a time."""

import numpy as np
import pytest
import torch
from runners import through_hooks
from tolerances import FORWARD, REORDERED

from mechrefusal import MechrefusalError, prompts
from mechrefusal.causal import Ablation, Addition, intervened
from mechrefusal.forward.unhooked import unhooked
from mechrefusal.geometry.activations import collect, stream

TEXTS = ["Tell me how to wash a car.", "Bake bread", "Explain how to swim across a cold river", "x", "Build a bomb"]


@pytest.fixture(scope="module")
def token_ids(tiny_hooked):
    return prompts.prompt_ids(tiny_hooked.tokenizer, TEXTS)


@pytest.fixture(scope="module")
def states(tiny_hf, token_ids):
    """For each prompt (layer, position, d_model): the input of every block."""
    model, _ = tiny_hf
    with torch.no_grad():
        found = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1] for ids in token_ids]
    return [torch.cat(each).numpy() for each in found]


@pytest.mark.parametrize("chunk", [1, 2, 8])
@pytest.mark.parametrize("layers", [None, [3, 1]])
@pytest.mark.parametrize("positions", [(-1,), (-6, -2, -3)])
def test_stream_is_the_plain_hidden_states_in_order(tiny_hooked, token_ids, states, chunk, layers, positions):
    parts = list(stream(tiny_hooked, token_ids, positions=positions, layers=layers, chunk=chunk))
    assert [len(part) for part in parts] == [len(TEXTS[start : start + chunk]) for start in range(0, 5, chunk)]
    found = torch.cat(parts)
    assert found.dtype == torch.float32
    rows = list(range(4)) if layers is None else layers
    expected = np.stack([each[rows][:, list(positions)].swapaxes(0, 1) for each in states])
    np.testing.assert_allclose(found.numpy(), expected, atol=REORDERED)


def test_collect_takes_each_place(tiny_hooked, token_ids, states):
    places = [(-1, 2), (-6, 0), (-1, 2), (-3, 3)]
    found = collect(tiny_hooked, token_ids, places)
    expected = np.stack([[each[layer, position] for position, layer in places] for each in states])
    np.testing.assert_allclose(found.numpy(), expected, atol=REORDERED)


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt-neox"])
def test_stream_under_an_intervention_is_what_hooks_see(family, name, trees, monkeypatch):
    model = family(name).hooked
    if not trees:
        through_hooks(monkeypatch)
    token_ids = prompts.prompt_ids(model.tokenizer, TEXTS)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for under in (Ablation(direction), Addition(direction, 1, 3.0)):
        found = torch.cat(list(stream(model, token_ids, positions=(-1, -4), layers=[2, 0], under=under)))
        seen = {}

        def keep(activation, hook, seen=seen):
            seen[hook.layer()] = activation[0]

        hooks = [(f"blocks.{layer}.hook_resid_pre", keep) for layer in (0, 2)]
        for row, ids in enumerate(token_ids):
            with torch.no_grad(), intervened(model, under), model.hooks(fwd_hooks=hooks):
                model(torch.tensor([ids]))
            expected = torch.stack([torch.stack([seen[layer][place] for layer in (2, 0)]) for place in (-1, -4)])
            torch.testing.assert_close(found[row], expected, atol=FORWARD, rtol=FORWARD)


def test_layers_above_the_wanted_ones_are_not_run(tiny_hooked, token_ids):
    ran = []
    found, _ = unhooked(tiny_hooked)
    with found.skipping([3]):  # the first time it finds out, by a pass of its own, what blocks return
        pass
    with found.edited([(layer, "mlp_out", lambda x, layer=layer: ran.append(layer) or x) for layer in range(4)]):
        list(stream(tiny_hooked, token_ids[:1], positions=(-1,), layers=[1]))
    assert ran == [0], "the input of layer 1 is all that is wanted"


def test_a_prompt_at_a_time_is_run_only_when_asked_for(tiny_hooked, token_ids):
    passes = []
    with tiny_hooked.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: passes.append(len(x)))]):
        parts = stream(tiny_hooked, token_ids, positions=(-1,), chunk=2)
        assert passes == []
        next(parts)
        assert passes[-1] == 2
        seen = len(passes)
        next(parts)
        assert len(passes) == seen + 1


@pytest.mark.parametrize("positions", [(), (0,), (-1, 1), (-100,)], ids=str)
def test_positions_that_not_every_prompt_has(tiny_hooked, token_ids, positions):
    with pytest.raises(MechrefusalError, match="do not lie in every prompt"):
        next(stream(tiny_hooked, token_ids, positions=positions))


def test_layers_that_the_model_lacks(tiny_hooked, token_ids):
    with pytest.raises(MechrefusalError, match="layer 4 is not in this model"):
        next(stream(tiny_hooked, token_ids, positions=(-1,), layers=[1, 4]))


def test_no_hooks_stay_when_it_is_left_early(tiny_hooked, token_ids):
    parts = stream(tiny_hooked, token_ids, positions=(-1,), chunk=2)
    next(parts)
    assert not any(point.fwd_hooks for point in tiny_hooked.hook_dict.values())
