"""Jobs in processes of their own: results, errors, what is shared, and that nothing outlives who asked."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from mechrefusal import processes
from mechrefusal.errors import MechrefusalError
from mechrefusal.processes import Job

pytestmark = pytest.mark.slow


def run(jobs, at_once=2):
    return dict(processes.run(jobs, at_once=at_once, description="jobs"))


def double(x, around):
    with around("double"):
        return os.getpid(), 2 * x


def test_every_job_is_done_in_a_process_of_its_own():
    found = run([Job(f"job {x}", double, (x,)) for x in range(3)])
    assert {name: value for name, (_, value) in found.items()} == {"job 0": 0, "job 1": 2, "job 2": 4}
    assert len({os.getpid(), *(process for process, _ in found.values())}) == 4


def refuse(what, around):
    raise MechrefusalError(what)


def stumble(around):
    return 1 // 0


def die(around):
    os.kill(os.getpid(), signal.SIGKILL)


def touch(path, seconds, around):
    time.sleep(seconds)
    Path(path).touch()


def test_a_failure_waits_for_what_runs_and_begins_nothing_more(tmp_path):
    jobs = [
        Job("bad", refuse, ("prompts 'x' are empty",)),
        Job("running", touch, (tmp_path / "running", 1)),
        Job("waiting", touch, (tmp_path / "waiting", 0)),
    ]
    done = []
    with pytest.raises(MechrefusalError, match=r"^prompts 'x' are empty$"):
        done.extend(name for name, _ in processes.run(jobs, at_once=2, description="jobs"))
    assert done == ["running"]
    assert [path.name for path in tmp_path.iterdir()] == ["running"]


def test_other_errors_come_with_their_traceback():
    with pytest.raises(RuntimeError, match=r"'stumbles' failed:\n(.*\n)*.*1 // 0\n(.*\n)*ZeroDivisionError"):
        run([Job("stumbles", stumble, ())])


def test_a_killed_process_is_named():
    with pytest.raises(
        MechrefusalError, match=r"process of 'r2d2' was killed, perhaps for want of memory.*--processes 1"
    ):
        run([Job("r2d2", die, ())])


def die_loading(path, around):
    with around(processes.LOADING):
        Path(path).touch()
        time.sleep(0.3)
        die(around)


def load_after(path, around):
    while not Path(path).exists():
        time.sleep(0.01)
    with around(processes.LOADING):
        return "loaded"


def test_one_that_is_killed_while_it_loads_does_not_hold_up_the_others(tmp_path):
    jobs = [Job("r2d2", die_loading, (tmp_path / "x",)), Job("sft", load_after, (tmp_path / "x",))]
    done = []
    with pytest.raises(MechrefusalError, match="process of 'r2d2' was killed"):
        done.extend(processes.run(jobs, at_once=2, description="jobs"))
    assert done == [("sft", "loaded")]


def leave(around):
    os._exit(3)


def test_a_process_that_ends_without_a_word_is_named():
    with pytest.raises(MechrefusalError, match="process of 'sft' ended with status 3 before it could say why"):
        run([Job("sft", leave, ())])


class SafetensorError(Exception):
    """By name, as that of safetensors is told."""


def fill_the_disk(kind, around):
    raise SafetensorError("No space left on device") if kind else OSError(28, "No space left on device")


@pytest.mark.parametrize("kind", [0, 1])
def test_a_full_disk_stays_one(kind):
    with pytest.raises(OSError, match="No space left on device"):
        run([Job("sft", fill_the_disk, (kind,))])


def meet(folder, name, other, stays, around):
    """Threads in a stage while the other one is here, and in those after it has gone (until they change)."""
    (Path(folder) / name).touch()
    while not (Path(folder) / other).exists():
        time.sleep(0.01)
    with around("together"):
        found = [torch.get_num_threads()]
    (Path(folder) / f"{name} counted").touch()
    while not (Path(folder) / f"{other} counted").exists():
        time.sleep(0.01)
    deadline = time.monotonic() + 60
    while stays and found[-1] == found[0] and time.monotonic() < deadline:
        with around("alone"):
            found.append(torch.get_num_threads())
        time.sleep(0.02)
    return found[0], found[-1]


def test_threads_are_shared_by_those_that_run(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = run([Job("a", meet, (tmp_path, "a", "b", False)), Job("b", meet, (tmp_path, "b", "a", True))])
    finally:
        torch.set_num_threads(before)
    assert found == {"a": (2, 2), "b": (2, 4)}


def load(path, around):
    with around(processes.LOADING):
        began = time.monotonic()
        time.sleep(0.3)
        return began, time.monotonic()


def test_models_are_loaded_one_after_the_other(tmp_path):
    (_, first), (second, _) = sorted(run([Job(name, load, (name,)) for name in "ab"]).values())
    assert second >= first


def wait_for_ever(path, around):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def _pid(path):
    deadline = time.monotonic() + 120
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())


def _ends(pid):
    deadline = time.monotonic() + 20
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the process of the job goes on"
            time.sleep(0.05)


def test_breaking_off_ends_the_processes(tmp_path):
    jobs = [Job("quick", double, (1,)), Job("slow", wait_for_ever, (tmp_path / "pid",))]
    found = processes.run(jobs, at_once=2, description="jobs")
    assert next(found)[0] == "quick"
    pid = _pid(tmp_path / "pid")
    found.close()
    _ends(pid)


def test_a_killed_first_process_takes_the_others_along(tmp_path):
    code = (
        "import sys; sys.path.insert(0, {here!r})\n"
        "if __name__ == '__main__':\n"
        "    import test_processes as t\n"
        "    t.processes.IMPORTED = ('torch',)\n"
        "    t.run([t.Job('slow', t.wait_for_ever, ({path!r},))])\n"
    ).format(here=str(Path(__file__).parent), path=str(tmp_path / "pid"))
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        pid = _pid(tmp_path / "pid")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _ends(pid)


def three(around):
    for name in ("one", "two", "three"):
        with around(name):
            pass


def test_the_bar_counts_stages(monkeypatch):
    seen = []

    @contextmanager
    def bar(description, total):
        yield SimpleNamespace(advance=lambda **shown: seen.append(shown["description"]))
        seen.append((description, total))

    monkeypatch.setattr(processes.progress, "bar", bar)
    run([Job("sft", three, (), n_stages=3)])
    assert seen == ["sft: one", "sft: two", "sft: three", ("jobs", 3)]


@pytest.mark.parametrize(
    ("n_jobs", "threads", "free", "each", "expected"),
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
def test_how_many(monkeypatch, n_jobs, threads, free, each, expected):
    monkeypatch.setattr(processes, "free_memory", lambda: free * 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes.how_many(n_jobs, bytes_each=each * 2**30) == expected


def test_a_gpu_is_not_shared(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert processes.how_many(4, bytes_each=1) == 1
