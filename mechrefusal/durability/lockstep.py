"""Lockstep patching while generating: from which layer on one checkpoint's stream makes another behave as it does.

The target answers greedily, and the source runs the same tokens in lockstep: the prompt, and then every token that the
target chose. At the output of one layer the target's residual stream is replaced by the source's, at every token of
both, so that the answer is that of the source's layers up to this one and the target's after it. Refusal by layer, as
a judge sees it, gives the depth at which the *behaviour* changes sides (2610.00320 found 15 in an 8B model of 32
layers, and 27 to 28 where layers below 17 had been frozen), where activation patching reads a single logit.

    found = mr.durability.patch_in_lockstep(trained, start, prompts.evaluation.harmful.texts[:16], judge)
    found.table, found.depth

Control: the same change turned by a random rotation, at every token of its own length (as for cross-checkpoint
patching); what it does any disturbance of this size may do. A patch of a checkpoint into itself changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.cross_patching import architecture, require_same, rotation
from mechrefusal.durability.settings import LockstepSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import DEGENERATE
from mechrefusal.evaluation.judges.judge import refuses
from mechrefusal.forward import Edit, ModelDecoder, bridge_hooks, decoded, end_tokens, stream_of
from mechrefusal.models import TokenBatch, wanted_layers
from mechrefusal.progress import bar
from mechrefusal.statistics import Estimate, Observations, Observed, intervals
from mechrefusal.statistics.observations import numbered
from mechrefusal.statistics.sides import SideChange, side_change

ROWS, PADDED_TOKENS = 64, 4096
"""Answers, and prompt tokens with their padding, of one batch at most."""
OWN = -1
"""Value of the axis `draw` of what is no control."""


@dataclass(frozen=True)
class Lockstep(Observed):
    """What the target answers with the source's residual stream at the output of one layer.

    Fields:
        observations: 1 where an answer declines, fully or in part, 0 where not, NaN where the judge gave nothing; axes
            layer and draw (−1: as it is, else the number of the control).
        degenerate: whether it is no language, in the same cells.
        source, target: refusals of the two as they are, prompt by prompt.
        n_layers: of the models.
        answers: one row an answer: layer, draw, prompt, completion, label.
    """

    observations: Observations
    degenerate: Observations
    source: Float[np.ndarray, " prompt"]
    target: Float[np.ndarray, " prompt"]
    n_layers: int
    answers: pd.DataFrame

    def _estimate(self, cell: pd.Series, values: Float[np.ndarray, " unit"], confidence: float) -> Estimate:
        return intervals.rate(int(values.sum()), len(values), confidence=confidence)

    @property
    def layers(self) -> list[int]:
        """Layers at whose output the stream was replaced."""
        return list(dict.fromkeys(map(int, self.observations.cells["layer"])))

    @cached_property
    def depth(self) -> SideChange:
        """The first layer from which on the target behaves as the source, with its interval over prompts."""
        own = self.observations.where(draw=OWN)
        layers = list(map(int, own.cells["layer"]))
        return side_change(own.values, self.source, self.target, layers=layers, beyond=self.n_layers)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a layer: refused with low and high (Wilson) and n; degenerate; control with its least and most over
        the draws, control_degenerate, n_draws; source_refused and target_refused, the rates without a patch."""
        ends = {"source_refused": _mean(self.source), "target_refused": _mean(self.target)}
        rows = [{"layer": layer, **self._row(layer), **ends} for layer in self.layers]
        return pd.DataFrame(rows)

    def _row(self, layer: int) -> dict[str, Any]:
        rate = self.interval(layer=layer, draw=OWN)
        cells = self.observations.where(layer=layer)
        draws = [int(draw) for draw in cells.cells["draw"] if draw != OWN]
        controls = [_mean(self.observations.of(layer=layer, draw=draw)) for draw in draws]
        broken = [_mean(self.degenerate.of(layer=layer, draw=draw)) for draw in draws]
        return {
            **rate.columns("refused", ""),
            "n": rate.n,
            "degenerate": _mean(self.degenerate.of(layer=layer, draw=OWN)),
            "control": _mean(controls),
            "control_least": min(controls, default=float("nan")),
            "control_most": max(controls, default=float("nan")),
            "control_degenerate": _mean(broken),
            "n_draws": len(draws),
        }


