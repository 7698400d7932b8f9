"""A plain Hugging Face model as a place to intervene, by the modules that write its residual stream."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.sites import Edit
from mechrefusal.forward.stream import StreamModules
from mechrefusal.forward.stream_layout import StreamLayout


@dataclass(frozen=True)
class _Config:
    n_layers: int
    d_model: int
    device: torch.device


_LAYOUTS: "WeakKeyDictionary[nn.Module, StreamLayout]" = WeakKeyDictionary()
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
        layout = _LAYOUTS.get(model) or StreamLayout.of(model)
        _LAYOUTS[model] = layout
        blocks, attention, mlp = (
            tuple(model.get_submodule(f"{name}{child}") for name in layout.blocks)
            for child in ("", *(f".{writer}" for writer in layout.writers))
        )
        backbone = model.get_submodule(layout.blocks[0].rpartition(".")[0].rpartition(".")[0])
        modules = StreamModules(model, blocks, attention, mlp, scale=layout.scale)
        d_model = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        cfg = _Config(len(blocks), d_model, next(model.parameters()).device)
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
