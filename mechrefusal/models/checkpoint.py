"""A checkpoint: everything that is loaded from a folder, and the hash that tells it from others."""

import functools
import hashlib
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import checkpoint_id
from mechrefusal.models.model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    LoadedFiles,
    read_json,
)
from mechrefusal.models.placement import Placement
from mechrefusal.models.sources import loaded_files
from mechrefusal.prompts import ChatSettings

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
    step 0, and is shared by every arm. `placement`: where and in which numbers it is computed wherever it is opened.
    """

    arm: str
    step: int
    path: Path
    weights: str
    chat: ChatSettings = field(default_factory=ChatSettings)
    placement: Placement = field(default_factory=Placement, compare=False)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        arm: str = "base",
        step: int = 0,
        chat: ChatSettings | None = None,
        placement: Placement | None = None,
    ) -> "Checkpoint":
        """Check that `path` holds a readable model or adapter, and hash it (sha256, first 16 hex digits).

        Args:
            chat: how the model is asked wherever it is loaded from this checkpoint; another way, another hash.
            placement: where it lies then, and in which numbers.

        Raises:
            MechrefusalError: what `loaded_files` raises.
        """
        path = Path(path)
        opened = cls(arm, step, path, hash_checkpoint(path), placement=placement or Placement())
        return opened.asked(chat or ChatSettings())

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
    def computed(self) -> str:
        """What numbers taken of it hang on: the hash of its weights, and in which numbers it is computed."""
        dtype = self.placement.dtype
        return self.weights if dtype == Placement().dtype else f"{self.weights} in {dtype}"

    @property
    def n_bytes(self) -> int:
        """Size of its weights on disk, an adapter's included."""
        return loaded_files(self.path).n_bytes


def files_of(source: Checkpoint | Path | str | LoadedFiles, *, base: Path | str | None = None) -> LoadedFiles:
    """What is loaded for a checkpoint or a folder (`loaded_files`); files that are known already, as they are."""
    if isinstance(source, LoadedFiles):
        return source
    return loaded_files(source.path if isinstance(source, Checkpoint) else source, base=base)


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
