"""What training added to a model's weights, matrix by matrix, and the model with another part of it, in memory."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry.drift import rank_of_values

_WEIGHT = re.compile(r"\.weight$")
ROUNDING = torch.finfo(torch.float32).eps
DECOMPOSED = 8
"""What float32 can leave along directions that an update lacks: `ROUNDING` of the Frobenius norms of the matrix before
and after where it was added, and `DECOMPOSED` times as much of the largest singular value where it was decomposed."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the update of one matrix.

    Fields:
        parameter: name of the weights in the model; `place`: which of them, where they hold several matrices (experts).
        matrix: what it is in every layer ("self_attn.q_proj"); `layer`: None where it is in no block.
        values: singular values, largest first.
        start_norm, trained_norm: Frobenius norms of the matrix before and after.
    """

    parameter: str
    place: tuple[int, ...]
    matrix: str
    layer: int | None
    shape: tuple[int, int]
    values: Float[np.ndarray, " direction"]
    start_norm: float
    trained_norm: float

    @property
    def rank(self) -> int:
        """Directions that are more than the rounding of the weights."""
        size = self.start_norm + self.trained_norm + DECOMPOSED * self.values[0]
        return int((self.values > ROUNDING * size).sum())

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return float(np.sqrt((self.values**2).sum()))

    def effective_rank(self, weight: str) -> float:
        """exp(entropy) of the normalised singular values (`geometry.effective_rank`); NaN for no update."""
        return rank_of_values(self.values, "sigma" if weight == "sigma" else "sigma_squared")


@dataclass(frozen=True)
class _Directions:
    """Some singular directions of an update: columns scaled by their singular values, and rows."""

    left: Float[Tensor, "row k"]
    right: Float[Tensor, "k column"]

    def first(self, k: int) -> Float[Tensor, "row column"]:
        return self.left[:, :k] @ self.right[:k]


@dataclass(frozen=True)
class WeightUpdate:
    """The weights of a model before and after training, and the singular directions of what was added.

    Weights that are shared (tied embeddings) count once. What is no matrix (norms, biases) has no singular directions
    and is a part of what remains without some of them.

    Fields:
        start, trained: every parameter by its name: the start model's own, and a copy of the trained one's.
        spectra: of all matrices.
        squared_norm: squared Frobenius norm of what was added, over all parameters.
    """

    start: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    spectra: tuple[Spectrum, ...]
    squared_norm: float
    _directions: Mapping[tuple[str, tuple[int, ...], int], _Directions]

    @classmethod
    @torch.no_grad()
    def between(
        cls,
        start: nn.Module,
        trained: nn.Module,
        *,
        largest: int,
        n_random: int,
        seed: int = 0,
        on_matrix: Callable[[], None] = lambda: None,
    ) -> "WeightUpdate":
        """Decompose what was added from `start` to `trained`, both of which are left as they are.

        Args:
            largest: singular directions that are kept, from the top, and at random for each of `n_random` draws.
            on_matrix: called after every parameter.

        Raises:
            MechrefusalError: the two have other parameters, or of other shapes.
        """
        before, after = (dict(model.named_parameters()) for model in (start, trained))
        _require_alike(before, after)
        layer_of = _layers(trained)
        spectra: list[Spectrum] = []
        directions: dict[tuple[str, tuple[int, ...], int], _Directions] = {}
        random, squared = np.random.default_rng(seed), 0.0
        for name, weights in after.items():
            squared += float((weights - before[name]).double().square().sum())
            for place in _matrices(weights):
                first, last = before[name][place].float(), weights[place].float()
                u, s, v = torch.linalg.svd(last - first, full_matrices=False)
                matrix, layer = layer_of(name)
                shape = (first.shape[0], first.shape[1])
                values, norms = s.double().cpu().numpy(), (float(first.norm()), float(last.norm()))
                spectrum = Spectrum(name, place, matrix, layer, shape, values, *norms)
                spectra.append(spectrum)
                chosen = [np.arange(min(largest, spectrum.rank))]
                chosen += [random.permutation(spectrum.rank)[:largest] for _ in range(n_random)]
                for draw, columns in enumerate(chosen, start=-1):
                    index = torch.as_tensor(columns, device=s.device)
                    directions[name, place, draw] = _Directions(u[:, index] * s[index], v[index])
            on_matrix()
        started = {name: weights.detach() for name, weights in before.items()}
        ended = {name: weights.detach().clone() for name, weights in after.items()}
        return cls(started, ended, tuple(spectra), squared, directions)

    def scaled(self, scale: float) -> Iterator[tuple[str, Tensor]]:
        """All weights with `scale` times the update: 0 is the start, 1 the trained model, each exactly."""
        for name, trained in self.trained.items():
            start = self.start[name]
            yield name, trained if scale == 1 else start + scale * (trained - start)

    def kept(self, k: int, *, draw: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """The start with the top `k` singular directions of every matrix's update, or `k` of a random draw."""
        for name, start in self.start.items():
            yield name, start + self._part(name, k, draw)

    def without(self, k: int, *, draw: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """The trained model less these directions: what `kept` leaves out."""
        for name, trained in self.trained.items():
            yield name, trained - self._part(name, k, draw)

    def share(self, k: int, *, draw: int | None = None) -> float:
        """Share of the update's squared norm that `kept` has; NaN for no update."""
        part = sum(
            float(each.left[:, :k].double().square().sum())
            for (_, _, number), each in self._directions.items()
            if number == (-1 if draw is None else draw)
        )
        return part / self.squared_norm if self.squared_norm else float("nan")

    def _part(self, name: str, k: int, draw: int | None) -> Tensor:
        part = torch.zeros_like(self.start[name])
        for place in _matrices(part):
            part[place] = self._directions[name, place, -1 if draw is None else draw].first(k).to(part)
        return part

    @contextmanager
    def in_place(self, model: nn.Module, weights: Iterator[tuple[str, Tensor]]) -> Iterator[None]:
        """The trained model with other weights while open; its own are put back, bit by bit, whatever happens."""
        parameters = dict(model.named_parameters())
        try:
            _copy(parameters, weights)
            yield
        finally:
            _copy(parameters, iter(self.trained.items()))


@torch.no_grad()
def _copy(parameters: Mapping[str, nn.Parameter], weights: Iterator[tuple[str, Tensor]]) -> None:
    for name, value in weights:
        parameters[name].copy_(value)


def random_effective_ranks(shapes: Sequence[tuple[int, int]], *, seed: int = 0) -> dict[tuple[int, int], list[float]]:
    """Effective rank, by σ and by σ², of one matrix of independent normal entries of every shape: no structure."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for shape in dict.fromkeys(shapes):
        values = torch.linalg.svdvals(torch.randn(shape, generator=generator)).double().numpy()
        found[shape] = [rank_of_values(values, "sigma"), rank_of_values(values, "sigma_squared")]
    return found


def _matrices(weights: Tensor) -> Iterator[tuple[int, ...]]:
    """Places of the matrices that a parameter holds: one for a matrix, one an expert for a stack, none for a vector."""
    if weights.ndim >= 2:
        yield from product(*map(range, weights.shape[:-2]))


def _layers(model: nn.Module) -> Callable[[str], tuple[str, int | None]]:
    """What a parameter is in its block, and the layer; by its whole name where it is in none."""
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]

    def of(parameter: str) -> tuple[str, int | None]:
        for name in lists:
            if parameter.startswith(f"{name}."):
                layer, _, rest = parameter.removeprefix(f"{name}.").partition(".")
                return _WEIGHT.sub("", rest), int(layer)
        return _WEIGHT.sub("", parameter), None

    return of


def _require_alike(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise MechrefusalError(
            f"the two models differ in {len(odd)} parameters ('{odd[0]}'): an update needs the same architecture, with "
            "embeddings tied in both or in neither"
        )
    for name, weights in after.items():
        if weights.shape != before[name].shape:
            raise MechrefusalError(
                f"parameter '{name}' has shape {tuple(before[name].shape)} before and {tuple(weights.shape)} after: an "
                "update needs the same sizes"
            )