@dataclass(frozen=True)
class _Cell:
    """One layer, and the rotation of its change, if any."""

    layer: int
    draw: int = OWN


def patch_in_lockstep(
    source,
    target,
    texts: Sequence[str],
    judge: Judge,
    settings: LockstepSettings | None = None,
    *,
    layers: Sequence[int] | None = None,
) -> Lockstep:
    """Let the target answer with the source's residual stream at the output of one layer, layer by layer.

    Args:
        source, target: hooked transformers of one architecture that read the prompts as the same tokens.
        texts: instructions; `settings.n_prompts` is not asked for here.
        settings: how long answers are, and how many rotations of every change are its control.
        layers: by default every `settings.layer_step`-th, and the last.

    Raises:
        MechrefusalError: no texts, a layer that is not in the model, or models that cannot be patched into each other.
    """
    texts, settings = list(texts), settings or LockstepSettings()
    if not texts:
        raise MechrefusalError("there is no prompt to answer in lockstep: give one at least")
    ids = prompts.prompt_ids(target.tokenizer, texts)
    as_source_reads = dict(zip(texts, prompts.prompt_ids(source.tokenizer, texts), strict=True))
    require_same(architecture(source), as_source_reads, target)
    n_layers = target.cfg.n_layers
    steps = sorted({*range(0, n_layers, settings.layer_step), n_layers - 1})
    chosen = sorted(wanted_layers(target, steps if layers is None else layers, "patch in lockstep"))
    cells = [_Cell(layer, draw) for layer in chosen for draw in range(OWN, settings.n_rotations)]
    own = [
        complete(model, texts, max_new_tokens=settings.max_new_tokens, description=f"{name} as it is").texts
        for name, model in (("source", source), ("target", target))
    ]
    said = _answers(_Place.of(source), _Place.of(target), target.tokenizer, ids, cells, settings)
    labels = judge.judge(texts * len(cells), [said[cell, row] for cell in cells for row in range(len(texts))])["label"]
    answers = pd.DataFrame(
        {
            "layer": [cell.layer for cell in cells for _ in texts],
            "draw": [cell.draw for cell in cells for _ in texts],
            "prompt": texts * len(cells),
            "completion": [said[cell, row] for cell in cells for row in range(len(texts))],
            "label": list(labels),
        }
    )
    places, shape = pd.DataFrame([vars(cell) for cell in cells]), (len(cells), len(texts))
    refused, degenerate = (
        Observations(_outcomes(labels, counts).reshape(shape).T, places, numbered(len(texts)))
        for counts in (refuses, _is_degenerate)
    )
    ends = [_outcomes(judge.judge(texts, list(completions))["label"], refuses) for completions in own]
    return Lockstep(refused, degenerate, ends[0], ends[1], n_layers, answers)


@dataclass(frozen=True)
class _Place:
    """A model that is run, and what opens edits of its residual stream."""

    model: Any
    edited: Callable[[Sequence[Edit]], AbstractContextManager[None]]

    @classmethod
    def of(cls, hooked) -> "_Place":
        modules = stream_of(hooked)
        if modules is not None:
            return cls(modules.model, modules.edited)
        return cls(hooked, lambda edits: hooked.hooks(fwd_hooks=bridge_hooks(edits)))


