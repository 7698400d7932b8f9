"""A checkpoint: everything that is loaded from a folder, and the hash that tells it from others."""

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import checkpoint_id
from mechrefusal.prompts import ChatSettings

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, "tokenizer.json", "tokenizer.*.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "additional_chat_templates/*.jinja",
    # Vocabularies, under the names that transformers' tokenizers give them.
    "*.model", "*.model.*", "*.spm", "*.tokenizer", "vocab*.json", "*_vocab.json", "vocab.txt", "dict.txt",
    "merges.txt", "bpe.codes", "tekken.json", "normalizer.json", "emoji.json", "byte_maps.json", "word_shape.json",
    "word_pronunciation.json",
)  # fmt: skip
"""Files that a tokenizer is made of, beside the model's config, from which it may take its class."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Where transformers looks for weights, in this order."""
DISTRIBUTED = "shard-[0-9]*-model-[0-9]*-of-[0-9]*.safetensors"
SAID_OF_ORIGIN = frozenset({
    "transformers_version", "peft_version", "_name_or_path", "name_or_path", "base_model_name_or_path", "revision",
    "_commit_hash", "inference_mode", "tokenizer_file", "special_tokens_map_file",
})  # fmt: skip
"""Keys of config files that say where a model or its file comes from, and change nothing in what is loaded."""
SETTLED = 2.0
"""Seconds after which a file's hash may be remembered: a clock of files that is coarse hides changes within less."""


@dataclass(frozen=True)
class Checkpoint:
    """One anchor of one arm: a Hugging Face folder, or an adapter's, and the hash of all that is loaded from it.

    `weights` names the model in tables and files: it changes with the weights, config, generation config, tokenizer,
    chat template or adapter (see `hash_checkpoint`). `step` counts optimiser steps. The untrained model is arm "base",
    step 0, and is shared by every arm.
    """

    arm: str
    step: int
    path: Path
    weights: str
    chat: ChatSettings = field(default_factory=ChatSettings)

    @classmethod
    def open(
        cls, path: Path | str, *, arm: str = "base", step: int = 0, chat: ChatSettings | None = None
    ) -> "Checkpoint":
        """Check that `path` holds a readable model or adapter, and hash it (sha256, first 16 hex digits).

        Args:
            chat: how the model is asked wherever it is loaded from this checkpoint; another way, another hash.

        Raises:
            MechrefusalError: what `loaded_files` raises.
        """
        path = Path(path)
        return cls(arm, step, path, hash_checkpoint(path)).asked(chat or ChatSettings())

    def asked(self, chat: ChatSettings) -> "Checkpoint":
        """The same model, asked in another way than by default: tables and answers tell the two apart by the hash.

        Raises:
            MechrefusalError: the checkpoint is asked in a way of its own already.
        """
        if self.chat != ChatSettings():
            raise MechrefusalError(
                f"checkpoint '{self.path}' is asked with {self.chat} already: open it again for other settings"
            )
        return replace(self, chat=chat, weights=chat.hashed(self.weights))

    @property
    def id(self) -> str:
        """Name of the checkpoint in files and tables, e.g. `sft-step-00050`."""
        return checkpoint_id(self.arm, self.step)

    @property
    def n_bytes(self) -> int:
        """Size of its weights on disk, an adapter's included."""
        return loaded_files(self.path).n_bytes


@dataclass(frozen=True)
class LoadedFiles:
    """The files that a model and its tokenizer are loaded from, and none besides.

    `base` is the folder of config and weights: the one that was asked for, or that of the base model which an adapter
    names. `adapter` is the adapter's config and weights, or empty. The tokenizer is the adapter's own where it has one.
    """

    base: Path
    settings: tuple[Path, ...]
    weights: tuple[Path, ...]
    adapter: tuple[Path, ...]
    tokenizer: Path
    tokenizer_files: tuple[Path, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the weights on disk, an adapter's included."""
        return sum(path.stat().st_size for path in (*self.weights, *self.adapter))

    def named(self) -> Iterator[tuple[str, Path]]:
        """Every file, under a name that does not depend on where the folders lie."""
        for path in (*self.settings, *self.weights):
            yield f"model/{path.relative_to(self.base)}", path
        for path in self.adapter:
            yield f"adapter/{path.name}", path
        for path in self.tokenizer_files:
            yield f"tokenizer/{path.relative_to(self.tokenizer)}", path


def loaded_files(folder: Path | str, *, base: Path | str | None = None) -> LoadedFiles:
    """The files that transformers (and PEFT, for an adapter) load from `folder`; weights are opened to see that they
    are whole.

    Weights are, in this order: those that the config names (`transformers_weights`), `model.safetensors`, the shards of
    `model.safetensors.index.json`. An adapter beside a model is applied to it; one in a folder without a model needs
    the base model that it names, which is looked for as a folder and fetched otherwise.

    Args:
        base: the base model of an adapter, where it isn't the one that the adapter names.

    Raises:
        MechrefusalError: no such folder, neither a config nor an adapter, no safetensors weights, a truncated or
            missing file, a file that is no JSON, or a base model that cannot be had.
    """
    folder = Path(folder)
    model = base_folder(folder, base=base)
    adapter = _adapter_files(folder)
    if model != folder and (model / ADAPTER_CONFIG).is_file():
        raise MechrefusalError(
            f"the base model '{model}' of the adapter '{folder}' holds an adapter itself; merge that one into its base "
            "model first (PEFT: merge_and_unload, then save_pretrained)"
        )
    weights = _weight_files(model)
    for path in (*weights, *(path for path in adapter if path.suffix == ".safetensors")):
        _require_whole(path)
    tokenizer = folder if model == folder or (folder / TOKENIZER_CONFIG).is_file() else model
    listed = {path for pattern in TOKENIZER_FILES for path in tokenizer.glob(pattern) if path.is_file()}
    settings = [path for name in (CONFIG, GENERATION_CONFIG) if (path := model / name).is_file()]
    return LoadedFiles(model, tuple(settings), weights, adapter, tokenizer, tuple(sorted(listed)))


def base_folder(folder: Path | str, *, base: Path | str | None = None) -> Path:
    """The folder whose config and weights are loaded for `folder`: itself, or the base model that an adapter names.

    Raises:
        MechrefusalError: no such folder, neither a config nor an adapter in it, or a base model that cannot be had.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MechrefusalError(
            f"model folder '{folder}' does not exist; give a Hugging Face folder, or a name to fetch"
        )
    if base is not None and (folder / ADAPTER_CONFIG).is_file():
        return Path(base)
    if (folder / CONFIG).is_file():
        return folder
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MechrefusalError(
            f"'{folder}' has no {CONFIG} (nor an {ADAPTER_CONFIG}); give a folder written by save_pretrained"
        )
    name = named_base(folder)
    for place in (Path(name).expanduser(), folder / name):
        if place.is_dir():
            return place
    # Imported here: `fetch` looks with `loaded_files` at what it gives.
    from mechrefusal.models.sources import fetch

    try:
        return fetch(name)
    except MechrefusalError as error:
        raise MechrefusalError(f"adapter '{folder}' needs its base model '{name}': {error}") from error


def named_base(adapter: Path) -> str:
    """The folder or name of the base model that an adapter's config names, with "@revision" where it names one.

    Raises:
        MechrefusalError: it names none.
    """
    said = read_json(adapter / ADAPTER_CONFIG)
    name, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(name, str) or not name:
        raise MechrefusalError(
            f"'{adapter / ADAPTER_CONFIG}' names no base model; set base_model_name_or_path to a folder or a hub name"
        )
    return f"{name}@{revision}" if revision and not Path(name).expanduser().is_dir() else name


def weight_files(folder: Path | str) -> list[Path]:
    """The safetensors files that are loaded for `folder`, an adapter's included; raises what `loaded_files` raises."""
    files = loaded_files(folder)
    return [*files.weights, *(path for path in files.adapter if path.suffix == ".safetensors")]


def hash_checkpoint(folder: Path | str, *, base: Path | str | None = None) -> str:
    """First 16 hex digits of a sha256 over everything that is loaded from `folder`: weights, config, generation config,
    tokenizer, chat template, adapter and the adapter's base model.

    Config files count by their content without the keys `SAID_OF_ORIGIN`; all others byte by byte. What else lies in
    the folder does not count.
    """
    whole = hashlib.sha256()
    for name, path in loaded_files(folder, base=base).named():
        whole.update(f"{name} {_digest(path)}\n".encode())
    return whole.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; a MechrefusalError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise MechrefusalError(f"'{path}' is not JSON ({' '.join(str(error).split())}); copy it again") from error
    if not isinstance(found, dict):
        raise MechrefusalError(f"'{path}' holds a {type(found).__name__}, not a JSON object; copy it again")
    return found


def _weight_files(model: Path) -> tuple[Path, ...]:
    config = model / CONFIG
    if not config.is_file():
        raise MechrefusalError(f"'{model}' has no {CONFIG}; give a folder written by save_pretrained")
    if distributed := sorted(path.name for path in model.glob(DISTRIBUTED)):
        raise MechrefusalError(
            f"'{model}' holds a distributed checkpoint ('{distributed[0]}'), which would be loaded in place of other "
            "weights there; save the whole model with save_pretrained"
        )
    named = read_json(config).get("transformers_weights")
    if isinstance(named, str) and not (model / named).resolve().is_relative_to(model.resolve()):
        raise MechrefusalError(f"transformers_weights in '{config}' is '{named}', outside of the folder: remove it")
    looked_for = (named,) if isinstance(named, str) else WEIGHTS
    found = next((model / name for name in looked_for if (model / name).is_file()), None)
    if found is None:
        others = ", ".join(path.name for path in sorted(model.glob("*.safetensors")) if path.name != ADAPTER_WEIGHTS)
        beside = f"; {others} would not be loaded under such a name" if others else ""
        raise MechrefusalError(
            f"'{model}' has no *.safetensors weights that transformers loads ({' or '.join(looked_for)}){beside}; save "
            "the model with save_pretrained (pickled .bin weights are not read)"
        )
    return tuple(_listed_in(found)) if found.name.endswith(".index.json") else (found,)


def _listed_in(index: Path) -> list[Path]:
    try:
        files = [index.parent / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError) as error:
        raise MechrefusalError(f"'{index}' is not a safetensors index ({error}); copy it again") from error
    for path in files:
        if not path.is_file():
            raise MechrefusalError(
                f"'{index.parent}' lacks the weight file '{path.name}' that its index names; copy it again"
            )
    return files


def _adapter_files(folder: Path) -> tuple[Path, ...]:
    config, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    if not config.is_file():
        return ()
    if not weights.is_file():
        raise MechrefusalError(
            f"adapter '{folder}' has no {weights.name} (pickled .bin weights are not read); save it as safetensors"
        )
    return config, weights


def _require_whole(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise MechrefusalError(f"weight file '{path}' is not whole ({error}); copy or train it again") from error


def _digest(path: Path) -> str:
    if path.name in (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG, TOKENIZER_CONFIG):
        text = json.dumps(_without_origin(read_json(path)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
    state = path.stat()
    if time.time() - max(state.st_mtime, state.st_ctime) < SETTLED:
        return _sha256(path)
    return _remembered(path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _remembered(path: Path, *state: int) -> str:
    """The hash of a file, computed once in a process for as long as its `state` on disk is the same."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_origin(one) for key, one in value.items() if key not in SAID_OF_ORIGIN}
    if isinstance(value, list):
        return [_without_origin(one) for one in value]
    return value
