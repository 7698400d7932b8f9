"""Opening a checkpoint: as a Hugging Face model to train or attack, or as a hooked transformer to look inside.

The hooked transformer is TransformerLens 4's `TransformerBridge` in compatibility mode: HookedTransformer's numerics
(norms folded, weights centred) and hook names. `load_hooked` is the one place that builds it.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.errors import MechrefusalError
from mechrefusal.memory import given_back
from mechrefusal.models.checkpoint import Checkpoint, weight_files
from mechrefusal.models.forward import exact_length

PARITY_TOLERANCE = 1e-3
"""Largest difference of log-probabilities (nats, float32) allowed between the two models."""


def default_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_causal_lm(
    source: Checkpoint | Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    chat: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a local Hugging Face folder: the model in evaluation mode, and its tokenizer (left padding, pad token set).

    Code that a checkpoint carries is never run (`trust_remote_code=False`).

    Raises:
        MechrefusalError: missing or truncated weights, weights that are not finite, an architecture that
            transformers does not know, or (with `chat`) a tokenizer without chat template.
    """
    folder = source.path if isinstance(source, Checkpoint) else Path(source)
    weight_files(folder)
    tokenizer = load_tokenizer(source, chat=chat)
    try:
        with quiet():
            model, notes = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
    except (ValueError, OSError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise MechrefusalError(f"model in '{folder}' cannot be loaded ({_first_line(error)})") from error
    if missing := sorted(notes["missing_keys"]):
        raise MechrefusalError(
            f"the weights in '{folder}' lack {len(missing)} tensors ('{missing[0]}'), which would be drawn at random; "
            "copy or train the checkpoint again"
        )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise MechrefusalError(
                f"weight '{name}' in '{folder}' holds NaN or infinity; the training diverged or the file is damaged: "
                "use an earlier checkpoint"
            )
    return model.eval().to(device or default_device()), tokenizer


def load_tokenizer(source: Checkpoint | Path | str, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder, padding on the left, with a pad token (the end token if it has none).

    That of a checkpoint asks as the checkpoint says (`prompts.ChatSettings`).
    """
    folder = source.path if isinstance(source, Checkpoint) else Path(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise MechrefusalError(f"'{folder}' has no tokenizer that can be loaded ({_first_line(error)})") from error
    if chat and not tokenizer.chat_template:
        raise MechrefusalError(
            f"the tokenizer in '{folder}' has no chat template; use a chat model, or put a chat_template.jinja there"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise MechrefusalError(f"the tokenizer in '{folder}' has neither a pad nor an end token; set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    if isinstance(source, Checkpoint) and chat:
        source.chat.apply(tokenizer)
    return tokenizer


def context_length(folder: Path | str) -> int:
    """Tokens of prompt and answer up to which batched passes are exact: the context, or a smaller sliding window."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
    return exact_length(config)[0]


def load_hooked(source: Checkpoint | Path | str, *, device: str | None = None, chat: bool = True):
    """The hooked transformer of a local checkpoint, in float32.

    Returns:
        A `transformer_lens.model_bridge.TransformerBridge` in compatibility mode. Its attribute `weights` is the
        hash of the checkpoint, which directions and tables made with it carry.

    Raises:
        MechrefusalError: what `load_causal_lm` raises; an architecture that TransformerLens does not know; or
            log-probabilities that differ from the Hugging Face model's by more than `PARITY_TOLERANCE` nats.
    """
    from transformer_lens.model_bridge import TransformerBridge

    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    device = device or default_device()
    reference, tokenizer = load_causal_lm(checkpoint, device=device, chat=chat)
    token_ids = _parity_tokens(reference.config.get_text_config().vocab_size).to(device)
    with torch.no_grad():
        expected = reference(token_ids).logits[:, -1].log_softmax(-1)
    try:
        with quiet():
            model = TransformerBridge.boot_transformers(
                str(checkpoint.path), hf_model=reference, tokenizer=tokenizer, device=device, dtype=torch.float32
            )
            _fold(model, reference)
    except (ValueError, RuntimeError, NotImplementedError, KeyError, AttributeError) as error:
        raise MechrefusalError(
            f"TransformerLens cannot open the {type(reference).__name__} in '{checkpoint.path}' ({_first_line(error)})"
        ) from error
    model.eval()
    with torch.no_grad():
        found = model(token_ids)[:, -1].log_softmax(-1)
    difference = (found - expected).abs().max().item()
    if not difference <= PARITY_TOLERANCE:
        raise MechrefusalError(
            f"the hooked transformer of '{checkpoint.path}' is {difference:.2g} nats off the Hugging Face model "
            f"(allowed {PARITY_TOLERANCE:g}); its measurements would be wrong, so none is taken"
        )
    # A fresh one: the bridge sets padding and special tokens of the one that it was given.
    model.tokenizer = load_tokenizer(checkpoint, chat=chat)
    if chat:
        checkpoint.chat.apply(model.tokenizer)  # the bridge has loaded it again, to add a beginning-of-sequence token
    model.weights = checkpoint.weights
    model.requires_grad_(False)
    del reference
    given_back()
    return model


def _fold(model, reference: PreTrainedModel) -> None:
    """Compatibility mode as by default, with one copy of the weights less in memory at a time, and in half of the time.

    Each of TransformerLens' passes over the weights copies all of them. That over value biases is left out where the
    model has no bias at all; the unembedding is centred here, by the subtraction of `ProcessWeights.center_unembed`.
    """
    from transformer_lens.utilities.activation_functions import softcap_enabled

    has_biases = any(name.endswith("bias") for name, _ in reference.named_parameters())
    model.enable_compatibility_mode(disable_warnings=True, center_unembed=False, fold_value_biases=has_biases)
    if softcap_enabled(getattr(model.cfg, "output_logits_soft_cap", None)):
        return  # a soft cap is not indifferent to what is added to every logit
    with torch.no_grad():
        model.unembed.weight.sub_(model.unembed.weight.mean(dim=0, keepdim=True))
        if (bias := model.unembed.bias) is not None:
            bias.sub_(bias.mean())


def _parity_tokens(vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (2, 24), generator=generator)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet(*, stderr: bool = True) -> Iterator[None]:
    """Silence what the libraries print: progress bars and notices, and (with `stderr`) all that goes there.

    Exceptions pass.
    """
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    root_level = logging.getLogger().level
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger().setLevel(max(root_level, logging.ERROR))
    try:
        unread = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(contextlib.redirect_stdout(unread))
            if stderr:
                stack.enter_context(contextlib.redirect_stderr(unread))
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().setLevel(root_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