class _Together:
    """Says the target's next tokens with the source's stream in it; a `forward.Decoder`.

    Every row has a layer, and a rotation where it is a control: both models run rows of several cells in one pass.
    """

    def __init__(self, source: _Place, target: _Place, cells: Sequence[_Cell], of_rows: Int[Tensor, " row"]) -> None:
        self._places = source, target
        self._decoders = ModelDecoder(source.model), ModelDecoder(target.model)
        self._cells, self._of_rows = cells, of_rows
        self._kept: dict[int, Tensor] = {}
        self._rotations: dict[int, Tensor] = {}

    def start(self, batch: TokenBatch) -> Float[Tensor, "row vocab"]:
        """Both run the prompts, the source first."""
        return self._run(lambda decoder: decoder.start(batch))

    def step(self, tokens: Int[Tensor, " row"], open_rows: Int[Tensor, " row"] | None) -> Float[Tensor, "row vocab"]:
        """Both run the token that the target chose."""
        if open_rows is not None:
            self._of_rows = self._of_rows[open_rows.cpu()]
        return self._run(lambda decoder: decoder.step(tokens, open_rows))

    def _run(self, run: Callable[[ModelDecoder], Tensor]) -> Tensor:
        layers = sorted({self._cells[number].layer for number in self._of_rows.tolist()})
        with self._places[0].edited([(layer, "resid_post", self._keeping(layer)) for layer in layers]):
            run(self._decoders[0])
        with self._places[1].edited([(layer, "resid_post", self._putting(layer)) for layer in layers]):
            return run(self._decoders[1])

    def _keeping(self, layer: int) -> Callable[[Tensor], Tensor]:
        def keep(stream: Tensor) -> Tensor:
            self._kept[layer] = stream
            return stream

        return keep

    def _putting(self, layer: int) -> Callable[[Tensor], Tensor]:
        def put(stream: Tensor) -> Tensor:
            edited = stream.clone()
            for number, cell in enumerate(self._cells):
                if cell.layer != layer or not (rows := (self._of_rows == number).nonzero()[:, 0]).numel():
                    continue
                given = self._kept[layer][rows].to(stream)
                turn = None if cell.draw == OWN else self._rotation(cell.draw, stream)
                edited[rows] = given if turn is None else stream[rows] + (given - stream[rows]) @ turn
            return edited

        return put

    def _rotation(self, draw: int, stream: Tensor) -> Tensor:
        if draw not in self._rotations:
            self._rotations[draw] = rotation(stream.shape[-1], 0, draw).to(stream)
        return self._rotations[draw]


def _answers(
    source: _Place,
    target: _Place,
    tokenizer,
    ids: Sequence[Sequence[int]],
    cells: Sequence[_Cell],
    settings: LockstepSettings,
) -> dict[tuple[_Cell, int], str]:
    """The answer of every cell to every prompt."""
    asked = [(number, row) for number in range(len(cells)) for row in range(len(ids))]
    end, thoughts = end_tokens(target.model, tokenizer), prompts.thought_marks(tokenizer)
    device = next(target.model.parameters()).device
    said: dict[tuple[_Cell, int], str] = {}
    with bar("lockstep", total=len(asked)) as progress:
        for part in _batches(asked, max(map(len, ids))):
            rows = [ids[row] for _, row in part]
            # No common head: rows of other cells hold other streams from the first token on.
            batch = TokenBatch.of(rows, pad=tokenizer.pad_token_id, device=str(device), keep=max(map(len, rows)))
            together = _Together(source, target, cells, torch.tensor([number for number, _ in part]))
            found = decoded(together, batch, max_new_tokens=settings.max_new_tokens, end=end, thoughts=thoughts)
            texts = prompts.texts_of(tokenizer, [each.tokens for each in found])
            for (number, row), text in zip(part, texts, strict=True):
                said[cells[number], row] = thoughts.opened + text
            progress.advance(len(part))
    return said


def _batches(asked: Sequence[tuple[int, int]], width: int) -> Iterator[list[tuple[int, int]]]:
    size = max(1, min(ROWS, PADDED_TOKENS // width))
    for first in range(0, len(asked), size):
        yield list(asked[first : first + size])


def _outcomes(labels: Sequence[Any], counts: Callable[[str], bool]) -> Float[np.ndarray, " answer"]:
    return np.array([float("nan") if pd.isna(label) else float(counts(label)) for label in labels])


def _is_degenerate(label: str) -> bool:
    return label == DEGENERATE


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")
