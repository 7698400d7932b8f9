"""The Hugging Face model of a folder: every weight of it used, none drawn at random, an adapter merged."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from mechrefusal.errors import MechrefusalError
from mechrefusal.models.capacity import stored_tensors
from mechrefusal.models.model_files import LoadedFiles, adapter_files
from mechrefusal.models.sources import base_folder, loaded_files

ATTENTION, EXPERTS = ("eager", "sdpa"), ("eager", "batched_mm", "grouped_mm")
"""What of a config's `attn_implementation` and `experts_implementation` is followed: transformers brings it itself."""
NO_ADAPTER = ".none"
"""A subfolder that is not there: transformers looks for an adapter in it, finds none, and loads the base alone."""
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens")
"""What stays of a generation config that transformers would refuse to save; the rest says how to sample or search."""
INSTALLED_BY = {
    "bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel", "compressed-tensors": "compressed-tensors",
    "hqq": "hqq", "torchao": "torchao", "quanto": "optimum-quanto", "mxfp4": "kernels", "fp8": "kernels",
    "eetq": "eetq", "aqlm": "aqlm", "vptq": "vptq", "auto-round": "auto-round", "quark": "amd-quark",
}  # fmt: skip
"""Package without which transformers does not open weights of a quantisation method."""


def load_config(folder: Path | str) -> PreTrainedConfig:
    """The model config of a local folder, or of an adapter's base model.

    Raises:
        MechrefusalError: no config that transformers knows.
    """
    folder = base_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise MechrefusalError(f"model in '{folder}' cannot be loaded ({first_line(error)})") from error


