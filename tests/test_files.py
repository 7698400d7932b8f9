"""Files and folders that are written whole or not at all."""

import os
import stat

import pytest

from mechrefusal import MechrefusalError, files


def test_error_is_a_value_error_with_its_message():
    with pytest.raises(ValueError, match=r"^step '-1' is negative; give 0 or more$"):
        raise MechrefusalError("step '-1' is negative; give 0 or more")


def fail(write, path, error):
    """Write half of something and then raise."""
    with write(path) as draft:
        (draft / "file" if draft.is_dir() else draft).write_text("half")
        raise error


class TestFile:
    def test_written(self, tmp_path):
        path = tmp_path / "a" / "b" / "table.parquet"
        with files.whole_file(path) as draft:
            draft.write_text("content")
            assert not path.exists(), "it has no name before it is whole"
            assert draft.parent == path.parent, "so that the rename stays on one file system"
            assert draft.suffix == ".parquet"
        assert path.read_text() == "content"
        assert os.listdir(path.parent) == ["table.parquet"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_nothing_is_left_of_a_failure(self, tmp_path, error):
        with pytest.raises(error):
            fail(files.whole_file, tmp_path / "new.txt", error)
        assert os.listdir(tmp_path) == []

    def test_the_old_file_survives_a_failure(self, tmp_path):
        path = tmp_path / "old.txt"
        path.write_text("old")
        with pytest.raises(ValueError, match="half way"):
            fail(files.whole_file, str(path), ValueError("half way"))
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["old.txt"]

    def test_the_old_file_is_replaced_at_once(self, tmp_path):
        path = tmp_path / "old.txt"
        path.write_text("old")
        with path.open() as reader, files.whole_file(path) as draft:
            draft.write_text("new and longer")
            assert path.read_text() == "old"
            held = reader
            draft_inode = draft.stat().st_ino
            assert held.read() == "old"
        assert path.read_text() == "new and longer"
        assert path.stat().st_ino == draft_inode, "renamed, not copied"

    def test_two_writers_do_not_meet(self, tmp_path):
        path = tmp_path / "table.txt"
        with files.whole_file(path) as first, files.whole_file(path) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "first", "the last to end"
        assert os.listdir(tmp_path) == ["table.txt"]


class TestFolder:
    def test_written(self, tmp_path):
        path = tmp_path / "runs" / "step-00050"
        with files.whole_folder(path) as draft:
            (draft / "inner").mkdir()
            (draft / "inner" / "file").write_text("content")
            assert not path.exists()
        assert (path / "inner" / "file").read_text() == "content"
        assert os.listdir(path.parent) == ["step-00050"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o755

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_nothing_is_left_of_a_failure(self, tmp_path, error):
        with pytest.raises(error):
            fail(files.whole_folder, tmp_path / "new", error)
        assert os.listdir(tmp_path) == []

    def test_the_old_folder_survives_a_failure(self, tmp_path):
        path = tmp_path / "old"
        path.mkdir()
        (path / "file").write_text("old")
        with pytest.raises(ValueError, match="half way"):
            fail(files.whole_folder, path, ValueError("half way"))
        assert (path / "file").read_text() == "old"
        assert os.listdir(tmp_path) == ["old"]

    def test_the_old_folder_is_replaced_and_not_mixed(self, tmp_path):
        path = tmp_path / "old"
        path.mkdir()
        (path / "stale").write_text("old")
        with files.whole_folder(str(path)) as draft:
            (draft / "file").write_text("new")
            assert os.listdir(path) == ["stale"]
        assert os.listdir(path) == ["file"]
        assert os.listdir(tmp_path) == ["old"]


class TestWritable:
    def test_nothing_is_left_of_the_trial(self, tmp_path):
        (tmp_path / "there.csv").write_text("old")
        files.require_writable(tmp_path / "new.csv", tmp_path / "a" / "b" / "new.csv", tmp_path / "there.csv")
        files.require_writable(tmp_path / "a", tmp_path, folder=True)
        assert os.listdir(tmp_path) == ["there.csv"]
        assert (tmp_path / "there.csv").read_text() == "old"

    @pytest.mark.parametrize(
        ("path", "folder", "said"),
        [
            ("file/new.csv", False, "Not a directory"),
            ("file/deep/new.csv", False, "Not a directory"),
            ("file", True, "Not a directory"),
            ("folder", False, "is a folder: give the path of a file"),
            ("x" * 300 + ".csv", False, "File name too long"),
            ("a/" + "x" * 300 + "/new.csv", False, "File name too long"),
            ("/proc/nowhere/new.csv", False, "cannot write '/proc/nowhere/new.csv'"),
            ("/proc/nowhere", True, "cannot write '/proc/nowhere'"),
        ],
    )
    def test_what_stands_in_the_way_is_named(self, tmp_path, path, folder, said):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "folder").mkdir()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(MechrefusalError, match=said):
            files.require_writable(tmp_path / path, folder=folder)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied", "/x"), True),
        (FileNotFoundError(2, "No such file", "/x"), True),
        (BrokenPipeError(32, "Broken pipe"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (ProcessLookupError(3, "No such process"), False),
        (OSError("owner/model is no model that a library knows"), False),
        (ValueError("28"), False),
    ],
)
def test_pipes_connections_and_libraries_are_no_disk(error, is_one):
    assert files.is_disk_trouble(error) is is_one


def _make(path, number, started):
    """In a process of its own: make the folder `path` over and over, as fast as it goes."""
    started.wait()
    for turn in range(40):
        with files.whole_folder(path) as draft:
            for name in "abcd":
                (draft / name).write_text(f"{number}-{turn}")


def test_processes_that_replace_one_folder_do_not_meet(tmp_path):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    started = context.Event()
    makers = [context.Process(target=_make, args=(tmp_path / "model", n, started)) for n in range(3)]
    for maker in makers:
        maker.start()
    started.set()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["model"]
    assert len({(tmp_path / "model" / name).read_text() for name in "abcd"}) == 1, "of one of them"


def test_whoever_comes_second_leaves_what_is_finished(tmp_path):
    path = tmp_path / "model"
    with files.whole_folder(path, unless=lambda: (path / "done").is_file()) as slow:
        with files.whole_folder(path, unless=lambda: (path / "done").is_file()) as fast:
            (fast / "done").write_text("fast")
        (slow / "done").write_text("slow")
    assert (path / "done").read_text() == "fast"
    assert os.listdir(tmp_path) == ["model"]


def test_one_at_a_time_and_no_lock_is_left(tmp_path):
    import threading
    import time

    inside, most = [], []

    def work():
        with files.one_at_a_time(tmp_path / "models" / "one"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == [1, 1, 1, 1]
    assert os.listdir(tmp_path / "models") == []


def test_sweep_removes_the_drafts_of_dead_processes_only(tmp_path):
    import os
    import subprocess
    import sys

    from mechrefusal.files import DRAFT, sweep

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "deep").mkdir()
    left = tmp_path / "deep" / f"{DRAFT}{dead.pid}-step-00004.abc"
    left.mkdir()
    (left / "half").write_text("x")
    mine = tmp_path / f"{DRAFT}{os.getpid()}-rates.parquet.abc"
    mine.write_text("x")
    others = tmp_path / ".git"
    others.mkdir()
    sweep(tmp_path)
    assert not left.exists()
    assert mine.exists()
    assert others.exists()
