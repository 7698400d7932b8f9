"""Difference-in-means directions at every layer and post-instruction position (Arditi et al., 2406.11717, eq. 1, 2)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.models import TokenBatch, head_cache, last_logits


class Texts(Protocol):
    """Prompts that can be counted and gone through: a list of strings, or a `prompts.PromptSet`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


class Contrast(Protocol):
    """Anything with harmful and harmless prompts: a `prompts.Split`, or any object that holds two lists of strings."""

    @property
    def harmful(self) -> Texts:
        """Requests to be refused."""

    @property
    def harmless(self) -> Texts:
        """Requests to be answered."""


@dataclass(frozen=True)
class Directions:
    """r[position, layer] = mean(harmful) − mean(harmless) of resid_pre.

    `positions` count from the end of the prompt (−1 is its last token); `tokens` are the tokens there. `weights` is the
    hash of the checkpoint that they were taken from. `halves` are the directions of even and odd prompts
    alone: what they differ by is the noise floor of every angle (NaN where a half is empty).
    """

    values: Float[Tensor, "position layer d_model"]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    n_harmful: int
    n_harmless: int
    weights: str
    halves: Float[Tensor, "two position layer d_model"]

    def __post_init__(self) -> None:
        assert self.values.ndim == 3
        assert len(self.values) == len(self.positions) == len(self.tokens)
        assert self.halves.shape == (2, *self.values.shape)

    @property
    def split_half_cosine(self) -> Float[Tensor, "position layer"]:
        """Cosine between the directions of the two halves."""
        return torch.nn.functional.cosine_similarity(self.halves[0], self.halves[1], dim=-1)

    def at(self, candidate) -> Float[Tensor, " d_model"]:
        """The direction of a row (mapping or Series) with `position` and `layer`."""
        return self.values[self.positions.index(int(candidate["position"])), int(candidate["layer"])]

    def save(self, path: Path | str) -> Path:
        """Write to a safetensors file, with everything else in its metadata."""
        notes = {
            "positions": json.dumps(self.positions),
            "tokens": json.dumps(self.tokens),
            "n_harmful": str(self.n_harmful),
            "n_harmless": str(self.n_harmless),
            "weights": self.weights,
        }
        tensors = {"values": self.values.contiguous(), "halves": self.halves.contiguous()}
        with whole_file(path) as draft:
            save_file(tensors, draft, metadata=notes)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str, *, weights: str | None) -> "Directions":
        """Read what `save` wrote.

        Args:
            weights: hash of the checkpoint that the directions are for; None takes them from any.

        Raises:
            MechrefusalError: unreadable file, or directions of other weights.
        """
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MechrefusalError(
                f"directions '{path}' cannot be read ({error}); measure the checkpoint again"
            ) from error
        if not {"positions", "tokens", "weights"} <= set(notes or {}) or not {"values", "halves"} <= set(tensors):
            raise MechrefusalError(f"'{path}' holds no directions; give a file that Directions.save wrote")
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
            **tensors,
        )


def difference_in_means(
    model, contrast: Contrast, *, positions: Sequence[int] | None = None, chunk: int = 32
) -> Directions:
    """Directions of `model` at every layer, at the positions after the instruction.

    Sums run in float64 and are kept for the wanted positions only, so memory does not grow with the prompts.

    Args:
        contrast: harmful and harmless prompts (a `prompts.Split`, or anything with two lists of strings).
        positions: negative positions from the end of the prompt; by default all of the chat template after the
            instruction.
        chunk: prompts in one forward pass.
    """
    tokenizer = model.tokenizer
    harmful, harmless = _tokens(tokenizer, contrast.harmful), _tokens(tokenizer, contrast.harmless)
    if not harmful or not harmless:
        raise MechrefusalError(
            f"directions need harmful and harmless prompts, got {len(harmful)} and {len(harmless)}: give one at least"
        )
    wanted = tuple(positions) if positions is not None else _after_all(harmful)
    shortest = min(len(found.prompt_ids) for found in harmful + harmless)
    if not wanted or not all(-shortest <= position < 0 for position in wanted):
        raise MechrefusalError(
            f"positions {list(wanted)} do not lie in every prompt; count from the end, -1 to -{shortest} (the shortest)"
        )
    refused, answered = _half_sums(model, harmful, wanted, chunk), _half_sums(model, harmless, wanted, chunk)
    values = _mean(*refused) - _mean(*answered)
    halves = [_half_mean(*refused, half) - _half_mean(*answered, half) for half in (0, 1)]
    return Directions(
        values=values,
        positions=wanted,
        tokens=tuple(tokenizer.decode([harmful[0].ids[position]]) for position in wanted),
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        weights=getattr(model, "weights", ""),
        halves=torch.stack(halves),
    )


def post_instruction_positions(tokenizer, texts: Texts) -> tuple[int, ...]:
    """Positions, from the end, of the chat template after the instruction (those that all `texts` share)."""
    return _after_all(_tokens(tokenizer, texts))


def _after_all(found: list[prompts.Segments]) -> tuple[int, ...]:
    return tuple(range(-max(1, min(len(each.after) for each in found)), 0))


def _tokens(tokenizer, texts: Texts) -> list[prompts.Segments]:
    return [prompts.segments(tokenizer, text) for text in texts]


def _half_sums(
    model, segments: list[prompts.Segments], positions: tuple[int, ...], chunk: int
) -> tuple[Tensor, Tensor]:
    """Sums of resid_pre over even and odd prompts, float64 (half, position, layer, d_model), and how many each has."""
    layers = range(model.cfg.n_layers)
    batch = TokenBatch.of(
        [found.prompt_ids for found in segments],
        pad=model.tokenizer.pad_token_id,
        device=str(model.cfg.device),
        keep=-min(positions),
    )
    sums = torch.zeros((2, len(positions), model.cfg.n_layers, model.cfg.d_model), dtype=torch.float64)
    hooked: dict[int, Tensor] = {}

    def keep(activation: Tensor, hook, layer: int) -> None:
        hooked[layer] = activation[:, list(positions)].double().cpu()

    hooks = [(f"blocks.{layer}.hook_resid_pre", partial(keep, layer=layer)) for layer in layers]
    cache = head_cache(model, batch)
    first = 0
    for part in batch.chunks(chunk):
        with model.hooks(fwd_hooks=hooks):
            last_logits(model, part, cache=cache, chunk=chunk)
        stacked = torch.stack([hooked[layer] for layer in layers], dim=2)
        odd = (torch.arange(first, first + len(part)) % 2).bool()
        sums[0] += stacked[~odd].sum(0)
        sums[1] += stacked[odd].sum(0)
        first += len(part)
    return sums, torch.tensor([(len(segments) + 1) // 2, len(segments) // 2])


def _mean(sums: Tensor, counts: Tensor) -> Tensor:
    return sums.sum(0) / counts.sum()


def _half_mean(sums: Tensor, counts: Tensor, half: int) -> Tensor:
    return sums[half] / counts[half]