def load_weights(
    files: LoadedFiles,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    merged: bool = True,
    quantised: bool = False,
    in_memory: bool = True,
) -> PreTrainedModel:
    """The model of a folder's files, with its adapter's weights merged into it, or (`merged` False) beside it.

    How attention and experts are computed is no part of the weights: what the config demands is followed where
    transformers brings it (`ATTENTION`, `EXPERTS`), and `attention` goes before it. With `in_memory` False
    the weights have no values.

    Raises:
        MechrefusalError: quantised weights (unless `quantised`), an architecture that transformers does not know,
            weights that are missing, unused or of another shape than the config says, or an adapter that does not fit.
    """
    config = load_config(files.base)
    _require_plain(config, files, quantised=quantised)
    _drop_pad_beyond_rows(config)
    if attention is not None or config._attn_implementation not in ATTENTION:
        config._attn_implementation = attention
    if config._experts_implementation not in EXPERTS:
        config._experts_implementation = None
    try:
        model, notes = AutoModelForCausalLM.from_pretrained(
            files.base,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            adapter_kwargs={"subfolder": NO_ADAPTER},
            device_map=None if in_memory else "meta",
        )
    except ImportError as error:
        raise MechrefusalError(_what_to_install(config, files, error, attention)) from error
    except (ValueError, OSError, RuntimeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise MechrefusalError(f"model in '{files.base}' cannot be loaded ({first_line(error)})") from error
    _require_all_used(model, notes, files)
    if files.adapter:
        model = _with_adapter(model, files, merged=merged)
    _make_savable(model)
    return model


def merged_into(base: Path, adapter: Path) -> PreTrainedModel:
    """The model of the folder `base`, whose own adapter is merged where it has one, with another merged into it.

    In float32, in the host's memory.
    """
    files = loaded_files(base)
    model = load_weights(files, dtype=torch.float32)
    return _with_adapter(model, replace(files, adapter=adapter_files(adapter)), merged=True)


def embedding_rows(files: LoadedFiles) -> int | None:
    """Rows of the embedding that a folder's model has: token ids lie below. None where the config doesn't say."""
    rows = getattr(load_config(files.base).get_text_config(), "vocab_size", None)
    if rows is None or not files.adapter:
        return rows
    resized = [one.shape[0] for name, one in stored_tensors(files.adapter[1]).items() if _is_embedding(name)]
    return max([rows, *resized])


def first_line(error: BaseException) -> str:
    """What kind of error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _quantisation(config: PreTrainedConfig) -> str | None:
    """The method of a config's quantisation; None for plain weights."""
    for one in (config, config.get_text_config()):
        if settings := getattr(one, "quantization_config", None):
            quantisation = settings if isinstance(settings, dict) else settings.to_dict()
            by_bits = quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit")
            method = quantisation.get("quant_method") or ("bitsandbytes" if by_bits else "unnamed")
            return str(getattr(method, "value", method))
    return None


def _require_plain(config: PreTrainedConfig, files: LoadedFiles, *, quantised: bool) -> None:
    method = _quantisation(config)
    if method is None or quantised:
        return
    raise MechrefusalError(
        f"the weights in '{files.base}' are quantised ('{method}', quantization_config in its config.json); measuring "
        "and training need plain ones: take the model that they were made of, or write plain weights where "
        "transformers opens these (from_pretrained, dequantize, save_pretrained) and give that folder"
    )


def _what_to_install(config: PreTrainedConfig, files: LoadedFiles, error: ImportError, attention: str | None) -> str:
    problem = f"model in '{files.base}' cannot be loaded here ({first_line(error)})"
    if method := _quantisation(config):
        package = INSTALLED_BY.get(method)
        install = f"install {package} (pip install {package})" if package else "install what it names"
        return f"{problem}: its weights are quantised ('{method}'); {install}, or take the model without quantisation"
    if attention is not None and attention not in ATTENTION:
        return f"{problem}: install what attention '{attention}' needs, or give 'sdpa' or 'eager'"
    return f"{problem}: install what it names"


def _drop_pad_beyond_rows(config: PreTrainedConfig) -> None:
    """A pad token that was added and has no row: the embedding could not be made. Padding is masked in any case."""
    for one in {id(each): each for each in (config, config.get_text_config())}.values():
        pad, rows = getattr(one, "pad_token_id", None), getattr(one, "vocab_size", None)
        if pad is not None and rows is not None and pad >= rows:
            one.pad_token_id = None


def _require_all_used(model: PreTrainedModel, notes: dict[str, Any], files: LoadedFiles) -> None:
    """transformers has left out by now what it knows that older releases saved besides (`inv_freq` and its like)."""
    kind, folder = f"{type(model).__name__} of its config.json", files.base
    if mismatched := sorted(notes["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise MechrefusalError(
            f"the weights in '{folder}' hold {len(mismatched)} tensors of another shape than the {kind} ('{name}' is "
            f"{tuple(stored)}, expected {tuple(expected)}); put the config there that was saved with these weights"
        )
    stored_as = stored_tensors(*files.weights)
    unused = sorted(key for key in notes["unexpected_keys"] if key not in stored_as or stored_as[key].is_weight)
    if unused:
        shown = ", ".join(f"'{name}'" for name in unused[:3]) + (", …" if len(unused) > 3 else "")
        raise MechrefusalError(
            f"the weights in '{folder}' hold {len(unused)} tensors that a {kind} does not use ({shown}), so that it "
            "would be another model than was saved; put the config there that was saved with these weights "
            "(model_type, num_hidden_layers)"
        )
    if missing := sorted(notes["missing_keys"]):
        raise MechrefusalError(
            f"the weights in '{folder}' lack {len(missing)} tensors ('{missing[0]}'), which would be drawn at random; "
            "copy or train the checkpoint again"
        )


def _with_adapter(model: PreTrainedModel, files: LoadedFiles, *, merged: bool) -> PreTrainedModel:
    from peft import PeftModel

    folder = files.adapter[0].parent
    # Merged into weights of 16 bits it is computed in float32, so that the sum alone is rounded (not of experts).
    how: dict[str, Any] = {"local_files_only": True, "autocast_adapter_dtype": merged}
    stored = stored_tensors(files.adapter[1])
    rows = [one.shape[0] for name, one in stored.items() if _is_embedding(name)]
    if rows and max(rows) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(rows), mean_resizing=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder), **how)
        config = adapted.active_peft_config
        if config.is_prompt_learning:
            raise MechrefusalError(
                f"adapter '{folder}' is of type {config.peft_type.value}: it adds tokens, not weights, and can't be "
                "merged; give one that changes weights (LoRA and its kin), or a merged model"
            )
        # Once more: only this way PEFT says what it did not use, under the names that it maps older ones to.
        notes = adapted.load_adapter(str(folder), "default", **how)
        if unused := sorted(notes.unexpected_keys):
            raise ValueError(f"{len(unused)} tensors of it would not be used, '{unused[0]}' among them")
        return adapted.merge_and_unload().requires_grad_(True) if merged else adapted.get_base_model()
    except MechrefusalError:
        raise
    except Exception as error:
        raise MechrefusalError(
            f"adapter '{folder}' does not fit the base model '{files.base}' ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); copy the adapter again, or give the base model it was trained on"
        ) from error


def _is_embedding(name: str) -> bool:
    """Whether a tensor of an adapter is a whole embedding, which was saved because it had been resized or trained."""
    return re.search(r"(embed_tokens|embed_in|wte|word_embeddings)\.(base_layer\.)?weight$", name) is not None


def _make_savable(model: PreTrainedModel) -> None:
    """Put right what transformers loads and refuses to save once it was touched: settings of sampling without
    `do_sample`, from the generation config or the model's. Greedy answers are the same without them.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        kept = {name: getattr(config, name) for name in KEPT}
        if kept["pad_token_id"] is not None and kept["pad_token_id"] < 0:
            kept["pad_token_id"] = None
        model.generation_config = GenerationConfig(**kept)
