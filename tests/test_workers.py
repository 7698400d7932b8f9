"""Workers: every unit once, in whatever order; what becomes of failures, killed workers and other machines."""

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from toy_work import Toy

from mechrefusal import leases, progress, workers
from mechrefusal.errors import MechrefusalError
from mechrefusal.leases import Lease, Owner, Watch
from mechrefusal.workers import Workers, local
from mechrefusal.workers.board import Board, LeaseLostError
from mechrefusal.workers.worker import take_one

HERE = [Workers(), Workers("debug")]
UNITS = ("a", "b", "c", "d")


def all_there(work):
    return not any(work.left().values())


def nothing_is_left(work):
    return not (work.folder / "workers").exists()


@pytest.mark.parametrize("who", HERE)
def test_every_unit_is_taken_once_in_order(tmp_path, who):
    work, told = Toy(tmp_path, UNITS), []
    workers.run(work, who, on_finished=told.append)
    assert [unit for unit, stage, _ in work.taken() if stage == "first"] == list(UNITS) == told
    assert len(work.taken()) == 12
    assert nothing_is_left(work)
    workers.run(work, who)
    assert len(work.taken()) == 12


def test_debug_stops_at_the_first_error_as_it_is(tmp_path):
    work = Toy(tmp_path, UNITS, (("b", "raise"),))
    with pytest.raises(ValueError, match=r"^b is odd$"):
        workers.run(work, Workers("debug"))
    assert [unit for unit, stage, _ in work.taken() if stage == "first"] == ["a", "b"]
    assert not list(tmp_path.rglob("*.lease"))


def test_a_failure_is_tried_again_and_reported_when_all_others_are_finished(tmp_path):
    work = Toy(tmp_path, UNITS, (("b", "raise"), ("c", "stumble")))
    with pytest.raises(RuntimeError, match=r"^b failed in stage 'second': ValueError: b is odd \(log: (.*)\)$") as told:
        workers.run(work, Workers(retries=2))
    assert work.left() == {"a": [], "b": ["second", "third"], "c": [], "d": []}
    begun = [unit for unit, stage, _ in work.taken() if stage == "second"]
    assert (begun.count("b"), begun.count("c")) == (3, 2)
    log = Path(str(told.value).split("(log: ")[1].rstrip(")"))
    assert "ValueError: b is odd" in log.read_text()
    assert "Traceback" in log.read_text()
    (tmp_path / "b.calm").touch()
    workers.run(work, Workers(retries=0))  # what failed before does not count
    assert all_there(work)
    assert nothing_is_left(work)


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [("refuse", MechrefusalError, "prompts 'x' are empty"), ("full", OSError, "No space left on device")],
)
def test_what_would_fail_again_is_not_tried_again(tmp_path, what, kind, said):
    work = Toy(tmp_path, ("a", "b"), (("a", what),))
    with pytest.raises(kind, match=said):
        workers.run(work, Workers())
    assert [unit for unit, stage, _ in work.taken() if stage == "second"] == ["a", "b"]


def test_all_that_failed_is_named(tmp_path):
    work = Toy(tmp_path, UNITS, (("a", "refuse"), ("d", "refuse")))
    with pytest.raises(MechrefusalError, match=r"2 units failed, the others are finished: a failed.*; d failed"):
        workers.run(work, Workers())


class Stopped(BaseException):
    """As Ctrl-C."""


def test_a_stopped_command_leaves_nothing_taken(tmp_path, monkeypatch):
    work = Toy(tmp_path, UNITS)

    def stop(self, unit):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "_meet", stop)
        with pytest.raises(Stopped):
            workers.run(work, Workers())
    assert not list(tmp_path.rglob("*.lease"))
    workers.run(work, Workers(retries=0))
    assert all_there(work)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("pbs",), "executor 'pbs' is unknown: expected one of local, slurm, debug"),
        (("local", -1), "workers is -1"),
        (("local", 2, {"partition": "gpu"}), "slurm options are given, but the executor is 'local'"),
        (("local", 1, {}, -2), "retries is -2"),
    ],
)
def test_workers_that_mean_nothing_are_refused(given, said):
    with pytest.raises(MechrefusalError, match=said):
        Workers(*given)


def test_slurm_is_missed_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("submitit")
    with pytest.raises(MechrefusalError, match="there is no 'sbatch' here"):
        Workers("slurm").require()


def test_the_view_shows_stages_and_who_is_at_what(tmp_path, monkeypatch):
    seen, units = [], progress.units

    @contextmanager
    def noting(description, total):
        with units(description, total) as view:
            show = view.show
            view.show = lambda *given: (seen.append(given), show(*given))
            yield view

    monkeypatch.setattr(progress, "units", noting)
    work = Toy(tmp_path, ("a", "b"))
    workers.run(work, Workers())
    assert [finished for _, finished, _ in seen] == sorted(finished for _, finished, _ in seen)
    assert seen[0] == ("2 to be taken", 0, {})
    assert seen[-1] == ("", 6, {})
    lines = [line for _, _, lines in seen for line in lines.values()]
    assert (f"a · second · {platform.node()}", 1, 3) in lines


