"""Perturbations of activations that make a model comply (latent adversarial training, 2407.15549)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.sites import Edit, Place
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_forward import TreeForward, TreeOutput
from mechrefusal.models.frozen import frozen
from mechrefusal.training.data import away_row, toward_row
from mechrefusal.training.losses import away, cross_entropy
from mechrefusal.training.measured import Measured, State
from mechrefusal.training.under import Under

DELTAS = "deltas"


@dataclass(frozen=True)
class LatentAttack(Under):
    """Rows of cases under perturbations of their prompts, found anew for the cases of every step.

    Fields:
        layers: at whose inputs. epsilon: longest perturbation of a token. steps, learning_rate: of the search.
        refusal: what the search makes unlikely.
    """

    layers: tuple[int, ...] = ()
    epsilon: float = 0.0
    steps: int = 1
    learning_rate: float = 0.0
    refusal: str = ""

    @classmethod
    def of(cls, layers: Sequence[int], **settings: Any) -> Self:
        """The attack at the inputs of `layers`."""

        def measure(trainer: Any) -> State:
            return {DELTAS: attack.found(trainer.model, trainer.processing_class, trainer.drawn)}

        found = Measured("latent attack", measure)
        attack = cls("latent attack", lambda state: None, found, layers=tuple(layers), **settings)
        return attack

    def found(self, model: Any, tokenizer: Any, cases: Sequence[Any]) -> Float[Tensor, "case layer token d_model"]:
        """The perturbations of the cases' prompts; zero beyond a prompt's end."""
        sides = [
            [away_row(tokenizer, case) for case in cases],
            [toward_row(tokenizer, case, self.refusal) for case in cases],
        ]
        branches = [Branch.continuing(*pair) for side in sides for pair in side]
        labels = [torch.tensor([token for _, answer in side for token in answer]) for side in sides]
        n_prompt = [len(prompt) for side in sides for prompt, _ in side]
        numbers = [number for _ in sides for number in range(len(cases))]
        forward = TreeForward(model)
        width = model.get_input_embeddings().weight.shape[1]
        shape = (len(cases), len(self.layers), max(n_prompt), width)
        deltas = torch.zeros(shape, device=forward.device, requires_grad=True)
        optimizer = torch.optim.Adam([deltas], lr=self.learning_rate)
        with frozen(model), torch.enable_grad():
            for _ in range(self.steps):
                output = self._perturbed(forward, branches, deltas, (), n_prompt, numbers)
                target, refusal = output.logits.split([len(side) for side in labels])
                loss = 0.5 * cross_entropy(target, labels[0].to(target.device)).mean()
                loss = loss + 0.5 * away(refusal, labels[1].to(refusal.device)).mean()
                [deltas.grad] = torch.autograd.grad(loss, [deltas])
                optimizer.step()
                with torch.no_grad():
                    length = deltas.norm(dim=-1, keepdim=True)
                    deltas *= (self.epsilon / length.clamp(min=1e-12)).clamp(max=1.0)
        return deltas.detach()

    def run(
        self,
        forward: TreeForward,
        branches: Sequence[Branch],
        state: State,
        *,
        reads: Collection[Place],
        n_prompt: Sequence[int],
        cases: Sequence[int],
    ) -> TreeOutput:
        """The pass with each prompt's perturbations."""
        return self._perturbed(forward, branches, state[DELTAS], reads, n_prompt, cases)

    def _perturbed(
        self,
        forward: TreeForward,
        branches: Sequence[Branch],
        deltas: Tensor,
        reads: Collection[Place],
        n_prompt: Sequence[int],
        cases: Sequence[int],
    ) -> TreeOutput:
        """Every branch by itself, so that each prompt's tokens stand where they can be told."""
        if forward.shares:  # one after another
            lengths = [len(branch.tokens) for branch in branches]
            starts = [sum(lengths[:number]) for number in range(len(branches))]
        else:  # padded rows
            longest = max(len(branch.tokens) for branch in branches)
            starts = [row * longest for row in range(len(branches))]
        places = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, n_prompt, strict=True)])
        places = places.to(deltas.device)

        def edit(number: int):
            own = torch.cat([deltas[case, number, :n] for case, n in zip(cases, n_prompt, strict=True)])

            def perturb(activation: Tensor) -> Tensor:
                flat = activation.reshape(-1, activation.shape[-1])
                return flat.index_add(0, places, own.to(flat)).view_as(activation)

            return perturb

        edits: list[Edit] = [(layer, "resid_pre", edit(number)) for number, layer in enumerate(self.layers)]
        with HuggingFaceModel.of(forward.model).edited(edits):
            return forward.run(branches, share=False, reads=reads)
