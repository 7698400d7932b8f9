"""Directions of the residual stream, and the carriers among them: values that say where they are from.

What intervenes on a direction, reads a residual stream by one or draws one takes any of `Along`: a tensor, a
`Direction` or a `Carrier`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.token_classes import TokenClasses
from mechrefusal.statistics import Estimate
from mechrefusal.statistics.choosing import BEST, CARRIER

ReferenceName = Literal["harmless", "zero"]
"""What an ablation leaves: the mean of harmless prompts, or zero, as Arditi et al. publish."""


@dataclass(frozen=True)
class TokenMeans:
    """Means of resid_pre over harmless and over harmful prompts, by layer and class of tokens, float64.

    `has_mean`: whether there is a mean of the class; an ablation leaves tokens of the others alone.
    """

    harmless: Float[Tensor, "layer class d_model"]
    harmful: Float[Tensor, "layer class d_model"]
    classes: TokenClasses
    has_mean: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert self.harmless.shape == self.harmful.shape
        assert self.harmless.shape[1] == len(self.classes) == len(self.has_mean)


@dataclass(frozen=True)
class Direction:
    """A direction of the residual stream, or a subspace by rows that span it.

    Fields:
        position, layer: where it was taken (position from the end of the prompt), None where nothing says.
        weights: hash of the checkpoint that it is of; "" where nothing says, and it is taken for any.
        kind: what it is, for sentences ("difference in means", "carrier of sft-step-00050").
        means: what ablating it to a mean needs; None without.
        reference: what ablating it leaves where nothing else is asked for.
    """

    vector: Float[Tensor, " d_model"] | Float[Tensor, "k d_model"]
    position: int | None = None
    layer: int | None = None
    weights: str = ""
    kind: str = "direction"
    means: TokenMeans | None = None
    reference: ReferenceName = "zero"

    def __post_init__(self) -> None:
        if self.vector.ndim not in (1, 2):
            raise MechrefusalError(f"direction has shape {tuple(self.vector.shape)}; give (d_model,) or (k, d_model)")
        assert self.reference in get_args(ReferenceName)

    @property
    def name(self) -> str:
        """`kind`, with its place where it has one: what it is called in a sentence."""
        return self.kind if self.position is None else f"{self.kind} (position {self.position}, layer {self.layer})"

    def require_layer(self) -> int:
        """Its layer, to be added or read at; MechrefusalError where nothing says which, and for a subspace."""
        if self.layer is None:
            raise MechrefusalError(f"the {self.name} cannot be added or read: nothing says at which layer; give one")
        if self.vector.ndim != 1:
            raise MechrefusalError(
                f"the {self.name} cannot be added or read: it is a subspace of {len(self.vector)} rows"
            )
        return self.layer


@dataclass(frozen=True)
class Carrier:
    """A candidate direction with the scores that it was chosen by: the carrier, or the best candidate in its place.

    Fields:
        bypass: refusal score of the harmful prompts with it ablated. induce: of the harmless ones with it put in. kl:
            KL of the harmless prompts' next token, nats. Each with its 95% interval over the prompts, NaN where their
            scores one by one are not known.
        admissible: whether it is a carrier; `rejected_because`: why it is none, "" for a carrier.
        row: its row in the table of scores.
        reference: what it was ablated to for these scores; None where the table does not say.
        direction: itself; None where it was chosen from a table alone, which holds no directions.
    """

    position: int
    layer: int
    bypass: Estimate
    induce: Estimate
    kl: Estimate
    admissible: bool
    rejected_because: str
    row: int
    reference: ReferenceName | None = None
    direction: Direction | None = None

    @property
    def kind(self) -> str:
        """`carrier`, or `best candidate`."""
        return CARRIER if self.admissible else BEST

    @property
    def place(self) -> tuple[int, int]:
        """(position, layer)."""
        return self.position, self.layer


Along = Tensor | Direction | Carrier


def direction_of(along: Along) -> Direction:
    """A `Direction`: of a carrier its own, of a tensor one that knows nothing else.

    Raises:
        MechrefusalError: a carrier that was chosen from a table alone.
    """
    if isinstance(along, Tensor):
        return Direction(along)
    if isinstance(along, Direction):
        return along
    if along.direction is None:
        raise MechrefusalError(
            f"the {along.kind} at position {along.position}, layer {along.layer} was chosen from a table, which holds "
            "no direction: choose from what geometry.score returns, or give Directions.at(position, layer)"
        )
    return along.direction


def require_weights(model, weights: str, what: str = "direction") -> None:
    """Raise `MechrefusalError` where both say which weights they are of, and these differ."""
    model_weights = getattr(model, "weights", "")
    if weights and model_weights and weights != model_weights:
        raise MechrefusalError(
            f"the {what} is of weights {weights}, and this model has weights {model_weights}: take it from this model"
        )
