"""What loading takes is known before it is tried."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechrefusal import MechrefusalError, devices, models
from mechrefusal.models import loading


def test_bytes_are_those_of_the_weights_in_memory(tiny, tiny_hf, tmp_path):
    n_weights = sum(weight.numel() for weight in tiny_hf[0].parameters())
    assert models.bytes_to_load(tiny) == 4 * n_weights
    half = shutil.copytree(tiny, tmp_path / "half")
    weights = {name: weight.bfloat16() for name, weight in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    assert models.bytes_to_load(half) == 4 * n_weights, "a file of half the size takes as much in float32"
    assert models.bytes_to_load(half, dtype=torch.bfloat16) == 2 * n_weights
    assert models.bytes_to_hook(half) == 3 * 4 * n_weights


def test_biases_are_copied_once_more(family):
    folder = family("gpt2").folder
    assert models.bytes_to_hook(folder) == 4 * models.bytes_to_load(folder)


def test_a_model_beyond_memory_is_refused_before_it_is_loaded(tiny, monkeypatch):
    needed = models.bytes_to_hook(tiny)
    monkeypatch.setattr(loading, "load_weights", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(devices, "free_memory", lambda: needed - 1)
    with pytest.raises(MechrefusalError, match=r"hooked transformer .* takes up to .*GiB.* are free"):
        models.load_hooked(tiny)
    monkeypatch.setattr(devices, "free_memory", lambda: models.bytes_to_load(tiny) - 1)
    with pytest.raises(MechrefusalError, match=r"the model of .* in float32"):
        models.load_causal_lm(tiny)


def test_what_fits_is_loaded(tiny, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: models.bytes_to_load(tiny))
    models.load_causal_lm(tiny)
    models.require_memory(tiny, hooked=False, shares={devices.HOST: 1.0})


def test_a_gpu_has_memory_of_its_own(tiny, monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda: models.bytes_to_load(tiny))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (models.bytes_to_hook(tiny), 1 << 40))
    models.require_memory(tiny, hooked=True, shares={torch.device("cuda"): 1.0})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (models.bytes_to_hook(tiny) - 1, 1 << 40))
    with pytest.raises(MechrefusalError, match="of memory of the GPU"):
        models.require_memory(tiny, hooked=True, shares={torch.device("cuda"): 1.0})
