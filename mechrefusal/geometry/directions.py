"""Difference-in-means directions at every layer and post-instruction position (Arditi et al., 2406.11717, eq. 1, 2)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.reference import ZERO, Reference, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.forward.direction import Direction, TokenMeans
from mechrefusal.forward.token_classes import ANSWER, INSTRUCTION, TokenClasses
from mechrefusal.geometry.activations import stream
from mechrefusal.prompts import Split

FOLDS = 16
"""Prompt i of each class belongs to fold i % 16, or where prompts are twins, the i-th twins do (`Directions.paired`);
an even number, so that even folds are the even prompts."""

Side = Literal["harmful", "harmless"]
SIDES: tuple[Side, Side] = ("harmful", "harmless")
"""Order of the two in `Directions.sums` and `Directions.counts`."""

VARIES = "…"
"""Stands in `Directions.tokens` for a position at which the prompts have different tokens."""


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

    `positions` count from the end of the prompt (−1 is its last token); `tokens` are the tokens there (`VARIES` where
    the prompts differ). `weights` is the hash of the checkpoint that they were taken from. `sums` are those of the
    harmful (0) and the harmless (1) prompts of each fold, `counts` how many prompts each has: what other prompts would
    have given can be told from them, and so the noise of every angle.

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

        For generated tokens stands the last token of the template; classes without a mean are zero and not held.
        """
        if self.classes is None:
            return None
        after = [(row, p) for row, p in enumerate(self.positions) if -self.classes.n_after <= p < 0]
        held = [False] * len(self.classes)
        held[ANSWER], held[INSTRUCTION] = True, self.instruction is not None
        sides = []
        for number, side in enumerate(SIDES):
            found = torch.zeros((self.values.shape[1], len(held), self.values.shape[2]), dtype=torch.float64)
            means = self.mean(side)
            for row, position in after:
                found[:, self.classes.at(position)] = means[row]
                held[self.classes.at(position)] = True
            if self.instruction is not None:
                found[:, INSTRUCTION] = self.instruction[number].double()
            found[:, ANSWER] = means[self.positions.index(max(self.positions))]
            sides.append(found)
        return TokenMeans(harmless=sides[1], harmful=sides[0], classes=self.classes, held=tuple(held))

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
        found = Direction(vector, position, layer, self.weights, "difference in means", self.means, name)
        if name != ZERO:
            Reference.of(found)  # says what is missing
        return found

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
    return _taken(model, contrast, None, positions, chunk)[0]


def difference_in_means_of_part(
    model, contrast: Split, part: Split, *, positions: Sequence[int] | None = None, chunk: int = 4
) -> tuple[Directions, Directions]:
    """`difference_in_means` of `contrast` and of a `part` of its prompts, by their ids, from one pass over them.

    Raises:
        MechrefusalError: as there, for either; a prompt of the part that is not in the contrast.
    """
    whole, found = _taken(model, contrast, part, positions, chunk)
    assert found is not None
    return whole, found


def _taken(
    model, contrast: Contrast, part: Split | None, positions: Sequence[int] | None, chunk: int
) -> tuple[Directions, Directions | None]:
    tokenizer = model.tokenizer
    segments = _tokens(tokenizer, contrast.harmful), _tokens(tokenizer, contrast.harmless)
    for chosen in (contrast, *([part] if part is not None else [])):
        sizes = len(chosen.harmful), len(chosen.harmless)
        if not all(sizes):
            raise MechrefusalError(
                f"directions need harmful and harmless prompts, got {sizes[0]} and {sizes[1]}: give one at least"
            )
    wanted = tuple(positions) if positions is not None else _after_all(segments[0])
    prompt_ids = [[found.prompt_ids for found in each] for each in segments]
    shortest = min(map(len, chain(*prompt_ids)))
    # `stream` checks this too, but the second class only after the passes over the first.
    if not wanted or not all(-shortest <= position < 0 for position in wanted):
        raise MechrefusalError(
            f"positions {list(wanted)} do not lie in every prompt; count from the end, -1 to -{shortest} (the shortest)"
        )
    shape = (model.cfg.n_layers, model.cfg.d_model)
    sums = [_Sums.of(contrast, contrast, (len(wanted), *shape))]
    if part is not None:
        sums.append(_Sums.of(part, contrast, (len(wanted), *shape)))
    for side, (ids, each) in enumerate(zip(prompt_ids, segments, strict=True)):
        spans = [(len(s.before), len(s.prompt_ids) - len(s.after)) for s in each]
        # Fold after fold of the whole, so that only one of its sums at a time has to be held in float64.
        order = sorted(range(len(ids)), key=sums[0].dealt[side].__getitem__)
        activations = stream(
            model,
            [ids[index] for index in order],
            positions=wanted,
            chunk=chunk,
            spans=[spans[index] for index in order],
        )
        for index, activation in zip(order, chain.from_iterable(activations), strict=True):
            for one in sums:
                one.take(side, index, activation, n_tokens=spans[index][1] - spans[index][0])
    classes = TokenClasses(*(min(len(part) for part in sides) for sides in _frames(chain(*segments))))
    tokens = tuple(_token(tokenizer, chain(*prompt_ids), position) for position in wanted)
    found = [one.directions(wanted, tokens, getattr(model, "weights", ""), classes) for one in sums]
    return found[0], found[1] if part is not None else None


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
        """What they give."""
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