# Leases.


def held_elsewhere(path, **changes):
    """A lease of a process of another machine."""
    owner = dataclasses.replace(Owner.me(), machine="elsewhere", host="node7", **changes)
    path.write_text(json.dumps(dataclasses.asdict(owner)))


def test_a_lease_is_held_once_and_given_up(tmp_path):
    path = tmp_path / "x.lease"
    lease = Lease.take(path)
    assert Lease.take(path) is None
    assert leases.owner_of(path) == lease.owner
    lease.release()
    assert not path.exists()


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    path, watch = tmp_path / "x.lease", Watch()
    lease = Lease.take(path)
    assert not watch.is_abandoned(path)
    gone = dataclasses.replace(lease.owner, born=lease.owner.born - 1000)  # the number was given again
    path.write_text(json.dumps(dataclasses.asdict(gone)))
    assert watch.is_abandoned(path)


def test_silence_of_another_machine_is_measured_by_who_listens(tmp_path, monkeypatch):
    path, watch = tmp_path / "x.lease", Watch()
    held_elsewhere(path)
    os.utime(path, (1, 1))  # its clock, or that of the server, may say what it likes
    monkeypatch.setattr(leases, "SILENCE", 0.2)
    assert not watch.is_abandoned(path)
    time.sleep(0.15)
    os.utime(path, (2, 2))
    assert not watch.is_abandoned(path)
    time.sleep(0.15)
    assert not watch.is_abandoned(path)
    time.sleep(0.1)
    assert watch.is_abandoned(path)


def test_leases_are_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "_beats", None)  # a thread that knows of it
    path = tmp_path / "x.lease"
    lease = Lease.take(path)
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lease.release()


def test_what_came_in_place_of_an_abandoned_lease_stays(tmp_path, monkeypatch):
    path, judged = tmp_path / "x.lease", []
    held_elsewhere(path, token="old")
    owner_of = leases.owner_of

    def slowly(where):
        found = owner_of(where)
        if not judged:
            judged.append(found)
            path.unlink()
            held_elsewhere(path, token="new")
        return found

    monkeypatch.setattr(leases, "owner_of", slowly)
    Watch().remove(path)
    assert owner_of(path).token == "new"
    assert os.listdir(tmp_path) == ["x.lease"]


def test_a_vanished_worker_of_another_machine_is_taken_over(tmp_path, monkeypatch):
    work = Toy(tmp_path, ("a", "b"))
    board = Board(work, retries=1)
    held_elsewhere(board.folder / "a.1.lease", job="17_3")
    monkeypatch.setattr(leases, "SILENCE", 0.5)
    began = time.monotonic()
    workers.run(work, Workers())
    assert time.monotonic() - began > 0.5
    assert all_there(work)
    assert [unit for unit, stage, _ in work.taken() if stage == "first"] == ["b", "a"]


def test_a_worker_that_was_taken_for_dead_leaves_its_unit(tmp_path):
    work = Toy(tmp_path, ("a",))
    claim = Board(work, retries=0).claim()
    around = claim.around(workers.alone)
    with around("first"):
        pass
    claim.attempt.vanished("it gave no sign of life")
    again = Board(work, retries=0).claim()
    assert again.attempt.number == 2
    with pytest.raises(LeaseLostError), around("second"):
        pass


def test_a_command_that_ends_takes_no_folder_from_another(tmp_path):
    work = Toy(tmp_path, ("a",))
    board, other = Board(work, retries=0), Board(work, retries=0)
    other.close()
    assert not board.folder.exists()
    assert board.claim().unit == "a"


def test_a_job_whose_time_is_over_counts_where_nothing_was_finished(tmp_path, monkeypatch):
    """submitit ends the process by SystemExit, and has the job queued again."""
    work = Toy(tmp_path, ("a",))
    board = Board(work, retries=0)

    def over(self, unit):
        raise SystemExit(-1)

    monkeypatch.setattr(Toy, "_meet", over)
    with pytest.raises(SystemExit):
        take_one(board, workers.alone)
    assert board.look().free == ("a",)
    with pytest.raises(SystemExit):
        take_one(board, workers.alone)
    [failure] = board.look().given_up
    assert "time was over before a stage was finished" in str(failure)


def test_two_commands_on_one_folder_share_the_units(tmp_path):
    """As two machines would: each knows of the other by the folder alone."""
    work = Toy(tmp_path, tuple("abcdefgh"), seconds=0.03)
    errors = []

    def command():
        try:
            workers.run(work, Workers())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=command) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(unit for unit, stage, _ in work.taken() if stage == "first") == list("abcdefgh")
    assert nothing_is_left(work)


