"""What loading takes is known before it is tried."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechrefusal import MechrefusalError, devices, models
from mechrefusal.models import capacity, folding, loading


def test_bytes_are_those_of_the_weights_in_memory(tiny, tiny_hf, tmp_path):
    n_weights = sum(weight.numel() for weight in tiny_hf[0].parameters())
    assert models.bytes_to_load(tiny) == 4 * n_weights
    half = shutil.copytree(tiny, tmp_path / "half")
    weights = {name: weight.bfloat16() for name, weight in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    assert models.bytes_to_load(half) == 4 * n_weights, "a file of half the size takes as much in float32"
    assert models.bytes_to_load(half, dtype=torch.bfloat16) == 2 * n_weights
    table = tiny_hf[0].get_input_embeddings().weight.numel()
    norm = tiny_hf[0].config.hidden_size
    block = sum(weight.numel() for weight in tiny_hf[0].model.layers[0].parameters())
    passing = 4 * (table + 3 * max(table + norm, block))
    assert models.bytes_to_hook(half) == 4 * n_weights + passing
    assert models.bytes_to_hook(half, dtype=torch.bfloat16) == 2 * n_weights + passing, "folded in float32 all the same"


@pytest.mark.parametrize("name", ["llama-untied", "qwen2", "gpt2"])
def test_no_more_than_a_part_is_copied_while_norms_are_folded(family, name, monkeypatch):
    """Tied and apart, with biases and without, joint projections, in 16 bits, which take a copy in float32 more."""
    peaks = []

    def fold(model, reference):
        def run():
            for weight in reference.parameters():  # what was there before is not seen when it goes
                weight.data = weight.data.clone()
            folding.fold(model, reference)

        weights = sum(weight.nbytes for weight in reference.parameters())
        peaks.append((weights, allocated_by(run) - weights))

    monkeypatch.setattr(loading, "fold", fold)
    folder = family(name).folder
    models.load_hooked(folder, dtype="bfloat16")
    ((weights, copied),) = peaks
    size = capacity.hooked_size(models.loaded_files(folder))
    assert weights <= size.lasting(torch.bfloat16) + 4 * size.table
    assert 4 * size.part < copied <= capacity.COPIES * 4 * size.part
    assert copied < 4 * size.weights, "all at once would be two copies of them and more"


def allocated_by(run) -> int:
    """Bytes in use at most of those that are taken while it runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


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
