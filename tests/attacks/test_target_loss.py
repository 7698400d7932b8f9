"""The target loss of many prompts at once against one plain forward pass a prompt."""

import copy

import pytest
import torch
from tolerances import FORWARD

from mechrefusal.attacks import target_losses
from mechrefusal.attacks.budget import Budget
from mechrefusal.attacks.target_loss import Beginnings, mean_losses, token_losses
from mechrefusal.forward.tree_forward import TreeForward


def ids(seed: int, n: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 900, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def plain(model, prompts, targets) -> torch.Tensor:
    """Mean cross-entropy of each target, in float64 from the logits of a pass of its own."""
    found = []
    for prompt, target in zip(prompts, targets, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1].double()
        found.append(torch.nn.functional.cross_entropy(logits, torch.tensor(target)))
    return torch.stack(found).float()


def asked() -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Prompts in no order, of 1 to 60 tokens: shared beginnings, one in another, the same one with other targets."""
    stem = ids(0, 30)
    prompts = [(*stem, *ids(1, 30)), (900, 5), stem, ids(2, 41), stem[:7], (*stem, 4), stem, (6,), (*stem, *ids(1, 30))]
    targets = [ids(10, 5), (7,), ids(11, 9), ids(12, 1), ids(13, 3), ids(14, 12), ids(15, 2), ids(16, 4), ids(10, 5)]
    return prompts, targets


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "mistral", "qwen3"])
def test_losses_are_those_of_plain_passes_in_the_order_asked_for(family, name):
    model = family(name).hf
    prompts, targets = asked()
    expected = plain(model, prompts, targets)
    found = target_losses(model, prompts, targets)
    assert (found.dtype, found.device.type, found.shape) == (torch.float32, "cpu", (9,))
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).tolist()
    again = target_losses(model, [prompts[i] for i in order], [targets[i] for i in order])
    torch.testing.assert_close(again, expected[order], atol=FORWARD, rtol=0)


def test_prompts_that_occur_again_get_the_same_loss(tiny_hf):
    prompts, targets = asked()
    found = target_losses(tiny_hf[0], [prompts[0]] * 3 + [prompts[2]], [targets[0]] * 3 + [targets[2]])
    assert found[0] == found[1] == found[2] != found[3]


def test_a_prompt_that_ends_where_another_goes_on_as_its_target(tiny_hf):
    """Prompt and target together are the same tokens; what is predicted is not."""
    words = ids(3, 12)
    prompts, targets = [words[:4], words[:9], words[:11]], [words[4:], words[9:], words[11:]]
    torch.testing.assert_close(
        target_losses(tiny_hf[0], prompts, targets), plain(tiny_hf[0], prompts, targets), atol=FORWARD, rtol=0
    )


def test_no_prompts_have_no_losses(tiny_hf):
    found = target_losses(tiny_hf[0], [], [])
    assert (found.dtype, found.shape) == (torch.float32, (0,))


@pytest.mark.parametrize(("prompt", "target"), [((5,), (7,)), (ids(1, 20), (7,)), ((5,), ids(2, 20))])
def test_one_prompt_alone(tiny_hf, prompt, target):
    found = target_losses(tiny_hf[0], [prompt], [target])
    torch.testing.assert_close(found, plain(tiny_hf[0], [prompt], [target]), atol=FORWARD, rtol=0)


def test_every_prompt_has_a_target(tiny_hf):
    with pytest.raises(ValueError, match="shorter"):
        target_losses(tiny_hf[0], [(1, 2), (3,)], [(4,)])


@pytest.mark.parametrize("size", [1, 2, 100])
def test_batches_change_nothing(tiny_hf, size):
    model = tiny_hf[0]
    prompts, targets = asked()
    found = target_losses(model, prompts, targets, budget=Budget(model, at_most=size))
    torch.testing.assert_close(found, plain(model, prompts, targets), atol=FORWARD, rtol=0)


def test_what_prompts_begin_with_in_common_is_run_once(tiny_hf, monkeypatch):
    model = tiny_hf[0]
    prompts, targets = [(*ids(0, 40), n) for n in range(20, 50)], [(7, 8)] * 30
    TreeForward(model)  # the check of what the model can do is no part of the count
    ran, run = [], TreeForward.run

    def counting(self, *args, **named):
        output = run(self, *args, **named)
        ran.append((output.tokens, len(output.logits)))
        return output

    monkeypatch.setattr(TreeForward, "run", counting)
    target_losses(model, prompts, targets, budget=Budget(model, at_most=100))
    assert sum(tokens for tokens, _ in ran) <= 2 * 40 + 30 * 2  # the head once a batch
    assert sum(logits for _, logits in ran) == 30 * 2  # at the targets alone


def test_bf16_losses_are_within_their_rounding(family):
    """Within 0.05 nats a token of the same weights in float32; the sums are float32."""
    low = copy.deepcopy(family("llama").hf).to(torch.bfloat16)
    prompts, targets = asked()
    found = target_losses(low, prompts, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(copy.deepcopy(low).float(), prompts, targets), atol=0.05, rtol=0)


def test_mean_losses_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    labels = torch.tensor([2, 1, 0])
    by_hand = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none").float()
    torch.testing.assert_close(token_losses(logits, labels), by_hand)
    found = mean_losses(logits, [(2, 1), (0,)])
    torch.testing.assert_close(found, torch.stack([by_hand[:2].mean(), by_hand[2]]))


def test_beginnings_are_kept_once_with_their_places(tiny_hf):
    model = tiny_hf[0]
    first, second = ids(0, 12), (*ids(0, 5), *ids(1, 9))
    for at_most in (1, 8):
        asked = [first, second, first, first[:3]]
        found = Beginnings(TreeForward(model), asked, Budget(model, at_most=at_most), names=list("abcd"))
        assert len(found.places) == 4
        assert found.places[0] == found.places[2]
        for tokens, places in zip([first, second, first, first[:3]], found.places, strict=True):
            assert tuple(found.bank.tokens[place] for place in places) == tokens
            cache = model(torch.tensor([tokens]), use_cache=True).past_key_values
            for layer, keys in zip(cache.layers, found.bank.at(places).keys, strict=True):
                torch.testing.assert_close(keys.transpose(0, 1), layer.keys[0].detach(), atol=FORWARD, rtol=0)
        assert len(found.bank) == (12 + 9 if at_most == 8 else 12 + 14 + 3)
        assert not any(keys.requires_grad for keys in found.bank.keys)
