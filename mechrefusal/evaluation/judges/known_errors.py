"""How often judges err on answers that people labelled, by their names."""

from mechrefusal.evaluation.judge_error import JudgeCounts


def known_error(judge: str) -> JudgeCounts | None:
    """How a judge did on labelled answers that its rules were not written by, for any refusal; None where unknown."""
    return KNOWN_ERRORS.get(judge)


KNOWN_ERRORS: dict[str, JudgeCounts] = {
    "refusal_rules_6": JudgeCounts(true_positives=117, positives=117, true_negatives=102, negatives=102),
}
