"""The passes that the terms of a step need: as few as can be, under interventions and with activations where asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.sites import Place
from mechrefusal.forward.stream import STREAM_SITES
from mechrefusal.forward.tree import Branch
from mechrefusal.forward.tree_attention import rows_at
from mechrefusal.forward.tree_forward import TreeForward, TreeOutput
from mechrefusal.training.frozen_copy import FrozenCopy
from mechrefusal.training.losses import Hidden, Term
from mechrefusal.training.measured import Measured, State
from mechrefusal.training.rows import Rows
from mechrefusal.training.sharding import is_sharded, whole_weights, zero_stage
from mechrefusal.training.under import Under

SEPARATOR = "/"


@dataclass(frozen=True)
class Values:
    """What a pass gave for the rows of a term: logits and labels, or activations where the term reads them."""

    rows: Rows
    logits: Tensor
    hidden: Hidden | None

    def losses(self, term: Term) -> Tensor:
        """The loss of each token."""
        if self.hidden is not None:
            return term.loss(self.hidden)  # type: ignore[call-arg, arg-type]
        labels = torch.tensor(self.rows.labels, dtype=torch.long, device=self.logits.device)
        return term.loss(self.logits, labels)  # type: ignore[call-arg, arg-type]


NOTHING = Branch((0,), (0,))


class TermPasses:
    """Runs the rows of a trainer's terms: those without an intervention in one pass, the others in one each.

    On sharded weights every pass is one of all processes, forwards and backwards through every layer. Each then makes
    as many passes as any other, whatever rows it has, and its loss hangs on the last layer of each of them.

    Raises:
        MechrefusalError: a term that reads activations or runs under an intervention where it cannot: layers that the
            model lacks, gradient checkpointing, DeepSpeed ZeRO-3, two interventions of one name.
    """

    def __init__(self, trainer: Any, frozen: FrozenCopy | None) -> None:
        self._trainer, self._frozen = trainer, frozen
        self.in_lockstep = is_sharded(trainer)
        terms = [term for term in trainer.terms if term.weight]
        self.unders = {term.under.name: term.under for term in terms if term.under is not None}
        self.measured = {one.name: one for term in terms for one in _measured(term)}
        self.states: dict[str, State] = {}
        if not any(term.reads or term.under for term in terms):
            return
        name = next(term.name for term in terms if term.reads or term.under)
        if trainer.args.gradient_checkpointing:
            raise MechrefusalError(
                f"loss term '{name}' reads or changes activations, which gradient_checkpointing would compute again "
                "without: turn one of them off"
            )
        if zero_stage(trainer.accelerator) == 3:
            raise MechrefusalError(
                f"loss term '{name}' reads or changes activations of weights that DeepSpeed ZeRO-3 has shared out: "
                "launch with the config of `mechrefusal accelerate fsdp2`, or train data parallel"
            )
        n_layers = HuggingFaceModel.of(trainer.model).cfg.n_layers
        for term in terms:
            if term.under is not None and self.unders[term.under.name] is not term.under:
                raise MechrefusalError(f"two interventions are called '{term.under.name}': rename one")
            if same := [one.name for one in _measured(term) if self.measured[one.name] is not one]:
                raise MechrefusalError(f"two things that are measured are called '{same[0]}': rename one")
            for layer, site in term.reads.places if term.reads else ():
                if not 0 <= layer < n_layers or site not in STREAM_SITES:
                    raise MechrefusalError(
                        f"loss term '{term.name}' reads {site} of layer {layer}: the model has layers 0 to "
                        f"{n_layers - 1}, and sites {', '.join(STREAM_SITES)}"
                    )

    def measure(self, step: int) -> None:
        """Before optimiser step `step` (from 0), measure what interventions need on the weights as they are."""
        due = {n: one for n, one in self.measured.items() if one.is_due(step) or n not in self.states}
        if due:
            with whole_weights(self._trainer):
                self.states |= {name: one.measure(self._trainer) for name, one in due.items()}

    def save(self, path: Path) -> None:
        """Write what was measured to `path`, where anything was."""
        tensors = {
            f"{name}{SEPARATOR}{key}": tensor.contiguous()
            for name, state in self.states.items()
            for key, tensor in state.items()
        }
        if tensors:
            save_file(tensors, path)

    def load(self, path: Path) -> None:
        """Read what was measured from `path`, where it is there."""
        states: dict[str, dict[str, Tensor]] = {}
        for key, tensor in (load_file(path) if path.is_file() else {}).items():
            name, _, part = key.rpartition(SEPARATOR)
            states.setdefault(name, {})[part] = tensor.to(self._trainer.accelerator.device)
        self.states = dict(states)

    def run(
        self, rows: Sequence[Rows], call: Callable[..., Any], *, seed: int, step: int, part: int
    ) -> tuple[list[Values], Tensor]:
        """The values of each of `rows`; those of a term under an intervention in two parts, where only some are under.

        Beside them a zero that belongs into the loss: through it the other processes' gradients meet those of this one.

        Args:
            call: what is called in the model's place.
            seed, step, part: of the random choice of rows that are run under an intervention.
        """
        plain: list[Rows] = []
        under: dict[str, list[Rows]] = {name: [] for name in self.unders}
        for each in rows:
            if each.term.under is None:
                plain.append(each)
                continue
            chosen = each.term.under.chosen(len(each), each.term.name, seed=seed, step=step, part=part)
            under[each.term.under.name].append(each.taken(chosen))
            plain.append(each.taken([not one for one in chosen]))
        passes = [(plain, None), *((group, self.unders[name]) for name, group in under.items())]
        if not self.in_lockstep:
            passes = [(group, how) for group, how in passes if any(map(len, group))] or passes[:1]
        values: list[Values] = []
        held = torch.zeros((), device=self._trainer.accelerator.device)
        for number, (group, how) in enumerate(passes):
            # Data parallelism waits for the other processes in each call of its wrapper, and each of them draws which
            # of its rows are run under an intervention: it is called once. Gradients of all passes meet in the weights.
            called = call if not number or self.in_lockstep else self._trainer.model
            found, logits = self._values(group, called, how)
            values += found
            if self.in_lockstep or not found:
                held = held + 0.0 * logits.sum()
        return values, held

    def _values(
        self, rows: Sequence[Rows], call: Callable[..., Any], under: Under | None
    ) -> tuple[list[Values], Tensor]:
        """The values of the rows of a pass, and all of its logits."""
        rows = [each for each in rows if len(each)]
        branches = [branch for each in rows for branch in self._to_run(each)]
        reads = _places(rows)
        frozen = self._of_frozen(rows)  # before the pass whose graph is kept: adapters are turned off and on again
        forward = TreeForward(self._trainer.model, call=call)
        if not rows:
            return [], forward.run([NOTHING]).logits
        if under is None:
            output = forward.run(branches, reads=reads)
        else:
            n_prompt = [branch.keep[0] + 1 for each in rows for branch in each.branches]
            cases = [number for each in rows for number in each.numbers]
            state = self._state(under.measured)
            output = under.run(forward, branches, state, reads=reads, n_prompt=n_prompt, cases=cases)
        logits = iter(output.logits.split([sum(len(b.keep) for b in self._to_run(each)) for each in rows]))
        values, first, first_frozen = [], 0, 0
        for each in rows:
            hidden = None
            if each.term.reads is not None:
                trained = _activations(output, each, first)
                of_frozen: Mapping[int, Tensor] = {}
                if frozen is not None and each.term.reads_frozen:
                    of_frozen = _activations(frozen, each, first_frozen)
                    first_frozen += len(each)
                hidden = Hidden(trained, of_frozen, self._state(each.term.reads.measured))
            values.append(Values(each, next(logits), hidden))
            first += len(each)
        return values, output.logits

    def _state(self, measured: Measured | None) -> State:
        return {} if measured is None else self.states[measured.name]

    def _of_frozen(self, rows: Sequence[Rows]) -> TreeOutput | None:
        """The rows of all terms that read it through the model as it was, in one pass; None where there are none."""
        reading = [each for each in rows if each.term.reads_frozen]
        if self._frozen is None or not (reading or (self.in_lockstep and self._frozen.is_trained)):
            return None
        branches = [branch for each in reading for branch in self._to_run(each)]
        with self._frozen.opened() as model, torch.no_grad():
            return TreeForward(model).run(branches or [NOTHING], reads=_places(reading))

    def _to_run(self, rows: Rows) -> tuple[Branch, ...]:
        """The branches of rows: without logits where the term reads activations alone."""
        if rows.term.reads is None or self.in_lockstep:
            return rows.branches
        return tuple(replace(branch, keep=()) for branch in rows.branches)


def _measured(term: Term) -> list[Measured]:
    """What a term, or what it is run under, needs measured."""
    both = (term.reads.measured if term.reads else None, term.under.measured if term.under else None)
    return [one for one in both if one is not None]


def _places(rows: Sequence[Rows]) -> list[Place]:
    reads = [each.term.reads for each in rows if each.term.reads is not None]
    return list(dict.fromkeys(place for one in reads for place in one.places))


def _activations(output: TreeOutput, rows: Rows, first: int) -> Mapping[int, Tensor]:
    """By layer, the activations of the tokens that the term of `rows` reads; their first branch is number `first`."""
    reads = rows.term.reads
    assert reads is not None
    tokens = [
        output.places[first + number][token]
        for number, chosen in enumerate(rows.places(reads.tokens))
        for token in chosen
    ]
    activations = {}
    for place in reads.places:
        activation = output.activations[place]
        activations[place[0]] = rows_at(activation, torch.tensor(tokens, device=activation.device))
    return activations
