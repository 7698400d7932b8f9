"""Directions that an arm measures while it trains: differences of means over harmful and harmless prompts, by layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

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
    """Means of resid_pre at the last token of the prompt, by layer, over classes of prompts; measured on the weights.

    Args:
        layers: at whose inputs.
        classes: prompts by the name of their class.
        n_prompts: of each class, drawn anew at each measurement (all, where there are fewer).
    """

    def __init__(
        self, setup: "TrainerSetup", layers: Sequence[int], classes: Mapping[str, Sequence[str]], n_prompts: int
    ) -> None:
        self.layers, self.n_prompts, self.seed = tuple(layers), n_prompts, setup.settings.seed
        self.token_ids = {
            name: [prompts.segments(setup.tokenizer, text).prompt_ids for text in texts]
            for name, texts in classes.items()
        }

    @classmethod
    def of_sides(cls, setup: "TrainerSetup", layers: Sequence[int], n_prompts: int) -> Self:
        """Over the behaviours ("harmful") and the utility prompts ("harmless")."""
        harmless = list(dict.fromkeys(row["prompt"] for row in setup.inputs.utility))
        classes = {"harmful": setup.inputs.behaviours.texts, "harmless": harmless}
        return cls(setup, layers, classes, n_prompts)

    def means(self, trainer: Any) -> dict[str, Float[Tensor, "layer d_model"]]:
        """The mean of each class on the weights as they are, float64."""
        step = trainer.state.global_step
        drawn = {name: self._drawn(ids, f"means {name} {step}") for name, ids in self.token_ids.items()}
        return {name: self._mean(trainer.model, ids) for name, ids in drawn.items()}

    def directions(self, trainer: Any) -> dict[str, Float[Tensor, "layer d_model"]]:
        """`directions`: mean(harmful) − mean(harmless)."""
        means = self.means(trainer)
        return {"directions": (means["harmful"] - means["harmless"]).float()}

    def _mean(self, model: Any, ids: Sequence[Sequence[int]]) -> Float[Tensor, "layer d_model"]:
        reads: list[Place] = [(layer, "resid_pre") for layer in self.layers]
        total = torch.zeros(())
        with frozen(model), torch.no_grad():
            for start in range(0, len(ids), AT_ONCE):
                branches = [Branch(tuple(tokens), ()) for tokens in ids[start : start + AT_ONCE]]
                output = TreeForward(model).run(branches, reads=reads)
                last = [places[-1] for places in output.places]
                sums = torch.stack([output.activations[place][last].double().sum(0) for place in reads])
                total = total.to(sums.device) + sums
        return total / len(ids)

    def _drawn(self, ids: Sequence[Sequence[int]], name: str) -> list[Sequence[int]]:
        order = torch.randperm(len(ids), generator=random_stream(self.seed, name))[: self.n_prompts]
        return [ids[place] for place in order.tolist()]
