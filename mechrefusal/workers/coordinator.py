"""Keeps workers at a work until every unit is finished or given up, and says which were."""

from collections.abc import Callable

from mechrefusal import progress
from mechrefusal.errors import MechrefusalError
from mechrefusal.leases import Watch
from mechrefusal.progress import say
from mechrefusal.workers.board import DISK, ERROR, Attempt, Board, Failure, Look
from mechrefusal.workers.executors import Executor, Here
from mechrefusal.workers.settings import DEBUG, SLURM, Workers
from mechrefusal.workers.work import Work


def at_once(workers: Workers, n_units: int, *, bytes_each: int) -> int:
    """How many workers there will be for so many units, each of which takes `bytes_each` of memory."""
    if workers.executor == DEBUG or n_units < 1:
        return 1
    if workers.executor == SLURM:
        return min(workers.n or n_units, n_units)
    from mechrefusal.workers.local import how_many

    return min(workers.n, n_units) or how_many(n_units, bytes_each=bytes_each)


def executor_of(board: Board, workers: Workers, n: int) -> Executor:
    """What starts `n` workers. One local worker is this process."""
    if workers.executor == SLURM:
        from mechrefusal.workers.slurm import Slurm

        return Slurm(board, n, workers.slurm)
    if n == 1:
        return Here(board, raising=workers.executor == DEBUG)
    from mechrefusal.workers.local import Local

    return Local(board, n)


def run(
    work: Work,
    workers: Workers,
    *,
    bytes_each: int = 0,
    on_finished: Callable[[str], None] = lambda unit: None,
) -> None:
    """Finish every unit of a work, with these workers and whoever else is at it.

    Units that fail are tried again, and reported when all others are finished.

    Args:
        bytes_each: memory that a unit takes.
        on_finished: called in this process for each unit that is finished while it runs.

    Raises:
        MechrefusalError: units failed for a reason that a user can set right, or lost their workers; or workers cannot
            be started, or end before they take a unit.
        OSError: a disk was at fault. RuntimeError: a unit failed otherwise.
    """
    todo = {unit: len(stages) for unit, stages in work.left().items() if stages}
    if not todo:
        return
    board = Board(work, retries=workers.retries)
    executor = executor_of(board, workers, at_once(workers, len(todo), bytes_each=bytes_each))
    try:
        failures = _watched(board, executor, todo, on_finished)
    finally:
        executor.stop()
        board.close()
    if failures:
        raise _error(work, failures)


def _watched(
    board: Board, executor: Executor, todo: dict[str, int], on_finished: Callable[[str], None]
) -> tuple[Failure, ...]:
    told: set[str] = set(board.look().finished)
    watch, begun_at, in_vain = Watch(), None, 0
    with progress.units(board.work.name, sum(todo.values())) as view:
        executor.tell = lambda: _show(view, board.look(), todo, executor)
        while True:
            n_alive, look = executor.alive(), board.look()
            for unit in [unit for unit in look.finished if unit not in told]:
                told.add(unit)
                board.clear(unit)
                on_finished(unit)
            _show(view, look, todo, executor)
            gone = [attempt for attempt in look.taken if _took_note_of_the_gone(attempt, executor, watch)]
            if gone:
                continue
            if not look.taken and not look.free:
                return look.given_up
            if begun_at is not None and not n_alive and look.free:
                in_vain = in_vain + 1 if look.mark == begun_at else 0
                if in_vain > board.retries and not isinstance(executor, Here):
                    raise MechrefusalError(f"workers end before they take anything: {executor.last_words()}")
            busy = sum(attempt.owner is not None and executor.owns(attempt.owner) for attempt in look.taken)
            missing = min(executor.n - n_alive, len(look.free) - (n_alive - busy))
            if missing > 0:
                begun_at = look.mark
                executor.start(missing)
            if missing <= 0 or n_alive:
                executor.wait()


def _took_note_of_the_gone(attempt: Attempt, executor: Executor, watch: Watch) -> bool:
    """Note of an attempt that its worker is gone, if it is."""
    owner = attempt.owner
    why = executor.ended(owner) if owner is not None else ""
    if not why and watch.is_abandoned(attempt.lease):
        why = "it gave no sign of life" if owner is None or not owner.is_gone else "its process has ended"
    if not why or attempt.failure is not None or not attempt.lease.exists():
        return False
    attempt.vanished(why)
    say(f"{attempt.unit}: {attempt.failure.reason}" if attempt.failure else attempt.unit)
    return True


def _show(view: progress.Units, look: Look, todo: dict[str, int], executor: Executor) -> None:
    at = {attempt.unit: attempt.noted().get("stage", "") for attempt in look.taken}
    where = {attempt.unit: attempt.owner.host for attempt in look.taken if attempt.owner is not None}
    finished = {unit: n - len(look.left.get(unit, ())) for unit, n in todo.items()}
    lines = {
        unit: (f"{unit} · {stage or 'begins'} · {where.get(unit, '')}", finished.get(unit, 0), todo.get(unit, 1))
        for unit, stage in at.items()
    }
    waiting = executor.waiting()
    rest = [f"{len(look.free)} to be taken"] if look.free else []
    rest += [f"{waiting} in the queue"] if waiting else []
    rest += [f"{len(look.given_up)} failed"] if look.given_up else []
    view.show(", ".join(rest), sum(finished.values()), lines)


def _error(work: Work, failures: tuple[Failure, ...]) -> Exception:
    """One error for all units that failed."""
    for failure in failures:
        say(f"{work.name}: {failure}")
    kinds = {failure.kind for failure in failures}
    text = "; ".join(str(failure) for failure in failures)
    if len(failures) > 1:
        text = f"{len(failures)} units failed, the others are finished: {text}"
    if kinds == {DISK}:
        return OSError(failures[0].number or 5, text)
    return RuntimeError(text) if ERROR in kinds else MechrefusalError(text)
