"""Workers in the jobs of a real SLURM: one node on the loopback, two jobs at a time (scripts/slurm_on_loopback.sh)."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from toy_work import Toy

from mechrefusal import MechrefusalError, workers
from mechrefusal.workers import Workers, slurm

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm_on_loopback.sh"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
TWO = Workers("slurm", 2, {"timeout_min": 5, "mem_gb": 0.1}, retries=2)


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """The configuration of a SLURM that lasts as long as the tests of this file."""
    pytest.importorskip("submitit", reason="submitit is missing: pip install 'mechrefusal[cluster]'")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"no {missing[0]}: apt-get install munge slurmctld slurmd slurm-client" if missing else "not root")
    folder = tmp_path_factory.mktemp("slurm")
    with (folder / "said").open("w") as said:  # no pipe: the daemons would hold it open
        started = subprocess.run([SCRIPT, "start", folder], stdout=said, stderr=said, timeout=120, check=False)
    if started.returncode:
        subprocess.run([SCRIPT, "stop", folder], check=False)
        pytest.skip(f"SLURM does not start here: {(folder / 'said').read_text()[-300:]}")
    yield folder / "slurm.conf"
    subprocess.run([SCRIPT, "stop", folder], check=False)


@pytest.fixture(autouse=True)
def here(queue, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(queue))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(slurm, "ASK_EVERY", 0.5)


def wait_for(reached, seconds=180):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not get that far in time"
        time.sleep(0.1)


def begun(work, stage="second"):
    return {unit for unit, each, _ in work.taken() if each == stage} if (work.folder / "taken").exists() else set()


def jobs():
    """Jobs that run."""
    command = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_two_jobs_take_the_units_and_a_killed_unit_is_taken_again(tmp_path):
    """One unit kills its worker once, one fails each time: it is reported with its log, the others are finished."""
    work, told = Toy(tmp_path, ("a", "b", "c", "d"), (("b", "die"), ("c", "raise")), seconds=0.2), []
    with pytest.raises(RuntimeError, match=r"^c failed in stage 'second': ValueError: c is odd \(log: (.*)\)$") as said:
        workers.run(work, TWO, on_finished=told.append)
    assert sorted(told) == ["a", "b", "d"]
    taken = work.taken()
    assert [stage for unit, stage, _ in taken if unit == "b"] == ["first", "second", "second", "third"]
    assert os.getpid() not in {int(process) for _, _, process in taken}
    assert "Traceback" in Path(str(said.value).split("(log: ")[1].rstrip(")")).read_text()
    assert not list(tmp_path.rglob("*.pkl"))
    assert not jobs()


def test_a_cancelled_job_is_replaced_and_another_command_joins(tmp_path):
    """Two jobs hang. One is cancelled whole, the worker of the other killed; this process joins by a second command."""
    work, errors = Toy(tmp_path, ("a", "b", "c", "d"), (("a", "hang"), ("b", "hang"))), []

    def command():
        try:
            workers.run(work, TWO)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=command)
    thread.start()
    wait_for(lambda: begun(work) == {"a", "b"})
    joining = threading.Thread(target=lambda: workers.run(work, Workers()))
    joining.start()
    wait_for(lambda: not work.left()["c"] and not work.left()["d"])
    first, _ = jobs()
    subprocess.run(["scancel", "--signal=KILL", "--full", first], check=True)
    for unit in "ab":
        (tmp_path / f"{unit}.calm").touch()
    thread.join(180)
    joining.join(180)
    assert not errors
    assert not any(work.left().values())
    assert [process for unit, _, process in work.taken() if unit in "cd"] == [str(os.getpid())] * 6
    wait_for(lambda: not jobs())


def test_jobs_that_cannot_begin_are_given_up_with_their_log(tmp_path):
    work = Toy(tmp_path, ("a",))
    with pytest.raises(MechrefusalError, match=r"workers end before they take anything: .*FAILED.*log: "):
        workers.run(work, Workers("slurm", 1, {"timeout_min": 5, "setup": ["exit 3"]}, retries=0))


def test_what_slurm_refuses_is_said_at_once(tmp_path):
    with pytest.raises(MechrefusalError, match=r"^SLURM does not take the jobs: .*partition"):
        workers.run(Toy(tmp_path, ("a",)), Workers("slurm", 1, {"partition": "nowhere"}))


def test_unknown_options_are_named_before_anything_begins():
    with pytest.raises(MechrefusalError, match=r"slurm option 'walltime' is unknown: expected .*partition"):
        Workers("slurm", 1, {"walltime": 3}).require()
