"""The files that a model is loaded from: which they are, and whether they are whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from mechrefusal.errors import MechrefusalError

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

    @classmethod
    def of(cls, folder: Path, base: Path) -> Self:
        """The files of `folder`, whose config and weights lie in `base`; see `sources.loaded_files`."""
        adapter, weights = adapter_files(folder), _weight_files(base)
        if base != folder and (base / ADAPTER_CONFIG).is_file():
            raise MechrefusalError(
                f"the base model '{base}' of the adapter '{folder}' holds an adapter itself; merge that one into its "
                "base model first (PEFT: merge_and_unload, then save_pretrained)"
            )
        for path in (*weights, *adapter[1:]):
            try:
                with safe_open(path, framework="pt") as file:
                    file.keys()
            except (SafetensorError, OSError) as error:
                raise MechrefusalError(
                    f"weight file '{path}' is not whole ({error}); copy or train it again"
                ) from error
        tokenizer = folder if base == folder or (folder / TOKENIZER_CONFIG).is_file() else base
        tokenizer_files = {path for pattern in TOKENIZER_FILES for path in tokenizer.glob(pattern) if path.is_file()}
        settings = tuple(path for name in (CONFIG, GENERATION_CONFIG) if (path := base / name).is_file())
        return cls(base, settings, weights, adapter, tokenizer, tuple(sorted(tokenizer_files)))

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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; a MechrefusalError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise MechrefusalError(f"'{path}' is not JSON ({' '.join(str(error).split())}); copy it again") from error
    if not isinstance(content, dict):
        raise MechrefusalError(f"'{path}' holds a {type(content).__name__}, not a JSON object; copy it again")
    return content


def named_base(adapter: Path) -> str:
    """The folder or name of the base model that an adapter's config names, with "@revision" where it names one.

    Raises:
        MechrefusalError: it names none.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise MechrefusalError(
            f"'{adapter / ADAPTER_CONFIG}' names no base model; set base_model_name_or_path to a folder or a hub name"
        )
    return f"{name}@{revision}" if revision and not Path(name).expanduser().is_dir() else name


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
    path = next((model / name for name in looked_for if (model / name).is_file()), None)
    if path is None:
        others = ", ".join(path.name for path in sorted(model.glob("*.safetensors")) if path.name != ADAPTER_WEIGHTS)
        beside = f"; {others} would not be loaded under such a name" if others else ""
        raise MechrefusalError(
            f"'{model}' has no *.safetensors weights that transformers loads ({' or '.join(looked_for)}){beside}; save "
            "the model with save_pretrained (pickled .bin weights are not read)"
        )
    return tuple(_listed_in(path)) if path.name.endswith(".index.json") else (path,)


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


def adapter_files(folder: Path) -> tuple[Path, ...]:
    """Config and weights of the adapter in a folder; empty where there is none.

    Raises:
        MechrefusalError: a config without weights that are read.
    """
    config, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    if not config.is_file():
        return ()
    if not weights.is_file():
        raise MechrefusalError(
            f"adapter '{folder}' has no {weights.name} (pickled .bin weights are not read); save it as safetensors"
        )
    return config, weights
