"""Opening a checkpoint: as a Hugging Face model to train or attack, or as a hooked transformer to look inside.

The hooked transformer is TransformerLens 4's `TransformerBridge` in compatibility mode: HookedTransformer's numerics
(norms folded, weights centred) and hook names. `load_hooked` is the one place that builds it.
"""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.memory import given_back
from mechrefusal.models.batches import exact_length
from mechrefusal.models.bridge_internals import text_only
from mechrefusal.models.caches import refusal, why_not_continued, without_router_logits
from mechrefusal.models.capacity import dtype_of, hooked_size, require_memory
from mechrefusal.models.checkpoint import Checkpoint, files_of
from mechrefusal.models.folding import fold
from mechrefusal.models.library_output import quiet
from mechrefusal.models.model_files import LoadedFiles
from mechrefusal.models.one_number import require_same_in_batch
from mechrefusal.models.placement import DeviceMap, Placed, Placement, input_device, put, shares_of
from mechrefusal.models.rounding import Allowance, allowed, is_exact, read_in_float32
from mechrefusal.models.vocabulary import guard_rows, require_rows
from mechrefusal.models.weights import embedding_rows, first_line, load_config, load_weights
from mechrefusal.progress import tell_once
from mechrefusal.prompts import ChatSettings

PARITY_TOLERANCE = 1e-3
"""Largest difference of log-probabilities (nats, float32) allowed between the two models; in bfloat16: what roundings
are found to change (`models.rounding`)."""