def test_a_folder_that_another_command_removes_is_made_again(tmp_path, monkeypatch):
    """Between making it and taking a lease in it, and on the way to it."""
    board, take, mkdir, gone = Board(Toy(tmp_path, ("a",)), retries=0), Lease.take, Path.mkdir, []

    def taken(path):
        if not gone:
            gone.append(board.close())
        return take(path)

    def made(self, *args, **named):
        if self == board.folder and len(gone) == 1:
            gone.append(board.close())
            raise FileNotFoundError(2, "its parent was removed meanwhile")
        return mkdir(self, *args, **named)

    monkeypatch.setattr(Lease, "take", taken)
    monkeypatch.setattr(Path, "mkdir", made)
    claim = board.claim()
    assert claim is not None
    assert claim.unit == "a"
    assert len(gone) == 2
    claim.drop()
    board.close()
    assert nothing_is_left(board.work)


# Processes. They are forked from one that has imported everything.


@pytest.mark.slow
def test_local_workers_share_the_units_and_survive_a_killed_one(tmp_path):
    work, told = Toy(tmp_path, UNITS, (("b", "die"), ("c", "raise")), seconds=0.05), []
    with pytest.raises(RuntimeError, match=r"^c failed in stage 'second': ValueError: c is odd"):
        workers.run(work, Workers(n=2, retries=1), on_finished=told.append)
    assert sorted(told) == ["a", "b", "d"]
    taken = work.taken()
    assert os.getpid() not in {int(process) for _, _, process in taken}
    assert [stage for unit, stage, _ in taken if unit == "b"] == ["first", "second", "second", "third"]


@pytest.mark.slow
def test_a_unit_that_kills_every_worker_is_given_up(tmp_path):
    work = Toy(tmp_path, ("a", "b"), (("a", "kill"),))
    with pytest.raises(MechrefusalError, match=r"^a failed in stage 'second': its worker is gone .*it was killed"):
        workers.run(work, Workers(n=2, retries=1))
    assert work.left() == {"a": ["second", "third"], "b": []}
    assert [stage for unit, stage, _ in work.taken() if unit == "a"] == ["first", "second", "second"]


@pytest.mark.slow
def test_threads_are_shared_by_those_that_run(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        executor = local.Local(Board(Toy(tmp_path, UNITS), retries=0), 2)
        assert executor._share.value == 2
        executor._running = {0: type("P", (), {"is_alive": lambda _: True})()}
        assert executor.alive() == 1
        assert executor._share.value == 4
        executor._running = {}
        executor.stop()
    finally:
        torch.set_num_threads(before)


def _ends(pid):
    deadline = time.monotonic() + 20
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the worker goes on"
            time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_command_takes_its_workers_along_and_leaves_nothing_taken(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path\n"
        "    import toy_work\n"
        "    from mechrefusal import workers\n"
        "    from mechrefusal.workers import local\n"
        "    local.IMPORTED = ('torch',)\n"
        f"    work = toy_work.Toy(Path({str(tmp_path)!r}), ('a', 'b'), (('a', 'hang'), ('b', 'hang')))\n"
        "    workers.run(work, workers.Workers(n=2))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    work = Toy(tmp_path, ("a", "b"))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "taken").exists() or len([t for t in work.taken() if t[1] == "second"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for pid in {int(pid) for _, _, pid in work.taken()}:
        _ends(pid)
    workers.run(work, Workers(retries=0))
    assert all_there(work)
    assert nothing_is_left(work)


@pytest.mark.parametrize(
    ("n_units", "threads", "free", "each", "expected"),
    [
        (4, 2, 24, 2, 2),
        (4, 16, 64, 2, 4),
        (1, 16, 64, 2, 1),
        (4, 1, 64, 2, 1),
        (4, 2, 4, 2, 1),  # two would need 6 GiB, and half is left to others
        (4, 8, 64, 60, 1),
        (4, 8, 200, 60, 1),
        (4, 8, 250, 60, 2),
    ],
)
def test_how_many(monkeypatch, n_units, threads, free, each, expected):
    monkeypatch.setattr(local, "free_memory", lambda: free * 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local.how_many(n_units, bytes_each=each * 2**30) == expected


def test_gpus_are_dealt_and_not_shared(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv(local.VISIBLE, raising=False)
    assert local.how_many(8, bytes_each=1) == 4
    assert local._dealt(4) == ["0", "1", "2", "3"]
    assert local._dealt(2) == ["0,1", "2,3"]
    assert local._dealt(6) == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv(local.VISIBLE, "5,7")
    assert local._dealt(2) == ["5", "7"]
