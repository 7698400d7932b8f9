"""A plain Hugging Face model as a place to intervene: which modules write its residual stream.

They are found by what they do in one pass of a few tokens, not by the name of an architecture: blocks hand the stream
from one to the next, and what a block adds to it is the sum of what two of its children return (attention and MLP, or
the norms after them), or a constant share of it (Granite).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.sites import Edit
from mechrefusal.forward.stream import StreamModules

N_TOKENS = 6
FREE_MEAN = 0.05
"""Norms take out the mean of the residual stream where a constant added to it moves the log-probabilities by less than
this share of what noise of the same size does."""


@dataclass(frozen=True)
class _Layout:
    """Names, so that nothing here keeps a model alive."""

    blocks: tuple[str, ...]
    writers: tuple[str, str]
    scale: float
    free_mean: bool


@dataclass(frozen=True)
class _Config:
    n_layers: int
    d_model: int
    device: torch.device


_LAYOUTS: "WeakKeyDictionary[nn.Module, _Layout]" = WeakKeyDictionary()
_CENTRED: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()


@dataclass(frozen=True)
class HuggingFaceModel:
    """A Hugging Face causal model, with what interventions ask of a model (`cfg.n_layers`, `.d_model`, `.device`).

    `free_mean`: its norms take the mean out of the residual stream (LayerNorm), so that the hooked transformer writes
    everything with mean zero. `edited` does the same first, which changes no probability: directions and activations
    then mean the same in both.
    """

    modules: StreamModules
    backbone: nn.Module
    cfg: _Config
    free_mean: bool

    @classmethod
    def of(cls, model: nn.Module) -> "HuggingFaceModel":
        """Find blocks and writers of `model`; adapters (PEFT) may be around it.

        Raises:
            MechrefusalError: no causal model of Hugging Face, or one whose blocks do not add what attention and MLP
                return to a residual stream.
        """
        if not isinstance(model, nn.Module) or getattr(model, "config", None) is None:
            raise MechrefusalError(
                f"cannot intervene on a {type(model).__name__}; give a hooked transformer (models.load_hooked) or a "
                "causal model of Hugging Face"
            )
        layout = _LAYOUTS.get(model) or _found(model)
        _LAYOUTS[model] = layout
        blocks, attention, mlp = (
            tuple(model.get_submodule(f"{name}{child}") for name in layout.blocks)
            for child in ("", *(f".{writer}" for writer in layout.writers))
        )
        backbone = model.get_submodule(layout.blocks[0].rpartition(".")[0].rpartition(".")[0])
        modules = StreamModules(model, blocks, attention, mlp, scale=layout.scale)
        cfg = _Config(len(blocks), _width(model), next(model.parameters()).device)
        return cls(modules, backbone, cfg, layout.free_mean)

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Apply `edits`, in order, to every pass while open."""
        with self._mean_free(), self.modules.edited(edits):
            yield

    @contextmanager
    def _mean_free(self) -> Iterator[None]:
        """The mean taken out of every write, once, however many interventions are open."""
        if not self.free_mean:
            yield
            return
        key = self.modules.blocks[0]
        _CENTRED[key] = _CENTRED.get(key, 0) + 1
        try:
            if _CENTRED[key] > 1:
                yield
                return
            layers = range(self.cfg.n_layers)
            writes: list[Edit] = [(0, "resid_pre", _without_mean)]
            writes += [(layer, "attn_out", _without_mean) for layer in layers]
            writes += [(layer, "mlp_out", _without_mean) for layer in layers]
            with self.modules.edited(writes):
                yield
        finally:
            _CENTRED[key] -= 1


def _without_mean(activation: Tensor) -> Tensor:
    return activation - activation.mean(-1, keepdim=True)


def _width(model: nn.Module) -> int:
    return model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]


@dataclass
class _Seen:
    """What a block was given and returned, before and after the hooks that others have on it, and its children."""

    given: Tensor | None = None
    taken: Tensor | None = None
    returned: Tensor | None = None
    handed_on: Tensor | None = None
    children: dict[str, list[Tensor]] = field(default_factory=dict)


