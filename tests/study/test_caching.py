"""What a run keeps of its stages: made once, whole or not at all, and again where inputs or files have changed."""

import json

import forked
import pandas as pd
import pytest

from mechrefusal import study, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.study import caching
from mechrefusal.study.caching import Made, Written, fingerprint

pytestmark = pytest.mark.slow

TABLE = tables.frame(
    "pairs",
    [{"arm": "sft", "step": 3, "weights": "w", "origin": "given", "n": 3, "n_left_out": 0, "n_patched": 2}],
)


class Text:
    """Something that saves itself."""

    def __init__(self, said):
        self.said = said

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.said)
        return path


@pytest.fixture
def run(tmp_path):
    return study.Run.create(tmp_path / "run", study.load_recipe("tiny"))


@pytest.fixture
def stage(run):
    """A stage of two files that counts how often it is taken; `stage(inputs)` asks for it."""

    class Asked:
        paths = run.folder / "measurements" / "one" / "pairs.parquet", run.folder / "directions" / "one.txt"
        taken: list = []  # noqa: RUF012
        note = ""

        def __call__(self, inputs):
            def make():
                self.taken.append(inputs)
                return Made({self.paths[0]: TABLE, self.paths[1]: Text(f"made from {inputs}")}, self.note)

            return run.cached("stage", "one", {"of": inputs}, make)

    asked = Asked()
    asked.taken = []
    return asked


def test_it_is_made_once_and_again_of_other_inputs(run, stage):
    stage.note = "not all of it"
    first = stage("a")
    pd.testing.assert_frame_equal(first.table("pairs"), tables.read("pairs", stage.paths[0].parent))
    assert first.table("pairs")["n"].tolist() == [3]
    again = stage("a")
    assert (stage.taken, again, again.note) == (["a"], first, "not all of it")
    assert first == run.finished("stage", "one") == run.kept("stage", "one", {"of": "a"})
    assert run.kept("stage", "one", {"of": "b"}) is None
    assert run.finished("stage", "other") is None
    stage("b")
    assert stage.taken == ["a", "b"]
    assert stage.paths[1].read_text() == "made from b"
    with pytest.raises(MechrefusalError, match=r"there is no table 'rates' among .*pairs\.parquet"):
        first.table("rates")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_file_that_is_not_what_was_written_is_made_again(stage, number, damage):
    stage("a")
    path = stage.paths[number]
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-3] if damage == "cut" else whole[:-3] + b"xyz")
    stage("a")
    assert stage.taken == ["a", "a"]
    assert path.read_bytes() == whole


def test_damaged_files_and_those_of_other_inputs_are_gone_before_it_is_made_again(run):
    one, other = run.folder / "one.txt", run.folder / "other.txt"
    seen = []

    def ask(inputs):
        def make():
            seen.append((one.exists(), other.exists()))
            for path in (one, other):
                path.write_text("made")
            return Made({one: Written(), other: Written()})

        run.cached("stage", "", inputs, make)

    ask({"of": "a"})
    other.write_text("mad")
    ask({"of": "a"})
    ask({"of": "b"})
    assert seen == [(False, False), (True, False), (False, False)]


def test_what_is_not_given_any_more_is_removed(run):
    path = run.folder / "measurements" / "pairs.parquet"
    tables.write(TABLE, "pairs", path.parent)  # of nobody knows what
    found = run.cached("stage", "one", {}, lambda: Made({path: None}))
    assert not path.exists()
    assert not found.files
    assert run.kept("stage", "one", {}) == found


def test_a_file_that_others_add_to_only_has_to_be_there(run):
    path, taken = run.folder / "added.txt", []

    def make():
        taken.append(1)
        path.write_text("ours")
        return Made({path: Written(shared=True)})

    def ask(inputs):
        run.cached("stage", "", inputs, make)
        return len(taken)

    assert ask({}) == 1
    path.write_text("ours and theirs")
    assert ask({}) == 1
    assert path.read_text() == "ours and theirs"
    path.unlink()
    assert ask({}) == 2
    assert ask({"of": "others"}) == 3


def test_a_full_disk_leaves_no_half_file_and_no_stamp(run, stage, monkeypatch):
    """The second file cannot be written: at the first time, and where the stage was finished from other inputs."""
    to_parquet = pd.DataFrame.to_parquet

    def full(self, path, **named):
        to_parquet(self.iloc[:0], path, **named)
        raise OSError(28, "No space left on device", str(path))

    before = sorted(run.folder.rglob("*"))
    for inputs in ("a", "b"):
        with monkeypatch.context() as patch:
            patch.setattr(pd.DataFrame, "to_parquet", full)
            with pytest.raises(OSError, match="No space left"):
                stage(inputs)
        assert run.finished("stage", "one") is None
        assert [path for path in run.folder.rglob("*") if path.is_file()] == [p for p in before if p.is_file()]
        stage(inputs)
        assert run.kept("stage", "one", {"of": inputs}) is not None
        before = sorted(run.folder.rglob("*"))
        if inputs == "a":
            before = [path for path in before if path not in stage.paths]


def test_a_manifest_that_cannot_be_written_stamps_nothing(run, stage, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(run), "update", full)
        with pytest.raises(OSError, match="No space left"):
            stage("a")
    assert run.finished("stage", "one") is None
    stage("a")
    assert stage.taken == ["a", "a"]


class Killed(BaseException):
    """As a kill that no handler sees."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_killed_while_files_are_written_it_is_made_again(run, stage, monkeypatch, after):
    """After so many files; also where the files of the other inputs stand."""
    write = caching.write
    stage("a")
    with monkeypatch.context() as patch:
        written = []

        def killed(path, content):
            if len(written) == after:
                raise Killed
            written.append(path)
            return write(path, content)

        patch.setattr(caching, "write", killed)
        if after < 2:
            with pytest.raises(Killed):
                stage("b")
        else:
            patch.setattr(type(run), "update", lambda self, changes: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                stage("b")
    assert stage.taken[0] == "a"
    stage("a")
    assert stage.paths[1].read_text() == "made from a"
    stage("b")
    assert stage.paths[1].read_text() == "made from b"


def add_ten(folder, name):
    run = study.open(folder)
    for number in range(10):
        run.cached(f"{name} {number}", "", {}, lambda: Made({}))


def test_processes_that_finish_units_at_once_lose_none(run):
    workers = [forked.start(add_ten, run.folder, name) for name in ("one", "two", "three")]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(run.manifest["finished"]) == 30
    assert not list(run.folder.glob(".*")), "a lock is left"


def test_the_manifest_says_what_there_is_of_a_unit(run, stage):
    stage("a")
    entry = json.loads((run.folder / "manifest.json").read_text())["finished"]["stage of one"]
    assert set(entry) == {"stamp", "files", "seconds", "note"}
    assert entry["stamp"] == fingerprint({"of": "a"})
    assert set(entry["files"]) == {"measurements/one/pairs.parquet", "directions/one.txt"}
