"""Judges by what the command line calls them."""

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import Judge, RefusalJudge


def judge_of(spec: str) -> Judge:
    if spec == "refusal":
        return RefusalJudge()
    raise MechrefusalError(f"unknown judge '{spec}'")
