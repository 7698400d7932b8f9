"""How fast this machine runs a model of some config: a few passes of a random model of its widths and few layers."""

import copy
import hashlib
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mechrefusal import devices
from mechrefusal.models.library_output import quiet
from mechrefusal.study.forecast_work import Work, flops_of

N_LAYERS, FEWER, VOCAB, WIDEST = 6, 2, 4096, 1024
"""Layers of the model that is timed, and of the one that tells what a pass takes beside them; tokens; and its width at
most: above it speed no longer hangs on width."""
N_PACKED, N_FEW, N_ROWS, N_BACK, N_DECOMPOSED = 512, 2, 32, 256, 384
"""Tokens of a packed pass, rows that are generated at once (few and many), tokens of a pass with gradients, and rows of
a matrix whose singular values are found. Few are two: a CPU multiplies a single row by another, faster routine."""
EFFICIENCY, READS, LAUNCHED, DECOMPOSES, HASHES = 0.4, 300, 3e-4, 5000, 2.5e8
"""Where a GPU's peak is given (`flops`): share of it that passes reach; operations that it does while it reads one
number of two bytes (an H100's data sheet); seconds in which a layer's kernels are launched; the part of the peak
that singular value decompositions reach; and numbers that its host hashes a second."""
REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second.

    Fields:
        packed: of tokens in passes of many.
        generated: of tokens that are generated, beside what the pass takes that they share.
        passes: of a pass of no tokens, as if it multiplied one: what any pass takes, to read the weights and to start
            every layer.
        backward: of tokens in passes with gradients of the weights.
        copied: numbers that are copied a second, to memory that is taken for them.
        moved: numbers that are copied a second, to memory that is there.
        hashed: numbers of four bytes that are hashed a second.
        decomposed: of singular value decompositions.
        layer: seconds that any pass takes a layer, beside `passes`.
    """

    packed: float
    generated: float
    passes: float
    backward: float
    copied: float
    moved: float
    hashed: float
    decomposed: float
    layer: float = 0.0

    @classmethod
    def of_peak(cls, flops: float) -> "Speed":
        """Of a GPU whose peak is known."""
        reached, moved = EFFICIENCY * flops, flops / 1000
        return cls(reached, reached, flops / READS, reached, moved, moved, HASHES, flops / DECOMPOSES, LAUNCHED)

    def seconds(self, work: Work, a_token: float, a_pair: float, head: float, n_layers: int) -> float:
        """What work takes.

        Args:
            a_token, a_pair, head: operations of a token and of a pair of them in all layers, and of reading logits.
        """
        return (
            (work.tokens * a_token + work.attended * a_pair + work.logits * head) / self.packed
            + work.generated * a_token / self.generated
            + work.passes * (a_token / self.passes + n_layers * self.layer)
            + min(work.passes, work.logits) * head / self.passes
            + 3 * work.backward * a_token / self.backward
            + work.copied / self.copied
            + work.moved / self.moved
            + work.hashed / self.hashed
            + work.decomposed / self.decomposed
            + work.seconds
        )


def calibrated(config: PreTrainedConfig, *, device: torch.device, dtype: torch.dtype) -> Speed:
    """Time a small model like that of `config` here: some seconds. Processor time on a CPU, so that what else runs does
    not count; on one thread the two are the same.
    """
    model, fewer = (_small(config, n_layers).to(device, dtype).eval() for n_layers in (N_LAYERS, FEWER))
    a_token = flops_of(model)
    of_layers = a_token - 2.0 * model.get_output_embeddings().weight.numel()
    ids = torch.zeros((1, N_PACKED), dtype=torch.long, device=device)

    def step(of: PreTrainedModel, n: int) -> float:
        """Seconds of a step of generation, `n` rows at once."""
        rows = torch.zeros((n, 48), dtype=torch.long, device=device)
        cache = of(rows, use_cache=True).past_key_values
        whole = _seconds(lambda: of(rows[:, :1], past_key_values=copy.deepcopy(cache), use_cache=True), device)
        return whole - _seconds(lambda: copy.deepcopy(cache), device)

    with torch.no_grad():
        packed = _seconds(lambda: model(ids.view(8, -1), use_cache=False), device)
        few, many = step(model, N_FEW), step(model, N_ROWS)
        a_pass = (few - step(fewer, N_FEW)) / (N_LAYERS - FEWER) * N_LAYERS
    a_row = max((many - few) / (N_ROWS - N_FEW), 1e-9)
    a_pass = max(a_pass - N_FEW * a_row, packed / N_PACKED)  # it reads what a token multiplies, however small that is

    def back() -> None:
        loss = model(ids[:, :N_BACK].view(8, -1), use_cache=False).logits.float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    backward = _seconds(back, device)
    block, matrix = torch.zeros(1 << 24, device=device), torch.randn(N_DECOMPOSED, N_DECOMPOSED, device=device)
    copied, there, host = _seconds(lambda: _copied(block), device), torch.zeros_like(block), block.cpu().numpy()
    moved = _seconds(lambda: there.copy_(block), device)
    hashed = _seconds(lambda: hashlib.sha256(host.data), device, repeats=2)
    decomposed = _seconds(lambda: torch.linalg.svd(matrix), device, repeats=2)
    return Speed(
        a_token * N_PACKED / max(packed - a_pass, 1e-9),
        a_token / a_row,
        of_layers / a_pass,
        3 * a_token * N_BACK / max(backward - 3 * a_pass, 1e-9),
        block.numel() / copied,
        block.numel() / moved,
        block.numel() / hashed,
        26 * N_DECOMPOSED**3 / decomposed,
    )


def _small(config: PreTrainedConfig, n_layers: int) -> PreTrainedModel:
    """A random model of the widths of `config`, or of `WIDEST`, with few layers."""
    small = copy.deepcopy(config.get_text_config())
    share = max(1, -(-small.hidden_size // WIDEST))
    heads = max(1, small.num_attention_heads // share)
    small.hidden_size, small.num_attention_heads = small.hidden_size // small.num_attention_heads * heads, heads
    small.intermediate_size //= share
    if getattr(small, "num_key_value_heads", None):
        small.num_key_value_heads = max(1, min(heads, small.num_key_value_heads // share))
        while heads % small.num_key_value_heads:
            small.num_key_value_heads -= 1
    if getattr(small, "layer_types", None):
        kinds = small.layer_types
        small.layer_types = [kinds[layer % len(kinds)] for layer in range(n_layers)]
    small.num_hidden_layers, small.vocab_size = n_layers, VOCAB
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    with quiet(), torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(small)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The middle one of some runs, after one that warms up: what else runs slows stages down as it does these."""
    clock = time.perf_counter if devices.is_gpu(device) else _processor
    run()
    found = []
    for _ in range(repeats):
        devices.synchronise(device)
        started = clock()
        run()
        devices.synchronise(device)
        found.append(clock() - started)
    return median(found)


def _copied(block: torch.Tensor) -> torch.Tensor:
    """A copy; on a host in pages that no one has had, as memory of a process may be kept for it after it was freed."""
    if devices.is_gpu(block.device):
        return block.clone()
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows
    pages = mmap.mmap(-1, block.numel() * block.element_size(), **own)
    return torch.frombuffer(pages, dtype=block.dtype).copy_(block)


def _processor() -> float:
    return time.process_time() / torch.get_num_threads()