def _frames(found: Iterable[prompts.Segments]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The tokens of the template before and after the instruction of every prompt."""
    befores, afters = zip(*((each.before, each.after) for each in found), strict=True)
    return list(befores), list(afters)


def post_instruction_positions(tokenizer, texts: Texts) -> tuple[int, ...]:
    """Positions, from the end, of the chat template after the instruction (those that all `texts` share)."""
    return _after_all(_tokens(tokenizer, texts))


def last_instruction_position(tokenizer, texts: Texts) -> int:
    """Position, from the end, of the last token of the instruction: where harmfulness is read (2507.11878).

    It stands right before the first of `post_instruction_positions`.

    Raises:
        MechrefusalError: no texts; a template with nothing after the instruction; prompts that disagree; a prompt whose
            instruction has no token of its own.
    """
    found = _tokens(tokenizer, texts)
    lengths = sorted({len(each.after) for each in found})
    if len(lengths) != 1 or lengths[0] == 0:
        raise MechrefusalError(
            f"{len(found)} prompts have {lengths} tokens of the chat template after the instruction; the last "
            "instruction token needs prompts that all have the same number, one at least"
        )
    for text, each in zip(texts, found, strict=True):
        if not each.instruction + each.attack:
            raise MechrefusalError(
                f"the instruction {text!r} has no token of its own in this chat template; leave it out"
            )
    return -lengths[0] - 1


def _after_all(found: list[prompts.Segments]) -> tuple[int, ...]:
    return tuple(range(-max(1, min(len(each.after) for each in found)), 0))


def _tokens(tokenizer, texts: Texts) -> list[prompts.Segments]:
    return [prompts.segments(tokenizer, text) for text in texts]


def _token(tokenizer, prompt_ids: Iterable[Sequence[int]], position: int) -> str:
    found = {ids[position] for ids in prompt_ids}
    return tokenizer.decode(list(found)) if len(found) == 1 else VARIES


def dealt(contrast: Contrast) -> tuple[list[list[int]], bool]:
    """The fold of every harmful and every harmless prompt, and whether twins were kept together.

    Twins are dealt out in turn by the name that they share, then each class's prompts without a twin on the other side.
    """
    names = [twin_names(each) for each in (contrast.harmful, contrast.harmless)]
    if names[0] is None or names[1] is None or not (both := {*names[0]} & {*names[1]} - {None}):
        return [[index % FOLDS for index in range(len(each))] for each in (contrast.harmful, contrast.harmless)], False
    # By name, not by place: the audit of leaks may have dropped a prompt of one side only.
    place = {name: number for number, name in enumerate(dict.fromkeys(name for name in names[0] if name in both))}
    found = []
    for each in names:
        alone = count(len(place))
        found.append([(place[name] if name in both else next(alone)) % FOLDS for name in each or ()])
    return found, True


def twin_names(texts: Texts) -> list[str | None] | None:
    """What each prompt's column `twin` says, None in it where it says nothing; None where there is no such column."""
    if not isinstance(texts, prompts.PromptSet) or "twin" not in texts.table:
        return None
    column = texts.table["twin"]
    return [None if missing else str(name) for name, missing in zip(column, column.isna(), strict=True)]
