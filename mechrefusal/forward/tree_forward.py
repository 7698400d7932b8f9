"""Running a tree of token sequences through any Hugging Face causal model.

The model's own modules do the work; only its attention function is replaced while a tree runs (transformers'
`AttentionInterface`). Whether a model takes part is tried out once, on a small tree against plain passes; one that
does not (no position ids, an attention of its own) is run plainly, with every sequence in full: the logits are the
same, the cost is not.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from mechrefusal.forward.tree import Bank, Branch, Tree
from mechrefusal.models.batches import contiguous_head
from mechrefusal.models.frozen import frozen

ATTENTION = "mechrefusal_tree"
_BEFORE: dict[int, str] = {}
"""The attention that each config (by its id) names outside of `attending`."""

_READING: ContextVar[bool] = ContextVar("mechrefusal_reading_a_tree", default=False)

CHECK_TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.05
"""Mean difference of logits between the tree and plain passes, in standard deviations of the logits, at which trees are
used: with float32 weights, and where bf16 or fp16 takes part."""


@dataclass(frozen=True)
class TreeOutput:
    """What a run gave: logits at the kept places, branch by branch, and where asked for a bank of the tokens run.

    `places[i]` are the places of branch i's own tokens in `bank`.
    """

    logits: Float[Tensor, "kept vocab"]
    bank: Bank
    places: tuple[tuple[int, ...], ...]
    tokens: int


class TreeForward:
    """Runs branches through a model.

    Args:
        model: a Hugging Face causal model (one that PEFT has wrapped, too).
        call: what is called in its place, such as the model that accelerate has wrapped; by default the model.
    """

    def __init__(self, model: PreTrainedModel, *, call: Callable[..., Any] | None = None) -> None:
        self.model, self.call = model, call if call is not None else model
        self.shares = shares(model)
        self.windows: set[int | None] = set()  # sliding windows that the attention of the last run was told of

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device

    def run(
        self,
        branches: Sequence[Branch],
        *,
        bank: Bank | None = None,
        share: bool = True,
        embeds: Float[Tensor, "token d_model"] | None = None,
        capture: bool = False,
    ) -> TreeOutput:
        """Logits of `branches`, with gradients where they are enabled.

        Args:
            bank: what the contexts of the branches point into.
            share: run what branches begin with in common once.
            embeds: embeddings of all branches' tokens in order, in place of their ids (needs `share=False`).
            capture: also return a bank of the tokens run (detached).
        """
        assert embeds is None or not share, "with embeddings every branch stands for itself"
        bank = bank if bank is not None else Bank()
        if not self.shares:
            return self._plain(branches, bank, embeds)
        tree = Tree.of(branches, bank_size=len(bank), share=share).to(self.device)
        running = Running(tree, bank, {} if capture else None)
        logits = self.run_tree(running, embeds=embeds)
        found = running.bank() if capture else Bank()
        return TreeOutput(logits, found, tree.places, len(tree))

    def run_tree(
        self, running: "Running", *, embeds: Float[Tensor, "token d_model"] | None = None
    ) -> Float[Tensor, "kept vocab"]:
        """Logits at the kept places of a tree, which `running` holds (on the model's device)."""
        tree = running.tree
        inputs = {"input_ids": tree.tokens[None]} if embeds is None else {"inputs_embeds": embeds[None]}
        wanted, order = tree.kept.unique(return_inverse=True)
        with attending(self.model), contiguous_head(self.model), _reading_a_tree():
            logits = self.call(
                **inputs,
                position_ids=tree.positions[None],
                use_cache=False,
                logits_to_keep=wanted,
                mechrefusal_tree=running,
            ).logits[0]
        self.windows = running.windows
        if logits.shape[0] != len(wanted):  # a model that knows no list of logits to keep
            logits = logits[wanted]
        return logits[order]

    def _plain(self, branches: Sequence[Branch], bank: Bank, embeds: Tensor | None) -> TreeOutput:
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
        found = Bank(tuple(token for branch in branches for token in branch.tokens))
        return TreeOutput(logits[row_of, columns], found, tuple(places), int(mask.sum()))


@contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Let the model's attention read trees. Ordinary passes inside are what they are outside.

    Backward passes with gradient checkpointing, which run parts of the forward again, must lie inside too.
    """
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    changed = [
        (config, name)
        for config in configs.values()
        if isinstance(name := getattr(config, "_attn_implementation", None), str) and name != ATTENTION
    ]
    try:
        for config, name in changed:
            _BEFORE[id(config)] = name
            config._attn_implementation_internal = ATTENTION
        yield
    finally:
        for config, name in changed:
            config._attn_implementation_internal = name
            del _BEFORE[id(config)]


@contextmanager
def _reading_a_tree() -> Iterator[None]:
    token = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(token)


class Running:
    """One run of a tree: what the attention function needs to know, and the keys and values that it keeps.

    Subclasses may change what happens inside of attention, layer by layer.
    """

    def __init__(self, tree: Tree, bank: Bank, captured: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.tree, self._bank, self._captured = tree, bank, captured
        self.windows: set[int | None] = set()

    def tree_at(self, layer: int) -> Tree:
        """The tokens that layer `layer` runs."""
        return self.tree

    def projected(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention uses for the tree's queries, keys and values (after rotation), [token, head, d_head] each."""
        return query, key, value

    def given(self, layer: int) -> Float[Tensor, "token head d_head"] | None:
        """What stands for the result of attention, which is not computed then."""
        return None

    def attended(self, layer: int, z: Float[Tensor, "token head d_head"]) -> None:
        """Told of the result of attention."""

    def read(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that places of this tree point into: those of the bank, then these."""
        if self._captured is not None:
            self._captured[layer] = (keys.detach(), values.detach())
        if not len(self._bank):
            return keys, values
        return torch.cat([self._bank.keys[layer], keys]), torch.cat([self._bank.values[layer], values])

    def bank(self) -> Bank:
        """The tokens run, where they were captured."""
        assert self._captured is not None
        layers = [self._captured[layer] for layer in sorted(self._captured)]
        return Bank(tuple(self.tree.tokens.tolist()), tuple(k for k, _ in layers), tuple(v for _, v in layers))


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    mechrefusal_tree: Running | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a tree: [1, head, token, d_head] in, [1, token, head, d_head] out."""
    before = _BEFORE.get(id(module.config), "sdpa")
    if mechrefusal_tree is None:
        return _function(module, before)(module, query, key, value, attention_mask, *args, **kwargs)
    layer = module.layer_idx
    tree = mechrefusal_tree.tree_at(layer)
    window = kwargs.get("sliding_window")
    mechrefusal_tree.windows.add(window)
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    if (z := mechrefusal_tree.given(layer)) is not None:
        return z[None], None
    queries, keys, values = mechrefusal_tree.projected(layer, queries, keys, values)
    keys, values = mechrefusal_tree.read(layer, keys, values)
    found = []
    for block in tree.blocks:
        q, k, v = (part.transpose(1, 2) for part in (queries[block.queries], keys[block.keys], values[block.keys]))
        found.append(_padded(module, before, q, k, v, block.mask(window), kwargs).flatten(0, 1))
    z = torch.cat(found)[tree.unpad]
    mechrefusal_tree.attended(layer, z)
    return z[None], None


def _padded(
    module: nn.Module, before: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Ordinary attention of a block: [node, head, query, d_head] in, [node, query, head, d_head] out."""
    plain = all(kwargs.get(name) is None for name in ("softcap", "s_aux", "position_bias"))
    if before == "eager" or not plain:
        hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        return _function(module, "eager")(module, query, key, value, hidden, **kwargs)[0]
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.device.type != "cpu":  # elsewhere a mask sends grouped heads to the slow kernel
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    found = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return found.transpose(1, 2)


def _function(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface()[name]


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The mask that the model's own attention would have had; none for a tree, which has its own."""
    if _READING.get():
        return None
    before = _BEFORE.get(id(config), "sdpa")
    return ALL_MASK_ATTENTION_FUNCTIONS[before](*args, config=config, **kwargs)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)

_SHARES: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def shares(model: PreTrainedModel) -> bool:
    """Whether trees of this model give the logits of plain passes: tried out once a model, on 20 tokens."""
    if model not in _SHARES:
        found = _takes_trees(model)
        if found is None:
            return True  # whatever is run will show that the weights are not finite
        _SHARES[model] = found
    return _SHARES[model]


def _takes_trees(model: PreTrainedModel) -> bool | None:
    """See `shares`; None where the weights give no finite logits, which says nothing about the model."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    slides = "sliding_attention" in kinds or (window is not None and not getattr(config, "layer_types", None))
    if not kinds <= {"full_attention", "sliding_attention"} or getattr(config, "attention_chunk_size", None):
        return False
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        return False
    drawn = torch.randint(config.vocab_size, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    stem, rows = drawn[:6], [drawn[6:11], drawn[11:20]]
    forward = object.__new__(TreeForward)  # `__init__` asks this function
    forward.model = forward.call = model
    try:
        with frozen(model), torch.no_grad():
            forward.shares = True
            above = forward.run([Branch(tuple(stem), ())], capture=True)
            branches = [Branch.continuing(row[:2], row[2:], above.places[0]) for row in rows]
            found = forward.run(branches, bank=above.bank).logits
            if slides and forward.windows == {None}:
                return False  # the window is in the mask alone, which a tree does not see
            forward.shares = False
            expected = forward.run(branches, bank=above.bank).logits
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        if should_reduce_batch_size(error):
            raise  # that memory has run out says nothing about the model
        return False
    if not torch.isfinite(expected).all():
        return None
    difference = (found - expected).float().abs().mean() / expected.float().std()
    # Accelerate keeps the plain forward where it has wrapped one in autocast.
    exact = model.dtype in (torch.float32, torch.float64) and not hasattr(model, "_original_forward")
    return difference.item() <= (CHECK_TOLERANCE if exact else LOW_PRECISION_TOLERANCE)
