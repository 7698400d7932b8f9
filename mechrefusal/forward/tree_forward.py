"""Running a tree of token sequences through any Hugging Face causal model.

The model's own modules do the work; only its attention function is replaced while a tree runs (transformers'
`AttentionInterface`). Whether a model takes part is tried out once, on a small tree against plain passes; one that
does not (no position ids, an attention of its own) is run plainly, with every sequence in full: the logits are the
same, the cost is not.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.sites import Activations, Place, keeping
from mechrefusal.forward.tree import Branch, KeyValues, Tree
from mechrefusal.forward.tree_attention import Running, attending, reading_a_tree, rows_at
from mechrefusal.models.batches import contiguous_head
from mechrefusal.models.frozen import frozen
from mechrefusal.models.placement import devices_of
from mechrefusal.progress import tell_once

CHECK_TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.05
"""Mean difference of logits between the tree and plain passes, in standard deviations of the logits, at which trees are
used: with float32 weights, and where bf16 or fp16 takes part."""


@dataclass(frozen=True)
class TreeOutput:
    """What a run gave: logits at the kept places, branch by branch, and where asked for a bank of the tokens run.

    `places[i]` are the places of branch i's own tokens in `bank` and in `activations`.
    """

    logits: Float[Tensor, "kept vocab"]
    bank: KeyValues
    places: tuple[tuple[int, ...], ...]
    tokens: int
    activations: Activations = field(default_factory=Activations)


class TreeForward:
    """Runs branches through a model.

    Args:
        model: a Hugging Face causal model (one that PEFT has wrapped, too).
        call: what is called in its place, such as the model that accelerate has wrapped; by default the model.
    """

    def __init__(self, model: PreTrainedModel, *, call: Callable[..., Any] | None = None) -> None:
        self.model, self.call = model, call if call is not None else model
        self.shares = shares(model)
        if not self.shares:
            what = f"{type(model).__name__} runs every text in full, several times as slowly as a token tree"
            tell_once(model, f"{what}: {why_not_shared(model)}")
        self.windows: set[int | None] = set()  # sliding windows that the attention of the last run was told of

    def plainly(self) -> "TreeForward":
        """The same, with every branch in full and padded on the right."""
        plain = object.__new__(TreeForward)
        plain.__dict__ = {**self.__dict__, "shares": False}
        return plain

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device

    def run(
        self,
        branches: Sequence[Branch],
        *,
        bank: KeyValues | None = None,
        share: bool = True,
        embeds: Float[Tensor, "token d_model"] | None = None,
        capture: bool = False,
        reads: Collection[Place] = (),
    ) -> TreeOutput:
        """Logits of `branches`, with gradients where they are enabled.

        Args:
            bank: what the contexts of the branches point into.
            share: run what branches begin with in common once.
            embeds: embeddings of all branches' tokens in order, in place of their ids (needs `share=False`).
            capture: also return a bank of the tokens run (detached).
            reads: places of the residual stream whose activations are returned, with their gradients.
        """
        assert embeds is None or not share, "with embeddings every branch stands for itself"
        bank = bank if bank is not None else KeyValues()
        if reads:
            return self._reading(branches, reads, bank=bank, share=share, embeds=embeds, capture=capture)
        if not self.shares:
            return self._plain(branches, bank, embeds)
        tree = Tree.of(branches, bank_size=len(bank), share=share).to(self.device)
        running = Running(tree, bank, {} if capture else None)
        logits = self.run_tree(running, embeds=embeds)
        captured = running.bank() if capture else KeyValues()
        return TreeOutput(logits, captured, tree.places, len(tree))

    def _reading(self, branches: Sequence[Branch], reads: Collection[Place], **how: Any) -> TreeOutput:
        passed = Activations()
        place = HuggingFaceModel.of(self.model)
        with place.edited(keeping(place, reads, passed)):
            output = self.run(branches, **how)
        if self.shares:
            return replace(output, activations=passed)
        longest = max(len(branch.context) + len(branch.tokens) for branch in branches)
        own = [
            row * longest + len(branch.context) + token
            for row, branch in enumerate(branches)
            for token in range(len(branch.tokens))
        ]
        activations = Activations()
        for name in dict.fromkeys(reads):
            activations[name] = passed[name][torch.tensor(own, device=self.device)]
        return replace(output, activations=activations)

    def run_tree(
        self, running: Running, *, embeds: Float[Tensor, "token d_model"] | None = None
    ) -> Float[Tensor, "kept vocab"]:
        """Logits at the kept places of a tree, which `running` holds (on the model's device)."""
        tree = running.tree
        inputs = {"input_ids": tree.tokens[None]} if embeds is None else {"inputs_embeds": embeds[None]}
        places, order = tree.kept.unique(return_inverse=True)
        if len(set(devices_of(self.model).values())) > 1:
            places = places.cpu()  # the last device takes them from there
        with attending(self.model), contiguous_head(self.model), reading_a_tree():
            logits = self.call(
                **inputs,
                position_ids=tree.positions[None],
                use_cache=False,
                logits_to_keep=places,
                mechrefusal_tree=running,
            ).logits[0]
        self.windows = running.windows
        if logits.shape[0] != len(places):  # a model that knows no list of logits to keep
            logits = logits[places]
        return logits[order] if len(places) == len(order) else rows_at(logits, order)

    def _plain(self, branches: Sequence[Branch], bank: KeyValues, embeds: Tensor | None) -> TreeOutput:
        """Every branch with its context in full, padded on the right."""
        device, embed = self.device, self.model.get_input_embeddings()
        before = [[bank.tokens[place] for place in branch.context] for branch in branches]
        rows = [torch.tensor([*context, *b.tokens]) for context, b in zip(before, branches, strict=True)]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            mask[row, : len(tokens)] = 1
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if embeds is not None:
            parts = embeds.split([len(branch.tokens) for branch in branches])
            embedded = [torch.cat([embed(ids[r, : len(before[r])]), part]) for r, part in enumerate(parts)]
            inputs = {"inputs_embeds": nn.utils.rnn.pad_sequence(embedded, batch_first=True)}
        logits = self.call(**inputs, attention_mask=mask, use_cache=False).logits
        row_of = [row for row, branch in enumerate(branches) for _ in branch.keep]
        columns = [len(c) + place for c, branch in zip(before, branches, strict=True) for place in branch.keep]
        places, start = [], 0
        for branch in branches:
            places.append(tuple(range(start, start + len(branch.tokens))))
            start += len(branch.tokens)
        tokens_run = KeyValues(tuple(token for branch in branches for token in branch.tokens))
        return TreeOutput(logits[row_of, columns], tokens_run, tuple(places), int(mask.sum()))


_WHY_NOT: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def shares(model: PreTrainedModel) -> bool:
    """Whether trees of this model give the logits of plain passes: tried out once a model, on 20 tokens."""
    return not why_not_shared(model)


def why_not_shared(model: PreTrainedModel) -> str:
    """Why trees of this model would not give the logits of plain passes; empty where they do."""
    if model not in _WHY_NOT:
        reason = _tried(model)
        if reason is None:
            return ""  # whatever is run will show that the weights are not finite
        _WHY_NOT[model] = reason
    return _WHY_NOT[model]


def _tried(model: PreTrainedModel) -> str | None:
    """See `why_not_shared`; None where the weights give no finite logits, which says nothing about the model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    slides = "sliding_attention" in kinds or (window is not None and not getattr(config, "layer_types", None))
    if not kinds <= {"full_attention", "sliding_attention"} or getattr(config, "attention_chunk_size", None):
        return f"its attention is of kind {', '.join(sorted(kinds))}, or in chunks"
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        return "it takes no position ids"
    token_ids = torch.randint(config.vocab_size, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    stem, rows = token_ids[:6], [token_ids[6:11], token_ids[11:20]]
    forward = object.__new__(TreeForward)  # `__init__` asks this function
    forward.model = forward.call = model
    try:
        with frozen(model), torch.no_grad():
            forward.shares = True
            above = forward.run([Branch(tuple(stem), ())], capture=True)
            branches = [Branch.continuing(row[:2], row[2:], above.places[0]) for row in rows]
            of_tree = forward.run(branches, bank=above.bank).logits
            if slides and forward.windows == {None}:
                return "its window of attention is in its mask alone, which a tree does not see"
            forward.shares = False
            expected = forward.run(branches, bank=above.bank).logits
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        if should_reduce_batch_size(error):
            raise  # that memory has run out says nothing about the model
        return f"a tree cannot be run ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    if not torch.isfinite(expected).all():
        return None
    difference = ((of_tree - expected).float().abs().mean() / expected.float().std()).item()
    # Accelerate keeps the plain forward where it has wrapped one in autocast.
    exact = model.dtype in (torch.float32, torch.float64) and not hasattr(model, "_original_forward")
    allowed = CHECK_TOLERANCE if exact else LOW_PRECISION_TOLERANCE
    return "" if difference <= allowed else f"trees give other logits, by {difference:.2g} of their standard deviation"
