"""A model with bfloat16 weights beside it: near the float32 model, of the moment, and only where it is faster."""

import copy

import pytest
import torch
from architectures import FAMILIES, build

from mechrefusal.devices import multiplies_bfloat16
from mechrefusal.forward import low_precision
from mechrefusal.forward.low_precision import bfloat16_forward
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_forward import TreeForward

VOCAB = 60
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def multiplies(monkeypatch):
    """As if this machine multiplied bfloat16: the numbers are the same where it doesn't."""
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: True)


def ids(seed: int, n: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def branches() -> list[Branch]:
    """Three with a beginning in common, and one of its own; logits wanted at every token."""
    stem = ids(0, 20)
    texts = [(*stem, *ids(1, 20)), (*stem, *ids(2, 3)), (*stem[:11], *ids(3, 13)), ids(4, 17)]
    return [Branch(text, tuple(range(len(text)))) for text in texts]


def logits(forward: TreeForward) -> torch.Tensor:
    with torch.no_grad():
        return forward.run(branches()).logits


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean difference in standard deviations."""
    return float((found.float() - expected).abs().mean() / expected.std())


@pytest.mark.parametrize("name", [*FAMILIES, "mistral, window 8"])
def test_logits_are_near_and_no_further_than_those_of_a_bfloat16_model(multiplies, name):
    name, _, window = name.partition(", ")
    model = build(name, VOCAB, **({"sliding_window": 8} if window else {}))
    expected = logits(TreeForward(model))
    forward = bfloat16_forward(model)
    assert forward is not None
    found, plain = logits(forward), logits(TreeForward(copy.deepcopy(model).to(torch.bfloat16)))
    assert found.dtype == torch.bfloat16
    assert 0 < off(found, expected) < 0.03
    assert off(found, expected) < 1.5 * off(plain, expected)


def test_the_model_is_as_before(multiplies):
    model = build("llama", VOCAB)
    before, weights = logits(TreeForward(model)), {key: value.clone() for key, value in model.state_dict().items()}
    places = [weight.data_ptr() for weight in model.parameters()]
    forward = bfloat16_forward(model)
    assert forward is not None
    logits(forward)
    with pytest.raises(IndexError), torch.no_grad():
        forward.run([Branch((VOCAB + 5,), (0,))])
    assert [weight.data_ptr() for weight in model.parameters()] == places
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(TreeForward(model)), before)


def test_weights_are_those_of_the_moment(multiplies):
    model = build("llama", VOCAB)
    forward = bfloat16_forward(model)
    assert forward is not None
    before = logits(forward)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    after = bfloat16_forward(model)
    assert after is not None
    assert torch.equal(logits(forward), before)
    assert off(logits(after), logits(TreeForward(model))) < 0.03 < off(before, logits(TreeForward(model)))


def test_hooks_of_the_model_see_bfloat16(multiplies):
    model, seen = build("llama", VOCAB), []
    forward = bfloat16_forward(model)
    assert forward is not None
    before = logits(forward)
    handle = model.model.layers[1].mlp.register_forward_hook(
        lambda _, args, found: seen.append(found.dtype) or 2 * found
    )
    try:
        assert off(logits(forward), before.float()) > 0.05
    finally:
        handle.remove()
    assert seen == [torch.bfloat16]
    assert torch.equal(logits(forward), before)


def test_none_where_the_device_does_not_multiply_bfloat16(monkeypatch):
    model = build("llama", VOCAB)
    asked = []
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: asked.append(device))
    assert bfloat16_forward(model) is None
    assert asked == [CPU]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_none_for_another_precision(multiplies, dtype):
    assert bfloat16_forward(build("llama", VOCAB).to(dtype)) is None


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(True, True, True), (True, False, True), (False, True, True), (False, False, False)]
)
def test_a_cpu_multiplies_with_either_instruction_set(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert multiplies_bfloat16(CPU) is expected


def test_a_torch_that_cannot_tell_does_not_multiply(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert multiplies_bfloat16(CPU) is False


@pytest.mark.parametrize("supported", [True, False])
def test_emulated_products_of_a_gpu_do_not_count(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert multiplies_bfloat16(CUDA) is supported


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_other_devices_do_not_count(device):
    assert not multiplies_bfloat16(torch.device(device))
