"""Activations where harmfulness and where refusal are encoded: taken once, used by every measure of the two."""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.activations import stream
from mechrefusal.geometry.contrast import Contrast, labels, last_instruction_position, twin_names


@dataclass(frozen=True)
class ContrastActivations:
    """resid_pre of harmful and harmless prompts, every layer, at two positions counted from the end.

    The first of `positions` is the last instruction token, where harmfulness is encoded; the second one lies after the
    instruction, where refusal is (Zhao et al., 2507.11878, section 2). `twins` holds a label for every prompt, harmful
    ones first, that twins share; they are held together wherever prompts are dealt out or drawn, as a prompt whose twin
    with the opposite label is on the other side is put on the wrong side by what the two have in common.
    """

    harmful: Float[Tensor, "n place layer d_model"]
    harmless: Float[Tensor, "m place layer d_model"]
    positions: tuple[int, int]
    twins: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        assert self.harmful.ndim == self.harmless.ndim == 4
        assert self.harmful.shape[1:] == self.harmless.shape[1:]
        assert self.harmful.shape[1] == len(self.positions) == 2
        assert self.twins is None or len(self.twins) == len(self.harmful) + len(self.harmless)

    def directions(self, layer: int) -> Float[Tensor, "place d_model"]:
        """The harmfulness and the refusal direction: means of harmful minus harmless prompts, taken in float64."""
        harmful, harmless = (side[:, :, layer].double().mean(dim=0) for side in (self.harmful, self.harmless))
        return (harmful - harmless).float()

    @classmethod
    def of(cls, model, contrast: Contrast, *, position: int = -1) -> "ContrastActivations":
        """Read `contrast`'s prompts. Memory: prompts × 2 × n_layers × d_model, float32.

        Raises:
            MechrefusalError: no harmful or no harmless prompts; templates whose last instruction token differs; a
                position that is not after the instruction.
        """
        texts = [list(contrast.harmful), list(contrast.harmless)]
        if not all(texts):
            raise MechrefusalError(
                f"harmfulness and refusal are read on harmful and harmless prompts, got {len(texts[0])} and "
                f"{len(texts[1])}: give one at least of each"
            )
        instruction = last_instruction_position(model.tokenizer, texts[0] + texts[1])
        if not instruction < position < 0:
            raise MechrefusalError(
                f"position {position} is not after the instruction; there are {instruction + 1} to -1"
            )
        positions = (instruction, position)
        harmful, harmless = (
            torch.cat(list(stream(model, prompts.prompt_ids(model.tokenizer, each), positions=positions)))
            for each in texts
        )
        named = all(twin_names(side) is not None for side in (contrast.harmful, contrast.harmless))
        return cls(harmful, harmless, positions, (*chain(*labels(contrast)),) if named else None)
