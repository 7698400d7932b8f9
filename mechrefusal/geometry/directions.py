"""Difference-in-means directions at every layer and post-instruction position (Arditi et al., 2406.11717, eq. 1, 2)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mechrefusal.causal.reference import ZERO, Reference, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.forward.direction import Direction, TokenMeans
from mechrefusal.forward.token_classes import ANSWER, INSTRUCTION, TokenClasses
from mechrefusal.geometry.contrast import SIDES, Side

VARIES = "…"
"""Stands in `Directions.tokens` for a position at which the prompts have different tokens."""


@dataclass(frozen=True)
class Directions:
    """r[position, layer] = mean(harmful) − mean(harmless) of resid_pre.

    `positions` count from the end of the prompt (−1 is its last token); `tokens` are the tokens there (`VARIES` where
    the prompts differ). `weights` is the hash of the checkpoint that they were taken from. `sums` are those of the
    harmful (0) and the harmless (1) prompts of each fold, `counts` how many prompts each has: what other prompts would
    have given can be computed from them, and so can the noise of every angle.

    `paired`: the prompts are twins, the same topic in a harmful and a harmless form, and twins are in the same fold.
    What twins share cancels in r, so it must do so in every part of the prompts too: weights of the folds are then the
    same for both classes.

    `instruction`: means over all instruction tokens of harmful (0) and of harmless prompts (1). `classes`: how many
    tokens the chat template has before and after them. References need both; None where they were not taken.
    """

    values: Float[Tensor, "position layer d_model"]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    n_harmful: int
    n_harmless: int
    weights: str
    sums: Float[Tensor, "two fold position layer d_model"]
    counts: Int[Tensor, "two fold"]
    paired: bool = False
    instruction: Float[Tensor, "two layer d_model"] | None = None
    classes: TokenClasses | None = None

    def __post_init__(self) -> None:
        assert self.values.ndim == 3
        assert len(self.values) == len(self.positions) == len(self.tokens)
        assert self.sums.shape == (*self.counts.shape, *self.values.shape)
        assert len(self.counts) == 2

    @property
    def halves(self) -> Float[Tensor, "two position layer d_model"]:
        """Directions of the even and of the odd folds alone, float64; NaN where a half has no prompt of a class.

        Both classes are halved by fold, so twins stay together.
        """
        odd = torch.arange(self.counts.shape[1]) % 2
        return torch.stack([self.resampled(1 - odd, 1 - odd), self.resampled(odd, odd)])

    @property
    def split_half_cosine(self) -> Float[Tensor, "position layer"]:
        """Cosine between the directions of the two halves."""
        first, second = self.halves
        return torch.nn.functional.cosine_similarity(first, second, dim=-1)

    def resampled(
        self, weights_harmful: Float[Tensor, " fold"], weights_harmless: Float[Tensor, " fold"]
    ) -> Float[Tensor, "position layer d_model"]:
        """Directions, float64, with every prompt of a fold counted as often as the fold's weight says.

        Weights of a bootstrap over folds, or 0 and 1 for a part of the prompts. NaN where a class has no weight.
        """
        means = []
        for sums, counts, weights in zip(self.sums, self.counts, (weights_harmful, weights_harmless), strict=True):
            if weights.shape != counts.shape:
                raise MechrefusalError(
                    f"weights of folds have shape {tuple(weights.shape)}; give {len(counts)} numbers, one a fold"
                )
            total = torch.zeros(self.values.shape, dtype=torch.float64)
            for each, weight in zip(sums, weights.tolist(), strict=True):
                total.add_(each, alpha=weight)
            means.append(total / (counts * weights).sum())
        return means[0] - means[1]

    def mean(self, side: Side) -> Float[Tensor, "position layer d_model"]:
        """Mean of resid_pre over the harmful or the harmless prompts, float64."""
        number = SIDES.index(side)
        total = self.sums[number].sum(dim=0, dtype=torch.float64)
        return total / self.counts[number].sum()

    @property
    def zero_distance(self) -> Float[Tensor, "position layer"]:
        """Where zero lies along each direction, float64: 0 is the harmless mean, 1 the harmful one.

        −(r⁻·r)/‖r‖², r⁻ the harmless mean: the distance from it to zero along r, in units of ‖r‖. RD's ablation takes
        every prompt there. NaN where the direction is zero.
        """
        r = self.values.double()
        return -(self.mean("harmless") * r).sum(-1) / r.square().sum(-1)

    @cached_property
    def means(self) -> TokenMeans | None:
        """Means by class of tokens, as a reference takes them; None where the directions were saved without.

        For generated tokens stands the last token of the template; classes without a mean (`has_mean`) are zero.
        """
        if self.classes is None:
            return None
        after = [(row, p) for row, p in enumerate(self.positions) if -self.classes.n_after <= p < 0]
        has_mean = [False] * len(self.classes)
        has_mean[ANSWER], has_mean[INSTRUCTION] = True, self.instruction is not None
        sides = []
        for number, side in enumerate(SIDES):
            of_side = torch.zeros((self.values.shape[1], len(has_mean), self.values.shape[2]), dtype=torch.float64)
            means = self.mean(side)
            for row, position in after:
                of_side[:, self.classes.at(position)] = means[row]
                has_mean[self.classes.at(position)] = True
            if self.instruction is not None:
                of_side[:, INSTRUCTION] = self.instruction[number].double()
            of_side[:, ANSWER] = means[self.positions.index(max(self.positions))]
            sides.append(of_side)
        return TokenMeans(harmless=sides[1], harmful=sides[0], classes=self.classes, has_mean=tuple(has_mean))

    def of_positions(self, positions: Sequence[int]) -> "Directions":
        """The directions at some of the positions, in the order given.

        Raises:
            MechrefusalError: a position that was not measured.
        """
        rows = [self.row(position) for position in positions]
        return replace(
            self,
            values=self.values[rows],
            positions=tuple(positions),
            tokens=tuple(self.tokens[row] for row in rows),
            sums=self.sums[:, :, rows],
        )

    def at(self, position: int, layer: int, *, reference: str = ZERO) -> Direction:
        """The direction at one place, with all that is known of it.

        Args:
            reference: what ablating it is to leave where nothing else is asked for.

        Raises:
            MechrefusalError: a position that was not measured; an unknown reference, or one without its means.
        """
        name = require_reference(reference)
        vector = self.values[self.row(position), layer]
        direction = Direction(vector, position, layer, self.weights, "difference in means", self.means, name)
        if name != ZERO:
            Reference.of(direction)  # says what is missing
        return direction

    def row(self, position: int) -> int:
        """Where `position` stands in `values`; MechrefusalError if it was not measured."""
        if position not in self.positions:
            raise MechrefusalError(
                f"there are no directions at position {position}; they were taken at {list(self.positions)}"
            )
        return self.positions.index(position)

    def save(self, path: Path | str) -> Path:
        """Write to a safetensors file, with everything else in its metadata."""
        notes = {
            "positions": json.dumps(self.positions),
            "tokens": json.dumps(self.tokens),
            "n_harmful": str(self.n_harmful),
            "n_harmless": str(self.n_harmless),
            "weights": self.weights,
            "paired": json.dumps(self.paired),
        }
        tensors = {name: getattr(self, name).contiguous() for name in ("values", "sums", "counts")}
        if self.instruction is not None:
            tensors["instruction"] = self.instruction.contiguous()
        if self.classes is not None:
            notes["classes"] = json.dumps([self.classes.n_before, self.classes.n_after])
        with whole_file(path) as draft:
            save_file(tensors, draft, metadata=notes)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str, *, weights: str | None) -> "Directions":
        """Read what `save` wrote.

        Args:
            weights: hash of the checkpoint that the directions are for; None takes them from any.

        Raises:
            MechrefusalError: unreadable file, one of an earlier version, or directions of other weights.
        """
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MechrefusalError(
                f"directions '{path}' cannot be read ({error}); measure the checkpoint again"
            ) from error
        if not {"positions", "tokens", "weights"} <= set(notes or {}) or "values" not in tensors:
            raise MechrefusalError(f"'{path}' holds no directions; give a file that Directions.save wrote")
        if not {"sums", "counts"} <= set(tensors):
            raise MechrefusalError(
                f"directions '{path}' are of an earlier version, without the sums by fold; measure the checkpoint again"
            )
        if weights is not None and notes["weights"] != weights:
            raise MechrefusalError(
                f"directions '{path}' belong to weights {notes['weights']}, not to {weights}; measure this checkpoint"
            )
        return cls(
            positions=tuple(json.loads(notes["positions"])),
            tokens=tuple(json.loads(notes["tokens"])),
            n_harmful=int(notes["n_harmful"]),
            n_harmless=int(notes["n_harmless"]),
            weights=notes["weights"],
            values=tensors["values"],
            sums=tensors["sums"],
            counts=tensors["counts"],
            paired=json.loads(notes.get("paired", "false")),
            instruction=tensors.get("instruction"),
            classes=TokenClasses(*json.loads(notes["classes"])) if "classes" in notes else None,
        )
