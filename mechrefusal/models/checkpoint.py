"""A checkpoint: weights on disk that know where they come from."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import checkpoint_id
from mechrefusal.prompts import ChatSettings


@dataclass(frozen=True)
class Checkpoint:
    """One anchor of one arm: a plain Hugging Face folder and the hash of its weights.

    `step` counts optimiser steps. The untrained model is arm "base", step 0, and is shared by every arm.
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
        """Check that `path` holds a readable model and hash its weights (sha256, first 16 hex digits).

        Args:
            chat: how the model is asked wherever it is loaded from this checkpoint; another way, another hash.

        Raises:
            MechrefusalError: no such folder, no config, no safetensors weights, or a truncated file.
        """
        path = Path(path)
        return cls(arm, step, path, hash_weights(path)).asked(chat or ChatSettings())

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
        """Size of its weights on disk."""
        return sum(path.stat().st_size for path in weight_files(self.path))


def weight_files(folder: Path | str) -> list[Path]:
    """The safetensors files of a Hugging Face folder, every one opened once to see that it is whole."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MechrefusalError(
            f"model folder '{folder}' does not exist; give a Hugging Face folder, or a name to fetch"
        )
    if not (folder / "config.json").is_file():
        raise MechrefusalError(f"'{folder}' has no config.json; give a folder written by save_pretrained")
    found = _listed_in_index(folder) or sorted(folder.glob("*.safetensors"))
    if not found:
        raise MechrefusalError(
            f"'{folder}' has no *.safetensors weights; save the model with save_pretrained "
            "(pickled .bin weights are not read)"
        )
    for path in found:
        if not path.is_file():
            raise MechrefusalError(
                f"'{folder}' lacks the weight file '{path.name}' that its index names; copy it again"
            )
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise MechrefusalError(f"weight file '{path}' is not whole ({error}); copy or train it again") from error
    return found


def hash_weights(folder: Path | str) -> str:
    """First 16 hex digits of the sha256 over the weight files of `folder`, in order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _listed_in_index(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError) as error:
        raise MechrefusalError(f"'{index}' is not a safetensors index ({error}); copy it again") from error
    return [folder / name for name in sorted(names)]
