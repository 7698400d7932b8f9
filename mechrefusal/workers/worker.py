"""A worker: takes one unit after another until there is none to be had."""

from mechrefusal.memory import given_back
from mechrefusal.workers.board import Board, LeaseLostError
from mechrefusal.workers.work import Around


def take_one(board: Board, around: Around, *, raising: bool = False) -> bool:
    """Take a unit; False where there is none to be had. How it failed is noted.

    Args:
        raising: raise its error instead.
    """
    claim = board.claim()
    if claim is None:
        return False
    try:
        board.work.take(claim.unit, claim.around(around))
    except LeaseLostError:
        claim.lease.release(keep=True)
    except Exception as error:
        if raising:
            claim.drop()
            raise
        claim.fail(error)
    except BaseException as end:
        # A queue ends a job whose time is over, and begins it again: that leads nowhere where no stage gets finished.
        if isinstance(end, SystemExit) and len(claim.left) == claim.at_first:
            claim.fail(RuntimeError("the job's time was over before a stage was finished; give more time"))
        else:
            claim.drop()
        raise
    else:
        claim.finish()
    return True


def take_all(board: Board, around: Around) -> None:
    """Take units until there is none to be had. What one left in memory is given back before the next."""
    while take_one(board, around):
        given_back()