def load_causal_lm(
    source: Checkpoint | Path | str,
    *,
    chat: bool = True,
    base: Path | str | None = None,
    merged: bool = True,
    quantised: bool = False,
    **placed: Unpack[Placed],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a local Hugging Face folder: the model in evaluation mode, and its tokenizer (left padding, pad token set).

    An adapter (PEFT) is loaded with its base model and merged into it. Code that a checkpoint carries is never run
    (`trust_remote_code=False`).

    Args:
        base: the base model of an adapter, where it isn't the one that the adapter names.
        merged: False leaves an adapter's layers beside those of the base model.
        quantised: whether quantised weights may be loaded, as a judge's may. They can be neither measured nor trained.
        placed: where it lies and in which numbers: fields of a `Placement` (dtype, device, device_map, attention,
            max_memory). By default the checkpoint's own; of a folder: float32, on a GPU where there is one.

    Raises:
        MechrefusalError: what `loaded_files` raises; a device that is not there, or more memory than is free; weights
            that are missing, not used, of another shape than the config says, quantised or not finite; an architecture
            that transformers does not know; an adapter that doesn't fit; tokens without a row in the embedding; or
            (with `chat`) a tokenizer without chat template.
    """
    files = files_of(source, base=base)
    tokenizer = load_tokenizer(source, chat=chat, base=base)
    where = _Where.of(_placement(source, placed), files, hooked=False, merged=merged, quantised=quantised)
    return where.opened(files, source, tokenizer), tokenizer


@dataclass(frozen=True)
class _Where:
    """Where a model goes, which is known before its weights are read."""

    placement: Placement
    dtype: torch.dtype
    devices: DeviceMap
    how: dict[str, Any]

    @classmethod
    def of(cls, placement: Placement, files: LoadedFiles, *, hooked: bool, **how: Any) -> "_Where":
        """Raises a MechrefusalError where it would not fit."""
        dtype, attention = dtype_of(placement, files), {"attention": placement.attention}
        if placement.device_map is None:
            devices = {"": placement.first_device()}
            shares = dict.fromkeys(devices.values(), 1.0)
        else:
            with quiet():
                outline = load_weights(files, dtype=dtype, in_memory=False, **how)
            devices = placement.devices(outline, **_taken(files, dtype) if hooked else {})
            shares = shares_of(outline, devices)
        require_memory(files, hooked=hooked, shares=shares, dtype=dtype)
        return cls(placement, dtype, devices, {**how, **attention})

    def opened(self, files: LoadedFiles, source: Checkpoint | Path | str, tokenizer: Any) -> PreTrainedModel:
        """The model with its weights, in evaluation mode, where it belongs."""
        folder = source.path if isinstance(source, Checkpoint) else Path(source)
        with quiet():
            model = load_weights(files, dtype=self.dtype, **self.how)
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise MechrefusalError(
                    f"weight '{name}' in '{folder}' holds NaN or infinity; the training diverged or the file is "
                    "damaged: use an earlier checkpoint"
                )
        without_router_logits(model.config)
        guard_rows(model, tokenizer, folder=folder)
        return put(model.eval(), self.devices)


def _taken(files: LoadedFiles, dtype: torch.dtype) -> dict[str, float]:
    """What a device takes while a hooked transformer is made, for each byte of the weights on it and besides."""
    size = hooked_size(files)
    return {"bytes_each": size.lasting(dtype) / (dtype.itemsize * size.weights), "besides": size.passing()}


def _placement(source: Checkpoint | Path | str, placed: Placed) -> Placement:
    own = source.placement if isinstance(source, Checkpoint) else Placement()
    return own.given(**placed)


def require_loadable(folder: Path | str) -> None:
    """Raise what `load_causal_lm` would raise for a folder, without its weights in memory: their values aren't read."""
    load_tokenizer(folder)
    with quiet():
        load_weights(files_of(folder), dtype=torch.float32, in_memory=False)


def load_tokenizer(
    source: Checkpoint | Path | str,
    *,
    chat: bool = True,
    base: Path | str | None = None,
    told: ChatSettings | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder, padding on the left, with a pad token (the end token if it has none).

    That of a checkpoint asks as the checkpoint says (`prompts.ChatSettings`).

    Args:
        base: the base model of an adapter, where it isn't the one that the adapter names.
        told: how a folder is asked that is no checkpoint yet.

    Raises:
        MechrefusalError: no tokenizer, none with a chat template (with `chat`), or one with tokens that have no row in
            the model's embedding.
    """
    files = files_of(source, base=base)
    folder = files.tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise MechrefusalError(f"'{folder}' has no tokenizer that can be loaded ({first_line(error)})") from error
    if chat and (told := told or (source.chat if isinstance(source, Checkpoint) else None)) is not None:
        told.apply(tokenizer)
    if chat and not tokenizer.chat_template:
        raise MechrefusalError(
            f"the tokenizer in '{folder}' has no chat template; use a chat model, give one by "
            "chat_template, or put a chat_template.jinja there"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise MechrefusalError(f"the tokenizer in '{folder}' has neither a pad nor an end token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    if (rows := embedding_rows(files)) is not None:
        require_rows(tokenizer, rows, folder=folder)
    tokenizer.padding_side = "left"
    return tokenizer


def context_length(folder: Path | str) -> int:
    """Tokens of prompt and answer up to which batched passes are exact: the context, or a smaller sliding window."""
    return exact_length(load_config(folder).get_text_config())[0]


def load_hooked(source: Checkpoint | Path | str, *, chat: bool = True, **placed: Unpack[Placed]):
    """The hooked transformer of a local checkpoint.

    In bfloat16 norms are folded, weights centred and logits computed in float32, and so is what measures read.

    Args:
        placed: where it lies and in which numbers: fields of a `Placement` (dtype, device, device_map, attention,
            max_memory). By default the checkpoint's own; of a folder: float32, on a GPU where there is one.

    Returns:
        A `transformer_lens.model_bridge.TransformerBridge` in compatibility mode. Its attribute `weights` is the
        hash of the checkpoint, which directions and tables made with it carry.

    Raises:
        MechrefusalError: what `load_causal_lm` raises; an architecture that TransformerLens does not know, or that
            keeps a recurrent state; log-probabilities that differ from the Hugging Face model's by more than
            `PARITY_TOLERANCE` nats, or that depend on the batch or the cache (`models.one_number`).
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import detect_tokenizer_bos_eos

    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    files, tokenizer = files_of(checkpoint), load_tokenizer(checkpoint, chat=chat)
    gc.collect()  # a hooked transformer refers to itself: one that is no longer used is in memory until then
    where = _Where.of(_placement(checkpoint, placed), files, hooked=True)
    reference = where.opened(files, checkpoint, tokenizer)
    if (why := why_not_continued(type(reference), reference.config)) is not None:
        raise MechrefusalError(refusal(type(reference).__name__, why))
    _say_attention(where.placement, reference)
    if not is_exact(reference):
        _head_in_float32(reference)
    token_ids = _parity_tokens(reference.config.get_text_config().vocab_size).to(input_device(reference))

    def log_probabilities() -> torch.Tensor:
        return reference(token_ids).logits[:, -1].float().log_softmax(-1)

    with torch.no_grad():
        expected = log_probabilities()
    allowance = allowed(reference, log_probabilities, Allowance(PARITY_TOLERANCE, PARITY_TOLERANCE))
    try:
        with quiet(), text_only():
            model = TransformerBridge.boot_transformers(
                str(checkpoint.path),
                hf_model=reference,
                tokenizer=tokenizer,
                device=str(input_device(reference)),
                dtype=where.dtype,
            )
            fold(model, reference)
    except (ValueError, RuntimeError, NotImplementedError, KeyError, AttributeError) as error:
        raise MechrefusalError(
            f"TransformerLens cannot open the {type(reference).__name__} in '{checkpoint.path}' "
            f"({first_line(error).partition(' Available architectures')[0]})"
        ) from error
    model.eval()
    with torch.no_grad():
        hooked = model(token_ids)[:, -1].float().log_softmax(-1)
    if not (found := allowance.found(hooked, expected)).holds:
        raise MechrefusalError(
            f"the hooked transformer of '{checkpoint.path}' is {found.difference:.2g} nats off the Hugging Face model "
            f"(allowed {found.allowed:.2g}); its measurements would be wrong, so none is taken"
        )
    require_same_in_batch(model)
    # A fresh one: the bridge changes padding and special tokens of the one that it is given, and takes its vocabulary
    # for the model's. Set past its property, which would do so again.
    model._tokenizer = load_tokenizer(checkpoint, chat=chat)
    model.cfg.tokenizer_prepends_bos, model.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(model._tokenizer)
    model.weights = checkpoint.weights
    model.requires_grad_(False)
    del reference
    given_back()
    return model


def _say_attention(placement: Placement, model: PreTrainedModel) -> None:
    """Patterns are hook points, which only eager attention has: a hooked transformer has no other."""
    if placement.attention not in (None, "eager"):
        tell_once(
            model,
            f"attention '{placement.attention}' is that of plain passes: a hooked transformer computes attention "
            "eagerly, so that its patterns can be read, and token trees by torch's sdpa",
            level=logging.INFO,
        )


def _head_in_float32(model: PreTrainedModel) -> None:
    """The output matrix of a model in 16 bits, in float32 and apart from the embedding."""
    head = model.get_output_embeddings()
    for name, weight in list(head.named_parameters(recurse=False)):
        setattr(head, name, torch.nn.Parameter(weight.detach().float(), requires_grad=False))
    model.config.get_text_config().tie_word_embeddings = False
    read_in_float32(head)


def _parity_tokens(vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (2, 24), generator=generator)
