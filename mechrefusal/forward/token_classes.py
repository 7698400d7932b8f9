"""What each token of a pass is: the template's head, the instruction, the template's end, or generated.

A mean over prompts makes sense for tokens that correspond: those of the chat template one by one, counted from the end
of the prompt, those of the instruction as one class, and those of an answer as another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

HEAD, INSTRUCTION, ANSWER, END = 0, 1, 2, 3
"""Classes of tokens: before the instruction; of the instruction; after the prompt; the first token after the
instruction, and one class more for each that follows it in the prompt."""

FAR = 1 << 30
"""Distance from the end of the prompt where that end lies in a later pass."""


@dataclass(frozen=True)
class TokenClasses:
    """The classes of one chat template, which stands around every instruction with the same number of tokens."""

    n_before: int
    n_after: int

    def __len__(self) -> int:
        return END + self.n_after

    def at(self, position: int) -> int:
        """The class of the template's token at `position`, counted from the end of the prompt (−1 is its last)."""
        assert -self.n_after <= position < 0
        return END + self.n_after + position

    def of(self, index: Int[Tensor, "#row token"], distance: Int[Tensor, "#row token"]) -> Int[Tensor, "row token"]:
        """The class of every token.

        Args:
            index: place of a token in its prompt, from 0.
            distance: 1 at the prompt's last token, 2 before it, 0 and below after the prompt.
        """
        classes = torch.where(distance <= self.n_after, END + self.n_after - distance, INSTRUCTION)
        classes = torch.where(index < self.n_before, HEAD, classes)
        return torch.where(distance <= 0, ANSWER, classes)


class Layout(Protocol):
    """Says where the tokens of the pass under way stand in their prompts."""

    def places(self, n_tokens: int) -> tuple[Int[Tensor, "#row token"], Int[Tensor, "#row token"]]:
        """Index and distance of each token, as `TokenClasses.of` takes them."""
        ...


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of the rows of a pass stand in their prompts, as `TokenClasses.of` takes them."""

    index: Int[Tensor, "row token"]
    distance: Int[Tensor, "row token"]

    @classmethod
    def of_tree(cls, places: Sequence[Sequence[int]], prompts: Sequence[int], *, before: int = 0) -> "TokenLayout":
        """The layout of branches whose tokens are packed at `places` of one row, `before` tokens of each elsewhere.

        What branches share stands at the same place in all of them.

        Args:
            prompts: length of every branch's prompt, `before` counted; what follows it is an answer.
        """
        n = 1 + max(place for of_branch in places for place in of_branch)
        index, distance = torch.zeros(1, n, dtype=torch.long), torch.zeros(1, n, dtype=torch.long)
        for of_branch, length in zip(places, prompts, strict=True):
            steps = torch.arange(before, before + len(of_branch))
            chosen = torch.tensor(of_branch)
            index[0, chosen], distance[0, chosen] = steps, length - steps
        return cls(index, distance)

    @classmethod
    def of_rows(cls, prompts: Sequence[int], width: int) -> "TokenLayout":
        """The layout of rows of `width` tokens that each begin with a prompt of such a length."""
        index = torch.arange(width).expand(len(prompts), -1)
        return cls(index, torch.tensor(prompts)[:, None] - index)

    def places(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """The same for every pass over the rows."""
        assert n_tokens == self.index.shape[1], "the pass that runs is not the one that was laid out"
        return self.index, self.distance

    def repeated(self, n: int) -> "TokenLayout":
        """Of the tokens of one row `n` times one after another."""
        return TokenLayout(self.index.repeat(1, n), self.distance.repeat(1, n))