@torch.no_grad()
def _found(model: nn.Module) -> _Layout:
    config: Any = model.config
    n = config.get_text_config().num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n
    ]
    generator = torch.Generator().manual_seed(0)
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    token_ids = torch.randint(len(embeddings), (1, N_TOKENS), generator=generator).to(embeddings.device)
    with _evaluating(model):
        for name, blocks in lists:
            seen = _watched(model, blocks, token_ids)
            tolerance = math.sqrt(torch.finfo(embeddings.dtype).eps)
            if not _hands_on(seen) or (found := _writers(seen, tolerance)) is None:
                continue
            names = tuple(f"{name}.{layer}" for layer in range(n))
            free_mean = _mean_is_free(model, blocks, token_ids)
            if free_mean and not (_gains_are_weights(model, blocks[0]) and _from_tables(model, blocks[0], token_ids)):
                raise MechrefusalError(
                    f"cannot intervene on this {type(model).__name__}: its norms take out the mean of its residual "
                    "stream, but it is no sum of learned embeddings before the first block, or the norms add to their "
                    "weights: its mean is not that of the hooked transformer; load it with models.load_hooked instead"
                )
            return _Layout(names, *found, free_mean)
    raise MechrefusalError(
        f"cannot find the residual stream of this {type(model).__name__}: none of {len(lists)} lists of {n} blocks "
        "hands it on from block to block with attention and MLP added; load it with models.load_hooked instead"
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) for a while, module by module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _watched(model: nn.Module, blocks: nn.ModuleList, token_ids: Tensor) -> list[_Seen]:
    notes = [_Seen() for _ in blocks]

    def stream(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        found = args[0] if args else kwargs.get("hidden_states")
        return found.clone() if isinstance(found, Tensor) else None

    with ExitStack() as stack:
        for block, note in zip(blocks, notes, strict=True):

            def given(_, args, kwargs, note=note):
                note.given = stream(args, kwargs)

            def taken(_, args, kwargs, note=note):
                note.taken = stream(args, kwargs)

            def returned(_, args, output, note=note):
                note.returned = _first(output)

            def handed_on(_, args, output, note=note):
                note.handed_on = _first(output)

            for handle in (
                block.register_forward_pre_hook(given, with_kwargs=True, prepend=True),
                block.register_forward_pre_hook(taken, with_kwargs=True),
                block.register_forward_hook(returned, prepend=True),
                block.register_forward_hook(handed_on),
            ):
                stack.callback(handle.remove)
            for name, child in block.named_children():

                def wrote(_, args, output, note=note, name=name):
                    if (written := _first(output)) is not None:
                        note.children.setdefault(name, []).append(written)

                stack.callback(child.register_forward_hook(wrote).remove)
        model(input_ids=token_ids, use_cache=False)
    return notes


def _first(output: Any) -> Tensor | None:
    found = output[0] if isinstance(output, tuple) else output
    return found.clone() if isinstance(found, Tensor) else None


def _hands_on(seen: list[_Seen]) -> bool:
    """Whether every block takes in what the one before gave out."""
    if any(value is None for each in seen for value in (each.given, each.taken, each.returned, each.handed_on)):
        return False
    return all(
        one.handed_on.shape == next_one.given.shape and torch.equal(one.handed_on, next_one.given)  # type: ignore
        for one, next_one in pairwise(seen)
    )


def _writers(seen: list[_Seen], tolerance: float) -> tuple[tuple[str, str], float] | None:
    """The two children, in the order in which they run, whose sum a block adds to the stream, and times what."""
    once = [name for name, written in seen[0].children.items() if len(written) == 1]
    best, least = None, tolerance
    for pair in combinations(once, 2):
        parts = [part for each in seen if (part := _parts(each, pair)) is not None]
        if len(parts) < len(seen):
            continue
        for scale in dict.fromkeys((1.0, _scale(parts[0]))):
            error = max(_error(part, scale) for part in parts)
            if error < least:  # the first of several that agree: what follows it passes it on (dropout)
                best, least = (pair, scale), error
                break
    return best


def _parts(seen: _Seen, pair: tuple[str, str]) -> tuple[Tensor, Tensor] | None:
    """What a pair of children wrote, and what the block added; float64. None where they did not write once a token."""
    written = [seen.children.get(name, []) for name in pair]
    assert seen.taken is not None
    assert seen.returned is not None
    if any(len(each) != 1 or each[0].shape != seen.taken.shape for each in written):
        return None
    total = written[0][0].double() + written[1][0].double()
    return total, seen.returned.double() - seen.taken.double()


def _scale(parts: tuple[Tensor, Tensor]) -> float:
    """By how much what was written would have to be multiplied to be what was added: the middle one of all tokens."""
    written, added = parts
    found = ((written * added).sum(-1) / written.square().sum(-1)).median().item()
    return found if math.isfinite(found) and found != 0 else 1.0


def _error(parts: tuple[Tensor, Tensor], scale: float) -> float:
    """How far `scale` times what was written is from what was added, relative to that."""
    written, added = parts
    # By token, the middle one of them: in a few, low precision loses what is added to a huge stream.
    off = (scale * written - added).norm(dim=-1) / added.norm(dim=-1)
    found = off.median().item()
    return found if math.isfinite(found) else math.inf


def _gains_are_weights(model: nn.Module, block: nn.Module) -> bool:
    """Whether the norms of a block multiply by the weights that they hold (Nemotron's by one more).

    The hooked transformer takes the mean out of what is written only where it can fold the norms' weights.
    """
    signs = torch.ones(_width(model), device=next(block.parameters()).device, dtype=next(block.parameters()).dtype)
    signs[1::2] = -1
    for norm in block.modules():
        weight = getattr(norm, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.shape != signs.shape:
            continue
        bias = getattr(norm, "bias", None)
        gain = (norm(1e3 * signs[None, None])[0, 0] - (0 if bias is None else bias)) * signs
        if (gain - weight).norm() > 0.01 * weight.norm():
            return False
    return True


def _from_tables(model: nn.Module, block: nn.Module, token_ids: Tensor) -> bool:
    """Whether what enters the first block is a sum of learned embeddings (tokens, positions), each times a constant.

    Of such the hooked transformer takes the mean out row by row; not of a norm after them, or of computed positions.
    """
    found: list[Tensor] = []
    entering: list[Tensor] = []

    def enters(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        entering.append((args[0] if args else kwargs["hidden_states"]).double())

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hook = module.register_forward_hook(lambda *given: found.append(given[-1].double()))
                stack.callback(hook.remove)
        stack.callback(block.register_forward_pre_hook(enters, with_kwargs=True, prepend=True).remove)
        model(input_ids=token_ids, use_cache=False)
    tables = [each.expand_as(entering[0]).flatten() for each in found if each.shape[-2:] == entering[0].shape[-2:]]
    if not tables:
        return False
    stream, parts = entering[0].flatten(), torch.stack(tables, dim=1)
    off = stream - parts @ torch.linalg.lstsq(parts, stream[:, None]).solution[:, 0]
    return bool(off.norm() <= 0.01 * stream.norm())


def _mean_is_free(model: nn.Module, blocks: nn.ModuleList, token_ids: Tensor) -> bool:
    """Whether a constant added to the residual stream is taken out by the norms."""
    modules = StreamModules(model, tuple(blocks), (), ())
    noise = torch.randn(_width(model), generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()

    def log_probabilities(step: Tensor | None) -> Tensor:
        def moved(activation: Tensor) -> Tensor:
            return activation if step is None else activation + step.to(activation) * activation.std()

        with modules.edited([(0, "resid_pre", moved)]):
            return model(input_ids=token_ids, use_cache=False).logits.float().log_softmax(-1)

    before = log_probabilities(None)
    by_constant, by_noise = (
        (log_probabilities(step) - before).abs().max() for step in (torch.ones_like(noise), noise / noise.std())
    )
    return bool(by_constant < FREE_MEAN * by_noise)
