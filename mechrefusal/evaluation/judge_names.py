"""Judges by what the command line calls them."""

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import Judge, RefusalJudge


def judge_of(spec: str) -> Judge:
    """The judge of a name."""
    if spec == "refusal":
        return RefusalJudge()
    raise MechrefusalError(f"unknown judge '{spec}'")
