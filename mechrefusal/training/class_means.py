"""Directions that an arm measures while it trains: differences of means over harmful and harmless prompts, by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.attacks import random_stream
from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.sites import Place
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.models.frozen import frozen

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup

AT_ONCE = 32
"""Prompts in one pass."""


def layers_at(model: Any, depths: Sequence[float]) -> tuple[int, ...]:
    """The layers at whose inputs these shares of the model's depth are done, each once; 1 is the last layer."""
    n_layers = HuggingFaceModel.of(model).cfg.n_layers
    return tuple(dict.fromkeys(min(int(depth * n_layers), n_layers - 1) for depth in depths))


def last_layers(model: Any, share: float) -> tuple[int, ...]:
    """The layers of the last `share` of the model."""
    n_layers = HuggingFaceModel.of(model).cfg.n_layers
    return tuple(range(n_layers - round(share * n_layers), n_layers))


class ClassMeans:
    """Measures r[layer] = mean(harmful) − mean(harmless) of resid_pre at the last token of the prompt.

    Args:
        layers: at whose inputs.
        n_prompts: behaviours, and utility prompts, drawn anew at each measurement (all, where there are fewer).
    """

    def __init__(self, setup: "TrainerSetup", layers: Sequence[int], n_prompts: int) -> None:
        self.layers, self.n_prompts, self.seed = tuple(layers), n_prompts, setup.settings.seed
        harmless = list(dict.fromkeys(row["prompt"] for row in setup.inputs.utility))
        self.sides = tuple(
            [prompts.segments(setup.tokenizer, text).prompt_ids for text in texts]
            for texts in (setup.inputs.behaviours.texts, harmless)
        )

    def directions(self, trainer: Any) -> dict[str, Float[Tensor, "layer d_model"]]:
        """`directions` on the weights as they are."""
        step = trainer.state.global_step
        harmful, harmless = (
            self.mean(trainer.model, self._drawn(ids, f"means {side} {step}")) for side, ids in enumerate(self.sides)
        )
        return {"directions": (harmful - harmless).float()}

    def mean(self, model: Any, ids: Sequence[Sequence[int]]) -> Float[Tensor, "layer d_model"]:
        """Means over prompts, in float64."""
        reads: list[Place] = [(layer, "resid_pre") for layer in self.layers]
        total = torch.zeros(())
        with frozen(model), torch.no_grad():
            for start in range(0, len(ids), AT_ONCE):
                branches = [Branch(tuple(tokens), ()) for tokens in ids[start : start + AT_ONCE]]
                output = TreeForward(model).run(branches, reads=reads)
                last = [places[-1] for places in output.places]
                kept = [output.activations[place][last].double().sum(0) for place in reads]
                total = total + torch.stack(kept)
        return total / len(ids)

    def _drawn(self, ids: Sequence[Sequence[int]], name: str) -> list[Sequence[int]]:
        order = torch.randperm(len(ids), generator=random_stream(self.seed, name))[: self.n_prompts]
        return [ids[place] for place in order.tolist()]
