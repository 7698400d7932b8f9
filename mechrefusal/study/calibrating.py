"""How fast this machine runs a model of some config: a few passes of a random model of its widths and two layers."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from mechrefusal import devices
from mechrefusal.models.library_output import quiet

N_LAYERS, VOCAB, WIDEST = 2, 4096, 1024
"""Layers and tokens of the model that is timed, and its width at most: above it speed no longer hangs on width."""
N_PACKED, N_ROWS, N_BACK = 512, 32, 256
"""Tokens of a packed pass, rows that are generated at once, tokens of a pass with gradients."""
EFFICIENCY = 0.4
"""Share of a GPU's peak that passes reach, where the peak is given (`flops`)."""
REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second: in packed passes, of tokens generated one by one, and with gradients; and
    numbers that are copied a second."""

    packed: float
    generated: float
    backward: float
    copied: float

    @classmethod
    def of_peak(cls, flops: float) -> "Speed":
        """Of a GPU whose peak is known: one by one, tokens are bound by memory, a tenth as fast."""
        return cls(EFFICIENCY * flops, EFFICIENCY * flops / 10, EFFICIENCY * flops, flops / 1000)


def calibrated(config: PreTrainedConfig, *, device: torch.device, dtype: torch.dtype) -> Speed:
    """Time a small model like that of `config` here: some seconds. Processor time on a CPU, so that what else runs does
    not count; on one thread the two are the same.
    """
    small = copy.deepcopy(config.get_text_config())
    share = max(1, -(-small.hidden_size // WIDEST))
    heads = max(1, small.num_attention_heads // share)
    small.hidden_size, small.num_attention_heads = small.hidden_size // small.num_attention_heads * heads, heads
    small.intermediate_size //= share
    if getattr(small, "num_key_value_heads", None):
        small.num_key_value_heads = max(1, min(heads, small.num_key_value_heads // share))
        while heads % small.num_key_value_heads:
            small.num_key_value_heads -= 1
    small.num_hidden_layers, small.vocab_size = N_LAYERS, VOCAB
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:N_LAYERS]
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    with quiet(), torch.random.fork_rng(devices=devices.of_random_numbers(device)):
        model = AutoModelForCausalLM.from_config(small, dtype=dtype).to(device).eval()
    a_token = flops_of(model)
    ids = torch.zeros((1, N_PACKED), dtype=torch.long, device=device)
    rows = torch.zeros((N_ROWS, 48), dtype=torch.long, device=device)
    with torch.no_grad():
        packed = _seconds(lambda: model(ids.view(8, -1), use_cache=False), device)
        cache = model(rows, use_cache=True).past_key_values
        generated = _seconds(lambda: model(rows[:, :1], past_key_values=copy.deepcopy(cache), use_cache=True), device)
        generated -= _seconds(lambda: copy.deepcopy(cache), device)

    def back() -> None:
        loss = model(ids[:, :N_BACK].view(8, -1), use_cache=False).logits.float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    backward = _seconds(back, device)
    block = torch.zeros(1 << 24, device=device)
    copied = _seconds(lambda: block.clone(), device)
    return Speed(
        a_token * N_PACKED / packed,
        a_token * N_ROWS / max(generated, 1e-9),
        3 * a_token * N_BACK / backward,
        block.numel() / copied,
    )


def flops_of(model: torch.nn.Module) -> float:
    """Operations of one forward token: two for each weight that multiplies, the output matrix among them."""
    embedded = model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    return 2.0 * (sum(weight.numel() for weight in set(model.parameters())) - embedded + (
        head if model.get_output_embeddings().weight is model.get_input_embeddings().weight else 0  # type: ignore[operator]
    ))  # fmt: skip


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of some runs, after one that warms up."""
    clock = time.perf_counter if devices.is_gpu(device) else _processor
    run()
    found = []
    for _ in range(REPEATS):
        devices.synchronise(device)
        started = clock()
        run()
        devices.synchronise(device)
        found.append(clock() - started)
    return min(found)


def _processor() -> float:
    return time.process_time() / torch.get_num_threads()
