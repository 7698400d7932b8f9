"""Taking difference-in-means directions: prompts streamed through a model, sums kept by fold."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.token_classes import TokenClasses
from mechrefusal.geometry.activations import stream
from mechrefusal.geometry.contrast import FOLDS, Contrast, dealt, positions_after, segments_of
from mechrefusal.geometry.directions import VARIES, Directions
from mechrefusal.prompts import Split


def difference_in_means(
    model, contrast: Contrast, *, positions: Sequence[int] | None = None, chunk: int = 4
) -> Directions:
    """Directions of `model` at every layer, at the positions after the instruction.

    Prompts are streamed and sums kept for the wanted positions only, so memory does not grow with the prompts. Means
    are float64; the sums by fold are stored in float32.

    Args:
        contrast: harmful and harmless prompts (a `prompts.Split`, or anything with two lists of strings). Where both
            are a `PromptSet` with a column `twin`, twins come into the same fold, whatever is missing on either side.
        positions: negative positions from the end of the prompt; by default all of the chat template after the
            instruction.
        chunk: prompts in one forward pass. On SmolLM2 four take 20 MB, beside 20 MB for the sums; a GPU likes more.

    Raises:
        MechrefusalError: no harmful or no harmless prompts, or a position that is not in every prompt.
    """
    return _streamed(model, contrast, None, positions, chunk)[0]


def difference_in_means_of_part(
    model, contrast: Split, part: Split, *, positions: Sequence[int] | None = None, chunk: int = 4
) -> tuple[Directions, Directions]:
    """`difference_in_means` of `contrast` and of a `part` of its prompts, by their ids, from one pass over them.

    Raises:
        MechrefusalError: as there, for either; a prompt of the part that is not in the contrast.
    """
    whole, of_part = _streamed(model, contrast, part, positions, chunk)
    assert of_part is not None
    return whole, of_part


def _streamed(
    model, contrast: Contrast, part: Split | None, positions: Sequence[int] | None, chunk: int
) -> tuple[Directions, Directions | None]:
    tokenizer = model.tokenizer
    segments = segments_of(tokenizer, contrast.harmful), segments_of(tokenizer, contrast.harmless)
    for chosen in (contrast, *([part] if part is not None else [])):
        sizes = len(chosen.harmful), len(chosen.harmless)
        if not all(sizes):
            raise MechrefusalError(
                f"directions need harmful and harmless prompts, got {sizes[0]} and {sizes[1]}: give one at least"
            )
    positions = tuple(positions) if positions is not None else positions_after(segments[0])
    prompt_ids = [[prompt.prompt_ids for prompt in side] for side in segments]
    shortest = min(map(len, chain(*prompt_ids)))
    # `stream` checks this too, but the second class only after the passes over the first.
    if not positions or not all(-shortest <= position < 0 for position in positions):
        raise MechrefusalError(
            f"positions {list(positions)} do not lie in every prompt; count from the end, -1 to -{shortest} "
            "(the shortest)"
        )
    shape = (model.cfg.n_layers, model.cfg.d_model)
    sums = [_Sums.of(contrast, contrast, (len(positions), *shape))]
    if part is not None:
        sums.append(_Sums.of(part, contrast, (len(positions), *shape)))
    for side, (ids, each) in enumerate(zip(prompt_ids, segments, strict=True)):
        spans = [(len(s.before), len(s.prompt_ids) - len(s.after)) for s in each]
        # Fold after fold of the whole, so that only one of its sums at a time has to be held in float64.
        order = sorted(range(len(ids)), key=sums[0].dealt[side].__getitem__)
        activations = stream(
            model,
            [ids[index] for index in order],
            positions=positions,
            chunk=chunk,
            spans=[spans[index] for index in order],
        )
        for index, activation in zip(order, chain.from_iterable(activations), strict=True):
            for running in sums:
                running.take(side, index, activation, n_tokens=spans[index][1] - spans[index][0])
    every = list(chain(*segments))
    classes = TokenClasses(min(len(prompt.before) for prompt in every), min(len(prompt.after) for prompt in every))
    tokens = tuple(_token(tokenizer, chain(*prompt_ids), position) for position in positions)
    whole, *others = [running.directions(positions, tokens, getattr(model, "weights", ""), classes) for running in sums]
    return whole, others[0] if others else None


class _Sums:
    """Sums over prompts under way: by fold in float32, of all prompts in float64.

    `dealt`: the fold of every prompt of either side of the contrast that is streamed, −1 for those that are left out.
    """

    def __init__(self, dealt: list[list[int]], paired: bool, shape: tuple[int, int, int]) -> None:  # noqa: FBT001
        self.dealt, self.paired = dealt, paired
        self.folds = torch.zeros((2, FOLDS, *shape))
        self.totals = torch.zeros((2, shape[0] + 1, *shape[1:]), dtype=torch.float64)
        self.n_tokens = [0, 0]
        self._running: dict[int, Tensor] = {}
        self._left = [Counter(each) for each in dealt]

    @classmethod
    def of(cls, chosen: Contrast, streamed: Contrast, shape: tuple[int, int, int]) -> "_Sums":
        sides = [(chosen.harmful, streamed.harmful), (chosen.harmless, streamed.harmless)]
        by_side, paired = dealt(chosen)
        if chosen is streamed:
            return cls(by_side, paired, shape)
        placed = []
        for folds, (part, whole) in zip(by_side, sides, strict=True):
            assert isinstance(part, prompts.PromptSet)
            assert isinstance(whole, prompts.PromptSet)
            fold_of = dict(zip(part.ids, folds, strict=True))
            if missing := [name for name in fold_of if name not in set(whole.ids)]:
                raise MechrefusalError(f"prompt '{missing[0]}' of the part is not among the prompts it is a part of")
            placed.append([fold_of.get(name, -1) for name in whole.ids])
        return cls(placed, paired, shape)

    def take(self, side: int, index: int, activation: Tensor, *, n_tokens: int) -> None:
        """Add a prompt's activations, whose last place holds the sum over its `n_tokens` instruction tokens."""
        fold = self.dealt[side][index]
        if fold < 0:
            return
        self.totals[side] += activation
        self.n_tokens[side] += n_tokens
        if fold not in self._running:
            self._running[fold] = torch.zeros(activation[:-1].shape, dtype=torch.float64)
        self._running[fold] += activation[:-1]
        self._left[side][fold] -= 1
        if not self._left[side][fold]:  # a fold that is complete goes to float32
            self.folds[side, fold] = self._running.pop(fold)

    def directions(
        self, positions: tuple[int, ...], tokens: tuple[str, ...], weights: str, classes: TokenClasses
    ) -> Directions:
        """The directions that the sums give, at all `positions` and layers."""
        folds = [torch.tensor([fold for fold in each if fold >= 0]) for each in self.dealt]
        sizes = [len(each) for each in folds]
        means = [total[:-1] / n for total, n in zip(self.totals, sizes, strict=True)]
        instruction = None
        if all(self.n_tokens):
            instruction = torch.stack([t[-1] / n for t, n in zip(self.totals, self.n_tokens, strict=True)]).float()
        return Directions(
            values=means[0] - means[1],
            positions=positions,
            tokens=tokens,
            n_harmful=sizes[0],
            n_harmless=sizes[1],
            weights=weights,
            sums=self.folds,
            counts=torch.stack([torch.bincount(each, minlength=FOLDS) for each in folds]),
            paired=self.paired,
            instruction=instruction,
            classes=classes,
        )


def _token(tokenizer, prompt_ids: Iterable[Sequence[int]], position: int) -> str:
    tokens = {ids[position] for ids in prompt_ids}
    return tokenizer.decode(list(tokens)) if len(tokens) == 1 else VARIES
